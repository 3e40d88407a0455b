"""Recipes: strict, complete in their faults, and the bundled ones as the papers have them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pugdft.bench.optimizer_spec import parse_optimizers
from pugdft.config import yaml
from pugdft.config.load import (
    _OTHER_NAMES,
    apply_override,
    bundled_recipes,
    bundled_tables,
    find_recipe,
    load_recipe,
    recipe_folder,
    recipe_key,
)
from pugdft.config.schema import Recipe
from pugdft.errors import FaultsError, UserError
from pugdft.optim import resolve_spec
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
    assert max(map(len, lines)) <= 120
    is_scratch = name.startswith("scratch_")
    assert recipe.model.pretrained is not is_scratch
    assert ("." in recipe.model.name) is not is_scratch, "the weights tag is named"


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


PUGD_BASE = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
GNP_BASE = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}


@pytest.mark.parametrize("name", [name for name in bundled_recipes() if name.startswith("scratch_")])
def test_a_recipe_from_scratch_has_its_paper_s_protocol_and_says_what_it_costs(name: str) -> None:
    text = find_recipe(name).read_text()
    data = yaml.parse(text)
    head = " ".join(line.strip("# ") for line in text.splitlines() if line.startswith("#"))
    assert "Cost of one seed, " in head
    is_reconstruction, is_other = "_cpa_" in name, "_pyramidnet" in name
    assert ("A RECONSTRUCTION" in head, "NOT THE PAPER'S PROTOCOL" in head) == (is_reconstruction, is_other)
    assert ("Reported, not measured here: " in head) is not is_other
    optimizer, train, images = data["optimizer"], data["train"], data["data"]
    if optimizer["name"] in ("pugd", "sam_gns"):
        assert (optimizer["base"], train["epochs"], train["batch_size"]) == (PUGD_BASE, 100, 100)
        assert optimizer["rho"] == {"pugd": 1.0, "sam_gns": 0.05}[optimizer["name"]]
        assert images["std"] == [0.2023, 0.1994, 0.2010]
        assert not {"mean", "padding", "cutout"} & set(images)
        return
    assert (optimizer["name"], optimizer["alpha"], optimizer["clip"]) == ("gnp", 0.8, 5.0)
    assert "best test epoch" in head or is_other
    if "imagenet" in name:
        assert "NEVER RUN HERE" in head
        assert (optimizer["rho"], optimizer["base"]["weight_decay"], train["epochs"]) == (0.05, 1e-4, 100)
        return
    assert (optimizer["rho"], images["padding"]) == (0.1, "reflect")
    assert ("cutout" in images) is ("cutout" in name or is_other)
    assert (images.get("auto_augment") == "cifar10") is is_other
    assert ("mean" in images) == ("std" in images) == ("cifar100" in name)
    if "wrn" in name or "shake" in name:
        assert (optimizer["base"], train["batch_size"]) == (GNP_BASE, 256)
        assert train["epochs"] == (200 if "wrn" in name else 1800)
    if "vit" in name:
        assert optimizer["base"] == {"name": "adamw", "lr": 1e-3, "weight_decay": 0.3}
        assert (train["epochs"], data["model"]["head_init"]) == (300, "zero")
        rates = [data["model"]["drop_rate"], *data["model"]["args"].values()]
        assert rates == [0.1] * 4  # head, positions, projections, attention


def test_generated_files_are_what_the_generator_writes() -> None:
    sys.path.insert(0, str(recipe_folder()))
    from generate import texts

    for name, text in texts().items():
        assert (recipe_folder() / name).read_text() == text
    tables = {f"tables/{name}.yaml" for name in bundled_tables()}
    assert {f"{name}.yaml" for name in bundled_recipes()} | tables == {*texts(), "quickstart.yaml"}


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


TUNED_PUGD = {
    **MINIMAL,
    "optimizer": {"name": "pugd", "rho": 1.0, "base": {"name": "sgd", "lr": 0.1, "momentum": 0.9}},
    "tuning": {"trials": 5, "gradient_passes": 10},
}


@pytest.mark.parametrize(
    ("overrides", "name", "rho", "base", "momentum"),
    [
        (["optimizer.name=sam"], "sam", 0.05, "sgd", 0.9),
        (["optimizer=sam"], "sam", 0.05, "sgd", 0.9),
        (["optimizer.rho=0.2", "optimizer.name=sam"], "sam", 0.2, "sgd", 0.9),
        (["optimizer={name: sam, rho: 0.2}"], "sam", 0.2, "sgd", 0.9),
        (["optimizer.base.momentum=0.5", "optimizer=asam"], "asam", 0.5, "sgd", 0.5),
        (["optimizer.base=adamw"], "pugd", 1.0, "adamw", None),
        (["optimizer.base.name=rmsprop", "optimizer=sam"], "sam", 0.05, "rmsprop", 0.0),
        (["optimizer.name=pugd"], "pugd", 1.0, "sgd", 0.9),
    ],
)
def test_another_method_keeps_the_base_and_none_of_the_old_options(
    overrides: list[str], name: str, rho: float, base: str, momentum: float | None
) -> None:
    spec = read_recipe(TUNED_PUGD, overrides).optimizer
    assert (spec["name"], spec["rho"]) == (name, rho)
    assert (spec["base"]["name"], spec["base"]["lr"], spec["base"].get("momentum")) == (base, 0.1, momentum)


@pytest.mark.parametrize(
    "entry", ["sgd", "adamw", "sam", "pugd", "looksam", "sgd[momentum=0.5]", "sam+adamw"]
)
def test_an_override_and_an_entry_of_a_bench_mean_the_same(entry: str) -> None:
    method, _, base = entry.partition("+")
    name, _, option = method.rstrip("]").partition("[")
    overrides = [f"optimizer={name}", *([f"optimizer.{option}"] if option else [])]
    overrides += [f"optimizer.base={base}"] if base else []
    of_bench = parse_optimizers(entry)[0].spec(read_recipe(TUNED_PUGD).optimizer)
    assert read_recipe(TUNED_PUGD, overrides).optimizer == resolve_spec(of_bench)


def test_the_cost_of_a_choice_stays_with_the_optimizer_that_was_chosen() -> None:
    assert read_recipe(TUNED_PUGD, ["train.epochs=3"]).tuning
    assert read_recipe(TUNED_PUGD, ["optimizer=sam"]).tuning is None
    own = read_recipe(TUNED_PUGD, ["tuning.trials=7", "optimizer=sam"]).tuning
    assert own is not None
    assert own.trials == 7


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("lr", "optimizer.base.lr"), ("--learning-rate", "optimizer.base.lr"),
        ("wd", "optimizer.base.weight_decay"),
        ("momentum", "optimizer.base.momentum"), ("rho", "optimizer.rho"), ("optim", "optimizer.name"),
        ("epochs", "train.epochs"), ("num_train_epochs", "train.epochs"), ("epohs", "train.epochs"),
        ("BatchSize", "train.batch_size"), ("seed", "train.seed"), ("fp16", "train.precision"),
        ("model", "model.name"), ("dataset", "data.name"), ("img-size", "data.image_size"),
        ("mixup", "data.mixup"),
        ("num_workers", "data.workers"), ("warmup", "schedule.warmup_epochs"),
        ("train.epochs", "train.epochs"),
        ("grad_clip", "optimizer.clip"), ("clip_norm", "optimizer.clip"),
        ("compile", "train.performance.compile"), ("name", ""), ("device", ""), ("", ""), ("x" * 10_000, ""),
    ],
)  # fmt: skip
def test_a_word_of_other_tools_means_a_key(word: str, key: str) -> None:
    assert recipe_key(word) == key
    assert recipe_key(word, has_base=False) == key.replace(".base.", ".")


def test_every_other_name_leads_to_a_key_of_the_schema() -> None:
    schema = json.dumps(Recipe.model_json_schema())
    for place, words in _OTHER_NAMES.items():
        assert all(recipe_key(word, cutoff=1) == place for word in words.split())
        section, _, key = place.partition(".")
        assert section == "optimizer" or f'"{key}"' in schema


def test_a_hint_knows_whether_the_base_stands_alone() -> None:
    assert 'Did you mean "optimizer.lr"?' in faults_of(MINIMAL, "lr=1")["lr"]
    assert 'Did you mean "optimizer.base.lr"?' in faults_of(TUNED_PUGD, "lr=1")["lr"]
    assert 'Did you mean "optimizer.base.lr"?' in faults_of(TUNED_PUGD, "optimizer.lr=1")["optimizer.lr"]


def test_the_known_names_are_listed_once_a_section() -> None:
    words = [f"{section}.{key}=1" for section in ("train", "data", "optimizer") for key in ("a", "b", "c")]
    with pytest.raises(FaultsError) as caught:
        read_recipe(TUNED_PUGD, words)
    assert len(caught.value.faults) == 9
    assert str(caught.value).count(" Known") == 3


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
