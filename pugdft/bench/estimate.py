"""Estimate the cost of a comparison, and the differences its seeds can show, before anything has run."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from pugdft.bench.executors.local import cell_status, cell_top1
from pugdft.bench.grid import BenchCell
from pugdft.config import yaml
from pugdft.config.schema import Recipe
from pugdft.errors import UserError

_WARM_UP, _TIMED, _EVAL_IMAGES = 2, 3, 200
_BYTES_PER_PREDICTION = 14  # label, prediction, top-5, confidence and loss, compressed
_RECORD_BYTES = 20_000


@dataclass(frozen=True)
class Probe:
    """The cost of a cell on this machine.

    Attributes:
        start_seconds: from the start of the process to the first update, data and weights included.
        seconds_per_pass: of one gradient pass over a batch, with its share of the optimizer.
        evaluation_seconds: of all evaluated splits once.
        steps_per_epoch: updates.
        weights_bytes, optimizer_bytes: of the model and of the optimizer's state.
        test_images: in all evaluated splits.
    """

    start_seconds: float
    seconds_per_pass: float
    evaluation_seconds: float
    steps_per_epoch: int
    weights_bytes: int
    optimizer_bytes: int
    test_images: int


def probe(recipe: Recipe) -> Probe:
    """Measure a few updates of a recipe in a process of its own.

    Raises:
        UserError: the recipe cannot run here; the message is the run's.
    """
    with tempfile.TemporaryDirectory(prefix="pugdft-probe-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.dump(recipe.as_dict()), encoding="utf-8")
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pugdft.bench.estimate", str(path)], capture_output=True, text=True
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(
            f"the probe of {recipe.model.name} with {recipe.optimizer['name']} failed: {lines[-1]}"
        )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measured = facts.pop("measured_seconds")
    return replace(Probe(**facts), start_seconds=time.perf_counter() - begin - measured)


def _measure(recipe: Recipe) -> dict[str, Any]:
    import torch

    from pugdft.data.loader import EvaluationBatches
    from pugdft.training.performance import rounding_of
    from pugdft.training.setup import assemble, load, make_accelerator
    from pugdft.training.trainer import Position, Totals, Trainer, evaluate

    accelerator = make_accelerator(recipe)
    parts = assemble(recipe, accelerator, *load(recipe))
    moments: list[tuple[float, float]] = []
    begin = time.perf_counter()

    def note(position: Position, totals: Totals) -> bool:
        totals.means()  # waits for the device
        moments.append((time.perf_counter(), position.gradient_passes))
        return len(moments) == _WARM_UP + _TIMED

    trainer = Trainer(parts, after_step=note, total=10**9)
    with rounding_of(parts.switches, parts.device.type):
        trainer.train_epoch(Position(), Totals(parts.device))
    start = moments[min(_WARM_UP, len(moments) - 1) - 1] if len(moments) > 1 else (begin, 0)
    passes = moments[-1][1] - start[1]
    images = {name: len(each.images) for name, each in parts.evaluations.items()}
    first = next(iter(parts.evaluations.values()))
    few = replace(first.images, indices=first.images.indices[:_EVAL_IMAGES])
    part = EvaluationBatches(few, first.to_input, first.device, first.share, first.batch_size)
    before = time.perf_counter()
    evaluate(parts.evaluation_model, part, accelerator)
    per_image = (time.perf_counter() - before) / len(few)
    tensors = [
        each for state in parts.optimizer.state.values() for each in state.values() if torch.is_tensor(each)
    ]
    return {
        "start_seconds": 0.0,
        "seconds_per_pass": (moments[-1][0] - start[0]) / max(1, passes),
        "evaluation_seconds": per_image * sum(images.values()),
        "steps_per_epoch": parts.training.steps_per_epoch,
        "weights_bytes": _bytes(parts.backbone.model.state_dict().values()),
        "optimizer_bytes": _bytes(tensors),
        "test_images": sum(images.values()),
        "measured_seconds": time.perf_counter() - begin,
    }


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class PlanLine:
    """The cells of one optimizer under one recipe.

    Attributes:
        finished: cells with a completed record.
        passes_are_bound: only the run itself can tell its passes; every step is taken to perturb.
        updates, passes: of one cell; None without a probe, as what follows.
        seconds: of the cells that are left.
        disk_bytes: that the cells left will keep.
        problem: why the cells left cannot run here, if they cannot.
    """

    source: str
    optimizer: str
    cells: int
    finished: int
    passes_are_bound: bool
    updates: int | None = None
    passes: int | None = None
    seconds: float | None = None
    disk_bytes: int | None = None
    problem: str = ""


@dataclass(frozen=True)
class Estimate:
    """A plan with its price.

    Attributes:
        checkpoint_bytes: that the largest cell needs in addition while it runs.
        free_bytes: on the disk of the output folder.
        spread: standard deviation of paired differences between finished cells, None if there are too few.
        detectable: the smallest true difference of two optimizers that this many seeds find four times in
            five, as a multiple of that deviation; None for one seed.
    """

    lines: tuple[PlanLine, ...]
    checkpoint_bytes: int
    free_bytes: int
    num_seeds: int
    num_pairs: int
    spread: float | None
    detectable: float | None


def estimate(cells: Sequence[BenchCell], output: Path, prober: Callable[[Recipe], Probe]) -> Estimate:
    """Probe one cell of each optimizer and recipe that has unfinished ones, and add up.

    For a recipe that cannot run here, its lines hold the problem; the other lines hold their price.
    """
    from pugdft.leaderboard.power import Plan

    rows: dict[tuple[str, str], list[BenchCell]] = {}
    for cell in cells:
        rows.setdefault((cell.source, cell.optimizer), []).append(cell)
    probes: dict[str, Probe] = {}
    problems: dict[str, str] = {}
    lines, checkpoint = [], 0
    for (source, optimizer), members in rows.items():
        left = [cell for cell in members if cell_status(cell) != "completed"]
        finished = len(members) - len(left)
        line = PlanLine(source, optimizer, len(members), finished, _is_bound(members[0]))
        if left and source not in problems:  # a missing data set is not looked for again
            key = _cost_key(left[0].recipe)
            try:
                facts = probes.get(key) or probes.setdefault(key, prober(left[0].recipe))
                checkpoint = max(checkpoint, 2 * (facts.weights_bytes + facts.optimizer_bytes))
                line = _priced(line, left[0], facts)
            except UserError as error:
                problems[source] = str(error)
        if left and line.seconds is None:
            line = replace(line, problem=problems[source])
        lines.append(line)
    num_seeds = len({cell.seed for cell in cells})
    # Within one table every two optimizers are a pair to be told apart.
    num_pairs = max(1, math.comb(len({cell.optimizer for cell in cells}), 2))
    existing = next(each for each in (output, *output.absolute().parents) if each.exists())
    return Estimate(
        lines=tuple(lines),
        checkpoint_bytes=checkpoint,
        free_bytes=shutil.disk_usage(existing).free,
        num_seeds=num_seeds,
        num_pairs=num_pairs,
        spread=_spread(cells),
        detectable=Plan(1.0, num_pairs=num_pairs).detectable_difference(num_seeds) if num_seeds > 1 else None,
    )


def _priced(line: PlanLine, cell: BenchCell, facts: Probe) -> PlanLine:
    """The line with its length, time and disk, from a probe of one of its cells."""
    train = cell.recipe.train
    total = min(train.epochs * facts.steps_per_epoch, train.max_steps or train.epochs * facts.steps_per_epoch)
    if train.budget == "passes":
        updates, passes = math.ceil(total / cell.passes_per_update), total
    else:
        updates, passes = total, round(total * cell.passes_per_update)
    epochs = math.ceil(updates / facts.steps_per_epoch)
    evaluations = math.ceil(epochs / train.eval_every)
    one = facts.start_seconds + passes * facts.seconds_per_pass + evaluations * facts.evaluation_seconds
    kept = facts.weights_bytes + facts.test_images * _BYTES_PER_PREDICTION + _RECORD_BYTES
    left = line.cells - line.finished
    return replace(line, updates=updates, passes=passes, seconds=left * one, disk_bytes=left * kept)


def _is_bound(cell: BenchCell) -> bool:
    """Whether only the run itself can tell its passes."""
    from pugdft.optim.build import build_method

    spec = cell.recipe.optimizer
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    return build_method(spec["name"], options).expected_passes is None


def _cost_key(recipe: Recipe) -> str:
    """What decides the speed: everything but the seed and the length."""
    data = recipe.as_dict()
    for key in ("seed", "epochs", "max_steps", "budget"):
        data["train"].pop(key, None)
    data.pop("tuning", None)
    return json.dumps(data, sort_keys=True)


def _spread(cells: Sequence[BenchCell]) -> float | None:
    """The pooled standard deviation of paired top-1 differences between finished cells of one recipe."""
    scores: dict[str, dict[str, dict[int, float]]] = {}
    for cell in cells:
        if (top1 := cell_top1(cell)) is not None:
            scores.setdefault(cell.source, {}).setdefault(cell.optimizer, {})[cell.seed] = top1
    squares, freedom = 0.0, 0
    for of_recipe in scores.values():
        for first, second in combinations(of_recipe.values(), 2):
            differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
            if len(differences) > 1:
                centre = sum(differences) / len(differences)
                squares += sum((each - centre) ** 2 for each in differences)
                freedom += len(differences) - 1
    return math.sqrt(squares / freedom) if freedom else None


def _main() -> None:
    from pugdft.training.run import read_recipe

    try:
        facts = _measure(read_recipe(sys.argv[1]))
    except UserError as error:
        sys.exit(" ".join(str(error).split()))
    print(json.dumps(facts))


if __name__ == "__main__":
    _main()
