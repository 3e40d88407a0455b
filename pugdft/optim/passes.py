"""Control BatchNorm, random numbers, weights and gradients between the clean and the perturbed pass."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from operator import is_
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


class AscentPass:
    """Make the context manager around a pass whose gradient a perturbation follows.

    Each layer that already has a bool attribute ``true_gradient``, such as Shake-Shake, has it set: its
    gradient is otherwise another than its loss's, at random, which regularises an update but does not climb.
    ``around`` is entered too. A class and no closure, as ``KeptBuffers`` is.
    """

    def __init__(self, module: nn.Module | None, around: PassContext | None = None) -> None:
        # Once: to ask each layer in each pass takes longer than a kernel on all of a small model's weights.
        layers: Any = () if module is None else module.modules()
        self.layers = [each for each in layers if isinstance(getattr(each, "true_gradient", None), bool)]
        self.around = around or nullcontext

    @contextmanager
    def __call__(self) -> Iterator[None]:
        before = [layer.true_gradient for layer in self.layers]
        try:
            for layer in self.layers:
                layer.true_gradient = True
            with self.around():
                yield
        finally:
            for layer, was_true in zip(self.layers, before, strict=True):
                layer.true_gradient = was_true


class KeptBuffers:
    """Make the context manager around a perturbed pass: no buffer of the module changes in it.

    BatchNorm normalises by the batch as in training and leaves its running statistics and its counter alone,
    which would go on with a momentum of 0. Every other buffer (InstanceNorm, EvoNorm, spectral norm, one of
    the user's) is copied before the pass and put back after it. A class and no closure, so that a copied or
    unpickled optimizer acts on its own model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @contextmanager
    def __call__(self) -> Iterator[None]:
        layers = list(self.module.modules())
        norms = [layer for layer in layers if isinstance(layer, _BatchNorm) and layer.training]
        frozen = [layer for layer in norms if layer.track_running_stats]
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
    """Drop copies of the weights that torch keeps, for the weights have just been written."""
    torch.clear_autocast_cache()  # weights in a narrower type, until its outermost context ends
    if parametrize._cache_enabled:  # what a parametrization computed, within parametrize.cached()
        parametrize._cache.clear()


class EarlierGradients:
    """Note which gradients a step finds, to see what its closure did with them."""

    def __init__(self) -> None:
        # Weak references: a gradient that the closure drops must be free during the pass.
        self._notes: list[tuple[Tensor, weakref.ref[Tensor], int]] = []
        self._has_warned = False

    def note(self, parameters: Sequence[Tensor]) -> None:
        """See the gradients before the closure runs."""
        self._notes = [(p, weakref.ref(p.grad), p.grad._version) for p in parameters if p.grad is not None]

    def forget(self) -> None:
        """The gradients are cleared: what comes is new, also where DDP puts it into the same tensors."""
        self._notes = []

    def check(self, num_gradients: int) -> None:
        """Refuse a closure that made no gradient; warn once of one that added to gradients it found."""
        is_untouched = [
            p.grad._version == version
            for p, ref, version in self._notes
            if p.grad is not None and p.grad is ref()
        ]
        if sum(is_untouched) == num_gradients:
            raise RuntimeError("the closure made no gradient: it must call backward() on the loss")
        if not all(is_untouched) and not self._has_warned:
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


def align_gradients(
    parameters: Sequence[Tensor], strides: Sequence[tuple[int, ...]], name: Callable[[Tensor], str] | None
) -> list[Tensor]:
    """Lay each gradient out in memory as its parameter is, for fused kernels pair elements by memory.

    Autograd does so itself, but a closure may assign gradients of its own. ``strides`` are the parameters'.
    ``name`` says which parameter it is, to refuse a sparse gradient; None lets those pass, for a base alone.
    Returns the parameters that have a gradient.
    """
    gradients, found = foreach.gradients_of(parameters), list(parameters)
    if len(gradients) < len(found):
        rows = [row for row in zip(parameters, strides, strict=True) if row[0].grad is not None]
        found, strides = [row[0] for row in rows], [row[1] for row in rows]
    # All at once: one after the other would take as long as a kernel does for many small tensors.
    with suppress(RuntimeError):  # a sparse gradient has no strides
        if list(map(Tensor.stride, gradients)) == list(strides):
            return found
    for parameter, gradient, stride in zip(found, gradients, strides, strict=True):
        if gradient.layout == torch.strided:
            if gradient.stride() != stride:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
        elif name is not None:
            raise RuntimeError(
                f"{name(parameter)} has a sparse gradient, which only a base optimizer alone can take: "
                "construct the embedding with sparse=False"
            )
    return found


def random_replay(device: torch.device) -> PassContext:
    """Capture torch's generators of the CPU and a CUDA device; gives a context that draws the same numbers.

    Dropout and drop-path draw them. After the context the state from before returns: nothing else repeats.
    """
    devices = [device] if device.type == "cuda" else []
    cpu_state = torch.get_rng_state()
    cuda_states = [torch.cuda.get_rng_state(each) for each in devices]

    @contextmanager
    def replayed() -> Iterator[None]:
        with torch.random.fork_rng(devices):
            torch.set_rng_state(cpu_state)
            for each, state in zip(devices, cuda_states, strict=True):
                torch.cuda.set_rng_state(state, each)
            yield

    return replayed


class _Copies(dict[Tensor, Tensor]):
    """Memory for a copy of each parameter, made when it is first asked for."""

    def __missing__(self, parameter: Tensor) -> Tensor:
        return self.setdefault(parameter, torch.empty_like(parameter))


class SavedWeights:
    """Keep bitwise copies of perturbed parameters; ``in_use`` while parameters are perturbed."""

    def __init__(self) -> None:
        # From step to step: taking memory costs more than copying into it.
        self._copies = _Copies()
        self._last: tuple[list[Tensor], list[Tensor]] = [], []
        self.in_use = False

    def forget(self) -> None:
        """Give back the copies: parameters were moved or converted."""
        self._copies.clear()
        self._last = [], []

    @contextmanager
    def perturbed(self, parameters: list[Tensor]) -> Iterator[list[Tensor]]:
        """Inside, the parameters are free to be changed; gives a copy of them, and puts it back."""
        if not (len(parameters) == len(self._last[0]) and all(map(is_, parameters, self._last[0]))):
            self._last = parameters, [self._copies[parameter] for parameter in parameters]
        weights = self._last[1]
        foreach.copy_(weights, parameters)
        self.in_use = True
        try:
            yield weights
        finally:
            # Exactly the set that was perturbed, by copy: (w + e) − e is not w in floating point.
            foreach.copy_(parameters, weights)
            forget_cached_weights()
            self.in_use = False


class CleanGradients:
    """Keep the clean gradients of a step until they are combined with the perturbed ones.

    A closure that never clears gradients adds g* to them in place, where they lie (``lie_in_place``). For
    any other they are held outside the parameters, which costs one more copy.
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
        """Make room for g*; ``share`` of g is to be added to it, ``apart`` keeps both for a merge."""
        if share == 0:
            clear(differentiated)
            return
        gradients = foreach.gradients_of(differentiated)
        if share != 1:
            foreach.scale_(gradients, share)
        if self._accumulates and not apart:
            self.lie_in_place = True
            if self._loss_scale is not None:
                self._loss_scale.scale_(gradients)  # the pass adds scaled gradients to these
            return
        gradients.clear()  # so that each gradient is free as soon as it is copied
        for parameter in differentiated:
            if parameter.grad is not None:
                # A copy: the closure, or DDP's bucket, may write the next pass into the same memory.
                self._held.append((parameter, parameter.grad.clone()))
            parameter.grad = None

    def hold(self, parameters: Sequence[Tensor]) -> None:
        """Add the parameters' present gradients, of a pass between ascents, to what is held."""
        held = dict(self._held)
        for parameter in parameters:
            if parameter.grad is not None and parameter in held:
                held[parameter].add_(parameter.grad)
            elif parameter.grad is not None:
                held[parameter] = parameter.grad.clone()
        self._held = list(held.items())

    def add(self) -> None:
        """Add what is held to the parameters' gradients."""
        for parameter, gradient in self._held:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        self._held = []

    def merge(self, rule: Combination, state: RuleState) -> Correction | None:
        """Let the rule make one of both; where the second pass gave none, the clean gradient stands."""
        both = [(clean, p.grad, p) for p, clean in self._held if p.grad is not None]
        self._held = [(p, clean) for p, clean in self._held if p.grad is None]
        self.add()
        if not both:
            return None
        g, g_star, parameters = ([row[column] for row in both] for column in range(3))
        return rule.merge_(g, g_star, parameters, state)


def clear(parameters: list[Tensor]) -> None:
    """Drop the parameters' gradients."""
    for parameter in parameters:
        parameter.grad = None
