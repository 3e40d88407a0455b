"""Single records before ``verify``, ``rerun`` and ``compare``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from run_records import SAM, record

from bad_inputs.case import Case
from bad_inputs.files import Harm, both, data_set, file, run, run_text
from bad_inputs.records import SHA, artifact
from pugdft.paths import file_sha256
from pugdft.records import RunRecord, write_record


def alone(command: str, name: str, *said: str, build: Callable[[Path], object], lines: int = 1) -> Case:
    """``verify`` or ``rerun`` of one record."""
    return Case(f"{command} {name}", (command, "runs/a"), said, build, lines=lines)


def pickled(root: Path) -> None:
    """Weights and predictions that are pickles, with the right digests in the record."""
    for name in ("model.safetensors", "predictions.npz"):
        (root / "runs" / "a").mkdir(parents=True, exist_ok=True)
        (root / "runs" / "a" / name).write_bytes(pickle.dumps(Harm()))
    artifacts = {
        name: {"path": path, "sha256": file_sha256(root / "runs" / "a" / path)}
        for name, path in (("model", "model.safetensors"), ("predictions", "predictions.npz"))
    }
    write_record(local(artifacts=artifacts), root / "runs" / "a")


def local(**changes: Any) -> RunRecord:
    """A record of a run on the images of the good data set."""
    return record(
        {"name": "sam", "rho": 0.05, "base": {"name": "sgd", "lr": 0.05}},
        model__name="test_vit",
        model__pretrained=False,
        data__name="images",
        data__image_size=32,
        train__batch_size=4,
        data={"name": "images", "classes": 2, "sizes": {"train": 8, "test": 4}, "sha256": SHA},
        **changes,
    )


def own(**changes: Any) -> Callable[[Path], object]:
    """That record, beside the good data set."""
    return data_set(lambda root: write_record(local(**changes), root / "runs" / "a"))


ALONE = [
    alone(
        "verify",
        "a folder without a record",
        "runs/a: no record.yaml here",
        build=lambda root: (root / "runs/a").mkdir(parents=True),
    ),
    alone("verify", "nothing", "runs/a: no such file", build=lambda root: None),
    alone("verify", "half a record", "runs/a/record.yaml: ", build=run_text(lambda text: text[:200])),
    alone("verify", "no weights", "runs/a/record.yaml: no stored weights", build=own()),
    alone(
        "verify",
        "a path above",
        'runs/a/record.yaml: artifacts.model.path: "../x" leads out of the record\'s folder',
        build=own(**artifact("../x", "model")),
    ),
    alone(
        "verify",
        "a path from the root",
        'artifacts.model.path: "/etc/passwd" leads out',
        build=own(**artifact("/etc/passwd", "model")),
    ),
    alone(
        "verify", "controls in a path", "artifacts.model.path: ", build=own(**artifact("/\x1b[31m", "model"))
    ),
    alone(
        "verify",
        "digits without end",
        "a whole number of 5,000 digits",
        build=run_text(lambda text: text.replace("seed: 0", "seed: 0x" + "f" * 5000)),
    ),
    alone(
        "rerun",
        "an unknown optimizer",
        "runs/a/record.yaml: recipe: optimizer.name: unknown optimizer",
        build=own(
            recipe={
                "model": {"name": "test_vit"},
                "data": {"name": "images"},
                "optimizer": {"name": "x"},
                "train": {"seed": 0},
            }
        ),
    ),
    alone(
        "rerun",
        "no sections",
        "runs/a/record.yaml: recipe: model: is required",
        build=own(recipe={"data": {"name": "a"}, "optimizer": SAM}),
    ),
    alone(
        "rerun",
        "an interrupted run",
        "runs/a/record.yaml: the run was interrupted",
        build=own(status="interrupted"),
    ),
    alone(
        "rerun",
        "images that are not here",
        "data.name: no such folder",
        build=lambda root: write_record(local(), root / "runs/a"),
    ),
    Case(
        "rerun into its own folder",
        ("rerun", "runs/a", "--output", "runs/a"),
        ("--output runs/a: holds the record itself",),
        own(),
    ),
    Case(
        "compare nowhere",
        ("compare", "x", "y"),
        ('"x": no such file or folder', "runs does not exist (--records)"),
    ),
    Case(
        "compare unknown labels",
        ("compare", "samm", "sgd"),
        ("no optimizer of that label in runs. Known: sgd",),
        run("runs/a"),
    ),
    Case(
        "compare a run with itself", ("compare", "runs/a", "runs/a"), ("A and B share runs",), run("runs/a")
    ),
    Case(
        "compare one that is broken",
        ("compare", "runs/a", "runs/b"),
        ("left out: runs/a/record.yaml: ", "runs/a: no run on a test split"),
        both(file("runs/a/record.yaml", "x: 1\n"), run("runs/b")),
    ),
    Case(
        "compare without a margin",
        ("compare", "runs/a", "runs/b", "--margin", "nan"),
        ("--margin",),
        both(run("runs/a"), run("runs/b", optimizer=SAM)),
    ),
    Case(
        "compare with any margin",
        ("compare", "runs/a", "runs/b", "--margin", "inf", "--metric", "loss"),
        ("--margin",),
        both(run("runs/a"), run("runs/b", optimizer=SAM)),
    ),
    Case(
        "compare with a margin below 0",
        ("compare", "a", "b", "--margin", "-1"),
        ("Invalid value for '--margin'",),
    ),
    Case(
        "compare two protocols",
        ("compare", "runs/a", "runs/b"),
        ("did not run under one protocol", "train.epochs"),
        both(run("runs/a"), run("runs/b", optimizer=SAM, train__epochs=3)),
    ),
]

CASES = [
    *ALONE,
    # The data are others than the record says, which is a result; the weights are said to be none.
    alone(
        "verify",
        "pickles",
        "model.safetensors: not readable as .safetensors",
        build=both(data_set(), pickled),
    ),
]
