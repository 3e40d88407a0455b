"""Where weights come from, which files are read, and what becomes of their head."""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import yaml
from small_runs import Messages, parts_of, run

from pugdft.config.schema import ModelSection
from pugdft.errors import UserError
from pugdft.models import build_model, model_faults
from pugdft.records import read_record
from pugdft.training.run import read_recipe

CLASSES = ["ant", "bee", "cat"]


def network(num_classes: int = 3, seed: int = 5) -> Any:
    torch.manual_seed(seed)
    return timm.create_model("test_vit", num_classes=num_classes, img_size=32)


def build(pretrained: object, name: str = "test_vit", **options: Any) -> Any:
    """The recipe's model as the commands build it."""
    model = {"name": name, "pretrained": pretrained, **options}
    if faults := model_faults(model):
        raise UserError("; ".join(map(str, faults)))
    return build_model(ModelSection.model_validate(model), 3, 32, 0, CLASSES)


def same(built: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, head: bool) -> bool:
    """Whether the backbone's tensors are equal, and the head's too if ``head``."""
    assert built.keys() == wanted.keys()
    heads = [name for name in wanted if name.startswith("head.")]
    assert all(torch.equal(built[name], wanted[name]) for name in wanted if name not in heads)
    return all(torch.equal(built[name], wanted[name]) for name in heads) == head


# --- a run's own weights -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned something."""
    recipe = {
        "model": {"name": "test_vit", "pretrained": False, "args": {"depth": 2}},
        "data": {"name": str(image_folder), "image_size": 32, "crop_padding": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "train": {"epochs": 4, "batch_size": 24},
    }
    folder = tmp_path_factory.mktemp("source") / "run"
    record, _ = run(recipe, folder)
    assert record.metrics is not None
    assert record.metrics.test is not None
    assert record.metrics.test.top1 > 0.5
    return folder


def continued(source: Path | str, recipe: dict[str, Any], folder: Path, *overrides: str) -> Any:
    """One update of nearly no size from other weights, what was said, and the weights."""
    told = Messages()
    small = ["train.epochs=1", "train.max_steps=1", "optimizer={name: sgd, lr: 1e-12}"]
    record, weights = run(recipe, folder, f"model.pretrained={source}", *small, *overrides, observer=told)
    return record, told, weights


@pytest.mark.parametrize("place", ["", "model.safetensors", "record.yaml"])
def test_a_runs_own_weights_keep_their_head_and_its_accuracy(
    place: str, source_run: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    record, told, _ = continued(source_run / place, small_recipe, tmp_path / "run")
    assert record.metrics.test.top1 == read_record(source_run / "record.yaml").metrics.test.top1  # type: ignore[union-attr]
    assert record.model.head.startswith("kept: ")
    assert sum(text.startswith("model.head: kept: ") for text in told.texts) == 1
    recorded = yaml.safe_load((tmp_path / "run" / "record.yaml").read_text())
    assert recorded["model"]["head"] == record.model.head
    assert "head" not in recorded["recipe"]["model"]


def test_model_head_new_replaces_it_and_says_so(
    source_run: Path, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    record, told, weights = continued(source_run, small_recipe, tmp_path / "run", "model.head=new")
    assert record.model.head == "new, as model.head says"
    assert told.among("model.head: new, as model.head says")
    assert record.recipe["model"]["head"] == "new"
    assert not torch.equal(
        weights["head.weight"], safetensors.torch.load_file(source_run / "model.safetensors")["head.weight"]
    )


@pytest.mark.parametrize(
    ("names", "sha256", "head"),
    [
        (CLASSES, "0" * 64, "kept: the class names agree"),
        (["ant", "cat", "bee"], None, 'new: the class names of weights and data differ: "cat" and "bee"'),
        (None, "0" * 64, "new: trained on other images, classes unnamed"),
    ],
)
def test_the_head_is_kept_where_the_class_names_agree_else_where_the_images_do(
    names: list[str] | None, sha256: str | None, head: str, source_run: Path, small_recipe: dict[str, Any],
    tmp_path: Path,
) -> None:  # fmt: skip
    data = yaml.safe_load((source_run / "record.yaml").read_text())
    data["data"] |= {"class_names": names, "sha256": sha256 or data["data"]["sha256"]}
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((source_run / "model.safetensors").read_bytes())
    (folder / "record.yaml").write_text(yaml.safe_dump(data))
    assert parts_of(small_recipe, f"model.pretrained={folder}").backbone.head == head


def test_a_head_of_another_number_of_classes_is_new_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "seven.safetensors"
    safetensors.torch.save_file(network(7).state_dict(), path)
    assert build(str(path)).head == "new: it is for 7 classes, the data has 3"
    with pytest.raises(UserError, match=r"model.head: cannot keep the head: it is for 7 classes, the data"):
        build(str(path), head="keep")
    safetensors.torch.save_file(network().state_dict(), path)
    assert "model.head=keep keeps it" in build(str(path)).head
    kept = build(str(path), head="keep", head_init="zero")
    assert same(kept.model.state_dict(), network().state_dict(), head=True)
    with pytest.raises(UserError, match=r"model.head: keep needs weights"):
        build(False, head="keep")


def test_a_kept_head_changes_the_heads_digest_alone(tmp_path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), tmp_path / "w.safetensors")
    kept, new = (build(str(tmp_path / "w.safetensors"), head=head) for head in ("keep", "new"))
    assert kept.weights_sha256 == new.weights_sha256
    assert kept.head_sha256 != new.head_sha256
    assert new.head_sha256 == build(False).head_sha256  # of the seed alone


def test_a_recipe_without_model_head_has_the_digest_of_before(small_recipe: dict[str, Any]) -> None:
    plain = read_recipe(small_recipe)
    assert "head" not in plain.as_dict()["model"]
    assert read_recipe(small_recipe, ["model.head=auto"]).digest() == plain.digest()
    assert read_recipe(small_recipe, ["model.pretrained=true", "model.head=keep"]).digest() != plain.digest()


def test_a_run_without_weights_or_with_others_is_refused(source_run: Path, tmp_path: Path) -> None:
    (tmp_path / "record.yaml").write_bytes((source_run / "record.yaml").read_bytes())
    safetensors.torch.save_file(network().state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="has changed since the record beside it was written"):
        build(str(tmp_path))
    assert build(str(tmp_path / "model.safetensors")).head.startswith("new: nothing names")
    data = yaml.safe_load((source_run / "record.yaml").read_text()) | {"artifacts": {}, "status": "oom"}
    (tmp_path / "record.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=r"this run left no weights \(oom\)"):
        build(str(tmp_path))


# --- files -------------------------------------------------------------------------------------------------


def prefixed(prefix: str, **more: Any) -> dict[str, Any]:
    return {**{f"{prefix}{name}": tensor for name, tensor in network().state_dict().items()}, **more}


def everything_beside() -> dict[str, Any]:
    """What training loops keep beside the weights."""
    return {
        "state_dict": prefixed("module."),
        "best_acc1": np.float64(71.5),
        "counts": np.arange(3),
        "args": argparse.Namespace(lr=0.1, out=Path("x")),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "meters": defaultdict(list, loss=[0.5]),
        "epoch": 3,
        "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
    }


FILES: dict[str, tuple[str, Callable[[], Any]]] = {
    "timm's .pth.tar": ("best.pth.tar", lambda: {"state_dict": prefixed(""), "arch": "test_vit", "epoch": 1}),
    ".pt": ("w.pt", lambda: prefixed("")),
    "the Hub's .bin": ("pytorch_model.bin", lambda: prefixed("")),
    "no suffix": ("weights", lambda: prefixed("")),
    "DataParallel": ("w.pth", lambda: prefixed("module.")),
    "torch.compile and DDP": ("w.pth", lambda: prefixed("_orig_mod.module.")),
    "a model container": ("w.pth", lambda: {"model": prefixed(""), "scheduler": {"last_epoch": 4}}),
    "Lightning": ("last.ckpt", lambda: {
        "state_dict": prefixed("model.", **{"criterion.weight": torch.ones(3)}),
        "pytorch-lightning_version": "2.6", "callbacks": {}, "hyper_parameters": {"lr": 0.1},
    }),
    "a wrapper's attribute": ("w.ckpt", lambda: {"state_dict": prefixed("net.backbone.")}),
    "containers within containers": ("w.pth", lambda: {"model": {"state_dict": prefixed("")}}),
    "an average beside the weights": ("w.pth", lambda: {
        "state_dict": network(seed=6).state_dict(), "state_dict_ema": prefixed(""),
    }),
    "numpy, Namespace, Path beside it": ("w.pth", everything_beside),
    "parameters": ("w.pth", lambda: dict(network().named_parameters())),
}  # fmt: skip


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old format"])
@pytest.mark.parametrize(("name", "content"), FILES.values(), ids=FILES)
def test_files_are_read_by_their_content(
    name: str, content: Callable[[], Any], old: bool, tmp_path: Path
) -> None:
    torch.save(content(), tmp_path / name, _use_new_zipfile_serialization=not old)
    built = build(str(tmp_path / name), head="keep")
    assert built.tag == f"file:{name}"
    assert same(built.model.state_dict(), network().state_dict(), head=True)


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w"])
def test_safetensors_under_another_name_are_read(name: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(network().state_dict(), tmp_path / name)
    assert same(build(str(tmp_path / name)).model.state_dict(), network().state_dict(), head=False)


def test_of_two_models_in_a_file_none_is_taken_by_chance(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"student": prefixed(""), "teacher": prefixed("")}, path)
    with pytest.raises(UserError, match=r"w.pth: holds several models: student, teacher. Save one of them"):
        build(str(path))


def test_a_refused_file_says_why_and_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"model": network(), "epoch": 1}, path)
    with pytest.raises(UserError, match=r"no code in a file is run. .*convert it.* `x\[KEY\].state_dict\(\)"):
        build(str(path))
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(UserError, match=r"TorchScript archive.*torch.jit.load\(FILE\).state_dict\(\)"):
        build(str(path))
    path.write_text("<html>404</html>")
    with pytest.raises(UserError, match=r"not readable as weights: .*a file of safetensors or torch.save"):
        build(str(path))


# --- what timm resolves ------------------------------------------------------------------------------------


def export(folder: Path, **config: Any) -> Path:
    """A folder as timm's ``save_for_hf`` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = network()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    look = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    look |= {"classifier": "head", "input_size": [3, 32, 32], "fixed_input_size": True, **config}
    about = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": look}
    (folder / "config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same in the Hub's cache; there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--small.v1"
    export(repository / "snapshots" / ("a" * 40), label_names=CLASSES)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    return "hf-hub:someone/small.v1"


def test_a_name_on_the_hub_is_resolved_by_timm(on_hub: str, small_recipe: dict[str, Any]) -> None:
    small_recipe["model"] = {"name": on_hub}
    backbone = parts_of(small_recipe).backbone
    assert (backbone.mean, backbone.interpolation) == ((0.1, 0.2, 0.3), "bilinear")
    assert (backbone.tag, backbone.head) == (on_hub, "kept: the class names agree")
    assert same(backbone.model.state_dict(), network().state_dict(), head=True)
    random, plain = build(False, on_hub), build(False)
    assert random.mean == backbone.mean
    assert same(random.model.state_dict(), plain.model.state_dict(), head=True)


def test_a_name_in_a_folder_is_resolved_by_timm(tmp_path: Path) -> None:
    folder = export(tmp_path / "exported")
    built = build(True, f"local-dir:{folder}")
    assert built.mean == (0.1, 0.2, 0.3)
    assert built.tag == f"local-dir:{folder}"
    assert built.head.startswith("new: nothing names the classes of the weights' head; model.head=keep")
    assert same(built.model.state_dict(), network().state_dict(), head=False)


def test_weights_of_the_hub_or_a_folder_start_a_model_of_the_registry(on_hub: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trained on images with mean .* set model.name=hf-hub:someone"):
        build(on_hub)
    own = timm.get_pretrained_cfg("test_vit")
    look = {"mean": own.mean, "std": own.std, "interpolation": own.interpolation}
    folder = export(tmp_path / "exported", **look)
    export(tmp_path / "hub/models--someone--small.v1/snapshots" / ("a" * 40), label_names=CLASSES, **look)
    for place in (on_hub, f"local-dir:{folder}", str(folder)):
        model_faults.__globals__["resolve_model"].cache_clear()
        built = build(place, head="keep")
        assert same(built.model.state_dict(), network().state_dict(), head=True)
    (folder / "config.json").unlink()  # a folder with a file of weights is enough
    assert same(build(str(folder)).model.state_dict(), network().state_dict(), head=False)
    with pytest.raises(UserError, match=r"is a test_vit, not test_resnet"):
        build(on_hub, "test_resnet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"),
        ("hf-hub:timm/resnet18.a1_in1k", "timm cannot resolve it: .*copy the repository's files"),
        ("https:timm/x", "Unknown model source"),
        ("local-dir:nowhere", "timm cannot resolve it: Config file not found: nowhere/config.json"),
        ("hf-hub:", "has no model id"),
        ("resnet18.nothing", 'has no weights "nothing". Known: a1_in1k'),
        ("rasnet18", 'timm has no model "rasnet18". Did you mean'),
    ],
)
def test_a_name_that_cannot_be_resolved_is_refused_at_the_door_with_a_true_remedy(
    name: str, said: str, small_recipe: dict[str, Any]
) -> None:
    small_recipe["model"] = {"name": name}
    with pytest.raises(UserError, match=f"model.name: .*{said}"):
        read_recipe(small_recipe)


def test_an_older_runs_folder_as_the_models_name_is_told_where_it_belongs(
    source_run: Path, tmp_path: Path
) -> None:
    older = shutil.copytree(source_run, tmp_path / "run", ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(UserError, match=r"is a run's folder: give its model's name here, and the folder as"):
        build(True, f"local-dir:{older}")
