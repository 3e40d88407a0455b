"""The distributions written here, against scipy's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from pugdft.leaderboard import distributions

FREEDOMS = (1, 2, 3, 4, 9, 30, 199, 201, 4_999, 9_999_999)
LEVELS = special.ndtr(-0.01 * np.arange(1201))  # those that p-values are searched among: ½ to 2e-33


def test_the_normal_distribution_is_scipys_far_into_its_tail() -> None:
    values = np.linspace(-12, 12, 101)
    np.testing.assert_allclose(distributions.normal_cdf(values), special.ndtr(values), rtol=1e-13)
    for level in (1e-20, 0.025, 0.5, 0.975):
        assert distributions.normal_quantile(level) == pytest.approx(special.ndtri(level), rel=1e-13)


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_quantiles_of_t_are_scipys_far_into_the_tail(freedom: int) -> None:
    found = distributions.t_tail_quantiles(float(freedom), LEVELS)
    np.testing.assert_allclose(found, -special.stdtrit(freedom, LEVELS), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("freedom", FREEDOMS)
def test_tails_of_t_are_scipys(freedom: int) -> None:
    values = np.array([0.0, 0.01, 0.5, 2.0, 5.0, 30.0, 1e4])
    found = distributions.t_tail(np.full(values.shape, freedom), values)
    expected = special.stdtr(freedom, -values)
    np.testing.assert_allclose(found[expected > 1e-250], expected[expected > 1e-250], rtol=1e-11)


def test_a_quantile_is_that_of_each_freedom_and_none_without_any() -> None:
    freedoms = np.array([[3, 0], [7, 3]])
    found = distributions.t_quantile(freedoms, 0.975)
    np.testing.assert_allclose(found, [[special.stdtrit(3, 0.975), np.nan], special.stdtrit([7, 3], 0.975)])
    assert distributions.t_quantile(7, 0.975) == pytest.approx(special.stdtrit(7, 0.975), rel=1e-13)
    with np.errstate(all="raise"):  # a warning would stand above a table
        assert np.isnan(distributions.t_tail(np.array([0]), np.array([1.0]))).all()


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 9, 30, 201, 998, 999])
def test_quantiles_of_chi_square_are_scipys(freedom: int) -> None:
    levels = 1 / (1 + np.exp(-np.linspace(-15, 15, 241)))
    found = distributions.chi_square_quantiles(freedom, tuple(levels.tolist()))
    np.testing.assert_allclose(found, 2 * special.gammaincinv(freedom / 2, levels), rtol=1e-9)


def test_tails_of_f_and_coins_are_scipys() -> None:
    for first in (1, 2, 9):
        for second in (1, 3, 40, 300):
            for value in (0.1, 1.0, 9.0, 100.0):
                found = distributions.f_tail(first, second, value)
                assert found == pytest.approx(special.fdtrc(first, second, value), rel=1e-11)
    for heads, tosses in ((0, 1), (2, 5), (3, 20), (150, 300), (4_400, 9_000)):
        found = distributions.coin_cdf(heads, tosses)
        assert found == pytest.approx(special.bdtr(heads, tosses, 0.5), rel=1e-10)
