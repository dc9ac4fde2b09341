"""Step rewards without annotation: how much likelier an action is under one policy than another."""

from collections.abc import Sequence
from typing import overload

from stepagent.algorithms.discriminator import RewardForm, step_rewards
from stepagent.inspection import path_logprobs, step_tree
from stepagent.model.policy import Policy
from stepagent.practice import Lesson, with_rewards
from stepagent.types import PracticedStep, Trajectory


@overload
def score(
    policy: Policy,
    trajectories: Sequence[Trajectory],
    /,
    *,
    reference: Policy,
    beta: float = 1.0,
    form: RewardForm = "logit",
) -> list[list[float]]: ...


@overload
def score(
    policy: Policy,
    lesson: Lesson,
    /,
    *,
    reference: Policy,
    beta: float = 1.0,
    form: RewardForm = "logit",
) -> list[PracticedStep]: ...


def score(
    policy: Policy,
    scored: Sequence[Trajectory] | Lesson,
    /,
    *,
    reference: Policy,
    beta: float = 1.0,
    form: RewardForm = "logit",
) -> list[list[float]] | list[PracticedStep]:
    """Gives each step a reward: `f = beta * (log policy(a|s) - log reference(a|s))`, in nats.

    Implicit reflection: `policy` is the trained one, `reference` the policy that its round started
    from, `beta` that of `ImplicitConfig` (Rafailov et al. 2023, arXiv 2305.18290, eq. 5). Inverse
    reflection: `policy` is the discriminator, `reference` the agent whose actions it judges, and
    `form` one of

        "logit"   f                     AIRL (arXiv 1710.11248)
        "gail"    -log(1 - sigmoid(f))  always positive
        "log-d"   log sigmoid(f)        always negative (GAIL, arXiv 1606.03476)

    Args:
        policy: Whose log-probabilities count for an action.
        scored: Trajectories, whose own actions are scored; or a lesson, whose expert and agent
            actions are.
        reference: Whose log-probabilities count against it; of the same tokenizer.
        beta: Scale of the reward, above 0.
        form: How the log-ratio becomes a reward.

    Returns:
        For trajectories, one list of rewards each, one reward per step. For a lesson, its
        `practised` steps with `expert_reward` and the `reward` of each agent action filled in.

    Raises:
        ValueError: The two policies have different tokenizers.
        PolicyError: A trajectory is longer than the context.

    Example:
        >>> import stepagent
        >>> before = policy.copy("before")
        >>> stepagent.sft(policy, demonstrations)
        >>> rewards = stepagent.score(policy, demonstrations, reference=before)
        >>> [len(own) for own in rewards] == [len(t.steps) for t in demonstrations]
        True
        >>> sum(map(sum, rewards)) > 0  # the expert's actions became likelier
        True
    """
    vocabularies = [p.renderer.tokenizer.get_vocab() for p in (policy, reference)]
    if vocabularies[0] != vocabularies[1]:
        raise ValueError("score: policy and reference have different tokenizers; expected the same")
    if isinstance(scored, Lesson):
        trees = scored.trees
    else:
        trees = [step_tree(policy.render(t)) for t in scored]
    rewards = [
        step_rewards(beta * (now - before), form)
        for now, before in zip(
            path_logprobs(policy, trees), path_logprobs(reference, trees), strict=True
        )
    ]
    if isinstance(scored, Lesson):
        return with_rewards(scored.practised, trees, rewards)
    return [own.tolist() for own in rewards]
