"""Estimate the cost of a comparison, and the differences its seeds can show, before anything has run."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from pugdft.bench.cell import BenchCell, cell_record, cell_status, cell_top1
from pugdft.bench.grid import method_of
from pugdft.config.schema import Recipe
from pugdft.errors import ConfigIssue, UserError, collect
from pugdft.records import RECORD_NAME, StoredRun
from pugdft.training.launchers import own_environment
from pugdft.training.run import read_recipe

# Updates before the clock, and then at least so many and so long: the machine may do other work.
_WARM_UP, _TIMED, _TIMED_SECONDS, _EVAL_IMAGES = 2, 3, 2.0, 200
_ENOUGH_SECONDS = 20.0  # no further update after so long, but for the second, as the first is slower
_CPU_BATCH, _CPU_EVAL_IMAGES = 32, 64  # a CPU takes about as long for an image in a larger batch
_MOST_PROBES = 12  # of a larger comparison, one optimizer of each recipe is measured
_BYTES_PER_PREDICTION = 14  # label, prediction, top-5, confidence and loss, compressed
_RECORD_BYTES = 20_000


@dataclass(frozen=True)
class Probe:
    """The cost of a cell on this machine."""

    start_seconds: float  # from the start of the process to the first update, data and weights included
    seconds_per_pass: float  # of one gradient pass over a batch, with its share of the optimizer
    evaluation_seconds: float  # of all evaluated splits once
    steps_per_epoch: int  # updates
    weights_bytes: int  # of the model
    optimizer_bytes: int  # of the optimizer's state
    test_images: int  # in all evaluated splits
    test_split_images: int | None = None  # in the test split alone; None where it is not evaluated


def probe(recipe: Recipe) -> Probe:
    """Measure a few updates of a recipe in a process of its own; refuse one that cannot run here."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "pugdft.bench.estimate"]
    text, environment = json.dumps(recipe.as_dict()), own_environment()
    done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(lines[-1])
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measured = facts.pop("measured_seconds")
    return Probe(time.perf_counter() - begin - measured, **facts)


def _measure(recipe: Recipe) -> dict[str, Any]:
    import torch

    from pugdft.training.performance import rounding_of
    from pugdft.training.setup import assemble, check_batch, load, make_accelerator
    from pugdft.training.trainer import Position, Totals, Trainer, evaluate

    asked, asked_size, num_evaluated = recipe, recipe.train.batch_size, _EVAL_IMAGES
    accelerator = make_accelerator(recipe)
    if accelerator.device.type == "cpu" and asked_size > _CPU_BATCH:
        train = recipe.train.model_copy(update={"batch_size": _CPU_BATCH, "micro_batch_size": None})
        recipe, num_evaluated = recipe.model_copy(update={"train": train}), _CPU_EVAL_IMAGES
    store, backbone = load(recipe)
    parts = assemble(recipe, accelerator, store, backbone)
    check_batch(asked, len(parts.training.images), accelerator.num_processes)
    begin = time.perf_counter()
    moments = [(begin, 0.0)]  # time and gradient passes, before the first update and after each

    def note(position: Position, totals: Totals) -> bool:
        totals.means()  # waits for the device
        moments.append((time.perf_counter(), position.gradient_passes))
        is_long = len(moments) > 2 and moments[-1][0] - begin > _ENOUGH_SECONDS
        timed = len(moments) - 1 - _WARM_UP
        return is_long or (timed >= _TIMED and moments[-1][0] - moments[_WARM_UP][0] >= _TIMED_SECONDS)

    with rounding_of(parts.switches, parts.device.type):
        # Where all is trained that ever is.
        position = Position(epoch=parts.freezing.phases[-1].first_epoch)
        Trainer(parts, after_step=note, total=10**9).train_epoch(position, Totals(parts.device))
    first = moments[min(_WARM_UP, len(moments) - 2)]  # an epoch may have fewer updates than are asked for
    last = moments[-1]
    split = next(iter(parts.evaluations.values()))
    few = replace(split.images, indices=split.images.indices[:num_evaluated])
    evaluate(parts.evaluation_model, replace(split, images=few), accelerator)  # the first takes memory
    before = time.perf_counter()
    evaluate(parts.evaluation_model, replace(split, images=few), accelerator)
    per_image = (time.perf_counter() - before) / len(few)
    num_images = sum(len(each.images) for each in parts.evaluations.values())
    states = [each for state in parts.optimizer.state.values() for each in state.values()]
    return {
        "seconds_per_pass": (last[0] - first[0])
        / (last[1] - first[1])
        * (asked_size / recipe.train.batch_size),
        "evaluation_seconds": per_image * num_images,
        "steps_per_epoch": len(parts.training.images) // asked_size,
        "weights_bytes": sum(each.nbytes for each in parts.backbone.model.state_dict().values()),
        "optimizer_bytes": sum(each.nbytes for each in states if torch.is_tensor(each)),
        "test_images": num_images,
        "test_split_images": len(test.images) if (test := parts.evaluations.get("test")) else None,
        "measured_seconds": time.perf_counter() - begin,
    }


@dataclass(frozen=True)
class PlanLine:
    """The cells of one optimizer under one recipe."""

    source: str
    optimizer: str
    cells: int
    finished: int  # cells with a completed record
    passes_are_bound: bool  # only the run itself can tell its passes; every step is taken to perturb
    updates: int | None = None  # of one cell; None without a probe, as what follows
    passes: int | None = None
    seconds: float | None = None  # of the cells that are left
    disk_bytes: int | None = None  # what the cells that are left will write and keep
    problem: str = ""  # why the cells that are left cannot run here


@dataclass(frozen=True)
class Spreads:
    """How much the difference of two optimizers spreads: bounds of standard deviations, as fractions."""

    seeds: tuple[float, float]  # of one seed's paired difference
    images: tuple[float, float]  # of the difference of one image, over all seeds
    are_measured: bool = False  # by finished cells


# As in the comparisons of `leaderboard/records`, and in networks that are fine-tuned nearly to their end.
TYPICAL = Spreads(seeds=(0.003, 0.024), images=(0.1, 0.3))


@dataclass(frozen=True)
class Estimate:
    lines: tuple[PlanLine, ...]
    checkpoint_bytes: int  # what the largest cell needs in addition while it runs
    free_bytes: int  # on the disk of the output folder
    num_seeds: int
    num_pairs: int
    spreads: Spreads  # that the plan assumes
    # The smallest true difference of top-1 that so many seeds find with a power of 0.8, for the least and the
    # largest spread; infinite for one seed.
    detectable: tuple[float, float]
    num_test_images: int | None = None  # None if no cell was measured, and none has finished
    is_sampled: bool = False  # one optimizer of each recipe was measured


def estimate(cells: Sequence[BenchCell], output: Path, prober: Callable[[Recipe], Probe]) -> Estimate:
    """Probe an unfinished cell of each optimizer and recipe, and add up; lines that cannot run say why.

    Of a comparison with more than twelve such pairs, one cell of each recipe stands for the others: the one
    with the most passes an update.
    """
    from pugdft.leaderboard.power import Plan

    rows: dict[tuple[str, str], list[BenchCell]] = {}
    for cell in cells:
        rows.setdefault((cell.source, cell.optimizer), []).append(cell)
    is_sampled = len(rows) > _MOST_PROBES
    dearest: dict[str, BenchCell] = {}
    for cell in cells:
        if cell.passes_per_update > dearest.setdefault(cell.source, cell).passes_per_update:
            dearest[cell.source] = cell
    probes: dict[str, Probe] = {}
    problems: dict[str, str] = {}
    missing: dict[str, str] = {}  # data sets, and why
    lines, checkpoint = [], 0
    for (source, optimizer), members in rows.items():
        left = [cell for cell in members if cell_status(cell) != "completed"]
        is_bound = method_of(members[0].recipe.optimizer).expected_passes is None
        line = PlanLine(source, optimizer, len(members), len(members) - len(left), is_bound)
        faults: list[ConfigIssue] = []
        if left and (why := missing.get(left[0].recipe.data.name)):  # it is not looked for again
            problems.setdefault(source, why)
        if left and source not in problems:
            measured = (dearest[source] if is_sampled else left[0]).recipe
            data = {**measured.as_dict(), "tuning": None}  # what decides the speed
            data["train"] |= dict.fromkeys(("seed", "epochs", "max_steps", "budget"))
            key = json.dumps(data, sort_keys=True)
            with collect(faults):
                facts = probes.get(key) or probes.setdefault(key, prober(measured))
                weights = facts.weights_bytes * _num_copies(cell.recipe)
                checkpoint = max(checkpoint, 2 * (weights + facts.optimizer_bytes))
                line = _priced(line, left[0], facts)
        if faults:
            problems[source] = "\n".join(map(str, faults))
            if problems[source].startswith("data.name: "):
                missing[left[0].recipe.data.name] = problems[source]
        has_no_price = left and line.seconds is None
        lines.append(replace(line, problem=problems[source]) if has_no_price else line)
    num_seeds = len({cell.seed for cell in cells})
    # Within one table every two optimizers are a pair to be told apart.
    num_pairs = max(1, math.comb(len({cell.optimizer for cell in cells}), 2))
    existing = next(each for each in (output, *output.absolute().parents) if each.exists())
    free = shutil.disk_usage(existing).free
    spreads, num_images = _spreads(cells)
    num_images = num_images or min(
        (n for each in probes.values() if (n := each.test_split_images)), default=None
    )
    low, high = (
        Plan(std, images**2 / num_images if num_images else 0.0, num_pairs).detectable_difference(num_seeds)
        for std, images in zip(spreads.seeds, spreads.images, strict=True)
    )
    found = (low, high)
    return Estimate(
        tuple(lines), checkpoint, free, num_seeds, num_pairs, spreads, found, num_images, is_sampled
    )


def _priced(line: PlanLine, cell: BenchCell, facts: Probe) -> PlanLine:
    """Add length, time and disk, from a probe of one of the line's cells."""
    train = cell.recipe.train
    total = min(train.epochs * facts.steps_per_epoch, train.max_steps or train.epochs * facts.steps_per_epoch)
    updates, passes = total, round(total * cell.passes_per_update)
    if train.budget == "passes":
        updates, passes = math.ceil(total / cell.passes_per_update), total
    evaluations = math.ceil(math.ceil(updates / facts.steps_per_epoch) / train.eval_every)
    num_stored = 1 if train.ema is None else 2  # an average is evaluated and stored beside the plain weights
    evaluation_seconds = evaluations * num_stored * facts.evaluation_seconds
    one = facts.start_seconds + passes * facts.seconds_per_pass + evaluation_seconds
    kept = num_stored * facts.weights_bytes + facts.test_images * _BYTES_PER_PREDICTION + _RECORD_BYTES
    left = line.cells - line.finished
    return replace(line, updates=updates, passes=passes, seconds=left * one, disk_bytes=left * kept)


def _num_copies(recipe: Recipe) -> int:
    """Copies of the weights in a checkpoint: those that train, their average, those of the best epoch."""
    num_stored = 1 if recipe.train.ema is None else 2
    return num_stored * (2 if recipe.train.keep == "best" else 1)


def _spreads(cells: Sequence[BenchCell]) -> tuple[Spreads, int | None]:
    """Pool the spreads of differences between finished cells of one recipe; the number of their test images.

    What they do not tell is as in :data:`TYPICAL`.
    """
    from pugdft.leaderboard.load import PerImage, read_per_image
    from pugdft.leaderboard.stats import EntryScores, compare_all

    entries: dict[str, dict[str, dict[int, tuple[float, PerImage | None]]]] = {}
    sizes: set[int] = set()
    for cell in cells:
        record, top1 = cell_record(cell), cell_top1(cell)
        if record is None or top1 is None:
            continue
        if record.data and (size := record.data.sizes.get("test")):
            sizes.add(size)
        images = None
        with suppress(UserError):
            images = read_per_image(StoredRun(record, cell.folder / RECORD_NAME))
        entries.setdefault(cell.source, {}).setdefault(cell.optimizer, {})[cell.seed] = top1, images
    squares, freedom, of_images = 0.0, 0, list[float]()
    for by_optimizer in entries.values():
        samples = []
        for by_seed in by_optimizer.values():
            known = {seed: found.scores["top1"] for seed, (_, found) in by_seed.items() if found}
            scores = {seed: top1 for seed, (top1, _) in by_seed.items()}
            samples.append(EntryScores(scores, known if len(known) == len(scores) else None))
        if len({len(row) for each in samples for row in (each.images or {}).values()}) > 1:
            continue  # other test images
        pairs = compare_all(samples)
        paired = (pairs.share == 1) & (pairs.num_pairs > 1)
        squares += float((pairs.seed_variance * (pairs.num_pairs - 1))[paired].sum())
        freedom += int((pairs.num_pairs - 1)[paired].sum())
        of_images += (pairs.spread.images * (pairs.spread.image_freedom + 1))[paired].tolist()
    if not freedom:
        return TYPICAL, min(sizes, default=None)
    seeds = math.sqrt(squares / freedom)
    images_std = math.sqrt(fmean(of_images)) if any(of_images) else 0.0
    images = (images_std, images_std) if images_std else TYPICAL.images
    return Spreads((seeds, seeds), images, are_measured=True), min(sizes, default=None)


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(read_recipe(json.load(sys.stdin)))))
    except UserError as error:
        sys.exit(" ".join(str(error).split()))
