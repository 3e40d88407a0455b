"""Groups as one HTML page: sortable tables, charts, and the details behind each row."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pugdft import __version__
from pugdft.config import yaml
from pugdft.errors import counted, printable
from pugdft.figures.charts import NUM_STYLES, shortened, svg_text, swatch
from pugdft.leaderboard import charts, columns
from pugdft.leaderboard.columns import NOTHING, Column, unit_of
from pugdft.leaderboard.entry import Entry, Group, finite
from pugdft.leaderboard.formats.csv_json import SCHEMA
from pugdft.leaderboard.verdicts import forest, unfinished_text, verdict, versus_text
from pugdft.predictions import METRICS

PACKAGE = "pugdft.leaderboard.formats"  # whose templates a page of another package may share

_ARXIV = re.compile(r"[0-9]{4}\.[0-9]{4,5}(v[0-9]{1,2})?")


def as_html(groups: Sequence[Group], title: str = "pugdft leaderboard") -> str:
    """Write the whole page. Equal groups give equal text."""
    return render("page.html.j2", (PACKAGE,), page=_page_view(groups), title=title, schema=SCHEMA)


def render(template: str, packages: Sequence[str], **values: Any) -> str:
    """Fill a template that extends ``base.html.j2``, with the styles and scripts of all ``packages``.

    Everything from a record is untrusted: it is put on one line, cleaned and escaped in one place for all of
    the template. The page's own policy allows the one style sheet and the one script whose hashes it names.
    """
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "templates") for package in packages]),
        autoescape=True,
        finalize=_harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(strip_width=charts.STRIP_WIDTH, num_styles=NUM_STYLES, swatch=_swatch)
    environment.filters["indented"] = escape  # made printable line by line before, with its indentation
    own: dict[str, str] = {}
    for key, suffix in (("style", "css"), ("script", "js")):
        # Read with the line ends that a browser hashes.
        files = [file for each in packages for file in (resources.files(each) / "templates").iterdir()]
        text = "".join(file.read_text(encoding="utf-8") for file in files if file.name.endswith(f".{suffix}"))
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        own |= {key: Markup(text), f"{key}_hash": f"sha256-{digest}"}  # noqa: S704 - no record's text
    return environment.get_template(template).render(version=__version__, **values, **own)


def _harmless(value: Any) -> Any:
    """Clean all text that is not the template's own markup."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _swatch(style: int, filled: bool) -> str:
    return svg_text(swatch(style, filled), f"swatch{style}{filled}")


def _table(group: Group, metric: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Collect rows, and by section those columns in which an entry has something."""
    entries = [row["entry"] for row in rows]
    chosen = sorted(columns.columns(metric), key=lambda column: columns.SECTIONS.index(column.section))
    made = [_column(columns.titled(column, group), entries) for column in chosen if column.page]
    shown = [
        column for column in made if any(cell["strip"] or cell["text"] != NOTHING for cell in column["cells"])
    ]
    sections = Counter(column["section"] for column in shown)
    return {"rows": rows, "columns": shown, "sections": sections.items()}


def _column(column: Column, entries: Sequence[Entry]) -> dict[str, Any]:
    """A column's heading and cells; an empty ``sort`` stands behind every number in both directions."""
    values = [column.figure(entry) for entry in entries]
    unit = columns.fitting_unit(column.units, values)
    texts, unit_name = [unit(value) for value in values], unit.name
    spreads = [""] * len(entries)
    strips, ticks = charts.interval_strips(entries, column.metric if column.is_interval else "")
    if column.is_ranked or column.has_spread:
        summaries = [
            entry.summary(column.metric) if column.is_ranked else column.get(entry) for entry in entries
        ]
        spreads = [f"± {unit(each.std)}" if each and each.std is not None else "" for each in summaries]
    if column.is_interval:
        texts = [columns.interval(entry, column.metric) or NOTHING for entry in entries]
        unit_name = ""  # the mean beside it has the same
    first = "ascending" if column.lower_first else "descending"
    known = [value for value in values if value is not None]
    is_sorted = values[: len(known)] == sorted(known, reverse=not column.lower_first)
    return {
        "heading": [*column.page.split("\n"), *filter(None, [unit_name])],
        "section": column.section,
        "is_at_equal_cost": column.section == columns.EQUAL,
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
    asides = [shortened(unfinished_text(entry), 60)] if entry.unfinished else []
    asides += [counted(len(entry.notes), "note")] if entry.notes else []
    arxiv = (entry.source.arxiv or "") if entry.source else ""
    seeds = sorted(entry.scores)
    is_known_whose, score = len(seeds) == len(entry.records), unit_of(group.metric)
    ids = entry.records if is_known_whose else [None] * len(seeds)
    return {
        "id": id,
        "entry": entry,
        "style": style,
        "rank": columns.rank(entry),
        "rank_sort": "" if entry.rank_low is None else f"{entry.rank_low} {entry.rank_high}",
        "badge": ("tied best" if len(group.best) > 1 else "best") if entry.rank_low == 1 else "",
        "asides": asides,
        "facts": _facts(entry, group),
        "seeds": [(seed, score(entry.scores[seed]), record) for seed, record in zip(seeds, ids, strict=True)],
        "records": () if is_known_whose else entry.records,
        "spec": spec_lines(entry.spec),
        "arxiv": arxiv if _ARXIV.fullmatch(arxiv) else "",
    }


def _facts(entry: Entry, group: Group) -> dict[str, str]:
    """Say what is known of an entry, by its name."""
    whom = "the baseline" if entry.versus_baseline else "the best"
    facts = {f"against {whom}": versus_text(entry, group)}
    for key, metric in METRICS.items():
        if entry.summary(key):
            interval = columns.interval(entry, key)
            mean = f"{columns.mean_and_spread(entry, key)} {metric.unit}".rstrip()
            facts[metric.name] = f"{mean}{interval and f', 95 % CI {interval}'}"
    if finite(entry.best_test_top1) is not None:
        best = columns.PERCENT.phrase(entry.best_test_top1)
        facts["best epoch"] = f"{best}, picked on the test split: never ranks"
    if entry.tuning:
        spent = f"{columns.number(entry.tuning.gradient_passes, 0)} gradient passes"
        facts["tuning"] = f"{counted(entry.tuning.trials, 'trial')} on held-out images, {spent}"
    if finite(entry.gradient_passes) is not None:
        facts["gradient passes"] = columns.number(entry.gradient_passes, 0)
    if entry.unfinished:
        facts["not counted"] = f"{unfinished_text(entry)}; not in any mean"
    return {name: text for name, text in facts.items() if text}


def spec_lines(spec: Mapping[str, Any]) -> list[str]:
    """Write the ``optimizer`` mapping as YAML, each line safe to show with its indentation."""
    lines = [line for line in yaml.dump(dict(spec)).split("\n") if line.strip()]
    return [line[: len(line) - len(line.lstrip(" "))] + printable(line) for line in lines]


def _page_view(groups: Sequence[Group]) -> dict[str, Any]:
    datasets = list(dict.fromkeys(group.dataset for group in groups))
    models = list(dict.fromkeys(group.model for group in groups))
    entries = [entry for group in groups for entry in group.entries]
    return {
        "groups": [
            _group_view(f"g{index}", group, styles, datasets.index(group.dataset), models.index(group.model))
            for index, (group, styles) in enumerate(zip(groups, charts.assign_styles(groups), strict=True))
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
    costs = [charts.cost_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    histories = [charts.history_chart(group, styles, cost, id) for cost in charts.COSTS]
    sharpness = [charts.sharpness_chart(group, styles, each, id) for each in charts.SHARPNESS]
    return {
        "id": id,
        "group": group,
        "dataset": dataset,
        "model": model,
        "verdict": verdict(group),
        "forest": "\n".join(forest(group)),
        "score_heading": unit_of(group.metric).heading(METRICS[group.metric].name),
        "measured": _table(group, group.metric, measured),
        "reported": _table(group, "top1", reported),
        "legend": [row for row in measured if row["style"] is not None],
        "cost_charts": list(filter(None, costs)),
        "history_charts": list(filter(None, histories)),
        "sharpness_charts": list(filter(None, sharpness)),
    }
