"""Groups as a table for people and as JSON for programs. Fractions become percent here and nowhere else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pugdft.leaderboard.printable import printable
from pugdft.leaderboard.ranking import Entry, Group

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SCHEMA = "pugdft.leaderboard/1"

NOTHING = "–"
_ON_THE_LAST_EPOCH = "top-1 is the last epoch's on the test split."


def print_table(groups: Sequence[Group], console: Console) -> None:
    """One table per group, best mean first, each with what its statistics allow to say.

    Every text goes out as ``rich.text.Text``, in which no markup is read, so that brackets in a label stay
    brackets and a record cannot style or link anything; control characters were dropped before.
    """
    from rich.text import Text

    for index, group in enumerate(groups):
        if index:
            console.print()
        console.print(Text(f"{group.dataset} × {group.model}", style="bold"))
        console.print(Text(group.protocol))
        console.print(_table(group))
        for line in _lines_below(group):
            console.print(Text(line, style="dim"))


def as_json(groups: Sequence[Group]) -> str:
    """The groups by the contract ``pugdft.leaderboard/1``; what is not defined is null, never NaN.

    An entry without a completed run has null ranks; one with a completed run that lacks its top-1 has
    ranks behind the others and null means. Costs are means over the counted seeds.
    """
    content = {"schema": SCHEMA, "groups": [_group_as_json(group) for group in groups]}
    return json.dumps(_plain(content), indent=2, allow_nan=False)


def _group_as_json(group: Group) -> dict[str, Any]:
    return {
        "dataset": group.dataset,
        "model": group.model,
        "protocol": group.protocol,
        "recipe": group.recipe,
        "notes": group.notes,
        "entries": [_entry_as_json(entry) for entry in group.entries],
    }


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    return {
        "optimizer": entry.label,
        "status": entry.status,
        "rank_low": entry.rank_low,
        "rank_high": entry.rank_high,
        "num_seeds": entry.num_seeds,
        "top1_mean": entry.top1.mean if entry.top1 else None,
        "top1_std": entry.top1.std if entry.top1 else None,
        "top1_ci95": entry.top1.ci95 if entry.top1 else None,
        "top5_mean": entry.top5_mean,
        "ece_mean": entry.ece_mean,
        "gradient_passes": entry.gradient_passes,
        "train_seconds": entry.train_seconds,
        "images_per_second": entry.images_per_second,
        "peak_memory_bytes": entry.peak_memory_bytes,
        "mean_perturbation_norm": entry.mean_perturbation_norm,
        "mean_gradient_cosine": entry.mean_gradient_cosine,
        "num_failed": entry.num_failed,
        "failed": entry.unfinished,
        "records": entry.records,
        "failed_records": entry.unfinished_records,
        "spec": entry.spec,
        "notes": entry.notes,
    }


def _plain(value: Any) -> Any:
    """Only what JSON has: numbers are finite, keys are text, anything foreign is its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)


# Heading, then the cell's text of an entry. Headings break in two to keep the table within 100 columns.
_COLUMNS: tuple[tuple[str, Callable[[Entry], str]], ...] = (
    ("rank", lambda entry: _rank(entry)),
    ("optimizer", lambda entry: entry.label),
    ("seeds", lambda entry: str(entry.num_seeds)),
    ("top-1\n%", lambda entry: _top1(entry)),
    ("95 % CI\n%", lambda entry: _interval(entry)),
    ("top-5\n%", lambda entry: _scaled(entry.top5_mean, 100, ".2f")),
    ("ECE\n%", lambda entry: _scaled(entry.ece_mean, 100, ".2f")),
    ("grad.\npasses", lambda entry: _count(entry.gradient_passes)),
    ("train\ntime", lambda entry: _duration(entry.train_seconds)),
    ("img\n/s", lambda entry: _scaled(entry.images_per_second, 1, ",.0f")),
    ("peak\nGiB", lambda entry: _scaled(entry.peak_memory_bytes, 1 / 2**30, ".1f")),
    ("‖e‖", lambda entry: _scaled(entry.mean_perturbation_norm, 1, ".3g")),
    ("cos", lambda entry: _scaled(entry.mean_gradient_cosine, 1, ".2f")),
)


def _table(group: Group) -> Table:
    """The columns in which at least one entry has something."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0), pad_edge=False, show_edge=False)
    cells: list[list[str]] = []
    for heading, cell in _COLUMNS:
        column = [cell(entry) for entry in group.entries]
        if heading != "optimizer" and all(text == NOTHING for text in column):
            continue
        cells.append(column)
        if heading == "optimizer":
            # The one column that may break: an option list has no natural width.
            table.add_column(Text(heading), justify="left", overflow="fold", min_width=len(heading))
        else:
            table.add_column(Text(heading), justify="right", no_wrap=True)
    for row in zip(*cells, strict=True):
        table.add_row(*(Text(text) for text in row))
    return table


def _lines_below(group: Group) -> list[str]:
    """Runs that do not count, doubts, and the sentence on what the ranks mean."""
    lines = []
    for entry in group.entries:
        if entry.unfinished:
            counts = ", ".join(f"{number} {status}" for status, number in entry.unfinished.items())
            lines.append(f"{entry.label}: {counts}; not in its mean.")
        lines += [f"{entry.label}: {note}." for note in entry.notes]
    lines += [f"{note}." for note in group.notes]
    return [printable(line) for line in [*lines, f"{_verdict(group)} {_ON_THE_LAST_EPOCH}"]]


def _verdict(group: Group) -> str:
    """What the numbers of seeds allow to claim."""
    seeds = [entry.num_seeds for entry in group.entries if entry.top1]
    if len(seeds) < 2:
        return "Nothing to compare with."
    if max(seeds) == 1:
        return "One seed each: no difference can be claimed."
    single = " An optimizer with one seed shares a range with all." if min(seeds) == 1 else ""
    return (
        "Ranks share a range where a paired t-test over seeds (Holm, 5 %) cannot separate them; "
        f"without common seeds, Welch's test.{single}"
    )


def _rank(entry: Entry) -> str:
    if entry.rank_low is None:
        return NOTHING
    return str(entry.rank_low) if entry.rank_low == entry.rank_high else f"{entry.rank_low}–{entry.rank_high}"


def _top1(entry: Entry) -> str:
    if entry.top1 is None:
        return NOTHING
    std = "" if entry.top1.std is None else f" ± {100 * entry.top1.std:.2f}"
    return f"{100 * entry.top1.mean:.2f}{std}"


def _interval(entry: Entry) -> str:
    if entry.top1 is None or entry.top1.ci95 is None:
        return NOTHING
    return "–".join(f"{100 * bound:.2f}" for bound in entry.top1.ci95)


def _scaled(value: float | None, factor: float, form: str) -> str:
    return NOTHING if value is None else format(value * factor, form)


def _count(number: float | None) -> str:
    if number is None:
        return NOTHING
    if number < 1e4:
        return f"{number:,.0f}"
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.1f}M"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NOTHING
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{minutes}m" if minutes < 100 else f"{minutes // 60}h{minutes % 60:02d}"
