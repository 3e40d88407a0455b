"""Ways on a plane: the same as by a decomposition of the whole matrix, and honest about what is outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from analysis_runs import SGD, trained_run

from pugdft.analysis.files import read_analysis
from pugdft.analysis.jobs import Progress
from pugdft.analysis.overlay import Overlay, open_models
from pugdft.analysis.points import Evaluator, restored, take_sample, write_weights_
from pugdft.analysis.trajectory import (
    SnapshotFiles,
    Trajectory,
    TrajectoryOptions,
    origin_weights,
    plane_along,
    plane_through,
    principal_plane,
    random_walk_share,
    snapshot_files,
)
from pugdft.errors import UserError

ATOL = 1e-8


def stored_rows(folder: Path, rows: np.ndarray) -> SnapshotFiles:
    """Rows of numbers as snapshots of three parameters: a matrix, a vector and a number."""
    files = []
    for number, row in enumerate(torch.from_numpy(rows).float()):
        tensors = {"w": row[:-4].reshape(2, -1).clone(), "b": row[-4:-1].clone(), "s": row[-1].clone()}
        files.append(folder / f"{number:08d}.safetensors")
        safetensors.torch.save_file({**tensors, "buffer": torch.full((3,), 1e9)}, files[-1])
    return SnapshotFiles(files, ("w", "b", "s"), origin_weights([len(rows)]))


def flat(parts: dict[str, torch.Tensor]) -> np.ndarray:
    return torch.cat([parts[name].flatten() for name in ("w", "b", "s")]).double().numpy()


@pytest.fixture
def walk() -> np.ndarray:
    """Of 12 steps in 60 dimensions, in numbers that fp32 has."""
    steps = np.random.default_rng(0).normal(size=(12, 60)) * np.linspace(2, 0.3, 60)
    return (5 + steps.cumsum(0)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("together", [2**24, 100])
def test_the_plane_from_inner_products_is_that_of_the_whole_matrix(
    tmp_path: Path, walk: np.ndarray, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pugdft.analysis.trajectory._MOST_NUMBERS", together)
    files = stored_rows(tmp_path, walk)
    differences = walk - walk[-1]
    gram = files.gram()
    assert np.abs(gram - differences @ differences.T).max() < ATOL
    way = principal_plane(gram)
    left, sizes, right = np.linalg.svd(differences, full_matrices=False)
    expected = left[:, :2] * sizes[:2]
    signs = np.sign((way.xy * expected).sum(0))
    assert np.abs(way.xy - signs * expected).max() < ATOL
    origin, axes = files.place(way.coefficients)
    assert np.abs(flat(origin) - walk[-1]).max() < 1e-6
    for number in (0, 1):  # axes are stored in fp32
        assert np.abs(flat(axes[number]) - signs[number] * right[number]).max() < 1e-6


def test_inside_and_outside_make_the_distance_and_the_end_is_the_origin(
    tmp_path: Path, walk: np.ndarray
) -> None:
    way = principal_plane(stored_rows(tmp_path, walk).gram())
    differences = walk - walk[-1]
    # Measured outside of the plane by its axes, not by what is missing.
    axes = (way.coefficients.T @ differences).T
    outside = differences - differences @ axes @ axes.T
    assert np.abs((outside**2).sum(1) - way.residual**2).max() < ATOL
    distance = (differences**2).sum(1)
    assert np.abs((way.xy**2).sum(1) + (outside**2).sum(1) - distance).max() < 1e-10 * distance.max()
    assert np.abs(way.xy[-1]).max() < 1e-10
    assert way.explained == pytest.approx(1 - (outside**2).sum() / distance.sum())


def test_two_components_explain_most_of_a_random_walk(tmp_path: Path) -> None:
    steps = np.random.default_rng(0).normal(size=(100, 20_004))
    files = stored_rows(tmp_path, steps.cumsum(0))
    way = principal_plane(files.gram())
    assert way.explained == pytest.approx(0.90, abs=0.02)
    assert random_walk_share([range(100)]) == pytest.approx(way.explained, abs=0.01)
    about_mean = SnapshotFiles(files.files, files.names, np.full(100, 0.01))
    assert principal_plane(about_mean.gram()).explained == pytest.approx(0.76, abs=0.02)


def test_the_straight_way_and_the_largest_detour(tmp_path: Path, walk: np.ndarray) -> None:
    differences = walk - walk[-1]
    way = plane_along(stored_rows(tmp_path, walk).gram(), np.eye(12)[0])
    length = np.linalg.norm(differences[0])
    assert way.xy[[0, -1]] == pytest.approx(np.array([[length, 0], [0, 0]]), abs=1e-6)
    assert way.residual[[0, -1]] == pytest.approx([0, 0], abs=1e-6)
    straight = differences[0] / length
    beside = differences - np.outer(differences @ straight, straight)
    left, sizes, _ = np.linalg.svd(beside, full_matrices=False)
    detour = left[:, 0] * sizes[0]
    assert np.abs(np.abs(way.xy[:, 1]) - np.abs(detour)).max() < ATOL
    assert np.abs((beside**2).sum(1) - detour**2 - way.residual**2).max() < ATOL
    still = plane_along(np.zeros((3, 3)), np.eye(3)[0])  # a run of no step
    assert (still.xy == 0).all()


def test_two_runs_have_the_mean_of_their_starts_and_ends_on_the_axis(
    image_folder: Path, tmp_path: Path
) -> None:
    runs = [trained_run(tmp_path / str(seed), image_folder, SGD, seed, snapshots=1) for seed in (0, 1)]
    models = open_models(runs)
    both = Overlay(models, take_sample(models[0], "train", 30), "fixed")
    way = Trajectory(both, TrajectoryOptions("axes", grid=5), tmp_path).way
    starts, ends = way.xy[[0, 5]].mean(0), way.xy[[4, 9]].mean(0)
    assert starts[0] > 1
    assert [starts[1], *ends] == pytest.approx([0, 0, 0], abs=1e-6)


def test_a_plane_through_three_ends_is_exact_there(tmp_path: Path, walk: np.ndarray) -> None:
    files = stored_rows(tmp_path, walk)
    files = SnapshotFiles(files.files, files.names, np.eye(12)[3])
    way = plane_through(files.gram(), 7, 11)
    assert way.residual[[3, 7, 11]] == pytest.approx([0, 0, 0], abs=1e-6)
    assert np.linalg.norm(way.xy[7] - way.xy[11]) == pytest.approx(np.linalg.norm(walk[7] - walk[11]))
    assert abs(way.xy[7, 1]) < 1e-9
    assert way.residual[5] > 1


@pytest.mark.parametrize(("first", "second"), [(3, 7), (7, 7), (7, 11)])
def test_three_ends_that_make_no_plane_are_refused(
    tmp_path: Path, walk: np.ndarray, first: int, second: int
) -> None:
    walk = walk.copy()
    walk[11] = 3 * walk[7] - 2 * walk[3]  # on one line
    files = stored_rows(tmp_path, walk)
    files = SnapshotFiles(files.files, files.names, np.eye(12)[3])
    with pytest.raises(UserError, match="lie on one line, or two runs have the same"):
        plane_through(files.gram(), first, second)


def test_a_run_that_did_not_move_has_no_way(
    way_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = open_models([way_run])
    both = Overlay(models, take_sample(models[0], "train", 30), "fixed")
    monkeypatch.setattr(SnapshotFiles, "gram", lambda self: np.zeros((len(self.files),) * 2))
    with pytest.raises(UserError, match="all snapshots have the same weights"):
        Trajectory(both, TrajectoryOptions(grid=5), tmp_path)


@pytest.fixture(scope="module")
def way_run(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.mktemp("runs") / "way", image_folder, SGD, 0, snapshots=1)


def test_a_runs_way_has_the_losses_of_its_snapshots(way_run: Path, tmp_path: Path) -> None:
    models = open_models([way_run])
    both = Overlay(models, take_sample(models[0], "train", 30), "fixed")
    before = [each.detach().numpy().tobytes() for each in models[0].model.state_dict().values()]
    job = Trajectory(both, TrajectoryOptions(grid=5), tmp_path)
    assert job.compute()
    assert before == [each.detach().numpy().tobytes() for each in models[0].model.state_dict().values()]
    stored = read_analysis(job.path)
    arrays = stored.arrays
    assert arrays["xy"].shape == (1, 5, 2)
    for number, file in enumerate(snapshot_files(models[0]).values()):
        with restored(models[0].model):
            write_weights_(models[0].model, safetensors.torch.load_file(file))
            assert arrays["true_loss"][0, number] == Evaluator.of(models[0], both.sample, "fixed").at().loss
    assert np.abs(arrays["xy"][0, -1]).max() < 1e-9
    assert arrays["projected_loss"][0, -1] == pytest.approx(arrays["true_loss"][0, -1], rel=1e-4)
    assert (
        arrays["alpha"].min()
        < arrays["xy"][0, :, 0].min()
        < arrays["xy"][0, :, 0].max()
        < arrays["alpha"].max()
    )
    assert 0.5 < stored.facts["explained"] < 1
    assert any("outside this plane" in each for each in stored.facts["caveats"])
    assert any("random walk" in each for each in stored.facts["caveats"])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_midway_gives_the_models_back_and_keeps_what_was_computed(
    way_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    models = open_models([way_run])
    both = Overlay(models, take_sample(models[0], "train", 30), "reestimate")
    before = [each.detach().numpy().tobytes() for each in models[0].model.state_dict().values()]
    job, at, left = Trajectory(both, TrajectoryOptions(grid=5), tmp_path), Evaluator.at, iter(range(11))

    def fail(self: Evaluator, *given: object) -> object:
        found = at(self, *given)  # type: ignore[arg-type]
        if next(left, None) is None:
            raise error
        return found

    monkeypatch.setattr(Evaluator, "at", fail)
    with pytest.raises(error):
        job.compute()
    assert before == [each.detach().numpy().tobytes() for each in models[0].model.state_dict().values()]
    assert not any(each.training for each in models[0].model.modules())
    assert read_analysis(job.path).facts["done"] == 11


def test_a_way_that_does_not_end_at_the_records_weights_says_so(way_run: Path, tmp_path: Path) -> None:
    models = open_models([way_run])
    both = Overlay(models, take_sample(models[0], "train", 30), "fixed")
    way, words = Trajectory(both, TrajectoryOptions(grid=5), tmp_path), "not at those of the record"
    assert not any(words in each for each in way.caveats(0.9))
    train = models[0].recipe.train.model_copy(update={"ema": 0.9})
    models[0] = replace(models[0], recipe=models[0].recipe.model_copy(update={"train": train}))
    assert any(words in each for each in way.caveats(0.9))


def test_a_stopped_trajectory_goes_on_with_the_same_bits(way_run: Path, tmp_path: Path) -> None:
    models = open_models([way_run])
    both = Overlay(models, take_sample(models[0], "train", 30), "reestimate")
    whole = Trajectory(both, TrajectoryOptions(grid=5), tmp_path / "whole")
    whole.compute()
    left = iter(range(17))
    first = Trajectory(both, TrajectoryOptions(grid=5), tmp_path / "cut")
    assert not first.compute(Progress(is_stopped=lambda: next(left, None) is None))
    assert first.num_done == 17
    second = Trajectory(both, TrajectoryOptions(grid=5), tmp_path / "cut")
    assert second.compute()
    for name, values in read_analysis(whole.path).arrays.items():
        assert values.tobytes() == read_analysis(second.path).arrays[name].tobytes()


def test_a_run_without_snapshots_is_refused(sgd_run: Path) -> None:
    with pytest.raises(UserError, match=r"train\.snapshots=1 keeps them"):
        snapshot_files(open_models([sgd_run])[0])


def test_a_changed_snapshot_is_refused(way_run: Path) -> None:
    loaded = open_models([way_run])[0]
    file = list(snapshot_files(loaded).values())[1]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        with pytest.raises(UserError, match="has changed"):
            snapshot_files(loaded)
    finally:
        file.write_bytes(content)
