"""The algorithm: closure → trigger → perturb → closure → restore → combine → normalise → base.

One class makes every method of the family; what differs stands in the five rules of a ``Method``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor

from pugdft.optim import tensors
from pugdft.optim.context import StepContext
from pugdft.optim.evidence import Evidence
from pugdft.optim.passes import PassContext, RandomState
from pugdft.optim.presets import Method
from pugdft.optim.trigger import Never

Closure = Callable[[], Tensor]

_STATE_KEY = "pugdft"


class PerturbedOptimizer(torch.optim.Optimizer):
    """A base optimizer fed with a method's gradient.

    ``step(closure)`` calls the closure as often as the method needs and returns the clean loss. The
    closure runs forward and backward for one whole batch, all micro-batches included; it may clear
    gradients at its start or leave that to the caller. A gradient that is not finite skips the update.

    ``param_groups`` and ``state`` are the base's own, so learning-rate schedulers and inspectors work.

    Args:
        base: steps at the exactly restored weights.
        method: the five rules.
        perturbed_pass: makes the context manager around each perturbed pass.
        replay_rng: the perturbed pass draws the clean pass's random numbers.
        closure_accumulates: the caller promises that the closure never clears gradients.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        method: Method,
        *,
        perturbed_pass: PassContext | None = None,
        replay_rng: bool = True,
        closure_accumulates: bool = False,
    ) -> None:
        self.base = base
        self.method = method
        self.progress = 0.0
        self.num_steps = 0
        self.num_two_pass_steps = 0
        self.evidence = Evidence()
        self._perturbed_pass = perturbed_pass or nullcontext
        self._replays = replay_rng and not isinstance(method.trigger, Never)
        self._closure_accumulates = closure_accumulates
        # One flat copy per parameter, made at the first perturbation and kept: allocating it at every
        # step costs more than copying into it.
        self._weights: dict[Tensor, Tensor] = {}
        self._in_perturbed_pass = False
        self._num_skipped: Tensor | int = 0
        super().__init__(base.param_groups, base.defaults)

    # torch's constructor and unpickling assign these two; the base's are the only ones.
    param_groups = property(lambda self: self.base.param_groups, lambda self, value: None)
    state = property(lambda self: self.base.state, lambda self, value: None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base."""
        if not any(param_group is group for group in self.base.param_groups):
            self.base.add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; nothing inside a perturbed pass, where they hold the clean part."""
        if not self._in_perturbed_pass:
            super().zero_grad(set_to_none)

    @property
    def num_skipped_steps(self) -> int:
        """Updates left out because the gradient was not finite; reading it waits for the device."""
        return int(self._num_skipped)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Make one update.

        Args:
            closure: forward and backward over the batch; returns its loss.

        Returns:
            The loss of the clean pass.

        Raises:
            TypeError: without a closure, for only a closure can evaluate the gradient twice.
        """
        if closure is None:
            raise TypeError("step() needs a closure that runs forward and backward and returns the loss")
        groups = self.param_groups
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        context = StepContext(self.num_steps, self.progress, float(groups[0]["lr"]))
        clean_state = RandomState(parameters[0].device) if self._replays else None
        with torch.enable_grad():
            loss = closure()
        perturbed = [p for p in parameters if p.grad is not None]
        if perturbed and self.method.trigger.fires(context):
            self._second_pass(closure, perturbed, context, clean_state)
            self.num_two_pass_steps += 1
        gradients = [p.grad for p in parameters if p.grad is not None]
        if gradients:
            self._step_base(self.method.normalize.normalize_(gradients))
        self.num_steps += 1
        return loss

    def _second_pass(
        self, closure: Closure, perturbed: list[Tensor], context: StepContext, clean_state: RandomState | None
    ) -> None:
        """Leave a·g + b·g* in the gradients, and the weights as they were."""
        clean, factor = self.method.combine.coefficients(context)
        gradients = [p.grad for p in perturbed if p.grad is not None]
        weights = self._saved_weights(perturbed)
        tensors.copy_(weights, perturbed)
        self._in_perturbed_pass = True
        try:
            norm = self.method.direction.perturb_(perturbed, weights, gradients, self.method.radius(context))
            self.evidence.before_second_pass(perturbed, norm)
            kept = self._put_aside(perturbed, gradients, clean / factor)
            with ExitStack() as stack:
                stack.enter_context(self._perturbed_pass())
                if clean_state is not None:
                    stack.enter_context(clean_state.replayed())
                with torch.enable_grad():
                    closure()
        finally:
            # Exactly the set that was perturbed, by copy: (w + e) − e is not w in floating point.
            tensors.copy_(perturbed, weights)
            self._in_perturbed_pass = False
        for parameter, gradient in kept:
            if parameter.grad is None:
                parameter.grad = gradient
            elif parameter.grad is not gradient:
                parameter.grad.add_(gradient)
        self.evidence.after_second_pass(perturbed, clean / factor)
        if factor != 1:
            every = [p for group in self.param_groups for p in group["params"]]
            tensors.scale_([p.grad for p in every if p.grad is not None], factor)

    def _put_aside(
        self, perturbed: list[Tensor], gradients: list[Tensor], share: float
    ) -> list[tuple[Tensor, Tensor]]:
        """Make room for g*; returns the clean gradients, times ``share``, that are still to be added to it.

        A closure that accumulates adds g* to them in place. Any other might clear them, so they are
        held outside, at the price of one more copy of the parameters during the pass.
        """
        if share == 0:
            kept = []
        else:
            if share != 1:
                tensors.scale_(gradients, share)
            kept = list(zip(perturbed, gradients, strict=True))
        if share == 0 or not self._closure_accumulates:
            for parameter in perturbed:
                parameter.grad = None
        return kept

    def _step_base(self, norm: Tensor) -> None:
        """Step the base unless the gradient's norm says that it is not finite.

        On an accelerator a fused base reads the flag on the device, so that nothing waits for it.
        """
        finite = torch.isfinite(norm)
        if norm.device.type != "cpu" and getattr(self.base, "_step_supports_amp_scaling", False):
            overflow = (~finite).float()
            self.base.grad_scale, self.base.found_inf = None, overflow  # type: ignore[attr-defined]
            self._num_skipped = self._num_skipped + overflow
            self.base.step()
        elif bool(finite):
            self.base.step()
        else:
            self._num_skipped = self._num_skipped + 1

    def _saved_weights(self, parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if parameter not in self._weights:
                self._weights[parameter] = torch.empty_like(parameter)
        return [self._weights[parameter] for parameter in parameters]

    def state_dict(self) -> dict[str, Any]:
        """The base's state and, under ``pugdft``, the method's.

        Raises:
            RuntimeError: inside a perturbed pass, when the weights are not the weights.
        """
        if self._in_perturbed_pass:
            raise RuntimeError("the weights are perturbed: save after step() has returned")
        own = {
            "method": repr(self.method),
            "progress": self.progress,
            "num_steps": self.num_steps,
            "num_two_pass_steps": self.num_two_pass_steps,
            "num_skipped_steps": self.num_skipped_steps,
            "evidence": self.evidence.state_dict(),
        }
        return {**self.base.state_dict(), _STATE_KEY: own}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state saved by the same method.

        Raises:
            ValueError: the state belongs to another method.
        """
        own = state_dict[_STATE_KEY]
        if own["method"] != repr(self.method):
            raise ValueError(f"the saved state is that of {own['method']}, not of {self.method!r}")
        self.base.load_state_dict({key: value for key, value in state_dict.items() if key != _STATE_KEY})
        self.progress = own["progress"]
        self.num_steps = own["num_steps"]
        self.num_two_pass_steps = own["num_two_pass_steps"]
        self._num_skipped = own["num_skipped_steps"]
        self.evidence.load_state_dict(own["evidence"])
