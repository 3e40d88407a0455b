"""What a person has is what is trained on: layouts, splits, odd files, and what is said of them."""

from __future__ import annotations

import csv
import os
import re
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import write_image_folder
from image_layouts import CLASSES, as_parquet, as_tiny_imagenet, encoded, store_of
from PIL import Image

from pugdft.data.cache import Store, prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import decode
from pugdft.data.source import EncodedImage
from pugdft.errors import FaultsError, UserError
from pugdft.training.run import finetune, read_recipe

Said = list[str]


@pytest.fixture
def insects(image_folder: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return shutil.copytree(image_folder, tmp_path / "insects")


def opened(name: Path, *choice: Any, **more: Any) -> tuple[Store, Said]:
    said: Said = []
    return prepare(open_source(str(name), *choice, **more), 32, on_message=said.append), said


# --- a1: identity by content


def test_classes_whose_equal_looking_files_change_places_are_other_data(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, value in (("cat", 10), ("dog", 200)):
            file = tmp_path / "f" / split / name / "0.bmp"
            file.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (value, 0, 0)).save(file)
            os.utime(file, (1_000_000_000, 1_000_000_000))
    before = store_of(tmp_path / "f")
    train = tmp_path / "f" / "train"
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (train / old).rename(train / new)
    after = store_of(tmp_path / "f")
    assert after.sha256 != before.sha256
    assert after.images("train")[0, 0, 0, 0] == 200


def test_a_check_reads_the_files_and_trusts_no_remembered_key(insects: Path, own_cache: Path) -> None:
    key = open_source(str(insects)).key
    (memo,) = (own_cache / "keys").iterdir()
    memo.write_text("0" * 64)
    assert open_source(str(insects)).key == "0" * 64
    assert open_source(str(insects), trusts_memory=False).key == key


# --- a2, a3, a10: pixels


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_stands_as_a_viewer_shows_it(kind: str, orientation: int, tmp_path: Path) -> None:
    turns = {
        1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: np.rot90,
    }  # fmt: skip
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[8:, 16:] = (255, 0, 0), (0, 0, 255)
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"quality": 95} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(tmp_path / "x", kind, exif=exif, **options)
    found = decode(EncodedImage(tmp_path / "x", 0, "x"))
    expected = turns[orientation](pixels)
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).mean() < 12


def test_a_damaged_orientation_is_none() -> None:
    content = encoded(np.zeros((4, 8, 3), np.uint8), "JPEG")
    damaged = content[:2] + b"\xff\xe1\x00\x10Exif\0\0II*\0\xff\xff\xff\xff" + content[2:]
    assert decode(EncodedImage(damaged, 0, "x")).shape == (4, 8, 3)


def with_chunk(png: bytes, kind: bytes, content: bytes, at: int = 33) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + content))
    return png[:at] + struct.pack(">I", len(content)) + kind + content + check + png[at:]


GREY = np.array([[0, 1023], [2047, 4092]], np.uint16)


def test_grey_of_twelve_bits_is_scaled_by_the_range_that_its_file_states(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.tif", tiffinfo={281: 4095})
    for content in (with_chunk(encoded(GREY), b"sBIT", b"\x0c"), tmp_path / "x.tif"):
        doubts: list[str] = []
        pixels = decode(EncodedImage(content, 0, "x"), None, doubts)  # type: ignore[arg-type]
        assert pixels[..., 0].tolist() == [[0, 64], [127, 255]]
        assert not doubts
    scaled = with_chunk(encoded(GREY * 16), b"sBIT", b"\x0c")  # as the PNG standard has it
    assert decode(EncodedImage(scaled, 0, "x"))[..., 0].tolist() == [[0, 64], [127, 255]]


@pytest.mark.parametrize("colour", [False, True])
def test_few_bits_in_sixteen_without_a_stated_range_are_warned_of(colour: bool, tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "f", {"train": 2, "test": 2}, side=2)
    rows = b"".join(
        b"\0" + b"".join(struct.pack(">H", int(v)) * (3 if colour else 1) for v in row) for row in GREY
    )
    head = struct.pack(">IIBBBBB", 2, 2, 16, 2 if colour else 0, 0, 0, 0)
    png = encoded(GREY)[:8]
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png = with_chunk(png, kind, content, len(png))
    (folder / "train" / "bee" / "000.png").write_bytes(png)
    for storage in ("decoded", "files", "decoded"):
        said: Said = []
        prepare(open_source(str(folder)), 32, storage, said.append)  # type: ignore[arg-type]
        (text,) = said
        assert "1 image of 16 bits" in text
        assert "train/bee/000.png (0 to 4,09" in text


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
def test_a_png_with_a_long_text_is_read(kind: bytes) -> None:
    text = bytes(range(32, 127)) * 30_000
    parts = {
        b"tEXt": b"a\0" + text,
        b"zTXt": b"a\0\0" + zlib.compress(text),
        b"iTXt": b"a\0\1\0\0\0" + zlib.compress(text),
    }
    content = with_chunk(encoded(np.zeros((4, 4, 3), np.uint8)), kind, parts[kind])
    assert decode(EncodedImage(content, 0, "x")).shape == (4, 4, 3)


# --- a4, a5: what lies in a class folder


def test_images_are_known_by_their_content_and_what_is_left_out_is_counted(
    insects: Path, image_folder: Path
) -> None:
    for number, file in enumerate(sorted((insects / "train" / "bee").iterdir())):
        kind, suffix = (("JPEG", ".jfif"), ("PNG", ".PNG.1"), ("PPM", ".pgm"), ("BMP", ""))[number % 4]
        Image.open(file).save(file.with_suffix(suffix), kind)
        if file.with_suffix(suffix) != file:
            file.unlink()
    (insects / "train" / "cat" / "notes.txt").write_text("BM is how a BMP begins, P5 a PGM")
    (insects / "train" / "cat" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    store, said = opened(insects)
    assert len(store.labels("train")) == 72
    (text,) = said
    assert (
        "left out 2 (no images in a format that is read): train/cat/notes.txt, train/cat/photo.heic" in text
    )


def test_hidden_and_accidental_files_are_left_out_at_every_level_and_counted(
    insects: Path, image_folder: Path
) -> None:
    bee = insects / "train" / "bee"
    for place in (
        bee / ".ipynb_checkpoints", bee / "sub" / "@eaDir", insects / "train" / "@eaDir",
        insects / "test" / ".git" / "deep", insects / "__MACOSX" / "train" / "bee",
    ):  # fmt: skip
        place.mkdir(parents=True)
        shutil.copy(bee / "000.png", place / "x.png")
    for name in ("._000.png", "Thumbs.db", "000.png~"):
        shutil.copy(bee / "000.png", bee / name)
    store, said = opened(insects)
    assert store.classes == CLASSES
    assert store.sha256 == store_of(image_folder).sha256
    assert sum("left out 8 (hidden, or left by a system)" in text for text in said) == 1


# --- a6, a7: classes


@pytest.mark.parametrize("is_there", [True, False])
def test_a_class_without_test_images_is_one_fact(is_there: bool, insects: Path) -> None:
    shutil.rmtree(insects / "test" / "bee")
    if is_there:
        (insects / "test" / "bee").mkdir()
    store, said = opened(insects)
    assert store.classes == CLASSES
    assert said == [f'{insects}: no test image of 1 class, "bee" first']


def test_an_empty_folder_of_no_class_is_left_out(insects: Path) -> None:
    (insects / "test" / "dog").mkdir()
    assert opened(insects)[1] == [f"{insects}: left out 1 (class folders without images): test/dog"]


def test_names_of_classes_are_compared_as_they_look(insects: Path, image_folder: Path) -> None:
    (insects / "train" / "bee").rename(insects / "train" / unicodedata.normalize("NFD", "bée"))
    (insects / "test" / "bee").rename(insects / "test" / "bée")
    (insects / "test" / "cat").rename(insects / "test" / "cat ")
    store, said = opened(insects)
    assert store.classes == ["ant", "bée", "cat"]
    assert store.sha256 == store_of(image_folder).sha256
    assert not said
    (insects / "test" / "bée").rename(insects / "test" / "be​e")
    with pytest.raises(UserError, match=r'"\'be\\u200be\'" first, not in the train split'):
        opened(insects)


@pytest.mark.parametrize("name", ["Bee", "\uff42ee"])
def test_a_class_that_looks_like_another_is_said_to(name: str, insects: Path) -> None:
    (insects / "test" / "bee").rename(insects / "test" / name)
    with pytest.raises(
        UserError, match=re.escape(f'not in the train split; "bee" of train is written {name!a} there')
    ):
        opened(insects)


def test_words_in_tables_are_compared_as_they_look(tmp_path: Path) -> None:
    for split, words in (("train", ["bée ", "ant"]), ("test", ["ant", unicodedata.normalize("NFD", "bée")])):
        images = [encoded(np.full((8, 8, 3), i, np.uint8)) for i in range(2)]
        pq.write_table(pa.table({"image": images, "label": words}), tmp_path / f"{split}.parquet")
    store = store_of(tmp_path)
    assert store.classes == ["ant", "bée"]
    assert store.labels("test").tolist() == [0, 1]


# --- a8: splits


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Val"), ("training", "testing"), ("train", "validation"), ("TRAIN", "dev")]
)
def test_splits_have_the_usual_names_and_the_choice_is_said(
    train: str, test: str, insects: Path, image_folder: Path
) -> None:
    (insects / "train").rename(insects / train)
    (insects / "test").rename(insects / test)
    store, said = opened(insects)
    assert store.sha256 == store_of(image_folder).sha256
    assert said == [f"{insects}: the train split is {train}, the test split is {test}"]


def test_a_third_split_is_not_dropped_in_silence(insects: Path, image_folder: Path) -> None:
    shutil.copytree(insects / "test", insects / "val")
    store, said = opened(insects)
    assert store.sha256 == store_of(image_folder).sha256
    assert len(said) == 1
    assert said[0].endswith("the test split is test; val not used (data.splits chooses)")


@pytest.mark.parametrize("leftover", ["val_annotations.txt", "images", None])
def test_tiny_imagenet_sorted_into_class_folders_is_read(
    leftover: str | None, image_folder: Path, tmp_path: Path
) -> None:
    folder = as_tiny_imagenet(image_folder, tmp_path / "tiny")
    shutil.rmtree(folder / "val" / "images")
    for name in CLASSES:
        shutil.copytree(image_folder / "test" / name, folder / "val" / name / "images")
        shutil.copy(image_folder / "test" / name / "000.png", folder / "test" / "images" / f"{name}.JPEG")
    if leftover != "val_annotations.txt":
        (folder / "val" / "val_annotations.txt").unlink()
    if leftover == "images":
        (folder / "val" / "images").mkdir()
    store, said = opened(folder)
    assert store.sha256 == store_of(image_folder).sha256
    assert "the test split is val; test not used" in said[0]


def test_a_test_split_whose_labels_are_kept_back_gives_way_to_validation(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = as_parquet(image_folder, tmp_path / "p")
    test = folder / "test-00000-of-00001.parquet"
    shutil.copy(test, folder / "validation-00000-of-00001.parquet")
    table = pq.read_table(test)
    pq.write_table(table.set_column(1, "label", pa.array([-1] * len(table))), test)
    store, said = opened(folder)
    assert store.sha256 == store_of(image_folder).sha256
    assert "the test split is validation; test not used" in said[0]


def test_a_test_split_of_empty_class_folders_gives_way_to_validation(
    insects: Path, image_folder: Path
) -> None:
    (insects / "test").rename(insects / "val")
    for name in CLASSES:
        (insects / "test" / name).mkdir(parents=True)
    store, said = opened(insects)
    assert store.sha256 == store_of(image_folder).sha256
    assert "the test split is val; test not used" in said[0]


def test_splits_can_be_named(insects: Path, image_folder: Path, small_recipe: dict[str, Any]) -> None:
    (insects / "train").rename(insects / "part A")
    (insects / "test").rename(insects / "part B")
    shutil.copytree(insects / "part B", insects / "held out")
    names = {"train": "part A", "test": "part B"}
    assert opened(insects, 0.0, names)[0].sha256 == store_of(image_folder).sha256
    store, _ = opened(insects, 0.0, names | {"validation": "held out"})
    assert store.splits == ["train", "test", "validation"]
    assert store.content_sha256() == store.sha256
    with pytest.raises(UserError, match=r'data\.splits\.test: .* has no split "part C"; it has '):
        opened(insects, 0.0, names | {"test": "part C"})
    small_recipe["data"] |= {"splits": names | {"validation": "x"}, "validation": 0.1}
    with pytest.raises(FaultsError, match=r"data\.validation: data\.splits names a validation split"):
        read_recipe(small_recipe)


# --- a9: layouts


@pytest.mark.parametrize(
    "rename",
    [
        lambda split: f"plain_text/{split}-00000-of-00001.parquet",
        lambda split: f"default/{split}/0000.parquet",
        lambda split: f"{split}/0000.parquet",
        lambda split: f"data/{split}/part-0.parquet",
    ],
)
def test_parquet_files_are_found_in_the_hub_s_layouts(
    rename: Callable[[str], str], image_folder: Path, tmp_path: Path
) -> None:
    folder = as_parquet(image_folder, tmp_path / "p")
    for split in ("train", "test"):
        target = folder / rename(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{split}-00000-of-00001.parquet").rename(target)
    assert store_of(folder).sha256 == store_of(image_folder).sha256
    if "plain_text" in rename("train"):
        shutil.copytree(folder / "plain_text", folder / "another")
        with pytest.raises(UserError, match=r"holds several data sets \(another, plain_text\)"):
            store_of(folder)


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, ...]], divider: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=divider).writerows([header, *rows])


def rows_of(folder: Path, split: str) -> list[tuple[str, str]]:
    files = sorted((folder / split).rglob("*.png"))
    return [(str(file.relative_to(folder)), file.parent.name) for file in files]


@pytest.mark.parametrize("layout", ["two", "column", "metadata"])
def test_tables_of_paths_give_the_same_store(layout: str, insects: Path, image_folder: Path) -> None:
    (insects / "train").rename(insects / "a")
    (insects / "test").rename(insects / "b")
    name = insects
    if layout == "two":
        for split, part in (("train", "a"), ("test", "b")):
            write_csv(insects / f"{split}.csv", ("path", "label"), rows_of(insects, part), ";")
    elif layout == "column":
        rows = [(*row, use) for part, use in (("a", "train"), ("b", "val")) for row in rows_of(insects, part)]
        write_csv(insects / "all.csv", ("File_Name", "Class", "Split"), rows)
        name = insects / "all.csv"
    else:
        for split, part in (("train", "a"), ("test", "b")):
            (insects / part).rename(insects / split)
            rows = [(file.partition("/")[2], label) for file, label in rows_of(insects, split)]
            write_csv(insects / split / "metadata.csv", ("file_name", "label"), rows)
    store, _ = opened(name)
    assert store.sha256 == store_of(image_folder).sha256
    assert store.classes == CLASSES
    assert prepare(open_source(str(name)), 32, "files").sha256 == store.sha256


def test_a_table_with_a_fault_is_explained(insects: Path) -> None:
    table = insects / "all.csv"
    write_csv(table, ("path", "label"), [("train/ant/000.png", "ant"), ("nowhere.png", "ant")])
    with pytest.raises(UserError, match=r'all\.csv line 3: "nowhere\.png" is no file'):
        open_source(str(table))
    write_csv(table, ("picture", "kind"), [("train/ant/000.png", "ant")])
    with pytest.raises(UserError, match=r"all\.csv: needs a column of paths \(file_name, .* labels \(label"):
        open_source(str(table))


digests: set[str] = set()


@pytest.mark.parametrize("layout", ["class folders", "train alone", "parquet", "table"])
def test_a_test_split_is_cut_by_class_alike_from_every_layout(
    layout: str, insects: Path, image_folder: Path, tmp_path: Path
) -> None:
    folder = insects
    shutil.rmtree(insects / "test")
    if layout == "class folders":
        folder = (insects / "train").rename(tmp_path / "classes")
    elif layout == "parquet":
        folder = as_parquet(image_folder, tmp_path / "p")
        (folder / "test-00000-of-00001.parquet").unlink()
    elif layout == "table":
        write_csv(
            tmp_path / "t.csv", ("path", "label"), [(f"insects/{a}", b) for a, b in rows_of(insects, "train")]
        )
        folder = tmp_path / "t.csv"
    with pytest.raises(UserError, match=r"has no test split .*data\.test=0\.2 cuts one"):
        open_source(str(folder))
    store, said = opened(folder, 0.25)
    assert np.bincount(store.labels("train")).tolist() == [18] * 3
    assert np.bincount(store.labels("test")).tolist() == [6] * 3
    assert store.content_sha256() == store.sha256
    assert not said
    whole = {image.tobytes() for image in store_of(image_folder).images("train")}
    assert {image.tobytes() for s in ("train", "test") for image in store.images(s)} == whole
    digests.add(store.sha256)
    assert len(digests) == 1, "equal images, equal cut"


def test_a_data_set_with_a_test_split_has_none_cut(image_folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.test: .* has a test split, test; leave data\.test out"):
        open_source(str(image_folder), 0.2)


def test_a_class_that_is_called_train_is_a_class(insects: Path, tmp_path: Path) -> None:
    vehicles = (insects / "train").rename(tmp_path / "vehicles")
    (vehicles / "ant").rename(vehicles / "train")
    assert opened(vehicles, 0.25)[0].classes == ["bee", "cat", "train"]


@pytest.mark.parametrize("form", ["dict", "one"])
def test_what_datasets_saved_is_read(form: str, image_folder: Path, tmp_path: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    parts = {}
    kinds = {
        "photo": datasets.Image(),
        "kind": datasets.ClassLabel(names=CLASSES),
        "id": datasets.Value("int64"),
    }
    for split in ("train", "test"):
        files = [file for name in CLASSES for file in sorted((image_folder / split / name).iterdir())]
        columns = {
            "photo": [{"bytes": file.read_bytes(), "path": None} for file in files],
            "kind": [CLASSES.index(file.parent.name) for file in files],
            "id": list(range(len(files))),
        }
        parts[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    if form == "dict":
        datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
        store, said = opened(tmp_path / "saved")
        assert store.sha256 == store_of(image_folder).sha256
        assert not said
    else:
        parts["train"].save_to_disk(str(tmp_path / "saved"))
        store, _ = opened(tmp_path / "saved", 0.25)
        assert np.bincount(store.labels("test")).tolist() == [6] * 3
    assert store.classes == CLASSES


def test_an_id_of_the_hub_that_cannot_be_had_is_no_folder_either(tmp_path: Path, own_cache: Path) -> None:
    with pytest.raises(
        UserError, match=r'no such folder, and .*"nobody/nothing".*from the Hub \(nobody/nothing'
    ):
        open_source("nobody/nothing")


# --- a12: all damaged images


def test_every_damaged_image_is_named(insects: Path) -> None:
    spoilt = [insects / split / "cat" / f"00{number}.png" for split in ("train", "test") for number in (1, 4)]
    for file in spoilt:
        file.write_bytes(b"no image")
    for storage in ("decoded", "files"):
        with pytest.raises(UserError) as caught:
            prepare(open_source(str(insects)), 32, storage)  # type: ignore[arg-type]
        lines = str(caught.value).splitlines()
        assert lines[0] == "4 images cannot be used:"
        assert [line.split(": ")[0].strip() for line in lines[1:]] == [str(file) for file in spoilt]


def test_of_very_many_damaged_images_a_hundred_are_named(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "f", {"train": 60, "test": 2}, side=8)
    for file in (folder / "train").rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(UserError) as caught:
        store_of(folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == "180 images cannot be used:"
    assert len(lines) == 102
    assert lines[-1] == "  and 80 more"


# --- recipes


def test_keys_that_are_not_used_leave_a_recipe_s_digest(small_recipe: dict[str, Any]) -> None:
    plain = read_recipe(small_recipe)
    assert not {"test", "splits", "padding", "mean", "std"} & set(plain.as_dict()["data"])
    small_recipe["data"] |= {"test": 0.0, "splits": None, "padding": "black", "mean": None, "std": None}
    assert read_recipe(small_recipe).digest() == plain.digest()
    small_recipe["data"]["test"] = 0.2
    assert read_recipe(small_recipe).digest() != plain.digest()
    small_recipe["data"] |= {"test": 0.0, "splits": {"tset": "x"}}
    with pytest.raises(FaultsError, match=r'data\.splits\.tset: unknown key.*Did you mean "test"'):
        read_recipe(small_recipe)


def test_a_run_uses_named_splits_and_a_cut_test_split(
    insects: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"]["epochs"] = 1
    (insects / "test").rename(insects / "held out")
    small_recipe["data"] |= {"name": str(insects), "test": 0.25, "splits": {"validation": "held out"}}
    recipe = read_recipe(small_recipe)
    record, _ = finetune(recipe, tmp_path / "run")
    assert record.status == "completed"
    assert record.data is not None
    assert record.data.sizes == {"train": 54, "validation": 33, "test": 18}
    assert set(record.recipe["data"]) >= {"test", "splits"}


# --- relatives of the above


def test_grey_whose_zero_is_white_is_turned(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "x.tif", tiffinfo={262: 0, 281: 4095})
    pixels = decode(EncodedImage(tmp_path / "x.tif", 0, "x"))
    assert pixels[..., 0].tolist() == [[255, 191], [128, 0]]


def test_images_beside_class_folders_are_counted(insects: Path) -> None:
    for place in ("train", "test"):
        shutil.copy(insects / "train" / "ant" / "000.png", insects / place / "loose.png")
    _, said = opened(insects)
    (text,) = said
    assert "left out 2 (images beside the class folders): test/loose.png, train/loose.png" in text


@pytest.mark.parametrize("name", ["@tmp", "Temporary Items", "Network Trash Folder", ".Trash-1000"])
def test_folders_that_systems_leave_are_no_classes(name: str, insects: Path) -> None:
    (insects / "train" / name).mkdir()
    store, said = opened(insects)
    assert store.classes == ["ant", "bee", "cat"]
    assert name in said[0]


def test_a_class_without_test_images_is_said_of_tables_too(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "f", {"train": 2, "test": 2})
    as_parquet(folder, tmp_path / "tables")
    file = next((tmp_path / "tables").glob("test*"))
    table = pq.read_table(file)
    pq.write_table(table.slice(0, 4), file)
    for _ in range(2):  # a prepared data set says it again
        _, said = opened(tmp_path / "tables")
        assert said == ['tables: no test image of 1 class, "cat" first']


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Val")])
def test_splits_one_folder_below_are_no_classes(names: tuple[str, str], insects: Path) -> None:
    for old, new in zip(("train", "test"), names, strict=True):
        (insects / "inner").mkdir(exist_ok=True)
        (insects / old).rename(insects / "inner" / new)
    with pytest.raises(UserError, match="inner has splits; give it as data"):
        open_source(str(insects), 0.2)


def test_a_file_that_is_no_table_of_paths_is_said_to_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is a file; of files, only"):
        open_source(str(tmp_path / "one.parquet"))
