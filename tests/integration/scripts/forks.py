"""The real command in forked children, which start in a fraction of a second and may be killed at will."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("", "helpers")]

import torch
from small_runs import tiny_recipe

from pugdft.cli import progress
from pugdft.cli.main import main
from pugdft.config import yaml
from pugdft.training import run as finetune
from pugdft.training.checkpoint import load_checkpoint
from pugdft.training.distributed import RankSync, StopSignal

torch.set_num_threads(1)
assert finetune  # imported here once instead of in each child

_WAIT_SECONDS = 300.0  # bounds a hang; no machine that is merely slow comes near

STEP, SIGNALS, HELD, IS_FREE = range(4)
"""Numbers in a page that a command and the one who started it share."""


def read(page: mmap.mmap, place: int) -> int:
    """A number in a shared page."""
    return int(struct.unpack_from("q", page, 8 * place)[0])


def write(page: mmap.mmap, place: int, number: int) -> None:
    """Set a number in a shared page."""
    struct.pack_into("q", page, 8 * place, number)


@dataclass
class Child:
    """A forked command.

    Attributes:
        page: shared with it: it writes there how many updates it has made, how many signals it has met, and
            how often it has come to a place that ``held`` holds it at.
    """

    pid: int
    log: Path
    page: mmap.mmap

    @property
    def step(self) -> int:
        return read(self.page, STEP)

    def wait(self) -> int:
        """The exit code, or minus the signal that it died of."""
        end = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        self.kill()
        raise TimeoutError(f"a command has not ended in {_WAIT_SECONDS:g} s:\n{self.output()}")

    def wait_for(self, place: int, number: int) -> None:
        """Until it has made so many updates, met so many signals, come so often to where it is held."""
        end = time.monotonic() + _WAIT_SECONDS
        while read(self.page, place) < number:
            assert time.monotonic() < end, self.output()
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        """Until it has made so many updates."""
        self.wait_for(STEP, step)

    def let_go(self) -> None:
        """It need not wait any more where it is held."""
        write(self.page, IS_FREE, 1)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text()


def start(folder: Path, recipe: Path, before: Callable[[], Any] = lambda: None, *options: str) -> Child:
    """``pugdft finetune RECIPE --output FOLDER`` in a child that calls ``before`` first."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _child(["pugdft", "finetune", str(recipe), "--output", str(folder), *options], log, page, before)
    return Child(pid, log, page)


def _child(arguments: list[str], log: Path, page: mmap.mmap, before: Callable[[], Any]) -> NoReturn:
    global _page
    code, _page = 70, page
    torch.set_num_threads(1)
    vars(sys.modules["__main__"]).pop(
        "__file__"
    )  # or its helpers would import the script, and all it imports
    try:
        os.setpgrp()
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        on_step = progress.ProgressLog.on_step

        def counted(self: Any, position: Any, *rest: Any) -> None:
            write(page, STEP, position.steps)
            on_step(self, position, *rest)

        met = StopSignal._on_signal

        def noted(self: Any, *arguments: Any) -> None:
            write(page, SIGNALS, read(page, SIGNALS) + 1)
            met(self, *arguments)

        progress.ProgressLog.on_step = counted  # type: ignore[method-assign]
        StopSignal._on_signal = noted  # type: ignore[method-assign]
        sys.argv = arguments
        before()
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


_page: mmap.mmap
"""In a child: what it shares with the one who started it."""


def held() -> None:
    """In a child: come to a place, and wait there until one is let go; signals are met meanwhile."""
    write(_page, HELD, read(_page, HELD) + 1)
    while not read(_page, IS_FREE):
        time.sleep(0.005)


def after_step(step: int, act: Callable[[], Any] = held) -> None:
    """In a child: do something after so many updates; wait there, if nothing else."""
    on_step = progress.ProgressLog.on_step

    def acting(self: Any, position: Any, *rest: Any) -> None:
        on_step(self, position, *rest)
        if position.steps == step:
            act()

    progress.ProgressLog.on_step = acting  # type: ignore[method-assign]


def write_recipe(path: Path, images: Path, optimizer: dict[str, Any], **train: Any) -> Path:
    """A tiny recipe as a file."""
    path.write_text(yaml.dump(tiny_recipe(images, optimizer, **train)))
    return path


def completed(folder: Path, recipe: Path, before: Callable[[], Any] = lambda: None) -> str:
    """Run to the end, which it must reach; returns what was printed."""
    child = start(folder, recipe, before)
    code = child.wait()
    assert code == 0, (code, child.output())
    return child.output()


def save_after_each_step() -> None:
    """As if the interval between two checkpoints were nothing; the recipe stays what it is."""
    RankSync._is_due = lambda self: True  # type: ignore[method-assign]


def whole_checkpoint(folder: Path) -> tuple[int | None, list[str]]:
    """The update of the checkpoint that a run would go on from, and what is said of others."""
    found, faults = load_checkpoint(folder)
    return (None if found is None else int(found.state["position"]["steps"])), faults


def stop_at(step: int, number: int = signal.SIGTERM) -> None:
    """In a child: a signal to itself after an update."""
    after_step(step, lambda: os.kill(os.getpid(), number))
