"""Traps that published implementations of this family fall into, for every method."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from optimizer_cases import (
    ADAMW_BASE,
    ALL,
    ALWAYS_TWO,
    SGD_BASE,
    Half,
    batch,
    deviation,
    go_on,
    half_run,
    loss_of,
    make_closure,
    network,
    run,
    spec_of,
    start,
    two_groups,
)
from torch import Tensor, nn

from pugdft.optim import LossScale, build_optimizer
from pugdft.optim.combine import Identity, Weighted
from pugdft.optim.directions import Gradient
from pugdft.optim.methods import Method
from pugdft.optim.perturbed import PerturbedOptimizer
from pugdft.optim.schedules import Constant
from pugdft.optim.triggers import Always

BASES = {"sgd": SGD_BASE, "adamw": ADAMW_BASE}
PASSES = {
    "plain": 1,
    "ugd": 1,
    "ngd_cw": 1,
    "msam": 1,
    "rwp": 1,
    "pugd_t": 1,
    "multi_step": 3,
    "lookbehind": 3,
}


def unchanged(net: nn.Module, weights: list[Tensor] | None = None) -> bool:
    return all(torch.equal(p, w) for p, w in zip(net.parameters(), weights or start(), strict=True))


@pytest.mark.parametrize("weights", [(0.2, 0.8), (1, 1), (-0.5, 1.5), (2, 0.5)])
@pytest.mark.parametrize("accumulates", [True, False])
def test_combination_is_a_g_plus_b_g_star(weights: tuple[float, float], accumulates: bool) -> None:
    from optimizer_cases import gradient_of
    from reference import plus, unit

    net = network()
    base = torch.optim.SGD(net.parameters(), lr=1.0)
    method = Method(Gradient(), Constant(0.3), Always(), Weighted(*weights), Identity())
    optimizer = PerturbedOptimizer(base, method, closure_accumulates=accumulates)
    optimizer.step(make_closure(optimizer, net, "nothing" if accumulates else "in place"))
    g = gradient_of(start())
    g_star = gradient_of(plus(start(), unit(g), 0.3))
    expected = plus(plus(start(), g, -weights[0]), g_star, -weights[1])
    assert deviation(net, expected) < 1e-14


@pytest.mark.parametrize("name", ALL)
def test_closure_runs_as_often_as_the_method_needs_and_the_loss_is_the_clean_one(name: str) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name), net)
    inner, losses = make_closure(optimizer, net), []

    def closure() -> Tensor:
        loss = inner()
        losses.append(loss.item())
        return loss

    returned = optimizer.step(closure)
    assert len(losses) == PASSES.get(name, 2)
    assert returned.item() == losses[0]
    assert (losses[0] == loss_of(network()).item()) == (name != "rwp"), "its only pass is at w + e"


def test_looksam_and_amp_take_the_passes_of_their_papers() -> None:
    for spec, steps, passes in ((spec_of("looksam", k=4), 8, 10), (spec_of("amp", inner_iter=3), 2, 8)):
        net = network()
        optimizer = build_optimizer(spec, net)
        inner, calls = make_closure(optimizer, net), []

        def closure() -> Tensor:
            calls.append(1)  # noqa: B023
            return inner()  # noqa: B023

        for _ in range(steps):
            optimizer.step(closure)
        assert len(calls) == passes


@pytest.mark.parametrize("name", [*ALWAYS_TWO, "msam", "rwp"])
def test_an_exception_at_the_perturbed_point_restores_every_bit(name: str) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name), net)
    if name == "msam":  # it needs a momentum to be perturbed at all
        optimizer.step(make_closure(optimizer, net))
    before = [p.detach().clone() for p in net.parameters()]
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == PASSES.get(name, 2):
            assert not unchanged(net, before)
            with pytest.raises(RuntimeError, match="perturbed"):
                optimizer.state_dict()
            raise KeyboardInterrupt
        loss = loss_of(net)
        loss.backward()
        return loss

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert unchanged(net, before)
    optimizer.state_dict()


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ALL)
def test_a_zero_or_non_finite_gradient_brings_no_nan_into_weights_or_state(
    name: str, base: str, bad: float
) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name, BASES[base]), net)
    optimizer.step(make_closure(optimizer, net, scale=bad))
    if bad != 0.0:
        assert unchanged(net)
        assert optimizer.num_skipped_steps == 1
    for _ in range(6):
        optimizer.step(make_closure(optimizer, net))
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert all(torch.isfinite(v).all() for s in optimizer.state.values() for v in s.values())
    assert deviation(net, start()) > 1e-6
    assert optimizer.num_skipped_steps == (bad != 0.0)


@pytest.mark.parametrize("name", ALWAYS_TWO)
def test_an_overflow_in_the_second_pass_alone_skips_the_step(name: str) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name), net)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = loss_of(net, float("inf") if len(calls) == 2 else 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert unchanged(net)
    assert optimizer.num_skipped_steps == 1
    for _ in range(6):
        optimizer.zero_grad()
        optimizer.step(closure)
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("missing_in", [1, 2])
@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("name", ALWAYS_TWO)
def test_a_parameter_without_gradient_in_one_pass_is_restored(
    name: str, accumulates: bool, missing_in: int
) -> None:
    net = network()
    optimizer = build_optimizer(
        spec_of(name, {"name": "sgd", "lr": 1e-9, "momentum": 0.9}), net, closure_accumulates=accumulates
    )
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        x, y = batch()
        bias = net.second.bias.detach() if len(calls) == missing_in else net.second.bias
        hidden = torch.tanh(net.norm(net.first(x)))
        loss = ((hidden @ net.second.weight.T + bias - y) ** 2).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert deviation(net, start()) < 1e-7
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("accumulates", [True, False])
def test_the_only_gradient_there_was_is_the_one_used(accumulates: bool) -> None:
    for missing_in, expected in ((1, True), (2, False)):
        net = nn.ParameterList([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))])
        optimizer = build_optimizer(
            spec_of("sam", {"name": "sgd", "lr": 1.0}), net, closure_accumulates=accumulates
        )
        calls: list[int] = []

        def closure() -> Tensor:
            calls.append(1)  # noqa: B023
            second = net[1].detach() if len(calls) == missing_in else net[1]  # noqa: B023
            loss = (net[0] * 3 + second * 5).sum()  # noqa: B023
            loss.backward()
            return loss

        optimizer.step(closure)
        assert torch.equal(net[0].detach(), torch.full((2,), -2.0))
        assert torch.equal(net[1].detach(), torch.full((2,), -4.0 if expected else 1.0))


@pytest.mark.parametrize(
    ("base", "cut"),
    [
        pytest.param(base, cut, marks=() if (base, cut) == ("sgd", 13) else pytest.mark.slow)
        for base in BASES
        for cut in (1, 6, 13)
    ],
)
@pytest.mark.parametrize("name", ALL)
def test_resume_is_exact_through_a_file(name: str, base: str, cut: int, tmp_path: Any) -> None:
    spec = spec_of(name, BASES[base])
    unbroken, whole = run(spec, steps=24)
    net = network()
    optimizer = build_optimizer(spec, two_groups(net), module=net)
    go_on(optimizer, net, 0, cut, 24)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = network()
    resumed.load_state_dict(net.state_dict())
    again = build_optimizer(spec, two_groups(resumed), module=resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    go_on(again, resumed, cut, 24, 24)
    assert deviation(unbroken, resumed) == 0
    assert (again.num_steps, again.num_two_pass_steps) == (24, whole.num_two_pass_steps)
    assert again.diagnostics.state_dict() == whole.diagnostics.state_dict()


@pytest.mark.parametrize(
    ("name", "piece"),
    [("sam", "base"), ("looksam", "combine"), ("fsam", "direction"), ("vasso", "direction"),
     ("pugd_t", "trigger"), ("gsam", "peak_lr"), ("pugd", "base")],
)  # fmt: skip
def test_leaving_out_any_piece_of_state_is_noticed(name: str, piece: str) -> None:
    """The negative control of the test above."""
    spec = spec_of(name)
    unbroken, _ = run(spec, steps=24)
    net = network()
    optimizer = build_optimizer(spec, two_groups(net), module=net)
    go_on(optimizer, net, 0, 13, 24)
    state = optimizer.state_dict()
    again = build_optimizer(spec, two_groups(net), module=net)
    if piece == "base":
        state["state"] = again.state_dict()["state"]
    elif piece == "peak_lr":
        state["pugdft"]["peak_lr"] = 0.0
    else:
        state["pugdft"]["memories"][piece] = {"tensors": {}, "values": {}}
    again.load_state_dict(state)
    go_on(again, net, 13, 24, 24)
    assert deviation(unbroken, net) > 1e-7


def test_state_of_another_method_is_refused() -> None:
    _, sam = run(spec_of("sam"))
    _, pugd = run(spec_of("pugd"))
    with pytest.raises(ValueError, match="not of"):
        pugd.load_state_dict(sam.state_dict())


@pytest.mark.parametrize("name", ALL)
def test_a_scheduler_reaches_the_base_also_after_loading(name: str) -> None:
    net, optimizer = run(spec_of(name), steps=2)
    optimizer.load_state_dict(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    optimizer.step(make_closure(optimizer, net))
    scheduler.step()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer.step(make_closure(optimizer, net))
    assert optimizer.base.param_groups[0]["lr"] == 0
    assert unchanged(net, before)


@pytest.mark.parametrize("name", ALL)
def test_batch_norm_statistics_come_from_one_pass_only(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model[3].eval()
    x = torch.randn(32, 6)
    once = nn.BatchNorm1d(8)
    frozen = model[3].running_mean.clone()
    optimizer = build_optimizer(spec_of(name), model)
    batch_means: list[float] = []

    def closure() -> Tensor:
        entering = model[0](x)
        if not batch_means:
            once(entering)  # at w; at w + e in a method whose only pass is there
        hidden = model[1](entering)
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
    assert max(batch_means) < 1e-6, "the perturbed pass normalises by the batch"


@pytest.mark.parametrize(("replay", "same"), [(True, True), (False, False)])
@pytest.mark.parametrize("name", ALWAYS_TWO)
def test_the_perturbed_pass_replays_the_random_numbers_unless_told_not_to(
    name: str, replay: bool, same: bool
) -> None:
    net = network()
    options = {"k": 1} if name in ("looksam", "multi_step", "lookbehind") else {}
    optimizer = build_optimizer(spec_of(name, replay_rng=replay, **options), net)
    draws: list[Tensor] = []

    def closure() -> Tensor:
        draws.append(torch.rand(4))
        loss = loss_of(net)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    assert torch.equal(draws[0], draws[1]) == same
    assert not torch.equal(draws[1], draws[2])


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("name", ["sam", "pugd", "gnp", "gsam", "wsam", "looksam", "asam", "fsam"])
def test_evidence_is_near_the_truth_on_large_tensors(name: str, accumulates: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.Tanh(), nn.Linear(256, 64))
    x = torch.randn(64, 64)
    bounds = {"rho_min": 2.0, "rho_max": 2.0} if name == "gsam" else {"rho": 2.0}
    optimizer = build_optimizer(
        spec_of(name, {"name": "sgd", "lr": 1e-3}, **bounds), model, closure_accumulates=accumulates
    )
    gradients: list[Tensor] = []
    points: list[Tensor] = []

    def closure() -> Tensor:
        loss = ((model(x) - x) ** 2).mean()
        parameters = list(model.parameters())
        points.append(torch.cat([p.detach().flatten() for p in parameters]))
        every = torch.autograd.grad(loss, parameters, retain_graph=True)
        gradients.append(torch.cat([g.flatten() for g in every]))
        loss.backward()
        return loss

    optimizer.step(closure)
    true = float(torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0))
    assert true < 0.995
    assert optimizer.diagnostics.mean("cosine") == pytest.approx(true, abs=0.03)
    length = float((points[1] - points[0]).norm())
    assert optimizer.diagnostics.mean("norm") == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize(
    "name", ["sam", "asam", "sam_gns", "fsam", "vasso", "sam_on", "amp", "pugd", "gnp", "gsam"]
)
def test_a_clean_gradient_that_is_not_needed_is_free_before_the_second_pass(
    name: str, accumulates: bool
) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name), net, closure_accumulates=accumulates)
    first: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def closure() -> Tensor:
        if first:
            alive.append(any(ref() is not None for ref in first))
        loss = loss_of(net)
        loss.backward()
        if not first:
            first.extend(weakref.ref(p.grad) for p in net.parameters() if p.grad is not None)
        return loss

    optimizer.diagnostics.before_second_pass([])  # its first sample would hold small tensors whole
    optimizer.step(closure)
    # Where it is needed it lies in place, or in a copy: the closure may write into the same memory again.
    assert alive == [accumulates and name in ("pugd", "gnp")]


@pytest.mark.parametrize(
    ("name", "copies"), [("sam", 1), ("pugd", 1), ("gsam", 1), ("sam_on", 0), ("ugd", 0)]
)
def test_the_memory_kept_between_steps_is_the_documented_one(name: str, copies: int) -> None:
    model = nn.Sequential(nn.Linear(100, 100), nn.LayerNorm(100), nn.Linear(100, 100))
    optimizer = build_optimizer(spec_of(name, {"name": "sgd", "lr": 0.1}), model, closure_accumulates=True)

    def closure() -> Tensor:
        loss = model(torch.ones(4, 100)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
    gc.collect()
    shapes = [p.shape for p in model.parameters()]
    copies_alive = [
        t for t in gc.get_objects() if isinstance(t, Tensor) and t.shape in shapes and t.dim() == 2
    ]
    assert len(copies_alive) == 2 * (1 + copies)


@pytest.mark.parametrize("name", ["plain", "sam", "pugd", "gsam", "wsam"])
def test_fp16_with_loss_scaling_follows_fp32_and_without_it_does_not(name: str) -> None:
    full = half_run(name, None, None)
    moved = deviation(full, Half(None))
    assert deviation(half_run(name, torch.float16, LossScale()), full) < 0.05 * moved
    assert deviation(half_run(name, torch.float16, None), full) > 0.2 * moved


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_a_loss_scale_changes_nothing_where_nothing_overflows(name: str, accumulates: bool) -> None:
    clear = "nothing" if accumulates else "in place"
    plain, _ = run(spec_of(name), clear=clear, closure_accumulates=accumulates)
    scaled, _ = run(spec_of(name), clear=clear, closure_accumulates=accumulates, loss_scale=LossScale())
    assert deviation(plain, scaled) < 1e-13


@pytest.mark.parametrize("name", ALWAYS_TWO)
@pytest.mark.parametrize("overflow_in", [1, 2])
def test_an_overflow_in_either_pass_halves_the_scale_once_and_keeps_every_bit(
    name: str, overflow_in: int
) -> None:
    net = network()
    scale = LossScale(initial=2.0**10, growth_interval=3)
    optimizer = build_optimizer(spec_of(name), net, loss_scale=scale)
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        loss = loss_of(net, float("inf") if len(calls) == overflow_in else 1.0)
        optimizer.backward(loss)
        return loss

    optimizer.step(closure)
    assert unchanged(net)
    assert scale.state_dict()["scale"] == 2.0**9
    for _ in range(3):
        optimizer.zero_grad()
        optimizer.step(closure)
    assert scale.state_dict()["scale"] == 2.0**10
    state = optimizer.state_dict()
    again = build_optimizer(spec_of(name), network(), loss_scale=LossScale())
    again.load_state_dict(state)
    assert again.loss_scale is not None
    assert again.loss_scale.state_dict() == scale.state_dict()
