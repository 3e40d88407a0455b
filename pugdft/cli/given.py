"""What the command line gives, checked by itself."""

from __future__ import annotations

from pathlib import Path

import typer


def given_path(text: str | Path) -> Path:
    """A path from the command line; ``--output ""``, from an unset variable, would mean this folder."""
    if not str(text):
        raise typer.BadParameter("is empty: expected a path")
    return Path(text)
