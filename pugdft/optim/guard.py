"""The base's step, kept from gradients that are not finite."""

from __future__ import annotations

import torch
from torch import Tensor

from pugdft.optim import tensors
from pugdft.optim.base import fill_momentum
from pugdft.optim.combine import Correction
from pugdft.optim.normalize import Normalize
from pugdft.optim.scaling import LossScale


class GuardedStep:
    """Steps a base optimizer, or skips the update and counts that.

    On an accelerator a fused base reads the flag on the device, so that nothing waits for it. A base without
    a fused form, and the one method that corrects the weights afterwards, do wait.
    """

    def __init__(self, base: torch.optim.Optimizer, loss_scale: LossScale | None) -> None:
        self._base, self._loss_scale = base, loss_scale
        self._num_skipped: Tensor | int = 0

    @property
    def num_skipped(self) -> int:
        """Updates left out; reading it waits for the device."""
        return int(self._num_skipped)

    @num_skipped.setter
    def num_skipped(self, value: int) -> None:
        self._num_skipped = value

    def step(self, gradients: list[Tensor], rule: Normalize, correction: Correction | None) -> None:
        """Normalise the gradients and step.

        Args:
            gradients: h, which is what lies in the parameters' ``grad``.
            rule: normalises it in place.
            correction: applied to the weights after the base's step.
        """
        if not gradients:
            return
        base = self._base
        fill_momentum(base)
        finite = torch.isfinite(rule.normalize_(gradients))
        if correction is not None:
            finite = finite & torch.isfinite(tensors.global_norm(correction.directions)).to(finite.device)
        if self._loss_scale is not None:
            self._loss_scale.update(finite)
        on_device = finite.device.type != "cpu" and getattr(base, "_step_supports_amp_scaling", False)
        if on_device and correction is None:
            overflow = (~finite).float()
            base.grad_scale, base.found_inf = None, overflow  # type: ignore[attr-defined]
            self._num_skipped = self._num_skipped + overflow
            base.step()
        elif bool(finite):
            if on_device:
                base.grad_scale, base.found_inf = None, None  # type: ignore[attr-defined]
            base.step()
            self._apply(correction)
        else:
            self._num_skipped = self._num_skipped + 1

    def _apply(self, correction: Correction | None) -> None:
        if correction is None:
            return
        lrs = {p: float(group["lr"]) for group in self._base.param_groups for p in group["params"]}
        for parameter, direction in zip(correction.parameters, correction.directions, strict=True):
            parameter.add_(direction, alpha=-lrs[parameter] * correction.factor)
