"""What a few seeds allow to say: intervals, paired tests, ranges of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from ranked_records import all_ranks, compare

from pugdft.leaderboard.stats import LEVEL, holm_adjusted, summarize


def scores(*values: float, start: int = 0) -> dict[int, float]:
    return dict(enumerate(values, start))


def test_summaries_are_those_of_scipy() -> None:
    from scipy import stats

    values = [0.91, 0.93, 0.9, 0.925]
    summary = summarize(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert summary.mean == pytest.approx(np.mean(values), rel=1e-12)
    assert summary.std == pytest.approx(np.std(values, ddof=1), rel=1e-9)
    assert summary.ci95 == pytest.approx((low, high), rel=1e-9)


def test_one_seed_has_neither_spread_nor_interval_and_intervals_stay_fractions() -> None:
    assert (summarize([0.9]).std, summarize([0.9]).ci95) == (None, None)
    assert summarize([0.99, 0.9]).ci95[1] == 1.0  # type: ignore[index]
    assert summarize([0.01, 0.1]).ci95[0] == 0.0  # type: ignore[index]


def test_common_seeds_give_scipys_paired_test_if_only_single_seeds_are_left() -> None:
    from scipy import stats

    first, second = scores(0.91, 0.93, 0.95, 0.2), scores(0.9, 0.925, 0.93, start=0) | {9: 0.99}
    expected = stats.ttest_rel([0.91, 0.93, 0.95], [0.9, 0.925, 0.93])
    comparison = compare(first, second)
    assert comparison.p_value == pytest.approx(expected.pvalue, rel=1e-6)
    assert comparison.difference > 0
    assert compare(second, first).p_value == pytest.approx(comparison.p_value)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (scores(0.9), scores(0.1)),
        (scores(0.9), scores(0.1, 0.11, 0.12)),
        (scores(0.9, 0.91, 0.92), scores(0.1, start=9)),
        (scores(0.9, 0.91), scores(0.1, 0.11, start=1)),
    ],
    ids=["one each", "one against three", "one, not common", "one common of two"],
)
def test_a_single_seed_never_separates(first: dict[int, float], second: dict[int, float]) -> None:
    assert compare(first, second).p_value == 1.0


@pytest.mark.parametrize("start", [0, 10], ids=["paired", "welch"])
def test_zero_spread_is_no_nan(start: int) -> None:
    assert compare(scores(0.9, 0.9, 0.9), scores(0.9, 0.9, 0.9, start=start)).p_value == 1.0
    assert compare(scores(0.9, 0.9), scores(0.8, 0.8, start=start)).p_value == 1.0


@pytest.mark.parametrize("start", [0, 10], ids=["paired", "welch"])
def test_a_spread_of_zero_separates_nothing_unless_the_test_splits_size_is_known(start: int) -> None:
    better, worse = scores(0.9, 0.9, 0.9), scores(0.8, 0.8, 0.8, start=start)
    assert compare(better, worse).p_value == 1.0
    assert 0.0 < compare(better, worse, num_images=100).p_value < 0.01
    assert compare(better, better, num_images=100).p_value == 1.0


@pytest.mark.parametrize(("images", "p_value"), [(1, 0.0513), (2, 0.0136), (10, 0.00056)])
def test_equal_differences_are_tested_against_the_rounding_to_whole_images(
    images: int, p_value: float
) -> None:
    # t = d/N ÷ √(1/(6 N²)/3) = d·√18 with two degrees of freedom, whatever N is.
    for size in (50, 10_000):
        better = {seed: 0.5 + (10 * seed + images) / size for seed in range(3)}
        worse = {seed: 0.5 + 10 * seed / size for seed in range(3)}
        assert compare(better, worse, size).p_value == pytest.approx(p_value, rel=0.01)


def test_a_spread_above_the_rounding_is_used_as_it_is() -> None:
    first, second = scores(0.91, 0.93, 0.95), scores(0.9, 0.925, 0.93)
    assert compare(first, second, 10_000) == compare(first, second)


@pytest.mark.parametrize("start", [0, 100], ids=["paired", "welch"])
@pytest.mark.parametrize(
    ("num_seeds", "spread"),  # in images: scores often agree to the last one
    [
        pytest.param(num_seeds, spread, marks=() if spread == 0.5 else pytest.mark.slow)
        for num_seeds in (2, 3)
        for spread in (0.3, 0.5, 1.0, 2.0)
    ],
)
def test_equal_optimizers_on_few_images_are_separated_in_at_most_one_pair_of_twenty(
    num_seeds: int, spread: float, start: int
) -> None:
    rng = np.random.default_rng(num_seeds)
    drawn = np.round(40.25 + rng.normal(0, spread, (1000, 2, num_seeds))) / 50
    pairs = [(scores(*pair[0]), scores(*pair[1], start=start)) for pair in drawn]
    wrong = sum(compare(*pair, num_images=50).p_value <= 0.05 for pair in pairs)
    assert wrong / 1000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_a_constant_difference_is_seen_through_floating_point() -> None:
    # 0.9 - 0.8, 0.7 - 0.6 and 0.3 - 0.2 are three different floats; t would be about 1e15.
    assert compare(scores(0.9, 0.7), scores(0.8, 0.6)).p_value == 1.0
    assert compare(scores(0.3, 0.1 + 0.2), scores(0.1 + 0.2, 0.3)).p_value == 1.0


def test_holm_steps_down_and_stops_at_the_first_failure() -> None:
    # 0.05/4, /3, /2, /1 = .0125, .0167, .025, .05: Bonferroni would keep only the first.
    def rejected(*p_values: float) -> list[bool]:
        return [bool(p_value <= LEVEL) for p_value in holm_adjusted(np.array(p_values))]

    assert rejected(0.04, 0.015, 0.01, 0.024) == [True, True, True, True]
    assert rejected(0.01, 0.02, 0.02, 0.02) == [True, False, False, False]
    assert rejected(0.013, 0.001, 1.0) == [True, True, False]
    assert rejected() == []


def test_rank_ranges_count_who_is_surely_better_and_surely_worse() -> None:
    noise = [0.001, -0.001, 0.0005, 0.0, -0.0005]
    top = scores(*(0.95 + each for each in noise))
    middle_a = scores(*(0.901 + each for each in (0.004, -0.003, 0.001, -0.002, 0.0)))
    middle_b = scores(*(0.9 + each for each in (-0.003, 0.004, -0.002, 0.002, 0.0)))
    bottom = scores(*(0.8 + each for each in reversed(noise)))
    assert all_ranks([middle_b, top, bottom, middle_a]) == [(2, 3), (1, 1), (4, 4), (2, 3)]
    assert all_ranks([]) == []
    assert all_ranks([top]) == [(1, 1)]


def simulated(
    rng: np.random.Generator, num_entries: int, num_seeds: int, common: bool
) -> list[dict[int, float]]:
    """Equal optimizers: a shared effect of the seed and independent noise."""
    shared = rng.normal(0, 0.004, num_seeds) if common else np.zeros(num_seeds)
    starts = [0 if common else 100 * entry for entry in range(num_entries)]
    return [scores(*(0.9 + shared + rng.normal(0, 0.003, num_seeds)), start=start) for start in starts]


@pytest.mark.parametrize(
    ("num_seeds", "common"),
    [
        pytest.param(2, True, id="2-paired"),
        pytest.param(5, False, id="5-welch"),
        pytest.param(2, False, id="2-welch", marks=pytest.mark.slow),
        pytest.param(5, True, id="5-paired", marks=pytest.mark.slow),
    ],
)
def test_equal_optimizers_are_separated_in_at_most_one_group_of_twenty(num_seeds: int, common: bool) -> None:
    rng = np.random.default_rng(num_seeds)
    groups = [simulated(rng, 4, num_seeds, common) for _ in range(1500)]
    wrong = sum(any(ranks != (1, 4) for ranks in all_ranks(group)) for group in groups)
    # Three standard errors over 5 %.
    assert wrong / len(groups) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(groups))


def test_two_equal_optimizers_are_separated_in_about_five_percent() -> None:
    """The level is used, not only kept: with one pair Holm has nothing to correct."""
    rng = np.random.default_rng(0)
    wrong = sum(all_ranks(simulated(rng, 2, 5, True)) != [(1, 2), (1, 2)] for _ in range(4000)) / 4000
    assert 0.04 <= wrong <= 0.06


def test_a_large_difference_is_found_and_pairing_finds_what_the_seeds_spread_hides() -> None:
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(200):
        group = simulated(rng, 4, 5, True)
        group[2] = {seed: top1 + 0.03 for seed, top1 in group[2].items()}
        found += all_ranks(group)[2] == (1, 1)
    assert found >= 190
    effect = [0.0, 0.1, -0.1, 0.05, -0.05]
    better = scores(
        *(0.801 + each + jitter for each, jitter in zip(effect, [1e-4, 0, -1e-4, 0, 1e-4], strict=True))
    )
    assert all_ranks([scores(*(0.8 + each for each in effect)), better]) == [(2, 2), (1, 1)]
