"""``python -m pugdft.doctor.probe``: which packages import, and what torch finds; run apart.

Each fact is told as soon as it is known, so that of a crash the place is known.
"""

from __future__ import annotations

import importlib
import re
import warnings
from typing import Any

from pugdft.doctor.apart import say
from pugdft.doctor.report import reason

# What does not need torch comes first: a torch that crashes ends the process.
IMPORTED = (
    "numpy", "PIL.Image", "pyarrow.parquet", "scipy.stats", "pydantic", "filelock", "torch",
    "safetensors.torch", "torchvision", "timm", "accelerate", "datasets",
)  # fmt: skip
_NEED_TORCH = IMPORTED[IMPORTED.index("torch") + 1 :]


def torch_facts() -> dict[str, Any]:
    """What this torch was built with, and what it can use here."""
    import torch
    from torch import distributed

    facts: dict[str, Any] = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": _dotted(torch.backends.cudnn.version()),
        "threads": torch.get_num_threads(),
        "onednn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
        "openmp": torch.backends.openmp.is_available(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "backends": [],
    }
    if blas := re.search(r"BLAS_INFO=(\w+)", torch.__config__.show()):
        facts["blas"] = blas[1]
    if distributed.is_available():
        known = {"gloo": distributed.is_gloo_available, "nccl": distributed.is_nccl_available}
        facts["backends"] = [name for name, is_there in known.items() if is_there()]
    return facts


def _dotted(version: int | None) -> str | None:
    """cuDNN's number as its makers write it: 92600 is 9.26.0."""
    return None if version is None else f"{version // 10000}.{version // 100 % 100}.{version % 100}"


def accelerator_facts() -> dict[str, Any]:
    """Every accelerator that torch can use, or in torch's words why there is none."""
    import torch

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        has_cuda = torch.cuda.is_available()
    facts: dict[str, Any] = {"said": [" ".join(str(each.message).split())[:300] for each in caught]}
    if has_cuda:
        facts["devices"] = [_cuda(index) for index in range(torch.cuda.device_count())]
        if "nccl" in dir(torch.cuda) and torch.distributed.is_nccl_available():
            facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    elif torch.backends.mps.is_available():
        total = torch.mps.recommended_max_memory()
        facts["devices"] = [{"device": "mps", "name": "Apple GPU", "total": total, "fault": _fault("mps")}]
    elif torch.xpu.is_available():
        facts["devices"] = [_xpu(index) for index in range(torch.xpu.device_count())]
    return facts


def _cuda(index: int) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(index)
    fault = _fault(f"cuda:{index}")
    free, total = (None, properties.total_memory) if fault else torch.cuda.mem_get_info(index)
    return {
        "device": f"cuda:{index}",
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "free": free,
        "total": total,
        "bf16": (properties.major, properties.minor) >= (8, 0) or torch.version.hip is not None,
        "fault": fault,
    }


def _xpu(index: int) -> dict[str, Any]:
    import torch

    properties = torch.xpu.get_device_properties(index)
    return {
        "device": f"xpu:{index}",
        "name": properties.name,
        "total": properties.total_memory,
        "bf16": True,
        "fault": _fault(f"xpu:{index}"),
    }


def _fault(device: str) -> str:
    """What goes wrong in a small product there; empty if it is right."""
    import torch

    try:
        ones = torch.ones(64, 64, device=device)
        product = float((ones @ ones).sum())
    except Exception as error:  # whatever a driver or a kernel that is missing raises
        return reason(error)
    return "" if product == 64**3 else f"a product of ones sums to {product:g} instead of {64**3}"


def _main() -> None:
    has_torch = True
    for name in IMPORTED:
        if name in _NEED_TORCH and not has_torch:
            continue  # would only say the same again
        say(doing=f"import {name}")
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            say(broken=name, reason=reason(error))
            has_torch = has_torch and name != "torch"
            continue
        if name == "torch":
            for key, look in (("torch", torch_facts), ("accelerators", accelerator_facts)):
                say(doing=f"ask torch for its {key}")
                try:
                    say(**{key: look()})
                except Exception as error:
                    say(**{f"{key}_fault": reason(error)})


if __name__ == "__main__":
    _main()
