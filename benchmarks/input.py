"""Input alone: images a second from 32-pixel images to normalised 224-pixel batches, and its share of a step.

    python benchmarks/input.py --rounds 7

Contenders take turns within one run, in changing order, each going over the same images in a round, for a
machine's speed drifts by more than the differences that matter; the medians are printed. ``threads`` is what
one may use: torch's threads, or for loaders of single images as many processes. Processes work only in their
own turn: they are started before and idle between. Leave all cores to it.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from pugdft.data.augment import Augmentation, ResizedCrop
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.data.loader import Images, Share, TrainingBatches
from pugdft.data.transforms import ToInput

BATCH, SIDE = 32, 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
PLAIN = Augmentation(crop_padding=4, flip=True)
OURS = {
    "crop, flip": PLAIN,
    "crop, flip, cutout": Augmentation(crop_padding=4, flip=True, cutout=8),
    "crop, flip, mixup": Augmentation(crop_padding=4, flip=True, mixup=0.8),
    "crop, flip, mixup or cutmix": Augmentation(crop_padding=4, flip=True, mixup=0.8, cutmix=1.0),
    "random resized crop, flip": Augmentation(flip=True, resized_crop=ResizedCrop()),
    "all of it": Augmentation(flip=True, resized_crop=ResizedCrop(), cutout=8, mixup=0.8, cutmix=1.0),
}

Round = Callable[[], Iterable[Any]]


class OneByOne(Dataset[Any]):
    """Images as PIL has them, as most data sets give them."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, transform: Any = None) -> None:
        self.images = [Image.fromarray(each) for each in pixels]
        self.labels, self.transform = labels.tolist(), transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.images[index]), self.labels[index]


def usual_example(pixels: np.ndarray, labels: np.ndarray, workers: int) -> Round:
    """torchvision's transforms of PIL images in torch's loader."""
    steps = [
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.Resize(SIDE, transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = OneByOne(pixels, labels, transforms.Compose(steps))
    loader = DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    return lambda: loader


def timm_loader(dataset: Any, workers: int, device: torch.device = CPU, batch: int = BATCH) -> Round:
    """timm's: random resized crop and flip; on an accelerator with its prefetcher."""
    loader = create_loader(
        dataset, (3, SIDE, SIDE), batch, is_training=True, use_prefetcher=device.type == "cuda",
        color_jitter=None, interpolation="bicubic", mean=MEAN, std=STD, num_workers=workers,
        persistent_workers=workers > 0, device=device,
    )  # fmt: skip
    return lambda: loader


def ours(
    pixels: np.ndarray,
    labels: np.ndarray,
    augmentation: Augmentation,
    device: torch.device = CPU,
    batch: int = BATCH,
) -> Round:
    """Whole batches in this process."""
    images = Images(pixels, labels, np.arange(len(pixels)))
    to_input = ToInput(32, SIDE, "bicubic", MEAN, STD, device)
    batches = TrainingBatches(images, to_input, device, Share(), batch, batch, augmentation, seed=0)
    epochs = iter(range(10**9))
    return lambda: batches.epoch(next(epochs))


def training_step(
    model: str = "resnet18",
    device: torch.device = CPU,
    batch: int = BATCH,
    side: int = SIDE,
    dtype: torch.dtype = torch.bfloat16,
) -> Callable[[], None]:
    """Forward, backward and update of SGD, always on one batch that is there."""
    options = {"img_size": side} if "vit" in model else {}
    net = timm.create_model(model, num_classes=10, **options).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, fused=device.type != "mps")
    inputs = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(batch, device=device) % 10

    def step() -> None:
        with torch.autocast(device.type, dtype):
            loss = torch.nn.functional.cross_entropy(net(inputs), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds_of(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def exhaust(batches: Callable[[], Iterable[object]]) -> None:
    for _ in batches():
        pass


def shuffled(names: list[Any], round_number: int) -> Iterator[Any]:
    random = np.random.default_rng(round_number)
    return (names[index] for index in random.permutation(len(names)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=640, help="in each round, a multiple of 32")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    store = prepare(open_source("bundled"), SIDE)
    pixels = np.array(store.images("train")[: arguments.images])
    labels = store.labels("train")[: arguments.images]
    contenders: dict[tuple[str, int], Round] = {}
    for threads in arguments.threads:
        workers = 0 if threads == 1 else threads
        contenders["torchvision, PIL: crop, flip", threads] = usual_example(pixels, labels, workers)
        contenders["timm: random resized crop, flip", threads] = timm_loader(
            OneByOne(pixels, labels), workers
        )
        for name, augmentation in OURS.items():
            contenders[f"pugdft: {name}", threads] = ours(pixels, labels, augmentation)
    step = training_step()
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in contenders}
    steps: dict[int, list[float]] = {threads: [] for threads in arguments.threads}
    for round_number in range(-1, arguments.rounds):  # the first one warms up
        for key in shuffled(list(contenders), round_number + 1):
            torch.set_num_threads(key[1])
            seconds = seconds_of(partial(exhaust, contenders[key]))
            if round_number >= 0:
                rates[key].append(len(pixels) / seconds)
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            seconds = seconds_of(step)
            if round_number >= 0:
                steps[threads].append(seconds)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(f"{arguments.rounds} rounds of {len(pixels)} images, batch {BATCH}; medians")
    for threads in arguments.threads:
        print(
            f"resnet18 bf16, {threads} threads: {1000 * median(steps[threads]):.0f} ms a step without input"
        )
    print(f"{'':42}{'threads':>8}{'images/s':>10}{'range':>16}{'share of step':>15}")
    for (name, threads), measured in sorted(rates.items(), key=lambda item: (item[0][1], item[0][0])):
        rate = median(measured)
        share = BATCH / rate / (BATCH / rate + median(steps[threads]))
        spread = f"{min(measured):.0f}–{max(measured):.0f}"
        print(f"{name:42}{threads:8}{rate:10.0f}{spread:>16}{share:15.1%}")


if __name__ == "__main__":
    main()
