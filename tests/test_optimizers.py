"""Every method against its float64 reference, and every trap that published code falls into."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import DIRECTIONS, SGD, AdamW
from torch import Tensor, nn

from pugdft.errors import FaultsError
from pugdft.optim import build_optimizer, optimizer_names, resolve_spec, spec_faults
from pugdft.optim.base import BASES
from pugdft.optim.combine import Linear
from pugdft.optim.direction import Gradient, WeightedGradient
from pugdft.optim.normalize import Identity, Unit
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.presets import Method
from pugdft.optim.radius import Constant
from pugdft.optim.registry import METHODS
from pugdft.optim.trigger import Always

LRS = [0.1, 0.03]
DECAYS = [0.01, 0.2]
SGD_BASE = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}


def spec_of(name: str, base: dict[str, Any] | None = None, **options: Any) -> dict[str, Any]:
    """A method over a base; ``plain`` is the base alone."""
    base = base or SGD_BASE
    return dict(base) if name == "plain" else {"name": name, "base": dict(base), **options}


def start() -> list[Tensor]:
    """Four tensors of different shapes and scales, some elements exactly zero."""
    generator = torch.Generator().manual_seed(3)
    shapes = [(5, 4), (4,), (4, 3), (3,)]
    weights = [
        torch.randn(s, generator=generator, dtype=torch.float64) * 0.5**i for i, s in enumerate(shapes)
    ]
    weights[0][0, 0] = 0.0
    return weights


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return torch.randn((16, 5), generator=generator, dtype=torch.float64), torch.randn(
        (16, 3), generator=generator, dtype=torch.float64
    )


def loss_of(weights: list[Tensor], scale: float = 1.0) -> Tensor:
    """A small network: not quadratic, not convex, so that a wrong formula shows."""
    x, y = batch()
    x, y = x.to(weights[0].dtype), y.to(weights[0].dtype)
    hidden = torch.tanh(x @ weights[0] + weights[1])
    return scale * ((hidden @ weights[2] + weights[3] - y) ** 2).mean()


def gradient_of(weights: list[Tensor]) -> list[Tensor]:
    leaves = [w.detach().clone().requires_grad_() for w in weights]
    return list(torch.autograd.grad(loss_of(leaves), leaves))


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(w.clone()) for w in start()]


def two_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": params[:2], "lr": LRS[0], "weight_decay": DECAYS[0]},
        {"params": params[2:], "lr": LRS[1], "weight_decay": DECAYS[1]},
    ]


def make_closure(
    optimizer: torch.optim.Optimizer, params: list[nn.Parameter], clear: str = "optimizer", scale: float = 1.0
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if clear == "optimizer":
            optimizer.zero_grad()
        elif clear == "in place":
            for p in params:
                if p.grad is not None:
                    p.grad.zero_()
        elif clear == "to none":
            for p in params:
                p.grad = None
        loss = loss_of(list(params), scale)
        loss.backward()
        return loss

    return closure


def run(
    spec: dict[str, Any],
    steps: int = 5,
    clear: str = "optimizer",
    groups: bool = True,
    scale: float = 1.0,
    **contexts: Any,
) -> tuple[list[nn.Parameter], PerturbedOptimizer]:
    params = parameters()
    optimizer = build_optimizer(spec, two_groups(params) if groups else params, **contexts)
    closure = make_closure(optimizer, params, clear, scale)
    for _ in range(steps):
        optimizer.zero_grad()
        optimizer.step(closure)
    return params, optimizer


def largest_deviation(first: list[Any], second: list[Any]) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("clear", ["optimizer", "in place", "to none", "nothing", "nothing, promised"])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_method_equals_its_float64_reference_on_two_groups(name: str, base: str, clear: str) -> None:
    base_spec = SGD_BASE if base == "sgd" else {"name": "adamw", "lr": 0.1}
    promised = clear.endswith("promised")
    params, _ = run(spec_of(name, base_spec), clear=clear.split(",")[0], closure_accumulates=promised)
    lrs, decays = [LRS[0], LRS[0], LRS[1], LRS[1]], [DECAYS[0], DECAYS[0], DECAYS[1], DECAYS[1]]
    reference = SGD(lrs, 0.9, decays) if base == "sgd" else AdamW(lrs, decays)
    weights = start()
    for _ in range(5):
        weights = reference.step(weights, DIRECTIONS[name](weights, gradient_of))
    assert largest_deviation(params, weights) < 1e-12


def test_every_registered_method_has_a_reference() -> None:
    assert set(DIRECTIONS) == {"plain", *METHODS}


@pytest.mark.parametrize("combine", [Linear(0.2, 0.8), Linear(1, 1), Linear(-0.5, 1.5), Linear(2, 0.5)])
@pytest.mark.parametrize("accumulates", [True, False])
def test_combination_is_a_g_plus_b_g_star(combine: Linear, accumulates: bool) -> None:
    params = parameters()
    base = torch.optim.SGD(params, lr=1.0)
    method = Method(Gradient(), Constant(0.3), Always(), combine, Identity())
    optimizer = PerturbedOptimizer(base, method, closure_accumulates=accumulates)
    optimizer.step(make_closure(optimizer, params, "nothing" if accumulates else "in place"))
    g = gradient_of(start())
    g_star = DIRECTIONS["sam"](start(), gradient_of, 0.3)
    expected = [
        w - combine.clean * a - combine.perturbed * b for w, a, b in zip(start(), g, g_star, strict=True)
    ]
    assert largest_deviation(params, expected) < 1e-14


@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_sam_with_zero_radius_is_the_base_buffers_included(base: str) -> None:
    base_spec = SGD_BASE if base == "sgd" else {"name": "adamw", "lr": 0.1}
    sam_params, sam = run(spec_of("sam", base_spec, rho=0.0))
    plain_params, plain = run(base_spec)
    assert largest_deviation(sam_params, plain_params) == 0
    for ours, theirs in zip(sam_params, plain_params, strict=True):
        for key, value in plain.state[theirs].items():
            assert torch.equal(sam.state[ours][key], value)


def test_base_alone_equals_torch_bit_for_bit() -> None:
    params, _ = run(SGD_BASE)
    theirs = parameters()
    sgd = torch.optim.SGD(two_groups(theirs), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    for _ in range(5):
        sgd.zero_grad()
        loss_of(list(theirs)).backward()
        sgd.step()
    assert largest_deviation(params, theirs) == 0


def test_pugd_with_zero_radius_is_unit_gradient_descent() -> None:
    params = parameters()
    method = Method(WeightedGradient(), Constant(0.0), Always(), Linear(1, 0.5), Unit())
    optimizer = PerturbedOptimizer(torch.optim.SGD(params, lr=1.0), method)
    optimizer.step(make_closure(optimizer, params))
    g = gradient_of(start())
    length = torch.sqrt(sum((each**2).sum() for each in g))
    assert largest_deviation(params, [w - each / length for w, each in zip(start(), g, strict=True)]) < 1e-12


@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e6])
def test_pugd_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    reference, _ = run(spec_of("pugd"))
    params, _ = run(spec_of("pugd"), scale=scale)
    assert largest_deviation(params, reference) < 1e-8


@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_one_group_equals_many(name: str) -> None:
    params = parameters()
    many = build_optimizer(spec_of(name), [{"params": [p]} for p in params])
    for _ in range(4):
        many.step(make_closure(many, params))
    single, _ = run(spec_of(name), steps=4, groups=False)
    assert largest_deviation(params, single) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_zero_learning_rate_leaves_every_bit(name: str, dtype: torch.dtype) -> None:
    params = [nn.Parameter(w.to(dtype)) for w in start()]
    before = [p.detach().clone() for p in params]
    optimizer = build_optimizer(spec_of(name, {"name": "sgd", "lr": 0.1}), params)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(3):
        optimizer.step(make_closure(optimizer, params))
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))


def test_pugd_perturbation_has_length_rho_and_leaves_zero_weights() -> None:
    params = parameters()
    optimizer = build_optimizer(spec_of("pugd", rho=0.7), params)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in params])
        loss = loss_of(list(params))
        loss.backward()
        return loss

    optimizer.step(closure)
    clean, moved = seen
    length = torch.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(clean, moved, strict=True)))
    assert float(length) == pytest.approx(0.7, rel=1e-9)
    assert moved[0][0, 0] == 0
    assert optimizer.evidence.mean_perturbation_norm() == pytest.approx(0.7, rel=1e-9)


@pytest.mark.parametrize(("name", "passes"), [("plain", 1), *((name, 2) for name in METHODS)])
def test_closure_runs_exactly_as_often_as_the_method_needs_and_the_loss_is_the_clean_one(
    name: str, passes: int
) -> None:
    params = parameters()
    optimizer = build_optimizer(spec_of(name), params)
    losses: list[float] = []
    inner = make_closure(optimizer, params)

    def closure() -> Tensor:
        loss = inner()
        losses.append(loss.item())
        return loss

    returned = optimizer.step(closure)
    assert len(losses) == passes
    assert returned.item() == losses[0] == float(loss_of(start()))


@pytest.mark.parametrize("name", METHODS)
def test_exception_in_the_second_pass_restores_every_bit_and_saving_works_again(name: str) -> None:
    params = parameters()
    optimizer = build_optimizer(spec_of(name), params)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            with pytest.raises(RuntimeError, match="perturbed"):
                optimizer.state_dict()
            raise KeyboardInterrupt
        loss = loss_of(list(params))
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(torch.equal(p, w) for p, w in zip(params, start(), strict=True))
    optimizer.state_dict()


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_zero_or_non_finite_gradient_never_brings_nan_into_weights_or_state(
    name: str, base: str, bad: float
) -> None:
    base_spec = SGD_BASE if base == "sgd" else {"name": "adamw", "lr": 0.1}
    params = parameters()
    optimizer = build_optimizer(spec_of(name, base_spec), params)
    optimizer.step(make_closure(optimizer, params, scale=bad))
    if bad != 0.0:
        assert all(torch.equal(p, w) for p, w in zip(params, start(), strict=True))
        assert optimizer.num_skipped_steps == 1
    optimizer.zero_grad()
    optimizer.step(make_closure(optimizer, params))
    assert all(torch.isfinite(p).all() for p in params)
    assert all(torch.isfinite(v).all() for s in optimizer.state.values() for v in s.values())


@pytest.mark.parametrize("name", METHODS)
def test_overflow_in_the_second_pass_alone_skips_the_step(name: str) -> None:
    params = parameters()
    optimizer = build_optimizer(spec_of(name), params)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = loss_of(list(params), float("inf") if len(calls) == 2 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert all(torch.equal(p, w) for p, w in zip(params, start(), strict=True))
    assert optimizer.num_skipped_steps == 1


@pytest.mark.parametrize("missing_in", [1, 2])
@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_parameter_without_gradient_in_one_pass_is_restored_and_uses_the_other(
    name: str, accumulates: bool, missing_in: int
) -> None:
    params = parameters()
    optimizer = build_optimizer(
        spec_of(name, {"name": "sgd", "lr": 0.1, "momentum": 0.9}), params, closure_accumulates=accumulates
    )
    calls: list[int] = []
    contributions: list[Tensor | None] = []

    def closure() -> Tensor:
        calls.append(1)
        others = [p.detach() if i == 3 and len(calls) == missing_in else p for i, p in enumerate(params)]
        loss = loss_of(others)
        contributions.append(
            None if others[3] is not params[3] else torch.autograd.grad(loss, params[3], retain_graph=True)[0]
        )
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = (start()[3] - params[3].detach()) / 0.1
    alone = contributions[2 - missing_in]
    assert alone is not None
    if name == "sam":
        assert largest_deviation([moved], [alone if missing_in == 1 else torch.zeros_like(alone)]) < 1e-12
    else:  # the same direction as the only gradient there was
        cosine = torch.dot(moved, alone) / (moved.norm() * alone.norm())
        assert float(cosine) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("base", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_resume_is_exact_through_a_file(name: str, base: str, tmp_path: Any) -> None:
    base_spec = SGD_BASE if base == "sgd" else {"name": "adamw", "lr": 0.1}
    spec = spec_of(name, base_spec)
    unbroken, whole = run(spec, steps=14)
    params, optimizer = run(spec, steps=6)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    again = build_optimizer(spec, two_groups(resumed))
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(8):
        again.zero_grad()
        again.step(make_closure(again, resumed))
    assert largest_deviation(unbroken, resumed) == 0
    assert again.num_steps == 14
    assert again.evidence.mean_gradient_cosine() == whole.evidence.mean_gradient_cosine()


def test_resume_without_the_momentum_is_noticed_by_the_same_comparison() -> None:
    """The negative control of the test above."""
    unbroken, _ = run(spec_of("sam"), steps=14)
    params, _ = run(spec_of("sam"), steps=6)
    resumed = [nn.Parameter(p.detach().clone()) for p in params]
    again = build_optimizer(spec_of("sam"), two_groups(resumed))
    for _ in range(8):
        again.step(make_closure(again, resumed))
    assert largest_deviation(unbroken, resumed) > 1e-6


def test_state_of_another_method_is_refused() -> None:
    _, sam = run(spec_of("sam"))
    _, pugd = run(spec_of("pugd"))
    with pytest.raises(ValueError, match="not of"):
        pugd.load_state_dict(sam.state_dict())


@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_scheduler_reaches_the_base_also_after_loading(name: str) -> None:
    params, optimizer = run(spec_of(name), steps=1)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.step(make_closure(optimizer, params))
    scheduler.step()
    before = [p.detach().clone() for p in params]
    optimizer.step(make_closure(optimizer, params))
    assert optimizer.base.param_groups[0]["lr"] == 0
    assert all(torch.equal(p, w) for p, w in zip(params, before, strict=True))


@pytest.mark.parametrize("name", ["plain", *METHODS])
def test_batch_norm_statistics_come_from_the_clean_pass_only(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[3].eval()
    x = torch.randn(32, 6)
    once = torch.nn.modules.batchnorm.BatchNorm1d(8)
    once(model[0](x))
    frozen = model[3].running_mean.clone()
    optimizer = build_optimizer(spec_of(name), model)
    batch_means: list[float] = []

    def closure() -> Tensor:
        hidden = model[1](model[0](x))
        batch_means.append(float((hidden.mean(0) - model[1].bias).detach().abs().max()))
        loss = (model[4](model[3](model[2](hidden))) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(model[1].running_mean, once.running_mean, rtol=0, atol=0)
    torch.testing.assert_close(model[1].running_var, once.running_var, rtol=0, atol=0)
    assert int(model[1].num_batches_tracked) == 1
    assert torch.equal(model[3].running_mean, frozen)
    assert model[1].track_running_stats
    assert max(batch_means) < 1e-6


@pytest.mark.parametrize(("replay", "same"), [(True, True), (False, False)])
def test_perturbed_pass_replays_the_random_numbers_unless_told_not_to(replay: bool, same: bool) -> None:
    params = parameters()
    optimizer = build_optimizer(spec_of("sam", replay_rng=replay), params)
    draws: list[Tensor] = []

    def closure() -> Tensor:
        draws.append(torch.rand(4))
        loss = loss_of(list(params))
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert torch.equal(draws[0], draws[1]) == same
    assert not torch.equal(draws[1], draws[2])


def test_cosine_estimate_is_near_the_true_one_on_large_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
    x = torch.randn(64, 64)
    for accumulates in (True, False):
        optimizer = build_optimizer(
            spec_of("pugd", {"name": "sgd", "lr": 1e-3}, rho=2.0), model, closure_accumulates=accumulates
        )
        gradients: list[list[Tensor]] = []

        def closure() -> Tensor:
            loss = ((model(x) - x) ** 2).mean()
            gradients.append(list(torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)))  # noqa: B023
            loss.backward()
            return loss

        model.zero_grad()
        optimizer.step(closure)
        flat = [torch.cat([g.flatten() for g in each]) for each in gradients]
        true = float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0))
        assert true < 0.99
        assert optimizer.evidence.mean_gradient_cosine() == pytest.approx(true, abs=0.03)


def test_params_may_be_a_module_tensors_named_pairs_or_groups() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert len(build_optimizer(SGD_BASE, module).param_groups[0]["params"]) == 1
    for params in (module.parameters(), list(module.named_parameters()), [{"params": module.parameters()}]):
        assert len(build_optimizer(SGD_BASE, params).param_groups[0]["params"]) == 2
    with pytest.raises(FaultsError, match="nothing to train"):
        build_optimizer(SGD_BASE, [])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"optimizer.name: is required"),
        ({"name": "pgud"}, r'unknown optimizer "pgud".*Did you mean "pugd"\?'),
        ({"name": "sam", "base": SGD_BASE, "roh": 1}, r"optimizer.roh: unknown option.*rho.*optimizer.base"),
        ({"name": "sam", "base": {**SGD_BASE, "rho": 1}}, r"optimizer.base.rho: unknown option.*momentum"),
        ({"name": "sam", "base": SGD_BASE, "rho": -1}, r"rho must be at least 0"),
        ({"name": "sam", "base": SGD_BASE, "rho": float("nan")}, r"optimizer.rho: must be a finite number"),
        ({"name": "sam", "base": SGD_BASE, "rho": "big"}, r"optimizer.rho: must be a finite number"),
        ({"name": "sam"}, r"optimizer.base: is required"),
        ({"name": "sam", "base": {"name": "sdg", "lr": 1}}, r'unknown base optimizer "sdg".*"sgd"'),
        ({"name": "sgd"}, r"optimizer.lr: is required"),
        ({"name": "sgd", "lr": 0}, r"lr must be greater than 0"),
        ({"name": "sgd", "lr": -0.1}, r"lr must be greater than 0"),
        ({"name": "sgd", "lr": 0.1, "nesterov": 1}, r"optimizer.nesterov: must be true or false"),
        ({"name": "sgd", "lr": 0.1, "momentum": -1}, r"momentum"),
        ({"name": "adamw", "lr": 0.1, "betas": 0.9}, r"optimizer.betas: must be a list of two numbers"),
        ({"name": "sgd", "lr": 0.1, "base": SGD_BASE}, r"itself a base"),
        ({"name": "pugd", "base": SGD_BASE, "replay_rng": 3}, r"replay_rng: must be true or false"),
    ],
)
def test_bad_spec_gets_a_message_that_says_where_and_what(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(FaultsError, match=message):
        build_optimizer(spec, parameters())


def test_every_fault_of_a_spec_is_reported_at_once() -> None:
    faults = spec_faults({"name": "sam", "roh": 1, "base": {"name": "sgd", "lr": "x", "beta": 2}})
    assert [fault.where for fault in faults] == ["optimizer.roh", "optimizer.base.lr", "optimizer.base.beta"]


def test_resolved_spec_holds_every_default_and_resolves_to_itself() -> None:
    resolved = resolve_spec({"name": "sam", "base": {"name": "adamw", "lr": 1e-3}})
    assert resolved["rho"] == 0.05
    assert resolved["base"]["betas"] == [0.9, 0.999]
    assert resolve_spec(resolved) == resolved


def test_step_needs_a_closure() -> None:
    with pytest.raises(TypeError, match="closure"):
        build_optimizer(SGD_BASE, parameters()).step()


def test_names_list_bases_and_methods() -> None:
    assert set(optimizer_names()) == {*BASES, *METHODS}
