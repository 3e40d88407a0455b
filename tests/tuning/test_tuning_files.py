"""The files that a search leaves, and what further commands make of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tuning_runs import SMALL_GREEDY, Runs, Search, general, outputs_of, response

from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.config import yaml
from pugdft.errors import UserError
from pugdft.paths import write_atomically


@pytest.mark.parametrize("held_out", [0.0, 0.25])
def test_trials_hold_images_out_and_the_comparison_keeps_the_recipe(
    held_out: float, search: Search, runs: Runs
) -> None:
    overrides = [f"data.validation={held_out}", "train.epochs=3", "train.seed=7"]
    search("sgd", SMALL_GREEDY, overrides=overrides, seeds="4")
    assert {cell.recipe.data.validation for cell in runs.started} == {held_out or 0.1}
    assert {(cell.seed, cell.recipe.train.epochs) for cell in runs.started} == {(4, 3)}
    assert any("holds no images out" in line for line in search.lines) == (not held_out)
    final = yaml.parse((search.output / "recipe.yaml").read_text())
    assert (final["data"]["validation"], final["train"]["evaluate"]) == (held_out, "all")


def test_a_recipe_that_is_judged_on_validation_ends_in_a_comparison_on_the_test_split(
    search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY, overrides=["train.evaluate=validation", "data.validation=0.2"])
    assert yaml.parse((search.output / "recipe.yaml").read_text())["train"]["evaluate"] == "all"
    assert any("judged on the test split" in line for line in search.lines)


def test_the_bench_file_holds_the_tuned_optimizers_with_what_they_cost(search: Search, runs: Runs) -> None:
    tuned = search("sam,sgd", general(4), overrides=["train.epochs=3"])
    assert search.bench == search.output / "bench.yaml"
    matrix = build_matrix([str(search.bench)])
    cells = plan_cells(matrix, search.output)
    assert [cell.seed for cell in cells] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for cell, each in zip(cells, tuned, strict=False):
        assert each.spec is not None
        assert (cell.recipe.optimizer, cell.recipe.train.epochs) == (dict(each.spec), 3)
        assert cell.recipe.train.evaluate == "all"
        assert cell.recipe.tuning is not None
        budget = cell.recipe.tuning.model_dump()
        passes = 80.0 if each.label == "sam" else 40.0
        assert budget == {"trials": 4, "gradient_passes": passes, "search": "mine.yaml"}


def test_the_evidence_leads_from_the_choice_to_the_runs(search: Search, runs: Runs) -> None:
    _, sam = search("sgd,sam", SMALL_GREEDY)
    evidence = yaml.parse((search.output / "tuning.yaml").read_text())
    assert (evidence["schema"], evidence["seeds"], evidence["validation"]) == ("pugdft.tuning/1", [0], 0.1)
    entry = evidence["optimizers"][1]
    assert entry["choice"]["optimizer"] == sam.spec
    assert [trial["stage"] for trial in entry["trials"]] == ["base.lr"] * 3 + ["rho"] * 2
    assert [trial["number"] for trial in entry["trials"]] == [1, 2, 3, 4, 5]
    by_id = {record.id: record for record in search.records}
    for trial in entry["trials"]:
        (record,) = (by_id[run] for run in trial["runs"])
        assert record.metrics is not None
        assert record.metrics.validation is not None
        assert record.metrics.validation.top1 == trial["validation_top1"]
        assert record.cost.gradient_passes == trial["gradient_passes"]
    chosen = [trial for trial in entry["trials"] if trial["options"] == entry["choice"]["options"]]
    assert [trial["validation_top1"] for trial in chosen] == [entry["choice"]["validation_top1"]]


def test_a_recipes_own_tuning_is_not_the_trials(search: Search, runs: Runs) -> None:
    overrides = ["tuning={trials: 99, gradient_passes: 1, search: by hand}"]
    search("sam", SMALL_GREEDY, overrides=overrides)
    assert {cell.recipe.tuning for cell in runs.started} == {None}
    assert "99" not in (search.output / "bench.yaml").read_text()


def test_a_further_optimizer_joins_the_same_folder(search: Search, runs: Runs) -> None:
    (alone,) = search("sgd", SMALL_GREEDY)
    sgd, sam = search("sgd,sam", SMALL_GREEDY)
    assert (alone.num_runs, sgd.num_runs, sam.num_runs) == (3, 5, 5)
    assert len(runs.started) == len(search.records) == 7


def names_in(path: Path) -> list[str]:
    return [each.get("label") or each["name"] for each in yaml.parse(path.read_text())["optimizers"]]


@pytest.mark.parametrize("text", [SMALL_GREEDY, general(3)], ids=["greedy", "general"])
def test_commands_that_split_the_work_by_optimizer_end_with_all_of_them(
    text: str, search: Search, runs: Runs
) -> None:
    for optimizers in ("sgd,sam,pugd", "sam", "gnp"):
        before = outputs_of(search.output)
        search(optimizers, text)
    assert names_in(search.output / "tuning.yaml") == ["sgd", "sam", "pugd", "gnp"]
    assert names_in(search.output / "bench.yaml") == ["sgd", "sam", "pugd", "gnp"]
    for name, written in outputs_of(search.output).items():
        there, now = yaml.parse(before[name]), yaml.parse(written)
        assert now.get("optimizers", [])[:3] == there.get("optimizers", []), "what others found is as it was"


def test_commands_that_write_at_the_same_time_lose_nothing(
    search: Search, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pugdft.tuning import outputs

    def slow_write(path: Path, content: bytes) -> None:
        time.sleep(0.05)
        write_atomically(path, content)

    monkeypatch.setattr(outputs, "write_atomically", slow_write)
    optimizers = ["sgd", "ugd", "pugd", "adamw"]
    with ThreadPoolExecutor(len(optimizers)) as commands:
        list(commands.map(lambda each: search(each, general(1)), optimizers))
    assert sorted(names_in(search.output / "tuning.yaml")) == sorted(optimizers)
    assert sorted(names_in(search.output / "bench.yaml")) == sorted(optimizers)


def test_budgets_that_differ_between_commands_are_said(search: Search, runs: Runs) -> None:
    search("sgd", general(3))
    search("sam", general(2))
    assert "bench.yaml: runs of each optimizer's search, which differ: sgd 3, sam 2" in search.lines


def test_no_bench_file_of_before_stays_beside_an_optimizer_without_a_score(
    search: Search, runs: Runs
) -> None:
    search("sgd", general(2))
    runs.response = lambda spec, seed: "diverged" if spec["name"] == "sam" else response(spec)
    search("sam", general(2))
    assert search.bench is None
    assert not (search.output / "bench.yaml").exists()
    assert f"{search.output / 'bench.yaml'}: removed, it was of what was found before" in search.lines
    search("sgd", general(2))
    assert names_in(search.output / "bench.yaml") == ["sgd"]
    assert names_in(search.output / "tuning.yaml") == ["sgd", "sam"]
    assert "not in bench.yaml, since no trial of an earlier command has a score: sam" in search.lines


@pytest.mark.parametrize("edited", ["optimizers: 3", "optimizers: [1]", "optimizers: [{label: sgd}]"])
def test_a_tuning_file_whose_optimizers_were_edited_is_refused_before_anything_runs(
    edited: str, search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY)
    path, number = search.output / "tuning.yaml", len(runs.started)
    path.write_text(path.read_text().split("optimizers:")[0] + edited)
    with pytest.raises(UserError, match=r"tuning.yaml: optimizers: are not as a search writes them"):
        search("sgd,sam", SMALL_GREEDY)
    assert len(runs.started) == number


@pytest.mark.parametrize("name", ["bench.yaml", "recipe.yaml", "tuning.yaml", "trials"])
def test_files_of_somebody_else_are_not_written_over(name: str, search: Search, runs: Runs) -> None:
    search.output.mkdir()
    (search.output / name).write_text("mine: 1")
    with pytest.raises(UserError, match="tuned"):
        search("sgd", SMALL_GREEDY)
    assert (search.output / name).read_text() == "mine: 1"
    assert not runs.started
