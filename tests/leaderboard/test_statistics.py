"""What the statistics promise, held against simulations in which the truth is known.

Every rate has its binomial tolerance: a correct build fails one of these tests with a probability below 1e-4,
were the seeds of the simulations drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import numpy as np
import pytest
from ranked_records import all_ranks, compare
from scipy import stats

from pugdft.leaderboard.power import MOST_SEEDS, Plan
from pugdft.leaderboard.stats import (
    LEVEL,
    EntryScores,
    Spread,
    compare_all,
    holm_adjusted,
    mean_squares,
    spread_of,
    summarize,
)

# Standard deviations of a difference's effects: of an image, of a seed, of an image in a seed.
IMAGES_DECIDE = (1.0, 0.0, 1.0)
SEEDS_DECIDE = (0.2, 0.5, 1.0)
BOTH = (1.0, 0.1, 1.0)
ONLY_CHANCE = (0.0, 0.0, 1.0)
WORLDS = {"images": IMAGES_DECIDE, "seeds": SEEDS_DECIDE, "both": BOTH, "chance": ONLY_CHANCE}


def tables(
    rng: np.random.Generator, count: int, num_seeds: int, num_images: int, world: tuple[float, float, float]
) -> np.ndarray:
    """Tables of seeds × images whose true mean is zero."""
    of_image, of_seed, rest = world
    return (
        rng.normal(0, of_image, (count, 1, num_images))
        + rng.normal(0, of_seed, (count, num_seeds, 1))
        + rng.normal(0, rest, (count, num_seeds, num_images))
    )


def at_most(rate: float, count: int) -> float:
    """The share that a simulation of ``count`` exceeds once in ten thousand times if ``rate`` is true."""
    return float(stats.binom.isf(1e-4, count, rate)) / count


def at_least(rate: float, count: int) -> float:
    return float(stats.binom.ppf(1e-4, count, rate)) / count


def sample(images: np.ndarray, start: int = 0) -> EntryScores:
    """An entry's scores with its images, one row a seed."""
    by_seed = dict(enumerate(images, start))
    return EntryScores({seed: float(row.mean()) for seed, row in by_seed.items()}, by_seed)


def without_images(each: EntryScores) -> EntryScores:
    return EntryScores(each.scores)


# --- the crossed model -----------------------------------------------------------------------------------


def test_mean_squares_are_those_of_a_two_way_analysis_of_variance() -> None:
    table = np.array([[1.0, 2, 6], [3, 4, 8]])
    # Seed means 3 and 5, image means 2, 3, 7, mean 4: no residual in an additive table.
    assert mean_squares(table) == pytest.approx((3 * 2.0, 2 * (4 + 1 + 9) / 2, 0.0))
    table[0, 0] += 6.0
    seeds, images, residual = mean_squares(table)
    total = 6 * table.var()
    assert seeds + 2 * images + 2 * residual == pytest.approx(total)
    assert residual > 0


def test_the_variance_of_a_mean_is_estimated_without_bias() -> None:
    rng, world, shape = np.random.default_rng(0), (0.5, 0.2, 1.0), (3, 40)
    made = tables(rng, 20_000, *shape, world)
    estimates = [
        (seeds + images - residual) / math.prod(shape) for seeds, images, residual in map(mean_squares, made)
    ]
    assert np.mean(estimates) == pytest.approx(made.mean(axis=(1, 2)).var(), rel=0.05)
    assert np.mean(estimates) == pytest.approx(0.2**2 / 3 + 0.5**2 / 40 + 1 / 120, rel=0.03)


def test_a_drawn_hierarchical_bootstrap_spreads_to_the_same_but_for_its_known_factors() -> None:
    rng = np.random.default_rng(0)
    table = tables(rng, 1, 4, 30, (0.8, 0.3, 1.0))[0]
    num_seeds, num_images = table.shape
    seed_counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), 60_000)
    image_counts = rng.multinomial(num_images, np.full(num_images, 1 / num_images), 60_000)
    drawn = (seed_counts * (image_counts @ table.T)).sum(axis=1) / table.size
    seeds, images, residual = mean_squares(table)
    shrunk = [
        (num_seeds - 1) / num_seeds * seeds,
        (num_images - 1) / num_images * images,
        (num_seeds - 1) / num_seeds * (num_images - 1) / num_images * residual,
    ]
    # Seeds, for images as they are; images, for seeds as they are; and both at once, once more for each.
    expected = (
        shrunk[0] * (1 - 1 / num_images)
        + shrunk[1] * (1 - 1 / num_seeds)
        + (shrunk[0] / num_images + shrunk[1] / num_seeds + shrunk[2])
    ) / table.size
    assert drawn.var() == pytest.approx(expected, rel=0.03)


def test_no_estimate_is_below_what_seeds_or_images_alone_would_give() -> None:
    rng = np.random.default_rng(1)
    for table in tables(rng, 300, 3, 20, (0.3, 0.1, 1.0)):
        spread = spread_of(table)
        of_seeds = table.mean(axis=1).var(ddof=1) / 3
        of_images = table.mean(axis=0).var(ddof=1) / 20
        total = max(spread.seeds, spread.residual) + spread.images
        assert total >= max(of_seeds, of_images) * (1 - 1e-9)
        assert spread.half_width() >= stats.t.isf(0.025, 19) * math.sqrt(of_images) * (1 - 1e-9)


def test_an_interval_touches_zero_at_its_p_value() -> None:
    spreads = Spread(
        np.array([1.0, 0.1, 0.5, 2.0, 0.01]),
        np.array([1, 2, 4, 9, 2]),
        np.array([0.3, 1.0, 0.2, 0.0, 1.0]),
        np.array([0.2, 0.2, 0.2, 0.0, 0.5]),
        9_999,
    )
    for level in (0.5, 0.05, 0.005, 1e-6, 1e-12):
        assert spreads.p_values(spreads.half_width(level)) == pytest.approx(np.full(5, level), rel=2e-4)
    assert spreads.p_values(np.zeros(5)) == pytest.approx(np.ones(5))
    assert (spreads.p_values(np.full(5, 1e9)) > 0).all()


def test_an_interval_leaves_zero_out_exactly_where_the_p_value_is_below_the_level() -> None:
    rng, count = np.random.default_rng(0), 20_000
    seeds, images, residual = rng.uniform(0, 1, (3, count)) * rng.integers(0, 2, (3, count))
    freedom = np.where(rng.random(count) < 0.7, rng.uniform(1, 9, count), rng.integers(1, 9, count))
    spreads = Spread(seeds + 0.01, freedom, images, residual, 999)
    half_width = spreads.half_width()
    # Most of them so near that degrees of freedom rounded to a whole number would decide otherwise.
    differences = half_width * rng.choice([0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2.0], count)
    assert ((differences > half_width) == (spreads.p_values(differences) < LEVEL)).all()


def test_without_images_the_test_is_t_over_seeds() -> None:
    spread = Spread(np.array([4.0, 0.25]), np.array([3, 7]))
    expected = 2 * stats.t.sf([1.5, 6.0], [3, 7])
    assert spread.p_values(np.array([3.0, -3.0])) == pytest.approx(expected, rel=1e-9)


# --- coverage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(world: str, num_seeds: int) -> None:
    count = 1500
    made = tables(np.random.default_rng(num_seeds), count, num_seeds, 60, WORLDS[world])
    missed = sum(abs(table.mean()) > spread_of(table).half_width() for table in made)
    assert missed / count <= at_most(LEVEL, count)


def test_intervals_are_no_wider_than_needed_where_seeds_are_many() -> None:
    count = 1500
    made = tables(np.random.default_rng(7), count, 30, 60, BOTH)
    missed = sum(abs(table.mean()) > spread_of(table).half_width() for table in made)
    assert missed / count >= at_least(0.025, count)


def test_an_interval_over_seeds_alone_misses_other_images_far_too_often() -> None:
    """The control: the simulation does tell a good interval from a bad one."""
    count = 1500
    made = tables(np.random.default_rng(3), count, 5, 60, IMAGES_DECIDE)
    missed = 0
    for table in made:
        low, high = summarize(list(table.mean(axis=1)), bounds=(-9, 9)).ci95  # type: ignore[misc]
        missed += not low <= 0 <= high
    assert missed / count > 0.2


def test_a_percentile_bootstrap_over_seeds_and_images_misses_where_seeds_decide() -> None:
    """Why the interval is not the plain one: three seeds drawn from three hardly spread."""
    rng, count = np.random.default_rng(5), 400
    missed = 0
    for table in tables(rng, count, 3, 60, SEEDS_DECIDE):
        seed_counts = rng.multinomial(3, [1 / 3] * 3, 200)
        image_counts = rng.multinomial(60, [1 / 60] * 60, 200)
        means = (seed_counts * (image_counts @ table.T)).sum(axis=1) / table.size
        low, high = np.quantile(means, [0.025, 0.975])
        missed += not low <= 0 <= high
    assert missed / count > 0.1


def test_a_summary_takes_the_crossed_interval_and_keeps_the_seeds_spread() -> None:
    table = np.random.default_rng(0).random((3, 50)) < 0.8
    each = sample(table)
    alone, crossed = summarize(each.scores.values()), summarize(each.scores.values(), spread_of(table))
    assert (alone.mean, alone.std) == (crossed.mean, crossed.std)
    half = spread_of(table).half_width()
    assert crossed.ci95 == pytest.approx((table.mean() - half, table.mean() + half))
    assert alone.ci95 != crossed.ci95


# --- error rates -----------------------------------------------------------------------------------------


def p_values(made: np.ndarray, with_images: bool) -> np.ndarray:
    """Of each table of differences: an entry with these scores against one whose scores are all zero."""
    found = []
    for table in made:
        pair = [sample(table), sample(np.zeros_like(table))]
        found.append(compare(*(pair if with_images else map(without_images, pair))).p_value)
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_equal_optimizers_are_told_apart_no_oftener_than_the_level(world: str, num_seeds: int) -> None:
    count = 800
    found = p_values(tables(np.random.default_rng(num_seeds), count, num_seeds, 60, WORLDS[world]), True)
    for level in (0.05, 0.005):
        assert (found <= level).mean() <= at_most(level, count)


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_a_test_that_takes_the_images_as_given_errs_far_more_often(num_seeds: int) -> None:
    """The control for the test above, on the same draws."""
    made = tables(np.random.default_rng(num_seeds), 800, num_seeds, 60, IMAGES_DECIDE)
    assert (p_values(made, with_images=False) <= 0.05).mean() > 0.15


@pytest.mark.slow
def test_satterthwaites_degrees_of_freedom_err_too_often_where_ours_do_not() -> None:
    """Why the test is not t with Satterthwaite's degrees: images known well, seeds from three hardly."""
    count, num_seeds, num_images = 4000, 3, 60
    made = tables(np.random.default_rng(2), count, num_seeds, num_images, (1.0, 0.25, 1.0))
    wrong, ours = 0, 0
    for table in made:
        seeds, images, residual = mean_squares(table)
        variance = max(seeds, residual) + max(images - residual, 0)
        freedom = variance**2 / (seeds**2 / (num_seeds - 1))
        t = abs(table.mean()) / math.sqrt(variance / table.size)
        wrong += 2 * stats.t.sf(t, max(freedom, num_seeds - 1)) <= 0.005
        ours += spread_of(table).p_values(table.mean()) <= 0.005
    assert wrong / count > at_most(0.005, count)
    assert ours / count <= at_most(0.005, count)


@pytest.mark.parametrize("starts", [(0, 0, 0, 0), (0, 10, 20, 30)], ids=["paired", "welch"])
def test_any_wrong_separation_in_a_group_is_as_rare_as_promised(starts: Sequence[int]) -> None:
    rng, count, wrong, naive = np.random.default_rng(4), 500, 0, 0
    for _ in range(count):
        level = rng.normal(0, 1.5, 80) + rng.normal(0, 0.2, (3, 1)) + 1.0
        # Each optimizer has images and seeds of its own that it does better or worse on.
        entries = [
            rng.normal(size=(3, 80)) < level + rng.normal(0, 2.0, 80) + rng.normal(0, 0.1, (3, 1))
            for _ in range(4)
        ]
        group = [sample(images, start) for images, start in zip(entries, starts, strict=True)]
        wrong += any(ranks != (1, 4) for ranks in all_ranks(group, 80))
        naive += any(ranks != (1, 4) for ranks in all_ranks(list(map(without_images, group)), 80))
    assert wrong / count <= at_most(LEVEL, count)
    if not any(starts):
        assert naive / count > at_most(LEVEL, count)


def test_a_few_test_images_are_no_reason_to_tell_equals_apart() -> None:
    """Counts of 0 and 1 on 25 images are far from normal."""
    rng, count, wrong = np.random.default_rng(8), 1500, 0
    for _ in range(count):
        level = rng.normal(0, 1, 25) + 1.5
        pair = [sample(rng.normal(size=(3, 25)) < level + rng.normal(0, 0.5, 25)) for _ in range(2)]
        wrong += compare(*pair, num_images=25).p_value <= LEVEL
    assert wrong / count <= at_most(LEVEL, count)


# --- power -----------------------------------------------------------------------------------------------


def test_power_without_images_is_the_noncentral_ts() -> None:
    cases = [(2, 1, 5.0), (3, 1, 2.0), (3, 10, 8.0), (5, 45, 3.0), (30, 3, 0.6)]
    for num_seeds, num_pairs, difference in cases:
        freedom, shift = num_seeds - 1, difference * math.sqrt(num_seeds)
        threshold = stats.t.isf(LEVEL / num_pairs / 2, freedom)
        expected = stats.nct.sf(threshold, freedom, shift) + stats.nct.sf(threshold, freedom, -shift)
        assert Plan(1.0, num_pairs=num_pairs).power(num_seeds, difference) == pytest.approx(
            expected, abs=3e-6
        )


@pytest.mark.slow
@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(("std", "image_std"), [(1.0, 0.0), (1.0, 0.4), (0.5, 0.5)])
def test_a_planted_difference_is_found_as_often_as_planned(
    num_seeds: int, std: float, image_std: float
) -> None:
    num_images, count = 60, 800
    # Residual zero: all that differs within a seed is the image's own, so that std is the seeds' alone.
    world = (image_std * math.sqrt(num_images), std, 0.0)
    planted = Plan(std, image_std**2).detectable_difference(num_seeds)
    made = tables(np.random.default_rng(num_seeds), count, num_seeds, num_images, world) + planted
    found = (p_values(made, with_images=True) <= LEVEL).mean()
    assert at_least(0.8, count) <= found <= at_most(0.8, count)


def test_the_ranking_finds_a_planted_difference_after_holm() -> None:
    """Among six pairs of four optimizers the plan holds for each pair: Holm only adds to it."""
    num_seeds, count, std = 5, 600, 0.004
    planted = Plan(std, num_pairs=6).detectable_difference(num_seeds)
    rng, found = np.random.default_rng(0), 0
    for _ in range(count):
        seeds = rng.normal(0.9, 0.01, num_seeds)
        entries = [seeds + rng.normal(0, std / math.sqrt(2), num_seeds) for _ in range(4)]
        scores = [dict(enumerate(map(float, entry))) for entry in entries]
        scores[0] = {seed: score + planted for seed, score in scores[0].items()}
        pairs = compare_all(list(map(EntryScores, scores)))
        found += holm_adjusted(pairs.p_value)[0] <= LEVEL
    assert at_least(0.8, count) <= found / count <= 0.9


@pytest.mark.parametrize(("difference", "std", "num_pairs"), [(1.0, 1.0, 1), (2.0, 1.0, 10), (0.5, 0.7, 3)])
def test_the_seeds_needed_are_those_that_a_brute_force_simulation_needs(
    difference: float, std: float, num_pairs: int
) -> None:
    needed = Plan(std, num_pairs=num_pairs).seeds_needed(difference)
    assert needed is not None
    rng, count = np.random.default_rng(0), 20_000

    def found(num_seeds: int) -> float:
        drawn = rng.normal(difference, std, (count, num_seeds))
        return float((stats.ttest_1samp(drawn, 0, axis=1).pvalue <= LEVEL / num_pairs).mean())

    assert found(needed) >= at_least(0.8, count)
    assert found(needed - 1) <= at_most(0.8, count)


def test_seeds_needed_and_the_detectable_difference_are_each_others_inverse() -> None:
    for num_seeds, image_variance in [(2, 0.0), (3, 0.0), (5, 0.01), (40, 0.001)]:
        plan = Plan(0.3, image_variance, num_pairs=6)
        found = plan.detectable_difference(num_seeds)
        assert plan.power(num_seeds, found) == pytest.approx(0.8, abs=1e-6)
        assert plan.seeds_needed(found * 1.0001) == num_seeds


@pytest.mark.parametrize("image_variance", [0.0, 0.02**2])
@pytest.mark.parametrize("std", [0.001, 0.05, 0.3])
def test_the_seeds_needed_are_the_fewest_of_all_numbers(std: float, image_variance: float) -> None:
    plan = Plan(std, image_variance, num_pairs=10)
    for difference in (0.03, 0.1, 0.11, -0.4, 2.0):
        numbers = range(2, MOST_SEEDS + 1)
        fewest = next((each for each in numbers if plan.power(each, difference) >= plan.target), None)
        assert plan.seeds_needed(difference) == fewest


def test_more_seeds_do_not_help_where_test_images_are_too_few() -> None:
    # z(2.5 %) + z(20 %) = 2.80 standard errors of the images alone.
    plan = Plan(0.05, image_variance=0.01**2)
    assert plan.seeds_needed(0.028) is None
    assert plan.needs_more_images(0.028)
    assert not plan.needs_more_images(0.0281)
    assert plan.seeds_needed(0.035) is not None


def test_a_difference_that_only_rounding_makes_large_enough_needs_no_number_of_seeds() -> None:
    difference, image_variance = 1.4873187224162334, 0.2818385625618594
    for std in (0.0, 0.1):
        assert Plan(std, image_variance).seeds_needed(difference) is None


def test_nothing_is_planned_that_nobody_would_run() -> None:
    plan = Plan(1.0)
    assert plan.seeds_needed(0.0) is None
    assert plan.seeds_needed(1e-6) is None
    assert plan.seeds_needed(2.9 / math.sqrt(MOST_SEEDS)) in range(900, MOST_SEEDS)
    assert plan.seeds_needed(-2.0) == plan.seeds_needed(2.0)
    assert plan.power(1, 5.0) == 0.0
    assert plan.detectable_difference(1) == math.inf
    for fewer, more in pairwise((2, 3, 5)):
        assert plan.detectable_difference(fewer) > plan.detectable_difference(more)


# --- all pairs -------------------------------------------------------------------------------------------


def entries_with_gaps(rng: np.random.Generator, kind: type) -> list[EntryScores]:
    """Entries of one to five seeds from two ranges, most with images."""
    level = rng.normal(0, 1, 90)
    entries = []
    for number in range(14):
        seeds = range(number % 5 + 1) if number < 11 else range(20, 22 + number % 3)
        images = {
            seed: (level + rng.normal(0, 1, 90) < 1) if kind is bool else level + rng.normal(0, 1, 90)
            for seed in seeds
        }
        scores = {seed: float(values.mean()) for seed, values in images.items()}
        entries.append(EntryScores(scores, images if number % 4 else None))
    return entries


@pytest.mark.parametrize("kind", [bool, float])
def test_all_pairs_at_once_are_the_pairs_one_by_one(kind: type) -> None:
    entries = entries_with_gaps(np.random.default_rng(0), kind)
    size = 90 if kind is bool else None
    pairs = compare_all(entries, size)
    for place, (one, two) in enumerate(combinations(entries, 2)):
        alone = compare(one, two, size)
        assert pairs.difference[place] == pytest.approx(alone.difference)
        assert pairs.p_value[place] == pytest.approx(alone.p_value, rel=1e-6)
        common = sorted(one.scores.keys() & two.scores.keys())
        if len(common) > 1 and one.images and two.images:
            table = np.array([np.subtract(one.images[s], two.images[s], dtype=float) for s in common])
            expected = spread_of(table)
            assert pairs.spread.images[place] == pytest.approx(expected.images, abs=1e-15)
            assert pairs.spread.residual[place] == pytest.approx(expected.residual)
            assert pairs.spread.seeds[place] == pytest.approx(expected.seeds)
        elif not (one.images and two.images):
            assert pairs.spread.images[place] == 0


def test_unpaired_seeds_count_the_images_that_both_met() -> None:
    rng = np.random.default_rng(0)
    one, two = sample(rng.random((3, 80)) < 0.9), sample(rng.random((4, 80)) < 0.6, start=10)
    alone = compare(without_images(one), without_images(two), 80)
    crossed = compare(one, two, 80)
    assert not crossed.paired
    assert crossed.spread.seeds == alone.spread.seeds
    assert crossed.spread.images > 0 == alone.spread.images
    assert crossed.p_value > alone.p_value


def test_seeds_that_are_no_pairs_are_compared_as_unpaired() -> None:
    better = {0: 0.901, 1: 0.951, 2: 0.921}
    worse = {seed: score - 0.005 for seed, score in better.items()}
    paired, not_paired = compare(better, worse, 1000), compare(better, worse, 1000, unpaired=True)
    assert paired.p_value < 0.01
    elsewhere = compare(better, {seed + 10: score for seed, score in worse.items()}, 1000)
    assert not_paired.p_value == pytest.approx(elsewhere.p_value)


@pytest.mark.parametrize("kind", [bool, float])
def test_the_order_of_entries_changes_no_comparison(kind: type) -> None:
    rng = np.random.default_rng(0)
    entries = entries_with_gaps(rng, kind)
    size = 90 if kind is bool else None
    expected = {}
    pairs = compare_all(entries, size)
    for place, (one, two) in enumerate(combinations(range(len(entries)), 2)):
        expected[frozenset((one, two))] = pairs.p_value[place]
    order = rng.permutation(len(entries))
    shuffled = compare_all([entries[at] for at in order], size)
    for place, (one, two) in enumerate(combinations(range(len(entries)), 2)):
        found = shuffled.p_value[place]
        assert found == pytest.approx(expected[frozenset((order[one], order[two]))], rel=1e-6)


def test_holms_adjusted_p_values_are_those_of_the_textbook() -> None:
    adjusted = holm_adjusted(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm_adjusted(np.array([])).size == 0


def test_identical_runs_are_no_difference_and_no_error() -> None:
    images = np.random.default_rng(0).random((3, 50)) < 0.8
    comparison = compare(sample(images), sample(images), 50)
    assert comparison.difference == 0
    assert comparison.p_value == 1.0
    everything, nothing = sample(np.ones((3, 50), bool)), sample(np.zeros((3, 50), bool))
    assert compare(everything, nothing, 50).p_value < 1e-3
