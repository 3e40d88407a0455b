"""The command that starts several processes: when it goes, they go."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import write_image_folder
from small_runs import IMAGES, SGD, tiny_recipe
from standing_still import Command, go_on, is_caught, status_of, until

from pugdft.config import yaml
from pugdft.records import read_record


def workers(command: Command) -> list[psutil.Process]:
    """The processes of the run."""
    return [each for each in command.below() if each.pid != command.process.pid]


def are_gone(processes: list[psutil.Process]) -> bool:
    return all(status_of(each) in ("gone", psutil.STATUS_ZOMBIE) for each in processes)


@pytest.mark.slow
def test_a_killed_launcher_takes_its_processes_with_it_and_the_same_command_goes_on(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    images = write_image_folder(tmp_path / "insects", IMAGES)
    path, folder = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.dump(tiny_recipe(images, {"name": "sam", "base": SGD}, epochs=400)))
    arguments = ("finetune", str(path), "--output", str(folder), "--num-processes", "2")

    killed = start(*arguments, stops=0)
    first = killed.stopped()
    others = [each for each in workers(killed) if each.pid != first.pid]
    assert others
    killed.process.kill()
    go_on(first)
    until(lambda: are_gone([first, *others]))
    record = folder / "record.yaml"  # of one that noticed the other's end before the launcher's
    assert not record.exists() or read_record(record).status == "failed", "they did not train to the end"

    # The processes of this one stand still, so nothing but a second Ctrl-C can end it.
    left = start(*arguments, stops=0, after=0.02)
    first = left.stopped()
    others = workers(left)
    until(lambda: is_caught(left.process.pid, signal.SIGINT))
    left.send(signal.SIGINT)
    time.sleep(1.5)
    assert left.process.poll() is None, "one Ctrl-C lets it wait for the checkpoint"
    begin = time.monotonic()
    left.send(signal.SIGINT)
    assert left.process.wait(60) == 130
    assert time.monotonic() - begin < 20, "torch's launcher alone waits for 30 seconds"
    go_on(first)
    until(lambda: are_gone([first, *others]))
    assert "going on from update" in left.process.communicate()[1], "the same command, at once"


@pytest.mark.slow
def test_a_process_that_falls_silent_is_given_up_after_the_time_limit_and_no_process_or_file_stays(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    """One that stands still keeps its connections open, as behind a link that was cut."""
    images = write_image_folder(tmp_path / "insects", IMAGES)
    path, temporary = tmp_path / "recipe.yaml", tmp_path / "temporary"
    path.write_text(yaml.dump(tiny_recipe(images, {"name": "sam", "base": SGD}, epochs=400)))
    temporary.mkdir()
    env = {"PUGDFT_PROCESS_TIMEOUT": "5", "TMPDIR": str(temporary)}
    options = ("--output", str(tmp_path / "run"), "--num-processes", "2")
    command = start("finetune", str(path), *options, stops=0, env=env)
    silent = command.stopped()
    others = workers(command)
    begin = time.monotonic()
    code, _, said = command.end()
    assert code == 1, said
    assert "another process of this run has ended or cannot be reached" in said
    assert time.monotonic() - begin < 120, "5 seconds, and 30 in which the launcher asks a process to end"
    until(lambda: are_gone([silent, *others]))
    assert not list(temporary.iterdir())
