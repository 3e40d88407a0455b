"""The noise of residual branches: its distribution, its replay, and the gradient of each pass of a method."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from optimizer_cases import ALL, ALWAYS_TWO, spec_of
from torch import Tensor, nn
from torch.nn import functional

from pugdft.architectures.shake import ShakeDrop, ShakeShake
from pugdft.architectures.shake_resnet import ShakeResNet
from pugdft.optim import LossScale, build_optimizer
from pugdft.optim.perturbed import PerturbedOptimizer

DRAWS = 20_000
SGD: dict[str, Any] = {"name": "sgd", "lr": 1.0}


def factors(layer: nn.Module, num_images: int = DRAWS) -> tuple[Tensor, Tensor]:
    """A layer's factors of value and gradient, of each image; of Shake-Shake, those of its first branch."""
    branch = torch.ones(num_images, 1, 1, 1, dtype=torch.float64, requires_grad=True)
    others = (torch.zeros_like(branch),) if isinstance(layer, ShakeShake) else ()
    out = layer(branch, *others)
    out.sum().backward()
    assert branch.grad is not None
    return out.detach().flatten(), branch.grad.flatten()


def correlation(first: Tensor, second: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([first, second]))[0, 1])


def shake_drop(keep: float = 0.5) -> ShakeDrop:
    return ShakeDrop(keep)


# --- the layers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.9])
def test_shake_drop_has_the_paper_s_means_and_variance(keep: float) -> None:
    torch.manual_seed(0)
    value, slope = factors(ShakeDrop(keep))
    variance = keep + (1 - keep) / 3 - keep**2
    of_slope = keep + (1 - keep) / 3 - (keep + (1 - keep) / 2) ** 2
    assert float(value.mean()) == pytest.approx(keep, abs=4 * math.sqrt(variance / DRAWS))
    assert float(slope.mean()) == pytest.approx((1 + keep) / 2, abs=4 * math.sqrt(of_slope / DRAWS))
    assert float(value.var()) == pytest.approx(variance, rel=0.03)
    assert float(slope.var()) == pytest.approx(of_slope, rel=0.03)
    shaken = value != 1
    assert float(shaken.double().mean()) == pytest.approx(1 - keep, abs=0.015)
    assert bool((slope[~shaken] == 1).all()), "what is kept has its own gradient"
    assert abs(correlation(value[shaken], slope[shaken])) < 4 / math.sqrt(int(shaken.sum()))


def test_shake_shake_has_the_paper_s_means_and_variance() -> None:
    torch.manual_seed(0)
    value, slope = factors(ShakeShake())
    for factor in (value, slope):
        assert float(factor.mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / DRAWS))
        assert float(factor.var()) == pytest.approx(1 / 12, rel=0.03)
        assert 0 <= float(factor.min()) < float(factor.max()) <= 1
    assert abs(correlation(value, slope)) < 4 / math.sqrt(DRAWS)


def test_the_branches_of_shake_shake_share_one_whole() -> None:
    torch.manual_seed(0)
    a, b = (torch.randn(8, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ShakeShake()(a, b).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(a.grad + b.grad, torch.ones_like(a))


@pytest.mark.parametrize("layer", [ShakeDrop(0.5), ShakeShake()], ids=repr)
def test_the_true_gradient_is_that_of_the_value_and_changes_no_draw(layer: Any) -> None:
    torch.manual_seed(3)
    shaken, _ = factors(layer)
    after = torch.get_rng_state()
    torch.manual_seed(3)
    layer = copy.deepcopy(layer)
    layer.true_gradient = True
    value, slope = factors(layer)
    assert torch.equal(value, slope)
    torch.testing.assert_close(value, shaken, rtol=0, atol=1e-15)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize("layer", [ShakeDrop(0.5), ShakeShake()], ids=repr)
@pytest.mark.parametrize("true_gradient", [False, True])
def test_factors_are_an_image_s_own_and_equal_for_its_pixels(layer: Any, true_gradient: bool) -> None:
    torch.manual_seed(0)
    layer = copy.deepcopy(layer)
    layer.true_gradient = true_gradient
    branch = torch.ones(6, 3, 4, 4, requires_grad=True)
    out = layer(branch, *([torch.zeros_like(branch)] if isinstance(layer, ShakeShake) else []))
    out.sum().backward()
    assert branch.grad is not None
    for factor in (out.detach(), branch.grad):
        assert torch.equal(factor, factor[:, :1, :1, :1].expand_as(factor))
    if isinstance(layer, ShakeShake):
        assert len(set(out.detach()[:, 0, 0, 0].tolist())) == 6
        assert len(set(branch.grad[:, 0, 0, 0].tolist())) == 6


@pytest.mark.parametrize(("layer", "inputs"), [(ShakeDrop(0.7), 1), (ShakeShake(), 2)])
def test_evaluation_draws_nothing(layer: nn.Module, inputs: int) -> None:
    state = torch.get_rng_state()
    branches = [torch.full((2, 3, 1, 1), 2.0 + number) for number in range(inputs)]
    out = copy.deepcopy(layer).eval()(*branches)
    assert torch.equal(out, branches[0] * 0.7 if inputs == 1 else torch.full((2, 3, 1, 1), 2.5))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("true_gradient", [True, False])
def test_a_branch_that_is_always_kept_is_the_branch_to_the_bit(training: bool, true_gradient: bool) -> None:
    layer = ShakeDrop(1.0).train(training)
    layer.true_gradient = true_gradient
    branch = torch.randn(64, 3, 4, 4, requires_grad=True)
    upstream = torch.randn(64, 3, 4, 4)
    out = layer(branch)
    out.backward(upstream)
    assert torch.equal(out, branch)
    assert torch.equal(branch.grad, upstream)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_branches_have_the_noise_of_wide_ones_rounded(dtype: torch.dtype) -> None:
    """Drawn in the narrow type, a seed would give other noise, and gates other odds."""
    layer, branch = shake_drop(), torch.ones(500, 1, 1, 1)
    layer.true_gradient = True
    torch.manual_seed(1)
    wide = layer(branch)
    torch.manual_seed(1)
    narrow = layer(branch.to(dtype))
    assert narrow.dtype == dtype
    assert torch.equal(narrow, wide.to(dtype))


def test_the_sum_of_value_and_slope_rounds_as_little_as_a_product() -> None:
    torch.manual_seed(0)
    branch, layer = torch.randn(200, 4, 3, 3), shake_drop()
    torch.manual_seed(1)
    narrow = layer(branch).double()
    torch.manual_seed(1)
    wide = layer(branch.double())
    assert float(((narrow - wide).abs() / branch.abs()).max()) < 2.5e-7


@pytest.mark.parametrize("keep", [-0.1, 1.1, math.nan])
def test_an_impossible_probability_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep: .* is not in 0\.\.1"):
        ShakeDrop(keep)


# --- the passes of a method --------------------------------------------------------------------------------


class NoisyNet(nn.Module):
    """Two residual branches in float64, shaken; a step sees 12 inputs."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.first, self.left, self.right, self.last = (
                nn.Linear(4, 4, dtype=torch.float64) for _ in range(4)
            )
            self.inputs = torch.randn(12, 4, dtype=torch.float64)
        self.drop, self.mix = ShakeDrop(0.4), ShakeShake()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop(torch.tanh(self.first(x)))
        return self.last(x + self.mix(torch.tanh(self.left(x)), torch.tanh(self.right(x))))

    def loss(self) -> Tensor:
        return self(self.inputs).square().mean()


def closure_of(net: NoisyNet, optimizer: PerturbedOptimizer, calls: list[Any]) -> Callable[[], Tensor]:
    """A closure that notes which gradient each of its calls has, and the values of the shaken branches."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        values: list[Tensor] = []
        hooks = [
            layer.register_forward_hook(lambda layer, given, out: values.append(out.detach().clone()))
            for layer in (net.drop, net.mix)
        ]
        loss = net.loss()
        optimizer.backward(loss)
        for hook in hooks:
            hook.remove()
        assert net.drop.true_gradient == net.mix.true_gradient
        calls.append((net.drop.true_gradient, values))
        return loss

    return closure


def gradients_seen(net: NoisyNet, optimizer: PerturbedOptimizer, steps: int = 1) -> list[list[bool]]:
    """For each step, whether each of its passes had the true gradient."""
    seen = []
    for step in range(steps):
        optimizer.progress = step / steps
        calls: list[Any] = []
        optimizer.step(closure_of(net, optimizer, calls))
        assert not net.drop.true_gradient
        assert not net.mix.true_gradient
        seen.append([is_true for is_true, _ in calls])
    return seen


@pytest.mark.parametrize("name", ALL)
def test_ascents_have_the_true_gradient_and_all_other_passes_the_shaken_one(name: str) -> None:
    net = NoisyNet()
    options = {"inner_iter": 3} if name == "amp" else {}
    norms = nn.LayerNorm(4, dtype=torch.float64)
    if name == "sam_on":
        net.last = nn.Sequential(norms, net.last)  # type: ignore[assignment]
    optimizer = build_optimizer(spec_of(name, {**SGD, "lr": 0.1, "momentum": 0.9}, **options), net)
    one_pass, two_passes = [False], [True, False]
    expected = {
        "amp": [[True] * 3 + [False]] * 3,
        "multi_step": [[True] * 2 + [False]] * 3,
        "lookbehind": [[True] * 2 + [False]] * 3,
        "looksam": [two_passes, one_pass, one_pass],
        "pugd_t": [one_pass] * 3,  # only its own gradients tell when it perturbs
    }
    usual = [two_passes if name in ALWAYS_TWO else one_pass] * 3
    assert gradients_seen(net, optimizer, 3) == expected.get(name, usual)


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [
        ({"name": "after", "fraction": 0.5}, [1, 1, 2, 2]),
        ({"name": "every", "k": 3}, [2, 1, 1, 2]),
        ({"name": "probability", "p": 0.5, "seed": 2}, None),
        # Known from the step on after that in which it fires: this one's ascent is along the shaken gradient.
        ({"name": "gradient_cosine", "kappa": -1, "k": 1}, [1, 3, 2, 2]),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_steps_of_one_pass_have_the_shaken_gradient(
    trigger: dict[str, Any], expected: list[int] | None
) -> None:
    net = NoisyNet()
    optimizer = build_optimizer(spec_of("pugd", {**SGD, "lr": 0.01}, trigger=trigger), net)
    kinds = {1: [False], 2: [True, False], 3: [False, False]}
    seen = gradients_seen(net, optimizer, 4)
    if expected is None:
        assert {tuple(each) for each in seen} == {(False,), (True, False)}
    else:
        assert seen == [kinds[each] for each in expected]


def test_with_a_gap_as_the_trigger_too() -> None:
    net = NoisyNet()
    trigger = {"name": "generalization_gap", "mu": 0.0, "every": 1}
    optimizer = build_optimizer(spec_of("sam", SGD | {"lr": 0.01}, trigger=trigger), net)
    assert gradients_seen(net, optimizer) == [[False]]
    for epoch in range(5):
        optimizer.observe_epoch(1.0, 2.0 + epoch, 5)
    assert gradients_seen(net, optimizer) == [[True, False]]


@pytest.mark.parametrize("name", sorted({*ALWAYS_TWO} - {"sam_on"}))  # there is no norm for sam_on
@pytest.mark.parametrize("replay", [True, False])
def test_both_passes_see_the_same_noise_unless_told_not_to(name: str, replay: bool) -> None:
    """At the radius 0 (of no effect on any weight) both passes' shaken branches are equal."""
    net, radius = NoisyNet(), {"amp": "epsilon", "gsam": "rho_max"}.get(name, "rho")
    options = {radius: 0.0, **({"rho_min": 0.0} if name == "gsam" else {})}
    optimizer = build_optimizer(spec_of(name, SGD, replay_rng=replay, **options), net)
    calls: list[Any] = []
    optimizer.step(closure_of(net, optimizer, calls))
    (_, first), *others = calls
    for _, values in others:
        for before, after in zip(first, values, strict=True):
            assert torch.allclose(before, after, rtol=0, atol=1e-14) == replay
    optimizer.step(closure_of(net, optimizer, calls))
    assert not torch.allclose(calls[-1][1][0], first[0], rtol=0, atol=1e-3), "the next step draws anew"


def reference_gradient(weights: list[Tensor], inputs: Tensor, true_gradient: bool) -> list[Tensor]:
    """The gradient of :class:`NoisyNet` by the chain rule of a loss whose branches' values are given.

    Each branch x has the value f·x and hands down g times the gradient that it gets: so the gradient is that
    of the network of g·x + constant, where the constant makes it f·x.
    """
    w = [each.clone().requires_grad_() for each in weights]
    drop, mix = torch.rand(3, 12, 1), torch.rand(2, 12, 1)
    f_drop = torch.where(drop[0] < 0.4, torch.ones(()), 2 * drop[1] - 1).double()
    g_drop = f_drop if true_gradient else torch.where(drop[0] < 0.4, torch.ones(()), drop[2]).double()
    f_mix = mix[0].double()
    g_mix = f_mix if true_gradient else mix[1].double()

    def linear(x: Tensor, number: int) -> Tensor:
        return functional.linear(x, w[2 * number], w[2 * number + 1])

    branch = torch.tanh(linear(inputs, 0))
    x = inputs + g_drop * branch + ((f_drop - g_drop) * branch).detach()
    left, right = torch.tanh(linear(x, 1)), torch.tanh(linear(x, 2))
    mixed = g_mix * left + (1 - g_mix) * right
    value = f_mix * left + (1 - f_mix) * right
    out = linear(x + mixed + (value - mixed).detach(), 3)
    return list(torch.autograd.grad(out.square().mean(), w))


def length(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors]).norm()


@pytest.mark.parametrize("name", ["plain", "sam", "gnp", "pugd", "wsam", "ugd"])
def test_an_update_equals_a_reference_with_the_true_clean_and_the_shaken_perturbed_gradient(
    name: str,
) -> None:
    net = NoisyNet()
    start = [parameter.detach().clone() for parameter in net.parameters()]

    def gradient(weights: list[Tensor], true_gradient: bool) -> list[Tensor]:
        torch.manual_seed(11)
        return reference_gradient(weights, net.inputs, true_gradient)

    shaken, g = gradient(start, False), gradient(start, True)
    along = [w.abs() * each for w, each in zip(start, g, strict=True)] if name == "pugd" else g
    rho = 0.5 / length(along)
    star = gradient([w + rho * each for w, each in zip(start, along, strict=True)], False)
    pairs = list(zip(g, star, strict=True))
    h = {
        "plain": shaken,
        "ugd": [each / length(shaken) for each in shaken],
        "sam": star,
        "gnp": [0.2 * a + 0.8 * b for a, b in pairs],
        "pugd": [(a + b) / length([c + d for c, d in pairs]) for a, b in pairs],
        "wsam": [a + 0.25 / 0.75 * (b - a) for a, b in pairs],  # γ = .25
    }[name]
    options: dict[str, Any] = {} if name in ("plain", "ugd") else {"rho": 0.5}
    optimizer = build_optimizer(
        spec_of(name, {**SGD, "lr": 0.1}, **options, **({"gamma": 0.25} if name == "wsam" else {})), net
    )
    torch.manual_seed(11)
    optimizer.step(closure_of(net, optimizer, []))
    for before, step, parameter in zip(start, h, net.parameters(), strict=True):
        torch.testing.assert_close(parameter, before - 0.1 * step, rtol=0, atol=1e-12)


def test_the_loss_climbs_most_along_the_true_gradient_of_the_same_noise() -> None:
    """What the switch and the replay are for, over 8 draws of a small Shake-Shake network."""
    torch.manual_seed(0)
    net, images = ShakeResNet(depth=14, width=8), torch.randn(16, 3, 16, 16)
    labels, weights = torch.randint(10, (16,)), list(net.parameters())

    def loss(seed: int, true_gradient: bool = False) -> Tensor:
        for layer in net.modules():
            if isinstance(layer, ShakeShake):
                layer.true_gradient = true_gradient
        torch.manual_seed(seed)
        return functional.cross_entropy(net(images), labels)

    def climb(seed: int, along_seed: int, true_gradient: bool) -> float:
        gradient = torch.autograd.grad(loss(along_seed, true_gradient), weights)
        step = 0.05 / float(length(list(gradient)))
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            start = loss(seed)
            for weight, each in zip(weights, gradient, strict=True):
                weight += step * each
            gain = float(loss(seed) - start)
            for weight, each in zip(weights, before, strict=True):
                weight.copy_(each)
        return gain

    seeds = range(8)
    true, shaken, other = (
        sum(climb(seed, seed + shift, true_gradient) for seed in seeds) / len(seeds)
        for shift, true_gradient in ((0, True), (0, False), (100, True))
    )
    assert true > 1.3 * shaken
    assert shaken > 1.3 * other


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("scale", [None, 8.0])
def test_other_closures_and_a_loss_scale_make_the_same_update(accumulates: bool, scale: float | None) -> None:
    def updated(**options: Any) -> NoisyNet:
        net = NoisyNet()
        optimizer = build_optimizer(spec_of("gnp", SGD | {"lr": 0.1}), net, **options)
        torch.manual_seed(1)

        def closure() -> Tensor:
            if not options.get("closure_accumulates"):
                optimizer.zero_grad()
            loss = net.loss()
            optimizer.backward(loss)
            return loss

        optimizer.step(closure)
        return net

    loss_scale = None if scale is None else LossScale(scale)
    other = updated(closure_accumulates=accumulates, loss_scale=loss_scale)
    for one, two in zip(updated().parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-14)


def test_after_an_error_in_an_ascent_the_layers_are_as_they_were() -> None:
    net = NoisyNet()
    net.mix.true_gradient = True  # a user's own choice
    optimizer = build_optimizer(spec_of("sam", SGD), net)

    def closure() -> Tensor:
        assert net.drop.true_gradient
        raise KeyError("in the data")

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert (net.drop.true_gradient, net.mix.true_gradient) == (False, True)


def test_only_switches_are_set() -> None:
    """Not a method or a tensor of a user's module that has this name by chance."""

    class Other(nn.Linear):
        def true_gradient(self) -> str:
            return "mine"

    net = NoisyNet()
    net.last = Other(4, 4, dtype=torch.float64)
    assert gradients_seen(net, build_optimizer(spec_of("sam", SGD), net)) == [[True, False]]
    assert net.last.true_gradient() == "mine"  # type: ignore[operator]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copied_optimizer_switches_its_own_model(copied: Any) -> None:
    net = NoisyNet()
    optimizer = build_optimizer(spec_of("pugd", SGD | {"lr": 0.1}), net)
    other, its_optimizer = copied((net, optimizer))
    assert gradients_seen(other, its_optimizer) == [[True, False]]
    net.drop.register_forward_hook(lambda *given: pytest.fail("the copy ran the original"))
    assert gradients_seen(other, its_optimizer) == [[True, False]]


@pytest.mark.slow
def test_a_compiled_model_has_both_gradients() -> None:
    """torch.compile makes a graph for each value of the switch."""
    updates = []
    for is_compiled in (False, True):
        net = NoisyNet()
        model = torch.compile(net, backend="aot_eager") if is_compiled else net
        optimizer = build_optimizer(spec_of("gnp", SGD | {"lr": 0.1}), model)

        def closure(model: Any = model, net: Any = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = model(net.inputs).square().mean()
            loss.backward()
            return loss

        for seed in range(2):
            torch.manual_seed(seed)
            optimizer.step(closure)
        updates.append([parameter.detach().clone() for parameter in net.parameters()])
    for eager, compiled in zip(*updates, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=0, atol=1e-14)


@pytest.mark.parametrize("true_gradient", [False, True])
def test_with_gradient_checkpointing_the_second_forward_draws_the_same(true_gradient: bool) -> None:
    torch.manual_seed(0)
    net, images = ShakeResNet(depth=8, width=4).double(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    for layer in net.modules():
        if isinstance(layer, ShakeShake):
            layer.true_gradient = true_gradient
    gradients = []
    for is_checkpointed in (False, True):
        net.set_grad_checkpointing(is_checkpointed)
        net.zero_grad()
        torch.manual_seed(1)
        net(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))
