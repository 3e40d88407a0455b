"""A record against its own weights: evaluated again on the same images, are the metrics what it says?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from pugdft.accelerator import make_accelerator
from pugdft.data.sources import open_source
from pugdft.data.store import Store, prepare
from pugdft.environment import environment_facts
from pugdft.errors import FaultsError, UserError
from pugdft.loop import evaluate
from pugdft.models import Backbone, build_model, model_faults
from pugdft.observer import Observer
from pugdft.parts import evaluation_parts
from pugdft.performance import attention_of, pick, rounding_of
from pugdft.predictions import Predictions
from pugdft.recipe import Recipe, load_recipe
from pugdft.record import DataFacts, Metrics, SplitMetrics, file_sha256
from pugdft.verification.agreement import (
    EXACT,
    ROUNDING,
    ROUNDING_16_BITS,
    Check,
    Tolerance,
    compare_hashes,
    compare_metrics,
    compare_own_metrics,
    compare_predictions,
    environment_differences,
)
from pugdft.verification.course import images_asked_for, shrunk_size
from pugdft.verification.stored import (
    StoredRun,
    open_run,
    predictions_name,
    read_stored_weights,
    with_value,
)


@dataclass(frozen=True)
class Verification:
    """What came of a verification.

    Attributes:
        notes: how it was compared, and what could not be.
        checks: in the order in which they were made.
    """

    run: StoredRun
    notes: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """Whether everything does."""
        return all(check.agrees for check in self.checks)


def verify(
    path: Path, data: str | None = None, *, tolerant: bool = False, observer: Observer | None = None
) -> Verification:
    """Evaluate a run's stored weights on its data, as its recipe says, and compare with its record.

    With the record's versions and device the same bits are expected; elsewhere numbers may be as far
    apart as rounding explains (:data:`ROUNDING`, and :data:`ROUNDING_16_BITS` where either evaluation is
    in bf16 or fp16). Needs no pretrained weights: all tensors are the stored ones.

    Args:
        path: a record or a run's folder.
        data: where its data lies here, if not where the recipe says.
        tolerant: allow for rounding even if versions and device are the record's.
        observer: hears what is being done.

    Raises:
        UserError: something needed cannot be read: record, recipe, weights, data.
    """
    watcher = observer or Observer()
    run = open_run(path)
    facts, metrics = _claims(run)
    weights = _weights_file(run)
    recipe = _recipe(run, data)
    checks = [compare_hashes("weights file", file_sha256(weights), run.record.artifacts["model"].sha256)]
    notes: list[str] = []
    recipe, accelerator = _accelerator(recipe, notes)
    watcher.on_message(f"preparing {recipe.data.name}")
    store = _store(recipe, data)
    checks.append(compare_hashes("data", store.sha256, facts.sha256, store.name))
    if len(store.classes) != facts.classes:
        notes.append(
            f"not evaluated: the data has {len(store.classes)} classes here, {facts.classes} in the record"
        )
        return Verification(run, tuple(notes), tuple(checks))
    switches = pick(recipe, accelerator.device.type)  # as the run did: its bits are wanted
    with attention_of(switches):
        backbone = build_model(recipe.model, facts.classes, recipe.data.image_size, recipe.train.seed)
    try:
        _load(backbone, weights, recipe.model.name)
    except UserError as error:
        if checks[0].agrees:
            raise
        notes.append(f"not evaluated: {error}")
        return Verification(run, tuple(notes), tuple(checks))
    tolerance = _tolerance(run, recipe, accelerator, tolerant, notes)
    shrunk = _shrunk(run, recipe, notes)
    model, evaluations = evaluation_parts(recipe, accelerator, store, backbone, shrunk)
    for split, claimed in metrics.items():
        if split not in evaluations:
            raise UserError(f"{run.path}: metrics.{split}: its recipe has no {split} split")
        count = len(evaluations[split].images)
        watcher.on_message(f"evaluating {count:,} {split} images on {accelerator.device}")
        with rounding_of(switches, accelerator.device.type):
            fresh = evaluate(model, evaluations[split], accelerator)
        checks += _split_checks(run, split, claimed, fresh, tolerance, notes)
    return Verification(run, tuple(notes), tuple(checks))


def _claims(run: StoredRun) -> tuple[DataFacts, dict[str, SplitMetrics]]:
    """What a record says that can be verified."""
    record = run.record
    metrics = record.metrics or Metrics()
    splits = {"test": metrics.test, "validation": metrics.validation}
    claimed = {split: each for split, each in splits.items() if each is not None}
    if record.data is None or not claimed:
        missing = "data" if record.data is None else "metrics"
        raise UserError(f"{run.path}: has no {missing} ({record.status}): there is nothing to verify")
    return record.data, claimed


def _weights_file(run: StoredRun) -> Path:
    file = run.artifact("model")
    if file is not None:
        return file
    status, entry = run.record.status, run.record.artifacts.get("model")
    if entry is not None:
        reason = f"no stored weights: {entry.path} is not beside the record. Copy it there"
    elif status == "interrupted":
        reason = "no stored weights: the run is not complete; the command that began it goes on"
    elif status == "completed" and run.record.metrics and run.record.metrics.test is None:
        reason = "no stored weights: a search keeps none"
    else:
        reason = f"no stored weights ({status}); a run that completes leaves them in model.safetensors"
    raise UserError(f"{run.path}: {reason}, or `pugdft rerun` makes them again")


def _recipe(run: StoredRun, data: str | None) -> Recipe:
    """The record's recipe, but for the initial weights, which need not be here.

    The optimizer is not looked at: one that only the record's author has may be verified all the same.
    """
    mapping: dict[str, Any] = with_value(run.record.recipe, "model", "pretrained", False)
    if data is not None:
        mapping = with_value(mapping, "data", "name", data)
    try:
        return load_recipe(mapping, (), {"model": model_faults})
    except FaultsError as error:
        raise FaultsError(f"{run.path}: recipe", error.faults) from None


def _accelerator(recipe: Recipe, notes: list[str]) -> tuple[Recipe, Accelerator]:
    """Accelerate in the record's precision, or in fp32 where this device does not have it."""
    try:
        return recipe, make_accelerator(recipe)
    except ValueError:  # ours, or Accelerate's own
        precision = recipe.train.precision
        if precision == "fp32":
            raise
    notes.append(f"evaluated in fp32: this device has no {precision}, which is the record's precision")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"precision": "fp32"})})
    return recipe, make_accelerator(recipe)


def _store(recipe: Recipe, data: str | None) -> Store:
    try:
        source = open_source(recipe.data.name)
        # The same images may lie here in another form, and how they are read changes no result.
        storage = recipe.data.storage if source.folder else "auto"
        return prepare(source, recipe.data.image_size, storage)
    except UserError as error:
        remedy = "" if data else "\n--data NAME_OR_FOLDER says where the record's data lies on this machine"
        raise UserError(f"{error}{remedy}") from None


def _load(backbone: Backbone, weights: Path, name: str) -> None:
    tensors = read_stored_weights(weights)
    try:
        backbone.model.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise UserError(f"{weights}: does not fit {name}: {detail}") from None


def _shrunk(run: StoredRun, recipe: Recipe, notes: list[str]) -> float:
    """The share of a batch that the run evaluated at a time: another one sums in another order."""
    size = shrunk_size(run.record, recipe)
    if size is None:
        return 1.0
    asked_size = images_asked_for(run.record, recipe)
    notes.append(f"evaluated in smaller batches, as the run did: memory held {size} of {asked_size} images")
    return size / asked_size  # as in assemble


def _tolerance(
    run: StoredRun, recipe: Recipe, accelerator: Accelerator, tolerant: bool, notes: list[str]
) -> Tolerance:
    precision, environment = recipe.train.precision, run.record.environment
    here = environment_facts(accelerator.device, accelerator.num_processes, precision, {})
    differences = environment_differences(environment, here)
    if not differences and not tolerant:
        notes.append(
            "compared bit for bit: versions and device are the record's (--tolerant allows for rounding)"
        )
        return EXACT
    is_fp32 = precision == environment.get("precision") == "fp32"
    tolerance = ROUNDING if is_fp32 else ROUNDING_16_BITS
    reason = "; ".join(differences) or "--tolerant"
    notes.append(f"compared up to rounding ({reason})")
    notes.append(f"allowed: {tolerance}")
    return tolerance


def _split_checks(
    run: StoredRun,
    split: str,
    claimed: SplitMetrics,
    fresh: Predictions,
    tolerance: Tolerance,
    notes: list[str],
) -> list[Check]:
    count = len(fresh.label)
    checks = compare_metrics(split, claimed, fresh.metrics(), count, tolerance)
    name = predictions_name(split)
    file = run.artifact(name)
    if file is None:
        notes.append(f"{split}: no stored predictions beside the record: metrics alone are compared")
        return checks
    if not run.has_hash(name, file):
        checks.append(
            compare_hashes(f"{split} predictions file", file_sha256(file), run.record.artifacts[name].sha256)
        )
    try:
        stored = run.predictions(split, count)
    except UserError as error:
        return [*checks, Check(f"{split} predictions", False, str(error))]
    assert stored is not None
    return [
        *checks,
        compare_own_metrics(split, claimed, stored),
        compare_predictions(split, stored, fresh, tolerance),
    ]
