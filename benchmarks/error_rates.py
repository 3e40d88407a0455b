"""How often the leaderboard's intervals miss and its tests err, beside what one would do without them.

    python benchmarks/error_rates.py                 # about ten minutes on one core
    python benchmarks/error_rates.py --replicates 300 --images 300

Accuracies are drawn from the crossed model with 0/1 outcomes: seed s of an optimizer gets image i right with
the probability Φ(a + image's effect + its own for the optimizer + seed's effect + its own for the optimizer),
so that the true accuracy, over all seeds and all images, is known. Sizes of the effects are those between
fine-tuned networks, and extremes on both sides: seeds that differ much, and images that do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb, sqrt

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from pugdft.leaderboard.power import Plan
from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Spread,
    compare_all,
    holm_adjusted,
    mean_squares,
    spread_of,
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
        hits["ours"] += error <= spread_of(table).half_width()
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


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--replicates", type=int, default=2000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 3, 5, 10])
    options = parser.parse_args()
    error = sqrt(0.05 * 0.95 / options.replicates)
    print(f"{options.replicates} replicates of {options.images} images: a rate of 0.05 is ± {error:.3f}")
    show("coverage of 95 % intervals of a mean (0.95 is promised)", coverage, options)
    show(
        f"equal optimizers told apart (one pair; any of {comb(5, 2)} after Holm at 5 %)", error_rates, options
    )
    show("power where 0.8 is planned", power_found, options)


if __name__ == "__main__":
    main()
