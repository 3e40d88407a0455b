"""Runs that are looked at together: loaded, checked to be comparable, described for the stored form."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pugdft import __version__
from pugdft.analysis.points import BatchNormMode, Evaluator, Sample
from pugdft.errors import UserError
from pugdft.inference.load import LoadedModel, load_model
from pugdft.leaderboard.grouping import canonical, entry_labels
from pugdft.records import RunRecord, StoredRun

UNEQUAL = 2.0  # how many times one loss is another before their surroundings are not comparable


@dataclass(frozen=True)
class Overlay:
    """Runs of one architecture on one data set, evaluated on one sample."""

    models: list[LoadedModel]
    sample: Sample
    batch_norm: BatchNormMode

    def evaluators(self) -> list[Evaluator]:
        """One for each run, all on the same images."""
        return [Evaluator.of(each, self.sample, self.batch_norm) for each in self.models]


def open_runs(paths: Sequence[Path]) -> list[LoadedModel]:
    """Load runs to be drawn over each other.

    Raises:
        UserError: one has no weights or not its own, stands twice, or has another model, image size or data.
    """
    models: list[LoadedModel] = []
    places = set[Path]()
    for path in paths:
        loaded = load_model(path)
        run = stored_run(loaded)
        if run.path.resolve() in places:
            raise UserError(f"{path}: stands twice; --with takes another run")
        places.add(run.path.resolve())
        models.append(loaded)
        first = stored_run(models[0]).record
        for what, mine, theirs in _compared(first, run.record):
            if mine != theirs:
                raise UserError(
                    f"{path}: cannot be drawn over {paths[0]}: its {what} is {theirs}, there it is {mine}"
                )
    return models


def stored_run(loaded: LoadedModel) -> StoredRun:
    """The run of a loaded model; a UserError for a model of no run."""
    if loaded.run is None:
        raise UserError(f"{loaded.name}: is no run: give a run's folder or its record.yaml")
    return loaded.run


def _compared(first: RunRecord, other: RunRecord) -> list[tuple[str, Any, Any]]:
    def facts(record: RunRecord) -> tuple[Any, ...]:
        digest = record.data.sha256[:12] if record.data else None
        return record.model_label, record.recipe["data"].get("image_size"), digest

    names = ("model", "image size", "data (sha256)")
    return list(zip(names, facts(first), facts(other), strict=True))


def batch_norm_mode(loaded: LoadedModel, asked: str | None) -> BatchNormMode:
    """The way to treat BatchNorm: as asked; by default ``fixed`` where it was fixed in training."""
    if asked is not None:
        return asked  # type: ignore[return-value]
    return "fixed" if loaded.recipe.train.batch_norm == "fixed" else "reestimate"


def labels_of(models: Sequence[LoadedModel]) -> list[str]:
    """A label for each run: its optimizer as the leaderboard writes it, and its seed where that is needed."""
    records = [stored_run(each).record for each in models]
    labels = entry_labels([record.recipe["optimizer"] for record in records])
    seeded = [f"{label}, seed {record.seed}" for label, record in zip(labels, records, strict=True)]
    labels = [seeded[i] if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def records_facts(models: Sequence[LoadedModel]) -> list[dict[str, Any]]:
    """Each run for the stored form: what it is, and which weights were used."""
    facts = []
    for loaded, label in zip(models, labels_of(models), strict=True):
        record = stored_run(loaded).record
        weights = record.artifacts["model"].sha256 if "model" in record.artifacts else None
        facts.append(
            {
                "id": record.id,
                "label": label,
                "seed": record.seed,
                "model": record.model_label,
                "data": record.data.name if record.data else None,
                "weights_sha256": weights,
            }
        )
    return facts


def versions() -> dict[str, str]:
    """Of what computes."""
    found = {"pugdft": __version__, "torch": str(torch.__version__)}
    return found | {name: importlib.metadata.version(name) for name in ("timm", "numpy")}


HANDLING = {
    "reestimate": "BatchNorm statistics re-estimated on the sample at each point",
    "fixed": "BatchNorm statistics fixed at the run's own",
    "batch": "BatchNorm statistics of each batch",
    "none": "no BatchNorm",
}


def caveats(overlay: Overlay, losses: Sequence[float]) -> list[str]:
    """What a reader has to know of any picture of these runs: one line each."""
    sample, handling = overlay.sample, overlay.evaluators()[0].handling
    lines = [f"{len(sample)} {sample.split} images; {HANDLING[handling]}", *sample.notes]
    if sample.split == "test":
        lines.append("test split: not for choosing")
    finite = [loss for loss in losses if loss > 0]
    if len(finite) > 1 and max(finite) > UNEQUAL * min(finite):
        values = " and ".join(f"{each:.3g}" for each in (min(finite), max(finite)))
        lines.append(
            f"unequal {sample.split} loss ({values}): this shows how far training went, not only flatness"
        )
    optimizers = [canonical(stored_run(each).record.recipe["optimizer"]) for each in overlay.models]
    if len(set(optimizers)) == len(optimizers):
        lines.append("one seed")
    trained = overlay.models[0].recipe
    tricks = [
        name
        for name, is_on in (
            ("label smoothing", trained.train.label_smoothing),
            ("mixup", trained.data.mixup),
            ("cutmix", trained.data.cutmix),
        )
        if is_on
    ]
    if tricks:
        lines.append(f"{' and '.join(tricks)} in training, not in this loss")
    return lines


SHARPNESS_CAVEAT = (
    "sharpness does not reliably predict accuracy across settings; compare equal architecture, data, schedule"
)
