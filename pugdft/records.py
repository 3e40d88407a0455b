"""The run record: what ran, on what, at what cost, how it ended, and where the evidence lies.

One YAML file per run, ``schema: pugdft.run/1``. Reading is tolerant of fields it does not know (a newer
minor version) and of missing optional ones (an older one); writing is atomic. No torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pugdft.config import yaml
from pugdft.errors import UserError
from pugdft.paths import write_atomically

SCHEMA = "pugdft.run/1"

RECORD_NAME = "record.yaml"

_LONGEST_SHOWN = 80

Status = Literal["completed", "diverged", "failed", "interrupted", "oom"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class DataFacts(_Part):
    """The images: ``sizes`` counts images per split, ``sha256`` is over the decoded pixels and labels.

    The other digests show that runs of one seed saw the same: which images are held out, their order in
    the first epoch, and how that epoch's were cropped and flipped.
    """

    name: str
    classes: int
    sizes: dict[str, int]
    sha256: str
    split_sha256: str | None = None
    order_sha256: str | None = None
    augmentation_sha256: str | None = None


class ModelFacts(_Part):
    """The backbone before the first step: ``weights_sha256`` is over its tensors but the head's."""

    name: str
    pretrained_tag: str | None = None
    weights_sha256: str
    head_sha256: str | None = None
    parameters: int


class SplitMetrics(_Part):
    """One evaluation: fractions in 0..1; ``loss`` is the mean cross-entropy; ``ece`` has 15 equal bins."""

    model_config = ConfigDict(extra="allow", strict=True)  # `top1: true` is no accuracy

    top1: float
    top5: float
    loss: float
    ece: float


class BestEpoch(_Part):
    """The best epoch picked on the test set: comparable with papers, never used for ranking."""

    top1: float
    epoch: int


class Metrics(_Part):
    """``test`` is the last epoch's and is what ranks; a search (``train.evaluate: validation``) has none."""

    test: SplitMetrics | None = None
    validation: SplitMetrics | None = None
    best_test: BestEpoch | None = None


class Cost(_Part):
    """``gradient_passes``: forward-backward passes over a batch, two for SAM; ``epochs``: whole ones."""

    epochs: int = 0
    steps: int = 0
    gradient_passes: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    images_per_second: float = 0.0
    peak_memory_bytes: int = 0


class MethodFacts(_Part):
    """Evidence that the method acted, measured during the run."""

    two_pass_fraction: float = 0.0
    mean_perturbation_norm: float | None = None
    mean_gradient_cosine: float | None = None
    skipped_steps: int = 0


class Artifact(_Part):
    """A file beside the record: ``path`` is relative to the record's folder."""

    path: str
    sha256: str


class RunRecord(_Part):
    """One run."""

    schema_: str = Field(SCHEMA, alias="schema")
    id: str
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

    def to_yaml(self) -> str:
        """The file's text."""
        return yaml.dump(self.model_dump(mode="json", by_alias=True))


def write_record(record: RunRecord, folder: Path) -> Path:
    """Write ``folder/record.yaml``, whole or not at all; returns its path."""
    path = folder / RECORD_NAME
    write_atomically(path, record.to_yaml().encode())
    return path


def read_record(path: Path) -> RunRecord:
    """Read a record.

    Raises:
        UserError: not readable, not a record, or of a schema this version does not know.
    """
    return parse_record(yaml.read_text(path), path)


def parse_record(text: str, path: Path) -> RunRecord:
    """A record from its text; ``path`` is for messages.

    Raises:
        UserError: not a record, or of a schema this version does not know.
    """
    data = yaml.parse(text, str(path))
    if not isinstance(data, dict) or "schema" not in data:
        raise UserError(f"{path}: not a run record (no `schema: {SCHEMA}`)")
    if data["schema"] != SCHEMA:
        schema = str(data["schema"])[:_LONGEST_SHOWN]
        newer = re.fullmatch(r"pugdft\.run/([2-9]|[1-9]\d+)", schema)
        reason = "is of a newer version of pugdft: update it" if newer else "is not one that pugdft reads"
        raise UserError(f'{path}: schema "{schema}" {reason} (this version reads {SCHEMA})')
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(str(part) for part in details["loc"])
        raise UserError(f"{path}: {where}: {details['msg']}") from None
