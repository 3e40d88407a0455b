"""How far a mean over seeds and test images may be off: both were drawn, and all seeds meet the same images.

The model is the two-way crossed one of multi-reader studies, x_si = µ + S_s + I_i + E_si: what seed s adds to
all images, what image i adds in all seeds, and the rest. The mean over n seeds and N images has the variance

    σ_S²/n + σ_I²/N + σ_E²/(nN) = (MS_S + MS_I − MS_E)/(nN)

with the mean squares of the two-way table. This is what a hierarchical bootstrap, which draws seeds and
images for all of them, spreads to, but for known factors: it shrinks the seeds' share by (n−1)/n and counts
σ_E² three times (Owen, Annals of Applied Statistics 1, 2007). So nothing need be drawn, and no digit depends
on chance.

The mean square of two to ten seeds is itself a rough guess. The bootstrap's percentiles trust it too much,
and so does t with Satterthwaite's degrees of freedom: with three seeds its 95 % interval misses in up to 8 %,
and at the 0.5 % that Holm asks for among five optimizers it errs five times too often
(``benchmarks/error_rates.py``). Banerjee's rule (Sankhyā 22, 1960) never errs more often than it says,
whatever σ_S, σ_I and σ_E are: each mean square gets the quantile of its own degrees of freedom,

    half width² = t(n−1)² · MS_S/(nN) + t(N−1)² · (MS_I − MS_E)/(nN),

which is t over seeds where images matter little, and the interval over images where seeds do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

LEVEL = 0.05
"""Chance of any wrong separation in one group; 1 − LEVEL is the interval's coverage."""

# Quantiles are looked up by x with p = 2 Φ(−x), 0.01 apart; what lies beyond the last is reported as its p.
_STEP, _NUM_STEPS = 0.01, 1200
_LARGEST_FREEDOM = 10_000


@dataclass(frozen=True)
class Spread:
    """Squared standard errors of a mean, or of a difference of means, by where they come from.

    Numbers, or arrays of one entry a comparison.

    Attributes:
        seeds: variance between seeds over their number, what single images do to a seed included.
        freedom: its degrees of freedom, at least 1.
        images: of the drawing of the test images, the same in all seeds: no seed makes it smaller.
        residual: the part of ``seeds`` that follows from a finite number of images; no estimate of ``seeds``
            can be smaller, however alike a few seeds came out.
        image_freedom: test images less one; 0 where nothing is known of single images.
    """

    seeds: Any
    freedom: Any
    images: Any = 0.0
    residual: Any = 0.0
    image_freedom: int = 0

    def half_width(self, level: float = LEVEL) -> Any:
        """Half of the interval that covers with at least the probability 1 − ``level``."""
        from scipy.special import stdtrit

        image_quantile = float(stdtrit(self.image_freedom, 1 - level / 2)) if self.image_freedom else 0.0
        quantile = stdtrit(self.freedom, 1 - level / 2)
        return np.sqrt(_squared_width(self, quantile, image_quantile))

    def p_values(self, differences: Any) -> np.ndarray:
        """Two-sided, for no difference: the level whose interval just touches 0. 1 where nothing spreads."""
        sizes = np.abs(np.asarray(differences, dtype=float))
        seeds, freedom, images, residual = np.broadcast_arrays(
            self.seeds, self.freedom, self.images, self.residual, sizes
        )[:4]
        p_values = np.ones(sizes.shape)
        alone = (seeds > 0) & (images <= 0) & (residual <= 0)
        if alone.any():
            from scipy.special import stdtr

            p_values[alone] = 2 * stdtr(freedom[alone], -sizes[alone] / np.sqrt(seeds[alone]))
        freedom = np.minimum(freedom, _LARGEST_FREEDOM)
        crossed = ~alone & ((images > 0) | (residual > 0))
        # Whole degrees have tables; Welch's, which are seldom needed here, go by themselves.
        whole = np.where(freedom == np.floor(freedom), freedom, 0)
        for degrees in np.unique(whole[crossed]):
            where = crossed & (whole == degrees)
            part = Spread(
                seeds[where],
                degrees or freedom[where],
                images[where],
                residual[where],
                self.image_freedom,
            )
            p_values[where] = _touching(sizes[where], part)
        return p_values


def mean_squares(values: np.ndarray) -> tuple[float, float, float]:
    """MS of seeds, images and the rest of a table of seeds × images, two or more of each."""
    num_seeds, num_images = values.shape
    centre = values.mean(dtype=float)
    by_seed = values.mean(axis=1, dtype=float) - centre
    by_image = values.mean(axis=0, dtype=float) - centre
    seeds = num_images * float(by_seed @ by_seed)
    images = num_seeds * float(by_image @ by_image)
    total = float(np.square(values, dtype=float).sum()) - num_seeds * num_images * float(centre) ** 2
    residual = max(0.0, total - seeds - images) / ((num_seeds - 1) * (num_images - 1))
    return seeds / (num_seeds - 1), images / (num_images - 1), residual


def spread_of(values: np.ndarray) -> Spread:
    """Of the mean of a table of seeds × images, two or more of each."""
    seeds, images, residual = mean_squares(values)
    return Spread(
        seeds=seeds / values.size,
        freedom=len(values) - 1,
        images=max(0.0, images - residual) / values.size,
        residual=residual / values.size,
        image_freedom=values.shape[1] - 1,
    )


def _squared_width(spread: Spread, quantile: Any, image_quantile: Any) -> Any:
    by_seeds = np.maximum(spread.seeds * quantile**2, spread.residual * image_quantile**2)
    return by_seeds + spread.images * image_quantile**2


def _touching(sizes: np.ndarray, spread: Spread) -> np.ndarray:
    """p-values by bisection in the table; of one whole number of degrees of freedom, or of each its own."""
    from scipy.special import ndtr

    image_quantiles = _quantiles(spread.image_freedom)
    table = None if np.ndim(spread.freedom) else _quantiles(int(spread.freedom))

    def width(index: np.ndarray) -> np.ndarray:
        quantiles = _quantile(spread.freedom, index) if table is None else table[index]
        return np.sqrt(_squared_width(spread, quantiles, image_quantiles[index]))

    low, high = np.zeros(sizes.shape, dtype=int), np.full(sizes.shape, _NUM_STEPS)
    while np.any(high - low > 1):
        middle = (low + high) // 2
        inside = width(middle) <= sizes
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    below, above = width(low), width(high)
    # Between two entries the width grows by a factor; from 0 to the first one, linearly.
    with np.errstate(divide="ignore", invalid="ignore"):
        fraction = np.where(
            below > 0, np.log(sizes / below) / np.log(above / below), (sizes - below) / (above - below)
        )
    fraction = np.clip(np.nan_to_num(fraction), 0.0, 1.0)
    return 2 * np.asarray(ndtr(-_STEP * (low + fraction)))


@lru_cache(maxsize=256)
def _quantiles(degrees: int) -> np.ndarray:
    return _quantile(degrees, np.arange(_NUM_STEPS + 1))


def _quantile(degrees: Any, index: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr, stdtrit

    return -np.asarray(stdtrit(np.asarray(degrees, dtype=float), ndtr(-_STEP * index)))
