"""Runs that are looked at together: loaded, checked to be comparable, described for the stored form."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pugdft import __version__
from pugdft.analysis.files import digest_of
from pugdft.analysis.points import BatchNormMode, Evaluator, Sample
from pugdft.errors import UserError
from pugdft.inference.load import LoadedModel, load_model
from pugdft.leaderboard.grouping import canonical, entry_labels
from pugdft.paths import file_sha256
from pugdft.records import StoredRun

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


def open_models(names: Sequence[str | Path], model_name: str | None = None) -> list[LoadedModel]:
    """Load models to be drawn over each other: of runs, or any that :func:`load_model` takes.

    Args:
        model_name: timm's name of the model, for files of weights that lie in no run's folder.

    Raises:
        UserError: one has no weights or not its own, stands twice, or has another architecture, image size,
            number of classes or data.
    """
    models: list[LoadedModel] = []
    for name in names:
        loaded = load_model(name, model_name)
        beside = [each for each in models if _place(each) == _place(loaded)]
        if weights_sha256(loaded) in map(weights_sha256, beside):
            raise UserError(f"{name}: stands twice; --with takes another run")
        models.append(loaded)
        for what, mine, theirs in zip(_COMPARED, _compared(models[0]), _compared(loaded), strict=True):
            if mine != theirs:
                raise UserError(
                    f"{name}: cannot be drawn over {names[0]}: its {what} is {theirs}, there it is {mine}"
                )
    return models


def weights_sha256(loaded: LoadedModel) -> str:
    """Digest of a run's file of weights; of another model, of its tensors."""
    if loaded.weights is not None:
        return file_sha256(loaded.weights)
    return digest_of({"body": loaded.backbone.weights_sha256, "head": loaded.backbone.head_sha256})


def folder_of(loaded: LoadedModel) -> Path:
    """Where a model's analyses belong: its run's folder, the folder of its files, or the current one."""
    place = _place(loaded)
    return place if place.is_dir() else place.parent if place.is_file() else Path()


def _place(loaded: LoadedModel) -> Path:
    name = Path(loaded.name.removeprefix("local-dir:"))
    return (loaded.run.path.parent if loaded.run is not None else name).resolve()


def stored_run(loaded: LoadedModel) -> StoredRun:
    """The run of a loaded model, for what only a run has; a UserError for a model of no run."""
    if loaded.run is None:
        raise UserError(f"{loaded.name}: is no run: give a run's folder or its record.yaml")
    return loaded.run


_COMPARED = ("model", "image size", "number of classes", "data (sha256)")


def _compared(loaded: LoadedModel) -> tuple[Any, ...]:
    data = loaded.run.record.data if loaded.run is not None else None
    size = loaded.preprocessing.image_size
    return _model_label(loaded), size, loaded.num_classes, data.sha256[:12] if data else "not known"


def _model_label(loaded: LoadedModel) -> str:
    return loaded.run.record.model_label if loaded.run is not None else loaded.backbone.architecture


def batch_norm_mode(loaded: LoadedModel, asked: str | None) -> BatchNormMode:
    """The way to treat BatchNorm: as asked; by default ``fixed`` where it was fixed in training."""
    if asked is not None:
        return asked  # type: ignore[return-value]
    return "fixed" if loaded.recipe.train.batch_norm == "fixed" else "reestimate"


def labels_of(models: Sequence[LoadedModel]) -> list[str]:
    """A label for each run: its optimizer as the leaderboard writes it, and its seed where that is needed.

    A model of no run is called by its name.
    """
    runs = [each.run for each in models if each.run is not None]
    written = iter(entry_labels([run.record.recipe["optimizer"] for run in runs]))
    labels = [next(written) if each.run is not None else Path(each.name).name for each in models]
    seeded = [
        label if each.run is None else f"{label}, seed {each.run.record.seed}"
        for label, each in zip(labels, models, strict=True)
    ]
    labels = [seeded[i] if labels.count(label) > 1 else label for i, label in enumerate(labels)]
    return [f"{label} ({i + 1})" if labels.count(label) > 1 else label for i, label in enumerate(labels)]


def records_facts(models: Sequence[LoadedModel]) -> list[dict[str, Any]]:
    """Each model for the stored form: what it is, and which weights were used."""
    facts = []
    for loaded, label in zip(models, labels_of(models), strict=True):
        record = loaded.run.record if loaded.run is not None else None
        facts.append(
            {
                "id": record.id if record else loaded.name,
                "label": label,
                "seed": record.seed if record else None,
                "model": _model_label(loaded),
                "data": record.data.name if record and record.data else None,
                "weights_sha256": weights_sha256(loaded),
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
    runs = [each.run for each in overlay.models if each.run is not None]
    if len(runs) < len(overlay.models):
        lines.append("weights of no run: how they were trained is not known")
    optimizers = [canonical(run.record.recipe["optimizer"]) for run in runs]
    if runs and len(set(optimizers)) == len(optimizers):
        lines.append("one seed")
    recipes = [each.recipe for each in overlay.models]
    tricks = [
        name
        for name, is_on in (
            ("label smoothing", any(each.train.label_smoothing for each in recipes)),
            ("class weights", any(each.train.class_weights for each in recipes)),
            ("mixup", any(each.data.mixup for each in recipes)),
            ("cutmix", any(each.data.cutmix for each in recipes)),
        )
        if is_on
    ]
    if tricks:
        lines.append(f"{' and '.join(tricks)} in training, not in this loss")
    return lines


SHARPNESS_CAVEAT = (
    "sharpness does not reliably predict accuracy across settings; compare equal architecture, data, schedule"
)
