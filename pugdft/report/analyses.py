"""What lies in ``analysis/`` beside a run, for a page: pictures in its theme, surfaces to turn, caveats."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pugdft.analysis.files import FOLDER, Analysis, find_analyses, read_analysis
from pugdft.errors import ConfigIssue, UserError, collect
from pugdft.figures import charts, paper, surfaces
from pugdft.figures.redraw import DRAWN_BY, damaged, redraw
from pugdft.leaderboard.formats.html import PACKAGE, render
from pugdft.records import StoredRun, is_number

_MOST = 12  # analyses of a run on a page
_SIDE = 81  # points of a surface to turn, along an axis: 35 KB of text
_COLOURS = 24
_LIFT = 0.01  # of a path above its surface

_TITLES = {
    "line": "Loss along lines through the weights",
    "plane": "Loss on a plane through the weights",
    "between": "Loss on the straight way between runs",
    "trajectory": "The way through weight space",
    "terrain": "Paths of optimizers on the loss surface of two weights",
    "spectrum": "Spectrum of the Hessian",
}
_MEASURES = (
    ("λ1", "lambda1", "residual"),
    ("adaptive λ1", "adaptive_lambda1", "residual"),
    ("trace", "trace", "half_width"),
    ("worst rise", "worst_rise", "rho"),
    ("adaptive worst rise", "adaptive_worst_rise", "rho"),
)
_WORDS = {"residual": "residual", "half_width": "±", "rho": "ρ ="}


def analysis_page(stored: Analysis) -> str:
    """Write a page on one analysis, with its surfaces to turn."""
    view = analysis_view(stored, "a")
    return rendered(f"{view['title']} ({stored.path.stem})", analyses=[view])


def rendered(title: str, **views: Any) -> str:
    """Fill the template of reports: ``sections`` of runs, how they ``compare``, or ``analyses`` alone."""
    every = {"sections": [], "compared": None, "analyses": [], **views}
    return render("report.html.j2", (PACKAGE, "pugdft.report"), title=title, **every)


def analyses_of(run: StoredRun, id: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Views of the analyses beside a run, and what a reader must know of those that are left out.

    Args:
        id: of the run's section on the page.
    """
    folder = run.path.parent
    paths = [*find_analyses(folder, ["sharpness"]), *find_analyses(folder / FOLDER, DRAWN_BY)]
    views, faults = list[dict[str, Any]](), list[ConfigIssue]()
    for path in paths[:_MOST]:
        with collect(faults):
            stored = read_analysis(path)
            _check_weights(stored, run)
            views.append(analysis_view(stored, f"{id}a{len(views)}"))
    left_out = [f"Left out: {str(fault).replace(f'{folder}/', '')}" for fault in faults]
    if len(paths) > _MOST:
        left_out.append(f"Left out: {len(paths) - _MOST} more of {len(paths)} analyses.")
    return views, left_out


def _check_weights(stored: Analysis, run: StoredRun) -> None:
    """Refuse an analysis of other weights than the run's."""
    records, model = stored.facts.get("records"), run.record.artifacts.get("model")
    if not isinstance(records, list) or not records or model is None:
        return
    digests = [each.get("weights_sha256") for each in records if isinstance(each, Mapping)]
    if model.sha256 not in digests:
        raise UserError(f"{stored.path}: is of other weights than the run's")


def analysis_view(stored: Analysis, id: str) -> dict[str, Any]:
    """Collect what a page shows of an analysis.

    Raises:
        UserError: its data are damaged, or not yet enough for a picture.
    """
    caveats, sample = stored.facts.get("caveats"), stored.facts.get("sample")
    with damaged(stored.path):
        split = f", {sample['images']} {sample['split']} images" if isinstance(sample, Mapping) else ""
        kind = stored.facts["options"]["kind"] if stored.kind == "landscape" else stored.kind
        view: dict[str, Any] = {
            "id": id,
            "title": f"{_TITLES.get(kind, 'Sharpness')}{split}",
            "file": stored.path.name,
            "caveats": [str(each) for each in caveats] if isinstance(caveats, list) else [],
            "numbers": list(_numbers(stored.facts)) if stored.kind == "sharpness" else [],
            "pictures": [],
            "panels": [],
            "colours": [],
        }
        if stored.kind != "sharpness":
            view["panels"] = list(_panels(stored))
    if stored.kind != "sharpness":
        view["pictures"] = _pictures(stored, view["title"])
    if view["panels"]:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex

        shades = colormaps[paper.MAP](np.linspace(paper.MAP_START, 1, _COLOURS))
        view["colours"] = [to_hex(each) for each in shades]
    return view


def _numbers(facts: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """The name, the value and a remark of each measure of sharpness."""
    for name, key, beside in _MEASURES:
        found = facts["numbers"][key]
        if not is_number(found["value"]):
            raise ValueError(f"numbers.{key}.value is no number")
        more = found.get(beside)
        yield name, f"{found['value']:.4g}", f"{_WORDS[beside]} {more:.2g}" if is_number(more) else ""


def _pictures(stored: Analysis, title: str) -> list[dict[str, Any]]:
    """Every picture of an analysis as ``<svg>``, whether it is a surface's, and whether it has panels."""
    with tempfile.TemporaryDirectory() as folder, damaged(stored.path):
        place, drawn = Path(folder) / stored.path.name, []
        for theme in ("light", "dark"):
            written = redraw(stored.kind, stored.facts, stored.arrays, place, ["svg"], theme=theme)
            drawn.append([(path.stem, path.read_bytes()) for path in written])
        light, dark = drawn
        return [
            {
                "svg": (svg := charts.page_svg(content, title, other)),
                "is_surface": name.endswith(("-surface", "-3d")),
                "is_broad": float(svg.partition('viewBox="')[2].split()[2]) > 72 * paper.WIDTHS["column"] + 1,
            }
            for (name, content), (_, other) in zip(light, dark, strict=True)
        ]


# --- surfaces to turn --------------------------------------------------------------------------------------


def _panels(stored: Analysis) -> Iterable[dict[str, Any]]:
    """The surfaces of an analysis, as a script draws them."""
    facts, arrays = stored.facts, stored.arrays
    if stored.kind == "terrain":
        axis = arrays["axis"]
        limits = (
            min(float(arrays[split].min()) for split in ("train", "test")),
            max(float(arrays[split].max()) for split in ("train", "test")),
        )
        for column, split in enumerate(("train", "test"), start=3):
            paths = [arrays[row["array"]][:, [1, 2, column]] for row in facts["optimizers"]]
            words = (split, "weight 1", "weight 2", "squared error")
            yield _panel(words, (axis, axis), arrays[split].T, limits, False, paths)
    elif stored.kind == "landscape" and facts["options"]["kind"] == "plane":
        loss, axis = arrays["loss"], arrays["alpha"]
        chosen = surfaces.lattice_done(loss, [1, 2], len(axis) // 2)
        shown = loss[:, chosen][:, :, chosen]
        limits = surfaces.loss_limits(shown)
        labels = surfaces.labels_of(facts)
        for label, values in zip(labels, shown, strict=True):
            words = (label if len(labels) > 1 else "", "α", "β", f"{facts['sample']['split']} loss")
            yield _panel(words, (axis[chosen],) * 2, values, limits, surfaces.is_wide(*limits))


def _panel(
    words: Sequence[str],
    axes: Sequence[np.ndarray],
    values: np.ndarray,
    limits: tuple[float, float],
    is_log: bool,
    paths: Sequence[np.ndarray] = (),
) -> dict[str, Any]:
    """One surface: heights from 0 to 1 as float32 in base64, and paths as x, y in -1..1 and a height.

    Args:
        words: the surface's title, and the names of both axes and of the height.
        values: (points along the first axis, points along the second).
        paths: each (points, 3).
    """
    low, high = limits

    def height(values: np.ndarray) -> np.ndarray:
        bounded = np.clip(np.where(np.isfinite(values), values, np.nan), low, high)
        return (np.log(bounded / low) / np.log(high / low)) if is_log else (bounded - low) / (high - low)

    step = -(-len(values) // _SIDE)
    drawn = []
    for path in paths:
        inside = np.all([np.abs(path[:, i]) <= np.abs(axes[i]).max() for i in (0, 1)], axis=0)
        path = path[: len(path) if inside.all() else int(np.argmin(inside))]
        places = [2 * (path[:, i] - axes[i][0]) / (axes[i][-1] - axes[i][0]) - 1 for i in (0, 1)]
        thin = slice(None, None, -(-len(path) // _SIDE) or 1)
        drawn.append(_packed(np.column_stack([*places, height(path[:, 2]) + _LIFT])[thin]))
    return {
        "words": list(words),
        "limits": [f"{each:.3g}" for each in limits],
        "side": len(values[::step]),
        "heights": _packed(height(values)[::step, ::step]),
        "paths": drawn,
    }


def _packed(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()
