"""Runs whose messages nobody reads any more, or that a full disk does not take."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pugdft.config import yaml
from pugdft.records import read_record

FULL = Path("/dev/full")


@pytest.mark.slow
@pytest.mark.parametrize(("progress", "sink"), [("text", "gone"), ("text", "full"), ("json", "gone")])
def test_a_run_goes_on_when_nobody_listens(
    progress: str, sink: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    if sink == "full" and not FULL.exists():
        pytest.skip("this system has no device that is always full")
    path, output = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.dump(small_recipe))
    if sink == "full":
        stderr = os.open(FULL, os.O_WRONLY)
    else:
        reading, stderr = os.pipe()
        os.close(reading)
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", str(output)]
    done = subprocess.run(
        [*command, "--progress", progress], stdout=subprocess.PIPE, stderr=stderr, text=True
    )
    os.close(stderr)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [str(output / "record.yaml")]
    assert read_record(output / "record.yaml").status == "completed"
