"""What is drawn for a batch of training images: for all of it, so that sharing it out changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pugdft.data.mixing import Mix, draw_mix
from pugdft.data.resample import draw_boxes
from pugdft.data.seeding import Draw, generator
from pugdft.data.transforms import draw_crops


@dataclass(frozen=True)
class ResizedCrop:
    """A random box of an image: its share of the area, and its width over its height."""

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 1.3333)


@dataclass(frozen=True)
class Drawn:
    """The draws of one batch, a row an image.

    Attributes:
        offsets: of the padded crop, (images, 2), row then column.
        flips: bool, (images,).
        boxes: of the random resized crop: top, left, height, width, (images, 4).
        holes: centres of cutout's squares, in pixels at stored size, (images, 2).
        mix: of the whole batch.
    """

    offsets: np.ndarray
    flips: np.ndarray
    boxes: np.ndarray | None = None
    holes: np.ndarray | None = None
    mix: Mix | None = None

    def content(self) -> Iterator[bytes]:
        """All of it, for a digest."""
        for rows in (self.offsets, self.flips, self.boxes, self.holes):
            if rows is not None:
                yield rows.tobytes()
        if self.mix is not None:
            yield repr(self.mix).encode()


@dataclass(frozen=True)
class Augmentation:
    """What may be done to training images, as the recipe's ``data`` section has it.

    Each kind draws from a stream of its own: turning one on changes no other.
    """

    crop_padding: int = 0
    flip: bool = False
    resized_crop: ResizedCrop | None = None
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    auto_augment: str | None = None

    def draw(self, seed: int, epoch: int, step: int, size: int, stored_size: int, image_size: int) -> Drawn:
        """The draws for ``size`` images of a step."""

        def stream(draw: Draw) -> np.random.Generator:
            return generator(seed, draw, epoch, step)

        offsets, flips = draw_crops(stream(Draw.AUGMENT), size, self.crop_padding, self.flip)
        boxes = holes = None
        if self.resized_crop is not None:
            scale, ratio = self.resized_crop.scale, self.resized_crop.ratio
            boxes = draw_boxes(stream(Draw.BOX), size, stored_size, scale, ratio)
        if self.cutout:
            holes = stream(Draw.CUTOUT).integers(0, stored_size, (size, 2))
        mix = draw_mix(stream(Draw.MIX), image_size, self.mixup, self.cutmix)
        return Drawn(offsets, flips, boxes, holes, mix)
