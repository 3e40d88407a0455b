"""From stored uint8 images to the backbone's input, a whole batch at a time, on the training device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def draw_crops(
    random: np.random.Generator, size: int, padding: int, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Where each image of a batch is cropped and whether it is flipped.

    Returns:
        Offsets in 0..2·padding, (size, 2), row then column; and bools, (size,).
    """
    offsets = random.integers(0, 2 * padding + 1, (size, 2))
    flips = random.random(size) < 0.5
    return offsets, flips if flip else np.zeros_like(flips)


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Each image padded with black on all sides, cropped back to its size at its offset, perhaps flipped.

    Args:
        images: uint8, (batch, side, side, 3).
        offsets: int64, (batch, 2).
        flips: bool, (batch,).
        padding: pixels.
    """
    side = images.shape[1]
    padded = functional.pad(images, (0, 0, padding, padding, padding, padding))
    along = torch.arange(side, device=images.device)
    rows = offsets[:, :1] + along
    columns = offsets[:, 1:] + torch.where(flips[:, None], side - 1 - along, along)
    batch = torch.arange(len(images), device=images.device)
    return padded[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


class ToInput:
    """Resize, scale to the backbone's mean and deviation, channels-last memory.

    A separable resize is two products with one matrix; the matrix is what torch's own antialiased resize
    does to the identity, so the result is torch's to rounding, several times faster.

    Args:
        stored_size: side of the stored images.
        image_size: side of the backbone's input.
        interpolation: ``bicubic`` or ``bilinear``, as the weights were trained with.
        mean, std: per channel, for pixels in 0..1.
        device: where batches are wanted.
    """

    def __init__(
        self,
        stored_size: int,
        image_size: int,
        interpolation: str,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
    ) -> None:
        self._matrix: Tensor | None = None
        if stored_size != image_size:
            identity = torch.eye(stored_size)[None, None]
            mode = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
            size = (image_size, stored_size)
            matrix = functional.interpolate(identity, size, mode=mode, antialias=True, align_corners=False)
            self._matrix = matrix[0, 0].to(device)
        channel = (1, 3, 1, 1)
        self._scale = (1 / (255 * torch.tensor(std))).view(channel).to(device)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).view(channel).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """float32, (batch, 3, image_size, image_size), from uint8, (batch, side, side, 3)."""
        pixels = images.permute(0, 3, 1, 2).float()
        if self._matrix is not None:
            # Bicubic overshoots; Pillow clips to the range of pixels too.
            pixels = (self._matrix @ (pixels @ self._matrix.T)).clamp_(0, 255)
        return torch.addcmul(self._shift, pixels, self._scale).contiguous(memory_format=torch.channels_last)
