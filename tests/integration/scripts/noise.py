"""Run by torchrun in two processes as ``noise.py RECIPE FOLDER``: what each one's ShakeDrop layers drew.

``FOLDER/noise-RANK.pt`` has each layer's numbers of each pass, and whether its gradient was the true one.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pugdft.architectures import shake
from pugdft.training.run import finetune, read_recipe

draw, drawn = shake._draw, list[tuple[Tensor, bool]]()


def noting(count: int, like: Tensor) -> Tensor:
    numbers = draw(count, like)
    drawn.append((numbers.flatten(), False))
    return numbers


def note_gradient(layer: Any, given: Any, output: Any) -> None:
    if isinstance(layer, shake.ShakeDrop) and layer.training:
        drawn[-1] = drawn[-1][0], layer.true_gradient


if __name__ == "__main__":
    torch.set_num_threads(1)
    shake._draw = noting
    torch.nn.modules.module.register_module_forward_hook(note_gradient)
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    record, _ = finetune(read_recipe(recipe), folder / "run")
    assert record.status == "completed", record
    torch.save(drawn, folder / f"noise-{os.environ['RANK']}.pt")
    sys.stdout.flush()
    os._exit(0)  # torch's own end is now and then an abort
