"""Images: every layout gives the same store, damaged input is named, batches depend on the seed alone."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import write_image_folder
from filelock import FileLock
from PIL import Image
from torch.nn import functional

from pugdft.data.augment import Augmentation
from pugdft.data.batches import Images, Share, TrainingBatches
from pugdft.data.contents import Sample
from pugdft.data.decoding import decode
from pugdft.data.seeding import epoch_order, validation_split
from pugdft.data.sources import open_source
from pugdft.data.store import Store, content_sha256, prepare
from pugdft.data.transforms import ToInput, crop_and_flip, draw_crops
from pugdft.errors import UserError
from pugdft.folders import cache_folder, data_folder

CLASSES = ["ant", "bee", "cat"]
CPU = torch.device("cpu")


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def as_parquet(images: Path, folder: Path, names: bool = True, label: str = "label") -> Path:
    """The images of a class folder tree as parquet in the Hub's layout."""
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        files = [(file, CLASSES.index(c)) for c in CLASSES for file in sorted((images / split / c).iterdir())]
        table = pa.table(
            {
                "image": [{"bytes": file.read_bytes(), "path": None} for file, _ in files],
                label: [number for _, number in files],
            }
        )
        if names:
            features = {"image": {"_type": "Image"}, label: {"names": CLASSES, "_type": "ClassLabel"}}
            table = table.replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": features}})}
            )
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def as_tiny_imagenet(images: Path, folder: Path) -> Path:
    """The same images as Tiny ImageNet's archive lays them out."""
    lines = []
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "test" / "images").mkdir(parents=True)
    for name in CLASSES:
        shutil.copytree(images / "train" / name, folder / "train" / name / "images")
        (folder / "train" / name / f"{name}_boxes.txt").write_text("ant_0.JPEG\t0\t0\t62\t62\n")
        for file in sorted((images / "test" / name).iterdir()):
            shutil.copy(file, folder / "val" / "images" / f"{name}_{file.name}")
            lines.append(f"{name}_{file.name}\t{name}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return folder


def store_of(folder: Path, image_size: int = 32):  # type: ignore[no-untyped-def]
    return prepare(open_source(str(folder)), image_size)


@pytest.mark.parametrize("layout", ["parquet", "parquet without names", "fine_label", "data folder", "tiny"])
def test_every_layout_gives_the_same_store(layout: str, image_folder: Path, tmp_path: Path) -> None:
    expected = store_of(image_folder)
    if layout == "tiny":
        folder = as_tiny_imagenet(image_folder, tmp_path / "tiny")
    else:
        below = tmp_path / "p" / ("data" if layout == "data folder" else "")
        label = "fine_label" if layout == "fine_label" else "label"
        as_parquet(image_folder, below, names=layout != "parquet without names", label=label)
        folder = tmp_path / "p"
    store = store_of(folder)
    assert store.sha256 == expected.sha256
    if layout != "parquet without names":
        assert store.classes == CLASSES
    assert store.images("train").shape == (72, 16, 16, 3)


def test_the_hub_is_read_through_datasets_and_remembered(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """``datasets`` takes a folder of the repository's name for the repository: the same code, no network."""
    as_parquet(image_folder, tmp_path / "uoft-cs" / "cifar100", label="fine_label")
    script = (
        "from pugdft.data.sources import open_source; from pugdft.data.store import prepare\n"
        "print(prepare(open_source('cifar100'), 32).sha256)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PUGDFT_CACHE": str(tmp_path / "cache")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == store_of(image_folder).sha256, done.stderr
        shutil.rmtree(tmp_path / "uoft-cs", ignore_errors=True)  # the second time nothing is asked


def test_offline_without_the_data_the_error_names_folder_layout_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_source("tiny_imagenet")
    message = str(caught.value)
    assert str(tmp_path / "data" / "tiny_imagenet") in message
    assert "train*.parquet" in message
    assert "pugdft data prepare tiny_imagenet" in message


def test_a_known_name_is_found_in_the_data_folder(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_DATA", str(tmp_path))
    shutil.copytree(image_folder, tmp_path / "cifar10")
    source = open_source("cifar10")
    assert source.name == "cifar10"
    assert prepare(source, 32).sha256 == store_of(image_folder).sha256


def test_the_bundled_images_are_balanced() -> None:
    store = prepare(open_source("bundled"), 224)
    assert store.images("train").shape == (3000, 32, 32, 3)
    assert np.bincount(store.labels("train")).tolist() == [300] * 10
    assert np.bincount(store.labels("test")).tolist() == [200] * 10
    assert store.classes[0] == "airplane"


def test_images_of_unequal_size_are_resized_and_cropped(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "mixed", {"train": 2, "test": 2}, side=20)
    tall = np.zeros((60, 40, 3), np.uint8)
    tall[10:50] = 200  # the centre square of the resized image is all 200 but for ringing at the edge
    Image.fromarray(tall).save(folder / "train" / "ant" / "999.png")
    store = store_of(folder, 32)
    assert store.folder.name.endswith("-32")
    pixels = store.images("train")
    assert pixels.shape == (7, 32, 32, 3)
    assert pixels[2][4:28].min() >= 195
    assert store_of(folder, 48).images("train").shape[1] == 48


def test_splits_of_different_sides_are_resized_to_one(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path / "f", {"train": 2}, side=20)
    write_image_folder(folder, {"test": 2}, side=16)
    store = store_of(folder, 32)
    assert store.folder.name.endswith("-32")
    assert {store.images(split).shape[1:] for split in ("train", "test")} == {(32, 32, 3)}


@pytest.mark.parametrize(
    ("pixels", "mode", "expected"),
    [
        (np.full((4, 4), 70, np.uint8), "L", (70, 70, 70)),
        (np.full((4, 4, 4), 90, np.uint8), "RGBA", (90, 90, 90)),
        (np.full((4, 4), 65535, np.uint16), "I;16", (255, 255, 255)),
        (np.full((4, 4), 25700, np.uint16), "I;16", (100, 100, 100)),
    ],
)
def test_other_colour_modes_become_rgb(pixels: np.ndarray, mode: str, expected: tuple[int, ...]) -> None:
    assert Image.open(io.BytesIO(encoded(pixels))).mode == mode
    decoded = decode(Sample(encoded(pixels), 0, "x"))
    assert decoded.dtype == np.uint8
    assert tuple(decoded[0, 0]) == expected


def test_a_palette_image_becomes_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 3), (10, 200, 30)).quantize(4).save(buffer, "PNG")
    assert tuple(decode(Sample(buffer.getvalue(), 0, "x"))[1, 1]) == (10, 200, 30)


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
        (lambda f: shutil.rmtree(f / "test"), "has no folder test or val"),
        (lambda f: shutil.rmtree(f / "train"), "holds no data set. Expected train"),
        (lambda f: (f / "test" / "dog").mkdir(), "holds no image"),
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
        ("x" * 5000, r'^data.name: no such folder, and unknown data set "x{200}…"\. Known: '),
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
    monkeypatch.setattr("pugdft.data.contents.file_sha256", refuse)
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


def test_two_processes_preparing_at_once_make_one_store(image_folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pugdft.data.sources import open_source; from pugdft.data.store import prepare\n"
        "print(prepare(open_source(sys.argv[1]), 32).sha256)"
    )
    environment = {**os.environ, "PUGDFT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", script, str(image_folder)]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [process.communicate()[0].strip() for process in both]
    assert answers == [store_of(image_folder).sha256] * 2
    assert len([path for path in (tmp_path / "stores").iterdir() if path.is_dir()]) == 1


def test_a_damaged_store_is_made_again_and_changed_pixels_are_found(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    store = store_of(image_folder)
    path = store.folder / "train_images.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert content_sha256(store.folder) != store.sha256
    path.write_bytes(content[:1000])
    assert content_sha256(store_of(image_folder).folder) == store.sha256


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("meta.json", b"[]"),
        ("meta.json", b'{"classes": 3, "sha256": ""}'),
        ("meta.json", b"\xff"),
        ("meta.json", None),
        ("test_labels.npy", None),
        ("train_labels.npy", b""),
        ("test_images.npy", None),
        ("test_images.npy", b""),
    ],
)
def test_a_store_with_any_file_missing_or_damaged_is_made_again(
    file: str, content: bytes | None, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    store = store_of(image_folder)
    if content is None:
        (store.folder / file).unlink()
    else:
        (store.folder / file).write_bytes(content)
    again = store_of(image_folder)
    assert again == store
    assert content_sha256(again.folder) == store.sha256


def test_labels_of_another_number_than_the_images_are_damage(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    store = store_of(image_folder)
    np.save(store.folder / "train_labels.npy", store.labels("train")[1:])
    assert len(store_of(image_folder).labels("train")) == 72


def test_a_store_that_cannot_be_opened_just_now_is_kept(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    store = store_of(image_folder)
    before = store.folder.stat()

    def too_many_files(*_: object) -> np.ndarray:
        raise OSError(errno.EMFILE, "Too many open files", "train_images.npy")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "images", too_many_files)
        with pytest.raises(UserError, match=r"train_images\.npy: Too many open files.*PUGDFT_CACHE"):
            store_of(image_folder)
    assert store_of(image_folder) == store
    assert store.folder.stat().st_ino == before.st_ino


def test_a_damaged_store_that_another_process_replaces_is_not_deleted(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    source = open_source(str(image_folder))
    store = prepare(source, 32)
    replacement = shutil.copytree(store.folder, tmp_path / "replacement")
    (store.folder / "meta.json").write_text("[]")
    waiting = threading.Thread(target=prepare, args=(source, 32))
    with FileLock(store.folder.parent / f"{source.key}.lock"):
        waiting.start()
        time.sleep(0.3)
        assert (store.folder / "meta.json").is_file()  # without the lock nothing is touched
        shutil.rmtree(store.folder)
        inode = replacement.rename(store.folder).stat().st_ino
    waiting.join()
    assert store.folder.stat().st_ino == inode


def test_stores_of_another_version_of_the_decoder_are_not_used(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path))
    old = store_of(image_folder)
    monkeypatch.setattr("pugdft.data.decoding.DECODING_VERSION", 2)
    new = store_of(image_folder)
    assert new.folder != old.folder
    assert new.sha256 == old.sha256


def test_changed_files_are_noticed(image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "f")
    before = store_of(folder)
    (folder / "train" / "ant" / "000.png").write_bytes(encoded(np.zeros((16, 16, 3), np.uint8)))
    assert store_of(folder).sha256 != before.sha256


def test_the_validation_split_is_balanced_seeded_and_disjoint() -> None:
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 7])
    train, validation = validation_split(labels, 0.2, seed=1)
    assert np.bincount(labels[validation]).tolist() == [2, 4, 6, 8, 1]
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert not np.array_equal(validation, validation_split(labels, 0.2, seed=2)[1])
    assert np.array_equal(validation, validation_split(labels, 0.2, seed=1)[1])
    with pytest.raises(ValueError, match="too few"):
        validation_split(np.array([0, 0, 1]), 0.1, 0)


def test_orders_are_permutations_that_differ_by_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_crop_and_flip_equals_the_same_done_one_image_at_a_time() -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    offsets, flips = draw_crops(random, 40, 3, True)
    assert set(np.unique(offsets)) == set(range(7))
    assert 0 < flips.sum() < 40
    result = crop_and_flip(images, torch.from_numpy(offsets), torch.from_numpy(flips), 3)
    for image, (top, left), flip, out in zip(images, offsets, flips, result, strict=True):
        padded = torch.zeros(14, 14, 3, dtype=torch.uint8)
        padded[3:11, 3:11] = image
        crop = padded[top : top + 8, left : left + 8]
        assert torch.equal(out, crop.flip(1) if flip else crop)


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "wanted"), [(32, 224), (64, 48), (32, 32)])
def test_input_is_torchs_antialiased_resize_and_near_pillows(mode: str, stored: int, wanted: int) -> None:
    store = prepare(open_source("bundled"), 224)
    images = torch.from_numpy(np.array(store.images("test")[:8]))
    if stored == 64:
        images = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    result = ToInput(stored, wanted, mode, mean, std, CPU)(images)
    pixels = images.permute(0, 3, 1, 2).float()
    if stored != wanted:
        pixels = functional.interpolate(pixels, (wanted, wanted), mode=mode, antialias=True).clamp(0, 255)
    channel = (1, 3, 1, 1)
    expected = (pixels / 255 - torch.tensor(mean).view(channel)) / torch.tensor(std).view(channel)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    resample = Image.Resampling.BICUBIC if mode == "bicubic" else Image.Resampling.BILINEAR
    for image, row in zip(images.numpy(), result, strict=True):
        pillow = np.asarray(Image.fromarray(image).resize((wanted, wanted), resample), np.float64) / 255
        ours = (row * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)).permute(1, 2, 0)
        assert np.abs(ours.numpy() - pillow).mean() < 1 / 255


def batches(
    share: Share, epoch: int = 0, first_step: int = 0, seed: int = 0, **options: int
) -> list[torch.Tensor]:
    """This share's inputs of each step of an epoch, micro-batches joined."""
    store = prepare(open_source("bundled"), 224)
    labels = store.labels("train")
    images = Images(np.array(store.images("train")[:130]), labels, np.arange(130))
    to_input = ToInput(32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3, CPU)
    training = TrainingBatches(
        images, to_input, CPU, share, batch_size=20, micro_batch_size=options.get("micro", 20),
        augmentation=Augmentation(crop_padding=4, flip=True), seed=seed,
    )  # fmt: skip
    return [torch.cat([x for x, _ in step]) for step in training.epoch(epoch, first_step)]


def test_batches_are_functions_of_seed_epoch_and_step() -> None:
    whole = batches(Share())
    assert len(whole) == 6
    for step, batch in enumerate(batches(Share(), first_step=4), start=4):
        assert torch.equal(batch, whole[step])
    assert not torch.equal(batches(Share(), epoch=1)[0], whole[0])
    assert not torch.equal(batches(Share(), seed=1)[0], whole[0])


def test_processes_share_the_global_batch_and_micro_batches_divide_it() -> None:
    for step, batch in enumerate(batches(Share())):
        parts = [batches(Share(rank, 3))[step] for rank in range(3)]
        assert sorted(len(part) for part in parts) == [6, 7, 7]
        joined = torch.empty_like(batch)
        for rank, part in enumerate(parts):
            joined[rank::3] = part
        assert torch.equal(joined, batch)
    assert all(torch.equal(a, b) for a, b in zip(batches(Share(), micro=7), batches(Share()), strict=True))
