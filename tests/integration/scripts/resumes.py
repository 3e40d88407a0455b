"""Run by torchrun in two or more processes: runs cut in mid-epoch against unbroken ones.

One process alone is told to stop. Prints a line for each comparison.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parents[2] / name) for name in ("", "helpers")]

from conftest import write_image_folder
from filelock import FileLock
from small_runs import ADAMW, IMAGES, SGD, StopAt, cut_run, differences, outcome_of, tiny_recipe, whole_run

from pugdft.errors import UserError
from pugdft.training import checkpoint as checkpoint_module
from pugdft.training import distributed
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import make_accelerator

distributed._SECONDS = 0.0  # poll after each update: these runs are over in less than two seconds

CASES: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("sgd", SGD, ()),
    ("pugd", {"name": "pugd", "base": ADAMW}, ("train.micro_batch_size=2",)),
    ("vasso", {"name": "vasso", "base": SGD}, ()),
    ("looksam", {"name": "looksam", "k": 3, "base": SGD}, ("train.precision=bf16", "data.image_size=32")),
    ("fsam", {"name": "fsam", "base": SGD}, ("data.mixup=0.4", "data.cutmix=1.0")),
    ("local pugd", {"name": "pugd", "perturb": "local", "base": SGD}, ("train.micro_batch_size=2",)),
    ("looksam on adamw", {"name": "looksam", "k": 4, "base": ADAMW}, ("model.name=test_vit",)),
    ("gsam, odd batch", {"name": "gsam", "base": SGD}, ("train.batch_size=7",)),
    ("head first", {"name": "sam", "base": SGD}, ("train.head_epochs=1", "data.random_erasing.mode=pixel",
                                                  "data.color_jitter.hue=0.2", "model.drop_rate=0.3")),
]  # fmt: skip


def main() -> None:
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    # Both processes need the same folder: the first one makes it.
    make_accelerator(read_recipe(tiny_recipe(Path("bundled"), SGD)))
    place = [tempfile.mkdtemp() if rank == 0 else ""]
    torch.distributed.broadcast_object_list(place)
    root = Path(place[0])
    os.environ["PUGDFT_CACHE"] = str(root / "cache")
    if rank == 0:
        write_image_folder(root / "insects", IMAGES)
    torch.distributed.barrier()

    def compare(name: str, optimizer: dict[str, Any], overrides: tuple[str, ...]) -> list[str]:
        recipe = tiny_recipe(root / "insects", optimizer)
        whole = whole_run(recipe, root / name / "whole", *overrides)
        cut = cut_run(recipe, root / name / "cut", (2, 4), *overrides, sends=rank == 1)
        return differences(whole, cut)

    for name, optimizer, overrides in CASES if torch.distributed.get_world_size() == 2 else CASES[:1]:
        found = compare(name, optimizer, overrides)
        if rank == 0:
            print(f"same: {name}" if found == [] else f"other: {name}: {', '.join(found)}")

    # And what is lost on one process alone is noticed.
    load = checkpoint_module.load_checkpoint

    def forgetful(folder: Path) -> Any:
        checkpoint, faults = load(folder)
        if checkpoint is not None and rank == 1:
            checkpoint.optimizer["state"] = {}
        return checkpoint, faults

    checkpoint_module.load_checkpoint = forgetful
    found = compare("sgd with a loss", SGD, ())
    assert rank == 1 or found, "the second process's momentum was lost, and nothing showed it"
    if rank == 0:
        print("noticed: a momentum lost")
    checkpoint_module.load_checkpoint = load
    together(root, rank)
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)  # of so many models in one process, torch's own end is now and then an abort


def together(root: Path, rank: int) -> None:
    """All processes start anew, are refused, or find out that they do not see the same folder."""
    recipe = tiny_recipe(root / "insects", SGD)
    whole, folder = whole_run(recipe, root / "whole"), root / "anew"
    record, _ = finetune(read_recipe(recipe), folder, observer=StopAt(4, rank == 0))
    assert record.status == "interrupted"
    anew, _ = finetune(read_recipe(recipe), folder, resume=False)
    assert anew.restarts == []
    if rank == 0:
        assert differences(whole, outcome_of(folder)) == []
        print("anew")

    def refused(folder: Path) -> str:
        try:
            finetune(read_recipe(recipe), folder)
        except UserError as error:
            return str(error)
        raise AssertionError(f"process {rank} was not refused")

    (root / "taken").mkdir(exist_ok=True)
    with FileLock(root / "taken" / ".lock") if rank == 0 else nullcontext():
        said = refused(root / "taken")
        torch.distributed.barrier()
    assert said == "" if rank else "another process is running here" in said

    record, _ = finetune(read_recipe(recipe), root / "apart", observer=StopAt(4, rank == 0))
    if rank:
        checkpoint_module.load_checkpoint = lambda folder: (None, [])
    assert "find different checkpoints here" in refused(root / "apart")
    if rank == 0:
        print("refused")


if __name__ == "__main__":
    main()
