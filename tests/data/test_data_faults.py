"""Images, tables and folders that cannot be used are named, with what is wrong with them."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_layouts import as_parquet, as_tiny_imagenet, encoded, store_of

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.errors import UserError
from pugdft.paths import cache_folder, data_folder


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not an image in a format that can be read$"),
        (b"not an image", "is not an image in a format that can be read$"),
        (encoded(np.zeros((64, 64, 3), np.uint8))[:60], "this image does not decode: [^<]*$"),
    ],
)
def test_an_image_that_does_not_decode_is_named_in_words(
    content: bytes, said: str, image_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "damaged")
    (folder / "test" / "bee" / "005.png").write_bytes(content)
    with pytest.raises(UserError, match=rf"test/bee/005\.png: {said}"):
        store_of(folder)
    parquet = as_parquet(folder, tmp_path / "parquet")
    with pytest.raises(UserError, match=rf"test-00000-of-00001\.parquet row 16: {said}"):
        store_of(parquet)


def break_one_class(folder: Path) -> None:
    for name in ("bee", "cat"):
        shutil.rmtree(folder / "test" / name)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_one_class, "the test split has one class only"),
        (lambda f: shutil.rmtree(f / "test"), r"has no test split \(test, .*data\.test=0\.2 cuts one"),
        (lambda f: shutil.rmtree(f / "train"), "holds no data set. Expected train"),
        (
            lambda f: shutil.copytree(f / "test" / "ant", f / "test" / "dog"),
            '"dog" first, not in the train split',
        ),
        (lambda f: shutil.rmtree(f / "train" / "ant") or (f / "train" / "ant").mkdir(), "holds no image"),
    ],
)
def test_an_unusable_folder_is_explained(damage, said: str, image_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = shutil.copytree(image_folder, tmp_path / "f")
    damage(folder)
    with pytest.raises(UserError, match=said):
        store_of(folder)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"picture": [b"x"], "label": [0]}, r"needs an image column \(img or image\).*it has picture, label"),
        ({"image": [b"x"], "class": [0]}, r"and a label column"),
        ({"image": ["text"] * 2, "label": [0, 1]}, r'row 0: column "image" holds no image bytes'),
        ({"image": [b"x"], "label": [None]}, "empty cells"),
    ],
)
def test_an_unusable_table_is_explained(table: dict[str, list[object]], said: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        pq.write_table(pa.table(table), tmp_path / f"{split}.parquet")
    with pytest.raises(UserError, match=said):
        store_of(tmp_path)


def with_labels(folder: Path, **labels: pa.Array) -> Path:
    """Tables of one grey image a label, without class names in their metadata."""
    folder.mkdir(exist_ok=True)
    for split, column in labels.items():
        images = [encoded(np.full((8, 8, 3), row, np.uint8)) for row in range(len(column))]
        pq.write_table(pa.table({"image": images, "label": column}), folder / f"{split}.parquet")
    return folder


@pytest.mark.parametrize(
    ("train", "test", "row", "stranger"),
    [([1, 2, 3], [1, 0, 2, 3], 1, "0"), (["ant", "bee"], ["ant", "bee", "cat"], 2, "cat")],
)
def test_a_label_that_train_does_not_have_is_no_class_number(  # type: ignore[no-untyped-def]
    train, test, row: int, stranger: str, tmp_path: Path
) -> None:
    folder = with_labels(tmp_path, train=pa.array(train), test=pa.array(test))
    said = rf'test\.parquet row {row}: label "{stranger}" is not among the classes of the train split'
    with pytest.raises(UserError, match=said):
        store_of(folder)


def test_labels_that_do_not_start_at_zero_are_numbered_in_order(tmp_path: Path) -> None:
    store = store_of(with_labels(tmp_path, train=pa.array([30, 10, 20]), test=pa.array([20, 10])))
    assert store.classes == ["10", "20", "30"]
    assert store.labels("train").tolist() == [2, 0, 1]
    assert store.labels("test").tolist() == [1, 0]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([[0], [1]]), r'test\.parquet: column "label" holds list<.*>; labels are whole numbers'),
        (pa.array([{"a": 0}, {"a": 1}]), r'column "label" holds struct<a: int64>; labels are'),
        (pa.array([b"ant", b"bee"]), r'column "label" holds binary; labels are'),
        (pa.array([0.0, float("nan")]), 'column "label" has empty cells'),
    ],
)  # fmt: skip
def test_labels_that_name_no_class_are_explained(column: pa.Array, said: str, tmp_path: Path) -> None:
    split = "train" if "empty" in said else "test"
    with_labels(tmp_path, train=pa.array([0, 1]), test=pa.array([0, 1]))
    with pytest.raises(UserError, match=said):
        store_of(with_labels(tmp_path, **{split: column}))


def test_splits_of_one_data_set_may_lie_in_it_and_in_its_data_folder(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = as_parquet(image_folder, tmp_path / "p")
    (folder / "data").mkdir()
    name = "train-00000-of-00001.parquet"
    (folder / name).rename(folder / "data" / name)
    assert store_of(folder).sha256 == store_of(image_folder).sha256


@pytest.mark.parametrize("column", [0, 1])
def test_parquet_damaged_inside_is_named(column: int, tmp_path: Path) -> None:
    with_labels(tmp_path, train=pa.array([0, 1] * 50), test=pa.array([0, 1]))
    path = tmp_path / "train.parquet"
    part = pq.read_metadata(path).row_group(0).column(column)
    content = bytearray(path.read_bytes())
    start, size = part.dictionary_page_offset, part.total_compressed_size
    content[start : start + size] = b"\xff" * size  # the footer stays whole
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train\.parquet: not readable as parquet: ."):
        store_of(tmp_path)


def test_a_folder_named_like_a_parquet_file_is_explained(tmp_path: Path) -> None:
    with_labels(tmp_path, test=pa.array([0, 1]))
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(UserError, match=r"train\.parquet: is not a file. Put parquet files named train\*"):
        store_of(tmp_path)


def test_a_class_folder_that_links_to_its_own_split_is_refused(image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "f")
    for target in (".", ".."):
        (folder / "train" / "self").symlink_to(target)
        with pytest.raises(UserError, match=r"train/self: is a link to .* Remove the link"):
            store_of(folder)
        (folder / "train" / "self").unlink()
    elsewhere = (folder / "train" / "bee").rename(tmp_path / "bees")
    (folder / "train" / "bee").symlink_to(elsewhere)
    assert store_of(folder).sha256 == store_of(image_folder).sha256


def bytes_renamed(path: Path, name: bytes) -> Path:
    """The path under a name that is not UTF-8."""
    new = path.parent / os.fsdecode(name)
    try:
        return path.rename(new)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")


def test_names_that_are_not_utf8_simply_work(image_folder: Path, tmp_path: Path) -> None:
    folder = bytes_renamed(shutil.copytree(image_folder, tmp_path / "f"), b"caf\xe9")
    for split in ("train", "test"):
        bytes_renamed(folder / split / "ant", b"\xe1nt")  # sorts behind the others
        bytes_renamed(folder / split / "bee" / "000.png", b"000\xe9.png")
    for _ in range(2):  # made, then found
        store = store_of(folder)
        assert [os.fsencode(name) for name in store.classes] == [b"bee", b"cat", b"\xe1nt"]
        assert store.name == "caf\\xe9"  # what a record, which is UTF-8, can carry
    assert np.array_equal(store.images("train")[48:], store_of(image_folder).images("train")[:24])
    parquet = bytes_renamed(as_parquet(image_folder, tmp_path / "p"), b"p\xe9")
    assert store_of(parquet).sha256 == store_of(image_folder).sha256


def test_annotations_that_are_not_utf8_or_name_no_image_are_explained(
    image_folder: Path, tmp_path: Path
) -> None:
    folder = as_tiny_imagenet(image_folder, tmp_path / "tiny")
    annotations = folder / "val" / "val_annotations.txt"
    whole = annotations.read_bytes()
    annotations.write_bytes(whole + b"caf\xe9.png\tant\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt line 34: is not UTF-8 text"):
        store_of(folder)
    annotations.write_bytes(whole + b"x" * 5000 + b"\tant\n")
    with pytest.raises(UserError, match=r"val_annotations\.txt line 34: names no image"):
        store_of(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "^data.name: is empty. Give a folder, or one of cifar10"),
        ("~nouser/images", "^data.name: ~nouser is no home folder on this machine; give a full path$"),
        ("x" * 5000, r'^data.name: no such folder, and unknown data set "x{199}…"\. Known: '),
        ("a\0b", "^data.name: no such folder"),
    ],
)
def test_a_name_that_is_no_path_is_explained(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_source(name)


def test_a_file_that_cannot_be_read_is_named(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(file: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(file))

    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    monkeypatch.setattr("pugdft.data.source.file_sha256", refuse)
    with pytest.raises(UserError, match=r"train/ant/000\.png: Permission denied$"):
        open_source(str(image_folder))


def test_a_damaged_memory_of_the_hubs_key_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "cifar10.hub.txt").touch()
    with pytest.raises(UserError, match="cannot be fetched"):
        open_source("cifar10")


def test_a_cache_that_is_no_folder_is_said_once_and_alike(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    source = open_source(str(image_folder))
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "file"))
    attempts: list[Callable[[], object]] = [
        lambda: open_source(str(image_folder)),
        lambda: open_source("cifar10"),
        lambda: prepare(source, 32),
        data_folder,
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match=f"^PUGDFT_CACHE: {tmp_path / 'file'} is not a folder$"):
            attempt()
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"^PUGDFT_CACHE: .* cannot be made: .* Set PUGDFT_CACHE"):
        prepare(source, 32)


@pytest.mark.parametrize("variable", ["PUGDFT_CACHE", "PUGDFT_DATA"])
def test_a_home_that_is_not_there_is_explained(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "~nouser/x")
    with pytest.raises(UserError, match=f"^{variable}: ~nouser is no home folder"):
        data_folder()
    monkeypatch.setenv(variable, "~")
    assert (cache_folder() if variable == "PUGDFT_CACHE" else data_folder()) == Path.home()


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"train\.parquet: not readable as parquet"):
        store_of(tmp_path)


def test_a_label_outside_the_classes_is_named(image_folder: Path, tmp_path: Path) -> None:
    folder = as_parquet(image_folder, tmp_path / "p")
    table = pq.read_table(folder / "test-00000-of-00001.parquet")
    table = table.set_column(1, "label", pa.array([7] * len(table)))
    pq.write_table(table, folder / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="row 0: label 7 is not one of the classes"):
        store_of(folder)
