"""The loss around a run's weights: along random directions, on a plane of two, or on the way to another run.

Points are computed coarsely first and then between, so an interrupted landscape can be drawn, and goes on
where it ended. Each point is the loss of :mod:`pugdft.analysis.points` at weights written anew, so the order
of the points changes no value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pugdft.analysis.directions import (
    Direction,
    Normalization,
    OneDimensional,
    move_,
    random_direction,
    sharpest_directions,
    way_to,
    weights_of,
)
from pugdft.analysis.files import analysis_stem, digest_of, write_analysis
from pugdft.analysis.jobs import PointJob
from pugdft.analysis.overlay import SHARPNESS_CAVEAT, Overlay, caveats, records_facts, versions
from pugdft.analysis.points import PointValue, restored
from pugdft.errors import UserError, counted

Kind = Literal["line", "plane", "between"]
NUM_SHARPEST = 2  # directions of --along hessian
KINDS: tuple[Kind, ...] = ("line", "plane", "between")
LONGEST = 1e6  # step: far before it every loss is infinite, and far beyond it no weight is a float
MOST_POINTS = 1_001  # along an axis, and directions: a plane of them takes weeks, and its numbers 8 MB

_STRIDES = (4, 2, 1)  # of the lattices, the coarsest first


@dataclass(frozen=True)
class LandscapeOptions:
    """What is computed around the weights.

    Attributes:
        kind: ``line``: along each of ``directions`` random directions; ``plane``: on the first two of them;
            ``between``: on the straight way from the first run to each other one.
        directions: of a line.
        extent: the largest step to each side, in lengths of the direction; ``between`` goes from 0 to 1.
        grid: points along an axis, odd.
        along: ``random``, or ``hessian``: the eigenvectors of the two largest eigenvalues.
    """

    kind: Kind = "plane"
    directions: int = 5
    extent: float = 1.0
    grid: int = 21
    normalize: Normalization = "filter"
    one_d: OneDimensional = "zero"
    seed: int = 0
    along: Literal["random", "hessian"] = "random"

    def check(self) -> None:
        """Refuse options that give no landscape, with a UserError."""
        check_grid(self.grid)
        if not 0 < self.extent <= LONGEST:
            raise UserError(
                f"--range {self.extent:g}: must be a finite number above 0, and at most {LONGEST:g}"
            )
        if not 1 <= self.directions <= MOST_POINTS:
            raise UserError(f"--directions {self.directions}: must be from 1 to {MOST_POINTS:,}")
        if self.along == "hessian" and self.kind == "line" and self.directions > NUM_SHARPEST:
            raise UserError(f"--directions {self.directions}: with --along hessian there are {NUM_SHARPEST}")

    @property
    def axis(self) -> np.ndarray:
        """The steps along one axis, float64, (grid,)."""
        if self.kind == "between":
            return np.linspace(0.0, 1.0, self.grid)
        half = self.grid // 2
        return self.extent * np.arange(-half, half + 1) / half  # the middle is 0 exactly


@dataclass
class Landscape(PointJob):
    """A landscape being computed, of one kind on one sample.

    Attributes:
        loss: float64, (runs, directions, grid) of a line, (runs, grid, grid) of a plane, (pairs, grid) of a
            way between; NaN where no point is done, infinite where the loss is not a number.
    """

    overlay: Overlay
    options: LandscapeOptions
    folder: Path
    resume: bool = True
    loss: np.ndarray = field(init=False)
    top1: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.options.check()
        count, grid = len(self.overlay.models), self.options.grid
        if self.options.kind == "between" and count < 2:
            raise UserError("--kind between: needs another run, with --with RECORD")
        shape: tuple[int, ...] = (count, grid, grid)
        if self.options.kind == "line":
            shape = (count, self.options.directions, grid)
        elif self.options.kind == "between":
            shape = (count - 1, grid)
        self.evaluators = self.overlay.evaluators()
        for each in self.evaluators:
            each.check_batches()
        self._records = records_facts(self.overlay.models)
        self.loss, self.top1 = np.full(shape, np.nan), np.full(shape, np.nan)
        self.digest = digest_of(
            {
                "options": asdict(self.options),
                "weights": [each["weights_sha256"] for each in self._records],
                "sample": self.overlay.sample.sha256,
                "batch_norm": self.evaluators[0].handling,
            }
        )
        if stored := self.take_stored(loss=shape, top1=shape):
            self.loss, self.top1 = stored

    @property
    def path(self) -> Path:
        """The ``.yaml`` of the stored form."""
        stem = analysis_stem(self.folder, "landscape", self.digest)
        return stem.with_name(f"{stem.name}.yaml")

    @property
    def num_points(self) -> int:
        return self.loss.size

    @property
    def num_done(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.loss)))

    @property
    def title(self) -> str:
        return f"{self.options.kind}, {self.overlay.sample.split}"

    def begin(self, stack: ExitStack) -> None:
        self._walks = [_Walk(number, self, stack) for number in range(len(self.loss))]

    def is_done(self, point: tuple[int, ...]) -> bool:
        return not np.isnan(self.loss[point])

    def evaluate(self, point: tuple[int, ...]) -> PointValue:
        return self._walks[point[0]].at(point[1:])

    def keep(self, point: tuple[int, ...], value: PointValue) -> None:
        self.loss[point] = value.loss if not math.isnan(value.loss) else math.inf
        self.top1[point] = value.top1

    def points(self) -> Iterator[tuple[int, ...]]:
        """All points, some twice: of all runs the centre first, then lattice by lattice."""
        for places in self._lattices():
            for run in range(len(self.loss)):
                yield from ((run, *place) for place in places)

    def _lattices(self) -> Iterator[list[tuple[int, ...]]]:
        grid = self.options.grid
        centre = 0 if self.options.kind == "between" else grid // 2
        whole = [[centre], *(lattice(grid, centre, stride) for stride in _STRIDES)]
        for indices in whole:
            if self.options.kind == "plane":
                yield [(i, j) for i in indices for j in indices]
            elif self.options.kind == "line":
                yield [(number, i) for number in range(self.options.directions) for i in indices]
            else:
                yield [(i,) for i in indices]

    def directions_of(self, run: int) -> list[Direction]:
        """The directions in which a run's weights move, scaled by its own weights."""
        options, model = self.options, self.overlay.models[run].model
        if options.kind == "between":
            return [way_to(weights_of(model), weights_of(self.overlay.models[run + 1].model))]
        count = 2 if options.kind == "plane" else options.directions
        if options.along == "hessian":
            sample = self.overlay.sample
            return sharpest_directions(model, sample.inputs, sample.labels, options.seed)[:count]
        return [
            random_direction(model, options.seed, number, options.normalize, options.one_d)
            for number in range(count)
        ]

    def base_losses(self) -> list[float]:
        """Each run's loss at its own weights, NaN where that is not known yet."""
        grid = self.options.grid
        if self.options.kind == "between":
            return [float(self.loss[0, 0]), *(float(each[-1]) for each in self.loss)]
        half = (0, grid // 2) if self.options.kind == "line" else (grid // 2, grid // 2)
        return [float(each[half]) for each in self.loss]

    def store(self) -> Path:
        """Write the stored form as far as it is computed."""
        options, axis = asdict(self.options), self.options.axis
        base = self.base_losses()
        arrays = {"alpha": axis, "loss": self.loss, "top1": self.top1, "base_loss": np.array(base)}
        if self.options.kind == "plane":
            arrays["beta"] = axis
        facts: dict[str, Any] = {
            "records": self._records,
            "options": options,
            "sample": self.overlay.sample.facts(),
            "batch_norm": self.evaluators[0].handling,
            "done": self.num_done,
            "points": self.num_points,
            "passes": self.num_done * self.evaluators[0].passes,
            "seconds": round(self.seconds, 3),
            "versions": versions(),
            "caveats": self.caveats(base),
        }
        return write_analysis(self.folder, "landscape", self.digest, arrays, facts)

    def caveats(self, base: Sequence[float]) -> list[str]:
        """What a reader of the picture has to know."""
        lines = caveats(self.overlay, [each for each in base if math.isfinite(each)])
        weights = sum(each.numel() for each in self.overlay.models[0].model.parameters())
        if self.options.kind != "between":
            shown = "a slice in 2"
            if self.options.kind == "line":
                shown = counted(self.options.directions, "line")
            if self.options.along == "random":
                lines.append(f"{shown} of {weights:,} dimensions; random directions miss the sharpest ones")
            else:
                what = "each run's own two sharpest directions, with BatchNorm's statistics fixed"
                lines.append(f"{shown} of {weights:,} dimensions: {what}")
            if self.options.normalize == "none" and self.options.along == "random":
                lines.append("steps are not scaled by the weights: curves of two runs cannot be compared")
        lost = np.argwhere(np.isinf(self.loss))
        if len(lost):
            axes = slice(2 if self.options.kind == "line" else 1, None)
            nearest = np.abs(self.options.axis[lost[:, axes]]).max(1).min()
            lines.append(
                f"the loss is not finite at {counted(len(lost), 'point')}, from a step of {nearest:.3g} on"
            )
        return [*lines, SHARPNESS_CAVEAT]


class _Walk:
    """Moves one run's model about its weights; the stack gives it its own back."""

    def __init__(self, number: int, landscape: Landscape, stack: ExitStack) -> None:
        self._options = landscape.options
        run = 0 if self._options.kind == "between" else number  # ways to all others begin at the first
        self._model = landscape.overlay.models[run].model
        stack.enter_context(restored(self._model))
        self._evaluate = landscape.evaluators[run]
        self._centre = weights_of(self._model)
        self._directions = landscape.directions_of(number)

    def at(self, place: tuple[int, ...]) -> PointValue:
        axis, directions = self._options.axis, self._directions
        if self._options.kind == "line":
            place, directions = place[1:], [directions[place[0]]]
        move_(self._model, self._centre, [float(axis[i]) for i in place], directions)
        return self._evaluate.at()


def check_grid(grid: int) -> None:
    """Refuse a number of points along an axis that gives no picture, with a UserError."""
    if not 5 <= grid <= MOST_POINTS or grid % 2 == 0:
        raise UserError(
            f"--grid {grid}: must be odd and at least 5, so that the centre is a point, and at most "
            f"{MOST_POINTS:,}"
        )


def lattice(grid: int, centre: int, stride: int) -> list[int]:
    """The indices of an axis whose distance from the centre is a multiple of the stride."""
    return [index for index in range(grid) if (index - centre) % stride == 0]
