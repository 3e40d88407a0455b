"""Scale the loss for fp16, in methods that evaluate the gradient more than once a step.

The scale changes once, after the step. It is applied where the closure calls ``PerturbedOptimizer.backward``
and undone after each pass, so that every rule sees true gradients. As a power of two it is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pugdft.optim import foreach
from pugdft.optim.base import unfuse
from pugdft.optim.combine import Correction, Identity, Normalize

# At 0, where halving for ever would lead, no gradient is finite again.
_LEAST = 2.0**-14


class LossScale:
    """A dynamic loss scale, kept on the device so that nothing waits for it.

    Args:
        initial: a power of two.
        growth_interval: finite steps after which the scale doubles; it halves at each overflow.
    """

    def __init__(self, initial: float = 2.0**16, growth_interval: int = 2000) -> None:
        self._initial, self._growth_interval = initial, growth_interval
        self._scale: Tensor | None = None
        self._growth = torch.zeros((), dtype=torch.int32)
        self.is_used = False

    def scale(self, loss: Tensor) -> Tensor:
        """The loss times the scale."""
        self.is_used = True
        return loss * self._on(loss.device)

    def scale_(self, gradients: Sequence[Tensor]) -> None:
        """Bring gradients to the scale of a pass that is going to add to them."""
        if gradients:
            foreach.scale_(gradients, self._on(gradients[0].device))

    def unscale_(self, gradients: Sequence[Tensor]) -> None:
        """Undo the scale of a pass."""
        if gradients:
            foreach.scale_(gradients, 1.0 / self._on(gradients[0].device))

    def update(self, finite: Tensor) -> None:
        """Halve the scale after an overflow, down to 2⁻¹⁴; double it after a long run without one."""
        scale = self._on(finite.device)
        torch._amp_update_scale_(scale, self._growth, (~finite).float(), 2.0, 0.5, self._growth_interval)
        scale.clamp_(min=_LEAST)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        scale = self._initial if self._scale is None else float(self._scale)
        return {"scale": scale, "growth": int(self._growth)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved numbers."""
        self._initial, self._scale = state["scale"], None
        self._growth = torch.tensor(state["growth"], dtype=torch.int32)

    def _on(self, device: torch.device) -> Tensor:
        if self._scale is None:
            self._scale = torch.tensor(self._initial, dtype=torch.float32, device=device)
            self._growth = self._growth.to(device)
        return self._scale


class GuardedStep:
    """Step a base optimizer, or skip and count (``num_skipped``) an update whose gradient is not finite.

    A fused base reads the flag on the accelerator; any other, and a correction, wait for the device.

    Args:
        clip: h ← h · min(1, clip / (‖h‖ + 1e-12)) for the normalised gradient h over all groups; None leaves
            it. A correction (``wsam``) is subtracted after the base's step, and is not clipped.
        is_alone: the base has no method, so its gradients may be sparse or complex.
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        loss_scale: LossScale | None,
        clip: float | None = None,
        *,
        is_alone: bool = False,
    ) -> None:
        self._base, self._loss_scale, self._clip, self._is_alone = base, loss_scale, clip, is_alone
        self.num_skipped: Tensor | int = 0

    def step(self, gradients: list[Tensor], rule: Normalize, correction: Correction | None) -> None:
        """Normalise ``gradients``, the parameters' own, by ``rule``, step, and correct the weights."""
        if not gradients:
            return
        base = self._base
        if not self._is_alone or {gradient.layout for gradient in gradients} == {torch.strided}:
            real = gradients
            if self._is_alone and any(map(Tensor.is_complex, gradients)):
                real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
            norm = rule.normalize_(real)
            finite = torch.isfinite(norm)
            if self._clip is not None:
                norm = norm if isinstance(rule, Identity) else foreach.global_norm(real)
                foreach.clip_norm_(real, self._clip, norm)
        else:  # only a base alone is given sparse gradients
            unfuse(base)
            values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
            norm = foreach.global_norm(values)
            finite = torch.isfinite(norm)
            if self._clip is not None:
                foreach.clip_norm_(gradients, self._clip, norm)
        if correction is not None:
            finite = finite & torch.isfinite(foreach.global_norm(correction.directions)).to(finite.device)
        if self._loss_scale is not None:
            self._loss_scale.update(finite)
        on_device = finite.device.type != "cpu" and getattr(base, "_step_supports_amp_scaling", False)
        if on_device and correction is None:
            overflow = (~finite).float()
            base.grad_scale, base.found_inf = None, overflow  # type: ignore[attr-defined]
            self.num_skipped = self.num_skipped + overflow
            base.step()
        elif bool(finite):
            if on_device:
                base.grad_scale, base.found_inf = None, None  # type: ignore[attr-defined]
            base.step()
            if correction is not None:
                directions = dict(zip(correction.parameters, correction.directions, strict=True))
                for group in base.param_groups:
                    moved = [parameter for parameter in group["params"] if parameter in directions]
                    steps = [directions[parameter] for parameter in moved]
                    foreach.add_scaled_(moved, steps, -float(group["lr"]) * correction.factor)
        else:
            self.num_skipped = self.num_skipped + 1
