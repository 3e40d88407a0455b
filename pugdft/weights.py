"""Read the tensors of a model from a file of safetensors or ``torch.save``; no code in a file is run."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pugdft.errors import UserError, refuse

# Containers and prefixes that training loops put around one model; of others, only a single one is taken.
_USUAL_LABEL = re.compile(r"((state_dict|model|model_state_dict|module|_orig_mod)\.)*")
_AVERAGED_LABEL = re.compile(r"(^|[._])ema[._]")


class _Ignored:
    """Stands for an object in a file that needs code of its own: keeps nothing and does nothing."""

    def __new__(cls, *_: object) -> _Ignored:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def _plain_mapping(*_: object) -> dict[Any, Any]:
    return {}


def read_weights(path: Path, wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """Read a model's tensors from a file of safetensors or ``torch.save``; no code in the file is run.

    The format is told by the content. Of several models in a file, such as a training loop's average beside
    the weights, the average is taken, as timm does.

    Args:
        wanted: names of the model's tensors: whatever stands before them in the file is removed.

    Raises:
        UserError: the file cannot be read, holds no such tensors, or tensors that no model starts from.
    """
    # Each reader raises its own kinds; torch's warnings about pickles are for those who write them.
    with refuse(Exception, lambda error: _unreadable(path, error)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = safetensors.torch.load_file(path) if _is_safetensors(path) else _unpickled(path)
    tensors = _model_of(content, wanted, path)
    whole = [n for n, t in tensors.items() if not t.is_floating_point() and "num_batches_tracked" not in n]
    if len(whole) > len(tensors) // 2:
        raise UserError(f'{path}: "{whole[0]}" and others are {tensors[whole[0]].dtype}, not floating point')
    for name, tensor in tensors.items():
        if problem := _problem_of(tensor):
            raise UserError(f'{path}: "{name}" {problem}')
    return tensors


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(16)
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def _unpickled(path: Path) -> Any:
    """Read what ``torch.save`` wrote, with :class:`_Ignored` for everything but tensors and plain data."""
    if zipfile.is_zipfile(path):
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    else:  # of the format before: a magic number, two pickles about it, and the object
        with path.open("rb") as file:
            operations = [each for _ in range(4) for each in pickletools.genops(file)]
        found = {str(name) for code, name, _ in operations if code.name == "GLOBAL"}
        names = {name.replace("__builtin__ ", "builtins ").replace(" ", ".") for name in found}
    stand_ins = [(_plain_mapping if name == "collections.defaultdict" else _Ignored, name) for name in names]
    with torch.serialization.safe_globals(stand_ins):  # type: ignore[arg-type]
        return torch.load(path, map_location="cpu", weights_only=True)


def _model_of(content: Any, wanted: Collection[str], path: Path) -> dict[str, Tensor]:
    """Choose the model in a file's content, and take what stands before its tensors' names away."""
    found = {
        label + prefix: {name.removeprefix(prefix): tensor for name, tensor in each.items()
                         if name.startswith(prefix)}
        for label, each in _named_tensors(content)
        for prefix in _prefixes(each, wanted)
    }  # fmt: skip
    if not found:
        # Code where the tensors should be, or no tensors at all.
        cause = _CODE if _holds_code(content) else "it holds no tensors by name"
        raise UserError(f"{path}: not readable as weights: {cause}")
    most = max(len(each.keys() & set(wanted)) for each in found.values())
    fits = {label: each for label, each in found.items() if len(each.keys() & set(wanted)) == most}
    for usual in (_AVERAGED_LABEL.search, _USUAL_LABEL.fullmatch):
        if chosen := [each for label, each in fits.items() if usual(label)]:
            return chosen[0]
    if len(fits) > 1:
        names = ", ".join(sorted(label.removesuffix(".") for label in fits)[:8])
        raise UserError(f"{path}: holds several models: {names}. Save one of them in a file of its own")
    return next(iter(fits.values()))


def _named_tensors(content: Any, label: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each mapping of names to tensors in a file, with where it stands."""
    if not isinstance(content, Mapping) or depth > 3:
        return
    tensors = {name: each for name, each in content.items() if isinstance(each, Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        yield label, tensors
    for name, each in content.items():
        if isinstance(name, str):
            yield from _named_tensors(each, f"{label}{name}.", depth + 1)


def _prefixes(tensors: Mapping[str, Tensor], wanted: Collection[str]) -> set[str]:
    """Return what stands before the longest of the wanted names; the empty text if it is not there."""
    probe = max(wanted, key=len, default="")
    found = {name.removesuffix(probe) for name in tensors if f".{name}".endswith(f".{probe}")}
    return found if probe and found else {""}


def _holds_code(content: Any, depth: int = 0) -> bool:
    """Tell whether something in a file is ignored."""
    inside = content.values() if isinstance(content, Mapping) and depth < 4 else ()
    return isinstance(content, _Ignored) or any(_holds_code(each, depth + 1) for each in inside)


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


_CODE = (
    "no pickle of tensors alone, and no code in a file is run. If you trust it, convert it where its classes "
    "are installed: `x = torch.load(FILE, weights_only=False)`, then `torch.save(x.state_dict(), NEW)`, "
    "or `x[KEY].state_dict()` of a mapping that holds the model"
)


def _unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    cause = (text.splitlines() or [type(error).__name__])[0][:200]
    if "torchscript" in text.lower():
        cause = "it is a TorchScript archive, which is code. Where you trust it, convert it: "
        cause += "`torch.save(torch.jit.load(FILE).state_dict(), NEW)`"
    elif "weights_only" in text:
        cause = _CODE
    elif not zipfile.is_zipfile(path):
        cause += " (a file of safetensors or torch.save is needed, whatever its name)"
    return f"{path}: not readable as weights: {cause}"
