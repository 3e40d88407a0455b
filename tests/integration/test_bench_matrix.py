"""A comparison's matrix: bench files, budgets, what cells share, and commands that share a folder."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import call
from standing_still import Command, go_on, is_caught, is_pending, until

from pugdft.bench import process, worker
from pugdft.bench.grid import BenchCell, Budget, build_matrix, passes_per_update, plan_cells
from pugdft.bench.queue import Claim, FolderLedger
from pugdft.config import yaml
from pugdft.config.load import bundled_recipes, bundled_tables, load_recipe
from pugdft.config.schema import Recipe
from pugdft.errors import UserError
from pugdft.leaderboard.published import reported_folder, reported_rows
from pugdft.optim import resolve_spec
from pugdft.records import RunRecord, read_record, write_record
from pugdft.training.lr_schedule import lr_factor
from pugdft.training.run import finetune

BASE = {"name": "sgd", "lr": 0.05}


def cells_of(
    recipe: Path,
    optimizers: str,
    budget: Budget | None = None,
    seeds: str = "0",
    overrides: Sequence[str] = (),
) -> list[BenchCell]:
    matrix = build_matrix([str(recipe), *overrides], optimizers, seeds, budget)
    return plan_cells(matrix, recipe.parent / "runs")


# --- the matrix ------------------------------------------------------------------------------------------


def bench_file(folder: Path, **content: Any) -> Path:
    path = folder / "bench.yaml"
    path.write_text(yaml.dump({"optimizers": ["sgd", "sam[rho=0.1]"], **content}))
    return path


def test_a_bench_file_says_what_the_command_line_says(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["train.epochs=1", "data.flip=false"]
    mapping = {"name": "pugd", "rho": 2, "base": {"name": "sgd", "lr": 0.3}}
    path = bench_file(
        tmp_path,
        recipes=[recipe_file.name, "quickstart"],
        optimizers=["sgd,sam[rho=0.1]", mapping],
        seeds="0-1",
        budget="passes",
        overrides=overrides,
    )
    matrix = build_matrix([str(path)])
    assert (matrix.recipes, matrix.seeds, matrix.budget) == (
        [str(recipe_file), "quickstart"],
        [0, 1],
        "passes",
    )
    cells = plan_cells(matrix, tmp_path / "runs")
    assert len(cells) == 2 * 3 * 2
    pugd = [cell.recipe for cell in cells if cell.recipe.optimizer["name"] == "pugd"]
    assert all(recipe.optimizer["rho"] == 2 and recipe.optimizer["base"]["lr"] == 0.3 for recipe in pugd)
    assert not any(cell.recipe.data.flip for cell in cells)


def test_the_command_line_goes_over_the_bench_file(recipe_file: Path, tmp_path: Path) -> None:
    path = bench_file(tmp_path, recipes=[recipe_file.name], seeds=[3, 5], overrides=["train.epochs=1"])
    assert build_matrix([str(path)]).seeds == [3, 5]
    matrix = build_matrix([str(path), "train.epochs=2"], "adamw", "7", "epochs")
    assert [entry.text for entry in matrix.entries] == ["adamw"]
    assert (matrix.seeds, matrix.budget) == ([7], "epochs")
    assert matrix.overrides == ["train.epochs=1", "train.epochs=2"], "the later one counts"


def test_several_recipes_and_overrides_stand_in_any_order() -> None:
    matrix = build_matrix(["train.epochs=1", "quickstart", "vit_cifar100", "data.flip=false"], "sgd,sam")
    assert matrix.recipes == ["quickstart", "vit_cifar100"]
    assert matrix.overrides == ["train.epochs=1", "data.flip=false"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"optimisers": ["sgd"]}, 'unknown key. Known: recipes, optimizers, seeds, budget, '),
        ({"optimizers": []}, "optimizers: "),
        ({"optimizers": ["sma"]}, 'optimizers.0: "sma": unknown optimizer'),
        ({"optimizers": [{"rho": 1}]}, "optimizers.0: name: is required"),
        ({"optimizers": [3]}, "optimizers.0: must be an entry such as sam[rho=0.1]"),
        ({"seeds": "5-1"}, "seeds: \"5-1\" runs backwards"),
        ({"seeds": {"a": 1}}, "seeds: must be a range such as 0-4"),
        ({"budget": "hours"}, "budget: must be 'epochs' or 'passes', not \"hours\""),
        ({"recipes": ["nowhere"]}, "nowhere: no such file or bundled recipe"),
        ({"overrides": "a=1"}, 'overrides: must be a list, not "a=1"'),
    ],
)  # fmt: skip
def test_a_bad_bench_file_is_explained(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = bench_file(tmp_path, **content)
    with pytest.raises(UserError) as caught:
        build_matrix([str(path)])
    assert said in str(caught.value)
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", bundled_tables())
def test_a_table_of_a_paper_is_a_bench_file_that_works_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = build_matrix([name])
    assert matrix == build_matrix([f"tables/{name}.yaml"])
    assert set(matrix.recipes) <= set(bundled_recipes())
    networks = {(load_recipe(each).data.name, load_recipe(each).model.name) for each in matrix.recipes}
    source, _, number = name.rpartition("_")
    if name in ("pugd_iv", "pugd_v", "sam_gns_2", "sam_gns_3"):  # whole tables of the paper
        rows = [row for row, _ in reported_rows(reported_folder()) if row.source == source]
        rows = [row for row in rows if row.table == (number if number.isdigit() else number.upper())]
        assert networks == {(row.dataset, row.model) for row in rows}
        assert {entry.name for entry in matrix.entries} == {row.optimizer for row in rows}
        assert matrix.budget == "passes"
    (tmp_path / f"{name}.yaml").write_text("recipes: [quickstart]\noptimizers: [sgd]\n")
    assert build_matrix([f"{name}.yaml"]).recipes == ["quickstart"]  # a file here goes before


@pytest.mark.slow
def test_every_cell_of_the_tables_can_be_made(tmp_path: Path) -> None:
    counts = {name: len(plan_cells(build_matrix([name]), tmp_path)) for name in bundled_tables()}
    assert counts == {
        "gnp_1": 120, "gnp_2_3": 60, "gnp_4": 27, "pugd_i_iii": 54, "pugd_iv": 96, "pugd_v": 96,
        "sam_gns_2": 84, "sam_gns_3": 72,
    }  # fmt: skip


def test_a_bench_without_optimizers_says_how_to_give_them() -> None:
    with pytest.raises(UserError, match="--optimizers: is required, such as"):
        build_matrix(["quickstart"])
    with pytest.raises(UserError, match=r'gnp_23: no such file .*Did you mean "gnp_2_3"\?'):
        build_matrix(["gnp_23"])


def test_tuning_reaches_the_cells_recipe_and_changes_nothing_else(recipe_file: Path, tmp_path: Path) -> None:
    tuning = {"trials": 6, "gradient_passes": 720.0, "search": "greedy"}
    path = bench_file(
        tmp_path, recipes=[recipe_file.name], optimizers=[{**BASE, "momentum": 0.9, "tuning": tuning}, "sam"]
    )
    tuned, sam = plan_cells(build_matrix([str(path)], seeds="0"), tmp_path)
    plain = cells_of(recipe_file, "sgd")[0]
    assert tuned.recipe.as_dict()["tuning"] == tuning
    assert sam.recipe.tuning is None
    assert "tuning" not in plain.recipe.as_dict()
    assert tuned.recipe.model_copy(update={"tuning": None}) == plain.recipe


# --- equal budgets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "passes"),
    [
        (BASE, 1), ({"name": "ugd", "base": BASE}, 1), ({"name": "sam", "base": BASE}, 2),
        ({"name": "looksam", "k": 5, "base": BASE}, 1.2), ({"name": "amp", "inner_iter": 3, "base": BASE}, 4),
        ({"name": "msam", "base": {**BASE, "momentum": 0.9}}, 1),
        ({"name": "sam", "trigger": {"name": "after", "fraction": 0.75}, "base": BASE}, 1.25),
        ({"name": "sam", "trigger": {"name": "probability", "p": 0.5}, "base": BASE}, 1.5),
        ({"name": "pugd_t", "base": BASE}, 2),
    ],
)  # fmt: skip
def test_passes_of_an_update_are_known_before_the_run_or_bounded(spec: dict[str, Any], passes: float) -> None:
    assert passes_per_update(resolve_spec(spec)) == pytest.approx(passes)


def test_equal_passes_are_what_the_recipes_own_optimizer_takes(recipe_file: Path) -> None:
    sgd, sam, pugd = cells_of(recipe_file, "sgd,sam,pugd", "passes")  # the recipe is SAM's, of 2 epochs
    for cell in (sgd, sam, pugd):
        assert (cell.recipe.train.epochs, cell.recipe.train.budget) == (4, "passes")
    assert [cell.recipe.train.epochs for cell in cells_of(recipe_file, "sgd,sam", "epochs")] == [2, 2]
    assert [cell.recipe.train.epochs for cell in cells_of(recipe_file, "sgd,sam")] == [2, 2]


def test_counting_passes_leaves_the_recipes_own_optimizer_its_schedule(recipe_file: Path) -> None:
    overrides = ["train.epochs=10", "schedule.warmup_epochs=2"]
    budgets: tuple[Budget | None, ...] = (None, "passes")  # the recipe's own takes two passes an update
    own, by_passes = (
        cells_of(recipe_file, "sam", budget, overrides=overrides)[0].recipe for budget in budgets
    )
    steps = 7  # of an epoch

    def factor(recipe: Recipe, spent: int) -> float:
        total, warmup = recipe.train.epochs * steps, round(recipe.schedule.warmup_epochs * steps)
        return lr_factor("cosine", spent, total, warmup)

    for update in range(own.train.epochs * steps):
        expected = factor(own, update)
        # Within the warm-up an update is as long as two passes: half an update's rise of difference.
        assert factor(by_passes, 2 * update) == pytest.approx(expected, abs=0.5 / (2 * steps) + 1e-12)
    back = cells_of(recipe_file, "sam", "epochs", overrides=[*overrides, "train.budget=passes"])
    assert (back[0].recipe.train.epochs, back[0].recipe.schedule.warmup_epochs) == (5, 1)


@pytest.mark.slow
def test_equal_passes_give_the_one_pass_method_twice_the_epochs_and_a_whole_schedule(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = {}
    for cell in cells_of(recipe_file, "sgd,sam", "passes"):
        records[cell.optimizer], _ = finetune(cell.recipe, cell.folder)
    monkeypatch.chdir(recipe_file.parent)
    done = call(("bench", recipe_file.name, "--optimizers", "sgd,sam", "--seeds", "0", "--budget", "passes"))
    assert done.code == 0, done.err
    assert "running" not in done.err, "these are the command's cells"
    sgd, sam = records["sgd"].cost, records["sam"].cost
    assert sgd.gradient_passes == sam.gradient_passes == sgd.steps == 2 * sam.steps
    assert (sgd.epochs, sam.epochs) == (4, 2)
    last = {name: [row["lr"] for row in record.history] for name, record in records.items()}
    assert last["sgd"][-1] < 0.03 * 0.05, "the schedule of either falls to its end"
    assert last["sam"][-1] < 0.1 * 0.05
    assert "gradient passes" in done.out


# --- equal conditions ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_seed_means_one_split_order_augmentation_and_head_for_every_optimizer(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["train"] |= {"epochs": 1, "max_steps": 1}
    small_recipe["data"]["validation"] = 0.2
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(small_recipe))
    digests: dict[int, set[tuple[str | None, ...]]] = {}
    for cell in cells_of(path, "sgd,pugd", seeds="0-1"):
        record, _ = finetune(cell.recipe, cell.folder)
        data, model = record.data, record.model
        assert data is not None
        assert model is not None
        found = (data.split_sha256, data.order_sha256, data.augmentation_sha256, model.head_sha256)
        assert None not in found
        digests.setdefault(record.seed, set()).add(found)
    assert [len(each) for each in digests.values()] == [1, 1]
    (first,), (second,) = digests.values()
    assert all(one != other for one, other in zip(first, second, strict=True)), "another seed, other draws"


# --- commands that share a folder ------------------------------------------------------------------------


def listening(command: list[str]) -> subprocess.Popen[str]:
    """A process that tells something, and lives as long as this one lets it read."""
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_claim_is_one_processs_at_a_time_and_ends_with_it(tmp_path: Path) -> None:
    ledger, cell = FolderLedger(tmp_path), "cell"
    ledger.prepare()
    claimed = ledger.take
    with claimed(cell) as first:
        assert first is not None
        with claimed(cell) as second:
            assert second is None
        with claimed("another") as other:
            assert other is not None
    holder = "import sys; from pathlib import Path; from pugdft.bench.queue import FolderLedger\n"
    holder += f"with FolderLedger(Path({str(tmp_path)!r})).take('cell'):\n"
    holder += "    print('mine', flush=True); sys.stdin.read()"
    process = listening([sys.executable, "-c", holder])
    assert process.stdout is not None
    process.stdout.readline()
    with claimed(cell) as taken:
        assert taken is None
    process.kill()
    process.wait()
    with claimed(cell) as again:
        assert again is not None, "a killed holder leaves nothing stale"


def test_a_child_holds_the_claim_of_its_killed_parent(tmp_path: Path) -> None:
    ledger, cell = FolderLedger(tmp_path), "cell"
    ledger.prepare()
    claimed = ledger.take
    parent = "import subprocess, sys; from pathlib import Path; from pugdft.bench.queue import FolderLedger\n"
    parent += f"with FolderLedger(Path({str(tmp_path)!r})).take('cell') as claim:\n"
    parent += "    wait = [sys.executable, '-c', 'import sys; sys.stdin.read()']\n"
    parent += "    child = subprocess.Popen(wait, pass_fds=(claim.descriptor,))\n"
    parent += "    print(child.pid, flush=True); child.wait()"
    process = listening([sys.executable, "-c", parent])
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    with claimed(cell) as taken:
        assert taken is None
    os.kill(child, signal.SIGKILL)

    def is_free() -> bool:
        with claimed(cell) as free:
            return free is not None

    until(is_free)


def test_two_commands_on_one_folder_run_each_cell_once(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cells_of(recipe_file, "sgd,sam,pugd,asam", seeds="0-2")
    worker.prepare_output(recipe_file.parent / "runs")
    monkeypatch.setattr(worker, "_LOOK_AGAIN_SECONDS", 0.01)
    started: list[Path] = []
    record = RunRecord.model_validate({"id": "x", "status": "completed", "recipe": {}, "seed": 0})

    def run(cell: BenchCell, *others: Any) -> int:
        started.append(cell.folder)
        time.sleep(0.02)
        write_record(record, cell.folder)
        return 0

    monkeypatch.setattr(worker, "_run", run)
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(worker.run_cells(cells, worker.Watcher())))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]
    assert sorted(started) == sorted(cell.folder for cell in cells)


@pytest.mark.parametrize(("status", "retry", "runs"), [
    ("completed", False, False), ("completed", True, False), ("diverged", False, False),
    ("diverged", True, True), ("failed", False, True), ("oom", False, True), ("interrupted", False, True),
])  # fmt: skip
def test_what_runs_again(
    status: str, retry: bool, runs: bool, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cells_of(recipe_file, "sgd")
    worker.prepare_output(recipe_file.parent / "runs")
    write_record(
        RunRecord.model_validate({"id": "x", "status": status, "recipe": {}, "seed": 0}), cells[0].folder
    )
    started: list[BenchCell] = []

    def run(cell: BenchCell, *others: Any) -> int:
        started.append(cell)
        return 0

    monkeypatch.setattr(worker, "_run", run)
    assert worker.run_cells(cells, worker.Watcher(), worker.Options(retry=retry)) == 0
    assert bool(started) is runs


@pytest.mark.parametrize("status", ["failed", "oom"])
def test_a_cell_that_failed_in_another_command_meanwhile_is_not_tried_by_this_one_too(
    status: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cells_of(recipe_file, "sgd,sam")
    worker.prepare_output(recipe_file.parent / "runs")
    record = RunRecord.model_validate({"id": "x", "status": status, "recipe": {}, "seed": 0})
    started: list[BenchCell] = []

    def run(cell: BenchCell, *others: Any) -> int:
        started.append(cell)
        time.sleep(0.05)
        # The other command, while this one is at its first cell.
        write_record(record, cells[1].folder)
        FolderLedger(cells[1].folder.parent).settle(cells[1].folder.name, status, Claim(""))
        return 0

    monkeypatch.setattr(worker, "_run", run)
    assert worker.run_cells(cells, worker.Watcher()) == 0
    assert started == cells[:1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_bench_although_its_cell_came_to_its_end(
    number: int, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A supervisor signals the bench alone, and the cell, told at its very end, completes."""
    cells = cells_of(recipe_file, "sgd,sam,pugd")
    worker.prepare_output(recipe_file.parent / "runs")
    hands_on = recipe_file.parent / "hands on"
    stands_in = "import os, signal, time\n"
    stands_in += f"signal.signal({int(number)}, lambda *rest: os._exit(0))\n"
    # Before the bench listens, the signal would end this test.
    stands_in += f"while not os.path.exists({str(hands_on)!r}): time.sleep(0.01)\n"
    stands_in += f"os.kill(os.getppid(), {int(number)})\ntime.sleep(300)"
    forwarded = process.forwarded_signals
    started: list[Any] = []

    @contextmanager
    def noted(process: subprocess.Popen[str]) -> Iterator[list[int]]:
        with forwarded(process) as received:
            hands_on.touch()
            yield received

    monkeypatch.setattr(process, "forwarded_signals", noted)
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        started.append(command)
        return start([sys.executable, "-c", stands_in], **options)

    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(sys, "stdin", None)
    assert worker.run_cells(cells, worker.Watcher()) == 128 + number
    assert len(started) == 1


def test_a_file_system_without_locks_is_the_users_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)
    (tmp_path / ".claims").mkdir()
    with pytest.raises(UserError, match="this file system has no locks"), FolderLedger(tmp_path).take("cell"):
        pass


@pytest.mark.slow
def test_sigterm_to_a_bench_saves_its_cell_and_the_same_command_goes_on(
    recipe_file: Path, tmp_path: Path, start: Callable[..., Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("bench", str(recipe_file), "--seeds", "0", "train.epochs=5", "--optimizers")
    bench = start(*command, "sgd,sam", stops=0, cwd=tmp_path)
    cell = bench.stopped()
    until(lambda: is_caught(bench.process.pid, signal.SIGTERM))
    bench.send(signal.SIGTERM)
    until(lambda: is_pending(cell.pid, signal.SIGTERM))
    go_on(cell)
    code, _, said = bench.end()
    assert code == 143, said
    assert "incomplete: sgd seed 0: interrupted" in said
    assert "incomplete: sam seed 0: missing" in said
    (folder,) = (path.parent for path in tmp_path.glob("runs/*/record.yaml"))
    assert (folder / "checkpoint" / "state.json").is_file()
    monkeypatch.chdir(tmp_path)
    again = call((*command, "sgd"))
    assert again.code == 0, again.err
    assert len(read_record(folder / "record.yaml").restarts) == 1


# --- the plan --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_tells_cells_cost_disk_and_what_seeds_can_tell_and_runs_nothing(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(("bench", str(recipe_file), "--optimizers", "sgd,sam", "--seeds", "0-3", "--plan"))
    assert done.code == 0, done.err
    rows = {
        line.split()[0]: line.split() for line in done.out.splitlines() if line[:4].strip() in ("sgd", "sam")
    }
    assert rows["sgd"][1:3] == rows["sam"][1:3] == ["4", "0"]
    assert rows["sgd"][3] == rows["sam"][3]
    assert int(rows["sam"][4]) == 2 * int(rows["sgd"][4]) == 2 * int(rows["sgd"][3]) > 0
    assert "8 cells to run" in done.out
    assert "4 seeds find a true difference" in done.out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_a_plan_that_cannot_run_says_why(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(("bench", str(recipe_file), "--optimizers", "sgd", "--plan", "train.batch_size=9999"))
    assert done.code == 2
    assert "train.batch_size: 9999 is more than" in done.err
    assert "Traceback" not in done.err
