"""The optimizers in loops that are not ours: each against a float64 reference, or refused by name."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pugdft.optim import LossScale, build_optimizer
from pugdft.optim.perturbed import PerturbedOptimizer
from tests.helpers.optimizer_cases import deviation, gradient_of, loss_of, network

SGD: dict[str, Any] = {"name": "sgd", "lr": 0.1}
RHO = 0.05


def spec(name: str = "sam", base: Any = None, **options: Any) -> dict[str, Any]:
    return {"name": name, "base": SGD if base is None else base, **options}


def closure_for(optimizer: Any, net: nn.Module) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    return closure


def sam_reference(
    steps: int, gradient: Callable[[list[Tensor]], list[Tensor]], start: list[Tensor]
) -> list[Tensor]:
    """w ← w − lr · ∇L(w + ρ·g/‖g‖) in float64 (arXiv 2010.01412, eq. 2 and 3)."""
    w = [each.double() for each in start]
    for _ in range(steps):
        g = gradient(w)
        norm = torch.cat([each.flatten() for each in g]).norm()
        star = gradient([a + RHO * b / norm for a, b in zip(w, g, strict=True)])
        w = [a - 0.1 * b for a, b in zip(w, star, strict=True)]
    return w


# --- autocast ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sam", "pugd", "gsam", "msam"])
def test_autocast_around_the_whole_step_computes_the_second_pass_at_the_perturbed_weights(name: str) -> None:
    """Autocast keeps casted weights until its context ends; the perturbed pass must not use them."""

    def run(around: bool) -> nn.Module:
        net = network(torch.float32)
        base = {**SGD, "momentum": 0.9}
        optimizer = build_optimizer(spec(name, base), net)

        def closure() -> Tensor:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=not around):
                loss = loss_of(net) if not around else None
            loss = loss_of(net) if loss is None else loss
            loss.backward()
            return loss

        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=around):
                optimizer.step(closure)
        return net

    assert deviation(run(around=True), run(around=False)) == 0


def test_a_parametrization_s_cache_does_not_hide_the_perturbation() -> None:
    def run(cached: bool) -> nn.Module:
        net = network()
        nn.utils.parametrizations.weight_norm(net.first)
        optimizer = build_optimizer(spec(rho=0.5), net)
        for _ in range(2):
            if cached:
                with nn.utils.parametrize.cached():
                    optimizer.step(closure_for(optimizer, net))
            else:
                optimizer.step(closure_for(optimizer, net))
        return net

    assert deviation(run(True), run(False)) == 0


# --- layouts -------------------------------------------------------------------------------------


def conv_net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Tanh(), nn.Conv2d(6, 4, 3))


def conv_closure(optimizer: Any, net: nn.Module) -> Callable[[], Tensor]:
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(2))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(images.to(next(net.parameters()))).square().mean()
        loss.backward()
        return loss

    return closure


BASES_WITH_STATE = [
    {"name": "sgd", "lr": 0.1, "momentum": 0.9},
    {"name": "adamw", "lr": 0.01},
    {"name": "adam", "lr": 0.01},
]


@pytest.mark.parametrize("base", BASES_WITH_STATE, ids=lambda base: base["name"])
@pytest.mark.parametrize("method", [None, "sam"])
@pytest.mark.parametrize("case", ["sliced", "moved", "loaded"])
def test_layouts_that_differ_pair_the_right_elements(
    base: dict[str, Any], method: str | None, case: str
) -> None:
    def run(dtype: torch.dtype, plain_layout: bool) -> nn.Module:
        net = conv_net().to(dtype)
        if case == "sliced":
            weight = net[0].weight[:, :, :, :2]  # elements do not lie side by side
            net[0].weight = nn.Parameter(weight.contiguous() if plain_layout else weight)
        the_spec = base if method is None else spec(method, base)
        optimizer = build_optimizer(the_spec, net)
        for _ in range(2):
            optimizer.step(conv_closure(optimizer, net))
        if case == "moved" and not plain_layout:
            net.to(memory_format=torch.channels_last)
        if case == "loaded":
            other = copy.deepcopy(net)
            if not plain_layout:
                other.to(memory_format=torch.channels_last)
            loaded = build_optimizer(the_spec, other)
            loaded.load_state_dict(optimizer.state_dict())
            net, optimizer = other, loaded
        for _ in range(2):
            optimizer.step(conv_closure(optimizer, net))
        return net

    assert deviation(run(torch.float64, False), run(torch.float64, True)) < 1e-12
    assert deviation(run(torch.float32, False), run(torch.float32, True)) < 1e-5


@pytest.mark.parametrize("name", ["sam", "pugd", "fsam"])
def test_who_is_trained_may_change_between_steps(name: str) -> None:
    """Two layers of one shape change places: momentum and saved weights follow the parameters."""

    def run(fused: bool) -> nn.Module:
        torch.manual_seed(3)
        net = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))).double()
        base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=fused)
        optimizer = build_optimizer(spec(name, base), net)
        for frozen in (0, 1, 0, 2):
            for number, layer in enumerate(net):
                layer.requires_grad_(number != frozen)
            closure = closure_of(optimizer, net)
            optimizer.step(closure)
        return net

    def closure_of(optimizer: Any, net: nn.Module) -> Callable[[], Tensor]:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = net(torch.linspace(-1, 1, 8, dtype=torch.float64).reshape(2, 4)).square().sum()
            loss.backward()
            return loss

        return closure

    assert deviation(run(True), run(False)) < 1e-12


# --- gradients that the loop owns ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["pugd", "gnp", "gsam", "wsam"])
@pytest.mark.parametrize("accumulates", [False, True])
def test_a_closure_that_writes_into_gradient_buffers_of_its_own(name: str, accumulates: bool) -> None:
    """As DDP with ``gradient_as_bucket_view`` and a bucket of one tensor."""
    expected = network()
    optimizer = build_optimizer(spec(name), expected)
    for _ in range(3):
        optimizer.step(closure_for(optimizer, expected))

    net = network()
    buffers = {p: torch.zeros_like(p) for p in net.parameters()}
    optimizer = build_optimizer(spec(name), net, closure_accumulates=accumulates)

    def closure() -> Tensor:
        loss = loss_of(net)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        for (p, buffer), gradient in zip(buffers.items(), gradients, strict=True):
            if accumulates and p.grad is not None:
                p.grad.add_(gradient)
            else:
                buffer.copy_(gradient)
                p.grad = buffer
        return loss

    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step(closure)
    assert deviation(net, expected) < 1e-12


def test_gradients_that_return_in_the_same_tensors_after_zero_grad_are_new() -> None:
    """As DDP's bucket views do."""
    net = network()
    optimizer, kept = build_optimizer(spec("sam"), net), dict[nn.Parameter, Tensor]()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        for p, gradient in zip(
            net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
        ):
            p.grad = kept.setdefault(p, torch.empty_like(p)).copy_(gradient)
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            optimizer.step(closure)


# --- GradScaler ----------------------------------------------------------------------------------


def test_torch_s_grad_scaler_is_refused_with_the_way_that_works() -> None:
    net = network(torch.float32)
    optimizer = build_optimizer(spec(), net)
    scaler = torch.amp.GradScaler("cpu")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        scaler.scale(loss).backward()
        return loss

    closure()
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"loss_scale=LossScale\(\).*optimizer\.backward\(loss\)"):
        scaler.step(optimizer, closure)
    assert deviation(before, list(net.parameters())) == 0
    # A scaler that is switched off changes nothing.
    torch.amp.GradScaler("cpu", enabled=False).step(optimizer, closure_for(optimizer, net))


def test_a_loss_scale_whose_backward_is_not_called_is_refused() -> None:
    net = network(torch.float32)
    optimizer = build_optimizer(spec(), net, loss_scale=LossScale())
    with pytest.raises(RuntimeError, match=r"optimizer\.backward\(loss\)"):
        optimizer.step(closure_for(optimizer, net))


# --- copies --------------------------------------------------------------------------------------


def by_deepcopy(pair: Any) -> Any:
    return copy.deepcopy(pair)


def by_pickle(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def by_torch_save(pair: Any) -> Any:
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


class WithBatchNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 4)
        self.norm = nn.BatchNorm1d(4)
        self.second = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize("name", ["sam", "pugd", "msam", "fsam", "looksam", "sam_on"])
@pytest.mark.parametrize("copied", [by_deepcopy, by_pickle, by_torch_save])
def test_a_copy_of_model_and_optimizer_acts_on_the_copy_alone(
    name: str, copied: Callable[[Any], Any]
) -> None:
    torch.manual_seed(0)
    net = WithBatchNorm().double()
    optimizer = build_optimizer(spec(name, {**SGD, "momentum": 0.9}), net)
    for _ in range(2):
        optimizer.step(closure_for(optimizer, net))
    original = copy.deepcopy(net.state_dict())
    other, other_optimizer = copied((net, optimizer))
    for _ in range(3):
        other_optimizer.step(closure_for(other_optimizer, other))
    for key, value in net.state_dict().items():
        assert torch.equal(value, original[key])
    for _ in range(3):
        optimizer.step(closure_for(optimizer, net))
    for key, value in net.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


# --- what would be silently wrong ----------------------------------------------------------------


def test_a_base_that_maximizes_is_refused() -> None:
    from pugdft.optim.methods import sam

    net = network()
    with pytest.raises(ValueError, match="maximize"):
        PerturbedOptimizer(torch.optim.SGD(net.parameters(), lr=0.1, maximize=True), sam())


def test_local_perturbation_without_a_clean_pass_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clean_pass.*no_sync"):
        build_optimizer(spec(perturb="local"), network(), closure_accumulates=True)


@pytest.mark.parametrize("name", [None, "ugd", "sam", "msam"])
def test_a_closure_without_backward_is_refused(name: str | None) -> None:
    net = network()
    base = {**SGD, "momentum": 0.9}
    optimizer = build_optimizer(base if name is None else spec(name, base), net)
    before = [p.detach().clone() for p in net.parameters()]
    with pytest.raises(RuntimeError, match=r"no gradient.*backward"):
        optimizer.step(lambda: loss_of(net))
    optimizer.step(closure_for(optimizer, net))  # gradients of this step are left behind
    with pytest.raises(RuntimeError, match=r"no gradient.*backward"):
        optimizer.step(lambda: loss_of(net))
    assert deviation(before, list(net.parameters())) > 0


def test_msam_over_a_base_that_keeps_no_momentum_is_refused() -> None:
    from pugdft.optim.methods import msam

    with pytest.raises(ValueError, match="momentum"):
        PerturbedOptimizer(torch.optim.SGD(network().parameters(), lr=0.1), msam())


@pytest.mark.parametrize(
    "trigger",
    [
        {"name": "after", "fraction": 1.0},
        {"name": "probability", "p": 0.0},
        {"name": "gradient_variance", "gamma": 0.0},
        {"name": "gradient_variance", "init_fraction": 1.0},
        {"name": "gradient_cosine", "kappa": 1.0},
    ],
)
def test_a_trigger_that_can_never_fire_is_warned_of(trigger: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match="never fires"):
        build_optimizer(spec(trigger=trigger), network())


def test_a_trigger_that_is_told_nothing_is_warned_of() -> None:
    net = network()
    optimizer = build_optimizer(spec(trigger={"name": "generalization_gap"}), net, total_steps=4)
    for _ in range(3):
        optimizer.step(closure_for(optimizer, net))
    with pytest.warns(UserWarning, match="observe_epoch"):
        optimizer.step(closure_for(optimizer, net))


def test_gradients_added_to_those_of_earlier_micro_batches_are_warned_of_once() -> None:
    net = network()
    optimizer = build_optimizer(spec(), net)

    def closure() -> Tensor:
        loss = loss_of(net)
        loss.backward()  # adds to what the caller left
        return loss

    loss_of(net).backward()
    with pytest.warns(UserWarning, match="micro-batch"):
        optimizer.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(net).backward()
        optimizer.step(closure)


# --- progress ------------------------------------------------------------------------------------


def test_progress_that_is_never_set_is_warned_of_where_the_method_needs_it() -> None:
    net = network()
    optimizer = build_optimizer(spec("pugd_r"), net)
    with pytest.warns(UserWarning, match=r"progress.*total_steps"):
        optimizer.step(closure_for(optimizer, net))
    optimizer = build_optimizer(spec("sam"), net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(closure_for(optimizer, net))


@pytest.mark.parametrize("value", [-0.1, 1.01, float("nan"), float("inf"), "half"])
def test_progress_outside_0_and_1_is_refused(value: Any) -> None:
    optimizer = build_optimizer(spec("pugd_r"), network())
    with pytest.raises(ValueError, match=r"progress must be a number in 0\.\.1"):
        optimizer.progress = value


def test_total_steps_sets_the_progress() -> None:
    first, second = network(), network()
    counted = build_optimizer(spec("pugd_r"), first, total_steps=4)
    told = build_optimizer(spec("pugd_r"), second)
    for step in range(4):
        told.progress = step / 4
        counted.step(closure_for(counted, first))
        told.step(closure_for(told, second))
    assert deviation(first, second) == 0
    assert counted.progress == 1.0
    counted.step(closure_for(counted, first))  # a step more than announced stays at the end
    assert counted.progress == 1.0


# --- gsam's radius -------------------------------------------------------------------------------


def radii(schedule: Callable[[Any], Any], steps: int = 10, **options: Any) -> list[float]:
    net = network()
    optimizer = build_optimizer(
        spec("gsam", {**SGD, "momentum": 0.9}, rho_min=0.1, rho_max=0.5, **options), net
    )
    scheduler = schedule(optimizer)
    measured = []
    for _ in range(steps):
        start = [p.detach().clone() for p in net.parameters()]
        points: list[list[Tensor]] = []

        def closure(points: list[list[Tensor]] = points) -> Tensor:
            points.append([p.detach().clone() for p in net.parameters()])
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            return loss

        optimizer.step(closure)
        difference = [a - b for a, b in zip(points[1], start, strict=True)]
        measured.append(float(torch.cat([each.flatten() for each in difference]).norm()))
        scheduler.step()
    return measured


def expected_radii(lrs: list[float], low: float, high: float) -> list[float]:
    """ρ_t = ρ_min + (ρ_max − ρ_min)(lr_t − lr_min)/(lr_max − lr_min) (arXiv 2203.08065, eq. 6)."""
    return [0.1 + 0.4 * (lr - low) / (high - low) for lr in lrs]


def lrs_of(schedule: Callable[[Any], Any], steps: int = 10) -> tuple[list[float], dict[str, Any]]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = schedule(optimizer)
    lrs = []
    for _ in range(steps):
        lrs.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return lrs, optimizer.param_groups[0]


def test_gsam_follows_one_cycle_between_its_own_bounds() -> None:
    def schedule(optimizer: Any) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.2, total_steps=12, cycle_momentum=False
        )

    lrs, group = lrs_of(schedule)
    assert radii(schedule) == pytest.approx(expected_radii(lrs, group["min_lr"], group["max_lr"]), abs=1e-9)


@pytest.mark.parametrize(
    ("schedule", "low", "high"),
    [
        (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.02), 0.02, 0.1),
        (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 1 + step / 9), 0.0, 0.2),
        (
            lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.05, 0.3, step_size_up=4, cycle_momentum=False),
            0.05,
            0.3,
        ),
    ],
    ids=["eta_min", "factor above 1", "cyclic"],
)
def test_gsam_follows_any_schedule_between_given_bounds(schedule: Any, low: float, high: float) -> None:
    lrs, _ = lrs_of(schedule)
    assert radii(schedule, lr_min=low, lr_max=high) == pytest.approx(expected_radii(lrs, low, high), abs=1e-9)


# --- buffers -------------------------------------------------------------------------------------


class Buffered(nn.Module):
    """Layers whose buffers every training pass changes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        from timm.layers import EvoNorm2dB0

        self.conv = nn.Conv2d(3, 4, 3)
        if kind == "spectral":
            self.conv = nn.utils.spectral_norm(self.conv)
        elif kind == "spectral parametrization":
            self.conv = nn.utils.parametrizations.spectral_norm(self.conv)
        layers: dict[str, Callable[[], nn.Module]] = {
            "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
            "evonorm": lambda: EvoNorm2dB0(4),
            "batch": lambda: nn.BatchNorm2d(4),
            "ema": lambda: RunningMean(),
        }
        self.norm = layers.get(kind, nn.Identity)()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class RunningMean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("unused", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()  # assigned, not written in place
        return x - self.mean


KINDS = ["spectral", "spectral parametrization", "instance", "evonorm", "batch", "ema"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sam", "amp"])
def test_buffers_are_those_of_the_clean_pass_alone(kind: str, name: str) -> None:
    torch.manual_seed(0)
    net = Buffered(kind).double()
    images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    reference = copy.deepcopy(net)
    reference(images)  # one pass at w
    optimizer = build_optimizer(spec(name), net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(images).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    for (key, value), (_, expected) in zip(net.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(value, expected), key


def test_bare_tensors_are_warned_of_once_for_their_buffers_cannot_be_kept() -> None:
    with pytest.warns(UserWarning, match="give the module"):
        build_optimizer(spec(), WithBatchNorm().parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_optimizer(spec(), network().parameters(), module=network())
        build_optimizer(SGD, network().parameters())


# --- groups --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [{}, {"no_decay": True}, {"weight_decay": 0.1}])
@pytest.mark.parametrize("name", [None, "sam", "pugd"])
def test_a_layer_that_is_unfrozen_later_takes_part(name: str | None, shape: dict[str, Any]) -> None:
    net = network()
    net.first.requires_grad_(False)
    base = {**SGD, **shape}
    optimizer = build_optimizer(base if name is None else spec(name, base), net)
    optimizer.step(closure_for(optimizer, net))
    frozen = net.first.weight.detach().clone()
    net.first.requires_grad_(True)
    optimizer.step(closure_for(optimizer, net))
    assert not torch.equal(net.first.weight, frozen)


def test_add_param_group_takes_plain_tensors_after_a_module() -> None:
    net, extra = network(), nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = build_optimizer(spec(), net)
    optimizer.add_param_group({"params": [extra]})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net) + extra.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(extra, torch.ones(3, dtype=torch.float64))
    build_optimizer(spec(), network()).state_dict()


# --- state ---------------------------------------------------------------------------------------


def test_state_hooks_run() -> None:
    net = network()
    optimizer = build_optimizer(spec(), net)
    seen: list[str] = []
    optimizer.register_state_dict_pre_hook(lambda o: seen.append("pre"))
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append("post"))
    optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append("load post"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert seen == ["pre", "post", "load pre", "load post"]


def test_step_hooks_run() -> None:
    net = network()
    optimizer = build_optimizer(spec(), net)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.step(closure_for(optimizer, net))
    assert seen == ["pre", "post"]


def test_a_changed_radius_continues_with_a_warning() -> None:
    net = network()
    optimizer = build_optimizer(spec("fsam"), net)
    optimizer.step(closure_for(optimizer, net))
    other = build_optimizer(spec("fsam", rho=0.3), net)
    with pytest.warns(UserWarning, match="radius"):
        other.load_state_dict(optimizer.state_dict())
    assert other.num_steps == 1


def test_a_plain_base_s_state_is_taken_with_a_warning() -> None:
    net = network()
    plain = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    loss_of(net).backward()
    plain.step()
    optimizer = build_optimizer(spec("sam", {**SGD, "momentum": 0.9}), net)
    with pytest.warns(UserWarning, match="base optimizer alone"):
        optimizer.load_state_dict(plain.state_dict())
    first = next(net.parameters())
    assert torch.equal(optimizer.state[first]["momentum_buffer"], plain.state[first]["momentum_buffer"])


def test_torch_s_distributed_checkpoint_helpers_are_answered_with_the_way() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    net = network()
    optimizer = build_optimizer(spec(), net)
    with pytest.raises(Exception, match=r"optimizer\.state_dict\(\)"):
        get_optimizer_state_dict(net, optimizer)


# --- gradients and bases that torch takes --------------------------------------------------------


class Sparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 3, sparse=True)

    def forward(self) -> Tensor:
        return self.embedding(torch.tensor([1, 2, 2])).square().sum()


def one_step(the_spec: dict[str, Any], net: nn.Module) -> None:
    optimizer = build_optimizer(the_spec, net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_sparse_gradients_are_refused_by_the_parameter_s_name_and_taken_by_a_plain_base() -> None:
    with pytest.raises(RuntimeError, match=r"embedding\.weight.*sparse"):
        one_step(spec(), Sparse())
    one_step(SGD, Sparse())


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.complex64))

    def forward(self) -> Tensor:
        return self.weight.abs().square().sum()


def test_complex_parameters_are_refused_by_name_for_a_method() -> None:
    with pytest.raises(ValueError, match=r"weight.*complex"):
        one_step(spec(), Complex())


@pytest.mark.parametrize("lr", [0, 0.0, torch.tensor(0.1)])
def test_a_learning_rate_of_0_and_a_tensor_are_taken(lr: Any) -> None:
    net, expected = network(), network()
    optimizer = build_optimizer(spec(base={"name": "sgd", "lr": lr}), net)
    optimizer.step(closure_for(optimizer, net))
    other = build_optimizer(spec(base={"name": "sgd", "lr": float(lr)}), expected)
    other.step(closure_for(other, expected))
    assert deviation(net, expected) < 1e-8  # torch's tensor is a float32


@pytest.mark.parametrize("name", ["asgd", "rprop", "adamax", "nadam", "radam", "adadelta"])
def test_torch_s_other_optimizers_are_bases_by_name(name: str) -> None:
    net = network()
    optimizer = build_optimizer(spec(base={"name": name, "lr": 0.01}), net)
    optimizer.step(closure_for(optimizer, net))


def test_a_base_may_be_a_class_or_an_instance() -> None:
    expected = network()
    optimizer = build_optimizer(spec(base={"name": "rprop", "lr": 0.01}), expected)
    optimizer.step(closure_for(optimizer, expected))
    by_class, by_instance = network(), network()
    optimizer = build_optimizer(spec(base={"name": torch.optim.Rprop, "lr": 0.01}), by_class)
    optimizer.step(closure_for(optimizer, by_class))
    base = torch.optim.Rprop(by_instance.parameters(), lr=0.01)
    optimizer = build_optimizer(spec(base=base), by_instance)
    optimizer.step(closure_for(optimizer, by_instance))
    assert deviation(by_class, expected) == deviation(by_instance, expected) == 0


# --- numbers -------------------------------------------------------------------------------------


def test_norms_of_many_elements_are_right_to_five_digits() -> None:
    from pugdft.optim import foreach

    tensor = torch.randn(30_000_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    exact = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
    assert float(foreach.global_norm([tensor])) == pytest.approx(exact, rel=1e-5)
    assert float(foreach.tensor_norms([tensor])[0]) == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layouts", ["alike", "differing", "sliced", "of images"])
def test_sums_over_lists_are_right_in_every_layout(layouts: str, dtype: torch.dtype) -> None:
    from pugdft.optim import foreach

    torch.manual_seed(0)
    shapes = [(3,), (), (70, 64, 3, 3), (1 << 20, 2), (5, 4)]  # small, large, larger than a block
    first, second = ([torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(2))
    if layouts != "alike":
        first[2] = first[2].to(memory_format=torch.channels_last)
    if layouts == "of images":
        second[2] = second[2].to(memory_format=torch.channels_last)
    if layouts == "sliced":
        first[3], second[3] = first[3][:, :1], second[3][:, :1]
    pairs = [(a.double(), b.double()) for a, b in zip(first, second, strict=True)]
    product, square = sum((a * b).sum() for a, b in pairs), sum((a * a).sum() for a, _ in pairs)
    tolerance = 1e-11 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 1e-3
    assert float(foreach.dot(first, second)) == pytest.approx(float(product), abs=tolerance * float(square))
    assert float(foreach.global_norm(first)) == pytest.approx(float(square) ** 0.5, rel=tolerance)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_weighted_gradient_comes_with_its_norm(dtype: torch.dtype, power: int) -> None:
    from pugdft.optim import foreach

    torch.manual_seed(0)
    shapes = [(7,), (70, 64, 3, 3), (2, 3)]
    weights, gradients = ([torch.randn(shape, dtype=dtype) for shape in shapes] for _ in range(2))
    targets = list(map(torch.empty_like, weights))
    norm = foreach.set_weighted_(targets, weights, gradients, 0.01, power)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5 if dtype == torch.float32 else 2e-2
    rows = [(w.double().abs() + 0.01, g.double()) for w, g in zip(weights, gradients, strict=True)]
    for target, (t, g) in zip(targets, rows, strict=True):
        torch.testing.assert_close(target.double(), t**power * g, rtol=tolerance, atol=tolerance)
    exact = float(torch.cat([(t * g).flatten() for t, g in rows]).norm())
    assert float(norm) == pytest.approx(exact, rel=tolerance)


@pytest.mark.parametrize("name", ["sam", "pugd", "asam"])
def test_products_that_overflow_in_fp32_are_summed_in_fp64(name: str) -> None:
    w = nn.Parameter(torch.full((5000,), 2.0))
    start = w.detach().clone()
    optimizer = build_optimizer({"name": name, "rho": 1.0, "base": {"name": "sgd", "lr": 1e-21}}, [w])
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(w.detach() - start)
        loss = (w * 1e20).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped_steps == 0
    assert float(seen[1].norm()) > 0.9  # the perturbation is not lost


def test_finite_gradients_whose_squares_overflow_are_used() -> None:
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = build_optimizer({"name": "ugd", "base": {"name": "sgd", "lr": 1.0}}, [w])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w * torch.tensor([3e20, 4e20])).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped_steps == 0
    assert w.tolist() == pytest.approx([0.4, 0.2], abs=1e-6)


def test_no_decay_spares_what_the_model_says() -> None:
    import timm

    net = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=32, depth=1)
    optimizer = build_optimizer({**SGD, "weight_decay": 0.1, "no_decay": True}, net)
    decays = {name: g["weight_decay"] for g in optimizer.param_groups for name in g["param_names"]}
    assert decays["pos_embed"] == decays["cls_token"] == 0
    assert decays["blocks.0.attn.qkv.weight"] == 0.1


def test_sam_on_finds_every_normalisation_layer_of_timm() -> None:
    from timm.layers import EvoNorm2dS0, FilterResponseNormTlu2d, LayerNormAct2d
    from timm.layers.norm_act import RmsNormAct

    from pugdft.optim.base import norm_parameters_of

    for layer in (RmsNormAct(4), EvoNorm2dS0(4), FilterResponseNormTlu2d(4), LayerNormAct2d(4)):
        assert norm_parameters_of(nn.Sequential(layer)) == frozenset(layer.parameters()), layer


def test_repr_shows_the_method_and_the_base() -> None:
    text = repr(build_optimizer(spec(rho=0.3), network()))
    assert "Gradient" in text
    assert "0.3" in text
    assert "SGD" in text


def test_sam_on_float64_follows_its_reference_through_a_plain_torch_loop() -> None:
    net = network()
    start = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(spec(rho=RHO), net)
    for _ in range(4):
        optimizer.step(closure_for(optimizer, net))
    assert deviation(list(net.parameters()), sam_reference(4, gradient_of, start)) < 1e-11
