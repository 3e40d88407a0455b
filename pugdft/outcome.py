"""What a run has come to, and the record that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pugdft.checkpoint import CHECKPOINT_NAME, save_weights
from pugdft.environment import environment_facts, now, peak_memory_bytes
from pugdft.loop import Position
from pugdft.parts import Parts
from pugdft.predictions import Predictions
from pugdft.recipe import Recipe
from pugdft.record import (
    Artifact,
    BestEpoch,
    Cost,
    DataFacts,
    MethodFacts,
    Metrics,
    ModelFacts,
    RunRecord,
    Status,
    file_sha256,
    write_record,
)
from pugdft.starts import Starts


@dataclass
class Progress:
    """What a run has come to: the part of a checkpoint that is neither weights nor optimizer state.

    Attributes:
        predictions: of the newest evaluation, by split.
    """

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_test: BestEpoch | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)

    def to_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint, but for the predictions."""
        return {
            "position": asdict(self.position),
            "history": self.history,
            "best_test": self.best_test.model_dump() if self.best_test else None,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], predictions: dict[str, Predictions]) -> Progress:
        """Go on from a checkpoint."""
        return cls(
            position=Position(**state["position"]),
            history=state["history"],
            best_test=BestEpoch(**state["best_test"]) if state["best_test"] else None,
            predictions=predictions,
        )


@dataclass(frozen=True)
class Ending:
    """How a run ended, and in words why if not as hoped."""

    status: Status
    error: str | None


def build_record(
    recipe: Recipe,
    identity: str,
    parts: Parts,
    progress: Progress,
    starts: Starts,
    ending: Ending,
) -> RunRecord:
    """The record of a run as it stands; its artifacts are the caller's to add.

    Args:
        identity: the record's id.
        ending: how the run came to an end.
    """
    position, optimizer = progress.position, parts.optimizer
    store, backbone, accelerator = parts.store, parts.backbone, parts.accelerator
    evaluated = {split: each.metrics() for split, each in progress.predictions.items()}
    images = position.steps * recipe.train.batch_size
    metrics = None
    if evaluated:
        metrics = Metrics(
            test=evaluated.get("test"),
            validation=evaluated.get("validation"),
            best_test=progress.best_test,
        )
    sizes = {"train": len(parts.training.images)}
    sizes |= {split: len(batches.images) for split, batches in parts.evaluations.items()}
    return RunRecord(
        id=identity,
        status=ending.status,
        error=ending.error,
        recipe=recipe.as_dict(),
        seed=recipe.train.seed,
        data=DataFacts(
            name=store.name,
            classes=len(store.classes),
            sizes=sizes,
            sha256=store.sha256,
            **parts.training.digests(),
        ),
        model=ModelFacts(
            name=recipe.model.name,
            pretrained_tag=backbone.tag,
            weights_sha256=backbone.weights_sha256,
            head_sha256=backbone.head_sha256,
            parameters=backbone.num_parameters,
        ),
        metrics=metrics,
        history=progress.history,
        cost=Cost(
            epochs=position.steps // max(1, parts.training.steps_per_epoch),
            steps=position.steps,
            gradient_passes=position.gradient_passes,
            train_seconds=round(position.train_seconds, 3),
            eval_seconds=round(position.eval_seconds, 3),
            images_per_second=round(images / position.train_seconds, 2) if position.train_seconds else 0.0,
            peak_memory_bytes=peak_memory_bytes(parts.device),
        ),
        method=MethodFacts(
            two_pass_fraction=optimizer.num_two_pass_steps / max(1, optimizer.num_steps),
            mean_perturbation_norm=optimizer.evidence.mean_perturbation_norm(),
            mean_gradient_cosine=optimizer.evidence.mean_gradient_cosine(),
            skipped_steps=optimizer.num_skipped_steps,
        ),
        environment={
            **environment_facts(
                parts.device, accelerator.num_processes, recipe.train.precision, parts.switches.as_dict()
            ),
            "micro_batch_size": parts.training.micro_batch_size,
            "started": starts.began,
            "finished": now(),
        },
        restarts=starts.restarts,
    )


def write_outcome(record: RunRecord, parts: Parts, progress: Progress, folder: Path) -> None:
    """Write a record into its folder, after everything that it points at.

    Raises:
        OSError: something cannot be written.
    """
    paths = {}
    for split, each in progress.predictions.items():
        name = "predictions" if split == "test" else f"predictions_{split}"
        each.write(folder / f"{name}.npz")
        paths[name] = f"{name}.npz"
    # Of a search nobody wants the weights, and there are many.
    if record.status == "completed" and "test" in parts.evaluations:
        save_weights(parts.backbone.model, folder / "model.safetensors")
        paths["model"] = "model.safetensors"
    elif record.status != "completed" and (folder / CHECKPOINT_NAME / "state.json").is_file():
        paths["checkpoint"] = f"{CHECKPOINT_NAME}/state.json"
    record.artifacts = {
        name: Artifact(path=path, sha256=file_sha256(folder / path)) for name, path in paths.items()
    }
    write_record(record, folder)
