"""Command lines, and folders for output."""

from __future__ import annotations

import os

from bad_inputs.case import Case
from bad_inputs.files import both, data_set, file, recipe, run
from pugdft.records import RECORD_NAME


def usage(*command: str, said: str) -> Case:
    """A command line that cannot be read: its usage, and what is wrong with it."""
    return Case(" ".join(command)[:60], command, (said,), recipe())


USAGE = [
    usage("fintune", said="No such command 'fintune'"),
    usage("finetune", said="Missing argument 'RECIPE'"),
    usage("finetune", "r.yaml", "--sed", "1", said="No such option: --sed"),
    usage("finetune", "r.yaml", "--lr", "0.1", said="without dashes: optimizer.base.lr=VALUE"),
    usage("finetune", "r.yaml", "--train.epochs=2", said="without dashes: train.epochs=VALUE"),
    usage("bench", "r.yaml", "--batch-size", "2", said="without dashes: train.batch_size=VALUE"),
    usage("finetune", "r.yaml", "--num-processes", "0", said="'--num-processes'"),
    usage("finetune", "r.yaml", "--num-processes", "two", said="'--num-processes'"),
    usage("finetune", "r.yaml", "--progress", "xml", said="'xml' is not one of 'text', 'json'"),
    usage("finetune", "r.yaml", "--output", said="Option '--output' requires an argument"),
    usage("finetune", "r.yaml", "--output", "", said="is empty: expected a path"),
    usage("leaderboard", "--format", "xml", said="'xml' is not one of"),
    usage("leaderboard", "--metric", "speed", said="'speed' is not one of"),
    usage("leaderboard", "--output", "", said="is empty: expected a path"),
    usage("leaderboard", "check", said="Missing argument 'PATH'"),
    usage("compare", "a", said="Missing argument 'B'"),
    usage("compare", "a", "b", "--margin", "small", said="'--margin'"),
    usage("tune", "r.yaml", said="Missing option '--optimizers'"),
    usage("tune", "r.yaml", "--optimizers", "sgd", "--trials", "0", said="'--trials'"),
    usage(
        "bench",
        "r.yaml",
        "--optimizers",
        "sgd",
        "--budget",
        "hours",
        said="Invalid value for '--budget': 'hours' is not one of 'epochs', 'passes'",
    ),
    usage("recipes", "show", "nothing", said="nothing: no such file or bundled recipe"),
    usage("recipes", "print", said="No such command 'print'"),
    usage("verify", said="Missing argument 'RUN"),
    usage("data", "prepare", "images", "--image-size", "big", said="'--image-size'"),
]

ARGUMENTS = [
    Case("bench without optimizers", ("bench", "r.yaml"), ("--optimizers: is required",), recipe()),
    Case(
        "bench of nowhere",
        ("bench", "nowhere.yaml", "--optimizers", "sgd"),
        ("nowhere.yaml: no such file or bundled recipe",),
    ),
    Case("bench of a folder", ("bench", ".", "--optimizers", "sgd"), (".: is a folder",)),
    Case(
        "bench of a long path",
        ("bench", "a/" * 3000, "--optimizers", "sgd"),
        ("no such file or bundled recipe",),
    ),
    Case(
        "seeds backwards",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "3-1"),
        ('--seeds: "3-1" runs backwards',),
        recipe(),
    ),
    Case(
        "seeds in words",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "one"),
        ('--seeds: "one": expected numbers and ranges',),
        recipe(),
    ),
    Case(
        "a million seeds",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "0-999999"),
        ("more than 10,000 seeds",),
        recipe(),
    ),
    Case(
        "a seed of 5,000 digits",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "9" * 5000),
        ("--seeds: ", "expected numbers and ranges"),
        recipe(),
    ),
    Case(
        "a seed above 31 bits",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "2147483648"),
        ("--seeds: ", "below 2147483648"),
        recipe(),
    ),
    Case(
        "trials of a greedy search",
        ("tune", "r.yaml", "--optimizers", "sgd", "--trials", "3"),
        ("--trials: greedy is a greedy search",),
        recipe(),
    ),
    Case(
        "a search that is none",
        ("tune", "r.yaml", "--optimizers", "sgd", "--search", "gredy"),
        ('--search "gredy": no such file', 'Did you mean "greedy"?'),
        recipe(),
    ),
    Case(
        "no search",
        ("tune", "r.yaml", "--optimizers", "sgd", "--search", ""),
        ('--search "": no such file',),
        recipe(),
    ),
    Case(
        "a search at a long path",
        ("tune", "r.yaml", "--optimizers", "sgd", "--search", "a/" * 3000),
        ("no such file or bundled search",),
        recipe(),
    ),
    Case(
        "a copy onto a file",
        ("recipes", "copy", "quickstart", "r.yaml"),
        ("r.yaml: exists already",),
        recipe(),
    ),
    Case(
        "a copy below a file",
        ("recipes", "copy", "quickstart", "r.yaml/x.yaml"),
        ("r.yaml/x.yaml: cannot be written: Not a directory",),
        recipe(),
    ),
    Case(
        "a copy to a long name",
        ("recipes", "copy", "quickstart", "x" * 300),
        ("cannot be written: File name too long",),
    ),
    Case(
        "a bench file beside a recipe",
        ("bench", "b.yaml", "r.yaml"),
        ("b.yaml: is a bench file and names its own recipes",),
        both(recipe(), file("b.yaml", "optimizers: [sgd]\n")),
    ),
]

FOLDERS = [
    Case(
        "output below a file",
        ("finetune", "r.yaml", "--output", "r.yaml/run"),
        ("r.yaml/run: cannot be used as the output folder",),
        data_set(),
    ),
    Case(
        "output is a file",
        ("finetune", "r.yaml", "--output", "r.yaml"),
        ("r.yaml: cannot be used as the output folder",),
        data_set(),
    ),
    Case(
        "output at a long name",
        ("finetune", "r.yaml", "--output", "x" * 300),
        ("cannot be used as the output folder: File name too long",),
        data_set(),
    ),
    Case(
        "output of another recipe",
        ("finetune", "r.yaml", "--output", "out"),
        ("out: holds the run of another recipe", "train.epochs: 9 there, 1 here"),
        both(
            data_set(),
            recipe({"train.epochs": 9}, "out_recipe.yaml"),
            lambda root: os.renames(root / "out_recipe.yaml", root / "out" / "recipe.yaml"),
        ),
        lines=12,
    ),
    Case(
        "output with a recipe that is none",
        ("finetune", "r.yaml", "--output", "out"),
        ("out/recipe.yaml: is not a recipe",),
        both(data_set(), file("out/recipe.yaml", b"\xff\xfe")),
    ),
    Case(
        "output with a folder for a record",
        ("finetune", "r.yaml", "--output", "out"),
        ("out/record.yaml: is a folder",),
        both(data_set(), lambda root: (root / "out" / RECORD_NAME).mkdir(parents=True)),
    ),
    Case(
        "output with another run's record",
        ("finetune", "r.yaml", "--output", "out"),
        ("out/record.yaml: is of another run",),
        both(data_set(), run("out")),
    ),
    Case(
        "bench below a file",
        ("bench", "r.yaml", "--optimizers", "sgd", "--seeds", "0", "--output", "r.yaml/runs"),
        ("r.yaml/runs",),
        data_set(),
    ),
    Case(
        "tune onto a file",
        ("tune", "r.yaml", "--optimizers", "sgd", "--output", "r.yaml"),
        ("r.yaml",),
        data_set(),
    ),
    Case(
        "tune over somebody's file",
        ("tune", "r.yaml", "--optimizers", "sgd", "--output", "out"),
        ("out/bench.yaml: exists and is not of a search",),
        both(data_set(), file("out/bench.yaml", "x")),
    ),
    Case(
        "tune over another's tuning",
        ("tune", "r.yaml", "--optimizers", "sgd", "--output", "out"),
        ("out/tuning.yaml: is not of a search",),
        both(data_set(), file("out/tuning.yaml", "x: 1")),
    ),
    Case(
        "leaderboard below a file",
        ("leaderboard", "runs", "--output", "r.yaml/board.html"),
        ("--output r.yaml/board.html: cannot be written",),
        both(recipe(), run("runs/a")),
    ),
    Case(
        "leaderboard onto a folder",
        ("leaderboard", "runs", "--output", "runs"),
        ("--output runs: is not a file",),
        run("runs/a"),
    ),
    Case(
        "leaderboard to a long name",
        ("leaderboard", "runs", "--output", "x" * 300),
        ("cannot be written: File name too long",),
        run("runs/a"),
    ),
]

CASES = [*USAGE, *ARGUMENTS, *FOLDERS]
