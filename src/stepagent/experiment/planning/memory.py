"""Memory of one process: what stays, and what training and practice need on top."""

from dataclasses import dataclass

from stepagent.experiment.config import TrainConfig
from stepagent.experiment.planning.costs import Costs
from stepagent.experiment.planning.shapes import Shape
from stepagent.experiment.planning.work import Data
from stepagent.model.generation import DECODED_TOGETHER
from stepagent.model.reading import MAX_LOGITS


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Of one process, in bytes, beside libraries and data."""

    weights: float
    """Of the model, in the precision in which it computes."""
    optimizer: float
    """Float32 masters, gradients and moments of the weights that are trained."""
    discriminator: float
    """A second model, of which inverse reflection trains its step reward."""
    activations: float
    """What a pass over the token budget keeps for the backward pass, logits included."""
    gathered: float
    """Layers that are held whole for practice, if weights are sharded."""
    cache: float
    """Keys and values of the trajectories in which actions are decoded together."""

    @property
    def training(self) -> float:
        """The peak while weights are updated."""
        return self.weights + self.optimizer + self.discriminator + self.activations

    @property
    def practice(self) -> float:
        """The peak while actions are sampled."""
        return self.weights + self.discriminator + self.gathered + self.cache

    @property
    def peak(self) -> float:
        """The larger of both."""
        return max(self.training, self.practice)


def memory(
    shape: Shape, config: TrainConfig, data: Data, costs: Costs, budget: int, processes: int
) -> Memory:
    """The memory of one of so many processes, with rows of `budget` tokens."""
    rank, actions = config.lora.rank, config.inspection.num_actions
    is_half = config.compute.chosen(shape.width).is_half
    number = 2 if is_half else 4
    in_layers, shards = shape.layers * shape.in_layer, _shards(config, processes)
    # Sharded weights of a whole model are float32 and cast when a layer is gathered.
    at_rest = 4 if shards > 1 and not rank else number
    weights = at_rest * in_layers / shards + number * shape.elsewhere
    trained = shape.trained(rank)
    state = 16 if is_half else 12  # master, gradient, two moments; a float32 weight is its master
    if rank:
        optimizer = discriminator = float(state * trained)
    else:
        in_layer = 12 if shards > 1 else state
        optimizer = in_layer * in_layers / shards + state * shape.elsewhere
        # A copy of the model; its optimizer is not there at the same time.
        discriminator = weights + (4 * shape.weights / shards if is_half and shards == 1 else 0)
    row = max(budget, data.tree(actions))
    positions = row * data.paths(actions) / data.tree(actions)
    logits = min(positions * shape.config.vocab_size, MAX_LOGITS) * 4 * 3
    together = max(1, DECODED_TOGETHER // (data.steps * actions))
    sampled = together * data.steps * actions * config.inspection.decoding.max_new_tokens
    return Memory(
        weights=weights,
        optimizer=optimizer,
        discriminator=discriminator if "inverse" in config.methods else 0.0,
        activations=costs.kept * row + logits,
        gathered=number * in_layers if shards > 1 else 0.0,
        cache=number * shape.kept * (together * data.tokens + sampled),
    )


def _shards(config: TrainConfig, processes: int) -> int:
    return processes if config.compute.shard else 1
