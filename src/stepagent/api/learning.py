"""The steps of the method as functions on trajectories: clone, inspect, reflect, measure.

policy   = sft(demonstrations)
lesson   = inspect(policy, demonstrations, held_out)     what the agent does in expert states
rewards  = reflect(policy, lesson, learner)              learn from the difference
"""

import logging
from collections.abc import Callable, Sequence

from stepagent.algorithms import sft as cloning
from stepagent.algorithms.sft import SFTConfig
from stepagent.evaluation import (
    Evaluation,
    EvaluationConfig,
    Likeness,
    choose_items,
)
from stepagent.evaluation import evaluate as evaluate_on
from stepagent.evaluation import likeness as likeness_of
from stepagent.learners.base import Learner
from stepagent.model.policy import Policy
from stepagent.model.updates import Metrics
from stepagent.practice import InspectionConfig, Lesson, Playground, Practice, with_rewards
from stepagent.rendering.renderer import RenderedTrajectory
from stepagent.tasks.base import Task
from stepagent.types import PracticedStep, Trajectory

Log = Callable[[str, Metrics], None]

logger = logging.getLogger(__name__)


class DemonstrationsError(ValueError):
    """Trajectories cannot be used as asked; the message is one line."""


def sft(
    policy: Policy,
    demonstrations: Sequence[Trajectory],
    config: SFTConfig = SFTConfig(),  # noqa: B008, it is frozen
    *,
    seed: int = 0,
    log: Log | None = None,
) -> None:
    """Fine-tunes the policy in place on the expert's actions (behavioural cloning).

    The loss is the mean negative log-likelihood of action tokens, in nats per token; instructions
    and observations carry no loss (Pomerleau 1989).

    Args:
        policy: The policy to train.
        demonstrations: The expert's trajectories, with unique ids. Those longer than the model's
            context are left out, with one warning.
        config: Epochs, batch size and optimizer.
        seed: Of the order of the data.
        log: Called after every update with "train" and its metrics.

    Raises:
        DemonstrationsError: There are no demonstrations, or ids occur twice.
        PolicyError: No demonstration fits into the context.
        TrainingError: The loss is not finite.

    Example:
        >>> import stepagent
        >>> stepagent.sft(policy, demonstrations, stepagent.SFTConfig(epochs=1))
    """
    own = _rendered(policy, demonstrations, "sft")
    cloning.sft(policy, own, config, seed=seed, log=lambda metrics: _log(log)("train", metrics))


def inspect(
    policy: Policy,
    demonstrations: Sequence[Trajectory],
    held_out: Sequence[Trajectory],
    config: InspectionConfig = InspectionConfig(),  # noqa: B008, it is frozen
    *,
    round: int = 1,
    seed: int = 0,
    task: Task | None = None,
    detours: int = 0,
    learner: Learner | None = None,
) -> Lesson:
    """Lets the policy act in every state of the expert's trajectories (inspection).

    In each expert state `s_t` the policy samples its own action; no environment is needed. With
    `detours` the task's environment replays each demonstration with the agent's mistakes inserted,
    and the expert's action stays the label (DAgger, arXiv 1011.0686, without asking an expert).

    Args:
        policy: The policy that acts; it is not changed.
        demonstrations: The expert's trajectories to learn from, with unique ids. Those longer than
            the model's context are left out, with one warning.
        held_out: Other trajectories of the expert, on which learners measure themselves.
        config: Actions per state and how they are sampled.
        round: Number of the round, from 1; every round samples other actions.
        seed: Of the sampling. The same policy, round and seed give the same lesson.
        task: The environment, for detours and for learners that play episodes of their own.
        detours: Mistakes in a row that are inserted into a demonstration; 0 for none.
        learner: The learner that the lesson is for; one that plays gets its episodes too. By
            default one that needs no episodes, such as implicit and inverse reflection.

    Returns:
        A complete lesson for `reflect`. `lesson.practised` holds one `PracticedStep` for each step
        of the demonstrations, in order; `lesson.held_out_practised` those of `held_out`.

    Raises:
        DemonstrationsError: A list is empty, ids occur twice, a trajectory is in both lists, or a
            task is missing.
        PolicyError: No trajectory of a list fits into the context.
        EnvironmentLost: The environments of all episodes were lost.

    Example:
        >>> import stepagent
        >>> lesson = stepagent.inspect(policy, demonstrations, held_out)
        >>> len(lesson.practised) == sum(len(t.steps) for t in demonstrations)
        True
        >>> step = lesson.practised[0]
        >>> step.expert_action == demonstrations[0].steps[0].action
        True
        >>> len(step.agent_actions)  # num_actions of InspectionConfig
        1
    """
    explores = learner.explores if learner else 0
    if task is None and (detours or explores):
        what = "detours" if detours else f"{type(learner).__name__}, which plays episodes,"
        raise DemonstrationsError(f"inspect: {what} needs an environment; give one as task=...")
    check_apart("inspect", demonstrations, held_out)
    practice = Practice(
        _rendered(policy, demonstrations, "inspect"),
        _rendered(policy, held_out, "inspect", name="held_out"),
        config,
        seed=seed,
        playground=Playground(task=task, detours=detours) if task else None,
    )
    practises = learner.practises if learner else True
    return practice.lesson(policy, round, practises=practises, explores=explores)


def reflect(
    policy: Policy,
    lesson: Lesson,
    learner: Learner,
    *,
    seed: int = 0,
    log: Log | None = None,
) -> list[PracticedStep]:
    """Improves the policy in place from the differences between its actions and the expert's.

    Keep the learner from round to round: inverse reflection carries its discriminator along.

    Args:
        policy: The policy that made the lesson.
        lesson: From `inspect` with this policy.
        learner: From a config: `ImplicitConfig().learner(policy)` for step-wise DPO,
            `InverseConfig().learner(policy)` for a discriminator and PPO, or a `Learner` of your
            own.
        seed: Of the order of the data; use another one in each round.
        log: Called after every update with a phase such as "train" or "ppo" and its metrics.

    Returns:
        The held-out practised steps with their step rewards, in the learner's unit (see `score`);
        empty if the learner gives none.

    Raises:
        LearnerStopped: The lesson is of no use to the learner, such as a discriminator that stays
            at chance; one line.
        TrainingError: The loss is not finite.

    Example:
        >>> import stepagent
        >>> learner = stepagent.ImplicitConfig().learner(policy)
        >>> for number in (1, 2):
        ...     lesson = stepagent.inspect(policy, demonstrations, held_out, round=number)
        ...     steps = stepagent.reflect(policy, lesson, learner, seed=number)
        >>> [step.expert_action for step in steps] == [s.action for t in held_out for s in t.steps]
        True
        >>> isinstance(steps[0].expert_reward, float)
        True
    """
    rewards = learner.learn(policy, lesson, seed=seed, log=_log(log))
    if rewards is None:
        return []
    return with_rewards(lesson.held_out_practised, lesson.held_out_trees, rewards)


def likeness(
    policy: Policy, held_out: Sequence[Trajectory], *, max_new_tokens: int = 64
) -> Likeness:
    """How close the policy is to the expert, in the expert's own states; needs no environment.

    Args:
        policy: The policy; it is not changed.
        held_out: Trajectories of the expert that the policy was not trained on.
        max_new_tokens: Longest action, in tokens.

    Returns:
        `agreement`, the share of steps whose greedy action is the expert's (0 to 1), and
        `expert_logprob`, the mean log-probability of the expert's actions in nats per action.

    Raises:
        DemonstrationsError: There are no trajectories, or ids occur twice.
        PolicyError: No trajectory fits into the context.

    Example:
        >>> import stepagent
        >>> found = stepagent.likeness(policy, held_out)
        >>> 0 <= found.agreement <= 1 and found.expert_logprob < 0
        True
    """
    rendered = _rendered(policy, held_out, "likeness", name="held_out")
    return likeness_of(policy, rendered, max_new_tokens=max_new_tokens)


def evaluate(
    policy: Policy,
    task: Task,
    items: Sequence[str] | None = None,
    config: EvaluationConfig = EvaluationConfig(),  # noqa: B008, it is frozen
    *,
    seed: int = 0,
) -> Evaluation:
    """Plays one episode on each item in the task's environment.

    Args:
        policy: The policy; it is not changed.
        task: The environment, such as a `GymTask`.
        items: Ids of the items; by default 18 test items of each group, those that
            `stepagent evaluate` plays.
        config: How actions are chosen (greedy by default) and how many episodes run at once.
        seed: Of the sampling, if actions are not greedy.

    Returns:
        The episodes, and mean score (0 to 100) and success rate (0 to 1), both with a 95 %
        interval.

    Raises:
        ValueError: There are no items.
        EnvironmentLost: The environments of all episodes were lost.

    Example:
        >>> import stepagent
        >>> found = stepagent.evaluate(policy, task, task.items("test")[:4])
        >>> found.success.n
        4
        >>> 0 <= found.score.mean <= 100
        True
    """
    panel = choose_items(task, "test", 18, seed=0) if items is None else items
    if not panel:
        raise ValueError(f"evaluate: {task.name} has no test items; name some with items=[...]")
    return evaluate_on(policy, task, panel, config, seed=seed)


def _log(log: Log | None) -> Log:
    return log or (lambda phase, metrics: None)


def _rendered(
    policy: Policy, trajectories: Sequence[Trajectory], where: str, name: str = "demonstrations"
) -> list[RenderedTrajectory]:
    """Those that fit into the context; the others are one warning."""
    check_ids(where, trajectories, name)
    found, left_out = policy.render_fitting(trajectories)
    if left_out:
        count = len(trajectories)
        logger.warning(
            "%s: %d of %d %s left out: %s", where, len(left_out), count, name, left_out[0]
        )
    return found


def check_ids(where: str, trajectories: Sequence[Trajectory], name: str) -> None:
    """Raises `DemonstrationsError` if there are no trajectories, or several of one id."""
    if not trajectories:
        raise DemonstrationsError(f"{where}: {name} is empty; expected at least one trajectory")
    seen = set[str]()
    for t in trajectories:
        if t.id in seen:
            raise DemonstrationsError(
                f"{where}: id {t.id!r} occurs twice in {name}; ids are unique"
            )
        seen.add(t.id)


def check_apart(
    where: str, demonstrations: Sequence[Trajectory], held_out: Sequence[Trajectory]
) -> None:
    """Raises `DemonstrationsError` if a held-out trajectory is one of the demonstrations."""
    texts = {t.model_dump_json(include={"instruction", "steps"}) for t in demonstrations}
    for t in held_out:
        if t.model_dump_json(include={"instruction", "steps"}) in texts:
            raise DemonstrationsError(
                f"{where}: held-out trajectory {t.id!r} is also a demonstration; take it out of one"
            )
