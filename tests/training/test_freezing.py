"""What is frozen when, dropout in two passes, arguments of the model: what each does to a real run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_image_folder
from small_runs import (
    ADAMW,
    IMAGES,
    SGD,
    Messages,
    cut_run,
    differences,
    largest_difference,
    parts_of,
    run,
    tiny_recipe,
    whole_run,
)

from pugdft.errors import UserError
from pugdft.optim.methods import METHODS
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import load
from pugdft.training.trainer import Observer

SAM = {"name": "sam", "base": SGD}
HEAD = {"fc.weight", "fc.bias"}
STEM = ["conv1.*", "bn1.*", "layer1.*"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tiny") / "insects", IMAGES)


class EachEpoch(Observer):
    """Keeps the weights as they were before the first epoch and after each."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model
        self.weights = [self.now()]

    def now(self) -> dict[str, torch.Tensor]:
        return {name: each.clone() for name, each in self.model.state_dict().items()}

    def on_epoch(self, row: dict[str, Any]) -> None:
        self.weights.append(self.now())


def changes_of(recipe: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Any:
    """Names of the tensors that each epoch changed, and all names."""
    from pugdft.training import run as run_module

    kept: list[EachEpoch] = []
    setup = run_module.Run.__post_init__

    def watched(self: Any) -> None:
        kept.append(EachEpoch(self.components.backbone.model))
        self.observer = kept[-1]
        setup(self)

    monkeypatch.setattr(run_module.Run, "__post_init__", watched)
    record, _ = run(recipe, folder, *overrides)
    assert record.status == "completed", record.error
    before, *after = kept[0].weights
    found = []
    for weights in after:
        found.append({name for name in weights if not torch.equal(weights[name], before[name])})
        before = weights
    return found, set(before)


def test_the_head_then_all_but_the_patterns_then_all_are_trained(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And BatchNorm keeps its statistics as long as it is frozen."""
    found, every = changes_of(
        tiny_recipe(images, SAM, epochs=3), tmp_path, monkeypatch,
        "train.head_epochs=1", f"train.freeze={STEM}", "train.unfreeze_epoch=2",
    )  # fmt: skip
    stem = {name for name in every if name.split(".")[0] in ("conv1", "bn1", "layer1")}
    assert any("running_mean" in name for name in stem)
    assert found == [HEAD, every - stem, every]


def test_batch_norm_that_is_frozen_in_part_still_follows_the_batches(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(images, SGD, epochs=1)
    found, every = changes_of(recipe, tmp_path, monkeypatch, "train.freeze=['*.bias', 'conv1.?.weight']")
    whole = {"conv1.1", "conv1.4"}  # BatchNorm layers of the stem, whose scale is frozen too
    frozen = {name for name in every if name.endswith(".bias") or name.startswith("conv1")}
    assert found == [every - frozen]
    assert {"bn1.running_mean", "layer1.0.bn1.running_mean"} <= found[0]
    assert {f"{each}.running_mean" for each in whole} <= frozen


def test_a_frozen_backbone_is_unfrozen_as_head_epochs_do(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, SAM)
    first = run(recipe, tmp_path / "first", "train.head_epochs=1")[1]
    second = run(recipe, tmp_path / "second", "train.freeze=backbone", "train.unfreeze_epoch=1")[1]
    assert largest_difference(first, second) == 0
    assert largest_difference(first, run(recipe, tmp_path / "all")[1]) > 0


# Those whose rules keep a state of each parameter, and one that perturbs only some of them.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "base"), [("pugd", ADAMW), ("sam_on", SGD), ("looksam", SGD), ("vasso", ADAMW)]
)
def test_every_phase_goes_on_to_the_same_bits(
    name: str, base: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    """Stopped in the epoch of the head alone and in the one after it; with dropout, erasing and jitter."""
    assert name in METHODS
    options = {"k": 3} if name == "looksam" else {}
    recipe = tiny_recipe(images, {"name": name, "base": base, **options}) | {"train": {
        "epochs": 3, "batch_size": 12, "head_epochs": 1, "freeze": ["conv1.*", "bn1.*"], "unfreeze_epoch": 2,
        "micro_batch_size": 6,
    }}  # fmt: skip
    recipe["model"] |= {"drop_rate": 0.3, "drop_path_rate": 0.2}
    recipe["data"] |= {"random_erasing": {"mode": "pixel"}, "color_jitter": {"brightness": 0.4, "hue": 0.1}}
    whole = whole_run(recipe, tmp_path / "whole")
    assert differences(whole, cut_run(recipe, tmp_path / "cut", (1, 4))) == []


def test_what_the_patterns_matched_is_said_with_counts(images: Path, tmp_path: Path) -> None:
    messages = Messages()
    recipe = tiny_recipe(images, SGD, epochs=2, freeze=["conv1.0.*", "bn1.*"], head_epochs=1)
    record, _ = finetune(read_recipe(recipe), tmp_path, observer=messages)
    sizes = {name: each.numel() for name, each in parts_of(recipe).backbone.model.named_parameters()}
    assert record.model is not None
    assert record.model.parameters == sum(sizes.values())
    stem = sizes["conv1.0.weight"] + sizes["bn1.weight"] + sizes["bn1.bias"]
    assert messages.texts[:4] == [
        f"train.freeze: conv1.0.*: 1 parameter with {sizes['conv1.0.weight']:,} weights",
        f"train.freeze: bn1.*: 2 parameters with {2 * sizes['bn1.bias']:,} weights",
        f"train.head_epochs: the head alone, 2 parameters with {sizes['fc.weight'] + 3:,} weights, is "
        "trained for 1 epoch",
        f"train.freeze: 3 parameters with {stem:,} weights of {sum(sizes.values()):,} are frozen",
    ]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.freeze=[layer1]"], r'"layer1" matches no .* Known: conv1\.\*, .*mean "layer1\.\*"\?$'),
        (["train.freeze=[fc.wieght]"], r'mean "fc\.weight"\?$'),
        (["train.freeze=['*']", "train.unfreeze_epoch=1"], "freezes all that is trained"),
        (["train.freeze=['fc.*']", "train.head_epochs=1"], "freezes the head, which head_epochs trains"),
        (["train.unfreeze_epoch=1"], "nothing is frozen"),
        (["train.freeze=backbone", "train.head_epochs=1"], "trains the head alone already"),
        (["train.freeze=['fc.*']", "train.unfreeze_epoch=2"], "must be less than train.epochs"),
        (["train.freeze=[conv1.*]", "train.unfreeze_epoch=1", "train.head_epochs=1"], "more than train.h"),
        (["train.freeze=backbone", "model.drop_rate=0.1"], "model.drop_rate: has no effect while"),
        (["train.freeze=bakcbone"], "must be none, backbone, or a list of patterns"),
        (["train.freeze=[]"], "must be none, backbone, or a list of patterns"),
        (["model.args={depth: 3, wings: 2}"], "args.depth: timm's test_resnet does not take it\n.*wings"),
        (["model.args={layer: 3}"], 'args.layer: timm.s test_resnet does not take it. Did you mean "layers"'),
        (["model.args={num_classes: 3}"], "num_classes: cannot be given here: the data decides it"),
        (["model.args={checkpoint_path: /etc/passwd}"], "checkpoint_path: cannot be given here"),
        (["model.args={act_layer: {a: 1}}"], "act_layer: must be a number, true, false, a word, or a list"),
        (["model.args={global_pool: nowhere}"], "model.args: timm cannot build test_resnet with glo"),
        (["model.name=vgg11", "model.drop_path_rate=0.1"], "drop_path_rate: timm's vgg11 does not take it"),
        (["model.name=test_vit", "data.image_size=32", "model.args={global_pool: ''}"], "is no classifier"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_sentence(overrides: list[str], words: str, images: Path) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        load(read_recipe(tiny_recipe(images, SGD), overrides))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_resnet", "test_vit"])
def test_both_passes_drop_the_same(model: str, images: Path, tmp_path: Path) -> None:
    """With a radius that changes no weight, the second gradient is the first one: SAM is then its base."""
    recipe = tiny_recipe(images, SGD, epochs=1, micro_batch_size=4)
    recipe["model"] = {"name": model, "pretrained": False, "drop_rate": 0.5, "drop_path_rate": 0.4}
    recipe["data"]["image_size"] = 32
    if model == "test_resnet":  # else a branch is 0 at the start, where ReLU's derivative jumps
        recipe["model"]["args"] = {"zero_init_last": False}
    base = run(recipe, tmp_path / "base")[1]
    tiny = {"name": "sam", "rho": 1e-30, "base": SGD}
    statistics = {name for name in base if "running_" in name or "num_batches" in name}
    kept = {name: each for name, each in base.items() if name not in statistics}

    def largest(name: str, **options: Any) -> float:
        weights = run(recipe | {"optimizer": tiny | options}, tmp_path / name)[1]
        return largest_difference(kept, {key: weights[key] for key in kept})

    assert largest("sam") == 0
    assert largest("not replayed", replay_rng=False) > 1e-4
    recipe["model"] |= {"drop_rate": 0.0, "drop_path_rate": 0.0}
    assert largest("without") > 1e-4


def test_arguments_reach_timm_and_old_digests_stay(images: Path) -> None:
    recipe = tiny_recipe(images, SGD)
    recipe["model"] |= {"args": {"act_layer": "gelu", "layers": [2, 1, 1, 1]}, "drop_rate": 0.25}
    model: Any = parts_of(recipe).backbone.model
    assert len(model.layer1) == 2
    assert type(model.act1).__name__ == "GELU"
    assert model.drop_rate == 0.25
    plain = read_recipe(tiny_recipe(images, SGD))
    defaults = ["model.args={}", "model.drop_rate=null", "train.head_epochs=0", "data.color_jitter=null"]
    assert read_recipe(tiny_recipe(images, SGD), defaults).digest() == plain.digest()
    assert not {"args", "drop_rate"} & set(plain.as_dict()["model"])
    assert read_recipe(recipe).as_dict()["model"]["args"] == {"act_layer": "gelu", "layers": [2, 1, 1, 1]}
