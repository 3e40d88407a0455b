"""Fixtures shared by the tests: a cache of their own, and a small data set with a small model."""

from __future__ import annotations

import os

# Before torch is imported, and for all processes that tests start: threads that wait for each other sleep.
# Where other work is going on beside, those that spin make a run of two seconds take minutes.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are small, and one process runs on each core
# Commands that tests start find the package compiled: it takes each of them a second to do that itself.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from photo_runs import photo_run, photos, trained, turned_photos  # noqa: F401
from PIL import Image
from standing_still import HANG_SECONDS, Command

from pugdft.bench import worker
from pugdft.config import yaml

# What imports torch is imported by the tests and fixtures that need it: not once more by the process that
# only hands tests out.
if TYPE_CHECKING:
    from tuning_runs import Runs, Search

    from pugdft.bench.cell import BenchCell

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may depend on a network

# The same values every time, however slowly a machine draws them: `benchmarks/fuzz.py` is for new ones.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the whole session, inherited by the processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["PUGDFT_CACHE"] = str(folder)
    return folder


def write_image_folder(root: Path, per_class: dict[str, int], side: int = 16, seed: int = 0) -> Path:
    """``train`` and ``test`` class folders of PNG images whose colour tells the class."""
    random = np.random.default_rng(seed)
    classes = ("ant", "bee", "cat")
    for split, count in per_class.items():
        for number, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 90, (side, side, 3), dtype=np.uint8)
                pixels[..., number] += 120
                Image.fromarray(pixels).save(folder / f"{index:03d}.png")
    return root


@pytest.fixture(scope="session", autouse=True)
def unflushed() -> Iterator[None]:
    """Files reach the disk when the system likes: no test loses power, and a run flushes sixteen times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 training and 11 test images a class: neither is a multiple of usual batch sizes."""
    return write_image_folder(tmp_path_factory.mktemp("data") / "insects", {"train": 24, "test": 11})


@pytest.fixture(scope="session")
def sgd_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of a small ResNet."""
    from analysis_runs import trained_run

    return trained_run(tmp_path_factory.mktemp("runs") / "sgd", image_folder)


@pytest.fixture(scope="session")
def sam_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another one's, with SAM."""
    from analysis_runs import SGD, trained_run

    optimizer = {"name": "sam", "rho": 0.1, "base": SGD}
    return trained_run(tmp_path_factory.mktemp("runs") / "sam", image_folder, optimizer, seed=1)


@pytest.fixture
def small_recipe(image_folder: Path) -> dict[str, Any]:
    """A run of half a second: two blocks of a small ViT (no BatchNorm), on 16-pixel images."""
    return {
        "model": {"name": "test_vit", "pretrained": False, "args": {"depth": 2}},
        "data": {"name": str(image_folder), "image_size": 32, "crop_padding": 2},
        "optimizer": {"name": "sam", "base": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
        "train": {"epochs": 2, "batch_size": 24},
    }


@pytest.fixture
def recipe_file(small_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The small recipe as a file."""
    path = tmp_path / "insects.yaml"
    path.write_text(yaml.dump(small_recipe))
    return path


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that nothing has been kept in yet."""
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "own-cache"))
    return tmp_path / "own-cache"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """In place of the processes of runs."""
    from tuning_runs import Runs

    fake = Runs()
    monkeypatch.setattr(worker, "_run", fake.run)
    return fake


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells run in this process: for tests of their results, which need no processes of their own."""

    def run(cell: BenchCell, *others: Any) -> int:
        from pugdft.training.run import finetune

        record, _ = finetune(cell.recipe, cell.folder)
        return 0 if record.status == "completed" else 1

    monkeypatch.setattr(worker, "_run", run)


@pytest.fixture
def search(recipe_file: Path) -> Search:
    """Of the small recipe's options."""
    from tuning_runs import Search

    return Search(recipe_file)


@pytest.fixture
def start() -> Iterator[Callable[..., Command]]:
    """Starts commands beside the test; none of their processes outlives it."""
    started: list[Command] = []

    def begin(*arguments: str, **options: Any) -> Command:
        started.append(Command(*arguments, **options))
        return started[-1]

    yield begin
    for command in started:
        command.kill()


def pugdft(*arguments: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pugdft", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One Chromium for all pages."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on PATH")
    with api.sync_playwright() as playwright:
        arguments, patience = ["--no-sandbox"], 1000 * HANG_SECONDS
        running = playwright.chromium.launch(executable_path=path, args=arguments, timeout=patience)
        yield running
        running.close()
