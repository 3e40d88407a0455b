"""Power of the test over tasks: which differences so many seeds and tasks find, before anything has run."""

from __future__ import annotations

import math
from collections.abc import Collection

from pugdft.errors import counted
from pugdft.leaderboard.power import Plan

# Standard deviations over tasks of the true difference of two optimizers that are assumed, and the seeds'.
_TASK_STDS = (0.005, 0.01)
_SEED_STD = 0.003


def across_plan(
    num_tasks: int,
    num_seeds: int,
    num_pairs: int,
    *,
    task_std: float,
    seed_std: float,
    image_variance: float = 0.0,
    num_datasets: int | None = None,
) -> Plan:
    """Plan the test over tasks; a "seed" of the result is a task.

    Args:
        num_tasks: that share data sets; the plan holds for this number, or for any if they share none.
        num_pairs: of entries that are tested together.
        task_std: standard deviation over tasks of the true difference of two entries.
        seed_std: standard deviation over seeds of the difference of two runs of one seed, within a task.
        image_variance: of the difference in one task, due to its sample of test images.
        num_datasets: of the tasks, by default one each; models of one data set have the same test images.
    """
    # With M tasks of each data set, the covariance of their images' errors stays, and S² does not see it.
    extra = (num_tasks / (num_datasets or num_tasks) - 1) / max(1, num_tasks - 1)
    variance = task_std**2 + seed_std**2 / num_seeds + image_variance * (1 - extra)
    return Plan(math.sqrt(variance), image_variance * extra, num_pairs)


def plan_lines(
    tasks: Collection[tuple[str, str]], num_seeds: int, num_pairs: int, seed_std: float | None = None
) -> list[str]:
    """Say which difference over all planned tasks is found, if they are several.

    Args:
        tasks: data set and model of each.
        num_pairs: of optimizers.
        seed_std: of paired differences over seeds, from finished runs; None: 0.3 points are assumed.
    """
    if len(tasks) < 2:
        return []
    found = {}
    for task_std in _TASK_STDS:
        plan = across_plan(
            len(tasks), num_seeds, num_pairs, task_std=task_std, seed_std=seed_std or _SEED_STD
        )
        found[task_std] = plan.detectable_difference(len(tasks)), plan.seeds_needed(0.01)
    (low, few), (high, many) = found.values()
    spreads = " or ".join(f"{100 * each:.1f}" for each in found)
    pairs = f"{num_pairs} pairs" if num_pairs > 1 else "one pair"
    needed = f"{few} or {many} tasks" if few and many else "more tasks than anyone runs"
    return [
        f"Over these {len(tasks)} tasks together (`pugdft leaderboard --across`), "
        f"{counted(num_seeds, 'seed')} each find a mean difference of {100 * low:.2f} or {100 * high:.2f} "
        f"points (power 80 %, {pairs}, level 5 %) if true differences spread by {spreads} points from task "
        f"to task, test images included. One point takes {needed}; more seeds help less than more tasks."
    ]
