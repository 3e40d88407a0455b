"""Pictures of histories and sweeps: what is drawn where, and what stands beside it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_records import STEPS, drawn
from matplotlib.text import Text
from run_records import PUGD, SAM, SGD, facts

from pugdft.errors import UserError
from pugdft.figures import histories, paper
from pugdft.records import RunRecord, StoredRun
from pugdft.report import curves

GNP = {"name": "gnp", "base": SGD}


def runs(*records: RunRecord) -> list[StoredRun]:
    return [StoredRun(each, Path(each.id, "record.yaml")) for each in records]


def panels(
    *records: RunRecord,
    y: Sequence[str] | None = None,
    x: str | None = None,
    by: Any = "optimizer",
    band: Any = "auto",
) -> tuple[list[histories.PaperPanel], str, list[str]]:
    series = curves.series_of(runs(*records), by)
    return curves.panels_of(series, y, x or curves.usual_axis(series), band)


def drawn_figure(*records: RunRecord, theme: str = "light", **options: Any) -> Any:
    found, heading, _ = panels(*records, **options)
    with paper.style(theme):
        figure = histories.histories_figure(found, heading, theme=theme)
        figure.draw_without_rendering()
    return figure


def test_the_gap_is_of_evaluated_training_images_where_all_runs_have_them() -> None:
    record = drawn(SGD)
    (gap,), _, said = panels(record, y=["gap"])
    expected = [row["test_loss"] - row["train_eval_loss"] for row in record.history]
    assert gap.curves[0].ys == pytest.approx(expected)
    assert gap.remark == ""
    assert any("in evaluation mode, without augmentation" in line for line in said)


def test_a_gap_from_the_running_mean_says_so_in_the_picture() -> None:
    records = drawn(SGD, evaluated=False), drawn(SAM, passes=2)
    (gap,), _, said = panels(*records, y=["gap"])
    sgd = next(curve for curve in gap.curves if curve.label == "sgd")
    assert sgd.ys == pytest.approx([row["test_loss"] - row["train_loss"] for row in records[0].history])
    sam = next(curve for curve in gap.curves if curve.label == "sam")
    later = records[1].history[1:]
    assert sam.ys == pytest.approx([row["test_loss"] - row["train_loss"] for row in later]), "alike for all"
    assert gap.remark == "train: running mean, augmented"
    figure = drawn_figure(*records, y=["gap"])
    assert figure.axes[0].get_title("left") == gap.remark
    assert any("train.evaluate_train=1000" in line for line in said)


def test_at_equal_passes_sgd_of_twice_the_epochs_ends_where_sam_ends() -> None:
    found, heading, _ = panels(drawn(SGD, epochs=20), drawn(SAM, epochs=10, passes=2), y=["loss"])
    assert heading == "gradient passes"
    assert {curve.xs[-1] for panel in found for curve in panel.curves} == {20 * STEPS}
    by_epoch, heading, _ = panels(
        drawn(SGD, epochs=20), drawn(SAM, epochs=10, passes=2), y=["loss"], x="epochs"
    )
    assert (heading, {curve.xs[-1] for curve in by_epoch[0].curves}) == ("epochs", {10, 20})
    assert panels(drawn(SGD), drawn(PUGD), y=["loss"])[1] == "epochs", "of as many passes"


def test_seeds_are_a_mean_with_the_band_that_the_caption_names() -> None:
    seeds = [drawn(SGD, seed) for seed in range(3)]
    values = np.array([[row["test_loss"] for row in each.history] for each in seeds])
    for band, low in {
        "range": values.min(0), "sd": values.mean(0) - values.std(0, ddof=1),
        "ci": values.mean(0) - 4.302653 * values.std(0, ddof=1) / math.sqrt(3),
    }.items():  # fmt: skip
        found, _, said = panels(*seeds, y=["loss"], band=band)
        (curve,) = found[1].curves
        assert curve.ys == pytest.approx(values.mean(0))
        assert curve.band is not None
        assert curve.band[0] == pytest.approx(low, rel=1e-6)
        assert f"means of 3 runs; bands: {curves._BANDS[band]}" in said[0]
    assert panels(*seeds, y=["loss"], band="none")[0][1].curves[0].band is None
    assert "bands: range" in panels(*seeds)[2][0]
    assert "95 % interval" in panels(*[drawn(SGD, seed) for seed in range(5)])[2][0]


def test_a_diverged_run_ends_with_a_cross_at_its_last_finite_value_and_moves_no_mean() -> None:
    whole, lost = drawn(PUGD, 0), drawn(PUGD, 1, diverges_at=4)
    lost.history[4]["test_loss"] = 1e30
    found, _, said = panels(whole, lost, y=["loss"])
    mean, single = found[1].curves
    assert mean.ys == [row["test_loss"] for row in whole.history]
    assert (len(single.xs), single.ys[-1], single.is_stopped) == (5, 1e30, True)
    assert any("a cross is the last finite value" in line for line in said)
    figure = drawn_figure(whole, lost, y=["loss"])
    axes = figure.axes[1]
    (cross,) = [line for line in axes.lines if line.get_marker() == "x"]
    _, high = axes.get_ylim()
    assert high < 10, "a run that diverged does not set the axis"
    assert list(cross.get_data()[1]) == [high]
    assert "last finite value" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_all_runs_diverged_is_still_a_picture() -> None:
    figure = drawn_figure(drawn(SGD, diverges_at=3), y=["loss"])
    assert [line.get_marker() for line in figure.axes[1].lines].count("x") == 1


@pytest.mark.filterwarnings("error")
def test_a_run_that_ended_in_its_first_epoch_is_a_picture_without_warnings() -> None:
    one = drawn(SGD, epochs=0, diverges_at=0)
    figure = drawn_figure(one, y=["loss"])
    assert figure.axes[0].get_xlim()[1] > 0


def test_a_run_of_an_older_version_is_drawn_without_epoch_0_and_without_norms() -> None:
    record = drawn(SGD, evaluated=False)
    for row in record.history:
        row.pop("gradient_norm")
    found, _, _ = panels(record)
    assert [panel.heading for panel in found] == ["train loss", "test loss", "test loss − train loss"]
    assert found[0].curves[0].xs[0] == 1
    with pytest.raises(UserError, match="--y gradient,cosine: no record has it"):
        panels(record, y=["gradient", "loss", "cosine"])


def test_runs_of_one_optimizer_and_other_epochs_are_lines_of_their_own() -> None:
    (loss, _), _, _ = panels(drawn(SGD), drawn(SGD, 1), drawn(SGD, epochs=20), y=["loss"])
    assert [curve.label for curve in loss.curves] == ["sgd (epochs 10)", "sgd (epochs 20)"]
    (loss, _), _, _ = panels(drawn(SGD, 1), drawn(SGD, 0), drawn(SAM, 0), y=["loss"], by="run")
    assert [curve.label for curve in loss.curves] == ["sam, seed 0", "sgd, seed 0", "sgd, seed 1"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"data": facts("cifar100")}, "data"), ({"model__name": "resnet50"}, "model"),
     ({"data__image_size": 32}, "image size")],
    ids=str,
)  # fmt: skip
def test_runs_of_different_subjects_in_one_picture_are_refused(changes: dict[str, Any], what: str) -> None:
    curves.check_comparable(runs(drawn(SGD), drawn(SAM)))
    with pytest.raises(UserError, match=rf"differ in {what}: .*\. Draw them apart"):
        curves.check_comparable(runs(drawn(SGD), drawn(SAM, **changes)))


@pytest.mark.parametrize("num_series", [2, 8, 12])
@pytest.mark.parametrize("theme", paper.THEMES)
def test_nothing_is_cut_and_nothing_overlaps(num_series: int, theme: str) -> None:
    records = [
        drawn({"name": "sam", "rho": n / 100, "base": SGD}, passes=2) for n in range(1, num_series + 1)
    ]
    figure = drawn_figure(*records, theme=theme)
    outside = figure.legends[0].get_window_extent()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for box in (*boxes, outside):
        assert figure.bbox.x0 - 1 <= box.x0 <= box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 - 1 <= box.y0 <= box.y1 <= figure.bbox.y1 + 1
    for one, two in itertools.combinations((*boxes, outside), 2):
        assert not one.padded(-1).overlaps(two)
    texts = figure.findobj(Text)
    assert min(text.get_fontsize() for text in texts if text.get_text()) >= 5.5


def test_labels_of_a_logarithmic_axis_are_plain_numbers() -> None:
    axes = drawn_figure(drawn(SGD, epochs=20), y=["loss"]).axes[0]
    assert axes.get_yscale() == "log"
    labels = {text.get_text() for text in axes.get_yticklabels()}
    assert {"0.1", "1"} <= labels
    assert not any("e" in label for label in labels)


def sweep_records() -> list[RunRecord]:
    return [
        drawn({**GNP, "alpha": alpha, "rho": rho}, seed, top1=0.9 - rho - 0.01 * seed + alpha / 100)
        for rho in (0.1, 0.05)
        for alpha in (1.0, 0.2)
        for seed in (0, 1)
    ]  # fmt: skip


def test_a_sweep_has_a_curve_for_each_value_of_the_series() -> None:
    lone = drawn(SGD)
    found, names, headings, said = curves.sweep_of(
        runs(*sweep_records(), lone), "optimizer.alpha", "optimizer.rho", "top1", "auto"
    )
    assert [curve.label for curve in found] == ["rho = 0.05", "rho = 0.1"]
    assert (names, headings) == (None, ("alpha", "top-1, %"))
    assert found[0].xs == [0.2, 1.0]
    assert found[0].ys == pytest.approx([84.7, 85.5])
    assert found[0].band is not None
    assert list(found[0].band[0]) == pytest.approx([84.2, 85.0])
    assert said == [
        "marks: means of 2 runs; bars: range",
        "left out: 1 run without optimizer.alpha or without a result",
    ]
    with paper.style():
        figure = histories.sweep_figure(found, names, headings)
    assert [line.get_label() for line in figure.axes[0].lines] != []


def test_a_sweep_over_words_names_them_on_the_axis() -> None:
    found, names, headings, _ = curves.sweep_of(
        runs(drawn(SGD), drawn(SAM), drawn(PUGD)), "optimizer.name", None, "loss", "auto"
    )
    assert names == ["pugd", "sam", "sgd"]
    assert (len(found), list(found[0].xs), headings[1]) == (1, [0, 1, 2], "loss")


@pytest.mark.parametrize(
    ("key", "series", "message"),
    [("optimizer.alhpa", None,
      r'--sweep: unknown key of these recipes "optimizer.alhpa".*Did you mean "optimizer.alpha"'),
     ("optimizer.alpha", "optimizer.roh", '--series: unknown key .*"optimizer.roh"'),
     ("train.epochs", None, "--sweep train.epochs: the runs have 1 value of it")],
)  # fmt: skip
def test_a_sweep_over_what_is_not_there_is_one_message(key: str, series: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        curves.sweep_of(runs(*sweep_records()), key, series, "top1", "auto")
