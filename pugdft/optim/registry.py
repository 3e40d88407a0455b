"""Names: method to preset, and every fault of a recipe's ``optimizer`` mapping at once.

A spec is either a method over a base, ``{name: sam, rho: 0.1, base: {name: sgd, lr: 0.01}}``, or a base
alone, ``{name: sgd, lr: 0.01}``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from pugdft.errors import Fault, FaultsError, unknown
from pugdft.optim import presets
from pugdft.optim import unit_presets as unit
from pugdft.optim.base import BASES, construct_base, find_base
from pugdft.optim.groups import GROUP_OPTIONS
from pugdft.optim.method import Method
from pugdft.optim.options import call_with, keyword_defaults, option_faults, resolve_options
from pugdft.optim.rules import rules
from pugdft.optim.trigger import TRIGGERS, Never, as_trigger

METHODS: Mapping[str, Callable[..., Method]] = {
    preset.__name__: preset
    for preset in (
        unit.ugd, unit.ngd_cw, presets.sam, presets.asam, unit.sam_gns, unit.pugd, unit.pugd_r, unit.pugd_s,
        unit.pugd_rs, unit.pugd_t, presets.gnp, presets.gsam, presets.looksam, presets.fsam, presets.vasso,
        presets.wsam, presets.sam_on, presets.amp, presets.msam, rules,
    )
}  # fmt: skip
"""Name in a recipe to preset."""

ALGORITHM_OPTIONS: Mapping[str, Any] = {"replay_rng": True, "perturb": "global", "trigger": None}
"""Options that every two-pass method takes beside its own: they belong to the algorithm."""


def optimizer_names() -> list[str]:
    """Every base and method of the core; timm's optimizers are bases too, by timm's names."""
    return [*BASES, *METHODS]


def takes_two_passes(name: str) -> bool:
    """Whether a method can perturb, so that the algorithm's options apply to it."""
    return name in METHODS and not isinstance(METHODS[name]().trigger, Never)


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of a checked spec."""
    if name not in METHODS:
        return presets.plain()
    own = {key: value for key, value in options.items() if key not in ALGORITHM_OPTIONS}
    method: Method = call_with(METHODS[name], own)
    if options.get("trigger") is not None:
        return Method(
            method.direction, method.radius, as_trigger(options["trigger"]), method.combine, method.normalize
        )
    return method


def resolve_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with every default written out: what the record keeps.

    Raises:
        FaultsError: with every fault.
    """
    faults = spec_faults(spec)
    if faults:
        raise FaultsError("", faults)
    name = spec["name"]
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    if name not in METHODS:
        return {"name": name, **_resolve_base(name, options)}
    algorithm = {key: options.pop(key, default) for key, default in ALGORITHM_OPTIONS.items()}
    if algorithm["trigger"] is not None:
        own = {key: value for key, value in algorithm["trigger"].items() if key != "name"}
        rule = algorithm["trigger"]["name"]
        algorithm["trigger"] = {"name": rule, **resolve_options(TRIGGERS[rule], own)}
    base = dict(spec["base"])
    base_name = base.pop("name")
    return {
        "name": name,
        **resolve_options(METHODS[name], options),
        **(algorithm if takes_two_passes(name) else {}),
        "base": {"name": base_name, **_resolve_base(base_name, base)},
    }


def spec_faults(spec: Mapping[str, Any], where: str = "optimizer") -> list[Fault]:
    """Everything that is wrong with a spec, with recipe paths below ``where``."""
    if not isinstance(spec, Mapping):
        return [Fault(where, "must be a mapping, such as {name: sgd, lr: 0.01}")]
    name = spec.get("name")
    if not isinstance(name, str):
        problem = "is required" if name is None else "must be a word"
        return [Fault(f"{where}.name", f"{problem}: one of {', '.join(optimizer_names())}")]
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    if name not in METHODS:
        if find_base(name) is None:
            return [Fault(f"{where}.name", unknown("optimizer", name, optimizer_names()))]
        faults = _base_faults(where, name, options)
        remedy = f"; to replace a method by it: optimizer='{{name: {name}, lr: 0.01}}'"
        if "base" in spec:
            faults.append(
                Fault(f"{where}.base", f'"{name}" is itself a base optimizer and takes none{remedy}')
            )
        return faults
    faults = _method_faults(where, name, options)
    base = spec.get("base")
    if not isinstance(base, Mapping):
        example = "{name: sgd, lr: 0.01, momentum: 0.9}"
        problem = "is required" if base is None else "must be a mapping"
        return [*faults, Fault(f"{where}.base", f"{problem}: the optimizer that steps, such as {example}")]
    base_name = base.get("name")
    if find_base(base_name) is None:
        return [*faults, Fault(f"{where}.base.name", unknown("base optimizer", base_name, BASES))]
    base_options = {key: value for key, value in base.items() if key != "name"}
    if name == "msam" and not base_options.get("momentum") and "betas" not in base_defaults(base_name):
        faults.append(Fault(f"{where}.base.momentum", "msam perturbs along the momentum: it must be above 0"))
    return faults + _base_faults(f"{where}.base", str(base_name), base_options)


def base_defaults(name: Any) -> dict[str, Any]:
    """The options of a known base with their defaults."""
    constructor = find_base(name)
    assert constructor is not None
    return keyword_defaults(constructor)


def describe(name: str) -> str:
    """The documentation of a method or base optimizer.

    Raises:
        FaultsError: no such name.
    """
    found = METHODS.get(name) or find_base(name)
    if found is None:
        raise FaultsError("", [Fault("", unknown("optimizer", name, optimizer_names()))])
    return inspect.getdoc(found) or ""


def explain_options(name: str) -> str:
    """The options of a method or base as a recipe has them, with their defaults."""
    found = METHODS.get(name) or find_base(name)
    assert found is not None
    own = {
        key: "required" if value is inspect.Parameter.empty else value
        for key, value in keyword_defaults(found).items()
    }
    lines = ["Options and defaults:", *(f"  {key}: {value}" for key, value in own.items())]
    further: Mapping[str, Any] = {}
    if takes_two_passes(name):
        lines.append("Of every method with two passes:")
        further = ALGORITHM_OPTIONS
    elif name not in METHODS:
        further = GROUP_OPTIONS
    lines += [f"  {key}: {'null' if value is None else value}" for key, value in further.items()]
    return "\n".join(lines)


def summary(name: str) -> dict[str, str]:
    """A line of a listing: what it is, passes a step, extra copies of the parameters, paper."""
    text = describe(name)
    cost = re.search(r"Cost: (.*?) pass\w* a step, (.*?)[.(]", " ".join(text.split()))
    paper = re.search(r"arXiv [\d.]+|JMLR \S+ \d+|Radius-Timing-Scale, 2025", text)
    memory = cost[2].strip() if cost else "its state only"
    short = re.sub(r" cop(y|ies) of the parameters", "P", memory).replace("no further memory", "0")
    return {
        "what": text.splitlines()[0].rstrip("."),
        "passes": cost[1] if cost else "1",
        "memory": short.replace(" in pugdft's own loop", "").split(",")[0],
        "paper": paper[0] if paper else "torch",
    }


def _method_faults(where: str, name: str, options: dict[str, Any]) -> list[Fault]:
    faults = []
    if name == "looksam" and options.get("trigger") is not None:
        faults.append(Fault(f"{where}.trigger", "looksam's k is its trigger; leave one of them out"))
    if takes_two_passes(name):
        if not isinstance(options.pop("replay_rng", True), bool):
            faults.append(Fault(f"{where}.replay_rng", "must be true or false"))
        if options.pop("perturb", "global") not in ("global", "local"):
            faults.append(Fault(f"{where}.perturb", "must be global or local"))
        trigger = options.pop("trigger", None)
        if trigger is not None and not isinstance(trigger, Mapping):
            faults.append(
                Fault(f"{where}.trigger", "must be a mapping, such as {name: after, fraction: 0.5}")
            )
        elif trigger is not None:
            try:
                as_trigger(trigger)
            except ValueError as error:
                faults.append(Fault(f"{where}.trigger", str(error)))
    preset = METHODS[name]
    elsewhere = f" The base optimizer's go under {where}.base."
    return faults + option_faults(where, preset, options, lambda given: call_with(preset, given), elsewhere)


def _resolve_base(name: str, options: dict[str, Any]) -> dict[str, Any]:
    shape = {key: options.pop(key) for key in list(options) if key in GROUP_OPTIONS}
    constructor = find_base(name)
    assert constructor is not None
    # timm's classes have defaults that are not data (None, callables): only what was given is kept of them.
    resolved = resolve_options(constructor, options) if name in BASES else options
    return {**resolved, **shape}


def _base_faults(where: str, name: str, options: Mapping[str, Any]) -> list[Fault]:
    own = {key: value for key, value in options.items() if key not in GROUP_OPTIONS}
    constructor = find_base(name)
    assert constructor is not None
    faults = []
    if "lr" not in own and name not in BASES:  # timm gives some a default, which would hide in the record
        faults.append(Fault(f"{where}.lr", "is required"))
    if not isinstance(options.get("no_decay", False), bool):
        faults.append(Fault(f"{where}.no_decay", "must be true or false"))
    decay = options.get("layer_decay")
    is_number = isinstance(decay, int | float) and not isinstance(decay, bool)
    if decay is not None and not (is_number and 0 < decay <= 1):
        faults.append(Fault(f"{where}.layer_decay", f"must be a number in (0, 1], not {decay!r}"))

    def construct(given: Mapping[str, Any]) -> torch.optim.Optimizer:
        # Empty: whoever reads a recipe has not decided yet how tensors shall be allocated.
        return construct_base(name, [{"params": [torch.nn.Parameter(torch.empty(0))]}], given)

    elsewhere = f" A method's options, such as rho, go beside its name, not under {where}."
    return faults + option_faults(where, constructor, own, construct, elsewhere)
