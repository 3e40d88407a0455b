"""Probabilities and quantiles of the distributions that the statistics need, to about 13 digits.

The import of ``scipy.special``, which has all of them, takes longer than a table of 25 records does. A test
compares both. ``freedom`` is degrees of freedom: of t any number (below 1 the result is NaN), of χ² a whole
one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

_MOST_TERMS = 100_000
_PRECISION = 1e-15
_LARGE = 100.0  # from here on, a series for the ratio of two gamma functions has 13 digits

# Gauss and Legendre's rule with 32 points on 0..1 (Golub and Welsch, Mathematics of Computation 23, 1969).
_ORDERS = np.arange(1, 32)
_POINTS, _VECTORS = np.linalg.eigh(np.diag(_ORDERS / np.sqrt(4.0 * _ORDERS**2 - 1), -1))
_SHARES, _WEIGHTS = (1 + _POINTS) / 2, _VECTORS[0] ** 2

_erfc = np.vectorize(math.erfc, otypes=[float])
normal_quantile = NormalDist().inv_cdf


def normal_cdf(values: Any) -> Any:
    """Compute Φ of a number or of an array."""
    return _erfc(np.asarray(values) * -math.sqrt(0.5)) / 2


def t_tail(freedom: np.ndarray, values: Any) -> np.ndarray:
    """Compute the probability that t exceeds each value, which is at least 0: arrays of one shape."""
    known = np.maximum(freedom, 1.0)
    found = _tail(known, np.sqrt(known * np.log1p(np.asarray(values, float) ** 2 / known)))
    return np.where(freedom < 1, np.nan, found)


def t_quantile(freedom: Any, level: float) -> Any:
    """Compute the quantile of t at one level above ½: for a number, or for each of an array of freedoms."""
    kinds, places = np.unique(freedom, return_inverse=True)
    found = np.array([_t_quantile(float(each), level) for each in kinds])[places]
    return found.reshape(np.shape(freedom))[()]


@lru_cache(maxsize=4096)
def _t_quantile(freedom: float, level: float) -> float:
    return float(t_tail_quantiles(freedom, np.array([1 - level]))[0])


def t_tail_quantiles(freedom: float, tails: np.ndarray) -> np.ndarray:
    """Compute the values that t exceeds with these probabilities, each at most ½."""
    if freedom < 1:
        return np.full(tails.shape, np.nan)
    # w, as in `_tail`, is nearly a normal quantile (Wallace, Annals of Mathematical Statistics 30, 1959).
    guess = -np.array([normal_quantile(tail) for tail in tails]) * (1 + 1 / (4 * freedom))
    scale = _t_scale(freedom)

    def step(places: np.ndarray) -> np.ndarray:
        found = _tail(np.full(places.shape, freedom), places)
        return np.asarray(np.log(found / tails) * found / (scale * _t_density(freedom, places)))

    places = _newton(guess, step)
    return np.asarray(np.sqrt(freedom * np.expm1(places**2 / freedom)))


def _tail(freedom: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Integrate the density of w = √(f · log(1 + t²/f)), which is nearly normal, from each place on.

    The integral ends where e^(−w²/2) has fallen by 10⁻¹⁷. Its error does not depend on ``freedom``.
    """
    length = np.sqrt(places**2 + 78) - places
    inside = places[..., None] + length[..., None] * _SHARES
    return np.asarray(length * _t_scale(freedom) * (_t_density(freedom[..., None], inside) @ _WEIGHTS))


def _t_density(freedom: Any, places: np.ndarray) -> np.ndarray:
    """The density of w without its constant factor: e^(−w²/2) · w/√(f · (1 − e^(−w²/f)))."""
    squares = np.maximum(places, 1e-100) ** 2
    return np.asarray(np.exp(-squares / 2) * np.sqrt(squares / (-np.expm1(-squares / freedom) * freedom)))


def _t_scale(freedom: Any) -> Any:
    """Compute Γ((f + 1)/2)/(Γ(f/2) · √(πf))."""
    half = np.asarray(freedom) / 2
    return np.exp(_log_gamma_ratio(half)) / np.sqrt(2 * math.pi * half)


def f_tail(first: float, second: float, value: float) -> float:
    """Compute the probability that F with these two degrees of freedom exceeds a value above 0."""
    odds = first * value / second
    return beta_share(second / 2, first / 2, 1 / (1 + odds), odds / (1 + odds))


def coin_cdf(heads: int, tosses: int) -> float:
    """Compute the probability of at most so many heads, fewer than there are tosses of a fair coin."""
    return beta_share(tosses - heads, heads + 1, 0.5, 0.5)


@lru_cache(maxsize=1024)
def chi_square_quantiles(freedom: int, levels: tuple[float, ...]) -> np.ndarray:
    """Compute the quantiles of χ² at these levels; their probabilities have 14 digits behind the point."""
    half, given = freedom / 2, np.array(levels)
    logits = np.log(given) - np.log1p(-given)
    normal = np.array([normal_quantile(level) for level in levels])
    # The first guesses are Wilson and Hilferty's, and for small values of a few degrees the lowest term's.
    cubic = 1 - 1 / (9 * half) + normal / (3 * math.sqrt(half))
    lowest = np.exp((np.log(given) + math.lgamma(half + 1)) / half)
    guess = np.log(np.maximum(half * np.maximum(cubic, 0) ** 3, lowest))

    def step(logs: np.ndarray) -> np.ndarray:
        values = np.exp(logs)
        above = _gamma_tail(half, values)
        below = 1 - above
        density = np.exp(half * logs - values - math.lgamma(half))  # of the logarithm
        return np.asarray((logits - np.log(below / above)) * below * above / density)

    return np.asarray(2 * np.exp(_newton(guess, step)))


def _gamma_tail(half: float, values: np.ndarray) -> np.ndarray:
    """Sum Γ(half, values)/Γ(half), a finite series where twice ``half`` is whole; all terms are positive."""
    if half % 1:
        total = np.asarray(_erfc(np.sqrt(values)))
        term, power = np.exp(-values) * np.sqrt(values) * 2 / math.sqrt(math.pi), 1.5
    else:
        total, term, power = np.zeros(values.shape), np.exp(-values), 1.0
    while power <= half:
        total = total + term
        term = term * values / power
        power += 1
    return total


def _newton(guess: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Improve logarithms of guesses until they no longer change; all functions here are concave in them."""
    for _ in range(100):
        change = step(guess)
        guess = guess + change
        if np.all(np.abs(change) <= 1e-9):  # the next one would be its square
            break
    return guess


def beta_share(first: float, second: float, below: float, above: float) -> float:
    """Compute the regularized incomplete beta function I_below(first, second); ``above`` is 1 − ``below``.

    The continued fraction 8.17.22 of the NIST Handbook of Mathematical Functions, from its front by Lentz's
    method (Applied Optics 15, 1976).
    """
    if below > (first + 1) / (first + second + 2):  # it converges sooner on the other side
        return 1 - beta_share(second, first, above, below)
    log_beta = math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)
    share = math.exp(first * math.log(below) + second * math.log(above) - log_beta) / first
    upper, lower = 1.0, 1 / (1 - (first + second) / (first + 1) * below)
    share *= lower
    for number in range(1, _MOST_TERMS):
        even, before = first + 2 * number, share
        for term in (
            number * (second - number) / ((even - 1) * even),
            -(first + number) * (first + second + number) / (even * (even + 1)),
        ):
            lower, upper = 1 / (1 + term * below * lower), 1 + term * below / upper
            share *= lower * upper
        if abs(share - before) <= _PRECISION * share:
            break
    return share


@lru_cache(maxsize=4096)
def _log_gamma_ratio_of(half: float) -> float:
    """Compute log Γ(half + ½)/Γ(half)."""
    if half < _LARGE:
        return math.lgamma(half + 0.5) - math.lgamma(half)
    inverse = 1 / half
    series = 1 - inverse / 8 + inverse**2 / 128 + 5 * inverse**3 / 1024 - 21 * inverse**4 / 32768
    return math.log(half) / 2 + math.log(series)


_log_gamma_ratio = np.vectorize(_log_gamma_ratio_of, otypes=[float])
