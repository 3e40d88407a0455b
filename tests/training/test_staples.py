"""Averaged weights, the kept epoch, patience, class weights: what they are, and exact through kills."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import write_image_folder
from small_runs import (
    SGD,
    cut_run,
    differences,
    largest_difference,
    outcome_of,
    parts_of,
    run,
    tiny_recipe,
    whole_run,
)
from torch import nn
from torch.nn import functional

from pugdft.config.load import bundled_recipes
from pugdft.data.augment import Targets
from pugdft.errors import UserError
from pugdft.leaderboard import Loaded, build_leaderboard
from pugdft.leaderboard.validate import check_records, record_faults
from pugdft.predictions import METRICS, Predictions
from pugdft.records import KeptEpoch, read_record
from pugdft.reproduce import verify
from pugdft.training import checkpoint as checkpoint_module
from pugdft.training.averaging import WeightAverage
from pugdft.training.checkpoint import BestValidation, Checkpoint
from pugdft.training.run import read_recipe

# Everything at once: its parts meet in one checkpoint.
STAPLES = (
    "train.epochs=5", "train.batch_size=5", "data.validation=0.34", "train.keep=best", "train.patience=3",
    "train.ema=0.7", "train.class_weights=balanced", "train.label_smoothing=0.1", "data.mixup=0.2",
    "schedule.name=step", "schedule.milestones=[1, 3.5]", "schedule.factor=0.5", "schedule.min_lr=0.02",
    "schedule.warmup_epochs=0.5",
)  # fmt: skip
METHODS: dict[str, dict[str, Any]] = {
    "sam": {"name": "sam", "clip": 0.5, "base": SGD},
    "pugd": {"name": "pugd", "rho": 0.3, "clip": 0.7, "base": SGD},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training images of each of two classes, two of a third."""
    root = write_image_folder(tmp_path_factory.mktemp("unequal") / "insects", {"train": 8, "test": 4})
    for number in range(2, 8):
        (root / "train" / "cat" / f"{number:03d}.png").unlink()
    return root


@pytest.fixture(scope="module")
def whole(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "sam"
    whole_run(tiny_recipe(images, METHODS["sam"]), folder, *STAPLES)
    return folder


def test_sam_with_every_staple_goes_on_to_the_same_bits(images: Path, whole: Path, tmp_path: Path) -> None:
    cut = cut_run(tiny_recipe(images, METHODS["sam"]), tmp_path / "cut", (1, 3, 5), *STAPLES)
    assert differences(outcome_of(whole), cut) == []
    name = "model_plain.safetensors"
    assert (whole / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


@pytest.mark.slow
def test_pugd_with_every_staple_goes_on_to_the_same_bits(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, METHODS["pugd"])
    overrides = (*STAPLES, "schedule.name=one_cycle", "schedule.milestones=null", "schedule.factor=0.1")
    first = whole_run(recipe, tmp_path / "whole", *overrides)
    assert differences(first, cut_run(recipe, tmp_path / "cut", (2, 4), *overrides)) == []


def without_average(checkpoint: Checkpoint) -> Checkpoint:
    ema = {name: torch.zeros_like(tensor) for name, tensor in checkpoint.further["ema"].items()}
    return dataclasses.replace(checkpoint, further={**checkpoint.further, "ema": ema})


def without_kept(checkpoint: Checkpoint) -> Checkpoint:
    return dataclasses.replace(checkpoint, further={"ema": checkpoint.further["ema"]})


def without_best(checkpoint: Checkpoint) -> Checkpoint:
    return dataclasses.replace(checkpoint, state={**checkpoint.state, "best_validation": None})


@pytest.mark.slow
def test_what_a_checkpoint_lost_of_them_would_be_noticed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first epoch is taken for the best one, whatever it came to."""
    monkeypatch.setattr(BestValidation, "is_beaten_by", lambda self, other: False)
    load = checkpoint_module.load_checkpoint
    recipe = tiny_recipe(images, {"name": "sgd", "lr": 0.05})
    overrides = ("train.batch_size=5", "data.validation=0.34", "train.keep=best", "train.ema=0.7")
    first = whole_run(recipe, tmp_path / "whole", *overrides)
    assert first.record.metrics.kept == KeptEpoch(epoch=1, rule="best")  # type: ignore[union-attr]
    losses: list[tuple[Any, str | None]] = [
        (lambda checkpoint: checkpoint, None),
        (without_average, "record history"),
        (without_kept, "weight fc.weight"),
        (without_best, "record metrics"),
    ]
    for number, (lose, seen) in enumerate(losses):

        def loading(folder: Path, lose: Any = lose) -> tuple[Checkpoint | None, list[str]]:
            checkpoint, faults = load(folder)
            return (lose(checkpoint) if checkpoint else None), faults

        monkeypatch.setattr(checkpoint_module, "load_checkpoint", loading)
        found = differences(first, cut_run(recipe, tmp_path / str(number), (3,), *overrides))
        assert seen in found if seen else found == []


# --- what they are ---


def test_the_record_says_what_is_kept_and_everything_agrees_with_it(whole: Path) -> None:
    record = read_record(whole / "record.yaml")
    metrics = record.metrics
    assert metrics is not None
    assert metrics.kept is not None
    assert metrics.test is not None
    rows = record.history
    best = max(rows, key=lambda row: (row["validation_top1"], -row["validation_loss"]))
    assert (metrics.kept.epoch, metrics.kept.rule) == (best["epoch"], "best")
    assert metrics.kept.stopped_early == (len(rows) < 5)
    assert (metrics.test.top1, metrics.test.loss) == (best["test_top1"], best["test_loss"])
    assert metrics.weights == "ema"
    assert metrics.plain_test is not None
    assert metrics.plain_test.loss == best["plain_test_loss"] != best["test_loss"]
    assert {"model", "model_plain", "predictions_plain_test"} <= record.artifacts.keys()
    averaged, plain = (
        safetensors.torch.load_file(whole / f"{name}.safetensors") for name in ("model", "model_plain")
    )
    assert not torch.equal(averaged["bn1.running_mean"], plain["bn1.running_mean"])
    verification = verify(whole)  # the stored weights evaluate to the metrics that rank
    assert verification.agrees, verification.checks
    checked = check_records([whole], print)
    assert [line for each in checked for line in each.lines()] == [f"{whole / 'record.yaml'}: OK"]


def test_a_record_that_keeps_another_epoch_than_it_says_is_found(whole: Path, tmp_path: Path) -> None:
    text = (whole / "record.yaml").read_text()
    record = read_record(whole / "record.yaml")
    epoch = record.metrics.kept.epoch  # type: ignore[union-attr]
    worst = min(record.history, key=lambda row: row["validation_top1"] - row["validation_loss"])["epoch"]
    changes = {
        f"epoch: {worst}\n    rule: best": r"metrics\.",
        f"epoch: {epoch}\n    rule: last": r"metrics\.kept\.rule: last, where the recipe has",
    }
    for change, message in changes.items():
        changed = text.replace(f"epoch: {epoch}\n    rule: best", change)
        assert changed != text
        (tmp_path / "record.yaml").write_text(changed)
        lines = [line for each in check_records([tmp_path], print) for line in each.lines()]
        assert re.search(message, "\n".join(lines)), lines


def test_a_record_whose_weights_or_kept_epoch_are_not_the_recipe_s_is_found(whole: Path) -> None:
    record = read_record(whole / "record.yaml")
    assert list(record_faults(record)) == []
    assert record.metrics is not None
    assert record.metrics.plain_test is not None
    better = record.metrics.plain_test.model_copy(update={"loss": 1e-3})
    for field, value in {"weights": None, "kept": None, "plain_test": better}.items():
        metrics = record.metrics.model_copy(update={field: value})
        found = {each.where for each in record_faults(record.model_copy(update={"metrics": metrics}))}
        assert any(each.startswith(f"metrics.{field}") for each in found), (field, found)


def test_the_leaderboard_keeps_runs_apart_that_keep_other_epochs(whole: Path) -> None:
    record = read_record(whole / "record.yaml")
    recipe = json.loads(json.dumps(record.recipe))
    for key in ("keep", "patience", "ema", "class_weights"):
        recipe["train"].pop(key)
    metrics = record.metrics.model_copy(update={"kept": None, "weights": None})  # type: ignore[union-attr]
    other = record.model_copy(update={"id": "other", "recipe": recipe, "metrics": metrics})
    groups = build_leaderboard([Loaded(each, Path("none.yaml")) for each in (record, other)])
    assert len(groups) == 2
    (kept,) = (group for group in groups if "best validation epoch" in group.protocol)
    assert "averaged weights 0.7" in kept.protocol
    assert any("best epoch on held-out images (train.keep: best)" in note for note in kept.notes)
    assert any("averaged weights (train.ema)" in note for note in kept.notes)


def test_the_average_follows_its_definition_in_float64_and_changes_nothing_else(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    start: list[dict[str, torch.Tensor]] = []
    begin, update = WeightAverage.__init__, WeightAverage.update

    def beginning(self: WeightAverage, model: nn.Module, decay: float) -> None:
        start.append({name: tensor.double().clone() for name, tensor in model.state_dict().items()})
        begin(self, model, decay)

    def updating(self: WeightAverage, num_updates: int) -> None:
        seen.append({name: tensor.double() for name, tensor in self._model.state_dict().items()})
        update(self, num_updates)

    monkeypatch.setattr(WeightAverage, "__init__", beginning)
    monkeypatch.setattr(WeightAverage, "update", updating)
    recipe = tiny_recipe(images, {"name": "pugd", "rho": 0.3, "base": SGD})
    with_average = whole_run(recipe, tmp_path / "with", "train.ema=0.6")
    without = whole_run(recipe, tmp_path / "without")
    plain = safetensors.torch.load_file(tmp_path / "with" / "model_plain.safetensors")
    assert all(torch.equal(plain[name], tensor) for name, tensor in without.weights.items())
    assert len(seen) == with_average.record.cost.steps == 4
    expected = start[0]
    for number, weights in enumerate(seen, start=1):
        decay = min(0.6, (1 + number) / (10 + number))
        expected = {name: decay * old + (1 - decay) * weights[name] for name, old in expected.items()}
    for name, tensor in with_average.weights.items():
        if name.endswith("num_batches_tracked"):
            assert int(tensor) == 4
        else:
            assert torch.allclose(tensor.double(), expected[name], rtol=1e-6, atol=1e-7), name
    plain_rows = [row["plain_test_loss"] for row in with_average.record.history]
    assert plain_rows == [row["test_loss"] for row in without.record.history]


def test_patience_ends_a_run_that_no_longer_improves(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, {"name": "sgd", "lr": 0.0}, batch_norm="fixed")  # no epoch is better
    overrides = ("train.epochs=9", "train.batch_size=5", "data.validation=0.34", "train.patience=2")
    record, _ = run(recipe, tmp_path / "each", *overrides)
    assert (record.status, len(record.history), record.cost.steps) == ("completed", 3, 6)
    assert record.metrics is not None
    assert record.metrics.kept == KeptEpoch(epoch=3, rule="last", stopped_early=True)
    (checked,) = check_records([tmp_path / "each"], print)
    assert not checked.faults
    rare, _ = run(recipe, tmp_path / "rare", *overrides, "train.eval_every=3")
    assert [row["epoch"] for row in rare.history if "test_top1" in row] == [3, 6]
    assert len(rare.history) == 6


def test_a_search_with_the_best_epoch_stores_no_weights(images: Path, tmp_path: Path) -> None:
    overrides = ("train.batch_size=5", "data.validation=0.34", "train.evaluate=validation", "train.keep=best")
    record, weights = run(tiny_recipe(images), tmp_path, *overrides)
    assert weights == {}
    assert record.metrics is not None
    assert record.metrics.validation is not None
    assert record.metrics.test is None


# --- class weights and balanced top-1 ---


def test_class_weights_weigh_each_image_s_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn((6, 3), generator=generator, dtype=torch.float64)
    labels, partners = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2, 2, 1, 0, 0, 1])
    weights = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    other = functional.cross_entropy(logits, partners, reduction="none")
    plain = Targets(labels).loss(logits, 0.0, weights)
    torch.testing.assert_close(plain, (weights[labels] * losses).sum())
    mixed = Targets(labels, partners, 0.3).loss(logits, 0.0, weights)
    expected = 0.3 * (weights[labels] * losses).sum() + 0.7 * (weights[partners] * other).sum()
    torch.testing.assert_close(mixed, expected)


def test_balanced_weights_are_of_the_images_that_are_trained_on(images: Path) -> None:
    parts = parts_of(tiny_recipe(images), "train.class_weights=balanced")
    # 8, 8 and 2 images; the mean weight of an image is 1
    torch.testing.assert_close(parts.class_weights, torch.tensor([18 / 24, 18 / 24, 18 / 6]))
    parts = parts_of(tiny_recipe(images, batch_size=4), "train.class_weights=balanced", "data.validation=0.5")
    counts = np.bincount(parts.training.images.labels[parts.training.images.indices])
    torch.testing.assert_close(parts.class_weights, torch.tensor(counts.sum() / (3 * counts)).float())
    assert parts_of(tiny_recipe(images)).class_weights is None
    given = parts_of(tiny_recipe(images), "train.class_weights={cat: 4}")
    assert given.class_weights.tolist() == [1, 1, 4]  # type: ignore[union-attr]


def test_weights_of_one_are_no_weights_and_micro_batches_change_nothing(images: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(images, {"name": "sam", "base": SGD}, batch_norm="fixed", epochs=1)
    _, plain = run(recipe, tmp_path / "plain")
    _, ones = run(recipe, tmp_path / "ones", "train.class_weights={ant: 1}")
    assert largest_difference(plain, ones) < 1e-6
    _, weighed = run(recipe, tmp_path / "weighed", "train.class_weights=balanced")
    _, parts = run(recipe, tmp_path / "parts", "train.class_weights=balanced", "train.micro_batch_size=3")
    assert largest_difference(weighed, parts) < 1e-5 < 1e-3 < largest_difference(plain, weighed)


def predictions_of(label: list[int], prediction: list[int]) -> Predictions:
    ones = np.ones(len(label), np.float32)
    return Predictions(np.array(label), np.array(prediction), ones > 0, ones / 2, ones)


def test_balanced_top1_is_the_mean_recall_of_the_classes_that_have_images() -> None:
    found = predictions_of([0, 0, 0, 0, 1, 1, 3], [0, 0, 0, 1, 1, 0, 2])
    assert found.metrics().balanced_top1 == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found.largest_share == pytest.approx(1 / 3)
    huge = predictions_of([0, 2**60], [0, 0])  # of a foreign file: takes no memory
    assert huge.metrics().balanced_top1 == 0.5
    unsigned = dataclasses.replace(found, label=found.label.astype(np.uint64))
    assert unsigned.metrics() == found.metrics()
    assert not METRICS["balanced_top1"].is_share_of_images


def test_older_records_without_balanced_top1_load_rank_and_verify(whole: Path, tmp_path: Path) -> None:
    text = (whole / "record.yaml").read_text()
    older = re.sub(r"\n +balanced_top1: .*", "", text)
    assert older != text
    shutil.copytree(whole, tmp_path / "older")
    (tmp_path / "older" / "record.yaml").write_text(older)
    record = read_record(tmp_path / "older" / "record.yaml")
    loaded = [Loaded(record, tmp_path / "older" / "record.yaml")]
    (entry,) = build_leaderboard(loaded)[0].entries
    assert entry.num_seeds == 1
    assert entry.rank_low == 1
    assert "balanced_top1" not in entry.summaries
    (entry,) = build_leaderboard(loaded, metric="balanced_top1")[0].entries
    assert any("no valid balanced top-1 for seed 0: ranked last" in note for note in entry.notes)
    assert not check_records([tmp_path / "older"], print)[0].faults
    names = [check.name for check in verify(tmp_path / "older").checks]
    assert "test top-1" in names
    assert "test balanced top-1" not in names


# --- the recipe ---

# sha256 of the names and digests of the bundled recipes: no key at its default changes one.
BUNDLED = "d7e273de191f61c1e11e297a27d63dc78720a06a99b9aa8d9f69aea410f4e9f2"


def test_keys_at_their_defaults_are_absent_and_bundled_digests_stay(images: Path) -> None:
    old = [name for name in bundled_recipes() if not name.startswith("scratch_")]
    digests = {name: read_recipe(name).digest() for name in old}
    whole = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    assert (len(digests), whole) == (25, BUNDLED)
    defaults = (
        "train.keep=last", "train.patience=null", "train.ema=null", "train.class_weights=none",
        "schedule.min_lr=0", "schedule.milestones=null", "schedule.step_epochs=null", "schedule.factor=0.1",
        "optimizer.clip=null",
    )  # fmt: skip
    plain = read_recipe(tiny_recipe(images))
    assert read_recipe(tiny_recipe(images), defaults).digest() == plain.digest()
    assert plain.as_dict()["schedule"] == {"name": "cosine", "warmup_epochs": 0.0}
    assert not {"keep", "patience", "ema", "class_weights"} & plain.as_dict()["train"].keys()
    used = read_recipe(tiny_recipe(images, METHODS["sam"]), STAPLES)
    assert read_recipe(used.as_dict()).digest() == used.digest() != plain.digest()


@pytest.mark.parametrize(("override", "message"), [
    ("train.keep=best", r"train\.keep: needs held-out images, such as data\.validation=0\.1"),
    ("train.keep=first", r"train\.keep: must be 'last' or 'best'"),
    ("train.patience=3", r"train\.patience: needs held-out images"),
    ("train.patience=0", r"train\.patience: must be at least 1"),
    ("train.ema=1", r"train\.ema: must be less than 1"),
    ("train.ema=yes", r"train\.ema: must be a number"),
    ("train.class_weights=equal", r"train\.class_weights: must be none, balanced, or a mapping"),
    ("train.class_weights={}", r"train\.class_weights: must be a mapping of class names"),
    ("train.class_weights={ant: 0}", r"above 0 and at most 1e6 for each class; that of ant is none"),
    ("train.class_weights={ant: true}", "that of ant is none"),
    ("train.class_weights={ant: .nan}", "that of ant is none"),
    ("train.class_weights={7: 1}", "names, in quotes if they are numbers"),
    ("train.early_stopping=3", 'Did you mean "patience"'),
    ("train.model_ema=0.9", 'Did you mean "ema"'),
])  # fmt: skip
def test_bad_values_are_one_message(override: str, message: str, images: Path) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        read_recipe(tiny_recipe(images), [override])
    assert len(str(refusal.value).splitlines()) == 1


def test_a_class_that_the_data_lacks_is_refused_before_a_folder_is_made(images: Path, tmp_path: Path) -> None:
    message = r'train\.class_weights: unknown class "beee"\. Known: ant, bee, cat\. Did you mean "bee"\?'
    with pytest.raises(UserError, match=message):
        run(tiny_recipe(images), tmp_path / "none", "train.class_weights={beee: 2}")
    assert not (tmp_path / "none").exists()
