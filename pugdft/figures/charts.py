"""Draw plain numbers, in the units to show: SVG text for a page, or a PDF, PNG or SVG file for a paper.

Equal data give equal files: pyplot and the user's matplotlibrc are not used. Only drawing imports matplotlib.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, median_low
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from pugdft.errors import printable, shortened

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Theme = Mapping[str, str]  # names of colours to their values
Titles = tuple[str, str]  # of the horizontal axis, which starts at zero, and of the vertical one
Span = tuple[float, float]  # lowest and highest value
_Mark = tuple["Result", float, float]  # with its place in points

# Each style has its own colour, marker and dashes.
_SERIES = ("#0b67b2", "#d0560a", "#2f8a85", "#611661", "#444606", "#9566fa", "#884f61", "#231da3")
_SERIES_DARK = ("#5cb3f0", "#f08c28", "#97f464", "#c75fc6", "#a8922a", "#8784fb", "#f14e7b", "#ebebeb")
MARKERS = "os^DvPpX"
DASHES = ((), (7, 3), (2, 3), (9, 3, 2, 3), (14, 4), (4, 2), (1, 2.5), (9, 3, 2, 3, 2, 3))
NUM_STYLES = len(MARKERS)

LIGHT = {"page": "#ffffff", "text": "#1b1f24", "muted": "#59616b", "faint": "#e8ebee"}
LIGHT |= {f"s{style}": colour for style, colour in enumerate(_SERIES)}
DARK = {"page": "#15181c", "text": "#e7e9ec", "muted": "#a3abb5", "faint": "#292e34"}
DARK |= {f"s{style}": colour for style, colour in enumerate(_SERIES_DARK)}

_HEIGHT, _LEFT, _BOTTOM, _TOP = 302.0, 50.0, 46.0, 276.0  # in points, from the lower left corner
_MARK_GAP = 8.0  # between marks of equal cost
_CLUSTER_GAP = 28.0  # marks that are nearer share a column of labels
_LINE_HEIGHT, LINE_WIDTH = 14.0, 1.8
_LEADER = {"marker": "", "lw": 0.8, "zorder": 1.5}  # a thin line from a mark to its label
_FAR = 6.0  # a mean this many median distances behind the best is left off the axis
_LEAST = 0.002  # of a value: a smaller spread counts as this
_STARTED = 0.3  # of a training: later values must be on the axis
_PLACES = ("d", "transform", "x", "y")  # SVG attributes that hold coordinates
_SVG, _LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
# A picture has its own colours in both themes: of what is right, and of what is confused.
_RIGHT, _CONFUSED = (0.16, 0.53, 0.86), (0.92, 0.42, 0.10)


@dataclass(frozen=True, kw_only=True)
class Series:
    label: str
    style: int | None  # 0 to NUM_STYLES − 1; None for small grey marks without a label
    filled: bool = False  # whether marks are filled and the label is bold
    key: str = "-"  # name of the series in a page (`data-series`)
    tip: str = ""  # shown on the page when the pointer is over the mark


@dataclass(frozen=True, kw_only=True)
class Result(Series):
    """A mean at its cost, with the ends of its interval if it has one."""

    cost: float
    mean: float
    interval: Span | None = None


@dataclass(frozen=True, kw_only=True)
class History(Series):
    costs: Sequence[float]
    values: Sequence[float]


@contextmanager
def _own_settings(salt: str = "pugdft") -> Iterator[None]:
    """Use matplotlib's defaults and our own settings, whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # The page's fonts may have the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        own: Any = {"svg.fonttype": "none", "svg.hashsalt": salt, "pdf.fonttype": 42, "font.size": 12.5}
        matplotlib.rcParams.update(own)
        yield


class _Chart:
    """A figure with one pair of axes. Marks and labels have places in points, lines have values."""

    def __init__(
        self, shape: Sequence[float], costs: Sequence[float], limits: Span, titles: Titles, theme: Theme
    ) -> None:
        """Draw the axes; ``shape`` is the figure's width, their right end, and the room beside the costs."""
        from matplotlib.figure import Figure
        from matplotlib.transforms import Affine2D

        (width, right, room), self.theme, muted = shape, theme, theme["muted"]
        self.figure = Figure((width / 72, _HEIGHT / 72), dpi=72, facecolor=theme["page"])
        self.points = Affine2D().scale(1 / 72) + self.figure.dpi_scale_trans
        place = (_LEFT / width, _BOTTOM / _HEIGHT, (right - _LEFT) / width, (_TOP - _BOTTOM) / _HEIGHT)
        axes = self.axes = self.figure.add_axes(place, facecolor="none")
        axes.set(xlim=(0, room * max(costs) or 1.0), ylim=limits, axisbelow=True)
        for x, y, title, side in ((right, 8, titles[0], "right"), (8, _TOP + 14, titles[1], "left")):
            axes.text(x, y, title, transform=self.points, ha=side, color=muted, parse_math=False)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.spines["bottom"].set_color(muted)
        axes.tick_params(color=muted, labelcolor=muted)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color=theme["faint"], linewidth=1)
        axes.locator_params(nbins=6, steps=[1, 2, 2.5, 5, 10])
        axes.locator_params(axis="x", integer=all(float(cost).is_integer() for cost in costs))
        axes.ticklabel_format(style="plain", useOffset=False)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a value, or the nearest one on the axis."""
        x, y = self.axes.transData.transform((x, y))
        return float(x), min(max(float(y), _BOTTOM), _TOP)

    def line(self, xs: Sequence[float], ys: Sequence[float], group: str, series: Series, **look: Any) -> None:
        """Draw a line or marks, at places by default."""
        look = _marker(series, self.theme) | {"transform": self.points, "clip_on": False} | look
        # `svg_text` reads class, series and tip from the id.
        self.axes.plot(xs, ys, gid=f"{group} {series.key} {printable(series.tip)}", **look)

    def label(self, x: float, y: float, series: Series, most: int, side: str = "left") -> Any:
        """Write at most so many characters of a label."""
        look: Any = {"color": self.theme["text"], "weight": "bold" if series.filled else "normal"}
        look |= {"ha": side, "va": "center_baseline", "gid": f"label {series.key}", "parse_math": False}
        return self.axes.text(x, y, shortened(printable(series.label), most), transform=self.points, **look)


def _marker(series: Series, theme: Theme) -> dict[str, Any]:
    if series.style is None:
        return {"color": theme["muted"], "marker": "o", "ms": 5, "mew": 0, "alpha": 0.6}
    colour = theme[f"s{series.style}"]
    fill = colour if series.filled else theme["page"]
    return {"color": colour, "marker": MARKERS[series.style], "mfc": fill, "mew": 1.7, "ms": 8}


def _dashes(style: int) -> dict[str, Any]:
    lengths = [length / LINE_WIDTH for length in DASHES[style]]
    return {"lw": LINE_WIDTH, "ls": (0, lengths) if lengths else "-"}


@_own_settings()
def scatter_cost(results: Sequence[Result], titles: Titles, limits: Span, theme: Theme = LIGHT) -> Figure:
    """Draw means with intervals against cost; a mean outside ``limits`` is drawn at the axis's end.

    Styled marks of about equal cost stand side by side; a label that would cover something is left out.
    """
    from matplotlib.transforms import Bbox

    chart = _Chart((520, 506, 1.12), [result.cost for result in results], limits, titles, theme)
    for result in results:
        if result.style is None:
            x, y = chart.place(result.cost, result.mean)
            chart.line([x], [y], "rest", result)
    named = sorted((result for result in results if result.style is not None), key=lambda result: result.cost)
    xs = spread_apart([chart.place(result.cost, 0)[0] for result in named], _MARK_GAP, _LEFT + 6, 500)
    clusters: list[list[_Mark]] = []
    taken: list[Bbox] = []
    for result, x in zip(named, xs, strict=True):
        y = chart.place(0, result.mean)[1]
        low, high = (chart.place(0, end)[1] for end in result.interval or (result.mean, result.mean))
        if result.interval:
            ends = [number for number, inside in enumerate((low > _BOTTOM, high < _TOP)) if inside]
            bar = {"marker": "_", "ms": 7, "mew": 1.4, "markevery": ends, "lw": 1.4}
            chart.line([x, x], [low, high], "whisker", result, **bar)
        chart.line([x], [y], "mark", result)
        taken.append(Bbox.from_extents(x - 6, min(low, y - 6), x + 6, max(high, y + 6)))
        if not clusters or x - clusters[-1][-1][1] > _CLUSTER_GAP:
            clusters.append([])
        clusters[-1].append((result, x, y))
    for cluster in clusters:
        _label_cluster(chart, cluster, taken)
    return chart.figure


def _label_cluster(chart: _Chart, cluster: Sequence[_Mark], taken: list[Bbox]) -> None:
    """Write labels in a column to the right of neighbouring marks, or to the left if more fit there."""
    heights = spread_apart([y for *_, y in cluster], _LINE_HEIGHT, _BOTTOM + 8, _TOP)
    columns = []
    for at, side in ((cluster[-1][1] + 10, "left"), (cluster[0][1] - 10, "right")):
        labels = []
        for mark, height in zip(cluster, heights, strict=True):
            text = chart.label(at, height, mark[0], 24, side)
            box = text.get_window_extent().padded(-1.5)
            fits = box.x0 > _LEFT and box.x1 < 519 and not box.count_overlaps(taken)
            labels.append((mark, height, text, box, fits))
        columns.append((at, labels))
    best, _ = max(columns, key=lambda column: sum(fits for *_, fits in column[1]))
    for at, labels in columns:
        for (result, x, y), height, text, box, fits in labels:
            if at != best or not fits:
                text.remove()
                continue
            taken.append(box)
            if abs(at - x) > 12 or abs(height - y) > 5:
                chart.line([x, at], [y, height], "leader", result, **_LEADER)


@_own_settings()
def histories(curves: Sequence[History], titles: Titles, limits: Span, theme: Theme = LIGHT) -> Figure:
    """Draw values in the course of training, labelled at their ends; outside ``limits`` they are cut off."""
    costs = [cost for curve in curves for cost in curve.costs]
    chart = _Chart((640, 486, 1.02), costs, limits, titles, theme)
    ends = [chart.place(curve.costs[-1], curve.values[-1]) for curve in curves]
    heights = spread_apart([y for _, y in ends], _LINE_HEIGHT, _BOTTOM, _TOP)
    for curve, (x, y), height in reversed(list(zip(curves, ends, heights, strict=True))):
        style, every = curve.style or 0, -(-len(curve.values) // 5)
        look: Any = {"markevery": (style % every, every), "transform": chart.axes.transData, "clip_on": True}
        chart.line(curve.costs, curve.values, "line", curve, **_dashes(style), **look)
        chart.line([x, 492], [y, height], "leader", curve, **_LEADER)
        chart.line([501], [height], "leader", curve)
        chart.label(510, height, curve, 14 if curve.filled else 16)
    return chart.figure


@dataclass(frozen=True, kw_only=True)
class CalibrationBin(Series):
    """Images of similar confidence: their number, mean confidence and accuracy in percent, its interval."""

    num_images: int
    confidence: float
    accuracy: float
    interval: Span


@_own_settings()
def calibration(bins: Sequence[CalibrationBin], titles: Titles, theme: Theme = LIGHT) -> Figure:
    """Draw accuracy against confidence, both in percent; grey bars behind show where the images are."""
    chart = _Chart((420, 406, 1.0), [100.0], (0.0, 100.0), titles, theme)
    most = max(each.num_images for each in bins)
    chart.axes.plot([0, 100], [0, 100], color=theme["muted"], lw=1, ls=(0, (4, 4)))
    for each in bins:
        x, y = chart.place(each.confidence, each.accuracy)
        height = 0.25 * (_TOP - _BOTTOM) * each.num_images / most
        bar = {"marker": "", "lw": 16, "color": theme["faint"], "solid_capstyle": "butt", "zorder": 0.5}
        chart.line([x, x], [_BOTTOM, _BOTTOM + height], "count", each, **bar)
        ends = [chart.place(0, end)[1] for end in each.interval]
        chart.line([x, x], ends, "whisker", each, marker="_", ms=7, mew=1.4, lw=1.4)
        chart.line([x], [y], "mark", each)
    return chart.figure


@_own_settings()
def confusion(shares: np.ndarray, titles: Titles, theme: Theme = LIGHT) -> Figure:
    """Draw the share of each true class (row) that is taken for each class (column) as a picture.

    ``shares``: from 0 to 1, (classes, classes). Confusions are drawn in proportion to the most frequent one.
    """
    import numpy as np

    chart = _Chart((268, 260, 1.0), [1.0], (0.0, 1.0), titles, theme)
    pixels, is_right = np.empty((*shares.shape, 4)), np.eye(len(shares), dtype=bool)
    pixels[..., :3] = np.where(is_right[..., None], _RIGHT, _CONFUSED)
    most = shares[~is_right].max(initial=0) or 1
    opacity = np.where(is_right, shares, shares / most)
    pixels[..., 3] = np.where(shares > 0, 0.2 + 0.8 * opacity, 0)  # the rarest can be seen
    chart.axes.grid(False)
    chart.axes.set(xticks=[], yticks=[])
    chart.axes.spines[:].set(visible=True, color=theme["muted"])
    chart.axes.imshow(pixels, extent=(0, 1, 0, 1), interpolation="none", aspect="auto")
    chart.axes.set_position((8 / 268, 24 / _HEIGHT, 252 / 268, 252 / _HEIGHT))  # a square
    return chart.figure


@_own_settings()
def swatch(style: int, filled: bool) -> Figure:
    """Draw a short line with its marker, for a legend."""
    from matplotlib.figure import Figure

    figure = Figure((34 / 72, 14 / 72), dpi=72, facecolor="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 34), ylim=(0, 14))
    axes.set_axis_off()
    look = _marker(Series(label="", style=style, filled=filled), LIGHT)
    axes.plot([0, 34], [7, 7], color=look["color"], **_dashes(style))
    axes.plot([17], [7], **look)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PDF, PNG or SVG, by the path's suffix."""
    date = {".pdf": "CreationDate", ".svg": "Date", ".png": "Software"}[path.suffix.lower()]
    with _own_settings():
        figure.savefig(path, dpi=200, metadata={date: None})


def svg_text(figure: Figure, name: str, description: str = "") -> str:
    """Return an ``<svg>`` element for a page, where ``name`` is unique; colours follow its theme."""
    buffer = io.BytesIO()
    with _own_settings(salt=name):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return page_svg(buffer.getvalue(), description)


def page_svg(content: bytes, description: str = "", dark: bytes | None = None) -> str:
    """Return an SVG of matplotlib as an ``<svg>`` element for a page; colours follow the page's theme.

    Args:
        content: the file, drawn in the light theme.
        dark: the same figure in the dark theme: colours that are equal in both stay as they are.
    """
    # A strict Content-Security-Policy: no style attributes, no links, and no ids but those of clip paths.
    root, shapes = _without_definitions(content)
    styles = [
        each.get("style", "") for each in (root if dark is None else _without_definitions(dark)[0]).iter()
    ]
    variables = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
    for element, style in zip(list(root.iter()), styles, strict=True):
        element.tag = element.tag.removeprefix(_SVG)
        element.text, element.tail = element.text if element.tag == "text" else None, None
        there = style.split("; ") if dark is not None else ()
        for part in element.attrib.pop("style", "").split("; "):
            key, _, value = part.partition(": ")
            if value and key not in ("font", "font-family"):
                element.set(key, value if part in there else variables.get(value, value))
        if element.tag == "use":
            element.tag = "path"
            element.set("d", shapes[element.attrib.pop(_LINK)[1:]])
            element.set("transform", f"translate({element.attrib.pop('x')} {element.attrib.pop('y')})")
        if element.tag == "image":
            element.set("href", element.attrib.pop(_LINK))
        for name in element.attrib.keys() & _PLACES:
            element.set(name, _rounded(" ".join(element.attrib[name].split())))
        if element.get("transform", "").startswith("rotate(0 "):
            del element.attrib["transform"]
        if element.tag not in ("clipPath", "pattern"):
            group, _, series = element.attrib.pop("id", "").partition(" ")
            key, _, tip = series.partition(" ")
            if series:
                element.attrib |= {"class": group, "data-series": key}
            if tip:
                title = ElementTree.Element("title")
                title.text = tip
                element.insert(0, title)
    _flatten(root)
    root.attrib = {"viewBox": root.attrib["viewBox"], "stroke-linejoin": "round"}
    root.attrib |= {"role": "img", "aria-label": description} if description else {"aria-hidden": "true"}
    return ElementTree.tostring(root, encoding="unicode")


def _rounded(text: str) -> str:
    """Round coordinates in points to what a screen can show."""
    return re.sub(r"-?\d+(\.\d+)?", lambda found: f"{round(float(found[0]), 2) + 0.0:g}", text)


def _flatten(element: ElementTree.Element) -> None:
    """Replace groups without attributes by what they hold, and drop what nobody sees."""
    for child in list(element):
        _flatten(child)
        is_bare = child.tag == "g" and not child.attrib
        if is_bare or (child.tag == "path" and child.get("fill") == "none" and "stroke" not in child.attrib):
            place = list(element).index(child)
            element[place : place + 1] = list(child) if is_bare else []


def _without_definitions(content: bytes) -> tuple[ElementTree.Element, dict[str | None, str]]:
    """A figure without matplotlib's styles and the shapes of its markers, and these shapes by id."""
    root = ElementTree.fromstring(content)  # noqa: S314 - matplotlib wrote it
    shapes = {path.get("id"): path.get("d", "") for path in root.iter(f"{_SVG}path")}
    kept = (f"{_SVG}clipPath", f"{_SVG}pattern")
    for element in list(root.iter()):
        for child in list(element):
            is_unused = child.tag == f"{_SVG}defs" and not any(each.tag in kept for each in child)
            if is_unused or child.tag == f"{_SVG}metadata":
                element.remove(child)
    return root, shapes


def value_limits(
    values: Sequence[tuple[float, Span | None]], *, higher_is_better: bool, possible: Span
) -> Span:
    """Choose an axis for means with intervals on which the good ones can be told apart."""
    # A mean far behind lies outside; a long interval stretches the axis by at most the spread of the means.
    means = [mean for mean, _ in values]
    kept = comparable(means, higher_is_better=higher_is_better)
    near = [(mean, bounds or (mean, mean)) for (mean, bounds), keep in zip(values, kept, strict=True) if keep]
    low, high = min(mean for mean, _ in near), max(mean for mean, _ in near)
    half = median_low((bounds[1] - bounds[0]) / 2 for _, bounds in near)  # most intervals are seen whole
    reach = max(high - low, 1.5 * half, _LEAST * max(map(abs, means)))
    lowest, highest = min(bounds[0] for _, bounds in near), max(bounds[1] for _, bounds in near)
    return padded(max(lowest, low - reach), min(highest, high + reach), possible)


def history_limits(curves: Sequence[Sequence[float]], possible: Span) -> Span:
    """Choose an axis for histories; steep first epochs and a collapsed run may lie below it."""
    kept = comparable([values[-1] for values in curves], higher_is_better=True)
    near = [values for values, keep in zip(curves, kept, strict=True) if keep]
    low = min(value for values in near for value in values[int(_STARTED * len(values)) :])
    lowest, high = min(map(min, near)), max(map(max, near))
    return padded(lowest if high - lowest <= 1.5 * (high - low) else low, high, possible)


def comparable(means: Sequence[float], *, higher_is_better: bool) -> list[bool]:
    """Say which means are near enough to the best to set the scale."""
    best = max(means) if higher_is_better else min(means)
    distances = [abs(mean - best) for mean in means]
    typical = max(median(distances), _LEAST * max(map(abs, means)))
    return [distance <= _FAR * typical for distance in distances]


def spread_apart(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move places as little as possible so that neighbours are ``gap`` apart, from ``low`` to ``high``."""
    import numpy as np
    from scipy.optimize import isotonic_regression

    if not places:
        return []
    order, steps = np.argsort(places, kind="stable"), gap * np.arange(len(places))
    nearest = isotonic_regression(np.asarray(places)[order] - steps).x
    moved = np.empty(len(places))
    moved[order] = np.clip(nearest, low, high - steps[-1]) + steps
    return moved.round(2).tolist()


def padded(low: float, high: float, possible: Span) -> Span:
    """Choose an axis from ``low`` to ``high`` with a little room, within what is possible."""
    room = 0.06 * (high - low) or 0.02 * abs(high) or 1.0
    lower, upper = max(low - room, possible[0]), min(high + room, possible[1])
    return lower, upper if upper > lower else lower + room
