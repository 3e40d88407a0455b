"""Commands that are killed, told to stop, starved of disk: they end clearly, and go on to the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import write_image_folder
from small_runs import ADAMW, IMAGES, SGD, Messages, differences, outcome_of, tiny_recipe, whole_run

from pugdft import yaml_text
from pugdft.checkpoint import load_checkpoint
from pugdft.errors import RunFailed, UserError
from pugdft.finetune import finetune, read_recipe
from pugdft.record import read_record

pytestmark = pytest.mark.usefixtures("one_thread")

SCRIPTS = Path(__file__).parent / "fault_scripts"


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
    assert [each["code"] for each in results] == [130, 130, 130, 130, 143]
    for each in results:
        assert not each["traceback"]
        assert each["faults"] == []
        assert each["differences"] == []
    assert all(each["seconds"] < 3 for each in results[:4]), "a save takes more, and so does an update"
    assert results[4]["seconds"] > 3, "the checkpoint was still made"


@pytest.mark.slow
def test_one_folder_is_one_run_s_and_a_lock_left_behind_locks_nothing(tmp_path: Path) -> None:
    found = script("signals.py", "two", str(tmp_path))
    assert found["refused"] == found["other"] == 2
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
    assert found["differences"] == []
    assert found["told_unprotected"][0] == 1, "a fork server that the signal ends is noticed"
    assert found["survivors_unwatched"] > 0, "processes that outlive their run are noticed"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.4, 1.2])
def test_ctrl_c_while_libraries_are_imported_is_no_traceback(seconds: float, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_text.dump(tiny_recipe(tmp_path, SGD)))
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    if process.returncode == 2:
        pytest.skip("this machine is so fast that it had found the missing images")
    assert process.returncode == 130, err
    assert "Traceback" not in err


class Launched:
    """``pugdft finetune --num-processes 2``."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.folder = folder
        options = ["--output", str(folder), "--num-processes", "2"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pugdft", "finetune", str(recipe), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_training(self) -> None:
        """Until it has made a checkpoint of its own."""
        begin, state = time.time(), self.folder / "checkpoint" / "state.json"
        while not (state.is_file() and state.stat().st_mtime > begin):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.time() - begin < 120
            time.sleep(0.02)

    def rank(self, number: int) -> psutil.Process:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return next(each for each in children if each.environ().get("RANK") == str(number))

    def end(self) -> tuple[int, str]:
        """The exit code and what was printed; all processes are gone."""
        begin, output = time.monotonic(), self.process.communicate(timeout=90)[0]
        assert time.monotonic() - begin < 60, "it hung"
        return self.process.returncode, output


@pytest.mark.slow
def test_two_processes_end_together_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Told to stop; the second one killed; the first one killed; then left alone."""
    images = write_image_folder(tmp_path / "insects", IMAGES)
    recipe = tiny_recipe(images, {"name": "vasso", "base": SGD}, epochs=70, checkpoint_minutes=0.002)
    path, folder = tmp_path / "recipe.yaml", tmp_path / "cut"
    path.write_text(yaml_text.dump(recipe))
    told = Launched(path, folder)
    told.wait_for_training()
    told.process.send_signal(signal.SIGTERM)
    code, output = told.end()
    assert code == 143, output
    assert read_record(folder / "record.yaml").status == "interrupted"
    for number in (1, 0):
        broken = Launched(path, folder)
        broken.wait_for_training()
        broken.rank(number).kill()
        code, output = broken.end()
        assert code == 1, output
        assert "Traceback" not in output
        if number == 1:  # the first process has seen it, and says it
            assert "another process of this run has ended or cannot be reached" in output
            assert "the same command goes on from update" in output
    found, faults = load_checkpoint(folder)
    assert found is not None
    assert faults == []
    code, output = Launched(path, folder).end()
    assert code == 0, output
    assert "going on from update" in output
    whole = Launched(path, tmp_path / "whole")
    assert whole.end()[0] == 0
    assert differences(outcome_of(tmp_path / "whole"), outcome_of(folder)) == []
    assert len(read_record(folder / "record.yaml").restarts) == 3


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
    (1.2, "failure"), (1.8, "completion"), (4.5, "failure"), (5.6, "failure"), (6.4, "completion"),
    (9.5, "failure"), (20, "all checkpoints"),
])  # fmt: skip
def test_a_disk_that_fills_up_stops_no_training_and_spoils_nothing(
    mebibytes: float, comes_to: str, small_disk: Callable[[float], Path], tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "insects", IMAGES)
    recipe = tiny_recipe(images, ADAMW, checkpoint_minutes=1e-6)
    whole, messages = whole_run(recipe, tmp_path / "whole"), Messages()
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
    assert differences(whole, outcome_of(folder)) == []


def test_an_output_folder_that_cannot_be_written_is_said_before_training(
    small_disk: Callable[..., Path], tmp_path: Path
) -> None:
    images = write_image_folder(tmp_path / "insects", IMAGES)
    small_disk(5)
    folder = small_disk(5, "ro") / "run"
    with pytest.raises(UserError, match="cannot be used as the output folder: Read-only file system"):
        finetune(read_recipe(tiny_recipe(images, SGD)), folder)


@pytest.mark.slow
def test_a_long_run_holds_no_more_than_a_short_one(tmp_path: Path) -> None:
    found = script("long_run.py", str(tmp_path))
    assert found["run"]["bytes"] < 4 << 20
    assert found["run"]["files"] <= 0
    assert found["run"]["threads"] <= 0
    assert found["memory"]["bytes"] > 12 << 20, "10 kB an update are noticed"
    assert found["files"]["files"] >= 30, "a file every 50 updates is noticed"
