"""Tables of images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bad_inputs.case import Case
from bad_inputs.files import Build, both, column, file, table, tables

FINETUNE = ("finetune", "r.yaml")
IMAGES = column(4)


def with_names(labels: list[Any], names: Any) -> pa.Table:
    """A table with the class names that ``datasets`` keeps beside it."""
    info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    made = pa.table({"image": IMAGES, "label": labels})
    return made.replace_schema_metadata({"huggingface": json.dumps(info)})


def twice() -> pa.Table:
    """Two columns of one name."""
    labels = pa.array([0, 1, 0, 1])
    return pa.Table.from_arrays([pa.array(IMAGES), labels, labels], names=["image", "label", "label"])


def damage(start: int, content: bytes, split: str = "train") -> Build:
    """Bytes of a good table overwritten; ``start`` below 0 counts from its end."""

    def build(folder: Path) -> None:
        path = folder / "images" / f"{split}.parquet"
        data = bytearray(path.read_bytes())
        place = start % len(data)
        data[place : place + len(content)] = content
        path.write_bytes(data)

    return both(tables(), build)


def cut(size: float, split: str = "train") -> Build:
    """A good table, cut after this share of its bytes."""

    def build(folder: Path) -> None:
        path = folder / "images" / f"{split}.parquet"
        path.write_bytes(path.read_bytes()[: int(size * path.stat().st_size)])

    return both(tables(), build)


def bad(name: str, build: Build, *said: str) -> Case:
    """A data set of tables."""
    return Case(name, FINETUNE, said, build)


CASES = [
    bad(
        "no image column",
        tables(picture=IMAGES, label=[0, 1, 0, 1]),
        "images/train.parquet: needs an image column (img or image)",
        "it has picture, label",
    ),
    bad(
        "no label column",
        tables(image=IMAGES, kind=[0, 1, 0, 1]),
        "images/train.parquet: needs an image column",
        "label column (label or fine_label)",
    ),
    bad(
        "words for images",
        tables(image=["a"] * 4, label=[0, 1, 0, 1]),
        'images/train.parquet row 0: column "image" holds no image bytes',
    ),
    bad(
        "an image missing",
        tables(image=[*IMAGES[:3], None], label=[0, 1, 0, 1]),
        'images/train.parquet row 3: column "image" holds no image bytes',
    ),
    bad(
        "an image by its path",
        tables(image=[{"bytes": None, "path": "/etc/passwd"}] * 4, label=[0, 1, 0, 1]),
        'row 0: column "image" holds no image bytes',
    ),
    bad(
        "bytes that are no image",
        tables(image=[*IMAGES[:2], b"x", IMAGES[3]], label=[0, 1, 0, 1]),
        "images/train.parquet row 2: is not an image",
    ),
    bad(
        "a label missing",
        tables(image=IMAGES, label=[0, None, 0, 1]),
        'images/train.parquet: column "label" has empty cells',
    ),
    bad("labels in lists", tables(image=IMAGES, label=[[0], [1], [0], [1]]), 'column "label" holds list'),
    bad(
        "dates for labels",
        tables(image=IMAGES, label=pa.array([1, 2, 3, 4], pa.timestamp("s"))),
        'column "label" holds timestamp',
    ),
    bad("one class", tables(image=IMAGES, label=[1, 1, 1, 1]), "the train split has one class only"),
    bad(
        "two columns of one name",
        both(tables(), table("train", twice())),
        'images/train.parquet: has 2 columns "label"',
    ),
    bad(
        "a label of no class",
        both(tables(), table("train", with_names([0, 1, 0, 2], ["ant", "bee"]))),
        "images/train.parquet row 3: label 2 is not one of the classes",
    ),
    bad(
        "a label below 0",
        both(tables(), table("train", with_names([0, 1, 0, -1], ["ant", "bee"]))),
        "images/train.parquet row 3: label -1 is not one of the classes",
    ),
    bad(
        "half a label",
        both(tables(), table("train", with_names([0, 1, 0.5, 0], ["ant", "bee"]))),
        'images/train.parquet row 0: label "0.0"',
    ),
    bad(
        "a test label that train does not have",
        both(tables(), table("test", pa.table({"image": IMAGES, "label": [0, 1, 7, 0]}))),
        'images/test.parquet row 2: label "7" is not among the classes of the train split',
    ),
    bad(
        "other columns in test",
        both(tables(), table("test", pa.table({"img": IMAGES, "label": [0, 1, 0, 1]}))),
        'images/test.parquet: has no columns "image" and "label"',
    ),
    bad(
        "no rows",
        tables(image=pa.array([], pa.binary()), label=pa.array([], pa.int64())),
        "the train split is empty",
    ),
    bad(
        "text",
        both(tables(), file("images/train.parquet", "image,label\n")),
        "images/train.parquet: not readable as parquet",
    ),
    bad(
        "nothing",
        both(tables(), file("images/test.parquet", "")),
        "images/test.parquet: not readable as parquet",
    ),
    bad("cut short", cut(0.7), "images/train.parquet: not readable as parquet"),
    bad("its last bytes gone", cut(0.99, "test"), "images/test.parquet: not readable as parquet"),
    bad("pages overwritten", damage(4, bytes(200)), "images/train.parquet: not readable as parquet"),
    bad(
        "a head of a gigabyte",
        damage(-8, b"\xff\xff\xff\x3f"),
        "images/train.parquet: not readable as parquet",
    ),
    bad(
        "a folder for a table",
        both(
            tables(),
            lambda root: (root / "images" / "test.parquet").unlink(),
            lambda root: (root / "images" / "test.parquet").mkdir(),
        ),
        "images/test.parquet: is not a file",
    ),
    bad(
        "no test",
        both(tables(), lambda root: (root / "images" / "test.parquet").unlink()),
        "images: has no test split (test, testing, validation, ",
    ),
    bad("encrypted", damage(-4, b"PARE"), "images/train.parquet: not readable as parquet"),
    bad(
        "a table of another tool",
        both(
            tables(),
            lambda root: pq.write_metadata(
                pa.schema({"image": pa.binary(), "label": pa.int64()}), root / "images" / "train.parquet"
            ),
        ),
        "the train split is empty",
    ),
]
