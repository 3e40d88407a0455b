"""Power of the test that ranks: what a number of seeds can find, and how many seeds a difference needs."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np

from pugdft.leaderboard.stats import LEVEL, MeanDifference

MOST_SEEDS = 1000  # nobody runs more
_STEPS = 1 << 30  # nine digits


@dataclass(frozen=True)
class Plan:
    """A planned two-sided test of the difference of two optimizers on common seeds."""

    std: float  # standard deviation of the difference over seeds
    image_variance: float = 0.0  # of the mean difference, due to the sample of test images, for any seeds
    num_pairs: int = 1  # tested together: each at level/num_pairs, the hardest step of Holm
    level: float = LEVEL  # twice that of a one-sided test
    target: float = 0.8  # power that is asked for

    @classmethod
    def of(cls, pair: MeanDifference, num_pairs: int = 1) -> Plan:
        """Plan with the variances that a comparison estimated."""
        # A few seeds may agree closely by chance; a finite number of images sets a lower limit.
        variance = max(pair.seed_variance, pair.spread.residual * pair.num_seeds)
        return cls(math.sqrt(variance), pair.spread.images, num_pairs)

    def power(self, num_seeds: int, difference: float) -> float:
        """Compute the probability that the test separates a true ``difference``; 0 for one seed."""
        # The threshold depends on the estimated variance over seeds, so average over that estimate. Without
        # ``image_variance`` this is the power of the noncentral t.
        if num_seeds < 2:
            return 0.0
        if self.std <= 0 and self.image_variance <= 0:
            return float(difference != 0)
        from scipy.special import ndtr

        estimates, weights = _variance_estimates(num_seeds - 1)
        quantile, normal = _quantiles(num_seeds - 1, self.level / self.num_pairs)
        seeds = self.std**2 / num_seeds
        threshold = np.sqrt(seeds * estimates * quantile**2 + self.image_variance * normal**2)
        error = math.sqrt(seeds + self.image_variance)
        beyond = ndtr((difference - threshold) / error) + ndtr((-difference - threshold) / error)
        return float(weights @ beyond)

    def detectable_difference(self, num_seeds: int) -> float:
        """Compute the smallest true difference found with the target power; infinite for one seed."""
        if num_seeds < 2:
            return math.inf
        high = math.sqrt(self.std**2 / num_seeds + self.image_variance)
        if high == 0:
            return 0.0  # without any variance every difference is found

        def is_found(difference: float) -> bool:
            return self.power(num_seeds, difference) >= self.target

        while not is_found(high):
            high *= 2
        # scipy.optimize does the same, and takes longer to import than a whole leaderboard to rank.
        return (
            high * bisect_left(range(_STEPS), True, key=lambda step: is_found(high * step / _STEPS)) / _STEPS
        )

    def seeds_needed(self, difference: float) -> int | None:
        """Compute the fewest common seeds that find a true ``difference``; None if no number up to 1,000."""
        if self.needs_more_images(difference):
            return None
        is_enough = cache(lambda number: self.power(number, difference) >= self.target)
        # Where the search begins: the number for a known variance, and Guenther's correction for an estimated
        # one (The American Statistician 35, 1981).
        _, normal = _quantiles(1, self.level / self.num_pairs)
        known = (difference / self._detectable_errors) ** 2 - self.image_variance
        guess = self.std**2 / known + normal**2 / 2
        high, step = math.ceil(min(max(2, guess), MOST_SEEDS)), 1
        while not is_enough(high):
            if high == MOST_SEEDS:
                return None
            high, step = min(high + step, MOST_SEEDS), 2 * step
        low, step = high - 1, 1
        while is_enough(low):  # not one seed
            low, step = max(1, low - step), 2 * step
        return low + bisect_left(range(low, high), True, key=is_enough)

    def needs_more_images(self, difference: float) -> bool:
        """Tell whether no number of seeds finds ``difference`` on so few test images."""
        return (difference / self._detectable_errors) ** 2 <= self.image_variance

    @property
    def _detectable_errors(self) -> float:
        """The detectable difference in standard errors that are known exactly, as after very many seeds."""
        from scipy.special import ndtri

        return float(ndtri(self.target) - ndtri(self.level / self.num_pairs / 2))


@dataclass(frozen=True)
class Outlook:
    """What more seeds would show of a difference, if it is real and as large as it was found."""

    more_seeds: int | None = None  # about how many more each; None if none helps
    # For the spread over seeds at both ends of its 80 % interval; without an end beyond ``MOST_SEEDS``.
    range: tuple[int, int | None] | None = None
    needs_images: bool = False  # whether no number of seeds is enough


def outlook(pair: MeanDifference, p_value: float | None, num_pairs: int = 1) -> Outlook:
    """Estimate how many more seeds show that a difference is real; nothing where it is shown already."""
    from scipy.special import gammaincinv

    difference = pair.difference
    if p_value is None or p_value <= LEVEL or difference == 0:
        return Outlook()
    plan = Plan.of(pair, num_pairs)

    def more(std: float) -> int | None:
        needed = replace(plan, std=std).seeds_needed(difference)
        return None if needed is None else max(1, needed - pair.num_seeds)

    # A variance that was estimated with f degrees of freedom is χ²(f)/f of the true one.
    half = pair.spread.freedom / 2
    ends = [plan.std * math.sqrt(half / float(gammaincinv(half, level))) for level in (0.9, 0.1)]
    low, high = map(more, ends)
    return Outlook(more(plan.std), None if low is None else (low, high), plan.needs_more_images(difference))


@lru_cache(maxsize=4096)
def _quantiles(freedom: int, level: float) -> tuple[float, float]:
    """Two-sided quantiles of t and of the normal distribution."""
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 1 - level / 2)), float(-ndtri(level / 2))


@lru_cache(maxsize=1024)
def _variance_estimates(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of a variance of 1 with ``freedom`` degrees of freedom, and the probability of each."""
    from scipy.special import gammaincinv

    # Even steps in the logit, because small estimates decide at strict levels; each tail left out has 3e-7.
    below = 1 / (1 + np.exp(-np.linspace(-15, 15, 241)))
    weights = below * (1 - below)
    return 2 * gammaincinv(freedom / 2, below) / freedom, weights / weights.sum()
