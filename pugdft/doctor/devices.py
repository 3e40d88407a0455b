"""Hardware: processor, memory, accelerators, and what torch can use of them."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pugdft.doctor.apart import Facts
from pugdft.doctor.report import Line, size
from pugdft.machine import usable_cores

_FLAGS = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX-512 bf16",
    "amx_tile": "AMX", "amx_bf16": "AMX bf16", "asimd": "NEON", "sve": "SVE", "bf16": "bf16",
}  # fmt: skip
_LOW_MEMORY = 2 * 2**30
_LOW_SHARED_MEMORY = 256 * 2**20


def processor_lines(facts: Facts) -> Iterator[Line]:
    """The processor: model, cores, what its instructions can do."""
    text = _read("/proc/cpuinfo")
    model = _field(text, "model name") or platform.processor() or platform.machine()
    present = set((_field(text, "flags") or _field(text, "Features") or "").split())
    flags = [words for flag, words in _FLAGS.items() if flag in present]
    cores, every = usable_cores(), os.cpu_count() or 1
    words = f"{model}, {cores} of {every} cores usable"
    if flags:
        words += f", {', '.join(flags)}"
    share, threads = cpu_share(), (facts.get("torch") or {}).get("threads")
    if share is not None:
        words += f", {share:g} cores' time allowed"
    if share is not None and threads and threads > share + 0.5:
        remedy = f"set OMP_NUM_THREADS={max(1, int(share))}, or allow the container more"
        yield Line("note", "CPU", f"{words}: torch's {threads} threads get in each other's way", remedy)
    elif platform.machine().lower() in ("x86_64", "amd64") and present and "avx2" not in present:
        remedy = "training on this CPU is slow; nothing can be done but another machine, or a GPU"
        yield Line("note", "CPU", f"{words}; without AVX2", remedy)
    else:
        yield Line("ok", "CPU", words)


def memory_lines() -> Iterator[Line]:
    """Memory of the machine, or of the container if that is less."""
    total, free = memory_bytes()
    if total is None:
        yield Line("note", "RAM", "this system does not tell")
        return
    words = size(total) if free is None else f"{size(free)} of {size(total)} available"
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and limit <= total:
        words += f" (the container's limit is {size(limit)})"
    if free is not None and free < _LOW_MEMORY:
        yield Line("note", "RAM", words, "end other programs; runs take 1 GiB and more")
    else:
        yield Line("ok", "RAM", words)
    shared = Path("/dev/shm")  # noqa: S108 - asked for its size only
    if shared.is_dir():
        facts = os.statvfs(shared)
        whole = facts.f_blocks * facts.f_frsize
        if whole < _LOW_SHARED_MEMORY:
            remedy = "docker run --ipc=host, or --shm-size=1g"
            text = f"{size(whole)}: little for data.auto_augment's workers and for several GPUs"
            yield Line("note", "shared memory", text, remedy)


def memory_bytes() -> tuple[int | None, int | None]:
    """Memory in all and available, within the container's limit; None for what this system does not tell."""
    text = _read("/proc/meminfo")
    total, free = (_kibibytes(text, name) for name in ("MemTotal", "MemAvailable"))
    if total is None:
        try:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (ValueError, OSError):
            return None, None
    limit = _cgroup_number("memory.max", "memory/memory.limit_in_bytes")
    if limit is not None and limit <= total:
        used = _cgroup_number("memory.current", "memory/memory.usage_in_bytes") or 0
        free = min(limit if free is None else free, max(0, limit - used))
        total = limit
    return total, free


def accelerator_lines(facts: Facts) -> Iterator[Line]:
    """Every device that torch can train on, or why there is only the CPU."""
    driver = nvidia_driver()
    found = facts.get("accelerators")
    if found is None:
        if driver:
            yield Line("note", "GPU", f"NVIDIA driver {driver}; torch could not be asked")
        return
    for device in found.get("devices", []):
        yield _device_line(device, driver)
    if not found.get("devices"):
        yield _none_line(facts.get("torch") or {}, found["said"], driver)


def library_lines(facts: Facts) -> Iterator[Line]:
    """What torch computes and communicates with."""
    built = facts.get("torch")
    if built is None:
        why = facts.get("torch_fault") or "torch could not be asked"
        yield Line("note", "torch uses", f"not known: {why}")
        return
    blas = "MKL" if built["mkl"] else built.get("blas", "unknown")
    words = [f"{built['threads']} threads", f"BLAS {blas}", "oneDNN" if built["onednn"] else "no oneDNN"]
    words += ["OpenMP" if built["openmp"] else "no OpenMP", f"kernels for {built['capability']}"]
    nccl = (facts.get("accelerators") or {}).get("nccl")
    backends = [f"nccl {nccl}" if each == "nccl" and nccl else each for each in built["backends"]]
    words.append(f"several processes by {', '.join(backends)}" if backends else "one process only")
    yield Line("ok", "torch uses", ", ".join(words))


def nvidia_driver() -> str | None:
    """The version of the kernel's NVIDIA driver, found without torch."""
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", _read("/proc/driver/nvidia/version"))
    return found[0] if found else None


def _device_line(device: dict[str, Any], driver: str | None) -> Line:
    memory = size(device["total"])
    if device.get("free") is not None:
        memory = f"{size(device['free'])} of {memory} free"
    words = f"{device['name']}, {memory}"
    if "capability" in device:
        words += f", capability {device['capability']}"
    if "bf16" in device:
        words += ", bf16" if device["bf16"] else ", no bf16"
    if driver:
        words += f", driver {driver}"
    if device["fault"]:
        remedy = (
            "install a torch built for this device and its driver: https://pytorch.org/get-started/locally"
        )
        return Line("problem", device["device"], f"{words}; cannot compute: {device['fault']}", remedy)
    return Line("ok", device["device"], words)


def _none_line(built: dict[str, Any], said: list[str], driver: str | None) -> Line:
    text = "none that torch can use: runs train on the CPU"
    if driver is None:
        return Line("ok", "GPU", text)
    text = f"NVIDIA driver {driver} is here, but {text}"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return Line("note", "GPU", text, "unset CUDA_VISIBLE_DEVICES to use it")
    if not built.get("cuda"):
        return Line("problem", "GPU", f"{text}; this torch is for CPUs alone", "install torch with CUDA")
    why = f"; torch says: {said[0]}" if said else ""
    remedy = "compare `nvidia-smi` with the CUDA version of this torch; in a container: docker run --gpus all"
    return Line("problem", "GPU", text + why, remedy)


def cpu_share() -> float | None:
    """Cores' worth of time that a container may take; None if as much as there is."""
    quota, _, period = _read("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    if not quota:
        quota = _read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").strip()
        period = _read("/sys/fs/cgroup/cpu/cpu.cfs_period_us").strip()
    if not (quota.isdigit() and period.isdigit()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _cgroup_number(new: str, old: str) -> int | None:
    """A number of this process's control group, in the second or the first version's place."""
    for path in (f"/sys/fs/cgroup/{new}", f"/sys/fs/cgroup/{old}"):
        if (text := _read(path).strip()).isdigit():
            return int(text)
    return None


def _kibibytes(text: str, name: str) -> int | None:
    words = (_field(text, name) or "").split()
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def _field(text: str, name: str) -> str | None:
    found = re.search(rf"^{re.escape(name)}\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
