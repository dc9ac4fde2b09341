"""The value head of PPO, a linear layer on the policy's hidden states, and its file."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stepagent.model.forward import Layers
from stepagent.model.reading import Reading
from stepagent.model.weights import (
    UNREADABLE,
    WeightsError,
    check_finite,
    load_into,
    place,
    reason,
    refuse_pointers,
)

VALUE_HEAD = "value_head.safetensors"


class ValueHead(nn.Linear):
    """V(s) from the policy's hidden state at the state's last token.

    No gradient flows back into the policy.
    """

    def __init__(self, layers: Layers) -> None:
        """Initialized to zero."""
        super().__init__(layers.width, 1, device=layers.model.device, dtype=layers.dtype)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def values(self, reading: Reading) -> Tensor:
        """(paths,) the value of each path's state."""
        values: Tensor = self(reading.state_hidden.detach())[:, 0]
        return values

    def save(self, folder: Path) -> None:
        """Writes it into a unit's folder; raises `WeightsError` if a weight is not finite."""
        check_finite(f"{folder / VALUE_HEAD}: not saved", self.state_dict())
        save_file(self.state_dict(), folder / VALUE_HEAD)

    def load(self, folder: Path) -> None:
        """Loads what `save` wrote, in place; raises `WeightsError` if it is missing or damaged."""
        file = folder / VALUE_HEAD
        refuse_pointers(file)
        try:
            weights = load_file(file)
        except UNREADABLE as error:
            raise WeightsError(f"{place(file)}: cannot be read: {reason(error)}") from None
        check_finite(file, weights)
        load_into(file, self, weights)
