"""What is kept of images that are read from their own files: one small JSON file beside the stores.

``stores/KEY-vVERSION-native.json`` or ``…-SIZE.json``, as the folder of the decoded images would be called.
It has what only decoding every image can tell, so that it is done once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from PIL import features

from pugdft.data.contents import SPLITS, Contents, Source
from pugdft.data.decoding import NotNative, decoded_split, kept_name
from pugdft.data.image_files import ImageFiles
from pugdft.record import write_atomically

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileFacts:
    """What decoding every image once has told.

    Attributes:
        path: where it is kept.
        sha256: over all pixels and labels, as a store has it.
        side: of the decoded images.
        resize_to: as ``decode`` takes it.
        num_images: of both splits together.
    """

    path: Path
    sha256: str
    side: int
    resize_to: int | None
    num_images: int

    @property
    def nbytes(self) -> int:
        """What the decoded images would take."""
        return self.num_images * self.side**2 * 3


@dataclass(frozen=True)
class Files:
    """A data set's images in their files, with their labels, by split."""

    facts: FileFacts
    images: Mapping[str, ImageFiles]
    labels: Mapping[str, np.ndarray]


def open_files(contents: Contents, facts: FileFacts) -> Files:
    """The images that these facts are about.

    Raises:
        OSError: a file is not there any more.
    """
    images, labels = {}, {}
    for split in SPLITS:
        samples = list(getattr(contents, split).samples())
        images[split] = ImageFiles([each.content for each in samples], facts.side, facts.resize_to)
        labels[split] = np.array([each.label for each in samples], np.int64)
    return Files(facts, images, labels)


def find_facts(root: Path, source: Source, image_size: int) -> FileFacts | None:
    """What is kept about a source's files, if it is whole and this decoder would find the same."""
    for resize_to in (None, image_size):
        path = _path(root, source, resize_to)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            facts = FileFacts(path, kept["sha256"], kept["side"], resize_to, kept["images"])
            is_whole = (
                kept["decoder"] == _decoder()
                and _SHA256.fullmatch(facts.sha256)
                and facts.side in (range(1, image_size + 1) if resize_to is None else (image_size,))
                and type(facts.num_images) is int
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        if is_whole:
            return facts
    return None


def learn_facts(root: Path, source: Source, contents: Contents, image_size: int) -> FileFacts:
    """Decode every image once and keep what that tells.

    Raises:
        UserError: an image does not decode, or a split is not usable.
        OSError: ``root`` cannot be written.
    """
    try:
        facts = _learn(root, source, contents, None, image_size)
    except NotNative:
        facts = _learn(root, source, contents, image_size, image_size)
    kept: dict[str, Any] = {
        "source": source.name,
        "sha256": facts.sha256,
        "side": facts.side,
        "images": facts.num_images,
        "decoder": _decoder(),
    }
    write_atomically(facts.path, json.dumps(kept, indent=1).encode())
    return facts


def _learn(
    root: Path, source: Source, contents: Contents, resize_to: int | None, image_size: int
) -> FileFacts:
    digest, sides, num_images = hashlib.sha256(), range(1, image_size + 1), 0
    for split in SPLITS:
        part = getattr(contents, split)
        digest.update(np.array([sample.label for sample in part.samples()], np.int64).tobytes())
        where = f"data set {source.name}: the {split} split"
        for _, pixels in decoded_split(part, where, len(contents.classes), resize_to, sides):
            digest.update(pixels.tobytes())
            sides = range(len(pixels), len(pixels) + 1)
            num_images += 1
    return FileFacts(_path(root, source, resize_to), digest.hexdigest(), sides[0], resize_to, num_images)


def _path(root: Path, source: Source, resize_to: int | None) -> Path:
    return root / f"{kept_name(source.key, resize_to)}.json"


def _decoder() -> str:
    """The libraries that turn files into pixels: another version of one may round otherwise."""
    libraries = ("libjpeg_turbo", "jpg", "webp", "libtiff")
    versions = [features.version(name) for name in libraries if features.check(name)]
    return " ".join(["pillow", PIL.__version__, *map(str, versions)])
