"""Groups as one HTML page: an answer, a picture, a table, and what lies behind each of its rows."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from pugdft import __version__
from pugdft.config import yaml
from pugdft.errors import counted, printable, shortened
from pugdft.figures.charts import svg_text, swatch
from pugdft.leaderboard import charts, columns
from pugdft.leaderboard.columns import NOTHING, Column, unit_of
from pugdft.leaderboard.entry import Entry, Group, finite
from pugdft.leaderboard.formats.csv_json import SCHEMA
from pugdft.leaderboard.verdicts import unfinished_text, verdict, versus_text
from pugdft.predictions import METRICS

PACKAGE = "pugdft.leaderboard.formats"  # whose templates a page of another package may share

_MOST_UNFILTERED = 12  # entries of a page that need no search
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
    environment.globals.update(swatch=_swatch)
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


def _table(
    group: Group, metric: str, rows: Sequence[Mapping[str, Any]], shows_all: bool = False
) -> dict[str, Any]:
    """Collect rows, and those columns in which an entry has something: first those that always show."""
    entries = [row["entry"] for row in rows]
    first = None if shows_all else {column.page for column in columns.first_columns(group)}
    made = [_column(column, group, entries, first) for column in columns.columns(metric) if column.page]
    shown = [column for column in made if any(cell["text"] != NOTHING for cell in column["cells"])]
    shown.sort(key=lambda column: column["is_extra"] and columns.SECTIONS.index(column["section"]))
    # Rank and optimizer, which the rows themselves have.
    lead = [(each.name, each.help, _explains(each)) for each in columns.columns(metric)[:2]]
    extra = Counter(column["section"] for column in shown if column["is_extra"])
    num_first = len(shown) - extra.total()
    return {"rows": rows, "lead": lead, "columns": shown, "num_first": num_first, "sections": extra.items()}


def _column(
    column: Column, group: Group, entries: Sequence[Entry], first_pages: Collection[str] | None
) -> dict[str, Any]:
    """A column's heading and cells; an empty ``sort`` stands behind every number in both directions."""
    values, page = [column.figure(entry) for entry in entries], columns.titled(column, group).page
    unit = columns.fitting_unit(column.units, values)
    texts, unit_name = [unit(value) for value in values], unit.name
    spreads = [""] * len(entries)
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
        "heading": [*page.split("\n"), *filter(None, [unit_name])],
        "section": column.section,
        "is_extra": first_pages is not None and page not in first_pages,
        "help": column.help,
        "explains": _explains(column),
        "first": first,  # the direction of the first click
        "sorted": first if column.is_ranked and is_sorted else "none",
        "ticks": [],
        "has_spread": any(spreads),
        "cells": [
            {"text": text, "sort": "" if value is None else repr(value), "spread": spread, "strip": None}
            for text, value, spread in zip(texts, values, spreads, strict=True)
        ],
    }


def _helps(explained: Sequence[Column], used: Collection[str]) -> list[tuple[str, str, str]]:
    """Explain each column that the page has once: id, name and text."""
    found = {}
    for column in explained:
        if column.help and (not column.page or _explains(column) in used):
            name = (
                (column.name or column.page).format(passes="equal", seconds="equal time").replace("\n", " ")
            )
            found[_explains(column)] = (name, column.help)
    return [(id, *each) for id, each in found.items()]


def _explains(column: Column) -> str:
    """Return the id of a column's explanation."""
    return re.sub(r"\W+", "-", f"what {column.name or column.page}")


def _row(id: str, entry: Entry, group: Group, style: int | None, badge: str) -> dict[str, Any]:
    """An entry's row and its details; ``id`` is unique on the page, ``badge`` is what marks the best."""
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
        "is_best": entry.rank_low == 1,
        "badge": badge if entry.rank_low == 1 else "",
        "is_told": bool(
            entry.versus_baseline.separated if entry.versus_baseline else badge and entry.rank_low == 1
        ),
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
    views = [
        _group_view(f"g{index}", group, styles, datasets.index(group.dataset), models.index(group.model))
        for index, (group, styles) in enumerate(zip(groups, charts.assign_styles(groups), strict=True))
    ]
    used = {
        column["explains"]
        for view in views
        for table in ("measured", "reported")
        for column in view[table]["columns"]
    }
    explained = [
        column for metric in {group.metric: None for group in groups} for column in columns.columns(metric)
    ]
    return {
        "groups": [view for view in views if view["measured"]["rows"] or not view["reported"]["rows"]],
        "elsewhere": [view for view in views if view["reported"]["rows"] and not view["measured"]["rows"]],
        "has_filters": len(groups) > 3 or len(entries) > _MOST_UNFILTERED,
        "datasets": datasets,
        "models": models,
        "helps": _helps(explained, used),
        "num_records": len({id for entry in entries for id in (*entry.records, *entry.unfinished_records)}),
    }


def _group_view(id: str, group: Group, styles: Mapping[int, int], dataset: int, model: int) -> dict[str, Any]:
    """Collect what a section of the page shows; its data set and model are positions in the page's lists."""
    ranked = [entry for entry in group.measured if entry.rank_low is not None]
    badge = "may be best" if len(group.best) > 1 else "best"
    # Where nothing is ruled out, a mark on every row tells nothing; with a baseline others are not compared.
    badge *= len(group.best) < len(ranked) and group.baseline is None
    rows = [
        _row(f"{id}e{index}", entry, group, styles.get(index), badge)
        for index, entry in enumerate(group.entries)
    ]
    measured = [row for row in rows if row["entry"].status == "measured"]
    reported = [row for row in rows if row["entry"].status == "reported"]
    costs = [charts.cost_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    histories = [charts.history_chart(group, styles, cost, id) for cost in ("passes", "seconds")]
    sharpness = [charts.sharpness_chart(group, styles, each, id) for each in charts.SHARPNESS]
    more = {"in the course of training": any(histories), "sharpness": any(sharpness)}
    return {
        "id": id,
        "group": group,
        "dataset": dataset,
        "model": model,
        "verdict": verdict(group),
        "notes": group.notes,
        "score_heading": unit_of(group.metric).heading(METRICS[group.metric].name),
        "means": _means(group, measured),
        "measured": _table(group, group.metric, measured),
        "reported": _table(group, "top1", reported, shows_all=True),
        "more": " and ".join(each for each in more if more[each]),
        "cost_charts": list(filter(None, costs)),
        "history_charts": list(filter(None, histories)),
        "sharpness_charts": list(filter(None, sharpness)),
    }


def _means(group: Group, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first picture: a row for each entry, its mean or its difference to the baseline on one axis."""
    metric, unit = METRICS[group.metric], unit_of(group.metric)
    shown = rows[: charts.MOST_ROWS]
    entries = [row["entry"] for row in shown]
    found = [charts.strip_summary(entry, group.metric, group.baseline) for entry in entries]
    strips, ticks = charts.interval_strips(entries, group.metric, 5, group.baseline)
    sign = "+" if group.baseline else ""
    texts = ["" if each is None else f"{sign * (each.mean > 0)}{unit(each.mean)}" for each in found]
    what = f"Test {metric.name}"
    minus = f", minus that of {shortened(group.baseline, 40)}" if group.baseline else ""
    return {
        "title": f"{unit.heading(what)}{minus}",
        "what": what,
        "direction": f"{'higher' if metric.higher_is_better else 'lower'} is better",
        "rows": list(zip(shown, strips, texts, strict=True)) if ticks else [],
        "ticks": ticks,
        "is_difference": group.baseline is not None,
        "left_out": len(rows) - len(shown),
    }
