"""Parts of a model that do not learn: a frozen backbone, BatchNorm's running statistics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

from pugdft.models import head_of, head_parameters


def freeze_backbone(model: nn.Module) -> None:
    """Leave the head alone trainable."""
    heads = head_parameters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in heads)


def training_mode(model: nn.Module, frozen: bool, fixed_batch_norm: bool) -> None:
    """Training mode; of a frozen backbone only the head, so that its features stay what they were.

    With ``fixed_batch_norm`` those layers normalise by their running statistics as in evaluation, and
    their scale and shift still learn.
    """
    model.train(not frozen)
    if frozen:
        head_of(model).train()
    if fixed_batch_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def averages_over_batch(model: nn.Module) -> bool:
    """Whether BatchNorm normalises by the batch right now: then micro-batches change results."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def remember_features(model: nn.Module) -> None:
    """Let every further pass over the same inputs take a frozen backbone's features from the first one.

    A perturbation moves the head alone, so they are the same bit for bit, and a second pass costs the head's.
    They live as long as the inputs do: until the update is made. For a model whose backbone is frozen and in
    evaluation mode.
    """
    timm_model: Any = model
    compute = timm_model.forward_features
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def features(inputs: Tensor, *options: Any, **more_options: Any) -> Any:  # the same at every call
        if not torch.is_grad_enabled():  # an evaluation sees its images once
            return compute(inputs, *options, **more_options)
        found, version = known.get(inputs, (None, 0))
        # A head may work in place, and then what is there is no longer what the backbone made.
        if found is None or found._version != version:
            found = compute(inputs, *options, **more_options)
            if isinstance(found, Tensor) and not found.requires_grad:
                known[inputs] = found, found._version
        return found

    timm_model.forward_features = features
