"""The figures of a verdict over several tasks, for the page and for papers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from pugdft.errors import printable
from pugdft.figures import across_tasks
from pugdft.figures.across_tasks import AcrossSeries, Estimated
from pugdft.leaderboard.across.board import AcrossVerdict
from pugdft.leaderboard.across.pooling import share_interval
from pugdft.leaderboard.columns import unit_of
from pugdft.leaderboard.entry import Summary
from pugdft.predictions import METRICS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_DRAWN = 12  # entries; the tables have all
_MOST_IN_MATRIX = 8

Draw = Callable[..., "Figure"]  # with ``width`` and ``theme``


def pictures(verdict: AcrossVerdict) -> dict[str, tuple[str, Draw]]:
    """Return, by name, each figure's title and the function that draws it within ``paper.style``."""
    drawn = _series(verdict)
    best, unit = drawn[0].label, unit_of(verdict.metric)
    points = ", points" if unit.name else ""
    behind = f"difference to {best}{points}"
    worse = "" if METRICS[verdict.metric].higher_is_better else " (right is better)"
    found: dict[str, tuple[str, Draw]] = {
        "forest": (
            "Difference to the best, mean over tasks with 95 % interval; strokes are tasks",
            partial(across_tasks.forest_figure, drawn, f"{behind}{worse}"),
        )
    }
    if verdict.critical_difference is not None:
        title = "Mean ranks with 95 % intervals"
        found["ranks"] = title, partial(across_tasks.ranks_figure, drawn, verdict.critical_difference)
        distances = [each / unit.size for each in verdict.distances]
        heading = f"at most behind the task's best{points}"
        title = "Performance profiles: share of tasks within a distance of the best"
        found["profiles"] = title, partial(across_tasks.profiles_figure, drawn, distances, heading)
    if verdict.cost is not None:
        title = "Result against cost; filled: on the front, cross: behind it, hollow: open"
        headings = f"{verdict.cost}, multiple of the cheapest", behind
        found["front"] = title, partial(across_tasks.front_figure, drawn, headings)
    size = min(len(drawn), _MOST_IN_MATRIX)
    pairs = [
        [verdict.pair(row, column) if row != column else None for column in range(size)]
        for row in range(size)
    ]
    chances = [[None if each is None else each.improvement.mean for each in row] for row in pairs]
    texts = [
        ["" if each is None else f"{each.wins}/{each.ties}/{each.losses}" for each in row] for row in pairs
    ]
    labels = [each.label for each in drawn[:size]]
    found["wins"] = "Who wins against whom", partial(across_tasks.wins_figure, labels, chances, texts)
    return found


def _series(verdict: AcrossVerdict) -> list[AcrossSeries]:
    """Put the first entries into the units to show."""
    size, sign = unit_of(verdict.metric).size, 1 if METRICS[verdict.metric].higher_is_better else -1
    best = verdict.standings[0].label
    made = []
    for place, each in enumerate(verdict.standings[:_MOST_DRAWN]):
        pair = verdict.pair(place, 0) if place else None
        difference = None
        if pair is not None:
            low, high = pair.ci95 or (pair.difference, pair.difference)
            difference = pair.difference / size, low / size, high / size
        tasks = [
            sign * (task.scores[each.label].mean - task.scores[best].mean) / size
            for task in verdict.tasks
            if place and each.label in task.scores and best in task.scores
        ]
        band: Any = share_interval(each.profile, len(verdict.shared_tasks)) if each.profile else None
        made.append(
            AcrossSeries(
                label=printable(each.label),
                number=place,
                is_best=each.rank_low == 1,
                difference=difference,
                task_differences=tasks,
                rank=_estimated(each.average_rank),
                profile=each.profile,
                profile_band=band,
                cost=_estimated(each.cost),
                front=each.front,
                front_share=each.front_share,
            )
        )
    return made


def _estimated(found: Summary | None) -> Estimated | None:
    return None if found is None else (found.mean, *(found.ci95 or (found.mean, found.mean)))
