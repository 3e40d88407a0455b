"""What a recipe's passes cannot be for its model is refused before its images are prepared."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_image_folder
from small_runs import parts_of, run, tiny_recipe

from pugdft.errors import UserError
from pugdft.models import build_model
from pugdft.optim.build import method_of
from pugdft.training.run import read_recipe
from pugdft.training.trial import check_passes

SMALL: dict[str, dict[str, Any]] = {
    "cifar_shake26_2x96d": {"depth": 8, "width": 4},
    "cifar_pyramidnet164_a48": {"depth": 11, "alpha": 6},
}


def check(recipe: dict[str, Any], *overrides: str, world: int = 1) -> None:
    """As a run of so many processes does."""
    read = read_recipe(recipe, overrides)
    torch.manual_seed(0)
    model = build_model(read.model, 3, read.data.image_size, 0).model
    before = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    trained = [parameter.requires_grad for parameter in model.parameters()]
    try:
        check_passes(read, model, method_of(read.optimizer), world)
    finally:
        assert torch.equal(torch.get_rng_state(), before[0])
        assert all(torch.equal(value, before[1][key]) for key, value in model.state_dict().items())
        assert [parameter.requires_grad for parameter in model.parameters()] == trained
        assert all(module.training for module in model.modules())


@pytest.fixture
def recipe(small_recipe: dict[str, Any]) -> dict[str, Any]:
    """Of a network whose last maps have one pixel."""
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    return small_recipe


ONE = (
    "makes passes of one image, and in test_resnet this leaves BatchNorm nothing to average over, for its "
    "features are 1 × 1 there: give train.batch_size or train.micro_batch_size more images a process, or set "
    "train.batch_norm=fixed"
)


@pytest.mark.parametrize(
    ("overrides", "world", "key"),
    [
        ("train.batch_size=1", 1, "train.batch_size"),
        ("train.batch_size=2", 2, "train.batch_size"),
        ("train.batch_size=3", 2, "train.batch_size"),  # two images and one
        ("train.micro_batch_size=1", 1, "train.micro_batch_size"),
        ("train.batch_size=7 train.micro_batch_size=2", 1, "train.micro_batch_size"),  # 2, 2, 2 and 1
        ("train.batch_size=12 train.micro_batch_size=4 train.ascent_batch=0.4", 1, "train.ascent_batch"),
    ],
)
def test_a_pass_of_one_image_is_refused_where_batch_norm_sees_one_pixel_of_it(
    overrides: str, world: int, key: str, recipe: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=re.escape(f"{key}: {ONE}")):
        check(recipe, *overrides.split(), world=world)
    check(recipe, *overrides.split(), "train.batch_norm=fixed", world=world)
    check(recipe, *overrides.split(), "model.name=test_vit", world=world)
    check(recipe, *overrides.split(), "model.name=cifar_resnet18", "model.args={width: 4}", world=world)


@pytest.mark.parametrize(
    ("overrides", "world"),
    [
        ("train.batch_size=2", 1),
        ("train.batch_size=5", 2),
        ("train.batch_size=7 train.micro_batch_size=4", 1),
        ("train.batch_size=12 train.micro_batch_size=4 train.ascent_batch=0.5", 1),
        ("train.batch_size=1 train.freeze=backbone", 1),  # the backbone, with its BatchNorm, is not trained
    ],
)
def test_passes_of_two_images_are_made(overrides: str, world: int, recipe: dict[str, Any]) -> None:
    check(recipe, *overrides.split(), world=world)


def test_the_phase_that_trains_all_counts_too(recipe: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="BatchNorm nothing to average over"):
        check(recipe, "train.batch_size=1", "train.head_epochs=1")


NOISY = [
    *(
        (name, args, layer)
        for (name, args), layer in zip(SMALL.items(), ("ShakeShake", "ShakeDrop"), strict=True)
    ),
    ("test_vit", {"pos_drop_rate": 0.1}, "Dropout"),
    ("test_vit", {"drop_path_rate": 0.1}, "DropPath"),
    ("test_vit", {"attn_drop_rate": 0.1}, "Attention"),  # drops out in a function
    ("test_resnet", {"drop_rate": 0.1}, "ResNet"),
]


@pytest.mark.parametrize(("name", "args", "layer"), NOISY, ids=lambda value: str(value))
def test_ascents_from_a_part_of_the_batch_are_refused_where_they_cannot_replay(
    name: str, args: dict[str, Any], layer: str, small_recipe: dict[str, Any]
) -> None:
    rates = {key: args[key] for key in ("drop_rate", "drop_path_rate") if key in args}
    others = {key: value for key, value in args.items() if key not in rates}
    small_recipe["model"] = {
        "name": name,
        "pretrained": False,
        **rates,
        **({"args": others} if others else {}),
    }
    match = rf"^train\.ascent_batch: {name} draws random numbers in training \(its {layer}\), .*Leave it at 1"
    with pytest.raises(UserError, match=match):
        check(small_recipe, "train.ascent_batch=0.25")
    check(small_recipe)
    check(small_recipe, "train.ascent_batch=0.25", "optimizer.replay_rng=false")
    check(small_recipe, "train.ascent_batch=0.25", "optimizer={name: sgd, lr: 0.1}")
    check(small_recipe, "train.ascent_batch=1")


def test_a_network_that_draws_nothing_may_ascend_from_a_part(small_recipe: dict[str, Any]) -> None:
    check(small_recipe, "train.ascent_batch=0.25")
    small_recipe["model"] |= {"name": "cifar_pyramidnet164_a48"}
    small_recipe["model"]["args"] = {**SMALL["cifar_pyramidnet164_a48"], "shake_drop_rate": 0}
    check(small_recipe, "train.ascent_batch=0.25")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("train.batch_size=1", "train.batch_size: makes passes of one image"),
        (
            "train.ascent_batch=0.5 model.drop_rate=0.1",
            "train.ascent_batch: test_resnet draws random numbers",
        ),
        ("train.ascent_batch=0.5 optimizer.name=looksam", "train.ascent_batch: is for methods that perturb"),
    ],
)
def test_a_run_is_refused_before_its_images_are_prepared_and_after(
    overrides: str, message: str, tmp_path: Path, own_cache: Path
) -> None:
    images = write_image_folder(tmp_path / "insects", {"train": 8, "test": 3}, side=32)
    recipe = tiny_recipe(images)
    recipe["data"]["image_size"] = 32
    with pytest.raises(UserError, match=re.escape(message)):
        run(recipe, tmp_path / "run", *overrides.split())
    assert not list((own_cache / "stores").glob("*/")), "nothing is decoded yet"
    assert not (tmp_path / "run").exists()
    parts_of(recipe)  # prepares them
    with pytest.raises(UserError, match=re.escape(message)):
        run(recipe, tmp_path / "run", *overrides.split())
    assert not (tmp_path / "run").exists()
