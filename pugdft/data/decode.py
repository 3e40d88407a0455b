"""Decode image files to uint8 pixels and check that a data set can be stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from pugdft.data.datasets import SPLITS, Contents, EncodedImage
from pugdft.errors import UserError, reason, refuse

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
    content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
    with (
        refuse(Exception, lambda error: f"{sample.where}: {_fault(error, sample.content)}"),
        Image.open(content, formats=FORMATS) as opened,
    ):
        image: Image.Image = opened
        _check_size(image.size, resize_to, sample.where)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _grey_of_8_bits(image, sample.where)
        rgb = image.convert("RGB")
        if resize_to is not None:
            rgb = _resize_and_crop(rgb, resize_to)
        return np.asarray(rgb)


def _fault(error: Exception, content: bytes | Path) -> str:
    """Say what is wrong with an image; Pillow's decoders raise many kinds of errors."""
    if isinstance(error, Image.DecompressionBombError):
        return f"this image is too large: at most {_MOST_PIXELS:,} pixels are decoded"
    if isinstance(error, FileNotFoundError):
        return "this image is gone: no such file"
    if not isinstance(error, UnidentifiedImageError):
        return f"this image does not decode: {reason(error)}"
    if name := _other_format(content):
        known = ", ".join(FORMATS[:-1])
        return f"is in a format that is not read ({name}). Save it as {known} or {FORMATS[-1]}"
    return "is not an image in a format that can be read"


def decoded_images(
    name: str, contents: Contents, resize_to: int | None, image_size: int
) -> Iterator[tuple[str, int, EncodedImage, np.ndarray]]:
    """Yield every image of a data set: its split, its row there, and its pixels, squares of one size.

    Args:
        name: of the data set, for messages.
        resize_to: as ``decode`` takes it.
        image_size: the largest side.

    Raises:
        NotNative: an image is no such square.
        UserError: an image does not decode, a label is not one of the classes, or a split is empty or of
            one class.
    """
    sides = range(1, image_size + 1)
    with ExitStack() as stack:
        pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
        stack.callback(pool.shutdown, cancel_futures=True)
        for split in SPLITS:
            part, where = getattr(contents, split), f"data set {name}: the {split} split"
            if part.size == 0:
                raise UserError(f"{where} is empty")
            labels, samples, row = set(), part.samples(), 0
            while chunk := list(islice(samples, _CHUNK)):
                decoded = pool.map(lambda sample: decode(sample, resize_to), chunk)
                for sample, pixels in zip(chunk, decoded, strict=True):
                    height, width, _ = pixels.shape
                    if height != width or height not in sides:
                        raise NotNative
                    sides = range(height, height + 1)  # one resize on the device serves both splits
                    if not 0 <= sample.label < len(contents.classes):
                        raise UserError(f"{sample.where}: label {sample.label} is not one of the classes")
                    labels.add(sample.label)
                    yield split, row, sample, pixels
                    row += 1
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
