"""SFT: behavioural cloning of the expert's actions by maximum likelihood (Pomerleau 1989).

    L = -1/N sum over all action tokens of log pi(token | everything before it)

Only action tokens, including the end-of-turn token, carry loss. The steps of a trajectory share its
prefix tree, so every token is forwarded once. Command: `stepagent sft`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from stepagent.bounds import AMOUNT, COUNT, check_bounds
from stepagent.inspection import step_tree
from stepagent.model.packs import batch_packs
from stepagent.model.policy import Policy
from stepagent.model.prefix_tree import PrefixTree
from stepagent.model.updates import Measured, Metrics, OptimizerConfig, fit
from stepagent.rendering.renderer import RenderedTrajectory


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Behavioural cloning (Pomerleau 1989)."""

    optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-3)
    """AdamW settings."""
    epochs: int = 10
    """Passes over the demonstrations."""
    batch_size: int = 8
    """Trajectories in each update."""

    def __post_init__(self) -> None:
        """Raises `OutOfBounds` for numbers out of range."""
        check_bounds(self, {"epochs": AMOUNT, "batch_size": COUNT})


def sft_loss(logprobs: Tensor, total: int) -> Tensor:
    """Negative log-likelihood of action tokens (targets,), as part of a mean over `total`."""
    return -logprobs.sum() / total


def sft(
    policy: Policy,
    demonstrations: Sequence[RenderedTrajectory],
    config: SFTConfig,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """Trains the policy in place; calls `log` with the metrics of every update.

    Raises `TrainingError` and `OutOfMemory` as `Updater.update` does.
    """
    trees = [step_tree(d).tree for d in demonstrations]
    maximize_likelihood(policy, trees, config, "SFT", seed=seed, log=log)


def maximize_likelihood(
    policy: Policy,
    trees: Sequence[PrefixTree],
    config: SFTConfig,
    stage: str,
    *,
    seed: int,
    log: Callable[[Metrics], None],
) -> None:
    """Maximizes the likelihood of all paths of the trees, averaged over the tokens of a batch."""

    def losses(batch: Sequence[int]) -> Iterator[tuple[Tensor, Measured]]:
        return _losses(policy, trees, batch)

    fit(policy.layers, losses, len(trees), config, stage=stage, seed=seed, log=log)


def _losses(
    policy: Policy, trees: Sequence[PrefixTree], batch: Sequence[int]
) -> Iterator[tuple[Tensor, Measured]]:
    total = sum(len(path) for i in batch for path in trees[i].paths)
    for packed, _ in batch_packs(policy.layers, trees, batch):
        loss = sft_loss(policy.read(packed).logprobs, total)
        yield loss, {"loss": loss, "tokens": packed.num_tokens}
