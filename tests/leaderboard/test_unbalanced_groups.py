"""Comparisons of entries whose seeds are not the same: some common, none common, or of unequal numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ranked_records import compare
from scipy import stats

from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Spread,
    looks_factor,
    share_interval,
    spread_of,
    summarize,
)


def scores(rng: np.random.Generator, mean: float, *seeds: int, spread: float = 0.01) -> dict[int, float]:
    return {seed: mean + float(rng.normal(0, spread)) for seed in seeds}


def test_a_record_that_makes_two_seeds_common_takes_no_evidence_away() -> None:
    rng = np.random.default_rng(0)
    one, two = scores(rng, 0.85, *range(10)), scores(rng, 0.81, *range(10, 20))
    before = compare(one, two, 2000)
    after = compare(one, two | {0: 0.81, 1: 0.812}, 2000)
    assert before.p_value < 1e-4
    assert after.p_value < 1e-3
    assert after.difference == pytest.approx(before.difference, abs=0.004)
    assert 0 < after.share < 0.1
    assert (after.num_pairs, after.num_seeds) == (2, 10)


def test_one_common_seed_leaves_the_others_to_be_compared() -> None:
    rng = np.random.default_rng(1)
    one, two = scores(rng, 0.85, *range(6)), scores(rng, 0.80, *range(5, 11))
    found = compare(one, two, 2000)
    assert (found.share, found.num_seeds, found.paired) == (0.0, 5, False)
    assert found.p_value < 0.01


def test_pairs_and_single_seeds_are_averaged_by_their_numbers_alone() -> None:
    rng = np.random.default_rng(2)
    one, two = scores(rng, 0.85, *range(10)), scores(rng, 0.85, *range(5, 15))
    found = compare(one, two)
    assert found.share == pytest.approx(0.5)
    of_pairs = np.mean([one[seed] - two[seed] for seed in range(5, 10)])
    alone = np.mean([one[seed] for seed in range(5)]) - np.mean([two[seed] for seed in range(10, 15)])
    assert found.difference == pytest.approx((of_pairs + alone) / 2)
    changed = compare({**one, 0: 0.1}, two)
    assert changed.share == found.share


def test_scores_for_each_image_are_counted_for_pairs_and_single_seeds() -> None:
    rng = np.random.default_rng(3)
    table = rng.random((9, 400)) < rng.random(400)
    one = EntryScores({seed: float(table[seed].mean()) for seed in range(6)}, dict(enumerate(table[:6])))
    rows = {seed: rng.random(400) < 0.5 for seed in range(3, 9)}
    two = EntryScores({seed: float(row.mean()) for seed, row in rows.items()}, rows)
    found = compare(one, two, 400)
    difference = found.share * np.mean([table[s].astype(float) - rows[s] for s in (3, 4, 5)], axis=0)
    difference += (1 - found.share) * (
        table[:3].mean(axis=0) - np.mean([rows[s].astype(float) for s in (6, 7, 8)], axis=0)
    )
    assert found.difference == pytest.approx(difference.mean())
    # Seeds, images and residual are parts of one variance: that of the mean over images.
    assert found.spread.images + found.spread.residual == pytest.approx(np.var(difference, ddof=1) / 400)
    turned = compare(two, one, 400)
    assert turned.difference == pytest.approx(-found.difference)
    assert turned.p_value == pytest.approx(found.p_value, rel=1e-6)


def test_without_common_seeds_each_side_has_the_quantile_of_its_own_number() -> None:
    one, two = {0: 0.91, 1: 0.93}, {5: 0.9, 6: 0.92, 7: 0.91, 8: 0.905}
    found = compare(one, two)
    first, second = (np.var(list(each.values()), ddof=1) / len(each) for each in (one, two))
    half = math.sqrt(first * stats.t.isf(0.025, 1) ** 2 + second * stats.t.isf(0.025, 3) ** 2)
    assert found.interval() == pytest.approx((found.difference - half, found.difference + half))
    swapped = compare(two, one)
    assert swapped.p_value == pytest.approx(found.p_value, rel=1e-6)


@pytest.mark.parametrize(
    ("few", "many"),
    [(2, 5), pytest.param(2, 10, marks=pytest.mark.slow), pytest.param(3, 10, marks=pytest.mark.slow)],
)
def test_few_seeds_that_spread_much_err_no_more_often(few: int, many: int) -> None:
    """Welch's test errs here in 9 to 14 %."""
    rng, count = np.random.default_rng(few), 3000
    wrong = 0
    for _ in range(count):
        wide = dict(enumerate(rng.normal(0, 4, few)))
        narrow = dict(enumerate(rng.normal(0, 1, many), 100))
        wrong += compare(wide, narrow).p_value <= LEVEL
    assert wrong / count <= float(stats.binom.isf(1e-4, count, LEVEL)) / count


def test_partly_paired_equal_optimizers_are_separated_as_often_as_promised() -> None:
    rng, count = np.random.default_rng(4), 1500
    wrong = 0
    for _ in range(count):
        shared = rng.normal(0, 1, 15)
        one = {seed: float(shared[seed] + rng.normal(0, 1)) for seed in range(8)}
        two = {seed: float(shared[seed] + rng.normal(0, 2)) for seed in range(5, 12)}
        wrong += compare(one, two).p_value <= LEVEL
    assert wrong / count <= float(stats.binom.isf(1e-4, count, LEVEL)) / count


# --- intervals near the ends -----------------------------------------------------------------------------


def test_intervals_near_all_right_hold_the_truth() -> None:
    """The symmetric interval holds it in about 60 %."""
    rng, count, held = np.random.default_rng(0), 1500, 0
    for _ in range(count):
        wrong = rng.random(500) < 0.001  # the same images in every seed
        table = np.tile(~wrong, (3, 1)) & (rng.random((3, 500)) < 1.0)
        low, high = share_interval(float(table.mean()), spread_of(table))
        held += low <= 0.999 <= high
    assert held / count >= float(stats.binom.ppf(1e-4, count, 0.95)) / count


def test_perfect_and_hopeless_networks_have_intervals() -> None:
    right = np.ones((3, 500), bool)
    low, high = share_interval(1.0, spread_of(right))
    assert (0.985 < low < 0.995, high) == (True, 1.0)
    assert share_interval(0.0, spread_of(~right)) == pytest.approx((1 - high, 1 - low))


def test_away_from_the_ends_the_interval_is_nearly_the_symmetric_one() -> None:
    rng = np.random.default_rng(1)
    table = rng.random((5, 4000)) < rng.beta(2, 1, 4000)
    means = table.mean(axis=1).tolist()
    low, high = summarize(means, spread_of(table), num_images=4000).ci95 or (0.0, 1.0)
    expected = summarize(means, spread_of(table)).ci95
    assert (low, high) == pytest.approx(expected, abs=0.001)


def test_equal_scores_without_predictions_have_the_width_of_rounding() -> None:
    low, high = summarize([1.0, 1.0, 1.0], num_images=100).ci95 or (0.0, 0.0)
    assert (low, high) == (pytest.approx(1 - stats.t.isf(0.025, 2) / math.sqrt(12 * 3) / 100), 1.0)


# --- looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("looks", "nominal"), [(1, 0.05), (2, 0.0294), (3, 0.0221), (5, 0.0158), (10, 0.0106)]
)
def test_looks_have_pococks_levels(looks: int, nominal: float) -> None:
    """Pocock, Biometrika 64, 1977, table 1."""
    assert pytest.approx(nominal, abs=6e-5) == LEVEL / looks_factor(looks)


def test_five_looks_at_growing_seeds_err_as_often_as_one() -> None:
    rng, count, factor = np.random.default_rng(5), 2000, looks_factor(5)
    wrong = [0, 0]
    for _ in range(count):
        drawn = rng.normal(0, 1, 15)
        sizes = (3, 6, 9, 12, 15)
        p_values = [
            float(Spread(np.var(drawn[:n], ddof=1) / n, n - 1).p_values(drawn[:n].mean())) for n in sizes
        ]
        wrong[0] += min(p_values) <= LEVEL
        wrong[1] += factor * min(p_values) <= LEVEL
    assert wrong[0] / count > 0.09
    assert wrong[1] / count <= float(stats.binom.isf(1e-4, count, LEVEL)) / count
