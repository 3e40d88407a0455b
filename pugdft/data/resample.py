"""Resampling a box of each image, a whole batch at a time, by Pillow's definition.

A separable resize is two products with a matrix. Where each image has a box of its own, each has matrices of
its own, (output, input), made for the whole batch by a few elementwise operations: no Python for an image.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_ATTEMPTS = 10


def draw_boxes(
    random: np.random.Generator, size: int, side: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Boxes of a random resized crop, as torchvision draws them: ten attempts, then the largest one.

    Args:
        random: of this batch.
        size: images in it.
        side: of the images, which are squares.
        scale: area of the box as a share of the image's.
        ratio: width over height.

    Returns:
        Top, left, height and width in whole pixels, int64, (size, 4).
    """
    areas = side * side * random.uniform(*scale, (size, _ATTEMPTS))
    ratios = np.exp(random.uniform(math.log(ratio[0]), math.log(ratio[1]), (size, _ATTEMPTS)))
    where = random.random((size, 2))
    lengths = np.stack([np.sqrt(areas / ratios), np.sqrt(areas * ratios)], 2).round()
    fits = ((lengths >= 1) & (lengths <= side)).all(2)
    boxes = lengths[np.arange(size), fits.argmax(1)]
    whole = np.array([side / max(ratio[0], 1), side * min(ratio[1], 1)]).round().clip(1)
    lost = ~np.any(fits, axis=1)
    boxes[lost] = whole
    starts = np.floor(where * (side - boxes + 1))
    starts[lost] = (side - whole) // 2
    return np.concatenate([starts, boxes], 1).astype(np.int64)


def box_matrices(
    starts: Tensor, lengths: Tensor, in_size: int, out_size: int, mode: str, mirrored: Tensor | None = None
) -> Tensor:
    """What turns ``in_size`` pixels into ``out_size`` samples of a stretch of them, one matrix an image.

    Pillow's ``resize(box=…)``: the filter is as wide as the stretch is shrunk (antialiasing), reads the
    pixels around the stretch too, and its weights sum to one at the image's edge.

    Args:
        starts, lengths: of the stretches in pixels, (batch,).
        in_size, out_size: pixels.
        mode: ``bicubic`` or ``bilinear``.
        mirrored: bool, (batch,): where to sample in reversed order.

    Returns:
        float32, (batch, out_size, in_size).
    """
    along = torch.arange(out_size, device=starts.device)
    if mirrored is not None:
        along = torch.where(mirrored[:, None], out_size - 1 - along, along)
    step = lengths.float()[:, None] / out_size
    centers = starts[:, None] + (along + 0.5) * step
    pixels = torch.arange(in_size, device=starts.device) + 0.5
    distances = (pixels - centers[:, :, None]) / step.clamp(min=1)[:, :, None]
    weights = _kernel(distances.abs_(), mode)
    return weights / weights.sum(2, keepdim=True)


def _kernel(distance: Tensor, mode: str) -> Tensor:
    """The filter at non-negative distances; bicubic is Keys' with a = −0.5, Pillow's and torch's choice."""
    if mode == "bilinear":
        return (1 - distance).clamp_(min=0)
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
