"""Commands that are killed, told to stop, starved of disk: they end clearly, and go on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import pugdft, write_image_folder
from small_runs import ADAMW, IMAGES, SGD, Messages, Outcome, differences, outcome_of, tiny_recipe, whole_run
from standing_still import Command, go_on, is_caught, is_pending, until

from pugdft.config import yaml
from pugdft.errors import RunFailed, UserError
from pugdft.records import read_record
from pugdft.training.checkpoint import load_checkpoint
from pugdft.training.run import finetune, read_recipe

SCRIPTS = Path(__file__).parent / "scripts"


def script(name: str, *arguments: str) -> Any:
    """What one of the scripts has printed."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_killed_again_and_again_at_any_moment_comes_to_the_same_bits(tmp_path: Path) -> None:
    found = script("kills.py", "random", str(tmp_path))
    assert found["differences"] == []
    assert found["kills"] >= 10
    assert len(set(found["starts"])) >= 3, "they were killed at different moments"
    # A checkpoint was made after each update: what is lost is the one that was under way, or being saved.
    assert found["most_lost"] <= 1


@pytest.mark.slow
def test_at_each_file_operation_of_a_save_one_whole_checkpoint_is_there(tmp_path: Path) -> None:
    found = script("kills.py", "save", str(tmp_path))
    kept, damaged = found["kept"]["resumed"], found["damaged"]["resumed"]
    assert len(kept) >= 20, "operations of a save"
    assert set(kept) == {2, 3}
    assert kept == sorted(kept), "first the one before, from some operation on the new one"
    assert found["differences"] == []
    # The newest is damaged: until another is whole, the one before stays.
    assert set(damaged) == {1, 2}
    # And the same sweep notices a save without a new folder, and one that trusts the damaged checkpoint.
    assert None in found["in_place"]["resumed"]
    assert None in found["damage_kept"]["resumed"]


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_a_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    results = script("signals.py", "twice", str(tmp_path))["results"]
    assert [each["code"] for each in results] == [130, 130, 130, 143]
    for each in results:
        assert not each["traceback"]
        assert each["faults"] == []
        assert each["differences"] == []
    # The save that SIGTERM came to was made, and another one after the next update.
    assert [each["step"] for each in results] == [None, None, None, 2]


@pytest.mark.slow
def test_one_folder_is_one_run_s_and_a_lock_left_behind_locks_nothing(tmp_path: Path) -> None:
    found = script("signals.py", "two", str(tmp_path))
    assert (found["refused"], found["other"]) == (5, 2)
    assert "run: another process is running here; wait for it, or choose another --output" in found["said"]
    assert found["lock_file"]
    assert "train.epochs: 2 there, 3 here" in found["difference"]


@pytest.mark.slow
def test_processes_that_augment_live_as_long_as_the_run(tmp_path: Path) -> None:
    found = script("signals.py", "workers", str(tmp_path))
    code, said = found["killed"]
    assert code == 1
    assert "a process that reads images was killed" in said
    assert "the same command goes on from update" in said, said
    assert "Traceback" not in said
    assert found["told"][0] == 143, found["told"]
    assert found["step"] == 30
    assert found["survivors"] == 0
    assert found["differences"] == ["record id", "record recipe"], "without such processes, the same"
    assert found["told_unprotected"][0] == 1, "a fork server that the signal ends is noticed"
    assert found["survivors_unwatched"] > 0, "processes that outlive their run are noticed"


# Imported by Python itself: Ctrl-C as the command is about to import something.
CTRL_C_AT_IMPORT = """
import os, signal, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["CTRL_C_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["torch.nn", "timm"])
def test_ctrl_c_while_libraries_are_imported_is_no_traceback(module: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(tiny_recipe(tmp_path, SGD)))
    (tmp_path / "sitecustomize.py").write_text(CTRL_C_AT_IMPORT)
    options = ("--output", str(tmp_path / "run"))
    done = pugdft("finetune", str(path), *options, PYTHONPATH=str(tmp_path), CTRL_C_AT=module)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr


def rank_of(process: psutil.Process) -> str | None:
    """Of one of several processes of a run; None of any other process, and of one that is gone."""
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


@pytest.mark.slow
def test_two_processes_end_together_and_go_on_to_the_same_bits(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    """Told to stop; the second one killed; the first one killed; then left alone."""
    images = write_image_folder(tmp_path / "insects", IMAGES)
    path, folder = tmp_path / "recipe.yaml", tmp_path / "cut"
    path.write_text(yaml.dump(tiny_recipe(images, {"name": "vasso", "base": SGD}, epochs=24)))

    def launched(output: Path, **options: Any) -> Command:
        return start("finetune", str(path), "--output", str(output), "--num-processes", "2", **options)

    told = launched(folder, stops=0)
    first = told.stopped()
    assert rank_of(first) == "0"
    until(lambda: is_caught(told.process.pid, signal.SIGTERM))
    told.send(signal.SIGTERM)
    until(lambda: is_pending(first.pid, signal.SIGTERM))
    go_on(first)
    code, _, output = told.end()
    assert code == 143, output
    assert read_record(folder / "record.yaml").status == "interrupted"
    for number in ("1", "0"):
        broken = launched(folder, stops=0, after=0.02)
        pid = broken.stopped().pid
        next(each for each in broken.below() if rank_of(each) == number).kill()
        if number == "1":
            until(partial(is_pending, pid, signal.SIGTERM))  # from the launcher, which has seen it
            os.kill(pid, signal.SIGCONT)
        code, _, output = broken.end()
        assert code == 1, output
        assert "Traceback" not in output
        if number == "1":  # the first process has seen it, and says it
            assert "another process of this run has ended or cannot be reached" in output
            assert "the same command goes on from update" in output
    found, faults = load_checkpoint(folder)
    assert found is not None
    assert faults == []
    code, _, output = launched(folder).end()
    assert code == 0, output
    assert "going on from update" in output
    code, _, output = launched(tmp_path / "whole").end()
    assert code == 0, output
    assert differences(outcome_of(tmp_path / "whole"), outcome_of(folder)) == []
    assert len(read_record(folder / "record.yaml").restarts) == 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Outcome]:
    """A recipe that saves after each update, and what its unbroken run leaves."""
    place = tmp_path_factory.mktemp("whole")
    images = write_image_folder(place / "insects", IMAGES)
    recipe = tiny_recipe(images, ADAMW, checkpoint_minutes=1e-6)
    return recipe, whole_run(recipe, place / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """Makes a file system of so many MiB, or changes its size."""
    place = tmp_path / "disk"
    mounted = False

    def sized(mebibytes: float, *options: str) -> Path:
        nonlocal mounted
        place.mkdir(exist_ok=True)
        words = ",".join([*(["remount"] if mounted else []), f"size={int(mebibytes * 1024)}k", *options])
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", words, "none", str(place)], capture_output=True)
        if done.returncode:
            pytest.skip("no file system can be mounted here")
        mounted = True
        return place

    yield sized
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


# Of this run, the weights take 1.43 MiB, a checkpoint three times that: AdamW's two moments are in it.
@pytest.mark.parametrize(("mebibytes", "comes_to"), [
    (1.8, "completion"), (4.5, "failure"), (5.6, "failure"), (6.4, "completion"), (9.5, "failure"),
    (20, "all checkpoints"),
])  # fmt: skip
def test_a_disk_that_fills_up_stops_no_training_and_spoils_nothing(
    mebibytes: float,
    comes_to: str,
    small_disk: Callable[[float], Path],
    whole: tuple[dict[str, Any], Outcome],
) -> None:
    (recipe, expected), messages = whole, Messages()
    folder = small_disk(mebibytes) / "run"
    if comes_to == "failure":
        with pytest.raises(RunFailed, match=r"^\S+: No space left on device") as failure:
            finetune(read_recipe(recipe), folder, observer=messages)
        assert "\n" not in str(failure.value)
        assert not list(folder.glob(".*.new")), "what could not be written whole takes no room"
        del failure
        small_disk(20)
    else:
        finetune(read_recipe(recipe), folder, observer=messages)
    assert messages.among("no checkpoint could be made: ") == (comes_to != "all checkpoints")
    found, faults = load_checkpoint(folder)
    assert faults == []
    assert (found is None) == (comes_to != "failure" or mebibytes < 4)
    record, _ = finetune(read_recipe(recipe), folder)
    assert record.status == "completed"
    assert differences(expected, outcome_of(folder)) == []


def test_an_output_folder_that_cannot_be_written_is_said_before_training(
    small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "insects", IMAGES)
    folder = small_disk(1.2) / "run"
    with pytest.raises(UserError, match=r"run: the weights take 1\.4 MiB, 1\.2 MiB are free; choose another"):
        finetune(read_recipe(tiny_recipe(images, SGD)), folder)
    assert not folder.exists()
    small_disk(5)
    folder = small_disk(5, "ro") / "run"
    with pytest.raises(UserError, match="cannot be used as the output folder: Read-only file system"):
        finetune(read_recipe(tiny_recipe(images, SGD)), folder)


@pytest.mark.slow
def test_a_long_run_holds_no_more_than_a_short_one(tmp_path: Path) -> None:
    found = script("long_run.py", str(tmp_path))
    enough = 4 << 20
    assert found["run"]["bytes"] < enough
    assert found["run"]["files"] <= 0
    assert found["run"]["threads"] <= 0
    assert found["memory"]["bytes"] > enough, "10 kB an update are noticed"
    assert found["files"]["files"] >= 30, "a file every 50 updates is noticed"
