"""``pugdft compare``: which runs are meant, what is said of their difference, and when the gate holds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from conftest import pugdft
from ranked_records import compare
from run_records import PUGD, SAM, SGD, loaded, record, stored
from scipy import stats
from typer.testing import CliRunner

from pugdft.cli import compare as cli
from pugdft.errors import UserError
from pugdft.leaderboard.compare import Report, Selection, compare_selections, find_selections
from pugdft.leaderboard.grouping import group_runs
from pugdft.leaderboard.power import Plan
from pugdft.leaderboard.stats import EntryScores, mcnemar
from pugdft.leaderboard.verdicts import comparison_text
from pugdft.records import RunRecord, write_record


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    error: UserError | None


def run_command(*arguments: str) -> Done:
    """The command alone: what ``pugdft`` makes of a UserError is tested with the others."""
    app = typer.Typer()
    app.command()(cli.command)
    result = CliRunner().invoke(app, list(arguments))
    error = result.exception if isinstance(result.exception, UserError) else None
    if result.exception and not error and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.output, error)


def write(folder: Path, *records: RunRecord) -> Path:
    for each in records:
        write_record(each, folder / each.id)
    return folder


def seeds(optimizer: dict[str, Any], *top1s: float, **changes: Any) -> list[RunRecord]:
    return [record(optimizer, seed, top1, **changes) for seed, top1 in enumerate(top1s)]


def report(first: list[RunRecord], second: list[RunRecord], **options: Any) -> Report:
    def side(records: list[RunRecord]) -> Selection:
        (group,) = group_runs(loaded(records))
        return Selection(group.entries[0], group)

    return compare_selections(side(first), side(second), **options)


def networks(seed: int, gain: float = 0.0, num_images: int = 400) -> np.ndarray:
    shared = np.random.default_rng(99).normal(1.0, 1.0, num_images)
    return np.random.default_rng(seed).normal(size=(3, num_images)) < shared + gain


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``runs`` with three optimizers of three seeds and predictions, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for optimizer, seed, gain in ((SGD, 1, 0.0), (SAM, 2, 0.6), (PUGD, 3, 0.02)):
        for number, images in enumerate(networks(seed, gain)):
            stored(tmp_path / "runs" / str(optimizer["name"]), images, optimizer, number)
    return tmp_path / "runs"


# --- McNemar ---------------------------------------------------------------------------------------------


def test_mcnemars_exact_test_is_that_of_a_coin() -> None:
    # 1 and 9 of ten: 2 · (1 + 10)/1024.
    assert mcnemar(1, 9) == mcnemar(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(5, 5) == mcnemar(0, 0) == mcnemar(0, 1) == 1.0
    for one, two in ((48, 93), (3, 14), (1000, 1100), (0, 60)):
        assert mcnemar(one, two) == pytest.approx(stats.binomtest(one, one + two).pvalue, rel=1e-9)


def test_the_seeds_table_counts_images_that_only_one_network_gets_right(runs: Path) -> None:
    done = run_command("sam", "sgd", "--format", "json")
    rows = json.loads(done.out)["seeds"]
    for seed, (sam, sgd) in enumerate(zip(networks(2, 0.6), networks(1), strict=True)):
        assert rows[seed]["only_first"] == (sam & ~sgd).sum()
        assert rows[seed]["only_second"] == (sgd & ~sam).sum()
        assert rows[seed]["p_value"] == pytest.approx(
            stats.binomtest(int((sam & ~sgd).sum()), int((sam ^ sgd).sum())).pvalue, rel=1e-6
        )
    text = run_command("sam", "sgd", "--full").out
    assert "only A right" in text
    assert "speaks of the two trained networks" in text


# --- the difference --------------------------------------------------------------------------------------


def test_difference_interval_and_p_value_are_the_rankings(runs: Path) -> None:
    content = json.loads(run_command("sam", "sgd", "--format", "json").out)
    samples = [
        EntryScores({seed: float(row.mean()) for seed, row in enumerate(images)}, dict(enumerate(images)))
        for images in (networks(2, 0.6), networks(1))
    ]
    expected = compare(*samples, num_images=400)
    assert content["schema"] == "pugdft.compare/1"
    assert content["difference"] == pytest.approx(expected.difference)
    assert content["ci95"] == pytest.approx(expected.interval())
    assert content["p_value"] == pytest.approx(expected.p_value)
    assert (content["num_seeds"], content["num_images"], content["is_paired"]) == (3, 400, True)
    assert content["a"]["optimizer"] == "sam"
    assert len(content["b"]["records"]) == 3


def test_swapping_the_sides_turns_everything_round() -> None:
    one, two = seeds(SGD, 0.9, 0.92, 0.91), seeds(SAM, 0.93, 0.935, 0.92)
    there, back = report(one, two), report(two, one)
    assert there.difference.difference == pytest.approx(-back.difference.difference)
    assert there.difference.p_value == pytest.approx(back.difference.p_value)
    assert there.difference.interval() == pytest.approx(
        [-x for x in reversed(back.difference.interval() or ())]
    )


def test_the_text_says_the_difference_and_what_the_data_cannot_say() -> None:
    found = report(seeds(SAM, 0.93, 0.92, 0.95), seeds(SGD, 0.92, 0.91, 0.92))
    low, high = stats.t.interval(0.95, 2, 5 / 300, stats.sem([0.01, 0.01, 0.03]))
    text = comparison_text(found)
    assert "A  sam: top-1 93.33 %, seeds 0, 1, 2" in text
    assert f"A − B  +1.67 points, 95 % interval −{-100 * low:.2f} to +{100 * high:.2f}, p = 0.13" in text
    assert "this speaks of these test images only" in text
    assert found.outlook.range is not None
    low, high = found.outlook.range
    assert f"undecided: {low} to {high} more seeds each would tell" in text
    assert "McNemar" not in text
    assert max(map(len, text.splitlines())) <= 110


def test_loss_is_no_percentage_and_the_lower_one_is_the_better() -> None:
    def losses(optimizer: dict[str, Any], *values: float) -> list[RunRecord]:
        return [
            record(optimizer, seed, metrics={"test": {"top1": 0.9, "top5": 0.9, "loss": value, "ece": 0.1}})
            for seed, value in enumerate(values)
        ]

    one, two = losses(SGD, 0.30, 0.31, 0.33), losses(SAM, 0.31, 0.32, 0.35)
    found = report(one, two, metric="loss", margin=0.01)
    assert "A − B  −0.0133, 95 % interval" in comparison_text(found)
    assert found.gate is not None
    assert found.gate.holds
    worse = report(two, one, metric="loss", margin=0.01)
    assert worse.gate is not None
    assert not worse.gate.holds
    assert "A − B is at most +" in comparison_text(worse)


def test_one_common_seed_claims_nothing() -> None:
    found = report(seeds(SGD, 0.9, 0.91), seeds(SAM, 0.95))
    assert found.difference.interval() is None
    assert (found.outlook.more_seeds, found.detectable) == (None, None)
    assert any("no claim about the optimizers: there is one common seed" in note for note in found.notes)


def test_different_seeds_are_compared_as_unpaired_and_it_is_said() -> None:
    other = [record(SAM, seed, top1) for seed, top1 in ((7, 0.95), (8, 0.96))]
    found = report(seeds(SGD, 0.9, 0.91), other)
    assert found.rows == []
    assert any("compared as unpaired" in note for note in found.notes)
    fewer = report(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.9, 0.91))
    assert any("the difference is over 2 common seeds" in note for note in fewer.notes)
    partly = report(
        seeds(SGD, 0.9, 0.91, 0.92, 0.9), [record(SAM, seed, 0.9 + seed / 500) for seed in (2, 3, 4, 5)]
    )
    assert any("of the difference are that of 2 common seeds" in note for note in partly.notes)


def test_doubts_of_the_comparison_are_said() -> None:
    first = seeds(SGD, 0.9, 0.91, environment={"torch": "2.9"})
    second = seeds(SAM, 0.95, 0.96, environment={"torch": "2.10"}, tuning={"trials": 1, "gradient_passes": 1})
    notes = report(first, second).notes
    assert any("the version of torch: 2.10 (B); 2.9 (A)" in note for note in notes)
    assert any("tuning budgets differ" in note for note in notes)


# --- the gate --------------------------------------------------------------------------------------------


def test_the_gate_is_the_one_sided_bound_of_scipys_t_test() -> None:
    differences = np.array([0.002, -0.004, 0.001, 0.0, -0.001])
    base = np.array([0.9, 0.91, 0.92, 0.9, 0.905])
    first, second = seeds(SGD, *(base + differences)), seeds(SAM, *base)
    bound = differences.mean() - stats.t.isf(0.05, 4) * stats.sem(differences)
    for margin, holds in ((-bound + 1e-6, True), (-bound - 1e-6, False)):
        gate = report(first, second, margin=margin).gate
        assert gate is not None
        assert gate.bound == pytest.approx(bound)
        assert gate.holds is holds


def test_a_gate_on_worse_optimizers_holds_as_seldom_as_promised() -> None:
    """A is worse by exactly the margin: 5 % may pass."""
    rng, count, passed = np.random.default_rng(0), 1500, 0
    for _ in range(count):
        table = rng.normal(0, 1, (3, 40)) + rng.normal(0, 1, 40) + rng.normal(0, 0.2, (3, 1)) - 0.5
        pair = [
            EntryScores({seed: float(row.mean()) for seed, row in enumerate(images)}, dict(enumerate(images)))
            for images in (table, np.zeros_like(table))
        ]
        interval = compare(*pair).interval(0.1)
        passed += interval is not None and interval[0] > -0.5
    assert passed / count <= stats.binom.isf(1e-4, count, 0.05) / count


@pytest.mark.parametrize(("margin", "code"), [("0.2", 0), ("0.0001", 3), ("0", 3)])
def test_exit_codes_follow_the_gate(runs: Path, margin: str, code: int) -> None:
    assert run_command("pugd", "sgd", "--margin", margin).code == code
    assert run_command("pugd", "sgd").code == 0


def test_a_gate_that_cannot_be_tested_does_not_hold_and_says_why(runs: Path) -> None:
    done = run_command("runs/sam/sam-0/record.yaml", "sgd", "--margin", "0.5")
    assert done.code == 3
    assert "nothing tells how much another would differ" in " ".join(done.out.split())


def test_a_failed_gate_says_how_many_seeds_equals_would_need() -> None:
    found = report(seeds(SGD, 0.9, 0.93, 0.91), seeds(SAM, 0.92, 0.91, 0.91), margin=0.01)
    assert found.gate is not None
    assert found.gate.seeds_needed is not None
    assert f"about {found.gate.seeds_needed} seeds would show it" in " ".join(comparison_text(found).split())


@pytest.mark.parametrize("status", ["diverged", "failed", "oom"])
def test_the_gate_does_not_hold_while_seeds_of_a_came_to_nothing(tmp_path: Path, status: str) -> None:
    survived = seeds(SAM, 0.95, 0.96, 0.955)
    lost = [record(SAM, seed, status=status) for seed in (3, 4)]
    one = write(tmp_path / "a", *survived, *lost)
    two = write(tmp_path / "b", *seeds(SGD, 0.9, 0.91, 0.905, 0.9, 0.91))
    done = run_command(str(one), str(two), "--margin", "0.002")
    assert done.code == 3
    text = " ".join(done.out.split())
    assert f"A has seeds without a completed run: 2 {status} (seed 3, 4)" in text
    assert f"A: not in its mean: 2 {status} (seed 3, 4)." in text
    assert run_command(str(two), str(one), "--margin", "0.2").code == 0  # B is not what must be shown good
    assert f"B: not in its mean: 2 {status} (seed 3, 4)." in " ".join(
        run_command(str(two), str(one)).out.split()
    )
    write(one, *(record(SAM, seed, 0.95) for seed in (3, 4)))
    assert run_command(str(one), str(two), "--margin", "0.002").code == 0


def test_a_run_that_somebody_stopped_is_noted_and_no_gates_matter() -> None:
    found = report(
        [*seeds(SAM, 0.95, 0.96, 0.955), record(SAM, 3, status="interrupted")],
        seeds(SGD, 0.9, 0.91, 0.905),
        margin=0.002,
    )
    assert found.gate is not None
    assert found.gate.holds
    assert "A: not in its mean: 1 interrupted (seed 3)" in found.notes


@pytest.mark.parametrize("margin", [math.nan, math.inf, -0.1])
def test_a_margin_is_a_size(margin: float) -> None:
    with pytest.raises(UserError, match="--margin"):
        report(seeds(SGD, 0.9, 0.91), seeds(SAM, 0.9, 0.91), margin=margin)


# --- which runs are meant --------------------------------------------------------------------------------


def selections(first: str | Path, second: str | Path, **options: Any) -> tuple[Selection, Selection]:
    given = {"records": [Path("runs")], "dataset": None, "model": None, "report": lambda text: None}
    return find_selections(str(first), str(second), **{**given, **options})


def test_a_record_a_folder_and_a_label_mean_runs(runs: Path) -> None:
    one, two = selections(runs / "sam" / "sam-1" / "record.yaml", "pugd")
    assert [run.record.seed for run in one.runs.completed] == [1]
    assert (two.runs.label, len(two.runs.completed)) == ("pugd", 3)
    three, _ = selections(runs / "sam", "sgd", records=[runs])
    assert len(three.runs.completed) == 3


def test_labels_are_those_of_the_leaderboard(tmp_path: Path) -> None:
    write(tmp_path / "all", *seeds(SAM, 0.9, 0.91), *seeds({**SAM, "rho": 0.1}, 0.92, 0.93))
    one, two = selections("sam[rho=0.1]", "sam[rho=0.05]", records=[tmp_path / "all"])
    assert (one.runs.spec["rho"], two.runs.spec["rho"]) == (0.1, 0.05)
    with pytest.raises(UserError, match=r"Known: sam\[rho=0.05\], sam\[rho=0.1\]. Did you mean"):
        selections("sam[rho=0.2]", "sam[rho=0.1]", records=[tmp_path / "all"])


def test_two_folders_of_one_optimizer_can_be_compared(tmp_path: Path) -> None:
    """Such as runs before and after a change of the code."""
    before, after = (
        write(tmp_path / "a", *seeds(SAM, 0.9, 0.91)),
        write(tmp_path / "b", *seeds(SAM, 0.9, 0.92)),
    )
    done = run_command(str(after), str(before))
    assert done.code == 0
    assert done.out.count("sam: top-1") == 2


def test_a_folder_of_several_optimizers_is_refused_with_their_names(runs: Path) -> None:
    with pytest.raises(UserError, match=r"several optimizers or protocols: pugd on cifar10 × resnet18"):
        selections(runs, "sgd")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train__epochs": 5}, "train.epochs is 10 for A and 5 for B"),
        ({"train__budget": "passes"}, "train.budget is epochs for A and passes for B"),
        ({"model__name": "vgg16"}, "model.name is resnet18 for A and vgg16 for B"),
        (
            {"data": {"name": "cifar10", "classes": 10, "sizes": {"test": 9}, "sha256": "cd" * 32}},
            "data.sha256 is " + "ab" * 32 + " for A and " + "cd" * 32 + " for B",
        ),
    ],
    ids=["epochs", "budget", "model", "images"],
)
def test_runs_of_different_protocols_are_refused_with_what_differs(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    write(tmp_path / "a", *seeds(SGD, 0.9, 0.91))
    write(tmp_path / "b", *seeds(SAM, 0.9, 0.91, **change))
    with pytest.raises(UserError) as caught:
        selections(tmp_path / "a", tmp_path / "b")
    assert "did not run under one protocol" in str(caught.value)
    assert said in str(caught.value)


def test_labels_in_several_groups_need_a_filter(tmp_path: Path) -> None:
    for model in ("resnet18", "vgg16"):
        both = [*seeds(SGD, 0.9, 0.91, model__name=model), *seeds(SAM, 0.9, 0.91, model__name=model)]
        write(tmp_path / "runs", *both)
    with pytest.raises(UserError, match=r"cifar10 × resnet18 .* cifar10 × vgg16 .*--dataset and --model"):
        selections("sam", "sgd", records=[tmp_path / "runs"])
    one, two = selections("sam", "sgd", records=[tmp_path / "runs"], model="vgg")
    assert one.group.model == two.group.model == "vgg16"


def test_a_label_is_looked_up_in_the_group_of_the_other_side(tmp_path: Path) -> None:
    for epochs in (5, 10):
        write(tmp_path / "runs", *seeds(SGD, 0.9, 0.91, train__epochs=epochs))
    mine = write(tmp_path / "mine", *seeds(SAM, 0.9, 0.91, train__epochs=5))
    _, two = selections(mine, "sgd", records=[tmp_path / "runs"])
    assert two.group.recipe["train"]["epochs"] == 5


def test_nothing_to_look_labels_up_in_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'"sam": no such file or folder; .*runs does not exist'):
        selections("sam", "sgd")


def test_a_side_without_a_figure_is_refused(tmp_path: Path) -> None:
    good = seeds(SGD, 0.9, 0.91)
    with pytest.raises(UserError, match=r"A \(sam\) has no completed run"):
        report([record(SAM, status="diverged")], good)
    with pytest.raises(UserError, match=r"B \(sam\) has no valid top-1 for seed 1"):
        report(good, seeds(SAM, 0.9, math.nan))


def test_runs_of_a_search_are_no_side(tmp_path: Path) -> None:
    trials = write(tmp_path / "a", *seeds(SAM, 0.9, 0.91, train__evaluate="validation"))
    with pytest.raises(UserError, match="no run on a test split"):
        selections(trials, trials)


def test_no_record_reaches_the_terminals_controls(tmp_path: Path) -> None:
    hostile = {"name": "sam\x1b[31m\u202e\nx", "rho": "\x07"}
    one = write(
        tmp_path / "a", *seeds(hostile, 0.9, 0.91, environment={"torch": "\x1b[0m", "git": "\x9b-dirty"})
    )
    two = write(tmp_path / "b", *seeds(SGD, 0.9, 0.92))
    done = run_command(str(one), str(two))
    assert done.code == 0
    assert done.out.replace("\n", "").isprintable()


def test_one_set_of_runs_is_not_compared_with_itself(tmp_path: Path) -> None:
    for each in seeds(SGD, 0.9, 0.91):
        write_record(each, tmp_path / "a" / each.id)
    done = pugdft("compare", str(tmp_path / "a"), str(tmp_path / "a"), "--margin", "0.01")
    assert done.returncode == 2
    assert "A and B share runs" in done.stderr


def test_a_margin_of_all_there_is_is_refused(tmp_path: Path) -> None:
    done = pugdft("compare", "a", "b", "--records", str(tmp_path), "--margin", "2")
    assert done.returncode == 2
    assert "a fraction is meant, 0.02 for 2 points" in done.stderr


def test_what_two_seeds_can_find_is_no_less_than_their_interval_is_wide() -> None:
    """Two seeds that differ alike by chance show no spread, but finite images have some."""
    ours = (np.random.default_rng(0).random((2, 2000)) < 0.7).astype(float)
    theirs = ours.copy()
    for seed in (0, 1):
        theirs[seed, np.flatnonzero(ours[seed])[50 * seed :][:25]] = 0.0
    first, second = (
        EntryScores({seed: float(row.mean()) for seed, row in enumerate(images)}, dict(enumerate(images)))
        for images in (ours, theirs)
    )
    comparison = compare(first, second, 2000)
    assert comparison.seed_variance < 1e-6
    detectable = Plan.of(comparison).detectable_difference(comparison.num_seeds)
    assert detectable > float(comparison.spread.half_width())


def test_p_says_what_it_is_of_and_what_the_folder_makes_of_it(tmp_path: Path) -> None:
    rows = {"a": SGD, "b": SAM, "c": {**SGD, "lr": 0.1}, "d": {**SGD, "lr": 0.2}}
    rng = np.random.default_rng(0)
    for each in (seeds(spec, *(0.9 + rng.normal(0, 0.01, 4))) for spec in rows.values()):
        write(tmp_path / "runs", *each)
    one, two = selections("sam", "sgd[lr=0.1]", records=[tmp_path / "runs"])
    found = compare_selections(one, two)
    assert found.num_entries == 4
    assert found.corrected is not None
    assert found.corrected >= found.difference.p_value
    text = " ".join(comparison_text(found).split())
    assert "p is of this pair alone; corrected for all 6 pairs of the 4 optimizers there (Holm): p = " in text
    alone = report(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.9, 0.92, 0.95))
    assert (alone.corrected, alone.num_entries) == (None, 2)
    assert "p is of this pair alone, as if no other two had been compared" in comparison_text(alone)


def test_records_may_stand_behind_the_labels(runs: Path) -> None:
    assert run_command("sam", "sgd", "runs").out == run_command("sam", "sgd", "--records", "runs").out


def test_mcnemars_test_is_shown_only_where_it_is_asked_for(runs: Path) -> None:
    assert "McNemar" not in run_command("sam", "sgd").out
    assert "McNemar's p" in run_command("sam", "sgd", "--full").out
