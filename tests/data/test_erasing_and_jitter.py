"""Random erasing and colour jitter: as timm's and torchvision's, and a function of the image's place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from pugdft.config.schema import ColorJitterSection, RandomErasingSection
from pugdft.data.augment import Augmentation, ResizedCrop
from pugdft.data.erasing_and_jitter import Erased, Jitter, draw_erased, draw_jitter
from pugdft.data.loader import Images, Share, TrainingBatches
from pugdft.data.transforms import ToInput

CPU = torch.device("cpu")
HALF = (0.5,) * 3
PIXEL = RandomErasingSection(probability=0.6, mode="pixel")
JITTER = ColorJitterSection(brightness=0.4, contrast=0.5, saturation=0.6, hue=0.2)


def images_of(count: int, side: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue"])
@pytest.mark.parametrize("amount", [0.0, 0.4, 1.0, 1.7])
def test_each_operation_is_torchvisions(operation: str, amount: float) -> None:
    amount = amount / 1.7 - 0.5 if operation == "hue" else amount
    images = torch.from_numpy(images_of(5, 12))
    images[0] = 70  # grey, which has no hue
    images[1, ..., 1] = images[1, ..., 0]  # two channels are the largest
    amounts = np.array([[1, 1, 1, 0]] * 5, np.float32)
    amounts[:, ["brightness", "contrast", "saturation", "hue"].index(operation)] = amount
    ours = Jitter(amounts, np.tile(np.arange(4), (5, 1))).applied(images)
    adjust = getattr(vision, f"adjust_{operation}")
    theirs = adjust(images.permute(0, 3, 1, 2).float() / 255, amount).permute(0, 2, 3, 1) * 255
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_each_image_has_its_own_amounts_and_its_own_order() -> None:
    drawn = draw_jitter(np.random.default_rng(0), 6, JITTER)
    images = torch.from_numpy(images_of(6, 10))
    whole = drawn.applied(images)
    names = ("brightness", "contrast", "saturation", "hue")
    for image, amounts, order, ours in zip(images, drawn.amounts, drawn.orders, whole, strict=True):
        expected = image.permute(2, 0, 1).float() / 255
        for operation in order:
            expected = getattr(vision, f"adjust_{names[operation]}")(expected, float(amounts[operation]))
        torch.testing.assert_close(ours.permute(2, 0, 1), expected * 255, rtol=0, atol=5e-3)
    assert len({tuple(order) for order in drawn.orders}) > 1
    torch.testing.assert_close(drawn.applied(images[2:5], first=2), whole[2:5], rtol=0, atol=0)
    # With the order reversed another image comes out: the order is used.
    assert (Jitter(drawn.amounts, drawn.orders[:, ::-1]).applied(images) - whole).abs().max() > 1


def test_amounts_and_orders_have_the_distributions_asked_for() -> None:
    drawn = draw_jitter(
        np.random.default_rng(0), 4000, ColorJitterSection(brightness=0.4, contrast=3, hue=0.1)
    )
    low, high = drawn.amounts.min(0), drawn.amounts.max(0)
    assert low == pytest.approx([0.6, 0, 1, -0.1], abs=0.01)
    assert high == pytest.approx([1.4, 4, 1, 0.1], abs=0.01)
    assert drawn.amounts.mean(0) == pytest.approx([1, 2, 1, 0], abs=0.05)
    assert np.sort(drawn.orders, axis=1).tolist() == [[0, 1, 2, 3]] * 4000
    assert np.bincount(drawn.orders[:, 0]) == pytest.approx([1000] * 4, abs=120)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_some_images_lose_a_box_that_timms_mode_fills(mode: str) -> None:
    options = RandomErasingSection.model_validate({"probability": 0.3, "mode": mode})
    drawn = draw_erased(np.random.default_rng(0), 2000, 48, options)
    inputs = torch.full((2000, 3, 48, 48), 9.0)
    drawn.apply_(inputs)
    changed = (inputs != 9).all(1)
    hit = changed.flatten(1).any(1).numpy()
    assert abs(hit.mean() - 0.3) < 0.03
    areas = changed.flatten(1).float().mean(1).numpy()[hit]
    assert 0.01 < areas.min() < 0.03
    assert 0.3 < areas.max() < 0.36
    for place in np.flatnonzero(hit)[:20]:
        top, left, height, width = drawn.boxes[place]
        box = inputs[place, :, top : top + height, left : left + width]
        assert int(changed[place].sum()) == height * width == box[0].numel()
        assert (box == 0).all() if mode == "const" else (box != 0).all()
        assert (mode == "pixel") == (len(box.unique()) > 3)
    if mode != "const":
        filled = inputs.movedim(1, 3)[changed]
        assert filled.mean().item() == pytest.approx(0, abs=0.1)
        assert filled.std().item() == pytest.approx(1, abs=0.1)
    assert (draw_erased(np.random.default_rng(0), 50, 48, options.model_copy(update={"probability": 1.0}))
            .boxes[:, 2] > 0).all()  # fmt: skip


def test_noise_is_that_of_the_image_however_the_batch_is_divided_or_laid_out() -> None:
    drawn = draw_erased(np.random.default_rng(0), 12, 20, PIXEL)
    whole = drawn.apply_(torch.zeros(12, 3, 20, 20))
    laid_out = drawn.apply_(torch.zeros(12, 3, 20, 20).contiguous(memory_format=torch.channels_last))
    assert torch.equal(whole, laid_out)
    rows = np.array([9, 2, 4])
    assert torch.equal(drawn.of(rows).apply_(torch.zeros(3, 3, 20, 20)), whole[rows])
    assert torch.equal(drawn.apply_(torch.zeros(5, 3, 20, 20), first=4), whole[4:9])
    assert isinstance(drawn, Erased)
    assert whole.any()


def batches(augmentation: Augmentation, share: Share | None = None, micro: int = 20) -> TrainingBatches:
    """Of 20 of 50 images of 16 pixels."""
    images = Images(images_of(50, 16), np.arange(50) % 7, np.arange(50))
    to_input = ToInput(16, 24, "bicubic", HALF, HALF, CPU)
    return TrainingBatches(images, to_input, CPU, share or Share(), 20, micro, augmentation, seed=1)


def inputs_of(made: TrainingBatches, epoch: int = 0, first_step: int = 0) -> Tensor:
    return torch.cat([inputs for step in made.epoch(epoch, first_step) for inputs, _ in step])


CROP = Augmentation(flip=True, resized_crop=ResizedCrop(), cutmix=1.0)
BOTH = Augmentation(
    flip=True, resized_crop=ResizedCrop(), cutmix=1.0, random_erasing=PIXEL, color_jitter=JITTER
)


def test_processes_micro_batches_and_restarts_see_the_same_images() -> None:
    """Mixed with images of other processes, too."""
    whole = inputs_of(batches(BOTH))
    assert torch.equal(inputs_of(batches(BOTH, micro=7)), whole)
    assert torch.equal(inputs_of(batches(BOTH), first_step=1), whole[20:])
    parts = torch.empty_like(whole)
    for rank in range(3):
        own = inputs_of(batches(BOTH, Share(rank, 3)))
        for step, rows in enumerate(own.split(len(range(rank, 20, 3)))):
            parts[step * 20 + rank : (step + 1) * 20 : 3] = rows
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    assert not torch.equal(inputs_of(batches(BOTH), epoch=1), whole)


def test_turning_them_on_changes_no_other_draw_and_is_in_the_digest() -> None:
    plain, both = CROP.draw(1, 2, 3, 20, 16, 24), BOTH.draw(1, 2, 3, 20, 16, 24)
    *_, erased, jitter = both.content()
    assert list(both.content())[: len(list(plain.content()))] == list(plain.content())
    assert both.erased is not None
    assert both.jitter is not None
    digests = [batches(each).digests()["augmentation_sha256"] for each in (CROP, BOTH)]
    assert digests[0] != digests[1]
    assert erased != jitter
