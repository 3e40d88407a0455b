"""The record of a run: its results, what they cost, what it ran on, and the files that it points at."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator

from pugdft import records
from pugdft.config import plugins
from pugdft.config.schema import Recipe
from pugdft.data.source import writable
from pugdft.machine import git_revision
from pugdft.models import registered_by
from pugdft.paths import file_sha256
from pugdft.training import snapshots
from pugdft.training.averaging import Weights
from pugdft.training.checkpoint import CHECKPOINT_NAME, RestartLog, RunState, now, save_weights
from pugdft.training.launchers import PLANNED, SHARED_WITH
from pugdft.training.performance import device_name, proc_field
from pugdft.training.setup import RunComponents
from pugdft.training.timm_repository import write_repository

_LONGEST_NAME = 64  # characters of a data set's or model's name in a run's; the digest tells runs apart


def run_id(recipe: Recipe) -> str:
    """Name a run, such as ``resnet18-cifar10-pugd-s0-1a2b3c4d``: unique by the recipe's digest."""
    data = Path(recipe.data.name).name[:_LONGEST_NAME]
    method, seed = str(recipe.optimizer["name"]), f"s{recipe.train.seed}"
    model = Path(recipe.model.name).name[:_LONGEST_NAME]  # of hf-hub:OWNER/NAME or local-dir:PATH
    parts = (model, data, method, seed, recipe.digest()[:8])
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)


def build_record(
    components: RunComponents, state: RunState, log: RestartLog, status: records.Status, error: str | None
) -> records.RunRecord:
    """Build the record of a run as it stands, without its artifacts; ``error`` says why it did not finish."""
    recipe, position, optimizer = components.recipe, state.position, components.optimizer
    store, backbone, training = components.store, components.backbone, components.training
    sizes = {"train": len(training.images)}
    sizes |= {split: len(batches.images) for split, batches in components.evaluations.items()}
    seconds, images_seen = position.train_seconds, position.steps * recipe.train.batch_size
    digests = training.digests()
    return records.RunRecord(
        id=run_id(recipe),
        status=status,
        error=error,
        recipe=recipe.as_dict(),
        seed=recipe.train.seed,
        data=records.DataFacts(
            name=store.name,
            classes=len(store.classes),
            sizes=sizes,
            sha256=store.sha256,
            **digests,
            class_names=[writable(name) for name in store.classes],
            stored_size=training.images.pixels.shape[1],
        ),
        model=records.ModelFacts(
            name=recipe.model.name,
            pretrained_tag=backbone.tag,
            weights_sha256=backbone.weights_sha256,
            head_sha256=backbone.head_sha256,
            head=backbone.head,
            registered_by=registered_by(backbone.architecture),
            parameters=backbone.num_parameters,
        ),
        metrics=_metrics(components, state),
        history=state.history,
        cost=records.Cost(
            epochs=position.steps // max(1, training.steps_per_epoch),
            steps=position.steps,
            gradient_passes=position.gradient_passes,
            train_seconds=round(seconds, 3),
            eval_seconds=round(position.eval_seconds, 3),
            images_per_second=round(images_seen / seconds, 2) if seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(components.device),
        ),
        method=records.MethodFacts(
            two_pass_fraction=optimizer.num_two_pass_steps / max(1, optimizer.num_steps),
            mean_perturbation_norm=optimizer.diagnostics.mean("norm"),
            mean_gradient_cosine=optimizer.diagnostics.mean("cosine"),
            skipped_steps=optimizer.num_skipped_steps,
        ),
        environment={
            **environment_facts(components.accelerator, recipe.train.precision),
            "performance": asdict(components.switches),
            "micro_batch_size": training.micro_batch_size,
            **_extensions(recipe),
            **_shared_device(),
            **_planned(),
            "started": str(log.starts[0].get("time", "")),
            "finished": now(),
        },
        restarts=log.restarts,
    )


def _metrics(components: RunComponents, state: RunState) -> records.Metrics | None:
    """The metrics of what is kept of a run, and what that is; None if nothing was evaluated."""
    train, best = components.recipe.train, state.best_validation
    evaluated = {split: each.metrics() for split, each in state.predictions.items()}
    if not evaluated:
        return None
    kept = None
    if best is not None:
        is_best = train.keep == "best"
        epoch = best.epoch if is_best else state.position.epoch
        kept = records.KeptEpoch(epoch=epoch, rule=train.keep)
    weights: Literal["ema"] | None = None if components.average is None else "ema"
    return records.Metrics(**evaluated, best_test=state.best_test, weights=weights, kept=kept)


def stored_weights(components: RunComponents) -> dict[str, Weights]:
    """The weights of a run as they are now, by the names of their files; ``model`` are those that rank."""
    plain = components.backbone.model.state_dict()
    if components.average is None:
        return {"model": plain}
    return {"model": components.average.tensors, "model_plain": plain}


def _extensions(recipe: Recipe) -> dict[str, Any]:
    """Which names of the recipe other packages provide: module, distribution and version of each."""
    optimizer = recipe.optimizer
    base = optimizer.get("base", {})
    found = plugins.origins(optimizer["name"], base.get("name"), recipe.data.name)
    return {"extensions": found} if found else {}


def _shared_device() -> dict[str, int]:
    """How many runs shared this one's device: their times compare with no others."""
    count = os.environ.get(SHARED_WITH, "")
    return {"shared_with": int(count)} if count.isdecimal() else {}


def _planned() -> dict[str, Any]:
    """The seeds and the number of optimizers that a bench planned with this run."""
    text = os.environ.get(PLANNED, "")
    return {"planned": json.loads(text)} if text else {}


def _image_paths(components: RunComponents, split: str) -> np.ndarray | None:
    """The files of a split's images, in the order of its predictions; None where images lie in tables."""
    split = split.removeprefix("plain_")
    store, images = components.store, components.evaluations[split].images
    paths = store.paths.get(split if split in store.splits else "train")
    return np.array([paths[index] for index in images.indices], np.str_) if paths else None


def write_outcome(
    record: records.RunRecord, components: RunComponents, state: RunState, folder: Path
) -> None:
    """Write predictions and weights into the run's folder, and last the record that points at them."""
    paths = {}
    for split, each in state.predictions.items():
        name = "predictions" if split == "test" else f"predictions_{split}"
        replace(each, path=_image_paths(components, split)).write(folder / f"{name}.npz")
        paths[name] = f"{name}.npz"
    # A search makes many runs; their weights are not needed.
    if record.status == "completed" and "test" in components.evaluations:
        for name, weights in (state.kept or stored_weights(components)).items():
            save_weights(weights, folder / f"{name}.safetensors")
            paths[name] = f"{name}.safetensors"
        write_repository(folder, record, components.backbone)
    elif record.status != "completed" and (folder / CHECKPOINT_NAME / "state.json").is_file():
        paths["checkpoint"] = f"{CHECKPOINT_NAME}/state.json"
    digests = {name: file_sha256(folder / path) for name, path in paths.items()}
    record.artifacts = {name: records.Artifact(path=paths[name], sha256=digests[name]) for name in paths}
    record.artifacts |= snapshots.artifacts(state.snapshots)
    records.write_record(record, folder)


def environment_facts(accelerator: Accelerator, precision: str) -> dict[str, Any]:
    """Collect what the record's ``environment`` says of versions and device."""
    device = accelerator.device
    return {
        "pugdft": version("pugdft"),
        "git": git_revision(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "timm", "accelerate", "numpy")},
        "platform": platform.system().lower(),
        "device": device.type,
        "device_name": device_name(device.type),  # another processor may round differently
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "precision": precision,
    }


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts the process that started this one into ru_maxrss.
    if found := proc_field("self/status", "VmHWM"):
        return int(found.removesuffix("kB")) * 1024
    if sys.platform == "win32":  # which has no module resource
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
