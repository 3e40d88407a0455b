"""Figures at their final size in a paper: widths, text, colours, legends, labels; equal bytes of files.

Draw within :func:`style`, in a :class:`~matplotlib.figure.Figure` from :func:`figure`, and end with
:func:`save`. Colours, markers and dashes are those of the leaderboard's page, in its order, so that an
optimizer looks alike in all pictures. Only drawing imports matplotlib. No torch.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pugdft.errors import UserError, reason, refuse, unknown
from pugdft.figures.charts import DARK, DASHES, LIGHT, LINE_WIDTH, MARKERS, NUM_STYLES, Theme
from pugdft.paths import cache_subfolder, write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

ThemeName = Literal["light", "dark"]
THEMES: dict[str, Theme] = {"light": LIGHT, "dark": DARK}
WIDTHS = {"column": 3.4, "text": 6.9}  # inches
FORMATS = ("svg", "pdf", "png")
MAP = "cividis"  # of surfaces: readable without colours and by all eyes
MAP_START = 0.2  # darker colours of the map look black under shading
TEXT, SMALL = 7.0, 6.0  # points
_SMALLEST, _LARGEST = 1.0, 40.0  # inches of a width
_DPI = 300
_CHARACTER = 0.62  # width of a letter of DejaVu Sans, as a share of its size


@dataclass(frozen=True)
class Look:
    """The colour, marker and dashes of a series; ``dashes`` are lengths in line widths, none for a line."""

    style: int  # of the eight styles of the page
    marker: str
    dashes: tuple[float, ...]
    is_filled: bool = True

    def colour(self, theme: str = "light") -> str:
        return THEMES[theme][f"s{self.style}"]

    def line(self, theme: str = "light", **more: Any) -> dict[str, Any]:
        """Arguments of ``Axes.plot`` for a line with its marks."""
        colour = self.colour(theme)
        fill = colour if self.is_filled else THEMES[theme]["page"]
        # Edges of the mark's own colour: white ones hide the colour at this size.
        look = {"color": colour, "marker": self.marker, "mfc": fill, "mec": colour, "mew": 0.6}
        look["ms"] = 2.9 if self.marker == "D" else 3.4  # a diamond is as wide as its diagonal
        return look | {"ls": (0, self.dashes) if self.dashes else "-", "lw": 1.0} | more


def look(number: int) -> Look:
    """The look of the series of this number, from 0: beyond eight, a colour comes again in another shape."""
    style, turn = number % NUM_STYLES, number // NUM_STYLES
    lengths = DASHES[(style + 3 * turn) % len(DASHES)]
    dashes = tuple(length / LINE_WIDTH for length in lengths)
    return Look(style, MARKERS[(style + 3 * turn) % len(MARKERS)], dashes, is_filled=turn % 2 == 0)


SERIES = tuple(look(number) for number in range(NUM_STYLES))


def inches(width: str | float) -> float:
    """The width of a figure: ``column``, ``text``, or inches; anything else is a UserError."""
    if width in WIDTHS:
        return WIDTHS[str(width)]
    with suppress(ValueError):
        if _SMALLEST <= float(width) <= _LARGEST:
            return float(width)
    bounds = f"inches from {_SMALLEST:g} to {_LARGEST:g}"
    raise UserError(f"--width: {width} is none of {', '.join(WIDTHS)}, nor {bounds}")


def check_formats(formats: Sequence[str]) -> list[str]:
    """File formats without repetitions; one that is not known is a UserError."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format: {unknown('format', name, FORMATS)}")
    if not formats:
        raise UserError(f"--format: none is given; known are {', '.join(FORMATS)}")
    return list(dict.fromkeys(formats))


@contextmanager
def style(theme: str = "light") -> Iterator[Theme]:
    """Within the context, matplotlib draws for a paper, whatever the user's matplotlibrc says."""
    _use_folder()
    import matplotlib

    colours = THEMES[theme]
    text, muted, page = colours["text"], colours["muted"], colours["page"]
    own: dict[str, Any] = {
        "font.family": ["DejaVu Sans"],  # matplotlib brings it along: the same metrics everywhere
        "font.size": TEXT, "axes.labelsize": TEXT, "axes.titlesize": TEXT, "figure.titlesize": TEXT,
        "xtick.labelsize": SMALL, "ytick.labelsize": SMALL, "legend.fontsize": TEXT,
        "axes.linewidth": 0.5, "lines.linewidth": 1.0, "grid.linewidth": 0.4, "patch.linewidth": 0.5,
        "xtick.major.width": 0.5, "ytick.major.width": 0.5,
        "xtick.minor.width": 0.4, "ytick.minor.width": 0.4,
        "xtick.major.size": 2.5, "ytick.major.size": 2.5, "xtick.minor.size": 1.5, "ytick.minor.size": 1.5,
        "axes.titlelocation": "left", "axes.titlepad": 4.0, "axes.labelpad": 2.5, "axes.axisbelow": True,
        "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
        "axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 5),
        "legend.frameon": False, "legend.handlelength": 3.2, "legend.columnspacing": 1.6,
        "legend.handletextpad": 0.6, "legend.labelspacing": 0.35,
        "text.color": text, "axes.labelcolor": text, "axes.titlecolor": text, "legend.labelcolor": text,
        "axes.edgecolor": muted, "xtick.color": muted, "ytick.color": muted,
        "xtick.labelcolor": text, "ytick.labelcolor": text, "grid.color": colours["faint"],
        "figure.facecolor": page, "axes.facecolor": page, "savefig.facecolor": page,
        "text.parse_math": False,  # a name with dollar signs is a name
        "image.cmap": MAP,
        "svg.fonttype": "none", "svg.hashsalt": "pugdft", "pdf.fonttype": 42, "path.simplify": True,
    }  # fmt: skip
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(own)
        yield colours


def _use_folder() -> None:
    """Give matplotlib a folder for its list of fonts where there is no home, as in some containers."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~")
        if not os.access(home, os.W_OK):
            with suppress(UserError):
                os.environ["MPLCONFIGDIR"] = str(cache_subfolder("matplotlib"))


def figure(width: str | float = "column", height: float | None = None, theme: str = "light") -> Figure:
    """An empty figure of a width in a paper, within :func:`style` of the same theme.

    Args:
        width: ``column`` (3.4 inches), ``text`` (6.9) or inches.
        height: in inches; by default 0.75 of the width of a column and 0.42 of a text's.
    """
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    assert rcParams["svg.hashsalt"] == "pugdft", "draw within paper.style()"
    wide = inches(width)
    tall = height or wide * (0.75 if wide < 5 else 0.42)
    made = Figure((wide, tall), dpi=_DPI, facecolor=THEMES[theme]["page"], layout="constrained")
    engine: Any = made.get_layout_engine()
    engine.set(w_pad=0.03, h_pad=0.03, wspace=0.04, hspace=0.04)
    return made


def wrapped(label: str, wide: float, size: float = TEXT) -> str:
    """Break a label into lines of at most ``wide`` inches, at words where that is possible."""
    room = max(8, int(wide * 72 / (_CHARACTER * size)))
    return "\n".join(textwrap.wrap(label, room, break_on_hyphens=False))


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Put one legend below all panels, in as many columns as fit into the width; break too long labels."""
    if not handles:
        return
    room = figure.get_figwidth() * figure.dpi
    for columns in range(len(handles), 0, -1):
        rows = math.ceil(len(handles) / columns)
        if columns > 1 and math.ceil(len(handles) / (columns - 1)) == rows:
            continue  # fewer columns with as many rows are more even
        made = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
        if made.get_window_extent().width <= room:
            return
        made.remove()
    beside = 5 * TEXT / 72  # of the handle
    labels = [wrapped(each, figure.get_figwidth() - beside) for each in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=1)


def place_labels(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    labels: Sequence[str],
    *,
    gap: float = 4.0,
    avoid: Sequence[tuple[float, float]] = (),
    **text: Any,
) -> list[str]:
    """Write labels beside points of the axes where they cover neither each other nor a mark.

    Limits and layout of the axes have to be final in all but these labels. A label for which there is no room
    within ``gap`` to four times ``gap`` points is left out.

    Args:
        avoid: further points that no label may cover.

    Returns:
        The labels that were left out.
    """
    from matplotlib.transforms import Bbox

    figure: Any = axes.figure
    figure.draw_without_rendering()
    point = figure.dpi / 72
    places = [tuple(axes.transData.transform(each)) for each in points]
    others = [tuple(axes.transData.transform(each)) for each in avoid]
    radius = 0.5 * gap * point
    taken = [Bbox.from_extents(x - radius, y - radius, x + radius, y + radius) for x, y in (*places, *others)]
    left_out = []
    for label, place in zip(labels, points, strict=True):
        for away, right, up in itertools.product((gap, 2 * gap, 4 * gap), (1, -1, 0), (0, 1, -1)):
            if not (right or up):
                continue
            note = axes.annotate(
                label,
                place,
                (right * away, up * away),
                textcoords="offset points",
                ha={-1: "right", 0: "center", 1: "left"}[right],
                va={-1: "top", 0: "center", 1: "bottom"}[up],
                annotation_clip=False,
                **text,
            )
            note.set_in_layout(False)
            box = note.get_window_extent()
            if not box.count_overlaps(taken) and _is_inside(box, axes.bbox):
                taken.append(box)
                break
            note.remove()
        else:
            left_out.append(label)
    return left_out


def _is_inside(box: Bbox, canvas: Bbox) -> bool:
    is_wide = canvas.x0 <= box.x0 and box.x1 <= canvas.x1
    return bool(is_wide and canvas.y0 <= box.y0 and box.y1 <= canvas.y1)


def save(figure: Figure, stem: Path, formats: Sequence[str] = ("svg", "png")) -> list[Path]:
    """Write ``STEM.FORMAT`` for each format, whole or not at all; equal figures give equal bytes.

    The figure is laid out once, so all formats have everything at the same places.

    Returns:
        The paths of the files, in the order of the formats.

    Raises:
        UserError: a format is not known, or the folder cannot be written.
    """
    none: dict[str, dict[str, str | None]] = {
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
        "png": {"Software": None},
    }
    written = []
    if engine := figure.get_layout_engine():
        with style():
            engine.execute(figure)
        figure.set_layout_engine("none")
    for name in check_formats(formats):
        buffer = io.BytesIO()
        with style():  # the salt of the svg's names
            figure.savefig(
                buffer, format=name, dpi=_DPI, metadata=none[name], facecolor=figure.get_facecolor()
            )
        written.append(_write(stem.with_name(f"{stem.name}.{name}"), buffer.getvalue()))
    return written


def _write(path: Path, content: bytes) -> Path:
    with refuse(OSError, lambda error: f"{path}: cannot be written: {reason(error)}"):
        write_atomically(path, content)
    return path
