"""Whole training programs side by side: pugdft, timm's own train.py, and a loop as in Accelerate's examples.

    python benchmarks/throughput.py --timm ~/pytorch-image-models --rounds 3

Each is a process of its own that trains one model for one epoch on the same images (a part of the bundled
ones, written out as PNG files), with the same batch, precision and device, and evaluates it at the end.
Rounds are interleaved in changing order, for a machine's speed drifts. timm's train.py is a checkout that
you name; without one, or without torchvision, its row is left out. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

PARTS = ("input", "passes", "optimizer", "evaluation")


@dataclass(frozen=True)
class Task:
    """What every program is given."""

    model: str
    precision: str
    folder: str
    batch_size: int
    image_size: int
    workers: int
    timm: str
    device: str = "cpu"
    compile: bool = False
    mark_every: int = 1
    """After the first update, the clock is looked at after so many; the device is waited for only then."""


@dataclass(frozen=True)
class Mark:
    """After an update, counted from 1: the time, and the processor time that the program has spent."""

    update: int
    moment: float
    processor_seconds: float


@dataclass(frozen=True)
class Measured:
    """One program, once: seconds until the first update was made, in all, and marks from there to the last.

    The first interval between marks warms up, if there are several. Processor time is of all threads and
    processes, and says most on a machine that others use too; 0 where there is no /proc. The peak is the
    accelerator's own, or that of the largest process.
    """

    start_seconds: float
    whole_seconds: float
    marks: list[Mark]
    peak_bytes: int
    shares: dict[str, float] | None = None

    @property
    def timed(self) -> list[Mark]:
        return self.marks[1:] if len(self.marks) > 2 else self.marks

    def rates(self, batch_size: int) -> list[float]:
        """Images a second in each timed interval."""
        return [
            (end.update - start.update) * batch_size / (end.moment - start.moment)
            for start, end in pairwise(self.timed)
        ]

    def images_per_second(self, batch_size: int) -> float:
        first, last = self.timed[0], self.timed[-1]
        return (last.update - first.update) * batch_size / (last.moment - first.moment)

    def milliseconds_an_image(self, batch_size: int) -> float:
        first, last = self.timed[0], self.timed[-1]
        spent = last.processor_seconds - first.processor_seconds
        return spent / ((last.update - first.update) * batch_size) * 1e3


def export_images(folder: Path, num_train: int, num_test: int) -> None:
    """The bundled images as class folders, the classes in turn; again from the first if there are too few."""
    from PIL import Image

    from pugdft.data.cache import prepare
    from pugdft.data.datasets import open_source

    store = prepare(open_source("bundled"), 32)
    for split, count in (("train", num_train), ("test", num_test)):
        pixels, labels = store.images(split), store.labels(split)
        for number in range(count):
            index = number % len(pixels)
            path = folder / split / str(store.classes[labels[index]]) / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[index]).save(path)


def recipe_of(task: Task) -> dict[str, Any]:
    """pugdft's recipe: no option of speed is set, they are what a user gets."""
    return {
        "model": {"name": task.model, "pretrained": False},
        "data": {"name": task.folder, "image_size": task.image_size},
        "optimizer": {"name": "sgd", "lr": 0.01, "momentum": 0.9},
        "train": {"epochs": 1, "batch_size": task.batch_size, "precision": task.precision},
    }


def mark(task: Task, update: int) -> None:
    """Tell the time after this update, if it is one of those that are marked."""
    if (update - 1) % task.mark_every == 0:
        if task.device != "cpu":
            torch.accelerator.synchronize()
        print(f"update {update} {time.time()}", flush=True)


def train_with_pugdft(task: Task, overrides: list[str], profile: bool = False) -> None:
    """In a process of its own: ``pugdft finetune`` with an observer that looks at the clock."""
    from pugdft.training.run import finetune, read_recipe
    from pugdft.training.trainer import Observer

    class Clock(Observer):
        def on_step(self, position: Any, totals: Any, done: float) -> None:
            mark(task, position.steps)

        def on_message(self, text: str) -> None:
            rows = [line.split() for line in text.splitlines()]
            shares = {row[0]: float(row[2].rstrip("%")) / 100 for row in rows if row[0] in PARTS}
            if shares:
                print(f"shares {json.dumps(shares)}", flush=True)

    with tempfile.TemporaryDirectory() as output:
        recipe = read_recipe(recipe_of(task), overrides)
        record, _ = finetune(recipe, Path(output) / "run", observer=Clock(), profile=profile)
    if record.error or record.restarts:  # after a restart, a pass takes fewer images than the others' do
        raise SystemExit(f"{record.error}; restarts: {record.restarts}")


def train_with_accelerate(task: Task) -> None:
    """In a process of its own: the loop that tutorials teach, with a DataLoader and PIL images."""
    import timm
    from accelerate import Accelerator
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    size = task.image_size
    mode = transforms.InterpolationMode.BICUBIC
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    finish = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augment = [transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()]
    resize = [transforms.Resize(size, mode)]
    folder = Path(task.folder)
    train = ImageFolder(str(folder / "train"), transforms.Compose([*augment, *resize, *finish]))
    test = ImageFolder(str(folder / "test"), transforms.Compose([*resize, *finish]))
    precision = "no" if task.precision == "fp32" else task.precision
    accelerator = Accelerator(cpu=task.device == "cpu", mixed_precision=precision)
    options: dict[str, Any] = {"batch_size": task.batch_size, "num_workers": task.workers}
    model = timm.create_model(task.model, num_classes=len(train.classes))
    model, optimizer, training, testing = accelerator.prepare(
        model,
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        DataLoader(train, shuffle=True, drop_last=True, **options),
        DataLoader(test, **options),
    )
    model.train()
    for update, (inputs, labels) in enumerate(training, start=1):
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        mark(task, update)
    model.eval()
    correct = 0
    with torch.inference_mode():
        for inputs, labels in testing:
            correct += int((model(inputs).argmax(1) == labels).sum())


def train_with_timm(task: Task) -> None:
    """In a process of its own: timm's train.py with what it has for speed.

    Without augmentation, which only costs it.
    """
    num_classes = len(list((Path(task.folder) / "train").iterdir()))
    options = f"""
        --train-split train --val-split test --model {task.model} --num-classes {num_classes}
        --img-size {task.image_size} --batch-size {task.batch_size} --workers {task.workers}
        --epochs 1 --warmup-epochs 0 --opt sgd --lr 0.01 --smoothing 0 --log-interval {task.mark_every}
        --checkpoint-hist 1 --device {task.device} --no-aug --channels-last
    """.split()
    if task.precision != "fp32":
        options += ["--amp", "--amp-dtype", {"bf16": "bfloat16", "fp16": "float16"}[task.precision]]
    if task.compile:
        options += ["--torchcompile"]
    script = str(Path(task.timm) / "train.py")
    sys.path.insert(0, task.timm)  # as python does for a script: it brings its own timm
    assert "timm" not in sys.modules
    with tempfile.TemporaryDirectory() as output:
        sys.argv = [script, "--data-dir", task.folder, "--output", output, *options]
        runpy.run_path(script, run_name="__main__")


def run_program(program: str, task: Task) -> None:
    """In a process of its own; at the end, tell the accelerator's peak."""
    if program == "timm train.py":
        train_with_timm(task)
    elif program == "Accelerate loop":
        train_with_accelerate(task)
    else:
        torch.backends.cudnn.benchmark = "cudnn.benchmark" in program
        overrides = [each for each in program.split() if "=" in each]
        overrides += ["train.performance.compile=true"] if task.compile else []
        train_with_pugdft(task, overrides, profile=program == "profiled")
    if task.device in ("cuda", "xpu"):
        print(f"peak {torch.accelerator.max_memory_allocated()}", flush=True)


def measure(program: str, task: Task) -> Measured:
    """Run a program, and look at the clock whenever it says that it made an update."""
    command = [sys.executable, __file__, "--child", program, json.dumps(vars(task))]
    begin = time.time()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    marks, shares, said, device_peak = list[Mark](), None, list[str](), 0

    def note(update: int, moment: float) -> None:
        marks.append(Mark(update, moment, session_seconds(process.pid)))

    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if line.startswith("update "):
                note(int(line.split()[1]), float(line.split()[2]))
            elif line.startswith("Train: 0 ["):
                note(int(line.split("[")[1].split("/")[0]) + 1, time.time())
            elif line.startswith("shares "):
                shares = json.loads(line.removeprefix("shares "))
            elif line.startswith("peak "):
                device_peak = int(line.split()[1])
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if status or len(marks) < 2:
        raise SystemExit(f"{program} failed:\n{''.join(said[-30:])}")
    peak = device_peak or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Measured(marks[0].moment - begin, time.time() - begin, marks, peak, shares)


def session_seconds(session: int) -> float:
    """Processor time so far of a session's processes, and of those that they have waited for."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def compare(task: Task, programs: list[str], num_rounds: int) -> None:
    """One model in one precision as a table."""
    samples: dict[str, list[Measured]] = {program: [] for program in programs}
    loads = [os.getloadavg()[0]]
    for number in range(num_rounds):
        for program in programs[:: 1 if number % 2 == 0 else -1]:
            samples[program].append(measure(program, task))
        loads.append(os.getloadavg()[0])
    shares = measure("profiled", task).shares or {}
    ours = median(each.images_per_second(task.batch_size) for each in samples[programs[0]])
    our_cost = median(each.milliseconds_an_image(task.batch_size) for each in samples[programs[0]])
    print(
        f"\n**{task.model}, {task.precision}**, {task.image_size} px, batch {task.batch_size}; load "
        f"{loads[0]:.1f} at the start, {max(loads):.1f} at most (a program of ours makes up to "
        f"{os.cpu_count()})\n\n| program | images/s | pugdft is | processor ms an image | pugdft is "
        "| start to first update, s | whole program, s | peak memory, MiB |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for program, each in samples.items():
        speeds = [sample.images_per_second(task.batch_size) for sample in each]
        cost = median(sample.milliseconds_an_image(task.batch_size) for sample in each)
        print(
            f"| {program} | {median(speeds):.1f} ({min(speeds):.1f}–{max(speeds):.1f}) "
            f"| {ours / median(speeds):.2f} × | {cost:.1f} | {cost / max(our_cost, 1e-9):.2f} × "
            f"| {median(s.start_seconds for s in each):.1f} | {median(s.whole_seconds for s in each):.1f} "
            f"| {median(s.peak_bytes for s in each) / 2**20:.0f} |"
        )
    words = ", ".join(f"{part} {share:.1%}" for part, share in shares.items())
    print(f"\npugdft's time, in a further run with `--profile`: {words}.", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--timm", default="", metavar="PATH", help="a checkout of pytorch-image-models")
    parser.add_argument("--models", nargs="+", default=["resnet18", "deit_tiny_patch16_224"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--train-images", type=int, default=512)
    parser.add_argument("--test-images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1, help="the others' loader processes")
    parser.add_argument("--also", nargs="*", default=[], metavar="KEY=VALUE", help="pugdft with this as well")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        run_program(arguments.child[0], Task(**json.loads(arguments.child[1])))
        return
    programs = ["pugdft finetune", *(f"pugdft finetune {override}" for override in arguments.also)]
    if find_spec("torchvision"):
        programs += ["timm train.py"] if arguments.timm else []
        programs += ["Accelerate loop"]
    packages = ", ".join(f"{name} {version(name)}" for name in ("pugdft", "torch", "timm", "accelerate"))
    print(f"{platform.machine()}, {os.cpu_count()} cores; {packages}; SGD; medians of {arguments.rounds} "
          "interleaved rounds (lowest–highest). Peak memory is the largest process's.")  # fmt: skip
    from pugdft.training.setup import device_type

    device = device_type()
    with tempfile.TemporaryDirectory() as folder:
        # Decoded images stay there too, so that no round finds those of an earlier call.
        os.environ["PUGDFT_CACHE"] = str(Path(folder) / "cache")
        export_images(Path(folder) / "images", arguments.train_images, arguments.test_images)
        for model in arguments.models:
            for precision in arguments.precisions:
                last = arguments.train_images // arguments.batch_size - 1
                task = Task(model, precision, str(Path(folder) / "images"), arguments.batch_size,
                            arguments.image_size, arguments.workers, arguments.timm, device,
                            mark_every=last)  # fmt: skip
                compare(task, programs, arguments.rounds)


if __name__ == "__main__":
    main()
