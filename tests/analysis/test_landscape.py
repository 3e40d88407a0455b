"""Landscapes of real runs: true at the ends, the same after a stop, and nothing of the models is changed."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pugdft.analysis.files import read_analysis
from pugdft.analysis.jobs import Progress
from pugdft.analysis.landscape import Landscape, LandscapeOptions
from pugdft.analysis.overlay import Overlay, open_models
from pugdft.analysis.points import Evaluator, take_sample
from pugdft.errors import UserError


def overlay(*paths: Path, batch_norm: str = "reestimate") -> Overlay:
    models = open_models(paths)
    return Overlay(models, take_sample(models[0], "train", 30), batch_norm)  # type: ignore[arg-type]


def bits(models: Overlay) -> list[bytes]:
    return [
        each.detach().numpy().tobytes() for one in models.models for each in one.model.state_dict().values()
    ]


def stop_after(points: int) -> Progress:
    """Asks to stop when so many points are done."""
    done = [0]

    def count(now: int, total: int) -> None:
        done[0] = now

    return Progress(is_stopped=lambda: done[0] >= points, on_point=count)


def test_the_middle_of_a_plane_is_the_runs_own_loss_and_models_stay_as_they_are(
    sgd_run: Path, sam_run: Path, tmp_path: Path
) -> None:
    both = overlay(sgd_run, sam_run, batch_norm="fixed")
    before = bits(both)
    landscape = Landscape(both, LandscapeOptions(grid=5), tmp_path)
    assert landscape.compute()
    assert bits(both) == before
    stored = read_analysis(landscape.path)
    assert stored.arrays["loss"].shape == (2, 5, 5)
    assert stored.arrays["alpha"].tolist() == [-1, -0.5, 0, 0.5, 1]
    for number, loaded in enumerate(both.models):
        own = Evaluator.of(loaded, both.sample, "fixed").at()
        assert stored.arrays["loss"][number, 2, 2] == own.loss == stored.arrays["base_loss"][number]
        assert stored.arrays["top1"][number, 2, 2] == own.top1
    assert [each["label"] for each in stored.facts["records"]] == ["sgd", "sam"]
    assert any("one seed" in each for each in stored.facts["caveats"])
    assert any("random directions miss" in each for each in stored.facts["caveats"])
    assert stored.facts["batch_norm"] == "fixed"


def test_the_way_between_ends_at_both_runs(sgd_run: Path, sam_run: Path, tmp_path: Path) -> None:
    both = overlay(sgd_run, sam_run)
    landscape = Landscape(both, LandscapeOptions("between", grid=5), tmp_path)
    assert landscape.compute()
    ends = [Evaluator.of(each, both.sample, "reestimate").at().loss for each in both.models]
    assert landscape.loss[0, [0, -1]].tolist() == pytest.approx(ends, rel=1e-3)
    # With the start's statistics the far end is another function.
    fixed = Landscape(
        Overlay(both.models, both.sample, "fixed"), LandscapeOptions("between", grid=5), tmp_path
    )
    fixed.compute()
    assert abs(fixed.loss[0, -1] / ends[1] - 1) > 0.05


KILLED = """
import os, sys
from pathlib import Path
from pugdft.analysis import jobs, landscape, overlay, points
jobs._SAVE_SECONDS = 0.0
models = overlay.open_models([Path(sys.argv[1])])
both = overlay.Overlay(models, points.take_sample(models[0], "train", 30), "reestimate")
job = landscape.Landscape(both, landscape.LandscapeOptions("plane", grid=5), Path(sys.argv[2]))
job.compute(jobs.Progress(on_point=lambda done, total: done == int(sys.argv[3]) and os.kill(os.getpid(), 9)))
"""


@pytest.mark.slow
def test_a_killed_plane_goes_on_and_ends_with_the_same_bits(sgd_run: Path, tmp_path: Path) -> None:
    point = int(np.random.default_rng().integers(2, 25))
    given = [str(sgd_run), str(tmp_path / "cut"), str(point)]
    done = subprocess.run([sys.executable, "-c", KILLED, *given])
    assert done.returncode == -signal.SIGKILL
    one, options = overlay(sgd_run), LandscapeOptions("plane", grid=5)
    whole, second = (Landscape(one, options, tmp_path / name) for name in ("whole", "cut"))
    assert second.num_done == point - 1, point  # what the last point gave is not yet stored
    assert whole.compute()
    assert second.compute()
    for name in ("loss", "top1"):
        stored = [read_analysis(each.path).arrays[name].tobytes() for each in (whole, second)]
        assert stored[0] == stored[1], point


def test_a_stopped_line_goes_on_and_ends_with_the_same_bits(sgd_run: Path, tmp_path: Path) -> None:
    one, options = overlay(sgd_run), LandscapeOptions("line", directions=2, grid=9)
    whole = Landscape(one, options, tmp_path / "whole")
    assert whole.compute()
    for points in (1, 7, 12):
        first = Landscape(one, options, tmp_path / str(points))
        assert not first.compute(stop_after(points))
        assert read_analysis(first.path).facts["done"] == points
        second = Landscape(one, options, tmp_path / str(points))
        assert second.num_done == points
        assert second.compute()
        for name in ("loss", "top1"):
            stored = [read_analysis(each.path).arrays[name].tobytes() for each in (whole, second)]
            assert stored[0] == stored[1]


def test_what_another_run_was_trained_with_is_said_too(sgd_run: Path, sam_run: Path, tmp_path: Path) -> None:
    both = overlay(sgd_run, sam_run, batch_norm="fixed")
    other = both.models[1].recipe
    train = other.train.model_copy(update={"label_smoothing": 0.1, "class_weights": "balanced"})
    both.models[1] = replace(both.models[1], recipe=other.model_copy(update={"train": train}))
    landscape = Landscape(both, LandscapeOptions("line", directions=1, grid=5), tmp_path)
    said = landscape.caveats([1.0, 1.0])
    assert "label smoothing and class weights in training, not in this loss" in said
    assert any(each.startswith("1 line of ") for each in said)


def test_losses_that_are_not_finite_are_said_from_the_nearest_step_on(sgd_run: Path, tmp_path: Path) -> None:
    plane = Landscape(overlay(sgd_run), LandscapeOptions("plane", grid=5), tmp_path)
    plane.loss[0, 0, 2] = plane.loss[0, 4, 4] = (
        np.inf
    )  # two steps along the first axis, none along the second
    assert "the loss is not finite at 2 points, from a step of 1 on" in plane.caveats([1.0])
    line = Landscape(overlay(sgd_run), LandscapeOptions("line", directions=3, grid=5), tmp_path)
    line.loss[0, 2, 3] = np.inf
    assert "the loss is not finite at 1 point, from a step of 0.5 on" in line.caveats([1.0])


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_midway_leaves_the_models_and_what_was_computed(
    sgd_run: Path, tmp_path: Path, error: type[BaseException]
) -> None:
    one = overlay(sgd_run)
    before = bits(one)

    def fail(done: int, total: int) -> None:
        if done == 3:
            raise error

    landscape = Landscape(one, LandscapeOptions("line", directions=1, grid=5), tmp_path)
    with pytest.raises(error):
        landscape.compute(Progress(on_point=fail))
    assert bits(one) == before
    assert int(np.isfinite(read_analysis(landscape.path).arrays["loss"]).sum()) == 3


def test_a_run_of_weights_that_are_not_finite_is_refused(sgd_run: Path, tmp_path: Path) -> None:
    one = overlay(sgd_run)
    with torch.no_grad():
        one.models[0].model.fc.bias.fill_(torch.nan)
    landscape = Landscape(one, LandscapeOptions("line", directions=1, grid=5), tmp_path)
    with pytest.raises(UserError, match="no loss is a finite number"):
        landscape.compute()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grid": 6}, "--grid 6: must be odd"),
        ({"grid": 3}, "--grid 3: must be odd and at least 5"),
        ({"extent": 0.0}, "--range 0: must be a finite number above 0"),
        ({"extent": float("inf")}, "--range inf"),
        ({"kind": "between"}, "needs another run"),
    ],
)
def test_options_without_a_landscape_are_refused(
    sgd_run: Path, tmp_path: Path, options: dict[str, float], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        Landscape(overlay(sgd_run), LandscapeOptions(**options), tmp_path)  # type: ignore[arg-type]


def test_runs_that_cannot_be_compared_are_refused(sgd_run: Path, photo_run: Path) -> None:
    with pytest.raises(UserError, match="stands twice"):
        open_models([sgd_run, sgd_run])
    with pytest.raises(UserError, match="its model is test_vit, there it is test_resnet"):
        open_models([sgd_run, photo_run])
