"""The terrain of two weights: exact surfaces, the rule for the slice, and paths that lie on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pugdft.analysis.terrain import (
    Slice,
    SliceKind,
    Surface,
    TerrainImages,
    TerrainOptions,
    check_spec,
    descent,
    interior_minima,
    make_terrain,
    make_weights,
    net,
    planned_seconds,
    squared_error,
    terrain_images,
    true_minima,
    walk,
)
from pugdft.data.datasets import open_source
from pugdft.errors import UserError
from pugdft.optim.build import resolve_spec

BASE = {"name": "sgd", "lr": 0.2}


def spec(name: str, **options: Any) -> dict[str, Any]:
    own = {"name": name, **options}
    return resolve_spec({**BASE, **own} if name in ("sgd", "adagrad") else {**own, "base": BASE})


@pytest.fixture(scope="module")
def images() -> dict[str, TerrainImages]:
    return terrain_images(open_source("bundled"), 20)


@pytest.fixture(scope="module")
def small() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    options = TerrainOptions(kind="output", rest="random", images=20, grid=11, passes=40)
    names = ("ugd", "pugd", "sgd", "sam")
    return make_terrain(open_source("bundled"), {name: spec(name) for name in names}, options)


@pytest.fixture(scope="module")
def shipped() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What `pugdft terrain` computes without options."""
    names = ("sgd", "adagrad", "ngd_cw", "ugd", "amp", "sam", "asam", "pugd")
    return make_terrain(open_source("bundled"), {name: spec(name) for name in names}, TerrainOptions())


class Bowls(Surface):
    """Two bowls of a known function, of which a grid along the diagonal sees many."""

    def __init__(self) -> None:
        pass

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        along, across = x + y, x - y
        return (0.01 * along**2 - 1) ** 2 + 0.1 * along / 100 + 5 * across**2

    def on(self, axis: np.ndarray) -> np.ndarray:
        return self(*torch.meshgrid(torch.tensor(axis), torch.tensor(axis), indexing="xy")).numpy()


@pytest.mark.parametrize("kind", ["unit", "output"])
def test_a_surface_is_the_loss_of_the_whole_net(kind: SliceKind, images: dict[str, TerrainImages]) -> None:
    weights = make_weights(images["train"], "random", seed=3)
    cut = Slice.drawn(kind, 5, 10, seed=3)
    for split in ("train", "test"):
        surface = Surface(weights, cut, images[split])
        for x, y in ((-10.1, -15.0), (0.3, 4.0), (19.0, -2.0)):
            changed = [weight.clone() for weight in weights]
            for (layer, row, column), value in zip(cut.places(), (x, y), strict=True):
                changed[layer][row, column] = value
            whole = squared_error(net(changed, images[split].inputs), images[split].targets).mean()
            assert float(surface(*torch.tensor([x, y], dtype=torch.float64))) == pytest.approx(
                float(whole), abs=1e-12
            )


def test_images_are_of_all_classes_alike(images: dict[str, TerrainImages]) -> None:
    for each in images.values():
        assert each.inputs.shape == (20, 784)
        assert each.targets.sum(0).tolist() == [2.0] * 10
    assert float(images["train"].inputs.mean()) == pytest.approx(0, abs=1e-12)


def test_more_images_than_a_split_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"--images 5000: bundled has 3,000 images in train.*at most 3000"):
        terrain_images(open_source("bundled"), 5000)


def test_minima_of_the_grid_alone_do_not_count() -> None:
    minima = true_minima(Bowls(), 20.0)
    assert len(minima) == 2
    for x, y, _ in minima:
        assert x == pytest.approx(y, abs=1e-4)
        assert abs(x + y) == pytest.approx(10, abs=0.2)
    assert minima[0][0] < 0 < minima[1][0], "the tilt makes the left one lower"


def test_interior_minima_are_below_all_eight_neighbours() -> None:
    losses = np.ones((6, 6))
    losses[0, 3] = losses[2, 2] = losses[4, 4] = 0
    assert interior_minima(losses) == [(2, 2), (4, 4)]
    losses[3, 3] = 0  # a diagonal neighbour of both
    assert interior_minima(losses) == []


def test_descent_ends_in_the_minimum_below_or_says_that_it_left() -> None:
    end = descent(Bowls(), (9.0, 8.0), 20.0)
    assert end is not None
    assert end[0] == pytest.approx(5, abs=0.2)
    assert descent(Bowls(), (9.0, 8.0), 8.5) is None


def test_losses_of_paths_are_those_of_the_surface(small: tuple[dict[str, np.ndarray], Any]) -> None:
    arrays, facts = small
    images = terrain_images(open_source("bundled"), 20)
    weights = make_weights(images["train"], "random", facts["options"]["seed"])
    cut = Slice.drawn("output", facts["slice"]["candidate"] - 1, 10, facts["options"]["seed"])
    for row in facts["optimizers"]:
        path = arrays[row["array"]]
        x, y = torch.tensor(path[:, 1]), torch.tensor(path[:, 2])
        for column, split in ((3, "train"), (4, "test")):
            there = Surface(weights, cut, images[split])(x, y).numpy()
            np.testing.assert_allclose(path[:, column], there, rtol=0, atol=1e-12)


def test_all_start_at_one_point_and_have_equal_passes(small: tuple[dict[str, np.ndarray], Any]) -> None:
    arrays, facts = small
    for row in facts["optimizers"]:
        assert arrays[row["array"]][0, :3].tolist() == [0, -10.1, -15]
        assert arrays[row["array"]][-1, 0] == row["passes"] == 40
    assert {row["name"]: row["updates"] for row in facts["optimizers"]}["pugd"] == 20


@pytest.mark.slow
def test_on_the_shipped_slice_steps_of_a_given_length_end_in_one_minimum(
    shipped: tuple[dict[str, np.ndarray], dict[str, Any]],
) -> None:
    arrays, facts = shipped
    ends = {row["name"]: np.array(row["end"]) for row in facts["optimizers"]}
    lowest = facts["minima"][0]
    for name, end in ends.items():
        apart = float(np.linalg.norm(end - (lowest["x"], lowest["y"])))
        assert (apart < 0.05) == (name in ("ngd_cw", "ugd", "pugd")), f"{name} ends {apart} away"
    for name in ("sgd", "amp", "sam", "asam"):
        assert np.linalg.norm(ends[name] - (-10.1, -15)) < 0.2, f"{name} left the plateau"
    farthest = max(np.abs(arrays[row["array"]][:, 1:3]).max() for row in facts["optimizers"])
    assert 20 < farthest < arrays["axis"][-1] == 26, "the picture follows ngd_cw"


@pytest.mark.slow
def test_pugd_needs_more_passes_than_ugd_for_the_same_minimum() -> None:
    """The gradient at a distance of 1 hides the slope along a flat valley, so PUGD is slower there."""
    images = terrain_images(open_source("bundled"), 100)
    weights = make_weights(images["train"], "trained", 0)
    surface = Surface(weights, Slice.drawn("unit", 6, 10, 0), images["train"])
    apart = {}
    for name, options, passes in (("ugd", {}, 1000), ("pugd", {}, 1000), ("pugd", {"rho": 0.1}, 1000)):
        points, _ = walk(surface, spec(name, **options), (-10.1, -15.0), passes, 100)
        apart[name, options.get("rho")] = float(np.linalg.norm(points[-1, 1:] - (-15.953, 3.167)))
    assert apart["ugd", None] < 0.01
    assert apart["pugd", 0.1] < 0.05
    assert 0.3 < apart["pugd", None] < 1


def test_a_plan_is_near_the_time_that_is_taken() -> None:
    options = TerrainOptions(kind="output", rest="random", images=20, grid=5, passes=300)
    specs = {name: spec(name) for name in ("sgd", "pugd")}
    candidate, seconds = planned_seconds(open_source("bundled"), specs, options)
    assert candidate == 1
    assert 0.1 < seconds / make_terrain(open_source("bundled"), specs, options)[1]["seconds"] < 10


def test_the_rule_of_the_slice_is_disclosed(small: tuple[Any, dict[str, Any]]) -> None:
    assert "slice chosen by rule: the first candidate; no rule" in small[1]["caveats"]


def test_an_update_of_ugd_has_the_length_of_the_learning_rate() -> None:
    points, _ = walk(Bowls(), spec("ugd"), (9.0, 8.0), passes=4, every=1)
    steps = np.linalg.norm(np.diff(points[:, 1:], axis=0), axis=1)
    expected = 0.1 * (1 + np.cos(np.pi * np.arange(4) / 4))
    np.testing.assert_allclose(steps, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (spec("pugd", trigger={"name": "generalization_gap"}), "held-out images"),
        (resolve_spec({"name": "sgd", "lr": 0.2, "layer_decay": 0.7}), "layers of a network"),
    ],
)
def test_an_optimizer_that_needs_more_than_two_weights_is_refused(
    given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        check_spec(given, "it")


def test_sam_on_finds_no_normalisation_layer() -> None:
    with pytest.raises(UserError, match="needs normalisation layers"):
        walk(Bowls(), spec("sam_on"), (1.0, 2.0), 4, 1)


def test_a_path_that_diverges_ends_at_its_last_finite_point() -> None:
    points, _ = walk(Bowls(), spec("sgd", lr=1e308), (9.0, 8.0), passes=50, every=1)
    assert points.tolist() == [[0, 9, 8]]
