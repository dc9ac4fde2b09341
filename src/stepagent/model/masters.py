"""Training in bfloat16: the model computes in bfloat16, the optimizer updates float32 masters.

An update is often smaller than the spacing of bfloat16 numbers around a weight and would be rounded
away, so the masters are the weights that are trained and saved; the model's own are copies of them
(Micikevicius et al. 2018, arXiv 1710.03740, sec. 3.1). Gradients are summed in float32 too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


class Masters:
    """The float32 masters of a model's trained weights, which become bfloat16."""

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        """Takes over the values of the parameters and casts these."""
        self._trained = list(trained)
        self._hooks = list[RemovableHandle]()
        self.weights = [nn.Parameter(p.detach().float().clone()) for p in trained]
        for parameter, master in zip(self._trained, self.weights, strict=True):
            parameter.data = parameter.data.to(torch.bfloat16)
            hook = parameter.register_post_accumulate_grad_hook(_adding_to(master))  # type: ignore[no-untyped-call]
            self._hooks.append(hook)

    def of(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """The master of each parameter, or the parameter itself if it has none."""
        master_of = dict(zip(self._trained, self.weights, strict=True))
        return [master_of.get(parameter, parameter) for parameter in parameters]

    def release(self) -> None:
        """Gives the model's weights the values and the precision of their masters, for good."""
        for parameter, master in zip(self._trained, self.weights, strict=True):
            parameter.data = master.data
        for hook in self._hooks:
            hook.remove()

    def publish(self) -> None:
        """Copies the masters to the model, after an update."""
        with torch.no_grad():
            torch._foreach_copy_([*self._trained], [*self.weights])

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Within the block the masters are the model's weights, to be saved, copied or loaded."""
        halves = [parameter.data for parameter in self._trained]
        for parameter, master in zip(self._trained, self.weights, strict=True):
            parameter.data = master.data
        try:
            yield
        finally:
            for parameter, half in zip(self._trained, halves, strict=True):
                parameter.data = half
            self.publish()


def _adding_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """A hook that moves a parameter's gradient to its master."""

    def add(parameter: Tensor) -> None:
        grad, parameter.grad = parameter.grad, None
        if grad is None:
            return
        if master.grad is None:
            master.grad = grad.float()
        else:
            master.grad.add_(grad)

    return add


def cast_frozen(model: PreTrainedModel) -> None:
    """Casts the float32 weights of a model to bfloat16, in place.

    Buffers stay as they are, such as the frequencies of rotary embeddings, and weights that the
    model's class keeps in float32.
    """
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    for name, parameter in model.named_parameters():
        if parameter.dtype == torch.float32 and not kept & set(name.split(".")):
            parameter.data = parameter.data.to(torch.bfloat16)
