"""``pugdft export``: files that load alone, equality that is measured, and the Hub without a network."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
from bad_inputs.case import Done, call

from pugdft.errors import RunFailed
from pugdft.inference import export as exporting
from pugdft.inference.evaluate import evaluate_model
from pugdft.inference.export import example_images
from pugdft.inference.load import load_model
from pugdft.paths import stay_offline_without_network
from pugdft.records import read_record
from pugdft.training.run import finetune, read_recipe

Invoke = Callable[..., Done]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run ``pugdft export`` in an empty folder, without the Hub's token."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)

    return lambda *words: call(["export", *map(str, words)])


def logits_of(run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """The images that an export is compared on, and what timm's model of the run's folder gives."""
    config = json.loads((run / "config.json").read_text())
    images = example_images(config["pretrained_cfg"])
    with torch.inference_mode():
        return images, timm.create_model(f"local-dir:{run}", pretrained=True).eval()(images)


@pytest.mark.slow
def test_timm_onnx_and_pt2_give_the_logits_of_the_run(photo_run: Path, invoke: Invoke) -> None:
    images, expected = logits_of(photo_run)
    assert images.shape == (64, 3, 48, 48)
    folders = {}
    for format_ in ("timm", "onnx", "pt2"):
        result = invoke(photo_run, "--format", format_)
        assert result.code == 0, result.err
        folders[format_] = Path(result.out.splitlines()[-1])
        assert "on 64 images: the same class for 64, largest difference of a logit" in result.out
    assert {each.name for each in folders["timm"].iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    own = safetensors.torch.load_file(photo_run / "model.safetensors")
    written = safetensors.torch.load_file(folders["timm"] / "model.safetensors")
    assert own.keys() == written.keys()
    assert all(torch.equal(own[key], written[key]) for key in own)
    assert (folders["timm"] / "config.json").read_bytes() == (photo_run / "config.json").read_bytes()

    import onnxruntime

    session = onnxruntime.InferenceSession(folders["onnx"] / "model.onnx")
    program = torch.export.load(folders["pt2"] / "model.pt2").module()
    for part in (images[:1], images[:7]):  # any number of images
        (found,) = session.run(None, {"images": part.numpy()})
        assert (torch.from_numpy(found) - expected[: len(part)]).abs().max() < 1e-4
        assert (program(part) - expected[: len(part)]).abs().max() < 1e-4
    for format_ in ("onnx", "pt2"):
        names = {each.name for each in folders[format_].iterdir()}
        assert names == {f"model.{format_}", "preprocessing.json", "README.md"}
        described = json.loads((folders[format_] / "preprocessing.json").read_text())
        assert described["class_names"] == ["ant", "bee <b>", "cat|*_"]
        assert (described["image_size"], described["mean"]) == (48, [0.5, 0.5, 0.5])
        assert described["output"]["shape"] == ["batch", 3]


def test_a_difference_ends_with_exit_code_3(
    photo_run: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        exporting._WRITERS, "timm", lambda folder, model, images: lambda batch: model(batch) + 0.1
    )
    result = invoke(photo_run, "--push-to-hub", "me/insects", "--dry-run")
    assert result.code == 3
    assert "largest difference of a logit 0.1" in result.out
    assert "would be uploaded" not in result.err


def test_a_run_of_an_older_version_has_no_configuration(photo_run: Path, tmp_path: Path) -> None:
    old = shutil.copytree(photo_run, tmp_path / "old")
    (old / "config.json").unlink()
    made = exporting.export(load_model(old), tmp_path / "new", "timm")
    assert made.agrees
    assert (tmp_path / "new" / "config.json").read_bytes() == (photo_run / "config.json").read_bytes()


class Hub:
    """Takes the place of ``huggingface_hub.HfApi`` and keeps what it is asked for."""

    calls: list[tuple[str, dict[str, Any]]] = []
    fault: Exception | None = None

    def __init__(self, **options: Any) -> None:
        assert "token" not in options

    def create_repo(self, name: str, **options: Any) -> str:
        if self.fault:
            raise self.fault
        self.calls.append((name, options))
        return f"hub/{name}"

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload", options))


def test_what_is_pushed_and_what_only_listed(
    photo_run: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "calls", [])
    result = invoke(photo_run, "--push-to-hub", "me/insects", "--dry-run")
    assert result.code == 0, result.err
    assert "these 3 files would be uploaded to me/insects" in result.err
    assert Hub.calls == []
    folder = Path(result.out.splitlines()[-1])
    assert 'timm.create_model("hf-hub:me/insects", pretrained=True)' in (folder / "README.md").read_text()

    (folder / "private.txt").write_text("is nobody's business")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    monkeypatch.setattr(exporting, "stay_offline_without_network", lambda: False)
    result = invoke(photo_run, "--push-to-hub", "me/insects", "--private")
    assert result.code == 0, result.err
    (name, options), (_, upload) = Hub.calls
    assert (name, options["private"], upload["repo_id"]) == ("me/insects", True, "me/insects")
    assert upload["allow_patterns"] == ["README.md", "config.json", "model.safetensors"]
    assert "hub/me/insects" in result.out

    monkeypatch.setattr(Hub, "fault", OSError("no route"))
    made = exporting.Export(folder, ("README.md",), 64, 64, 0.0, True)
    with pytest.raises(RunFailed, match=r"--push-to-hub me/insects: no route; .* has the export"):
        exporting.push(made, "me/insects")
    monkeypatch.setattr(exporting, "stay_offline_without_network", stay_offline_without_network)
    with pytest.raises(RunFailed, match="there is no network here"):
        exporting.push(made, "me/insects")


def refusal(done: Done) -> str:
    assert (done.code, done.out) == (2, ""), done.err
    assert done.err.startswith("pugdft: ")
    assert done.err.count("\n") == 1, done.err
    return done.err.removeprefix("pugdft: ").rstrip()


def test_what_cannot_be_exported_is_one_message(
    photo_run: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(invoke(photo_run, "--push-to-hub", "me/insects")).startswith("--push-to-hub: no token of")
    assert refusal(invoke(photo_run, "--push-to-hub", "insects", "--dry-run")).endswith("is no USER/NAME")
    assert "--push-to-hub:" in refusal(invoke(photo_run, "--push-to-hub", "me/in sects", "--dry-run"))
    assert "needs --push-to-hub" in invoke(photo_run, "--dry-run").err
    assert "Invalid value for '--format'" in invoke(photo_run, "--format", "tflite").err
    assert "nowhere" in refusal(invoke(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no record.yaml here" in refusal(invoke(tmp_path / "empty"))
    (tmp_path / "file").write_text("")
    assert refusal(invoke(photo_run, "--output", "file")).startswith("--output file: cannot be written")
    assert refusal(invoke(photo_run, "--output", "file/below")).startswith("--output file/below: cannot be")
    bare = shutil.copytree(photo_run, tmp_path / "bare")
    assert "is a run's folder, whose own files stay" in refusal(invoke(photo_run, "--output", str(bare)))
    (bare / "model.safetensors").unlink()
    assert "no stored weights" in refusal(invoke(bare))
    (bare / "model.safetensors").write_bytes(b"damaged")
    assert "has changed since" in refusal(invoke(bare))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find_spec(name))
    words = 'needs onnx, which cannot be imported: pip install "pugdft[onnx]"'
    assert words in refusal(invoke(photo_run, "--format", "onnx"))
    assert not (tmp_path / "exports").exists(), "nothing is left behind"


@pytest.fixture(scope="module")
def narrow_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a network that timm does not have, with an argument."""
    recipe = {
        "model": {"name": "cifar_resnet18", "pretrained": False, "args": {"width": 8}},
        "data": {"name": "bundled", "image_size": 32},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1, "max_steps": 2, "batch_size": 50},
    }
    folder = tmp_path_factory.mktemp("narrow") / "run"
    finetune(read_recipe(recipe), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["onnx", "pt2"])
def test_a_network_that_timm_lacks_needs_no_import_in_other_formats(
    format_: str, narrow_run: Path, invoke: Invoke
) -> None:
    result = invoke(narrow_run, "--format", format_)
    assert "on 64 images: the same class for 64" in result.out, result.err
    assert "pugdft.architectures" not in (Path(result.out.splitlines()[-1]) / "README.md").read_text()


@pytest.mark.slow
def test_a_network_that_timm_lacks_is_handed_on_with_its_arguments_and_its_import(
    narrow_run: Path, invoke: Invoke, tmp_path: Path
) -> None:
    run, record = narrow_run, read_record(narrow_run / "record.yaml")
    assert record.model_label == "cifar_resnet18[width=8]"
    assert record.id.startswith("cifar_resnet18-bundled-sgd-s0-")
    assert record.model is not None
    assert (record.model.registered_by, record.model.parameters) == ("pugdft.architectures", 176_402)
    config = json.loads((run / "config.json").read_text())
    assert (config["architecture"], config["model_args"]["width"]) == ("cifar_resnet18", 8)
    card = (run / "README.md").read_text()
    assert "`cifar_resnet18[width=8]`, trained from scratch" in card
    assert "`pip install pugdft`, and `import pugdft.architectures` before" in card
    lines = card.partition("```python\n")[2].partition("```")[0]
    assert lines.startswith("import pugdft.architectures")
    # As the card has it, in a process of its own; without the import timm knows no such network.
    script = lines.replace("FOLDER", str(run)).replace("image.convert", "Image.new('RGB', (32, 32)).convert")
    script = f"from PIL import Image\n{script}\nprint(tuple(logits.shape))"
    for imported, said in ((True, "(1, 10)"), (False, "Unknown model")):
        text = script if imported else script.replace("import pugdft.architectures", "")
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert said in (done.stdout if imported else done.stderr)
    result = invoke(run, "--format", "timm")
    assert "on 64 images: the same class for 64" in result.out, result.err
    assert evaluate_model(load_model(run)).predictions.metrics() == record.metrics.test  # type: ignore[union-attr]
    page = call(["report", str(run), "--output", str(tmp_path / "page.html")])
    assert page.code == 0, page.err
    assert "cifar_resnet18[width=8]" in (tmp_path / "page.html").read_text()
