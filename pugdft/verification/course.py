"""How a run went, by its record: images a pass where memory ran out, and what changed on the way."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from pugdft.errors import counted
from pugdft.recipe import Recipe
from pugdft.record import RunRecord
from pugdft.verification.agreement import shown


def images_a_pass(record: RunRecord) -> int | None:
    """Images a forward pass and process at the run's end; None if the record does not say it."""
    return _positive(record.environment, "micro_batch_size")


def images_asked_for(record: RunRecord, recipe: Recipe) -> int:
    """Images a forward pass and process by the run's recipe, had memory held them."""
    processes = _positive(record.environment, "processes") or 1
    return recipe.train.micro_batch_size or -(-recipe.train.batch_size // processes)


def shrunk_size(record: RunRecord, recipe: Recipe) -> int | None:
    """Images a forward pass and process, if they are fewer than the recipe asks for: memory held no more."""
    size = images_a_pass(record)
    return size if size is not None and size < images_asked_for(record, recipe) else None


def changes_on_the_way(record: RunRecord, place: str) -> list[str]:
    """Updates made by other processes, or in passes of another size, than those before them.

    No second run repeats that. ``restarts`` does not list a run's first start: if its passes were smaller
    than asked for, and it went on later, that counts as a change too.

    Args:
        record: of the run.
        place: where it ran, such as ``there``: the last word of each change.
    """
    # Updates that a later start made again count as its own.
    course: list[tuple[int, Mapping[str, Any]]] = [(0, {})]
    for entry in record.restarts:
        step = _positive(entry, "step") or 0
        while course and course[-1][0] >= step:
            course.pop()
        course.append((step, entry))
    changes = []
    for (_, before), (step, after) in pairwise(course):
        if processes := _positive(after, "processes"):  # noted only where they are not those before
            changes.append(f"from update {shown(step)} on {_counted(processes, 'process')} {place}")
        size = _positive(after, "micro_batch_size")
        if size is not None and size != _positive(before, "micro_batch_size"):
            changes.append(f"from update {shown(step)} on {_counted(size, 'image')} a pass {place}")
    return changes


def _positive(facts: Mapping[str, Any], key: str) -> int | None:
    value = facts.get(key)
    return value if type(value) is int and value > 0 else None


def _counted(number: int, noun: str) -> str:
    return shown(counted(number, noun))
