"""Where the clean gradient stays while the second pass runs, and how it meets the perturbed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from pugdft.optim import tensors
from pugdft.optim.combine import Correction, Merge
from pugdft.optim.context import Memory
from pugdft.optim.scaling import LossScale


class CleanGradients:
    """The clean gradients of one step after another.

    A closure that accumulates adds g* to them in place. Any other might clear them, so they are held
    outside the parameters, at the price of one more copy of the parameters during the pass.

    Args:
        closure_accumulates: the closure never clears gradients.
        loss_scale: of the passes, if there is one.

    Attributes:
        lie_in_place: whether the parameters' gradients are the clean part right now.
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
        gradients = [p.grad for p in differentiated if p.grad is not None]
        if share not in (0, 1):
            tensors.scale_(gradients, share)
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
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        self._held = []

    def merge(self, rule: Merge, memory: Memory) -> Correction | None:
        """Let the rule make one of both; where the second pass gave none, the clean gradient stands."""
        both = [(p, clean, p.grad) for p, clean in self._held if p.grad is not None]
        for parameter, gradient in self._held:
            if parameter.grad is None:
                parameter.grad = gradient
        self._held = []
        if not both:
            return None
        parameters, clean, perturbed = ([row[column] for row in both] for column in range(3))
        return rule.merge_(clean, perturbed, parameters, memory)


def _own(gradient: Tensor) -> Tensor:
    """The gradient in memory of its own: DDP may let it be a view of a bucket that the next pass fills."""
    is_view = gradient.untyped_storage().nbytes() > gradient.numel() * gradient.element_size()
    return gradient.clone() if is_view else gradient


def clear(parameters: list[Tensor]) -> None:
    """Drop the parameters' gradients."""
    for parameter in parameters:
        parameter.grad = None
