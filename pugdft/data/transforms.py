"""Turn stored uint8 images into the backbone's input: whole batches, on the training device."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

_ATTEMPTS = 10
_UNIT = 2**22  # Pillow's filters for 8 bits are whole multiples of 1/_UNIT


def is_pinned_for(device: torch.device) -> bool:
    """Return whether copies to this device are faster and asynchronous from pinned memory."""
    return device.type == "cuda"


def onto(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    if is_pinned_for(device):
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def draw_boxes(
    random: np.random.Generator, size: int, side: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Draw ``size`` boxes of a random resized crop as torchvision does: ten attempts, then the largest box.

    ``scale`` is a box's share of an image's area, ``side`` pixels square; ``ratio`` is width over height.
    Each row has top, left, height and width in whole pixels: int64, (size, 4).
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
    """Build the matrix that resizes a part of ``in_size`` pixels to ``out_size``, one for each image.

    As Pillow's ``resize(box=…)``: antialiased; the filter reads the pixels around the part too, and its
    weights sum to one at the image's edge. Starts and lengths are in pixels, (batch,); ``mirrored``, bool,
    (batch,), is where to sample in reversed order. The result is float32, (batch, out_size, in_size).
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


def draw_crops(
    random: np.random.Generator, size: int, padding: int, flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Draw crop offsets in 0..2·padding, (size, 2), row then column, and flips, bool, (size,)."""
    offsets = random.integers(0, 2 * padding + 1, (size, 2))
    flips = random.random(size) < 0.5
    return offsets, flips if flip else np.zeros_like(flips)


def crop_and_flip(
    images: Tensor, offsets: Tensor, flips: Tensor, padding: int, mirrored: bool = False
) -> Tensor:
    """Pad images, (batch, side, side, 3); crop each at its offset, (batch, 2), and flip some.

    The padding is black, or the image ``mirrored`` at its edge without a second copy of the edge's pixels;
    then it must be less than a side.
    """
    side = images.shape[1]
    along = torch.arange(side, device=images.device)
    rows = offsets[:, :1] + along
    columns = offsets[:, 1:] + torch.where(flips[:, None], side - 1 - along, along)
    if mirrored:
        rows, columns = (side - 1 - (side - 1 - (each - padding).abs()).abs() for each in (rows, columns))
    else:
        images = functional.pad(images, (0, 0, padding, padding, padding, padding))
    batch = torch.arange(len(images), device=images.device)
    return images[batch[:, None, None], rows[:, :, None], columns[:, None, :]]


def cut_out_(inputs: Tensor, centers: Tensor, length: int, stored_size: int) -> Tensor:
    """Blank a square of each normalised input, (batch, 3, side, side), which makes it the mean of all images.

    Source: arXiv 1708.04552. ``length`` and ``centers``, int64, (batch, 2), are in pixels at stored size, as
    its authors work, so that the share that is lost does not depend on the size that the backbone sees.
    """
    scale = inputs.shape[2] / stored_size
    starts = (centers - length // 2) * scale
    pixels = torch.arange(inputs.shape[2], device=inputs.device) + 0.5
    distance = pixels - starts[:, :, None]
    rows, columns = ((distance > 0) & (distance < length * scale)).unbind(1)
    return inputs.masked_fill_(rows[:, None, :, None] & columns[:, None, None, :], 0)


def pillow_matrix(in_size: int, out_size: int, mode: str) -> Tensor:
    """Pillow's filter of 8-bit pixels as whole numbers: float64, (out_size, in_size).

    It is what Pillow does to an identity of 32-bit integers, which it rounds as it rounds its filters.
    """
    identity = Image.fromarray(np.eye(in_size, dtype=np.int32) * np.int32(_UNIT))
    resized = identity.resize((in_size, out_size), Image.Resampling[mode.upper()])
    return torch.from_numpy(np.array(resized, np.float64))


def _rounded(sums: Tensor) -> Tensor:
    """Pixels from sums with a filter of whole numbers, rounded and clipped in place as Pillow does."""
    return sums.add_(_UNIT // 2).mul_(1 / _UNIT).floor_().clamp_(0, 255)


class ToInput:
    """Resize, scale to the backbone's mean and deviation, lay out in memory.

    A separable resize is two products with one matrix; the matrix is what torch's own antialiased resize
    does to the identity, so the result is torch's to rounding, several times faster. ``resize="pillow"``
    gives Pillow's bits instead: sums of whole numbers below 2⁵³ are exact in float64, whatever their order.
    With a box for each image, each has two matrices of its own.
    """

    def __init__(
        self,
        stored_size: int,  # side of the stored images
        image_size: int,  # side of the backbone's input
        interpolation: str,  # as the weights were trained with
        mean: tuple[float, ...],  # per channel, for pixels in 0..1, as ``std``
        std: tuple[float, ...],
        device: torch.device,
        channels_last: bool = True,  # whether an input's pixels lie together in memory, or its channels
        resize: str = "float",  # or pillow: its bits; boxes are always resized in float
    ) -> None:
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.stored_size, self.image_size = stored_size, image_size
        self.mode = interpolation if interpolation in ("bicubic", "bilinear") else "bicubic"
        self._matrix: Tensor | None = None
        self._is_rounded = resize == "pillow"
        if stored_size != image_size and self._is_rounded:
            place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
            self._matrix = pillow_matrix(stored_size, image_size, self.mode).to(place)
        elif stored_size != image_size:
            identity = torch.eye(stored_size)[None, None]
            size, mode = (image_size, stored_size), self.mode
            matrix = functional.interpolate(identity, size, mode=mode, antialias=True, align_corners=False)
            self._matrix = matrix[0, 0].to(device)
        channel = (1, 3, 1, 1)
        self._scale = (1 / (255 * torch.tensor(std))).view(channel).to(device)
        self._shift = (-torch.tensor(mean) / torch.tensor(std)).view(channel).to(device)

    def __call__(self, images: Tensor, boxes: Tensor | None = None, flips: Tensor | None = None) -> Tensor:
        """Return float32, (batch, 3, image_size, image_size), from uint8, (batch, side, side, 3).

        A row of ``boxes`` is top, left, height, width of what to show; ``flips`` tells which to mirror.
        """
        pixels = images.permute(0, 3, 1, 2).float()
        if boxes is not None:
            sizes = self.stored_size, self.image_size
            vertical = box_matrices(boxes[:, 0], boxes[:, 2], *sizes, self.mode)
            horizontal = box_matrices(boxes[:, 1], boxes[:, 3], *sizes, self.mode, flips)
            narrow = pixels.flatten(1, 2) @ horizontal.mT
            pixels = vertical[:, None] @ narrow.unflatten(1, pixels.shape[1:3])
        elif self._matrix is not None and self._is_rounded:
            pixels = _rounded(pixels.to(self._matrix) @ self._matrix.T)
            pixels = _rounded(self._matrix @ pixels).to(self._scale)
        elif self._matrix is not None:
            pixels = self._matrix @ (pixels @ self._matrix.T)
        if boxes is not None or self._matrix is not None:
            pixels.clamp_(0, 255)  # Bicubic overshoots; Pillow clips to the range of pixels too.
        return torch.addcmul(self._shift, pixels, self._scale).contiguous(memory_format=self._format)
