"""The learning rate as a factor of its base value: a pure function of the step, so there is no state."""

from __future__ import annotations

import math


def lr_factor(name: str, step: float, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor at a step.

    Args:
        name: ``cosine`` (½(1 + cos πp) of the progress p after warm-up; SGDR, arXiv 1608.03983, eq. 5
            without restarts) or ``constant``.
        step: updates (or gradient passes) made so far, 0..total_steps − 1.
        total_steps: those of the whole run.
        warmup_steps: updates of a linear rise; the last of them has the full rate.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if name == "constant":
        return 1.0
    assert name == "cosine"
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)))
