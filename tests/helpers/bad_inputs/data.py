"""Folders of images, and the images in them."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bad_inputs.case import Case
from bad_inputs.files import Build, both, colours, data_set, encoded, file, image, images, recipe

FINETUNE = ("finetune", "r.yaml")
PNG = encoded(colours(0))
JPEG = encoded(colours(0), "JPEG")


def folder(name: str, change: Build, *said: str, lines: int = 1) -> Case:
    """The data set with something changed in its folder."""
    return Case(name, FINETUNE, said, data_set(lambda root: change(root / "images")), lines=lines)


def picture(
    name: str, content: bytes, said: str = "this image does not decode", file_name: str = "1.png"
) -> Case:
    """The data set with one image's file of this content."""
    place = f"test/bee/{file_name}"
    return Case(name, FINETUNE, (f"images/{place}: ", said), image(content, place))


def where(name: str, data_name: str, *said: str, build: Build = images, **more: Any) -> Case:
    """A recipe with this ``data.name``."""
    return Case(name, FINETUNE, said, both(recipe({"data.name": data_name}), build), **more)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int) -> bytes:
    """A grey image of any size in a few bytes to a few hundred thousand."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(min((width + 1) * height, 10**6)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def only_test(name: str) -> Build:
    """Test images of one class alone."""
    return lambda root: shutil.rmtree(root / "test" / name)


def unlink_all(root: Path) -> None:
    """Class folders without images."""
    for path in (root / "train" / "ant").iterdir():
        path.unlink()


def replace_all(root: Path) -> None:
    """Arrays instead of images."""
    for path in (root / "train" / "ant").iterdir():
        path.unlink()
        path.with_suffix(".npy").write_bytes(b"\x93NUMPY")


def link_parent(root: Path) -> None:
    """A class folder that holds every class."""
    (root / "train" / "cat").symlink_to("..")


def annotate(line: bytes) -> Build:
    """Tiny ImageNet's layout with this line in its annotations."""
    return both(
        lambda root: shutil.move(root / "test" / "ant", root / "val" / "images"),
        lambda root: shutil.rmtree(root / "test"),
        lambda root: (root / "val" / "val_annotations.txt").write_bytes(line),
    )


FOLDERS = [
    where(
        "unknown name",
        "cifar1000",
        'data.name: no such folder, and unknown data set "cifar1000"',
        'Did you mean "cifar100"?',
    ),
    where("no name", "", "data.name: is empty"),
    where("no folder", "./nowhere", "data.name: no such folder"),
    where("no such home", "~nobody_here/x", "data.name: ~nobody_here is no home folder"),
    where("a file", "r.yaml", "data.name: r.yaml is a file; of files, only .csv, .tsv, .jsonl are read"),
    where("a long name", "x" * 5000, "xxx", longest=6000),
    where("controls in the name", "\x1b[31mred", "data.name: no such folder"),
    where(
        "nothing in it",
        "empty",
        "empty: holds no data set. Expected train*.parquet",
        build=lambda root: (root / "empty").mkdir(),
    ),
    where(
        "only on the Hub",
        "cifar10",
        "data.name: cifar10 is not on this machine",
        "pugdft data prepare cifar10",
        lines=5,
    ),
    Case("data prepare unknown", ("data", "prepare", "nowhere"), ("data.name: no such folder",)),
    Case("data verify a file", ("data", "verify", "r.yaml"), ("data.name: r.yaml is a file",), recipe()),
    Case(
        "data prepare of 4 pixels",
        ("data", "prepare", "images", "--image-size", "4"),
        ("Invalid value for '--image-size'",),
        images,
    ),
    folder(
        "no train", lambda root: shutil.rmtree(root / "train"), "images: holds no data set. Expected train"
    ),
    folder(
        "train is a file",
        both(lambda root: shutil.rmtree(root / "train"), file("train", "x")),
        "images: holds no data set",
    ),
    folder(
        "no test",
        lambda root: shutil.rmtree(root / "test"),
        "images: has no test split (test, testing, validation, ",
    ),
    folder(
        "test without classes",
        lambda root: [shutil.rmtree(root / "test" / name) for name in ("ant", "bee")],
        "images/test: holds no class folders",
    ),
    folder("no images", unlink_all, "images/train/ant: holds no image (.bmp, .gif"),
    folder("arrays", replace_all, "images/train/ant: holds no image (.bmp, .gif", ", 0.npy first"),
    folder(
        "unknown test class",
        lambda root: (root / "test" / "bee").rename(root / "test" / "cow"),
        '1 class of the test split, "cow" first, not in the train split',
    ),
    folder("one test class", only_test("bee"), "data set images: the test split has one class only"),
    folder(
        "one train class",
        both(only_test("bee"), lambda root: shutil.rmtree(root / "train" / "bee")),
        "data set images: the train split has one class only",
    ),
    folder("a link to the parent", link_parent, "images/train/cat: is a link to ", "which holds every class"),
    folder(
        "an image that links nowhere",
        lambda root: (root / "train" / "ant" / "9.png").symlink_to("gone.png"),
        "images/train/ant/9.png: is a link that leads nowhere",
    ),
    folder(
        "fewer images than a batch",
        lambda root: [(root / "train" / n / f"{i}.png").unlink() for n in ("ant", "bee") for i in (0, 1, 2)],
        "train.batch_size: 4",
    ),
    folder(
        "annotations of no image",
        annotate(b"nowhere.png\tant\n"),
        "val_annotations.txt line 1: names no image",
    ),
    folder(
        "annotations in Latin-1",
        annotate(b"1.png\tant\n\xe9.png\tant\n"),
        "val_annotations.txt line 2: is not UTF-8",
    ),
    Case(
        "fp16 without a GPU",
        ("finetune", "r.yaml", "train.precision=fp16"),
        ("train.precision: fp16 needs a GPU",),
        data_set(),
    ),
    Case(
        "a trigger without held-out images",
        ("finetune", "r.yaml", "optimizer.trigger={name: generalization_gap}"),
        ("data.validation: this trigger",),
        data_set(),
    ),
    Case(
        "a cutout larger than the images",
        ("finetune", "r.yaml", "data.cutout=64"),
        ("data.cutout: ",),
        data_set(),
    ),
    Case(
        "an image size that no model takes",
        ("finetune", "r.yaml", "model.name=vit_tiny_patch16_224", "data.image_size=8"),
        ("data.image_size: 8 does not fit",),
        data_set(),
    ),
]

PICTURES = [
    picture("empty", b"", "is not an image in a format that can be read"),
    picture("text", b"this is no image\n", "is not an image in a format that can be read", "1.jpg"),
    picture(
        "a page", b"<html><body>404</body></html>", "is not an image in a format that can be read", "1.jpg"
    ),
    picture("PNG cut short", PNG[:-30]),
    picture("JPEG cut short", JPEG[: len(JPEG) // 2], file_name="1.jpg"),
    picture(
        "a wrong checksum",
        PNG[:29] + bytes([PNG[29] ^ 255]) + PNG[30:],
        "is not an image in a format that can be read",
    ),
    picture("wrong pixels", PNG[:60] + bytes(20) + PNG[80:]),
    picture("a head alone", PNG[:33], "is not an image in a format that can be read"),
    picture("no width", png_of(0, 8), "is not an image in a format that can be read"),
    picture("a bomb", png_of(60_000, 60_000), "this image is too large: at most 178,956,970 pixels"),
    picture("a smaller bomb", png_of(12_000, 10_000), "this image does not decode"),
    picture("a thread", png_of(1, 200_000), "1 × 200,000 pixels, too narrow"),
    picture(
        "PostScript",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
        "is in a format that is not read (PostScript). Save it as BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP",
        "1.jpg",
    ),
    picture(
        "floating-point numbers",
        encoded(np.ones((8, 8), np.float32), "TIFF"),
        "this image's grey values are floating-point numbers; those of 8 bits",
        "1.tif",
    ),
    picture(
        "grey of 32 bits",
        encoded(np.full((8, 8), 70_000, np.int32), "TIFF"),
        "this image's grey values go from 70,000 to 70,000; those of 8 bits",
        "1.tif",
    ),
]

CASES = [*FOLDERS, *PICTURES]

# Odd, and good: the same command must accept them.
GOOD_PICTURES = {
    "one pixel": encoded(np.zeros((1, 1, 3), np.uint8)),
    "grey": encoded(colours(0)[..., 0]),
    "16-bit grey": encoded(colours(0)[..., 0].astype(np.uint16) * 257),
    "CMYK": encoded(colours(0), "JPEG", "CMYK"),
    "wide": png_of(400, 8),
    "long text": b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0))
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 10**6)))
    + chunk(b"IDAT", zlib.compress(bytes(72)))
    + chunk(b"IEND", b""),
}
