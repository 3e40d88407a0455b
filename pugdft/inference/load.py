"""Load a model to use it: of a run, a file of weights, timm's registry, the Hub or a folder in its form."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.fx
from accelerate import Accelerator
from PIL import Image
from torch import nn

from pugdft.config.load import load_recipe
from pugdft.config.schema import Recipe
from pugdft.data.decode import decode
from pugdft.data.source import EncodedImage
from pugdft.errors import UserError, counted, reason, refuse
from pugdft.models import (
    Backbone,
    TimmModel,
    build_model,
    head_parameters,
    is_place,
    model_faults,
    resolve_model,
)
from pugdft.paths import expanded, file_sha256
from pugdft.records import RECORD_NAME, StoredRun
from pugdft.reproduce import (
    evaluation_accelerator,
    open_run,
    read_stored_weights,
    recipe_of_record,
    weights_file,
)
from pugdft.training.performance import Switches, arrange, attention_of, pick, rounding_of
from pugdft.training.timm_repository import CONFIG_NAME
from pugdft.weights import read_weights

_WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")


@dataclass(frozen=True)
class Preprocessing:
    """How an image of any size becomes the model's input.

    Attributes:
        image_size: side of the square that the model sees, in pixels.
        mean: per channel, for pixels in 0..1, as ``std``.
        interpolation: bicubic, bilinear, …
        crop_pct: side of the square divided by the image's shorter side after the resize.
        crop_mode: center: the centre of the resized image; timm's others are squash and border.
        stored_size: of a run, side of the images that it stored as they were; None: not known, or no run.
        is_of_run: whether images are resized as a run's were, else as timm's transform does.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float = 1.0
    crop_mode: str = "center"
    stored_size: int | None = None
    is_of_run: bool = True

    def pixels(self, sample: EncodedImage) -> np.ndarray:
        """Decode an image: uint8, (side, side, 3); the side is ``image_size``, or that of a stored image.

        Raises:
            UserError: the image does not decode; the message says which.
        """
        if not self.is_of_run:
            return decode(sample, self.image_size, resize=self._timm_resize)
        return decode(sample, self.image_size, keeps=self._is_native)

    def _is_native(self, width: int, height: int) -> bool:
        """Tell whether a run would store an image of this size as it is, and resize it on the device."""
        if width != height:
            return False
        return width == self.stored_size if self.stored_size else width <= self.image_size

    @cached_property
    def _timm_resize(self) -> Callable[[Image.Image], Image.Image]:
        """The resize and crop of timm's own transform for evaluation."""
        transform = timm.data.create_transform(
            input_size=(3, self.image_size, self.image_size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            use_prefetcher=True,
        )
        steps = transform.transforms[:-1]  # the last one makes a tensor

        def resize(image: Image.Image) -> Image.Image:
            for step in steps:
                image = step(image)
            return image

        return resize


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode on the device, and what is needed to use it.

    Attributes:
        name: as it was asked for.
        backbone: the model and its facts; ``backbone.model`` takes float32, (batch, 3, side, side).
        class_names: in the order of the outputs; None if nothing names them.
        descriptions: of the classes, for people, where they have names that say nothing.
        recipe: of the run; of other models, one that says only how to compute.
        run: the record, and where it lies; None for a model of no run.
        weights: of a run: the file that they come from, its own or another one.
        notes: what a person should know.
    """

    name: str
    backbone: Backbone
    class_names: tuple[str, ...] | None
    preprocessing: Preprocessing
    recipe: Recipe
    accelerator: Accelerator
    descriptions: tuple[str, ...] | None = None
    run: StoredRun | None = None
    weights: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def model(self) -> nn.Module:
        """The model, which gives logits, (batch, classes)."""
        return self.backbone.model

    @property
    def num_classes(self) -> int:
        return int(self.model.num_classes)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def switches(self) -> Switches:
        return pick(self.recipe, self.device.type)

    @cached_property
    def fast_model(self) -> nn.Module:
        """The model with each BatchNorm folded into its convolution: equal up to rounding, much faster.

        In 16 bits, where rounding may decide a class, and where folding is not possible: the model itself.
        """
        if self.recipe.train.precision != "fp32":
            return self.model
        return _folded(self.model, self.preprocessing.image_size) or self.model

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within the context, compute without gradients, in the run's precision and rounding."""
        with (
            torch.inference_mode(),
            rounding_of(self.switches, self.device.type),
            self.accelerator.autocast(),
        ):
            yield


def load_model(name: str | Path, model_name: str | None = None) -> LoadedModel:
    """Load a model in evaluation mode onto the machine's accelerator, or the CPU.

    Args:
        name: a run's folder, its record or a file of weights in it; another file of weights (safetensors or
            ``torch.save``; no code in it is run); a timm model's name, ``local-dir:FOLDER``, ``hf-hub:NAME``.
        model_name: timm's name of the model, for a file of weights that lies in no run's folder.

    Raises:
        UserError: there is no such model, it has no weights, or they do not fit.
    """
    text = str(name)
    if not text:
        raise UserError("the model: is empty; give a run's folder, a file of weights or a timm model's name")
    path = None if is_place(text) else expanded(text, "the model")
    if path is not None and not os.path.exists(path):
        if os.sep in text or path.suffix in _WEIGHTS_SUFFIXES:
            raise UserError(f"{text}: no such file or folder")
        path = None
    folder = None if path is None else _run_folder(path)
    is_file = path is not None and folder is None and path.is_file()
    if model_name is not None and not is_file:
        raise UserError(f"--model: is for a file of weights that lies in no run's folder, and {text} is none")
    if path is None:
        return _of_timm(text)
    if folder is not None:
        return _of_run(text, folder, path if path.is_file() and path.name != RECORD_NAME else None)
    if path.is_dir():
        if (path / CONFIG_NAME).is_file():
            return _of_timm(f"local-dir:{path}")
        if (path / "recipe.yaml").is_file():
            raise UserError(
                f"{path}: this run has left no {RECORD_NAME} yet: let it end, then its model can be used"
            )
        open_run(path)  # raises: it is no run's folder
    if model_name is None:
        raise UserError(
            f"{path}: --model NAME must say of which timm model these weights are, such as resnet18"
        )
    return _of_checkpoint(path, model_name)


def _run_folder(path: Path) -> Path | None:
    """The folder of the run that a path belongs to: itself, or one or two above a file of weights."""
    if path.is_dir():
        return path if (path / RECORD_NAME).is_file() else None
    if path.name == RECORD_NAME:
        return path.parent
    places = path.absolute().parents[:2] if path.suffix in _WEIGHTS_SUFFIXES else ()
    return next((place for place in places if (place / RECORD_NAME).is_file()), None)


def _of_run(name: str, folder: Path, file: Path | None) -> LoadedModel:
    """The model of a run, built as the run built it, with its own weights or another file of them."""
    run = open_run(folder)
    record = run.record
    if record.data is None:
        raise UserError(f"{run.path}: has no data ({record.status}): the run left no model")
    stored = weights_file(run) if file is None else file
    is_own = file is None or ((own := run.artifact("model")) is not None and own.samefile(file))
    if is_own and file_sha256(stored) != record.artifacts["model"].sha256:
        raise UserError(f"{stored}: has changed since the record beside it was written")
    # The folder describes its model itself; a name may be of a place that is not on this machine.
    place = {"name": f"local-dir:{folder.absolute()}"} if (folder / CONFIG_NAME).is_file() else {}
    read = partial(load_recipe, overrides=(), checks={"model": model_faults})
    recipe = recipe_of_record(run, None, read, pretrained=False, head="auto", **place)
    notes: list[str] = []
    recipe, accelerator = evaluation_accelerator(recipe, notes)
    size = recipe.data.image_size
    with attention_of(pick(recipe, accelerator.device.type)):
        backbone = build_model(recipe.model, record.data.classes, size, recipe.train.seed, look=recipe.data)
    tensors = read_stored_weights(stored) if stored.suffix == ".safetensors" else read_weights(stored)
    words = f"{stored}: does not fit {record.model.name if record.model else recipe.model.name}: "
    with refuse(RuntimeError, lambda error: words + reason(error)):
        backbone.model.load_state_dict(tensors)
    names, look = record.data.class_names, (backbone.mean, backbone.std, backbone.interpolation)
    preprocessing = Preprocessing(size, *look, stored_size=record.data.stored_size)
    class_names = tuple(names) if names and len(names) == record.data.classes else None
    _place(backbone, recipe, accelerator)
    return LoadedModel(
        name, backbone, class_names, preprocessing, recipe, accelerator,
        run=run, weights=stored, notes=tuple(notes),
    )  # fmt: skip


def _of_timm(name: str) -> LoadedModel:
    """A model of timm's registry, the Hub or a folder, with the weights and the classifier that it has."""
    named = resolve_model(name)
    if named.config is None or not named.config.num_classes:
        raise UserError(f"{name}: has no pretrained weights with a classifier")
    return _built(name, named, {"pretrained": True}, named.config.num_classes)


def _of_checkpoint(path: Path, model_name: str) -> LoadedModel:
    """A model of this name with the weights of a file; the file's classifier tells the number of classes."""
    with refuse(UserError, lambda error: f"--model: {error}"):
        named = resolve_model(model_name)
    random = named.create()
    heads, state = head_parameters(random), read_weights(path, list(random.state_dict()))
    found = next((state[key] for key in sorted(heads) if key in state and state[key].ndim), None)
    if found is None:
        raise UserError(f"{path}: holds no classifier of {model_name} ({', '.join(sorted(heads)[:4])})")
    return _built(str(path), named, {"pretrained": str(path)}, found.shape[0], model_name)


def _built(
    name: str,
    named: TimmModel,
    pretrained: Mapping[str, Any],
    num_classes: int,
    model_name: str | None = None,
) -> LoadedModel:
    """Build a model of no run, and take its preprocessing from timm's configuration of it."""
    config = named.config or timm.models.PretrainedCfg()
    channels, height, width = config.test_input_size or config.input_size
    if channels != 3 or height != width:
        raise UserError(
            f"{name}: takes images of {counted(channels, 'channel')} and {height} × {width} pixels; "
            "only models of RGB squares can be used"
        )
    given = {"name": model_name or name, "head": "keep", **pretrained}
    recipe = Recipe.model_validate(
        {"model": given, "data": {"name": "images", "image_size": height}, "optimizer": {"name": "sgd"}}
    )
    recipe, accelerator = evaluation_accelerator(recipe, [])
    with attention_of(pick(recipe, accelerator.device.type)):
        backbone = build_model(recipe.model, num_classes, height, 0)
    crop = {"crop_pct": config.test_crop_pct or config.crop_pct, "crop_mode": config.crop_mode}
    look = (backbone.mean, backbone.std, backbone.interpolation)
    preprocessing = Preprocessing(height, *look, **crop, is_of_run=False)
    class_names, descriptions = _names_of(named, num_classes, is_own=model_name is None)
    _place(backbone, recipe, accelerator)
    return LoadedModel(
        name, backbone, class_names, preprocessing, recipe, accelerator, descriptions=descriptions
    )


def _names_of(
    named: TimmModel, num_classes: int, is_own: bool
) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """Names and descriptions of a model's classes: its configuration's, or ImageNet's if timm knows so."""
    labels = named.config.label_names if named.config is not None else None
    labels = tuple(labels.values() if isinstance(labels, Mapping) else labels or ())
    if len(labels) == num_classes:
        return tuple(map(str, labels)), None
    subset = timm.data.infer_imagenet_subset(named.config) if is_own and not named.place else None
    if subset is None:
        return None, None
    info = timm.data.ImageNetInfo(subset)
    numbers = range(num_classes)
    return tuple(map(info.index_to_label_name, numbers)), tuple(map(info.index_to_description, numbers))


def _place(backbone: Backbone, recipe: Recipe, accelerator: Accelerator) -> None:
    """Set the model's memory format and mode, and move it to the device."""
    arrange(backbone.model.eval(), pick(recipe, accelerator.device.type))
    backbone.model.to(accelerator.device)


def _folded(model: nn.Module, image_size: int) -> nn.Module | None:
    """A copy without the BatchNorm layers that follow a convolution; None if it cannot be made so."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return None
    # Whatever a model's code raises where its steps are recorded: it is then used as it is.
    with suppress(Exception), torch.inference_mode():
        calls = [node for node in _LayerTracer().trace(model).nodes if node.op == "call_module"]
        uses = Counter(node.target for node in calls)
        folded = copy.deepcopy(model)
        for node in calls:
            before: Any = node.args[0] if node.args else None
            if (
                before not in calls
                or len(before.users) > 1
                or {uses[node.target], uses[before.target]} != {1}
            ):
                continue
            norm, convolution = folded.get_submodule(node.target), folded.get_submodule(before.target)
            if type(norm) in _FOLDABLE_NORMS and type(convolution) in _FOLDABLE_CONVOLUTIONS:
                fused: Any = nn.utils.fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
                convolution.weight, convolution.bias = fused.weight, fused.bias
                rest = (norm.drop, norm.act) if isinstance(norm, timm.layers.BatchNormAct2d) else ()
                folded.set_submodule(node.target, nn.Sequential(*rest))
        probe = torch.rand((2, 3, image_size, image_size), device=next(model.parameters()).device)
        expected = model(probe)
        if torch.allclose(folded(probe), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
            return folded
    return None


_FOLDABLE_NORMS = (nn.BatchNorm2d, timm.layers.BatchNormAct2d)
_FOLDABLE_CONVOLUTIONS = (nn.Conv2d, timm.layers.Conv2dSame)


class _LayerTracer(torch.fx.Tracer):
    """Records a model's calls of its layers; what convolutions and norms do inside is not looked at."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        layers = (
            *_FOLDABLE_NORMS,
            *_FOLDABLE_CONVOLUTIONS,
            nn.Linear,
        )  # also oneDNN's, which cannot be traced
        return isinstance(module, layers) or super().is_leaf_module(module, name)
