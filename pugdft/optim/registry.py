"""From a recipe's ``optimizer`` mapping to an optimizer: names, options, and every fault at once.

A spec is either a method over a base, ``{name: sam, rho: 0.1, base: {name: sgd, lr: 0.01}}``, or a base
alone, ``{name: sgd, lr: 0.01}``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pugdft.errors import Fault, FaultsError, unknown
from pugdft.optim import presets
from pugdft.optim.base import BASES, Groups
from pugdft.optim.options import option_faults, resolve_options
from pugdft.optim.passes import PassContext, frozen_batch_norm
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.presets import Method

METHODS: Mapping[str, Callable[..., Method]] = {"sam": presets.sam, "pugd": presets.pugd}
"""Name in a recipe to preset."""

# Beside a method's own options, these may stand in its mapping: they belong to the algorithm.
_ALGORITHM_OPTIONS = {"replay_rng": True}


def optimizer_names() -> list[str]:
    """Everything that ``optimizer.name`` may be."""
    return [*BASES, *METHODS]


def build_optimizer(
    spec: Mapping[str, Any],
    params: nn.Module | Iterable[Any],
    *,
    perturbed_pass: PassContext | None = None,
    closure_accumulates: bool = False,
) -> PerturbedOptimizer:
    """An optimizer whose ``step(closure)`` makes one whole update.

    Args:
        spec: exactly a recipe's ``optimizer`` mapping.
        params: a module, tensors, parameter groups, or ``(name, tensor)`` pairs. Of a module, the
            parameters that require a gradient are taken, and its BatchNorm statistics are kept out of
            the perturbed pass unless ``perturbed_pass`` says otherwise.
        perturbed_pass: makes the context manager around each perturbed pass.
        closure_accumulates: a promise that the closure never clears gradients, which saves one copy
            of the parameters in methods that use both gradients.

    Raises:
        FaultsError: with every fault of the spec.
        UserError: ``params`` holds nothing to train.
    """
    resolved = resolve_spec(spec)
    if isinstance(params, nn.Module):
        if perturbed_pass is None:
            module = params
            perturbed_pass = lambda: frozen_batch_norm(module)  # noqa: E731
        params = [(name, tensor) for name, tensor in params.named_parameters() if tensor.requires_grad]
    groups = _as_groups(params)
    method_options = {key: value for key, value in resolved.items() if key not in ("name", "base")}
    algorithm = {key: method_options.pop(key, default) for key, default in _ALGORITHM_OPTIONS.items()}
    is_method = resolved["name"] in METHODS
    base_spec = dict(resolved["base"] if is_method else resolved)
    base_options = {key: value for key, value in base_spec.items() if key != "name"}
    return PerturbedOptimizer(
        BASES[base_spec["name"]](groups, **base_options),
        METHODS[resolved["name"]](**method_options) if is_method else presets.plain(),
        perturbed_pass=perturbed_pass,
        closure_accumulates=closure_accumulates,
        **algorithm,
    )


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
    if name in BASES:
        return {"name": name, **resolve_options(BASES[name], options)}
    algorithm = {key: options.pop(key) for key in list(options) if key in _ALGORITHM_OPTIONS}
    base = dict(spec["base"])
    base_name = base.pop("name")
    return {
        "name": name,
        **resolve_options(METHODS[name], options),
        **(_ALGORITHM_OPTIONS | algorithm),
        "base": {"name": base_name, **resolve_options(BASES[base_name], base)},
    }


def spec_faults(spec: Mapping[str, Any], where: str = "optimizer") -> list[Fault]:
    """Everything that is wrong with a spec, with recipe paths below ``where``."""
    name = spec.get("name")
    if name is None:
        return [Fault(f"{where}.name", f"is required: one of {', '.join(optimizer_names())}")]
    options = {key: value for key, value in spec.items() if key not in ("name", "base")}
    if name in BASES:
        faults = _base_faults(where, name, options)
        if "base" in spec:
            faults.append(Fault(f"{where}.base", f'"{name}" is itself a base optimizer and takes none'))
        return faults
    if name not in METHODS:
        return [Fault(f"{where}.name", unknown("optimizer", name, optimizer_names()))]
    faults = []
    if "replay_rng" in options and not isinstance(options.pop("replay_rng"), bool):
        faults.append(Fault(f"{where}.replay_rng", "must be true or false"))
    preset = METHODS[name]
    faults += option_faults(where, preset, options, preset, f" The base optimizer's go under {where}.base.")
    base = spec.get("base")
    if not isinstance(base, Mapping):
        example = "{name: sgd, lr: 0.01, momentum: 0.9}"
        return [*faults, Fault(f"{where}.base", f"is required: the optimizer that steps, such as {example}")]
    base_name = base.get("name")
    if base_name not in BASES:
        return [*faults, Fault(f"{where}.base.name", unknown("base optimizer", base_name, BASES))]
    base_options = {key: value for key, value in base.items() if key != "name"}
    return faults + _base_faults(f"{where}.base", str(base_name), base_options)


def describe(name: str) -> str:
    """The documentation of a method or base optimizer.

    Raises:
        FaultsError: no such name.
    """
    functions: dict[str, Callable[..., Any]] = {**BASES, **METHODS}
    if name not in functions:
        raise FaultsError("", [Fault("", unknown("optimizer", name, optimizer_names()))])
    return inspect.getdoc(functions[name]) or ""


def _base_faults(where: str, name: str, options: Mapping[str, Any]) -> list[Fault]:
    def construct(**given: Any) -> torch.optim.Optimizer:
        return BASES[name]([{"params": [torch.zeros(1)]}], **given)

    elsewhere = f" A method's options, such as rho, go beside its name, not under {where}."
    return option_faults(where, BASES[name], options, construct, elsewhere)


def _as_groups(params: Iterable[Any]) -> Groups:
    """One list of groups from tensors, named tensors or groups; torch understands named ones itself."""
    entries: list[Any] = [params] if isinstance(params, Tensor) else list(params)
    if not entries:
        raise FaultsError("", [Fault("params", "nothing to train: no parameter requires a gradient")])
    if isinstance(entries[0], dict):
        groups: Groups = entries
        return [{**group, "params": list(group["params"])} for group in groups]
    return [{"params": entries}]
