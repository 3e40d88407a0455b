"""The output folder: one run, recognised by its recipe, never mixed with another's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from pugdft import yaml_text
from pugdft.errors import UserError
from pugdft.recipe import Recipe
from pugdft.record import RECORD_NAME, write_atomically

RECIPE_NAME = "recipe.yaml"
_LOCK_NAME = ".lock"
_LONGEST_NAME = 64  # characters of a data set's name in a run's; the digest tells runs apart


def run_id(recipe: Recipe) -> str:
    """``resnet18-cifar10-pugd-s0-1a2b3c4d``: readable, and unique by the recipe's digest."""
    data = Path(recipe.data.name).name[:_LONGEST_NAME]
    parts = (
        recipe.model.name,
        data,
        str(recipe.optimizer["name"]),
        f"s{recipe.train.seed}",
        recipe.digest()[:8],
    )
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def check(folder: Path, recipe: Recipe) -> None:
    """See that ``folder`` is free for this recipe, or already this recipe's; changes nothing.

    Raises:
        UserError: it holds the run of another recipe, or something where a run's files go.
    """
    for name in (RECORD_NAME, "predictions.npz", "model.safetensors", RECIPE_NAME):
        if (folder / name).is_dir():
            raise UserError(
                f"{folder / name}: is a folder, where a run writes a file; choose another --output"
            )
    path = folder / RECIPE_NAME
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"{path}: is not a recipe; choose another --output, or move it away") from None
    if text is None:
        return
    other = yaml_text.parse(text, str(path))
    try:
        # A recipe of an older version lacks newer keys: their defaults are what it ran with.
        other = Recipe.model_validate(other).as_dict()
    except ValidationError:
        raise UserError(f"{path}: is not a recipe; choose another --output, or move it away") from None
    if differences := differences_between(other, recipe.as_dict()):
        shown = "\n".join(f"  {line}" for line in differences)
        raise UserError(
            f"{folder}: holds the run of another recipe:\n{shown}\n"
            "Choose another --output, or move that run away."
        )


def claim(folder: Path, recipe: Recipe) -> AbstractContextManager[Any]:
    """Make ``folder`` this recipe's, locked from now until the end of a ``with`` over what is returned.

    Raises:
        UserError: it cannot be written, holds another recipe's run, or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK_NAME, timeout=0).acquire()
        check(folder, recipe)  # again: until now somebody else may have run another recipe here
        if not (folder / RECIPE_NAME).is_file():
            write_atomically(folder / RECIPE_NAME, yaml_text.dump(recipe.as_dict()).encode())
    except Timeout:
        raise UserError(
            f"{folder}: another process is running here; wait for it, or choose another --output"
        ) from None
    except OSError as error:
        raise UserError(f"{folder}: cannot be used as the output folder: {error.strerror}") from None
    return lock


def differences_between(theirs: Any, ours: Any, where: str = "") -> list[str]:
    """What differs in two nested values, a line for each place, by its dotted name."""
    pairs: list[tuple[object, Any, Any]] | None = None
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        pairs = [(key, theirs.get(key), ours.get(key)) for key in keys]
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = [(number, *both) for number, both in enumerate(zip(theirs, ours, strict=True))]
    if pairs is None:
        return [] if theirs == ours else [f"{where}: {theirs!r} there, {ours!r} here"]
    return [
        line
        for key, their, our in pairs
        for line in differences_between(their, our, f"{where}.{key}" if where else str(key))
    ]
