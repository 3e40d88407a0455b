"""Augmentations: each equal to the same done one image at a time, and to itself however it is shared out."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from standing_still import HANG_SECONDS, until
from torch import Tensor
from torch.nn import functional

from pugdft.config import yaml
from pugdft.data.augment import Augmentation, ResizedCrop, Targets, draw_mix
from pugdft.data.auto_augment import auto_augmentation
from pugdft.data.loader import (
    RESIDENT_SHARE,
    EvaluationBatches,
    Images,
    Share,
    TrainingBatches,
    ahead,
    gathered,
    resident,
)
from pugdft.data.transforms import ToInput, cut_out_, draw_boxes
from pugdft.data.workers import ImageWorkers
from pugdft.errors import FaultsError, UserError
from pugdft.records import RunRecord, read_record
from pugdft.training.run import finetune, read_recipe
from pugdft.training.setup import assemble, load, make_accelerator
from pugdft.training.trainer import Observer, Position, Totals

CPU = torch.device("cpu")
META = torch.device("meta")  # as an accelerator whose results can never be read back
HALF = (0.5,) * 3
EVERYTHING = Augmentation(
    flip=True, resized_crop=ResizedCrop(scale=(0.3, 1.0)), cutout=6, mixup=0.8, cutmix=1.0
)
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


def smooth_images(count: int, side: int) -> np.ndarray:
    """uint8 noise with structure at several scales, which a wrong filter or half a pixel's offset changes."""
    random_numbers = np.random.default_rng(3)
    total = np.zeros((count, side, side, 3))
    for cells in (4, 8, side):
        coarse = torch.from_numpy(random_numbers.normal(0, 15, (count, 3, cells, cells)))
        total += functional.interpolate(coarse, (side, side), mode="bilinear").permute(0, 2, 3, 1).numpy()
    return (total + 128).clip(0, 255).astype(np.uint8)


def training(
    augmentation: Augmentation,
    share: Share | None = None,
    micro: int = 20,
    device: torch.device = CPU,
    image_size: int = 24,
    **options: Any,
) -> TrainingBatches:
    """Batches of 20 of 50 images of 16 pixels."""
    pixels, labels = smooth_images(50, 16), np.arange(50) % 7
    to_input = ToInput(16, image_size, "bicubic", HALF, HALF, device)
    images = options.pop("images", Images(pixels, labels, np.arange(50)))
    values = {"seed": 1, "workers": None} | options
    return TrainingBatches(images, to_input, device, share or Share(), 20, micro, augmentation, **values)


def pixels_of(inputs: Tensor) -> np.ndarray:
    """Inputs normalised by 0.5 and 0.5 as (batch, side, side, 3) in 0..255."""
    return ((inputs * 0.5 + 0.5) * 255).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "wanted"), [(32, 224), (64, 48), (96, 24), (32, 32)])
def test_a_box_of_each_image_is_resized_as_pillow_does(mode: str, stored: int, wanted: int) -> None:
    images = smooth_images(24, stored)
    boxes = draw_boxes(np.random.default_rng(0), 24, stored, (0.08, 1.0), (0.75, 1.3333))
    boxes[0] = 0, 0, stored, stored
    flips = np.arange(24) % 2 == 1
    to_input = ToInput(stored, wanted, mode, HALF, HALF, CPU)
    result = to_input(torch.from_numpy(images), torch.from_numpy(boxes), torch.from_numpy(flips))
    assert result.is_contiguous(memory_format=torch.channels_last)
    for image, (top, left, height, width), flip, ours in zip(
        images, boxes, flips, pixels_of(result), strict=True
    ):
        box = (left, top, left + width, top + height)
        pillow = Image.fromarray(image).resize((wanted, wanted), RESAMPLING[mode], box=box)
        expected = np.asarray(pillow, np.float64)
        difference = np.abs(ours - (expected[:, ::-1] if flip else expected))
        assert difference.mean() < 0.5
        assert difference.max() < 2.5  # Pillow rounds twice
    whole = to_input(torch.from_numpy(images[:1]))
    if stored != wanted:
        torch.testing.assert_close(result[:1], whole, rtol=0, atol=2e-5)


def test_boxes_have_the_areas_and_ratios_asked_for_and_lie_inside() -> None:
    boxes = draw_boxes(np.random.default_rng(0), 4000, 64, (0.2, 0.9), (0.5, 2.0))
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() == (left + width).max() == 64
    areas, ratios = height * width / 64**2, width / height
    assert 0.19 < areas.min() < 0.21
    assert 0.85 < areas.max() < 0.92
    assert 0.48 < ratios.min() < 0.52
    assert 1.92 < ratios.max() < 2.08
    assert abs(np.log(ratios).mean()) < 0.02
    # What fits is as likely at the one edge as at the other.
    assert abs((top / np.maximum(64 - height, 1))[height < 60].mean() - 0.5) < 0.02


@pytest.mark.parametrize(("ratio", "box"), [((3.0, 4.0), (10, 0, 11, 32)), ((0.2, 0.25), (0, 12, 32, 8))])
def test_a_box_that_never_fits_is_the_largest_in_the_centre(
    ratio: tuple[float, float], box: tuple[int, ...]
) -> None:
    boxes = draw_boxes(np.random.default_rng(0), 3, 32, (1.0, 1.0), ratio)
    assert boxes.tolist() == [list(box)] * 3


@pytest.mark.parametrize(("length", "wanted"), [(6, 16), (5, 16), (6, 64), (5, 64), (40, 16)])
def test_cutout_blanks_one_square_clipped_at_the_edge(length: int, wanted: int) -> None:
    centers = np.array([[8, 8], [0, 0], [15, 3], [2, 15]])
    inputs = torch.ones(4, 3, wanted, wanted)
    cut_out_(inputs, torch.from_numpy(centers), length, 16)
    scale = wanted // 16
    for (row, column), image in zip(centers, inputs, strict=True):
        expected = torch.ones(16, 16)
        top, left = row - length // 2, column - length // 2
        expected[max(0, top) : top + length, max(0, left) : left + length] = 0
        expected = expected.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
        assert torch.equal(image, expected.expand(3, -1, -1))


def test_mixup_draws_from_beta_and_cutmix_weighs_by_the_area_that_is_left() -> None:
    drawn = [draw_mix(np.random.default_rng(i), 32, 0.4, 0.0) for i in range(3000)]
    weights = np.array([mix.weight for mix in drawn if mix])
    assert abs(weights.mean() - 0.5) < 0.02
    assert abs(weights.var() - 1 / (4 * (2 * 0.4 + 1))) < 0.01
    boxes = [draw_mix(np.random.default_rng(i), 32, 0.0, 1.0) for i in range(300)]
    for mix in boxes:
        assert mix is not None
        assert mix.box is not None
        own = torch.ones(1, 3, 32, 32)
        assert mix.mixed(own, torch.zeros(1, 3, 32, 32)).mean().item() == pytest.approx(mix.weight, abs=1e-6)
    assert any(mix and mix.box and 0 in mix.box for mix in boxes), "some are clipped"
    both = [draw_mix(np.random.default_rng(i), 32, 0.4, 1.0) for i in range(2000)]
    assert abs(np.mean([mix is not None and mix.box is not None for mix in both]) - 0.5) < 0.04


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [0.3, 0.8])
def test_the_loss_of_a_mixed_target_is_that_of_the_mixture_of_smoothed_one_hots(
    weight: float, smoothing: float
) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, partners = torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 1, 3, 0, 2, 4])
    one_hot = weight * functional.one_hot(labels, 5) + (1 - weight) * functional.one_hot(partners, 5)
    target = one_hot * (1 - smoothing) + smoothing / 5
    expected = -(target * logits.log_softmax(1)).sum()
    targets = Targets(labels, partners, weight)
    torch.testing.assert_close(targets.loss(logits, smoothing), expected)
    heavier = labels if weight > 0.5 else partners
    assert targets.correct(functional.one_hot(heavier, 5)) == 6
    assert targets.correct(functional.one_hot((heavier + 1) % 5, 5)) == 0


def test_without_a_mix_the_loss_is_the_plain_one_to_the_bit() -> None:
    logits, labels = torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    plain = functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    assert torch.equal(Targets(labels).loss(logits, 0.1), plain)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_batch_is_mixed_with_its_own_reverse(mix: str) -> None:
    batches = training(Augmentation(**{mix: 1.0}))
    plain = training(Augmentation())
    for step, ([(mixed, targets)], [(inputs, labels)]) in enumerate(
        zip(batches.epoch(0), plain.epoch(0), strict=True)
    ):
        drawn = batches.augmentation.draw(1, 0, step, 20, 16, 24).mix
        assert drawn is not None
        assert torch.equal(targets.labels, labels.labels)
        assert targets.partners is not None
        assert torch.equal(targets.partners, labels.labels.flip(0))
        assert targets.weight == drawn.weight
        if drawn.box is None:
            expected = drawn.weight * inputs + (1 - drawn.weight) * inputs.flip(0)
        else:
            inside = torch.zeros(24, 24, dtype=torch.bool)
            inside[drawn.box[0] : drawn.box[1], drawn.box[2] : drawn.box[3]] = True
            expected = torch.where(inside, inputs.flip(0), inputs)
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)


def joined(steps: Iterator[list[Any]]) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Inputs, labels and partners of each step, micro-batches joined."""
    result = []
    for step in steps:
        partners = [t.partners for _, t in step if t.partners is not None]
        inputs, labels = torch.cat([x for x, _ in step]), torch.cat([t.labels for _, t in step])
        result.append((inputs, labels, torch.cat(partners) if partners else None))
    return result


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("micro", [3, 4, 20])
def test_shares_and_micro_batches_are_parts_of_one_augmented_batch(world: int, micro: int) -> None:
    whole = joined(training(EVERYTHING).epoch(2))
    assert len(whole) == 2
    for rank in range(world):
        parts = joined(training(EVERYTHING, Share(rank, world), micro).epoch(2))
        for (inputs, labels, partners), (part, part_labels, part_partners) in zip(whole, parts, strict=True):
            torch.testing.assert_close(part, inputs[rank::world], rtol=0, atol=1e-5)
            assert torch.equal(part_labels, labels[rank::world])
            assert part_partners is not None
            assert partners is not None
            assert torch.equal(part_partners, partners[rank::world])


def test_turning_one_augmentation_on_changes_the_draws_of_no_other() -> None:
    everything = EVERYTHING.draw(1, 2, 3, 20, 16, 24)
    flips = Augmentation(flip=True).draw(1, 2, 3, 20, 16, 24).flips
    cutout = Augmentation(cutout=6).draw(1, 2, 3, 20, 16, 24).holes
    assert np.array_equal(everything.flips, flips)
    assert everything.holes is not None
    assert np.array_equal(everything.holes, cutout)
    assert everything.mix == Augmentation(mixup=0.8, cutmix=1.0).draw(1, 2, 3, 20, 16, 24).mix


def test_digests_tell_augmentations_apart() -> None:
    kinds = [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(resized_crop=ResizedCrop()),
        Augmentation(cutout=4),
        Augmentation(mixup=1.0),
        Augmentation(cutmix=1.0),
        Augmentation(auto_augment="rand-m9"),
    ]
    assert len({training(kind).digests()["augmentation_sha256"] for kind in kinds}) == len(kinds)


def stored(tmp_path: Path) -> np.ndarray:
    """The images as a store has them: memory-mapped."""
    np.save(tmp_path / "images.npy", smooth_images(50, 16))
    return np.load(tmp_path / "images.npy", mmap_mode="r")


def with_workers(tmp_path: Path, num_workers: int, words: str = "rand-m9-mstd0.5-inc1") -> TrainingBatches:
    pixels = stored(tmp_path)
    make = partial(auto_augmentation, words, 16, HALF, "bicubic")
    images = Images(pixels, np.arange(50) % 7, np.arange(50))
    augmentation = Augmentation(crop_padding=2, flip=True, auto_augment=words)
    return training(augmentation, images=images, workers=ImageWorkers(pixels, 1, make, num_workers))


@pytest.mark.slow
def test_single_images_are_augmented_alike_by_any_number_of_workers(tmp_path: Path) -> None:
    expected = [joined(with_workers(tmp_path, 0).epoch(epoch)) for epoch in (0, 1)]
    plain = joined(training(Augmentation(crop_padding=2, flip=True)).epoch(0))
    assert not torch.equal(expected[0][0][0], plain[0][0])
    assert not torch.equal(expected[0][0][0], expected[1][0][0])
    for num_workers in (1, 3):
        batches = with_workers(tmp_path, num_workers)
        try:
            begun = batches.epoch(0)
            assert torch.equal(next(begun)[0][0], expected[0][0][0])
            processes = set(multiprocessing.active_children())
            assert len(processes) == num_workers
            begun.close()  # as when a run is stopped in the middle of an epoch
            assert torch.equal(joined(batches.epoch(0, 1))[0][0], expected[0][1][0])
            for ours, theirs in zip(joined(batches.epoch(1)), expected[1], strict=True):
                assert torch.equal(ours[0], theirs[0])
            assert set(multiprocessing.active_children()) == processes, "they stay"
            for process in processes:
                os.kill(process.pid or 0, signal.SIGTERM)  # as a scheduler may
                os.kill(process.pid or 0, signal.SIGINT)
            assert torch.equal(joined(batches.epoch(1))[0][0], expected[1][0][0])
        finally:
            batches.close()
        until(lambda: not multiprocessing.active_children())


def test_an_image_s_augmentation_depends_on_its_place_alone_and_leaves_the_random_numbers_be(
    tmp_path: Path,
) -> None:
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.random(), np.random.random(), torch.rand(1)
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    first = joined(with_workers(tmp_path, 0).epoch(0))
    assert (random.random(), np.random.random(), torch.rand(1)) == before
    pixels = stored(tmp_path)
    make = partial(auto_augmentation, "rand-m9-mstd0.5-inc1", 16, HALF, "bicubic")
    share = [
        joined(
            training(
                Augmentation(crop_padding=2, flip=True),
                Share(rank, 2),
                images=Images(pixels, np.arange(50) % 7, np.arange(50)),
                workers=ImageWorkers(pixels, 1, make, 0),
            ).epoch(0)
        )
        for rank in (0, 1)
    ]
    for rank in (0, 1):
        assert torch.equal(share[rank][1][0], first[1][0][rank::2])


@pytest.mark.parametrize("words", ["rand-m9-mstd0.5-inc1", "rand-m5-n3-tweights", "augmix-m3-w2", "v0", "3a"])
def test_timm_s_words_are_timm_s_augmentations(words: str) -> None:
    transform = auto_augmentation(words, 32, HALF, "bilinear")
    image = Image.fromarray(smooth_images(1, 32)[0])
    random.seed(1)
    np.random.seed(1)
    assert any(np.any(np.asarray(transform(image)) != np.asarray(image)) for _ in range(10))


@pytest.mark.parametrize("words", ["rnd-m9", "rand-x9", "rand-m", "rand-foo", "augmix-q3", "original-m3", ""])
def test_words_that_timm_does_not_have_are_a_fault(words: str, small_recipe: dict[str, Any]) -> None:
    with pytest.raises(FaultsError, match=r"data\.auto_augment: .*such as rand-m9-mstd0\.5-inc1"):
        read_recipe(small_recipe, [f"data.auto_augment='{words}'"])


def test_items_made_ahead_come_in_order_and_one_is_made_while_another_is_used() -> None:
    made: list[int] = []
    both = threading.Event()

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            if number == 1:
                both.set()
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert both.wait(HANG_SECONDS), "the second is made before it is asked for"
    assert made == [0, 1], "and only that one"
    assert list(coming) == [1, 2, 3]
    unused = ahead(items())
    next(unused)
    unused.close()
    assert not [each for each in threading.enumerate() if each.name.startswith("pugdft-ahead")]


def test_what_fails_ahead_is_raised_where_it_is_used() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(ahead(items()))


def test_images_stay_on_the_device_if_they_fit_the_budget() -> None:
    pixels = smooth_images(50, 16)
    whole = resident(pixels, CPU, pixels.nbytes)
    assert whole is not None
    assert np.array_equal(whole.numpy(), pixels)
    assert resident(pixels, CPU, pixels.nbytes - 1) is None
    assert 0 < RESIDENT_SHARE < 1
    images = Images(pixels, np.arange(50) % 7, np.arange(50), whole)
    expected = joined(training(EVERYTHING).epoch(0))
    for ours, theirs in zip(joined(training(EVERYTHING, images=images).epoch(0)), expected, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


def test_rows_gathered_are_the_rows_asked_for() -> None:
    pixels = smooth_images(50, 16)
    chosen = np.array([3, 49, 0, 3])
    assert np.array_equal(gathered(pixels, chosen, CPU).numpy(), pixels[chosen])


@pytest.mark.parametrize("is_resident", [True, False])
def test_no_batch_reads_anything_back_from_its_device(is_resident: bool) -> None:
    """On the meta device nothing can be read: whatever would make an accelerator wait raises here."""
    pixels = smooth_images(50, 16)
    on_device = resident(pixels, META, pixels.nbytes) if is_resident else None
    images = Images(pixels, np.arange(50) % 7, np.arange(50), on_device)
    assert images.waits_for_memory(META) != is_resident
    augmentation = Augmentation(crop_padding=2, flip=True, cutout=5, mixup=1.0, cutmix=1.0)
    for kind in (augmentation, EVERYTHING):
        for world, micro in ((1, 20), (1, 7), (2, 20)):
            batches = training(kind, Share(0, world), micro, META, images=images)
            for step in batches.epoch(0):
                for inputs, targets in step:
                    loss = targets.loss(torch.empty(len(targets), 7, device=META), 0.1)
                    assert inputs.device == loss.device == META
    evaluation = EvaluationBatches(images, batches.to_input, META, Share(), 8)
    assert [len(positions) for positions, _, _ in evaluation] == [8] * 6 + [2]


def test_a_random_resized_crop_takes_the_place_of_the_default_crop_only(small_recipe: dict[str, Any]) -> None:
    del small_recipe["data"]["crop_padding"]
    assert read_recipe(small_recipe).data.crop_padding == 4
    recipe = read_recipe(small_recipe, ["data.random_resized_crop={}"])
    assert recipe.data.crop_padding == 0
    assert recipe.as_dict()["data"]["random_resized_crop"] == {"scale": [0.08, 1.0], "ratio": [0.75, 1.3333]}
    assert read_recipe(recipe.as_dict()) == recipe
    with pytest.raises(FaultsError, match=r"data.crop_padding: random_resized_crop takes the place"):
        read_recipe(small_recipe, ["data.random_resized_crop={}", "data.crop_padding=4"])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("random_resized_crop={scale: [0.5, 2]}", r"crop.scale: must be at most 1: no box"),
        ("random_resized_crop={scale: [0.5, 0.2]}", r"crop.scale: must be \[low, high\] with 0 < low ≤ high"),
        ("random_resized_crop={ratio: [1]}", r"crop.ratio: must be \[low, high\]"),
        ("random_resized_crop={rato: [1, 2]}", r'unknown key. Known: scale, ratio. Did you mean "ratio"'),
        ("random_resized_crop=0.5", r"must be a mapping, such as \{scale: …\}, not 0.5"),
        ("cutout=-1", r"cutout: must be at least 0"),
        ("mixup=true", r"mixup: must be a number"),
        ("cutmix=.inf", r"cutmix: must be a finite number"),
        ("workers=1.5", r"workers: must be a whole number"),
        ("padding=grey", r"padding: must be 'black' or 'reflect', not \"grey\""),
        ("crop_padding=0 padding=reflect", r"data.padding.*has no effect: data.crop_padding is 0"),
        ("std=0.2", r"std: must be a list, not 0.2"),
        ("std=[0.2, 0, 0.2]", r"std: must be three numbers above 0 and at most 1, such as \[0.25, "),
        ("std=[0.2, 0.3]", r"std: must be three numbers above 0"),
        ("mean=[0.5, 0.5, 0.5, 0.5]", r"mean: must be three numbers in 0..1, such as"),
        ("mean=[125, 0.5, 0.5]", r"mean.0: must be at most 1"),
    ],
)
def test_a_bad_augmentation_is_named_with_what_is_allowed(
    override: str, said: str, small_recipe: dict[str, Any]
) -> None:
    del small_recipe["data"]["crop_padding"]
    overrides = override.split(" ") if override.count("=") > 1 else [override]
    with pytest.raises(FaultsError, match=said):
        read_recipe(small_recipe, [f"data.{each}" for each in overrides])


def run(recipe: dict[str, Any], output: Path, *overrides: str, **options: Any) -> tuple[RunRecord, Any]:
    record, _ = finetune(read_recipe(recipe, overrides), output, **options)
    model = output / "model.safetensors"
    return record, safetensors.torch.load_file(model) if model.exists() else {}


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


HEAVY = ("data.mixup=0.8", "data.cutmix=1.0", "data.cutout=5", "train.label_smoothing=0.1")


def test_a_cutout_larger_than_the_images_is_refused(small_recipe: dict[str, Any]) -> None:
    recipe = read_recipe(small_recipe, ["data.cutout=17"])
    with pytest.raises(UserError, match=r"data.cutout: 17 is more than the side of the stored images, 16"):
        assemble(recipe, make_accelerator(recipe), *load(recipe))


def test_a_mirrored_padding_larger_than_the_images_is_refused(small_recipe: dict[str, Any]) -> None:
    recipe = read_recipe(small_recipe, ["data.padding=reflect", "data.crop_padding=16"])
    with pytest.raises(UserError, match=r"data.crop_padding: 16 must be less than the side of the stored im"):
        assemble(recipe, make_accelerator(recipe), *load(recipe))


@pytest.mark.parametrize("method", ["sgd", "pugd"])
def test_micro_batches_of_mixed_images_make_the_same_updates(
    method: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    base = small_recipe["optimizer"]["base"]
    small_recipe["optimizer"] = base if method == "sgd" else {"name": method, "base": base}
    whole, weights = run(small_recipe, tmp_path / "whole", *HEAVY)
    micro, same = run(small_recipe, tmp_path / "micro", *HEAVY, "train.micro_batch_size=7")
    assert largest_difference(weights, same) < 2e-5
    assert micro.history[-1]["train_top1"] == whole.history[-1]["train_top1"]
    assert micro.history[-1]["train_loss"] == pytest.approx(whole.history[-1]["train_loss"], rel=1e-4)
    plain, _ = run(small_recipe, tmp_path / "plain", "train.label_smoothing=0.1")
    assert plain.history[-1]["train_loss"] < whole.history[-1]["train_loss"]


class StopAt(Observer):
    """Sends this process a signal after an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, position: Position, totals: Totals, done: int) -> None:
        if position.steps == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
def test_a_run_with_workers_cut_in_an_epoch_goes_on_to_the_same_bits_without_them(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    small_recipe["data"].pop("crop_padding")
    overrides = (*HEAVY, "data.random_resized_crop={}", "data.auto_augment=rand-m9-mstd0.5-inc1")
    whole, weights = run(small_recipe, tmp_path / "whole", *overrides, "data.workers=0")
    stopped, _ = run(small_recipe, tmp_path / "cut", *overrides, "data.workers=2", observer=StopAt(2))
    assert (stopped.status, stopped.cost.steps) == ("interrupted", 2)
    until(lambda: not multiprocessing.active_children())
    resumed, same = run(small_recipe, tmp_path / "cut", *overrides, "data.workers=2")
    assert largest_difference(weights, same) == 0
    assert resumed.restarts[0]["step"] == 2
    assert resumed.data is not None
    assert whole.data is not None
    assert resumed.data.augmentation_sha256 == whole.data.augmentation_sha256


@pytest.mark.slow
def test_two_processes_mix_the_images_that_one_would(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["data"].pop("crop_padding")
    small_recipe["train"] |= {"batch_size": 13, "micro_batch_size": 4}
    overrides = (*HEAVY, "data.random_resized_crop={}", "data.auto_augment=rand-m9-mstd0.5-inc1")
    single, weights = run(small_recipe, tmp_path / "one", *overrides)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(read_recipe(small_recipe, overrides).as_dict()))
    command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--num-processes", "2"]
    done = subprocess.run([*command, "--output", str(tmp_path / "two")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'two' / 'record.yaml'}\n"
    double = read_record(tmp_path / "two" / "record.yaml")
    same = safetensors.torch.load_file(tmp_path / "two" / "model.safetensors")
    assert largest_difference(weights, same) < 2e-5
    assert double.history[-1]["train_top1"] == single.history[-1]["train_top1"]
    assert double.history[-1]["train_loss"] == pytest.approx(single.history[-1]["train_loss"], rel=1e-4)
