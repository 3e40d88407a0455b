"""A run stopped in the middle of an epoch goes on to the bits of one that was not, whatever the method."""

from __future__ import annotations

import copy
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_image_folder
from small_runs import ADAMW, IMAGES, SGD, cut_run, differences, tiny_recipe, whole_run

from pugdft.optim.methods import METHODS
from pugdft.training import checkpoint as checkpoint_module
from pugdft.training.checkpoint import Checkpoint

STOPS = (2, 4)  # of three updates an epoch: in the middle of the first, in the middle of the second
SCRIPTS = Path(__file__).parent / "scripts"

# Values with which a method's memory has something to remember, and to lose, within six updates.
OPTIONS: dict[str, dict[str, Any]] = {
    "looksam": {"k": 3},
    "pugd_t": {"trigger": {"name": "gradient_variance", "gamma": 1e9, "k": 3, "init_fraction": 0.4}},
    "amp": {"inner_iter": 2},
    "rules": {"direction": "friendly_gradient", "combine": {"name": "reuse_ascent", "alpha": 0.7}},
}
REMEMBERING = ("pugd", "looksam", "vasso", "fsam", "msam")
VARIANTS: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("sgd alone", SGD, ()),
    ("sgd, nesterov, layer decay", {**SGD, "nesterov": True, "no_decay": True, "layer_decay": 0.7}, ()),
    ("adamw alone", {**ADAMW, "amsgrad": True}, ()),
    ("pugd on adagrad", {"name": "pugd", "base": {"name": "adagrad", "lr": 0.01}}, ()),
    ("sam on rmsprop", {"name": "sam", "base": {"name": "rmsprop", "lr": 1e-3, "momentum": 0.5}}, ()),
    ("msam on adam", {"name": "msam", "base": {"name": "adam", "lr": 1e-3}}, ()),
    ("pugd on lamb", {"name": "pugd", "base": {"name": "lamb", "lr": 0.01}}, ()),
    ("sam on adafactor", {"name": "sam", "base": {"name": "adafactor", "lr": 0.01}}, ()),
    ("radius schedule", {"name": "pugd", "rho": {"schedule": "icos", "min": 0.1, "max": 1}, "base": SGD}, ()),
    ("ρ follows the rate",
     {"name": "sam", "rho": {"schedule": "proportional_to_lr", "min": 0.01, "max": 0.1}, "base": SGD},
     ("schedule.warmup_epochs=1.5",)),
    ("every", {"name": "pugd", "trigger": {"name": "every", "k": 2}, "base": SGD}, ()),
    ("probability", {"name": "pugd", "trigger": {"name": "probability", "p": 0.5}, "base": SGD}, ()),
    ("cosine", {"name": "sam", "trigger": {"name": "gradient_cosine", "kappa": -1, "k": 3}, "base": SGD}, ()),
    ("gap", {"name": "sam", "trigger": {"name": "generalization_gap", "mu": 0.0, "every": 1}, "base": SGD},
     ("data.validation=0.34", "train.epochs=5", "train.batch_size=5")),
    ("a budget of passes", {"name": "looksam", "k": 2, "base": SGD},
     ("train.budget=passes", "train.epochs=3")),
    ("a part of the batch", {"name": "sam", "base": SGD}, ("train.ascent_batch=0.5",)),
]  # fmt: skip
SETTINGS: list[tuple[str, tuple[str, ...]]] = [
    # 32 pixels: of feature maps of one pixel, oneDNN's bf16 gradients are not always finite.
    ("bf16", ("train.precision=bf16", "data.image_size=32")),
    ("accumulation", ("train.micro_batch_size=3",)),
    ("bf16 and accumulation", ("train.precision=bf16", "data.image_size=32", "train.micro_batch_size=4")),
    ("mixup and random crops", ("data.crop_padding=0", "data.random_resized_crop={}", "data.mixup=0.2",
                                "data.cutmix=1.0", "train.micro_batch_size=5")),
    ("cutout, smoothing", ("data.cutout=4", "train.label_smoothing=0.1")),
    ("auto-augment here", ("data.auto_augment=rand-m9-mstd0.5-inc1", "data.workers=0")),
    ("frozen", ("train.freeze=backbone", "train.micro_batch_size=4")),
    ("fixed BatchNorm", ("train.batch_norm=fixed",)),
    ("a ViT", ("model.name=test_vit",)),
    ("held-out images, rare evaluations", ("data.validation=0.34", "train.batch_size=5",
                                           "train.epochs=3", "train.eval_every=2")),
    ("cut by max_steps", ("train.max_steps=5",)),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tiny") / "insects", IMAGES)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        pytest.param(name, base, marks=() if name in ("sam", "pugd_t", "vasso") else pytest.mark.slow)
        for name, base in [*((name, SGD) for name in METHODS), *((name, ADAMW) for name in REMEMBERING)]
    ],
    ids=lambda value: value if isinstance(value, str) else value["name"],
)
def test_every_method_goes_on_to_the_same_bits(
    name: str, base: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(images, {"name": name, "base": base, **OPTIONS.get(name, {})})
    whole = whole_run(recipe, tmp_path / "whole")
    stops = STOPS if name in REMEMBERING else STOPS[1:]
    assert differences(whole, cut_run(recipe, tmp_path / "cut", stops)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "overrides"), [each[1:] for each in VARIANTS], ids=[v[0] for v in VARIANTS]
)
def test_options_and_bases_go_on_to_the_same_bits(
    optimizer: dict[str, Any], overrides: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(images, optimizer)
    whole = whole_run(recipe, tmp_path / "whole", *overrides)
    assert differences(whole, cut_run(recipe, tmp_path / "cut", STOPS, *overrides)) == []


@pytest.mark.slow
@pytest.mark.parametrize("overrides", [each[1] for each in SETTINGS], ids=[each[0] for each in SETTINGS])
def test_data_and_precision_go_on_to_the_same_bits(
    overrides: tuple[str, ...], images: Path, tmp_path: Path
) -> None:
    """With a method that remembers."""
    recipe = tiny_recipe(images, {"name": "vasso", "base": SGD})
    whole = whole_run(recipe, tmp_path / "whole", *overrides)
    assert differences(whole, cut_run(recipe, tmp_path / "cut", STOPS, *overrides)) == []


@pytest.mark.slow
def test_processes_that_augment_change_nothing(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, {"name": "pugd", "base": SGD})
    recipe["data"]["auto_augment"] = "rand-m9-mstd0.5-inc1"
    here = whole_run(recipe, tmp_path / "here", "data.workers=0")
    cut = cut_run(recipe, tmp_path / "cut", STOPS, "data.workers=2")
    assert differences(here, cut) == ["record recipe", "record id"][::-1]


Loss = Callable[[Checkpoint], Checkpoint]


def without_momentum(checkpoint: Checkpoint) -> Checkpoint:
    return dataclasses.replace(checkpoint, optimizer={**checkpoint.optimizer, "state": {}})


def without_memory(checkpoint: Checkpoint) -> Checkpoint:
    optimizer = copy.deepcopy(checkpoint.optimizer)
    optimizer["pugdft"]["memories"]["direction"]["tensors"] = {}
    return dataclasses.replace(checkpoint, optimizer=optimizer)


def without_evidence(checkpoint: Checkpoint) -> Checkpoint:
    optimizer = copy.deepcopy(checkpoint.optimizer)
    for part in ("earlier", "epoch"):
        optimizer["pugdft"]["evidence"][part]["sums"]["norm"] = 0.0
    return dataclasses.replace(checkpoint, optimizer=optimizer)


def without_statistics(checkpoint: Checkpoint) -> Checkpoint:
    weights = {name: 0 * value if "running_" in name else value for name, value in checkpoint.weights.items()}
    return dataclasses.replace(checkpoint, weights=weights)


def changed(**state: Any) -> Loss:
    return lambda checkpoint: dataclasses.replace(checkpoint, state={**checkpoint.state, **state})


def moved(**position: Any) -> Loss:
    def change(checkpoint: Checkpoint) -> Checkpoint:
        return changed(position={**checkpoint.state["position"], **position})(checkpoint)

    return change


@pytest.mark.slow
@pytest.mark.parametrize(("lose", "seen"), [
    (lambda checkpoint: checkpoint, None),
    (without_momentum, "weight fc.weight"),
    (without_memory, "weight fc.weight"),
    (without_statistics, "weight bn1.running_mean"),
    (without_evidence, "record method"),
    (changed(totals=[0.0] * 4), "record history"),
    (changed(history=[]), "record history"),
    (changed(best_test=None), "record metrics"),
    (moved(step_in_epoch=0), "weight fc.weight"),
    (moved(steps=3), "weight fc.weight"),
    (moved(gradient_passes=0), "record cost"),
], ids=["nothing", "momentum", "memory", "BatchNorm", "evidence", "totals", "history", "best",
        "place in epoch", "updates", "passes"])  # fmt: skip
def test_whatever_a_checkpoint_lost_would_be_noticed(
    lose: Loss, seen: str | None, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of everything above."""
    load = checkpoint_module.load_checkpoint

    def loading(folder: Path) -> tuple[Checkpoint | None, list[str]]:
        checkpoint, faults = load(folder)
        return (lose(checkpoint) if checkpoint else None), faults

    monkeypatch.setattr(checkpoint_module, "load_checkpoint", loading)
    recipe = tiny_recipe(images, {"name": "vasso", "base": SGD})
    # The best epoch is the first one only where the second is no better.
    overrides = ("optimizer.base.lr=1e-9",) if seen == "record metrics" else ()
    whole = whole_run(recipe, tmp_path / "whole", *overrides)
    found = differences(whole, cut_run(recipe, tmp_path / "cut", (4,), *overrides))
    assert seen in found if seen else found == []


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_cases"), [(2, 9), (3, 1)])
def test_several_processes_go_on_to_the_same_bits(num_processes: int, num_cases: int) -> None:
    """One start of them for all cases: see ``resumes.py``. Of three numbers, the order of a sum matters."""
    options = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    command = [sys.executable, *options, str(SCRIPTS / "resumes.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("same: ") == num_cases, done.stdout
    assert done.stdout.count("noticed: ") == 1
    assert done.stdout.splitlines()[-2:] == ["anew", "refused"], done.stdout
