"""Records that somebody sent: damaged, hostile, or of another version."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from run_records import SGD

from bad_inputs.case import Case
from bad_inputs.files import both, file, run, run_text

SHA = "ab" * 32


def board(name: str, content: str | bytes | Callable[[str], str], *said: str) -> Case:
    """A leaderboard of one record that cannot be read: the file is named, then that there is no other."""
    build = run_text(content) if callable(content) else file("runs/a/record.yaml", content)
    said = (f"left out: runs/a/record.yaml: {said[0]}", *said[1:], "pugdft: no run record in runs")
    return Case(f"leaderboard of {name}", ("leaderboard", "runs"), said, build)


def checked(name: str, *said: str, **changes: Any) -> Case:
    """A record with something impossible in it, before ``leaderboard check``."""
    return Case(
        f"check {name}",
        ("leaderboard", "check", "runs"),
        tuple(f"runs/a/record.yaml: {each}" for each in said),
        run("runs/a", **changes),
        code=3,
        on_stdout=True,
    )


def artifact(path: str, name: str = "predictions") -> dict[str, Any]:
    """What a record says of a file."""
    return {"artifacts": {name: {"path": path, "sha256": SHA}}}


BOARD = [
    board("nothing", "", "not a run record"),
    board("a list", "- 1\n", "not a run record"),
    board("a recipe", "model: {name: resnet18}\n", "not a run record (no `schema: pugdft.run/1`)"),
    board("binary", bytes(range(256)), "is not text in UTF-8"),
    board("zeros", bytes(100), "not readable as YAML"),
    board("a third of it", lambda text: text[: len(text) // 3], ""),
    board(
        "a newer version",
        "schema: pugdft.run/2\n",
        'schema "pugdft.run/2" is of a newer version of pugdft: update it',
    ),
    board("another schema", "schema: other/1\n", 'schema "other/1" is not one that pugdft reads'),
    board("a schema in controls", 'schema: "\\e[31mred\\u202E"\n', 'schema "[31mred" is not one'),
    board(
        "a schema of a megabyte", f"schema: {'x' * 10**6}\n", 'schema "xxx', "is not one that pugdft reads"
    ),
    board("a schema of nested lists", "schema: " + "[" * 50 + "]" * 50 + "\n", "schema "),
    board(
        "code",
        lambda text: text.replace("completed", "!!python/object/apply:os.mkdir [harm]"),
        "line ",
        "could not determine a constructor",
    ),
    board(
        "aliases", lambda text: "a: &a [x]\nb: [*a]\n" + text, "line 2, column 5: *a: aliases are not read"
    ),
    board("a key twice", lambda text: text + "seed: 1\n", "line ", 'the key "seed" stands twice'),
    board(
        "no seed",
        lambda text: text.replace("seed: 0\n", "", 1).replace("\nseed: 0\n", "\n"),
        "seed: is required",
    ),
    board("an unknown status", lambda text: text.replace("completed", "won"), "status: "),
    board("a word for a metric", lambda text: text.replace("top1: 0.9", "top1: best"), "metrics.test.top1: "),
    board(
        "a truth for a metric", lambda text: text.replace("top1: 0.9", "top1: true"), "metrics.test.top1: "
    ),
    board(
        "digits without end",
        lambda text: text.replace("seed: 0", "seed: 0x" + "f" * 5000),
        "line ",
        "a whole number of 5,000 digits",
    ),
    board(
        "a number beyond reckoning",
        lambda text: text.replace("steps: 0", "steps: 1" + "0" * 300),
        "cost.steps: is out of range",
    ),
    board(
        "deep lists",
        lambda text: text.replace("lr: 0.01", "lr: " + "[" * 150 + "]" * 150),
        "not readable as YAML",
        "nested too deep",
    ),
    board(
        "deeper lists",
        lambda text: text.replace("lr: 0.01", "lr: " + "[" * 50_000),
        "not readable as YAML",
        "nested too deep",
    ),
    board(
        "no optimizer's name",
        lambda text: text.replace("    name: sgd\n", ""),
        "recipe.optimizer.name: is required",
    ),
    Case("leaderboard of nowhere", ("leaderboard", "nowhere"), ("nowhere: no such file or folder",)),
    Case(
        "leaderboard of an empty folder",
        ("leaderboard", "runs"),
        ("no run record in runs",),
        lambda root: (root / "runs").mkdir(),
    ),
    Case(
        "leaderboard of a long path", ("leaderboard", "x" * 5000), ("no such file or folder",), longest=6000
    ),
    Case(
        "leaderboard of another data set",
        ("leaderboard", "runs", "--dataset", "mnist"),
        ("mnist",),
        run("runs/a"),
    ),
    Case(
        "leaderboard of a gigabyte",
        ("leaderboard", "runs"),
        ("left out: runs/a/record.yaml: is not a file of at most 256 MiB", "no run record"),
        both(file("runs/a/record.yaml", ""), lambda root: os.truncate(root / "runs/a/record.yaml", 2**30)),
    ),
]

CHECKED = [
    checked("a path above", "artifacts.predictions: its path is no file's name", **artifact("../../x")),
    checked(
        "a path from the root",
        "artifacts.model: its path is no file's name",
        **artifact("/etc/passwd", "model"),
    ),
    checked(
        "a path of another system", "artifacts.predictions: its path is no file's name", **artifact("..\\x")
    ),
    checked(
        "controls in a path", "artifacts.predictions: its path is no file's name", **artifact("a\x1b[31m")
    ),
    checked(
        "a digest that is none",
        "artifacts.predictions.sha256: is no sha256",
        artifacts={"predictions": {"path": "p.npz", "sha256": "x"}},
    ),
    checked("controls in an id", "id: must be of letters", id="\x1b[31mred"),
    checked("an id that leads elsewhere", "id: must be of letters", id="../../x"),
    checked("an accuracy of 2", "metrics.test.top1: must be a number, from 0 to 1", top1=2.0),
    checked("no accuracy", "metrics.test.top1: must be a number, from 0 to 1", top1=float("nan")),
    checked(
        "no loss",
        "metrics.test.loss: must be a number, at least 0",
        metrics={"test": {"top1": 0.9, "top5": 1.0, "loss": float("nan"), "ece": 0.0}},
    ),
    checked("another seed", "seed: 3, where the recipe has train.seed 0", seed=3, train__seed=0),
    checked("an unknown key in the recipe", "recipe.train.epoch: unknown key", train__epoch=3),
    checked(
        "a list for a recipe's section",
        "recipe.train: must be a mapping",
        recipe={"model": {"name": "a"}, "data": {"name": "b"}, "optimizer": SGD, "train": []},
    ),
    checked("costs below 0", "cost.gradient_passes: must be a number, at least 0", cost__gradient_passes=-1),
    checked("times that are none", "environment.started: is no time", environment__started="=1+1"),
    Case(
        "check a folder without records",
        ("leaderboard", "check", "runs"),
        ("no run record in runs",),
        lambda root: (root / "runs").mkdir(),
    ),
    Case("check nowhere", ("leaderboard", "check", "nowhere"), ("nowhere: no such file",)),
]

CASES = [*BOARD, *CHECKED]
