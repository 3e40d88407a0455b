"""Check a spec, and build an optimizer from it and the parameters."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pugdft.errors import ConfigIssue, FaultsError, UserError, unknown
from pugdft.optim.base import (
    BASES,
    GROUP_OPTIONS,
    Groups,
    as_groups,
    construct_base,
    find_base,
    momentum_of,
    names_of,
    norm_parameters_of,
    shaped_groups,
    tensors_of,
)
from pugdft.optim.context import ParameterInfo
from pugdft.optim.methods import METHODS, Method, plain
from pugdft.optim.options import build, call_with, keyword_defaults, option_faults, resolve_options
from pugdft.optim.passes import PassContext, frozen_batch_norm
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.scaler import LossScale
from pugdft.optim.triggers import TRIGGERS, Always, Every

ALGORITHM_OPTIONS: Mapping[str, Any] = {"replay_rng": True, "perturb": "global", "trigger": None}

"""Options that every two-pass method takes beside its own: they belong to the algorithm."""


def optimizer_names() -> list[str]:
    """Every base and method of the core; timm's optimizers are bases too, by timm's names."""
    return [*BASES, *METHODS]


def takes_two_passes(name: str) -> bool:
    """Whether a method can perturb, so that the algorithm's options apply to it."""
    return name in METHODS and METHODS[name]().perturbs


def build_method(name: str, options: Mapping[str, Any]) -> Method:
    """The method of a checked spec."""
    if name not in METHODS:
        return plain()
    own = {key: value for key, value in options.items() if key not in ALGORITHM_OPTIONS}
    method: Method = call_with(METHODS[name], own)
    if options.get("trigger") is not None:
        return replace(method, trigger=build("trigger", TRIGGERS, options["trigger"]))
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


def spec_faults(spec: Mapping[str, Any], where: str = "optimizer") -> list[ConfigIssue]:
    """Everything that is wrong with a spec, with recipe paths below ``where``."""
    if not isinstance(spec, Mapping):
        return [ConfigIssue(where, "must be a mapping, such as {name: sgd, lr: 0.01}")]
    name = spec.get("name")
    if not isinstance(name, str):
        problem = "is required" if name is None else "must be a word"
        return [ConfigIssue(f"{where}.name", f"{problem}: one of {', '.join(optimizer_names())}")]
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    if name not in METHODS:
        if find_base(name) is None:
            return [ConfigIssue(f"{where}.name", unknown("optimizer", name, optimizer_names()))]
        faults = _base_faults(where, name, options)
        remedy = f"; to replace a method by it: optimizer='{{name: {name}, lr: 0.01}}'"
        if "base" in spec:
            faults.append(
                ConfigIssue(f"{where}.base", f'"{name}" is itself a base optimizer and takes none{remedy}')
            )
        return faults
    faults = _method_faults(where, name, options)
    base = spec.get("base")
    if not isinstance(base, Mapping):
        example = "{name: sgd, lr: 0.01, momentum: 0.9}"
        problem = "is required" if base is None else "must be a mapping"
        return [
            *faults,
            ConfigIssue(f"{where}.base", f"{problem}: the optimizer that steps, such as {example}"),
        ]
    base_name = base.get("name")
    if find_base(base_name) is None:
        return [*faults, ConfigIssue(f"{where}.base.name", unknown("base optimizer", base_name, BASES))]
    base_options = {key: value for key, value in base.items() if key != "name"}
    has_momentum = base_options.get("momentum") or "betas" in base_defaults(base_name)
    if METHODS[name]().direction.requires_momentum and not has_momentum:
        message = f"{name} perturbs along the momentum: it must be above 0"
        faults.append(ConfigIssue(f"{where}.base.momentum", message))
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
        raise FaultsError("", [ConfigIssue("", unknown("optimizer", name, optimizer_names()))])
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


def _method_faults(where: str, name: str, options: dict[str, Any]) -> list[ConfigIssue]:
    faults = []
    if isinstance(METHODS[name]().trigger, Every) and options.get("trigger") is not None:
        faults.append(ConfigIssue(f"{where}.trigger", f"{name}'s k is its trigger; leave one of them out"))
    if takes_two_passes(name):
        if not isinstance(options.pop("replay_rng", True), bool):
            faults.append(ConfigIssue(f"{where}.replay_rng", "must be true or false"))
        if options.pop("perturb", "global") not in ("global", "local"):
            faults.append(ConfigIssue(f"{where}.perturb", "must be global or local"))
        trigger = options.pop("trigger", None)
        if trigger is not None and not isinstance(trigger, Mapping):
            faults.append(
                ConfigIssue(f"{where}.trigger", "must be a mapping, such as {name: after, fraction: 0.5}")
            )
        elif trigger is not None:
            try:
                build("trigger", TRIGGERS, trigger)
            except ValueError as error:
                faults.append(ConfigIssue(f"{where}.trigger", str(error)))
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


def _base_faults(where: str, name: str, options: Mapping[str, Any]) -> list[ConfigIssue]:
    own = {key: value for key, value in options.items() if key not in GROUP_OPTIONS}
    constructor = find_base(name)
    assert constructor is not None
    faults = []
    if "lr" not in own and name not in BASES:  # timm gives some a default, which would hide in the record
        faults.append(ConfigIssue(f"{where}.lr", "is required"))
    if not isinstance(options.get("no_decay", False), bool):
        faults.append(ConfigIssue(f"{where}.no_decay", "must be true or false"))
    decay = options.get("layer_decay")
    is_number = isinstance(decay, int | float) and not isinstance(decay, bool)
    if decay is not None and not (is_number and 0 < decay <= 1):
        faults.append(ConfigIssue(f"{where}.layer_decay", f"must be a number in (0, 1], not {decay!r}"))

    def construct(given: Mapping[str, Any]) -> torch.optim.Optimizer:
        # Empty: reading a recipe must not decide how tensors are allocated.
        return construct_base(name, [{"params": [torch.nn.Parameter(torch.empty(0))]}], given)

    elsewhere = f" A method's options, such as rho, go beside its name, not under {where}."
    return faults + option_faults(where, constructor, own, construct, elsewhere)


def build_optimizer(
    spec: Mapping[str, Any],
    params: nn.Module | Iterable[Any],
    *,
    module: nn.Module | None = None,
    clean_pass: PassContext | None = None,
    perturbed_pass: PassContext | None = None,
    closure_accumulates: bool = False,
    loss_scale: LossScale | None = None,
) -> PerturbedOptimizer:
    """An optimizer whose ``step(closure)`` makes one whole update.

    Args:
        spec: exactly a recipe's ``optimizer`` mapping.
        params: a module, tensors, parameter groups, or ``(name, tensor)`` pairs. Of a module, the
            parameters that require a gradient are taken, and its BatchNorm statistics are kept out of
            the perturbed pass unless ``perturbed_pass`` says otherwise.
        module: the module that the parameters belong to, if ``params`` is not itself that module.
        clean_pass: makes the context manager around the clean pass if the spec says ``perturb: local``,
            such as a DDP model's ``no_sync``: each process then perturbs along its own gradient.
        perturbed_pass: makes the context manager around each perturbed pass.
        closure_accumulates: a promise that the closure never clears gradients, which saves one copy
            of the parameters in methods that use both gradients.
        loss_scale: for fp16; the closure calls ``optimizer.backward(loss)`` then.

    Raises:
        FaultsError: with every fault of the spec.
        UserError: ``params`` holds nothing to train, or cannot be used by the method.
    """
    resolved = resolve_spec(spec)
    name = resolved["name"]
    if isinstance(params, nn.Module):
        module = params
    base_spec = dict(resolved["base"] if name in METHODS else resolved)
    base_name = base_spec.pop("name")
    shape = {key: base_spec.pop(key, default) for key, default in GROUP_OPTIONS.items()}
    if shape["no_decay"] or shape["layer_decay"] is not None:
        if not isinstance(params, nn.Module):
            raise UserError("no_decay and layer_decay shape the groups of a module: give the module itself")
        decay = base_spec.get("weight_decay", base_defaults(base_name).get("weight_decay", 0.0))
        groups = shaped_groups(params, base_spec["lr"], decay, shape)
    else:
        groups = as_groups(params)
    _refuse_unusable(groups)
    options = {key: value for key, value in resolved.items() if key not in ("name", "base")}
    method = build_method(name, options if name in METHODS else {})
    local = options.get("perturb") == "local"
    if local:
        _require_local(name, method, closure_accumulates)
    names, norm_parameters = names_of(groups), None if module is None else norm_parameters_of(module)
    if method.direction.requires_norm_layers:
        _require_norm_layers(norm_parameters, groups)
    base = construct_base(base_name, groups, base_spec)
    if perturbed_pass is None and module is not None:
        perturbed_pass = lambda: frozen_batch_norm(module)  # noqa: E731
    return PerturbedOptimizer(
        base,
        method,
        info=ParameterInfo(names, norm_parameters, momentum_of(base)),
        clean_pass=clean_pass if local else None,
        perturbed_pass=perturbed_pass,
        replay_rng=options.get("replay_rng", True),
        closure_accumulates=closure_accumulates,
        loss_scale=loss_scale,
    )


def _require_local(name: str, method: Method, closure_accumulates: bool) -> None:
    """Only what leaves the same update on every process may perturb along each process's own gradient.

    The clean gradient is then not reduced: a step of one pass, a merge of both gradients, or a mean of
    clean gradients would let the processes' weights or states drift apart.
    """
    direction, combine = method.direction, method.combine
    is_timed = not isinstance(method.trigger, Always)
    if is_timed or combine.needs_both_gradients or direction.averages_gradients:
        raise UserError(
            "optimizer.perturb: local is for methods that perturb at each step along its own gradient and "
            f"add both gradients, such as sam, asam, pugd, gnp; {name} as given here needs perturb: global"
        )
    if direction.num_ascents > 1 and not combine.drops_clean:
        raise UserError("optimizer.perturb: local with several ascents needs a combination that drops g")
    if not (closure_accumulates or combine.drops_clean):
        raise UserError(
            "optimizer.perturb: local adds unreduced gradients where they lie: the closure must not clear "
            "them, and closure_accumulates=True says so"
        )


def _refuse_unusable(groups: Groups) -> None:
    tensors: list[Tensor] = [tensor for group in groups for tensor in tensors_of(group["params"])]
    if any(tensor.dtype == torch.float16 for tensor in tensors):
        raise UserError(
            "params: fp16 weights cannot hold small updates: keep fp32 ones, with autocast and loss_scale"
        )
    if any(type(tensor).__name__ == "DTensor" or hasattr(tensor, "_local_tensor") for tensor in tensors):
        raise UserError(
            "params: sharded parameters (FSDP2, DTensor) are not supported: norms here are of whole tensors. "
            "Use DDP."
        )


def _require_norm_layers(norm_parameters: frozenset[Tensor] | None, groups: Groups) -> None:
    if norm_parameters is None:
        message = "sam_on finds normalisation layers by their type: give the module, not its parameters"
        raise FaultsError("", [ConfigIssue("params", message)])
    given = {tensor for group in groups for tensor in tensors_of(group["params"]) if tensor.requires_grad}
    if not norm_parameters & given:
        raise FaultsError(
            "", [ConfigIssue("params", "sam_on needs normalisation layers that are trained, and has none")]
        )
