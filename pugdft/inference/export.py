"""Hand a run's model on: as a timm repository, as ONNX, as torch's ``.pt2``, and to the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from PIL import Image
from torch import Tensor, nn

from pugdft.data.datasets import BUNDLED, open_source
from pugdft.data.decode import decode
from pugdft.errors import RunFailed, UserError, counted, reason, refuse
from pugdft.inference.load import LoadedModel
from pugdft.paths import nearest_folder, readable_mode, stay_offline_without_network
from pugdft.records import RECORD_NAME, RunRecord
from pugdft.training.checkpoint import save_weights
from pugdft.training.timm_repository import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    look_of,
    model_card,
    timm_config,
    timm_usage,
)

Format = Literal["timm", "onnx", "pt2"]

NUM_IMAGES = 64
PREPROCESSING_NAME = "preprocessing.json"
INPUT_NAME, OUTPUT_NAME = "images", "logits"

# Rounding of fp32 in another order, relative to the largest logit.
_TOLERANCE = 1e-3
_MOST_IN_ONE_ONNX_FILE = 2 * 10**9  # bytes: protobuf's limit, nearly
_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_USAGE = {
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {"images": images})[0]  # float32, made as preprocessing.json says""",
    "pt2": """\
import torch

model = torch.export.load("model.pt2").module()
logits = model(images)  # float32, made as preprocessing.json says""",
}


@dataclass(frozen=True)
class Export:
    """What an export wrote, and how it compares with the run's model.

    Attributes:
        folder: where the files are.
        files: their names, all that :func:`push` uploads.
        num_images: of the comparison.
        num_same: images that get the same class from both.
        largest_difference: of two logits of one image and class.
        agrees: whether that is rounding.
    """

    folder: Path
    files: tuple[str, ...]
    num_images: int
    num_same: int
    largest_difference: float
    agrees: bool


def export(loaded: LoadedModel, folder: Path, format_: Format, repository: str | None = None) -> Export:
    """Write a run's model in a format, with a card, and compare it with the run's model on 64 images.

    Files of these names in the folder are replaced, once all are written; others stay.

    Args:
        loaded: of a run; the model moves to the CPU, in fp32.
        repository: the Hub's name, for the lines of the card that load the model.

    Raises:
        UserError: it is not a completed run's model, a package is missing, the folder cannot be written, or
            torch cannot export this architecture.
    """
    record = _completed(loaded)
    check_packages(format_)
    if os.path.lexists(folder / RECORD_NAME):
        raise UserError(f"--output {folder}: is a run's folder, whose own files stay; give another")
    model = loaded.model.to("cpu", torch.float32).to(memory_format=torch.contiguous_format).eval()
    config = _config(loaded, record)
    images = example_images(json.loads(config)["pretrained_cfg"])
    with (
        refuse(OSError, lambda error: f"--output {folder}: cannot be written: {reason(error)}"),
        tempfile.TemporaryDirectory(dir=nearest_folder(folder), prefix=".export-") as temporary,
    ):
        making = Path(temporary)
        # Built by timm anew: without what a run changes in its layers for speed.
        (making / CONFIG_NAME).write_bytes(config)
        save_weights(model, making / WEIGHTS_NAME)
        plain = timm.create_model(f"local-dir:{making}", pretrained=True).eval()
        exported = _WRITERS[format_](making, plain, images)
        largest, num_same, agrees = _compare(model, exported, images)
        if format_ != "timm":
            (making / WEIGHTS_NAME).unlink()
            (making / CONFIG_NAME).unlink()
            _describe(making, config)
        place = f"hf-hub:{repository}" if repository else "local-dir:FOLDER"
        assert record.model
        usage = _USAGE.get(format_, timm_usage(place, record.model.registered_by))
        library = {"timm": "timm", "onnx": "onnx"}.get(format_)
        (making / CARD_NAME).write_text(model_card(record, usage, library), encoding="utf-8")
        names = sorted(each.name for each in making.iterdir())
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (making / name).chmod(readable_mode())
            os.replace(making / name, folder / name)
    return Export(folder, tuple(names), len(images), num_same, largest, agrees)


def check_packages(format_: Format) -> None:
    """Refuse a format whose packages are not installed."""
    missing = [name for name in _ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if format_ == "onnx" and missing:
        words = f"--format onnx needs {', '.join(missing)}"
        raise UserError(f'{words}, which cannot be imported: pip install "pugdft[onnx]"')


def _completed(loaded: LoadedModel) -> RunRecord:
    """The record of a model; a UserError if it is of no completed run."""
    if loaded.run is None:
        raise UserError(f"{loaded.name}: is no run; only a run's model can be exported")
    record = loaded.run.record
    if record.status != "completed" or not (record.data and record.model and record.metrics):
        raise UserError(f"{loaded.run.path}: the run is not complete ({record.status}): nothing to export")
    if record.metrics.test is None:
        raise UserError(f"{loaded.run.path}: the run was not evaluated on a test split: nothing to export")
    return record


def _config(loaded: LoadedModel, record: RunRecord) -> bytes:
    """The run's own ``config.json``, or a new one for a run of a version that wrote none."""
    assert loaded.run
    file = loaded.run.path.parent / CONFIG_NAME
    if file.is_file():
        return file.read_bytes()
    return timm_config(loaded.model, look_of(record, loaded.backbone), loaded.class_names)


def example_images(look: dict[str, Any]) -> Tensor:
    """Sixty-four bundled images through timm's transform: float32, (64, 3, side, side)."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=look))
    samples = islice(open_source(BUNDLED).read().splits["test"].samples(), NUM_IMAGES)
    return torch.stack([transform(Image.fromarray(decode(sample))) for sample in samples])


Model = Callable[[Tensor], Tensor]


def _write_timm(folder: Path, model: nn.Module, images: Tensor) -> Model:
    return model


def _write_onnx(folder: Path, model: nn.Module, images: Tensor) -> Model:
    import onnxruntime

    path = folder / "model.onnx"
    num_bytes = sum(each.nbytes for each in model.state_dict().values())
    with _exporting():
        torch.onnx.export(
            model,
            (images[:2],),
            path,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=_dynamic_batch(),
            external_data=num_bytes > _MOST_IN_ONE_ONNX_FILE,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(None, {INPUT_NAME: batch.numpy()})[0])


def _write_pt2(folder: Path, model: nn.Module, images: Tensor) -> Model:
    with _exporting():
        program = torch.export.export(model, (images[:2],), dynamic_shapes=_dynamic_batch())
        torch.export.save(program, folder / "model.pt2")
        loaded: Model = torch.export.load(folder / "model.pt2").module()
    return loaded


_WRITERS: dict[str, Callable[[Path, nn.Module, Tensor], Model]] = {
    "timm": _write_timm,
    "onnx": _write_onnx,
    "pt2": _write_pt2,
}


def _dynamic_batch() -> tuple[dict[int, Any]]:
    """The shapes of the one argument: any number of images."""
    return ({0: torch.export.Dim("batch", min=1)},)


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """Around torch's exporters: keep their chatter off stdout, and make a message of what they raise."""
    with (
        refuse(Exception, lambda error: f"torch cannot export this model: {reason(error)}"),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def _describe(folder: Path, config: bytes) -> None:
    """Write beside a model what must be done to an image first, and what comes out."""
    whole = json.loads(config)
    look = whole["pretrained_cfg"]
    side = look["input_size"][1]
    resized = int(side / look["crop_pct"])
    described = {
        "input": {
            "name": INPUT_NAME,
            "dtype": "float32",
            "shape": ["batch", *look["input_size"]],
            "layout": "batch, channel (RGB), row, column",
        },
        "steps": [
            "turn the image by its EXIF orientation, and convert it to RGB of 8 bits",
            f"resize its shorter side to {resized} pixels, the longer one in proportion, rounded down "
            f"({look['interpolation']} with antialiasing, as Pillow does it; 8 bits)",
            f"crop the {side} × {side} pixels in the middle",
            "divide by 255, subtract the mean, divide by the standard deviation (of each channel)",
        ],
        "image_size": side,
        "resize_shorter_side": resized,
        "interpolation": look["interpolation"],
        "mean": look["mean"],
        "std": look["std"],
        "output": {"name": OUTPUT_NAME, "dtype": "float32", "shape": ["batch", whole["num_classes"]]},
        "class_names": whole.get("label_names"),
    }
    text = json.dumps(described, indent=2, ensure_ascii=False)
    (folder / PREPROCESSING_NAME).write_text(text + "\n", encoding="utf-8")


@torch.inference_mode()
def _compare(model: nn.Module, exported: Model, images: Tensor) -> tuple[float, int, bool]:
    """Largest difference of two logits, number of equal classes, and whether that is rounding."""
    expected = model(images)
    # In two batches of different sizes: the number of images is free.
    found = torch.cat([exported(images[:1]), exported(images[1:])])
    largest, scale = float((found - expected).abs().max()), float(expected.abs().max())
    num_same = int((found.argmax(1) == expected.argmax(1)).sum())
    return largest, num_same, largest <= _TOLERANCE * max(1.0, scale)


def check_repository(name: str, needs_token: bool) -> None:
    """Refuse a name that the Hub would not take, and a machine without a token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if name.count("/") != 1:
        raise UserError(f'--push-to-hub: "{name}" is no USER/NAME')
    with refuse(HFValidationError, lambda error: f"--push-to-hub: {reason(error)}"):
        validate_repo_id(name)
    if needs_token and get_token() is None:
        raise UserError(
            "--push-to-hub: no token of the Hugging Face Hub is on this machine: `hf auth login` stores one, "
            f"or set HF_TOKEN (make one that may write at {constants.ENDPOINT}/settings/tokens)"
        )


def push(made: Export, repository: str, private: bool = False) -> str:
    """Upload an export's files to the Hub, into a repository that is made if need be; return its address.

    Raises:
        RunFailed: the Hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if stay_offline_without_network():
        raise RunFailed(f"--push-to-hub {repository}: there is no network here; {made.folder} has the export")
    api = HfApi(library_name="pugdft")
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=made.folder,
            allow_patterns=_literal(made.files),
            commit_message=f"Model exported by pugdft ({counted(len(made.files), 'file')})",
        )
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        words = f"--push-to-hub {repository}: {reason(error)}; {made.folder} has the export"
        raise RunFailed(words) from error
    return str(url)


def _literal(names: Sequence[str]) -> list[str]:
    """Patterns that match these names alone; none of ours has a special character."""
    assert not any(set(name) & set("*?[]") for name in names)
    return list(names)
