"""The project's shape: imports point down, start-up is light, no grab-bag modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "pugdft"

# Lowest first; a module may import from its own layer and from those before it. A package's module may have a
# layer of its own.
LAYERS = [
    ["errors", "machine", "__init__"],
    ["paths", "figures", "architectures"],
    ["config"],
    ["records"],
    ["predictions", "weights", "analysis.files"],
    ["optim", "data", "models"],
    ["training"],
    ["leaderboard"],
    ["bench", "report", "reproduce", "doctor"],
    ["inference"],
    ["analysis"],
    ["tuning"],
    ["cli", "__main__"],
    ["api"],
]
# Within the optimizer core, likewise.
OPTIM_LAYERS = [
    ["foreach", "context", "options"],
    ["base", "diagnostics", "schedules"],
    ["scaler", "directions", "masks", "triggers", "combine"],
    ["methods", "passes", "perturbed"],
    ["build"],
    ["__init__"],
]
WITHOUT_TORCH = ["pugdft.config.load", "pugdft.records", "pugdft.leaderboard", "pugdft.cli.main"]


def modules(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names of pugdft modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pugdft"):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("pugdft")}
    return {name for name in names if name}


def layer_of(part: str, layers: list[list[str]]) -> int | None:
    return next((number for number, layer in enumerate(layers) if part in layer), None)


def layer_of_module(parts: tuple[str, ...]) -> int | None:
    """The layer of a module, else that of its package."""
    own = layer_of(".".join(parts[:2]), LAYERS)
    return layer_of(parts[0], LAYERS) if own is None else own


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts
    if own == ("__init__",):
        return  # it names what lies anywhere, for type checkers, and imports it when it is used
    own_layer = layer_of_module(own)
    assert own_layer is not None, f"{own[0]} has no layer: give it one"
    for name in imported(path):
        layer = layer_of_module(tuple(name.split(".")[1:]) or ("__init__",))
        if layer is not None:
            assert layer <= own_layer, f"{path} imports {name}, which lies above it"


@pytest.mark.parametrize("path", modules(PACKAGE / "optim"), ids=lambda path: path.name)
def test_imports_in_the_optimizer_core_point_down(path: Path) -> None:
    own_layer = layer_of(path.stem, OPTIM_LAYERS)
    assert own_layer is not None, f"{path.stem} has no layer: give it one"
    for name in imported(path):
        parts = name.split(".")
        layer = layer_of(parts[2], OPTIM_LAYERS) if parts[1:2] == ["optim"] and len(parts) > 2 else None
        if layer is not None:
            assert layer <= own_layer, f"{path} imports {name}, which lies above it"


def test_few_modules_lie_loose_and_none_is_a_grab_bag_or_long() -> None:
    loose = [path.name for path in PACKAGE.glob("*.py")]
    assert len(loose) <= 12, f"{sorted(loose)}: which room do these belong to?"
    for path in modules(PACKAGE):
        assert path.stem not in {"utils", "util", "helpers", "common", "core", "misc"}
        assert len(path.read_text().splitlines()) <= 900, f"{path}: which two subjects share this file?"


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = {}
    for path in modules(PACKAGE):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_the_check_of_a_spec_does_not_import_torchs_compiler() -> None:
    specs = [{"name": "sgd", "lr": 0.1}, {"name": "sam", "base": {"name": "adamw", "lr": 0.1}}]
    code = (
        "import sys, torch; from pugdft.optim.build import spec_faults; "
        "add = torch.optim.Optimizer.add_param_group; "
        f"print([spec_faults(each, 'optimizer') for each in {specs}], 'torch._dynamo' in sys.modules, "
        "add is torch.optim.Optimizer.add_param_group)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("]")[-1].split() == ["False", "True"]


def test_light_modules_do_not_import_torch() -> None:
    imports = f"import sys, {', '.join(WITHOUT_TORCH)}; "
    code = imports + "sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_optimizer_core_needs_torch_alone() -> None:
    code = (
        "import sys, pugdft.optim; heavy = {'timm', 'accelerate', 'datasets', 'pydantic', 'rich', 'typer', "
        "'yaml', 'scipy', 'pyarrow'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
