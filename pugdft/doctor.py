"""Check the installation, devices, folders, cache and a recipe's needs; give each problem a remedy.

Neither torch nor any other large package is imported here. A second process, ``python -m pugdft.doctor``,
imports them and reads the recipe, so a package that crashes or hangs is reported as well.
"""

from __future__ import annotations

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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

import pugdft
from pugdft.data import health
from pugdft.errors import ConfigIssue, UserError, collect, counted, human_bytes, refuse, shortened
from pugdft.machine import git_revision, usable_cores
from pugdft.paths import (
    cache_folder,
    data_folder,
    file_system,
    flock,
    is_shared,
    stay_offline_without_network,
    weights_folder,
)

if TYPE_CHECKING:
    from pugdft.config.schema import Recipe

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    state: State  # "note" is worth knowing; "problem" stops a run, or makes it wrong or very slow
    name: str  # one or two words
    text: str  # what was found
    remedy: str = ""  # what to do; every problem has one, and nothing that is ok


Report = dict[str, list[Check]]  # by the title of a section


def examine(recipe: str | None, settings: Sequence[str], output: str, deep: bool, clean: bool) -> Report:
    """Make every check; a recipe that is not valid raises :class:`UserError` before the cache is cleaned."""
    given = [] if recipe is None else [json.dumps([recipe, output, *settings])]
    facts, ending = run_apart("pugdft.doctor", given, 300.0)
    for fact in facts:
        if "mistake" in fact:
            raise UserError(fact["mistake"])
    report: Report = {
        "Software": run_check("pugdft", check_installation()) + run_check("packages", check_packages()),
        "Devices": run_check("RAM", check_memory()),
        "Environment variables": run_check("variables", check_variables()),
        "Folders": [
            check for row in _FOLDERS for check in run_in_time(row[0], check_folder(*row), remedy=row[2])
        ],
        "Cache": run_check("stores", check_stores(deep)) + run_check("leftovers", check_leftovers(clean)),
    }
    doing = ("Software", "Python", "start Python", _REINSTALL.format("torch"))
    for fact in facts:
        doing = fact.get("doing", doing)
        if "check" in fact:
            check = Check(**fact["check"])
            if _MISSING in check.text and not stay_offline_without_network():
                text = "not on this machine; a run fetches it from the Hub first"
                check = replace(check, state="note", text=text)
            report.setdefault(fact["title"], []).append(check)
    if ending:
        title, name, what, remedy = doing
        report.setdefault(title, []).append(Check("problem", name, f"to {what} {ending}", remedy))
    if recipe is not None:
        text, remedy = "could not be looked at", "see what is wrong with the software above"
        report[f"Recipe {recipe}"] = report.pop("Recipe", [Check("problem", "recipe", text, remedy)])
    return report


def run_check(name: str, checks: Iterable[Check], remedy: str = "") -> list[Check]:
    """Return what a generator of checks finds; an exception becomes one more result, of this name."""
    found: list[Check] = []
    try:
        for check in checks:
            found.append(replace(check, remedy="") if check.state == "ok" else check)
    except UserError as error:
        text, _, rest = str(error).partition("\n")  # further lines are a remedy themselves
        remedy = " ".join(rest.split()) or remedy or "correct what it names"
        found.append(Check("problem", name, text, remedy))
    except Exception as error:
        text = f"could not be looked at: {health.described(error)}"
        found.append(Check("problem", name, text, "see the reason; it may be a bug of pugdft"))
    return found


def run_in_time(name: str, checks: Iterable[Check], seconds: float = 10.0, remedy: str = "") -> list[Check]:
    """Run a check with a time limit: a network drive whose server is gone never answers."""
    found = [Check("problem", name, f"no answer in {seconds:g} s", "see that its drive is connected")]

    def work() -> None:
        found[:] = run_check(name, checks, remedy)

    thread = threading.Thread(target=work, daemon=True)  # does not keep the process alive
    thread.start()
    thread.join(seconds)
    return list(found)


_MARK = "pugdft-doctor "
# What does not need torch comes first: a torch that crashes ends the process.
_IMPORTED = (
    "numpy", "PIL.Image", "pyarrow.parquet", "scipy.stats", "pydantic", "filelock", "torch",
    "safetensors.torch", "torchvision", "timm", "accelerate", "datasets",
)  # fmt: skip
_REINSTALL = "reinstall: pip install --force-reinstall {}"


def run_apart(module: str, arguments: Sequence[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Run a module in a second process, without the Hub; return what it said, and how it failed if it did."""
    # It finds its modules where this process found them, not in its current folder.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=seconds
        )
        output, ending = done.stdout, ""
        if done.returncode < 0:
            ending = f"crashed: {signal.strsignal(-done.returncode)}"
        elif done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            ending = f"failed: {said[-1][:300]}" if said else f"failed with exit code {done.returncode}"
    except subprocess.TimeoutExpired as error:
        output, ending = error.stdout or b"", f"did not end within {seconds:g} s"
    lines = output.decode("utf-8", "replace").splitlines()
    return [json.loads(line.removeprefix(_MARK)) for line in lines if line.startswith(_MARK)], ending


def say(**facts: Any) -> None:
    """Print facts for the process that waits; they arrive even if this one crashes afterwards."""
    print(f"\n{_MARK}{json.dumps(facts)}", flush=True)


def probe(arguments: Sequence[str]) -> None:
    """Import every package, ask torch what it can use, and look at a recipe; print each result at once."""
    for module in _IMPORTED:
        package = "pillow" if module == "PIL.Image" else module.partition(".")[0]
        remedy = _REINSTALL.format(package)
        failed = _step("Software", package, f"import {module}", remedy, check_import(module))
        if failed and module == "torch":
            break  # the others need it
        if module == "torch":
            _step("Devices", "CPU", "ask torch for the CPU", remedy, check_processor())
            _step("Devices", "GPU", "ask torch for GPUs", remedy, check_accelerators())
    else:
        _step("Environment variables", "training", "look at the variables", "", check_training_variables())
    if not arguments:
        return
    say(doing=("Recipe", "recipe", "look at the recipe", _SEE_DRIVE))
    from pugdft.training.run import read_recipe, run_id

    source, output, *overrides = json.loads(arguments[0])
    try:
        recipe = read_recipe(source, overrides)
    except UserError as error:
        say(mistake=str(error))
        return
    needs = RecipeNeeds(recipe, Path(output or Path("runs") / run_id(recipe)))
    for name, checks, remedy in (
        ("data", needs.data(), "change data.name, or the setting that it names"),
        ("precision", needs.precision(), "change that setting"),
        ("weights", needs.weights(), "give another file as model.pretrained, or fetch this one again"),
        ("output", needs.output(), _ANOTHER_OUTPUT),
    ):
        _step("Recipe", name, f"look at the {name}", remedy, checks)


def _step(title: str, name: str, doing: str, remedy: str, checks: Iterable[Check]) -> list[Check]:
    """Make a check and print what it finds; say before it what it does, in case the process ends there."""
    say(doing=(title, name, doing, _SEE_DRIVE if title == "Recipe" else remedy))
    found = run_check(name, checks, remedy)
    for check in found:
        say(title=title, check=asdict(check))
    return found


def check_import(module: str) -> Iterator[Check]:
    """Import a module, which has no result but a problem; in the second process."""
    with refuse(Exception, lambda error: f"does not import: {health.described(error)}"):
        importlib.import_module(module)
    yield from ()


def check_installation() -> Iterator[Check]:
    """Check pugdft, and name Python, the operating system, its C library, and a container."""
    revision, installed = git_revision(), _version("pugdft")
    source = f"commit {revision}" if revision else "no checkout"
    text = f"{pugdft.__version__}, {source}, in {Path(pugdft.__file__).parent.parent}"
    state: State = "ok" if installed == pugdft.__version__ else "note"
    if state == "note":
        text += f"; installed as {installed}" if installed else "; runs without being installed"
    yield Check(state, "pugdft", text, "pip install -e . in the checkout")
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    version = f"{platform.python_version()} ({platform.python_implementation()})"
    yield Check("ok", "Python", f"{version}, {sys.executable}, {kind}")
    words = [platform.platform(), platform.machine()]  # the release of WSL names Microsoft
    with suppress(OSError):  # macOS has no such file
        words.append(platform.freedesktop_os_release().get("PRETTY_NAME", ""))
    if any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")):
        words.append("in a container")
    yield Check("ok", "system", ", ".join(filter(None, words)))


def check_packages() -> Iterator[Check]:
    """Name the packages' versions, and those that are missing or too old."""
    from packaging.requirements import Requirement

    versions, problems = {"torchvision": _version("torchvision")}, []
    extras_of_users = set(importlib.metadata.metadata("pugdft").get_all("Provides-Extra") or []) - {
        "test",
        "docs",
    }
    known = ["", *sorted(extras_of_users)]
    for wanted in map(Requirement, importlib.metadata.requires("pugdft") or []):
        marker = wanted.marker
        extras = [each for each in known if not marker or marker.evaluate({"extra": each})]
        if not extras:
            continue
        versions[wanted.name.removesuffix("-pytorch-model")] = found = _version(wanted.name)
        if "" in extras and (found is None or not wanted.specifier.contains(found, prereleases=True)):
            said = f"{found} is installed" if found else "is not installed"
            text = f"{said}, pugdft needs {wanted.specifier}"
            remedy = f'pip install "{wanted.name}{wanted.specifier}"'
            problems.append(Check("problem", wanted.name, text, remedy))
    yield Check("ok", "packages", ", ".join(f"{name} {found}" for name, found in versions.items() if found))
    yield from problems


def _version(package: str) -> str | None:
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


# Of torch's build settings, those that decide what it computes and communicates with.
_BUILD = re.compile(r"\b(?:CUDA_VERSION|CUDNN_VERSION|BLAS_INFO|USE_(?:MKLDNN|OPENMP|ROCM|XPU|NCCL))=[\w.]+")
_LITTLE_SPACE = 2 * 2**30  # of memory, or of a disk
_LOW_SHARED_MEMORY = 256 * 2**20


def check_memory() -> Iterator[Check]:
    """Check the memory of the machine, or of the container if that is less."""
    memory = psutil.virtual_memory()
    free, whole = memory.available, human_bytes(memory.total)
    for limit in _container_limit("memory.max"):
        free = max(0, min(free, limit - sum(_container_limit("memory.current"))))
        whole += f" (the container's limit is {human_bytes(limit)})"
    state: State = "note" if free < _LITTLE_SPACE else "ok"
    text = f"{human_bytes(free)} of {whole} available"
    yield Check(state, "RAM", text, "end other programs; runs take 1 GiB or more")
    shared = "/dev/shm"  # noqa: S108 - asked for its size only
    if os.path.isdir(shared) and (total := shutil.disk_usage(shared).total) < _LOW_SHARED_MEMORY:
        text = f"{human_bytes(total)}: little for data.auto_augment's workers and for several GPUs"
        yield Check("note", "shared memory", text, "docker run --ipc=host, or --shm-size=1g")


def _container_limit(name: str) -> list[int]:
    """Read the numbers of a file of control groups (version 2); none where there is no limit."""
    file = Path("/sys/fs/cgroup") / name
    words = file.read_text().split() if file.is_file() else []
    return [int(word) for word in words] if "max" not in words else []


def check_processor() -> Iterator[Check]:
    """Check the processor and its cores, and name what torch was built with; in the second process."""
    import torch

    known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    threads, quota = torch.get_num_threads(), _container_limit("cpu.max")  # microseconds of a period, period
    share = quota[0] / quota[1] if quota else float("inf")
    name = known.get("cpu_name") or platform.processor() or platform.machine()
    text = f"{name}, {usable_cores()} of {os.cpu_count()} cores usable"
    text += f", {share:g} cores' time allowed" if quota else ""
    if threads > share + 0.5:
        remedy = f"set OMP_NUM_THREADS={max(1, int(share))}, or allow the container more"
        yield Check("note", "CPU", f"{text}: torch's {threads} threads slow each other down", remedy)
    elif known.get("architecture") == "x86_64" and not known["avx2"]:
        yield Check("note", "CPU", f"{text}; without AVX2, training is slow", "use another CPU, or a GPU")
    else:
        yield Check("ok", "CPU", text)
    kernels, built = torch.backends.cpu.get_cpu_capability(), _BUILD.findall(torch.__config__.show())
    yield Check("ok", "torch uses", f"{threads} threads, kernels for {kernels}, {', '.join(built)}")


def check_accelerators() -> Iterator[Check]:
    """Check every device that torch can train on, or say why there is only the CPU; in the second process."""
    import torch
    from torch.utils import collect_env

    driver = collect_env.get_nvidia_driver_version(collect_env.run)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        said = f"; torch says {health.described(caught[0].message)}" if caught else ""
        yield _no_accelerator(driver, said)
        return
    remedy = "install a torch for this device and its driver: https://pytorch.org/get-started/locally"
    for index in range(torch.accelerator.device_count()):
        yield from run_check(f"{device.type}:{index}", check_device(device.type, index, driver), remedy)


def check_device(kind: str, index: int, driver: str | None) -> Iterator[Check]:
    """Check that a device computes, and name what it is."""
    import torch

    module: Any = getattr(torch, kind)
    if kind == "mps":
        words = ["Apple GPU", human_bytes(module.recommended_max_memory())]
    else:
        properties = module.get_device_properties(index)
        words = [properties.name, human_bytes(properties.total_memory)]
    if kind == "cuda":
        bf16 = "bf16" if properties.major >= 8 else "no bf16"
        words.append(f"capability {properties.major}.{properties.minor}, {bf16}")
    words += [f"driver {driver}"] if driver else []
    with refuse(Exception, lambda error: f"{', '.join(words)}; cannot compute: {health.described(error)}"):
        ones = torch.ones(64, 64, device=f"{kind}:{index}")
        if (product := float((ones @ ones).sum())) != 64**3:
            raise ArithmeticError(f"a product of ones sums to {product:g} instead of {64**3}")
    if kind == "cuda":
        words[1] = f"{human_bytes(module.mem_get_info(index)[0])} of {words[1]} free"
    yield Check("ok", f"{kind}:{index}", ", ".join(words))


def _no_accelerator(driver: str | None, why: str) -> Check:
    import torch

    text = f"NVIDIA driver {driver} is here, but none that torch can use: runs train on the CPU"
    if driver is None:
        return Check("ok", "GPU", text.partition("but ")[2])
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return Check("note", "GPU", text, "unset CUDA_VISIBLE_DEVICES to use it")
    if not torch.version.cuda:
        return Check("problem", "GPU", f"{text}; this torch is for CPUs alone", "install torch with CUDA")
    remedy = "compare `nvidia-smi` with this torch's CUDA version; in a container: docker run --gpus all"
    return Check("problem", "GPU", text + why, remedy)


_WATCHED = re.compile(
    r"PUGDFT_.*|(OMP|MKL|OPENBLAS)_.*|(CUDA|NVIDIA|HIP|ROCR)_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING"
    r"|CUBLAS_WORKSPACE_CONFIG|(PYTORCH|TORCH|NCCL|GLOO|ACCELERATE|HF|HUGGING|DATASETS|TIMM)_?.*"
    r"|XDG_CACHE_HOME|TMPDIR|(LOCAL_)?(WORLD_SIZE|RANK)|MASTER_(ADDR|PORT)|LD_(PRELOAD|LIBRARY_PATH)"
    r"|PYTHON(PATH|SAFEPATH|WARNINGS|OPTIMIZE|HASHSEED)|MALLOC_.*|(HTTPS?|ALL|NO)_PROXY|NO_COLOR|SLURM_JOB_ID",
    re.IGNORECASE,
)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH|PROXY", re.IGNORECASE)

# Names, values, state, explanation, remedy. The variables that stop a run are checked by training's own code.
# OMP_NUM_THREADS is a number, or several for nested regions.
_CATCHES: tuple[tuple[str, Callable[[str], object], State, str, str], ...] = (
    ("OMP_NUM_THREADS", lambda value: not re.match(r"\s*0*[1-9]\d*\s*(,|$)", value),
     "problem", "is no number of threads", "unset it, or set it to a number such as 4"),
    ("OMP_NUM_THREADS", lambda value: int(value.partition(",")[0]) != usable_cores(),
     "note", "not the number of cores usable here: a CPU run may be slower", "unset it"),
    ("(CUDA|HIP)_VISIBLE_DEVICES", lambda value: value.strip() in ("", "-1"),
     "note", "is empty or -1: no GPU is used", "unset it to use them"),
    ("HF_(HUB|DATASETS)_OFFLINE", lambda value: value.upper() in ("1", "ON", "YES", "TRUE"),
     "note", "nothing is fetched from the Hub", "unset it where there is a network"),
    ("LD_PRELOAD|PYTHONPATH|PYTHONOPTIMIZE", lambda value: True,
     "note", "may change which code runs", "unset it if that is not meant"),
)  # fmt: skip


def check_variables() -> Iterator[Check]:
    """Check the environment variables that change a run; of secrets only say that they are set."""
    plain = []
    for name in sorted(filter(_WATCHED.fullmatch, os.environ)):
        value = os.environ[name]
        text = "set" if _SECRET.search(name) else shortened(value, 120)
        for pattern, is_caught, state, why, remedy in _CATCHES:
            if re.fullmatch(pattern, name) and is_caught(value):
                yield Check(state, name, f"{text}: {why}" if text else why, remedy)
                break
        else:
            plain.append(f"{name}={text}")
    yield Check("ok", "others set", " ".join(plain) or "none that matter")


def check_training_variables() -> Iterator[Check]:
    """Let training's own code check the variables of launchers and of Accelerate; in the second process."""
    from pugdft.training import launchers

    launchers.check_variables()
    if launchers.must_use_cpu():
        yield Check("note", "ACCELERATE_USE_CPU", "runs train on the CPU", "unset it to use a GPU")


# Name, folder, what chooses another, whether a run writes there.
_FOLDERS: tuple[tuple[str, Callable[[], Path], str, bool], ...] = (
    ("cache", cache_folder, "set PUGDFT_CACHE to another folder", True),
    ("data", data_folder, "set PUGDFT_DATA to another folder", False),
    ("weights", weights_folder, "set PUGDFT_WEIGHTS to another folder", False),
    ("Hub's cache", lambda: Path(importlib.import_module("huggingface_hub.constants").HF_HOME),
     "set HF_HOME to another folder", True),
    ("temporary", lambda: Path(tempfile.gettempdir()), "set TMPDIR to another folder", True),
    ("this folder", Path.cwd, "go to another folder, or give one by --output", True),
)  # fmt: skip


def check_folder(name: str, choose: Callable[[], Path], another: str, written: bool) -> Iterator[Check]:
    """Check that a folder can be used, and how much room is left; ``another`` is how to choose another."""
    folder = choose()
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is {'not a folder' if folder.exists() else 'a link to nothing'}")
    if not written and not folder.exists():
        yield Check("ok", name, f"{folder}, not there; nothing needs it")
        return
    place = existing(folder)
    if written:
        with (
            refuse(OSError, lambda error: f"{place}: files cannot be written and locked ({error.strerror})"),
            tempfile.NamedTemporaryFile(prefix=".pugdft-doctor-", dir=place) as file,
        ):
            flock(file, wait=False)
            with health.locking(Path(file.name)) as is_free:
                if is_free:
                    raise UserError(f"{place}: the locks of its file system keep nobody out")
    elif not os.access(place, os.R_OK | os.X_OK):
        raise UserError(f"{place}: not readable")
    free, kind = shutil.disk_usage(place).free, file_system(folder)
    where = str(folder) if folder == place else f"{folder}, to be made"
    how = "locks work" if written else "readable"
    check = Check("ok", name, ", ".join(filter(None, (where, f"{human_bytes(free)} free", kind, how))))
    if written and free < _LITTLE_SPACE:
        check = replace(check, state="note", remedy=f"free some space, or {another}")
    elif written and is_shared(place):
        text = f"{check.text} on one machine, but the mount decides about several: a bench here uses leases"
        check = Check("note", name, text, f"expect it to be slower than a disk of this machine, or {another}")
    yield check


def existing(folder: Path) -> Path:
    """Return the folder or the nearest one above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())


def check_stores(deep: bool = False) -> Iterator[Check]:
    """Check every folder of decoded images by shapes and sizes; ``deep``: also every pixel and label."""
    stores = health.find_stores(cache_folder() / "stores")
    for folder in stores:
        faults: list[ConfigIssue] = []
        where = f"{human_bytes(health.bytes_below(folder))}, {folder}"
        with collect(faults):
            right = "every pixel right" if deep else "shapes and sizes right"
            yield Check("ok", "store", f"{health.check_store(folder, deep)}, {right}, {where}")
        for fault in faults:
            remedy = "delete this folder; the next run decodes the images again"
            yield Check("problem", "damaged", f"{fault}: {where}", remedy)
    if not stores:
        yield Check("ok", "stores", "none yet")


def check_leftovers(clean: bool = False) -> Iterator[Check]:
    """Check for what killed preparations of data left in the cache; ``clean`` removes it."""
    found = health.leftovers(cache_folder() / "stores")
    noun = "folder or lock" if len(found) == 1 else "folders or locks"
    what = f"{len(found)} {noun} of killed preparations, {human_bytes(sum(map(health.bytes_below, found)))}"
    if not found:
        yield Check("ok", "leftovers", "none; nothing to clean" if clean else "none")
    elif not clean:
        yield Check("note", "leftovers", what, "pugdft data clean")
    else:
        freed, faults = health.remove_leftovers(found)
        yield Check("ok", "cleaned", f"{human_bytes(freed)} freed: {what}")
        for each in faults:
            yield Check("problem", "leftover", f"could not be removed: {each}", "remove it by hand")


_MISSING = "not on this machine and cannot be fetched"  # in the messages of open_source and build_model
_LARGEST_READ = 8 * 2**30
_ANOTHER_OUTPUT = "choose another folder by --output"
_SEE_DRIVE = "see that its drive and its files can be read"


@dataclass
class RecipeNeeds:
    """What a recipe needs, checked by the code that a run loads it with; nothing is fetched or trained."""

    recipe: Recipe
    folder: Path  # the run's
    num_classes: int = 10  # until the data says more
    steps_per_epoch: int | None = None  # likewise

    def data(self) -> Iterator[Check]:
        """Open the data set, find its decoded images or the room for them, and compare the batch size."""
        from pugdft.data.cache import NoRoom, check_room, find_store
        from pugdft.data.datasets import DATASETS, open_source
        from pugdft.data.decode import decode
        from pugdft.training.setup import check_batch

        data, stores = self.recipe.data, cache_folder() / "stores"
        place = data_folder() / data.name if data.name in DATASETS else Path(data.name).expanduser()
        num_bytes = health.bytes_below(place) if place.exists() else 0
        if num_bytes > _LARGEST_READ:
            text = f"{place}, more than {human_bytes(_LARGEST_READ)}: too much to read now"
            yield Check("note", "data", text, f"pugdft data prepare {data.name}")
            return
        source = open_source(data.name, data.test, data.split_names)
        yield Check("ok", "data", f"{data.name}, {human_bytes(num_bytes)}" if num_bytes else data.name)
        store = find_store(stores, source, data.image_size) if data.storage != "files" else None
        state: State = "ok"
        if store:
            self.num_classes, num_train = len(store.classes), len(store.labels("train"))
            num_images, side = num_train + len(store.labels("test")), store.images("train").shape[1]
            text = f"{num_images:,} images of {side}², {human_bytes(health.bytes_below(store.folder))}"
        else:
            contents, text = source.read(), "never: data.storage is files"
            self.num_classes, num_train = len(contents.classes), contents.train.size
            num_images = num_train + contents.test.size
            height, width, _ = decode(next(contents.train.samples())).shape
            side = width if height == width <= data.image_size else data.image_size
            taken = f"{counted(num_images, 'image')} will take {human_bytes(num_images * 3 * side**2)}"
            if data.storage != "files":
                state, text = "note", f"{taken}, too much for this disk: files will be decoded each time"
                with suppress(NoRoom):
                    is_optional = data.storage == "auto" and source.folder is not None
                    check_room(existing(stores), source, num_images * 3 * side**2, is_optional)
                    state, text = "ok", f"not yet; {taken} in the cache"
        remedy = "slower, and right; for speed set PUGDFT_CACHE to a folder on a larger disk"
        yield Check(state, "decoded", text, remedy)
        num_train -= round(num_train * data.validation)
        check_batch(self.recipe, num_train, 1)
        self.steps_per_epoch = num_train // self.recipe.train.batch_size

    def precision(self) -> Iterator[Check]:
        """Check that the training device can compute as the recipe says."""
        import torch

        from pugdft.training.performance import pick, precision_note
        from pugdft.training.setup import prepare_device

        kind, precision = prepare_device(self.recipe), self.recipe.train.precision
        pick(self.recipe, kind)
        text = f"{precision} on {torch.cuda.get_device_name() if kind == 'cuda' else kind.upper()}"
        note = precision_note(precision, kind)
        text += " is emulated" if note else ""
        yield Check("note" if note else "ok", "precision", text, note)

    def weights(self) -> Iterator[Check]:
        """Build the model with its weights; check its passes and the room for checkpoints."""
        from pugdft.models import build_model
        from pugdft.optim.build import method_of
        from pugdft.training.trial import check_passes

        model, seed = self.recipe.model, self.recipe.train.seed
        data = self.recipe.data
        backbone = build_model(model, self.num_classes, data.image_size, seed, look=data)
        source = f"{backbone.tag}, loaded" if backbone.tag else "random: model.pretrained is false"
        num_bytes = sum(tensor.nbytes for tensor in backbone.model.state_dict().values())
        number = f"{backbone.num_parameters / 1e6:.1f} M parameters"
        yield Check("ok", "weights", f"{source}; {number}, {human_bytes(num_bytes)}")
        try:
            check_passes(self.recipe, backbone.model, method_of(self.recipe.optimizer), 1)
        except UserError as error:
            yield Check("problem", "passes", str(error), "change one of these settings")
        if self.recipe.train.takes_snapshots:
            from pugdft.training.snapshots import described

            yield Check("ok", "snapshots", described(self.recipe, self.steps_per_epoch, num_bytes))
        # A run keeps two checkpoints while it writes the third. Beside the weights, each holds up to three
        # times as much, for AdamW and the method.
        free, least = shutil.disk_usage(existing(self.folder)).free, 3 * num_bytes
        if free < 4 * least:
            text = f"a run's checkpoints take up to {human_bytes(4 * least)}, {human_bytes(free)} are free"
            state: State = "problem" if free < least else "note"
            yield Check(state, "room", text, f"free some space, or {_ANOTHER_OUTPUT}")

    def output(self) -> Iterator[Check]:
        """Check what ``pugdft finetune`` would find in the run's folder."""
        from pugdft.records import RECORD_NAME, read_record
        from pugdft.training import run
        from pugdft.training.checkpoint import load_checkpoint

        folder, status = self.folder, ""
        yield from check_folder("folder", lambda: folder, _ANOTHER_OUTPUT, True)
        run.check(folder, self.recipe)
        with suppress(UserError):  # an unreadable record is replaced by the run
            status = read_record(folder / RECORD_NAME).status
        if (folder / ".lock").is_file() and health.is_held(folder / ".lock"):
            text, remedy = "a process is at work on this run now", "wait for it: until it ends, no other may"
            yield Check("note", "output", f"{folder}: {text}", remedy)
        elif status == "completed":
            text = f"{folder}: this run is complete; the same command returns its record"
            yield Check("note", "output", text, "--no-resume runs it again")
        else:
            checkpoint, faults = load_checkpoint(folder)
            step = checkpoint.state["position"]["steps"] if checkpoint else 0
            text = (
                f"{folder}: the same command {f'goes on from update {step}' if checkpoint else 'begins it'}"
            )
            state: State = "ok" if not faults else "note" if checkpoint else "problem"
            remedy = "none; some updates are made again" if checkpoint else "--no-resume starts anew"
            yield Check(state, "output", "; ".join([text, *faults]), remedy)


if __name__ == "__main__":
    probe(sys.argv[1:])
