"""A run's folder is a timm repository: timm's own transform and model give the recorded predictions."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard
from PIL import Image
from small_runs import tiny_recipe
from torch.nn import functional

from pugdft.config.schema import ModelSection
from pugdft.data.decode import decode
from pugdft.data.source import EncodedImage
from pugdft.data.transforms import ToInput
from pugdft.errors import UserError
from pugdft.inference.evaluate import evaluate_model
from pugdft.inference.export import export
from pugdft.inference.load import load_model
from pugdft.models import build_model
from pugdft.records import KeptEpoch, RunRecord, read_record
from pugdft.reproduce import verify
from pugdft.training.run import finetune, read_recipe
from pugdft.training.timm_repository import model_card

HALF = (0.5, 0.5, 0.5)


def check_equality(run: Path, photos: Path) -> None:
    """Compare timm's predictions of the original files with the stored ones, image by image."""
    record, stored = read_record(run / "record.yaml"), np.load(run / "predictions.npz")
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    opened = [Image.open(photos / path).convert("RGB") for path in stored["path"]]
    with torch.inference_mode():
        logits = model(torch.stack([transform(image) for image in opened]))
    labels = torch.from_numpy(stored["label"])
    assert np.array_equal(logits.argmax(1).numpy(), stored["prediction"])
    assert record.metrics is not None
    assert record.metrics.test is not None
    assert float((logits.argmax(1) == labels).double().mean()) == record.metrics.test.top1
    losses = functional.cross_entropy(logits, labels, reduction="none").numpy()
    assert np.abs(losses - stored["loss"]).max() < 1e-5


def test_photos_get_from_timm_what_is_recorded(photo_run: Path, photos: Path) -> None:
    check_equality(photo_run, photos)
    config = json.loads((photo_run / "config.json").read_text())
    assert config["label_names"] == ["ant", "bee <b>", "cat|*_"]
    assert config["pretrained_cfg"]["input_size"] == [3, 48, 48]
    assert "license" not in config["pretrained_cfg"]


def test_enlarged_images_get_it_with_the_resize_of_pillow(image_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(image_folder, epochs=1)
    recipe["data"] |= {"image_size": 40, "resize": "pillow"}
    record, _ = finetune(read_recipe(recipe), tmp_path)
    assert record.data is not None
    assert record.data.stored_size == 16
    check_equality(tmp_path, image_folder)
    assert "that it was evaluated on" in (tmp_path / "README.md").read_text()
    # Without, the pixels differ, and the card says so.
    assert record.recipe["data"].pop("resize") == "pillow"
    assert "in floating point" in model_card(record)


OWN_LOOK = {"mean": [0.4, 0.5, 0.45], "std": [0.2023, 0.1994, 0.201], "padding": "reflect"}


@pytest.mark.slow
def test_a_mean_and_deviation_of_the_recipe_go_wherever_the_model_goes(
    image_folder: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(image_folder, epochs=1)
    recipe["data"] |= OWN_LOOK
    run = tmp_path / "run"
    record, _ = finetune(read_recipe(recipe), run)
    plain, _ = finetune(read_recipe(tiny_recipe(image_folder, epochs=1)), tmp_path / "plain")
    assert record.metrics is not None
    assert plain.metrics is not None
    assert record.metrics.test != plain.metrics.test  # or nothing below could fail
    config = json.loads((run / "config.json").read_text())["pretrained_cfg"]
    assert (config["mean"], config["std"]) == (OWN_LOOK["mean"], OWN_LOOK["std"])
    check_equality(run, image_folder)  # timm's transform, model and folder
    assert verify(run).agrees
    assert evaluate_model(load_model(run)).predictions.metrics() == record.metrics.test
    made = export(load_model(run), tmp_path / "onnx", "onnx")
    described = json.loads((made.folder / "preprocessing.json").read_text())
    assert (described["mean"], described["std"]) == (OWN_LOOK["mean"], OWN_LOOK["std"])
    # As weights to start from, they want images of the same look.
    further = tiny_recipe(image_folder, epochs=1, max_steps=1)
    further["optimizer"] = {"name": "sgd", "lr": 1e-12}
    further["train"]["batch_norm"] = "fixed"
    further["model"]["pretrained"] = str(run)
    with pytest.raises(UserError, match=r"with mean \(0.4, .*: set data.mean=\[0.4, 0.5, 0.45\]"):
        finetune(read_recipe(further), tmp_path / "refused")
    further["data"] |= OWN_LOOK
    again, _ = finetune(read_recipe(further), tmp_path / "again")
    assert again.metrics is not None
    assert again.metrics.test is not None
    assert again.metrics.test.top1 == record.metrics.test.top1


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "wanted"), [(32, 224), (33, 97), (16, 16), (8, 64)])
def test_the_resize_of_pillow_has_its_bits(stored: int, wanted: int, mode: str) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, stored, stored, 3), dtype=np.uint8)
    images[:6] = np.where(images[:6] > 127, 255, 0)  # overshoots
    filter_ = Image.Resampling[mode.upper()]
    resized = [np.asarray(Image.fromarray(each).resize((wanted, wanted), filter_)) for each in images]
    expected = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    found = {
        kind: ToInput(stored, wanted, mode, (0.0,) * 3, (1.0,) * 3, torch.device("cpu"), resize=kind)(
            torch.from_numpy(images)
        )
        * 255
        for kind in ("pillow", "float")
    }
    assert torch.equal(found["pillow"].round(), expected.float())
    assert (found["pillow"] - found["pillow"].round()).abs().max() < 1e-3
    if stored != wanted:  # what makes the key worth having
        assert (found["float"] - expected).abs().max() > 0.4


def test_photos_are_resized_and_cropped_as_timm_does() -> None:
    random = np.random.default_rng(1)
    transform = timm.data.create_transform(
        (3, 37, 37), crop_pct=1.0, interpolation="bicubic", mean=HALF, std=HALF
    )
    for width, height in [*random.integers(20, 140, (40, 2)), (37, 37), (38, 37), (20, 20), (37, 500)]:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        buffer = BytesIO()
        image.save(buffer, "PNG")
        ours = decode(EncodedImage(buffer.getvalue(), 0, "x.png"), 37)
        theirs = (transform(image) * 0.5 + 0.5) * 255
        assert np.array_equal(ours, theirs.round().permute(1, 2, 0).numpy().astype(np.uint8)), (width, height)


def test_the_key_is_no_part_of_older_digests(image_folder: Path) -> None:
    plain, float_, pillow = (
        read_recipe(tiny_recipe(image_folder), overrides)
        for overrides in ((), ["data.resize=float"], ["data.resize=pillow"])
    )
    assert "resize" not in plain.as_dict()["data"]
    assert plain.digest() == float_.digest() != pillow.digest()


def test_the_folder_is_a_model_to_start_from(photo_run: Path) -> None:
    section = ModelSection.model_validate({"name": f"local-dir:{photo_run}"})
    backbone = build_model(section, 3, 48, 0, ("ant", "bee <b>", "cat|*_"))
    assert backbone.head == "kept: the class names agree"
    own = timm.create_model(f"local-dir:{photo_run}", pretrained=True).state_dict()
    assert all(torch.equal(value, own[key]) for key, value in backbone.model.state_dict().items())


def test_a_search_leaves_no_repository(image_folder: Path, tmp_path: Path) -> None:
    overrides = ["train.evaluate=validation", "data.validation=0.25", "train.epochs=1"]
    finetune(read_recipe(tiny_recipe(image_folder), overrides), tmp_path)
    assert not {"config.json", "README.md", "model.safetensors"} & {each.name for each in tmp_path.iterdir()}


def changed(record: RunRecord, **data: Any) -> RunRecord:
    copy = record.model_copy(deep=True)
    assert copy.data is not None
    for key, value in data.items():
        setattr(copy.data, key, value)
    return copy


def test_the_card_says_what_the_record_says(photo_run: Path, photos: Path) -> None:
    record, text = read_record(photo_run / "record.yaml"), (photo_run / "README.md").read_text()
    assert record.metrics is not None
    assert record.metrics.test is not None
    card = ModelCard(text).data
    assert (card.library_name, card.pipeline_tag, card.license) == ("timm", "image-classification", None)
    (result,) = card.eval_results
    assert (result.metric_type, result.metric_value) == ("accuracy", record.metrics.test.top1)
    assert f"{record.metrics.test.top1:.2%} (95 % interval" in text
    assert "bee &lt;b&gt;, cat\\|\\*\\_" in text, "a name is text, neither HTML nor a table"
    assert str(photos.parent) not in text, "no folder of this machine"
    assert "name: sam\n" in text


def test_the_card_says_which_weights_the_numbers_are_of(photo_run: Path) -> None:
    record = read_record(photo_run / "record.yaml")
    assert "Of the last epoch, on all" in model_card(record)
    assert record.metrics is not None
    record.metrics.kept = KeptEpoch(epoch=1, rule="best", stopped_early=True)
    record.metrics.weights, record.metrics.plain_test = "ema", record.metrics.test
    record.recipe["train"]["epochs"] = 90
    text = model_card(record)
    assert "Of epoch 1, best on validation, averaged weights, on all" in text
    assert "top-1 of the weights without averaging" in text
    assert "90 epochs" not in text, "it stopped early"


def test_cards_of_many_classes_of_the_hub_and_of_half_precision(photo_run: Path) -> None:
    record = changed(
        read_record(photo_run / "record.yaml"),
        name="cifar100",
        class_names=[f"class {number}" for number in range(200)],
        classes=200,
    )
    assert record.model is not None
    record.model.name, record.model.pretrained_tag = "resnet18.a1_in1k", "a1_in1k"
    record.recipe["train"]["precision"] = "bf16"
    text = model_card(record)
    assert "class 99, and 100 more, which `config.json` names" in text
    assert "Evaluated in bf16" in text
    card = ModelCard(text).data
    assert (card.base_model, card.datasets) == ("timm/resnet18.a1_in1k", ["uoft-cs/cifar100"])
    record.model.name = record.model.pretrained_tag = "hf-hub:someone/a-model"
    assert ModelCard(model_card(record)).data.base_model == "someone/a-model"


def test_the_pipeline_of_transformers_loads_it(photo_run: Path, photos: Path) -> None:
    transformers = pytest.importorskip("transformers")
    classify = transformers.pipeline("image-classification", model=str(photo_run))
    stored = np.load(photo_run / "predictions.npz")
    names = json.loads((photo_run / "config.json").read_text())["label_names"]
    files = [str(photos / path) for path in stored["path"]]
    found = [answers[0]["label"] for answers in classify(files)]
    assert found == [names[number] for number in stored["prediction"]]
