"""Numbers over seeds: mean, spread, interval, and the ranks that the data cannot rule out.

Scores are mappings from seed to a number. Nothing here knows of records. scipy's special functions are
imported where they are needed: a command that prints help must not wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pugdft.leaderboard.crossed import LEVEL, Spread
from pugdft.leaderboard.entry import Summary
from pugdft.leaderboard.pairs import Pairs, Sample, Scores, compare_all

__all__ = ["LEVEL", "Comparison", "Sample", "Summary", "compare", "holm", "mean", "rank_ranges", "summarize"]


@dataclass(frozen=True)
class Comparison:
    """First minus second.

    Attributes:
        p_value: two-sided, of "no difference"; 1 where nothing can be tested.
        testable: whether there is any spread to hold the difference against.
        num_seeds: that were compared.
        paired: whether those are common to both.
        spread: of the difference.
        seed_variance: of the difference that one more seed each would bring.
    """

    difference: float
    p_value: float
    testable: bool
    num_seeds: int
    paired: bool
    spread: Spread
    seed_variance: float

    def interval(self, level: float = LEVEL) -> tuple[float, float] | None:
        """Covers the true difference with at least 1 − ``level``; None if nothing can be tested."""
        if not self.testable:
            return None
        half = float(self.spread.half_width(level))
        return self.difference - half, self.difference + half


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one number."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def summarize(
    scores: Sequence[float] | Scores,
    spread: Spread | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Summary:
    """Mean, standard deviation over seeds, and the mean's 95 % interval, clipped to ``bounds``.

    Args:
        scores: by seed, or in any order.
        spread: of the mean over seeds and test images, for an interval that speaks of other seeds and other
            images (see ``crossed``); without, it is t over seeds, for these images.
        bounds: that no score can leave.
    """
    values = list(scores.values()) if isinstance(scores, Mapping) else list(scores)
    centre = mean(values)
    if len(values) < 2:
        return Summary(centre)
    variance = math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1)
    half = float((spread or Spread(variance / len(values), len(values) - 1)).half_width())
    interval = max(bounds[0], centre - half), min(bounds[1], centre + half)
    return Summary(centre, math.sqrt(variance), interval)


def compare(
    first: Sample | Scores,
    second: Sample | Scores,
    num_images: int | None = None,
    unpaired: bool = False,
) -> Comparison:
    """One pair, by the rules of :func:`pugdft.leaderboard.pairs.compare_all`.

    Args:
        first: scores by seed, with those of each image or without.
        second: likewise.
        num_images: that each score is a fraction of, None if unknown or if it is no fraction.
        unpaired: equal seeds do not share what pairing needs.
    """
    one, two = (each if isinstance(each, Sample) else Sample(each) for each in (first, second))
    pairs = compare_all([one, two], num_images, np.full((2, 2), True) if unpaired else None)
    spread = pairs.spread
    return Comparison(
        difference=float(pairs.difference[0]),
        p_value=float(pairs.p_values[0]),
        testable=bool(pairs.testable[0]),
        num_seeds=int(pairs.num_seeds[0]),
        paired=bool(one.scores.keys() & two.scores.keys()) and not unpaired,
        spread=Spread(
            float(spread.seeds[0]),
            float(spread.freedom[0]),
            float(spread.images[0]),
            float(spread.residual[0]),
            spread.image_freedom,
        ),
        seed_variance=float(pairs.seed_variance[0]),
    )


def rank_ranges(
    samples: Sequence[Sample | Scores], num_images: int | None = None, higher_is_better: bool = True
) -> list[tuple[int, int]]:
    """For each entry the best and the worst rank (1 = best score) that the data allow.

    Args:
        samples: of each entry.
        num_images: images that each score is a fraction of, None if unknown.
        higher_is_better: which end of the scores rank 1 is.
    """
    pairs = compare_all([s if isinstance(s, Sample) else Sample(s) for s in samples], num_images)
    return ranges_of(pairs, holm_adjusted(pairs.p_values) <= LEVEL, higher_is_better)


def ranges_of(pairs: Pairs, separated: np.ndarray, higher_is_better: bool = True) -> list[tuple[int, int]]:
    """The best rank is 1 + the separated better entries, the worst is n − the separated worse ones."""
    first, second = (each[separated] for each in pairs.first_and_second())
    first_wins = (pairs.difference[separated] > 0) == higher_is_better
    winners, losers = np.where(first_wins, first, second), np.where(first_wins, second, first)
    num_better = np.bincount(losers, minlength=pairs.size)
    num_worse = np.bincount(winners, minlength=pairs.size)
    lows, highs = 1 + num_better, pairs.size - num_worse
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects."""
    return [bool(p_value <= level) for p_value in holm_adjusted(np.asarray(p_values, dtype=float))]


def holm_adjusted(p_values: np.ndarray) -> np.ndarray:
    """p-values that may each be held against the level of all (Scandinavian J. Statistics 6, 1979).

    The k-th smallest of m is multiplied by m − k + 1, and none is less than that of a smaller one.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1.0)
    return adjusted
