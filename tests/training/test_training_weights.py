"""Weights from files, and what cannot be used."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from small_runs import parts_of, run

from pugdft.errors import UserError


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.batch_size=73"], r"train.batch_size: 73 is more than the 72 training images of .*insects"),
        (["data.validation=0.99"], "data.validation: class 0 has 24 training images: too few"),
        (["data.name=nowhere"], "data.name: no such folder"),
        (
            ["model.name=resnet18.tv_in1k", "model.args={}", "model.pretrained=true"],
            r"weights resnet18.tv_in1k are not on this machine",
        ),
        (
            ["model.name=test_vit2", "model.pretrained=@weights"],
            r"does not fit test_vit2: .* missing, such as",
        ),
        (["model.pretrained=@pickle"], "not readable as weights"),
        (["model.pretrained=@empty"], "not readable as weights"),
    ],
)
def test_what_cannot_be_used_is_said_before_training(
    overrides: list[str], said: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "harm"),)

    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), tmp_path / "weights.safetensors")
    torch.save({"weight": Harm()}, tmp_path / "pickle.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    files = {"@weights": "weights.safetensors", "@pickle": "pickle.pth", "@empty": "empty.pth"}
    for mark, name in files.items():
        overrides = [text.replace(mark, str(tmp_path / name)) for text in overrides]
    with pytest.raises(UserError, match=said):
        run(small_recipe, tmp_path / "run", *overrides)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_from_a_file_fill_the_backbone_and_leave_the_head_new(
    suffix: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    source = timm.create_model("test_vit", num_classes=7, img_size=32, depth=2)
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save({"state_dict": source.state_dict()}, path)
    else:
        safetensors.torch.save_file(source.state_dict(), path)
    backbone = parts_of(small_recipe, f"model.pretrained={path}").backbone
    assert backbone.tag == f"file:weights.{suffix}"
    for name, tensor in backbone.model.state_dict().items():
        if name.startswith("head."):
            assert tensor.shape[0] == 3
        else:
            assert torch.equal(tensor, source.state_dict()[name])
