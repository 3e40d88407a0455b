"""From a spec and parameters to an optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pugdft.errors import Fault, FaultsError, UserError
from pugdft.optim.base import Groups, construct_base, momentum_of, tensors_of
from pugdft.optim.combine import Linear, Weighted
from pugdft.optim.context import Facts
from pugdft.optim.direction import AdaptiveGradient, AveragedGradient, FriendlyGradient
from pugdft.optim.groups import GROUP_OPTIONS, as_groups, names_of, norm_parameters_of, shaped_groups
from pugdft.optim.method import Method
from pugdft.optim.passes import PassContext, frozen_batch_norm
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.registry import METHODS, base_defaults, build_method, resolve_spec
from pugdft.optim.scaling import LossScale
from pugdft.optim.trigger import Always


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
    facts = Facts(names_of(groups), norm_parameters_of(module) if module is not None else None)
    if isinstance(method.direction, AdaptiveGradient) and method.direction.norm_layers_only:
        _require_norm_layers(facts, groups)
    base = construct_base(base_name, groups, base_spec)
    if perturbed_pass is None and module is not None:
        perturbed_pass = lambda: frozen_batch_norm(module)  # noqa: E731
    return PerturbedOptimizer(
        base,
        method,
        facts=Facts(facts.names, facts.norm_parameters, momentum_of(base)),
        clean_pass=clean_pass if local else None,
        perturbed_pass=perturbed_pass,
        replay_rng=options.get("replay_rng", True),
        closure_accumulates=closure_accumulates,
        loss_scale=loss_scale,
    )


def _require_local(name: str, method: Method, closure_accumulates: bool) -> None:
    """Only what leaves the same update on every process may perturb along each process's own gradient.

    The clean gradient is then not reduced: a step of one pass, a merge of both gradients, or a memory of
    clean gradients would let the processes' weights or states drift apart.
    """
    remembers = isinstance(method.direction, FriendlyGradient | AveragedGradient)
    if not isinstance(method.trigger, Always) or not isinstance(method.combine, Linear) or remembers:
        raise UserError(
            "optimizer.perturb: local is for methods that perturb at each step along its own gradient and "
            f"add both gradients, such as sam, asam, pugd, gnp; {name} as given here needs perturb: global"
        )
    drops_clean = isinstance(method.combine, Weighted) and method.combine.clean == 0
    if method.direction.num_ascents > 1 and not drops_clean:
        raise UserError("optimizer.perturb: local with several ascents needs a combination that drops g")
    if not (closure_accumulates or drops_clean):
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


def _require_norm_layers(facts: Facts, groups: Groups) -> None:
    if facts.norm_parameters is None:
        message = "sam_on finds normalisation layers by their type: give the module, not its parameters"
        raise FaultsError("", [Fault("params", message)])
    given = {tensor for group in groups for tensor in tensors_of(group["params"]) if tensor.requires_grad}
    if not facts.norm_parameters & given:
        raise FaultsError(
            "", [Fault("params", "sam_on needs normalisation layers that are trained, and has none")]
        )
