"""What a training process does with memory that a step freed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pugdft.config import yaml

_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")

_RUN = """
import sys
from pathlib import Path
import torch
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer

class Look(Observer):
    def on_start(self, *facts):
        held = torch.ones(16 << 20)  # 64 MiB
        size = asked_for = 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if line.startswith("Size:"):
                size = int(line.split()[1])
            elif line.startswith("VmFlags:") and "hg" in line.split():
                asked_for += size
        print(asked_for)

finetune(read_recipe(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]), observer=Look())
"""


@pytest.mark.slow
@pytest.mark.skipif(not _HUGE.is_file(), reason="this system has no huge pages")
def test_memory_that_is_given_back_is_asked_for_in_huge_pages(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(small_recipe))
    kibibytes = {}  # that huge pages were asked for; how many there are is the kernel's affair
    for retain in ("true", "false"):
        arguments = [str(path), str(tmp_path / retain), f"train.performance.retain_memory={retain}"]
        command = [sys.executable, "-c", _RUN, *arguments, "train.max_steps=1"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        kibibytes[retain] = int(done.stdout.split()[0])
    assert kibibytes["false"] > 32 << 10, "set before the first tensor of the process"
    assert kibibytes["true"] < 16 << 10, "small pages by default: large ones make kept memory larger"
