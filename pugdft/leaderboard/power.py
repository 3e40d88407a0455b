"""What a number of seeds can find, and how many a difference needs: planning for the test that ranks.

Everything is about the difference of two optimizers on common seeds: ``std`` is its standard deviation over
seeds, ``image_variance`` what the drawing of the test images adds to the variance of its mean, however many
seeds there are. Among m pairs the plan is for the level/m, Holm's first and hardest step. The test is
two-sided; one-sided at 5 % is the level 0.1.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from pugdft.leaderboard.stats import LEVEL

MOST_SEEDS = 1000
"""Nobody runs more; a difference that needs more is not to be found."""

_USUAL_POWER = 0.8


def power(
    num_seeds: int,
    difference: float,
    std: float,
    num_pairs: int = 1,
    image_variance: float = 0.0,
    level: float = LEVEL,
) -> float:
    """Probability that the test separates a true ``difference``; 0 for one seed.

    Without ``image_variance`` this is the noncentral t's. With it, the test's threshold (see ``crossed``)
    depends on the spread that the seeds happen to show, so the noncentral t is replaced by what it is made
    of: the normal probability beyond the threshold, averaged over that spread.
    """
    if num_seeds < 2:
        return 0.0
    if std <= 0 and image_variance <= 0:
        return float(difference != 0)
    from scipy.special import ndtr

    shares, weights = _spreads(num_seeds - 1)
    quantile, normal = _quantiles(num_seeds - 1, level / num_pairs)
    seeds = std**2 / num_seeds
    threshold = np.sqrt(seeds * shares * quantile**2 + image_variance * normal**2)
    error = math.sqrt(seeds + image_variance)
    beyond = ndtr((difference - threshold) / error) + ndtr((-difference - threshold) / error)
    return float(weights @ beyond)


def detectable_difference(
    num_seeds: int,
    std: float,
    num_pairs: int = 1,
    power: float = _USUAL_POWER,
    image_variance: float = 0.0,
    level: float = LEVEL,
) -> float:
    """The smallest true difference that is found with probability ``power``; infinite for one seed."""
    if num_seeds < 2:
        return math.inf
    low, high = 0.0, math.sqrt(std**2 / num_seeds + image_variance)
    while _power(num_seeds, high, std, num_pairs, image_variance, level) < power:
        if high == 0:
            return 0.0  # nothing spreads: any difference shows
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        enough = _power(num_seeds, middle, std, num_pairs, image_variance, level) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def seeds_needed(
    difference: float,
    std: float,
    num_pairs: int = 1,
    power: float = _USUAL_POWER,
    image_variance: float = 0.0,
    level: float = LEVEL,
) -> int | None:
    """Fewest common seeds that find a true ``difference`` with probability ``power``.

    None if :data:`MOST_SEEDS` are not enough: the difference is zero or next to it, or the test images are
    too few (:func:`needs_more_images`).
    """
    difference = abs(difference)
    if difference == 0 or needs_more_images(difference, num_pairs, power, image_variance, level):
        return None

    def enough(number: int) -> bool:
        return _power(number, difference, std, num_pairs, image_variance, level) >= power

    # Were the spread known, so many less one would still be too few.
    spare = (difference / _normal_multiple(level / num_pairs, power)) ** 2 - image_variance
    if spare <= 0:
        return None  # by rounding alone
    low = max(1, math.ceil(min(std**2 / spare, MOST_SEEDS)) - 1)
    high = low + 1
    while not enough(high):
        if high == MOST_SEEDS:
            return None
        low, high = high, min(high + 2 * (high - low), MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def needs_more_images(
    difference: float,
    num_pairs: int = 1,
    power: float = _USUAL_POWER,
    image_variance: float = 0.0,
    level: float = LEVEL,
) -> bool:
    """Whether no number of seeds finds ``difference`` on so few test images."""
    return abs(difference) <= _normal_multiple(level / num_pairs, power) * math.sqrt(image_variance)


def _normal_multiple(level: float, power: float) -> float:
    """The difference in standard errors, were those known, that is found with probability ``power``."""
    from scipy.special import ndtri

    return float(ndtri(power) - ndtri(level / 2))


_power = power  # where a parameter has the name


@lru_cache(maxsize=4096)
def _quantiles(freedom: int, level: float) -> tuple[float, float]:
    from scipy.special import ndtri, stdtrit

    return float(stdtrit(freedom, 1 - level / 2)), float(-ndtri(level / 2))


@lru_cache(maxsize=1024)
def _spreads(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """Estimates of a variance of 1 from so many degrees of freedom, and the probability of each."""
    from scipy.special import gammaincinv

    # Evenly over the logit of the cumulative probability: the small estimates decide at strict levels.
    # What lies beyond has a probability of 3e-7 on either side.
    logits = np.linspace(-15, 15, 241)
    below = 1 / (1 + np.exp(-logits))
    weights = below * (1 - below)
    return 2 * gammaincinv(freedom / 2, below) / freedom, weights / weights.sum()
