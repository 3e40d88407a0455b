"""Recipe files that are no recipes, or not quite."""

from __future__ import annotations

import os
from typing import Any

from bad_inputs.case import Case
from bad_inputs.files import RECIPE, Build, file, recipe
from pugdft.config import yaml

FINETUNE = ("finetune", "r.yaml")
GOOD = yaml.dump(RECIPE)
BOMB = "a: &a [x]\n" + "".join(
    f"{key}: &{key} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, key in zip("abcdefgh", "bcdefghi", strict=True)
)


def text(name: str, content: str | bytes, *said: str, **more: Any) -> Case:
    """A recipe of this content."""
    return Case(name, FINETUNE, said, file("r.yaml", content), **more)


def value(place: str, given: Any, *said: str, **more: Any) -> Case:
    """The good recipe with one other value."""
    shown = yaml.dump({"x": given}).removeprefix("x:").strip()[:20]
    return Case(f"{place} {shown}", FINETUNE, (f"r.yaml: {place}", *said), recipe({place: given}), **more)


def built(name: str, build: Build, *said: str) -> Case:
    """What is no file with a recipe."""
    return Case(name, FINETUNE, said, build)


SYNTAX = [
    text(
        "tag that calls",
        "model: !!python/object/apply:os.mkdir [harm]\n",
        "r.yaml: line 1, column 8: could not determine a constructor",
    ),
    text(
        "tag that names",
        "model: !!python/name:os.system\n",
        "r.yaml: line 1, column 8: could not determine a constructor",
    ),
    text(
        "tag that makes an object",
        "model: !!python/object/new:os.mkdir {args: [harm]}\n",
        "r.yaml: line 1, column 8",
    ),
    text(
        "tag of its own",
        GOOD.replace("test_vit", "!model test_vit"),
        "r.yaml: line 2, column 9: could not determine a constructor",
    ),
    text(
        "bytes for a word", GOOD.replace("test_vit", "!!binary aGFybQ=="), "r.yaml: model.name: must be text"
    ),
    text(
        "a date for a number",
        GOOD.replace("0.05", "!!timestamp 2026-01-01"),
        "r.yaml: optimizer.base.lr: must be a finite number",
    ),
    text("aliases without end", BOMB + GOOD, "r.yaml: line 2, column 8: *a: aliases are not read"),
    text(
        "an alias to itself", "model: &m {name: *m}\n" + GOOD, "line 1, column 18: *m: aliases are not read"
    ),
    text("a merge", GOOD + "<<: {x: 1}\n", "r.yaml: <<: unknown key"),
    text("section twice", GOOD + "train: {epochs: 2}\n", 'the key "train" stands twice', "r.yaml: line "),
    text(
        "key twice",
        GOOD.replace("  epochs: 1", "  epochs: 1\n  epochs: 2"),
        'the key "epochs" stands twice',
        "r.yaml: line ",
    ),
    text("key twice in brackets", "model: {name: a, name: b}\n", 'column 18: the key "name" stands twice'),
    text("a value unlike its tag", "model: !!bool maybe\n", "r.yaml: not readable as YAML"),
    text("nothing", "", "r.yaml: expected a mapping with the sections model, data, optimizer"),
    text("a comment", "# later\n", "r.yaml: expected a mapping"),
    text("a list", "- model\n- data\n", "r.yaml: expected a mapping"),
    text("a word", "quickstart\n", "r.yaml: expected a mapping"),
    text("binary", bytes(range(256)), "r.yaml: is not text in UTF-8"),
    text("zeros", bytes(64), "r.yaml: not readable as YAML", "special characters are not allowed"),
    text("Latin-1", "# für\n".encode("latin-1"), "r.yaml: is not text in UTF-8", "line 1"),
    text("UTF-16", GOOD.encode("utf-16"), "r.yaml: is not text in UTF-8"),
    text("UTF-16 without a mark", GOOD.encode("utf-16-le"), "r.yaml: not readable as YAML"),
    text("tabs", "model:\n\tname: resnet18\n", "r.yaml: line 2, column 1", "cannot start any token"),
    text("open bracket", "model: [1\n", "r.yaml: line 2, column 1: expected ',' or ']'"),
    text("open quote", "model: 'x\n", "r.yaml: line 2, column 1", "unexpected end"),
    text("two documents", GOOD + "---\n" + GOOD, "r.yaml: line ", "found another document"),
    text("another YAML", "%YAML 3.0\n---\n" + GOOD, "r.yaml: line 1, column 1", "incompatible YAML document"),
    text("deep", "model: " + "[" * 50_000, "r.yaml: not readable as YAML", "nested too deep"),
    text(
        "a mapping for a key",
        "? {a: b}\n: c\n",
        "r.yaml: line 1, column 3",
        "a key must be a word or a number",
    ),
    text("a number for a key", GOOD + "1: 2\n", "r.yaml: 1: keys must be words"),
    text("controls in a key", '"a\\e[31mb\\u202Ec": 1\n' + GOOD, "r.yaml: a", "unknown key"),
    text(
        "a number of 5,000 digits",
        GOOD.replace("epochs: 1", "epochs: " + "9" * 5000),
        "r.yaml: line 13, column 11: a whole number of 5,000 digits",
    ),
    text(
        "a number of 5,000 hexadecimal digits",
        GOOD.replace("epochs: 1", "epochs: 0x" + "f" * 5000),
        "r.yaml: line 13, column 11: a whole number of 5,000 digits",
    ),
    text(
        "the same for an option",
        GOOD.replace("0.05", "0x" + "f" * 5000),
        "r.yaml: line ",
        "a whole number of 5,000 digits",
    ),
    built(
        "a folder", lambda folder: (folder / "r.yaml").mkdir(), "r.yaml: is a folder; a recipe is a YAML file"
    ),
    built("a pipe", lambda folder: os.mkfifo(folder / "r.yaml"), "r.yaml: no such file or bundled recipe"),
    built(
        "a link to nowhere", lambda folder: (folder / "r.yaml").symlink_to("nowhere"), "r.yaml: no such file"
    ),
    built(
        "a link to itself", lambda folder: (folder / "r.yaml").symlink_to("r.yaml"), "r.yaml: no such file"
    ),
    built(
        "a gigabyte",
        lambda folder: os.truncate(os.open(folder / "r.yaml", os.O_CREAT | os.O_RDWR), 2**30),
        "r.yaml: is not a file of at most 256 MiB",
    ),
    Case("no file", ("finetune", "nowhere.yaml"), ("nowhere.yaml: no such file or bundled recipe",)),
    Case("a misspelt name", ("finetune", "quikstart"), ('Did you mean "quickstart"?',)),
    Case("no name", ("finetune", ""), ('"": no such file',)),
    Case("a long name", ("finetune", "x" * 5000), ("no such file or bundled recipe",)),
    Case("a long path", ("finetune", "a/" * 3000 + "r.yaml"), ("no such file or bundled recipe",)),
    Case("a long folder", ("recipes", "show", "x" * 300 + "/r.yaml"), ("no such file or bundled recipe",)),
]

VALUES = [
    value("model", ["resnet18"], "must be a mapping, such as {name: …}"),
    value("data", None, "must be a mapping"),
    value("train", None, "must be a mapping"),
    value("optimizer", "sgd", "must be a mapping"),
    value("trian", {"epochs": 1}, 'Did you mean "train"?'),
    value("model.pretraind", True, 'Did you mean "pretrained"?'),
    value("model.name", None, "must be text, not null"),
    value("model.name", "resnet19", 'timm has no model "resnet19"', 'Did you mean "resnet'),
    value("model.name", "hf-hub:someone/model", "timm cannot resolve it: "),
    value("model.name", "", "timm has no model"),
    value("model.name", "resnet18.in99k", 'has no weights "in99k"'),
    value("model.pretrained", 1, "must be true, false or a path, not 1"),
    value("model.pretrained", "yes", "yes: no such file or folder"),
    value("model.pretrained", "hf-hub:", "has no model id"),
    value("model.head", "kept", 'Did you mean "keep"?'),
    value("model.pretrained", "w.pth", "w.pth: no such file"),
    value("model.pretrained", "a/" * 3000 + "w.pth", "no such file"),
    value("data.name", 3, "must be text, not 3"),
    value("data.image_size", 0, "at least 8, not 0"),
    value("data.image_size", "32", "must be a whole number"),
    value("data.validation", float("nan"), "finite"),
    value("data.validation", 1, "less than 1"),
    value("data.mixup", float("inf"), "finite"),
    value("data.flip", "no", "true or false"),
    value("data.auto_augment", "rand-m9-n-3", "nothing that timm knows"),
    value("data.auto_augment", "rand-m1.2.3", "nothing that timm knows"),
    value("data.auto_augment", "rand-m9-n20-tweights", "has numbers that timm's augmentation cannot do with"),
    value("data.auto_augment", "rand-n1000000000", "nothing that timm knows (n is at most 100)"),
    value("data.random_resized_crop.scale", [0.5, 2], "at most 1"),
    value("train.epochs", 0, "at least 1"),
    value("train.epochs", 1.5, "must be a whole number"),
    value("train.epochs", True, "must be a whole number"),
    value("train.epochs", 10**400, "at most 1000000"),
    value("train.batch_size", "4", "must be a whole number"),
    value("train.seed", -1, "at least 0"),
    value("train.seed", 2**31, "less than 2147483648"),
    value("train.label_smoothing", -0.1, "at least 0"),
    value("train.precision", "fp64", "'fp32', 'bf16' or 'fp16'"),
    value("train.performance", "fast", "a mapping"),
    value("train.micro_batch_size", 5, "5 is more than batch_size 4"),
    value("train.evaluate", "validation", "validation needs held-out images"),
    value(
        "schedule.name",
        "cosin",
        "'cosine', 'linear', 'step', 'one_cycle' or 'constant'",
        'Did you mean "cosine"?',
    ),
    value("schedule.warmup_epochs", 1, "must be less than train.epochs (1)"),
    value("tuning", {"gradient_passes": 0}, "tuning.trials: is required"),
    Case(
        "a crop beside another",
        FINETUNE,
        ("r.yaml: data.crop_padding: random_resized_crop takes",),
        recipe({"data.crop_padding": 4, "data.random_resized_crop": {}}),
    ),
    Case(
        "four faults at once",
        FINETUNE,
        ("model: is required", "train.epochs: must", "train.epoch: unknown", "optimizer.rho: must"),
        file(
            "r.yaml",
            "data: {name: bundled}\noptimizer: {name: sam, rho: -1, base: {name: sgd, lr: 1}}\n"
            "train: {epochs: 0, epoch: 1}\n",
        ),
        lines=4,
    ),
    Case(
        "one of three recipes",
        ("recipes", "validate", "r.yaml", "s.yaml"),
        ("r.yaml: train.epochs: ", "s.yaml: no such file"),
        recipe({"train.epochs": 0}),
        lines=2,
    ),
]

CASES = [*SYNTAX, *VALUES]
