"""A model made from scratch, ready for `sft`."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from stepagent.model.device import ComputeConfig
from stepagent.model.policy import Policy
from stepagent.scratch.pretraining import PretrainConfig, pretrain
from stepagent.scratch.small_model import TinyConfig, build_tiny_model
from stepagent.types import Trajectory

logger = logging.getLogger(__name__)


def from_scratch(
    demonstrations: Sequence[Trajectory],
    config: TinyConfig = TinyConfig(),  # noqa: B008, it is frozen
    *,
    pretraining: PretrainConfig = PretrainConfig(),  # noqa: B008
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008
    seed: int = 0,
) -> Policy:
    """Makes a small Llama and its tokenizer from demonstrations, and pretrains it on them.

    It downloads nothing and is meant for small environments on a CPU. Pretraining teaches it to
    read and to copy names (`PretrainConfig`); train the novice with `sft` afterwards.

    Args:
        demonstrations: The expert's trajectories; those longer than `config.context` are left out
            of pretraining.
        config: Size of the model.
        pretraining: Its two stages.
        compute: Device and precision.
        seed: Of the weights and the order of the data.

    Returns:
        The policy; `save` writes it.

    Raises:
        PolicyError: No demonstration fits into the context.

    Example:
        >>> import stepagent
        >>> size = stepagent.TinyConfig(vocab_size=300, hidden_size=32, num_layers=1, num_heads=2)
        >>> once = stepagent.PretrainConfig(
        ...     reading=stepagent.SFTConfig(epochs=1), copying=stepagent.SFTConfig(epochs=1)
        ... )
        >>> policy = stepagent.from_scratch(demonstrations, size, pretraining=once)
        >>> policy.context
        8192
    """
    with tempfile.TemporaryDirectory(prefix="stepagent-") as folder:
        build_tiny_model(demonstrations, config, seed=seed, folder=Path(folder))
        policy = Policy.load(folder, compute, seed=seed)
    fitting, left_out = policy.render_fitting(demonstrations)
    if left_out:
        logger.warning("from_scratch: %d of %d demonstrations left out of pretraining: %s",
                       len(left_out), len(demonstrations), left_out[0])  # fmt: skip
    pretrain(policy, [d.trajectory for d in fitting], pretraining, seed=seed, log=lambda _: None)
    return policy
