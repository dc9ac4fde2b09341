"""A whole run, from novice to expert: collect, SFT, rounds of each learner, test, results.

    demonstrations -> SFT -> for each learner: (inspect -> learn -> evaluate on dev) per round
                   -> best dev round of each learner -> test -> results.json, summary.md

Every step is a unit of the run folder: finished ones are skipped when a run is resumed.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from stepagent.chat.inference.server import server_at
from stepagent.evaluation import choose_items, panel_hash
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.dev_and_test import (
    score_on_dev,
    score_on_held_out,
    score_on_test,
    score_prompted,
)
from stepagent.experiment.held_out_results import write_held_out_results
from stepagent.experiment.novice import make_novice, open_policy, rendered
from stepagent.experiment.own import OwnData, OwnDataError
from stepagent.experiment.results import write_results
from stepagent.experiment.rounds import Rounds
from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import (
    DATA,
    DEMONSTRATIONS,
    DEV_FILE,
    HELD_OUT,
    LEFT_OUT,
    NOVICE_DEV,
    PANELS_FILE,
    RESULTS,
    WITHOUT_ITEM,
    tested_unit,
)
from stepagent.experiment.run_json import write_json
from stepagent.experiment.shared_batches import warn_of_small_batches
from stepagent.learners.base import LearnerConfig
from stepagent.methods import METHODS, NOVICE
from stepagent.model.policy import Policy
from stepagent.practice import Playground, Practice
from stepagent.scratch.small_model import TinyConfig
from stepagent.tasks.base import Task
from stepagent.tasks.demonstrations import collect
from stepagent.trajectories import read_trajectories
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)

PANEL_SEED = 0
"""Which items form the panels does not depend on the seed of the run."""


def train(
    config: TrainConfig,
    run: Run,
    task: Task | None,
    own_methods: Mapping[str, LearnerConfig] | None = None,
    *,
    own: OwnData | None = None,
) -> None:
    """Runs everything that is not finished yet in the run folder.

    `own_methods` are learners of the user's by name, compared with those of `config.methods`. `own`
    are demonstrations to use in place of those of the task's expert; without a task they are all
    there is, and rounds are chosen by how often they agree with the expert in held-out steps. Each
    step loads its policy and releases it: only one is in memory at a time, in inverse reflection
    together with its discriminator.

    Raises `SettingsError` if a method needs an environment and there is none, and `InferenceError`
    if the server that should sample is not there.
    """
    if task is None:
        config.check_without_environment()
    if run.is_done(RESULTS):
        return
    if config.practise_with is not None:
        server_at(config.practise_with).find()  # not only when SFT is finished
    is_scratch = isinstance(config.model, TinyConfig)
    used = {NOVICE, *config.methods}
    warn_of_small_batches(
        config, unused={*METHODS.keys() - used, *(() if is_scratch else ("pretrain",))}
    )
    learners = {name: config.learner_config(name) for name in config.methods} | dict(
        own_methods or {}
    )
    demonstrations, held_out = _data(config, run, task, own)
    cloned = learnt = demonstrations
    if task is not None and own is None:
        data = config.data
        cloned = _of_each_group(task, demonstrations, 0, data.sft)
        learnt = _of_each_group(task, demonstrations, data.sft - data.shared, data.reflection)
    make_novice(config, run, demonstrations, cloned)
    practice = _practice(config, run, task, learnt, held_out)
    for method, learner in learners.items():
        _rounds(config, run, task, method, learner, practice)
    for tested in (NOVICE, *learners):
        if run.is_done(tested_unit(tested)):
            continue
        if task is None:
            score_on_held_out(config, run, practice.held_out, tested)
        else:
            score_on_test(config, run, task, tested)
    for prompt in config.prompting.methods:
        if task is not None and not run.is_done(tested_unit(prompt)):
            score_prompted(config, run, task, prompt)
    if task is None:
        write_held_out_results(config.seed, run, own_methods or ())
    else:
        write_results(config.seed, run, own_methods or ())


def _practice(
    config: TrainConfig,
    run: Run,
    task: Task | None,
    demonstrations: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
) -> Practice:
    """The practice that all methods share; first evaluates the novice on dev."""
    novice = open_policy(config, run, NOVICE)
    playground = None
    if task is not None:
        playground = Playground(
            task=task, detours=config.detours, num_parallel=config.evaluation.num_parallel
        )
    practice = Practice(
        rendered(run, novice, demonstrations, "reflection"),
        rendered(run, novice, held_out, "held-out"),
        config.inspection,
        seed=config.seed,
        playground=playground,
    )
    if not run.is_done(NOVICE_DEV):
        with run.unit(NOVICE_DEV) as folder:
            metrics = score_on_dev(config, run, task, novice, practice.held_out, NOVICE, 0)
            write_json(folder / DEV_FILE, metrics)
    return practice


def _rounds(
    config: TrainConfig,
    run: Run,
    task: Task | None,
    method: str,
    learner: LearnerConfig,
    practice: Practice,
) -> None:
    """All rounds of a method, from the novice."""

    def dev(policy: Policy, number: int) -> dict[str, float | None]:
        return score_on_dev(config, run, task, policy, practice.held_out, method, number)

    policy = open_policy(config, run, NOVICE)
    Rounds(
        run=run,
        method=method,
        learner=learner.learner(policy),
        practice=practice,
        novice=run.unit_folder(NOVICE),
        evaluate=dev,
    ).go(policy, config.rounds)


def _data(
    config: TrainConfig, run: Run, task: Task | None, own: OwnData | None
) -> tuple[Sequence[Trajectory], Sequence[Trajectory]]:
    """Training demonstrations and the held-out ones, by default the experts of the dev panel."""
    if not run.is_done(DATA):
        with run.unit(DATA) as folder:
            panels = choose_panels(config, task, own) if task else {}
            if own is not None:
                _write_own(run, own)
            elif task is not None:
                wanted = config.data.sft + config.data.reflection - config.data.shared
                items = choose_items(task, "train", wanted, seed=PANEL_SEED)
                for file, chosen in ((DEMONSTRATIONS, items), (HELD_OUT, panels["dev"])):
                    _collect(run, task, file, chosen)
            if panels:
                write_json(folder / PANELS_FILE, panels)
                run.record_data(
                    "panels",
                    {n: {"sha256": panel_hash(p), "items": len(p)} for n, p in panels.items()},
                )
    for file in (DEMONSTRATIONS, HELD_OUT):
        run.units.check(file)
    train, held_out = (read_trajectories(run.folder / f) for f in (DEMONSTRATIONS, HELD_OUT))
    return train.trajectories, held_out.trajectories


def choose_panels(
    config: TrainConfig, task: Task, own: OwnData | None
) -> dict[str, tuple[str, ...]]:
    """Dev and test items, without those that the agent learns from.

    Raises `OwnDataError` if a panel is empty.
    """
    learnt = {t.id for t in own.demonstrations} if own else set()
    chosen = {
        "dev": choose_items(task, "dev", config.data.dev, seed=PANEL_SEED),
        "test": choose_items(task, "test", config.data.test, seed=PANEL_SEED),
    }
    panels = {name: tuple(i for i in every if i not in learnt) for name, every in chosen.items()}
    for name, items in panels.items():
        if not chosen[name]:
            raise OwnDataError(f"{task.name}: no {name} items; expected at least one")
        if not items:
            raise OwnDataError(
                f"{task.name}: all {name} items are among the demonstrations; expected others"
            )
    return panels


def _collect(run: Run, task: Task, file: str, items: Sequence[str]) -> None:
    found = collect(task, items)
    digest = run.write_records(file, found.trajectories)
    for lost in found.lost:
        logger.warning("lost: %s", lost)
    facts = {
        "sha256": digest,
        "trajectories": len(found.trajectories),
        "failed": list(found.failed),
        "lost": [str(lost) for lost in found.lost],
    }
    run.record_data(PurePosixPath(file).name, facts)


def _write_own(run: Run, own: OwnData) -> None:
    for file, trajectories in ((DEMONSTRATIONS, own.demonstrations), (HELD_OUT, own.held_out)):
        digest = run.write_records(file, trajectories)
        facts = {"sha256": digest, "trajectories": len(trajectories)}
        run.record_data(PurePosixPath(file).name, facts)
    if own.left_out:
        run.record_data(LEFT_OUT, own.left_out)
    if own.without_item:
        run.record_data(WITHOUT_ITEM, {"demonstrations": own.without_item})


def _of_each_group(
    task: Task, demonstrations: Sequence[Trajectory], skipped: int, count: int
) -> list[Trajectory]:
    """Up to `count` demonstrations of each group, after the first `skipped`."""
    groups: dict[str, list[Trajectory]] = {}
    for t in demonstrations:
        groups.setdefault(task.group(t.id), []).append(t)
    return [t for own in groups.values() for t in own[skipped : skipped + count]]
