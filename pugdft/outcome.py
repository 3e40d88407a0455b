"""What a run has come to, and the record that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pugdft.environment import environment_facts, now, peak_memory_bytes
from pugdft.loop import Position
from pugdft.parts import Parts
from pugdft.predictions import Predictions
from pugdft.recipe import Recipe
from pugdft.record import BestEpoch, Cost, DataFacts, MethodFacts, Metrics, ModelFacts, RunRecord, Status


@dataclass
class Progress:
    """What a run has come to: the part of a checkpoint that is neither weights nor optimizer state.

    Attributes:
        predictions: of the newest evaluation, by split.
        restarts: when the run went on, and after which update.
        started: when it was first started, in UTC.
    """

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_test: BestEpoch | None = None
    predictions: dict[str, Predictions] = field(default_factory=dict)
    restarts: list[dict[str, Any]] = field(default_factory=list)
    started: str = field(default_factory=now)

    def to_state(self) -> dict[str, Any]:
        """Plain data for a checkpoint, but for the predictions."""
        return {
            "position": asdict(self.position),
            "history": self.history,
            "best_test": self.best_test.model_dump() if self.best_test else None,
            "restarts": self.restarts,
            "started": self.started,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], predictions: dict[str, Predictions]) -> Progress:
        """Go on from a checkpoint: one restart more."""
        position = Position(**state["position"])
        return cls(
            position=position,
            history=state["history"],
            best_test=BestEpoch(**state["best_test"]) if state["best_test"] else None,
            predictions=predictions,
            restarts=[*state["restarts"], {"time": now(), "step": position.steps}],
            started=state["started"],
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
            "started": progress.started,
            "finished": now(),
        },
        restarts=progress.restarts,
    )
