"""What the README and the guide show is what works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.config.yaml import parse
from pugdft.optim import Method, build_optimizer, methods, resolve_spec
from pugdft.training.run import read_recipe

ROOT = Path(__file__).parent.parent
TEXT = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/guide.md"))
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()
]


def block(kind: str, word: str) -> str:
    return next(text for each, text in BLOCKS if each == kind and word in text)


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if re.match(r"pugdft (finetune|bench|tune) \w+_\w+ ", each)]
)
def test_the_session_s_commands_have_valid_recipes_and_optimizers(command: str) -> None:
    words = shlex.split(command)[2:]
    recipe = words[0] if words[0] != "my_recipe.yaml" else "resnet18_cifar10"
    read_recipe(recipe, [word for word in words if re.match(r"[\w.]+=", word)])
    if "--optimizers" in words:
        assert len(parse_optimizers(words[words.index("--optimizers") + 1])) == 3


def test_the_bench_file_makes_cells(tmp_path: Path) -> None:
    path = tmp_path / "bench.yaml"
    path.write_text(block("yaml", "budget: passes"))
    matrix = build_matrix([str(path)])
    assert (len(matrix.recipes), len(matrix.entries), len(matrix.seeds), matrix.budget) == (2, 3, 5, "passes")
    cells = plan_cells(matrix, tmp_path)
    assert len(cells) == 2 * 3 * 5
    assert {cell.recipe.train.epochs for cell in cells} == {200}, "as README says of 100 epochs of PUGD"


def test_make_has_the_two_commands_and_ci_calls_the_second() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert {"make quickstart", "make test"} <= set(COMMANDS)
    assert {"quickstart", "test"} <= set(targets)
    assert (ROOT / ".ci" / "run").read_text().strip().endswith("\nmake test")


def test_the_spec_with_a_schedule_and_a_trigger_is_valid() -> None:
    assert resolve_spec(parse(block("yaml", "trigger"))["optimizer"])["base"]["layer_decay"] == 0.75


def test_the_example_of_a_training_loop_trains() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    before = model.weight.detach().clone()
    scope: dict[str, Any] = {
        "model": model,
        "loader": [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 2,
        "loss_function": nn.functional.cross_entropy,
    }
    exec(block("python", "build_optimizer"), scope)
    assert scope["optimizer"].num_two_pass_steps == 2
    assert not torch.equal(model.weight, before)


def test_the_example_of_a_new_method_is_the_bundled_one() -> None:
    scope = dict(vars(methods))
    exec(block("python", "sam_gns"), scope)
    method = scope["sam_gns"](rho=0.1)
    assert isinstance(method, Method)
    assert method == methods.sam_gns(rho=0.1)
    assert build_optimizer(
        {"name": "sam_gns", "rho": 0.1, "base": {"name": "sgd", "lr": 0.1}}, nn.Linear(2, 2)
    )


def test_every_environment_variable_of_pugdft_stands_in_one_place_of_the_documents() -> None:
    root = Path(__file__).parent.parent
    files = [*root.glob("pugdft/**/*.py"), root / "Dockerfile", root / "Makefile"]
    used = {
        name for file in files for name in re.findall(r"\bPUGDFT_[A-Z]\w*", file.read_text(encoding="utf-8"))
    }
    rows = re.findall(r"^\| `(PUGDFT_\w+)` \|", (root / "docs" / "environment.md").read_text(), re.MULTILINE)
    assert sorted(used) == sorted(rows)
    assert "(environment.md)" in TEXT
