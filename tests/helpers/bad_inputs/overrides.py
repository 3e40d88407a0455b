"""``KEY=VALUE`` on the command line, and options that stand for one: a fault is said of the override."""

from __future__ import annotations

from bad_inputs.case import Case
from bad_inputs.files import recipe


def override(text: str, *said: str, lines: int = 1) -> Case:
    """One override of the good recipe; ``said`` follows its name."""
    return Case(text[:40], ("finetune", "r.yaml", text), said, recipe(), lines=lines)


def named(text: str, *said: str) -> Case:
    """An override that a message names as the place."""
    return override(text, f'override "{text}": ', *said)


CASES = [
    named("train.epochs", "expected KEY=VALUE, such as"),
    named("=3", "expected KEY=VALUE"),
    named("train..epochs=3", "expected KEY=VALUE"),
    named(".train.epochs=3", "expected KEY=VALUE"),
    named("train.epochs=[1", "line 1, column 3: expected ',' or ']'"),
    named("train.epochs=1: 2: 3", "line 1, column 5"),
    named("model.name.tag=x", "model.name is a value, not a section"),
    named("train.epoch=3", "train.epoch: unknown key", 'Did you mean "epochs"?'),
    named("trian.epochs=3", "trian: unknown key", 'Did you mean "train"?'),
    named("train.epochs=many", 'train.epochs: must be a whole number, not "many"'),
    named("train.epochs=", "train.epochs: must be a whole number, not null"),
    named("train.epochs=0", "train.epochs: must be at least 1"),
    named("train=5", "train: must be a mapping"),
    named("train.micro_batch_size=9", "train.micro_batch_size: 9 is more than batch_size 4"),
    named("model.pretrained=nowhere.pth", "model.pretrained: nowhere.pth: no such file"),
    named("optimizer.name=pgud", 'optimizer.name: unknown optimizer "pgud"'),
    named("optimizer.rho=-1", "optimizer.rho: must be at least 0"),
    named("optimizer.base.lr=.nan", "optimizer.base.lr: must be a finite number"),
    named("optimizer={name: sgd}", "optimizer.lr: is required"),
    named("train.epochs=!!python/object/apply:os.mkdir [harm]", "could not determine a constructor"),
    named("data.name=*x", "*x: aliases are not read"),
    named("tuning={trials: -1, gradient_passes: 0}", "tuning.trials: must be at least 0"),
    named("optimizer=pgud", 'optimizer.name: unknown optimizer "pgud"', 'Did you mean "pugd"?'),
    named("optimizer=5", "optimizer: must be a mapping"),
    named("optimizer.name=3", "optimizer.name: must be a word"),
    named("optimizer.base=pugd", 'optimizer.base.name: unknown base optimizer "pugd"'),
    named("optimizer.base.name=smm", 'optimizer.base.name: unknown base optimizer "smm"'),
    override("lr", 'override "lr": expected KEY=VALUE, such as optimizer.base.lr=…'),
    named("lr=0.1", "lr: unknown key", 'Did you mean "optimizer.base.lr"?'),
    named("train.lr=0.1", "train.lr: unknown key", 'Did you mean "optimizer.base.lr"?'),
    named("optimizer.lr=0.1", "optimizer.lr: unknown option", 'Did you mean "optimizer.base.lr"?'),
    named("optimizer.base.rho=1", "optimizer.base.rho: unknown option", 'Did you mean "optimizer.rho"?'),
    named("optimizer.base.learning_rate=1", 'Did you mean "lr"?'),
    named("epochs=2", "epochs: unknown key", 'Did you mean "train.epochs"?'),
    named("Batch-Size=2", 'Did you mean "train.batch_size"?'),
    named("model=resnet18", "model: must be a mapping", 'Did you mean "model.name"?'),
    Case(
        "eight unknown keys",
        ("finetune", "r.yaml", *(f"train.{letter}=1" for letter in "abcdefgh")),
        ("train.a: unknown key. Known: epochs, budget, ", "train.h: unknown key.\n"),
        recipe(),
        lines=8,
        longest=400,
    ),
    Case(
        "a base below a base",
        ("finetune", "r.yaml", "optimizer=sgd", "optimizer.base.lr=0.1"),
        ('optimizer.base: "sgd" is itself a base optimizer and takes none: its lr is optimizer.lr',),
        recipe(),
    ),
    override("train.epochs=" + "9" * 5000, 'override "train.epochs=999', "a whole number of 5,000 digits"),
    override("\x1b[31mx=1", 'override "�[31mx=1": ', "unknown key"),
    override("train.seed=\udcff", 'override "train.seed=�": '),
    Case(
        "two overrides",
        ("finetune", "r.yaml", "train.epochs=0", "data.flip=1"),
        ('override "train.epochs=0": ', 'override "data.flip=1": '),
        recipe(),
        lines=2,
    ),
    Case(
        "a fault of the file beside one of an override",
        ("finetune", "r.yaml", "train.epochs=0"),
        ("r.yaml: data.flip: ", 'override "train.epochs=0": train.epochs: '),
        recipe({"data.flip": 1}),
        lines=2,
    ),
    Case(
        "an override of a bundled recipe",
        ("finetune", "quickstart", "train.epochs=0"),
        ('override "train.epochs=0": train.epochs',),
    ),
    Case(
        "--seed -1",
        ("finetune", "r.yaml", "--seed", "-1"),
        ('override "train.seed=-1": train.seed: must',),
        recipe(),
    ),
    Case("--seed one", ("finetune", "r.yaml", "--seed", "one"), ("Invalid value for '--seed'",), recipe()),
    Case(
        "bench with an override",
        ("bench", "r.yaml", "--optimizers", "sgd", "train.epochs=0"),
        ('override "train.epochs=0": ',),
        recipe(),
    ),
    Case(
        "tune with an override",
        ("tune", "r.yaml", "--optimizers", "sgd", "data.validation=2"),
        ('override "data.validation=2": ',),
        recipe(),
    ),
]
