"""Parameter groups from whatever a caller has: a module, tensors, named tensors, groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from pugdft.errors import UserError
from pugdft.optim.base import Groups

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
