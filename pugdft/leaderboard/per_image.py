"""Scores of every test image, from the predictions beside a record: missing, damaged or hostile ones too."""

from __future__ import annotations

import hashlib
import math
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pugdft.leaderboard.collect import Loaded
from pugdft.leaderboard.entry import Metric
from pugdft.record import SplitMetrics

# A compressed file can unfold to any size: more images than any test split has are not read.
_MOST_IMAGES = 10_000_000

_KINDS = {"label": "iu", "prediction": "iu", "in_top5": "b", "loss": "f"}
_LONGEST_HEADER = 1_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PerImage:
    """Of one run.

    Attributes:
        scores: of each metric that is a mean over images, and a number.
        split: equal for runs whose test images stand in the same order, as far as their labels tell.
    """

    scores: Mapping[Metric, np.ndarray]
    split: str


class NotUsable(Exception):
    """Why predictions are not used, in words for a note."""


def read_per_image(run: Loaded) -> PerImage | None:
    """The per-image scores of a completed run; None if it stored no predictions.

    The file's sha256 is not compared, which would double the cost of a table: what is read must have the
    test split's size and give exactly the record's metrics, and that says more.

    Raises:
        NotUsable: the file is missing, damaged, elsewhere, or not this record's.
    """
    record = run.record
    artifact, metrics = record.artifacts.get("predictions"), record.metrics.test if record.metrics else None
    if artifact is None or record.data is None or metrics is None:
        return None
    num_images = record.data.sizes.get("test", 0)
    if not 0 < num_images <= _MOST_IMAGES:
        raise NotUsable("the record does not say the test split's size")
    try:
        arrays = _arrays(_inside(run.path.parent, artifact.path), num_images)
    except NotUsable:
        raise
    except FileNotFoundError:
        raise NotUsable("no such file") from None
    except Exception as error:  # zipfile, zlib and numpy's parser of headers let out nearly anything
        raise NotUsable("not readable") from error
    scores = _checked(
        {
            "top1": arrays["prediction"] == arrays["label"],
            "top5": arrays["in_top5"],
            "loss": arrays["loss"],
        },
        metrics,
    )
    return PerImage(scores, hashlib.sha256(arrays["label"].astype(np.int64).tobytes()).hexdigest())


def _inside(folder: Path, name: str) -> Path:
    """The regular file that an artifact names; a record must not make us open anything else."""
    if os.path.basename(name) == name and stat.S_ISREG(os.lstat(folder / name).st_mode):
        return folder / name  # and no look at every folder above it, for every record
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise NotUsable("the path leads out of the record's folder")
    if path.exists() and not path.is_file():
        raise NotUsable("not a file")
    return path


def _arrays(path: Path, num_images: int) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        return {name: _array(archive, name, num_images) for name in _KINDS}


def _array(archive: zipfile.ZipFile, name: str, num_images: int) -> np.ndarray:
    """One array, of which no byte is read before its header promises what we expect."""
    layout = np.lib.format
    with archive.open(f"{name}.npy") as member:
        # Of the other versions a header alone may unfold to gigabytes.
        if layout.read_magic(member) != (1, 0):
            raise NotUsable(f"{name} is of another format than pugdft writes")
        shape, _, kind = layout.read_array_header_1_0(member, max_header_size=_LONGEST_HEADER)
        if kind.kind not in _KINDS[name] or kind.itemsize > 8:
            raise NotUsable(f"{name} is of type {kind}")
        if shape != (num_images,):
            raise NotUsable(f"not for the {num_images:,} images of the record's test split")
        return np.frombuffer(member.read(num_images * kind.itemsize), kind, num_images)


def _checked(scores: Mapping[Metric, np.ndarray], metrics: SplitMetrics) -> dict[Metric, np.ndarray]:
    """Those of which the record has the mean; of a loss that is infinite there is nothing to compare."""
    kept: dict[Metric, np.ndarray] = {}
    for metric, values in scores.items():
        expected = getattr(metrics, metric)
        if not math.isfinite(expected):
            continue
        found = float(values.mean(dtype=float))
        if not math.isclose(found, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE):
            raise NotUsable(f"they do not give the record's {metric}")
        kept[metric] = values
    return kept
