"""From the store to the input of a network: splits, orders, crops and batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pugdft.data.augment import Augmentation
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.data.loader import Images, Share, TrainingBatches
from pugdft.data.rng import epoch_order, validation_split
from pugdft.data.transforms import ToInput, crop_and_flip, draw_crops

CPU = torch.device("cpu")


def test_the_validation_split_is_balanced_seeded_and_disjoint() -> None:
    labels = np.repeat(np.arange(5), [10, 20, 30, 40, 7])
    train, validation = validation_split(labels, 0.2, seed=1)
    assert np.bincount(labels[validation]).tolist() == [2, 4, 6, 8, 1]
    assert sorted([*train, *validation]) == list(range(len(labels)))
    assert not np.array_equal(validation, validation_split(labels, 0.2, seed=2)[1])
    assert np.array_equal(validation, validation_split(labels, 0.2, seed=1)[1])
    with pytest.raises(ValueError, match="too few"):
        validation_split(np.array([0, 0, 1]), 0.1, 0)


def test_orders_are_permutations_that_differ_by_seed_and_epoch() -> None:
    orders = [epoch_order(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_crop_and_flip_equals_the_same_done_one_image_at_a_time() -> None:
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8))
    offsets, flips = draw_crops(random, 40, 3, True)
    assert set(np.unique(offsets)) == set(range(7))
    assert 0 < flips.sum() < 40
    result = crop_and_flip(images, torch.from_numpy(offsets), torch.from_numpy(flips), 3)
    for image, (top, left), flip, out in zip(images, offsets, flips, result, strict=True):
        padded = torch.zeros(14, 14, 3, dtype=torch.uint8)
        padded[3:11, 3:11] = image
        crop = padded[top : top + 8, left : left + 8]
        assert torch.equal(out, crop.flip(1) if flip else crop)


MEAN, STD = (0.51, 0.42, 0.33), (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize(("padding", "mode"), [("black", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize("pixels", [4, 7])
def test_a_training_input_is_the_padded_crop_under_the_mean_and_deviation_given(
    padding: str, mode: str, pixels: int
) -> None:
    random = np.random.default_rng(3)
    stored = random.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8)
    images = Images(stored, np.zeros(60, np.int64), np.arange(60))
    augmentation = Augmentation(crop_padding=pixels, padding=padding, flip=True)
    to_input = ToInput(8, 8, "bicubic", MEAN, STD, CPU)
    training = TrainingBatches(images, to_input, CPU, Share(), 60, 60, augmentation, seed=5)
    (((inputs, _),),) = training.epoch(2)
    drawn = augmentation.draw(5, 2, 0, 60, 8, 8)
    assert {(drawn.offsets.min(), drawn.offsets.max())} == {(0, 2 * pixels)}
    order = epoch_order(5, 2, 60)
    for number, (top, left), flip, found in zip(order, drawn.offsets, drawn.flips, inputs, strict=True):
        padded = np.pad(stored[number], ((pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)  # type: ignore[call-overload]
        crop = padded[top : top + 8, left : left + 8][:, :: -1 if flip else 1].astype(np.float64)
        expected = ((crop / 255 - MEAN) / STD).transpose(2, 0, 1)
        assert np.abs(found.numpy() - expected).max() < 1e-6


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("stored", "wanted"), [(32, 224), (64, 48), (32, 32)])
def test_input_is_torchs_antialiased_resize_and_near_pillows(mode: str, stored: int, wanted: int) -> None:
    store = prepare(open_source("bundled"), 224)
    images = torch.from_numpy(np.array(store.images("test")[:8]))
    if stored == 64:
        images = images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    result = ToInput(stored, wanted, mode, mean, std, CPU)(images)
    pixels = images.permute(0, 3, 1, 2).float()
    if stored != wanted:
        pixels = functional.interpolate(pixels, (wanted, wanted), mode=mode, antialias=True).clamp(0, 255)
    channel = (1, 3, 1, 1)
    expected = (pixels / 255 - torch.tensor(mean).view(channel)) / torch.tensor(std).view(channel)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    resample = Image.Resampling.BICUBIC if mode == "bicubic" else Image.Resampling.BILINEAR
    for image, row in zip(images.numpy(), result, strict=True):
        pillow = np.asarray(Image.fromarray(image).resize((wanted, wanted), resample), np.float64) / 255
        ours = (row * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)).permute(1, 2, 0)
        assert np.abs(ours.numpy() - pillow).mean() < 1 / 255


def batches(
    share: Share, epoch: int = 0, first_step: int = 0, seed: int = 0, **options: int
) -> list[torch.Tensor]:
    """This share's inputs of each step of an epoch, micro-batches joined."""
    store = prepare(open_source("bundled"), 224)
    labels = store.labels("train")
    images = Images(np.array(store.images("train")[:130]), labels, np.arange(130))
    to_input = ToInput(32, 32, "bicubic", (0.5,) * 3, (0.5,) * 3, CPU)
    training = TrainingBatches(
        images, to_input, CPU, share, batch_size=20, micro_batch_size=options.get("micro", 20),
        augmentation=Augmentation(crop_padding=4, flip=True), seed=seed,
    )  # fmt: skip
    return [torch.cat([x for x, _ in step]) for step in training.epoch(epoch, first_step)]


def test_batches_are_functions_of_seed_epoch_and_step() -> None:
    whole = batches(Share())
    assert len(whole) == 6
    for step, batch in enumerate(batches(Share(), first_step=4), start=4):
        assert torch.equal(batch, whole[step])
    assert not torch.equal(batches(Share(), epoch=1)[0], whole[0])
    assert not torch.equal(batches(Share(), seed=1)[0], whole[0])


def test_processes_share_the_global_batch_and_micro_batches_divide_it() -> None:
    for step, batch in enumerate(batches(Share())):
        parts = [batches(Share(rank, 3))[step] for rank in range(3)]
        assert sorted(len(part) for part in parts) == [6, 7, 7]
        joined = torch.empty_like(batch)
        for rank, part in enumerate(parts):
            joined[rank::3] = part
        assert torch.equal(joined, batch)
    assert all(torch.equal(a, b) for a, b in zip(batches(Share(), micro=7), batches(Share()), strict=True))
