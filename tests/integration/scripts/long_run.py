"""Run as ``long_run.py FOLDER``: what a process holds after 300 updates and after 2,000; prints it as JSON.

The same measuring is then done of two leaks, without a run.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("", "helpers")]

import torch
from conftest import write_image_folder
from small_runs import tiny_recipe

from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer, Position, Totals

FIRST, LAST, EVERY = 300, 2000, 10


class Held:
    """Samples of this process's resident bytes, open files and threads."""

    def __init__(self) -> None:
        self.samples: list[tuple[int, int, int, int]] = []

    def look(self, step: int) -> None:
        if step % EVERY == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            files = len(os.listdir("/proc/self/fd"))
            self.samples.append((step, pages * os.sysconf("SC_PAGE_SIZE"), files, threading.active_count()))

    def growth(self) -> dict[str, int]:
        """From around update 300 to the end: the least of each window, which no passing peak is."""
        early = [each for each in self.samples if FIRST - 100 <= each[0] <= FIRST + 100]
        late = [each for each in self.samples if each[0] > LAST - 200]
        names = ("step", "bytes", "files", "threads")
        return {names[n]: min(each[n] for each in late) - min(each[n] for each in early) for n in (1, 2, 3)}


class Watcher(Observer):
    def __init__(self) -> None:
        self.held = Held()

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        self.held.look(position.steps)


def main(root: Path) -> None:
    torch.set_num_threads(1)
    images = write_image_folder(root / "insects", {"train": 80, "test": 3}, side=8)
    recipe = tiny_recipe(images, {"name": "looksam", "base": {"name": "adamw", "lr": 1e-4}})
    recipe["data"] |= {"image_size": 8, "crop_padding": 1}
    recipe["train"] |= {"batch_size": 4, "epochs": 100, "max_steps": LAST, "checkpoint_minutes": 0.01}
    watcher = Watcher()
    record, _ = finetune(read_recipe(recipe), root / "run", observer=watcher)
    assert record.status == "completed", record

    memory, files = Held(), Held()
    kept: list[Any] = []
    for step in range(1, LAST + 1):
        kept.append(bytearray(b"\1" * 10_000))
        memory.look(step)
    for step in range(1, LAST + 1):
        if step % 50 == 0:
            kept.append(open(os.devnull))  # noqa: SIM115
        files.look(step)
    print(json.dumps({"run": watcher.held.growth(), "memory": memory.growth(), "files": files.growth()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
