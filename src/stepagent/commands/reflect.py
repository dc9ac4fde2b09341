"""`stepagent reflect`: rounds of inspection and reflection on files, without an environment."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro

from stepagent.algorithms.dpo import DPOConfig
from stepagent.backends.training import Metrics
from stepagent.commands.models import load_policy, prepare
from stepagent.commands.parsing import CONFIG
from stepagent.evaluation import likeness
from stepagent.policy import Policy
from stepagent.reflection import (
    Implicit,
    InspectionConfig,
    Inverse,
    InverseConfig,
    Learner,
    Lesson,
    inspect_demonstrations,
    with_rewards,
)
from stepagent.run import Run, file_hash, to_json
from stepagent.trajectories import read_trajectories, write_jsonl

SHOWN = {
    "agreement": "agreement",
    "expert_logprob": "expert log-prob",
    "js_divergence": "JS divergence",
    "discriminator_accuracy": "discriminator",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Improves a policy by rounds of inspection and reflection; no environment is needed.

    Reads POLICY and trajectories, one per line of JSON; writes the folder OUT: config.json,
    metrics.jsonl, practised steps of the held-out trajectories with their rewards (practice/), and
    the policy of each round (units/round1, ...), with inverse reflection its discriminator too.
    Prints how close each round's policy is to the expert on the held-out trajectories. What was
    stopped goes on with --resume.

    For example: stepagent reflect --method implicit --policy novice
    --demonstrations demonstrations.jsonl --held-out held-out.jsonl --out reflected --rounds 2
    """

    method: Literal["implicit", "inverse"]
    """Step-wise DPO, or a discriminator and PPO."""
    policy: Path
    """Folder of the policy to begin with."""
    demonstrations: Path
    """The expert's trajectories to learn from."""
    held_out: Path
    """Other trajectories of the expert, to measure on."""
    out: Path
    """Folder for everything."""
    rounds: int = 1
    """How often to inspect and reflect."""
    resume: bool = False
    """Go on with what is in OUT, if anything is."""
    seed: int = 0
    """Of practice, data order and discriminator."""
    inspection: InspectionConfig = InspectionConfig()
    """How the agent practises."""
    implicit: DPOConfig = DPOConfig()
    """One round of implicit reflection."""
    inverse: InverseConfig = InverseConfig()
    """One round of inverse reflection."""


def main(args: Sequence[str]) -> None:
    """The command."""
    found = tyro.cli(Arguments, prog="stepagent reflect", args=args, config=CONFIG)
    prepare()
    policy = load_policy(found.policy)
    lesson = Lesson(
        demonstrations=_rendered(policy, found.demonstrations),
        practised=(),
        held_out=_rendered(policy, found.held_out),
        held_out_practised=(),
    )
    with Run(found.out, _settings(found), resume=found.resume) as run:
        _reflect(found, run, policy, lesson)
        print(_table(run))
    print(f"Policies: {found.out}/units/round1 to round{found.rounds}")


def _rendered(policy: Policy, file: Path) -> list[Any]:
    return [policy.render(t) for t in read_trajectories(file).trajectories]


def _settings(args: Arguments) -> dict[str, Any]:
    """What has to be the same when the run is resumed, the contents of the inputs included."""
    files = [args.demonstrations, args.held_out, *sorted(args.policy.glob("*.safetensors"))]
    own = {"inspection": args.inspection, "implicit": args.implicit, "inverse": args.inverse}
    return {
        "recipe": f"reflect --method {args.method}",
        "seed": args.seed,
        "protocol": {},
        "config": {"rounds": args.rounds, **{name: to_json(value) for name, value in own.items()}},
        "inputs": {str(file): file_hash(file) for file in files},
    }


def _reflect(args: Arguments, run: Run, policy: Policy, lesson: Lesson) -> None:
    learner: Learner = (
        Implicit(args.implicit) if args.method == "implicit" else Inverse(args.inverse, policy)
    )
    if not run.is_done("round0"):
        with run.unit("round0"):
            _log_likeness(args, run, policy, lesson, 0)
    for number in range(1, args.rounds + 1):
        unit = f"round{number}"
        if run.is_done(unit):
            policy = load_policy(run.unit_folder(unit))
            learner.load(run.unit_folder(unit))
            continue
        with run.unit(unit) as folder:
            practised = _practise_and_measure(args, run, policy, learner, lesson, number)

            def log(phase: str, metrics: Metrics, number: int = number) -> None:
                run.log(stage=args.method, round=number, phase=phase, **metrics)

            rewards = learner.learn(policy, practised, seed=args.seed * 1000 + number, log=log)
            judged = with_rewards(
                practised.held_out_practised, practised.held_out_trees, rewards or []
            )
            write_jsonl(run.folder / "practice" / f"{args.method}-{unit}.jsonl", judged)
            _log_likeness(args, run, policy, lesson, number)
            policy.save(folder)
            learner.save(folder)
    if isinstance(learner, Inverse) and not run.is_done("measure"):
        with run.unit("measure"):
            _practise_and_measure(args, run, policy, learner, lesson, args.rounds + 1)


def _practise_and_measure(
    args: Arguments, run: Run, policy: Policy, learner: Learner, lesson: Lesson, number: int
) -> Lesson:
    """The lesson of a round; what the learner measures on it belongs to the round before."""
    seed = args.seed * 1000 + number
    own, held = (
        inspect_demonstrations(policy, trajectories, args.inspection, seed=seed)
        for trajectories in (lesson.demonstrations, lesson.held_out)
    )
    lesson = replace(lesson, practised=own, held_out_practised=held)

    def log(phase: str, metrics: Metrics) -> None:
        run.log(stage=args.method, round=number, phase=phase, **metrics)

    measured = learner.measure(lesson, seed=seed, log=log)
    if measured is not None:
        run.log(
            stage=args.method,
            round=number - 1,
            phase="dev",
            js_divergence=measured.js_divergence,
            discriminator_accuracy=measured.accuracy,
        )
    return lesson


def _log_likeness(args: Arguments, run: Run, policy: Policy, lesson: Lesson, number: int) -> None:
    found = likeness(
        policy,
        lesson.held_out,
        max_new_tokens=args.inspection.decoding.max_new_tokens,
        token_budget=args.inspection.token_budget,
    )
    run.log(
        stage=args.method,
        round=number,
        phase="dev",
        agreement=found.agreement,
        expert_logprob=found.expert_logprob,
    )


def _table(run: Run) -> str:
    """How close each round's policy is to the expert; a dash where it was not measured."""
    rounds: dict[int, dict[str, float | None]] = {}
    for row in run.metrics():
        if row["phase"] == "dev":
            rounds.setdefault(row["round"], {}).update(row)
    lines = ["round" + "".join(f"{title:>18}" for title in SHOWN.values())]
    for number, row in sorted(rounds.items()):
        figures = (row.get(name) for name in SHOWN)
        lines.append(
            f"{number:>5}" + "".join(f"{'-' if x is None else f'{x:.3f}':>18}" for x in figures)
        )
    return "\n".join(lines)
