"""Check a spec, and build an optimizer from it and the parameters."""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from pugdft.errors import ConfigIssue, FaultsError, UserError, collect, unknown
from pugdft.optim import base as bases
from pugdft.optim.base import BASES, GROUP_OPTIONS, GroupOptions, find_base
from pugdft.optim.context import ParameterInfo
from pugdft.optim.masks import MASKS, Masked
from pugdft.optim.methods import METHODS, Method, plain
from pugdft.optim.options import build, construct, keyword_defaults, refused, resolve_options
from pugdft.optim.passes import AscentPass, KeptBuffers, PassContext
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.scaler import LossScale
from pugdft.optim.triggers import TRIGGERS, Always, Every


@dataclass(frozen=True, kw_only=True)
class AlgorithmOptions:
    """Options that every two-pass method takes beside its own: they belong to the algorithm."""

    replay_rng: bool = True
    perturb: Literal["global", "local"] = "global"
    trigger: Annotated[Mapping[str, Any] | None, "a mapping, such as {name: after, fraction: 0.5}"] = None
    mask: Annotated[Mapping[str, Any] | None, "a mapping, such as {name: random, share: 0.5}"] = None


ALGORITHM_OPTIONS: Mapping[str, Any] = keyword_defaults(AlgorithmOptions)


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Options of every optimizer, a base alone included: of the gradient that the base takes."""

    clip: float | None = None  # the largest global norm; None does not clip

    def __post_init__(self) -> None:
        if self.clip is not None and self.clip <= 0:
            raise refused("clip", f"must be above 0, or null for no clipping, not {self.clip:g}")


STEP_OPTIONS: Mapping[str, Any] = keyword_defaults(StepOptions)

_BASE_EXAMPLE = "the optimizer that steps, such as {name: sgd, lr: 0.01, momentum: 0.9}"
_NOTES = {
    "rho": "radius of the perturbation, ≥ 0: a number or a schedule",
    "clip": "largest global norm of the gradient that the base takes",
    "trigger": f"when a step takes two passes, always without it: {', '.join(TRIGGERS)}",
    "mask": f"what is perturbed, every weight without it: {', '.join(MASKS)}",
}


def optimizer_names() -> list[str]:
    """Every base and method of the core; timm's optimizers are bases too, by timm's names."""
    return [*BASES, *METHODS]


def takes_two_passes(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Whether a method takes two passes, by default or with ``options``: the algorithm's options apply."""
    if name not in METHODS:
        return False
    if METHODS[name]().perturbs:
        return True
    own = {key: value for key, value in options.items() if key in keyword_defaults(METHODS[name])}
    with suppress(FaultsError):  # reported where the method is built
        return bool(construct(METHODS[name], own, "").perturbs)
    return False


def build_method(name: str, options: Mapping[str, Any], where: str = "optimizer") -> Method:
    """The method of a spec's name and options, the algorithm's included; ``plain`` for a base alone."""
    if name not in METHODS:
        return plain()
    method, faults = METHODS[name](), list[ConfigIssue]()
    options, of_step = _divided(options, STEP_OPTIONS)
    own, further = _divided(options, ALGORITHM_OPTIONS if takes_two_passes(name, options) else ())
    trigger, has_own_trigger = further.get("trigger"), isinstance(method.trigger, Every)
    with collect(faults):
        elsewhere = f" The base optimizer's go under {where}.base."
        method = build("method", METHODS, {"name": name, **own}, where, elsewhere=elsewhere)
    with collect(faults):
        construct(StepOptions, of_step, where)
    with collect(faults):
        construct(AlgorithmOptions, further, where)
        if trigger is not None and has_own_trigger:
            raise refused(f"{where}.trigger", f"{name}'s k is its trigger; leave one of them out")
        if trigger is not None:
            method = replace(method, trigger=build("trigger", TRIGGERS, trigger, f"{where}.trigger"))
    with collect(faults):
        if isinstance(mask := further.get("mask"), Mapping):
            found = build("mask", MASKS, mask, f"{where}.mask")
            method = replace(method, direction=Masked(method.direction, found))
    if faults:
        raise FaultsError("", faults)
    return method


def method_of(spec: Mapping[str, Any]) -> Method:
    """The method of a recipe's whole ``optimizer`` mapping."""
    return build_method(spec["name"], {key: spec[key] for key in spec if key not in ("name", "base")})


def resolve_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The spec with every default written out: what the record keeps. A FaultsError has every fault."""
    if faults := spec_faults(spec):
        raise FaultsError("", faults)
    name, (spec, of_step) = spec["name"], _divided(spec, STEP_OPTIONS)
    # Absent where it is not used, so that it changes no older recipe's digest.
    of_step = {key: float(value) for key, value in of_step.items() if value is not None}
    if name not in METHODS:
        return {**_resolve_base(spec), **of_step}
    own, further = _divided(spec, [*ALGORITHM_OPTIONS, "base"])
    base = _resolve_base(further.pop("base"))
    if takes_two_passes(name, own):
        further = {**ALGORITHM_OPTIONS, **further}
        if trigger := further["trigger"]:
            further["trigger"] = resolve_options(TRIGGERS[trigger["name"]], trigger)
        # Absent where there is none, likewise.
        mask = further.pop("mask")
        further |= {"mask": resolve_options(MASKS[mask["name"]], mask)} if mask else {}
    return {**resolve_options(METHODS[name], own), **further, **of_step, "base": base}


def respec(recipe_spec: Mapping[str, Any], given: str | Mapping[str, Any]) -> dict[str, Any]:
    """Resolve a name, or a spec without a base, by the spec that a recipe has.

    A method keeps the recipe's base. Its name alone keeps the recipe's options if the recipe has the same
    method; another method starts from its own defaults, so that no radius is passed on. The name of a base
    keeps the options of the recipe's base if it is the same; another one starts from its defaults with the
    recipe's lr. A mapping has its own options, and a base in it stays as it is. The recipe's clipping belongs
    to what the base takes: it is kept with the base, and by a base's name.
    """
    recipe_spec, of_step = _divided(recipe_spec, STEP_OPTIONS)
    base = recipe_spec.get("base", {}) if recipe_spec.get("name") in METHODS else recipe_spec
    name = given if isinstance(given, str) else given.get("name")
    spec = {"name": name} if isinstance(given, str) else dict(given)
    if isinstance(name, str) and name in METHODS:
        kept = recipe_spec if given == recipe_spec.get("name") else {}
        return {**kept, **({"base": base} if base else {}), **({} if "base" in spec else of_step), **spec}
    if isinstance(given, str) and isinstance(base, Mapping):
        is_same = name == base.get("name")
        spec.update(base if is_same else {key: base[key] for key in ("lr",) if key in base})
        spec.update(of_step)
    return spec


def spec_faults(spec: Mapping[str, Any], where: str = "optimizer") -> list[ConfigIssue]:
    """Everything that is wrong with a spec, with recipe paths below ``where``."""
    if not isinstance(spec, Mapping):
        return [ConfigIssue(where, "must be a mapping, such as {name: sgd, lr: 0.01}")]
    name, base = spec.get("name"), spec.get("base")
    options = {key: value for key, value in spec.items() if key != "base"}
    if not isinstance(name, str):
        problem = "is required" if name is None else "must be a word"
        return [ConfigIssue(f"{where}.name", f"{problem}: one of {', '.join(optimizer_names())}")]
    faults = list[ConfigIssue]()
    with collect(faults, f"{where}.name"):
        if name not in METHODS and find_base(name) is None:
            raise UserError(unknown("optimizer", name, optimizer_names()))
    if faults:
        return faults
    if name not in METHODS:
        options, of_step = _divided(options, STEP_OPTIONS)
        with collect(faults):
            construct(StepOptions, of_step, where)
        with collect(faults):
            _check_base(options, where)
        if "base" in spec:
            message = f'"{name}" is itself a base optimizer and takes none: its lr is {where}.lr'
            faults.append(ConfigIssue(f"{where}.base", message))
        return faults
    with collect(faults):
        build_method(name, {key: value for key, value in options.items() if key != "name"}, where)
    with collect(faults):
        if not isinstance(base, Mapping):
            problem = "is required" if base is None else "must be a mapping"
            raise refused(f"{where}.base", f"{problem}: {_BASE_EXAMPLE}")
        _require_base(base.get("name"), f"{where}.base.name")
        may_lack_momentum = isinstance(base["name"], str) and not base.get("momentum")
        has_momentum = not may_lack_momentum or "betas" in keyword_defaults(_found(base["name"]))
        if METHODS[name]().direction.requires_momentum and not has_momentum:
            message = f"{name} perturbs along the momentum: it must be above 0"
            faults.append(ConfigIssue(f"{where}.base.momentum", message))
        _check_base(base, f"{where}.base")
    return faults


def _require_base(name: Any, where: str) -> None:
    """Raise a FaultsError at ``where`` unless ``name`` is a base's."""
    faults: list[ConfigIssue] = []
    with collect(faults, where):
        if find_base(name) is None:
            raise UserError(unknown("base optimizer", name, BASES))
    if faults:
        raise FaultsError("", faults)


def describe(name: str) -> str:
    """The documentation of a method or base optimizer; a UserError for another name."""
    return inspect.getdoc(_found(name)) or ""


def explain_options(name: str) -> str:
    """The options of a method or base as a recipe has them, with their defaults."""
    own = {**keyword_defaults(_found(name)), **({} if name in METHODS else GROUP_OPTIONS)}
    further = {"Of every method with two passes:": ALGORITHM_OPTIONS} if takes_two_passes(name) else {}
    every = {"Of every optimizer, beside its name:": STEP_OPTIONS}
    lines = []
    for heading, options in {"Options and defaults:": own, **further, **every}.items():
        lines.append(heading)
        for key, value in options.items():
            shown = "required" if value is inspect.Parameter.empty else "null" if value is None else value
            note = _NOTES.get(key)
            lines.append(f"  {key}: {shown}{f'  ({note})' if note else ''}")
    return "\n".join(lines)


def _found(name: str) -> Callable[..., Any]:
    if found := METHODS.get(name) or find_base(name):
        return found
    raise UserError(unknown("optimizer", name, optimizer_names()))


def base_defaults(name: str) -> dict[str, Any]:
    """The options of a known base with their defaults."""
    return keyword_defaults(_found(name))


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


def _divided(options: Mapping[str, Any], keys: Iterable[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options without ``keys``, and those of them."""
    own = {key: value for key, value in options.items() if key not in keys}
    return own, {key: value for key, value in options.items() if key in keys}


def _resolve_base(spec: Mapping[str, Any]) -> dict[str, Any]:
    name = spec["name"]
    # timm's classes have defaults that are not data (None, callables): only what was given is kept of them.
    return resolve_options(BASES[name], spec) if name in BASES else {"name": name, **spec}


def _check_base(spec: Mapping[str, Any], where: str) -> None:
    """Refuse a base's options, the groups' included, all faults together."""
    own, shape = _divided(spec, GROUP_OPTIONS)
    name, faults = own.pop("name"), list[ConfigIssue]()
    if "lr" not in own and name not in BASES:  # timm gives some a default, which would hide in the record
        faults.append(ConfigIssue(f"{where}.lr", "is required"))
    with collect(faults):
        construct(GroupOptions, shape, where)
    with _compiler_left_out(), collect(faults):
        # Empty: reading a recipe must not decide how tensors are allocated.
        groups = [{"params": [torch.nn.Parameter(torch.empty(0))]}]
        elsewhere = f" A method's options, such as rho, go beside its name, not under {where}."
        construct(
            _found(name), own, where, call=partial(bases.construct_base, name, groups), elsewhere=elsewhere
        )
    if faults:
        raise FaultsError("", faults)


@contextmanager
def _compiler_left_out() -> Iterator[None]:
    """Within the context, torch adds groups of parameters without the import of its compiler: two seconds."""
    wrapped = torch.optim.Optimizer.add_param_group
    torch.optim.Optimizer.add_param_group = getattr(wrapped, "__wrapped__", wrapped)  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.optim.Optimizer.add_param_group = wrapped  # type: ignore[method-assign]


def build_optimizer(
    spec: Mapping[str, Any],
    params: nn.Module | Iterable[Any],
    *,
    module: nn.Module | None = None,
    clean_pass: PassContext | None = None,
    perturbed_pass: PassContext | None = None,
    closure_accumulates: bool = False,
    loss_scale: LossScale | None = None,
    total_steps: int | None = None,
    seed: int = 0,
) -> PerturbedOptimizer:
    """An optimizer whose ``step(closure)`` makes one whole update.

    Args:
        spec: exactly a recipe's ``optimizer`` mapping; the base may also be an optimizer that exists, or have
            a class of torch's kind for its name.
        params: a module, tensors, parameter groups, or ``(name, tensor)`` pairs.
        module: the module that the parameters belong to, if ``params`` is not itself that module. Its layers
            with a bool attribute ``true_gradient`` (Shake-Shake, ShakeDrop) have it set in ascents.
        clean_pass: makes the context manager around the clean pass if the spec says ``perturb: local``,
            such as a DDP model's ``no_sync``: each process then perturbs along its own gradient.
        perturbed_pass: makes the context manager around each perturbed pass; by default one that keeps the
            module's buffers, such as BatchNorm's statistics, as they were.
        closure_accumulates: a promise that the closure never clears gradients, which saves one copy
            of the parameters in methods that use both gradients.
        loss_scale: for fp16; the closure calls ``optimizer.backward(loss)`` then.
        total_steps: updates of the whole training: schedules and triggers then know the progress.
        seed: of the run; with the step, it decides random perturbations and masks. The same on every process.

    Raises:
        FaultsError: with every fault of the spec.
        UserError: ``params`` holds nothing to train, or cannot be used by the method.
    """
    base = spec.get("base") if isinstance(spec, Mapping) else None
    existing = base if isinstance(base, torch.optim.Optimizer) else None
    if existing is not None:
        spec = {**spec, "base": {"name": type(existing), "lr": 0.0}}
    resolved, of_step = _divided(resolve_spec(spec), STEP_OPTIONS)
    name = resolved["name"]
    if isinstance(params, nn.Module):
        module = params
    base_options, shape = _divided(resolved["base"] if name in METHODS else resolved, GROUP_OPTIONS)
    base_name, group_options = base_options.pop("name"), GroupOptions(**shape)
    if existing is not None:
        groups = existing.param_groups
    elif group_options == GroupOptions():
        groups = bases.as_groups(params)
    elif isinstance(params, nn.Module):
        decay = {**keyword_defaults(_found(base_name)), **base_options}.get("weight_decay", 0.0)
        groups = bases.shaped_groups(params, base_options["lr"], decay, group_options)
    else:
        raise UserError("no_decay and layer_decay shape the groups of a module: give the module itself")
    options = {key: value for key, value in resolved.items() if key not in ("name", "base")}
    method, local = build_method(name, options), options.get("perturb") == "local"
    # Before the base is built, for torch takes the names out of the groups.
    info = ParameterInfo(bases.names_of(groups), None if module is None else bases.norm_parameters_of(module))
    _refuse_unusable(bases.tensors_of(groups), None if name not in METHODS else method, info)
    if local:
        _require_local(name, method, closure_accumulates, clean_pass)
    base = existing or bases.construct_base(base_name, groups, base_options)
    if perturbed_pass is None and module is not None:
        perturbed_pass = KeptBuffers(module)
    if perturbed_pass is None and method.perturbs:
        warnings.warn(
            "only tensors are given: if the model has BatchNorm or other buffers, the perturbed pass updates "
            "them too, and layers such as Shake-Shake ascend by a random gradient. To avoid both, give the "
            "module: build_optimizer(spec, model), or module=model",
            stacklevel=2,
        )
    return PerturbedOptimizer(
        base,
        method,
        info=info,
        ascent_pass=AscentPass(module, clean_pass if local else None),
        perturbed_pass=perturbed_pass,
        replay_rng=options.get("replay_rng", True),
        closure_accumulates=closure_accumulates,
        loss_scale=loss_scale,
        total_steps=total_steps,
        seed=seed,
        **of_step,
    )


def _require_local(name: str, method: Method, accumulates: bool, clean_pass: PassContext | None) -> None:
    """Refuse what would let the processes' weights or states drift apart: a local gradient is not reduced."""
    direction, combine, problem = method.direction, method.combine, ""
    is_timed = not isinstance(method.trigger, Always)
    remembers = combine.needs_both_gradients or direction.averages_gradients
    if is_timed or remembers or direction.sums_gradients:
        problem = "is for methods that perturb at each step along its own gradient and add both gradients, "
        problem += f"such as sam, asam, pugd, gnp; {name} as given here needs perturb: global"
    elif direction.num_ascents > 1 and not combine.drops_clean:
        problem = "with several ascents needs a combination that drops g"
    elif not (accumulates or combine.drops_clean):
        problem = "adds unreduced gradients where they lie: the closure must not clear them, and "
        problem += "closure_accumulates=True says so"
    elif clean_pass is None:
        problem = "needs clean_pass, such as clean_pass=model.no_sync of a DDP model: without it every "
        problem += "process perturbs along the common gradient"
    if problem:
        raise UserError(f"optimizer.perturb: local {problem}")


def _refuse_unusable(tensors: list[Tensor], method: Method | None, info: ParameterInfo) -> None:
    """Refuse parameters that the method, or with None a base alone, cannot train."""
    complexes = [info.names.get(t, "a tensor") for t in tensors if t.is_complex()]
    needs_norms, norms = method is not None and method.direction.requires_norm_layers, info.norm_parameters
    problem = ""
    if any(tensor.dtype == torch.float16 for tensor in tensors):
        problem = "fp16 weights cannot hold small updates: keep fp32 ones, with autocast and loss_scale"
    elif any(map(bases.is_sharded, tensors)):
        problem = bases.SHARDED
    elif method is not None and complexes:
        problem = f"{complexes[0]} is complex, which only a base optimizer alone takes"
    elif needs_norms and norms is None:
        problem = "normalisation layers are found by their type: give the module, not its parameters"
    elif needs_norms and not any(tensor in (norms or ()) and tensor.requires_grad for tensor in tensors):
        problem = "this method needs normalisation layers that are trained, and there are none"
    if problem:
        raise UserError(f"params: {problem}")
