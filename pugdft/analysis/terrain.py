"""A loss surface of two weights, and the paths of optimizers on it: PUGD, Fig. 1 and 10.

A net 784-50-500-C of sigmoids without biases with squared error, as in the papers' picture: all of its
weights are fixed but two. So a path lies on the surface itself, and no projection hides anything. Every
optimizer is built by the core, starts at the same point and has the same number of gradient passes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pugdft.data.decode import decode
from pugdft.data.source import Source
from pugdft.errors import UserError, counted
from pugdft.optim.build import build_optimizer, method_of
from pugdft.optim.triggers import GeneralizationGap

SIDE = 28  # pixels
HIDDEN = (50, 500)
GRIDS = (25, 81)  # a slice has its minima on both
MOST_CANDIDATES = 1_000
_UPDATES, _LR = 60, 3e-3  # of Adam, for the weights that are fixed later
_REACH = 20.0  # the window is at least from -20 to 20
_ROOM = 4 / 3  # of the window beyond the start
_APART = 0.5  # minima nearer than this are one
_FLAT = 1e-7  # of a curvature, and ten times of a gradient: below it there is no minimum but a plateau
_STEPS_A_UNIT = 5  # of the length of a steepest descent, on average
_BEYOND = 1.5  # the picture follows paths out of the window up to this share of it
_TIMED_PASSES = 20  # of each optimizer, for a plan
_LUMA = (0.299, 0.587, 0.114)

SliceKind = Literal["unit", "output"]
Rest = Literal["trained", "random"]


@dataclass(frozen=True)
class TerrainImages:
    """Grey images of a split as float64 rows, (images, 784), and their one-hot labels, (images, classes)."""

    inputs: Tensor
    targets: Tensor


def terrain_images(source: Source, num_images: int) -> dict[str, TerrainImages]:
    """The first images of train and test, as many of each class, in grey and standardized by train's.

    The first ones alone would be of one class in a folder that is sorted by class.

    Raises:
        UserError: a split has too few images.
    """
    contents = source.read()
    num_classes = len(contents.classes)
    pixels, labels = dict[str, np.ndarray](), dict[str, list[int]]()
    for split in ("train", "test"):
        chosen, left = list[Any](), [math.ceil(num_images / num_classes)] * num_classes
        for sample in contents.splits[split].samples() if split in contents.splits else ():
            if len(chosen) == num_images:
                break
            if 0 <= sample.label < num_classes and left[sample.label]:
                left[sample.label] -= 1
                chosen.append(sample)
        if len(chosen) < num_images:
            raise UserError(
                f"--images {num_images}: {source.name} has {counted(len(chosen), 'image')} in {split}, "
                f"as many of each class; give at most {len(chosen)}, or other --data"
            )
        grey = [decode(sample, SIDE).astype(np.float64) @ np.array(_LUMA) / 255 for sample in chosen]
        pixels[split], labels[split] = np.stack(grey).reshape(num_images, -1), [each.label for each in chosen]
    mean, deviation = pixels["train"].mean(), pixels["train"].std() or 1.0
    one_hot = torch.eye(num_classes, dtype=torch.float64)
    return {
        split: TerrainImages(torch.from_numpy((rows - mean) / deviation), one_hot[labels[split]])
        for split, rows in pixels.items()
    }


def make_weights(images: TerrainImages, rest: Rest, seed: int) -> list[Tensor]:
    """The three matrices of the net: random, or trained by 60 full-batch updates of Adam on the images."""
    draw = torch.Generator().manual_seed(seed)
    widths = (images.inputs.shape[1], *HIDDEN, images.targets.shape[1])
    weights = [
        torch.randn(rows, columns, generator=draw, dtype=torch.float64) / math.sqrt(columns)
        for columns, rows in itertools.pairwise(widths)
    ]
    if rest == "trained":
        leaves = [weight.requires_grad_() for weight in weights]
        adam = torch.optim.Adam(leaves, lr=_LR)
        for _ in range(_UPDATES):
            adam.zero_grad()
            squared_error(net(leaves, images.inputs), images.targets).mean().backward()
            adam.step()
    return [weight.detach() for weight in weights]


def net(weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the whole net, (images, classes)."""
    for weight in weights:
        inputs = torch.sigmoid(inputs @ weight.T)
    return inputs


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error of each image, summed over classes."""
    return ((outputs - targets) ** 2).sum(-1)


@dataclass(frozen=True)
class Slice:
    """Two free weights of the net.

    ``unit``: into unit ``units[0]`` of the second hidden layer from unit ``source`` of the first, and out of
    it to the output ``output``. ``output``: out of two units of the second hidden layer to one output.
    """

    kind: SliceKind
    number: int  # in the seeded order of candidates, from 0
    units: tuple[int, int]
    source: int
    output: int

    @classmethod
    def drawn(cls, kind: SliceKind, number: int, num_classes: int, seed: int) -> Slice:
        """The candidate of this number; it depends on nothing else than these four."""
        draw = np.random.default_rng([seed, number])
        first, second = (int(each) for each in draw.choice(HIDDEN[1], 2, replace=False))
        return cls(
            kind, number, (first, second), int(draw.integers(HIDDEN[0])), int(draw.integers(num_classes))
        )

    def places(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        """Layer, row and column of both weights."""
        outgoing = (2, self.output, self.units[0])
        if self.kind == "unit":
            return (1, self.units[0], self.source), outgoing
        return outgoing, (2, self.output, self.units[1])


class Surface:
    """The mean squared error of images as a function of the two free weights; all else is computed once."""

    def __init__(self, weights: Sequence[Tensor], cut: Slice, images: TerrainImages) -> None:
        first = torch.sigmoid(images.inputs @ weights[0].T)
        before = first @ weights[1].T
        second = torch.sigmoid(before)
        outputs = second @ weights[2].T
        unit, other = cut.units
        is_other = torch.arange(outputs.shape[1]) != cut.output
        self._kind, self._target = cut.kind, images.targets[:, cut.output]
        self._source = first[:, cut.source]
        self._before = before[:, unit] - weights[1][unit, cut.source] * self._source
        self._first, self._second = second[:, unit], second[:, other]
        self._rest = outputs[:, cut.output] - weights[2][cut.output, unit] * self._first
        if cut.kind == "output":
            self._rest = self._rest - weights[2][cut.output, other] * self._second
        # The unit also feeds the other outputs, so their error depends on what comes into it.
        self._out = weights[2][is_other, unit]
        self._others = outputs[:, is_other] - self._first[:, None] * self._out
        self._other_targets = images.targets[:, is_other]

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Losses at points of any shape, the same for ``x`` and ``y``."""
        return self._of_others(x) + self._of_output(x, y)

    def _unit(self, x: Tensor) -> Tensor:
        """What the unit gives out, (…, images)."""
        if self._kind == "output":
            return self._first.expand(*x.shape, -1)
        return torch.sigmoid(self._before + x[..., None] * self._source)

    def _of_others(self, x: Tensor) -> Tensor:
        reached = self._others + self._unit(x)[..., None] * self._out
        return squared_error(torch.sigmoid(reached), self._other_targets).mean(-1)

    def _of_output(self, x: Tensor, y: Tensor) -> Tensor:
        added = y[..., None] * self._unit(x)
        if self._kind == "output":
            added = x[..., None] * self._first + y[..., None] * self._second
        return ((torch.sigmoid(self._rest + added) - self._target) ** 2).mean(-1)

    def with_slope(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        """The loss at a point, and its gradient."""
        place = torch.tensor(point, requires_grad=True)
        loss = self(place[0], place[1])
        (slope,) = torch.autograd.grad(loss, place)
        return loss.item(), slope.numpy()

    def on(self, axis: np.ndarray) -> np.ndarray:
        """Losses on a grid, (points of y, points of x), row by row to need little memory."""
        points = torch.from_numpy(axis)
        others = self._of_others(points)
        rows = [others + self._of_output(points, torch.full_like(points, y)) for y in axis.tolist()]
        return torch.stack(rows).numpy()


def interior_minima(losses: np.ndarray) -> list[tuple[int, int]]:
    """Rows and columns of the points of a grid that are below all of their eight neighbours."""
    from scipy.ndimage import minimum_filter

    neighbours = np.ones((3, 3), bool)
    neighbours[1, 1] = False
    is_least = losses < minimum_filter(losses, footprint=neighbours, mode="constant", cval=-math.inf)
    return [(int(row), int(column)) for row, column in np.argwhere(is_least)]


def true_minima(surface: Surface, reach: float, grid: int = GRIDS[-1]) -> list[tuple[float, float, float]]:
    """Minima inside the window as x, y and loss, the lowest first.

    A grid has minima of its own: points along a narrow valley that lies across it. So each is followed down
    to where the gradient vanishes; it counts if the Hessian is positive there and no other is beside it.
    """
    from scipy.optimize import minimize

    axis = np.linspace(-reach, reach, grid)
    found: list[tuple[float, float, float]] = []
    for row, column in interior_minima(surface.on(axis)):
        end = minimize(
            surface.with_slope, (axis[column], axis[row]), jac=True, method="BFGS", options={"gtol": 1e-12}
        )
        x, y = end.x.tolist()
        hessian: Any = torch.autograd.functional.hessian(
            lambda place: surface(place[0], place[1]), torch.from_numpy(end.x)
        )
        is_minimum = torch.linalg.eigvalsh(hessian)[0] > _FLAT and np.linalg.norm(end.jac) < 0.1 * _FLAT
        is_new = all(math.dist((x, y), each[:2]) > _APART for each in found)
        if is_minimum and is_new and max(abs(x), abs(y)) < reach:
            found.append((x, y, float(end.fun)))
    return sorted(found, key=lambda each: each[2])


def descent(surface: Surface, start: tuple[float, float], reach: float) -> tuple[float, float] | None:
    """Follow the steepest descent from a point for twice the window's side; None if it leaves the window.

    Steps have a given length, which shrinks to 0, so that a plateau does not stop them.
    """
    point, steps = np.array(start), round(_STEPS_A_UNIT * 4 * reach)
    for number in range(steps):
        _, slope = surface.with_slope(point)
        point -= 2 / _STEPS_A_UNIT * (1 - number / steps) * slope / max(float(np.linalg.norm(slope)), 1e-300)
        if np.abs(point).max() >= reach:
            return None
    return float(point[0]), float(point[1])


def window(start: tuple[float, float]) -> float:
    """Half the side of the window around 0 that a start needs."""
    return max(_REACH, _ROOM * max(map(abs, start)))


@dataclass(frozen=True, kw_only=True)
class TerrainOptions:
    """Options of a terrain; ``grid`` is the number of points of each axis."""

    passes: int = 4_000
    start: tuple[float, float] = (-10.1, -15.0)
    kind: SliceKind = "unit"
    rest: Rest = "trained"
    images: int = 100
    grid: int = 81
    every: int = 10
    seed: int = 0


def choose_slice(
    weights: Sequence[Tensor], images: TerrainImages, options: TerrainOptions, reach: float
) -> Slice:
    """The first candidate in seeded order that fits; of ``output``, the first.

    Its train surface has two minima inside the window: on 25 × 25 and on 81 × 81 points, and of the function
    itself. And the steepest descent from the start ends in one of them, so that there is something to reach.
    Both weights of ``output`` enter one unit, which makes one valley: a rule would find nothing.

    Raises:
        UserError: none of the first thousand candidates fits.
    """
    num_classes = images.targets.shape[1]
    for number in range(MOST_CANDIDATES):
        cut = Slice.drawn(options.kind, number, num_classes, options.seed)
        if options.kind == "output" or _fits(Surface(weights, cut, images), options.start, reach):
            return cut
    raise UserError(
        f"--slice unit: of {MOST_CANDIDATES:,} pairs of weights none has two minima in the window of "
        f"±{reach:g}, one of them below the start. Give another --seed, --rest or --start, or --slice output"
    )


def _fits(surface: Surface, start: tuple[float, float], reach: float) -> bool:
    grids = (np.linspace(-reach, reach, points) for points in GRIDS)
    if any(len(interior_minima(surface.on(axis))) < 2 for axis in grids):
        return False
    end = descent(surface, start, reach)
    minima = true_minima(surface, reach) if end else []
    return len(minima) >= 2 and any(math.dist(end or start, each[:2]) < _APART for each in minima)


class FreeWeights(nn.Module):
    """The two free weights, each a 1 × 1 matrix so that every method takes it for a weight, no bias."""

    def __init__(self, surface: Surface, start: tuple[float, float]) -> None:
        super().__init__()
        self.x, self.y = (nn.Parameter(torch.full((1, 1), each, dtype=torch.float64)) for each in start)
        self._surface = surface

    def forward(self) -> Tensor:
        """The loss here."""
        return self._surface(self.x[0, 0], self.y[0, 0])


def check_spec(spec: Mapping[str, Any], text: str) -> None:
    """Refuse an optimizer that needs more than the losses and gradients of two weights."""
    base = spec.get("base", spec)
    problem = ""
    if isinstance(method_of(spec).trigger, GeneralizationGap):
        problem = "its trigger needs the loss on held-out images after each epoch"
    elif base.get("layer_decay") is not None:
        problem = "layer_decay needs the layers of a network"
    elif not isinstance(spec.get("base", spec).get("lr"), int | float):
        problem = "its base has no learning rate"
    if problem:
        raise UserError(f'--optimizers: "{text}": {problem}; a terrain has two weights and no epochs')


def walk(
    surface: Surface, spec: Mapping[str, Any], start: tuple[float, float], passes: int, every: int
) -> tuple[np.ndarray, int]:
    """Let an optimizer make updates until it has used its passes; return points and number of updates.

    A path that leaves all finite numbers ends at the last point before.

    The learning rate falls from the optimizer's own to 0 along half a cosine of the passes. At a constant one
    a step of unit length never gets nearer to a minimum than that length.

    Args:
        every: a point is kept after each so many passes, besides the first and the last.

    Returns:
        The points have passes, x and y in their columns.
    """
    module = FreeWeights(surface, start)
    optimizer = build_optimizer(spec, module)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    used, updates, due = 0, 0, every

    def closure() -> Tensor:
        nonlocal used
        used += 1
        optimizer.zero_grad()
        loss: Tensor = module()
        loss.backward()
        return loss

    points = [(0.0, *start)]
    while used < passes:
        optimizer.progress = used / passes
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * used / passes))
        optimizer.step(closure)
        updates += 1
        x, y = module.x.item(), module.y.item()
        if not (math.isfinite(x) and math.isfinite(y)):
            break
        if used >= due or used >= passes:
            points.append((float(used), x, y))
            due = (used // every + 1) * every
    return np.array(points), updates


@dataclass(frozen=True)
class Ground:
    """What all paths of a terrain share: the images, the net's weights, the slice and its surfaces."""

    images: Mapping[str, TerrainImages]
    weights: Sequence[Tensor]
    cut: Slice
    surfaces: Mapping[str, Surface]  # of train and test


def lay_ground(source: Source, options: TerrainOptions, say: Callable[[str], None]) -> Ground:
    """Read the images, make the net's weights and choose the slice."""
    images = terrain_images(source, options.images)
    weights = make_weights(images["train"], options.rest, options.seed)
    if options.kind == "unit":
        say("looking for two weights whose surface has two minima")
    cut = choose_slice(weights, images["train"], options, window(options.start))
    return Ground(
        images, weights, cut, {split: Surface(weights, cut, each) for split, each in images.items()}
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """So small a net is slower with more threads; and sums have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def planned_seconds(
    source: Source, specs: Mapping[str, Mapping[str, Any]], options: TerrainOptions
) -> tuple[int, float]:
    """The number of the slice's candidate, and about how long the terrain takes, without its pictures.

    The slice is looked for, and every optimizer makes 20 passes.
    """
    begun = time.perf_counter()
    with _one_thread():
        ground = lay_ground(source, options, lambda line: None)
        laid = time.perf_counter()
        for text, spec in specs.items():
            check_spec(spec, text)
            walk(ground.surfaces["train"], spec, options.start, _TIMED_PASSES, options.every)
    walked = time.perf_counter() - laid
    return ground.cut.number + 1, laid - begun + walked * options.passes / _TIMED_PASSES


def make_terrain(
    source: Source,
    specs: Mapping[str, Mapping[str, Any]],
    options: TerrainOptions,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Compute both surfaces and every path; return what is stored as arrays and as facts.

    Args:
        specs: optimizers' specs as in a recipe, by the text that names them.

    Returns:
        ``axis``, ``train`` and ``test`` (rows are y), and for each optimizer ``path_NAME`` with the columns
        passes, x, y, train loss, test loss; and facts with the table of ends, the slice, and caveats.

    Raises:
        UserError: an optimizer that cannot be used here, too few images, or no slice with two minima.
    """
    begun = time.perf_counter()
    for text, spec in specs.items():
        check_spec(spec, text)
    with _one_thread():
        ground = lay_ground(source, options, say)
        paths = dict[str, tuple[np.ndarray, int]]()
        for text, spec in specs.items():
            say(f"{text}: {options.passes:,} passes")
            paths[text] = walk(ground.surfaces["train"], spec, options.start, options.passes, options.every)
        return _stored(ground, source, specs, options, paths, begun)


def _stored(
    ground: Ground,
    source: Source,
    specs: Mapping[str, Mapping[str, Any]],
    options: TerrainOptions,
    paths: Mapping[str, tuple[np.ndarray, int]],
    begun: float,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    reach, cut = window(options.start), ground.cut
    farthest = max(np.abs(points[:, 1:]).max() for points, _ in paths.values())
    shown = min(max(reach, math.ceil(1.05 * farthest)), _BEYOND * reach)
    axis = np.linspace(-shown, shown, options.grid)
    arrays = {"axis": axis, **{split: each.on(axis) for split, each in ground.surfaces.items()}}
    rows = []
    for text, (points, num_updates) in paths.items():
        x, y = torch.from_numpy(points[:, 1:].T.copy())
        losses = {split: each(x, y).numpy() for split, each in ground.surfaces.items()}
        name, end = _array_name(text, arrays), points[-1, 1:].tolist()
        arrays[name] = np.column_stack([points, losses["train"], losses["test"]])
        rows.append(
            {
                "name": text, "array": name, "spec": dict(specs[text]), "passes": int(points[-1, 0]),
                "updates": num_updates, "end": end, "moved": math.dist(options.start, end),
                "train_loss": losses["train"][-1].item(), "test_loss": losses["test"][-1].item(),
                "leaves_picture": bool(np.abs(points[:, 1:]).max() > shown),
            }
        )  # fmt: skip
    minima = true_minima(ground.surfaces["train"], reach)
    facts = {
        "optimizers": rows,
        "minima": [{"x": x, "y": y, "train_loss": loss} for x, y, loss in minima],
        "options": {**vars(options), "start": list(options.start), "data": source.name},
        "slice": {
            "kind": cut.kind,
            "candidate": cut.number + 1,
            "weights": [list(place) for place in cut.places()],
        },
        "images": {"data": source.name, "key": source.key, "train": options.images, "test": options.images},
        "caveats": _caveats(options, cut, rows),
        "seconds": round(time.perf_counter() - begun, 2),
        "versions": {"torch": str(torch.__version__), "numpy": np.__version__},
    }
    return arrays, facts


def _array_name(text: str, taken: Mapping[str, Any]) -> str:
    """``path_`` and the optimizer's text in letters, digits and underscores, with a number if it is taken."""
    name = "path_" + "_".join("".join(each if each.isalnum() else " " for each in text).split())
    number = 2
    while name in taken:
        name, number = f"{name.rstrip('0123456789').rstrip('_')}_{number}", number + 1
    return name


def _caveats(options: TerrainOptions, cut: Slice, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    rule = "the first candidate; no rule"
    if cut.kind == "unit":
        rule = (
            f"candidate {cut.number + 1} in the order of seed {options.seed}, the first whose train surface "
        )
        rule += "has two minima inside the window (on 25 × 25 and on 81 × 81 points, and of the function), "
        rule += "in one of which the steepest descent from the start ends"
    rest = (
        "random" if options.rest == "random" else f"trained by {_UPDATES} updates of Adam on the train images"
    )
    said = [
        f"two weights of a net {SIDE * SIDE}-{HIDDEN[0]}-{HIDDEN[1]}-C of sigmoids are free; all others are "
        + rest,
        f"slice chosen by rule: {rule}",
        f"squared error of {options.images} images of each split, as many of each class, in grey; "
        f"{options.passes:,} gradient passes for each optimizer; the rate falls to 0 along half a cosine",
        "on the plateau the gradient nearly vanishes: what crosses it has steps of a given length. The "
        "picture shows the length of steps more than a preference for flat minima",
    ]
    if lost := [row["name"] for row in rows if row["passes"] < options.passes]:
        said.append(f"diverged, drawn up to the last finite point: {', '.join(lost)}")
    if away := [row["name"] for row in rows if row["leaves_picture"]]:
        said.append(f"outside the picture at times: {', '.join(away)}")
    return said
