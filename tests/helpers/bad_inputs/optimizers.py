"""The ``optimizer`` of a recipe and the entries of ``--optimizers``."""

from __future__ import annotations

from typing import Any

from bad_inputs.case import Case
from bad_inputs.files import recipe

SGD = {"name": "sgd", "lr": 0.05}


def spec(name: str, given: Any, *said: str, lines: int = 1) -> Case:
    """A recipe with this optimizer."""
    return Case(
        name,
        ("finetune", "r.yaml"),
        tuple(f"{part}" for part in said),
        recipe({"optimizer": given}),
        lines=lines,
    )


def method(name: str, *said: str, of: str = "sam", base: Any = SGD, **options: Any) -> Case:
    """A recipe with a method over a base."""
    return spec(name, {"name": of, **options, "base": base}, *said)


def entry(text: str, *said: str) -> Case:
    """A word of ``--optimizers``."""
    return Case(f"--optimizers {text}", ("bench", "r.yaml", "--optimizers", text), said, recipe())


SPECS = [
    spec("no name", {"lr": 0.1}, "r.yaml: optimizer.name: is required: one of "),
    spec("a number for a name", {"name": 3}, "r.yaml: optimizer.name: must be a word"),
    spec(
        "unknown",
        {"name": "pgud", "base": SGD},
        'r.yaml: optimizer.name: unknown optimizer "pgud"',
        'Did you mean "pugd"?',
    ),
    spec("second order", {"name": "adahessian", "lr": 0.1}, "r.yaml: optimizer.name: unknown optimizer"),
    spec("no lr", {"name": "sgd"}, "r.yaml: optimizer.lr: is required"),
    spec("lr -1", {"name": "sgd", "lr": -1}, "r.yaml: optimizer.lr: must be at least 0"),
    spec("lr for a word", {"name": "sgd", "lr": "0.1"}, "r.yaml: optimizer.lr: must be a finite number"),
    spec("lr of 400 digits", {"name": "sgd", "lr": 10**400}, "r.yaml: optimizer.lr: must be a finite number"),
    spec("nesterov alone", {"name": "sgd", "lr": 0.1, "nesterov": True}, "r.yaml: optimizer: Nesterov"),
    spec(
        "a base on a base", {**SGD, "base": SGD}, 'r.yaml: optimizer.base: "sgd" is itself a base optimizer'
    ),
    spec("an option with a typing mistake", {**SGD, "momentun": 0.9}, 'Did you mean "momentum"?'),
    spec(
        "no decay of layers",
        {**SGD, "layer_decay": 0},
        "r.yaml: optimizer.layer_decay: must be a number in (0, 1]",
    ),
    spec(
        "a decay of layers that is true",
        {**SGD, "layer_decay": True},
        "r.yaml: optimizer.layer_decay: must be a number in (0, 1]",
    ),
    spec(
        "one beta",
        {"name": "adamw", "lr": 0.1, "betas": [0.9]},
        "r.yaml: optimizer.betas: must be a list of two numbers",
    ),
    spec("a beta of 2", {"name": "adamw", "lr": 0.1, "betas": [0.9, 2]}, "r.yaml: optimizer: Invalid beta"),
    spec("timm's without lr", {"name": "lion"}, "r.yaml: optimizer.lr: is required"),
    spec("timm's with a word", {"name": "lion", "lr": 0.1, "betas": "x"}, "r.yaml: optimizer"),
    spec("timm's with a mapping", {"name": "lamb", "lr": {"a": 1}}, "r.yaml: optimizer"),
    spec("timm's with nothing", {"name": "adafactor", "lr": 0.1, "eps": None}, "r.yaml: optimizer"),
    method("no base", "r.yaml: optimizer.base: is required: the optimizer that steps", base=None),
    method("a word for a base", "r.yaml: optimizer.base: must be a mapping", base="sgd"),
    method(
        "a method for a base",
        'r.yaml: optimizer.base.name: unknown base optimizer "pugd"',
        base={"name": "pugd"},
    ),
    method(
        "the base's option",
        "r.yaml: optimizer.momentum: unknown option",
        "go under optimizer.base",
        momentum=0.9,
    ),
    method("the method's option below", "r.yaml: optimizer.base.rho: unknown option", base={**SGD, "rho": 1}),
    method("rho below 0", "r.yaml: optimizer.rho: must be at least 0", rho=-0.1),
    method("rho nan", "r.yaml: optimizer.rho: must be", rho=float("nan")),
    method("rho a list", "r.yaml: optimizer.rho: must be", rho=[1]),
    method("rho of 400 digits", "r.yaml: optimizer.rho: must be a finite number", rho=10**400),
    method(
        "no such schedule",
        'r.yaml: optimizer.rho.schedule: unknown schedule "icoss"',
        'Did you mean "icos"?',
        rho={"schedule": "icoss"},
    ),
    method("a schedule without its bounds", "rho.max: is required", rho={"schedule": "icos", "min": 1}),
    method(
        "bounds turned around",
        "r.yaml: optimizer.rho: min (2) must not be above max (1)",
        rho={"schedule": "cos", "min": 2, "max": 1},
    ),
    method("a bound of 400 digits", "rho.max: must be", rho={"schedule": "cos", "min": 1, "max": 10**400}),
    method("one over 0", "min must be greater than 0", rho={"schedule": "icos", "min": 0, "max": 1}),
    method(
        "no such trigger", 'r.yaml: optimizer.trigger.name: unknown trigger "evry"', trigger={"name": "evry"}
    ),
    method("a word for a trigger", "r.yaml: optimizer.trigger: must be a mapping", trigger="every"),
    method(
        "a fraction of 2",
        "r.yaml: optimizer.trigger.fraction: must be at most 1",
        trigger={"name": "after", "fraction": 2},
    ),
    method(
        "every 0 steps", "r.yaml: optimizer.trigger.k: must be at least 1", trigger={"name": "every", "k": 0}
    ),
    method("two triggers", "looksam's k is its trigger", of="looksam", trigger={"name": "every", "k": 2}),
    method("no momentum to perturb along", "r.yaml: optimizer.base.momentum: msam", of="msam"),
    method("no such rule", 'direction.name: unknown direction "gradiant"', of="rules", direction="gradiant"),
    method(
        "a perturbation everywhere", "r.yaml: optimizer.perturb: must be one of global, local", perturb="all"
    ),
]

ENTRIES = [
    entry("sgd,smm", '--optimizers: "smm": unknown optimizer'),
    entry("sam[rho=-1]", '--optimizers: "sam[rho=-1]": optimizer.rho: must be at least 0'),
    entry("sam[roh=1]", 'Did you mean "rho"?'),
    entry("sam[rho", '--optimizers: "sam[rho": a "]" is missing'),
    entry("", "--optimizers: ", "expected NAME"),
    entry("sam,sam", '--optimizers: "sam": stands twice'),
    entry("sgd+adam", '"sgd" is itself a base optimizer'),
    entry("sam[rho=!!python/object/apply:os.mkdir [harm]]", "rho: ", "could not determine a constructor"),
    entry("sam[rho=\x1b[31m]", "--optimizers: "),
    Case(
        "optimizers show",
        ("optimizers", "show", "pgud"),
        ('unknown optimizer "pgud"', 'Did you mean "pugd"?'),
    ),
    Case("optimizers show a path", ("optimizers", "show", "../sgd"), ('unknown optimizer "../sgd"',)),
]

CASES = [*SPECS, *ENTRIES]
