"""The one loss of every analysis: which images, at which weights, with which statistics."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_runs import blobs, trained_net
from torch.nn import functional

from pugdft.analysis.directions import move_, random_direction, weights_of
from pugdft.analysis.points import Evaluator, balanced_draw, restored, take_sample
from pugdft.errors import UserError
from pugdft.inference.evaluate import evaluate_model
from pugdft.inference.load import load_model
from pugdft.records import open_run


def bits(model: torch.nn.Module) -> list[bytes]:
    return [each.detach().numpy().tobytes() for each in (*model.parameters(), *model.buffers())]


def test_a_sample_has_as_many_images_of_each_class_in_every_part() -> None:
    labels = np.repeat([0, 1, 2], [50, 60, 4])
    rows = balanced_draw(labels, 40, 0, "ab" * 32)
    assert len(set(rows.tolist())) == 40
    assert np.bincount(labels[rows]).tolist() == [18, 18, 4]  # all of the small class, the rest shared
    assert np.bincount(labels[rows[:12]]).tolist() == [4, 4, 4]
    assert (balanced_draw(labels, 40, 0, "ab" * 32) == rows).all()
    assert (balanced_draw(labels, 40, 1, "ab" * 32) != rows).any()
    assert (balanced_draw(labels, 40, 0, "cd" * 32) != rows).any()


def test_the_loss_is_the_mean_cross_entropy_in_evaluation_mode() -> None:
    net, inputs, labels = trained_net()
    with torch.no_grad():
        logits = net(inputs)
    expected = float(functional.cross_entropy(logits.double(), labels))
    for size in (32, 400):
        found = Evaluator(net, inputs, labels, "fixed", size).at()
        assert found.loss == pytest.approx(expected, rel=1e-6)
        assert found.top1 == float((logits.argmax(1) == labels).double().mean())


def test_new_statistics_are_those_of_the_images_and_forget_what_was_there() -> None:
    net, inputs, labels = trained_net()
    stored = Evaluator(net, inputs, labels).at().loss
    evaluate = Evaluator(net, inputs, labels, "reestimate", 400)
    assert evaluate.at().loss == pytest.approx(stored, rel=0.03)
    by_batch = Evaluator(net, inputs, labels, "batch", 400).at().loss
    assert evaluate.at().loss == pytest.approx(by_batch, rel=0.02)  # but for n / (n − 1) of the variance
    for norm in (net.body[1], net.body[4]):
        norm.running_mean.fill_(1e6)
    assert Evaluator(net, inputs, labels).at().loss > 1
    assert evaluate.at().loss == pytest.approx(by_batch, rel=0.02)


def test_a_step_away_frozen_statistics_tell_another_story() -> None:
    net, inputs, labels = trained_net(400)
    frozen, new = [], []
    for number in range(6):
        centre, direction = weights_of(net), random_direction(net, 0, number)
        for mode, losses in (("fixed", frozen), ("reestimate", new)):
            with restored(net):
                move_(net, centre, [0.2], [direction])
                losses.append(Evaluator(net, inputs, labels, mode, 400).at().loss)  # type: ignore[arg-type]
    ratios = np.divide(frozen, new)
    assert ratios.min() > 1
    assert np.mean(frozen) > 2 * np.mean(new)
    assert ratios.max() > 5


@pytest.mark.parametrize("mode", ["reestimate", "fixed", "batch"])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_weights_buffers_and_modes_come_back_bit_for_bit(
    mode: str, error: type[BaseException] | None
) -> None:
    net, inputs, labels = trained_net(steps=10)
    net.body[1].train()
    net.head.bias.requires_grad_(False)
    before, modes = bits(net), [each.training for each in net.modules()]

    def disturb() -> None:
        with restored(net):
            weights = {name: torch.full_like(each, torch.nan) for name, each in net.named_parameters()}
            Evaluator(net, inputs, labels, mode).at(weights)  # type: ignore[arg-type]
            assert bits(net) != before
            if error is not None:
                raise error

    if error is None:
        disturb()
    else:
        with pytest.raises(error):
            disturb()
    assert bits(net) == before
    assert [each.training for each in net.modules()] == modes
    assert [each.momentum for each in (net.body[1], net.body[4])] == [0.1, 0.1]
    assert not net.head.bias.requires_grad


def test_a_loss_that_is_not_finite_is_returned_as_it_is() -> None:
    net, (inputs, labels) = trained_net(steps=1)[0], blobs(20)
    with restored(net):
        assert np.isnan(Evaluator(net, inputs, labels).at({"head.bias": torch.full((10,), torch.nan)}).loss)


def test_a_runs_test_split_gives_the_loss_of_its_record(sgd_run: Path) -> None:
    loaded = load_model(sgd_run)
    sample = take_sample(loaded, "test", 33)
    found = Evaluator.of(loaded, sample, "fixed").at()
    test = open_run(sgd_run).record.metrics.test  # type: ignore[union-attr]
    assert test is not None
    assert found.loss == pytest.approx(test.loss, rel=1e-5)
    assert found.top1 == pytest.approx(test.top1)
    assert sample.inputs.requires_grad is False and not sample.inputs.is_inference()  # noqa: PT018


def test_weights_of_no_run_get_images_of_any_data_by_the_names_of_classes(
    sgd_run: Path, image_folder: Path, tmp_path: Path
) -> None:
    for name in ("model.safetensors", "config.json"):
        shutil.copy(sgd_run / name, tmp_path / name)
    loaded = load_model(tmp_path)
    assert loaded.run is None
    found = Evaluator.of(loaded, take_sample(loaded, "test", 33, data=str(image_folder)), "fixed").at()
    expected = evaluate_model(loaded, str(image_folder), "test").predictions.metrics()
    assert found.loss == pytest.approx(expected.loss, rel=1e-5)
    assert found.top1 == pytest.approx(expected.top1)
    # Of other data only what the names say counts, and images are in the order of the draw.
    shutil.copytree(image_folder / "test", tmp_path / "photos" / "val")
    shutil.rmtree(tmp_path / "photos" / "val" / "ant")
    sample = take_sample(loaded, "val", 6, data=str(tmp_path / "photos"))
    assert sorted(sample.labels.tolist()) == [1, 1, 1, 2, 2, 2]
    every = take_sample(loaded, "val", 22, data=str(tmp_path / "photos"))
    rows = [every.indices.tolist().index(each) for each in sample.indices]
    assert torch.equal(sample.inputs, every.inputs[rows])
    with pytest.raises(UserError, match="--data: is needed"):
        take_sample(loaded, "test", 6)
    with pytest.raises(UserError, match="--images 23: the val split has 22 images"):
        take_sample(loaded, "val", 23, data=str(tmp_path / "photos"))


def test_a_sample_is_of_the_training_images_and_its_digest_says_which(sgd_run: Path, sam_run: Path) -> None:
    loaded = load_model(sgd_run)
    first, other = take_sample(loaded, "train", 30), take_sample(load_model(sam_run), "train", 30)
    assert first.labels.bincount().tolist() == [10, 10, 10]
    assert first.sha256 == other.sha256  # of another run on the same data
    assert first.sha256 != take_sample(loaded, "train", 30, seed=1).sha256
    assert first.facts()["indices"] == first.indices.tolist()


@pytest.mark.parametrize(
    ("split", "count", "words"),
    [("train", 73, "--images 73: the train split has 72 images"), ("validation", 3, "it has train, test")],
)
def test_images_that_are_not_there_are_refused(sgd_run: Path, split: str, count: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        take_sample(load_model(sgd_run), split, count)
