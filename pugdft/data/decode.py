"""Decode image files to uint8 pixels and check that a split can be stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pugdft.data.datasets import EncodedImage, Split
from pugdft.errors import UserError

# Part of every store's name. Raise it when the same files would decode to other pixels or be stored in
# another way: then no store of an earlier version is taken for one of this.
DECODING_VERSION = 1

_CHUNK = 512

# Whatever a file is called, Pillow goes by its content, and has Ghostscript run what is PostScript; its other
# formats are those of other trades.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# How files begin that somebody may take for images that can be read.
_OTHER_FORMATS = {
    b"%!PS": "PostScript",
    b"\xc5\xd0\xd3\xc6": "PostScript",
    b"%PDF": "PDF",
    b"<svg": "SVG",
    b"8BPS": "Photoshop's",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\0\0\1\0": "ICO",
    b"DDS ": "DDS",
}

_MOST_PIXELS = 178_956_970  # Pillow's own limit: what is above may be a bomb
# At half of it, it warns, which says nothing of whose image it is.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def kept_name(key: str, resize_to: int | None) -> str:
    """Name what the cache keeps for a source at a size; ``resize_to`` None: at the images' own size."""
    return f"{key}-v{DECODING_VERSION}-{resize_to or 'native'}"


class NotNative(Exception):
    """The images cannot be used as they are: they are not squares of one size that is small enough."""


def decode(sample: EncodedImage, resize_to: int | None = None) -> np.ndarray:
    """uint8 RGB pixels, (height, width, 3); grey, palette and RGBA images are converted.

    Raises:
        UserError: not an image, or a damaged one; the message says which.
    """
    try:
        content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
        with Image.open(content, formats=FORMATS) as opened:
            image: Image.Image = opened
            _check_size(image.size, resize_to, sample.where)
            if image.mode == "F" or image.mode.startswith("I"):
                image = _grey_of_8_bits(image, sample.where)
            rgb = image.convert("RGB")
            if resize_to is not None:
                rgb = _resize_and_crop(rgb, resize_to)
            return np.asarray(rgb)
    except UserError:
        raise
    except Image.DecompressionBombError:
        raise UserError(
            f"{sample.where}: this image is too large: at most {_MOST_PIXELS:,} pixels are decoded"
        ) from None
    except UnidentifiedImageError:  # its own message may name an object in memory
        reason = "is not an image in a format that can be read"
        if name := _other_format(sample.content):
            known = ", ".join(FORMATS[:-1])
            reason = f"is in a format that is not read ({name}). Save it as {known} or {FORMATS[-1]}"
        raise UserError(f"{sample.where}: {reason}") from None
    except FileNotFoundError:
        raise UserError(f"{sample.where}: this image is gone: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{sample.where}: this image does not decode: {reason}") from None


def decoded_split(
    part: Split, where: str, num_classes: int, resize_to: int | None, sides: range
) -> Iterator[tuple[EncodedImage, np.ndarray]]:
    """Yield every image of a split with its pixels: squares of one size, one of ``sides``.

    Args:
        where: opens the message if the split as a whole is not usable.

    Raises:
        NotNative: an image is no such square.
        UserError: an image does not decode, a label is not one of the classes, or the split is empty or of
            one class.
    """
    if part.size == 0:
        raise UserError(f"{where} is empty")
    labels, samples = set(), part.samples()
    pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
    try:
        while chunk := list(islice(samples, _CHUNK)):
            for sample, pixels in zip(chunk, pool.map(lambda s: decode(s, resize_to), chunk), strict=True):
                height, width, _ = pixels.shape
                if height != width or height not in sides:
                    raise NotNative
                sides = range(height, height + 1)
                if not 0 <= sample.label < num_classes:
                    raise UserError(f"{sample.where}: label {sample.label} is not one of the classes")
                labels.add(sample.label)
                yield sample, pixels
    finally:
        pool.shutdown(cancel_futures=True)
    if len(labels) < 2:
        raise UserError(f"{where} has one class only; at least two are needed")


def _check_size(size: tuple[int, int], resize_to: int | None, where: str) -> None:
    """Refuse an image so narrow that, with its shorter side resized, the longer one fills the memory."""
    scale = resize_to / max(1, min(size)) if resize_to else 1.0
    if size[0] * scale * size[1] * scale > _MOST_PIXELS:
        pixels = f"{size[0]:,} × {size[1]:,} pixels"
        raise UserError(f"{where}: this image has {pixels}, too narrow to be resized to {resize_to}")


def _grey_of_8_bits(image: Image.Image, where: str) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's conversion to RGB would clip it.

    Raises:
        UserError: there is no telling which value is white.
    """
    if image.mode == "F":
        values = "are floating-point numbers"
    else:
        grey = np.asarray(image, np.float64)  # of mode I, 32 bits with a sign, in which 16 are kept too
        low, high = int(grey.min()), int(grey.max())
        if low >= 0 and high <= 65535:
            return Image.fromarray((grey / 257).round().astype(np.uint8))
        values = f"go from {low:,} to {high:,}"
    raise UserError(
        f"{where}: this image's grey values {values}; those of 8 bits (0 to 255) and of 16 (0 to 65,535) are "
        "read. Scale them, and save it as a PNG of 8 or 16 bits"
    )


def _other_format(content: bytes | Path) -> str | None:
    """Name the format of a file that is known but not read."""
    if isinstance(content, Path):
        with suppress(OSError), content.open("rb") as file:
            content = file.read(12)
    if not isinstance(content, bytes):
        return None
    if content[4:8] == b"ftyp":
        return "AVIF, HEIC or a video"
    return next((name for start, name in _OTHER_FORMATS.items() if content.startswith(start)), None)


def _resize_and_crop(image: Image.Image, side: int) -> Image.Image:
    scale = side / min(image.size)
    width, height = (max(side, round(length * scale)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    return resized.crop((left, top, left + side, top + side))
