"""Numbers over seeds: mean, spread, interval, and the ranks that the seeds cannot rule out.

Scores are mappings from seed to a fraction in 0..1. Nothing here knows of records. scipy's special
functions are imported where they are needed: a command that prints help must not wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

LEVEL = 0.05
"""Chance of any wrong separation in one group; 1 − LEVEL is the interval's coverage."""

Scores = Mapping[int, float]

# Two top-1 differ by at least one image in the test split; a spread below this is floating point.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """``std`` has n − 1 in the denominator; it and the interval are None for one seed."""

    mean: float
    std: float | None
    ci95: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """First minus second, and the two-sided p-value of "no difference" (1 where nothing can be tested)."""

    difference: float
    p_value: float


def mean(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one number."""
    numbers = list(values)
    return math.fsum(numbers) / len(numbers)


def summarize(values: Sequence[float]) -> Summary:
    """Mean, standard deviation, and the 95 % interval mean ± t(n − 1)·std/√n, clipped to 0..1."""
    centre = mean(values)
    if len(values) < 2:
        return Summary(centre, None, None)
    from scipy.special import stdtrit

    spread = math.sqrt(_variance(values))
    half = float(stdtrit(len(values) - 1, 1 - LEVEL / 2)) * spread / math.sqrt(len(values))
    return Summary(centre, spread, (max(0.0, centre - half), min(1.0, centre + half)))


def rank_ranges(scores: Sequence[Scores], num_images: int | None = None) -> list[tuple[int, int]]:
    """For each entry the best and the worst rank (1 = highest score) that the seeds allow.

    Two entries are separated if :func:`compare` is significant at 5 % after Holm's correction over all
    pairs. The best rank is 1 + the number of separated better entries, the worst n − the number of
    separated worse ones.

    Args:
        scores: of each entry.
        num_images: images that each score is a fraction of, None if unknown.
    """
    pairs = list(combinations(range(len(scores)), 2))
    comparisons = [compare(scores[first], scores[second], num_images) for first, second in pairs]
    num_better, num_worse = [0] * len(scores), [0] * len(scores)
    rejected = holm([comparison.p_value for comparison in comparisons])
    for (first, second), comparison, separated in zip(pairs, comparisons, rejected, strict=True):
        if separated:
            winner, loser = (first, second) if comparison.difference > 0 else (second, first)
            num_better[loser] += 1
            num_worse[winner] += 1
    return [(1 + better, len(scores) - worse) for better, worse in zip(num_better, num_worse, strict=True)]


def compare(first: Scores, second: Scores, num_images: int | None = None) -> Comparison:
    """Paired t-test over common seeds; Welch's test if no seed is common and each has two or more.

    Pairing is right because equal seeds share their split, order, augmentation and head. With a single
    common seed, or a single seed on one side, there is no estimate of the spread: nothing is separated.

    A spread of zero would make t infinite, yet a few equal differences are a common accident: top-1 moves
    in steps of 1/N for N test images. The rounding to such a step alone has the variance 1/(12 N²), that of
    a difference of two top-1 is 1/(6 N²), and no estimate of a variance is taken to be smaller than that.
    Three seeds that differ by one image each are thus not separated (p = 0.051), by two images they are.
    Where N is unknown a spread of zero separates nothing.

    Args:
        first: top-1 by seed.
        second: likewise.
        num_images: N, None if unknown.
    """
    rounding = 1 / (12 * num_images**2) if num_images else 0.0
    common = sorted(first.keys() & second.keys())
    if common:
        return _paired([first[seed] - second[seed] for seed in common], 2 * rounding)
    return _welch(list(first.values()), list(second.values()), rounding)


def holm(p_values: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Which hypotheses Holm's step-down procedure rejects (Scandinavian J. Statistics 6, 1979)."""
    rejected = [False] * len(p_values)
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for position, index in enumerate(order):
        if p_values[index] > level / (len(p_values) - position):
            break
        rejected[index] = True
    return rejected


def _paired(differences: Sequence[float], floor: float) -> Comparison:
    size, centre = len(differences), mean(differences)
    variance = _variance(differences, floor) if size > 1 else 0.0
    if variance == 0:
        return Comparison(centre, 1.0)
    return Comparison(centre, _two_sided(centre / math.sqrt(variance / size), size - 1))


def _welch(first: Sequence[float], second: Sequence[float], floor: float) -> Comparison:
    centre = mean(first) - mean(second)
    if min(len(first), len(second)) < 2:
        return Comparison(centre, 1.0)
    shares = [(_variance(values, floor) / len(values), len(values) - 1) for values in (first, second)]
    squared_error = sum(share for share, _ in shares)
    if squared_error == 0:
        return Comparison(centre, 1.0)
    freedom = squared_error**2 / sum(share**2 / degrees for share, degrees in shares)
    return Comparison(centre, _two_sided(centre / math.sqrt(squared_error), freedom))


def _two_sided(t: float, freedom: float) -> float:
    from scipy.special import stdtr

    return 2 * float(stdtr(freedom, -abs(t)))


def _variance(values: Sequence[float], floor: float = 0.0) -> float:
    """With n − 1 in the denominator, at least ``floor``; 0 is said of what only floating point spreads."""
    if max(values) - min(values) <= _ROUNDING:
        return floor
    centre = mean(values)
    return max(floor, math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))
