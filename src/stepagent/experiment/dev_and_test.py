"""Evaluation of a run's policies: on dev after every round, on test once."""

import logging
from collections.abc import Sequence

from stepagent.chat.episodes import NO_ROOM, PromptedPolicy, play
from stepagent.chat.local_client import LocalChat
from stepagent.evaluation import evaluate, likeness, summarize
from stepagent.experiment.config import TrainConfig
from stepagent.experiment.held_out import compare_with_expert, to_rows
from stepagent.experiment.novice import base_model, model_name, open_policy
from stepagent.experiment.run import Run
from stepagent.experiment.run_folder import (
    BASE,
    CHOSEN_FILE,
    COMPARED_FILE,
    DATA,
    DEMONSTRATIONS,
    DEV_FILE,
    PANELS_FILE,
    TEST_FILE,
    dev_name,
    dev_unit,
    episodes_file,
    lost_key,
    round_unit,
    tested_unit,
)
from stepagent.experiment.run_json import write_json
from stepagent.methods import METHODS, NOVICE
from stepagent.model.policy import Policy
from stepagent.processes import ranks
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.tasks.base import Task
from stepagent.tasks.tries import Lost
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


def score_on_dev(
    config: TrainConfig,
    run: Run,
    task: Task | None,
    policy: Policy,
    held_out: Sequence[RenderedTrajectory],
    method: str,
    number: int,
) -> dict[str, float | None]:
    """Evaluates a round's policy on the dev panel and against held-out expert steps; logs both.

    Without a task there is no panel.
    """
    metrics: dict[str, float | None] = {}
    if task is not None:
        metrics |= _dev_panel(config, run, task, policy, method, number)
    like = likeness(
        policy,
        held_out,
        max_new_tokens=config.evaluation.decoding.max_new_tokens,
    )
    metrics |= {"agreement": like.agreement, "expert_logprob": like.expert_logprob}
    run.log(stage=method, round=number, phase="dev", **metrics)
    return metrics


def _dev_panel(
    config: TrainConfig, run: Run, task: Task, policy: Policy, method: str, number: int
) -> dict[str, float | None]:
    panel = run.read_json(DATA, PANELS_FILE)["dev"]
    result = evaluate(
        policy, task, panel, config.evaluation, seed=config.seed, description=f"{method}: dev"
    )
    name = dev_name(method, number)
    run.write_records(episodes_file(name), result.episodes)
    _record_lost(run, name, result.lost, len(panel))
    metrics = {
        "score": result.score.mean,
        "score_low": result.score.low,
        "score_high": result.score.high,
        "success": result.success.mean,
    }
    return metrics | ({"lost": len(result.lost)} if result.lost else {})


def _record_lost(run: Run, name: str, lost: Sequence[Lost], count: int) -> None:
    """Lists lost episodes, out of `count`, in config.json and on standard error."""
    for one in lost:
        logger.warning("lost: %s", one)
    # An interrupted attempt at the unit may have recorded others.
    if lost or lost_key(name) in run.config["data"]:
        run.record_data(lost_key(name), {"lost": [str(one) for one in lost], "of": count})


def best_round(run: Run, method: str) -> int:
    """The round with the highest dev score, the earliest of equals; 0 is the novice itself.

    Without an environment it is the round that agrees most often with the expert in held-out steps.
    """
    found = _dev_values(run, method)
    return found.index(max(found))


def best_unit(run: Run, methods: Sequence[str]) -> str:
    """The unit whose policy does best on dev, by the same measure; the novice if none is better."""
    best, best_value = NOVICE, _dev_values(run, NOVICE)[0]
    for method in methods:
        value = max(_dev_values(run, method))
        if value > best_value:
            best, best_value = round_unit(method, best_round(run, method)), value
    return best


def _dev_values(run: Run, method: str) -> list[float]:
    """The figure by which rounds are chosen, for the novice and each round of the method."""
    found = list[float]()
    while run.is_done(unit := dev_unit(method, len(found))):
        metrics = run.read_json(unit, DEV_FILE)
        found.append(metrics["score" if "score" in metrics else "agreement"])
        if method == NOVICE:
            break
    return found


def score_on_held_out(
    config: TrainConfig, run: Run, held_out: Sequence[RenderedTrajectory], method: str
) -> None:
    """The method's best round beside the expert, for each held-out trajectory."""
    number = best_round(run, method)
    with run.unit(tested_unit(method)) as folder:
        if method != NOVICE and number == 0:
            rows = run.read_json(tested_unit(NOVICE), COMPARED_FILE)
        else:
            policy = open_policy(config, run, round_unit(method, number))
            limit = config.evaluation.decoding.max_new_tokens
            rows = to_rows(compare_with_expert(policy, held_out, max_new_tokens=limit))
        write_json(folder / COMPARED_FILE, rows)
        write_json(folder / CHOSEN_FILE, number)


def score_on_test(config: TrainConfig, run: Run, task: Task, method: str) -> None:
    """Tests the method's best round."""
    number = best_round(run, method)
    panel = run.read_json(DATA, PANELS_FILE)["test"]
    unit = tested_unit(method)
    with run.unit(unit) as folder:
        if method != NOVICE and number == 0:
            episodes = run.read_records(episodes_file(tested_unit(NOVICE)), Trajectory)
            if known := run.config["data"].get(lost_key(tested_unit(NOVICE))):
                run.record_data(lost_key(unit), known)
        else:
            policy = open_policy(config, run, round_unit(method, number))
            result = evaluate(
                policy,
                task,
                panel,
                config.evaluation,
                seed=config.seed,
                description=f"{method}: test",
            )
            episodes = result.episodes
            _record_lost(run, unit, result.lost, len(panel))
        run.write_records(episodes_file(unit), episodes)
        write_json(folder / TEST_FILE, task.metrics(episodes))
        write_json(folder / CHOSEN_FILE, number)


def score_prompted(config: TrainConfig, run: Run, task: Task, method: str) -> None:
    """Tests the model as it was before SFT, by prompts, with greedy decoding.

    If a prompt exceeds its context, config.json says so and nothing is tested.
    """
    unit = tested_unit(method)
    with run.unit(unit) as folder:
        model = base_model(config, run)
        prompted = PromptedPolicy(
            LocalChat(
                model_name(config.model) if isinstance(config.model, str) else BASE,
                Policy.load(model, config.compute),
                max_tokens=config.prompting.max_tokens,
            ),
            task,
            "react",
            demonstrations=run.read_records(DEMONSTRATIONS, Trajectory),
            few_shot=config.prompting.few_shot if METHODS[method].has_examples else 0,
        )
        panel = run.read_json(DATA, PANELS_FILE)["test"]
        parallel = config.evaluation.num_parallel
        outcomes = play(prompted, ranks.every_other(panel), num_parallel=parallel)
        found = ranks.gathered({o.item if isinstance(o, Lost) else o.id: o for o in outcomes})
        lost = [outcome for outcome in found.values() if isinstance(outcome, Lost)]
        played = {item: e for item, e in found.items() if isinstance(e, Trajectory)}
        result = summarize([played[item] for item in panel if item in played], lost)
        episodes = result.episodes
        for episode in episodes:
            if (reason := str(episode.metadata["stopped"])).startswith(NO_ROOM):
                run.record_data(method, {"stopped": f"{episode.id}: {reason}"})
                return
        _record_lost(run, unit, lost, len(panel))
        run.write_records(episodes_file(unit), episodes)
        write_json(folder / TEST_FILE, task.metrics(episodes))
        write_json(folder / CHOSEN_FILE, 0)
