"""Tensors from a file, of which no code is run."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path

import timm
import torch
from torch import Tensor

from pugdft.errors import UserError

# What torch.save wrote first before its archives: its magic number, pickled.
_OLD_PTH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pth`` file; no code in the file is run.

    Raises:
        UserError: damaged, a pickle that holds more than tensors, or tensors that no model starts from.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles: for those who write them
            state = timm.models.load_state_dict(str(path), weights_only=True)
    except Exception as error:  # each reader raises its own kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        if (suffix := _suffix_by_content(path)) not in (None, path.suffix):
            reason = f"it is a {suffix} file by its content; rename it to {path.with_suffix(suffix).name}"
        elif "weights_only" in str(error) and path.suffix == ".pth":
            reason = (
                "no pickle of tensors alone, and no code in a file is run. Save the model's state_dict, best "
                "as .safetensors"
            )
        elif isinstance(error, AttributeError):  # what is no mapping has no items
            reason = "it holds no tensors by name"
        raise UserError(f"{path}: not readable as weights: {reason}") from None
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    whole = [n for n, t in tensors.items() if not t.is_floating_point() and "num_batches_tracked" not in n]
    if len(whole) > len(tensors) // 2:
        raise UserError(f'{path}: "{whole[0]}" and others are {tensors[whole[0]].dtype}, not floating point')
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise UserError(
                f'{path}: "{name}" has no numbers: it is of torch\'s meta device. Save the model with them'
            )
        if tensor.layout != torch.strided:
            raise UserError(f'{path}: "{name}" is sparse; save it dense')
    if broken := [name for name, tensor in tensors.items() if not _is_finite(tensor)]:
        raise UserError(f'{path}: "{broken[0]}" holds numbers that are not finite')
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    for dimension, stride in enumerate(tensor.stride()):
        # One number may be repeated more often than memory would hold it.
        if stride == 0 and tensor.shape[dimension] > 1:
            tensor = tensor.narrow(dimension, 0, 1)
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _suffix_by_content(path: Path) -> str | None:
    """What a file of tensors should be called; None for any other."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
            return ".safetensors"
        if start.startswith(_OLD_PTH):
            return ".pth"
        with zipfile.ZipFile(path) as archive:
            return ".pth" if any(name.endswith("/data.pkl") for name in archive.namelist()) else None
    except Exception:  # zipfile lets out nearly anything
        return None
