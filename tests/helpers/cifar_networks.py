"""The registered networks for small images: their sizes, narrow variants, logits of a fill without a seed.

``python tests/helpers/cifar_networks.py`` writes the stored logits anew. A change of a stored row means that
old weights give other answers: do that only for a network that no release has, or give it another name.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

import pugdft.architectures  # noqa: F401 - registers cifar_* in timm

LOGITS = Path(__file__).parent.parent / "fixtures" / "network_logits.json"
NETWORKS: list[str] = timm.list_models("cifar_*")


class Size(NamedTuple):
    """Parameters for 10 and 100 classes, and 10⁹ multiply-adds of an image, at 32 px."""

    of_10: int
    of_100: int
    gmac: float


SIZES = {
    "cifar_resnet18": Size(11_173_962, 11_220_132, 0.555),
    "cifar_resnet50": Size(23_520_842, 23_705_252, 1.298),
    "cifar_resnet18_cpa": Size(11_709_194, 11_755_364, 1.134),
    "cifar_vgg16_bn": Size(14_728_266, 14_774_436, 0.313),
    "cifar_vgg16_fc4096": Size(33_638_218, 34_006_948, 0.332),
    "cifar_vgg16_bn_fc4096": Size(33_646_666, 34_015_396, 0.332),
    "cifar_densenet121": Size(6_956_298, 7_048_548, 0.888),
    "cifar_densenet121_k16": Size(1_762_954, 1_809_124, 0.223),
    "cifar_dla": Size(16_291_386, 16_337_556, 1.031),
    "cifar_upanet16": Size(1_512_431, 1_557_161, 0.167),
    "cifar_upanet64": Size(24_017_183, 24_195_833, 2.666),
    "cifar_wrn28_10": Size(36_479_194, 36_536_884, 5.243),
    "cifar_wrn28_10_pad": Size(36_220_634, 36_278_324, 5.215),
    "cifar_vit_tiny_patch4": Size(5_362_762, 5_380_132, 0.365),
    "cifar_vit_small_patch4": Size(21_342_346, 21_376_996, 1.420),
    "cifar_shake26_2x96d": Size(26_192_922, 26_227_572, 3.777),
    "cifar_pyramidnet164_a48": Size(1_715_442, 1_738_572, 0.388),
    "cifar_pyramidnet272_a200": Size(26_210_842, 26_288_692, 4.489),
}
# Of other sizes of the same networks, for 10 classes at 32 px.
OTHER_SIZES: list[tuple[str, dict[str, Any], int]] = [
    ("cifar_wrn28_10", {"depth": 16, "width": 1}, 175_066),
    ("cifar_wrn28_10", {"depth": 16, "width": 4}, 2_748_890),
    ("cifar_wrn28_10", {"depth": 16, "width": 8}, 10_961_370),
    ("cifar_wrn28_10", {"depth": 40, "width": 4}, 8_949_210),
    ("cifar_wrn28_10", {"width": 1}, 369_498),
    ("cifar_wrn28_10_pad", {"width": 1}, 366_938),
    ("cifar_upanet16", {"img_size": 64}, 1_519_583),
    ("cifar_densenet121", {"growth_rate": 12}, 1_000_618),
    ("cifar_resnet18", {"width": 8}, 176_402),
    ("cifar_vit_tiny_patch4", {"img_size": 48}, 5_378_122),
    ("cifar_vit_small_patch4", {"img_size": 48}, 21_373_066),
    ("cifar_shake26_2x96d", {"width": 32}, 2_923_162),
    ("cifar_pyramidnet164_a48", {"depth": 110, "bottleneck": False, "alpha": 48}, 1_772_706),
    ("cifar_pyramidnet164_a48", {"depth": 110, "bottleneck": False, "alpha": 84}, 3_904_446),
    ("cifar_pyramidnet164_a48", {"depth": 110, "bottleneck": False, "alpha": 270}, 28_485_477),
    ("cifar_pyramidnet164_a48", {"alpha": 270}, 27_216_021),
    ("cifar_pyramidnet164_a48", {"depth": 200, "alpha": 240}, 26_752_702),
]

_NARROW: Mapping[str, dict[str, Any]] = {
    "cifar_resnet18": {"width": 4},
    "cifar_resnet50": {"width": 2, "layers": [1, 1, 2, 1]},
    "cifar_resnet18_cpa": {"width": 4},
    "cifar_vgg16_bn": {"width": 4},
    "cifar_vgg16_fc4096": {"width": 4, "hidden": 16},
    "cifar_vgg16_bn_fc4096": {"width": 4, "hidden": 16},
    "cifar_densenet121": {"growth_rate": 4, "block_config": [2, 3, 2, 2]},
    "cifar_densenet121_k16": {"growth_rate": 4, "block_config": [2, 2, 2, 2]},
    "cifar_dla": {"width": 2},
    "cifar_upanet16": {"width": 4},
    "cifar_upanet64": {"width": 8},
    "cifar_wrn28_10": {"depth": 10, "width": 1},
    "cifar_wrn28_10_pad": {"depth": 16, "width": 1},
    "cifar_vit_tiny_patch4": {"depth": 3, "embed_dim": 48},
    "cifar_vit_small_patch4": {"depth": 3, "embed_dim": 48},
    "cifar_shake26_2x96d": {"depth": 14, "width": 4},
    "cifar_pyramidnet164_a48": {"depth": 20, "alpha": 6},
    "cifar_pyramidnet272_a200": {"depth": 20, "alpha": 12},
}


def narrow_arguments(name: str) -> dict[str, Any]:
    """Arguments that make the network small enough for a test, of the same kinds of layers."""
    assert name in _NARROW, f"give {name} arguments in {__name__} that make it small"
    return dict(_NARROW[name])


def narrow(name: str, **options: Any) -> nn.Module:
    """A small network of this name with weights of a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = timm.create_model(name, **{**narrow_arguments(name), **options})
    return model


def num_parameters(name: str, **options: Any) -> int:
    with torch.device("meta"):
        return sum(each.numel() for each in timm.create_model(name, **options).parameters())


def images(number: int = 2, side: int = 32, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines of the index's square: the same everywhere, without a period, different for each image."""
    values = torch.arange(number * 3 * side * side, dtype=torch.float64).square().cos()
    return values.reshape(number, 3, side, side).to(dtype)


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Set each value of the state from the sine of its index's square, so that no generator takes part.

    Sines of the index alone would cancel in sums over channels. Weights of layers are scaled by √(2/inputs),
    and those of norms are near 1, so that no map grows without bound.
    """
    first = 0
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        indices = torch.arange(first, first + tensor.numel(), dtype=torch.float64)
        sines = indices.remainder(65_521).square().sin().reshape(tensor.shape)
        first += tensor.numel()
        if tensor.ndim > 1:
            tensor.copy_(sines * math.sqrt(2 * tensor.shape[0] / tensor.numel()))
        else:
            is_scale = name.endswith(("weight", "running_var"))
            tensor.copy_(0.1 * sines + is_scale)


def logits_of(name: str) -> list[float]:
    """The answer of the filled network to one image, in float64: of 16 px, to be quick, or of 32 for VGG."""
    side = 32 if "vgg" in name else 16
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    with torch.device("meta"):
        model = timm.create_model(name, **({"img_size": side} if fixed else {}))
    model = model.to(torch.float64).to_empty(device="cpu").eval()
    fill(model)
    with torch.inference_mode():
        answer: list[float] = model(images(1, side, torch.float64))[0].tolist()
    return answer


if __name__ == "__main__":
    rows = {name: logits_of(name) for name in NETWORKS}
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    LOGITS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    sys.stdout.write(f"{len(rows)} rows in {LOGITS}\n")
