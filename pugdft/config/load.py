"""Load a recipe from a file, a bundled name or a mapping, lay overrides over it, and check it.

Every fault is collected before any is reported. Nothing here imports torch: sections whose names only torch
or timm know (optimizers, models) are checked by functions handed in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pugdft.config import yaml
from pugdft.config.schema import Recipe, cross_faults
from pugdft.errors import ConfigIssue, FaultsError, UserError, close_match, collect, shortened

SectionCheck = Callable[[Any], Sequence[ConfigIssue]]
Model = TypeVar("Model", bound=BaseModel)


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    checks: Mapping[str, SectionCheck] | None = None,
) -> Recipe:
    """Read a recipe from a file, a bundled recipe's name, or a mapping.

    Args:
        overrides: ``KEY=VALUE`` texts, see :func:`apply_override`.
        checks: section name to a function that returns the section's further faults.

    Raises:
        UserError: the file cannot be read or is no mapping; a FaultsError has every fault of the recipe and
            of the overrides.
    """
    label, data = _read(source)
    given = deepcopy(data) if overrides else {}
    unreadable: list[ConfigIssue] = []
    for text in overrides:
        with collect(unreadable, f'override "{shortened(text)}"'):
            apply_override(data, text)
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
    return recipe, [*faults, *(cross_faults(recipe) if recipe else ())]


def _of_override(fault: ConfigIssue, label: str, overrides: Sequence[str]) -> ConfigIssue:
    """The fault, with the override of its key as its source; with all of them if several may be meant."""
    near = []
    for text in overrides:
        key, place = f"{text.partition('=')[0].strip()}.", f"{fault.where}."
        if place.startswith(key) or key.startswith(place):
            near.append(text)
    if len(near) == 1:
        return replace(fault, source=f'override "{shortened(near[0])}"')
    return replace(fault, source=f"{label} with {' '.join(map(shortened, overrides))}".strip())


def recipe_folder() -> Path:
    """Where the bundled recipes are: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "bundled_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with pugdft."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(source: str | Path) -> Path:
    """The file of a path or of a bundled recipe's name.

    Raises:
        UserError: neither a file nor a bundled name.
    """
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
    hint = close_match(path.name[:80].removesuffix(".yaml"), bundled_recipes())
    raise UserError(f"{shown}: no such file or bundled recipe.{hint} `pugdft recipes ls` lists them.")


def apply_override(data: dict[str, Any], text: str) -> None:
    """Set ``section.key=VALUE`` in a recipe, in place; VALUE is YAML.

    Another ``optimizer.name`` keeps the base, and the old method's options too: the check refuses those that
    the new method does not have.

    Raises:
        UserError: not ``KEY=VALUE``, VALUE is no YAML, or the key leads through a value.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError("expected KEY=VALUE, such as optimizer.rho=0.1")
    value = yaml.parse(value_text)
    node = data
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"{'.'.join(parts[:depth])} is a value, not a section")
    node[parts[-1]] = value


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "", json.loads(json.dumps(source))
    path = find_recipe(source)
    data = yaml.parse(yaml.read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping with the sections {', '.join(Recipe.model_fields)}")
    return str(path), data


# --- pydantic's errors in our words ----------------------------------------------------------------------

# Names of a union's alternatives, which pydantic puts into an error's place.
_ALTERNATIVES = ("bool", "str", "function-after[...]", "<list>", "<range>", "<times>")

# How pydantic's types of errors begin, and what the value must be.
_KINDS = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "model": "a mapping",
    "string": "text",
}


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
        elif isinstance(cause, UserError):
            faults.append(ConfigIssue(where, str(cause)))
        else:
            faults.append(ConfigIssue(where, _in_words(details, parts, schema)))
    return list(dict.fromkeys(faults))


def _in_words(details: Mapping[str, Any], parts: Sequence[str], schema: type[BaseModel]) -> str:
    """What one error of pydantic says, with a close match for an unknown key or word."""
    kind, given = details["type"], details["input"]
    if kind == "extra_forbidden":
        # The key may belong to another alternative of a union.
        known = [key for key in _known_keys(parts[:-1], schema) if key != parts[-1]]
        return f"unknown key. Known: {', '.join(known)}.{close_match(parts[-1], known)}"
    if kind == "missing":
        return "is required"
    if kind == "invalid_key" or parts[-1:] == ["[key]"]:
        return "keys must be words"
    if kind == "too_short":
        return "must not be empty"
    expected = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected.replace("greater than or equal to", "at least")
    expected = expected.replace("less than or equal to", "at most")
    start, _, end = kind.partition("_")
    if end.startswith(("type", "parsing", "from")):
        expected = _KINDS.get(start, expected)
    if kind in ("bool_type", "string_type") and parts == ["model", "pretrained"]:
        expected = "true, false or a path"
    if expected == "a mapping" and schema is Recipe:
        is_crop = parts[-1] == "random_resized_crop"
        expected += ", such as " + ("{scale: [0.08, 1]}" if is_crop else "{name: …}")
    shown = f", not {json.dumps(given)[:80]}" if isinstance(given, str | int | float | bool | None) else ""
    words = re.findall("'([^']*)'", details["ctx"]["expected"]) if kind == "literal_error" else []
    hint = close_match(given, words)
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
