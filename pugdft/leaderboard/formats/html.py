"""Groups as one HTML page: sortable tables, charts, and the details behind each row.

The templates read plain dictionaries; a key that is missing is an error.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pugdft import __version__
from pugdft.config import yaml
from pugdft.errors import counted, printable
from pugdft.figures.charts import NUM_STYLES, svg_text, swatch
from pugdft.leaderboard.charts import (
    STRIP_WIDTH,
    assign_styles,
    cost_chart,
    history_chart,
    interval_strips,
    shortened,
)
from pugdft.leaderboard.columns import (
    NOTHING,
    PERCENT,
    SECTIONS,
    Column,
    columns,
    fitting_unit,
    mean_and_spread,
    number,
    rank,
    titled,
    unit_of,
)
from pugdft.leaderboard.entry import Entry, Group, finite
from pugdft.leaderboard.formats.csv_json import SCHEMA
from pugdft.leaderboard.verdicts import _more_seeds, _signed
from pugdft.leaderboard.warnings import listed
from pugdft.predictions import METRICS

_LONGEST_ASIDE = 60

_ARXIV = re.compile(r"[0-9]{4}\.[0-9]{4,5}(v[0-9]{1,2})?")


def as_html(groups: Sequence[Group], title: str = "pugdft leaderboard") -> str:
    """Write the whole page. Equal groups give equal text.

    Everything from a record is untrusted: it is put on one line, without control characters or
    bidirectional overrides, and escaped, in one place for all of the template. The page's own policy allows
    the one style sheet and the one script whose hashes it names.
    """
    environment = Environment(
        loader=PackageLoader("pugdft.leaderboard.formats", "templates"),
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(strip_width=STRIP_WIDTH, num_styles=NUM_STYLES, swatch=_swatch)
    environment.filters["indented"] = escape  # made printable line by line before, with its indentation
    style, script = _text("page.css"), _text("page.js")
    return environment.get_template("page.html.j2").render(
        page=_page_view(groups),
        title=title,
        schema=SCHEMA,
        version=__version__,
        # Our own text, not a record's.
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        style_hash=_digest(style),
        script_hash=_digest(script),
    )


def _harmless(value: Any) -> Any:
    """Clean all text that is not the template's own markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _swatch(style: int, filled: bool) -> str:
    """Draw a short line with its marker, for the legend."""
    return svg_text(swatch(style, filled), f"swatch{style}{filled}")


def _text(name: str) -> str:
    """Read a file of the templates' folder, with the line ends that a browser hashes."""
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- tables ---


def _table(group: Group, metric: str, entries: Sequence[Entry], rows: Sequence[Any]) -> dict[str, Any]:
    """Rows, and those columns by section in which an entry has something; cells are in the rows' order."""
    chosen = [titled(column, group) for column in columns(metric) if column.page]
    made = [
        _column(column, entries)
        for column in sorted(chosen, key=lambda column: SECTIONS.index(column.section))
        if not column.is_interval or entries == group.measured
    ]
    shown = [
        column for column in made if any(cell["strip"] or cell["text"] != NOTHING for cell in column["cells"])
    ]
    sections = groupby(column["section"] for column in shown)
    return {
        "rows": rows,
        "columns": shown,
        "sections": [(section, len(list(members))) for section, members in sections],
    }


def _column(column: Column, entries: Sequence[Entry]) -> dict[str, Any]:
    """A column's heading and cells; an empty ``sort`` stands behind every number in both directions."""
    values = [column.figure(entry) for entry in entries]
    unit = fitting_unit(column.units, values)
    texts, unit_name = [unit(value) for value in values], unit.name
    spreads = [""] * len(entries)
    strips, ticks = interval_strips(entries, column.metric if column.is_interval else "")
    summaries = [entry.summary(column.metric) for entry in entries]
    if column.is_ranked:
        spreads = [f"± {unit(each.std)}" if each and each.std is not None else "" for each in summaries]
    if column.is_interval:
        texts = [" to ".join(map(unit, each.ci95)) if each and each.ci95 else NOTHING for each in summaries]
        unit_name = ""  # the mean beside it has the same
    first = "ascending" if column.lower_first else "descending"
    known = [value for value in values if value is not None]
    is_sorted = values[: len(known)] == sorted(known, reverse=not column.lower_first)
    return {
        "heading": [*column.page.split("\n"), *filter(None, [unit_name])],
        "section": column.section,
        "help": column.help,
        "first": first,  # the direction of the first click
        "sorted": first if column.is_ranked and is_sorted else "none",
        "ticks": ticks,
        "has_spread": any(spreads),
        "cells": [
            {"text": text, "sort": "" if value is None else repr(value), "spread": spread, "strip": strip}
            for text, value, spread, strip in zip(texts, values, spreads, strips, strict=True)
        ],
    }


def _row(id: str, entry: Entry, group: Group, style: int | None) -> dict[str, Any]:
    """An entry's row and its details; ``id`` is unique on the page."""
    asides = [shortened(_unfinished(entry), _LONGEST_ASIDE)] if entry.unfinished else []
    asides += [counted(len(entry.notes), "note")] if entry.notes else []
    arxiv = (entry.source.arxiv or "") if entry.source else ""
    seeds = sorted(entry.scores)
    is_known_whose = len(seeds) == len(entry.records)
    ids = entry.records if is_known_whose else [None] * len(seeds)
    score = unit_of(group.metric)
    return {
        "id": id,
        "entry": entry,
        "style": style,
        "rank": rank(entry),
        "rank_sort": "" if entry.rank_low is None else f"{entry.rank_low} {entry.rank_high}",
        "badge": ("tied best" if len(group.best) > 1 else "best") if entry.rank_low == 1 else "",
        "asides": asides,
        "facts": _facts(entry, group),
        "seeds": [(seed, score(entry.scores[seed]), record) for seed, record in zip(seeds, ids, strict=True)],
        "records": () if is_known_whose else entry.records,
        "spec": spec_lines(entry.spec),
        "arxiv": arxiv if _ARXIV.fullmatch(arxiv) else "",
    }


def _facts(entry: Entry, group: Group) -> list[tuple[str, str]]:
    """Names and texts of what is known of an entry."""
    facts = []
    if versus := versus_text(entry, group):
        facts.append(("against the best", versus))
    for key, metric in METRICS.items():
        if summary := entry.summary(key):
            unit = unit_of(key)
            interval = f", 95 % CI {' to '.join(map(unit, summary.ci95))}" if summary.ci95 else ""
            facts.append((metric.name, f"{mean_and_spread(entry, key)} {unit.name}".rstrip() + interval))
    if finite(entry.best_test_top1) is not None:
        best = PERCENT.phrase(entry.best_test_top1)
        facts.append(("best epoch", f"{best}, picked on the test split: never ranks"))
    if entry.tuning:
        trials, passes = counted(entry.tuning.trials, "trial"), number(entry.tuning.gradient_passes, 0)
        facts.append(("tuning", f"{trials} on held-out images, {passes} gradient passes"))
    if finite(entry.gradient_passes) is not None:
        facts.append(("gradient passes", number(entry.gradient_passes, 0)))
    if entry.unfinished:
        facts.append(("not counted", f"{_unfinished(entry)}; not in any mean"))
    return facts


def _unfinished(entry: Entry) -> str:
    return ", ".join(f"{count} {status}" for status, count in entry.unfinished.items())


def versus_text(entry: Entry, group: Group) -> str:
    """Compare an entry with the best mean in words; nothing for the best itself."""
    versus = entry.versus_best
    if versus is None or finite(versus.difference) is None:
        return ""
    if versus.difference == 0 and versus.p_value is None:
        return ""
    difference = f"{_signed(versus.difference, group.metric)} in {METRICS[group.metric].name}"
    if versus.p_value is None:
        return f"{difference}; nothing can be tested with these seeds, so no difference is claimed"
    tested = f"{difference}, p = {versus.p_value:.2g} (Holm-corrected)"
    if versus.separated:
        return f"{tested}: told apart"
    more = f"; {_more_seeds(versus.more_seeds)} each would tell if it is real" if versus.more_seeds else ""
    return f"{tested}: not told apart{more}"


def spec_lines(spec: Mapping[str, Any]) -> list[str]:
    """Write the ``optimizer`` mapping as YAML, each line safe to show with its indentation."""
    lines = [line for line in yaml.dump(dict(spec)).split("\n") if line.strip()]
    return [line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines]


# --- the page ---


def _page_view(groups: Sequence[Group]) -> dict[str, Any]:
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    models = list(dict.fromkeys(group.model for group in groups))
    entries = [entry for group in groups for entry in group.entries]
    return {
        "groups": [
            _group_view(f"g{index}", group, styles, datasets.index(group.dataset), models.index(group.model))
            for index, (group, styles) in enumerate(zip(groups, assign_styles(groups), strict=True))
        ],
        "datasets": datasets,
        "models": models,
        "num_reported": sum(entry.status == "reported" for entry in entries),
        "num_records": len({id for entry in entries for id in (*entry.records, *entry.unfinished_records)}),
    }


def _group_view(id: str, group: Group, styles: Mapping[int, int], dataset: int, model: int) -> dict[str, Any]:
    """Collect what a section of the page shows; its data set and model are positions in the page's lists."""
    rows = [
        _row(f"{id}e{index}", entry, group, styles.get(index)) for index, entry in enumerate(group.entries)
    ]
    measured = [row for row in rows if row["entry"].status == "measured"]
    reported = [row for row in rows if row["entry"].status == "reported"]
    costs = [cost_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    histories = [history_chart(group, styles, cost, id) for cost in ("epochs", "passes", "seconds")]
    return {
        "id": id,
        "group": group,
        "dataset": dataset,
        "model": model,
        "verdict": _verdict(group),
        "score_heading": unit_of(group.metric).heading(METRICS[group.metric].name),
        "measured": _table(group, group.metric, group.measured, measured),
        "reported": _table(group, "top1", group.reported, reported),
        "legend": [row for row in measured if row["style"] is not None],
        "has_equal_cost": any(
            entry.top1_at_equal_passes is not None or entry.top1_at_equal_seconds is not None
            for entry in group.entries
        ),
        "cost_charts": [chart for chart in costs if chart],
        "history_charts": [chart for chart in histories if chart],
    }


def _verdict(group: Group) -> str:
    """What a group's numbers allow to claim, in a sentence or two."""
    compared = [entry for entry in group.entries if entry.rank_low and entry.summary(group.metric)]
    if len(compared) < 2:
        return "Nothing to compare with: fewer than two optimizers have a result."
    metric, best = METRICS[group.metric], [shortened(entry.label, 40) for entry in group.best]
    direction = "higher" if metric.higher_is_better else "lower"
    by = "" if group.metric == "top1" else f"Ranked by {metric.name}, {direction} is better. "
    if max(entry.num_seeds for entry in compared) == 1:
        return f"{by}One seed each: no difference can be claimed."
    if len(best) >= len(compared):
        return f"{by}None of these optimizers is ruled out as the best."
    return f"{by}Not ruled out as the best: {listed(best)}{' alone' if len(best) == 1 else ''}."
