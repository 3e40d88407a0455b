"""Recipes: strict, complete in their faults, and the bundled ones as the papers have them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pugdft.config import yaml
from pugdft.config.load import apply_override, bundled_recipes, find_recipe, load_recipe, recipe_folder
from pugdft.config.schema import Recipe
from pugdft.errors import FaultsError, UserError
from pugdft.training.run import read_recipe

MINIMAL: dict[str, Any] = {
    "model": {"name": "resnet18"},
    "data": {"name": "bundled"},
    "optimizer": {"name": "sgd", "lr": 0.1},
}


def faults_of(recipe: dict[str, Any], *overrides: str) -> dict[str, str]:
    with pytest.raises(FaultsError) as caught:
        read_recipe(recipe, overrides)
    return {fault.where: fault.message for fault in caught.value.faults}


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipe_is_valid_and_opens_with_purpose_and_command(name: str) -> None:
    recipe = read_recipe(name)
    lines = find_recipe(name).read_text().splitlines()
    assert lines[0].startswith("# ")
    assert lines[2].strip("# ").startswith(f"pugdft finetune {name}")
    assert "." in recipe.model.name, "the weights tag is named"


def test_every_backbone_and_data_set_of_the_papers_has_a_recipe() -> None:
    backbones = {
        "resnet18": 0.01, "resnet50": 0.01, "resnet101": 0.01, "resnet152": 0.01,
        "wrn50_2": 0.01, "wrn101_2": 0.01, "vit": 0.001, "deit": 0.005,
    }  # fmt: skip
    for backbone, lr in backbones.items():
        for dataset in ("cifar10", "cifar100", "tiny_imagenet"):
            recipe = load_recipe(f"{backbone}_{dataset}")
            assert recipe.data.name == dataset
            assert recipe.data.image_size == 224
            base = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 5e-4}
            assert recipe.optimizer == {"name": "pugd", "rho": 1.0, "base": base}
            assert (recipe.train.epochs, recipe.train.batch_size) == (100, 100)
            assert recipe.schedule.name == "cosine"


def test_generated_recipes_are_what_the_generator_writes() -> None:
    sys.path.insert(0, str(recipe_folder()))
    from generate import recipe_texts

    for name, text in recipe_texts().items():
        assert (recipe_folder() / name).read_text() == text
    assert {f"{name}.yaml" for name in bundled_recipes()} == {*recipe_texts(), "quickstart.yaml"}


def test_a_name_a_path_and_a_documented_path_find_the_same_recipe(tmp_path: Path) -> None:
    assert find_recipe("vit_cifar100").samefile(find_recipe("recipes/vit_cifar100.yaml"))
    assert find_recipe("vit_cifar100.yaml") == recipe_folder() / "vit_cifar100.yaml"
    with pytest.raises(UserError, match=r'Did you mean "vit_cifar10"\?.*recipes ls'):
        find_recipe("vit_cifar10O")
    with pytest.raises(UserError, match="is a folder"):
        find_recipe(tmp_path)


def test_every_fault_is_reported_at_once_with_its_place_and_a_close_match() -> None:
    faults = faults_of(
        {
            "modle": {},
            "model": {"name": "resnet18", "pretraind": True},
            "data": {"name": 3, "image_size": "big"},
            "optimizer": {"name": "pgud"},
            "train": {"epochs": 0, "batch_size": 1.5, "precision": "fp61"},
        }
    )
    assert 'Did you mean "model"?' in faults["modle"]
    assert 'Did you mean "pretrained"?' in faults["model.pretraind"]
    assert 'Did you mean "pugd"?' in faults["optimizer.name"]
    assert "'fp32', 'bf16' or 'fp16'" in faults["train.precision"]
    assert {"data.name", "data.image_size", "train.epochs", "train.batch_size"} <= set(faults)


def test_missing_sections_are_named() -> None:
    assert set(faults_of({"model": {}})) == {"model.name", "data", "optimizer"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("5.0e-4", 5e-4), ("1E3", 1000.0), (".5", 0.5), ("-2", -2), ("010", 10), ("0x10", 16),
        ("true", True), ("no", "no"), ("on", "on"), ("1:30", "1:30"), ("~", None), ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"), ("1.2.3", "1.2.3"), (".inf", float("inf")), ("'1'", "1"),
    ],
)  # fmt: skip
def test_yaml_scalars_mean_what_people_mean(text: str, value: Any) -> None:
    parsed = yaml.parse(f"x: {text}")["x"]
    assert parsed == value
    assert type(parsed) is type(value)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
def test_what_is_dumped_is_what_is_read(value: Any) -> None:
    assert yaml.parse(yaml.dump({"value": value}))["value"] == value


@given(st.dictionaries(st.sampled_from([*Recipe.model_fields, "x"]), PLAIN, max_size=4))
def test_no_mapping_breaks_the_reader(data: dict[str, Any]) -> None:
    with pytest.raises(FaultsError):
        load_recipe(data)


def test_overrides_lie_over_the_recipe_and_are_yaml() -> None:
    recipe = read_recipe(MINIMAL, ["train.epochs=3", "optimizer.lr=1e-3", "model.pretrained=false"])
    assert (recipe.train.epochs, recipe.optimizer["lr"], recipe.model.pretrained) == (3, 1e-3, False)
    with_equals: dict[str, Any] = {}
    apply_override(with_equals, "data.name=a=b")
    assert with_equals == {"data": {"name": "a=b"}}


def test_the_resolved_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = read_recipe("vit_cifar100")
    path = tmp_path / "resolved.yaml"
    path.write_text(yaml.dump(recipe.as_dict()))
    again = read_recipe(path)
    assert again == recipe
    assert again.digest() == recipe.digest() != read_recipe("vit_cifar10").digest()


def test_the_json_schema_covers_every_section() -> None:
    schema = json.loads(json.dumps(Recipe.model_json_schema()))
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert schema["additionalProperties"] is False
