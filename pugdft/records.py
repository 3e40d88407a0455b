"""The run record: what ran, on what data, at what cost, how it ended, and which files it left. No torch.

Reading accepts unknown fields (of a newer minor version), missing optional ones (of an older one) and numbers
out of bounds: only :func:`rule_faults`, for ``leaderboard check``, applies the rules beside the fields.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pugdft.config import yaml
from pugdft.config.load import schema_faults
from pugdft.errors import ConfigIssue, UserError, counted, refuse, shortened
from pugdft.paths import file_inside, write_atomically

SCHEMA = "pugdft.run/1"
RECORD_NAME = "record.yaml"
SNAPSHOT = "snapshot_"  # of an artifact's name, before the number of updates

LARGEST = 1e100  # no quantity of a run comes near it; a whole number far beyond it does not fit a float

_LONG_NUMBER = b"0" * 80  # in hexadecimal, LARGEST has 84 digits
_DIGITS_AS_ZEROS = bytes(ord("0" if chr(byte) in "0123456789abcdefABCDEF" else " ") for byte in range(256))

Status = Literal["completed", "diverged", "failed", "interrupted", "oom"]


@dataclass(frozen=True)
class Rule:
    """What ``leaderboard check`` demands of a field's value."""

    accepts: Callable[[Any], bool]
    message: str

    def faults(self, where: str, value: object) -> Iterator[ConfigIssue]:
        if not self.accepts(value):
            yield ConfigIssue(where, self.message.format(str(value)[:40]))


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number; ``true`` is none."""
    # No call of isfinite: a whole number of 400 digits is an error there.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def between(low: float, high: float = math.inf) -> Rule:
    """A finite number within these bounds."""
    allowed = f"at least {low:g}" if high == math.inf else f"from {low:g} to {high:g}"
    return Rule(
        lambda value: is_number(value) and low <= value <= high, f"must be a number, {allowed}, not {{}}"
    )


def matching(pattern: str, message: str) -> Rule:
    """A word of this pattern."""
    return Rule(re.compile(pattern, re.ASCII).fullmatch, message)  # type: ignore[arg-type]


FRACTION, NOT_NEGATIVE, POSITIVE = between(0, 1), between(0), between(1)
COSINE = between(-1 - 1e-3, 1 + 1e-3)
_SHA256 = matching("[0-9a-f]{64}", "is no sha256 of 64 hexadecimal digits")


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class DataFacts(_Part):
    """The images and how they were drawn."""

    name: str
    classes: Annotated[int, POSITIVE]
    sizes: Annotated[dict[str, int], POSITIVE]  # images of each split
    sha256: Annotated[str, _SHA256]  # of the decoded pixels and labels
    split_sha256: str | None = None  # of the choice of images that are held out
    order_sha256: str | None = None  # of the first epoch
    augmentation_sha256: str | None = None  # of the first epoch's crops and flips
    class_names: list[str] | None = None  # in the order of the model's outputs
    stored_size: int | None = None  # side of the decoded images, before they become the model's input


class ModelFacts(_Part):
    """The backbone before the first step: ``weights_sha256`` is over its tensors but the head's.

    ``head`` begins with ``kept`` or ``new`` and says why.
    """

    name: str
    pretrained_tag: str | None = None
    weights_sha256: Annotated[str, _SHA256]
    head_sha256: str | None = None
    head: str | None = None
    registered_by: str | None = None  # the module to import before timm knows the name; None: timm's own
    parameters: Annotated[int, POSITIVE]


class SplitMetrics(_Part):
    """One evaluation: fractions in 0..1; ``loss`` is the mean cross-entropy; ``ece`` has 15 equal bins.

    ``balanced_top1`` is the mean over classes of the fraction of its images that are right; older records
    have none.
    """

    model_config = ConfigDict(extra="allow", strict=True)  # `top1: true` is no accuracy

    top1: Annotated[float, FRACTION]
    top5: Annotated[float, FRACTION]
    loss: float
    ece: float
    balanced_top1: Annotated[float | None, FRACTION] = None


class BestEpoch(_Part):
    """The best epoch picked on the test set: comparable with papers, never used for ranking."""

    top1: Annotated[float, FRACTION]
    epoch: int


class KeptEpoch(_Part):
    """The epoch that ``test`` and ``validation`` are of, and whose weights are stored.

    ``rule`` is the recipe's ``train.keep``: ``best`` is of the best epoch on held-out images.
    """

    epoch: Annotated[int, NOT_NEGATIVE]
    rule: Literal["last", "best"]
    stopped_early: bool = False  # whether the run ended for ``train.patience``


class Metrics(_Part):
    """``test`` is what ranks: of the last epoch, or of the one in ``kept``.

    A search (``train.evaluate: validation``) has no ``test``. With ``train.ema``, ``test`` and ``validation``
    are of the averaged weights (``weights: ema``), and the plain ones' stand beside them.
    """

    test: SplitMetrics | None = None
    validation: SplitMetrics | None = None
    best_test: BestEpoch | None = None
    weights: Literal["plain", "ema"] | None = None  # what ``test`` and ``validation`` are of; null: plain
    plain_test: SplitMetrics | None = None
    plain_validation: SplitMetrics | None = None
    kept: KeptEpoch | None = None  # null: the last epoch

    @property
    def origin(self) -> str:
        """Which weights ``test`` and ``validation`` are of, in words."""
        is_best = self.kept is not None and self.kept.rule == "best"
        epoch = f"epoch {self.kept.epoch}, best on validation" if self.kept and is_best else "the last epoch"
        return epoch + (", averaged weights" if self.weights == "ema" else "")


class Cost(_Part):
    """``gradient_passes``: forward-backward passes over a batch, two for SAM; ``epochs``: whole ones."""

    epochs: Annotated[int, NOT_NEGATIVE] = 0
    steps: Annotated[int, NOT_NEGATIVE] = 0
    gradient_passes: Annotated[float, NOT_NEGATIVE] = 0.0
    train_seconds: Annotated[float, NOT_NEGATIVE] = 0.0
    eval_seconds: Annotated[float, NOT_NEGATIVE] = 0.0
    images_per_second: Annotated[float, NOT_NEGATIVE] = 0.0
    peak_memory_bytes: Annotated[int, NOT_NEGATIVE] = 0


class MethodFacts(_Part):
    """Measurements of how the method acted during the run."""

    two_pass_fraction: Annotated[float, FRACTION] = 0.0
    mean_perturbation_norm: Annotated[float | None, NOT_NEGATIVE] = None
    mean_gradient_cosine: Annotated[float | None, COSINE] = None
    skipped_steps: int = 0


class Artifact(_Part):
    """A file beside the record: ``path`` is relative to the record's folder."""

    path: str
    sha256: Annotated[str, _SHA256]


class RunRecord(_Part):
    """One run."""

    schema_: str = Field(SCHEMA, alias="schema")
    id: Annotated[str, matching(r"[\w.+-]+", "must be of letters, digits and _ . + - alone")]
    status: Status
    recipe: dict[str, Any]
    seed: int
    data: DataFacts | None = None
    model: ModelFacts | None = None
    metrics: Metrics | None = None
    history: list[dict[str, Any]] = Field(default_factory=list)
    cost: Cost = Field(default_factory=Cost)
    method: MethodFacts = Field(default_factory=MethodFacts)
    environment: dict[str, Any] = Field(default_factory=dict)
    artifacts: dict[str, Artifact] = Field(default_factory=dict)
    restarts: list[dict[str, Any]] = Field(default_factory=list)
    error: str | None = None

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    @property
    def model_label(self) -> str:
        """The recipe's model with the arguments it gives: ``resnet18``, ``cifar_resnet18[width=8]``.

        Rates of dropout act in training alone: they belong to the protocol, as ``model.drop_rate`` does. Only
        ShakeDrop's scales its branch in evaluation too.
        """
        section = self.recipe["model"]
        name, args = str(section["name"]), section.get("args")
        words = [
            f"{key}={each if isinstance(each, str) else json.dumps(each)}"
            for key, each in (args.items() if isinstance(args, dict) else ())
            if key == "shake_drop_rate" or not str(key).endswith("drop_rate")
        ]
        return f"{name}[{','.join(sorted(words))}]" if words else name

    @property
    def weights_sha256(self) -> str | None:
        """Digest of the file of the final weights; None if they are not stored."""
        return self.artifacts["model"].sha256 if "model" in self.artifacts else None

    @property
    def snapshots(self) -> dict[int, str]:
        """The names of the artifacts with weights along the run, by updates, in their order."""
        names = (name for name in self.artifacts if name.startswith(SNAPSHOT))
        found = {
            int(name.removeprefix(SNAPSHOT)): name for name in names if name[len(SNAPSHOT) :].isdecimal()
        }
        return dict(sorted(found.items()))

    def to_yaml(self) -> str:
        """The text of ``record.yaml``."""
        return yaml.dump(self.model_dump(mode="json", by_alias=True))


def rule_faults(part: BaseModel, where: str = "") -> Iterator[ConfigIssue]:
    """Check a record, or a part of one, against the rules beside its fields."""
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        rules = [rule for rule in field.metadata if isinstance(rule, Rule)]
        items = {f".{key}": item for key, item in value.items()} if isinstance(value, dict) else {"": value}
        for key, item in items.items():
            place = f"{where}{name}{key}"
            if item is not None:
                yield from (fault for rule in rules for fault in rule.faults(place, item))
            if isinstance(item, BaseModel):
                yield from rule_faults(item, f"{place}.")


@dataclass(frozen=True)
class StoredRun:
    """A record and the file that it was read from."""

    record: RunRecord
    path: Path

    def artifact(self, name: str) -> Path | None:
        """The file of this name; None if the record has none. A path out of its folder is a UserError."""
        if name not in self.record.artifacts:
            return None
        with refuse(UserError, lambda error: f"{self.path}: artifacts.{name}.path: {error}"):
            return file_inside(self.path.parent, self.record.artifacts[name].path)


def open_run(path: Path) -> StoredRun:
    """A run from its record or its folder; no file that the record names may lie outside its folder."""
    file = path / RECORD_NAME if path.is_dir() else path
    if not os.path.exists(file):
        if not path.is_dir():
            raise UserError(f"{path}: no such file")
        inside = list(path.glob(f"*/{RECORD_NAME}"))
        hint = f"; {counted(len(inside), 'record')} below it: {path}/*/{RECORD_NAME}" if inside else ""
        raise UserError(f"{path}: no {RECORD_NAME} here{hint}")
    run = StoredRun(read_record(file), file)
    for name in run.record.artifacts:
        run.artifact(name)  # none may lead elsewhere, whichever is read later
    return run


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write ``folder/record.yaml``, whole or not at all; returns its path."""
    path = folder / RECORD_NAME
    write_atomically(path, record.to_yaml().encode())
    return path


def record_reader() -> yaml.Reader:
    """What reads many records; see :func:`read_record`."""
    return yaml.Reader({"recipe", "data", "model", "environment"})


def read_record(path: Path, reader: yaml.Reader | None = None) -> RunRecord:
    """Read a record, which anybody may have written; see :func:`parse_record`."""
    return parse_record(yaml.read_text(path), path, reader)


def parse_record(text: str, path: Path, reader: yaml.Reader | None = None) -> RunRecord:
    """A record from its text; ``path`` is for messages; one ``reader`` of many records is faster."""
    data = (reader or yaml).parse(text, str(path))
    if not isinstance(data, dict) or "schema" not in data:
        raise UserError(f"{path}: not a run record (no `schema: {SCHEMA}`)")
    if data["schema"] != SCHEMA:
        schema = shortened(data["schema"])
        newer = re.fullmatch(r"pugdft\.run/([2-9]|[1-9]\d+)", schema)
        reason = "is of a newer version of pugdft: update it" if newer else "is not one that pugdft reads"
        raise UserError(f'{path}: schema "{schema}" {reason} (this version reads {SCHEMA})')
    # Looking at every value is slow.
    is_long = _LONG_NUMBER in text.encode(errors="replace").translate(_DIGITS_AS_ZEROS)
    if is_long and (where := _too_large(data)):
        raise UserError(f"{path}: {where}: is out of range")
    with refuse(ValidationError, lambda error: f"{path}: {schema_faults(error, RunRecord)[0]}"):
        return RunRecord.model_validate(data)


def _too_large(value: object, where: str = "") -> str | None:
    """The place of the first whole number beyond ``LARGEST``."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return where
    items = dict(enumerate(value)) if isinstance(value, list) else value
    places = items.items() if isinstance(items, dict) else ()
    found = (_too_large(item, f"{where}.{key}".removeprefix(".")) for key, item in places)
    return next(filter(None, found), None)
