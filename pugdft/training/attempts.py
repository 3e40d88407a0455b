"""Who began a run that a worker of a comparison has started: only the last one may write its folder."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pugdft.errors import FolderBusy

ATTEMPT = "PUGDFT_ATTEMPT"  # tells a run its worker's token
CLAIMS = ".claims"


def attempts_file(runs: Path, name: str) -> Path:
    """The file of the attempts at a run, beside the folders of all runs."""
    return runs / CLAIMS / f"{name}.attempts"


def read_attempts(runs: Path, name: str) -> list[dict[str, Any]]:
    """Who began a cell since it last ended in an orderly way, the last one at the end."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(attempts_file(runs, name).read_text(encoding="utf-8"))
        return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
    return []


def check_mine(folder: Path) -> None:
    """Refuse to write a run's folder if another worker has begun or ended the run meanwhile."""
    token = os.environ.get(ATTEMPT)
    if not token:
        return
    if not attempts_file(folder.parent, folder.name).exists():  # whoever ends a run removes it
        raise FolderBusy(f"{folder}: another worker has ended this run; nothing more is written here")
    last = (read_attempts(folder.parent, folder.name) or [{}])[-1]
    if last.get("token") != token:
        who = f"a worker on {last['host']}" if "host" in last else "another worker"
        raise FolderBusy(f"{folder}: {who} has taken this run over; nothing more is written here")
