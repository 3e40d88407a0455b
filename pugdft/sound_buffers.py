"""A model's running statistics, kept from passes that are not finite."""

from __future__ import annotations

import torch
from torch import nn


class SoundBuffers:
    """Puts a model's buffers back to what they were if a pass has left anything in them that is not finite.

    An update whose loss is not finite is left out, but its forward pass has been through BatchNorm: one NaN
    in a running mean would stay there, and make every later evaluation worthless.

    Args:
        model: whose floating-point buffers are watched, those that are finite now.
        watches: False does nothing.
    """

    def __init__(self, model: nn.Module, watches: bool) -> None:
        buffers = model.buffers() if watches else ()
        self._buffers = [b for b in buffers if b.is_floating_point() and bool(torch.isfinite(b).all())]
        self._sound = [each.clone() for each in self._buffers]

    @torch.no_grad()
    def mend(self) -> None:
        """After an update: keep all buffers, or put all of them back. Nothing waits for the device."""
        if not self._buffers:
            return
        is_sound = torch.stack([torch.isfinite(each).all() for each in self._buffers]).all()
        for buffer, sound in zip(self._buffers, self._sound, strict=True):
            torch.where(is_sound, buffer, sound, out=sound)
            buffer.copy_(sound)
