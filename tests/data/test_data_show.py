"""``pugdft data show``: what a data set is, before anything is prepared."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_image_folder
from image_layouts import as_parquet
from PIL import Image
from typer.testing import CliRunner

from pugdft.cli.main import application
from pugdft.data.datasets import open_source
from pugdft.data.overview import contact_sheet, overview, overview_text
from pugdft.data.source import Source
from pugdft.errors import UserError


def looked_at(
    name: str | Path, test: float = 0.0, splits: dict[str, str] | None = None
) -> tuple[Source, dict[str, Any]]:
    source = open_source(str(name), test, splits, only_looks=True)
    return source, overview(source, 32)


@pytest.fixture
def insects(tmp_path: Path) -> Path:
    """Training images of 6, 4 and 4 classes, and of several sizes."""
    folder = write_image_folder(tmp_path / "insects", {"train": 4, "val": 3})
    for number in range(2):
        Image.new("RGB", (40, 30), (200, 0, 0)).save(folder / "train" / "ant" / f"more{number}.png")
    return folder


def test_a_look_tells_splits_classes_sizes_and_what_is_left_out(insects: Path, own_cache: Path) -> None:
    (insects / "test").mkdir()
    (insects / "unlabelled").mkdir()
    (insects / "train" / "ant" / ".hidden.png").write_text("")
    (insects / "train" / "bee" / "list.txt").write_text("")
    exif = Image.Exif()
    exif[0x112] = 6  # lies on its side
    Image.new("RGB", (64, 8)).save(insects / "train" / "cat" / "phone.jpg", exif=exif)
    _, facts = looked_at(insects)
    assert facts["splits"] == {
        "train": {"images": 15, "from": "train"}, "test": {"images": 9, "from": "val"}
    }  # fmt: skip
    assert facts["classes"] == [
        {"name": "ant", "train": 6, "test": 3},
        {"name": "bee", "train": 4, "test": 3},
        {"name": "cat", "train": 5, "test": 3},
    ]
    assert facts["imbalance"] == 1.5
    assert facts["sizes"] == {
        "width": {"min": 8, "median": 16, "max": 40},
        "height": {"min": 16, "median": 16, "max": 64},
    }
    assert not own_cache.exists()
    text = overview_text(facts)
    for part in (
        "the test split is val; test not used",
        "left out 1 (hidden, or left by a system): train/ant/.hidden.png",
        "left out 1 (no images in a format that is read): train/bee/list.txt",
        "left out 1 (folders of no split that is read; data.splits can name one): unlabelled",
        "1.50 times",
        "not prepared yet",
        facts["key"],
    ):
        assert part in text


def test_a_prepared_data_set_shows_the_digest_of_its_record(insects: Path, own_cache: Path) -> None:
    runner = CliRunner()
    for form in ("decoded", "files"):
        shutil.rmtree(own_cache, ignore_errors=True)
        prepared = runner.invoke(
            application(), ["data", "prepare", str(insects), "--image-size", "32", "--storage", form]
        )
        shown = runner.invoke(
            application(), ["data", "show", str(insects), "--image-size", "32", "--format", "json"]
        )
        sha256 = json.loads(shown.stdout)["sha256"]
        assert len(sha256) == 64
        assert sha256 in prepared.stderr


def test_damaged_images_and_a_missing_test_split_are_told_not_refused(insects: Path) -> None:
    for name in ("x.png", "y.jpg"):
        (insects / "train" / "bee" / name).write_text("no image")
    source, facts = looked_at(insects / "train")
    assert list(facts["splits"]) == ["train"]
    assert len(facts["faults"]) == 2
    assert "2 images cannot be used" in overview_text(facts)
    assert any("has no test split" in note for note in facts["notes"])
    contact_sheet(source, insects.parent / "sheet.png")


def test_a_cut_and_a_named_split_are_shown_as_a_run_has_them(insects: Path) -> None:
    _, facts = looked_at(insects / "train", 0.5)
    assert facts["splits"]["test"] == {"images": 7, "from": "0.5 of each class"}
    (insects / "val").rename(insects / "other")
    _, facts = looked_at(insects, splits={"test": "other"})
    assert facts["splits"]["test"] == {"images": 9, "from": "other"}


@pytest.mark.parametrize("layout", ["parquet", "csv", "saved", "bundled"])
def test_every_layout_is_shown(layout: str, insects: Path, tmp_path: Path, own_cache: Path) -> None:
    target = tmp_path / layout
    if layout == "parquet":
        (insects / "val").rename(insects / "test")
        as_parquet(insects, target)
    elif layout == "csv":
        target = insects / "table.csv"
        with target.open("w", newline="") as file:
            rows = [("path", "label", "split")]
            rows += [(str(f), f.parent.name, f.parent.parent.name) for f in sorted(insects.rglob("*.png"))]
            csv.writer(file).writerows(rows)
    elif layout == "saved":
        import datasets

        datasets.load_dataset("imagefolder", data_dir=str(insects)).save_to_disk(str(target))
    name = "bundled" if layout == "bundled" else target
    source, facts = looked_at(name)
    assert facts["splits"]["train"]["images"] == (3000 if layout == "bundled" else 14)
    assert facts["sizes"]["width"]["median"] == (32 if layout == "bundled" else 16)
    contact_sheet(source, tmp_path / "sheet.png")
    assert not own_cache.exists()


def test_a_contact_sheet_shows_each_class_upright_in_a_row_of_its_own(tmp_path: Path) -> None:
    folder, colours = tmp_path / "data", {"red": (200, 0, 0), "猫": (0, 0, 200)}
    for name, colour in colours.items():
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            for number in range(9):
                Image.new("RGB", (20, 20), colour).save(folder / split / name / f"{number}.png")
    contact_sheet(open_source(str(folder), only_looks=True), tmp_path / "sheet.png")
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    shares = []
    for colour in colours.values():
        rows, _ = np.nonzero((pixels == colour).all(-1))
        assert len(rows) == 9 * 72 * 72
        shares.append((rows.min(), rows.max()))
    assert shares[0][1] < shares[1][0]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("sheet.gif", "must end in .png"), ("insects/train/ant/s.png", "lies in the data set"),
        ("insects2/x.png", "cannot be written"),
    ],
)  # fmt: skip
def test_a_contact_sheet_that_cannot_be_is_refused(target: str, said: str, insects: Path) -> None:
    (insects.parent / "insects2").write_text("a file")
    with pytest.raises(UserError, match=said):
        contact_sheet(open_source(str(insects), only_looks=True), insects.parent / target)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["cifar10"], "pugdft data prepare cifar10"),
        (["nobody/nothing"], "pugdft data prepare nobody/nothing"),
        (["bundled", "--split", "test"], "expected USE=NAME"),
        (["bundled", "--split", "tst=x"], "expected USE=NAME"),
        (["bundled", "--test", "0.2"], "has a test split"),
    ],
)
def test_what_cannot_be_shown_is_one_message(
    arguments: list[str], said: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_DATA", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    found = CliRunner().invoke(application(), ["data", "show", *arguments])
    assert isinstance(found.exception, UserError)
    assert said in str(found.exception)
    assert not own_cache.exists()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
