"""A mean loss as a function of a model's weights: its gradient, and exact products with its Hessian.

A product H v is the derivative of gᵀv, so it is exact up to rounding; no finite difference is taken.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from pugdft.data.loader import free_device_bytes
from pugdft.training.fast_layers import TORCHS_OWN

_SHARE_OF_MEMORY = 0.35  # of what is free, for graphs that are kept
_UNKNOWN_MEMORY = 2 << 30  # bytes, where the system does not tell


@dataclass(frozen=True)
class LossPart:
    """The mean loss of some images, at the parameters' present values, and their share of all images."""

    loss: Callable[[], Tensor]
    share: float


@dataclass
class Objective:
    """A mean loss as a function of the parameters, which count as one vector of D numbers.

    With ``keeps_graphs`` each part's graph of the gradient is built once and serves all products: about two
    thirds of their time, and memory for the activations of all images. Call :meth:`forget` before the
    parameters change.

    Attributes:
        num_gradients: gradients of the whole loss that were computed, also for products.
        num_products: products with the Hessian of the whole loss.
    """

    parts: Sequence[LossPart]
    parameters: Sequence[Tensor]
    keeps_graphs: bool = False
    num_gradients: float = 0.0
    num_products: float = 0.0
    _graphs: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """D, the number of weights."""
        return sum(each.numel() for each in self.parameters)

    def weights(self) -> Tensor:
        """A copy of the parameters' values, (D,)."""
        return torch.cat([each.detach().reshape(-1) for each in self.parameters])

    def write_(self, weights: Tensor) -> None:
        """``parameters ← weights``."""
        assert not self._graphs, "graphs of other weights are kept: forget() comes first"
        with torch.no_grad():
            for parameter, values in zip(self.parameters, self.split(weights), strict=True):
                parameter.copy_(values)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector, one in the shape of each parameter."""
        pieces = vector.split([each.numel() for each in self.parameters])
        return [piece.view(each.shape) for piece, each in zip(pieces, self.parameters, strict=True)]

    def forget(self) -> None:
        """Free all graphs that are kept."""
        self._graphs.clear()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The loss, and its gradient, (D,)."""
        loss, gradient = 0.0, torch.zeros_like(self.weights())
        for part in self.parts:
            value = part.loss()
            gradients = torch.autograd.grad(value, list(self.parameters), materialize_grads=True)
            loss += part.share * float(value.detach())
            gradient.add_(_flat(gradients), alpha=part.share)
        self.num_gradients += sum(part.share for part in self.parts)
        return loss, gradient

    def product(self, vectors: Tensor) -> Tensor:
        """H v for each row of ``vectors``, (vectors, D), or for one vector, (D,)."""
        rows = vectors.reshape(-1, self.size)
        total = torch.zeros_like(rows)
        for number, part in enumerate(self.parts):
            gradients = self._graph(number)
            known = [index for index, each in enumerate(gradients) if each.requires_grad]
            for row, result in zip(rows if known else (), total, strict=bool(known)):
                pieces = self.split(row)
                with _fast_twice():
                    products = torch.autograd.grad(
                        [gradients[index] for index in known],
                        list(self.parameters),
                        [pieces[index] for index in known],
                        retain_graph=True,
                        materialize_grads=True,
                    )
                result.add_(_flat(products), alpha=part.share)
        self.num_products += len(rows) * sum(part.share for part in self.parts)
        return total.view_as(vectors)

    def _graph(self, number: int) -> list[Tensor]:
        """The gradient of a part, which can be differentiated again."""
        if number in self._graphs:
            return self._graphs[number]
        with _fast_twice():
            gradients = torch.autograd.grad(
                self.parts[number].loss(), list(self.parameters), create_graph=True, materialize_grads=True
            )
        self.num_gradients += self.parts[number].share
        if self.keeps_graphs:
            self._graphs[number] = list(gradients)
        return list(gradients)

    def restricted(self, chosen: Sequence[int]) -> Objective:
        """The mean loss of some of the parts; it shares their graphs."""
        total = sum(self.parts[number].share for number in chosen)
        parts = [LossPart(self.parts[number].loss, self.parts[number].share / total) for number in chosen]
        shared = {place: self._graph(number) for place, number in enumerate(chosen) if self.keeps_graphs}
        return Objective(parts, self.parameters, self.keeps_graphs, _graphs=shared)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.reshape(-1) for each in tensors])


def twice_differentiable(model: nn.Module) -> nn.Module:
    """A copy of a model in evaluation mode, without layers whose gradient cannot be differentiated again."""
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():
        module.__class__ = TORCHS_OWN.get(type(module), type(module))
    return twin


def graph_bytes(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> int:
    """Measure what the graph of a gradient keeps: the memory of all tensors saved for a second derivative."""
    own = {each.untyped_storage().data_ptr() for each in parameters}
    sizes: dict[int, int] = {}
    held: list[Tensor] = []  # so that no memory is used, and counted, twice

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), _fast_twice():
        torch.autograd.grad(loss(), list(parameters), create_graph=True, materialize_grads=True)
    return sum(sizes.values())


def fits(num_bytes: int, device: torch.device) -> bool:
    """Tell whether graphs of this size may be kept: a product takes about as much again while it runs."""
    free = free_device_bytes(device)
    if device.type == "cpu":
        known = hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else _UNKNOWN_MEMORY
    return num_bytes <= _SHARE_OF_MEMORY * free


@contextmanager
def _fast_twice() -> Iterator[None]:
    """Within the context, compute losses in operations whose gradients have a derivative, and a fast one.

    Fused attention has none. torch's derivative of a convolution's gradient loops over the groups: half of
    the time of a product of a network with depthwise convolutions. That of BatchNorm's takes many passes.
    """
    with sdpa_kernel(SDPBackend.MATH), _Substitutes():
        yield


class _Substitutes(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        mine = {torch.conv2d: _conv2d, functional.batch_norm: _batch_norm}.get(function, function)
        return mine(*args, **(kwargs or {}))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """BatchNorm; with fixed statistics it is one product and one sum."""
    if training or running_mean is None or running_var is None:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    scale = (running_var + eps).rsqrt() if weight is None else weight * (running_var + eps).rsqrt()
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    shape = [1, -1] + [1] * (input.ndim - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    sides = [[each, each] if isinstance(each, int) else list(each) for each in (stride, padding, dilation)]
    found: Tensor = _Convolution.apply(input, weight, bias, (*sides, False, [0, 0], groups))
    return found


class _Convolution(torch.autograd.Function):
    """A convolution whose gradient's derivative is four convolutions, whatever the groups."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, how: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.how = how
        output: Tensor = torch.ops.aten.convolution(input, weight, bias, *how)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        needs_input, needs_weight, needs_bias, _ = ctx.needs_input_grad
        found = _ConvolutionGradient.apply(gradient, *ctx.saved_tensors, ctx.how, (needs_input, needs_weight))
        return *found, gradient.sum((0, 2, 3)) if needs_bias else None, None


class _ConvolutionGradient(torch.autograd.Function):
    """The gradients of ⟨g, x ∗ w⟩ in x and w: for u and v in their place, ⟨g, u ∗ w⟩ + ⟨g, x ∗ v⟩."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        input: Tensor,
        weight: Tensor,
        how: tuple[Any, ...],
        needed: Sequence[bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(gradient, input, weight)
        ctx.how = how
        ctx.set_materialize_grads(False)
        return _convolution_gradient(gradient, input, weight, how, *needed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_input: Tensor | None, of_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient, input, weight = ctx.saved_tensors
        of_gradient = to_input = to_weight = None
        if of_weight is not None:
            of_gradient = torch.ops.aten.convolution(input, of_weight, None, *ctx.how)
            to_input, _ = _convolution_gradient(
                gradient, input, of_weight, ctx.how, ctx.needs_input_grad[1], False
            )
        if of_input is not None:
            image = torch.ops.aten.convolution(of_input, weight, None, *ctx.how)
            of_gradient = image if of_gradient is None else of_gradient.add_(image)
            _, to_weight = _convolution_gradient(
                gradient, of_input, weight, ctx.how, False, ctx.needs_input_grad[2]
            )
        return of_gradient, to_input, to_weight, None, None


def _convolution_gradient(
    gradient: Tensor, input: Tensor, weight: Tensor, how: tuple[Any, ...], *needed: bool
) -> tuple[Tensor | None, ...]:
    """The gradients of ⟨gradient, input ∗ weight⟩ in input and weight; None where it is not needed."""
    found = torch.ops.aten.convolution_backward(gradient, input, weight, None, *how, [*needed, False])
    return tuple(found[:2])
