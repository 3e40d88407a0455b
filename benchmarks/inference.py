"""Images per second of ``pugdft predict`` and ``evaluate`` beside the loop of timm's ``validate.py``.

    python benchmarks/inference.py --model tf_efficientnet_lite0.in1k --images 600 --rounds 5

Both read the same folder of JPEG photographs, decode included, with one model in fp32, in turns within one
process. Medians of the rounds, and the processor time of an image on all cores together. timm's loop is that
of its script with its defaults (batches of 256, four workers, prefetcher); ``--timm-best`` also gives it what
its options offer on this device: channels_last, as many workers as cores, and our batch size.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.utils import AverageMeter, accuracy
from torch import nn

from pugdft.inference.evaluate import evaluate_model
from pugdft.inference.load import LoadedModel, load_model
from pugdft.inference.predict import find_images, predict
from pugdft.machine import usable_cores

_CLASSES = ("n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331")


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """Write JPEG files of about 500 × 375 pixels and 60 KB, in class folders."""
    random = np.random.default_rng(seed)
    for number in range(count):
        place = folder / _CLASSES[number % len(_CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        width, height = int(random.integers(470, 531)), int(random.integers(350, 401))
        if number % 4 == 3:
            width, height = height, width
        coarse = Image.fromarray(random.integers(0, 256, (height // 12, width // 12, 3), np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + random.normal(0, 8, pixels.shape).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(place / f"{number:05d}.jpg", quality=88)


def as_validate(
    model: nn.Module, folder: Path, workers: int = 4, batch_size: int = 256, channels_last: bool = False
) -> float:
    """Top-1 in per cent by timm's loop; without the pass over random images that it begins with."""
    device = next(model.parameters()).device
    config = timm.data.resolve_data_config({}, model=model, use_test_size=True)
    dataset = create_dataset("", root=str(folder), split="validation")
    loader = create_loader(
        dataset,
        input_size=config["input_size"],
        batch_size=batch_size,
        use_prefetcher=True,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
        num_workers=workers,
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        device=device,
    )
    criterion, losses, top1 = nn.CrossEntropyLoss().to(device), AverageMeter(), AverageMeter()
    model.eval()
    with torch.inference_mode():
        for inputs, target in loader:
            if channels_last:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            output = model(inputs)
            loss = criterion(output, target)
            first, _ = accuracy(output.detach(), target, topk=(1, 5))
            losses.update(loss.item(), inputs.size(0))
            top1.update(first.item(), inputs.size(0))
    return float(top1.avg)


def contenders(loaded: LoadedModel, folder: Path, with_best: bool) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    plain = timm.create_model(str(loaded.recipe.model.name), num_classes=loaded.num_classes)
    plain.load_state_dict(loaded.model.state_dict())
    plain = plain.to(loaded.device)
    images = find_images([str(folder)], print)
    found: dict[str, Callable[[], object]] = {
        "timm validate.py": lambda: as_validate(plain, folder),
        "pugdft predict": lambda: list(predict(loaded, images, top_k=5)),
    }
    if loaded.class_names is not None:
        found["pugdft evaluate"] = lambda: evaluate_model(loaded, str(folder))
    if with_best:
        # The loop makes the inputs channels_last; with contiguous weights oneDNN still chooses that layout.
        found["timm, its best options"] = lambda: as_validate(plain, folder, usable_cores(), 64, True)
    return found


def processor_seconds() -> float:
    """Processor time of this process and its workers: other programs on the machine hardly change it."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tf_efficientnet_lite0.in1k")
    parser.add_argument("--random", action="store_true", help="random weights, for a model that is not here")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timm-best", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.setdefault("PUGDFT_CACHE", str(Path(temporary) / "cache"))
        folder, file = Path(temporary) / "photos", Path(temporary) / "random.safetensors"
        write_photos(folder, given.images)
        if given.random:
            torch.manual_seed(0)
            safetensors.torch.save_file(timm.create_model(given.model).state_dict(), file)
        loaded = load_model(file, given.model) if given.random else load_model(given.model)
        timed = contenders(loaded, folder, given.timm_best)
        seconds: dict[str, list[float]] = {name: [] for name in timed}
        work_seconds: dict[str, list[float]] = {name: [] for name in timed}
        for round_number in range(given.rounds + 1):
            for name, work in timed.items():
                begin, begin_work = time.perf_counter(), processor_seconds()
                work()
                if round_number:  # the first one warms up
                    seconds[name].append(time.perf_counter() - begin)
                    work_seconds[name].append(processor_seconds() - begin_work)
    print(f"{given.model}, {given.images} photos, {loaded.device}, {torch.get_num_threads()} threads, fp32")
    base = statistics.median(seconds["timm validate.py"])
    base_work = statistics.median(work_seconds["timm validate.py"]) / given.images
    for name, each in seconds.items():
        median = statistics.median(each)
        spread = f"{given.images / max(each):.1f} to {given.images / min(each):.1f}"
        work = statistics.median(work_seconds[name]) / given.images
        print(
            f"{name:<24} {given.images / median:7.1f} images/s ({spread})  {base / median:5.2f} times timm; "
            f"{work * 1e3:.1f} ms of a core an image, {base_work / work:.2f} times less"
        )


if __name__ == "__main__":
    main()
