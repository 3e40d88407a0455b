"""Check options against a function's signature, and construct what a spec names.

A recipe's ``lambda`` is the parameter ``lambda_``, since Python reserves the word.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pugdft.errors import ConfigIssue, FaultsError, close_match, unknown

Registry = Mapping[str, Callable[..., Any]]
RuleSpec = str | Mapping[str, Any]
"""A rule's name, or a mapping with its name and options."""


def refused(where: str, message: str) -> FaultsError:
    """One fault at an option, such as ``rho``."""
    return FaultsError("", [ConfigIssue(where, message)])


def require(value: float, name: str, minimum: float = -math.inf, maximum: float = math.inf) -> None:
    """Raise ``FaultsError`` at ``name`` unless ``value`` is finite and within the bounds."""
    if not _is_finite(value):
        raise refused(name, f"must be a finite number, not {str(value)[:40]}")
    if value < minimum:
        raise refused(name, f"must be at least {minimum:g}, not {value:g}")
    if value > maximum:
        raise refused(name, f"must be at most {maximum:g}, not {value:g}")


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function or class, ``params`` left out, with defaults (``Parameter.empty``: none)."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        each.name.rstrip("_"): each.default
        for each in inspect.signature(function).parameters.values()
        if each.kind in kinds and each.name != "params"
    }


def build(
    kind: str, registry: Registry, value: RuleSpec, where: str, *, key: str = "name", elsewhere: str = ""
) -> Any:
    """Construct the entry of a registry that ``value``, a name or a mapping with one and options, names.

    ``elsewhere`` says of an unknown option where other options belong. A FaultsError has all faults.
    """
    options = {key: value} if isinstance(value, str) else dict(value)
    name = options.pop(key, None)
    if not isinstance(name, str) or name not in registry:
        raise refused(f"{where}.{key}", unknown(kind, name, registry))
    return construct(registry[name], options, where, elsewhere=elsewhere)


def construct(
    function: Callable[..., Any],
    options: Mapping[str, Any],
    where: str,
    *,
    call: Callable[[Mapping[str, Any]], Any] | None = None,
    elsewhere: str = "",
) -> Any:
    """Check ``options`` against the signature of ``function``, and call it, or ``call``, with them."""
    known, kinds = keyword_defaults(function), _kinds(function)
    faults = []
    for name, value in options.items():
        if name not in known:
            names = ", ".join(known) or "none"
            message = f"unknown option. Known here: {names}.{close_match(name, known)}{elsewhere}"
            faults.append(ConfigIssue(name, message))
        elif wanted := _unmet_kind(value, kinds.get(name)):
            faults.append(ConfigIssue(name, f"must be {wanted}, not {repr(value)[:80]}"))
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in options:
            faults.append(ConfigIssue(name, "is required"))
    if not faults:
        parameters = {name.rstrip("_"): name for name in inspect.signature(function).parameters}
        own = {parameters[name]: value for name, value in options.items()}
        try:
            return call(own) if call else function(**own)
        except FaultsError as error:
            faults = list(error.faults)
        except (ValueError, AssertionError) as error:
            faults = [ConfigIssue("", str(error) or "is refused")]
        except Exception as error:  # a foreign constructor that did not expect such a value
            faults = [ConfigIssue("", f"is refused: {type(error).__name__}: {error}")]
    raise FaultsError(
        "", [replace(each, where=f"{where}.{each.where}" if each.where else where) for each in faults]
    )


def resolve_options(function: Callable[..., Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    """A spec completed by the function's defaults, in the function's order, as plain data."""
    kinds = _kinds(function)
    # An option whose default is None is absent unless it is given: a new one leaves old recipes' digests.
    defaults = {name: value for name, value in keyword_defaults(function).items() if value is not None}
    resolved = {"name": spec["name"], **defaults} | dict(spec)
    return {name: _plain(value, kinds.get(name)) for name, value in resolved.items()}


def _kinds(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations by the recipe's names; none of a foreign class whose annotations cannot be resolved."""
    foreign = isinstance(function, type) and not is_dataclass(function)
    with suppress(NameError, TypeError):
        hints = get_type_hints(function.__init__ if foreign else function, include_extras=True)
        return {name.rstrip("_"): kind for name, kind in hints.items()}
    return {}


def _unmet_kind(value: Any, kind: Any) -> str:
    """What ``value`` should be and is not, or the empty string."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind is float and getattr(value, "ndim", None) == 0:
        value = float(value)  # torch takes a tensor of one number for lr
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if origin is Annotated:  # with the words for it
        return parts[1] if _unmet_kind(value, parts[0]) else ""
    if origin is Literal:
        return "" if value in parts else f"one of {', '.join(map(str, parts))}"
    if origin is tuple and set(parts) == {float}:
        is_list = isinstance(value, list | tuple) and len(value) == len(parts)
        if is_list and not any(_unmet_kind(entry, float) for entry in value):
            return ""
        return f"a list of {({2: 'two', 3: 'three'}).get(len(parts), len(parts))} numbers"
    if origin in (UnionType, Union):
        unmet = [_unmet_kind(value, each) for each in parts]
        return "" if "" in unmet else " or ".join(unmet)
    if isinstance(origin, type) and issubclass(origin, Mapping) and not isinstance(value, Mapping):
        return "a mapping"
    plain = {
        NoneType: ("null", value is None),
        str: ("a word", isinstance(value, str)),
        bool: ("true or false", isinstance(value, bool)),
        int: ("a whole number", is_number and isinstance(value, int)),
        float: ("a finite number", is_number and _is_finite(value)),
    }
    words, fits = plain.get(kind, ("", True)) if isinstance(kind, type) else ("", True)
    return "" if fits else words


def _is_finite(value: float) -> bool:
    """Whether a number fits into a float; a whole number may have hundreds of digits."""
    return abs(value) <= sys.float_info.max


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    # 1 and 1.0 are the same option, and must be the same recipe.
    if isinstance(value, int) and not isinstance(value, bool) and float in (kind, *get_args(kind)):
        return float(value)
    return dict(value) if isinstance(value, Mapping) else value
