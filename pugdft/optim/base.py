"""Construct base optimizers: torch's own, fused where possible, and timm's by name.

Each function lists the options that a recipe may give, with torch's defaults; ``lr`` has none, for no number
suits every backbone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from pugdft.errors import UserError
from pugdft.optim.options import call_with

GROUP_OPTIONS: Mapping[str, Any] = {"no_decay": False, "layer_decay": None}

"""Options of a base that shape groups: no decay on vectors (biases, norms), lr falling by layer."""


def as_groups(params: nn.Module | Iterable[Any]) -> Groups:
    """One list of groups; entries stay named where names were given, torch understands that.

    Raises:
        UserError: there is nothing to train.
    """
    if isinstance(params, nn.Module):
        entries: list[Any] = [(name, p) for name, p in params.named_parameters() if p.requires_grad]
    else:
        entries = [params] if isinstance(params, Tensor) else list(params)
    if not entries:
        raise UserError("params: nothing to train: no parameter requires a gradient")
    if isinstance(entries[0], dict):
        groups: Groups = entries
        return [{**group, "params": _listed(group["params"])} for group in groups]
    return [{"params": entries}]


def _listed(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def shaped_groups(module: nn.Module, lr: float, weight_decay: float, options: Mapping[str, Any]) -> Groups:
    """Groups of a module without decay on vectors and, with ``layer_decay``, a rate for each layer.

    Layers are timm's own grouping of a model; a layer's rate is lr · layer_decay^(layers above it).
    """
    named = {id(p): (name, p) for name, p in module.named_parameters() if p.requires_grad}
    if options["layer_decay"] is not None:
        from timm.optim import param_groups_layer_decay

        groups = param_groups_layer_decay(
            module,
            weight_decay=weight_decay,
            layer_decay=options["layer_decay"],
            weight_decay_exclude_1d=options["no_decay"],
        )
    else:
        plain = [p for _, p in named.values() if p.dim() > 1]
        vectors = [p for _, p in named.values() if p.dim() <= 1]
        groups = [
            {"params": params, "weight_decay": decay}
            for params, decay in ((plain, weight_decay), (vectors, 0.0))
            if params
        ]
    return [
        {
            "params": [named[id(p)] for p in group["params"]],
            "weight_decay": group["weight_decay"],
            "lr": lr * group.get("lr_scale", 1.0),
        }
        for group in groups
    ]


def names_of(groups: Groups) -> dict[Tensor, str]:
    """Names of the parameters that were given with one."""
    entries = (entry for group in groups for entry in group["params"] if isinstance(entry, tuple))
    return {tensor: name for name, tensor in entries}


def norm_parameters_of(module: nn.Module) -> frozenset[Tensor]:
    """Scales and shifts of normalisation layers, found by the layers' type, never by name."""
    return frozenset(
        parameter
        for layer in module.modules()
        if isinstance(layer, (_BatchNorm, _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm))
        or type(layer).__name__.endswith(("Norm", "Norm2d"))
        for parameter in layer.parameters(recurse=False)
    )


Groups = list[dict[str, Any]]


def sgd(
    params: Groups,
    *,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    d = h + λw;  v = μv + (1 − dampening)·d;  w ← w − lr·v (``torch.optim.SGD``).
    """
    return torch.optim.SGD(
        params,
        lr=lr,
        momentum=momentum,
        weight_decay=weight_decay,
        dampening=dampening,
        nesterov=nesterov,
        # torch's fused form cannot take a momentum buffer that appears later than the others.
        fused=dampening == 0 and _can_fuse(params),
    )


def adam(
    params: Groups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with coupled weight decay (arXiv 1412.6980; ``torch.optim.Adam``)."""
    return torch.optim.Adam(
        params,
        lr=lr,
        betas=_pair(betas),
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=_can_fuse(params),
    )


def adamw(
    params: Groups,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
    amsgrad: bool = False,
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (arXiv 1711.05101; ``torch.optim.AdamW``)."""
    return torch.optim.AdamW(
        params,
        lr=lr,
        betas=_pair(betas),
        eps=eps,
        weight_decay=weight_decay,
        amsgrad=amsgrad,
        fused=_can_fuse(params),
    )


def adagrad(
    params: Groups,
    *,
    lr: float,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> torch.optim.Optimizer:
    """Adagrad (JMLR 12, 2011; ``torch.optim.Adagrad``)."""
    return torch.optim.Adagrad(
        params,
        lr=lr,
        lr_decay=lr_decay,
        weight_decay=weight_decay,
        initial_accumulator_value=initial_accumulator_value,
        eps=eps,
    )


def rmsprop(
    params: Groups,
    *,
    lr: float,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> torch.optim.Optimizer:
    """RMSprop (``torch.optim.RMSprop``)."""
    return torch.optim.RMSprop(
        params,
        lr=lr,
        alpha=alpha,
        eps=eps,
        weight_decay=weight_decay,
        momentum=momentum,
        centered=centered,
    )


BASES: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adagrad": adagrad,
    "rmsprop": rmsprop,
}

"""Name in a recipe to constructor. Any other name that timm knows is a base too."""


def find_base(name: Any) -> Callable[..., Any] | None:
    """Find the constructor of a base by name: ours or timm's; None if it is unknown."""
    # timm's "momentum" and "nesterov" are SGD with options bound; here the options are the recipe's.
    # And it takes "SGD" for its own "sgd", whose defaults are others than ours: a name is spelled as listed.
    if not isinstance(name, str) or name in ("momentum", "nesterov") or name != name.lower():
        return None
    if name in BASES:
        return BASES[name]
    if importlib.util.find_spec("timm") is None:
        return None
    from timm.optim import get_optimizer_class, get_optimizer_info

    try:
        found: Callable[..., Any] = get_optimizer_class(name, bind_defaults=False)
        if get_optimizer_info(name).second_order:
            return None
    except (ValueError, KeyError, AssertionError, ImportError):  # unknown, or its package is not installed
        return None
    # A wrapper such as Lookahead, or a second-order method that needs its own closure, is no base.
    return found if isinstance(found, type) and issubclass(found, torch.optim.Optimizer) else None


def construct_base(name: str, params: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """A base optimizer.

    Raises:
        ValueError: an option out of range.
    """
    constructor = find_base(name)
    assert constructor is not None
    lr = options.get("lr")
    if isinstance(lr, int | float) and not lr > 0:
        raise ValueError(f"lr must be greater than 0, not {lr:g}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    base: torch.optim.Optimizer = call_with(constructor, values, params)
    return base


def fill_momentum(base: torch.optim.Optimizer) -> None:
    """Give each parameter that is about to be stepped by a fused SGD its momentum buffer.

    torch leaves the buffer uninitialised if the very first step is skipped on the device, and fails where
    a parameter gets its first gradient later than others. Zeros are what the buffer would hold.
    """
    if not isinstance(base, torch.optim.SGD):
        return
    for group in base.param_groups:
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                if parameter.grad is not None and base.state[parameter].get("momentum_buffer") is None:
                    base.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def momentum_of(base: torch.optim.Optimizer) -> Callable[[Any], list[Tensor | None]]:
    """A function that reads the momentum that a base keeps for parameters."""

    def read(parameters: Any) -> list[Tensor | None]:
        states = [base.state.get(parameter, {}) for parameter in parameters]
        return [state.get("momentum_buffer", state.get("exp_avg")) for state in states]

    return read


def _pair(values: tuple[float, float]) -> tuple[float, float]:
    return float(values[0]), float(values[1])


def _can_fuse(groups: Groups) -> bool:
    parameters: list[Tensor] = [parameter for group in groups for parameter in tensors_of(group["params"])]
    devices = {parameter.device.type for parameter in parameters}
    return devices <= {"cpu", "cuda"} and all(parameter.is_floating_point() for parameter in parameters)


def tensors_of(entries: Any) -> list[Tensor]:
    """Tensors of a group whose entries may be ``(name, tensor)`` pairs."""
    return [entry[1] if isinstance(entry, tuple) else entry for entry in entries]
