"""The formats of ``fuzz.py``: good files of each, and the functions that read them."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from PIL import Image
from rich.console import Console

from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.config import yaml
from pugdft.data.decode import decode, decoded_images
from pugdft.data.source import EncodedImage, SplitChoice
from pugdft.data.tables import parquet_source
from pugdft.errors import UserError
from pugdft.leaderboard import (
    Loaded,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    build_leaderboard,
    collect,
    print_table,
)
from pugdft.leaderboard.formats.html import as_html
from pugdft.leaderboard.load import read_per_image
from pugdft.leaderboard.validate import check_records
from pugdft.models import read_weights
from pugdft.predictions import Predictions, stored_predictions
from pugdft.records import RunRecord, StoredRun, write_record
from pugdft.reproduce import open_run, read_stored_weights, rerun_folder, rerun_recipe
from pugdft.training.checkpoint import load_checkpoint, save_checkpoint
from pugdft.training.run import read_recipe
from pugdft.tuning.space import Untuned, bundled_searches, read_search, space_faults

Read = Callable[[bytes, Path], object]


@dataclass(frozen=True)
class Target:
    """A format.

    Attributes:
        seeds: good files.
        read: reads one, in a folder of its own; true if it was accepted. What it lets out is a failure.
    """

    name: str
    seeds: Sequence[bytes]
    read: Read


SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}
RECIPE: dict[str, Any] = {
    "model": {"name": "test_vit", "pretrained": False},
    "data": {"name": "bundled", "image_size": 32, "random_resized_crop": {"scale": [0.5, 1]}},
    "optimizer": {"name": "pugd", "rho": {"schedule": "icos", "min": 0.5, "max": 2}, "base": SGD},
    "schedule": {"warmup_epochs": 0.5},
    "train": {"epochs": 2, "batch_size": 8},
}
BENCH = {
    "recipes": ["quickstart"],
    "optimizers": ["sgd", "sam[rho=0.1]+adamw[lr=1e-3]", {"name": "pugd", "rho": 1}],
    "seeds": "0-2",
    "budget": "passes",
}
_IMAGES = 12


def refusing(*kinds: type[BaseException]) -> Callable[[Read], Read]:
    """A reader that may refuse in these ways."""
    refusals: tuple[type[BaseException], ...] = (UserError, *kinds)

    def wrap(read: Read) -> Read:
        def wrapped(data: bytes, folder: Path) -> object:
            try:
                return read(data, folder)
            except refusals:
                return False

        return wrapped

    return wrap


def file(folder: Path, name: str, data: bytes) -> Path:
    """A file of these bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def predictions() -> Predictions:
    """Of a network that is right three times in four."""
    label = np.arange(_IMAGES) % 3
    correct = np.arange(_IMAGES) % 4 > 0
    confidence = np.full(_IMAGES, 0.8, np.float32)
    loss = np.where(correct, -np.log(confidence), 2.0).astype(np.float32)
    return Predictions(
        label, np.where(correct, label, (label + 1) % 3), np.ones(_IMAGES, bool), confidence, loss
    )


def record(**changes: Any) -> RunRecord:
    """A completed run on a small data set."""
    rows = [
        {"epoch": n, "lr": 0.05 / n, "train_loss": 1.5 / n, "test_top1": 0.25 * n, "steps": 4 * n}
        for n in (1, 2, 3)
    ]
    return RunRecord.model_validate(
        {
            "schema": "pugdft.run/1",
            "id": "test_vit-insects-pugd-s0-12345678",
            "status": "completed",
            "seed": 0,
            "recipe": RECIPE,
            "history": rows,
            "data": {
                "name": "insects",
                "classes": 3,
                "sizes": {"train": 36, "test": _IMAGES},
                "sha256": "ab" * 32,
            },
            "model": {"name": "test_vit", "weights_sha256": "cd" * 32, "parameters": 371_530},
            "metrics": {
                "test": predictions().metrics().model_dump(),
                "best_test": {"top1": 0.75, "epoch": 3},
            },
            "cost": {
                "epochs": 3,
                "steps": 12,
                "gradient_passes": 24,
                "train_seconds": 3.5,
                "images_per_second": 27.4,
            },
            "method": {"two_pass_fraction": 1.0, "mean_perturbation_norm": 0.05, "mean_gradient_cosine": 0.9},
            "environment": {
                "torch": "2.9.0",
                "device": "cpu",
                "started": "2026-01-01T00:00:00+00:00",
                "finished": "2026-01-01T00:01:00+00:00",
            },
            "artifacts": {"predictions": {"path": "predictions.npz", "sha256": "ef" * 32}},
            **changes,
        }
    )


@refusing()
def read_recipe_file(data: bytes, folder: Path) -> object:
    recipe = read_recipe(file(folder, "recipe.yaml", data))
    assert read_recipe(yaml.parse(yaml.dump(recipe.as_dict()))) == recipe
    return True


@refusing()
def read_bench_file(data: bytes, folder: Path) -> object:
    matrix = build_matrix([str(file(folder, "bench.yaml", data))])
    few = matrix.model_copy(update={"seeds": matrix.seeds[:2]})
    return plan_cells(few, folder / "runs")


@refusing()
def read_search_file(data: bytes, folder: Path) -> object:
    search = read_search(str(file(folder, "search.yaml", data)))
    spec = {"name": "sam", "rho": 0.05, "base": SGD}
    return not space_faults(search.dimensions, [Untuned("sam", spec)])


def read_record_file(data: bytes, folder: Path) -> object:
    """Everything that is ever done with a record that somebody sent, but for running it."""
    shutil.rmtree(folder / "record", ignore_errors=True)
    path = file(folder, "record/a/record.yaml", data)
    predictions().write(path.with_name("predictions.npz"))
    check_records([folder / "record"], lambda note: None)
    with suppress(UserError):
        run = open_run(path)
        assert (folder / "reruns") in (folder / rerun_folder(run)).parents
        rerun_recipe(run)
    other = write_record(record(id="other", recipe={**RECIPE, "optimizer": SGD}), folder / "record" / "b")
    try:
        collected = collect([path, other])
        groups = build_leaderboard(collected.records)
    except UserError:  # an id that stands twice
        return False
    for render in (as_json, as_csv, as_markdown, as_latex, as_html):
        render(groups)
    buffer = io.StringIO()
    print_table(groups, Console(file=buffer, width=120))
    assert buffer.getvalue().replace("\n", "").isprintable()
    assert all(message.isprintable() for message in (*collected.left_out, *collected.notes))
    return not collected.left_out


@refusing()
def read_predictions_file(data: bytes, folder: Path) -> object:
    path = write_record(record(), folder / "predictions")
    file(path.parent, "predictions.npz", data)
    check_records([path], lambda note: None)
    run = StoredRun(record(), path)
    with suppress(UserError):
        stored_predictions(run, "test", _IMAGES)
    return read_per_image(Loaded(record(), path))


@refusing()
def read_safetensors_file(data: bytes, folder: Path) -> object:
    path = file(folder, "w.safetensors", data)
    with suppress(UserError):
        read_stored_weights(path)
    return read_weights(path)


@refusing()
def read_pth_file(data: bytes, folder: Path) -> object:
    return read_weights(file(folder, "w.pth", data))


@refusing()
def read_image_file(data: bytes, folder: Path) -> object:
    return decode(EncodedImage(data, 0, "image"), 16).shape == (16, 16, 3)


@refusing()
def read_parquet_file(data: bytes, folder: Path) -> object:
    place = folder / "tables"
    file(place, "train.parquet", data)
    file(place, "test.parquet", PARQUET)
    source = parquet_source(place, "tables", SplitChoice(trusts_memory=False))
    assert source
    contents = source.read()
    rows = list(decoded_images("tables", contents, 16, 16, []))
    assert len(rows) == contents.train.size + contents.test.size
    return True


def read_checkpoint_file(data: bytes, folder: Path) -> object:
    """A damaged ``state.json``: the checkpoint is used, or it is said to be damaged."""
    save_checkpoint(folder / "run", one_weight(), {}, {"steps": 3}, {})
    file(folder / "run" / "checkpoint", "state.json", data)
    found, _ = load_checkpoint(folder / "run")
    return found is not None


def one_weight() -> torch.nn.Module:
    """A model whose file is always the same."""
    return torch.nn.ParameterList([torch.zeros(2)])


def checkpoint_state() -> bytes:
    """The ``state.json`` of a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), one_weight(), {}, {"steps": 3}, {})
        return (Path(folder) / "checkpoint" / "state.json").read_bytes()


def image(format_: str, mode: str = "RGB") -> bytes:
    """A small picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format_)
    return buffer.getvalue()


def parquet(names: bool = False) -> bytes:
    """A table of pictures, with the names of its classes or without."""
    made = pa.table({"image": [image("PNG")] * 4, "label": [0, 1, 2, 0]})
    if names:
        info = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"]}}}}
        made = made.replace_schema_metadata({"huggingface": json.dumps(info)})
    buffer = io.BytesIO()
    pq.write_table(made, buffer)
    return buffer.getvalue()


def pth(**options: Any) -> bytes:
    """Tensors as torch saves them."""
    buffer = io.BytesIO()
    torch.save(
        {"state_dict": {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4)}, "epoch": 3},
        buffer,
        **options,
    )
    return buffer.getvalue()


def npz() -> bytes:
    """Predictions."""
    buffer = io.BytesIO()
    arrays = {name: array for name, array in vars(predictions()).items() if array is not None}
    np.savez(buffer, **arrays)  # not compressed, so that damage reaches the arrays
    return buffer.getvalue()


def dumped(*values: Any) -> list[bytes]:
    """YAML."""
    return [yaml.dump(value).encode() for value in values]


PARQUET = parquet()
TENSORS = {"a.weight": torch.ones(4, 3), "a.bias": torch.zeros(4)}
LION = {"name": "lion", "lr": 0.1, "betas": [0.9, 0.99]}
FAILED = record(status="diverged", metrics=None, error="x")
FORMATS = (("PNG", "RGB"), ("PNG", "P"), ("JPEG", "RGB"), ("GIF", "P"), ("WEBP", "RGB"), ("TIFF", "L"))
OLD = {"_use_new_zipfile_serialization": False}
TARGETS = (
    Target("recipe", dumped(RECIPE, {**RECIPE, "optimizer": LION}), read_recipe_file),
    Target("bench", dumped(BENCH), read_bench_file),
    Target("search", [path.read_bytes() for path in bundled_searches().values()], read_search_file),
    Target("record", [each.to_yaml().encode() for each in (record(), FAILED)], read_record_file),
    Target("predictions", [npz()], read_predictions_file),
    Target("safetensors", [safetensors.torch.save(TENSORS)], read_safetensors_file),
    Target("pth", [pth(), pth(**OLD), pickle.dumps({"a": [1.0]})], read_pth_file),
    Target("image", [image(*each) for each in FORMATS], read_image_file),
    Target("parquet", [PARQUET, parquet(names=True)], read_parquet_file),
    Target("checkpoint", [checkpoint_state()], read_checkpoint_file),
)
