"""What all charts share: size, axes, labels, and which entries have a colour and a marker of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pugdft.leaderboard.entry import CurvePoint, Entry, Group
from pugdft.leaderboard.page.axes import Axis, Tick, padded
from pugdft.leaderboard.page.quantities import COUNT, Unit, finite, passes_unit, seconds_unit
from pugdft.leaderboard.printable import printable

NUM_STYLES = 8  # different colours, dashes and markers: no chart names more entries

LEFT, TOP, BOTTOM = 46.0, 12.0, 262.0
NUM_TICKS = 6

Cost = Literal["passes", "seconds", "epochs"]
COST_WORDS: Mapping[Cost, str] = {
    "passes": "gradient passes",
    "seconds": "training time",
    "epochs": "epochs",
}


@dataclass(frozen=True)
class Label:
    """A direct label: its anchor point and ``text-anchor``."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Frame:
    """Both axes of a chart; ``horizontal`` and ``vertical`` are headings."""

    x: Axis
    y: Axis
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    horizontal: str
    vertical: str


def cost_frame(
    cost: Cost, spent: Sequence[float], y: Axis, vertical: str, unit: Unit, *, right: float, room: float
) -> tuple[Frame, Unit]:
    """A chart over a cost, and the cost's unit.

    Its horizontal axis goes from nothing spent to ``room`` times the most, so that a double cost looks it.
    """
    cost_unit = unit_of(cost, spent)
    x = padded(0.0, max(spent) * room, LEFT, right, (0.0, max(spent) * room))
    horizontal = cost_unit.heading(COST_WORDS[cost])
    ticks = x.ticks(cost_unit, NUM_TICKS), y.ticks(unit, NUM_TICKS)
    return Frame(x, y, *ticks, horizontal, vertical), cost_unit


def unit_of(cost: Cost, spent: Iterable[float | None]) -> Unit:
    return {"passes": passes_unit, "seconds": seconds_unit, "epochs": lambda _: COUNT}[cost](spent)


def spent_by(what: Entry | CurvePoint, cost: Cost) -> float | None:
    """What an entry, or its history up to a point, cost."""
    field = {"passes": "gradient_passes", "seconds": "train_seconds", "epochs": "epoch"}[cost]
    spent = finite(getattr(what, field))
    return spent if spent is not None and spent >= 0 else None


def written(cost: Cost, unit: Unit, spent: float) -> str:
    """``78.2 k gradient passes``, ``12.5 min``, ``epoch 3``: for whoever points at a mark."""
    if cost == "epochs":
        return f"epoch {unit(spent)}"
    return f"{unit.phrase(spent)} passes" if cost == "passes" else unit.phrase(spent)


def shortened(text: object, most: int) -> str:
    """``text`` on one line with at most so many characters, cut at its end."""
    shown = printable(text)
    return shown if len(shown) <= most else shown[: most - 1].rstrip() + "…"


def listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " * (len(words) > 1) + words[-1]


def assign_styles(groups: Sequence[Group]) -> list[dict[int, int]]:
    """For each group, position of an entry to its style: the first ones have one, and none stands twice.

    An optimizer keeps its style from group to group as far as that goes.
    """
    preferred: dict[str, int] = {}
    assigned = []
    for group in groups:
        named = [
            (index, entry)
            for index, entry in enumerate(group.entries)
            if entry.status == "measured" and (entry.num_seeds or entry.curve)
        ][:NUM_STYLES]
        styles: dict[int, int] = {}
        taken: set[int] = set()
        for index, entry in named:
            style = preferred.get(entry.label)
            if style is not None and style not in taken:
                styles[index] = style
                taken.add(style)
        for index, entry in named:
            if index not in styles:
                fresh = [style for style in range(NUM_STYLES) if style not in taken]
                unclaimed = [style for style in fresh if style not in preferred.values()]
                styles[index] = (unclaimed or fresh)[0]
                taken.add(styles[index])
                preferred.setdefault(entry.label, styles[index])
        assigned.append(dict(sorted(styles.items())))
    return assigned
