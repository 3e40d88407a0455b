"""The record of a run: its results, what they cost, what it ran on, and the files that it points at."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pugdft.machine import git_revision
from pugdft.paths import file_sha256
from pugdft.records import (
    Artifact,
    Cost,
    DataFacts,
    MethodFacts,
    Metrics,
    ModelFacts,
    RunRecord,
    Status,
    write_record,
)
from pugdft.training.checkpoint import CHECKPOINT_NAME, RestartLog, RunState, now, save_weights
from pugdft.training.setup import RunComponents

_PACKAGES = ("torch", "timm", "accelerate", "numpy")


def build_record(
    identity: str,
    components: RunComponents,
    state: RunState,
    restart_log: RestartLog,
    status: Status,
    error: str | None,
) -> RunRecord:
    """Build the record of a run as it stands, without its artifacts.

    Args:
        identity: the record's id.
        components: of the run.
        state: how far it has come.
        restart_log: of the run.
        status: how it ended.
        error: why, in words, if it was not completed.
    """
    recipe, position, optimizer = components.recipe, state.position, components.optimizer
    store, backbone, training = components.store, components.backbone, components.training
    evaluated = {split: each.metrics() for split, each in state.predictions.items()}
    metrics = Metrics(**evaluated, best_test=state.best_test) if evaluated else None
    sizes = {"train": len(training.images)}
    sizes |= {split: len(batches.images) for split, batches in components.evaluations.items()}
    environment = environment_facts(
        components.device,
        components.accelerator.num_processes,
        recipe.train.precision,
        components.switches.as_dict(),
    )
    return RunRecord(
        id=identity,
        status=status,
        error=error,
        recipe=recipe.as_dict(),
        seed=recipe.train.seed,
        data=DataFacts(
            name=store.name,
            classes=len(store.classes),
            sizes=sizes,
            sha256=store.sha256,
            **training.digests(),
        ),
        model=ModelFacts(
            name=recipe.model.name,
            pretrained_tag=backbone.tag,
            weights_sha256=backbone.weights_sha256,
            head_sha256=backbone.head_sha256,
            parameters=backbone.num_parameters,
        ),
        metrics=metrics,
        history=state.history,
        cost=Cost(
            epochs=position.steps // max(1, training.steps_per_epoch),
            steps=position.steps,
            gradient_passes=position.gradient_passes,
            train_seconds=round(position.train_seconds, 3),
            eval_seconds=round(position.eval_seconds, 3),
            images_per_second=_per_second(position.steps * recipe.train.batch_size, position.train_seconds),
            peak_memory_bytes=peak_memory_bytes(components.device),
        ),
        method=MethodFacts(
            two_pass_fraction=optimizer.num_two_pass_steps / max(1, optimizer.num_steps),
            mean_perturbation_norm=optimizer.diagnostics.mean("norm"),
            mean_gradient_cosine=optimizer.diagnostics.mean("cosine"),
            skipped_steps=optimizer.num_skipped_steps,
        ),
        environment={
            **environment,
            "micro_batch_size": training.micro_batch_size,
            "started": restart_log.first_start,
            "finished": now(),
        },
        restarts=restart_log.restarts,
    )


def _per_second(images: int, seconds: float) -> float:
    return round(images / seconds, 2) if seconds else 0.0


def write_outcome(record: RunRecord, components: RunComponents, state: RunState, folder: Path) -> None:
    """Write predictions and weights into the run's folder, and last the record that points at them.

    Raises:
        OSError: a file cannot be written.
    """
    paths = {}
    for split, each in state.predictions.items():
        name = "predictions" if split == "test" else f"predictions_{split}"
        each.write(folder / f"{name}.npz")
        paths[name] = f"{name}.npz"
    # A search makes many runs; their weights are not needed.
    if record.status == "completed" and "test" in components.evaluations:
        save_weights(components.backbone.model, folder / "model.safetensors")
        paths["model"] = "model.safetensors"
    elif record.status != "completed" and (folder / CHECKPOINT_NAME / "state.json").is_file():
        paths["checkpoint"] = f"{CHECKPOINT_NAME}/state.json"
    record.artifacts = {
        name: Artifact(path=path, sha256=file_sha256(folder / path)) for name, path in paths.items()
    }
    write_record(record, folder)


def environment_facts(
    device: torch.device, num_processes: int, precision: str, performance: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect the record's ``environment``, without the times."""
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
    """Read the processor's model: another one may round differently."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory so far: allocated on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Linux counts the process that started this one into ru_maxrss.
    facts = Path("/proc/self/status")
    for line in facts.read_text(encoding="utf-8").splitlines() if facts.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
