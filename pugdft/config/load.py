"""Load a recipe from a file, a bundled name or a mapping, lay overrides over it, and check it.

A recipe is read in three steps: text to mapping (``yaml.py``), overrides laid over it, mapping to
:class:`Recipe`. Every fault is collected before any is reported. Nothing here imports torch: sections
whose names only torch or timm know (optimizers, models) are checked by functions handed in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pugdft.config import yaml
from pugdft.config.schema import Recipe, _cross_faults
from pugdft.errors import ConfigIssue, FaultsError, UserError, close_match

SectionCheck = Callable[[Any], Sequence[ConfigIssue]]

_LONGEST_SHOWN = 80


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    checks: Mapping[str, SectionCheck] | None = None,
) -> Recipe:
    """Read a recipe from a file, a bundled recipe's name, or a mapping.

    Args:
        source: path, bundled name, or the mapping itself.
        overrides: ``KEY=VALUE`` texts, see :func:`apply_override`.
        checks: section name to a function that returns the section's further faults.

    Raises:
        UserError: the file cannot be read or is no mapping.
        FaultsError: with every fault of the recipe and of the overrides.
    """
    label, data = _read(source)
    given = deepcopy(data) if overrides else {}
    unreadable = [fault for text in overrides for fault in apply_override(data, text)]
    recipe, faults = _checked(data, checks or {})
    if faults and overrides:
        own = set(_checked(given, checks or {})[1])
        faults = [fault if fault in own else _of_override(fault, label, overrides) for fault in faults]
    if unreadable or faults:
        raise FaultsError(label, [*unreadable, *faults])
    assert recipe is not None
    return recipe


def _checked(
    data: Mapping[str, Any], checks: Mapping[str, SectionCheck]
) -> tuple[Recipe | None, list[ConfigIssue]]:
    """The recipe, if the schema accepts it, and everything that is wrong with it."""
    recipe: Recipe | None = None
    faults: list[ConfigIssue] = []
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        faults += schema_faults(error, Recipe)
    for section, check in checks.items():
        # A section that is missing or of the wrong kind already has its fault from the schema.
        if isinstance(data.get(section), Mapping):
            faults += check(data[section])
    if recipe is not None:
        faults += _cross_faults(recipe)
    return recipe, faults


def _of_override(fault: ConfigIssue, label: str, overrides: Sequence[str]) -> ConfigIssue:
    """A fault that the file alone does not have, said of the override that stands for its place."""
    keys = {text: text.partition("=")[0].strip() for text in overrides}
    near = [
        text
        for text, key in keys.items()
        if f"{fault.where}.".startswith(f"{key}.") or f"{key}.".startswith(f"{fault.where}.")
    ]
    if len(near) == 1:
        return replace(fault, source=_quoted(near[0]))
    return replace(fault, source=f"{label} with {' '.join(map(_shown, overrides))}".strip())


def _quoted(override: str) -> str:
    return f'override "{_shown(override)}"'


def _shown(override: str) -> str:
    """On one line, not too long for a message."""
    line = " ".join(override.split())
    return line if len(line) <= _LONGEST_SHOWN else f"{line[:_LONGEST_SHOWN]}…"


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
    shown = str(source)[:_LONGEST_SHOWN] or '""'
    hint = close_match(path.name[:_LONGEST_SHOWN].removesuffix(".yaml"), bundled_recipes())
    raise UserError(f"{shown}: no such file or bundled recipe.{hint} `pugdft recipes ls` lists them.")


def apply_override(data: dict[str, Any], text: str) -> list[ConfigIssue]:
    """Lay ``section.key=VALUE`` over a recipe in place; VALUE is YAML; returns what is wrong with it.

    Giving ``optimizer.name`` another method keeps the base, since that is what one compares; the old
    method's options stay and are refused by the check if the new one does not have them.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [ConfigIssue(_quoted(text), "expected KEY=VALUE, such as optimizer.rho=0.1", source="")]
    try:
        value = yaml.parse(value_text)
    except UserError as error:
        return [ConfigIssue(_quoted(text), str(error), source="")]
    node = data
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            message = f"{'.'.join(parts[:depth])} is a value, not a section"
            return [ConfigIssue(_quoted(text), message, source="")]
    node[parts[-1]] = value
    return []


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "", json.loads(json.dumps(source))
    path = find_recipe(source)
    data = yaml.parse(yaml.read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping with the sections {', '.join(Recipe.model_fields)}")
    return str(path), data


def schema_faults(error: ValidationError, schema: type[BaseModel]) -> list[ConfigIssue]:
    """Turn pydantic's errors into faults in our words, each once.

    A validator's ``UserError`` is said as it is; the text of any other ``ValueError`` follows "must be".
    """
    faults: list[ConfigIssue] = []
    for details in error.errors():
        # Names of the alternatives of a union are no keys of the file.
        parts = [str(part) for part in details["loc"] if part not in _ALTERNATIVES]
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, UserError):
            found = cause.faults if isinstance(cause, FaultsError) else [ConfigIssue("", str(cause))]
            where = ".".join(parts).removesuffix(".[key]")
            faults += [ConfigIssue(where, str(fault)) for fault in found]
        else:
            faults.append(_as_fault(details, parts, schema))
    return list(dict.fromkeys(faults))


_ALTERNATIVES = ("bool", "str", "function-after[...]", "<list>", "<range>", "<times>")


def _as_fault(details: Mapping[str, Any], location: Sequence[str], schema: type[BaseModel]) -> ConfigIssue:
    """One error of pydantic, with the known keys and a close match for an unknown key or word."""
    where = ".".join(location)
    if details["type"] == "extra_forbidden":
        # The key may belong to another alternative of a union.
        known = [key for key in _known_keys(location[:-1], schema) if key != location[-1]]
        return ConfigIssue(
            where, f"unknown key. Known: {', '.join(known)}.{close_match(location[-1], known)}"
        )
    if details["type"] == "missing":
        return ConfigIssue(where, "is required")
    if location[-1:] == ["[key]"] or details["type"] == "invalid_key":
        return ConfigIssue(where.removesuffix(".[key]"), "keys must be words")
    if details["type"] == "too_short":
        return ConfigIssue(where, "must not be empty")
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if details["type"] in ("model_type", "dict_type"):
        example = "{scale: [0.08, 1]}" if where == "data.random_resized_crop" else "{name: …}"
        message = f"a mapping, such as {example}" if schema is Recipe else "a mapping"
    if details["type"] in ("bool_type", "string_type"):
        message = "true, false or a path" if where == "model.pretrained" else message
    given = details["input"]
    shown = f", not {json.dumps(given)[:80]}" if isinstance(given, str | int | float | bool | None) else ""
    hint = ""
    if details["type"] == "literal_error":
        hint = close_match(given, re.findall("'([^']*)'", details["ctx"]["expected"]))
    return ConfigIssue(where, f"must be {message}{shown}" + (f".{hint}" if hint else ""))


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
