"""Control BatchNorm, random numbers, weights and gradients between the clean and the perturbed pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pugdft.optim import foreach
from pugdft.optim.combine import Combination, Correction
from pugdft.optim.context import RuleState
from pugdft.optim.scaler import LossScale

PassContext = Callable[[], AbstractContextManager[object]]


@contextmanager
def frozen_batch_norm(model: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm normalises by the batch as in training and leaves its running statistics alone.

    A momentum of 0 would not do: ``num_batches_tracked`` would go on. Layers in evaluation mode are not
    touched, for they need their running statistics to normalise.
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

    Autograd does so itself, a closure may not; fused kernels would pair the wrong elements.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is not None and gradient.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(gradient)


class RandomState:
    """Capture the state of torch's generators, to draw the same numbers again (dropout, drop-path).

    Args:
        device: an accelerator whose generator is captured beside the CPU's, if it is CUDA.
    """

    def __init__(self, device: torch.device) -> None:
        self._devices = [device] if device.type == "cuda" else []
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = [torch.cuda.get_rng_state(each) for each in self._devices]

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, the captured state; afterwards the state from before, so nothing else repeats."""
        with torch.random.fork_rng(self._devices):
            torch.set_rng_state(self._cpu_state)
            for device, state in zip(self._devices, self._cuda_states, strict=True):
                torch.cuda.set_rng_state(state, device)
            yield


class SavedWeights:
    """Keep bitwise copies of perturbed parameters; ``in_use`` while parameters are perturbed.

    The memory is kept from step to step: taking it costs more than copying into it.
    """

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}
        self.in_use = False

    @contextmanager
    def perturbed(self, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
        """Inside, the parameters are free to be changed; gives a copy of them, and puts it back."""
        for parameter in parameters:
            copy = self._copies.get(parameter)
            # A model may be moved or converted after its first step.
            if copy is None or _layout(copy) != _layout(parameter):
                self._copies[parameter] = torch.empty_like(parameter)
        weights = [self._copies[parameter] for parameter in parameters]
        foreach.copy_(weights, parameters)
        self.in_use = True
        try:
            yield weights
        finally:
            # Exactly the set that was perturbed, by copy: (w + e) − e is not w in floating point.
            foreach.copy_(parameters, weights)
            self.in_use = False


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride()


class CleanGradients:
    """Keep the clean gradients of a step until they are combined with the perturbed ones.

    A closure that accumulates (never clears gradients) adds g* to them in place; ``lie_in_place`` meanwhile.
    Any other might clear them, so they are held outside the parameters, which costs one more copy.
    """

    def __init__(self, closure_accumulates: bool, loss_scale: LossScale | None) -> None:
        self._accumulates, self._loss_scale = closure_accumulates, loss_scale
        self._held: list[tuple[Tensor, Tensor]] = []
        self.lie_in_place = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Around a second pass: whatever happens in it, nothing lies in place afterwards."""
        self._held = []
        try:
            yield
        finally:
            self.lie_in_place = False

    def put_aside(self, differentiated: list[Tensor], share: float, apart: bool) -> None:
        """Make room for g*.

        Args:
            differentiated: parameters with a clean gradient.
            share: of it that is to be added to g*; 0 drops it.
            apart: both gradients are needed apart.
        """
        gradients = foreach.gradients_of(differentiated)
        if share not in (0, 1):
            foreach.scale_(gradients, share)
        if share != 0 and self._accumulates and not apart:
            self.lie_in_place = True
            if self._loss_scale is not None:
                self._loss_scale.scale_(gradients)  # the pass adds scaled gradients to these
            return
        clear(differentiated)
        if share != 0:
            self._held = [(p, _own(g)) for p, g in zip(differentiated, gradients, strict=True)]

    def add(self) -> None:
        """Add what is held to the parameters' gradients."""
        for parameter, gradient in self._held:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._held = []

    def merge(self, rule: Combination, state: RuleState) -> Correction | None:
        """Let the rule make one of both; where the second pass gave none, the clean gradient stands."""
        both = [(clean, p.grad, p) for p, clean in self._held if p.grad is not None]
        for parameter, gradient in self._held:
            if parameter.grad is None:
                parameter.grad = gradient
        self._held = []
        if not both:
            return None
        clean, perturbed, parameters = ([row[column] for row in both] for column in range(3))
        return rule.merge_(clean, perturbed, parameters, state)


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: DDP may let it be a view of a bucket that the next pass fills."""
    is_view = gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size()
    return gradient.clone() if is_view else gradient


def clear(parameters: list[Tensor]) -> None:
    """Drop the parameters' gradients."""
    for parameter in parameters:
        parameter.grad = None
