"""The store of decoded images: one whatever is done to it at once, made again where it is damaged."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image_folder
from filelock import FileLock
from image_layouts import encoded, store_of
from PIL import Image

from pugdft.data.cache import Store, content_sha256, prepare
from pugdft.data.datasets import open_source
from pugdft.errors import UserError


def test_two_processes_preparing_at_once_make_one_store(image_folder: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pugdft.data.datasets import open_source; from pugdft.data.cache import prepare\n"
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
    monkeypatch.setattr("pugdft.data.decode.DECODING_VERSION", 99)
    new = store_of(image_folder)
    assert new.folder != old.folder
    assert new.sha256 == old.sha256


@pytest.mark.parametrize("storage", ["decoded", "files"])
def test_what_an_older_version_made_of_floating_point_images_is_made_again(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 clipped floating-point grey values to 0..255: almost black images."""
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "cache"))
    folder = write_image_folder(tmp_path / "insects", {"train": 3, "test": 2})
    for path in folder.rglob("*.png"):
        Image.fromarray(np.full((16, 16), 0.5, np.float32)).save(path.with_suffix(".tif"))
        path.unlink()
    source = open_source(str(folder))
    with monkeypatch.context() as old:
        old.setattr("pugdft.data.decode.DECODING_VERSION", 1)
        old.setattr("pugdft.data.decode._grey_of_8_bits", lambda image, *others: image.convert("L"))
        assert prepare(source, 32, storage).sha256  # type: ignore[arg-type]
    with pytest.raises(UserError, match="are floating-point numbers"):
        prepare(source, 32, storage)  # type: ignore[arg-type]


def test_changed_files_are_noticed(image_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "f")
    before = store_of(folder)
    (folder / "train" / "ant" / "000.png").write_bytes(encoded(np.zeros((16, 16, 3), np.uint8)))
    assert store_of(folder).sha256 != before.sha256
