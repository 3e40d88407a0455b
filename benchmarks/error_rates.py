"""How often the leaderboard's intervals miss and its tests err, beside what one would do without them.

    python benchmarks/error_rates.py                 # about twenty minutes on one core
    python benchmarks/error_rates.py --replicates 300 --images 300 --only ends looks

Accuracies are drawn from the crossed model with 0/1 outcomes: seed s of an optimizer gets image i right with
the probability Φ(a + image's effect + its own for the optimizer + seed's effect + its own for the optimizer),
so that the true accuracy, over all seeds and all images, is known. Sizes of the effects are those between
fine-tuned networks, and extremes on both sides: seeds that differ much, and images that do.

Each experiment names the promise of docs/comparisons.md that its figures belong to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from pugdft.leaderboard.across.planning import across_plan
from pugdft.leaderboard.across.pooling import TaskDifferences, shaffer_adjusted
from pugdft.leaderboard.power import Plan
from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Spread,
    compare_all,
    holm_adjusted,
    looks_factor,
    mean_squares,
    spread_of,
    summarize,
)

NUM_DRAWS = 400
"""Bootstrap resamples."""

Table = np.ndarray  # seeds × images, bool


@dataclass(frozen=True)
class World:
    """Standard deviations of the effects on the probit scale; ``own`` ones are an optimizer's."""

    name: str
    images: float
    own_images: float
    seeds: float
    own_seeds: float
    accuracy: float = 0.9

    def tables(
        self, rng: np.random.Generator, num_entries: int, num_seeds: int, num_images: int, gain: float = 0.0
    ) -> list[Table]:
        """One table an optimizer; the first one's true accuracy is larger by ``gain``."""
        shared = rng.normal(0, self.images, num_images) + rng.normal(0, self.seeds, (num_seeds, 1))
        scale = sqrt(1 + self.images**2 + self.own_images**2 + self.seeds**2 + self.own_seeds**2)
        tables = []
        for entry in range(num_entries):
            level = scale * ndtri(self.accuracy + (gain if entry == 0 else 0.0))
            own = rng.normal(0, self.own_images, num_images) + rng.normal(0, self.own_seeds, (num_seeds, 1))
            tables.append(rng.normal(size=(num_seeds, num_images)) < level + shared + own)
        return tables


WORLDS = (
    World("like fine-tuning", images=2.0, own_images=0.5, seeds=0.02, own_seeds=0.02),
    World("images differ", images=2.0, own_images=1.5, seeds=0.0, own_seeds=0.0),
    World("seeds differ", images=1.0, own_images=0.1, seeds=0.1, own_seeds=0.2, accuracy=0.7),
    World("both differ", images=2.0, own_images=1.0, seeds=0.1, own_seeds=0.1),
)


def seeds_only(table: np.ndarray) -> Spread:
    """What a t-test over seeds knows."""
    return Spread(float(np.var(table.mean(axis=1), ddof=1)) / len(table), len(table) - 1)


def satterthwaite(table: np.ndarray) -> tuple[float, float]:
    """The crossed standard error, and degrees of freedom by Satterthwaite's rule, n − 1 at least."""
    seeds, images, residual = mean_squares(table)
    variance = max(seeds, residual) + max(images - residual, 0.0)
    freedom = variance**2 / (max(seeds, 1e-12) ** 2 / (len(table) - 1))
    return sqrt(variance / table.size), min(max(freedom, len(table) - 1.0), 1e6)


def percentile_bootstrap(table: Table, rng: np.random.Generator) -> tuple[float, float]:
    """Seeds and, for all of them, images drawn with replacement; the middle 95 % of the means."""
    num_seeds, num_images = table.shape
    # Images that the same seeds get right are drawn together.
    patterns, counts = np.unique(table, axis=1, return_counts=True)
    image_counts = rng.multinomial(num_images, counts / num_images, NUM_DRAWS)
    seed_counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_DRAWS)
    means = ((image_counts @ patterns.T.astype(float)) * seed_counts).sum(axis=1) / table.size
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def coverage(world: World, num_seeds: int, replicates: int, num_images: int) -> dict[str, float]:
    """How often each 95 % interval of one optimizer's mean holds the true accuracy."""
    rng = np.random.default_rng(num_seeds)
    hits = dict.fromkeys(("percentile", "t over seeds", "Satterthwaite", "ours"), 0)
    for _ in range(replicates):
        (table,) = world.tables(rng, 1, num_seeds, num_images)
        error = abs(float(table.mean()) - world.accuracy)
        low, high = percentile_bootstrap(table, rng)
        standard_error, freedom = satterthwaite(table)
        hits["percentile"] += low <= world.accuracy <= high
        hits["t over seeds"] += error <= seeds_only(table).half_width()
        hits["Satterthwaite"] += error <= stdtrit(freedom, 1 - LEVEL / 2) * standard_error
        low, high = summarize(table.mean(axis=1).tolist(), spread_of(table), num_images=num_images).ci95 or (
            0,
            1,
        )
        hits["ours"] += low <= world.accuracy <= high
    return {name: count / replicates for name, count in hits.items()}


def error_rates(world: World, num_seeds: int, replicates: int, num_images: int) -> dict[str, float]:
    """How often equal optimizers are told apart: one pair at 5 % and 0.5 %, any of ten after Holm."""
    rng = np.random.default_rng(100 + num_seeds)
    wrong = dict.fromkeys(
        ("seeds 5%", "Satt. 5%", "ours 5%", "seeds .5%", "Satt. .5%", "ours .5%", "seeds Holm", "ours Holm"),
        0,
    )
    for _ in range(replicates):
        tables = world.tables(rng, 5, num_seeds, num_images)
        difference = tables[0].astype(float) - tables[1]
        size = abs(float(difference.mean()))
        standard_error, freedom = satterthwaite(difference)
        p_values = {
            "seeds": float(seeds_only(difference).p_values(size)),
            "Satt.": 2 * float(stdtr(freedom, -size / standard_error)) if size else 1.0,
            "ours": float(spread_of(difference).p_values(size)),
        }
        for name, p_value in p_values.items():
            wrong[f"{name} 5%"] += p_value <= 0.05
            wrong[f"{name} .5%"] += p_value <= 0.005
        wrong["seeds Holm"] += any_separated(tables, with_images=False)
        wrong["ours Holm"] += any_separated(tables, with_images=True)
    return {name: count / replicates for name, count in wrong.items()}


def any_separated(tables: Sequence[Table], with_images: bool) -> bool:
    """Whether the ranking tells any two apart."""
    samples = [sample(table, with_images) for table in tables]
    pairs = compare_all(samples, num_images=tables[0].shape[1])
    return bool((holm_adjusted(pairs.p_value) <= LEVEL).any())


def sample(table: Table, with_images: bool) -> EntryScores:
    """As the leaderboard has it."""
    images: Mapping[int, np.ndarray] = dict(enumerate(table))
    scores = {seed: float(row.mean()) for seed, row in images.items()}
    return EntryScores(scores, images if with_images else None)


def power_found(world: World, num_seeds: int, replicates: int, num_images: int) -> dict[str, float]:
    """A difference that is planned to be found four times in five, planted, and how often it is found."""
    rng = np.random.default_rng(200 + num_seeds)
    gain = 0.0
    for _ in range(3):  # variances depend on the accuracies, and those on the difference
        std, image_variance = true_variances(world, rng, num_images, gain)
        plan = Plan(std, image_variance)
        gain = plan.detectable_difference(num_seeds)
        if world.accuracy + gain >= 1:  # no optimizer is so much better
            return {"difference": gain}
    found = sum(
        any_separated(world.tables(rng, 2, num_seeds, num_images, gain), with_images=True)
        for _ in range(replicates)
    )
    needed = plan.seeds_needed(gain)
    return {"difference": gain, "found": found / replicates, "seeds needed": float(needed or 0)}


def true_variances(
    world: World, rng: np.random.Generator, num_images: int, gain: float
) -> tuple[float, float]:
    """Standard deviation over seeds and image variance of a difference, from many seeds of two optimizers."""
    num_seeds, squares = 100, []
    for _ in range(10):
        first, second = world.tables(rng, 2, num_seeds, num_images, gain)
        squares.append(mean_squares(first.astype(float) - second))
    seeds, images, residual = np.mean(squares, axis=0)
    return sqrt(seeds / num_images), max(0.0, images - residual) / (num_seeds * num_images)


# --- over several tasks ---


@dataclass(frozen=True)
class TaskWorld:
    """Standard deviations, in accuracy, of what makes up an optimizer's score in a task.

    Scores are normal: the mean over hundreds of images is, and the images' part of the variance is known.
    """

    name: str
    tasks: float  # of the optimizer's true level in a task
    seeds: float
    images: float
    task_ratio: float = 1.0  # of the seeds' and images' deviations in the last task to those in the first
    wide: float = 1.0  # the last optimizer's deviation over seeds, as a multiple of the others'
    models: int = 1  # tasks in a row that have the same test images, and the same error from them

    def draw(
        self, rng: np.random.Generator, shape: tuple[int, int, int, int], gain: float
    ) -> TaskDifferences:
        """Draw the differences of all pairs of (worlds, tasks, optimizers, seeds), as if of one world.

        The first optimizer is better by ``gain`` on average over tasks like these.
        """
        worlds, num_tasks, size, num_seeds = shape
        ratio = np.geomspace(1, self.task_ratio, num_tasks)[None, :, None, None]
        own = np.where(np.arange(size) == size - 1, self.wide, 1.0)[None, None, :, None]
        sets = np.arange(num_tasks) // self.models
        scores = self.tasks * rng.normal(size=(worlds, num_tasks, size, 1))
        scores = scores + self.images * ratio * rng.normal(size=(worlds, sets[-1] + 1, size, 1))[:, sets]
        scores = scores + self.seeds * ratio * own * rng.normal(size=shape)
        scores[:, :, 0] += gain
        first, second = np.triu_indices(size, 1)
        differences = scores[:, :, first] - scores[:, :, second]
        images = np.broadcast_to(2 * (self.images * ratio[..., 0]) ** 2, differences.shape[:3])
        by_seed = differences.var(axis=3, ddof=1) / num_seeds
        means, by_seed, images = (
            each.swapaxes(0, 1).reshape(num_tasks, -1) for each in (differences.mean(axis=3), by_seed, images)
        )
        no_tests = np.empty(0)  # within each task
        return TaskDifferences(means, by_seed, images, no_tests, no_tests)

    def plan(self, size: int, num_seeds: int, num_tasks: int) -> Plan:
        """Plan the test of the first optimizer and another with the true deviations, means over tasks."""
        square = float(np.mean(np.geomspace(1, self.task_ratio, num_tasks) ** 2))
        other = self.wide if size == 2 else 1.0
        return across_plan(
            num_tasks,
            num_seeds,
            comb(size, 2),
            task_std=sqrt(2) * self.tasks,
            seed_std=self.seeds * sqrt((1 + other**2) * square),
            image_variance=2 * self.images**2 * square,
            num_datasets=-(-num_tasks // self.models),
        )


TASK_WORLDS = (
    TaskWorld("equal in all tasks", tasks=0.0, seeds=0.003, images=0.003),
    TaskWorld("differ by task", tasks=0.006, seeds=0.003, images=0.003),
    TaskWorld("unequal spreads", tasks=0.003, seeds=0.003, images=0.003, task_ratio=6.0, wide=4.0),
    TaskWorld("two models a set", tasks=0.0, seeds=0.003, images=0.006, models=2),
)


def across_tasks(world: TaskWorld, num_tasks: int, num_seeds: int, replicates: int) -> dict[str, float]:
    """Any false separation among five equal optimizers, and power at a difference planned for 0.8.

    "power" is of two optimizers; "of five" of the first against one of four equal others, by Holm's steps.
    """
    rng = np.random.default_rng(1000 * num_tasks + num_seeds)

    def separated(size: int, gain: float) -> np.ndarray:
        drawn = world.draw(rng, (replicates, num_tasks, size, num_seeds), gain)
        pooled = drawn.pooled(list(np.arange(num_tasks) // world.models))
        p_values = pooled.p_value.reshape(replicates, -1)
        found = np.zeros(p_values.shape, dtype=bool)
        for row in np.flatnonzero(p_values.min(axis=1) <= LEVEL / p_values.shape[1]):
            found[row] = shaffer_adjusted(p_values[row], size) <= LEVEL
        return found

    gains = [world.plan(size, num_seeds, num_tasks).detectable_difference(num_tasks) for size in (2, 5)]
    return {
        "error": float(separated(5, 0.0).any(axis=1).mean()),
        "difference": gains[0],
        "power": float(separated(2, gains[0]).mean()),
        "of five": float(separated(5, gains[1])[:, 0].mean()),
    }


def fine_tuning_tasks(gain: float, replicates: int, num_images: int) -> dict[str, float]:
    """Eight tasks, five seeds, five optimizers of 0/1 outcomes: how often the better first one is found."""
    rng = np.random.default_rng(7)
    found, size = np.zeros(comb(5, 2)), 5
    alone = np.zeros(comb(5, 2))
    for _ in range(replicates):
        tasks = []
        for _ in range(8):
            samples = [sample(each, True) for each in WORLDS[0].tables(rng, size, 5, num_images, gain)]
            tasks.append((np.arange(size), compare_all(samples, num_images)))
        pooled = TaskDifferences.of(tasks, size).pooled(range(8))
        found += shaffer_adjusted(pooled.p_value, size) <= LEVEL
        alone += np.mean([holm_adjusted(pairs.p_value) <= LEVEL for _, pairs in tasks], axis=0)
    return {
        "one table": float(alone[: size - 1].mean()) / replicates,
        "across": float(found[: size - 1].mean()) / replicates,
    }


def show_across(options: argparse.Namespace) -> None:
    """Print the rates of tests over several tasks."""
    replicates, num_images = options.replicates, options.images
    for world in TASK_WORLDS:
        for num_tasks in (2, 4, 8, 20):
            for num_seeds in (2, 5, 10):
                row = across_tasks(world, num_tasks, num_seeds, replicates)
                cells = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
                print(f"{world.name:18} k={num_tasks:<3} n={num_seeds:<3} {cells}", flush=True)
    print("\n8 tasks × 5 seeds × 5 optimizers, like fine-tuning: one table and all tasks together")
    for gain in (0.01, 0.02, 0.03):
        row = fine_tuning_tasks(gain, max(1, replicates // 10), num_images)
        print(f"{gain:.2f}  " + "  ".join(f"{name} {value:.3f}" for name, value in row.items()), flush=True)


# --- groups that are not balanced ---


def draw(
    rng: np.random.Generator,
    num_seeds: int,
    num_images: int,
    seeds: float,
    accuracy: float,
    images: np.ndarray,
) -> Table:
    """One optimizer's table: its seeds spread by ``seeds`` on the probit scale, its images as others' do."""
    scale = sqrt(1 + float(np.var(images)) + seeds**2)
    of_seeds = rng.normal(0, seeds, (num_seeds, 1))
    return rng.normal(size=(num_seeds, num_images)) < scale * ndtri(accuracy) + images + of_seeds


def entry(table: Table, first_seed: int = 0) -> EntryScores:
    images = dict(enumerate(table, first_seed))
    return EntryScores({seed: float(row.mean()) for seed, row in images.items()}, images)


def welch(first: Sequence[float], second: Sequence[float]) -> float:
    """The p-value of Welch's test over seeds."""
    shares = [float(np.var(each, ddof=1)) / len(each) for each in (first, second)]
    total, sizes = sum(shares), (len(first), len(second))
    if not total:
        return 1.0
    freedom = total**2 / sum(each**2 / (size - 1) for each, size in zip(shares, sizes, strict=True))
    return 2 * float(stdtr(freedom, -abs(np.mean(first) - np.mean(second)) / sqrt(total)))


def unpaired(options: argparse.Namespace) -> None:
    """Equal optimizers without common seeds; the one with fewer seeds spreads four times as much."""
    for few, many in ((2, 5), (2, 10), (3, 10), (5, 5), (5, 10)):
        rng, wrong = np.random.default_rng(few * many), {"Welch": 0, "ours": 0}
        for _ in range(options.replicates):
            images = rng.normal(0, 0.5, options.images)
            tables = [
                draw(rng, size, options.images, spread, 0.8, images)
                for size, spread in ((few, 0.4), (many, 0.1))
            ]
            pair = [entry(tables[0]), entry(tables[1], 100)]
            wrong["Welch"] += welch(*(list(each.scores.values()) for each in pair)) <= LEVEL
            wrong["ours"] += bool(compare_all(pair, options.images).p_value[0] <= LEVEL)
        print_rates(f"{few} v {many} seeds", wrong, options)


def partly_paired(options: argparse.Namespace) -> None:
    """Ten seeds each, some of them common: errors of equal ones, and power for a difference of 2 points."""
    for common in (0, 1, 2, 5, 9):
        found = {"pairs alone, equal": 0, "ours, equal": 0, "pairs alone, power": 0, "ours, power": 0}
        rng = np.random.default_rng(common)
        for _ in range(options.replicates):
            shared = dict(enumerate(rng.normal(0, 0.006, 20)))
            for kind, gain in (("equal", 0.0), ("power", 0.02)):
                one = {seed: 0.8 + gain + shared[seed] + rng.normal(0, 0.01) for seed in range(10)}
                two = {
                    seed: 0.8 + shared[seed] + rng.normal(0, 0.01) for seed in range(10 - common, 20 - common)
                }
                both = sorted(one.keys() & two.keys()) or None
                pairs = [EntryScores(each) for each in (one, two)]
                alone = [EntryScores({seed: each[seed] for seed in both or each}) for each in (one, two)]
                found[f"pairs alone, {kind}"] += bool(compare_all(alone).p_value[0] <= LEVEL)
                found[f"ours, {kind}"] += bool(compare_all(pairs).p_value[0] <= LEVEL)
        print_rates(f"{common} common", found, options)


def unequal_spread(options: argparse.Namespace) -> None:
    """Five equal optimizers on common seeds, one of them skewed and five times as wide."""
    for num_seeds in options.seeds:
        rng, wrong = np.random.default_rng(num_seeds), {"any of ten": 0, "of those, named by a note": 0}
        for _ in range(options.replicates):
            scores = 0.9 + rng.normal(0, 0.002, (5, num_seeds))
            scores[0] = 0.9 - 0.01 * (rng.exponential(1, num_seeds) - 1)
            entries = [EntryScores(dict(enumerate(map(float, row)))) for row in scores]
            is_wrong = bool((holm_adjusted(compare_all(entries).p_value) <= LEVEL).any())
            variances = scores.var(axis=1, ddof=1)
            wrong["any of ten"] += is_wrong
            is_named = num_seeds > 2 and variances[0] > 9 * variances[1:].mean()
            wrong["of those, named by a note"] += is_wrong and is_named
        print_rates(f"{num_seeds} seeds", wrong, options)


def ends(options: argparse.Namespace) -> None:
    """Coverage of the 95 % interval of a mean where nearly all images are right."""
    for accuracy in (0.999, 0.995, 0.99, 0.95):
        for num_seeds in (2, 3, 5):
            rng, held = np.random.default_rng(num_seeds), {"symmetric": 0, "ours": 0}
            for _ in range(options.replicates):
                table = draw(rng, num_seeds, options.images, 0.02, accuracy, rng.normal(0, 2, options.images))
                spread, means = spread_of(table), table.mean(axis=1).tolist()
                for name, size in (("symmetric", None), ("ours", options.images)):
                    low, high = summarize(means, spread, num_images=size).ci95 or (0.0, 1.0)
                    held[name] += low <= accuracy <= high
            print_rates(f"{accuracy} n={num_seeds}", held, options)


def sequential(options: argparse.Namespace) -> None:
    """Five equal optimizers, looked at after every two seeds until something is told apart."""
    for looks in (2, 5, 10):
        rng, wrong = np.random.default_rng(looks), {"every look at 5 %": 0, f"--looks {looks}": 0}
        power = {"power, one look at the end": 0, f"power, --looks {looks}": 0}
        sizes, factor = [3 + 2 * number for number in range(looks)], looks_factor(looks, LEVEL / 10)
        gain = Plan(0.01 * sqrt(2), num_pairs=10).detectable_difference(sizes[-1])
        for _ in range(options.replicates):
            scores = rng.normal(0.9, 0.01, (5, sizes[-1]))
            lowest = [_lowest(scores[:, :size]) for size in sizes]
            wrong["every look at 5 %"] += min(lowest) <= LEVEL
            wrong[f"--looks {looks}"] += factor * min(lowest) <= LEVEL
            scores[0] += gain
            firsts = [_first_pair(scores[:, :size]) for size in sizes]
            power["power, one look at the end"] += firsts[-1] <= LEVEL
            power[f"power, --looks {looks}"] += factor * min(firsts) <= LEVEL
        print_rates(f"{looks} looks", wrong | power, options)


def _adjusted(scores: np.ndarray) -> np.ndarray:
    return holm_adjusted(
        compare_all([EntryScores(dict(enumerate(map(float, row)))) for row in scores]).p_value
    )


def _lowest(scores: np.ndarray) -> float:
    return float(_adjusted(scores).min())


def _first_pair(scores: np.ndarray) -> float:
    return float(_adjusted(scores)[0])


def print_rates(name: str, counts: Mapping[str, int], options: argparse.Namespace) -> None:
    """A row of rates, each with its standard error."""
    cells = []
    for what, count in counts.items():
        rate = count / options.replicates
        cells.append(f"{what} {rate:.3f} ±{sqrt(rate * (1 - rate) / options.replicates):.3f}")
    print(f"{name:17} {'  '.join(cells)}", flush=True)


def show(
    title: str, experiment: Callable[[World, int, int, int], dict[str, float]], options: argparse.Namespace
) -> None:
    """One table: a row for each world and number of seeds."""
    print(f"\n{title}")
    for world in WORLDS:
        for num_seeds in options.seeds:
            row = experiment(world, num_seeds, options.replicates, options.images)
            cells = "  ".join(f"{name} {value:.3f}" for name, value in row.items())
            print(f"{world.name:17} n={num_seeds:<3} {cells}", flush=True)


Experiment = Callable[[argparse.Namespace], None]


def balanced(
    title: str, experiment: Callable[[World, int, int, int], dict[str, float]]
) -> tuple[str, Experiment]:
    """An experiment on the crossed worlds, as a row of ``EXPERIMENTS``."""
    return title, lambda options: show(title, experiment, options)


# By the name for ``--only``: the promise that the figures belong to, and what prints them.
EXPERIMENTS: dict[str, tuple[str, Experiment]] = {
    "coverage": balanced("95 % intervals of a mean hold the truth in 95 %", coverage),
    "errors": balanced(f"equal optimizers: one pair at 5 %; any of {comb(5, 2)} after Holm", error_rates),
    "power": balanced("a difference that is planned for is found in 80 %", power_found),
    "unpaired": ("equal optimizers without common seeds, unequal spreads: one pair at 5 %", unpaired),
    "partly": ("ten seeds each, some common: one pair at 5 %, and power", partly_paired),
    "unequal": ("one optimizer skewed and five times as wide: any of ten at 5 %", unequal_spread),
    "ends": ("95 % intervals hold the truth near 100 % accuracy", ends),
    "looks": ("seeds added until something is told apart: any of ten at 5 %, and power", sequential),
    "across": (
        "equal optimizers over several tasks: any of ten at 5 %, and power where 0.8 is planned",
        show_across,
    ),
}
_CROSSED = ("coverage", "errors", "power")  # which print their title themselves


def main() -> None:
    """Print the tables of all experiments, or of those named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS))
    options = parser.parse_args()
    error = sqrt(0.05 * 0.95 / options.replicates)
    print(f"{options.replicates} replicates of {options.images} images: a rate of 0.05 is ± {error:.3f}")
    for name in options.only:
        title, experiment = EXPERIMENTS[name]
        if name not in _CROSSED:
            print(f"\n{title}")
        experiment(options)


if __name__ == "__main__":
    main()
