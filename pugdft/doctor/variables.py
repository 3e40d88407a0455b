"""Environment variables that change what a run does. Secrets are only said to be set."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from pugdft.doctor.report import Line, State
from pugdft.machine import usable_cores

_WATCHED = re.compile(
    r"PUGDFT_.*|(OMP|MKL|OPENBLAS)_.*|(CUDA|NVIDIA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING"
    r"|CUBLAS_WORKSPACE_CONFIG|(PYTORCH|TORCH|NCCL|GLOO|ACCELERATE|HF|HUGGING|DATASETS|TIMM)_?.*"
    r"|XDG_CACHE_HOME|TMPDIR|(LOCAL_)?(WORLD_SIZE|RANK)|MASTER_(ADDR|PORT)|LD_(PRELOAD|LIBRARY_PATH)"
    r"|PYTHON(PATH|SAFEPATH|WARNINGS|OPTIMIZE|HASHSEED)|MALLOC_.*|(HTTPS?|ALL|NO)_PROXY|NO_COLOR|SLURM_JOB_ID",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|PROXY", re.IGNORECASE)
_LONGEST = 120


def variable_lines() -> Iterator[Line]:
    """Those that are set, in alphabetical order; what has a catch is a note or a problem."""
    plain = []
    for name in sorted(os.environ):
        if not _WATCHED.fullmatch(name):
            continue
        value = os.environ[name]
        text = "set" if _SECRET.search(name) else _shortened(value)
        if found := _catch(name, value):
            state, why, remedy = found
            yield Line(state, name, f"{text}: {why}" if text else why, remedy)
        else:
            plain.append(f"{name}={text}")
    yield Line("ok", "others set", " ".join(plain) or "none that matter")


def _catch(name: str, value: str) -> tuple[State, str, str] | None:
    """State, explanation and remedy of a value that has a catch."""
    if name == "OMP_NUM_THREADS":
        if not re.fullmatch(r"\s*[1-9]\d*(\s*,\s*[1-9]\d*)*\s*", value):
            return "problem", "is no number of threads", "unset it, or set it to a number such as 4"
        threads, cores = int(value.partition(",")[0]), usable_cores()
        if threads < cores:
            return "note", f"torch computes on {threads} of the {cores} cores usable here", "unset it for all"
        if threads > cores:
            return "note", f"more threads than the {cores} cores usable here slow a CPU run down", "unset it"
    if name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES") and value.strip() in ("", "-1"):
        return "note", "is empty or -1: no GPU is used", "unset it to use them"
    if name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") and value.upper() in ("1", "ON", "YES", "TRUE"):
        return "note", "nothing is fetched from the Hub", "unset it where there is a network"
    if name == "WORLD_SIZE":
        return _world_size(value)
    if name == "ACCELERATE_USE_CPU" and value.lower() in ("1", "true", "yes", "on"):
        return "note", "Accelerate uses no GPU", "unset it to use them"
    if name == "CUDA_LAUNCH_BLOCKING" and value == "1":
        return "note", "every kernel is waited for: for debugging only", "unset it"
    if name in ("LD_PRELOAD", "PYTHONPATH", "PYTHONOPTIMIZE"):
        return "note", "may change which code runs", "unset it if that is not meant"
    return None


def _world_size(value: str) -> tuple[State, str, str] | None:
    if not value.isdigit() or int(value) < 1:
        return "problem", "is no number of processes", "unset WORLD_SIZE"
    missing = [each for each in ("RANK", "MASTER_ADDR", "MASTER_PORT") if each not in os.environ]
    if int(value) > 1 and missing:
        why = f"a run would wait for {value} processes, but {', '.join(missing)} is not set"
        return "problem", why, "unset WORLD_SIZE; `pugdft finetune --num-processes` sets what it needs"
    return None


def _shortened(value: str) -> str:
    return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
