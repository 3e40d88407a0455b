"""The optimizers of a comparison as text: ``sgd,sam[rho=0.1,lr=0.002],sam+adamw[lr=1e-3]``.

Grammar::

    LIST    = ENTRY {"," ENTRY}
    ENTRY   = NAME [OPTIONS] ["+" BASE [OPTIONS]]
    OPTIONS = "[" [KEY "=" VALUE {"," KEY "=" VALUE}] "]"

NAME is a method or a base optimizer, including timm's; only a method takes a BASE. VALUE is YAML; brackets
and braces may nest in it: ``adamw[betas=[0.9,0.99]]``, ``pugd[rho={schedule: icos, min: 0.5, max: 2}]``.
Blanks around a part are ignored. An option after a method's name is the method's if it has one of that
name, else its base's. An option after +BASE is the base's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pugdft.config import yaml
from pugdft.errors import ConfigIssue, FaultsError, UserError, close_match, collect, unknown
from pugdft.optim.base import BASES, GROUP_OPTIONS, find_base
from pugdft.optim.build import (
    ALGORITHM_OPTIONS,
    STEP_OPTIONS,
    base_defaults,
    optimizer_names,
    respec,
    takes_two_passes,
)
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults

_FORM = "expected NAME[key=value,…] or NAME[key=value,…]+BASE[key=value,…]"
_CLOSING = {"[": "]", "{": "}"}


@dataclass(frozen=True)
class OptimizerEntry:
    """One entry of ``--optimizers``."""

    text: str = field(compare=False)  # as it was written
    name: str  # of a method, or of a base alone
    options: Mapping[str, Any]  # those after the name, of the method or its base
    base: str | None  # the name after the plus, if there is one
    base_options: Mapping[str, Any]  # those after the base
    tuning: Mapping[str, Any] | None = None

    def spec(self, recipe_spec: Mapping[str, Any]) -> dict[str, Any]:
        """This entry's ``optimizer`` mapping where the recipe has another, see :func:`respec`.

        Raises:
            FaultsError: an option that neither the method nor the base has.
        """
        spec = respec(recipe_spec, self.name)
        if self.name not in METHODS:
            own, for_base = self._divided(self.name)
            return {**spec, **own, **for_base}
        base = respec(spec["base"], self.base) if self.base else spec["base"]
        own, for_base = self._divided(base["name"])
        return {**spec, **own, "base": {**base, **for_base}}

    def _divided(self, base_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The method's options and the base's."""
        own_names = method_defaults(self.name) or STEP_OPTIONS
        own = {key: value for key, value in self.options.items() if key in own_names}
        for_base = {key: value for key, value in self.options.items() if key not in own_names}
        twice = f"stands twice: before and after +{self.base}"
        faults = [ConfigIssue(f'"{key}"', twice) for key in for_base if key in self.base_options]
        for_base |= self.base_options
        if base_name in BASES:  # the options of other classes are checked with the recipe
            base_names = {**base_defaults(base_name), **GROUP_OPTIONS}
            base_names |= {} if self.name in METHODS else STEP_OPTIONS
            lists = {self.name: own_names} if self.name in METHODS else {}
            lists[base_name] = base_names
            known = "; ".join(f"{name} has {', '.join(options)}" for name, options in lists.items())
            for key in (key for key in for_base if key not in base_names):
                hint = close_match(key, [*own_names, *base_names])
                faults.append(ConfigIssue(f'"{key}"', f"unknown option. Known: {known}.{hint}"))
        if faults:
            raise FaultsError("", faults)
        return own, for_base


@dataclass(frozen=True)
class GivenEntry:
    """An entry of a bench file: an ``optimizer`` mapping as in a recipe."""

    text: str  # the mapping as an entry of ``--optimizers``, for messages and tables
    mapping: Mapping[str, Any]
    tuning: Mapping[str, Any] | None = None  # what finding its options has cost, if the file says so

    @classmethod
    def read(cls, mapping: Mapping[str, Any]) -> GivenEntry:
        """Take ``mapping`` apart; refuse one without a name."""
        own = {key: value for key, value in mapping.items() if key != "tuning"}
        if not isinstance(own.get("name"), str):
            known = ", ".join(optimizer_names())
            raise FaultsError("", [ConfigIssue("name", f"is required: one of {known}")])
        base = own.get("base")
        text = _as_text(own) + (f"+{_as_text(base)}" if isinstance(base, Mapping) else "")
        return cls(text, own, mapping.get("tuning"))

    def spec(self, recipe_spec: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping; a method without a base takes the recipe's."""
        return respec(recipe_spec, self.mapping)


def method_defaults(name: str) -> dict[str, Any]:
    """Every option of a method with its default; nothing for a base."""
    if name not in METHODS:
        return {}
    algorithm = ALGORITHM_OPTIONS if takes_two_passes(name) else {}
    return {**keyword_defaults(METHODS[name]), **algorithm, **STEP_OPTIONS}


def parse_optimizers(text: str, option: str = "--optimizers") -> list[OptimizerEntry]:
    """Read the entries of a list, in its order; every fault is reported, as one of ``option``."""
    faults: list[ConfigIssue] = []
    parts: list[str] = []
    with collect(faults, f'"{text}"'):
        parts = _split(text, ",")
    entries: list[OptimizerEntry] = []
    for part in map(str.strip, parts):
        with collect(faults, f'"{part}"'):
            entry = _parse_entry(part)
            if entry in entries:
                raise UserError("stands twice")
            entries.append(entry)
    if faults:
        raise FaultsError(option, faults)
    return entries


def _parse_entry(text: str) -> OptimizerEntry:
    head, *bases = _split(text, "+")
    faults: list[ConfigIssue] = []
    name, options = parse_part(head, faults)
    base, base_options = parse_part(bases[0], faults) if bases else (None, {})
    for part, given in ((name, options), (base, base_options)):
        if "name" in given:
            faults.append(
                ConfigIssue("name", f"is no option: write {given['name']}[…] for another optimizer")
            )
        if "base" in given:
            problem = f"is no option: a method's base stands after a plus, as in {part}+sgd"
            faults.append(ConfigIssue("base", problem))
    if len(bases) > 1:
        faults.append(ConfigIssue("", f"a method stands on one base; {_FORM}"))
    if name and name not in METHODS and find_base(name) is None:
        faults.append(ConfigIssue("", unknown("optimizer", name, optimizer_names())))
    elif name and base is not None and name not in METHODS:
        problem = f'"{name}" is itself a base optimizer: only a method, as in sam+adamw, takes one'
        faults.append(ConfigIssue("", problem))
    elif base and find_base(base) is None:
        faults.append(ConfigIssue("", unknown("base optimizer", base, BASES)))
    if faults:
        raise FaultsError("", faults)
    return OptimizerEntry(text, name, options, base, base_options)


def parse_part(text: str, faults: list[ConfigIssue], form: str = _FORM) -> tuple[str, dict[str, Any]]:
    """Read ``NAME[key=value,…]``; what is wrong is added to ``faults``."""
    name, bracket, rest = text.strip().partition("[")
    name = name.strip()
    options: dict[str, Any] = {}
    pairs: list[str] = []
    if not name or (bracket and not rest.endswith("]")):
        faults.append(ConfigIssue("", form))
        return "", options
    with collect(faults):
        pairs = _split(rest[:-1], ",", form) if rest[:-1].strip() else []
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key or key in options:
            faults.append(ConfigIssue(f'"{pair.strip()}"', "expected key=value, each key once"))
        else:
            with collect(faults, key):
                options[key] = yaml.parse(value)
    return name, options


def _split(text: str, separator: str, form: str = _FORM) -> list[str]:
    """Split ``text`` at the separators outside of all brackets and braces, which must have partners."""
    parts, awaited = [""], [""]
    for character in text:
        if character in _CLOSING:
            awaited.append(_CLOSING[character])
        elif character in _CLOSING.values() and character != awaited.pop():
            raise UserError(f'a "{character}" closes what was not opened; {form}')
        if character == separator and len(awaited) == 1:
            parts.append("")
        else:
            parts[-1] += character
    if len(awaited) > 1:
        raise UserError(f'a "{awaited[-1]}" is missing; {form}')
    return parts


def _as_text(spec: Mapping[str, Any]) -> str:
    """A mapping as an entry of a list; options that have their default are left out."""
    name = spec.get("name")
    constructor = METHODS.get(str(name)) or find_base(name)
    defaults = {**ALGORITHM_OPTIONS, **STEP_OPTIONS, **(keyword_defaults(constructor) if constructor else {})}
    words = [
        f"{key}={json.dumps(value)}"
        for key, value in spec.items()
        if key not in ("name", "base") and (key not in defaults or value != defaults[key])
    ]
    return f"{name}[{','.join(words)}]" if words else str(name)
