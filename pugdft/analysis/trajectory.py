"""The way of runs through weight space: projected on a plane, with what the projection hides.

A plane is kept as two sums of snapshots, not as two vectors of all weights. Everything about distances comes
from the snapshots' inner products (T × T numbers in fp64), which are added up parameter by parameter, so the
snapshots need not fit into memory together.

Two components explain much of any random walk (arXiv 1806.08805), so that share stands beside a run's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from pugdft.analysis.directions import Direction, move_
from pugdft.analysis.files import analysis_stem, digest_of, write_analysis
from pugdft.analysis.jobs import Point, PointJob
from pugdft.analysis.landscape import LONGEST, check_grid, lattice
from pugdft.analysis.overlay import SHARPNESS_CAVEAT, Overlay, caveats, records_facts, stored_run, versions
from pugdft.analysis.points import PointValue, restored, write_weights_
from pugdft.errors import UserError
from pugdft.inference.load import LoadedModel
from pugdft.paths import file_sha256
from pugdft.reproduce import read_stored_weights

Plane = Literal["pca", "ends", "axes"]

_MOST_NUMBERS = 2**24  # of all snapshots together in memory at once: 128 MiB
_STRIDES = (4, 2, 1)
_ON_A_LINE = 1e-10  # of sin² of the angle between two ways: below it there is only rounding of fp32


@dataclass(frozen=True)
class Path2D:
    """Snapshots on a plane through an origin.

    Attributes:
        coefficients: float64, (snapshots, 2): each axis, of length 1, as a sum of the snapshots' differences
            from the origin.
        xy: float64, (snapshots, 2): where each snapshot's projection lies.
        residual: float64, (snapshots,): its distance from the plane.
    """

    coefficients: np.ndarray
    xy: np.ndarray
    residual: np.ndarray

    @property
    def explained(self) -> float:
        """The share of the squared distances from the origin that lies in the plane."""
        inside, outside = float((self.xy**2).sum()), float((self.residual**2).sum())
        return inside / (inside + outside)


def principal_plane(gram: np.ndarray) -> Path2D:
    """The plane through the origin that is nearest to all snapshots: the first two principal axes.

    They are about the origin, not about the mean, so that the origin lies in the plane.

    Args:
        gram: float64, (snapshots, snapshots): inner products of their differences from the origin.
    """
    values, vectors = np.linalg.eigh(gram)
    values, vectors = np.maximum(values[:-3:-1], 0), vectors[:, :-3:-1]
    # Of the two signs of an axis the one with its largest coordinate above zero.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), [0, 1]])
    lengths = np.sqrt(values)
    return _on_plane(gram, vectors / np.where(lengths > 0, lengths, np.inf))


def plane_along(gram: np.ndarray, starts: np.ndarray) -> Path2D:
    """The plane through the origin and a start that is otherwise nearest to all snapshots.

    The straight way to the start is the horizontal axis. The vertical one is the first principal axis of what
    is left beside it: where the ways make their largest detour.

    Args:
        gram: as for :func:`principal_plane`.
        starts: float64, (snapshots,): the start as a weighted mean of the snapshots.
    """
    length = math.sqrt(max(float(starts @ gram @ starts), 0))
    across = starts / (length or math.inf)
    along = gram @ across
    values, vectors = np.linalg.eigh(gram - np.outer(along, along))
    detour = vectors[:, -1] * np.sign(vectors[np.abs(vectors[:, -1]).argmax(), -1])
    size = math.sqrt(max(values[-1], 0)) or math.inf
    return _on_plane(gram, np.stack([across, (detour - (detour @ along) * across) / size], 1))


def plane_through(gram: np.ndarray, first: int, second: int) -> Path2D:
    """The plane through the origin and two snapshots; the first lies on the horizontal axis.

    Raises:
        UserError: the three lie on one line, or two of them at one place.
    """
    along, across, product = gram[first, first], gram[second, second], gram[first, second]
    if along * across - product**2 <= _ON_A_LINE * along * across:
        raise UserError(
            "--plane ends: the three runs' last weights lie on one line, or two runs have the same: "
            "they make no plane"
        )
    coefficients = np.zeros((len(gram), 2))
    coefficients[first, 0] = 1 / math.sqrt(along)
    coefficients[second, 1] = 1.0
    coefficients[:, 1] -= (coefficients[:, 0] @ gram[:, second]) * coefficients[:, 0]
    coefficients[:, 1] /= math.sqrt(coefficients[:, 1] @ gram @ coefficients[:, 1])
    return _on_plane(gram, coefficients)


def _on_plane(gram: np.ndarray, coefficients: np.ndarray) -> Path2D:
    xy = gram @ coefficients
    outside = np.diag(gram) - (xy**2).sum(1)
    return Path2D(coefficients, xy, np.sqrt(np.maximum(outside, 0)))


def random_walk_share(steps: Sequence[Sequence[int]]) -> float:
    """The share that two components explain of random walks of many dimensions, in place of the runs.

    Args:
        steps: of each run, the numbers of updates at its snapshots; all walks begin at one place.
    """
    times = [np.asarray(each, np.float64) for each in steps]
    blocks = [np.minimum.outer(each, each) for each in times]
    size, start = sum(map(len, times)), 0
    expected = np.zeros((size, size))
    for block in blocks:
        expected[start : start + len(block), start : start + len(block)] = block
        start += len(block)
    about = np.eye(size) - origin_weights([len(each) for each in times])
    values = np.linalg.eigvalsh(about @ expected @ about.T)
    return float(values[-2:].sum() / values.sum())


def origin_weights(counts: Sequence[int]) -> np.ndarray:
    """The mean of the runs' last snapshots, as weights of all snapshots, float64, (snapshots,)."""
    weights = np.zeros(sum(counts))
    weights[np.cumsum(counts) - 1] = 1 / len(counts)
    return weights


@dataclass(frozen=True)
class SnapshotFiles:
    """Files of weights along runs, all of one architecture.

    Attributes:
        names: of the parameters to be looked at.
        origin: float64, (files,): the origin as a weighted mean of the snapshots.
    """

    files: Sequence[Path]
    names: Sequence[str]
    origin: np.ndarray

    def gram(self) -> np.ndarray:
        """Inner products of the snapshots' differences from the origin, float64, (files, files)."""
        gram = np.zeros((len(self.files), len(self.files)))
        for _, _, rows in self._rows():
            rows = rows - self.origin @ rows
            gram += rows @ rows.T
        return gram

    def place(self, coefficients: np.ndarray) -> tuple[Direction, list[Direction]]:
        """The origin and both axes of a plane as parameters, float32."""
        parts: dict[str, list[np.ndarray]] = {name: [] for name in self.names}
        shapes: dict[str, tuple[int, ...]] = {}
        sums = np.stack([self.origin, *(coefficients - self.origin[:, None] * coefficients.sum(0)).T])
        for name, shape, rows in self._rows():
            parts[name].append(sums @ rows)
            shapes[name] = shape
        whole = {name: torch.from_numpy(np.concatenate(each, 1)).float() for name, each in parts.items()}
        origin, *axes = (
            {name: each[number].reshape(shapes[name]).clone() for name, each in whole.items()}
            for number in range(3)
        )
        return origin, axes

    def _rows(self) -> Iterator[tuple[str, tuple[int, ...], np.ndarray]]:
        """Part after part of each parameter: its name, its whole shape, and float64, (files, numbers)."""
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(file, "pt")) for file in self.files]
            for name in self.names:
                shape = tuple(opened[0].get_slice(name).get_shape())
                if not shape:
                    yield name, shape, _stacked([each.get_tensor(name) for each in opened])
                    continue
                step = max(1, _MOST_NUMBERS // (len(opened) * math.prod(shape[1:])))
                for start in range(0, shape[0], step):
                    part = slice(start, start + step)
                    yield name, shape, _stacked([each.get_slice(name)[part] for each in opened])


def _stacked(tensors: Sequence[Tensor]) -> np.ndarray:
    return torch.stack([each.flatten().double() for each in tensors]).numpy()


def snapshot_files(loaded: LoadedModel) -> dict[int, Path]:
    """A run's snapshots by their numbers of updates.

    Raises:
        UserError: the run has none or fewer than three, or a file is missing or has changed.
    """
    run = stored_run(loaded)
    found: dict[int, Path] = {}
    for steps, name in run.record.snapshots.items():
        file = run.artifact(name)
        if file is None:
            raise UserError(f"{run.path}: {run.record.artifacts[name].path} is not beside the record")
        if file_sha256(file) != run.record.artifacts[name].sha256:
            raise UserError(f"{file}: has changed since the record beside it was written")
        found[steps] = file
    if not found:
        raise UserError(
            f"{run.path}: has no snapshots: train.snapshots=1 keeps them; a run cannot be given them "
            "afterwards"
        )
    if len(found) < 3:
        raise UserError(f"{run.path}: has {len(found)} snapshots, a plane needs 3: train more epochs")
    return found


@dataclass(frozen=True)
class TrajectoryOptions:
    """What is drawn around runs' ways.

    Attributes:
        plane: ``pca``: nearest to all snapshots; ``ends``: through the last snapshots of three runs;
            ``axes``: the straight way from the end to the start, and the largest detour from it.
        margin: of the grid around the ways, as a share of their width.
        grid: points along an axis, odd.
    """

    plane: Plane = "pca"
    margin: float = 0.2
    grid: int = 21

    def check(self) -> None:
        """Refuse options that give no picture, with a UserError."""
        check_grid(self.grid)
        if not 0 <= self.margin <= LONGEST:
            raise UserError(f"--margin {self.margin:g}: must be a finite number from 0 to {LONGEST:g}")


@dataclass
class Trajectory(PointJob):
    """Runs' ways being computed: the loss at each snapshot, at its projection, and on the plane around them.

    Points are (0, i, j) on the plane, (1, run, t) at a snapshot and (2, run, t) at its projection.
    """

    overlay: Overlay
    options: TrajectoryOptions
    folder: Path
    resume: bool = True
    loss: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.options.check()
        models = self.overlay.models
        if self.options.plane == "ends" and len(models) != 3:
            raise UserError(f"--plane ends: goes through the ends of three runs; given are {len(models)}")
        self.evaluators = self.overlay.evaluators()
        for each in self.evaluators:
            each.check_batches()
        self._records = records_facts(models)
        self._files = [snapshot_files(each) for each in models]
        self._counts = [len(each) for each in self._files]
        names = [name for name, each in models[0].model.named_parameters() if each.requires_grad]
        files = [file for each in self._files for file in each.values()]
        origin = origin_weights(self._counts)
        ends = np.cumsum(self._counts) - 1
        if self.options.plane == "ends":
            origin = np.eye(len(files))[ends[0]]
        self.snapshots = SnapshotFiles(files, names, origin)
        gram = self.snapshots.gram()
        if not np.isfinite(gram).all():
            raise UserError(
                f"{models[0].name}: a snapshot has weights that are not finite: nothing can be drawn"
            )
        if not gram.any():
            raise UserError(f"{models[0].name}: all snapshots have the same weights: there is no way to draw")
        self.way = principal_plane(gram)
        if self.options.plane == "ends":
            self.way = plane_through(gram, int(ends[1]), int(ends[2]))
        elif self.options.plane == "axes":
            starts = np.zeros(len(files))
            starts[ends + 1 - self._counts] = 1 / len(models)
            self.way = plane_along(gram, starts)
        self.distance = np.sqrt(np.diag(gram))
        longest, grid = max(self._counts), self.options.grid
        self.loss = np.full((grid, grid), np.nan)
        self.true = np.full((2, len(models), longest), np.nan)  # at the snapshots, and at their projections
        self.digest = digest_of(
            {
                "options": asdict(self.options),
                "weights": [
                    stored_run(each).record.artifacts[name].sha256
                    for each in models
                    for name in stored_run(each).record.snapshots.values()
                ],
                "sample": self.overlay.sample.sha256,
                "batch_norm": self.evaluators[0].handling,
            }
        )
        way = self.true[0].shape
        if stored := self.take_stored(plane_loss=self.loss.shape, true_loss=way, projected_loss=way):
            self.loss, self.true = stored[0], np.stack(stored[1:])

    @property
    def title(self) -> str:
        return f"trajectory, {self.overlay.sample.split}"

    @property
    def path(self) -> Path:
        stem = analysis_stem(self.folder, "trajectory", self.digest)
        return stem.with_name(f"{stem.name}.yaml")

    @property
    def num_points(self) -> int:
        return self.loss.size + 2 * sum(self._counts)

    @property
    def num_done(self) -> int:
        return int(np.count_nonzero(~np.isnan(self.loss))) + int(np.count_nonzero(~np.isnan(self.true)))

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the grid, each float64, (grid,)."""
        low, high = self.way.xy.min(0), self.way.xy.max(0)
        pad = self.options.margin * np.maximum(high - low, 0.1 * (high - low).max())
        pad = np.where(pad > 0, pad, 1e-3)  # a margin of zero about a way without width
        first, second = (np.linspace(low[i] - pad[i], high[i] + pad[i], self.options.grid) for i in (0, 1))
        return first, second

    def points(self) -> Iterator[Point]:
        """The ways first, then the plane lattice by lattice."""
        for kind in (1, 2):
            for run, count in enumerate(self._counts):
                yield from ((kind, run, number) for number in range(count))
        grid = self.options.grid
        for stride in _STRIDES:
            indices = lattice(grid, grid // 2, stride)
            yield from ((0, i, j) for i in indices for j in indices)

    def begin(self, stack: ExitStack) -> None:
        model = self.overlay.models[0].model
        stack.enter_context(restored(model))
        origin, directions = self.snapshots.place(self.way.coefficients)
        device = self.overlay.models[0].device
        own = {name: each.detach().clone() for name, each in model.named_parameters()}
        self._origin = own | {name: each.to(device) for name, each in origin.items()}
        self._directions = [{name: each.to(device) for name, each in one.items()} for one in directions]
        # With fixed statistics the plane has those of the first run's end, and each snapshot its own.
        last = read_stored_weights(list(self._files[0].values())[-1])
        self._buffers = {name: last[name] for name, _ in model.named_buffers() if name in last}

    def is_done(self, point: Point) -> bool:
        return not np.isnan(self._values(point[0])[point[1:]])

    def _values(self, kind: int) -> np.ndarray:
        return self.loss if kind == 0 else self.true[kind - 1]

    def evaluate(self, point: Point) -> PointValue:
        kind, first, second = point
        model = self.overlay.models[0].model
        if kind == 1:
            return self.evaluators[0].at(read_stored_weights(list(self._files[first].values())[second]))
        if kind == 2:
            xy = self.way.xy[sum(self._counts[:first]) + second]
        else:
            xy = np.array([axis[index] for axis, index in zip(self.axes, (first, second), strict=True)])
        write_weights_(model, self._buffers)
        move_(model, self._origin, [float(each) for each in xy], self._directions)
        return self.evaluators[0].at()

    def keep(self, point: Point, value: PointValue) -> None:
        self._values(point[0])[point[1:]] = value.loss if not math.isnan(value.loss) else math.inf

    def store(self) -> Path:
        across, along = self.axes
        by_run = np.split(np.arange(sum(self._counts)), np.cumsum(self._counts)[:-1])
        shape = (len(self._counts), max(self._counts))
        xy, residual, distance = np.full((*shape, 2), np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
        steps = np.full(shape, np.nan)
        for run, rows in enumerate(by_run):
            xy[run, : len(rows)] = self.way.xy[rows]
            residual[run, : len(rows)] = self.way.residual[rows]
            distance[run, : len(rows)] = self.distance[rows]
            steps[run, : len(rows)] = list(self._files[run])
        arrays = {
            "gram_coefficients": self.way.coefficients, "xy": xy, "residual": residual, "distance": distance,
            "steps": steps, "true_loss": self.true[0], "projected_loss": self.true[1],
            "plane_loss": self.loss, "alpha": across, "beta": along,
        }  # fmt: skip
        facts: dict[str, Any] = {
            "records": self._records,
            "options": asdict(self.options),
            "sample": self.overlay.sample.facts(),
            "batch_norm": self.evaluators[0].handling,
            "explained": self.way.explained,
            "random_walk": random_walk_share([list(each) for each in self._files]),
            "origin": "the last snapshot" if len(self._counts) == 1 else "the mean of the last snapshots",
            "snapshots": self._counts,
            "done": self.num_done,
            "points": self.num_points,
            "passes": self.num_done * self.evaluators[0].passes,
            "seconds": round(self.seconds, 3),
            "versions": versions(),
        }
        if self.options.plane == "ends":
            facts["origin"] = "the last snapshot of the first run"
        facts["caveats"] = self.caveats(facts["random_walk"])
        return write_analysis(self.folder, "trajectory", self.digest, arrays, facts)

    def caveats(self, random_walk: float) -> list[str]:
        """What a reader of the picture has to know."""
        ends = [each[count - 1] for each, count in zip(self.true[0], self._counts, strict=True)]
        lines = caveats(self.overlay, [each for each in ends if math.isfinite(each)])
        away = self.way.residual[self.distance > 0] / self.distance[self.distance > 0]
        lines.append(f"projection: snapshots lie up to {away.max():.0%} of their distance outside this plane")
        explained = f"the plane explains {self.way.explained:.2%} of the squared distances"
        if self.options.plane == "pca":
            explained += f"; of a random walk of as many steps it would explain {random_walk:.1%}"
        trained = [each.recipe.train for each in self.overlay.models]
        if any(each.ema or each.keep == "best" for each in trained):
            lines.append("ways end at the last weights that were trained, not at those of the record")
        return [*lines, explained, SHARPNESS_CAVEAT]
