"""Which parameters stay as they are in which epochs, and what that means for BatchNorm and dropout.

A run has up to three phases: the head alone (``train.head_epochs``, or ``train.freeze=backbone``), all but
what ``train.freeze`` names, and everything (from ``train.unfreeze_epoch`` on). What is trained only grows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pugdft.config.schema import TrainSection
from pugdft.errors import UserError, close_match, counted, known_names
from pugdft.models import head_of, head_parameters


@dataclass(frozen=True)
class Phase:
    """What is frozen from an epoch on."""

    first_epoch: int
    frozen: frozenset[str] = frozenset()  # names of parameters
    head_alone: bool = False  # the backbone is in evaluation mode: its features are always the same


class Freezing:
    """The phases of a run over one model.

    Raises:
        UserError: a pattern of ``train.freeze`` matches nothing, or nothing is left to train.
    """

    def __init__(self, model: nn.Module, train: TrainSection, model_name: str = "the model") -> None:
        self.model, self._fixes_batch_norm = model, train.batch_norm == "fixed"
        self._sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        # Some models keep parameters constant themselves, such as position embeddings of sines.
        self._trained = {name for name, each in model.named_parameters() if each.requires_grad}
        self._until, self._head_epochs = train.unfreeze_epoch, train.head_epochs
        patterns = train.freeze if isinstance(train.freeze, list) else []
        self.matches = {each: _matching(each, self._sizes, model_name) for each in patterns}
        named = frozenset(name for names in self.matches.values() for name in names)
        self.phases = [Phase(train.head_epochs, named)]
        if train.head_epochs or train.freeze == "backbone":
            backbone = frozenset(self._sizes) - head_parameters(model)
            head = Phase(0, backbone | named, head_alone=True)
            self.phases = [head, *(self.phases if train.head_epochs else ())]
        if train.unfreeze_epoch is not None:
            self.phases.append(Phase(train.unfreeze_epoch))
        for phase in self.phases:
            if not self._trained - phase.frozen:
                is_head = named and phase.head_alone
                what = "the head, which head_epochs trains" if is_head else "all that is trained"
                raise UserError(f"train.freeze: freezes {what}; leave something to train")

    @property
    def reuses_features(self) -> bool:
        """Whether there is a phase in which the backbone is constant."""
        return self.phases[0].head_alone

    def describe(self) -> list[str]:
        """What the patterns matched, and what is frozen until when, for people; empty without patterns."""
        lines = [f"train.freeze: {each}: {self._amount(names)}" for each, names in self.matches.items()]
        if self._head_epochs:
            head = self._amount(self._trained - self.phases[0].frozen)
            epochs = counted(self._head_epochs, "epoch")
            lines.append(f"train.head_epochs: the head alone, {head}, is trained for {epochs}")
        if self.matches:
            frozen = next(phase.frozen for phase in self.phases if not phase.head_alone)
            until = "" if self._until is None else f" for {counted(self._until, 'epoch')}"
            total = f"{sum(self._sizes.values()):,}"
            lines.append(f"train.freeze: {self._amount(frozen)} of {total} are frozen{until}")
        return lines

    def _amount(self, names: Collection[str]) -> str:
        weights = f"{sum(self._sizes[name] for name in names):,} weights"
        return f"{counted(len(names), 'parameter')} with {weights}"

    def begin(self, epoch: int) -> bool:
        """Freeze and set training mode for an epoch; return whether other parameters are trained than before.

        A BatchNorm layer whose own scale and shift are frozen normalises by its running statistics, which
        then stay as they are too: a frozen layer is the same function for every batch.
        """
        phase = next(each for each in reversed(self.phases) if each.first_epoch <= epoch)
        is_other = False
        for name, parameter in self.model.named_parameters():
            is_trained = name in self._trained and name not in phase.frozen
            is_other |= parameter.requires_grad != is_trained
            parameter.requires_grad_(is_trained)
        self.model.train(not phase.head_alone)
        if phase.head_alone:
            head_of(self.model).train()
        for module in self.model.modules():
            if isinstance(module, _BatchNorm):
                own = list(module.parameters(recurse=False))
                is_frozen = bool(own) and not any(each.requires_grad for each in own)
                if is_frozen or self._fixes_batch_norm:
                    module.eval()
        return is_other

    def begin_last(self) -> None:
        """Begin the phase in which most is trained."""
        self.begin(self.phases[-1].first_epoch)


def _matching(pattern: str, names: Mapping[str, int], model_name: str) -> list[str]:
    """The names that match a shell-style pattern; refuses one that matches none, with close ones."""
    if found := [name for name in names if fnmatchcase(name, pattern)]:
        return found
    parts = [name.split(".") for name in names]
    groups = {f"{'.'.join(each[:depth])}.*": None for each in parts for depth in range(1, len(each))}
    top = list(dict.fromkeys(f"{each[0]}.*" if each[1:] else each[0] for each in parts))
    near = close_match(pattern, [*groups, *names])
    raise UserError(
        f'train.freeze: "{pattern}" matches no parameter of {model_name}.{known_names(top)}{near}'
    )
