"""The commands as a person meets them: exit codes, streams, messages, and the main job from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_inputs.case import call
from conftest import pugdft
from standing_still import Command

from pugdft import __version__
from pugdft.config import yaml
from pugdft.config.load import bundled_recipes, bundled_tables
from pugdft.optim import describe, optimizer_names
from pugdft.training.run import read_recipe


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["finetune"],
        ["bench"],
        ["leaderboard"],
        *(["recipes", name] for name in ("ls", "show", "copy", "validate", "schema")),
        *(["optimizers", name] for name in ("ls", "show")),
        *(["data", name] for name in ("prepare", "verify")),
    ],
    ids=" ".join,
)
def test_every_command_of_the_contract_has_help(command: list[str]) -> None:
    done = call((*command, "--help"))
    assert done.code == 0
    assert done.out.startswith("Usage: pugdft")
    assert done.err == ""


def test_the_options_of_finetune_and_bench_are_those_of_the_contract() -> None:
    finetune = pugdft("finetune", "--help").stdout  # a process of its own
    for option in ("--output", "--seed", "--num-processes", "--no-resume", "--dry-run", "KEY=VALUE"):
        assert option in finetune
    bench = call(("bench", "--help")).out
    for option in ("--optimizers", "--seeds", "--output", "KEY=VALUE"):
        assert option in bench


def test_version() -> None:
    assert pugdft("--version").stdout == f"pugdft {__version__}\n"


def test_a_reader_that_goes_away_is_no_failure() -> None:
    command = f"set -o pipefail; {sys.executable} -m pugdft recipes ls | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_one_message() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pugdft", "recipes", "ls"], stdout=full, stderr=-1, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "pugdft: cannot write: No space left on device\n"


def test_names_from_files_do_not_drive_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text('model: {name: resnet18}\n"a\\e[31mb": 1\n')
    done = call(("recipes", "validate", str(tmp_path / "x.yaml")))
    assert done.code == 2
    assert "\x1b" not in done.err


@pytest.mark.slow
def test_a_second_run_in_a_folder_at_work_is_refused(
    recipe_file: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    command = ("finetune", str(recipe_file), "train.epochs=5", "--output", "o")
    start(*command, stops=0, cwd=tmp_path).stopped()
    second = pugdft(*command, cwd=tmp_path)
    assert second.returncode == 5  # busy: the same command later may find it finished
    assert "o: another process is running here" in second.stderr


def test_no_record_yet_is_said(tmp_path: Path) -> None:
    done = call(("leaderboard", str(tmp_path)))
    assert done.code == 2
    assert "no run record" in done.err


def test_dry_run_prints_the_resolved_recipe_which_reads_back(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(("finetune", str(recipe_file), "train.epochs=7", "--seed", "3", "--dry-run"))
    assert done.code == 0
    recipe = read_recipe(yaml.parse(done.out))
    assert (recipe.train.epochs, recipe.train.seed, recipe.optimizer["rho"]) == (7, 3, 0.05)
    assert not (tmp_path / "runs").exists()


def test_recipes_ls_show_copy_validate_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    listed = call(("recipes", "ls")).out.splitlines()
    assert max(map(len, listed)) <= 80
    named = [line.split()[0] for line in listed if line.startswith("  ")]
    assert sorted(named) == sorted([*bundled_recipes(), *bundled_tables()])
    assert named[0] == "quickstart"
    assert named[-len(bundled_tables()) :] == [*bundled_tables()]
    assert sum(line.endswith(":") for line in listed) == 4
    shown = call(("recipes", "show", "vit_cifar100")).out
    copied = call(("recipes", "copy", "vit_cifar100"))
    assert copied.out == "vit_cifar100.yaml\n"
    assert (tmp_path / "vit_cifar100.yaml").read_text() == shown
    table = call(("recipes", "show", "pugd_iv")).out
    assert call(("recipes", "copy", "pugd_iv", "mine.yaml")).out == "mine.yaml\n"
    assert (tmp_path / "mine.yaml").read_text() == table
    wrong = call(("finetune", "pugd_iv"))
    assert wrong.code == 2
    assert "is a table, which has several recipes: pugdft bench pugd_iv" in wrong.err
    again = call(("recipes", "copy", "vit_cifar100"))
    assert (again.code, "exists already" in again.err) == (2, True)
    valid = call(("recipes", "validate", "vit_cifar100.yaml", "quickstart"))
    assert valid.out == "vit_cifar100.yaml: ok\nquickstart: ok\n"
    assert json.loads(call(("recipes", "schema")).out)["title"] == "Recipe"


def test_optimizers_are_listed_and_explained() -> None:
    listed = call(("optimizers", "ls")).out.splitlines()
    assert [line.split()[0] for line in listed[1:-2]] == optimizer_names()
    assert next(line for line in listed if line.startswith("looksam ")).split()[1:5] == [
        "1",
        "+",
        "1/k",
        "2P",
    ]
    shown = call(("optimizers", "show", "pugd")).out
    for part in ("arXiv 2110.00199", "Cost:", "rho"):
        assert part in shown


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_is_documented(name: str) -> None:
    text = describe(name)
    assert "w ← w" in text or "Cost:" in text or "torch.optim" in text


def test_data_prepare_and_verify(image_folder: Path) -> None:
    prepared = call(("data", "prepare", str(image_folder), "--image-size", "32"))
    assert prepared.code == 0
    assert (Path(prepared.out.strip()) / "meta.json").is_file()
    assert "72 images of 16 × 16 pixels" in prepared.err
    assert ": ok, sha256 " in call(("data", "verify", str(image_folder), "--image-size", "32")).out
    pixels = Path(prepared.out.strip()) / "test_images.npy"
    original = pixels.read_bytes()
    pixels.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    damaged = call(("data", "verify", str(image_folder), "--image-size", "32"))
    pixels.write_bytes(original)
    assert (damaged.code, "damaged" in damaged.err) == (1, True)
