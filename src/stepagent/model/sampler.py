"""What samples a policy's actions outside of this process, such as an inference server."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from stepagent.model.forward import Layers
from stepagent.model.generation import Decoding, Generated


class Sampler(Protocol):
    """Samples actions with the weights that were handed over to it last."""

    def hand_over(self, layers: Layers, state: Sequence[int], end_id: int) -> None:
        """Gives it the current weights, unless it has them; all processes must call this.

        `state` are the ids of any state, and `end_id` ends an action: what it samples there is
        compared with what this process reads. Raises an error of one line if it cannot have them,
        or if the two differ.
        """
        ...

    def act(
        self,
        asked: Iterable[tuple[Sequence[int], float]],
        decoding: Decoding,
        end_id: int,
        ended: Callable[[int, Generated], None],
    ) -> None:
        """Samples an action for each state of `asked`, and passes it to `ended` with its index.

        With a state comes a random number in [0, 1) that belongs to its action. Actions end in
        their own time; `asked` is read as they do, so it may be longer than memory. Raises an error
        of one line.
        """
        ...

    def check(
        self, actions: Sequence[Generated], logprobs: Sequence[float], temperature: float
    ) -> None:
        """Raises an error if this process reads other log-probabilities of what it sampled.

        `logprobs` are ours, one for each action, in nats.
        """
        ...
