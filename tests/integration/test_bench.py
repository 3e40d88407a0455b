"""A comparison: from the text of its optimizers and seeds to its cells, and what happens when cells fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import call
from filelock import FileLock
from run_records import record

from pugdft.bench import worker
from pugdft.bench.grid import BenchCell, build_matrix, parse_seeds, plan_cells
from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.bench.queue import Claim, FolderLedger
from pugdft.config import yaml
from pugdft.errors import UserError
from pugdft.records import read_record, write_record

FAST = (
    "model.name=test_vit", "model.pretrained=false", "data.image_size=32", "train.max_steps=2",
    "train.batch_size=16", "train.eval_batch_size=500",
)  # fmt: skip


def specs_of(recipe: Path, optimizers: str) -> dict[str, dict[str, Any]]:
    cells = plan_cells(build_matrix([str(recipe)], optimizers, "0"), recipe.parent)
    return {cell.optimizer: cell.recipe.optimizer for cell in cells}


# --- entries ---------------------------------------------------------------------------------------------


def test_optimizer_entries_follow_the_contract(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["optimizer"] = {
        "name": "pugd",
        "rho": 2.0,
        "base": {"name": "sgd", "lr": 0.03, "momentum": 0.7},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(small_recipe))
    optimizers = "sgd,sam,pugd,sam[rho=1e-1]+adamw,adamw"
    cells = plan_cells(build_matrix([str(path)], optimizers, "0"), tmp_path)
    specs = {cell.optimizer: cell.recipe.optimizer for cell in cells}
    assert specs["sgd"]["momentum"] == 0.7
    assert specs["pugd"]["rho"] == 2.0
    assert specs["sam"]["rho"] == 0.05, "another method's radius must not reach sam"
    assert specs["sam"]["base"] == specs["pugd"]["base"] == specs["sgd"]
    combined = specs["sam[rho=1e-1]+adamw"]
    assert (combined["rho"], combined["base"]["name"], combined["base"]["betas"]) == (
        0.1,
        "adamw",
        [0.9, 0.999],
    )
    assert specs["adamw"]["lr"] == 0.03
    assert len({cell.folder for cell in cells}) == 5


def test_brackets_hold_options_of_the_method_and_of_its_base(recipe_file: Path) -> None:
    specs = specs_of(recipe_file, "sam[rho=0.1,lr=0.002,replay_rng=false,no_decay=true],sgd[lr=0.7]")
    sam = specs["sam[rho=0.1,lr=0.002,replay_rng=false,no_decay=true]"]
    assert (sam["rho"], sam["replay_rng"]) == (0.1, False)
    assert sam["base"].items() >= {"name": "sgd", "lr": 0.002, "momentum": 0.9, "no_decay": True}.items()
    assert specs["sgd[lr=0.7]"].items() >= {"name": "sgd", "lr": 0.7, "momentum": 0.9}.items()


def test_brackets_after_a_plus_hold_options_of_that_base(recipe_file: Path) -> None:
    text = "gsam[alpha=0.3]+rmsprop[alpha=0.9,lr=1e-3]"
    spec = specs_of(recipe_file, text)[text]
    assert spec["alpha"] == 0.3
    assert (spec["base"]["name"], spec["base"]["alpha"], spec["base"]["lr"]) == ("rmsprop", 0.9, 0.001)


def test_lists_and_mappings_nest_in_brackets(recipe_file: Path) -> None:
    texts = [
        "adamw[betas=[0.8,0.99]]",
        "pugd[rho={schedule: icos, min: 0.5, max: 2}]",
        "sam[trigger={name: after, fraction: 0.5}]+adamw[betas=[0.7, 0.99], lr=1e-3]",
    ]
    adamw, pugd, sam = specs_of(recipe_file, ",".join(texts)).values()
    assert adamw["betas"] == [0.8, 0.99]
    assert pugd["rho"] == {"schedule": "icos", "min": 0.5, "max": 2}
    assert sam["trigger"] == {"name": "after", "fraction": 0.5, "before": "plain"}
    assert (sam["base"]["betas"], sam["base"]["lr"]) == ([0.7, 0.99], 0.001)


def test_blanks_mean_nothing(recipe_file: Path) -> None:
    spread = specs_of(recipe_file, " sam [ rho = 0.1 , lr = 0.5 ] + adamw [ eps = 1e-6 ] , sam[ ]")
    dense = specs_of(recipe_file, "sam[rho=0.1,lr=0.5]+adamw[eps=1e-6],sam")
    assert list(spread.values()) == list(dense.values())
    assert specs_of(recipe_file, "sam + adamw")["sam + adamw"]["base"]["name"] == "adamw"


def test_timms_optimizers_are_bases_alone_and_after_a_plus(recipe_file: Path) -> None:
    specs = specs_of(recipe_file, "lion,sam[lr=0.3]+lamb,pugd[rho=0.5]+lion[lr=1e-4,betas=[0.9,0.98]]")
    lion, lamb, pugd = specs.values()
    assert (lion["name"], lion["lr"]) == ("lion", 0.05)
    assert (lamb["base"]["name"], lamb["base"]["lr"]) == ("lamb", 0.3)
    assert pugd["base"] == {"name": "lion", "lr": 0.0001, "betas": [0.9, 0.98]}


def test_the_recipes_base_may_be_timms(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["optimizer"] = {"name": "sam", "base": {"name": "lion", "lr": 0.01}}
    path = tmp_path / "lion.yaml"
    path.write_text(yaml.dump(small_recipe))
    assert specs_of(path, "pugd[weight_decay=0.1]")["pugd[weight_decay=0.1]"]["base"] == {
        "name": "lion",
        "lr": 0.01,
        "weight_decay": 0.1,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sam[rho", "expected NAME"), ("sam,,sgd", "expected NAME"), ("sam[rho]", "expected key=value"),
        ("sam[rho=1,rho=2]", "each key once"), ("sam,sam", "stands twice"),
        ("sam+pugd", "unknown base optimizer"), ("sgd+adamw", '"sgd" is itself a base optimizer'),
        ("SGD", 'unknown optimizer "SGD"'),
        ("sam+rmsprob", 'Did you mean "rmsprop"?'), ("sam+sgd+adamw", "a method stands on one base"),
        ("sam[name=pugd]", "name: is no option: write pugd[…]"), ("sgd[name=sam]", "name: is no option"),
        ("sam[base=sgd]", "base: is no option: a method's base stands after a plus, as in sam+sgd"),
        ("sam+sgd[name=adam]", "name: is no option"), ("sam[=1]", "expected key=value"),
        ("sam[rho=[1,2]", 'a "]" is missing'), ("sam[rho=1}", 'a "}" closes what was not opened'),
        ("sam]", 'a "]" closes what was not opened'), ("sam[a=1][b=2]", "expected NAME"),
        ("sam[rho=1]x", "expected NAME"), ("sam+", "expected NAME"), ("+sgd", "expected NAME"),
        ("sam[rho='1]", "rho: line 1"), ("sam+adamw, sam + adamw", "stands twice"),
    ],
)  # fmt: skip
def test_a_bad_optimizer_list_is_explained(text: str, said: str) -> None:
    with pytest.raises(UserError, match=r"--optimizers: ") as caught:
        parse_optimizers(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sam[roh=1]", ['"roh": unknown option. Known: sam has rho', "sgd has lr", 'Did you mean "rho"?']),
        ("sgd[rho=1]", ['"rho": unknown option. Known: sgd has lr']),
        ("sam+adamw[rho=1]", ['"rho": unknown option', "adamw has lr"]),
        ("sam[lr=1]+adamw[lr=2]", ['"lr": stands twice: before and after +adamw']),
        ("sam+lion[rho=1]", ["optimizer.base.rho: unknown option"]),
        ("sam[rho=-1],sgd[lr=-1]", ['"sam[rho=-1]": optimizer.rho: ', '"sgd[lr=-1]": optimizer.lr: ']),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_explained_for_every_entry_at_once(
    text: str, said: list[str], recipe_file: Path
) -> None:
    with pytest.raises(UserError, match=r"--optimizers: ") as caught:
        specs_of(recipe_file, text)
    for part in said:
        assert part in str(caught.value)


def test_two_entries_that_come_to_the_same_run_are_refused(recipe_file: Path) -> None:
    with pytest.raises(UserError, match=r'"sam\[rho=0.05\]": is the same run as "sam"'):
        specs_of(recipe_file, "sam,sam[rho=0.05]")


# --- seeds -----------------------------------------------------------------------------------------------


def test_seeds_are_numbers_and_ranges() -> None:
    assert parse_seeds("0-2") == [0, 1, 2]
    assert parse_seeds("5, 1-2,1") == [1, 2, 5]
    for bad in ("", "a", "1-", "-1", "0-99999"):
        with pytest.raises(UserError, match="--seeds"):
            parse_seeds(bad)


# --- cells -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_mistake_of_the_user_stops_at_the_first_cell_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--optimizers", "sgd,sam", "--seeds", "0-1", "--output", "out")
    done = call(("bench", *FAST, "train.batch_size=999999", *options))
    assert (done.code, done.out) == (2, "")
    assert done.err.count("seed 0: running") == 1
    assert done.err.count("pugdft: ") == 1
    assert "batch_size" in done.err
    assert "incomplete" not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("output", ["afile", ""])
def test_an_output_that_is_no_folder_is_said_before_the_first_cell(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "afile").write_text("mine")
    monkeypatch.chdir(tmp_path)
    done = call(("bench", *FAST, "--optimizers", "sgd", "--output", output))
    assert done.code == 2
    assert "--output" in done.err
    assert "running" not in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["afile"]


@pytest.mark.parametrize("output", ["afile", "afile/below", "/proc/x", "x" * 300, "taken"])
def test_a_folder_that_cannot_hold_runs_is_the_users_error(output: str, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("mine")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "recipes").write_text("mine")
    with pytest.raises(UserError, match=r"--output .*: cannot be used as the folder of runs: "):
        worker.prepare_output(tmp_path / output)


def cells_that_exit(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, codes: list[int]
) -> tuple[list[BenchCell], list[BenchCell]]:
    """Three cells, and the list of those started; each ends with the next of ``codes``, without a record."""
    cells = plan_cells(build_matrix([str(recipe)], "sgd,sam,pugd", "0"), recipe.parent / "runs")
    started: list[BenchCell] = []

    def end(cell: BenchCell, *others: Any) -> int:
        started.append(cell)
        return codes[len(started) - 1]

    monkeypatch.setattr(worker, "_run", end)
    worker.prepare_output(recipe.parent / "runs")
    return cells, started


@pytest.mark.parametrize("code", [2, 130, 143])
def test_a_users_mistake_or_an_interruption_starts_nothing_more(
    code: int, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, started = cells_that_exit(recipe_file, monkeypatch, [1, code, 0])
    assert worker.run_cells(cells, worker.Watcher()) == code
    assert started == cells[:2]


@pytest.mark.parametrize("signal", [2, 15])
def test_a_cell_that_a_signal_ended_counts_as_interrupted(
    signal: int, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = plan_cells(build_matrix([str(recipe_file)], "sgd,sam", "0"), recipe_file.parent / "runs")
    killed = [sys.executable, "-c", f"import os; os.kill(os.getpid(), {signal})"]
    if signal == 2:
        killed[-1] = "import signal; signal.signal(2, signal.SIG_DFL); " + killed[-1]
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: start(killed, **options))
    worker.prepare_output(recipe_file.parent / "runs")
    assert worker.run_cells(cells, worker.Watcher()) == 128 + signal


@pytest.mark.parametrize("ahead", [600, -600, 0])
def test_a_failed_cell_is_tried_again_whatever_the_date_of_its_record(
    ahead: int, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, started = cells_that_exit(recipe_file, monkeypatch, [1, 1, 1])
    for cell in cells:
        failed = record(status="failed", id=cell.folder.name)
        path = write_record(failed, cell.folder)
        os.utime(path, (time.time() + ahead,) * 2)
    assert worker.run_cells(cells, worker.Watcher()) == 0
    assert started == cells


def test_a_cell_that_another_command_has_tried_since_is_not_tried_again(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells, started = cells_that_exit(recipe_file, monkeypatch, [1, 1, 1])

    class Meanwhile(worker.Watcher):
        def on_state(self, cell: BenchCell, state: str) -> None:
            if cell is cells[0] and state == "running":
                path = write_record(record(status="failed", id=cells[1].folder.name), cells[1].folder)
                os.utime(path, (time.time() - 600,) * 2)  # by a clock that is late
                FolderLedger(cells[1].folder.parent).settle(cells[1].folder.name, "failed", Claim(""))

    assert worker.run_cells(cells, Meanwhile()) == 0
    assert started == [cells[0], cells[2]]


def test_a_cell_whose_folder_is_busy_is_elsewhere_and_the_bench_goes_on(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pugdft.cli import main as cli

    _, started = cells_that_exit(recipe_file, monkeypatch, [5, 1, 1, 5])
    output = str(recipe_file.parent / "runs")
    arguments = ["bench", str(recipe_file), "--optimizers", "sgd,sam,pugd", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["pugdft", *arguments, "--output", output])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    assert [cell.optimizer for cell in started] == ["sgd", "sam", "pugd", "sgd"], "once more at the end"
    said = capsys.readouterr().err
    assert "sgd seed 0: another command is running it" in said
    assert "incomplete: sgd seed 0" in said


def test_a_run_in_a_folder_that_is_busy_ends_with_a_code_of_its_own(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pugdft.cli import main as cli

    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["pugdft", "finetune", str(recipe_file), "--output", str(folder)])
    with FileLock(folder / ".lock"), pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 5
    assert "another process is running here" in capsys.readouterr().err


def test_a_bench_without_any_record_lists_what_is_incomplete_and_exits_4(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pugdft.cli import main as cli

    cells_that_exit(recipe_file, monkeypatch, [1, -9, 1])
    output = str(recipe_file.parent / "runs")
    arguments = ["bench", str(recipe_file), "--optimizers", "sgd,sam,pugd", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["pugdft", *arguments, "--output", output])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 4
    said = capsys.readouterr().err
    assert re.findall(r"incomplete: (\w+) seed 0: missing", said) == ["sgd", "sam", "pugd"]


def test_finetune_bench_and_leaderboard_from_recipe_to_ranks(
    recipe_file: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(("finetune", str(recipe_file)))
    assert done.code == 0, done.err
    record_path = Path(done.out.strip().splitlines()[-1])
    assert record_path.parts[0] == "runs"
    record = read_record(tmp_path / record_path)
    assert record_path.parts[1] == record.id
    assert "test top-1 (last epoch)" in done.err

    command = ("bench", str(recipe_file), "--optimizers", "sgd,sam", "--seeds", "0-1", "train.epochs=1")
    bench = call(command)
    assert bench.code == 0, bench.err
    assert len(re.findall(r"\] (sgd|sam) seed [01]: completed", bench.err)) == 4
    again = call(command)
    assert "running" not in again.err
    assert again.out == bench.out

    board = call(("leaderboard", "runs", "--format", "json"))
    groups = json.loads(board.out)["groups"]
    assert sorted(len(group["entries"]) for group in groups) == [1, 2], "other epochs are another protocol"
    for group in groups:
        assert (group["dataset"], group["model"]) == ("insects", "test_vit[depth=2]")
        for entry in group["entries"]:
            records = [read_record(path) for path in tmp_path.glob("runs/*/record.yaml")]
            top1 = [r.metrics.test.top1 for r in records if r.metrics and r.id in entry["records"]]
            assert len(top1) == entry["num_seeds"]
            assert entry["top1_mean"] == pytest.approx(sum(top1) / len(top1))


@pytest.mark.slow
def test_a_bench_goes_on_after_a_failed_cell_and_says_what_is_incomplete(
    recipe_file: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ("--optimizers", "sgd[lr=1e30],sgd", "--seeds", "0", "train.epochs=1")
    done = call(("bench", str(recipe_file), *options))
    assert done.code == 4
    assert "incomplete: sgd[lr=1e30] seed 0: diverged" in done.err
    assert "sgd seed 0: completed" in done.err
