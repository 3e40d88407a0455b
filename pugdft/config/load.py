"""Load a recipe from a file, a bundled name or a mapping, lay overrides over it, and check it.

Every fault is collected before any is reported. Nothing here imports torch: what only torch or timm know
(optimizers, models) is handed in as functions.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pugdft.config import yaml
from pugdft.config.schema import Recipe, cross_faults
from pugdft.errors import (
    ConfigIssue,
    FaultsError,
    UserError,
    close_match,
    collect,
    known_names,
    refuse,
    shortened,
)

SectionCheck = Callable[[Any], Sequence[ConfigIssue]]
Respec = Callable[[Mapping[str, Any], str | Mapping[str, Any]], dict[str, Any]]
Model = TypeVar("Model", bound=BaseModel)

# Places whose value may be an optimizer's name alone.
_OPTIMIZERS = (["optimizer"], ["optimizer", "base"])


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    checks: Mapping[str, SectionCheck] | None = None,
    respec: Respec | None = None,
) -> Recipe:
    """Read a recipe from a file, a bundled recipe's name, or a mapping.

    Args:
        overrides: ``KEY=VALUE`` texts, see :func:`apply_override`. A section or a name is set before the keys
            that belong to it, in whatever order they are given.
        checks: section name to a function that returns the section's further faults.
        respec: the optimizer that an override names, as :func:`pugdft.optim.build.respec` has it.

    Raises:
        UserError: the file cannot be read; every fault of the recipe and the overrides.
    """
    label, given = _read(source, respec)
    data, unreadable = deepcopy(given), list[ConfigIssue]()
    for text in sorted(overrides, key=_breadth):
        with collect(unreadable, f'override "{shortened(text)}"'):
            apply_override(data, text, respec)
    if _optimizer_names(data) != _optimizer_names(given) and data.get("tuning") == given.get("tuning"):
        data.pop("tuning", None)  # it is the cost of choosing another optimizer's options
    recipe, faults = _checked(data, checks or {})
    if faults and overrides:
        own = set(_checked(given, checks or {})[1])
        faults = [fault if fault in own else _of_override(fault, label, overrides) for fault in faults]
    if unreadable or faults:
        raise FaultsError(label, [*(replace(fault, source="") for fault in unreadable), *faults])
    assert recipe is not None
    return recipe


def _checked(
    data: Mapping[str, Any], checks: Mapping[str, SectionCheck]
) -> tuple[Recipe | None, list[ConfigIssue]]:
    """The recipe, if the schema accepts it, and everything that is wrong with it."""
    recipe: Recipe | None = None
    faults: list[ConfigIssue] = []
    with collect(faults):
        recipe = validated(Recipe, data)
    for section, check in checks.items():
        # A section that is missing or of the wrong kind already has its fault from the schema.
        if isinstance(data.get(section), Mapping):
            faults += check(data[section])
    faults += cross_faults(recipe) if recipe else ()
    has_base = len(_optimizer_names(data)) > 1
    return recipe, [_with_meant_key(fault, has_base) for fault in faults]


def _optimizer_names(data: Mapping[str, Any]) -> list[Any]:
    """The name of a recipe's optimizer, and of its base if it has one."""
    names, spec = [], data.get("optimizer")
    while isinstance(spec, Mapping):
        names.append(spec.get("name"))
        spec = spec.get("base")
    return names


def _of_override(fault: ConfigIssue, label: str, overrides: Sequence[str]) -> ConfigIssue:
    """The fault, with the override of its key as its source; with all of them if several may be meant."""
    place = f"{fault.where}."
    keys = {text: f"{text.partition('=')[0].strip()}." for text in overrides}
    near = [text for text, key in keys.items() if place.startswith(key) or key.startswith(place)]
    several = f"{label} with {' '.join(map(shortened, overrides))}".strip()
    return replace(fault, source=f'override "{shortened(near[0])}"' if len(near) == 1 else several)


def recipe_folder() -> Path:
    """Where the bundled recipes are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "bundled_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with pugdft."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def bundled_tables() -> dict[str, Path]:
    """Names and files of the papers' tables that come with pugdft, as ``bench`` files."""
    return {path.stem: path for path in sorted((recipe_folder() / "tables").glob("*.yaml"))}


def find_table(source: str) -> Path | None:
    """The file of a bundled table's name; None if it is none, or there is a file of that name here."""
    path = Path(source)
    if os.path.isfile(source) or path.parent not in (Path("."), Path("tables"), Path("recipes/tables")):
        return None
    return bundled_tables().get(path.name.removesuffix(".yaml"))


def find_recipe(source: str | Path) -> Path:
    """The file of a path or of a bundled recipe's name; a UserError if it is neither."""
    path = Path(source)
    # Unlike pathlib's, os.path's tests are false for a name that is too long for any file.
    if str(source) and os.path.isfile(path):
        return path
    bundled = recipe_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
    # `recipes/x.yaml` is how the documents name a recipe; it works outside a checkout too.
    if os.path.isfile(bundled) and path.parent in (Path("."), Path("recipes")):
        return bundled
    if str(source) and os.path.isdir(path):
        raise UserError(f"{source}: is a folder; a recipe is a YAML file")
    shown = shortened(source) or '""'
    if find_table(str(source)):
        raise UserError(f"{shown}: is a table, which has several recipes: pugdft bench {shown}")
    hint = close_match(path.name[:80].removesuffix(".yaml"), [*bundled_recipes(), *bundled_tables()])
    raise UserError(f"{shown}: no such file or bundled recipe.{hint} `pugdft recipes ls` lists them.")


def _breadth(override: str) -> tuple[int, bool]:
    """Sorts sections before their keys, and a name before the options that depend on it."""
    key = override.partition("=")[0].strip()
    return key.count("."), not key.endswith(".name")


def apply_override(data: dict[str, Any], text: str, respec: Respec | None = None) -> None:
    """Set ``section.key=VALUE`` in a recipe, in place; VALUE is YAML.

    ``optimizer.name=NAME``, ``optimizer=NAME`` and ``optimizer={name: NAME, …}`` choose another optimizer by
    the rules of ``respec``; so do the same of ``optimizer.base``.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"expected KEY=VALUE, such as {recipe_key(parts[-1]) or 'optimizer.rho'}=…")
    value = yaml.parse(value_text)
    if respec and isinstance(value, str) and parts[-1] == "name" and parts[:-1] in _OPTIMIZERS:
        parts.pop()
    node = data
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"{'.'.join(parts[:depth])} is a value, not a section")
    if respec and parts in _OPTIMIZERS and isinstance(value, str | dict):
        current = node.get(parts[-1])
        value = respec(current if isinstance(current, dict) else {}, value)
    node[parts[-1]] = value


def _read(source: str | Path | Mapping[str, Any], respec: Respec | None = None) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):  # such as a record's: it names no other file to read
        return "", json.loads(json.dumps(source))
    path = find_recipe(source)
    return str(path), _resolved_file(path, respec, ())


# --- a recipe that begins with another ---------------------------------------------------------------------

_MOST_BASES = 8


def _resolved_file(path: Path, respec: Respec | None, users: Sequence[Path]) -> dict[str, Any]:
    """The recipe in a file, laid over the one that its ``base`` names; ``users`` begin with this one."""
    data = yaml.parse(yaml.read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping with the sections {', '.join(Recipe.model_fields)}")
    if "base" not in data:
        return data
    name, chain = data.pop("base"), (*users, path.resolve())
    if not isinstance(name, str) or not name:
        raise UserError(f"{path}: base: must be a bundled recipe's name or the path of a recipe's file")
    if len(chain) > _MOST_BASES:
        raise UserError(f"{path}: base: a chain of more than {_MOST_BASES} recipes; write one of them out")
    beside = path.parent / name
    with refuse(UserError, lambda error: f"{path}: base: {error}"):
        base = find_recipe(beside if os.path.isfile(beside) else name)
    if base.resolve() in chain:
        way = " → ".join(each.name for each in (*chain, base))
        raise UserError(f"{path}: base: the recipes begin with one another in a circle: {way}")
    start = _resolved_file(base, respec, chain)
    merged = _merged(start, data, respec)
    if _optimizer_names(merged) != _optimizer_names(start) and "tuning" not in data:
        merged.pop("tuning", None)
    return merged


def _merged(
    start: Mapping[str, Any], given: Mapping[str, Any], respec: Respec | None, place: Sequence[str] = ()
) -> dict[str, Any]:
    """``given`` laid over ``start``, section by section; another method or rule takes over no options."""
    merged = dict(start)
    for key, value in given.items():
        before, here = merged.get(key), [*place, key]
        if not (isinstance(before, Mapping) and isinstance(value, Mapping)):
            merged[key] = value
        elif here[0] != "optimizer" or not _is_another(before, value):
            merged[key] = _merged(before, value, respec, here)
        elif here in _OPTIMIZERS and respec:
            bases = [spec["base"] for spec in (before, value) if isinstance(spec.get("base"), Mapping)]
            if len(bases) == 2:
                value = {**value, **_merged({"base": bases[0]}, {"base": bases[1]}, respec, here)}
            merged[key] = respec(before, value)
        else:
            merged[key] = dict(value)
    return merged


def _is_another(before: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether a part of the optimizer names another method, base, rule or schedule."""
    names = [(before[key], given[key]) for key in ("name", "schedule") if key in before and key in given]
    return any(isinstance(old, str) and isinstance(new, str) and old != new for old, new in names)


# --- keys by other names ---------------------------------------------------------------------------------

# Keys of the optimizer, which the schema does not list, and what people call keys elsewhere.
_OTHER_NAMES = {
    "optimizer.name": "optimizer optim opt method",
    "optimizer.rho": "rho radius perturbation",
    "optimizer.clip": "clip clip_norm clip_grad grad_clip clip_grad_norm max_grad_norm max_norm",
    "optimizer.base.lr": "lr learning_rate base_lr initial_lr",
    "optimizer.base.momentum": "momentum",
    "optimizer.base.weight_decay": "weight_decay wd decay l2",
    "optimizer.base.nesterov": "nesterov",
    "optimizer.base.betas": "betas",
    "optimizer.base.layer_decay": "layer_decay layerwise_decay",
    "model.name": "model arch architecture backbone network net",
    "model.pretrained": "weights pretrained_weights",
    "data.name": "data dataset data_dir data_path dataset_name root",
    "data.image_size": "img_size imgsz input_size resolution size",
    "data.workers": "num_workers loader_workers",
    "data.validation": "val val_split validation_split",
    "data.auto_augment": "augment augmentation aa rand_augment trivial_augment",
    "data.random_erasing": "reprob erasing random_erase",
    "data.color_jitter": "jitter colour_jitter",
    "schedule.name": "schedule scheduler sched lr_schedule lr_scheduler",
    "schedule.warmup_epochs": "warmup num_warmup_epochs",
    "schedule.min_lr": "lr_min eta_min min_learning_rate",
    "schedule.milestones": "decay_milestones lr_steps",
    "schedule.step_epochs": "decay_epochs step_size",
    "schedule.factor": "gamma decay_rate",
    "train.epochs": "epoch num_epochs n_epochs max_epochs num_train_epochs",
    "train.max_steps": "steps num_steps max_iters iterations updates",
    "train.batch_size": "batch bs batchsize train_batch_size",
    "train.micro_batch_size": "accumulate grad_accum accumulation_steps gradient_accumulation_steps",
    "train.eval_batch_size": "test_batch_size val_batch_size",
    "train.precision": "amp dtype fp16 bf16 half mixed_precision",
    "train.label_smoothing": "smoothing",
    "train.class_weights": "class_weight",
    "train.patience": "early_stopping early_stopping_patience",
    "train.keep": "save_best load_best_model_at_end",
    "train.ema": "model_ema ema_decay model_ema_decay",
    "train.freeze": "freeze_backbone linear_probe frozen",
    "train.unfreeze_epoch": "unfreeze",
    "model.drop_rate": "drop dropout",
    "model.drop_path_rate": "drop_path stochastic_depth",
    "model.args": "model_kwargs kwargs model_args",
    "train.seed": "random_seed manual_seed",
}


def recipe_key(word: str, has_base: bool = True, cutoff: float = 0.8) -> str:
    """The recipe's key that people mean by ``word``, such as train.epochs by ``epochs``; "" if none is near.

    ``cutoff`` is the least likeness, in 0..1, to a known name. Without ``has_base`` the optimizer is itself a
    base.
    """
    places = sorted(_places(Recipe), key=lambda place: place.count("."), reverse=True)  # the shortest wins
    names = {_bare(name): place for place in places for name in (place, place.rpartition(".")[2])}
    del names["name"]  # three sections have it
    for place, others in _OTHER_NAMES.items():
        names |= {_bare(name): place for name in (place, *others.split())}
    near = get_close_matches(_bare(word), names, 1, cutoff)
    key = names[near[0]] if near else ""
    return key if has_base else key.replace(".base.", ".")


def recipe_keys() -> list[str]:
    """Every key of a recipe, dotted, those of optimizers with a name of their own included."""
    places = [*_places(Recipe), *_OTHER_NAMES]
    sections = {place.rpartition(".")[0] for place in places}
    return list(dict.fromkeys(place for place in places if place not in sections))


def _places(schema: type[BaseModel], start: str = "") -> Iterator[str]:
    """Every section and key of a schema, such as train.performance and train.performance.compile."""
    for name, field in schema.model_fields.items():
        yield f"{start}{name}"
        for section in _sections(field.annotation):
            yield from _places(section, f"{start}{name}.")


def _bare(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name[:80].lower())


def _with_meant_key(fault: ConfigIssue, has_base: bool) -> ConfigIssue:
    """The fault with the key of another place, if the unknown key is known there or by another name."""
    if not fault.message.startswith(("unknown key", "unknown option")):
        return fault
    section, _, key = fault.where.rpartition(".")
    said, match, _ = fault.message.partition(" Did you mean")
    meant = recipe_key(key, has_base, cutoff=1 if match else 0.8)
    place, _, name = meant.rpartition(".")
    hint = f' Did you mean "{name if place == section else meant}"?'
    return fault if meant in ("", fault.where) else replace(fault, message=said + hint)


# --- pydantic's errors in our words ----------------------------------------------------------------------

# Names of a union's alternatives, which pydantic puts into an error's place.
_ALTERNATIVES = ("bool", "str", "function-after[...]", "<list>", "<range>", "<times>")

# How pydantic's types of errors begin, and what the value must be.
_KINDS = {
    "bool": "true or false",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "string": "text",
}
_MESSAGES = {"missing": "is required", "invalid_key": "keys must be words", "too_short": "must not be empty"}


def validated(schema: type[Model], data: Any, source: str = "") -> Model:
    """``data`` as a ``schema``, or a FaultsError with every fault of ``data``, which ``source`` names."""
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        raise FaultsError(source, schema_faults(error, schema)) from None


def schema_faults(error: ValidationError, schema: type[BaseModel]) -> list[ConfigIssue]:
    """Turn pydantic's errors into faults in our words, each once.

    A validator's ``UserError`` is said as it is; the text of any other ``ValueError`` follows "must be".
    """
    faults: list[ConfigIssue] = []
    for details in error.errors():
        parts = [str(part) for part in details["loc"] if part not in _ALTERNATIVES]
        where = ".".join(parts).removesuffix(".[key]")
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, FaultsError):
            faults += [ConfigIssue(where, str(fault)) for fault in cause.faults]
        else:
            message = str(cause) if isinstance(cause, UserError) else _in_words(details, parts, schema)
            faults.append(ConfigIssue(where, message))
    return list(dict.fromkeys(faults))


def _in_words(details: Mapping[str, Any], parts: Sequence[str], schema: type[BaseModel]) -> str:
    """What one error of pydantic says, with a close match for an unknown key or word."""
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        # The key may belong to another alternative of a union.
        known = [key for key in _known_keys(parts[:-1], schema) if key != parts[-1]]
        return f"unknown key.{known_names(known)}{close_match(parts[-1], known)}"
    if parts[-1:] == ["[key]"]:
        kind = "invalid_key"
    if kind in _MESSAGES:
        return _MESSAGES[kind]
    expected = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected.replace("greater than or equal to", "at least")
    expected = expected.replace("less than or equal to", "at most")
    start, _, end = kind.partition("_")
    if end.startswith(("type", "parsing", "from")):
        expected = _KINDS.get(start, "a mapping")
    hint = ""
    if expected == "a mapping" and schema is Recipe:
        key = {"optimizer": "name", "args": "global_pool"}.get(parts[-1]) or _known_keys(parts, schema)[0]
        expected += f", such as {{{key}: …}}"
        hint = f' Did you mean "{parts[0]}.name"?' if key == "name" and isinstance(given, str) else ""
    if kind in ("bool_type", "string_type") and parts == ["model", "pretrained"]:
        expected = "true, false or a path"
    shown = f", not {json.dumps(given)[:80]}" if isinstance(given, str | int | float | bool | None) else ""
    if kind == "literal_error":
        hint = close_match(given, re.findall("'([^']*)'", details["ctx"]["expected"]))
    return f"must be {expected}{shown}" + (f".{hint}" if hint else "")


def _known_keys(location: Sequence[str], schema: type[BaseModel]) -> list[str]:
    """The keys of the section at this place; skips the keys of mappings and the places in lists."""
    keys = schema.model_fields
    for part in location:
        by_alias = {field.alias or name: field for name, field in keys.items()}
        if part in by_alias and (sections := _sections(by_alias[part].annotation)):
            keys = {key: field for each in sections for key, field in each.model_fields.items()}
    return [field.alias or name for name, field in keys.items()]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for each in get_args(annotation) for section in _sections(each)]
