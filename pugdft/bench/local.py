"""Cells on this machine, one after another, each in a process of its own.

A process a cell costs a few seconds of start-up and buys that a crash, a leak or a setting of one run
cannot touch another.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pugdft import yaml_text
from pugdft.bench.plan import Cell
from pugdft.errors import UserError
from pugdft.record import RECORD_NAME, read_record, write_atomically

USER_MISTAKE = 2
INTERRUPTED = (130, 143)
_RECIPES = "recipes"


def prepare_output(folder: Path) -> None:
    """Make the folder of the cells, before any of them has cost time.

    Raises:
        UserError: it cannot be made, or nothing can be written there.
    """
    try:
        (folder / _RECIPES).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir=folder / _RECIPES):
            pass
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"--output {folder}: cannot be used as the folder of runs: {reason}") from None


def cell_status(cell: Cell) -> str:
    """The status of a cell's record, or ``missing``."""
    try:
        return read_record(cell.folder / RECORD_NAME).status
    except UserError:
        return "missing"


def run_cells(cells: list[Cell], say: Callable[[str], None]) -> int:
    """Run every cell that is not completed.

    A cell that diverges or fails leaves the others their chance. One that ends for a mistake of the user
    does not: the mistake is in what all of them share, and the cell has said what it is.

    Args:
        cells: the plan.
        say: told a line before and after each cell.

    Returns:
        0; or the exit code of the cell after which nothing more was started: 2 for a mistake of the user,
        130 or 143 for an interruption.
    """
    for number, cell in enumerate(cells, start=1):
        label = f"[{number}/{len(cells)}] {cell.optimizer} seed {cell.seed}"
        if cell_status(cell) == "completed":
            say(f"{label}: finished before")
            continue
        say(f"{label}: running")
        code = _run(cell)
        if code == USER_MISTAKE or code in INTERRUPTED:
            return code
        say(f"{label}: {cell_status(cell)}")
    return 0


def _run(cell: Cell) -> int:
    path = cell.folder.parent / _RECIPES / f"{cell.folder.name}.yaml"
    write_atomically(path, yaml_text.dump(cell.recipe.as_dict()).encode())
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", str(cell.folder)]
    # Its result line is not this command's result; its progress goes to our stderr.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the cell as well, which saves a checkpoint and ends
        # A signal that came before the cell listened ends it by that signal: 128 + n, as shells count.
        return code if code >= 0 else 128 - code


def incomplete(cells: list[Cell]) -> list[tuple[Cell, str, Path]]:
    """Cells without a completed record: their status and folder."""
    return [(cell, status, cell.folder) for cell in cells if (status := cell_status(cell)) != "completed"]
