"""Files that are called images: which formats are read, and that no other is handed to a program."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import EpsImagePlugin, Image

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import FORMATS, decode
from pugdft.data.image_folders import SUFFIXES
from pugdft.data.source import EncodedImage
from pugdft.errors import UserError

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
COLOURS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, format_: str) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, format_)
    return buffer.getvalue()


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Exists as soon as somebody has started the ``gs`` that is found first."""
    started, programs = tmp_path / "started", tmp_path / "programs"
    programs.mkdir()
    program = programs / "gs"
    program.write_text(f'#!/bin/sh\necho "$@" >> "{started}"\necho 10.0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return started


def test_postscript_called_an_image_starts_no_program(
    image_folder: Path, tmp_path: Path, ghostscript: Path
) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "images")
    (folder / "test" / "bee" / "0.jpg").write_bytes(POSTSCRIPT)
    said = (
        r"is in a format that is not read \(PostScript\)\. Save it as BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP"
    )
    with pytest.raises(UserError, match=rf"test/bee/0\.jpg: {said}"):
        prepare(open_source(str(folder)), 32)
    tables = tmp_path / "tables"
    tables.mkdir()
    for split in ("train", "test"):
        table = {"image": [encoded(COLOURS, "PNG"), POSTSCRIPT], "label": [0, 1]}
        pq.write_table(pa.table(table), tables / f"{split}.parquet")
    with pytest.raises(UserError, match=rf"train\.parquet row 1: {said}"):
        prepare(open_source(str(tables)), 32)
    assert not ghostscript.exists()
    with pytest.raises((OSError, subprocess.CalledProcessError)):
        Image.open(io.BytesIO(POSTSCRIPT)).load()
    assert ghostscript.exists(), "it would have been started"


def test_every_suffix_of_a_class_folder_s_images_is_of_a_format_that_is_read() -> None:
    Image.init()
    assert {Image.registered_extensions()[suffix] for suffix in SUFFIXES} == set(FORMATS)


@pytest.mark.parametrize("format_", [*FORMATS, "MPO"])
def test_what_people_train_on_is_read_whatever_it_is_called(format_: str, tmp_path: Path) -> None:
    """An MPO is a JPEG with more behind it, as telephones write them."""
    content = encoded(COLOURS, format_)
    (tmp_path / "x.png").write_bytes(content)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    assert np.array_equal(decode(EncodedImage(content, 0, "x")), expected)
    assert np.array_equal(decode(EncodedImage(tmp_path / "x.png", 0, "x")), expected)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encoded(COLOURS, "JPEG2000"), "JPEG 2000"),
        (encoded(COLOURS, "ICO"), "ICO"),
        (encoded(COLOURS, "DDS"), "DDS"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "AVIF, HEIC or a video"),
        (encoded(COLOURS, "PDF"), "PDF"),
    ],
)
def test_another_format_is_named(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    for each in (content, tmp_path / "x.jpg"):
        with pytest.raises(UserError, match=rf"^x: is in a format that is not read \({name}\)\. Save it as"):
            decode(EncodedImage(each, 0, "x"))


@pytest.mark.parametrize("format_", ["TIFF", "PPM"])
def test_grey_values_that_are_floating_point_numbers_are_refused(format_: str) -> None:
    content = encoded(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8), format_)
    said = r"^x: this image's grey values are floating-point numbers; those of 8 bits.*Scale them, and save"
    with pytest.raises(UserError, match=said):
        decode(EncodedImage(content, 0, "x"))


@pytest.mark.parametrize(("low", "high"), [(0, 65_536), (-1, 255), (-(2**31), 2**31 - 1), (100_000, 100_000)])
def test_grey_values_beyond_16_bits_are_refused(low: int, high: int) -> None:
    content = encoded(np.array([[low, high]] * 2, np.int32), "TIFF")
    with pytest.raises(UserError, match=rf"^x: this image's grey values go from {low:,} to {high:,}; those"):
        decode(EncodedImage(content, 0, "x"), 8)


def test_grey_values_of_16_bits_in_32_are_scaled() -> None:
    content = encoded(np.array([[0, 257], [25_700, 65_535]], np.int32), "TIFF")
    assert Image.open(io.BytesIO(content)).mode == "I"
    assert decode(EncodedImage(content, 0, "x"))[..., 0].tolist() == [[0, 1], [100, 255]]
