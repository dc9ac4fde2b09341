"""Inverse reflection, part one: a discriminator tells the expert's actions from the agent's.

    D(s, a) = sigma(f(s, a)), high for the expert
    L_D     = -E_expert log D - E_agent log(1 - D)

This is GAIL on single steps (Ho and Ermon 2016, arXiv 1606.03476, eq. 16; there the agent has label
1, here the expert), with the form of discriminator for an agent of known density (Finn et al. 2016,
arXiv 1611.03852, sec. 3; AIRL, Fu et al. 2017, arXiv 1710.11248):

    D(s, a) = p(a|s) / (p(a|s) + pi(a|s)),    f(s, a) = log p(a|s) - log pi(a|s)

where pi is the inspected agent and p a language model that starts as a copy of the novice. So f is
0 at the start, up to rounding. If the agent's actions were sampled at temperature 1, D is optimal
where p equals the expert. Label smoothing by a share e keeps the optimum within
|f| <= log((1 - e)/e). docs/method.md compares f with a classification head.

With the optimal D, (2 log 2 - L_D) / 2 is the Jensen-Shannon divergence between the actions of
expert and agent in the inspected states; any other D gives a lower bound. An overconfident D makes
this bound useless, so f is scaled first (`divergence`). The step reward is one of

    -log(1 - D) = softplus(f)      "gail", positive
     log D      = -softplus(-f)    "log-d", negative
     f          = log D/(1 - D)    "logit" (AIRL)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import log as ln
from typing import Literal, NamedTuple

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F

from stepagent.bounds import COUNT, Between, check_bounds
from stepagent.inspection import StepTree, expert_path_of_step, path_logprobs
from stepagent.model.packs import batch_packs, gather
from stepagent.model.policy import Policy
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit

RewardForm = Literal["gail", "log-d", "logit"]

MAX_SCALE = 10.0
"""Largest scale of f in `divergence`: a D that is right everywhere has no best scale."""


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Training of the discriminator (GAIL, arXiv 1606.03476) within one round."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-4)
    """AdamW settings; optimizer and schedule are reset in each round."""
    warmup_epochs: int = 4
    """Most passes in round 1; it stops once it beats chance on held-out practised steps."""
    epochs: int = 1
    """Passes in each later round."""
    label_smoothing: float = 0.05
    """Label smoothing: the share of the opposite label mixed into each label."""
    reward: RewardForm = "logit"
    """The function of D that is the step reward."""
    batch_size: int = 8
    """Trajectories in each update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(
            self,
            {
                "warmup_epochs": COUNT,
                "epochs": COUNT,
                "label_smoothing": Between(0, 0.5),
                "batch_size": COUNT,
            },
        )


class DiscriminatorLoss(NamedTuple):
    """Loss and accuracy, as parts of means over all expert and all agent actions."""

    loss: Tensor
    accuracy: Tensor


def discriminator_loss(
    expert_logits: Tensor,
    is_expert: Tensor,
    num_expert: int,
    num_agent: int,
    label_smoothing: float = 0.0,
) -> DiscriminatorLoss:
    """L_D of actions (paths,), as part of means over `num_expert` and `num_agent` actions.

    Both classes have the same weight, however many actions the agent sampled for each of the
    expert's. An action with D = 1/2 exactly counts as half right.
    """
    target = torch.where(is_expert, 1 - label_smoothing, label_smoothing).to(expert_logits)
    losses = F.binary_cross_entropy_with_logits(expert_logits, target, reduction="none")
    shares = expert_logits.new_tensor([1 / num_agent, 1 / num_expert])
    weight = shares[is_expert.long()]
    sign = torch.where(is_expert, expert_logits, -expert_logits)
    right = (sign > 0).to(weight) + 0.5 * (sign == 0).to(weight)
    return DiscriminatorLoss((losses * weight).sum(), (right * weight).sum().detach() / 2)


def js_divergence(loss: float) -> float:
    """The Jensen-Shannon divergence (nats, at least 0) for L_D without label smoothing."""
    return max(0.0, (2 * ln(2) - loss) / 2)


def step_rewards(expert_logits: Tensor, form: RewardForm) -> Tensor:
    """The step rewards of actions from f(s, a), elementwise."""
    match form:
        case "gail":
            return F.softplus(expert_logits)
        case "log-d":
            return -F.softplus(-expert_logits)
        case "logit":
            return expert_logits


def train_discriminator(
    discriminator: Policy,
    practised: Sequence[StepTree],
    agent_logprobs: Sequence[Tensor],
    config: DiscriminatorConfig,
    *,
    epochs: int,
    seed: int,
    log: Callable[[Metrics], None],
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Trains in place for at most `epochs` passes; stops after a pass if `enough` returns true.

    `discriminator` is p and must not share trained weights with the agent. `agent_logprobs` holds
    log pi of the paths (paths,) of each tree, under the inspected policy. Raises `TrainingError`
    and `OutOfMemory` as `Updater.update` does.
    """

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(discriminator, practised, agent_logprobs, batch, config)

    fit(
        discriminator.layers,
        losses,
        len(practised),
        replace(config, epochs=epochs),
        stage="Discriminator",
        seed=seed,
        log=log,
        enough=enough,
    )


def _losses(
    discriminator: Policy,
    practised: Sequence[StepTree],
    agent_logprobs: Sequence[Tensor],
    batch: Sequence[int],
    config: DiscriminatorConfig,
) -> Iterator[tuple[Tensor, Measured]]:
    num_expert = sum(int(practised[i].is_expert.sum()) for i in batch)
    num_agent = sum(len(practised[i].is_expert) for i in batch) - num_expert
    device = discriminator.model.device
    for packed, trees in batch_packs(discriminator.layers, [p.tree for p in practised], batch):
        loss, accuracy = discriminator_loss(
            discriminator.path_logprobs(packed) - gather(agent_logprobs, trees, device),
            gather([p.is_expert for p in practised], trees, device),
            num_expert,
            num_agent,
            config.label_smoothing,
        )
        metrics = {"loss": loss, "discriminator_accuracy": accuracy}
        yield loss, {**metrics, "tokens": packed.num_tokens}


def expert_logits(
    discriminator: Policy, practised: Sequence[StepTree], agent_logprobs: Sequence[Tensor]
) -> list[Tensor]:
    """For each tree f(s, a) of all its paths (paths,), without gradient."""
    logprobs = path_logprobs(discriminator, practised)
    return [log_p - log_pi for log_p, log_pi in zip(logprobs, agent_logprobs, strict=True)]


@dataclass(frozen=True)
class HeldOut:
    """The discriminator's metrics on held-out practised steps."""

    js_divergence: float
    """In nats, see `divergence`; falls towards 0 as the agent becomes like the expert."""
    accuracy: float
    """0 to 1; falls towards 1/2 as the agent becomes like the expert."""
    beats_chance: bool
    """Whether its loss is below that of guessing, and it prefers the expert's action in more than
    half of the pairs that differ, by a one-sided 95 % interval over trajectories."""


def held_out(logits: Sequence[Tensor], practised: Sequence[StepTree]) -> HeldOut:
    """Evaluates the discriminator's logits on held-out practised steps."""
    found = _loss(logits, practised)
    return HeldOut(
        js_divergence=divergence(logits, practised),
        accuracy=found.accuracy.item(),
        beats_chance=found.loss.item() < 2 * ln(2) and _beats_chance(logits, practised),
    )


def divergence(logits: Sequence[Tensor], practised: Sequence[StepTree]) -> float:
    """Estimates the Jensen-Shannon divergence (nats) from f after temperature scaling.

    Each half of the trees is scaled by the factor that minimizes the loss of the other half, so the
    estimate remains a lower bound up to sampling error (Guo et al. 2017, arXiv 1706.04599, sec.
    4.2). A single tree is not scaled.
    """
    halves = [(logits[i::2], practised[i::2]) for i in range(2)]
    scales = [_best_scale(*other) if len(other[0]) else 1.0 for other in reversed(halves)]
    scaled = [scales[i % 2] * f for i, f in enumerate(logits)]
    return js_divergence(_loss(scaled, practised).loss.item())


def _best_scale(logits: Sequence[Tensor], practised: Sequence[StepTree]) -> float:
    """The scale with the least loss, which is convex in it; 0 if D is worse than guessing."""
    found = minimize_scalar(
        lambda scale: _loss([scale * f for f in logits], practised).loss.item(),
        bounds=(0.0, MAX_SCALE),
        method="bounded",
    )
    return float(found.x)


def _loss(logits: Sequence[Tensor], practised: Sequence[StepTree]) -> DiscriminatorLoss:
    """L_D over all paths, without label smoothing."""
    is_expert = torch.cat([p.is_expert for p in practised])
    num_expert = int(is_expert.sum())
    every = torch.cat(list(logits)).double()
    return discriminator_loss(every, is_expert, num_expert, len(is_expert) - num_expert)


def _beats_chance(logits: Sequence[Tensor], practised: Sequence[StepTree]) -> bool:
    """Whether the mean preference over trajectories exceeds 1/2 by 1.645 standard errors."""
    shares = []
    for f, p in zip(logits, practised, strict=True):
        differs = (~p.is_same).nonzero()[:, 0]
        if len(differs):
            expert = expert_path_of_step(p.is_expert)[differs]
            shares.append((f[expert] > f[differs]).double().mean())
    if len(shares) < 2:
        return False
    values = torch.stack(shares)
    return bool(values.mean() - 1.645 * values.std() / len(values) ** 0.5 > 0.5)
