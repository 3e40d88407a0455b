"""Cells on this machine, one after another, each in a process of its own.

A process a cell costs a few seconds of start-up and buys that a crash, a leak or a setting of one run
cannot touch another.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from pugdft import yaml_text
from pugdft.bench.plan import Cell
from pugdft.errors import UserError
from pugdft.record import RECORD_NAME, read_record, write_atomically

INTERRUPTED = (130, 143)


def cell_status(cell: Cell) -> str:
    """The status of a cell's record, or ``missing``."""
    try:
        return read_record(cell.folder / RECORD_NAME).status
    except UserError:
        return "missing"


def run_cells(cells: list[Cell], say: Callable[[str], None]) -> int:
    """Run every cell that is not completed.

    Args:
        cells: the plan.
        say: told a line before and after each cell.

    Returns:
        0, or 130 or 143 if a cell was interrupted, after which nothing more is started.
    """
    for number, cell in enumerate(cells, start=1):
        label = f"[{number}/{len(cells)}] {cell.optimizer} seed {cell.seed}"
        if cell_status(cell) == "completed":
            say(f"{label}: finished before")
            continue
        say(f"{label}: running")
        code = _run(cell)
        if code in INTERRUPTED:
            return code
        say(f"{label}: {cell_status(cell)}")
    return 0


def _run(cell: Cell) -> int:
    path = cell.folder.parent / "recipes" / f"{cell.folder.name}.yaml"
    write_atomically(path, yaml_text.dump(cell.recipe.as_dict()).encode())
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", str(cell.folder)]
    # Its result line is not this command's result; its progress goes to our stderr.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue  # the terminal sent it to the cell as well, which saves a checkpoint and ends


def incomplete(cells: list[Cell]) -> list[tuple[Cell, str, Path]]:
    """Cells without a completed record: their status and folder."""
    return [(cell, status, cell.folder) for cell in cells if (status := cell_status(cell)) != "completed"]
