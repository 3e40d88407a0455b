"""One update: closure → trigger → perturb → closure → restore → combine → normalise → base.

One class makes every method of the family; what differs stands in the five rules of a ``Method``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pugdft.errors import UserError
from pugdft.optim import foreach, passes
from pugdft.optim.base import SHARDED, align_layouts, fill_momentum, is_sharded, listed, tensors_of
from pugdft.optim.combine import Correction
from pugdft.optim.context import Draws, ParameterInfo, RuleState, StepContext
from pugdft.optim.diagnostics import Diagnostics
from pugdft.optim.directions import Ascent
from pugdft.optim.foreach import Tensors
from pugdft.optim.methods import Method, plain
from pugdft.optim.passes import PassContext
from pugdft.optim.scaler import GuardedStep, LossScale

Closure = Callable[[], Tensor]

_STATE_KEY = "pugdft"
_SLOTS = ("direction", "trigger", "combine")


class PerturbedOptimizer(torch.optim.Optimizer):
    """A base optimizer fed with a method's gradient.

    ``step(closure)`` calls the closure as often as the method needs and returns the clean loss. The closure
    runs forward and backward for one whole batch, all micro-batches included; it may clear gradients at its
    start or leave that to the caller. A gradient that is not finite skips the update.

    ``param_groups`` and ``state`` are the base's own, so learning-rate schedulers and inspectors work.

    Args:
        base: steps at the exactly restored weights.
        method: the five rules.
        info: about the parameters, for the rules that ask.
        ascent_pass: makes the context manager around each pass whose gradient a perturbation follows.
        replay_rng: the perturbed pass draws the clean pass's random numbers.
        clip: the largest global norm of the gradient that the base takes; None does not clip.

    The other arguments are those of ``build_optimizer``.
    """

    # torch's GradScaler hands its scale to an optimizer that says so: step() then refuses by name.
    _step_supports_amp_scaling = True

    def __init__(
        self,
        base: torch.optim.Optimizer,
        method: Method,
        *,
        info: ParameterInfo | None = None,
        ascent_pass: PassContext | None = None,
        perturbed_pass: PassContext | None = None,
        replay_rng: bool = True,
        closure_accumulates: bool = False,
        loss_scale: LossScale | None = None,
        total_steps: int | None = None,
        clip: float | None = None,
        seed: int = 0,
    ) -> None:
        is_alone = method == plain()
        if not is_alone and any(group.get("maximize") for group in base.param_groups):
            raise UserError("base: maximize=True: a method perturbs and descends; negate the loss instead")
        keeps_momentum = any(group.get("momentum") or "betas" in group for group in base.param_groups)
        if method.direction.requires_momentum and not keeps_momentum:
            raise UserError("base: this method perturbs along the momentum, and this base keeps none")
        self.base = base
        self.method = method
        self.total_steps = total_steps
        self.seed = seed
        self._progress: float | None = None
        self.num_steps = 0
        self.num_two_pass_steps = 0
        self.diagnostics = Diagnostics()
        self.loss_scale = loss_scale
        self._info = info or ParameterInfo()
        self._ascent_pass = ascent_pass or nullcontext
        self._perturbed_pass = perturbed_pass or nullcontext
        self._replays = replay_rng and method.trigger.perturbs
        self._clean = passes.CleanGradients(closure_accumulates, loss_scale)
        self._rule_states = {slot: RuleState() for slot in _SLOTS}
        self._weights = passes.SavedWeights()
        self._is_alone = is_alone
        self._guard = GuardedStep(base, loss_scale, clip, is_alone=is_alone)
        self._earlier = passes.EarlierGradients()
        self._layouts: tuple[list[Any], ...] = ()
        first = base.param_groups[0]
        self._peak_lr = max(float(first["lr"]), float(first.get("initial_lr", 0.0)))
        super().__init__(base.param_groups, base.defaults)

    # torch's constructor and unpickling assign these two; the base's are the only ones.
    param_groups = property(lambda self: self.base.param_groups, lambda self, value: None)
    state = property(lambda self: self.base.state, lambda self, value: None)

    @property
    def progress(self) -> float:
        """Fraction of the training done, in 0..1; a ValueError if it is set to anything else."""
        return self._told_progress() or 0.0

    @progress.setter
    def progress(self, value: float) -> None:
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"progress must be a number in 0..1, the share of training done, not {value!r}")
        self._progress = float(value)

    def _told_progress(self) -> float | None:
        return min(1.0, self.num_steps / self.total_steps) if self.total_steps else self._progress

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; plain tensors get names where the base's other groups have them."""
        if any(param_group is group for group in self.base.param_groups):
            return
        entries, number = listed(param_group["params"]), len(self.base.param_groups)
        is_named = any(isinstance(each, tuple) for each in entries)
        if "param_names" in self.base.param_groups[0] and not is_named:
            entries = [(f"group{number}.{i}", each) for i, each in enumerate(entries)]
        self.base.add_param_group({**param_group, "params": entries})

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients; nothing while they hold the clean part that a second pass adds to."""
        if not self._clean.lie_in_place:
            super().zero_grad(set_to_none)
            self._earlier.forget()

    def backward(self, loss: Tensor) -> None:
        """``loss.backward()``, scaled if there is a loss scale: what a closure calls in fp16."""
        (loss if self.loss_scale is None else self.loss_scale.scale(loss)).backward()

    def observe_epoch(self, train_loss: float, validation_loss: float, num_epochs: int) -> None:
        """Tell a timing rule an epoch's clean training loss and the loss on held-out images."""
        state = self._rule_states["trigger"]
        self.method.trigger.observe_epoch(train_loss, validation_loss, num_epochs, state)

    @property
    def num_skipped_steps(self) -> int:
        """Updates left out because the gradient was not finite; reading it waits for the device."""
        return int(self._guard.num_skipped)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """Make one update by a closure that runs forward and backward over the batch and returns its loss.

        Returns the loss of the clean pass. Without a closure a TypeError: nothing else can make two passes.
        """
        if closure is None:
            raise TypeError(
                "step() needs a closure that runs forward and backward and returns the loss (helpers of "
                "torch.distributed.checkpoint step without one: save optimizer.state_dict() yourself)"
            )
        if vars(self).pop("grad_scale", None) is not None:
            raise RuntimeError(
                "torch's GradScaler scales a step once, and a method scales each pass: give "
                "build_optimizer(..., loss_scale=LossScale()), call optimizer.backward(loss) in the closure, "
                "and optimizer.step(closure) without the scaler"
            )
        parameters = [p for group in self.param_groups for p in group["params"] if p.requires_grad]
        if len(parameters) < sum(len(group["params"]) for group in self.param_groups):
            # One that was frozen on the way may have a gradient.
            passes.clear([p for group in self.param_groups for p in group["params"] if not p.requires_grad])
        if not parameters:
            with torch.enable_grad():
                return closure()
        self._check_layouts(parameters)
        self._earlier.note(parameters)
        context = self._context()
        trigger, rule, correction = self.method.trigger, self.method.normalize, None
        if trigger.passes_ahead:
            with self._weights.perturbed(parameters) as weights:
                self._perturb(parameters, weights, weights, self.method.radius(context))
                loss, differentiated = self._pass(closure, parameters)
                self.diagnostics.after_clean_pass(differentiated)
                self.diagnostics.before_second_pass([])
                self.diagnostics.measure_perturbation(parameters, weights)
            self._earlier.check(len(differentiated))
        else:
            replay = passes.random_replay(parameters[0].device) if self._replays else nullcontext
            is_ascent = self.method.direction.follows_gradient
            is_ascent = is_ascent and trigger.is_due(context, self._rule_states["trigger"])
            with self._ascent_pass() if is_ascent else nullcontext():
                loss, differentiated = self._pass(closure, parameters)
            self._earlier.check(len(differentiated))
            self.diagnostics.after_clean_pass(differentiated)
            if differentiated and trigger.fires(context, differentiated, self._rule_states["trigger"]):
                correction = self._second_pass(closure, parameters, differentiated, context, replay)
                self.num_two_pass_steps += 1
            else:
                rule = trigger.one_pass_rule() or rule
                gradients = foreach.gradients_of(differentiated)
                self.method.combine.reuse_(gradients, differentiated, self._rule_states["combine"])
        self._guard.step(foreach.gradients_of(parameters), rule, correction)
        self.num_steps += 1
        return loss

    def _second_pass(
        self,
        closure: Closure,
        parameters: list[Tensor],
        differentiated: list[Tensor],
        context: StepContext,
        replay: PassContext,
    ) -> Correction | None:
        """Leave h in the gradients, and the weights as they were."""
        combine, direction = self.method.combine, self.method.direction
        clean, factor = combine.coefficients(context)
        perturbed = direction.chosen(differentiated, self._info)
        gradients = foreach.gradients_of(perturbed)
        rho = self.method.radius.radius(context, gradients) if perturbed else 0.0
        self.diagnostics.before_second_pass(differentiated)
        combine.release(self._rule_states["combine"])
        # A further ascent needs the place where the gradients lie.
        apart = combine.needs_both_gradients or direction.num_ascents > 1
        with self._weights.perturbed(perturbed) as weights, self._clean.kept():
            for number in range(direction.num_ascents):
                if number:
                    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in perturbed]
                self._perturb(perturbed, weights, gradients, rho, number)
                del gradients  # a list of them would keep them alive through the pass
                if number == 0:
                    self._clean.put_aside(differentiated, clean / factor, apart)
                else:
                    if direction.sums_gradients:
                        self._clean.hold(differentiated)
                    passes.clear(differentiated)
                # All but the last pass are ascents like the first.
                is_last = number == direction.num_ascents - 1
                ascent_pass = nullcontext if is_last else self._ascent_pass
                with self._perturbed_pass(), ascent_pass(), replay():
                    self._pass(closure, parameters)
            self.diagnostics.measure_perturbation(perturbed, weights)
        if combine.needs_both_gradients:
            self.diagnostics.after_second_pass(0.0)
            return self._clean.merge(combine, self._rule_states["combine"])
        self._clean.add()
        self.diagnostics.after_second_pass(clean / factor)
        if factor != 1:
            foreach.scale_(foreach.gradients_of(parameters), factor)
        return None

    def _perturb(
        self, parameters: Tensors, weights: Tensors, gradients: Tensors, rho: float | Tensor, number: int = 0
    ) -> None:
        if not parameters:  # all that this method perturbs is frozen for now
            return
        state, draws = self._rule_states["direction"], Draws(self.seed, self.num_steps)
        ascent = Ascent(parameters, weights, gradients, rho, self._info, state, self.state, draws, number)
        self.method.direction.perturb_(ascent)
        passes.forget_cached_weights()

    def _pass(self, closure: Closure, parameters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Leave true gradients, laid out as their parameters are; return the loss and who has a gradient."""
        if self.loss_scale is not None:
            self.loss_scale.is_used = False
        with torch.enable_grad():
            loss = closure()
        name = None if self._is_alone else self._name
        differentiated = passes.align_gradients(parameters, self._layouts[0], name)
        if self.loss_scale is not None:
            if not self.loss_scale.is_used:
                raise RuntimeError("with a loss scale the closure must call optimizer.backward(loss)")
            self.loss_scale.unscale_(foreach.gradients_of(differentiated))
        return loss, differentiated

    def _context(self) -> StepContext:
        first = self.param_groups[0]
        lr = float(first["lr"])
        self._peak_lr = max(self._peak_lr, lr)
        # OneCycleLR writes its bounds into the group.
        peak, least = float(first.get("max_lr", self._peak_lr)), float(first.get("min_lr", 0.0))
        return StepContext(self.num_steps, self._told_progress(), lr, peak, least)

    def _check_layouts(self, parameters: list[Tensor]) -> None:
        """At the first step, and after a model or a state was moved: nothing sharded, nothing misaligned.

        Others may be trained than before, or with momentum: then the base's state is completed.
        """
        strides = list(map(Tensor.stride, parameters))
        sizes, types = list(map(Tensor.numel, parameters)), [parameter.dtype for parameter in parameters]
        momenta = [group.get("momentum") for group in self.param_groups]
        devices = [parameter.device for parameter in parameters]
        layouts = strides, sizes, types, devices, momenta, list(map(id, parameters))
        if layouts != self._layouts:
            self._layouts = layouts
            for parameter in filter(is_sharded, parameters):
                raise RuntimeError(f"{self._name(parameter)}: {SHARDED}")
            align_layouts(self.base)
            fill_momentum(self.base)
            self._weights.forget()

    def _name(self, parameter: Tensor) -> str:
        for group in self.param_groups:
            names = dict(zip(group["params"], group.get("param_names", ()), strict=False))
            if parameter in names:
                return str(names[parameter])
        return f"a parameter of shape {tuple(parameter.shape)}"

    def state_dict(self) -> dict[str, Any]:
        """The base's state and, under ``pugdft``, the method's; refused while the weights are perturbed."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        if self._weights.in_use:
            raise RuntimeError("the weights are perturbed: save after step() has returned")
        positions = {p: number for number, p in enumerate(tensors_of(self.param_groups))}
        own = {
            "method": repr(self.method),
            "progress": self._told_progress(),
            "num_steps": self.num_steps,
            "num_two_pass_steps": self.num_two_pass_steps,
            "num_skipped_steps": self.num_skipped_steps,
            "peak_lr": self._peak_lr,
            "evidence": self.diagnostics.state_dict(),
            "memories": {slot: state.state_dict(positions) for slot, state in self._rule_states.items()},
            "loss_scale": self.loss_scale.state_dict() if self.loss_scale else None,
        }
        state = {**self.base.state_dict(), _STATE_KEY: own}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            state = post_hook(self, state) or state
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state.

        That of the same method with other numbers, or of a base optimizer alone, is taken with a warning;
        that of another method raises a ValueError.
        """
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        base, mine = dict(state_dict), repr(self.method)
        own = base.pop(_STATE_KEY, None)
        saved = "a base optimizer alone" if own is None else own["method"]
        if own is not None and _rules(saved) != _rules(mine):
            raise ValueError(f"the saved state is that of {saved}, not of {mine}")
        self._layouts = ()
        self.base.load_state_dict(base)
        if saved != mine and (own is not None or not self._is_alone):
            follows = "the method's own state starts anew" if own is None else f"it goes on as {mine}"
            warnings.warn(f"the saved state is that of {saved}: {follows}", stacklevel=2)
        if own is not None:
            self._progress, self._peak_lr = own["progress"], own["peak_lr"]
            self.num_steps, self.num_two_pass_steps = own["num_steps"], own["num_two_pass_steps"]
            self._guard.num_skipped = own["num_skipped_steps"]
            self.diagnostics.load_state_dict(own["evidence"])
            parameters = tensors_of(self.param_groups)
            for slot, state in self._rule_states.items():
                state.load_state_dict(own["memories"][slot], parameters)
            if self.loss_scale is not None and own["loss_scale"] is not None:
                self.loss_scale.load_state_dict(own["loss_scale"])
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __repr__(self) -> str:
        return f"PerturbedOptimizer({self.method!r}, base={self.base!r})"

    # torch's own drops everything but three attributes; deepcopy needs them all.
    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def _rules(method: str) -> list[str]:
    """The classes of a method's rules, without their numbers."""
    return re.findall(r"(\w+)\(", method)
