"""Folders of images as the library ``datasets`` reads them: metadata tables, and splits by many names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_layouts import CLASSES, store_of

from pugdft.data.datasets import open_source
from pugdft.errors import UserError

Rows = list[dict[str, object]]


@pytest.fixture
def insects(image_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(image_folder, tmp_path / "insects")


def write_table(table: Path, rows: Rows) -> None:
    if table.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), table)
    elif table.suffix == ".jsonl":
        table.write_text("\n\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        lines = [",".join(map(str, row.values())) for row in rows]
        table.write_text("\n".join([",".join(rows[0]), *lines]), encoding="utf-8")


def rows_below(root: Path, place: Path) -> Rows:
    files = sorted(place.rglob("*.png"))
    return [{"file_name": file.relative_to(root).as_posix(), "label": file.parent.name} for file in files]


def notes_of(folder: Path) -> str:
    return "\n".join(open_source(str(folder)).notes).replace(str(folder), "F")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("layout", ["a table a split", "one table, folders of splits", "one table"])
def test_metadata_of_every_kind_gives_the_same_store(
    kind: str, layout: str, insects: Path, image_folder: Path
) -> None:
    if layout == "a table a split":
        for split in ("train", "test"):
            rows = rows_below(insects / split, insects / split)
            # The folders below must not matter: the table says what an image is.
            for row, number in zip(rows, range(len(rows)), strict=True):
                old = insects / split / str(row["file_name"])
                row["file_name"] = f"images/{number:03}.png"
                (insects / split / "images").mkdir(exist_ok=True)
                old.rename(insects / split / str(row["file_name"]))
            for name in CLASSES:
                (insects / split / name).rmdir()
            write_table(insects / split / f"metadata.{kind}", rows)
    else:
        rows = rows_below(insects, insects / "train") + rows_below(insects, insects / "test")
        for number, row in enumerate(rows):
            split = str(row["file_name"]).partition("/")[0]
            place = split if layout == "one table, folders of splits" else "pictures"
            old, row["file_name"] = insects / str(row["file_name"]), f"{place}/{number:03}.png"
            (insects / place).mkdir(exist_ok=True)
            old.rename(insects / str(row["file_name"]))
            if layout == "one table":
                row["split"] = split
        for split in ("train", "test"):
            for name in CLASSES:
                (insects / split / name).rmdir()
        write_table(insects / f"metadata.{kind}", rows)
    store = store_of(insects)
    assert store.classes == CLASSES
    assert store.sha256 == store_of(image_folder).sha256


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_captions_are_no_labels_and_what_a_table_leaves_out_is_said(kind: str, insects: Path) -> None:
    caption: Rows = [{"file_name": "ant/000.png", "text": "an ant"}]
    write_table(insects / "train" / f"metadata.{kind}", caption)
    left_out = "left out 1 (tables without a column of labels, or beside the class folders that are read)"
    assert f"{left_out}: train/metadata.{kind}" in notes_of(insects)
    table = insects / "train" / f"metadata.{kind}"
    rows = rows_below(insects / "train", insects / "train")
    write_table(table, [*rows[1:], rows[3]])
    said = notes_of(insects)
    assert "left out 1 (images that no row of the table names): train/ant/000.png" in said
    assert "several rows name 1 image: train/ant/003.png" in said
    write_table(table, [*rows, rows[0] | {"label": "bee"}])
    with pytest.raises(UserError, match=r'"ant/000\.png" has two labels, ant and bee; an image has one'):
        open_source(str(insects))
    for split in ("train", "test"):
        for name in CLASSES[1:]:
            shutil.rmtree(insects / split / name)
    write_table(table, caption)
    with pytest.raises(UserError, match=r"needs a column of paths .* it has file_name, text$"):
        open_source(str(insects))


def test_metadata_that_could_mean_two_things_is_refused(insects: Path) -> None:
    rows = rows_below(insects / "train" / "bee", insects / "train" / "bee")
    write_table(insects / "train" / "bee" / "metadata.jsonl", rows)
    with pytest.raises(UserError, match=r"bee/metadata\.jsonl: labels images below a folder of classes"):
        open_source(str(insects))
    (insects / "train" / "bee" / "metadata.jsonl").rename(insects / "train" / "metadata.jsonl")
    write_table(insects / "train" / "metadata.csv", rows)
    with pytest.raises(UserError, match=r"train: holds metadata\.csv and metadata\.jsonl; keep the one"):
        open_source(str(insects))
    (insects / "train" / "metadata.csv").unlink()
    for text, said in (
        ('{"file_name": "ant/000.png", "label": ["ant"]}', r"line 1: \"label\" holds \['ant'\]; expected"),
        ('{"file_name": "ant/000.png", "label": "ant"}\n[', r"line 2: is no JSON object"),
        ('{"file_name": "ant/000.png", "label": null}', r"line 1: has no label"),
    ):
        (insects / "train" / "metadata.jsonl").write_text(text)
        with pytest.raises(UserError, match=said):
            open_source(str(insects))


def test_a_table_may_stand_beside_its_split_s_folder_and_come_from_windows(
    insects: Path, image_folder: Path
) -> None:
    for split in ("train", "test"):
        rows = rows_below(insects / split, insects / split)
        (insects / split).rename(insects / "images")
        (insects / split).mkdir()
        (insects / "images").rename(insects / split / "images")  # no class folders
        for row in rows:
            row["file_name"] = f"images/{row['file_name']}".replace("/", "\\")
        write_table(insects / f"{split}.csv", rows)
    assert store_of(insects).sha256 == store_of(image_folder).sha256


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        ("train_data", "test-set", "the train split is train_data, the test split is test-set"),
        ("seg_train/seg_train", "seg_test/seg_test", "the train split is seg_train"),
        ("train/train", "val/val", "the test split is val"),
    ],
)
def test_splits_are_known_by_a_word_of_their_name_and_one_folder_below(
    train: str, test: str, said: str, insects: Path, image_folder: Path
) -> None:
    (insects / "train").rename(insects / "a")
    (insects / "test").rename(insects / "b")
    for old, new in (("a", train), ("b", test)):
        (insects / new).parent.mkdir(exist_ok=True)
        (insects / old).rename(insects / new)
    assert said in notes_of(insects)
    assert store_of(insects).sha256 == store_of(image_folder).sha256


def test_file_names_may_tell_the_split(insects: Path, image_folder: Path) -> None:
    for split in ("train", "test"):
        for file in sorted((insects / split).rglob("*.png")):
            file.rename(insects / "train" / file.parent.name / f"{split}-{file.name}")
    classes = (insects / "train").rename(insects / "classes")
    assert "F: the images' file names tell their split" in notes_of(classes)
    assert store_of(classes).sha256 == store_of(image_folder).sha256
    (classes / "ant" / "train-000.png").rename(classes / "ant" / "rest.png")
    with pytest.raises(UserError, match="has no test split"):
        open_source(str(classes))


def test_folders_of_images_alone_are_no_classes_and_archives_are_named(insects: Path, tmp_path: Path) -> None:
    (insects / "train" / "dog.zip").write_bytes(b"PK\3\4")
    (insects / "more.tar.gz").write_bytes(b"")
    left_out = "left out 2 (archives; unpack them if they belong to the data): more.tar.gz, train/dog.zip"
    assert left_out in notes_of(insects)
    for split in ("train", "test"):
        shutil.copytree(insects / split / "ant", tmp_path / "kaggle" / f"{split}_images")
    with pytest.raises(UserError, match="train_images: holds no class folders"):
        open_source(str(tmp_path / "kaggle"))
    (tmp_path / "zip").mkdir()
    (tmp_path / "zip" / "train.zip").write_bytes(b"PK\3\4")
    with pytest.raises(UserError, match=r"holds no folders of images, but train\.zip; unpack it here"):
        open_source(str(tmp_path / "zip"))
