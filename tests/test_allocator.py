"""What a training process does with memory that a step freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pugdft import yaml_text

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_RUN = """
import sys
from pathlib import Path
import torch
from pugdft.finetune import finetune, read_recipe
from pugdft.observer import Observer

class Look(Observer):
    def on_start(self, *facts):
        held = torch.ones(16 << 20)  # 64 MiB
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        print(next(line.split()[1] for line in lines if line.startswith("AnonHugePages")))

finetune(read_recipe(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]), observer=Look())
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not _HUGE.is_file() or "[never]" in _HUGE.read_text(), reason="this system has no huge pages"
)
def test_memory_that_is_given_back_is_asked_for_in_huge_pages(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml_text.dump(small_recipe))
    kibibytes = {}
    for retain in ("true", "false"):
        arguments = [str(path), str(tmp_path / retain), f"train.performance.retain_memory={retain}"]
        command = [sys.executable, "-c", _RUN, *arguments, "train.max_steps=1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        kibibytes[retain] = int(done.stdout.split()[0])
    assert kibibytes["false"] > 32 << 10, "set before the first tensor of the process"
    if "[madvise]" in _HUGE.read_text():
        assert kibibytes["true"] < 16 << 10, "small pages by default: large ones make kept memory larger"
