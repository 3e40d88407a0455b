"""The stored form of an analysis: facts in ``KIND-DIGEST8.yaml``, arrays in the ``.npz`` beside it. No torch.

Pictures are drawn from these files alone, so a picture can be drawn again without computing anything again.
Nothing is unpickled: anybody may have written them.
"""

from __future__ import annotations

import fnmatch
import hashlib
import io
import json
import math
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pugdft.config import yaml
from pugdft.errors import UserError, reason, refuse, shortened
from pugdft.paths import write_atomically

SCHEMA = "pugdft.analysis/1"
FOLDER = "analysis"  # beside a record

_DIGITS = 8  # of the digest in a file's name
_DIGEST = "digest"  # the name under which the arrays' file has the digest too
_MOST_VALUES = 50_000_000  # of one array: 400 MB
_LONGEST_HEADER = 1_000


@dataclass(frozen=True)
class Analysis:
    """A stored analysis.

    Attributes:
        kind: landscape, trajectory, terrain, spectrum, sharpness.
        facts: all of the ``.yaml``: records, options, sample, versions, caveats.
        arrays: float64 (or whole numbers), by name; empty if there is no ``.npz``.
        path: the ``.yaml``.
    """

    kind: str
    facts: Mapping[str, Any]
    path: Path
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def digest_of(facts: Mapping[str, Any]) -> str:
    """sha256 (hex) of what decides an analysis: its options, and the digests of weights, data and sample."""
    return hashlib.sha256(json.dumps(_plain(facts), sort_keys=True).encode()).hexdigest()


def analysis_stem(folder: Path, kind: str, digest: str) -> Path:
    """The path of an analysis without a suffix; its pictures have the same stem."""
    return folder / f"{kind}-{digest[:_DIGITS]}"


def write_analysis(
    folder: Path, kind: str, digest: str, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]
) -> Path:
    """Write both files, each whole or not at all; return the path of the ``.yaml``.

    Args:
        digest: of :func:`digest_of`; an analysis of the same kind and digest is replaced.
        arrays: numbers or truth values; may be empty: then there is no ``.npz``.
        facts: plain data; numbers of numpy become Python's.

    Raises:
        UserError: the folder cannot be written.
    """
    stem = analysis_stem(folder, kind, digest)
    head = {"schema": SCHEMA, "kind": kind, "digest": digest, "arrays": sorted(arrays)}
    with refuse(OSError, lambda error: f"{folder}: cannot be written: {reason(error)}"):
        # Arrays first: a .yaml that is there has them beside it, also after a kill between the two.
        if arrays:
            write_atomically(_with(stem, ".npz"), _packed({**arrays, _DIGEST: _digest_bytes(digest)}))
        write_atomically(_with(stem, ".yaml"), yaml.dump({**head, **_plain(facts)}).encode())
    return _with(stem, ".yaml")


def read_analysis(path: Path) -> Analysis:
    """Read an analysis from its ``.yaml`` or its ``.npz``.

    Raises:
        UserError: there is no such file, it is damaged, of another kind, or of a newer version of pugdft.
    """
    if path.suffix not in (".yaml", ".npz"):
        raise UserError(f"{path}: not a data file of an analysis: these end in .yaml or .npz")
    file = path.with_suffix(".yaml")
    if not file.is_file():
        missing = f"{file} is not beside it" if path.is_file() else "no such file"
        raise UserError(f"{path}: {missing}")
    facts = yaml.parse(yaml.read_text(file), str(file))
    if not isinstance(facts, dict) or "schema" not in facts:
        raise UserError(f"{file}: not an analysis (no `schema: {SCHEMA}`)")
    if facts["schema"] != SCHEMA:
        schema = shortened(facts["schema"])
        is_newer = re.fullmatch(r"pugdft\.analysis/([2-9]|[1-9]\d+)", schema)
        why = "is of a newer version of pugdft: update it" if is_newer else "is not one that pugdft reads"
        raise UserError(f'{file}: schema "{schema}" {why} (this version reads {SCHEMA})')
    kind, digest, names = facts.get("kind"), facts.get("digest"), facts.get("arrays")
    is_named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not (isinstance(kind, str) and isinstance(digest, str) and is_named):
        raise UserError(f"{file}: is damaged: kind, digest or arrays are missing")
    arrays: dict[str, np.ndarray] = {}
    if names:
        arrays = _read_arrays(path.with_suffix(".npz"), [*names, _DIGEST])
        if not np.array_equal(arrays.pop(_DIGEST), _digest_bytes(digest)):
            raise UserError(f"{path.with_suffix('.npz')}: is of another analysis than the .yaml beside it")
    return Analysis(kind, facts, file, arrays)


def find_analyses(folder: Path, kinds: Iterable[str] = ("*",)) -> list[Path]:
    """The ``.yaml`` files of analyses of these kinds in a folder, by name."""
    patterns = [f"{kind}-{'[0-9a-f]' * _DIGITS}.yaml" for kind in kinds]
    names = os.listdir(folder) if folder.is_dir() else []  # a table looks at thousands: no glob
    return sorted({folder / name for each in patterns for name in fnmatch.filter(names, each)})


def _with(stem: Path, suffix: str) -> Path:
    return stem.parent / f"{stem.name}{suffix}"


def _digest_bytes(digest: str) -> np.ndarray:
    return np.frombuffer(digest.encode(), np.uint8)


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of an ``.npz``; equal arrays give equal bytes, since no member has a time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.asarray(array, order="C"), (1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue(), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _read_arrays(file: Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read arrays by name, none of which may unfold to gigabytes; a UserError if the file is damaged."""
    if not file.is_file():
        raise UserError(f"{file}: is missing: the numbers of the .yaml beside it")
    # zipfile, zlib and numpy's parser of headers let out nearly anything.
    with (
        refuse(Exception, lambda error: f"{file}: is damaged: {reason(error)}"),
        zipfile.ZipFile(file) as npz,
    ):
        return {name: _read_array(npz, name) for name in names}


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with archive.open(f"{name}.npy") as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError(f"{name} is in another version of the format")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(
            member, max_header_size=_LONGEST_HEADER
        )
        size = math.prod(shape)
        if dtype.kind not in "fiub" or is_fortran or size > _MOST_VALUES:
            raise ValueError(f"{name} is no array of numbers of at most {_MOST_VALUES:,} values")
        content = member.read(size * dtype.itemsize + 1)  # the byte more makes the archive check its sum
        return np.frombuffer(content, dtype).reshape(shape).copy()  # a buffer's own array is read-only


def _plain(value: Any) -> Any:
    """Python's own numbers, lists and mappings instead of numpy's and tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path | str) else value  # torch.__version__ is no plain str
