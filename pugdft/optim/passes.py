"""What must differ, or must not differ, between the clean and the perturbed pass over a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

PassContext = Callable[[], AbstractContextManager[object]]


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch as in training and leaves its running statistics alone.

    ``num_batches_tracked`` included. Setting the momentum to 0 would not do: the counter would go on,
    and a helper that stores the momentum twice loses it. Layers in evaluation mode are not touched, for
    they need their running statistics to normalise.
    """
    changed = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    for module in changed:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in changed:
            module.track_running_stats = True


def align_gradients(parameters: Sequence[Tensor]) -> None:
    """Lay each gradient out in memory as its parameter is.

    Autograd does so itself, but a closure may assign gradients of its own; fused kernels walk both
    memories side by side and would pair the wrong elements.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


class RandomState:
    """The state of torch's generators, to draw the same numbers again (dropout, drop-path).

    Args:
        device: an accelerator whose generator is captured beside the CPU's, if it is CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._cpu_state = torch.get_rng_state()
        self._cuda_state = torch.cuda.get_rng_state(device) if self._cuda else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the captured state; afterwards the state from before, so nothing else repeats."""
        now = RandomState(self._cuda or torch.device("cpu"))
        self._restore()
        try:
            yield
        finally:
            now._restore()

    def _restore(self) -> None:
        torch.set_rng_state(self._cpu_state)
        if self._cuda is not None and self._cuda_state is not None:
            torch.cuda.set_rng_state(self._cuda_state, self._cuda)
