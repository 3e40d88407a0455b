"""One verdict over several tasks: which entries are the same, what is tested, what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import ADAMW, PUGD, SAM, SGD, loaded, record, stored
from scipy.stats import ttest_1samp

from pugdft.cli.main import main
from pugdft.cli.plot import command as plot
from pugdft.errors import UserError
from pugdft.leaderboard.across import AcrossVerdict, build_across, formats, planning, pooling
from pugdft.leaderboard.across.page import across_html
from pugdft.leaderboard.stats import LEVEL, MeanDifference
from pugdft.records import RunRecord, write_record

DATA = ("cifar10", "cifar100", "flowers", "pets", "birds", "cars")
# Differences of the second to the first optimizer in each task, the first one's level, and seeds.
GAINS = (0.012, 0.008, 0.011, 0.014, 0.009, 0.010)
LEVELS = (0.90, 0.70, 0.85, 0.60, 0.80, 0.75)
WOBBLE = (-0.001, 0.0, 0.001)


def task(
    name: str, *runs: tuple[dict[str, Any], float], model: str = "resnet18", **changes: Any
) -> list[RunRecord]:
    """Three seeds of each optimizer about a mean."""
    return [
        record(optimizer, seed, mean + wobble, data__name=name, model__name=model, **changes)
        for optimizer, mean in runs
        for seed, wobble in enumerate(WOBBLE)
    ]


def six_tasks(*optimizers: dict[str, Any], **changes: Any) -> list[RunRecord]:
    """Six tasks of SGD and optimizers that are better by about a point, the later ones less."""
    found = []
    for name, level, gain in zip(DATA, LEVELS, GAINS, strict=True):
        better = [(spec, level + gain - 0.004 * place) for place, spec in enumerate(optimizers)]
        found += task(name, (SGD, level), *better, **changes)
    return found


def verdict_of(*records: Any, **options: Any) -> AcrossVerdict:
    return build_across(loaded(*records), **options)


def test_the_difference_is_the_mean_over_tasks_and_its_test_is_t_over_tasks() -> None:
    pair = verdict_of(six_tasks(SAM)).pairs[0]
    assert (pair.first, pair.second, pair.num_tasks) == ("sam", "sgd", 6)
    assert pair.difference == pytest.approx(np.mean(GAINS))
    assert pair.p_value == pytest.approx(ttest_1samp(GAINS, 0).pvalue, rel=1e-3)
    low, high = ttest_1samp(GAINS, 0).confidence_interval()
    assert pair.ci95 == pytest.approx((low, high), rel=1e-6)
    assert pair.separated
    assert [(each.rank_low, each.rank_high) for each in verdict_of(six_tasks(SAM)).standings] == [
        (1, 1),
        (2, 2),
    ]


def test_tasks_weigh_equally_whatever_their_seeds() -> None:
    more = [record(SAM, seed, 0.95, data__name="cifar10") for seed in range(3, 9)]
    more += [record(SGD, seed, 0.95, data__name="cifar10") for seed in range(3, 9)]
    pair = verdict_of(six_tasks(SAM), more).pairs[0]
    assert pair.difference == pytest.approx(np.mean([GAINS[0] / 3, *GAINS[1:]]))


def test_a_chance_agreement_of_tasks_claims_no_more_than_seeds_allow() -> None:
    """Two tasks with the same difference, of seeds that differ by much more."""
    runs = []
    for name in DATA[:2]:
        for seed, wobble in enumerate((-0.06, 0.0, 0.06)):
            runs.append(record(SGD, seed, 0.8, data__name=name))
            runs.append(record(SAM, seed, 0.81 + wobble, data__name=name))
    pair = verdict_of(runs).pairs[0]
    assert pair.p_value is not None
    assert pair.p_value > 0.5
    assert pair.ci95 is not None
    # The standard error of two tasks' means of three seeds.
    assert pair.ci95[1] - pair.difference >= 1.95 * 0.06 / np.sqrt(6)


def test_a_lower_loss_wins() -> None:
    records = six_tasks(SAM)
    for each in records:
        assert each.metrics
        test = each.metrics.test.model_copy(update={"loss": 1.0 - each.metrics.test.top1})
        object.__setattr__(each, "metrics", each.metrics.model_copy(update={"test": test}))
    verdict = verdict_of(records, metric="loss")
    assert [each.label for each in verdict.standings] == ["sam", "sgd"]
    assert verdict.pairs[0].difference == pytest.approx(np.mean(GAINS))
    assert verdict.pairs[0].improvement.mean == 1.0


def test_a_missing_task_is_said_and_only_common_tasks_count() -> None:
    lacking = [
        each
        for each in six_tasks(SAM, PUGD)
        if (each.recipe["optimizer"]["name"], each.recipe["data"]["name"]) != ("pugd", "pets")
    ]
    verdict = verdict_of(lacking)
    pugd = next(each for each in verdict.standings if each.label == "pugd")
    assert pugd.lacks == ("pets × resnet18",)
    assert "it lacks pets × resnet18" in pugd.notes
    by_pair = {frozenset((each.first, each.second)): each for each in verdict.pairs}
    without = [gain - 0.004 for name, gain in zip(DATA, GAINS, strict=True) if name != "pets"]
    found = by_pair[frozenset(("pugd", "sgd"))]
    assert (found.num_tasks, abs(found.difference)) == (5, pytest.approx(np.mean(without)))
    assert by_pair[frozenset(("sam", "sgd"))].num_tasks == 6
    assert len(verdict.shared_tasks) == 5
    assert any("over the 5 of 6 tasks that all entries have" in note for note in verdict.notes)


def test_options_may_differ_from_task_to_task_which_is_said_with_how_they_were_chosen() -> None:
    tuning = {"trials": 8, "gradient_passes": 1000}
    runs = []
    for name, level in zip(DATA, LEVELS, strict=True):
        own = SAM | {"rho": 0.2 if name == "pets" else 0.05}
        more = {} if name == "cars" else {"tuning": tuning}
        runs += [*task(name, (SGD, level)), *task(name, (own, level + 0.01), **more)]
    verdict = verdict_of(runs)
    assert [each.label for each in verdict.standings] == ["sam", "sgd"]
    (note,) = verdict.standings[0].notes
    assert "rho is 0.05 in 5 tasks, 0.2 in pets × resnet18" in note
    assert "1 task without a search on record" in note


def test_variants_are_named_by_the_options_that_tell_them_apart_within_tasks() -> None:
    """Two radii everywhere, each with a rate that differs by task: two entries, not four or twelve."""
    runs = []
    for number, (name, level) in enumerate(zip(DATA, LEVELS, strict=True)):
        for rho in (0.05, 0.1):
            spec = {"name": "sam", "rho": rho, "base": SGD | {"lr": 0.01 * (1 + number % 2)}}
            runs += task(name, (spec, level + rho / 10))
    verdict = verdict_of(runs)
    assert [each.label for each in verdict.standings] == ["sam[rho=0.1]", "sam[rho=0.05]"]
    assert all(each.num_tasks == 6 for each in verdict.standings)
    assert "lr is 0.01 in 3 tasks, 0.02 in 3 tasks" in verdict.standings[0].notes[0]


def test_bases_make_different_entries() -> None:
    other = {"name": "sam", "rho": 0.05, "base": ADAMW}
    labels = {each.label for each in verdict_of(six_tasks(SAM, other)).standings}
    assert labels == {"sgd", "sam+sgd", "sam+adamw"}


def test_one_base_for_each_task_is_an_option_that_differs() -> None:
    """SAM over SGD for four data sets, over AdamW for two; radii that differ everywhere name no variants."""
    runs = []
    for number, (name, level) in enumerate(zip(DATA, LEVELS, strict=True)):
        base = {**ADAMW, "betas": [0.9, 0.999], "eps": 1e-8, "amsgrad": False} if number < 2 else SGD
        sam = {"name": "sam", "rho": 0.01 * (number + 1), "trigger": None, "base": base}
        adaptive = sam | {
            "rho": 0.5 - 0.01 * number,
            "trigger": {"name": "adaptive", "before": "plain", "delta": 0.9},
        }
        runs += task(name, (SGD, level), (sam, level + 0.02), (adaptive, level + 0.01))
    verdict = verdict_of(runs)
    assert [each.label for each in verdict.standings] == ["sam", "sam[trigger=adaptive]", "sgd"]
    assert all(each.num_tasks == 6 for each in verdict.standings)
    (note,) = verdict.standings[0].notes
    assert "base is sgd in 4 tasks, adamw in cifar10 × resnet18, cifar100 × resnet18" in note
    assert "weight_decay" not in note


def test_an_optimizer_that_lost_seeds_is_not_ranked_above_others() -> None:
    lost = record(SAM, 7, None, status="diverged", data__name="pets")
    verdict = verdict_of(six_tasks(SAM), lost)
    assert [(each.rank_low, each.rank_high) for each in verdict.standings] == [(1, 2), (1, 2)]
    assert "seeds without a result in pets × resnet18: not ranked above others" in verdict.standings[0].notes


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (task("cifar10", (SGD, 0.9), (SAM, 0.9)), "the records are of one task, cifar10 × resnet18"),
        (
            [*six_tasks(SAM), *task("pets", (SGD, 0.7), (SAM, 0.7), train__epochs=20)],
            "the records of pets × resnet18 have 2 protocols",
        ),
        (
            [*task("cifar10", (SGD, 0.9)), *task("pets", (SAM, 0.9))],
            "the 2 tasks share no two entries",
        ),
        ([record(SGD, 0, None, status="failed")], "no run completed"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_one_message(runs: Sequence[RunRecord], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        verdict_of(runs)
    assert "\n" not in str(refused.value)


def test_wins_are_separated_within_a_task_with_one_correction_over_all() -> None:
    """Differences of 8 to 14 times the seeds' deviation, but for one task in which seeds differ more."""
    runs = [each for each in six_tasks(SAM) if each.recipe["data"]["name"] != "pets"]
    runs += [record(SGD, seed, 0.6 + 0.05 * seed, data__name="pets") for seed in range(3)]
    runs += [record(SAM, seed, 0.7 - 0.05 * seed, data__name="pets") for seed in range(3)]
    pair = verdict_of(runs).pairs[0]
    assert (pair.wins, pair.ties, pair.losses) == (5, 1, 0)
    assert pair.turned().losses == 5


def test_improvement_counts_pairs_of_runs_and_halves_ties() -> None:
    table = np.array([[3.0, 1.0], [2.0, 1.0], [5.0, np.nan]])
    found = pooling.improvements(table)
    # Of (3, 1) against (2, 1): won 3>2, 3>1; lost 1<2; tied 1=1.
    assert found[0, 1] == pytest.approx((2 + 0.5) / 4)
    assert found[1, 0] == pytest.approx(1 - found[0, 1])
    assert found[2, 0] == 1.0


def test_the_interquartile_mean_is_of_the_middle_half_and_tasks_weigh_equally() -> None:
    even = pooling.Block(np.array([[[1.0, 2.0, 3.0, 100.0]], [[-50.0, 2.5, 2.0, 3.0]]]))
    assert even.interquartile_means() == pytest.approx([np.mean([2.0, 2.0, 2.5, 3.0])])
    # One task with one run, one with four: the middle half takes as much from both.
    uneven = pooling.Block(np.array([[[0.0, np.nan, np.nan, np.nan]], [[1.0, 1.0, 1.0, 1.0]]]))
    assert uneven.interquartile_means() == pytest.approx([0.5])


def test_ranks_within_tasks_are_averaged_and_profiles_count_tasks() -> None:
    verdict = verdict_of(six_tasks(SAM, PUGD))
    ranks = [each.average_rank.mean for each in verdict.standings if each.average_rank]
    assert ranks == [1.0, 2.0, 3.0]
    sgd = verdict.standings[-1]
    assert sgd.near_best
    assert sgd.near_best.mean == pytest.approx(np.mean([gain <= 0.01 for gain in GAINS]))
    assert (sgd.profile[0], sgd.profile[-1]) == (0.0, 1.0)
    assert list(sgd.profile) == sorted(sgd.profile)


def test_nemenyis_critical_difference_is_that_of_the_tables() -> None:
    # Demšar (2006), table 5: q = 2.728 for five, 2.343 for three classifiers.
    assert pooling.critical_difference(5, 30) == pytest.approx(2.728 * np.sqrt(5 * 6 / 180), abs=2e-3)
    assert pooling.critical_difference(3, 10) == pytest.approx(2.343 * np.sqrt(3 * 4 / 60), abs=2e-3)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_the_correction_counts_the_equalities_that_can_be_true_together(size: int) -> None:
    """Against all ways to sort the entries into classes of equal ones."""
    possible = set()
    for classes in np.ndindex(*[size] * size):
        possible.add(sum(one == two for one, two in combinations(classes, 2)))
    num_pairs = size * (size - 1) // 2
    wanted = [
        max(1, max(each for each in possible if each <= num_pairs - place)) for place in range(num_pairs)
    ]
    p_values = np.full(num_pairs, 1e-6) * np.arange(1, num_pairs + 1)
    found = pooling.shaffer_adjusted(p_values, size)
    assert found == pytest.approx(np.maximum.accumulate(p_values * wanted))


def test_cost_and_the_front() -> None:
    """SGD costs half of the others; of those that cost as much, only the best is on the front."""
    runs = six_tasks(SAM, PUGD)
    for each in runs:
        assert each.cost
        passes = 1000 if each.recipe["optimizer"]["name"] == "sgd" else 2000
        object.__setattr__(each, "cost", each.cost.model_copy(update={"gradient_passes": passes}))
    sam, pugd, sgd = verdict_of(runs).standings
    assert [each.cost.mean for each in (sam, pugd, sgd) if each.cost] == pytest.approx([2, 2, 1])
    assert (sam.front, pugd.front, sgd.front) == ("on", "behind", "on")
    assert (sam.front_share, pugd.front_share, sgd.front_share) == (1.0, 0.0, 1.0)


def test_shared_test_images_are_not_averaged_over_models() -> None:
    """Four models on one data set are worth less than on four; without images' errors they are not."""
    shape = (4, 1)
    tasks = pooling.TaskDifferences(
        np.array([[0.01], [0.02], [0.015], [0.012]]), np.full(shape, 1e-6), np.full(shape, 1e-5),
        np.zeros(shape), np.ones(shape, dtype=bool),
    )  # fmt: skip
    apart, together = tasks.pooled("abcd"), tasks.pooled("aaaa")
    assert together.p_value[0] > 1.5 * apart.p_value[0]
    assert together.spread.images[0] == pytest.approx(1e-5)
    assert apart.spread.images[0] == 0


def test_a_data_set_is_one_in_whatever_size_its_images_are_stored() -> None:
    runs = []
    for model, sha256 in (("resnet18", "1" * 64), ("vit", "2" * 64)):  # the digest is of the stored pixels
        runs += task("pets", (SGD, 0.8), (SAM, 0.82), model=model)
        for each in runs[-2 * len(WOBBLE) :]:
            assert each.data
            object.__setattr__(each, "data", each.data.model_copy(update={"sha256": sha256}))
    assert any("the 2 tasks have 1 data set" in note for note in verdict_of(runs).notes)


def test_per_image_scores_count_within_tasks(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((2, 3, 200))
    runs = []
    for number, name in enumerate(DATA[:2]):
        for optimizer, share in ((SGD, 0.6), (SAM, 0.8)):
            for seed in range(3):
                right = images[number, seed] < share
                runs.append(stored(tmp_path / name / f"{share}", right, optimizer, seed, data__name=name))
    pair = verdict_of(runs).pairs[0]
    assert (pair.wins, pair.ties) == (2, 0)


@pytest.mark.parametrize("num_tasks", [2, 4, 10])
def test_equal_optimizers_of_unequal_spreads_are_rarely_told_apart(num_tasks: int) -> None:
    random = np.random.default_rng(num_tasks)
    worlds, size = 1500, 4
    deviations = np.geomspace(0.002, 0.02, num_tasks)[None, :, None] * np.array([1, 1, 1, 3])
    scores = deviations * random.normal(size=(worlds, num_tasks, size))
    first, second = np.triu_indices(size, 1)
    differences = (scores[:, :, first] - scores[:, :, second]).swapaxes(0, 1).reshape(num_tasks, -1)
    nothing = np.zeros(differences.shape)
    pooled: MeanDifference = pooling.TaskDifferences(
        differences, nothing, nothing, nothing, nothing > 0
    ).pooled(range(num_tasks))
    smallest = pooled.p_value.reshape(worlds, -1).min(axis=1) * len(first)
    assert (smallest <= LEVEL).mean() <= LEVEL + 2 * np.sqrt(0.05 * 0.95 / worlds)


def test_the_plan_finds_what_it_says_with_the_planned_power() -> None:
    random = np.random.default_rng(1)
    plan = planning.across_plan(6, 3, 1, task_std=0.008, seed_std=0.006)
    gain = plan.detectable_difference(6)
    differences = gain + random.normal(0, np.sqrt(0.008**2 + 0.006**2 / 3), (6, 4000))
    nothing = np.zeros(differences.shape)
    pooled = pooling.TaskDifferences(differences, nothing, nothing, nothing, nothing > 0).pooled(range(6))
    assert (pooled.p_value <= LEVEL).mean() == pytest.approx(0.8, abs=0.02)
    assert plan.seeds_needed(gain) == 6


def test_bench_plan_says_what_all_tasks_together_find() -> None:
    tasks = [("cifar10", "resnet18"), ("cifar10", "vit"), ("pets", "resnet18"), ("pets", "vit")]
    (line,) = planning.plan_lines(tasks, 3, 10)
    lower = planning.across_plan(4, 3, 10, task_std=0.005, seed_std=0.003).detectable_difference(4)
    assert f"a mean difference of {100 * lower:.2f} or" in line
    assert planning.plan_lines(tasks[:1], 3, 10) == []


# --- formats ---


@pytest.fixture(scope="module")
def verdict() -> AcrossVerdict:
    runs = six_tasks(SAM, PUGD)
    return verdict_of([each for each in runs if each.recipe["data"]["name"] != "cars" or each.seed < 2])


def test_the_answer_stands_first_in_every_format(verdict: AcrossVerdict) -> None:
    answer = "Over 6 tasks, sam is better than all others: than pugd by 0.40 points"
    assert formats.sentence(verdict).startswith(answer)
    assert formats.across_markdown(verdict).startswith(f"**{answer}")
    assert json.loads(formats.across_json(verdict))["verdict"].startswith(answer)
    assert f"\\caption{{{answer}" in formats.across_latex(verdict)


def test_json_has_everything_and_csv_a_line_for_each_entry(verdict: AcrossVerdict) -> None:
    content = json.loads(formats.across_json(verdict))
    assert content["schema"] == "pugdft.across/1"
    assert len(content["pairs"]) == 3
    assert len(content["standings"][0]["profile"]) == len(content["distances"])
    assert content["tasks"][0]["scores"]["sgd"]["mean"] == pytest.approx(
        content["tasks"][0]["scores"]["sgd"]["mean"]
    )
    lines = formats.across_csv(verdict).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("metric,label,rank_low,rank_high,")
    assert all(len(line.split(",")) >= len(lines[0].split(",")) for line in lines)


def test_latex_has_six_columns(verdict: AcrossVerdict) -> None:
    text = formats.across_latex(verdict)
    assert r"\begin{tabular}{rlrrrr}" in text
    row = next(line for line in text.splitlines() if line.startswith(r"1 & \textbf{sam}"))
    assert row.count(" & ") == 5


HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def hostile() -> AcrossVerdict:
    return verdict_of(
        [
            each
            for name in DATA[:3]
            for each in task(name, (SGD, 0.8), ({"name": HOSTILE}, 0.9), model=f"\x1b[31m{HOSTILE}")
        ]
    )


def test_text_formats_pass_nothing_of_a_record_on(hostile: AcrossVerdict) -> None:
    assert HOSTILE not in formats.across_markdown(hostile)
    for text in (
        formats.across_csv(hostile),
        formats.across_latex(hostile),
        formats.across_markdown(hostile),
    ):
        assert "\x1b" not in text


def test_the_command_writes_each_format_and_refuses_one_task_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for each in six_tasks(SAM):
        write_record(each, tmp_path / "runs" / each.recipe["data"]["name"] / each.id)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pugdft", "leaderboard", *arguments, "--across"])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), *capsys.readouterr()

    begins = {
        "table": "Over 6 tasks",
        "markdown": "**Over 6 tasks",
        "latex": "% needs",
        "csv": "metric,",
        "json": "{",
    }
    for form, begin in begins.items():
        code, printed, _ = run("runs", "--format", form)
        assert (code, printed[: len(begin)], printed[-1]) == (0, begin, "\n")
    code, printed, said = run("runs/pets")
    assert (code, printed, len(said.splitlines())) == (2, "", 1)
    assert "a verdict over tasks needs two or more" in said
    assert run("runs", "--dataset", "pets")[0] == 2
    assert run("runs", "--reported")[0] == 2


@pytest.mark.slow
def test_the_page_answers_first_and_runs_no_text_of_a_record(hostile: AcrossVerdict) -> None:
    page = across_html(hostile)
    assert HOSTILE not in page
    assert page.index('class="verdict"') < page.index("<figure") < page.index("<table")
    assert page.count("<figure") == 5


@pytest.mark.slow
def test_plot_draws_all_figures_with_equal_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for each in six_tasks(SAM, PUGD):
        write_record(each, tmp_path / "runs" / each.id)
    written = []
    for name in ("a", "b"):
        plot([tmp_path / "runs"], across=True, form="svg", output=tmp_path / name)
        written.append([Path(line) for line in capsys.readouterr().out.splitlines()])
    kinds = ["forest", "ranks", "profiles", "front", "wins"]
    assert [path.name.split("-")[1] for path in written[0]] == kinds
    assert [path.read_bytes() for path in written[0]] == [path.read_bytes() for path in written[1]]
