"""The learning rate as a function of the updates made and the recipe: a restart needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pugdft.config.schema import Recipe, base_lr

_ONE_CYCLE_START, _ONE_CYCLE_RISE = 1 / 25, 0.3  # torch's defaults: first factor, fraction of the run


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# From 1 to 0 while the progress after the warm-up goes from 0 to 1.
_FALLS: Mapping[str, Callable[[float], float]] = {
    "cosine": _half_cosine,
    "one_cycle": _half_cosine,
    "linear": lambda progress: 1 - progress,
}


def lr_factor(
    name: str,
    step: float,
    total_steps: int,
    warmup_steps: int = 0,
    floor: float = 0.0,
    drops: Sequence[float] = (),
    factor: float = 0.1,
) -> float:
    """Return the learning rate after ``step`` updates (or gradient passes) as a factor of its base value.

    With the progress p in 0..1 after a linear warm-up and the ``floor`` f:

    - ``cosine``: f + (1 − f)·½(1 + cos πp), SGDR's (arXiv 1608.03983, eq. 5) without restarts;
    - ``linear``: f + (1 − f)·(1 − p);
    - ``one_cycle``: rises from 1/25 along half a cosine, over the warm-up or else 30 % of the run, then falls
      as ``cosine`` does (arXiv 1708.07120, in torch's form with two phases; momentum stays);
    - ``step``: ``factor`` for each of ``drops``, in updates, that is reached, at least f;
    - ``constant``: 1.
    """
    if name == "one_cycle":
        warmup_steps = warmup_steps or round(_ONE_CYCLE_RISE * total_steps)
        if step < warmup_steps:
            rise = 1 - _half_cosine(step / warmup_steps)
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * rise
    if step < warmup_steps:
        return (step + 1) / warmup_steps  # the last one has the full rate
    if name == "step":
        return max(floor, factor ** sum(step >= drop for drop in drops))
    if name == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return floor + (1 - floor) * _FALLS[name](progress)


def schedule_of(recipe: Recipe, steps_per_epoch: int, total_steps: int) -> Callable[[float], float]:
    """The recipe's :func:`lr_factor` as a function of the updates made alone."""
    schedule, epochs = recipe.schedule, recipe.train.epochs
    drop_epochs: Sequence[float] = schedule.milestones or ()
    if schedule.step_epochs is not None:
        number = math.ceil(epochs / schedule.step_epochs)
        drop_epochs = [each * schedule.step_epochs for each in range(1, number)]
    lr = base_lr(recipe.optimizer)
    options: dict[str, Any] = {
        "total_steps": total_steps,
        "warmup_steps": round(schedule.warmup_epochs * steps_per_epoch),
        "floor": schedule.min_lr / lr if lr else 0.0,
        "drops": [round(epoch * steps_per_epoch) for epoch in drop_epochs],
        "factor": schedule.factor,
    }
    return partial(lr_factor, schedule.name, **options)
