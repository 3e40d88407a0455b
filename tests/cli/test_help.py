"""Every command's help, whichever commands there are, and what the shell completes."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from pugdft.cli.help import command_line, commands, dataset_names, examples_of, optimizer_names
from pugdft.cli.main import application
from pugdft.config.load import bundled_recipes, recipe_keys
from pugdft.data.datasets import DATASETS
from pugdft.optim import build

ROOT = command_line(application())
COMMANDS = dict(commands(ROOT))
LEAVES = {name: command for name, command in COMMANDS.items() if not getattr(command, "commands", None)}


def help_of(name: str) -> str:
    command = COMMANDS[name]
    return str(command.get_help(typer.Context(command, info_name=name)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_eighty_columns_and_no_summary_is_cut(name: str) -> None:
    text = help_of(name)
    assert max(map(len, text.splitlines())) <= 80
    assert COMMANDS[name].help, "says nothing"
    _, _, listed = text.partition("\nCommands:\n")
    assert not re.search(r"\.\.\.$", listed, re.MULTILINE), "a first sentence is too long for its line"


@pytest.mark.parametrize("name", LEAVES)
def test_every_value_has_a_name_that_says_something(name: str) -> None:
    text = help_of(name)
    assert not re.search(r"\b(TEXT|INTEGER|FLOAT)\b|<(list\[)?(str|int|float|path)", text)
    for parameter in LEAVES[name].params:
        if parameter.metavar is not None:
            assert re.fullmatch(r"[A-Z][\w.]*([|=_/][A-Z][\w.]*)*", parameter.metavar), parameter.metavar
        assert parameter.hidden or parameter.help, f"{parameter.name} has no help"


def test_a_command_imports_no_other_and_is_the_same_alone() -> None:
    code = (
        "import sys; from pugdft.cli.main import application; application(['runs', 'ls']); "
        "print(sorted(name for name in sys.modules if name.startswith('pugdft.cli.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    started = ["help", "launch", "main", "output", "runs"]
    assert done.stdout.strip() == str([f"pugdft.cli.{name}" for name in started])
    alone = dict(commands(command_line(application(["leaderboard", "--full"]))))
    assert set(alone) == {"pugdft", "pugdft leaderboard", "pugdft leaderboard check"}
    own = alone["pugdft leaderboard"]
    context = typer.Context(own, info_name="pugdft leaderboard")
    assert own.get_help(context) == help_of("pugdft leaderboard")


def parse(line: str) -> None:
    """Read all arguments and options of the commands of a shell's line, and run nothing."""
    for part in re.split(r" (?:\||&&|>) ", line):
        if part.startswith("pugdft "):
            words = shlex.split(part, comments=True)
            own = max((each for each in LEAVES if words[: len(each.split())] == each.split()), key=len)
            LEAVES[own].make_context(own, words[len(own.split()) :])


@pytest.mark.parametrize(
    "page", sorted((Path(__file__).parents[2] / "docs").glob("*.md")), ids=lambda p: p.stem
)
def test_every_command_of_a_document_parses(page: Path) -> None:
    blocks = re.findall(
        r"^```(?:sh|bash)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        parse(line)


@pytest.mark.parametrize("name", LEAVES)
def test_two_examples_that_parse(name: str) -> None:
    examples = examples_of(LEAVES[name])
    assert len(examples) == 2, f"the docstring of {name} needs `Examples:` with two lines"
    shown = help_of(name)
    for line in examples:
        assert line in shown
        parse(line)
    assert any(line.startswith(f"{name} ") or line == name for line in examples)


def completed(line: str, folder: Path) -> tuple[list[str], str]:
    """What bash would be offered after ``line``, and what the command wrote to stderr."""
    words = line.split(" ")
    asked = {"_PUGDFT_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    command = [sys.executable, "-X", "importtime", "-m", "pugdft"]
    done = subprocess.run(command, env=os.environ | asked, cwd=folder, capture_output=True, text=True)
    return done.stdout.split(), done.stderr


def test_completion_in_a_shell_imports_no_torch(tmp_path: Path) -> None:
    offered, log = completed("pugdft finetune quickstart optimizer=pug", tmp_path)
    assert offered == [f"optimizer={name}" for name in build.optimizer_names() if name.startswith("pug")]
    imported = {line.rpartition("|")[2].strip() for line in log.splitlines()}
    assert "pugdft.cli.help" in imported
    assert not {"torch", "numpy", "scipy"} & imported


def offered(command: str, parameter: str, incomplete: str) -> list[str]:
    """What a parameter's completion offers, asked in this process."""
    found = next(each for each in COMMANDS[command].params if each.name == parameter)
    items: list[Any] = found.shell_complete(typer.Context(COMMANDS[command], info_name=command), incomplete)
    return [item.value for item in items]


def test_recipes_keys_optimizers_data_sets_and_runs_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vit_mine.yaml").touch()
    for run in ("runs/one", "runs/two", "elsewhere/three"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "record.yaml").touch()
    assert offered("pugdft finetune", "recipe", "vit_") == [
        *(name for name in bundled_recipes() if name.startswith("vit_")), "vit_mine.yaml",
    ]  # fmt: skip
    assert offered("pugdft bench", "arguments", "pugd_i") == ["pugd_i_iii", "pugd_iv"]
    assert offered("pugdft recipes show", "name", "gnp_1") == ["gnp_1"]
    assert offered("pugdft finetune", "overrides", "train.ep") == ["train.epochs="]
    assert "optimizer.base.lr=" in offered("pugdft bench", "arguments", "optimizer.")
    assert offered("pugdft bench", "optimizers", "sgd,asa") == ["sgd,asam"]
    assert offered("pugdft finetune", "optimizer", "sam+adamw") == ["sam+adamw"]
    assert offered("pugdft verify", "records", "runs/") == ["runs/one", "runs/two"]
    assert offered("pugdft verify", "records", "elsewhere/") == ["elsewhere/three"]
    assert offered("pugdft data prepare", "name", "cifar") == ["cifar10", "cifar100"]
    assert offered("pugdft optimizers show", "name", "looks") == ["looksam"]


def test_what_is_completed_is_what_exists() -> None:
    assert optimizer_names() == [*build.BASES, *build_methods()]
    assert dataset_names() == [*DATASETS]
    keys = recipe_keys()
    assert {"train.performance.compile", "data.random_resized_crop.scale", "optimizer.rho"} <= set(keys)
    assert "train.performance" not in keys


def build_methods() -> list[str]:
    """Methods in the order of their source."""
    order = sorted(build.METHODS, key=lambda name: build.METHODS[name].__code__.co_firstlineno)
    return [*order]
