"""Construct base optimizers: torch's own, fused where possible, and timm's by name.

Each class lists the options that a recipe may give, with torch's defaults; ``lr`` has none, for no number
suits every backbone.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from pugdft.config import plugins
from pugdft.errors import UserError
from pugdft.optim.options import Registry, keyword_defaults, refused

Groups = list[dict[str, Any]]

SHARDED = (
    "sharded parameters (FSDP, DTensor) are not supported: norms here are of whole tensors. Use DDP, or keep "
    "the parameters whole"
)


@dataclass(frozen=True, kw_only=True)
class GroupOptions:
    """Options of every base that shape groups: no decay on vectors (biases, norms), lr falling by layer."""

    no_decay: bool = False
    layer_decay: Annotated[float | None, "a number in (0, 1]"] = None

    def __post_init__(self) -> None:
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise refused("layer_decay", f"must be a number in (0, 1], not {self.layer_decay}")


GROUP_OPTIONS: Mapping[str, Any] = keyword_defaults(GroupOptions)


def as_groups(params: nn.Module | Iterable[Any]) -> Groups:
    """One list of groups, frozen parameters included; entries stay named where names were given."""
    entries = listed(params.named_parameters() if isinstance(params, nn.Module) else params)
    given = entries if entries and isinstance(entries[0], dict) else [{"params": entries}]
    groups = [{**group, "params": listed(group["params"])} for group in given]
    if not any(tensor.requires_grad for tensor in tensors_of(groups)):
        raise UserError("params: nothing to train: no parameter requires a gradient")
    return groups


def listed(params: Any) -> list[Any]:
    """What may be given as ``params``, as a list."""
    return [params] if isinstance(params, Tensor) else list(params)


def shaped_groups(module: nn.Module, lr: float, weight_decay: float, options: GroupOptions) -> Groups:
    """Groups of a module without decay on vectors and, with ``layer_decay``, a rate for each layer.

    Layers are timm's; a layer's rate is lr · layer_decay^(layers above it). What a timm model names in
    ``no_weight_decay()`` (position embeddings, class tokens) counts as a vector.
    """
    named = {id(p): (name, p) for name, p in module.named_parameters()}
    spared: set[str] = set(getattr(module, "no_weight_decay", set)())
    if options.layer_decay is not None:
        from timm.optim import param_groups_layer_decay

        frozen = [p for p in module.parameters() if not p.requires_grad]
        nn.ParameterList(frozen).requires_grad_(True)  # timm leaves out what is frozen
        groups = param_groups_layer_decay(
            module,
            weight_decay=weight_decay,
            no_weight_decay_list=spared if options.no_decay else (),
            layer_decay=options.layer_decay,
            weight_decay_exclude_1d=options.no_decay,
        )
        nn.ParameterList(frozen).requires_grad_(False)
    else:
        plain = [p for name, p in named.values() if p.dim() > 1 and name not in spared]
        vectors = [p for name, p in named.values() if p.dim() <= 1 or name in spared]
        both = ((plain, weight_decay), (vectors, 0.0))
        groups = [{"params": params, "weight_decay": decay} for params, decay in both if params]
    rates = [lr * group.get("lr_scale", 1.0) for group in groups]
    return [
        {"params": [named[id(p)] for p in group["params"]], "weight_decay": group["weight_decay"], "lr": rate}
        for group, rate in zip(groups, rates, strict=True)
    ]


def tensors_of(groups: Groups) -> list[Tensor]:
    """All tensors of groups whose entries may be ``(name, tensor)`` pairs."""
    entries = (entry for group in groups for entry in group["params"])
    return [entry[1] if isinstance(entry, tuple) else entry for entry in entries]


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
        or re.search(r"Norm(?!al)", type(layer).__name__)  # timm's RmsNormAct, FilterResponseNorm, EvoNorm…
        for parameter in layer.parameters(recurse=False)
    )


@dataclass(frozen=True, kw_only=True)
class TorchBase:
    """One of torch's optimizers with the options that a recipe may give."""

    torch_class: ClassVar[Callable[..., torch.optim.Optimizer]]
    has_fused_form: ClassVar[bool] = False
    lr: float

    def construct(self, params: Groups) -> torch.optim.Optimizer:
        """The optimizer, fused if it can be."""
        lists = {key: tuple(map(float, v)) for key, v in vars(self).items() if isinstance(v, list | tuple)}
        options = {**vars(self), **lists}
        if self.has_fused_form:
            tensors = tensors_of(params)
            fits = all(each.device.type in ("cpu", "cuda") and each.is_floating_point() for each in tensors)
            # SGD's fused form cannot take a momentum buffer that appears later than the others.
            options["fused"] = fits and not options.get("dampening")
        return self.torch_class(params, **options)


@dataclass(frozen=True, kw_only=True)
class Sgd(TorchBase):
    """Stochastic gradient descent with momentum.

    d = h + λw;  v = μv + (1 − dampening)·d;  w ← w − lr·v (``torch.optim.SGD``).
    """

    torch_class = torch.optim.SGD
    has_fused_form = True
    momentum: float = 0.0
    weight_decay: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True, kw_only=True)
class Adam(TorchBase):
    """Adam with coupled weight decay (arXiv 1412.6980; ``torch.optim.Adam``)."""

    torch_class: ClassVar[Callable[..., torch.optim.Optimizer]] = torch.optim.Adam
    has_fused_form = True
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    amsgrad: bool = False


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (arXiv 1711.05101; ``torch.optim.AdamW``)."""

    torch_class = torch.optim.AdamW
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Adagrad(TorchBase):
    """Adagrad (JMLR 12, 2011; ``torch.optim.Adagrad``)."""

    torch_class = torch.optim.Adagrad
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10


@dataclass(frozen=True, kw_only=True)
class RmsProp(TorchBase):
    """RMSprop (``torch.optim.RMSprop``)."""

    torch_class = torch.optim.RMSprop
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False


BASES: Registry = {"sgd": Sgd, "adam": Adam, "adamw": AdamW, "adagrad": Adagrad, "rmsprop": RmsProp}
"""Name in a recipe to its options. Any other name that timm knows is a base too."""


def find_base(name: Any) -> Callable[..., Any] | None:
    """Find what has the options of a base, by name (ours, torch's, another package's, timm's) or class.

    None if it is unknown, or no base.
    """
    if isinstance(name, str) and name not in BASES:
        name = plugins.find(plugins.OPTIMIZERS, name) or name
    if isinstance(name, type) and issubclass(name, torch.optim.Optimizer):
        return name
    # timm's "momentum" and "nesterov" are SGD with options bound; here the options are the recipe's.
    # And it takes "SGD" for its own "sgd", whose defaults are others than ours: a name is spelled as listed.
    if not isinstance(name, str) or name in ("momentum", "nesterov") or name != name.lower():
        return None
    if found := BASES.get(name) or {"asgd": torch.optim.ASGD, "rprop": torch.optim.Rprop}.get(name):
        return found
    if importlib.util.find_spec("timm") is None:
        return None
    from timm.optim import get_optimizer_class, get_optimizer_info

    with suppress(ValueError, KeyError, AssertionError, ImportError):  # unknown, or its package is missing
        candidate: Callable[..., Any] = get_optimizer_class(name, bind_defaults=False)
        # A wrapper such as Lookahead, or a second-order method that needs its own closure, is no base.
        is_class = isinstance(candidate, type) and issubclass(candidate, torch.optim.Optimizer)
        if is_class and not get_optimizer_info(name).second_order:
            return candidate
    return None


def construct_base(name: Any, params: Groups, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """A base optimizer; torch raises a ValueError for an option out of range."""
    lr = options.get("lr")
    if isinstance(lr, int | float) and not lr >= 0:
        raise refused("lr", f"must be at least 0, not {lr:g}")
    if name in BASES:
        own: TorchBase = BASES[name](**options)
        return own.construct(params)
    optimizer_class: Any = find_base(name)
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    base: torch.optim.Optimizer = optimizer_class(params, **values)
    return base


def fill_momentum(base: torch.optim.Optimizer) -> None:
    """Give each parameter that a fused SGD may step its momentum buffer, which is zero.

    torch leaves it uninitialised if the very first step is skipped on the device, and fails where a parameter
    gets its first gradient later than others.
    """
    groups = base.param_groups if isinstance(base, torch.optim.SGD) else []
    for group in groups:
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                if parameter.requires_grad and base.state[parameter].get("momentum_buffer") is None:
                    base.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def align_layouts(base: torch.optim.Optimizer) -> None:
    """Lay the state of a fused base out in memory as its parameters are: its kernels pair elements by memory.

    They differ where a state was loaded from another layout, or a model moved to channels-last. A parameter
    with gaps between its elements cannot be matched: then the base goes on unfused, with the same arithmetic.
    """
    for parameter in tensors_of([group for group in base.param_groups if group.get("fused")]):
        if torch.empty_like(parameter, device="meta").stride() != parameter.stride():
            unfuse(base)
            return
        state = base.state.get(parameter, {})
        for key, value in state.items():
            is_like = isinstance(value, Tensor) and value.shape == parameter.shape
            if is_like and value.stride() != parameter.stride():
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def unfuse(base: torch.optim.Optimizer) -> None:
    """Switch a base to its unfused form, which takes any layout and sparse gradients."""
    for group in base.param_groups:
        if group.get("fused"):
            group["fused"] = False
    base._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def is_sharded(tensor: Tensor) -> bool:
    """Whether a process holds only a part of the parameter: FSDP2's DTensor, or FSDP1's flat parameter."""
    return hasattr(tensor, "_local_tensor") or bool(getattr(tensor, "_fsdp_flattened", False))
