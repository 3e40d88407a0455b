"""From encoded images to pixels."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from pugdft.data.contents import Sample
from pugdft.errors import UserError

# Part of every store's name. Raise it when the same files would decode to other pixels or be stored in
# another way: then no store of an earlier version is taken for one of this.
DECODING_VERSION = 1


def decode(sample: Sample, resize_to: int | None = None) -> np.ndarray:
    """uint8 RGB pixels, (height, width, 3); grey, palette and RGBA images are converted.

    Raises:
        UserError: not an image, or a damaged one; the message says which.
    """
    try:
        content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
        with Image.open(content) as opened:
            image: Image.Image = opened
            if image.mode.startswith("I"):  # 16-bit grey: conversion to RGB would clip, not scale
                grey = np.asarray(image, np.float64) / 257
                image = Image.fromarray(grey.clip(0, 255).round().astype(np.uint8))
            rgb = image.convert("RGB")
            if resize_to is not None:
                rgb = _resize_and_crop(rgb, resize_to)
            return np.asarray(rgb)
    except UnidentifiedImageError:  # its own message may name an object in memory
        raise UserError(f"{sample.where}: is not an image in a format that can be read") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{sample.where}: this image does not decode: {reason}") from None


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))
