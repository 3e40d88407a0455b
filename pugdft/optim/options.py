"""Check options against a function's signature, and construct rules from a spec.

A recipe's ``lambda`` is the parameter ``lambda_``, since Python reserves the word.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pugdft.errors import ConfigIssue, close_match, unknown

_COUNTS = {2: "two", 3: "three"}


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The options of a function or class with their defaults (``inspect.Parameter.empty``: none).

    These are the keyword-only parameters of a function, the fields of a dataclass, and of a foreign optimizer
    class all but the parameters to train.
    """
    parameters = list(inspect.signature(function).parameters.values())
    if is_dataclass(function):
        options = parameters
    elif isinstance(function, type):
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        options = [each for each in parameters[1:] if each.kind in named]
    else:
        options = [each for each in parameters if each.kind is each.KEYWORD_ONLY]
    return {each.name.rstrip("_"): each.default for each in options}


def call_with(function: Callable[..., Any], options: Mapping[str, Any], *arguments: Any) -> Any:
    """Call a function with a recipe's options."""
    names = inspect.signature(function).parameters
    own = {f"{name}_" if f"{name}_" in names else name: value for name, value in options.items()}
    return function(*arguments, **own)


def build(
    kind: str,
    registry: Mapping[str, Callable[..., Any]],
    value: str | Mapping[str, Any],
    *,
    where: str = "",
    key: str = "name",
) -> Any:
    """Construct the entry of a registry that a spec names.

    Args:
        kind: what the registry holds, for messages.
        registry: name to class or function.
        value: a name, or a mapping with the name and options.
        where: the spec's place, for messages; by default ``kind``.
        key: the mapping's key for the name.

    Raises:
        ValueError: an unknown name; an option that is unknown, missing, of a wrong kind or out of range.
    """
    where = where or kind
    options = {key: value} if isinstance(value, str) else dict(value)
    name = options.pop(key, None)
    if not isinstance(name, str) or name not in registry:
        raise ValueError(f"{where}.{key}: {unknown(kind, name, registry)}")
    if faults := option_faults(
        where, registry[name], options, lambda given: call_with(registry[name], given)
    ):
        raise ValueError("; ".join(map(str, faults)))
    return call_with(registry[name], options)


def resolve_options(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` completed by the function's defaults, in the function's order, as plain data."""
    resolved = keyword_defaults(function) | dict(given)
    kinds = {name.rstrip("_"): kind for name, kind in _annotations(function).items()}
    return {name: _plain(value, kinds.get(name)) for name, value in resolved.items()}


def option_faults(
    where: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    construct: Callable[[Mapping[str, Any]], Any],
    elsewhere: str = "",
) -> list[ConfigIssue]:
    """Faults of ``given`` as the keyword options of ``function``.

    Args:
        where: the recipe's path to these options, such as ``optimizer``.
        function: its keyword-only parameters are the options, its annotations their kinds.
        given: the options.
        construct: called with ``given`` once names and kinds are right; its ``ValueError`` is a range fault.
        elsewhere: said of an unknown option: where other options belong.
    """
    known = keyword_defaults(function)
    kinds = {name.rstrip("_"): kind for name, kind in _annotations(function).items()}
    faults = []
    for name, value in given.items():
        if name not in known:
            names = ", ".join(known) or "none"
            message = f"unknown option. Known here: {names}.{close_match(name, known)}{elsewhere}"
            faults.append(ConfigIssue(f"{where}.{name}", message))
        elif wanted := _unmet_kind(value, kinds.get(name)):
            faults.append(ConfigIssue(f"{where}.{name}", f"must be {wanted}, not {repr(value)[:80]}"))
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in given:
            faults.append(ConfigIssue(f"{where}.{name}", "is required"))
    if not faults:
        try:
            construct(given)
        except (ValueError, AssertionError) as error:
            faults.append(ConfigIssue(where, str(error) or "is refused"))
        except Exception as error:  # a foreign constructor that did not expect such a value
            faults.append(ConfigIssue(where, f"is refused: {type(error).__name__}: {error}"))
    return faults


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        foreign = isinstance(function, type) and not is_dataclass(function)
        return get_type_hints(function.__init__ if foreign else function)
    except (NameError, TypeError):  # a foreign class whose annotations cannot be resolved
        return {}


def _unmet_kind(value: Any, kind: Any) -> str:
    """What ``value`` should be and is not, or the empty string."""
    if get_origin(kind) is not None:
        return _unmet_compound(value, kind)
    if kind is NoneType and value is not None:
        return "null"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is str and not isinstance(value, str):
        return "a word"
    if kind is bool and not isinstance(value, bool):
        return "true or false"
    if kind is int and not (is_number and isinstance(value, int)):
        return "a whole number"
    if kind is float and not (is_number and _is_finite(value)):
        return "a finite number"
    return ""


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _unmet_compound(value: Any, kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple and set(get_args(kind)) == {float}:
        entries = list(value) if isinstance(value, list | tuple) else []
        count = len(get_args(kind))
        if len(entries) != count or any(_unmet_kind(entry, float) for entry in entries):
            return f"a list of {_COUNTS.get(count, count)} numbers"
    if get_origin(kind) in (UnionType, Union):
        unmet = [_unmet_kind(value, each) for each in get_args(kind)]
        return "" if "" in unmet else " or ".join(unmet)
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        return "" if isinstance(value, Mapping) else "a mapping"
    return ""


def _plain(value: Any, kind: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    # 1 and 1.0 are the same option, and must be the same recipe.
    if isinstance(value, int) and not isinstance(value, bool) and float in (kind, *get_args(kind)):
        return float(value)
    return dict(value) if isinstance(value, Mapping) else value
