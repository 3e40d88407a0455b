"""What histories and final results say, as plain data for :mod:`pugdft.figures.histories`. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import fmean
from typing import Any, Literal

import numpy as np

from pugdft.errors import UserError, counted, printable, unknown
from pugdft.figures.histories import PaperCurve, PaperPanel
from pugdft.leaderboard.columns import COUNT, PASSES, SECONDS, fitting_unit, unit_of
from pugdft.leaderboard.grouping import by_key, canonical, differing, entry_labels, shared_recipe
from pugdft.predictions import METRICS
from pugdft.records import RunRecord, StoredRun, is_number

Band = Literal["auto", "range", "sd", "ci", "none"]
_FEW = 5  # runs from which ``auto`` draws the interval of the mean
_RUNNING = "running mean, augmented"
_BROKEN = ("diverged", "failed", "oom")

# The horizontal axes: the key of a history's row, what it is called, its units.
AXES = {
    "epochs": ("epoch", "epochs", (COUNT,)),
    "passes": ("gradient_passes", "gradient passes", PASSES),
    "seconds": ("train_seconds", "training time", SECONDS),
}
# The vertical ones: what each is called for a reader of ``--help``.
QUANTITIES = {
    "loss": "of train and test images",
    "top1": "of train and test images",
    "gap": "test loss minus train loss",
    "gradient": "its norm",
    "perturbation": "its norm",
    "cosine": "of the clean and the perturbed gradient",
    "lr": "learning rate",
}
USUAL = ("loss", "gap", "gradient")

Value = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class RunSeries:
    """Runs that are drawn alike: the seeds of an optimizer, or one run."""

    label: str
    runs: tuple[StoredRun, ...]


@dataclass(frozen=True)
class _Measure:
    heading: str
    remark: str
    value: Value  # of a history's row
    scale: float = 1.0


def check_comparable(runs: Sequence[StoredRun]) -> None:
    """Refuse runs of different data, models or image sizes: their curves say nothing side by side."""
    first = next((run for run in runs if run.record.data is not None), runs[0])
    for run in runs:
        one, other = first.record, run.record
        pairs = {
            "data": (_data(one, other.data is not None), _data(other, one.data is not None)),
            "model": (one.model_label, other.model_label),
            "image size": tuple(each.recipe["data"].get("image_size") for each in (one, other)),
        }
        for what, (mine, theirs) in pairs.items():
            if mine != theirs:
                raise UserError(
                    printable(f"{first.path} and {run.path} differ in {what}: {mine} and {theirs}.")
                    + " Draw them apart"
                )


def _data(record: RunRecord, by_content: bool) -> str:
    """The data's name, with its digest if ``by_content``; a run that ended early does not know it."""
    if by_content and record.data is not None:
        return record.data.sha256[:8]
    return PurePath(record.recipe["data"]["name"]).name


def series_of(runs: Sequence[StoredRun], by: Literal["optimizer", "run"]) -> list[RunSeries]:
    """Sort runs into series; runs that differ in more than the seed are never drawn as one."""
    groups = list(by_key(runs, lambda run: canonical(_identity(run.record))).values())
    recipes = [group[0].record.recipe for group in groups]
    labels = entry_labels([recipe["optimizer"] for recipe in recipes])
    for alike in by_key(range(len(labels)), labels.__getitem__).values():
        found = differing([shared_recipe(recipes[index]) for index in alike])
        for index, keys in zip(alike, found, strict=True):
            words = ", ".join(f"{key.rpartition('.')[2]} {printable(value)}" for key, value in keys.items())
            labels[index] += f" ({words})" if words else ""
    if by == "optimizer":
        series = [RunSeries(label, tuple(group)) for label, group in zip(labels, groups, strict=True)]
        return sorted(series, key=lambda each: each.label)
    single = [
        (f"{label}, seed {run.record.seed}", run)
        for label, group in sorted(zip(labels, groups, strict=True), key=lambda pair: pair[0])
        for run in sorted(group, key=lambda run: run.record.seed)
    ]
    names = [name for name, _ in single]
    return [RunSeries(name if names.count(name) == 1 else run.record.id, (run,)) for name, run in single]


def _identity(record: RunRecord) -> dict[str, Any]:
    return {"optimizer": record.recipe["optimizer"], **shared_recipe(record.recipe)}


def usual_axis(series: Sequence[RunSeries]) -> str:
    """``passes`` if the optimizers take different numbers of passes for an update, else ``epochs``."""
    rates = []
    for run in (run for each in series for run in each.runs):
        last = run.record.history[-1] if run.record.history else {}
        if is_number(last.get("gradient_passes")) and is_number(last.get("steps")) and last["steps"]:
            rates.append(last["gradient_passes"] / last["steps"])
    return "passes" if rates and max(rates) > 1.01 * min(rates) else "epochs"


def panels_of(
    series: Sequence[RunSeries], quantities: Sequence[str] | None, axis: str, band: Band
) -> tuple[list[PaperPanel], str, list[str]]:
    """Return the panels, the heading of the horizontal axis, and what a caption has to say.

    Args:
        quantities: of :data:`QUANTITIES`; None: those of :data:`USUAL` that some run has.
        axis: of :data:`AXES`.

    Raises:
        UserError: no run has one of the quantities.
    """
    key, words, units = AXES[axis]
    rows = [row for each in series for run in each.runs for row in run.record.history]
    unit = fitting_unit(units, [row.get(key) for row in rows])
    is_evaluated = all(
        any(is_number(row.get("train_eval_loss")) for row in run.record.history)
        for each in series
        for run in each.runs
    )
    panels, missing = [], []
    for quantity in quantities or USUAL:
        found = []
        for measure in _measures(quantity, is_evaluated):
            curves = [
                curve
                for number, each in enumerate(series)
                for curve in _curves(each, number, measure, (key, unit.size), band)
            ]
            if curves:
                found.append(PaperPanel(heading=measure.heading, remark=measure.remark, curves=curves))
        if not found and quantities is not None:
            missing.append(quantity)
        panels += found
    if missing:
        raise UserError(
            f"--y {','.join(missing)}: no record has it in its history (records of older versions have no "
            "norms, and a method of one pass has no perturbation)"
        )
    if not panels:
        raise UserError("no record has a loss in its history: there is nothing to draw")
    return panels, unit.heading(words), _captions(series, panels, band, is_evaluated)


def _measures(quantity: str, is_evaluated: bool) -> list[_Measure]:
    """The panels of a quantity."""
    kind, remark = ("train_eval", "") if is_evaluated else ("train", f"train: {_RUNNING}")

    def of(key: str) -> Value:
        return lambda row: row.get(key)

    def gap(row: Mapping[str, Any]) -> Any:
        test, train = row.get("test_loss", row.get("validation_loss")), row.get(f"{kind}_loss")
        return test - train if is_number(test) and is_number(train) else None

    def held_out(measure: str) -> Value:
        return lambda row: row.get(f"test_{measure}", row.get(f"validation_{measure}"))

    return {
        "loss": [
            _Measure("train loss", remark, of(f"{kind}_loss")),
            _Measure("test loss", "", held_out("loss")),
        ],
        "top1": [
            _Measure("train top-1, %", remark, of(f"{kind}_top1"), 100),
            _Measure("test top-1, %", "", held_out("top1"), 100),
        ],
        "gap": [_Measure("test loss − train loss", remark, gap)],
        "gradient": [_Measure("gradient norm ‖g‖", "", of("gradient_norm"))],
        "perturbation": [_Measure("perturbation norm ‖e‖", "", of("perturbation_norm"))],
        "cosine": [_Measure("cos(g, g*)", "", of("gradient_cosine"))],
        "lr": [_Measure("learning rate", "", of("lr"))],
    }[quantity]


Point = tuple[float, float]


def _points(run: StoredRun, measure: _Measure, key: str, size: float) -> tuple[dict[float, Point], bool]:
    """A run's finite values by epoch, and whether values that are not finite come after the last one."""
    points: dict[float, Point] = {}
    is_lost = False
    for row in run.record.history:
        value, x, epoch = measure.value(row), row.get(key), row.get("epoch")
        if not (is_number(x) and is_number(epoch)):
            continue
        if is_number(value):
            points[epoch], is_lost = (x / size, value * measure.scale), False
        elif isinstance(value, float):
            is_lost = True
    return points, is_lost


def _curves(
    series: RunSeries, number: int, measure: _Measure, axis: tuple[str, float], band: Band
) -> list[PaperCurve]:
    """The mean of a series' completed runs with its band, and each other run alone."""
    whole: list[dict[float, Point]] = []
    curves = []
    for run in series.runs:
        points, is_lost = _points(run, measure, *axis)
        if not points:
            continue
        if run.record.status == "completed" and not is_lost:
            whole.append(points)
            continue
        xs, ys = zip(*points.values(), strict=True)
        is_stopped = is_lost or run.record.status in _BROKEN
        curves.append(
            PaperCurve(label=series.label, number=number, xs=xs, ys=ys, is_whole=False, is_stopped=is_stopped)
        )
    epochs = sorted(set.intersection(*map(set, whole))) if whole else []
    if epochs:
        means = [fmean(points[epoch][0] for points in whole) for epoch in epochs]
        values = np.array([[points[epoch][1] for epoch in epochs] for points in whole])
        middle, edges = values.mean(axis=0).tolist(), _band(values, band)
        curves.insert(0, PaperCurve(label=series.label, number=number, xs=means, ys=middle, band=edges))
    return curves


def chosen_band(band: Band, num_runs: int) -> Band:
    """The band that is drawn for a number of runs; none for one."""
    if num_runs < 2:
        return "none"
    return ("range" if num_runs < _FEW else "ci") if band == "auto" else band


def _band(values: np.ndarray, band: Band) -> tuple[list[float], list[float]] | None:
    """The edges of a band about the mean of runs, (runs, points) → two of (points,)."""
    num_runs, band = len(values), chosen_band(band, len(values))
    if band == "none":
        return None
    if band == "range":
        return values.min(axis=0).tolist(), values.max(axis=0).tolist()
    half = values.std(axis=0, ddof=1)
    if band == "ci":
        from scipy.special import stdtrit  # half a second, so only where it is needed

        half = half * (float(stdtrit(num_runs - 1, 0.975)) / math.sqrt(num_runs))
    middle = values.mean(axis=0)
    return (middle - half).tolist(), (middle + half).tolist()


_BANDS = {"range": "range", "sd": "± standard deviation", "ci": "95 % interval of the mean"}


def _captions(
    series: Sequence[RunSeries], panels: Sequence[PaperPanel], band: Band, is_evaluated: bool
) -> list[str]:
    """What a reader of the picture must know."""
    said = []
    counts = sorted({sum(run.record.status == "completed" for run in each.runs) for each in series})
    bands = sorted({chosen_band(band, count) for count in counts} - {"none"})
    if counts[-1] > 1:
        runs = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        words = " or ".join(_BANDS[each] for each in bands)
        said.append(f"lines: means of {runs} runs" + (f"; bands: {words}" if words else ""))
    else:
        said.append("each line is one run")
    headings = " ".join(panel.heading for panel in panels)
    if "train" in headings:
        said.append(
            "train: fixed images in evaluation mode, without augmentation"
            if is_evaluated
            else f"train: {_RUNNING}; train.evaluate_train=1000 gives the loss of fixed images instead"
        )
    if any(curve.is_stopped for panel in panels for curve in panel.curves):
        said.append("a cross is the last finite value of a run that diverged or failed; means leave it out")
    return said


def sweep_of(
    runs: Sequence[StoredRun], key: str, series_key: str | None, metric: str, band: Band
) -> tuple[list[PaperCurve], list[str] | None, tuple[str, str], list[str]]:
    """Return the curves of a sweep, the names of values that are no numbers, the headings and the caption.

    Args:
        key: a recipe's key, such as ``optimizer.alpha``, whose values are the horizontal axis.
        series_key: another, each of whose values is a curve; None for one curve.
        metric: of :data:`pugdft.predictions.METRICS`.

    Raises:
        UserError: no recipe has the key, or no run has a result at two of its values.
    """
    done = [run for run in runs if _result(run.record, metric) is not None]
    flats = [_flat(run.record.recipe) for run in done]
    known = sorted({each for flat in flats for each in flat})
    for option, wanted in (("--sweep", key), ("--series", series_key)):
        if wanted is not None and wanted not in known:
            raise UserError(f"{option}: {unknown('key of these recipes', wanted, known)}")
    kept = [(run, flat) for run, flat in zip(done, flats, strict=True) if key in flat]
    values = sorted({_text(flat[key]) for _, flat in kept}, key=lambda text: _order(json.loads(text)))
    if len(values) < 2:
        raise UserError(
            f"--sweep {key}: the runs have {counted(len(values), 'value')} of it: nothing to compare"
        )
    are_numbers = all(is_number(json.loads(text)) for text in values)
    xs = {text: float(json.loads(text)) if are_numbers else at for at, text in enumerate(values)}
    groups = by_key(kept, lambda pair: _text(pair[1].get(series_key)) if series_key else "null")
    unit, curves, counts = unit_of(metric), [], set()
    ordered = sorted(groups.items(), key=lambda item: _order(json.loads(item[0])))
    for number, (text, pairs) in enumerate(ordered):
        by_value = by_key(pairs, lambda pair: _text(pair[1][key]))
        found = {
            value: np.array([[_result(run.record, metric)] for run, _ in by_value[value]], float) / unit.size
            for value in values
            if value in by_value
        }
        counts |= {len(each) for each in found.values()}
        bands = [_band(each, band) or ([float(each.mean())], [float(each.mean())]) for each in found.values()]
        label = "" if series_key is None else f"{series_key.rpartition('.')[2]} = {_shown(text)}"
        curves.append(
            PaperCurve(
                label=label,
                number=number,
                xs=[xs[value] for value in found],
                ys=[float(each.mean()) for each in found.values()],
                band=([low for (low,), _ in bands], [high for _, (high,) in bands]),
            )
        )
    runs_each = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    words = sorted({_BANDS[each] for count in counts if (each := chosen_band(band, count)) != "none"})
    what = "each is one run" if runs_each == "1" else f"means of {runs_each} runs"
    said = [f"marks: {what}" + (f"; bars: {' or '.join(words)}" if words else "")]
    if left_out := len(runs) - len(kept):
        said.append(f"left out: {counted(left_out, 'run')} without {key} or without a result")
    names = None if are_numbers else [_shown(text) for text in values]
    heading = unit.heading(METRICS[metric].name)
    return curves, names, (key.rpartition(".")[2], heading), said


def _result(record: RunRecord, metric: str) -> float | None:
    if record.status != "completed" or record.metrics is None:
        return None
    split = record.metrics.test or record.metrics.validation
    value = getattr(split, metric, None)
    return value if is_number(value) else None


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        parts = (_flat(each, f"{place}.{key}" if place else str(key)) for key, each in value.items())
        return {key: each for part in parts for key, each in part.items()}
    return {place: value}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _shown(text: str) -> str:
    value = json.loads(text)
    return printable(f"{value:g}" if is_number(value) else value)


def _order(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if is_number(value) else (1, 0.0, str(value))
