"""Cells that are forked from a process that has imported everything."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from standing_still import HANG_SECONDS, until

_WORKER = """
import os, signal, sys
from pathlib import Path
from pugdft.bench import process
from pugdft.bench.queue import Claim, FolderLedger

if __name__ == "__main__":
    arguments = ["finetune", sys.argv[1], "train.epochs=10000", "--output", "run", "--progress", "json"]
    claim, ledger = Claim("token"), FolderLedger(Path())
    ledger.begin("run", claim)
    cell, lines = process.start(arguments, claim, True)
    for line in lines:
        if '"progress"' in line:
            print(cell._process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        print(line, file=sys.stderr)
"""


@pytest.mark.slow
def test_a_killed_worker_whose_output_is_a_file_takes_its_cell_along(
    recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(_WORKER)
    log = tmp_path / "log"
    with log.open("w") as file:
        command = [sys.executable, "worker.py", str(recipe_file)]
        worker = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=file, text=True)
        output, _ = worker.communicate(timeout=HANG_SECONDS)
    killed = time.monotonic()
    assert output, log.read_text()
    cell = int(output)
    until(lambda: not psutil.pid_exists(cell))
    print(f"the cell is gone after {time.monotonic() - killed:.1f} s")
