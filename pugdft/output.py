"""The output folder: one run, recognised by its recipe, never mixed with another's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pugdft import yaml_text
from pugdft.errors import UserError
from pugdft.recipe import Recipe
from pugdft.record import write_atomically

RECIPE_NAME = "recipe.yaml"


def run_id(recipe: Recipe) -> str:
    """``resnet18-cifar10-pugd-s0-1a2b3c4d``: readable, and unique by the recipe's digest."""
    data = Path(recipe.data.name).name
    parts = (
        recipe.model.name,
        data,
        str(recipe.optimizer["name"]),
        f"s{recipe.train.seed}",
        recipe.digest()[:8],
    )
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def claim(folder: Path, recipe: Recipe) -> None:
    """Make ``folder`` this recipe's, or see that it is.

    Raises:
        UserError: it holds the run of another recipe, or cannot be written.
    """
    path = folder / RECIPE_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            other = yaml_text.parse(path.read_text(encoding="utf-8"), str(path))
            if differences := _differences(other, recipe.as_dict()):
                shown = "\n".join(f"  {line}" for line in differences)
                raise UserError(
                    f"{folder}: holds the run of another recipe:\n{shown}\n"
                    "Choose another --output, or move that run away."
                )
        else:
            write_atomically(path, yaml_text.dump(recipe.as_dict()).encode())
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as the output folder: {error.strerror}") from None


def _differences(theirs: Any, ours: Any, where: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [
            line
            for key in keys
            for line in _differences(theirs.get(key), ours.get(key), f"{where}.{key}" if where else str(key))
        ]
    return [] if theirs == ours else [f"{where}: {theirs!r} there, {ours!r} here"]
