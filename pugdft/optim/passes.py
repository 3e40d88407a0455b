"""Control BatchNorm, random numbers, weights and gradients between the clean and the perturbed pass."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from pugdft.optim import foreach
from pugdft.optim.combine import Combination, Correction
from pugdft.optim.context import RuleState
from pugdft.optim.scaler import LossScale

PassContext = Callable[[], AbstractContextManager[object]]


class KeptBuffers:
    """Make the context manager around a perturbed pass: no buffer of the module changes in it.

    BatchNorm normalises by the batch as in training and leaves its running statistics alone,
    ``num_batches_tracked`` included. Setting the momentum to 0 would not do: the counter would go on, and a
    helper that stores the momentum twice loses it. Every other buffer (InstanceNorm, EvoNorm, spectral norm,
    a running mean of the user's) is copied before the pass and put back after it.

    A class and no closure, so that a copied or unpickled optimizer acts on its own model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def __call__(self) -> Iterator[None]:
        layers = list(self.module.modules())
        frozen = [
            layer
            for layer in layers
            if isinstance(layer, _BatchNorm) and layer.training and layer.track_running_stats
        ]
        unchanged = {id(buffer) for layer in frozen for buffer in layer.buffers(recurse=False)}
        kept = [
            (layer, name, buffer, buffer._version, buffer.clone())
            for layer in layers
            for name, buffer in layer._buffers.items()
            if buffer is not None and id(buffer) not in unchanged
        ]
        for layer in frozen:
            layer.track_running_stats = False
        try:
            yield
        finally:
            for layer in frozen:
                layer.track_running_stats = True
            for owner, name, buffer, version, copy in kept:
                owner._buffers[name] = buffer  # a layer may have assigned another tensor
                if buffer._version != version:
                    buffer.copy_(copy)


def forget_cached_weights() -> None:
    """Drop copies of the weights that torch keeps, for the weights have just been written.

    Autocast keeps weights in its narrower type until its outermost context ends, and
    ``torch.nn.utils.parametrize.cached`` keeps what a parametrization computed.
    """
    torch.clear_autocast_cache()
    if parametrize._cache_enabled:
        parametrize._cache.clear()


class EarlierGradients:
    """Note which gradients a step finds, to see what its closure did with them.

    Weak references: a gradient that the closure drops must be free during the pass.
    """

    def __init__(self) -> None:
        self._notes: list[tuple[Tensor, weakref.ref[Tensor], int]] = []
        self._has_warned = False

    def note(self, parameters: Sequence[Tensor]) -> None:
        """See the gradients before the closure runs."""
        self._notes = [(p, weakref.ref(p.grad), p.grad._version) for p in parameters if p.grad is not None]

    def check(self, parameters: Sequence[Tensor]) -> None:
        """Refuse a closure that made no gradient; warn once of one that added to gradients it found."""
        kept = [
            (p.grad, version) for p, ref, version in self._notes if p.grad is not None and p.grad is ref()
        ]
        num_untouched = sum(gradient._version == version for gradient, version in kept)
        if num_untouched == len(foreach.gradients_of(parameters)):
            raise RuntimeError("the closure made no gradient: it must call backward() on the loss")
        if num_untouched < len(kept) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                "the closure added to gradients that were there before step(): if they are those of earlier "
                "micro-batches, the perturbed pass does not see these. Run all micro-batches inside the "
                "closure, and clear gradients before step() or at the closure's start",
                stacklevel=5,
            )

    def __getstate__(self) -> dict[str, Any]:
        # Weak references cannot be copied, and mean nothing between steps.
        return {**vars(self), "_notes": []}


def align_gradients(parameters: Sequence[Tensor], name: Callable[[Tensor], str] | None) -> None:
    """Lay each gradient out in memory as its parameter is.

    Autograd does so itself, but a closure may assign gradients of its own; fused kernels walk both
    memories side by side and would pair the wrong elements.

    Args:
        parameters: the parameters.
        name: says which parameter it is, for messages; None lets sparse gradients pass, for a base alone.

    Raises:
        RuntimeError: a gradient is sparse.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            if name is None:
                continue
            raise RuntimeError(
                f"{name(parameter)} has a sparse gradient, which only a base optimizer alone can take: "
                "construct the embedding with sparse=False"
            )
        if gradient.stride() != parameter.stride():
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
            forget_cached_weights()
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
        gradients.clear()  # so that each gradient is free as soon as it is copied
        for parameter in differentiated:
            if share != 0 and parameter.grad is not None:
                # A copy: the closure, or DDP's bucket, may write the next pass into the same memory.
                self._held.append((parameter, parameter.grad.clone()))
            parameter.grad = None

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


def clear(parameters: list[Tensor]) -> None:
    """Drop the parameters' gradients."""
    for parameter in parameters:
        parameter.grad = None
