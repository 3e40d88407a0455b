"""Reports of runs as one HTML page: numbers, curves, classes, mistakes, and how each run was made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pugdft.errors import counted, human_bytes, printable
from pugdft.figures import charts
from pugdft.leaderboard.charts import interval_strips, strip_place
from pugdft.leaderboard.columns import COUNT, NOTHING, PASSES, PERCENT, SECONDS, fitting_unit, number, unit_of
from pugdft.leaderboard.entry import Entry, Summary, finite
from pugdft.leaderboard.formats.html import spec_lines
from pugdft.leaderboard.grouping import differing, entry_labels, protocol_line
from pugdft.leaderboard.warnings import listed
from pugdft.predictions import METRICS
from pugdft.records import RunRecord, is_number
from pugdft.report.analyses import analyses_of, rendered
from pugdft.report.facts import ClassResult, EvaluatedSplit, RunFacts

MOST_IN_TABLE = 25  # classes: a larger confusion matrix is drawn as a picture
_MOST_IN_PICTURE = 1_000  # classes
_MOST_ROWS, _MOST_PAIRS = 1_000, 15
_LEVELS = 9  # shades of a confusion table's cells
_PARTS = ("train", "test", "validation", "train_eval")  # the style of each one's curve

Epochs = list[tuple[float, float]]  # an epoch with a value
Lines = list[tuple[str, int | None, Epochs]]  # with their labels and styles


def as_page(runs: Sequence[RunFacts]) -> str:
    """Write the page; equal runs give equal text."""
    names = _labels(runs)
    single = len(runs) == 1
    title = runs[0].record.id if single else f"Report on {len(runs)} runs"
    sections = [
        _run_view(f"r{at}", run, name) for at, (run, name) in enumerate(zip(runs, names, strict=True))
    ]
    compared = None if single else _comparison(runs, names)
    return rendered(title, sections=sections, compared=compared)


def _labels(runs: Sequence[RunFacts]) -> list[str]:
    """Name each run by its method, with the options that differ, and its seed; equal names get numbers."""
    specs = [run.record.recipe["optimizer"] for run in runs]
    names = [f"{name}, seed {run.record.seed}" for name, run in zip(entry_labels(specs), runs, strict=True)]
    return [
        f"{name} ({names[: at + 1].count(name)})" if names.count(name) > 1 else name
        for at, name in enumerate(names)
    ]


def _run_view(id: str, run: RunFacts, name: str) -> dict[str, Any]:
    """Collect what the section of a run shows."""
    record, evaluated = run.record, run.evaluated
    curves, legend = _run_curves(id, record.history)
    analyses, left_out = analyses_of(run.run, id)
    return {
        "id": id,
        "name": name,
        "record": record,
        "answer": _answer(run),
        "made": _made(record),
        "cautions": [*run.cautions, *left_out],
        "analyses": analyses,
        "numbers": list(_numbers(run)),
        "curves": curves,
        "legend": legend,
        "missing": run.missing,
        "evaluated": _evaluation_view(id, evaluated, run) if evaluated else None,
        "facts": _facts(run),
        "recipe": spec_lines(record.recipe),
        "environment": spec_lines(record.environment),
    }


def _answer(run: RunFacts) -> str:
    """Say in a sentence what the run achieved."""
    if run.metrics is None:
        return f"No result: the run ended as {run.record.status}."
    share, images = PERCENT.phrase(run.metrics.top1), counted(run.num_images, f"{run.split} image")
    interval = _interval_text(run.interval, " (95 % interval over images: ", " %)")
    origin = run.record.metrics.origin if run.record.metrics else ""
    of_weights = "" if origin in ("", "the last epoch") else f" These are of {origin}."
    return f"{share} of {images} are classified correctly{interval}.{of_weights}"


def _interval_text(interval: tuple[float, float] | None, before: str = "", after: str = "") -> str:
    return f"{before}{' to '.join(map(PERCENT, interval))}{after}" if interval else ""


def _made(record: RunRecord) -> str:
    """Say what was trained, on what and how."""
    recipe, data = record.recipe, record.data
    [method] = entry_labels([recipe["optimizer"]])
    images = ""
    if data:
        train = counted(data.sizes["train"], "training image") if "train" in data.sizes else "images"
        images = f" ({train}, {counted(data.classes, 'class')})"
    name = data.name if data else recipe["data"]["name"]
    return f"{recipe['model']['name']} trained with {method} on {name}{images}: {protocol_line(recipe)}."


def _numbers(run: RunFacts) -> Iterable[tuple[str, str, str]]:
    """Yield the name, the value and a remark of each metric."""
    if run.metrics is None:
        return
    num_classes = run.record.data.classes if run.record.data else 0
    for key, metric in METRICS.items():
        value = finite(getattr(run.metrics, key, None))
        if value is None or (key == "top5" and num_classes <= 5):
            continue
        remark = ""
        if key == "top1":
            remark = _interval_text(run.interval, "", " %")
        yield metric.name, unit_of(key).phrase(value), remark
    if run.evaluated:
        yield "always the most frequent class", PERCENT.phrase(run.evaluated.baseline), "for comparison"
    best = run.record.metrics.best_test if run.record.metrics else None
    if best and run.split == "test" and finite(best.top1) is not None:
        yield f"best epoch ({best.epoch})", PERCENT.phrase(best.top1), "picked on the test split: never ranks"


def _facts(run: RunFacts) -> dict[str, dict[str, str]]:
    """What a run was made of and what it cost, by heading and name."""
    record = run.record
    cost, method, model, data = record.cost, record.method, record.model, record.data
    seconds = fitting_unit(SECONDS, [cost.train_seconds])
    spent = {
        "epochs": number(cost.epochs, 0),
        "updates": number(cost.steps, 0),
        "gradient passes": number(cost.gradient_passes, 0),
        "training time": seconds.phrase(cost.train_seconds),
        "evaluation time": seconds.phrase(cost.eval_seconds),
        "images a second": number(cost.images_per_second, 1),
        "peak memory": human_bytes(cost.peak_memory_bytes) if cost.peak_memory_bytes else NOTHING,
    }
    acted = {
        "updates of two passes": PERCENT.phrase(method.two_pass_fraction),
        "mean length of the perturbation": number(method.mean_perturbation_norm, 4),
        "mean cosine of both gradients": number(method.mean_gradient_cosine, 4),
    }
    tuning = record.recipe.get("tuning")
    if isinstance(tuning, Mapping) and is_number(tuning.get("trials")):
        acted["tuning"] = f"{counted(int(tuning['trials']), 'trial')} on held-out images"
    of_model = {"name": record.model_label, "parameters": number(model.parameters, 0)} if model else {}
    if model:
        of_model |= {"weights from": model.pretrained_tag or NOTHING, "head": model.head or NOTHING}
    of_data = {"name": data.name, "classes": number(data.classes, 0)} if data else {}
    if data:
        of_data |= {f"{split} images": number(size, 0) for split, size in data.sizes.items()}
        of_data["sha256"] = data.sha256
    starts = {"restarts": number(len(record.restarts), 0)} if record.restarts else {}
    return {"Cost": spent | starts, "Method": acted, "Model": of_model, "Data": of_data}


def _run_curves(id: str, history: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Draw a run's history, and list what stands in its legend."""
    parts = sorted(
        {key.rpartition("_")[0] for row in history for key in row if key.endswith(("_loss", "_top1"))},
        key=lambda part: (part not in _PARTS, _PARTS.index(part) if part in _PARTS else 0, part),
    )[: charts.NUM_STYLES]

    def lines(measure: str) -> Lines:
        return [(part, at, _epochs(history, f"{part}_{measure}")) for at, part in enumerate(parts)]

    rates: Lines = [("learning rate", None, _epochs(history, "lr"))]
    legend = [(f"{id}s{at}", at, part) for at, part in enumerate(parts)]
    return _three_charts(id, lines, rates), legend


def _three_charts(id: str, lines: Callable[[str], Lines], rates: Lines) -> list[dict[str, Any]]:
    chosen = (
        ("loss", "Loss", lines("loss")),
        ("top1", "Top-1", lines("top1")),
        ("lr", "Learning rate", rates),
    )
    found = (_curve_chart(id, kind, title, found) for kind, title, found in chosen)
    return [chart for chart in found if chart]


def _epochs(history: Sequence[Mapping[str, Any]], key: str) -> Epochs:
    """The finite values of a history's key."""
    points = [(row.get("epoch"), row.get(key)) for row in history]
    return [(float(epoch), float(value)) for epoch, value in points if is_number(epoch) and is_number(value)]


def _curve_chart(id: str, kind: str, title: str, lines: Lines) -> dict[str, Any] | None:
    """Draw lines over epochs, each with its label and style; None where none has a point."""
    lines = [line for line in lines if line[2]]
    if not lines:
        return None
    values = [value for *_, points in lines for _, value in points]
    heading, size = title.lower(), 1.0
    limits, notes = (0.0, 100.0), []
    if kind == "top1":
        heading, size = PERCENT.heading("top-1"), PERCENT.size
        limits = charts.padded(min(values) / size, max(values) / size, limits)
    else:
        # A diverged loss must not hide the epochs before.
        cut = min(max(values), 10 * float(np.median(values))) if kind == "loss" else max(values)
        power = math.floor(math.log10(cut)) if cut > 0 else 0
        if not -2 <= power <= 3:
            heading, size = f"{heading}, 10{str(power).translate(_SUPERSCRIPT)}", 10.0**power
        kept = [value / size for value in values if value <= cut]
        limits = charts.padded(min(kept), max(kept), (0.0, math.inf))
        if max(values) > cut:
            notes.append(f"What lies above {number(cut, 2)} is cut off.")
    curves = []
    for label, style, points in lines:
        epochs, found = zip(*points, strict=True)
        last = PERCENT.phrase(found[-1]) if kind == "top1" else f"{found[-1]:.4g}"
        tip = f"{label}: {heading.partition(',')[0]} {last} after epoch {epochs[-1]:g}"
        shown = [value / size for value in found]
        look: dict[str, Any] = {
            "label": label,
            "style": style,
            "key": f"{id}s{style}" if style is not None else "-",
            "tip": tip,
        }
        curves.append(charts.History(**look, costs=epochs, values=shown))
    svg = charts.svg_text(
        charts.histories(curves, ("epochs", heading), limits), f"{id}{kind}", f"{title} over the epochs"
    )
    return {"title": title, "cost": "epochs", "svg": svg, "notes": notes}


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _evaluation_view(id: str, evaluated: EvaluatedSplit, run: RunFacts) -> dict[str, Any]:
    """Collect what a page shows of single images and classes."""
    results = evaluated.classes()
    num_classes = len(results)
    pairs = evaluated.confused(_MOST_PAIRS)
    view: dict[str, Any] = {
        "split": run.split,
        "classes": _class_table(id, results[:_MOST_ROWS], run.split),
        "left_out": num_classes - len(results[:_MOST_ROWS]),
        "summary": _class_summary(results),
        "pairs": [(pair, number(pair.num_images, 0), PERCENT.phrase(pair.share)) for pair in pairs],
        "matrix": _matrix(evaluated) if num_classes <= MOST_IN_TABLE else None,
        "picture": None,
        "mistakes": [(each, PERCENT.phrase(each.confidence)) for each in evaluated.mistakes()],
        "num_wrong": int((evaluated.predictions.label != evaluated.predictions.prediction).sum()),
        "without_pictures": run.without_pictures,
        "calibration": _calibration(id, evaluated),
    }
    if MOST_IN_TABLE < num_classes <= _MOST_IN_PICTURE:
        view["picture"] = _picture(id, evaluated)
    return view


def _class_summary(results: Sequence[ClassResult]) -> str:
    tested = [each for each in results if each.num_images]
    low, high = tested[0], tested[-1]
    span = f"from {PERCENT.phrase(low.num_right / low.num_images)} ({printable(low.name)[:60]}) to "
    span += f"{PERCENT.phrase(high.num_right / high.num_images)} ({printable(high.name)[:60]})"
    none = (
        f"; {counted(len(results) - len(tested), 'class')} without images"
        if len(results) > len(tested)
        else ""
    )
    return f"{span}{none}"


def _column(heading: Sequence[str], cells: Sequence[Any], **more: Any) -> dict[str, Any]:
    """Describe a table's column; a cell is its text, the number that sorts it, and perhaps a strip."""
    made = [
        {"text": text, "sort": "" if sort is None else repr(sort), "spread": "", "strip": strip}
        for text, sort, strip in cells
    ]
    defaults = {"first": "descending", "sorted": "none", "help": "", "ticks": [], "has_spread": False}
    defaults |= {"is_extra": False, "explains": ""}
    return {**defaults, "heading": heading, "cells": made, **more}


def _share_columns(
    title: str, shares: Sequence[float | None], intervals: Sequence[Any], strips: Sequence[Any], ticks: Any
) -> list[dict[str, Any]]:
    """Columns of accuracies, and of their intervals as strips; a share of None has neither."""
    texts = [
        (_interval_text(interval), interval[0], strip) if strip else (NOTHING, None, None)
        for interval, strip in zip(intervals, strips, strict=True)
    ]
    values = [(PERCENT(share), share, None) for share in shares]
    note = "Wilson interval over images."
    return [_column([title, "%"], values), _column(["95 % CI"], texts, help=note, ticks=ticks)]


def _class_table(id: str, results: Sequence[ClassResult], split: str) -> dict[str, Any]:
    shares = [each.num_right / each.num_images if each.num_images else None for each in results]
    whole = {
        "cut_low": False,
        "cut_high": False,
        "seeds": [],
        "off": False,
        "zero": None,
    }  # the axis has all shares
    strips = [
        None
        if share is None
        else whole | {"mean": strip_place(share), "bar": tuple(map(strip_place, each.interval))}
        for share, each in zip(shares, results, strict=True)
    ]
    ticks = [(strip_place(share), text) for share, text in ((0, "0"), (0.5, "50"), (1, "100"))]
    columns = _share_columns("accuracy", shares, [each.interval for each in results], strips, ticks)
    columns[0]["sorted"] = "ascending"
    counts = [(number(each.num_images, 0), each.num_images, None) for each in results]
    return {
        "name": "class",
        "caption": "Accuracy of each class",
        "rows": [(f"{id}c{at}", each.name, each.taken_for) for at, each in enumerate(results)],
        "columns": [*columns, _column([f"{split}", "images"], counts)],
        "last": "most often taken for",
    }


def _matrix(evaluated: EvaluatedSplit) -> dict[str, Any]:
    """The confusion matrix as rows of cells: the number of images, a shade, and what it means in words."""
    counts, names = evaluated.confusion(), evaluated.names
    rows = []
    for true, name in enumerate(names):
        total = max(1, int(counts[true].sum()))
        cells = []
        for other, count in enumerate(map(int, counts[true])):
            shade = math.ceil(_LEVELS * count / total)
            kind = ("right " if true == other else "") + (f"w{shade}" if shade else "none")
            cells.append(
                (number(count, 0), kind, f"{name} → {names[other]}: {count:,} of {counts[true].sum():,}")
            )
        rows.append((name, cells))
    return {"names": names, "rows": rows}


def _picture(id: str, evaluated: EvaluatedSplit) -> dict[str, Any]:
    """The confusion matrix as a picture, in an order in which confused classes stand together."""
    counts = evaluated.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    order = _confused_together(shares)
    place = np.argsort(order)
    figure = charts.confusion(shares[np.ix_(order, order)], ("predicted class", "true class"))
    return {
        "svg": charts.svg_text(
            figure, f"{id}confusion", "Confusion matrix; the table has the most confused pairs"
        ),
        "names": [printable(evaluated.names[at])[:60] for at in order],
        "sums": [int(total) for total in evaluated.num_images[order]],
        "cells": [[int(place[true]), int(place[other]), count] for true, other, count in evaluated.pairs],
    }


def _confused_together(shares: np.ndarray) -> np.ndarray:
    """Order classes so that those that are taken for one another are neighbours, by average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    alike = shares + shares.T
    np.fill_diagonal(alike, 0)
    distances = (alike.max() - alike)[np.triu_indices(len(alike), 1)]
    return leaves_list(linkage(distances, "average"))


def _calibration(id: str, evaluated: EvaluatedSplit) -> str:
    bins = [
        charts.CalibrationBin(
            label="",
            style=0,
            filled=True,
            tip=f"{counted(each.num_images, 'image')}: mean confidence {PERCENT.phrase(each.confidence)}, "
            f"accuracy {PERCENT.phrase(each.accuracy)} (95 % CI {_interval_text(each.interval)})",
            num_images=each.num_images,
            confidence=100 * each.confidence,
            accuracy=100 * each.accuracy,
            interval=(100 * each.interval[0], 100 * each.interval[1]),
        )
        for each in evaluated.calibration()
    ]
    figure = charts.calibration(bins, ("confidence, %", "accuracy, %"))
    return charts.svg_text(figure, f"{id}calibration", "Accuracy against confidence")


def _comparison(runs: Sequence[RunFacts], names: Sequence[str]) -> dict[str, Any]:
    """The runs beside each other: a table, and their curves in one chart each."""
    records = [run.record for run in runs]
    shares = [finite(run.metrics.top1) if run.metrics else None for run in runs]
    entries = [
        Entry(
            name,
            "measured",
            {},
            summaries={} if share is None else {"top1": Summary(share, None, run.interval)},
        )
        for name, share, run in zip(names, shares, runs, strict=True)
    ]
    columns = _share_columns(
        "top-1", shares, [run.interval for run in runs], *interval_strips(entries, "top1")
    )
    for key in [key for key in METRICS if key != "top1"]:
        values = [finite(getattr(run.metrics, key, None)) if run.metrics else None for run in runs]
        unit, first = unit_of(key), "descending" if METRICS[key].higher_is_better else "ascending"
        heading = [METRICS[key].name, *filter(None, [unit.name])]
        columns.append(_column(heading, [(unit(value), value, None) for value in values], first=first))
    costs = (("gradient passes", "gradient_passes", PASSES), ("training time", "train_seconds", SECONDS))
    for title, field, units in costs:
        values = [finite(getattr(record.cost, field)) for record in records]
        unit = fitting_unit(units, values)
        cells = [(unit(value), value, None) for value in values]
        columns.append(_column([title, *filter(None, [unit.name])], cells, first="ascending"))
    columns.append(_column(["images"], [(COUNT(run.num_images), run.num_images, None) for run in runs]))
    differences = [
        ", ".join(f"{key}={printable(value)[:40]}" for key, value in found.items() if not _is_named(key))
        for found in differing([record.recipe for record in records])
    ]
    rows = [(f"r{at}", name, text) for at, (name, text) in enumerate(zip(names, differences, strict=True))]
    is_open = [record.status if record.status != "completed" else "" for record in records]
    drawn = list(enumerate(zip(runs, names, strict=True)))[: charts.NUM_STYLES]

    def lines(measure: str) -> Lines:
        return [(name, at, _evaluated_epochs(run, measure)) for at, (run, name) in drawn]

    rates: Lines = [(name, at, _epochs(run.record.history, "lr")) for at, (run, name) in drawn]
    cautions = []
    if len({_images_of(run) for run in runs}) > 1:
        cautions.append("The runs were evaluated on different images: their numbers cannot be compared.")
    if unfinished := [f"{name} ({status})" for name, status in zip(names, is_open, strict=True) if status]:
        cautions.append(f"Not completed: {listed(unfinished)}.")
    return {
        "table": {
            "name": "run",
            "caption": "The runs of this page",
            "rows": rows,
            "columns": columns,
            "last": "recipe, where it differs" if any(differences) else "",
        },
        "curves": _three_charts("all", lines, rates),
        "legend": [(f"alls{at}", at, name) for at, (_, name) in drawn],
        "left_out": len(runs) - len(drawn),
        "cautions": cautions,
    }


def _is_named(key: str) -> bool:
    """Whether a key of the recipe stands in the run's name, or is of no matter to its result."""
    return key.startswith(("optimizer", "tuning")) or key == "train.seed"


def _images_of(run: RunFacts) -> tuple[object, ...]:
    data = run.record.data
    return (data.sha256, run.split, run.num_images) if data else (None,)


def _evaluated_epochs(run: RunFacts, measure: str) -> Epochs:
    """Epochs on the evaluated split, or while training if it was not evaluated on the way."""
    history = run.record.history
    return _epochs(history, f"{run.split}_{measure}") or _epochs(history, f"train_{measure}")
