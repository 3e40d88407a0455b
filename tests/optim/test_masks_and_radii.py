"""Masks, radii that see the gradient, ``lookbehind``, the trigger ``adaptive``, methods' defaults."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from optimizer_cases import (
    ADAMW_BASE,
    ALL,
    SGD_BASE,
    deviation,
    go_on,
    gradient_of,
    make_closure,
    network,
    run,
    spec_of,
    start,
    two_groups,
)
from reference import plus, unit
from torch import Tensor, nn

from pugdft.errors import UserError
from pugdft.optim import LossScale, build_optimizer, describe, resolve_spec
from pugdft.optim.build import explain_options
from pugdft.optim.context import Draws, ParameterInfo, RuleState, StepContext
from pugdft.optim.directions import DIRECTIONS, Ascent, Direction
from pugdft.optim.masks import MASKS, LargestFisher, Masked
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults
from pugdft.optim.schedules import SCHEDULES, as_radius
from pugdft.optim.triggers import TRIGGERS

FISHER = {"mask": {"name": "largest_fisher", "every": 4}}
ADAPTIVE = {"trigger": {"name": "adaptive"}}
SPECS: dict[str, dict[str, Any]] = {
    "random": spec_of("sam", mask={"name": "random", "share": 0.3}),
    "fisher": spec_of("sam", **FISHER),
    "z": spec_of("pugd", mask={"name": "largest_z"}),
    "fisher, several ascents": spec_of("amp", inner_iter=2, **FISHER),
    "random, several ascents": spec_of("lookbehind", mask={"name": "random"}),
    "norms, averaged": spec_of("fsam", mask={"name": "norm_layers"}),
    "adaptive": spec_of("gnp", **ADAPTIVE),
    "adaptive, masked": spec_of("pugd", **ADAPTIVE, mask={"name": "random"}),
    "budget": spec_of("sam", rho={"schedule": "loss_budget", "sigma": 0.05, "rho_max": 0.5}),
    "noise, triggered": spec_of("rwp", alpha=0.5, trigger={"name": "every", "k": 2}),
}


@pytest.mark.parametrize("base", [SGD_BASE, ADAMW_BASE], ids=lambda base: base["name"])
@pytest.mark.parametrize("case", SPECS)
def test_resume_is_exact(case: str, base: dict[str, Any], tmp_path: Any) -> None:
    spec = {**SPECS[case], "base": base}
    unbroken, whole = run(spec, steps=18)
    net = network()
    optimizer = build_optimizer(spec, two_groups(net), module=net)
    go_on(optimizer, net, 0, 7, 18)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = network()
    resumed.load_state_dict(net.state_dict())
    again = build_optimizer(spec, two_groups(resumed), module=resumed)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    go_on(again, resumed, 7, 18, 18)
    assert deviation(unbroken, resumed) == 0
    assert again.num_two_pass_steps == whole.num_two_pass_steps


@pytest.mark.parametrize(("case", "piece"), [("fisher", "direction"), ("adaptive", "trigger")])
def test_leaving_out_a_mask_s_or_trigger_s_state_is_noticed(case: str, piece: str) -> None:
    """The negative control of the test above."""
    unbroken, _ = run(SPECS[case], steps=18)
    net = network()
    optimizer = build_optimizer(SPECS[case], two_groups(net), module=net)
    go_on(optimizer, net, 0, 7, 18)
    state = optimizer.state_dict()
    state["pugdft"]["memories"][piece] = {"tensors": {}, "values": {}}
    again = build_optimizer(SPECS[case], two_groups(net), module=net)
    again.load_state_dict(state)
    go_on(again, net, 7, 18, 18)
    assert deviation(unbroken, net) > 1e-7


@pytest.mark.parametrize("accumulates", [True, False])
@pytest.mark.parametrize("case", SPECS)
def test_a_loss_scale_and_a_closure_that_accumulates_change_nothing(case: str, accumulates: bool) -> None:
    clear = "nothing" if accumulates else "in place"
    plain, _ = run(SPECS[case])
    scaled, _ = run(SPECS[case], clear=clear, closure_accumulates=accumulates, loss_scale=LossScale())
    assert deviation(plain, scaled) < 1e-13


@pytest.mark.parametrize("case", SPECS)
def test_one_group_equals_many(case: str) -> None:
    single, many = network(), network()
    first = build_optimizer(SPECS[case], single, total_steps=6)
    groups = [{"params": [named]} for named in many.named_parameters()]
    second = build_optimizer(SPECS[case], groups, module=many, total_steps=6)
    for optimizer, net in ((first, single), (second, many)):
        for _ in range(6):
            optimizer.step(make_closure(optimizer, net))
    assert deviation(single, many) == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", SPECS)
def test_a_gradient_that_is_not_finite_skips_the_step_and_changes_no_state(case: str, bad: float) -> None:
    net = network()
    optimizer = build_optimizer(SPECS[case], net, total_steps=20)
    optimizer.step(make_closure(optimizer, net))
    before = [p.detach().clone() for p in net.parameters()]
    memories = optimizer.state_dict()["pugdft"]["memories"]
    optimizer.step(make_closure(optimizer, net, scale=bad))
    assert deviation(net, before) == 0
    assert optimizer.num_skipped_steps == 1
    again = optimizer.state_dict()["pugdft"]["memories"]
    for slot, memory in memories.items():
        assert memory["values"] == again[slot]["values"]
        for key, tensors in memory["tensors"].items():
            assert all(torch.equal(tensors[place], again[slot]["tensors"][key][place]) for place in tensors)
    for _ in range(4):
        optimizer.step(make_closure(optimizer, net))
    assert all(torch.isfinite(p).all() for p in net.parameters())
    assert deviation(net, before) > 1e-6


class Wide(nn.Module):
    """Tensors of many elements, for shares to be seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first, self.norm, self.last = nn.Linear(64, 128), nn.LayerNorm(128), nn.Linear(128, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def perturbations(steps: int = 1, **options: Any) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Each step's e of SAM with ρ = 1 at weights that stay, and the gradient there."""
    net = Wide()
    before = [p.detach().clone() for p in net.parameters()]
    optimizer = build_optimizer(spec_of("sam", {"name": "sgd", "lr": 0.0}, rho=1.0, **options), net)
    images = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    seen: list[list[Tensor]] = []
    gradient: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append([p.detach() - w for p, w in zip(net.parameters(), before, strict=True)])
        loss = net(images).square().mean()
        loss.backward()
        if not gradient:
            gradient.extend(p.grad.clone() for p in net.parameters() if p.grad is not None)
        return loss

    for _ in range(steps):
        optimizer.step(closure)
    return seen[1::2], gradient


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in tensors])


def test_a_random_mask_keeps_its_share_draws_anew_and_keeps_the_mean() -> None:
    many, gradient = perturbations(40, mask={"name": "random", "share": 0.25})
    parts = torch.stack([flat(e) for e in many])
    whole = flat(unit([g.double() for g in gradient])).float()
    kept = parts != 0
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(kept[0].float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not torch.equal(kept[0], kept[1])
    torch.testing.assert_close(parts[kept], (whole * 4).expand(40, -1)[kept], rtol=1e-2, atol=2e-7)
    mean = parts.mean(0)
    assert float((mean * whole).sum()) == pytest.approx(1, abs=0.1), "the mean of e is the whole e"


def test_a_mask_by_fisher_information_keeps_the_largest_of_all_tensors_until_the_next() -> None:
    many, gradient = perturbations(5, mask={"name": "largest_fisher", "share": 0.1, "every": 4})
    whole = flat(gradient)
    wanted = torch.zeros(len(whole), dtype=torch.bool)
    wanted[whole.square().topk(round(0.1 * len(whole))).indices] = True
    for e in many:
        assert torch.equal(flat(e) != 0, wanted)
    assert float(flat(many[0]).norm()) < 1, "shorter than ρ: the norm is of the whole gradient"


def test_a_mask_by_z_keeps_a_share_of_each_tensor_at_the_whole_length() -> None:
    (e,), gradient = perturbations(mask={"name": "largest_z", "share": 0.05})
    for part, g in zip(e, gradient, strict=True):
        kept = part != 0
        assert int(kept.sum()) == max(1, g.numel() - 1 - int(0.95 * (g.numel() - 1)))
        z = ((g - g.mean()) / g.std()).abs()
        assert float(z[kept].min()) > float(z[~kept].max())
    assert float(flat(e).norm()) == pytest.approx(1, rel=1e-4)


def test_a_mask_of_normalisation_layers_needs_the_module_and_such_layers() -> None:
    spec = spec_of("pugd", mask={"name": "norm_layers"})
    with pytest.raises(UserError, match="give the module"):
        build_optimizer(spec, network().parameters())
    with pytest.raises(UserError, match="there are none"):
        build_optimizer(spec, nn.Linear(2, 2))
    (e,), _ = perturbations(mask={"name": "norm_layers"})
    assert [bool((part != 0).any()) for part in e] == [False, False, True, True, False, False]


@pytest.mark.parametrize("options", [FISHER, {"name": "lookbehind"}], ids=str)
def test_what_remembers_or_adds_local_gradients_needs_global_perturbation(options: dict[str, Any]) -> None:
    spec = {**spec_of("sam", perturb="local"), **options}
    with pytest.raises(UserError, match="needs perturb: global"):
        build_optimizer(spec, network(), closure_accumulates=True)


@pytest.mark.parametrize(("k", "alpha"), [(1, 1.0), (2, 0.5), (4, 0.8)])
def test_lookbehind_is_its_paper_s_way_of_fast_and_slow_weights_for_plain_sgd(k: int, alpha: float) -> None:
    lr, rho = 0.1, 0.2
    net = network()
    spec = spec_of("lookbehind", {"name": "sgd", "lr": lr}, rho=rho, k=k, alpha=alpha)
    optimizer = build_optimizer(spec, net)
    slow = start()
    for _ in range(4):
        optimizer.step(make_closure(optimizer, net))
        fast, there = slow, slow
        for _ in range(k):
            there = plus(there, unit(gradient_of(there)), rho)
            fast = plus(fast, gradient_of(there), -lr)
        slow = plus(slow, plus(fast, slow, -1.0), alpha)
    assert deviation(net, slow) < 1e-13


def test_the_adaptive_trigger_perturbs_a_part_of_the_steps_and_later_ones_more() -> None:
    net = network()
    generator = torch.Generator().manual_seed(0)
    optimizer = build_optimizer(spec_of("sam", {"name": "sgd", "lr": 1e-4}, **ADAPTIVE), net, total_steps=400)
    fired = []
    for _ in range(400):
        scale = 0.5 + float(torch.rand((), generator=generator))  # noise of the gradient's length
        before = optimizer.num_two_pass_steps
        optimizer.step(make_closure(optimizer, net, scale=scale))
        fired.append(optimizer.num_two_pass_steps - before)
    first, second = sum(fired[:200]) / 200, sum(fired[200:]) / 200
    assert 0.1 < first < 0.45 < 0.55 < second < 0.95


def test_a_budget_of_loss_is_met_to_first_order_and_falls_to_nothing() -> None:
    radius = as_radius({"schedule": "loss_budget", "sigma": 0.3, "rho_max": 100.0, "anneal_from": 0.5})
    gradients = [torch.full((4,), 2.0), torch.zeros(2)]
    for progress, sigma in ((0.0, 0.3), (0.5, 0.3), (0.75, 0.15), (1.0, 0.0)):
        context = StepContext(0, progress, 0.1, 0.1)
        length = float(radius.radius(context, gradients))
        assert length * 4 == pytest.approx(sigma, abs=1e-6)
        assert float(radius.radius(context, [torch.zeros(3)])) == pytest.approx(100 if sigma else 0)


# --- devices -------------------------------------------------------------------------------------


class Undrawn(Draws):
    """torch makes no generator for the device ``meta``."""

    def generator(self, use: str, device: torch.device) -> Any:
        return None


def every_direction() -> list[Direction]:
    plain = [build() for build in DIRECTIONS.values()]
    return [*plain, *(Masked(plain[0], build()) for build in MASKS.values())]


@pytest.mark.parametrize("direction", every_direction(), ids=repr)
@pytest.mark.parametrize("rho", [0.1, "by the gradient"])
def test_no_direction_waits_for_the_device(direction: Direction, rho: Any) -> None:
    """On the device ``meta`` tensors have no values: reading one raises an error."""
    parameters, weights, gradients = (
        [torch.empty(4, 3, device="meta"), torch.empty(5, device="meta")] for _ in range(3)
    )
    state = RuleState()
    keys = {"average": None}  # made at the first step, which may wait
    if isinstance(direction, Masked) and isinstance(direction.mask, LargestFisher):
        keys = {"squares": None, "mask": torch.bool}
    for key, dtype in keys.items():
        state.tensors[key] = {p: torch.zeros_like(p, dtype=dtype) for p in parameters}
    if rho != 0.1:
        spec = {"schedule": "loss_budget", "sigma": 0.1, "rho_max": 1.0}
        rho = as_radius(spec).radius(StepContext(0, 0.0, 0.1, 0.1), gradients)
    info = ParameterInfo(norm_parameters=frozenset(parameters))
    for number in range(direction.num_ascents):
        direction.perturb_(
            Ascent(parameters, weights, gradients, rho, info, state, {}, Undrawn(0, 0), number)
        )


@pytest.mark.parametrize("name", [*DIRECTIONS, *MASKS])
def test_the_arithmetic_of_accelerators_is_that_of_the_cpu(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pugdft.optim import foreach

    spec = spec_of("rules", direction=name) if name in DIRECTIONS else spec_of("sam", mask={"name": name})
    plain, _ = run(spec, steps=6)
    monkeypatch.setattr(foreach, "_on_cpu", lambda tensors: not tensors)
    other, _ = run(spec, steps=6)
    assert deviation(plain, other) < 1e-12


# --- defaults ------------------------------------------------------------------------------------

# Of resolved recipes that were written before these defaults and options: their digests must stay.
OLDER = {
    "sam": ({"rho": 0.05}, "e4626acf6bc7c4e2"),
    "gnp": ({"rho": 0.05, "alpha": 0.8}, "9cb066b504239207"),
    "fsam": ({"rho": 0.05, "sigma": 1.0, "lambda": 0.9}, "de266cf0ce5208c6"),
    "vasso": ({"rho": 0.05, "theta": 0.4}, "39cdb9c3a6162530"),
    "sam_on": ({"rho": 0.5, "eta": 0.01, "bias_rule": "paper"}, "c0302cff1b87bc4e"),
    "gsam": ({"rho_min": 0.01, "rho_max": 0.05, "alpha": 0.4}, "8930b9d1d8fd28ed"),
    "msam": ({"rho": 3.0}, "4300eddf8c07ac36"),
    "pugd_t": ({"rho": 1.0}, "592a9bb8798c6700"),
}


@pytest.mark.parametrize("name", OLDER)
def test_resolved_recipes_of_before_mean_the_same(name: str) -> None:
    options, digest = OLDER[name]
    resolved = resolve_spec(spec_of(name, ADAMW_BASE, **options))
    assert {key: resolved[key] for key in options} == options
    assert hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:16] == digest


@pytest.mark.parametrize("name", METHODS)
def test_every_default_has_a_source_or_a_range_to_start_with(name: str) -> None:
    if not any(isinstance(value, float) for value in keyword_defaults(METHODS[name]).values()):
        return
    said = re.search(r"^Defaults: (.*?)^(?:\w+:|$)", describe(name), re.DOTALL | re.MULTILINE)
    assert said, name
    if re.search(r"\bours\b|nobody|is SAM's", said[1]) and name != "rules":
        assert re.search(r"\btry\b", said[1], re.IGNORECASE), (
            f"{name}: a default of nobody's, without a range"
        )


def test_options_say_which_triggers_and_masks_there_are() -> None:
    text = explain_options("sam")
    assert "mask: null" in text
    assert all(name in text for name in ("adaptive", "largest_fisher", "norm_layers"))
    assert "mask" not in explain_options("ugd")


def test_the_guide_names_every_trigger_mask_and_schedule() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
    for name in {*TRIGGERS, *MASKS, *SCHEDULES} - {"constant"}:
        assert f"`{name}`" in text, name


def test_the_radius_of_another_metric_is_asked_for() -> None:
    with pytest.warns(UserWarning, match="rho 10 is for the metric elementwise; for plain try"):
        build_optimizer(spec_of("sam_on", metric="plain"), network())
    assert "metric" not in resolve_spec(spec_of("sam_on"))


def test_a_mask_is_in_the_record_where_it_is_used_with_its_defaults() -> None:
    for name in ALL:
        assert "mask" not in resolve_spec(spec_of(name))
    resolved = resolve_spec(spec_of("sam", mask={"name": "random"}))
    assert resolved["mask"] == {"name": "random", "share": 0.6}
    assert resolve_spec(resolved) == resolved
