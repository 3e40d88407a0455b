"""Facts about this machine and this copy of pugdft that need nothing but the standard library."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on; a container's share of their time is another matter."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores() -> bool:
    """Let waiting threads sleep if other programs keep the cores busy; tell whether they do.

    To be called before torch is imported, whose threads read the two variables then. Where nothing else runs,
    threads that spin are faster (docs/performance.md has figures).
    """
    # One of several processes would take its like for other programs.
    if os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RANK"}:
        return False
    if min(_others_running() for _ in range(5)) < max(1, usable_cores() / 4):
        return False
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
    return True


def _others_running() -> int:
    """Threads of other programs that run or wait for a core at this moment; 0 where nothing tells."""
    time.sleep(0.005)
    with suppress(OSError, ValueError, IndexError):
        running = Path("/proc/loadavg").read_text().split()[3]  # such as 3/512, with this thread
        return int(running.partition("/")[0]) - 1
    return 0


def git_revision() -> str | None:
    """The commit of the checkout that pugdft runs from, with ``-dirty``; None in an installed copy."""
    top = Path(__file__).parent.parent
    if not (top / ".git").exists():
        return None
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10)
        return answer.strip() or None
    return None
