"""What a run ran on: versions, device, memory. Facts about software and hardware, none about people."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pugdft.machine import git_revision

_PACKAGES = ("torch", "timm", "accelerate", "numpy")


def environment_facts(
    device: torch.device, num_processes: int, precision: str, performance: Mapping[str, Any]
) -> dict[str, Any]:
    """The record's ``environment``, but for the times."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "pugdft": version("pugdft"),
        "git": git_revision(),
        "python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "platform": platform.system().lower(),
        "device": device.type,
        "device_name": name,
        "processes": num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "performance": dict(performance),
    }


def _processor() -> str:
    """The processor's model: another one may round otherwise."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory so far: allocated on a CUDA device, resident in this process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Linux counts the process that started this one into ru_maxrss.
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
