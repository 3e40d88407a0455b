"""Every method against its float64 reference, the identities between methods, and bad specs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from optimizer_cases import (
    ADAMW_BASE,
    ALL,
    DECAYS,
    LRS,
    SGD_BASE,
    TWO_PASS,
    deviation,
    go_on,
    gradient_of,
    loss_of,
    lr_share,
    make_closure,
    network,
    run,
    spec_of,
    start,
)
from reference import REFERENCES, SGD, AdamW, Plain, PugdT, cases, reference_run
from torch import Tensor, nn

from pugdft.errors import FaultsError, UserError
from pugdft.optim import (
    build_optimizer,
    describe,
    foreach,
    optimizer_names,
    resolve_spec,
    spec_faults,
    summary,
)
from pugdft.optim.base import BASES
from pugdft.optim.context import StepContext
from pugdft.optim.methods import METHODS
from pugdft.optim.schedules import as_schedule


@pytest.mark.parametrize(
    ("name", "options", "reference", "base", "clear"),
    cases(["optimizer", "in place", "to none", "nothing", "nothing, promised"]),
)
def test_method_equals_its_float64_reference_on_two_groups(
    name: str, options: dict[str, Any], reference: type[Plain], base: str, clear: str
) -> None:
    steps = 40 if reference is PugdT else 7
    decays = [DECAYS[0]] * 3 + [DECAYS[1]] * 3
    spec = spec_of(name, SGD_BASE if base == "sgd" else ADAMW_BASE, **options)
    promised = clear.endswith("promised")
    net, optimizer = run(spec, steps, clear.split(",")[0], closure_accumulates=promised)
    written = reference()
    expected = reference_run(written, SGD(0.9, decays) if base == "sgd" else AdamW(decays), steps)
    assert deviation(net, expected) < 1e-10
    if isinstance(written, PugdT) and base == "sgd":
        assert written.fired
        assert 0 < optimizer.num_two_pass_steps < steps


@pytest.mark.parametrize(("small", "many"), [(0, 64), (4096, 2)])
@pytest.mark.parametrize("name", ALL)
def test_small_tensors_together_equal_one_after_the_other(
    name: str, small: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, _ = run(spec_of(name))
    monkeypatch.setattr(foreach, "SMALL", small)
    monkeypatch.setattr(foreach, "_MANY", many)
    apart, _ = run(spec_of(name))
    assert deviation(together, apart) < 1e-12


def test_every_registered_method_has_a_reference() -> None:
    assert {name for name, _, _ in REFERENCES} == set(ALL)


@pytest.mark.parametrize(
    ("first", "second", "tolerance"),
    [
        (("sam", {"rho": 0.0}), ("plain", {}), 0.0),
        (("asam", {"rho": 0.0}), ("plain", {}), 0.0),
        (("fsam", {"rho": 0.0}), ("plain", {}), 0.0),
        (("vasso", {"rho": 0.0}), ("plain", {}), 0.0),
        (("sam_on", {"rho": 0.0}), ("plain", {}), 0.0),
        (("msam", {"rho": 0.0}), ("plain", {}), 0.0),
        (("amp", {"epsilon": 0.0}), ("plain", {}), 0.0),
        (("rwp", {"sigma": 0.0}), ("plain", {}), 0.0),
        (("multi_step", {"rho": 0.0}), ("plain", {}), 0.0),
        (("multi_step", {"k": 1}), ("sam", {}), 0.0),
        (("lookbehind", {"k": 1, "alpha": 1.0}), ("sam", {}), 0.0),
        (("lookbehind", {"rho": 0.0}), ("plain", {}), 1e-14),  # two equal gradients, halved
        (("sam", {"mask": {"name": "random", "share": 1.0}}), ("sam", {}), 1e-14),
        (("sam", {"mask": {"name": "largest_fisher", "share": 1.0}}), ("sam", {}), 1e-14),
        (("sam", {"mask": {"name": "largest_z", "share": 1.0}}), ("sam", {}), 0.0),
        (("pugd", {"rho": 0.0, "mask": {"name": "random"}}), ("ugd", {}), 1e-12),
        (
            ("asam", {"rho": 0.3, "mask": {"name": "norm_layers"}}),
            ("sam_on", {"rho": 0.3, "eta": 0.01, "bias_rule": "paper"}),
            0.0,
        ),
        (("sam", {"rho": {"schedule": "loss_budget", "sigma": 1e9, "rho_max": 0.05}}), ("sam", {}), 1e-14),
        (("sam", {"rho": {"schedule": "loss_budget", "sigma": 0.0, "rho_max": 9}}), ("plain", {}), 0.0),
        (("sam", {"trigger": {"name": "adaptive", "lambda_1": -1e9, "lambda_2": -1e9}}), ("sam", {}), 0.0),
        (("sam", {"trigger": {"name": "adaptive", "lambda_1": 1e9, "lambda_2": 1e9}}), ("plain", {}), 0.0),
        (("rwp", {"alpha": 0.0}), ("plain", {}), 0.0),
        (("rwp", {"sigma": 0.0, "alpha": 0.5}), ("plain", {}), 1e-14),
        (("gnp", {"rho": 0.0}), ("plain", {}), 1e-14),
        (("pugd", {"rho": 0.0}), ("ugd", {}), 1e-12),
        (("sam_gns", {"rho": 0.0}), ("ugd", {}), 0.0),
        (("gnp", {"alpha": 1.0}), ("sam", {"rho": 0.1}), 1e-14),
        (("gnp", {"alpha": 0.0}), ("plain", {}), 0.0),
        (("gsam", {"alpha": 0.0, "rho_min": 0.05}), ("sam", {}), 1e-14),
        (("fsam", {"sigma": 0.0}), ("sam", {"rho": 0.2}), 0.0),
        (("vasso", {"theta": 1.0}), ("sam", {"rho": 0.2}), 1e-14),
        (("looksam", {"k": 1}), ("sam", {}), 0.0),
        (("wsam", {"gamma": 0.0}), ("plain", {}), 0.0),
        (("pugd_s", {"scale": 1.0}), ("pugd", {}), 0.0),
        (("pugd_r", {"rho": 1.0}), ("pugd", {}), 0.0),
        (("pugd_t", {"trigger": {"name": "after", "fraction": 0.0}}), ("pugd", {}), 0.0),
        (("pugd_t", {"trigger": {"name": "after", "fraction": 1.0}}), ("plain", {}), 0.0),
        (("pugd", {"trigger": {"name": "after", "fraction": 1.0, "before": "unit"}}), ("ugd", {}), 0.0),
        (("sam", {"trigger": {"name": "probability", "p": 1.0}}), ("sam", {}), 0.0),
        (("sam", {"trigger": {"name": "every", "k": 1}}), ("sam", {}), 0.0),
        (("sam", {"rho": {"schedule": "linear", "start": 0.05, "end": 0.05}}), ("sam", {}), 0.0),
    ],
    ids=str,
)
def test_identity_between_methods_buffers_included(first: Any, second: Any, tolerance: float) -> None:
    (one, one_options), (other, other_options) = first, second
    net, optimizer = run(spec_of(one, **one_options))
    same, reference = run(spec_of(other, **other_options))
    assert deviation(net, same) <= tolerance
    for parameter, counterpart in zip(net.parameters(), same.parameters(), strict=True):
        for key, value in reference.state[counterpart].items():
            assert float((optimizer.state[parameter][key] - value).abs().max()) <= tolerance


@pytest.mark.parametrize("a", [0.5, 3.0])
def test_pugd_s_with_a_constant_scale_has_the_direction_of_a_mixture(a: float) -> None:
    """U ∝ a·g + g* ∝ (1 − α)·g + α·g* with α = 1/(1 + a)."""
    net = network()
    optimizer = build_optimizer(spec_of("pugd_s", {"name": "sgd", "lr": 1.0}, scale=a), net)
    optimizer.step(make_closure(optimizer, net))
    moved = torch.cat([(w - p.detach()).flatten() for w, p in zip(start(), net.parameters(), strict=True)])
    g = gradient_of(start())
    scaled = [w.abs() * each for w, each in zip(start(), g, strict=True)]
    length = torch.sqrt(sum((each**2).sum() for each in scaled))
    g_star = gradient_of([w + e / length for w, e in zip(start(), scaled, strict=True)])
    alpha = 1 / (1 + a)
    mixed = [(1 - alpha) * x + alpha * y for x, y in zip(g, g_star, strict=True)]
    mixture = torch.cat([each.flatten() for each in mixed])
    torch.testing.assert_close(moved, mixture / mixture.norm(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["sgd", "adam", "adamw", "adagrad", "rmsprop", "lion", "lamb", "nadamw", "adamax"]
)
def test_base_alone_equals_the_library_s_bit_for_bit(name: str) -> None:
    from timm.optim import create_optimizer_v2

    options = {"lr": 0.01, "weight_decay": 0.02} | ({"momentum": 0.9} if name == "sgd" else {})
    classes: dict[str, Any] = {
        "sgd": torch.optim.SGD,
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    ours, theirs = network(), network()
    optimizer = build_optimizer({"name": name, **options}, ours)
    if name in classes:
        fused = {"fused": True} if name in ("sgd", "adam", "adamw") else {}
        library = classes[name](theirs.parameters(), **options, **fused)
    else:
        library = create_optimizer_v2(theirs, opt=name, filter_bias_and_bn=False, **options)
    for _ in range(4):
        optimizer.step(make_closure(optimizer, ours))
        library.zero_grad()
        loss_of(theirs).backward()
        library.step()
    assert deviation(ours, theirs) == 0


@pytest.mark.parametrize("base", ["lion", "lamb", "adagrad", "rmsprop"])
def test_any_base_works_below_any_method(base: str) -> None:
    for name in ("sam", "pugd", "looksam"):
        zero, _ = run(spec_of(name, {"name": base, "lr": 0.1}))
        assert all(torch.isfinite(p).all() for p in zero.parameters())
        assert deviation(zero, start()) > 1e-3


@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e6])
@pytest.mark.parametrize("name", ["ugd", "ngd_cw", "sam_gns", "pugd", "pugd_r", "pugd_s", "pugd_rs"])
def test_unit_methods_do_not_depend_on_the_scale_of_the_loss(name: str, scale: float) -> None:
    assert deviation(run(spec_of(name), scale=scale)[0], run(spec_of(name))[0]) < 1e-7


@pytest.mark.parametrize("name", ALL)
def test_one_group_equals_many(name: str) -> None:
    single, many = network(), network()
    first = build_optimizer(spec_of(name), single)
    second = build_optimizer(
        spec_of(name), [{"params": [named]} for named in many.named_parameters()], module=many
    )
    for optimizer, net in ((first, single), (second, many)):
        for _ in range(4):
            optimizer.step(make_closure(optimizer, net))
    assert deviation(single, many) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_zero_learning_rate_leaves_every_bit(name: str, dtype: torch.dtype) -> None:
    net = network(dtype)
    before = [p.detach().clone() for p in net.parameters()]
    base = {"name": "sgd", "lr": 0.1, "momentum": 0.9}
    optimizer = build_optimizer(spec_of(name, base), net)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(6):
        optimizer.step(make_closure(optimizer, net))
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("spec", "start_value", "middle", "end"),
    [
        (0.3, 0.3, 0.3, 0.3),
        ({"schedule": "sin", "min": 0.5, "max": 2}, 0.5, 0.5 + 1.5 * 0.5**0.5, 2),
        ({"schedule": "cos", "min": 0.5, "max": 2}, 2, 0.5 + 1.5 * 0.5**0.5, 0.5),
        ({"schedule": "isin", "min": 0.5, "max": 2}, 2, 1 / (0.5 + 1.5 * 0.5**0.5), 0.5),
        ({"schedule": "icos", "min": 0.5, "max": 2}, 0.5, 1 / (0.5 + 1.5 * 0.5**0.5), 2),
        ({"schedule": "linear", "start": 1, "end": 0}, 1, 0.5, 0),
        ({"schedule": "cosine", "min": 1, "max": 3}, 3, 2, 1),
        ({"schedule": "constant", "value": 4}, 4, 4, 4),
        ({"schedule": "proportional_to_lr", "min": 0.1, "max": 0.5}, 0.5, 0.3, 0.1),
    ],
)
def test_schedules_run_between_their_bounds(spec: Any, start_value: float, middle: float, end: float) -> None:
    schedule = as_schedule(spec, "rho")
    values = [schedule(StepContext(0, p, 0.1 * (1 - p), 0.1)) for p in (0.0, 0.5, 1.0)]
    assert values == pytest.approx([start_value, middle, end])


@pytest.mark.parametrize(
    ("trigger", "pattern"),
    [
        ({"name": "every", "k": 3}, [1, 0, 0, 1, 0, 0, 1, 0, 0, 1]),
        ({"name": "after", "fraction": 0.45}, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),
        ({"name": "probability", "p": 0.0}, [0] * 10),
    ],
)
def test_triggers_fire_when_they_say(trigger: dict[str, Any], pattern: list[int]) -> None:
    net = network()
    optimizer = build_optimizer(spec_of("sam", trigger=trigger), net)
    fired = []
    for step in range(10):
        before = optimizer.num_two_pass_steps
        optimizer.progress = step / 10
        optimizer.step(make_closure(optimizer, net))
        fired.append(optimizer.num_two_pass_steps - before)
    assert fired == pattern


def test_probability_depends_on_the_seed_and_the_step_alone() -> None:
    counts = []
    for seed in (0, 0, 1):
        trigger = {"name": "probability", "p": 0.5, "seed": seed}
        net, optimizer = run(spec_of("sam", trigger=trigger), steps=30)
        counts.append((optimizer.num_two_pass_steps, deviation(net, start())))
    assert counts[0] == counts[1] != counts[2]
    assert 5 < counts[0][0] < 25


def test_gradient_cosine_fires_once_gradients_agree() -> None:
    trigger = {"name": "gradient_cosine", "kappa": 0.9, "k": 4}
    net = network()
    optimizer = build_optimizer(spec_of("sam", {"name": "sgd", "lr": 1e-4}, trigger=trigger), net)
    for _ in range(10):
        optimizer.step(make_closure(optimizer, net))
    # the first cosine needs two steps, the mean four cosines: the fifth step is the first to perturb
    assert optimizer.num_two_pass_steps == 6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["gradient_variance", "gradient_cosine", "adaptive"])
def test_an_overflow_leaves_no_trace_in_a_trigger(name: str, bad: float) -> None:
    net = network()
    trigger = {"name": name} | ({} if name == "adaptive" else {"k": 3})
    optimizer = build_optimizer(spec_of("sam", trigger=trigger), net)
    optimizer.progress = 0.05
    optimizer.step(make_closure(optimizer, net))
    before = optimizer.state_dict()["pugdft"]["memories"]["trigger"]["values"]
    optimizer.step(make_closure(optimizer, net, scale=bad))
    assert optimizer.state_dict()["pugdft"]["memories"]["trigger"]["values"] == before


def test_gsam_s_radius_follows_the_learning_rate_through_warm_up() -> None:
    net = network()
    optimizer = build_optimizer(spec_of("gsam", {"name": "sgd", "lr": 1.0}), net)
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step(make_closure(optimizer, net))
    assert optimizer.diagnostics.mean("norm") == pytest.approx(0.01 + 0.04 * 0.25, rel=1e-6)


def test_several_ascents_may_keep_the_clean_gradient() -> None:
    spec = spec_of(
        "rules",
        direction={"name": "clipped_ascent", "num_ascents": 2, "inner_lr": 0.1},
        rho=0.2,
        combine="scaled",
    )
    held, _ = run(spec, clear="nothing", closure_accumulates=False)
    in_place, _ = run(spec, clear="nothing", closure_accumulates=True)
    assert deviation(held, in_place) == 0


def test_sam_on_with_frozen_norms_is_refused() -> None:
    net = network()
    for parameter in net.norm.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(UserError, match="that are trained"):
        build_optimizer(spec_of("sam_on"), net)


def test_generalization_gap_fires_on_the_held_out_loss() -> None:
    net = network()
    trigger = {"name": "generalization_gap", "mu": 2.0, "every": 2}
    optimizer = build_optimizer(spec_of("sam", trigger=trigger), net)
    fired = []
    for validation in (1.1, 1.1, 1.1, 1.15, 1.5, 1.5, 1.0):
        optimizer.observe_epoch(1.0, validation, 10)
        before = optimizer.num_two_pass_steps
        optimizer.step(make_closure(optimizer, net))
        fired.append(optimizer.num_two_pass_steps - before)
    # baseline .1 over 3 epochs; epoch 5 exceeds 2 × .1 but only every second epoch is looked at; one-way
    assert fired == [0, 0, 0, 0, 0, 1, 1]


def test_asam_without_names_takes_matrices_for_weights() -> None:
    named, unnamed = network(), network()
    first = build_optimizer(spec_of("asam"), named)
    second = build_optimizer(spec_of("asam"), unnamed.parameters())
    for optimizer, net in ((first, named), (second, unnamed)):
        optimizer.step(make_closure(optimizer, net))
    assert deviation(named, unnamed) > 1e-6, "norm.weight is a weight by name, a vector by shape"
    rule = build_optimizer(spec_of("asam", bias_rule="all"), unnamed.parameters()).method.direction
    assert "bias_rule='all'" in repr(rule)


def test_sam_on_perturbs_normalisation_layers_only() -> None:
    net = network()
    optimizer = build_optimizer(spec_of("sam_on"), net)
    seen: list[list[Tensor]] = []

    def closure() -> Tensor:
        seen.append([p.detach().clone() for p in net.parameters()])
        loss = loss_of(net)
        loss.backward()
        return loss

    optimizer.step(closure)
    moved = {
        name for (name, _), a, b in zip(net.named_parameters(), *seen, strict=True) if not torch.equal(a, b)
    }
    assert moved == {"norm.weight", "norm.bias"}
    with pytest.raises(UserError, match="give the module"):
        build_optimizer(spec_of("sam_on"), net.parameters())
    with pytest.raises(UserError, match="that are trained, and there are none"):
        build_optimizer(spec_of("sam_on"), nn.Linear(2, 2))


def test_groups_without_decay_and_with_layer_decay() -> None:
    import timm

    model = timm.create_model("test_vit", num_classes=3)
    base = {"name": "sgd", "lr": 0.1, "weight_decay": 0.05, "no_decay": True}
    optimizer = build_optimizer(spec_of("sam", base), model)
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            decays = p.dim() > 1 and name not in model.no_weight_decay()
            assert decays == (group["weight_decay"] > 0), name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    layered = build_optimizer(spec_of("pugd", {**base, "layer_decay": 0.5}), model)
    lrs = {id(p): group["lr"] for group in layered.param_groups for p in group["params"]}
    assert lrs[id(model.head.weight)] == 0.1
    assert lrs[id(model.patch_embed.proj.weight)] < lrs[id(model.blocks[0].attn.qkv.weight)] < 0.1
    with pytest.raises(UserError, match="give the module itself"):
        build_optimizer(spec_of("sam", base), model.parameters())


def test_params_may_be_a_module_tensors_named_pairs_or_groups() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    assert len(build_optimizer(SGD_BASE, module).param_groups[0]["params"]) == 2  # it may be unfrozen later
    for params in (module.parameters(), list(module.named_parameters()), [{"params": module.parameters()}]):
        assert len(build_optimizer(SGD_BASE, params).param_groups[0]["params"]) == 2
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(SGD_BASE, [])
    module.weight.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(SGD_BASE, module)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({}, r"optimizer.name: is required"),
        ({"name": ["sam"]}, r"optimizer.name: must be a word"),
        ({"name": "pgud"}, r'unknown optimizer "pgud".*Did you mean "pugd"\?'),
        ({"name": "sam", "base": SGD_BASE, "roh": 1}, r"optimizer.roh: unknown option.*rho.*optimizer.base"),
        ({"name": "sam", "base": {**SGD_BASE, "rho": 1}}, r"optimizer.base.rho: unknown option.*momentum"),
        ({"name": "sam", "base": SGD_BASE, "rho": -1}, r"optimizer.rho: must be at least 0"),
        ({"name": "sam", "base": SGD_BASE, "rho": float("nan")}, r"optimizer.rho: must be a finite number"),
        (
            {"name": "sam", "base": SGD_BASE, "rho": "big"},
            r"optimizer.rho: must be a finite number or a mapping",
        ),
        (
            {"name": "sam", "base": SGD_BASE, "rho": {"schedule": "isin", "min": 0, "max": 1}},
            "greater than 0",
        ),
        ({"name": "sam", "base": SGD_BASE, "rho": {"schedule": "sine"}}, r'Did you mean "cosine"|"sin"'),
        (
            {"name": "sam", "base": SGD_BASE, "rho": {"schedule": "sin", "min": 1}},
            r"optimizer.rho.max: is required",
        ),
        (
            {"name": "sam", "base": SGD_BASE, "rho": {"schedule": "sin", "min": 2, "max": 1}},
            "not be above max",
        ),
        ({"name": "looksam", "base": SGD_BASE, "k": 0}, "optimizer.k: must be at least 1"),
        ({"name": "looksam", "base": SGD_BASE, "k": 2.5}, "optimizer.k: must be a whole number"),
        ({"name": "wsam", "base": SGD_BASE, "gamma": 1.0}, "optimizer.gamma: must be less than 1"),
        ({"name": "amp", "base": SGD_BASE, "inner_iter": 0}, "optimizer.inner_iter: must be at least 1"),
        ({"name": "ngd_cw", "base": SGD_BASE, "scope": "row"}, "one of tensor, element"),
        ({"name": "ugd", "base": SGD_BASE, "rho": 1}, "optimizer.rho: unknown option. Known here: none"),
        ({"name": "fsam", "base": SGD_BASE, "lambda": 2}, "optimizer.lambda: must be at most 1"),
        ({"name": "gsam", "base": SGD_BASE, "rho_min": 0.5}, "optimizer.rho_min: must be at most 0.05"),
        ({"name": "msam", "base": {"name": "sgd", "lr": 0.1}}, "optimizer.base.momentum: msam"),
        ({"name": "rwp", "base": SGD_BASE, "alpha": 1.5}, "optimizer.alpha: must be at most 1"),
        ({"name": "rwp", "base": SGD_BASE, "sigma": -1}, "optimizer.sigma: must be at least 0"),
        ({"name": "rwp", "base": SGD_BASE, "rho": 1}, "optimizer.rho: unknown option. Known here: sigma"),
        ({"name": "rwp", "base": SGD_BASE, "perturb": "local"}, "optimizer.perturb: unknown option"),
        ({"name": "sam", "base": SGD_BASE, "perturb": "both"}, "perturb: must be one of global, local"),
        ({"name": "sam", "base": SGD_BASE, "trigger": "late"}, "trigger: must be a mapping"),
        ({"name": "sam", "base": SGD_BASE, "trigger": {"name": "afer"}}, 'Did you mean "after"'),
        ({"name": "sam", "base": SGD_BASE, "trigger": {"name": "adaptve"}}, 'Did you mean "adaptive"'),
        (
            {"name": "sam", "base": SGD_BASE, "trigger": {"name": "adaptive", "delta": 2}},
            "optimizer.trigger.delta: must be at most 1",
        ),
        ({"name": "lookbehnd", "base": SGD_BASE}, 'Did you mean "lookbehind"'),
        ({"name": "lookbehind", "base": SGD_BASE, "alpha": 0}, "optimizer.alpha: must be above 0"),
        ({"name": "multi_step", "base": SGD_BASE, "k": 0}, "optimizer.k: must be at least 1"),
        (
            {"name": "sam_on", "base": SGD_BASE, "metric": "layer"},
            "optimizer.metric: must be one of elementwise",
        ),
        ({"name": "sam", "base": SGD_BASE, "mask": "random"}, "optimizer.mask: must be a mapping"),
        ({"name": "sam", "base": SGD_BASE, "mask": {"name": "radnom"}}, 'optimizer.mask.name: .*"random"'),
        ({"name": "sam", "base": SGD_BASE, "mask": {"share": 1}}, "optimizer.mask.name: unknown mask"),
        (
            {"name": "sam", "base": SGD_BASE, "mask": {"name": "random", "share": 1.5}},
            "optimizer.mask.share: must be at most 1",
        ),
        ({"name": "ugd", "base": SGD_BASE, "mask": {"name": "random"}}, "optimizer.mask: unknown option"),
        (
            {"name": "msam", "base": SGD_BASE, "rho": {"schedule": "loss_budget", "sigma": 1, "rho_max": 1}},
            "optimizer.rho.schedule: needs the gradient at w",
        ),
        (
            {"name": "sam", "base": SGD_BASE, "rho": {"schedule": "loss_budget", "sigma": -1, "rho_max": 1}},
            "optimizer.rho.sigma: must be at least 0",
        ),
        (
            {"name": "sam", "base": SGD_BASE, "trigger": {"name": "every", "k": 0}},
            "optimizer.trigger.k: must be at least 1",
        ),
        (
            {"name": "sam", "base": SGD_BASE, "trigger": {"name": "after"}},
            "optimizer.trigger.fraction: is required",
        ),
        ({"name": "rules", "base": SGD_BASE, "direction": "gradent"}, 'Did you mean "gradient"'),
        (
            {"name": "rules", "base": SGD_BASE, "combine": "weighted"},
            "optimizer.combine.clean: is required\noptimizer.combine.perturbed: is required",
        ),
        (
            {"name": "rules", "base": SGD_BASE, "normalize": {"name": "unit", "x": 1}},
            "optimizer.normalize.x: unknown option. Known here: none",
        ),
        (
            {"name": "rules", "base": SGD_BASE, "direction": {"name": "friendly_gradient", "decay": 2}},
            "optimizer.direction.decay: must be at most 1",
        ),
        ({"name": "rules", "base": SGD_BASE, "direction": 3}, "direction: must be"),
        (
            {"name": "rules", "base": SGD_BASE, "normalize": {"name": "unit_each", "scope": "x"}},
            "one of tensor",
        ),
        (
            {"name": "rules", "base": SGD_BASE, "direction": {"name": "clipped_ascent", "num_ascents": 1.5}},
            "whole",
        ),
        (
            {"name": "rules", "base": SGD_BASE, "combine": {"name": "scaled", "scale": "x"}},
            "must be a finite",
        ),
        ({"name": "looksam", "base": SGD_BASE, "trigger": {"name": "every", "k": 2}}, "k is its trigger"),
        ({"name": "msam", "base": {"name": "rmsprop", "lr": 0.1}}, "optimizer.base.momentum: msam"),
        ({"name": "sam", "base": {"name": "lamb", "no_decay": True}}, r"optimizer.base.lr: is required"),
        ({"name": "sam", "base": {"name": "nesterov", "lr": 0.1}}, "unknown base optimizer"),
        ({"name": "sam", "base": SGD_BASE, "trigger": {"name": ["after"]}}, "unknown trigger"),
        ({"name": "sam", "base": SGD_BASE, "rho": {"schedule": ["x"]}}, "unknown schedule"),
        ({"name": "sam", "base": {"name": "lion", "lr": 0.1, "betas": [0.9]}}, "two numbers|index|betas"),
        ({"name": "sam"}, r"optimizer.base: is required"),
        ({"name": "sam", "base": "sgd"}, r"optimizer.base: must be a mapping"),
        ({"name": "sgd", "lr": 10**400}, r"optimizer.lr: must be a finite number, not 1000"),
        ({"name": "sam", "base": {"name": "sdg", "lr": 1}}, r'unknown base optimizer "sdg".*"sgd"'),
        ({"name": "sgd"}, r"optimizer.lr: is required"),
        ({"name": "sgd", "lr": -1}, r"optimizer.lr: must be at least 0"),
        ({"name": "lion", "lr": -0.1}, r"optimizer.lr: must be at least 0"),
        ({"name": "sgd", "lr": 0.1, "nesterov": 1}, r"optimizer.nesterov: must be true or false"),
        ({"name": "sgd", "lr": 0.1, "momentum": -1}, r"momentum"),
        ({"name": "sgd", "lr": 0.1, "layer_decay": 2}, r"layer_decay: must be a number in"),
        ({"name": "adamw", "lr": 0.1, "betas": 0.9}, r"optimizer.betas: must be a list of two numbers"),
        ({"name": "lion", "lr": 0.1, "momentum": 0.9}, r"optimizer.momentum: unknown option"),
        ({"name": "sgd", "lr": 0.1, "base": SGD_BASE}, r"itself a base"),
        ({"name": "pugd", "base": SGD_BASE, "replay_rng": 3}, r"replay_rng: must be true or false"),
    ],
    ids=str,
)
def test_bad_spec_gets_a_message_that_says_where_and_what(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(FaultsError, match=message):
        build_optimizer(spec, network())


def test_every_fault_of_a_spec_is_reported_at_once() -> None:
    faults = spec_faults({"name": "sam", "roh": 1, "base": {"name": "sgd", "lr": "x", "beta": 2}})
    assert [fault.where for fault in faults] == ["optimizer.roh", "optimizer.base.lr", "optimizer.base.beta"]


def test_alpha_of_gnp_outside_0_and_1_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="outside"):
        build_optimizer(spec_of("gnp", alpha=1.5), network())


@pytest.mark.parametrize("name", ALL)
def test_resolved_spec_holds_every_default_and_resolves_to_itself(name: str) -> None:
    resolved = resolve_spec(spec_of(name, ADAMW_BASE if name != "plain" else None))
    assert resolve_spec(resolved) == resolved
    if name in TWO_PASS:
        assert resolved["replay_rng"] is True
        assert resolved["base"]["betas"] == [0.9, 0.999]


def test_sharded_and_fp16_parameters_are_refused() -> None:
    sharded = nn.Parameter(torch.zeros(2))
    sharded._local_tensor = sharded.data  # what a DTensor has
    with pytest.raises(UserError, match=r"FSDP.*Use DDP"):
        build_optimizer(SGD_BASE, [sharded])
    with pytest.raises(UserError, match="fp16 weights cannot hold"):
        build_optimizer(SGD_BASE, [nn.Parameter(torch.zeros(2, dtype=torch.float16))])


@pytest.mark.parametrize("name", [*TWO_PASS, "sam, timed"])
def test_local_perturbation_is_for_methods_that_keep_processes_in_step(name: str) -> None:
    fits = {"sam", "asam", "sam_gns", "sam_on", "pugd", "pugd_r", "pugd_s", "pugd_rs", "gnp", "amp", "rules"}
    fits.add("multi_step")
    options = {"trigger": {"name": "every", "k": 2}} if "," in name else {}
    spec = spec_of(name.split(",")[0], perturb="local", **options)
    if name in fits:
        build_optimizer(spec, network(), closure_accumulates=True, clean_pass=nullcontext)
    else:
        with pytest.raises(UserError, match="needs perturb: global"):
            build_optimizer(spec, network(), closure_accumulates=True)
    if name in ("pugd", "gnp"):
        with pytest.raises(UserError, match="must not clear"):
            build_optimizer(spec, network())


@pytest.mark.parametrize("name", ["bnbadam", "lookahead_sgd", "nothing", "", 3, None, ["sgd"]])
def test_what_is_no_base_here_is_refused_by_name(name: Any) -> None:
    assert any(
        "name" in fault.where for fault in spec_faults({"name": "sam", "base": {"name": name, "lr": 1}})
    )
    assert any("name" in fault.where for fault in spec_faults({"name": name, "lr": 1}))


def test_step_needs_a_closure() -> None:
    with pytest.raises(TypeError, match="closure"):
        build_optimizer(SGD_BASE, network()).step()


@pytest.mark.parametrize("name", optimizer_names())
def test_every_optimizer_says_what_it_is_and_costs(name: str) -> None:
    text, line = describe(name), summary(name)
    assert line["what"] == text.splitlines()[0].rstrip(".")
    if name in METHODS:
        assert "BASE(" in text
        assert "Source:" in text
        assert "Cost:" in text
    assert set(optimizer_names()) == {*BASES, *METHODS}


@pytest.mark.parametrize("name", ALL)
def test_the_learning_rate_of_the_moment_is_used(name: str) -> None:
    net = network()
    optimizer = build_optimizer(spec_of(name), net)
    go_on(optimizer, net, 0, 2, 4)
    assert optimizer.param_groups[0]["lr"] == LRS[0] * lr_share(1)
