"""What doctor says that a recipe needs."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from conftest import write_image_folder
from doctor_lines import named
from torch import nn

from pugdft.config import yaml
from pugdft.config.schema import Recipe
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.doctor.data_needs import PUBLISHED, DataNeeds
from pugdft.doctor.memory import copies_of, memory_of
from pugdft.doctor.needs import device_lines, memory_lines
from pugdft.doctor.output_needs import output_lines
from pugdft.doctor.report import Line
from pugdft.doctor.weight_needs import weight_lines
from pugdft.optim import resolve_spec, summary
from pugdft.optim.methods import METHODS
from pugdft.training.checkpoint import save_checkpoint
from pugdft.training.performance import pick
from pugdft.training.run import finetune, read_recipe


@pytest.fixture
def resolved(small_recipe: dict[str, Any]) -> Recipe:
    return read_recipe(small_recipe)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_counted_copies_are_those_that_the_method_documents(name: str) -> None:
    spec = resolve_spec({"name": name, "base": {"name": "sgd", "lr": 0.01, "momentum": 0.9}})
    documented = summary(name)["memory"]
    own = int(documented[0]) if documented.endswith("P") else 0
    copies, kept = copies_of(spec)
    # Beside its own: the gradient, the momentum, and the sample by which the method's evidence is measured.
    assert copies == pytest.approx(2 + own, abs=0.11)
    assert kept in (1, 2)


def test_copies_follow_the_base() -> None:
    def copies(base: dict[str, Any]) -> tuple[float, float]:
        return copies_of(resolve_spec({"name": "sam", "base": {"lr": 0.01, **base}}))

    assert copies({"name": "sgd"}) == pytest.approx((2, 0), abs=0.11)
    assert copies({"name": "adamw", "layer_decay": 0.7, "no_decay": True}) == pytest.approx((4, 2), abs=0.11)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnet18"])
def test_activations_are_counted_without_any(name: str, precision: str, small_recipe: dict[str, Any]) -> None:
    small_recipe["model"]["name"] = name
    small_recipe["data"]["image_size"] = 64
    small_recipe["train"].update(precision=precision, micro_batch_size=3)
    recipe = read_recipe(small_recipe)
    counted = memory_of(recipe, 3, pick(recipe, "cpu"))
    model = timm.create_model(name, num_classes=3, **({"img_size": 64} if name == "test_vit" else {}))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor.untyped_storage()
        return tensor

    images = torch.randn(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        nn.functional.cross_entropy(model(images).float(), torch.tensor([0, 1, 2]))
    real = sum(storage.nbytes() for storage in kept.values())
    assert counted.activation_bytes == pytest.approx(real, rel=0.02)
    assert counted.parameters == sum(each.numel() for each in model.parameters())
    assert counted.weights_bytes == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))


def test_a_frozen_backbone_is_not_copied(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["freeze"] = "backbone"
    recipe = read_recipe(small_recipe)
    memory = memory_of(recipe, 3, pick(recipe, "cpu"))
    assert memory.trained_bytes == 4 * (64 * 3 + 3)
    assert memory.trained_bytes < memory.weights_bytes / 100


def test_memory_that_is_not_there_is_said(resolved: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(resolved, 3, pick(resolved, "cpu"))
    for free, state in ((2**40, "ok"), (2**29, "problem"), (memory.total_bytes + int(0.86 * 2**30), "note")):
        monkeypatch.setattr("pugdft.doctor.needs.memory_bytes", lambda free=free: (free, free))
        (line,) = memory_lines(memory, resolved, "cpu", retains=False)
        assert line.state == state


def test_a_precision_that_the_device_has_not_is_a_problem(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["precision"] = "fp16"
    (line,) = device_lines(read_recipe(small_recipe), "cpu")
    assert (line.state, "bf16 or fp32" in line.remedy) == ("problem", True)
    small_recipe["train"].update(precision="fp32", performance={"matmul": "tf32"})
    (line,) = device_lines(read_recipe(small_recipe), "cpu")
    assert (line.state, "tf32 needs a GPU" in line.text) == ("problem", True)


def test_data_before_and_after_it_is_decoded(
    small_recipe: dict[str, Any], own_cache: Path, image_folder: Path
) -> None:
    recipe = read_recipe(small_recipe)
    needs = DataNeeds(recipe)
    lines = list(needs.lines())
    assert needs.num_classes == 3
    assert "not yet; 105 images will take 79 KiB" in named(lines, "decoded").text  # 105 · 16² · 3 bytes
    assert not (own_cache / "stores").exists(), "nothing is decoded"
    prepare(open_source(str(image_folder)), 32)
    lines = list(DataNeeds(recipe).lines())
    assert named(lines, "decoded").text.startswith("105 images of 16²")
    small_recipe["train"]["batch_size"] = 100
    assert {line.state for line in lines} == {"ok"}


def test_a_batch_larger_than_the_data_is_a_problem(small_recipe: dict[str, Any], own_cache: Path) -> None:
    small_recipe["train"]["batch_size"] = 100
    line = named(DataNeeds(read_recipe(small_recipe)).lines(), "batch size")
    assert (line.state, "100 is more than 72 images" in line.text) == ("problem", True)


def test_decoded_images_that_do_not_fit_are_a_problem(
    small_recipe: dict[str, Any], own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from pugdft.data import cache as disk_room

    usage = SimpleNamespace(total=10**6, used=10**6 - 1000, free=1000)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda place: usage)
    small_recipe["data"]["storage"] = "decoded"
    assert named(DataNeeds(read_recipe(small_recipe)).lines(), "decoded").state == "problem"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_data_of_the_hub_that_is_not_here_has_a_remedy(
    name: str, small_recipe: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    small_recipe["data"]["name"] = name
    lines = list(DataNeeds(read_recipe(small_recipe)).lines())
    assert lines[0].state == "problem"
    assert f"pugdft data prepare {name}" in lines[0].remedy
    own = write_image_folder(own_cache / "data" / name, {"train": 2, "test": 2})
    lines = list(DataNeeds(read_recipe(small_recipe)).lines())
    assert (lines[0].state, str(own) in lines[0].text) == ("ok", True)


def test_weights_in_a_file_fit_or_do_not(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / "own.safetensors"
    small_recipe["model"]["pretrained"] = str(path)

    def line(tensors: dict[str, torch.Tensor]) -> Line:
        safetensors.torch.save_file(tensors, path)
        recipe = read_recipe(small_recipe)
        return next(iter(weight_lines(recipe, memory_of(recipe, 3, pick(recipe, "cpu")).names)))

    assert line(state).state == "ok"
    missing = line({key: value for key, value in state.items() if "blocks.0" not in key})
    assert (missing.state, "missing, such as blocks.0" in missing.text) == ("problem", True)
    os.truncate(path, 1000)
    (damaged,) = weight_lines(read_recipe(small_recipe), None)
    assert (damaged.state, "damaged" in damaged.text) == ("problem", True)


def test_weights_that_are_not_here_have_a_remedy(
    small_recipe: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_recipe["model"] = {"name": "resnet18.a1_in1k", "pretrained": True}
    recipe = read_recipe(small_recipe)
    (line,) = weight_lines(recipe, None)
    assert (line.state, "resnet18.a1_in1k.safetensors" in line.remedy) == ("problem", True)
    (own_cache / "weights").mkdir(parents=True)
    safetensors.torch.save_file({"x": torch.zeros(1)}, own_cache / "weights/resnet18.a1_in1k.safetensors")
    (line,) = weight_lines(recipe, None)
    assert line.state == "ok"


def test_the_output_folder_s_states(resolved: Recipe, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    def state(folder: Path, recipe: Recipe = resolved) -> Line:
        return named(output_lines(recipe, folder, 1000), "output")

    folder = tmp_path / "run"
    assert "not there yet" in state(folder).text
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.dump(resolved.as_dict()))
    assert "no checkpoint" in state(folder).text

    for steps in (3, 6):
        progress = {"position": {"steps": steps}}
        save_checkpoint(folder, nn.Linear(2, 2), {"state": {}}, progress, {})
    line = state(folder)
    assert (line.state, "goes on from update 6" in line.text) == ("ok", True)
    (folder / "checkpoint" / "weights.safetensors").write_bytes(b"damaged")
    line = state(folder)
    assert (line.state, "goes on from update 3" in line.text) == ("note", True)
    (folder / "checkpoint.previous" / "state.json").write_text("{")
    assert state(folder).state == "problem"

    small_recipe["train"]["seed"] = 5
    line = state(folder, read_recipe(small_recipe))
    assert (line.state, "another recipe" in line.text) == ("problem", True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "at work" in state(folder).text
    assert "at work" not in state(folder).text
    (tmp_path / "file").write_text("")
    assert state(tmp_path / "file").state == "problem"


def test_a_finished_run_and_a_full_disk_are_said(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["train"]["max_steps"] = 1
    recipe = read_recipe(small_recipe)
    finetune(recipe, tmp_path / "done")
    lines = list(output_lines(recipe, tmp_path / "done", 2**60))
    assert "complete" in named(lines, "output").text
    assert named(lines, "room").state == "problem"
