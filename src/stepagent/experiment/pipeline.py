"""A whole run, from novice to expert: collect, SFT, rounds of each learner, test, results.

    demonstrations -> SFT -> for each learner: (inspect -> learn -> evaluate on dev) per round
                   -> best dev round of each learner -> test -> results.json, summary.md

Every step is a unit of the run folder: finished ones are skipped when a run is resumed.
"""

import logging
from collections.abc import Sequence
from pathlib import PurePosixPath

from stepagent.console.progress import track
from stepagent.detours import Detours, take_detours
from stepagent.evaluation import choose_items, panel_hash
from stepagent.experiment.config import Method, TrainConfig
from stepagent.experiment.novice import make_novice, open_policy, rendered
from stepagent.experiment.results import write_results
from stepagent.experiment.rounds import Explored, Rounds
from stepagent.experiment.run import Run, write_json
from stepagent.experiment.scoring import score_on_dev, score_on_test, score_prompted
from stepagent.files.atomic import file_hash
from stepagent.learners.baselines import ETO, GRPO, RFT, SPIN, FinalPPO
from stepagent.learners.reflection import Implicit, Inverse, Learner, MoreSFT
from stepagent.model.policy import Policy
from stepagent.practice import Lesson, Practice
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.rollout import rollout
from stepagent.tasks.base import Task
from stepagent.tasks.demonstrations import collect
from stepagent.tasks.tries import Lost, all_lost
from stepagent.trajectories import read_trajectories
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)

PANEL_SEED = 0
"""Which items form the panels does not depend on the seed of the run."""


def train(config: TrainConfig, run: Run, task: Task) -> None:
    """Runs everything that is not finished yet in the run folder.

    Each step opens the policy that it needs and lets go of it: one policy is in memory at a time,
    in inverse reflection with its discriminator.
    """
    if run.is_done("results"):
        return
    demonstrations, held_out = _data(config, run, task)
    cloned = _of_each_group(task, demonstrations, 0, config.data.sft)
    make_novice(config, run, demonstrations, cloned)
    learnt = _of_each_group(
        task, demonstrations, config.data.sft - config.data.shared, config.data.reflection
    )
    lesson = _lesson(config, run, task, learnt, held_out)
    practice = _practice(config, task, lesson)
    for method in config.methods:
        _rounds(config, run, task, method, practice)
    for tested in ("sft", *config.methods):
        if not run.is_done(f"{tested}-test"):
            score_on_test(config, run, task, tested)
    for prompt in config.prompting.methods:
        if not run.is_done(f"{prompt}-test"):
            score_prompted(config, run, task, prompt)
    write_results(config.seed, run)


def _lesson(
    config: TrainConfig,
    run: Run,
    task: Task,
    demonstrations: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
) -> Lesson:
    """What all methods learn from, after the novice was evaluated on dev."""
    novice = open_policy(config, run, "sft")
    lesson = Lesson(
        demonstrations=rendered(run, novice, demonstrations, "reflection"),
        practised=(),
        held_out=rendered(run, novice, held_out, "held-out"),
        held_out_practised=(),
    )
    if not run.is_done("sft-dev"):
        with run.unit("sft-dev") as folder:
            metrics = score_on_dev(config, run, task, novice, lesson, "sft", 0)
            write_json(folder / "dev.json", metrics)
    return lesson


def _practice(config: TrainConfig, task: Task, lesson: Lesson) -> Practice:
    """Practice in the states of the demonstrations, and of the detours from them."""

    def detour(policy: Policy, trajectories: Sequence[RenderedTrajectory], seed: int) -> Detours:
        return take_detours(
            policy,
            task,
            trajectories,
            config.inspection.decoding,
            in_a_row=config.detours,
            seed=seed,
            num_parallel=config.evaluation.num_parallel,
        )

    return Practice(
        lesson, config.inspection, seed=config.seed, detour=detour if config.detours else None
    )


def _rounds(config: TrainConfig, run: Run, task: Task, method: Method, practice: Practice) -> None:
    """All rounds of a method, from the novice."""

    def dev(policy: Policy, number: int) -> dict[str, float | None]:
        return score_on_dev(config, run, task, policy, practice.lesson, method, number)

    def explore(policy: Policy, episodes: int, number: int) -> Explored:
        every = [d.trajectory.id for d in practice.lesson.demonstrations]
        stride = min(episodes, len(every))
        items, seed = every[number % stride :: stride], practice.seed_of(number)
        found, lost = list[RenderedTrajectory](), list[Lost]()
        for turn in range(episodes):
            outcomes = rollout(
                policy,
                task,
                items,
                config.inspection.decoding,
                seed=seed * 1000 + turn,
                num_parallel=config.evaluation.num_parallel,
            )
            played = dict[str, RenderedTrajectory]()
            for outcome in track(outcomes, "Exploration", total=len(items)):
                if isinstance(outcome, Lost):
                    logger.warning("lost: %s", outcome)
                    lost.append(outcome)
                else:
                    played[outcome.trajectory.id] = outcome
            found += [played[item] for item in items if item in played]
        if lost and not found:
            raise all_lost(lost, len(lost))
        return Explored(found, len(lost))

    policy = open_policy(config, run, "sft")
    Rounds(
        run=run,
        method=method,
        learner=_learner(config, method, policy),
        practice=practice,
        novice=run.unit_folder("sft"),
        evaluate=dev,
        explore=explore,
    ).go(policy, config.rounds)


def _data(
    config: TrainConfig, run: Run, task: Task
) -> tuple[tuple[Trajectory, ...], tuple[Trajectory, ...]]:
    """Training demonstrations and the experts of the dev panel."""
    train_file, dev_file = "demonstrations.jsonl", "practice/demonstrations-dev.jsonl"
    if not run.is_done("data"):
        with run.unit("data") as folder:
            wanted = config.data.sft + config.data.reflection - config.data.shared
            items = choose_items(task, "train", wanted, seed=PANEL_SEED)
            dev = choose_items(task, "dev", config.data.dev, seed=PANEL_SEED)
            test = choose_items(task, "test", config.data.test, seed=PANEL_SEED)
            for file, chosen in ((train_file, items), (dev_file, dev)):
                found = collect(task, chosen)
                run.write_records(file, found.trajectories)
                for lost in found.lost:
                    logger.warning("lost: %s", lost)
                facts = {
                    "sha256": file_hash(run.folder / file),
                    "trajectories": len(found.trajectories),
                    "failed": list(found.failed),
                    "lost": [str(lost) for lost in found.lost],
                }
                run.record_data(PurePosixPath(file).name, facts)
            panels = {"dev": dev, "test": test}
            write_json(folder / "panels.json", panels)
            run.record_data(
                "panels",
                {n: {"sha256": panel_hash(p), "items": len(p)} for n, p in panels.items()},
            )
    for file in (train_file, dev_file):
        run.units.check(file)
    train, dev_experts = (read_trajectories(run.folder / f) for f in (train_file, dev_file))
    return train.trajectories, dev_experts.trajectories


def _of_each_group(
    task: Task, demonstrations: Sequence[Trajectory], skipped: int, count: int
) -> list[Trajectory]:
    """So many demonstrations of each group, after the first `skipped`, or all that there are."""
    groups: dict[str, list[Trajectory]] = {}
    for t in demonstrations:
        groups.setdefault(task.group(t.id), []).append(t)
    return [t for own in groups.values() for t in own[skipped : skipped + count]]


def _learner(config: TrainConfig, method: Method, novice: Policy) -> Learner:
    match method:
        case "sft_more":
            return MoreSFT(config.sft_more)
        case "dagger":
            return MoreSFT(config.dagger, practises=True)
        case "implicit":
            return Implicit(config.implicit)
        case "inverse":
            return Inverse(config.inverse, novice)
        case "step_dpo":
            return Implicit(config.step_dpo)
        case "rft":
            return RFT(config.rft)
        case "eto":
            return ETO(config.eto)
        case "spin":
            return SPIN(config.spin)
        case "ppo":
            return FinalPPO(config.ppo, novice)
        case "grpo":
            return GRPO(config.grpo)
