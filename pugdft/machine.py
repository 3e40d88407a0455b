"""Facts about this machine and this copy of pugdft that need nothing but the standard library."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may run on; a container's share of their time is another matter."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
