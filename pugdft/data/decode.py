"""Decode image files to uint8 pixels and check that a data set can be stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from pugdft.data.source import Contents, EncodedImage, visible
from pugdft.errors import ConfigIssue, UserError, collect, counted, reason, refuse

# Part of every store's name. Raise it when the same files would decode to other pixels or be stored in
# another way: then no store of an earlier version is taken for one of this.
DECODING_VERSION = 2

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

_WHITE = 65_535
_LEAST_WHITE = 16_384  # the brightest of 16 bits that is not remarkable
_MAX_SAMPLE_VALUE = 281  # of TIFF's tags
_MOST_NAMED = 100
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LYING = (5, 6, 7, 8)
# Texts in a PNG of any length a person may keep there; Pillow stops at 1 MiB.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**28

_MOST_PIXELS = 178_956_970  # Pillow's own limit: what is above may be a bomb
# At half of it, it warns, which says nothing of whose image it is.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)


def kept_name(key: str, resize_to: int | None) -> str:
    """Name what the cache keeps for a source at a size; ``resize_to`` None: at the images' own size."""
    return f"{key}-v{DECODING_VERSION}-{f'{resize_to}px' if resize_to else 'native'}"


class NotNative(Exception):
    """The images cannot be used as they are: they are not squares of one size that is small enough."""


def decode(
    sample: EncodedImage,
    resize_to: int | None = None,
    doubts: list[str] | None = None,
    *,
    keeps: Callable[[int, int], bool] | None = None,
    resize: Callable[[Image.Image], Image.Image] | None = None,
) -> np.ndarray:
    """uint8 RGB pixels, (height, width, 3), the right way up; grey, palette and RGBA images are converted.

    Args:
        resize_to: side of the square to resize and crop to.
        doubts: gets a message if the image is likely to be of fewer bits than its format holds.
        keeps: called with an image's width and height: whether it stays as it is all the same.
        resize: takes the place of the usual resize and crop; ``resize_to`` is the side that it aims at.

    Raises:
        UserError: not an image, or a damaged one; the message says which.
    """
    content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
    with (
        refuse(Exception, lambda error: f"{sample.where}: {_fault(error, sample.content)}"),
        Image.open(content, formats=FORMATS) as opened,
    ):
        _check_size(opened.size, resize_to, sample.where)
        has_16_bits = any(";16" in str(tile[3]) for tile in opened.tile)
        opened.load()  # turns a TIFF by itself
        image = _upright(opened)
        if image.mode == "F" or image.mode.startswith("I"):
            image = _grey_of_8_bits(image, opened, sample, doubts)
            has_16_bits = False
        rgb = image.convert("RGB")
        if (
            doubts is not None
            and has_16_bits
            and 0 < (high := int(np.asarray(rgb).max())) < _LEAST_WHITE >> 8
        ):
            doubts.append(f"{sample.where} (0 to {high * 256 + 255:,})")
        if resize is not None:
            rgb = resize(rgb)
        elif resize_to is not None and not (keeps is not None and keeps(*rgb.size)):
            rgb = _resize_and_crop(rgb, resize_to)
        return np.asarray(rgb)


def stated_size(sample: EncodedImage) -> tuple[int, int]:
    """Width and height of an image as a viewer shows it, from its header alone.

    Raises:
        UserError: not an image; one that is damaged behind its header is not noticed.
    """
    content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
    with (
        refuse(Exception, lambda error: f"{sample.where}: {_fault(error, sample.content)}"),
        Image.open(content, formats=FORMATS) as opened,
    ):
        width, height = opened.size
        return (height, width) if _orientation(opened) in _LYING else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; a damaged EXIF says nothing."""
    with suppress(Exception):  # Pillow's reader raises many kinds
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    return 1


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says."""
    orientation = _orientation(image)
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


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
    name: str, contents: Contents, resize_to: int | None, image_size: int, notes: list[str]
) -> Iterator[tuple[str, int, EncodedImage, np.ndarray]]:
    """Yield every image of a data set: its split, its row there, and its pixels, squares of one size.

    Args:
        name: of the data set, for messages.
        resize_to: as ``decode`` takes it.
        image_size: the largest side.
        notes: gets what a person should know of the images, at the end.

    Raises:
        NotNative: an image is no such square.
        UserError: images do not decode or have a label that is none of the classes, all named; or a split is
            empty or of one class.
    """
    sides, faults, doubts = range(1, image_size + 1), list[ConfigIssue](), list[str]()

    def attempt(sample: EncodedImage) -> np.ndarray | list[ConfigIssue]:
        found: list[ConfigIssue] = []
        with collect(found):
            if not 0 <= sample.label < len(contents.classes):
                raise UserError(f"{sample.where}: label {sample.label} is not one of the classes")
            return decode(sample, resize_to, doubts)
        return found

    with ExitStack() as stack:
        pool = ThreadPoolExecutor()  # decoding releases the interpreter lock
        stack.callback(pool.shutdown, cancel_futures=True)
        for split, part in contents.splits.items():
            if part.size == 0:
                raise UserError(f"data set {name}: the {split} split is empty")
            labels, samples, row = set(), part.samples(), 0
            while chunk := list(islice(samples, _CHUNK)):
                for sample, pixels in zip(chunk, pool.map(attempt, chunk), strict=True):
                    labels.add(sample.label)
                    if isinstance(pixels, list):
                        faults += pixels
                        continue
                    height, width, _ = pixels.shape
                    if height != width or height not in sides:
                        raise NotNative
                    sides = range(height, height + 1)  # one resize on the device serves all splits
                    yield split, row, sample, pixels
                    row += 1
            absent = [name for number, name in enumerate(contents.classes) if number not in labels]
            if split == "test" and absent and isinstance(sample.content, bytes):  # folders said it before
                few = f'{counted(len(absent), "class")}, "{visible(absent[0])}" first'
                notes.append(f"{name}: no test image of {few}")
            if len(labels) < 2 and not faults:
                raise UserError(
                    f"data set {name}: the {split} split has one class only; at least two are needed"
                )
    if faults:
        raise UserError(all_named([str(fault) for fault in faults]))
    if doubts:
        named = ", ".join(sorted(doubts)[:3]) + (", …" if len(doubts) > 3 else "")
        notes.append(
            f"{counted(len(doubts), 'image')} of 16 bits use less than a quarter of their range: {named}. "
            "If they are of fewer bits, they become almost black: scale them to 0..65,535"
        )


def all_named(faults: list[str]) -> str:
    """One message for all damaged images, the first hundred by name."""
    if len(faults) == 1:
        return faults[0]
    more = [f"and {len(faults) - _MOST_NAMED:,} more"] if len(faults) > _MOST_NAMED else []
    return "\n  ".join([f"{len(faults):,} images cannot be used:", *faults[:_MOST_NAMED], *more])


def _check_size(size: tuple[int, int], resize_to: int | None, where: str) -> None:
    """Refuse an image so narrow that, with its shorter side resized, the longer one fills the memory."""
    scale = resize_to / max(1, min(size)) if resize_to else 1.0
    if size[0] * scale * size[1] * scale > _MOST_PIXELS:
        pixels = f"{size[0]:,} × {size[1]:,} pixels"
        raise UserError(f"{where}: this image has {pixels}, too narrow to be resized to {resize_to}")


def _grey_of_8_bits(
    image: Image.Image, opened: Image.Image, sample: EncodedImage, doubts: list[str] | None
) -> Image.Image:
    """Scale 16-bit grey to 8 bits, by the file's own range; Pillow's conversion to RGB would clip it.

    Raises:
        UserError: there is no telling which value is white.
    """
    if image.mode == "F":
        values = "are floating-point numbers"
    else:
        grey = np.asarray(image, np.float64)  # of mode I, 32 bits with a sign, in which 16 are kept too
        low, high = int(grey.min()), int(grey.max())
        if low >= 0 and high <= _WHITE:
            white = _stated_white(opened, sample.content)
            if white < high:
                white = _WHITE
            if (
                isinstance(opened, TiffImagePlugin.TiffImageFile)
                and opened.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
            ):
                grey = white - grey  # zero is white, as in radiographs
            if doubts is not None and white == _WHITE and 0 < high < _LEAST_WHITE:
                doubts.append(f"{sample.where} ({low:,} to {high:,})")
            return Image.fromarray((grey / (white / 255)).round().astype(np.uint8))
        values = f"go from {low:,} to {high:,}"
    raise UserError(
        f"{sample.where}: this image's grey values {values}; those of 8 bits (0 to 255) and of 16 (0 to "
        "65,535) are read. Scale them, and save it as a PNG of 8 or 16 bits"
    )


def _stated_white(image: Image.Image, content: bytes | Path) -> int:
    """The largest grey value that a file allows: by a TIFF's tags or a PNG's significant bits."""
    bits = 16
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if stated := tags.get(_MAX_SAMPLE_VALUE):
            return int(stated[0] if isinstance(stated, tuple) else stated)
        bits = int(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0])
    elif image.format == "PNG":
        with content.open("rb") if isinstance(content, Path) else BytesIO(content) as file:
            file.seek(8)
            while len(head := file.read(8)) == 8 and head[4:] != b"IDAT":
                if head[4:] == b"sBIT":
                    bits = file.read(1)[0]
                    break
                file.seek(int.from_bytes(head[:4]) + 4, 1)
    return 2**bits - 1 if 0 < bits < 16 else _WHITE


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
    """Resize the shorter side and crop the centre, to the pixel as torchvision's Resize and CenterCrop do."""
    width, height = (int(side * length / min(image.size)) for length in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return resized.crop((left, top, left + side, top + side))
