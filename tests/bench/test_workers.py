"""Workers on a planned bench: join, later plans, versions, stop, status."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import call
from rich.console import Console
from run_records import record

from pugdft.bench import worker
from pugdft.bench.cell import BenchCell
from pugdft.bench.executors import Wanted, parse_executor
from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.bench.plan import write_plan
from pugdft.bench.queue import LOST, MOST_ATTEMPTS, STATUSES, Agreement, FolderLedger
from pugdft.bench.status import standing
from pugdft.bench.worker import ledger_of, request_stop, run_cells
from pugdft.cli import bench_workers
from pugdft.cli.bench_view import LiveView
from pugdft.errors import UserError
from pugdft.records import write_record
from pugdft.training.attempts import read_attempts


def planned(
    recipe: Path, optimizers: str = "sgd,sam", seeds: str = "0-1", *overrides: str
) -> list[BenchCell]:
    """The cells of a bench, whose plan is written."""
    cells = plan_cells(build_matrix([str(recipe), *overrides], optimizers, seeds), recipe.parent / "runs")
    write_plan(cells[0].folder.parent, cells)
    return cells


class FakeRuns:
    """In place of the processes of cells: completes each, or ends as it is told to."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.codes: list[int] = []  # of the first ones, which leave no record
        self.meanwhile: Callable[[], object] = lambda: None

    def run(self, cell: BenchCell, *others: Any) -> int:
        self.started.append(cell.folder.name)
        self.meanwhile()
        if self.codes:
            return self.codes.pop(0)
        write_record(record(status="completed", id=cell.folder.name), cell.folder)
        return 0


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRuns:
    found = FakeRuns()
    monkeypatch.setattr(worker, "_run", found.run)
    monkeypatch.setattr(worker, "_LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("pugdft.bench.queue._LOOK_SECONDS", 0.0)
    return found


def with_versions(runs: Path, **versions: str) -> None:
    """Let all plans say that they are of other versions."""
    for path in (runs / ".plan").iterdir():
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"versions": content["versions"] | versions}))


# --- plans -----------------------------------------------------------------------------------------------


def test_a_worker_runs_the_cells_of_all_plans_also_of_one_that_comes_while_it_works(
    recipe_file: Path, fake: FakeRuns
) -> None:
    first = planned(recipe_file)
    later: list[BenchCell] = []

    def plan_more() -> None:
        if len(fake.started) == 2:
            later.extend(planned(recipe_file, "sam,pugd", "1-2"))

    fake.meanwhile = plan_more
    assert bench_workers.join(recipe_file.parent / "runs", 1, is_warm=True) == 0
    assert len(fake.started) == len(set(fake.started)) == 4 + 3
    assert set(fake.started) == {cell.folder.name for cell in (*first, *later)}


def test_a_cell_of_a_plan_is_the_cell_that_was_planned(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = {cell.folder.name: cell for cell in planned(recipe_file, "sgd,sam[rho=0.2]", "3,5")}
    found: list[BenchCell] = []
    monkeypatch.setattr(worker, "_run", lambda cell, *others: found.append(cell) or 1)
    assert bench_workers.join(recipe_file.parent / "runs", 1, is_warm=False) == 4
    assert len(found) == 4
    for cell in found:
        one, other = cell, cells[cell.folder.name]
        assert one.recipe == other.recipe
        assert one.recipe.digest() == other.recipe.digest()
        assert (one.optimizer, one.seed, one.source) == (other.optimizer, other.seed, other.source)
        assert (one.passes_per_update, one.processes) == (other.passes_per_update, other.processes)


def test_a_worker_of_another_version_ends_with_one_line_and_runs_nothing(
    recipe_file: Path, fake: FakeRuns
) -> None:
    planned(recipe_file)
    runs = recipe_file.parent / "runs"
    with_versions(runs, torch="2.0.1", timm="0.1")
    done = call(("bench", "--join", str(runs)))
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert "torch 2.0.1 there, " in done.err
    assert "timm 0.1 there, " in done.err
    assert "accelerate" not in done.err
    assert not fake.started


def test_a_plan_of_another_version_hinders_nobody_once_it_is_done_or_beside_one_that_fits(
    recipe_file: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = planned(recipe_file)
    runs = recipe_file.parent / "runs"
    with_versions(runs, torch="2.0.1")
    planned(recipe_file, "pugd")
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert len(fake.started) == 2
    assert "planned with other versions" in capsys.readouterr().err
    for cell in cells:
        cell.folder.mkdir()
        (runs / ".claims" / "settled" / f"{cell.folder.name}.completed").touch()
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert not capsys.readouterr().err


def test_a_bench_that_was_begun_with_other_versions_is_not_gone_on_with(
    recipe_file: Path, fake: FakeRuns
) -> None:
    cells = planned(recipe_file)
    runs = recipe_file.parent / "runs"
    with_versions(runs, torch="2.0.1")
    planned(recipe_file)  # nothing has run: it is planned anew
    assert "2.0.1" not in "".join(path.read_text() for path in (runs / ".plan").iterdir())
    with_versions(runs, torch="2.0.1")
    assert run_cells(cells[:1], worker.Watcher()) == 0
    with pytest.raises(UserError, match=r"torch 2\.0\.1 there.*or remove .*json to go on"):
        planned(recipe_file)
    assert run_cells(cells, worker.Watcher()) == 0
    planned(recipe_file)  # nothing is left to run


def test_a_folder_without_a_plan_says_how_to_make_one(tmp_path: Path) -> None:
    for option in ("--join", "--status", "--stop"):
        done = call(("bench", option, str(tmp_path)))
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert "has no plan of a bench" in done.err
    assert not list(tmp_path.iterdir())


def test_locks_of_another_machines_kernel_are_refused_at_the_door(
    recipe_file: Path, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(recipe_file)
    runs = recipe_file.parent / "runs"
    Agreement.of(runs, "flock")
    monkeypatch.setattr(worker, "is_shared", lambda folder: True)  # as on a machine that mounts it
    done = call(("bench", "--join", str(runs)))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "agreement.json" in done.err
    assert not fake.started


# --- what is tried again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("retry", [False, True])
def test_a_worker_runs_what_diverged_only_if_it_is_told_to_retry(
    retry: bool, recipe_file: Path, fake: FakeRuns
) -> None:
    cells = planned(recipe_file, "sgd,sam", "0")
    write_record(record(status="diverged", id=cells[0].folder.name), cells[0].folder)
    wanted = parse_executor("local[workers=1]")
    *_, first, second, runs = wanted.command(recipe_file.parent / "runs", retry)[:6]
    assert [first, second, runs] == ["bench", "--join", str(recipe_file.parent / "runs")]
    done = call(tuple(wanted.command(recipe_file.parent / "runs", retry)[3:]))
    assert done.code == (0 if retry else 4), done.err
    assert fake.started == [cell.folder.name for cell in cells[not retry :]]


@pytest.mark.parametrize("status", ["completed", "diverged"])
def test_a_cell_whose_folder_was_deleted_is_not_done_and_a_worker_runs_it_again(
    status: str, recipe_file: Path, fake: FakeRuns
) -> None:
    cells = planned(recipe_file, "sgd,sam", "0")
    runs, name = cells[0].folder.parent, cells[0].folder.name
    write_record(record(status=status, id=name), cells[0].folder)
    assert bench_workers.join(runs, 1, is_warm=True) == (0 if status == "completed" else 4)
    assert fake.started == [cells[1].folder.name]
    shutil.rmtree(cells[0].folder)
    counts = {"completed": 1, "running": 0, "waiting": 1}
    assert standing(runs).counts == counts
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert fake.started == [cells[1].folder.name, name]
    assert standing(runs).is_complete


# --- ends ------------------------------------------------------------------------------------------------


def test_a_cell_that_is_killed_under_a_lease_is_tried_again_and_given_up_at_last(
    recipe_file: Path, fake: FakeRuns
) -> None:
    cells = planned(recipe_file, "sgd,sam", "0")
    runs = recipe_file.parent / "runs"
    Agreement.of(runs, "lease", 60.0)
    fake.codes = [137] * 2
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert len(fake.started) == 4
    assert set(ledger_of(runs).settled().values()) == {"completed"}

    more = planned(recipe_file, "pugd", "0")[0].folder.name
    fake.started, fake.codes = [], [137] * 9
    assert bench_workers.join(runs, 1, is_warm=True) == 4
    assert fake.started == [more] * MOST_ATTEMPTS
    assert ledger_of(runs).status(more) == LOST
    (unfinished,) = standing(runs).unfinished
    assert (unfinished.cell.name, unfinished.status, unfinished.attempts) == (more, LOST, MOST_ATTEMPTS)
    fake.codes = []
    assert run_cells(cells + planned(recipe_file, "pugd", "0"), worker.Watcher()) == 0
    assert ledger_of(runs).status(more) == "completed", "the next command tries it again"


def test_a_cell_that_was_taken_over_is_another_workers_and_nothing_is_noted(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cell,) = planned(recipe_file, "sgd", "0")
    runs, name = recipe_file.parent / "runs", cell.folder.name
    Agreement.of(runs, "lease", 3.0)
    other = FolderLedger(runs, "lease", 3.0)
    states: list[str] = []

    class Seen(worker.Watcher):
        def on_state(self, cell: BenchCell, state: str) -> None:
            states.append(state)

    def run(cell: BenchCell, watcher: object, options: object, claim: Any, *others: object) -> int:
        """The lease is lost meanwhile, and the new owner finishes."""
        lease = runs / ".claims" / f"{name}.lease"
        lease.unlink()
        with other.take(name) as theirs:
            assert theirs is not None
            other.begin(name, theirs)
            while not claim.is_lost():
                pass
            tokens = [each["token"] for each in read_attempts(runs, name)]
            assert tokens == [claim.token, theirs.token]
            write_record(record(status="completed", id=name), cell.folder)
            other.settle(name, "completed", theirs)
        return 5

    monkeypatch.setattr(worker, "_run", run)
    assert run_cells([cell], Seen()) == 0
    assert states == ["running", "elsewhere", "completed"]


def test_workers_stop_when_they_are_asked_to_and_begin_again_with_the_next_command(
    recipe_file: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_ASK_SECONDS", 0.0)
    cells = planned(recipe_file)
    runs = recipe_file.parent / "runs"
    ledger_of(runs)
    fake.meanwhile = lambda: request_stop(runs) if len(fake.started) == 2 else None
    assert bench_workers.join(runs, 1, is_warm=True) == 143
    assert len(fake.started) == 2
    assert bench_workers.join(runs, 1, is_warm=True) == 143, "a worker that comes late"
    assert capsys.readouterr().err.count("--stop` was said here") == 2
    worker.forget_stop(runs)
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert sorted(fake.started) == sorted(cell.folder.name for cell in cells)
    assert bench_workers.stop(runs) == 0
    assert "the same bench command goes on" in capsys.readouterr().err


def test_a_worker_that_only_waits_for_the_cells_of_others_leaves_after_a_while(
    recipe_file: Path, fake: FakeRuns, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_workers, "_IDLE_SECONDS", 0.1)
    cells = planned(recipe_file, "sgd,sam", "0")
    runs = recipe_file.parent / "runs"
    with ledger_of(runs).take(cells[0].folder.name) as claim:
        assert claim is not None
        assert bench_workers.join(runs, 1, is_warm=True) == 0, "not a failed job"
    assert fake.started == [cells[1].folder.name]
    assert "the last ones are with other workers" in capsys.readouterr().err


def test_the_live_table_shows_every_end_of_a_cell_and_is_done_only_when_all_are(recipe_file: Path) -> None:
    cells = planned(recipe_file, "sgd", f"0-{len(STATUSES) - 1}")
    console = Console(file=io.StringIO(), width=200, force_terminal=True)
    with LiveView(cells, console) as view:
        for cell, status in zip(cells, STATUSES, strict=True):
            view.on_state(cell, "running")
            view.on_state(cell, status)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert LOST in shown
    assert "2 cells to go" in shown.split("sgd")[-1], "the interrupted and the missing one"
    assert "all cells are done" not in shown


# --- status ----------------------------------------------------------------------------------------------


def every_file(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("kind", ["flock", "lease"])
def test_status_tells_how_a_bench_stands_and_writes_nothing(kind: str, recipe_file: Path) -> None:
    cells = planned(recipe_file, "sgd,sam", "0-3")
    runs, names = recipe_file.parent / "runs", [cell.folder.name for cell in cells]
    Agreement.of(runs, "lease" if kind == "lease" else "flock", 60.0)
    ledger = ledger_of(runs)
    for name in names[:3]:
        (runs / name).mkdir()
        with ledger.take(name) as claim:
            assert claim is not None
            ledger.settle(name, "completed", claim)
    with ledger.take(names[3]) as claim:
        assert claim is not None
        ledger.settle(names[3], "failed", claim)
    log = runs / ".logs" / f"{names[3]}.log"
    log.parent.mkdir()
    log.write_text("epoch 1\npugdft: the disk is full\n\n")
    with ledger.take(names[4]) as claim:
        assert claim is not None
        ledger.begin(names[4], claim)
        ledger.begin(names[4], claim)
        before = every_file(runs)
        shown = call(("bench", "--status", str(runs)))
        as_json = call(("bench", "--status", str(runs), "--format", "json"))
        after = every_file(runs)
    moving = {f"{runs}/.claims"}  # the file that tells the server's time, which is gone again
    assert {key: before[key] for key in before.keys() - moving} == {
        key: after[key] for key in after.keys() - moving
    }
    assert (shown.code, shown.err, as_json.code) == (4, "", 4)
    lines = shown.out.splitlines()
    assert lines[0] == "8 cells: 3 completed, 1 failed, 1 running, 3 waiting"
    assert "cells an hour; about" in lines[1]
    assert lines[2].startswith(
        f"  {cells[4].optimizer} seed {cells[4].seed} on {os.uname().nodename} process "
    )
    assert ", attempt 2" in lines[2]
    assert ("last sign of life" in lines[2]) == (kind == "lease")
    assert lines[3] == f"  sam seed 1: failed ({names[3]}): pugdft: the disk is full"
    found = json.loads(as_json.out)
    assert found["counts"] == {"completed": 3, "failed": 1, "running": 1, "waiting": 3}
    (running,) = found["running"]
    assert (running["cell"]["name"], running["attempt"], running["pid"]) == (names[4], 2, os.getpid())
    assert (running["silent_seconds"] is None) == (kind == "flock")
    assert standing(runs).counts["running"] == 0, "it was released"


def test_status_of_a_complete_bench_ends_with_0_and_needs_no_leave_to_write(
    recipe_file: Path, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(recipe_file)
    runs = recipe_file.parent / "runs"
    shown = call(("bench", "--status", str(runs)))
    assert (shown.code, shown.out) == (4, "4 cells: 4 waiting\n"), "before any worker"
    assert not (runs / ".claims").exists()
    assert bench_workers.join(runs, 1, is_warm=True) == 0

    def refuse(*given: Any, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    shown = call(("bench", "--status", str(runs)))
    assert (shown.code, shown.out) == (0, "4 cells: 4 completed\n")


# --- hostile hands ---------------------------------------------------------------------------------------


def _edited(runs: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    (path,) = (runs / ".plan").iterdir()
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        *(
            (lambda plan, name=name: plan["cells"][0].__setitem__(0, name), "cells.0.0: ")
            for name in (
                "../evil-s0-01234567",
                "/evil-s0-01234567",
                "..",
                ".claims",
                "recipes",
                "-x-s0-01234567",
            )
        ),
        (lambda plan: plan["cells"][0].__setitem__(1, 99), "a cell's recipe is not there"),
        (lambda plan: plan["cells"][0].__setitem__(1, -1), "cells.0.1: "),
        (lambda plan: plan["cells"][0].pop(), "cells.0"),
        (lambda plan: plan.pop("templates"), "templates: "),
        (lambda plan: plan["templates"][0].pop("recipe"), "templates.0.recipe: "),
        (lambda plan: plan["templates"][0].update(passes_per_update=float("nan")), "passes_per_update: "),
        (lambda plan: plan.update(schema="pugdft.plan/9"), "is a plan of another version of pugdft"),
    ],
)
def test_an_edited_plan_is_one_message_and_leads_to_no_other_folder(
    edit: Callable[[dict[str, Any]], object], words: str, recipe_file: Path, fake: FakeRuns
) -> None:
    planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    _edited(runs, edit)
    for what in ("--status", "--join"):
        done = call(("bench", what, str(runs)))
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert words in done.err
    assert not fake.started
    assert {path.name for path in recipe_file.parent.iterdir()} >= {"runs"}
    assert not (runs / "recipes").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"5"])
def test_a_file_that_is_no_plan_is_told_with_a_remedy(content: bytes, recipe_file: Path) -> None:
    planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    (path,) = (runs / ".plan").iterdir()
    path.write_bytes(content)
    done = call(("bench", "--status", str(runs)))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{path}: is no plan of a bench: " in done.err
    assert "remove it" in done.err


def test_a_recipe_in_a_plan_that_is_none_is_one_message(recipe_file: Path, fake: FakeRuns) -> None:
    planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    _edited(runs, lambda plan: plan["templates"][0]["recipe"].update(zzz=1))
    done = call(("bench", "--join", str(runs)))
    assert (done.code, done.err) == (
        2,
        f"pugdft: {runs}: a recipe of its plan: zzz: Extra inputs are not permitted\n",
    )


def test_a_name_that_is_no_text_goes_through_a_plan(recipe_file: Path, fake: FakeRuns) -> None:
    odd = recipe_file.with_name("caf\udce9.yaml")
    odd.write_bytes(recipe_file.read_bytes())
    planned(odd, "sgd", "0")
    assert bench_workers.join(odd.parent / "runs", 1, is_warm=True) == 0
    assert len(fake.started) == 1


@pytest.mark.parametrize("content", [b"5", b"null", b"[1]", b'[{"pid": "x"}]', b"", b"\xff", b"[" * 100_000])
def test_garbage_among_the_attempts_hinders_neither_status_nor_worker(
    content: bytes, recipe_file: Path, fake: FakeRuns
) -> None:
    (cell,) = planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    ledger_of(runs, 60.0)
    name = cell.folder.name
    for suffix in ("attempts", "lease"):
        (runs / ".claims" / f"{name}.{suffix}").write_bytes(content)
    assert standing(runs).total == 1
    (runs / ".claims" / f"{name}.lease").unlink()
    assert bench_workers.join(runs, 1, is_warm=True) == 0
    assert fake.started == [name]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[1]",
        '{"kind": "lease", "host": "h", "lease_seconds": "x"}',
        '{"kind": "lease", "host": "h", "lease_seconds": -1}',
        '{"kind": "lease", "host": "h", "lease_seconds": 1e999}',
        '{"kind": "z", "host": "h", "lease_seconds": 60}',
    ],
)
def test_an_agreement_that_is_none_is_one_message(content: str, recipe_file: Path, fake: FakeRuns) -> None:
    planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    (runs / ".claims").mkdir()
    (runs / ".claims" / "agreement.json").write_text(content)
    done = call(("bench", "--join", str(runs)))
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "agreement.json: cannot be read; remove it" in done.err
    assert not fake.started


@pytest.mark.parametrize("what", ["--status", "--join", "--stop"])
def test_a_folder_that_the_system_refuses_is_one_message(what: str, recipe_file: Path) -> None:
    planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    (runs / ".claims").write_text("in the way")
    for folder in (runs, recipe_file.parent / ("x" * 300)):
        done = call(("bench", what, str(folder)))
        assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
        assert done.err.startswith(f"pugdft: {folder}: cannot be used as a folder of runs: ")


@pytest.mark.parametrize(
    "words",
    [
        ("--join", "{}", "--detach"),
        ("--join", "{}", "--executor", "local"),
        ("--join", "{}", "--num-processes", "2"),
        ("--status", "{}", "--retry"),
        ("--status", "{}", "--output", "runs"),
        ("--stop", "{}", "--format", "json"),
        ("--stop", "{}", "--seeds", "1"),
        ("--status", "{}", "--stop", "{}"),
        ("--status", "{}", "quickstart"),
    ],
)
def test_what_would_do_nothing_beside_join_status_and_stop_is_refused(
    words: tuple[str, ...], recipe_file: Path, fake: FakeRuns
) -> None:
    planned(recipe_file, "sgd", "0")
    runs = str(recipe_file.parent / "runs")
    done = call(("bench", *(each.format(runs) for each in words)))
    shown = "RECIPE|TABLE|KEY=VALUE" if words[2] == "quickstart" else words[2]
    expected = f"pugdft: {words[0]} takes the folder of a bench and nothing else: leave out {shown}\n"
    assert (done.code, done.err) == (2, expected)
    assert not fake.started


def test_a_worker_tells_the_mistake_that_stops_it(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(cell: BenchCell, watcher: worker.Watcher, *others: Any) -> int:
        watcher.on_line(cell, "pugdft: data.name: no such folder")
        return 2

    planned(recipe_file, "sgd", "0")
    monkeypatch.setattr(worker, "_run", run)
    done = call(("bench", "--join", str(recipe_file.parent / "runs")))
    assert done.code == 2
    assert done.err.endswith(": stopped\npugdft: data.name: no such folder\n")


def test_the_command_that_watches_says_why_no_worker_is_left(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wanted, "command", lambda *others: ["sh", "-c", "echo; echo the reason; exit 2"])
    monkeypatch.setattr(bench_workers, "_WATCH_SECONDS", 0.05)
    runs = recipe_file.parent / "runs"
    engine = ("--executor", "local[workers=2]", "--output", str(runs))
    done = call(("bench", str(recipe_file), "--optimizers", "sgd", "--seeds", "0", *engine))
    assert done.code == 4
    lines = done.err.splitlines()
    assert f"no worker is left; their logs are in {runs / '.logs'}" in lines
    assert "worker-0.log and 1 more: the reason" in lines
    shown = call(("bench", "--status", str(runs)))
    assert f"no worker is at a cell now; what workers have said is in {runs / '.logs'}" in shown.out


@pytest.mark.parametrize("text", ["x", "nan", "-5", "12:00"])
def test_an_end_of_time_that_is_none_is_refused(
    text: str, recipe_file: Path, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(recipe_file, "sgd", "0")
    monkeypatch.setenv("PUGDFT_UNTIL", text)
    done = call(("bench", "--join", str(recipe_file.parent / "runs")))
    assert (done.code, done.err.count("\n"), fake.started) == (2, 1, [])
    assert "PUGDFT_UNTIL: must be the end of this worker's time in seconds since 1970" in done.err


def test_a_worker_whose_time_is_over_says_so(
    recipe_file: Path, fake: FakeRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(recipe_file, "sgd", "0")
    monkeypatch.setenv("PUGDFT_UNTIL", "1")
    done = call(("bench", "--join", str(recipe_file.parent / "runs")))
    assert (done.code, fake.started) == (143, [])
    assert "too little of this worker's time is left for one more cell (PUGDFT_UNTIL=1)" in done.err


def test_control_codes_of_a_plan_do_not_reach_the_terminal(recipe_file: Path) -> None:
    (cell,) = planned(recipe_file, "sgd", "0")
    runs = recipe_file.parent / "runs"
    _edited(runs, lambda plan: plan["templates"][0].update(optimizer="\x1b[31mred"))
    ledger = ledger_of(runs)
    with ledger.take(cell.folder.name) as claim:
        assert claim is not None
        ledger.settle(cell.folder.name, "failed", claim)
    done = call(("bench", "--status", str(runs)))
    assert done.code == 4
    assert "  [31mred seed 0: failed" in done.out
    assert "\x1b" not in done.out
