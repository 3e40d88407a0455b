"""Options checked against a function's signature: names, kinds, and the values it accepts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from pugdft.errors import Fault, close_match


def keyword_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only options of a function with their defaults (``inspect.Parameter.empty``: none)."""
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def resolve_options(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` completed by the function's defaults, in the function's order, as plain data."""
    resolved = keyword_defaults(function) | dict(given)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in resolved.items()}


def option_faults(
    where: str,
    function: Callable[..., Any],
    given: Mapping[str, Any],
    construct: Callable[..., Any],
    elsewhere: str = "",
) -> list[Fault]:
    """Faults of ``given`` as the keyword options of ``function``.

    Args:
        where: the recipe's path to these options, such as ``optimizer``.
        function: its keyword-only parameters are the options, its annotations their kinds.
        given: the options.
        construct: called with ``given`` once names and kinds are right; its ``ValueError`` is a range fault.
        elsewhere: said of an unknown option: where other options belong.
    """
    known = keyword_defaults(function)
    kinds = get_type_hints(function)
    faults = []
    for name, value in given.items():
        if name not in known:
            names = ", ".join(known) or "none"
            message = f"unknown option. Known here: {names}.{close_match(name, known)}{elsewhere}"
            faults.append(Fault(f"{where}.{name}", message))
        elif wanted := _unmet_kind(value, kinds[name]):
            faults.append(Fault(f"{where}.{name}", f"must be {wanted}, not {value!r}"))
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in given:
            faults.append(Fault(f"{where}.{name}", "is required"))
    if not faults:
        try:
            construct(**given)
        except ValueError as error:
            faults.append(Fault(where, str(error)))
    return faults


def _unmet_kind(value: Any, kind: Any) -> str:
    """What ``value`` should be and is not, or the empty string."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and not isinstance(value, bool):
        return "true or false"
    if kind is int and not (is_number and isinstance(value, int)):
        return "a whole number"
    if kind is float and not (is_number and math.isfinite(value)):
        return "a finite number"
    if kind == tuple[float, float]:
        pair = list(value) if isinstance(value, list | tuple) else []
        if len(pair) != 2 or any(_unmet_kind(entry, float) for entry in pair):
            return "a list of two numbers"
    return ""
