"""Workers as tasks of Ray: options, clusters that are not there, and a worker that is killed."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from standing_still import HANG_SECONDS, Command, until

from pugdft.bench.executors import make_executor, parse_executor
from pugdft.bench.executors.ray import run_worker
from pugdft.errors import RunFailed, UserError
from pugdft.records import read_record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("workers=2,adress=auto", 'Did you mean "address"?'),
        ("workers=2,address=head", "address: must be HOST:PORT, ray://HOST:PORT or auto, not 'head'"),
        ("workers=2,gpus=-1", "gpus: must be a number from 0 to 64, not -1"),
        ("workers=2,cpus=0", "cpus: must be"),
        ("workers=2,retries=0.5", "retries: must be"),
        ("cpus=1", "workers: is required"),
    ],
)
def test_wrong_options_are_told_with_what_is_allowed(options: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_executor(f"ray[{options}]")
    assert message in str(error.value)


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """In place of Ray: what it was started with."""
    given: dict[str, Any] = {}
    fake = ModuleType("ray")
    fake.init = lambda address, **options: given.update(options, address=address)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("pugdft.bench.executors.ray.usable_cores", lambda: 3)
    monkeypatch.setattr("pugdft.bench.executors.local.visible_gpus", lambda: ["0"])
    return given


def check(text: str, runs: Path, detach: bool = False) -> None:
    make_executor(parse_executor(text, detach), runs).check()


def test_a_missing_extra_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'pip install "pugdft\[ray\]"$'):
        check("ray[workers=1]", tmp_path)


def test_ray_takes_the_cores_of_this_process_and_no_cluster_that_happens_to_be_here(
    ray: dict[str, Any], tmp_path: Path
) -> None:
    check("ray[workers=4,cpus=0.75,gpus=0.25]", tmp_path)
    assert (ray["address"], ray["num_cpus"]) == ("local", 3)


@pytest.mark.parametrize("options", ["workers=4", "workers=2,gpus=1"])
def test_more_workers_than_the_machine_has_room_for_are_refused(
    ray: dict[str, Any], tmp_path: Path, options: str
) -> None:
    with pytest.raises(UserError, match="take fewer workers"):
        check(f"ray[{options}]", tmp_path)
    assert not ray


def test_a_cluster_that_does_not_answer_is_one_line(ray: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"^ray: no cluster at 127.0.0.1:1: .*refused"):
        check("ray[workers=1,address=127.0.0.1:1]", tmp_path)
    assert not ray, "Ray itself would try for a minute"


def test_workers_of_ray_cannot_go_on_without_the_command(ray: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--detach: "):
        check("ray[workers=1]", tmp_path, detach=True)


def test_a_cancelled_task_lets_its_worker_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(seconds: float) -> None:
        while not (tmp_path / "begun").exists():
            pass
        raise KeyboardInterrupt

    script = "trap 'touch saved; exit 143' TERM; touch begun; while :; do sleep 0.05; done"
    monkeypatch.setattr("pugdft.bench.executors.ray.time.sleep", interrupt)
    command = ["sh", "-c", f"cd {tmp_path}; {script}"]
    assert run_worker(command, {}, tmp_path / "log") == 143
    assert (tmp_path / "saved").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_a_killed_worker_takes_its_cell_along_and_is_started_anew(
    recipe_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    runs = tmp_path / "runs"
    command = start(
        *("bench", str(recipe_file), "train.epochs=20", "--optimizers", "sgd", "--seeds", "0-7"),
        *("--executor", "ray[workers=2,cpus=0.5,lease=6]", "--output", str(runs)),
        env={"RAY_TMPDIR": "/tmp"},  # a socket's path must be short
    )

    def halfway() -> tuple[str, int] | None:
        """A run that has a checkpoint and is not finished, and its worker's process."""
        for path in (runs / ".claims").glob("*.attempts"):
            run = runs / path.stem
            if (run / "checkpoint" / "state.json").exists() and not (run / "record.yaml").exists():
                return path.stem, json.loads(path.read_text())[-1]["pid"]
        return None

    found = until(halfway, command.process)
    assert found is not None
    name, pid = found
    worker = psutil.Process(pid)
    task = worker.parent()
    assert task is not None
    theirs = task.children(recursive=True)
    assert {"--join", "finetune"} & {word for each in theirs for word in each.cmdline()}
    task.kill()
    begin = time.monotonic()
    until(lambda: not any(each.is_running() for each in theirs), command.process)
    gone_after = time.monotonic() - begin
    _, errors = command.process.communicate(timeout=5 * HANG_SECONDS)
    assert command.process.returncode == 0, errors
    records = {path.parent.name: read_record(path) for path in runs.glob("*/record.yaml")}
    assert [record.status for record in records.values()] == ["completed"] * 8
    steps = [each["step"] for each in records[name].restarts]
    assert steps, "the killed worker's cell did not end with it"
    assert min(steps) > 0
    print(f"gone after {gone_after:.1f} s; went on from update {steps}")
