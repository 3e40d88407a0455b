"""Describe a run's model as timm and the Hub expect it: ``config.json`` and the model card ``README.md``."""

from __future__ import annotations

import html
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from pugdft.config import yaml
from pugdft.data.datasets import BUNDLED, DATASETS
from pugdft.errors import counted, printable, shortened
from pugdft.models import Backbone, is_place
from pugdft.paths import write_atomically
from pugdft.predictions import wilson_interval
from pugdft.records import RunRecord

CONFIG_NAME, CARD_NAME, WEIGHTS_NAME = "config.json", "README.md", "model.safetensors"

_MOST_CLASSES = 100  # named in a card; the configuration has all


def look_of(record: RunRecord, backbone: Backbone) -> dict[str, Any]:
    """Return what timm's transform must do to an original image, so that the model sees what it saw.

    Images that were stored smaller than the input are resized as a whole; all others were resized on their
    shorter side and cropped when they were decoded, always with a bicubic filter.
    """
    size = int(record.recipe["data"]["image_size"])
    stored = getattr(record.data, "stored_size", None)  # an older record does not say
    known = ("bicubic", "bilinear")
    interpolation = backbone.interpolation if stored != size and backbone.interpolation in known else known[0]
    return {
        "input_size": (3, size, size),
        "interpolation": interpolation,
        "mean": backbone.mean,
        "std": backbone.std,
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


def timm_config(model: nn.Module, look: dict[str, Any], class_names: Sequence[str] | None) -> bytes:
    """Write timm's ``config.json`` of a model, as timm's own saving does.

    Args:
        look: the preprocessing, by the names of timm's configuration.
        class_names: in the order of the outputs.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG_NAME
        labels = {"label_names": list(class_names)} if class_names else {}
        timm.models._hub.save_config_for_hf(model, path, model_config=labels, data_config=look)
        config = json.loads(path.read_bytes())
    config["pretrained_cfg"].pop("license", None)  # which is of the weights that the model started from
    config.get("model_args", {}).pop("num_classes", None)  # said above it; Transformers refuses both
    return json.dumps(config, indent=2).encode() + b"\n"


def write_repository(folder: Path, record: RunRecord, backbone: Backbone) -> None:
    """Make a run's folder, which holds the weights, a repository that timm loads."""
    names = record.data.class_names if record.data else None
    write_atomically(folder / CONFIG_NAME, timm_config(backbone.model, look_of(record, backbone), names))
    write_atomically(folder / CARD_NAME, model_card(record).encode())


def timm_usage(place: str, registered_by: str | None = None) -> str:
    """The lines of a card that load the model with timm from ``local-dir:FOLDER`` or ``hf-hub:NAME``.

    ``registered_by`` is the module that makes an architecture known to timm that is not its own.
    """
    registration = f"import {registered_by}  # makes the network known to timm\n" if registered_by else ""
    return f"""\
{registration}import timm

model = timm.create_model("{place}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image.convert("RGB")).unsqueeze(0))  # image: a PIL.Image"""


def model_card(record: RunRecord, usage: str | None = None, library: str | None = "timm") -> str:
    """Write the card of a completed run's model from its record: Markdown with the Hub's front matter.

    Args:
        usage: Python that loads the model; by default from the run's folder, with timm.
        library: the Hub's name of what loads it; None: none.
    """
    data, model, metrics = record.data, record.model, record.metrics
    assert data
    assert model
    assert metrics
    assert metrics.test
    test, count, train = metrics.test, data.sizes.get("test", 0), record.recipe["train"]
    names = [_plain(name) for name in data.class_names or ()]
    listed = ", ".join(names[:_MOST_CLASSES])
    if len(names) > _MOST_CLASSES:
        listed += f", and {len(names) - _MOST_CLASSES:,} more, which `config.json` names"
    sizes = ", ".join(f"{size:,} {split}" for split, size in data.sizes.items())
    low, high = wilson_interval(round(test.top1 * count), count)
    held_out = metrics.validation
    cost, method = record.cost, record.method
    optimizer = yaml.dump(record.recipe["optimizer"]).replace("`", "'").rstrip()
    started = f"from the weights `{_code(model.pretrained_tag)}`" if model.pretrained_tag else "from scratch"
    is_cut = metrics.kept is not None and metrics.kept.stopped_early
    epochs = counted(cost.epochs if is_cut else int(train["epochs"]), "epoch")
    plain = metrics.plain_test
    validation = [f"| validation top-1 | {held_out.top1:.2%} |"] if held_out else []
    schedule = record.recipe["schedule"]
    lines = [
        "---",
        _front_matter(record, library).rstrip(),
        "---",
        "",
        f"# {_plain(record.id)}",
        "",
        f"`{_code(record.model_label)}`, trained {started} on {_plain(data.name)} "
        f"({counted(data.classes, 'class')}) with the optimizer "
        f"`{_code(record.recipe['optimizer']['name'])}`. Made with pugdft.",
        "",
        "## Use",
        "",
        "```python",
        usage or timm_usage("local-dir:FOLDER", model.registered_by),
        "```",
        "",
        "## Results",
        "",
        "| | |",
        "|---|---|",
        f"| test top-1 | {test.top1:.2%} (95 % interval {low:.2%} to {high:.2%}) |",
        f"| test top-5 | {test.top5:.2%} |",
        f"| test loss (mean cross-entropy) | {test.loss:.4f} |",
        f"| test ECE (15 bins) | {test.ece:.2%} |",
        *([f"| test top-1 of the weights without averaging | {plain.top1:.2%} |"] if plain else []),
        *validation,
        "",
        f"Of {metrics.origin}, on all {count:,} test images, in {train['precision']}. The interval "
        "(Wilson) is about the choice of these images. It does not contain the difference between seeds: "
        f"this is one run, of seed {record.seed}.",
        "",
        "## Data",
        "",
        f"{_plain(data.name)}: {sizes} images. Their digest (sha256 of the decoded pixels and labels) is "
        f"`{_code(data.sha256)}`.",
        "",
        *([f"Classes, in the order of the outputs: {listed}.", ""] if names else []),
        "## Method",
        "",
        "```yaml",
        optimizer,
        "```",
        "",
        f"{epochs} of batches of {train['batch_size']:,} at {record.recipe['data']['image_size']} pixels, "
        f"schedule {_plain(schedule['name'])}, {train['precision']}, label smoothing "
        f"{train['label_smoothing']:g}.",
        "",
        "## Cost",
        "",
        f"{cost.steps:,} updates, {cost.gradient_passes:,g} gradient passes ({method.two_pass_fraction:.0%} "
        f"of the updates took more than one), {cost.train_seconds:,.0f} seconds of training on "
        f"{_plain(record.environment.get('device_name') or record.environment.get('device', ''))}.",
        "",
        "## Caveats",
        "",
        *(f"- {caveat}" for caveat in _caveats(record, library)),
    ]
    return "\n".join(lines) + "\n"


def _caveats(record: RunRecord, library: str | None) -> list[str]:
    """What a user of the model must know."""
    assert record.data
    assert record.model
    section, size = record.recipe["data"], record.recipe["data"]["image_size"]
    precision, stored = record.recipe["train"]["precision"], record.data.stored_size
    is_exact = stored is not None and (stored == size or section.get("resize") == "pillow")
    caveats = []
    if is_exact:
        caveats.append("timm's transform gives the model the pixels that it was evaluated on.")
    elif stored is not None:
        caveats.append(
            f"The evaluation enlarged images of {stored} pixels in floating point; timm's transform rounds "
            "and clips pixels to whole values after each of its two passes, so single images may get another "
            "class. (A run with `data.resize=pillow` is evaluated as timm does it.)"
        )
    if precision != "fp32":
        caveats.append(f"Evaluated in {precision}: in fp32 single images may get another class.")
    caveats.append(
        "timm's transform does not turn photos by their EXIF orientation, as training did: call "
        "`PIL.ImageOps.exif_transpose(image)` first."
    )
    caveats.append("The results hold for images like the test images; photos of other origin may be harder.")
    if record.data.name == BUNDLED:
        caveats.append(
            "The bundled images are a small part of CIFAR-10: no comparison with published results."
        )
    if library == "timm" and (module := record.model.registered_by):
        caveats.append(
            f"timm does not have this network: it needs `pip install pugdft`, and `import {module}` before "
            "`timm.create_model`, as above. Without that import timm and Transformers refuse the files."
        )
    if record.model.pretrained_tag:
        caveats.append("The licences of the pretrained weights and of the images apply to this model too.")
    return caveats


def _front_matter(record: RunRecord, library: str | None) -> str:
    """The metadata that the Hub reads; no licence is stated, because none is known."""
    from huggingface_hub import EvalResult, ModelCardData

    assert record.data
    assert record.metrics
    assert record.metrics.test
    name = record.data.name
    repository = DATASETS[name].repository if name in DATASETS else name if "/" in name else ""
    accuracy = EvalResult(
        task_type="image-classification",
        dataset_type=repository or re.sub(r"[^\w.-]+", "-", name) or "images",
        dataset_name=shortened(printable(name)),
        dataset_split="test",
        metric_type="accuracy",
        metric_value=record.metrics.test.top1,
    )
    method = re.sub(r"[^\w.-]+", "-", str(record.recipe["optimizer"]["name"]))
    card = ModelCardData(
        library_name=library,
        pipeline_tag="image-classification",
        tags=[*([library] if library else []), "image-classification", "pugdft", method],
        base_model=_base_model(record),
        datasets=[repository] if repository else None,
        metrics=["accuracy"],
        model_name=record.id,
        eval_results=[accuracy],
    )
    return yaml.dump(card.to_dict())


def _base_model(record: RunRecord) -> str | None:
    """The Hub's repository of the weights that a run started from; None if they have none."""
    assert record.model
    tag = record.model.pretrained_tag
    if not tag or ":" not in tag:
        is_known = tag and not is_place(record.model.name)
        return f"timm/{record.model.name.partition('.')[0]}.{tag}" if is_known else None
    source, _, identity = tag.partition(":")
    return identity.partition("@")[0] if source == "hf-hub" else None


def _plain(text: object) -> str:
    """Text that stays text in Markdown."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(shortened(printable(text), 200), quote=False))


def _code(text: object) -> str:
    """Text between backquotes."""
    return shortened(printable(text), 200).replace("`", "'").replace("|", "¦")
