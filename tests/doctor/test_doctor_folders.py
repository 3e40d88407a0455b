"""What doctor says of variables, folders and the cache."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import write_image_folder
from doctor_lines import named

from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.doctor import folders
from pugdft.doctor.caches import cache_lines, examine, leftovers, remove
from pugdft.doctor.report import Section, as_text
from pugdft.doctor.variables import variable_lines


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("OMP_NUM_THREADS", "many", "problem"),
        ("OMP_NUM_THREADS", "100000", "note"),
        ("CUDA_VISIBLE_DEVICES", "", "note"),
        ("WORLD_SIZE", "4", "problem"),
        ("HF_HUB_OFFLINE", "1", "note"),
    ],
)
def test_a_variable_with_a_catch_has_a_line(
    name: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    line = named(variable_lines(), name)
    assert (line.state, bool(line.remedy)) == (state, True)


def test_a_launcher_s_variables_are_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert "WORLD_SIZE=2" in named(variable_lines(), "others set").text


@pytest.mark.parametrize("name", ["HF_TOKEN", "PUGDFT_API_KEY", "HTTP_PROXY", "https_proxy", "NCCL_SECRET_X"])
def test_a_secret_is_only_said_to_be_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")
    text = as_text([Section("v", tuple(variable_lines()))])
    assert (f"{name}=set" in text, "hunter2" in text) == (True, False)


def test_a_folder_that_is_none_or_has_no_locks_is_a_problem(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir()
    assert named(folders.folder_lines(), "cache").text.endswith("locks work")
    assert list(own_cache.iterdir()) == []

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        line = named(folders.folder_lines(), "cache")
        assert (line.state, "no locks (Function not implemented)" in line.text) == ("problem", True)
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        assert "keep nobody out" in named(folders.folder_lines(), "cache").text
    assert list(own_cache.iterdir()) == []
    own_cache.rmdir()
    own_cache.write_text("a file")
    line = named(folders.folder_lines(), "cache")
    assert (line.state, "is not a folder" in line.text) == ("problem", True)


def test_the_nearest_mount_decides_the_file_system() -> None:
    assert folders.file_system(Path("/proc/self/fd")) == "proc"


@pytest.fixture
def store(own_cache: Path, tmp_path: Path) -> Path:
    """A store of 15 images of 16 pixels, in a cache of its own."""
    data = write_image_folder(tmp_path / "pictures", {"train": 3, "test": 2})
    return prepare(open_source(str(data)), 32).folder


def test_a_whole_store_is_whole(store: Path) -> None:
    state = examine(store, deep=True)
    assert (state.fault, state.name, state.num_images, state.side) == ("", "pictures", 15, 16)
    lines = list(cache_lines(deep=False, clean=False))
    assert "1 whole" in lines[0].text
    assert {line.state for line in lines} == {"ok"}


def shorten(folder: Path) -> None:
    os.truncate(folder / "test_images.npy", 500)


def lengthen(folder: Path) -> None:
    with (folder / "train_images.npy").open("ab") as file:
        file.write(b"x")


def garble(folder: Path) -> None:
    (folder / "train_labels.npy").write_bytes(b"PK\3\4 no array")


def relabel(folder: Path) -> None:
    labels = np.load(folder / "test_labels.npy")
    np.save(folder / "test_labels.npy", labels + 1)


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        lengthen,
        garble,
        relabel,
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "test_images.npy").unlink(),
    ],
)
def test_damage_that_shape_and_size_show_needs_no_deep_look(damage: Any, store: Path) -> None:
    damage(store)
    lines = list(cache_lines(deep=False, clean=False))
    assert "none" in lines[0].text
    line = named(lines, "damaged")
    assert (line.state, bool(line.remedy), str(store) in line.text) == ("problem", True, True)


def test_a_changed_pixel_takes_a_deep_look(store: Path) -> None:
    content = bytearray((store / "train_images.npy").read_bytes())
    content[-1] ^= 1
    (store / "train_images.npy").write_bytes(content)
    assert not examine(store).fault
    assert "not those that were decoded" in examine(store, deep=True).fault


def test_a_store_of_another_version_is_noted(store: Path) -> None:
    other = store.with_name(store.name.replace("-v", "-v9"))
    store.rename(other)
    assert named(cache_lines(deep=False, clean=False), "outdated").state == "note"


def make_old(path: Path, hours: float = 2) -> None:
    moment = time.time() - hours * 3600
    for each in [*path.rglob("*"), path]:
        os.utime(each, (moment, moment), follow_symlinks=False)


def make_folder(root: Path, name: str, hours: float) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "train_images.npy").write_bytes(bytes(100_000))
    make_old(folder, hours)
    return folder


def test_cleaning_removes_what_killed_preparations_left_and_nothing_else(store: Path, tmp_path: Path) -> None:
    root = store.parent
    gone = make_folder(root, ".making-old", 2)
    stale = root / f"{'a' * 64}.lock"
    stale.touch()
    make_old(stale)
    elsewhere = make_folder(tmp_path, "precious", 5)
    (root / ".making-link").symlink_to(elsewhere)
    make_folder(root, ".making-young", 0.5)
    make_folder(root, "something", 5)
    fresh_lock = root / f"{'b' * 64}.lock"
    fresh_lock.touch()
    own_lock = next(root.glob(f"{store.name[:64]}.lock"))
    make_old(own_lock)
    before = {*root.rglob("*"), *elsewhere.rglob("*")}

    (note,) = (line for line in cache_lines(deep=False, clean=False) if line.name == "leftovers")
    assert (note.state, "--clean" in note.remedy) == ("note", True)
    assert {*root.rglob("*"), *elsewhere.rglob("*")} == before
    (line,) = (line for line in cache_lines(deep=False, clean=True) if line.name == "cleaned")
    freed = int(line.text.split()[0])
    assert 97 <= freed <= 120, line.text
    assert "KiB freed: 2 folders or locks" in line.text
    after = {*root.rglob("*"), *elsewhere.rglob("*")}
    assert before - after == {gone, gone / "train_images.npy", stale}
    assert not examine(store, deep=True).fault


def test_nothing_is_a_leftover_while_somebody_prepares_data(store: Path) -> None:
    root = store.parent
    make_folder(root, ".making-theirs", 3)
    lock = root / f"{'c' * 64}.lock"
    lock.touch()
    make_old(lock)
    assert {each.path.name for each in leftovers(root)} == {".making-theirs", lock.name}
    found = leftovers(root)
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leftovers(root) == []
        # Taken between looking and removing: it stays.
        remove([each for each in found if each.path == lock])
        assert lock.exists()
    assert len(leftovers(root)) == 2
