"""``pugdft predict`` and ``load_model``: the classes of images, as the run itself predicts them."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from pugdft.cli import main
from pugdft.errors import UserError
from pugdft.inference.load import load_model
from pugdft.inference.predict import ImageReader, find_images, predict
from pugdft.predictions import read_predictions

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command in this process: its exit code, stdout and stderr."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["pugdft", *map(str, arguments)])
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as end:
            main.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


def test_a_photo_predicts_what_the_run_recorded(trained: Path, turned_photos: Path, cli: Cli) -> None:
    recorded = read_predictions(trained / "predictions.npz")
    assert recorded.path is not None
    code, out, err = cli("predict", trained, turned_photos / "test", "--top-k", "3")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert "15 images" in err
    assert list(rows[0]) == [
        "path",
        "class",
        "confidence",
        "class_2",
        "confidence_2",
        "class_3",
        "confidence_3",
    ]
    names = ("ant", "bee", "cat")
    assert [row["path"] for row in rows] == [str(turned_photos / path) for path in recorded.path]
    assert [row["class"] for row in rows] == [names[number] for number in recorded.prediction]
    confidences = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidences, recorded.confidence, atol=1e-6)
    assert all({row["class"], row["class_2"], row["class_3"]} == set(names) for row in rows)
    # The reader's inputs are the run's own: pixels of every kind of image, in its batches.
    loaded = load_model(trained)
    samples = [str(turned_photos / path) for path in recorded.path]
    small = list(predict(loaded, samples, batch_size=4))
    assert [each.classes[0] for each in small] == recorded.prediction.tolist()


def test_forms_lists_and_relative_paths(
    trained: Path, turned_photos: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(turned_photos)
    code, out, _ = cli(
        "predict", trained, "test/ant", "./test/bee/000.png", "--format", "jsonl", "--top-k", "2"
    )
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [line["path"] for line in lines] == [f"test/ant/00{n}.png" for n in range(5)] + [
        "./test/bee/000.png"
    ]
    assert all(line["top"][0] == {"class": line["class"], "confidence": line["confidence"]} for line in lines)
    assert all(len(line["top"]) == 2 for line in lines)
    given = b"test/cat/001.png\n\ntest/ant/000.png\r\n"
    output = tmp_path / "out.txt"
    code, out, _ = cli("predict", trained, "-", "--format", "table", "--output", output, stdin=given)
    assert (code, out) == (0, "")
    shown = [line.split() for line in output.read_text().splitlines()]
    assert [line[-1] for line in shown] == ["test/cat/001.png", "test/ant/000.png"]
    assert all(line[0] in ("ant", "bee", "cat") and line[1].endswith("%") for line in shown)
    assert list(tmp_path.iterdir()) == [output], "no temporary file is left"


def test_images_that_do_not_decode_are_named_and_the_others_are_predicted(
    trained: Path, turned_photos: Path, cli: Cli, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    shutil.copytree(turned_photos / "test" / "bee", folder)
    (folder / "000.png").write_bytes(b"no image")
    whole = (folder / "003.png").read_bytes()
    (folder / "003.png").write_bytes(whole[: len(whole) // 2])
    odd = os.fsdecode(os.fsencode(folder) + b"/n\xe9.png")
    shutil.copy(folder / "001.png", odd)
    code, out, err = cli("predict", trained, folder)
    paths = [row["path"] for row in csv.DictReader(io.StringIO(out))]
    assert code == 1
    assert [Path(path).name for path in paths] == ["001.png", "002.png", "004.png", "n\\udce9.png"]
    assert "000.png: is not an image" in err
    assert "003.png: this image does not decode" in err
    assert "2 of 6 images left out" in err
    output = tmp_path / "none.csv"
    code, out, err = cli("predict", trained, folder / "000.png", "--output", output)
    assert (code, out) == (1, "")
    assert "1 of 1 image left out" in err
    assert not output.exists()


def test_usage_errors_are_one_message_and_leave_nothing(
    trained: Path, turned_photos: Path, cli: Cli, tmp_path: Path
) -> None:
    empty, unfinished, image = (
        tmp_path / "empty",
        tmp_path / "unfinished",
        turned_photos / "test" / "ant" / "000.png",
    )
    empty.mkdir()
    unfinished.mkdir()
    (unfinished / "recipe.yaml").write_text("model: {}")
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    changed = tmp_path / "changed"
    shutil.copytree(trained, changed)
    tensors = safetensors.torch.load_file(changed / "model.safetensors")
    safetensors.torch.save_file(
        {name: each + 1 for name, each in tensors.items()}, changed / "model.safetensors"
    )
    weights = tmp_path / "weights.safetensors"
    shutil.copy(trained / "model.safetensors", weights)
    for arguments, words in (
        ((turned_photos, image), "no record.yaml here"),
        ((unfinished, image), "has left no record.yaml yet"),
        ((bare, image), "no stored weights"),
        ((changed, image), "has changed since the record beside it was written"),
        ((tmp_path / "nothing", image), "no such file or folder"),
        (("resnet81", image), 'Did you mean "resnet18"?'),
        ((weights, image), "--model NAME must say of which timm model"),
        ((weights, image, "--model", "test_vit"), "holds no classifier of test_vit"),
        ((trained, image, "--model", "resnet18"), "--model: is for a file of weights"),
        ((trained, empty), "holds no image"),
        ((trained, trained), "is a run's folder, where images are expected"),
        ((trained, turned_photos / "no.png"), "no.png: no such file or folder"),
        ((trained, image, "--top-k", "0"), "--top-k"),
        ((trained, image, "--top-k", "4"), "--top-k: must be from 1 to the model's 3 classes, not 4"),
        ((trained, image, "--output", empty), "is a folder; give a file"),
        ((trained, image, "--output", empty / "no" / "file.csv"), "cannot be written"),
        ((trained, "-"), "the list of paths on stdin is empty"),
    ):
        code, out, err = cli("predict", *arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert words in " ".join(err.split()), (arguments, err)
    code, _, err = cli("predict", trained, "-", stdin=f"{image}\nlost.png\ngone.png\n".encode())
    assert code == 2
    assert "lost.png" in err
    assert "gone.png" in err
    assert list(empty.iterdir()) == []


def test_every_kind_of_name_loads_the_same_model(trained: Path, tmp_path: Path) -> None:
    loaded = load_model(trained)
    assert not loaded.model.training
    assert loaded.class_names == ("ant", "bee", "cat")
    assert loaded.preprocessing.image_size == 32
    weights, checkpoint = tmp_path / "weights.safetensors", tmp_path / "old.pth"
    shutil.copy(trained / "model.safetensors", weights)
    torch.save({"state_dict": safetensors.torch.load_file(weights)}, checkpoint)
    inputs = torch.rand(2, 3, 32, 32)
    with loaded.computing():
        expected = loaded.model(inputs)
    for name, model in (
        (trained / "record.yaml", None),
        (trained / "model.safetensors", None),
        (weights, "test_resnet"),
        (checkpoint, "test_resnet"),
    ):
        other = load_model(name, model)
        with other.computing():
            assert torch.equal(other.model(inputs), expected), name
        assert other.class_names == (None if model else ("ant", "bee", "cat"))
    assert load_model(checkpoint, "test_resnet").preprocessing.image_size == 160, "timm's own"


def test_a_timm_folder_is_read_as_timm_reads_it(turned_photos: Path, tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=4).eval()
    config = {
        "input_size": [3, 48, 48],
        "crop_pct": 0.8,
        "interpolation": "bilinear",
        "label_names": list("wxyz"),
    }
    timm.models.save_for_hf(model, tmp_path, model_config=config)
    loaded = load_model(f"local-dir:{tmp_path}")
    assert loaded.class_names == ("w", "x", "y", "z")
    images = find_images([str(turned_photos / "test" / "bee")], print)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(loaded.model))
    upright = [each for number, each in enumerate(images) if number % 4 != 1]  # timm does not turn images
    theirs = torch.stack([transform(Image.open(each).convert("RGB")) for each in upright])
    batch = next(ImageReader.of(loaded)(_samples(upright)))
    torch.testing.assert_close(batch.inputs, theirs, atol=1e-5, rtol=0)
    with torch.inference_mode():
        classes = model(theirs).argmax(1).tolist()
    assert [each.classes[0] for each in predict(loaded, upright)] == classes
    with pytest.raises(UserError, match="from 1 to the model's 4 classes"):
        predict(loaded, upright, top_k=5)


def _samples(paths: list[str]):  # type: ignore[no-untyped-def]
    from pugdft.data.source import EncodedImage

    return [EncodedImage(Path(path), 0, path) for path in paths]
