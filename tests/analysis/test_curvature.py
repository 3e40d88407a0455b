"""Products, λ1 and trace against the exact Hessian, and against another library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import curved_networks as networks
from torch import Tensor, nn
from torch.nn import functional

from pugdft.analysis import curvature
from pugdft.analysis.objective import LossPart, Objective, fits, graph_bytes
from pugdft.errors import UserError

NETWORKS = tuple(networks.BUILDERS)


def largest(objective: Objective, seed: int = 0, most: int = 40) -> curvature.Krylov:
    start = curvature.random_vector(objective.size, objective.weights(), seed)
    return curvature.lanczos(objective.product, start, most)


@pytest.mark.parametrize("keeps_graphs", [True, False])
@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_product_is_that_of_the_exact_hessian(name: str, parts: int, keeps_graphs: bool) -> None:
    model = networks.trained(name)
    objective = networks.objective(model, parts=parts, keeps_graphs=keeps_graphs)
    exact = networks.exact_hessian(name)
    vectors = torch.randn(3, objective.size, generator=torch.Generator().manual_seed(5))
    expected = vectors.double() @ exact
    for found in (objective.product(vectors), torch.stack([objective.product(each) for each in vectors])):
        assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
    assert objective.num_products == pytest.approx(6)
    # A kept graph is built once, another one for each call.
    assert objective.num_gradients == pytest.approx(1 if keeps_graphs else 4)


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_largest_eigenvalue_is_exact_within_its_residual(
    name: str, dtype: torch.dtype, allowed: float
) -> None:
    model = networks.trained(name, dtype)
    exact = float(torch.linalg.eigvalsh(networks.exact_hessian(name))[-1])
    start = curvature.random_vector(
        sum(each.numel() for each in model.parameters()), torch.ones(1, dtype=dtype), 1
    )
    whole = curvature.lanczos(networks.objective(model).product, start, 40, stops=False)
    assert whole.largest == pytest.approx(exact, rel=allowed)
    vector = whole.vector()
    image = networks.objective(model).product(vector)
    assert float((image - whole.largest * vector).norm()) < 1e-4 * exact
    for seed in range(3):
        stopped = largest(networks.objective(model), seed)
        assert stopped.is_settled
        assert stopped.num_products < 40
        assert abs(stopped.largest - exact) <= stopped.residual + 1e-6 * exact


def test_an_unsettled_eigenvalue_says_so() -> None:
    found = largest(networks.objective(networks.trained("mlp")), most=3)
    assert not found.is_settled
    assert found.num_products == 3
    assert found.residual > 1e-3 * found.largest


def test_a_small_matrix_is_known_entirely() -> None:
    matrix = torch.diag(torch.tensor([-3.0, 1.0, 2.0], dtype=torch.float64))
    found = curvature.lanczos(lambda v: v @ matrix, torch.ones(3, dtype=torch.float64), 15, stops=False)
    assert found.num_products == 3
    assert found.ritz()[0] == pytest.approx([-3, 1, 2])
    assert found.smallest == pytest.approx(-3)  # the largest, not the one of largest size, is λ1
    assert found.largest == pytest.approx(2)
    assert curvature.trace(lambda v: v @ matrix, found) == curvature.TraceEstimate(pytest.approx(0), 0.0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_traces_scatter_little_and_their_intervals_hold(name: str) -> None:
    exact = networks.exact_hessian(name)
    true, size = float(exact.trace()), len(exact)

    def product(vectors: Tensor) -> Tensor:
        return vectors @ exact

    errors, held = [], []
    for seed in range(100):
        krylov = curvature.lanczos(product, curvature.random_vector(size, exact, seed), stops=False)
        found = curvature.trace(product, krylov, seed=1_000_003 * seed)
        assert krylov.num_products + found.num_probes <= 35
        errors.append(found.value / true - 1)
        held.append(abs(found.value - true) <= found.half_width)
    assert np.std(errors) <= 0.02
    assert abs(np.mean(errors)) <= 0.005
    assert 0.88 <= np.mean(held) <= 0.99


def test_probes_end_when_the_interval_is_narrow() -> None:
    diagonal = torch.cat([torch.full((300,), 1.0), torch.tensor([50.0])])

    def product(vectors: Tensor) -> Tensor:
        return vectors * diagonal

    krylov = curvature.lanczos(product, curvature.random_vector(301, diagonal, 0), 4, stops=False)
    found = curvature.trace(product, krylov, most=40)
    assert found.num_probes == 10
    assert found.is_settled
    assert found.value == pytest.approx(350, rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_density_is_near_the_spectrum(name: str) -> None:
    exact = networks.exact_hessian(name)
    values = torch.linalg.eigvalsh(exact).numpy()
    nodes, weights = curvature.density(lambda v: v @ exact, len(exact), exact)
    assert nodes.shape == weights.shape == (5, 30)
    assert weights.sum() == pytest.approx(1)
    order = np.argsort(nodes, axis=None)
    # The distance between both distributions: the area between their cumulative shares.
    grid = np.linspace(values[0], values[-1], 2_000)
    found = np.interp(grid, nodes.flat[order], weights.flat[order].cumsum(), left=0)
    true = np.searchsorted(values, grid) / len(values)
    assert np.trapezoid(abs(found - true), grid) < 0.01 * values[-1]


def test_adaptive_curvature_does_not_depend_on_the_scale_of_a_layer() -> None:
    found = {}
    for factor in (1.0, 4.0):
        model = networks.trained("convnet")
        with torch.no_grad():
            for module in model:
                if isinstance(module, nn.Conv2d):
                    module.weight.mul_(factor)
                elif isinstance(module, nn.BatchNorm2d):
                    module.running_mean.mul_(factor)
                    module.running_var.add_(module.eps).mul_(factor**2).sub_(module.eps)
        objective = networks.objective(model)
        weights = objective.weights()
        start = curvature.random_vector(len(weights), weights, 0)
        scaled = curvature.scaled_product(objective.product, weights.abs())
        found[factor] = curvature.lanczos(scaled, start, 40).largest, largest(objective).largest
    (adaptive, plain), (adaptive_after, plain_after) = found[1.0], found[4.0]
    assert adaptive_after == pytest.approx(adaptive, rel=1e-3)
    assert plain_after < 0.9 * plain


def test_attention_has_a_second_derivative() -> None:
    torch.manual_seed(0)
    queries = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    weight = nn.Parameter(torch.randn(4, 4, dtype=torch.float64))

    def loss() -> Tensor:
        rows = queries @ weight
        return functional.scaled_dot_product_attention(rows, rows, rows).square().mean()

    def of(flat: Tensor) -> Tensor:
        rows = queries @ flat.view(4, 4)
        attention = (rows @ rows.transpose(-1, -2) / 2).softmax(-1)
        return (attention @ rows).square().mean()

    objective = Objective([LossPart(loss, 1.0)], [weight])
    exact = torch.autograd.functional.hessian(of, weight.detach().view(-1))
    assert torch.allclose(objective.product(torch.eye(16, dtype=torch.float64)), exact, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "depthwise", "grouped", "dilated", "same", "statistics"])
def test_layers_with_a_faster_second_derivative_have_torchs_own(kind: str) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "plain": {"stride": 2, "padding": 1},
        "depthwise": {"groups": 4, "stride": (2, 1), "padding": (1, 0)},
        "grouped": {"groups": 2, "bias": False},
        "dilated": {"dilation": 2, "padding": 2},
        "same": {"padding": "same"},
        "statistics": {},
    }
    norm = nn.BatchNorm2d(8, affine=kind != "plain")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3, **options[kind]), norm, nn.Tanh())
    model = model.double().train(kind == "statistics")
    assert norm.running_var is not None
    norm.running_var.uniform_(0.5, 2)
    inputs, parameters = torch.randn(5, 3, 9, 9, dtype=torch.float64), list(model.parameters())

    def loss() -> Tensor:
        return (model(inputs) - 0.1).square().mean().exp()

    objective = Objective([LossPart(loss, 1.0)], parameters)
    vector = curvature.random_vector(objective.size, objective.weights(), 0)
    gradients = torch.autograd.grad(loss(), parameters, create_graph=True)
    expected = torch.autograd.grad(gradients, parameters, objective.split(vector))
    found = objective.split(objective.product(vector))
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)
    for mine, theirs in zip(objective.split(objective.loss_and_gradient()[1]), gradients, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-9, atol=1e-12)


def test_weights_cannot_change_under_kept_graphs() -> None:
    objective = networks.objective(networks.trained("mlp"))
    weights = objective.weights()
    before = objective.product(weights)
    with pytest.raises(AssertionError, match="forget"):
        objective.write_(2 * weights)
    objective.forget()
    objective.write_(2 * weights)
    assert torch.equal(objective.weights(), 2 * weights)
    assert not torch.allclose(objective.product(weights), before)


def test_quarters_share_graphs_and_average_to_the_whole() -> None:
    objective = networks.objective(networks.trained("mlp"), parts=4)
    vector = objective.weights()
    whole = objective.product(vector)
    quarters = [objective.restricted([number]).product(vector) for number in range(4)]
    assert torch.allclose(torch.stack(quarters).mean(0), whole, atol=1e-6)
    assert objective.num_gradients == pytest.approx(1)


def test_the_memory_of_a_graph_grows_with_the_images() -> None:
    model = networks.trained("convnet")
    few, many = (
        graph_bytes(networks.objective(model, count).parts[0].loss, list(model.parameters()))
        for count in (20, 100)
    )
    assert many == pytest.approx(5 * few, rel=0.05)
    assert fits(1_000, torch.device("cpu"))
    assert not fits(1 << 50, torch.device("cpu"))


@pytest.mark.parametrize("name", NETWORKS)
def test_another_library_finds_the_same_largest_eigenvalue(name: str) -> None:
    curvlinops: Any = pytest.importorskip("curvlinops", reason="curvlinops-for-pytorch is not installed")
    from scipy.sparse.linalg import eigsh

    model, (inputs, labels) = networks.trained(name), networks.images(100)
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), [(inputs, labels)]
    )
    theirs = eigsh(operator.to_scipy(), k=1, which="LA", return_eigenvectors=False)[0]
    assert largest(networks.objective(model)).largest == pytest.approx(float(theirs), rel=1e-4)


def test_a_product_that_is_not_finite_is_said() -> None:
    with pytest.raises(UserError, match="a product with the Hessian of this loss is not finite"):
        curvature.lanczos(lambda vector: vector * torch.nan, torch.ones(5), 3)
