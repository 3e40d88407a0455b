"""Accelerate, for a recipe's precision on this machine's device."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from pugdft.allocator import retain_freed_memory
from pugdft.errors import UserError
from pugdft.performance import pick
from pugdft.recipe import Recipe
from pugdft.variables import check_variables, must_use_cpu


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Accelerate for the recipe's precision; a second run in one process may have another.

    Raises:
        UserError: see :func:`ready_device`.
    """
    AcceleratorState._reset_state()
    precision = recipe.train.precision
    # Without an accelerator, Accelerate must be told so, or it takes many processes for one.
    on_cpu = ready_device(recipe) == "cpu"
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no" if precision == "fp32" else precision)
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    assert accelerator.num_processes == expected, f"{accelerator.num_processes} of {expected} processes"
    return accelerator


def ready_device(recipe: Recipe) -> str:
    """The type of the device that a recipe will train on here, with what must be settled before it is used.

    Raises:
        UserError: it cannot compute in the recipe's precision, or the environment asks for what is not here.
    """
    check_variables()
    kind = device_type()
    if kind == "cpu":
        if recipe.train.precision == "fp16":
            raise UserError("train.precision: fp16 needs a GPU; on a CPU use bf16 or fp32")
        retain_freed_memory(pick(recipe, "cpu").retain_memory)
    return kind


def device_type() -> str:
    """What a run trains on here: the machine's accelerator if it has one."""
    if must_use_cpu():
        return "cpu"
    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    return next((name for name, kind in kinds.items() if kind.is_available()), "cpu")
