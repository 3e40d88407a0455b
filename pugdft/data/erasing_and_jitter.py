"""Random erasing and colour jitter: drawn for each row of the global batch, applied to whole tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pugdft.config.schema import ColorJitterSection, RandomErasingSection
from pugdft.data.transforms import draw_boxes, onto

_GREY = (0.2989, 0.587, 0.114)  # of red, green and blue, as torchvision weighs them
_OPERATIONS = ("brightness", "contrast", "saturation", "hue")


@dataclass(frozen=True)
class Erased:
    """What is erased of each image of a batch."""

    boxes: np.ndarray  # top, left, height, width in pixels of the input, int64, (images, 4); 0 × 0 for none
    colors: np.ndarray | None  # of the boxes, normalised, float32, (images, 3); for ``rand``
    seeds: np.ndarray | None  # of the boxes' noise, int64, (images,); for ``pixel``

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield all that was drawn."""
        yield from (each for each in (self.boxes, self.colors, self.seeds) if each is not None)

    def of(self, rows: np.ndarray) -> Erased:
        """Select the draws of some images."""
        colors, seeds = (None if each is None else each[rows] for each in (self.colors, self.seeds))
        return Erased(self.boxes[rows], colors, seeds)

    def apply_(self, inputs: Tensor, first: int = 0) -> Tensor:
        """Erase from normalised inputs, (batch, 3, side, side), in place; ``first`` is the first one's row.

        Only what is erased is written: for a usual recipe, a twentieth of the batch.
        """
        noise = torch.Generator(inputs.device)
        boxes = self.boxes[first : first + len(inputs)]
        for place in np.flatnonzero(boxes[:, 2]):
            top, left, height, width = boxes[place].tolist()
            box = inputs[place, :, top : top + height, left : left + width]
            if self.seeds is not None:
                # By the image's own seed, and drawn in one order, however the batch lies in memory.
                noise.manual_seed(int(self.seeds[first + place]))
                box.copy_(torch.randn((3, height, width), generator=noise, device=inputs.device))
            elif self.colors is not None:
                for channel, value in zip(box, self.colors[first + place].tolist(), strict=True):
                    channel.fill_(value)
            else:
                box.zero_()  # normalised, this is the mean of all images
        return inputs


def draw_erased(random: np.random.Generator, size: int, side: int, options: RandomErasingSection) -> Erased:
    """Draw which of ``size`` images are erased, where, and with what (arXiv 1708.04896; modes as timm's)."""
    area, ratio = ((low, high) for low, high in (options.area, options.ratio))
    chosen = random.random(size) < options.probability
    boxes = draw_boxes(random, size, side, area, ratio) * chosen[:, None]
    colors = seeds = None
    if options.mode == "rand":
        colors = random.standard_normal((size, 3), np.float32)
    elif options.mode == "pixel":
        seeds = random.integers(0, 2**63 - 1, size)
    return Erased(boxes, colors, seeds)


@dataclass(frozen=True)
class Jitter:
    """How the colours of each image of a batch are changed."""

    amounts: np.ndarray  # three factors and a turn, float32, (images, 4), in the order of ``_OPERATIONS``
    orders: np.ndarray  # which operation comes first, second, …, int64, (images, 4)

    def arrays(self) -> Iterator[np.ndarray]:
        """Yield all that was drawn."""
        yield from (self.amounts, self.orders)

    def of(self, rows: np.ndarray) -> Jitter:
        """Select the draws of some images."""
        return Jitter(self.amounts[rows], self.orders[rows])

    def applied(self, images: Tensor, first: int = 0) -> Tensor:
        """Change images, (batch, side, side, 3) in 0..255, uint8 or float, to float32 ones of that range.

        As torchvision's ``ColorJitter`` does with images in 0..1; ``first`` is the first one's row.
        """
        rows = slice(first, first + len(images))
        amounts, orders = self.amounts[rows], self.orders[rows]
        pixels = images.permute(0, 3, 1, 2).float() / 255
        neutral = np.array([1, 1, 1, 0], np.float32)
        in_use = np.flatnonzero((self.amounts != neutral).any(0))
        for turn in range(len(_OPERATIONS)):
            for operation in in_use:
                places = np.flatnonzero(orders[:, turn] == operation)
                if len(places):
                    where = onto(places, images.device)
                    amount = onto(amounts[places, operation], images.device)[:, None, None, None]
                    pixels[where] = _changed(pixels[where], _OPERATIONS[operation], amount)
        return (pixels * 255).permute(0, 2, 3, 1)


def draw_jitter(random: np.random.Generator, size: int, options: ColorJitterSection) -> Jitter:
    """Draw factors in [max(0, 1 − s), 1 + s], turns in [−h, h], and the order of the four operations."""
    strengths = [getattr(options, name) for name in _OPERATIONS]
    low = [*(max(0.0, 1 - each) for each in strengths[:3]), -options.hue]
    high = [*(1 + each for each in strengths[:3]), options.hue]
    amounts = random.uniform(low, high, (size, 4)).astype(np.float32)
    orders = random.permuted(np.tile(np.arange(4), (size, 1)), axis=1)
    return Jitter(amounts, orders)


def _changed(pixels: Tensor, operation: str, amount: Tensor) -> Tensor:
    """One operation on images in 0..1, (batch, 3, side, side), each with its amount, (batch, 1, 1, 1)."""
    if operation == "hue":
        return _turned(pixels, amount)
    if operation == "brightness":
        return (pixels * amount).clamp_(0, 1)
    weights = torch.tensor(_GREY, device=pixels.device).view(3, 1, 1)
    grey = (pixels * weights).sum(1, keepdim=True)
    if operation == "contrast":
        grey = grey.mean((2, 3), keepdim=True)
    return torch.lerp(grey, pixels, amount).clamp_(0, 1)


def _turned(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the colours by a share of the colour circle; lightness and saturation of HSV stay."""
    red, green, blue = pixels.unbind(1)
    value, least = pixels.amax(1), pixels.amin(1)
    chroma = value - least
    safe = torch.where(chroma == 0, 1.0, chroma)
    sixth = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sixth = sixth + 6 * turn[:, 0]
    # A channel falls from the value by the chroma over one sixth, stays for two, and rises over one.
    starts = torch.tensor([5.0, 3.0, 1.0], device=pixels.device).view(3, 1, 1)
    along = (starts + sixth[:, None]) % 6
    fall = torch.minimum(along, 4 - along).clamp_(0, 1)
    return value[:, None] - chroma[:, None] * fall
