"""Every bad input ends as one message that says what and where, with nothing run and nothing left behind."""

from __future__ import annotations

import io
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from bad_inputs import (
    commands,
    data,
    matrices,
    optimizers,
    overrides,
    parquet,
    recipes,
    records,
    runs,
    weights,
)
from bad_inputs.case import Case, Done, call, problems, snapshot
from bad_inputs.files import (
    RECIPE,
    Build,
    Harm,
    both,
    data_set,
    file,
    image,
    images,
    recipe,
    run,
    tables,
    tensors,
)
from bad_inputs.files import weights as weights_file
from rich.console import Console
from run_records import SAM
from safetensors.torch import save_file

from pugdft.bench.estimate import Probe, estimate
from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.cli.bench_view import print_plan
from pugdft.config import yaml
from pugdft.config.schema import Recipe
from pugdft.errors import UserError

SUBJECTS = {
    "recipe": recipes.CASES,
    "override": overrides.CASES,
    "optimizer": optimizers.CASES,
    "data": data.CASES,
    "parquet": parquet.CASES,
    "weights": weights.CASES,
    "record": records.CASES,
    "run": runs.CASES,
    "matrix": matrices.CASES,
    "command": commands.CASES,
}
CASES = {f"{subject}: {case.name}": case for subject, cases in SUBJECTS.items() for case in cases}
IN_A_PROCESS = ("recipe: tag that calls", "data: a smaller bomb", "run: verify pickles", "command: fintune")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in, with a home, a cache and a folder for temporary files beside it; no network."""

    def no_network(*where: Any, **options: Any) -> NoReturn:
        raise AssertionError(f"a connection was asked for: {where}")

    for name in ("work", "home", "temporary", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


def in_a_process(arguments: tuple[str, ...]) -> Done:
    """The command as a shell starts it."""
    done = subprocess.run([sys.executable, "-m", "pugdft", *arguments], capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def refusal(case: Case, place: Path, start: Callable[[tuple[str, ...]], Done] = call) -> list[str]:
    """What is wrong with how a case was refused."""
    case.build(place / "work")
    before = snapshot(place)
    done = start(case.command)
    after = snapshot(place)
    found = problems(case, done)
    # The cache keeps what was found out of good data; torch makes a folder for what it compiles.
    changed = {
        name
        for name in {*before, *after}
        if before.get(name) != after.get(name) and not name.startswith(("cache/", "temporary/torchinductor"))
    }
    found += [f"{name} was written" for name in sorted(changed)]
    found += [f"{name} was left" for name in after if "/.making-" in name or name.endswith("/harm")]
    return [*found, f"\n{done.out}\n{done.err}"] if found else []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_bad_input_is_refused_in_one_message(case: Case, place: Path) -> None:
    assert not refusal(case, place)


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_A_PROCESS)
def test_a_process_of_its_own_says_the_same(name: str, place: Path) -> None:
    assert not refusal(CASES[name], place, in_a_process)


def test_no_two_cases_are_one() -> None:
    assert len(CASES) == sum(map(len, SUBJECTS.values())) > 400


# --- good inputs, by the same way ------------------------------------------------------------------------


def good_weights(name: str) -> Build:
    import torch

    state = {key: value.contiguous() for key, value in tensors().items()}
    write = (
        (lambda path: save_file(state, path))
        if name.endswith("s")
        else (lambda path: torch.save(state, path))
    )
    return weights_file(name, write)


FINETUNE, VALIDATE = ("finetune", "r.yaml"), ("recipes", "validate", "r.yaml")
GOOD: dict[str, tuple[tuple[str, ...], Build]] = {
    "recipe": ((*FINETUNE, "--dry-run"), recipe()),
    "recipe with a mark": (VALIDATE, file("r.yaml", "\ufeff" + yaml.dump(RECIPE))),
    "override": ((*FINETUNE, "optimizer.rho={schedule: cos, min: 0, max: 1}", "--dry-run"), recipe()),
    "images": (FINETUNE, data_set()),
    "tables": (FINETUNE, tables()),
    "safetensors": (FINETUNE, good_weights("w.safetensors")),
    "pth": (FINETUNE, good_weights("w.pth")),
    "leaderboard": (("leaderboard", "runs"), both(run("runs/a"), run("runs/b", optimizer=SAM))),
    "compare": (("compare", "runs/a", "runs/b"), both(run("runs/a"), run("runs/b", optimizer=SAM))),
    "copy": (("recipes", "copy", "quickstart"), images),
    **{
        f"picture, {name}": (FINETUNE, image(content)) for name, content in data.GOOD_PICTURES.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_a_good_input_is_accepted_by_the_same_way(name: str, place: Path) -> None:
    command, build = GOOD[name]
    build(place / "work")
    done = call(command)
    assert done.code == 0, done.err
    assert done.out


def test_what_a_run_leaves_is_verified_checked_and_run_again(place: Path) -> None:
    data_set()(place / "work")
    folder = str(Path(call(("finetune", "r.yaml")).out.strip()).parent)
    for command in (
        ("verify", folder),
        ("leaderboard", "check", folder),
        ("rerun", folder),
        ("finetune", "r.yaml"),
    ):
        done = call(command)
        assert done.code == 0, (command, done.out, done.err)


# --- the harness itself ----------------------------------------------------------------------------------

REFUSED = Case(
    "x", ("finetune", "r.yaml"), ("r.yaml: train.epochs: must be", "not 0"), recipe({"train.epochs": 0})
)
SAID = "pugdft: r.yaml: train.epochs: must be at least 1, not 0\n"


@pytest.mark.parametrize(
    ("done", "problem"),
    [
        (Done(2, "", SAID), ""),
        (Done(2, "", "preparing images and x\n" + SAID), ""),
        (Done(1, "", SAID), "exit code 1, expected 2"),
        (Done(2, "", ""), "0 messages"),
        (Done(2, "", SAID + SAID), "2 messages"),
        (Done(2, "", SAID + "and more\n"), "a message of 2 lines, expected 1"),
        (Done(2, "", "a warning\n" + SAID), "before the message stands 'a warning'"),
        (Done(2, "", SAID.replace("not 0", "\x1b[31mnot 0")), "stderr has what is not printable"),
        (Done(2, "", SAID.replace("not 0", "not 1")), "nothing is said of 'not 0'"),
        (Done(2, "", SAID.replace("not 0", "Traceback, not 0")), "Python's matters"),
        (Done(2, "runs/x\n", SAID), "stdout has 'runs/x"),
        (Done(2, "", SAID.replace("not 0", "not 0" + "0" * 2000)), "a line of"),
    ],
)  # fmt: skip
def test_the_harness_notices(done: Done, problem: str) -> None:
    found = problems(REFUSED, done)
    assert bool(found) is bool(problem)
    assert problem in "; ".join(found)


def test_the_harness_notices_a_traceback_and_a_file_that_is_left(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pugdft.config import load as module

    assert not refusal(REFUSED, place)

    def broken(*arguments: Any) -> NoReturn:
        Path("left").touch()
        raise KeyError("epochs")

    monkeypatch.setattr(module, "apply_override", broken)
    override = replace(REFUSED, command=("finetune", "r.yaml", "train.seed=1"))
    found = refusal(override, place)
    assert "exit code 1, expected 2" in found
    assert "stderr speaks of Python's matters: Traceback" in found
    assert "work/left was written" in found


def test_the_harness_notices_code_that_is_run(place: Path) -> None:
    import pickle

    harmful = replace(
        REFUSED, build=lambda folder: (REFUSED.build(folder), pickle.loads(pickle.dumps(Harm())))
    )
    assert any("harm was left" in problem for problem in refusal(harmful, place))


# --- one recipe of several -------------------------------------------------------------------------------


def test_a_plan_has_the_price_of_what_can_run_beside_what_cannot(place: Path) -> None:
    both(recipe(), recipe({"data.name": "nowhere"}, "s.yaml"), images)(place / "work")
    cells = plan_cells(build_matrix(["r.yaml", "s.yaml"], "sgd,sam", "0-1"), Path("runs"))
    asked: list[str] = []

    def probe(wanted: Recipe) -> Probe:
        asked.append(wanted.data.name)
        if wanted.data.name == "nowhere":
            raise UserError("data.name: no such folder")
        return Probe(1.0, 1.0, 1.0, 2, 10, 10, 4)

    lines = estimate(cells, Path("runs"), probe).lines
    assert [(line.source, line.problem, line.seconds is None) for line in lines] == [
        ("r.yaml", "", False),
        ("r.yaml", "", False),
        ("s.yaml", "data.name: no such folder", True),
        ("s.yaml", "data.name: no such folder", True),
    ]
    assert asked.count("nowhere") == 1


def test_a_large_plan_measures_a_cell_of_each_recipe_and_fits_a_screen(place: Path) -> None:
    names = [f"recipe_with_a_name_of_37_characters_{number}" for number in "1234"]
    recipes = [recipe({"data.image_size": 8 * size}, name) for size, name in enumerate(names[:2], start=1)]
    missing = [recipe({"data.name": "nowhere", "data.image_size": 8 + size}, names[size]) for size in (2, 3)]
    both(*recipes, *missing, images)(place / "work")
    entries = "sgd,adagrad,ugd,ngd_cw,sam,asam,pugd,gnp"
    cells = plan_cells(build_matrix(names, entries, "0-2"), Path("runs"))
    asked: list[tuple[str, int]] = []

    def probe(wanted: Recipe) -> Probe:
        asked.append((wanted.optimizer["name"], wanted.data.image_size))
        if wanted.data.name == "nowhere":
            raise UserError("data.name: no such folder")
        return Probe(1.0, 60.0, 1.0, 2, 10, 10, 4)

    made = estimate(cells, Path("runs"), probe)
    assert asked == [("sam", 8), ("sam", 16), ("sam", 10)]  # the dearest; data that is missing, once
    assert made.is_sampled
    one, two = made.lines[0].seconds, made.lines[4].seconds  # of SGD and SAM: by their passes
    assert one is not None
    assert two is not None
    assert (two - 3) / (one - 3) == pytest.approx(2, rel=0.02)
    screen = io.StringIO()
    print_plan(made, Console(file=screen, width=80, soft_wrap=True))
    rows = [line for line in screen.getvalue().splitlines() if "recipe_with" in line]
    assert [line.split()[:2] for line in rows] == [[name, "24"] for name in names]
    assert max(map(len, rows)) <= 80
    assert "48 cells cannot run here" in screen.getvalue()
    assert "Measured: one optimizer of each recipe" in screen.getvalue()
