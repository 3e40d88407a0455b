"""Sharpness beside accuracy: which numbers are taken, where they are shown, and that they never rank."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import record
from scipy.stats import ttest_rel

from pugdft.analysis.files import write_analysis
from pugdft.leaderboard import as_csv, as_json, as_markdown, build_leaderboard, collect
from pugdft.leaderboard.formats.html import as_html
from pugdft.leaderboard.sharpness import sharpness_faults, sharpness_of, which_is_flatter
from pugdft.leaderboard.stats import spearman
from pugdft.records import Artifact, StoredRun, write_record

WEIGHTS = "a" * 64
OPTIMIZERS = ("sgd", "sam", "pugd")


def measurement(
    lambda1: float, weights: str = WEIGHTS, comparison: str = "same", loss: float = 0.1
) -> dict[str, Any]:
    values = {"lambda1": lambda1, "adaptive_lambda1": 0.5, "trace": 10 * lambda1, "worst_rise": 0.02}
    return {
        "records": [{"weights_sha256": weights}],
        "comparison": comparison,
        "numbers": {"loss": loss, **{name: {"value": value} for name, value in values.items()}},
    }


def weights_of(name: str, seed: int) -> str:
    return f"{OPTIMIZERS.index(name)}{seed}" * 32


def runs_in(folder: Path) -> Path:
    """Two seeds of three optimizers, each with a measurement: λ1 is 3, 2 and 1, and 0.5 more for seed 1."""
    for place, name in enumerate(OPTIMIZERS):
        for seed in range(2):
            run = record({"name": name}, seed, 0.8 + 0.05 * place + 0.01 * seed)
            weights = weights_of(name, seed)
            run = run.model_copy(update={"artifacts": {"model": Artifact(path="m", sha256=weights)}})
            own = folder / f"{name}-{seed}"
            own.mkdir(parents=True)
            write_record(run, own)
            write_analysis(own, "sharpness", "0" * 64, {}, measurement(3 - place + 0.5 * seed, weights))
    return folder


def board(folder: Path) -> Any:
    (group,) = build_leaderboard(collect([folder]).records)
    return group


def test_every_format_shows_means_over_seeds(tmp_path: Path) -> None:
    group = board(runs_in(tmp_path))
    by_label = {entry.label: entry for entry in group.entries}
    assert by_label["sgd"].sharpness["lambda1"].mean == pytest.approx(3.25)
    assert by_label["sgd"].sharpness["lambda1"].std == pytest.approx(0.5 / 2**0.5)
    entries = json.loads(as_json([group]))["groups"][0]["entries"]
    assert {each["optimizer"]: each["lambda1_mean"] for each in entries} == pytest.approx(
        {"sgd": 3.25, "sam": 2.25, "pugd": 1.25}
    )
    rows = list(csv.DictReader(io.StringIO(as_csv([group]))))
    assert {row["optimizer"]: float(row["trace_mean"]) for row in rows} == pytest.approx(
        {"sgd": 32.5, "sam": 22.5, "pugd": 12.5}
    )
    for expected in ("3.25", "0.35", "worst rise"):
        assert expected in as_markdown([group])
    page = as_html([group])
    assert "Test result against sharpness" in page
    assert re.search(r"3\.25\b.*?± 0\.35", page, re.DOTALL)
    assert "3.250" not in page  # three digits
    assert "too few for an interval" in page


def test_sharpness_never_ranks(tmp_path: Path) -> None:
    with_it = board(runs_in(tmp_path / "with"))
    for file in (runs_in(tmp_path / "without")).glob("*/sharpness-*.yaml"):
        file.unlink()
    without = board(tmp_path / "without")
    ranks = [
        [(each.label, each.rank_low, each.rank_high) for each in one.entries] for one in (with_it, without)
    ]
    assert ranks[0] == ranks[1]
    assert not any(each.sharpness for each in without.entries)
    assert "λ1" not in as_markdown([without])


@pytest.mark.parametrize("fault", ["weights", "comparison", "missing", "damaged"])
def test_numbers_of_other_weights_or_samples_are_not_taken(tmp_path: Path, fault: str) -> None:
    folder = runs_in(tmp_path)
    file = folder / "sgd-1" / "sharpness-00000000.yaml"
    if fault == "missing":
        file.unlink()
    elif fault == "damaged":
        file.write_text("schema: pugdft.analysis/1\n")
    else:
        facts = {"weights": weights_of("sgd", 1), fault: "b" * 64}
        write_analysis(file.parent, "sharpness", "0" * 64, {}, measurement(9, **facts))
    by_label = {entry.label: entry for entry in board(folder).entries}
    assert not by_label["sgd"].sharpness  # the mean of one seed would not be that of the others
    assert by_label["sam"].sharpness


def faults_beside(folder: Path, facts: dict[str, Any]) -> str:
    write_analysis(folder, "sharpness", "0" * 64, {}, facts)
    run = collect([folder]).records[0]
    return "\n".join(map(str, sharpness_faults(StoredRun(run.record, run.path))))


def test_check_says_what_is_wrong_with_a_measurement(tmp_path: Path) -> None:
    folder = runs_in(tmp_path) / "sgd-0"
    assert faults_beside(folder, measurement(1.0, weights_of("sgd", 0))) == ""
    assert "is not that of the record's weights" in faults_beside(folder, measurement(1.0, "c" * 64))
    facts = measurement(float("nan"))
    facts["numbers"]["worst_rise"]["value"] = -1
    del facts["comparison"]
    text = faults_beside(folder, facts)
    for expected in ("numbers.lambda1.value", "comparison", "numbers.worst_rise.value", "sharpness-00000000"):
        assert expected in text
    (folder / "sharpness-00000000.yaml").write_text("schema: pugdft.analysis/2\n")
    run = collect([folder]).records[0]
    assert "newer version" in str(next(sharpness_faults(run)))


def flatter(folder: Path) -> list[str]:
    """The verdicts on what is stored, in which labels stand in the order of their names."""
    return which_is_flatter([(run, sharpness_of(run)[0]) for run in collect([folder]).records])


def test_flatter_is_said_of_common_seeds_after_correction(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for seed in range(6):
        shift = random.normal()  # of the seed: only pairing takes it away
        for name, value in (("sgd", 9.0), ("sam", 8.0), ("pugd", 8.0)):
            run = record({"name": name}, seed, 0.8)
            run = run.model_copy(update={"artifacts": {"model": Artifact(path="m", sha256=WEIGHTS)}})
            own = tmp_path / f"{name}-{seed}"
            own.mkdir()
            write_record(run, own)
            facts = measurement(value + shift + 0.1 * random.normal())
            write_analysis(own, "sharpness", "0" * 64, {}, facts)
    lines = flatter(tmp_path)
    assert [line.partition("?")[0] for line in lines] == [
        "flatter, pugd or sam", "flatter, pugd or sgd", "flatter, sam or sgd"
    ]  # fmt: skip
    assert "6 common seeds: λ1 undecided (pugd − sam: " in lines[0]
    assert "λ1 pugd (pugd − sgd: −1." in lines[1]
    assert "trace sam (sam − sgd: −1" in lines[2]
    assert all("adaptive λ1 undecided" in line for line in lines)  # equal in all runs
    # The twelve p-values are corrected together: by itself, each is smaller.
    p_value = float(lines[2].partition("λ1 sam")[2].partition("p = ")[2].partition(")")[0])
    values = {
        (run.record.recipe["optimizer"]["name"], run.record.seed): sharpness_of(run)[0].values["lambda1"]
        for run in collect([tmp_path]).records
    }
    sam, sgd = ([values[name, seed] for seed in range(6)] for name in ("sam", "sgd"))
    plain = ttest_rel(sam, sgd).pvalue
    assert p_value > 5 * plain


def test_no_verdict_at_unequal_loss_or_without_pairs(tmp_path: Path) -> None:
    folder = runs_in(tmp_path)
    for seed in range(2):
        file = folder / f"sgd-{seed}" / "sharpness-00000000.yaml"
        write_analysis(
            file.parent, "sharpness", "0" * 64, {}, measurement(3 + seed, weights_of("sgd", seed), loss=0.21)
        )
    assert [line for line in flatter(folder) if "sgd" in line] == [
        f"flatter, {name} or sgd? no verdict: unequal loss (0.1 and 0.21) says who trained longer"
        for name in ("pugd", "sam")
    ]
    shutil.rmtree(folder / "pugd-1")
    (pair,) = (line for line in flatter(folder) if "pugd or sam" in line)
    assert "there is one common seed" in pair
    shutil.rmtree(folder / "sam-0")
    (pair,) = (line for line in flatter(folder) if "pugd or sam" in line)
    assert pair.endswith("nothing is paired: no common seeds")


def test_spearman_has_an_interval_that_holds() -> None:
    assert spearman([1, 2, 3], [10, 30, 20])[0] == pytest.approx(0.5)
    assert spearman([1, 2, 3], [10, 30, 20])[1] is None
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3])[0])
    random, held = np.random.default_rng(0), 0
    true = 6 / np.pi * np.arcsin(0.3)  # of the normal distribution with correlation 0.6
    for _ in range(300):
        first = random.normal(size=30)
        second = 0.6 * first + 0.8 * random.normal(size=30)
        bounds = spearman(first, second)[1]
        assert bounds is not None
        held += bounds[0] <= true <= bounds[1]
    assert 0.9 <= held / 300 <= 0.99
