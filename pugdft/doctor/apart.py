"""Work in a process of its own: a library that crashes or hangs at import must not take the report along."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_MARK = "pugdft-doctor "
# The child finds its modules where this process found them, not in its current folder.
_START = """
import runpy, sys
sys.path[:] = sys.argv.pop(1).split({!r})
runpy.run_module(sys.argv.pop(1), alter_sys=True, run_name="__main__")
"""


@dataclass(frozen=True)
class Facts:
    """What a process said.

    Attributes:
        said: in its order.
        ending: how it ended in words, empty if as it should.
    """

    said: tuple[dict[str, Any], ...]
    ending: str

    def get(self, key: str) -> Any:
        """The last that was said under this key, or None."""
        return next((each[key] for each in reversed(self.said) if key in each), None)


def say(**facts: Any) -> None:
    """In the process apart: tell the one that waits. What was told before a crash has arrived."""
    print(f"\n{_MARK}{json.dumps(facts)}", flush=True)


def run_apart(module: str, arguments: Sequence[str], seconds: float) -> Facts:
    """Run a module's main part and hear what it says; it is ended after so many seconds."""
    path = [os.path.abspath(each) for each in sys.path if each or _has_folder()]
    command = [
        sys.executable,
        "-P",
        "-c",
        _START.format(os.pathsep),
        os.pathsep.join(path),
        module,
        *arguments,
    ]
    folder = None if _has_folder() else os.path.sep  # some libraries do not load from a folder that is gone
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False, cwd=folder
        )
    except subprocess.TimeoutExpired as error:
        return Facts(_facts(error.stdout), f"did not end within {seconds:g} s")
    except OSError as error:
        return Facts((), f"cannot be started: {error.strerror}")
    ending = ""
    if done.returncode < 0:
        ending = f"crashed: {_signal(-done.returncode)}"
    elif done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        ending = f"failed: {lines[-1][:300]}" if lines else f"failed with exit code {done.returncode}"
    return Facts(_facts(done.stdout), ending)


def _has_folder() -> bool:
    """Whether the current folder still exists."""
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _facts(output: bytes | None) -> tuple[dict[str, Any], ...]:
    lines = (output or b"").decode("utf-8", "replace").splitlines()
    return tuple(json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK))


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
