"""Files of weights: nothing in them may run, and what does not fit is named."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from bad_inputs.case import Case
from bad_inputs.files import Harm, tensors, weights

FINETUNE = ("finetune", "r.yaml")


def pth(name: str, make: Callable[[], Any], *said: str, **options: Any) -> Case:
    """A ``.pth`` file of this content."""
    return Case(
        name, FINETUNE, ("w.pth: ", *said), weights("w.pth", lambda path: torch.save(make(), path, **options))
    )


def raw(name: str, content: bytes | Callable[[], bytes], *said: str, file: str = "w.safetensors") -> Case:
    """A file of these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content())

    return Case(name, FINETUNE, (f"{file}: ", *said), weights(file, write))


def changed(**changes: Any) -> dict[str, Any]:
    """The model's tensors with others in their place; None leaves one out."""
    state = {**tensors(), **{key.replace("__", "."): value for key, value in changes.items()}}
    return {key: value for key, value in state.items() if value is not None}


def head(header: Any, body: bytes = b"") -> bytes:
    """A ``.safetensors`` file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def saved() -> bytes:
    """The model's weights as ``.safetensors``."""
    return safetensors.torch.save({key: value.contiguous() for key, value in tensors().items()})


def first(value: Any) -> dict[str, Any]:
    """The model's tensors, the first of which is made from its own."""
    name, tensor = next(iter(tensors().items()))
    return {**tensors(), name: value(tensor)}


CODE = "not readable as weights: no pickle of tensors alone, and no code in a file is run"
UNREADABLE = "not readable as weights"

CASES = [
    pth("code among the tensors", lambda: {**tensors(), "head.bias": Harm()}, CODE),
    pth("code alone", Harm, CODE),
    pth("code in the old format", lambda: {"state_dict": Harm()}, CODE, _use_new_zipfile_serialization=False),
    raw("code in a bare pickle", lambda: pickle.dumps({"state_dict": Harm()}), UNREADABLE, file="w.pth"),
    raw("code under another suffix", lambda: pickle.dumps(Harm()), UNREADABLE),
    pth("a network", lambda: torch.nn.Linear(2, 2), CODE),
    pth("a list", lambda: [torch.zeros(2)], "it holds no tensors by name"),
    pth("a tensor", lambda: torch.zeros(2), "it holds no tensors by name"),
    pth("a number", lambda: 3, "it holds no tensors by name"),
    pth("no tensors", lambda: {"epoch": 3}, "holds no tensors"),
    pth("numbers for names", lambda: dict(enumerate(tensors().values())), UNREADABLE),
    pth(
        "whole numbers",
        lambda: {key: value.to(torch.int8) for key, value in tensors().items()},
        "torch.int8, not floating point",
    ),
    pth(
        "not a number",
        lambda: first(lambda tensor: tensor * float("nan")),
        "holds numbers that are not finite",
    ),
    pth(
        "infinity",
        lambda: changed(norm__bias=torch.full_like(tensors()["norm.bias"], float("inf"))),
        '"norm.bias" holds numbers that are not finite',
    ),
    pth("another shape", lambda: changed(norm__bias=torch.zeros(3)), "does not fit test_vit: ", "norm.bias"),
    pth("a position of no dimension", lambda: changed(pos_embed=torch.zeros(())), "does not fit test_vit: "),
    pth(
        "positions of another model",
        lambda: changed(pos_embed=torch.zeros(1, 5, 7)),
        "does not fit test_vit: ",
    ),
    pth(
        "a tensor missing",
        lambda: changed(norm__bias=None),
        "does not fit test_vit: 1 tensor of",
        '"norm.bias"',
    ),
    pth(
        "another model's",
        lambda: {"conv1.weight": torch.zeros(2)},
        "does not fit test_vit: ",
        'the file has "conv1.weight"',
    ),
    pth(
        "a sparse tensor",
        lambda: changed(norm__bias=torch.zeros(64).to_sparse()),
        '"norm.bias" is sparse; save it dense',
    ),
    pth(
        "sparse rows",
        lambda: changed(norm__bias=torch.zeros(8, 8).to_sparse_csr()),
        '"norm.bias" is sparse; save it dense',
    ),
    pth(
        "a tensor without numbers",
        lambda: changed(norm__bias=torch.zeros(64, device="meta")),
        '"norm.bias" has no numbers: it is of torch\'s meta device',
    ),
    pth(
        "one number repeated beyond all memory",
        lambda: changed(norm__bias=torch.zeros(1).expand(2**44)),
        "does not fit test_vit: ",
    ),
    raw("an empty .pth", b"", UNREADABLE, file="w.pth"),
    raw("text for a .pth", b"404: not found\n", UNREADABLE, file="w.pth"),
    raw("zeros for a .pth", bytes(4096), UNREADABLE, file="w.pth"),
    raw("empty", b"", UNREADABLE),
    raw("three bytes", b"abc", UNREADABLE),
    raw("cut short", lambda: saved()[:-100], UNREADABLE),
    raw("a head without end", struct.pack("<Q", 2**63) + b"{}", UNREADABLE),
    raw("a head of a terabyte", struct.pack("<Q", 2**40) + b"{}", UNREADABLE),
    raw(
        "a tensor of a petabyte",
        head({"norm.bias": {"dtype": "F32", "shape": [2**48], "data_offsets": [0, 2**50]}}),
        UNREADABLE,
    ),
    raw(
        "offsets below 0",
        head({"norm.bias": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
        UNREADABLE,
    ),
    raw("brackets without end", head(b'{"a":' + b"[" * 50_000), UNREADABLE),
    raw("no tensors in it", head({}), "holds no tensors"),
    raw("words without end", head({"__metadata__": {"x": "y" * 10**6}}), "holds no tensors"),
    raw(
        "of whole numbers",
        lambda: safetensors.torch.save({"norm.bias": torch.from_numpy(np.zeros(64, np.int64))}),
        "not floating point",
    ),
    Case(
        "an empty folder",
        FINETUNE,
        ("model.pretrained: w.pth: holds no file of weights",),
        weights("w.pth", Path.mkdir),
    ),
    raw("an empty file of any suffix", b"", UNREADABLE, file="w.bin"),
    Case(
        "weights only on the Hub",
        ("finetune", "r.yaml", "model.name=resnet18.a1_in1k", "model.pretrained=true"),
        ("model.pretrained: the weights resnet18.a1_in1k are not on this machine",),
        weights("w.pth", Path.touch),
        lines=4,
    ),
    Case(
        "no weights at all",
        ("finetune", "r.yaml", "model.name=vit_srelpos_small_patch16_224", "model.pretrained=true"),
        ("model.pretrained: ",),
        weights("w.pth", Path.touch),
        lines=4,
    ),
]
