"""How speed grows with the batch and with processes, and what two passes cost beside one, in time and memory.

    python benchmarks/scaling.py --model resnet18 --precision fp32 --rounds 5

Batches and optimizers: one process, updates of pugdft's own loop on the bundled images, a few of each
contender a round in changing order. Processes: ``pugdft finetune --num-processes N``, one run each, of which
the record's images a second are taken; they share this machine's cores. Memory: one run each too, in which
memory is given back as soon as it is freed, so that the peak is what an update holds. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pugdft.config import yaml
from pugdft.optim import build_optimizer
from pugdft.records import RunRecord, read_record
from pugdft.training.run import read_recipe
from pugdft.training.setup import RunComponents, assemble, load, make_accelerator
from pugdft.training.trainer import Position, Totals, Trainer

BASE = {"name": "sgd", "lr": 0.001, "momentum": 0.9}
SPECS: dict[str, dict[str, Any]] = {
    "sgd": BASE,
    "sam": {"name": "sam", "base": BASE},
    "pugd": {"name": "pugd", "base": BASE},
}
WARM_UP, TIMED = 1, 2


def recipe_of(arguments: argparse.Namespace, batch_size: int, optimizer: str = "sgd") -> dict[str, Any]:
    return {
        "model": {"name": arguments.model, "pretrained": False},
        "data": {"name": "bundled", "image_size": arguments.image_size},
        "optimizer": SPECS[optimizer],
        "train": {"epochs": 1, "batch_size": batch_size, "precision": arguments.precision},
    }


def seconds_an_update(parts: RunComponents, num_timed: int = TIMED) -> float:
    """Of a few updates, made by the loop that a run has."""
    moments: list[float] = []

    def note(position: Position, totals: Totals) -> bool:
        if position.steps in (WARM_UP, WARM_UP + num_timed):
            totals.means()  # waits for the device
            moments.append(time.perf_counter())
        return len(moments) == 2

    trainer = Trainer(parts, after_step=note, total=10**9)
    position, totals = Position(), Totals(parts.device)
    while trainer.train_epoch(position, totals):
        position.epoch, position.step_in_epoch = position.epoch + 1, 0
    return (moments[1] - moments[0]) / num_timed


def interleaved(contenders: dict[Any, RunComponents], num_rounds: int) -> dict[Any, list[float]]:
    """Seconds an update, by contender and round; the first round is not counted."""
    samples: dict[Any, list[float]] = {name: [] for name in contenders}
    for number in range(-1, num_rounds):
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            seconds = seconds_an_update(contenders[name])
            if number >= 0:
                samples[name].append(seconds)
    return samples


def compare_optimizers(arguments: argparse.Namespace) -> None:
    """Updates of SGD, SAM and PUGD on one model; ratios are taken within each round."""
    parts = assembled(recipe_of(arguments, arguments.batch_size))
    contenders = {}
    for name, spec in SPECS.items():
        optimizer = build_optimizer(spec, parts.backbone.model, closure_accumulates=True)
        contenders[name] = replace(parts, optimizer=optimizer)
    samples = interleaved(contenders, arguments.rounds)
    print("\n| optimizer | ms an update | times SGD (lowest–highest) |\n|---|--:|--:|")
    for name, each in samples.items():
        ratios = [mine / sgd for mine, sgd in zip(each, samples["sgd"], strict=True)]
        spread = f"{min(ratios):.2f}–{max(ratios):.2f}"
        print(f"| {name} | {median(each) * 1e3:.0f} | {median(ratios):.3f} ({spread}) |")


def compare_batches(arguments: argparse.Namespace) -> None:
    """Images a second of SGD by batch size."""
    contenders = {size: assembled(recipe_of(arguments, size)) for size in arguments.batch_sizes}
    samples = interleaved(contenders, arguments.rounds)
    print("\n| batch | images/s |\n|--:|--:|")
    for size, each in samples.items():
        print(f"| {size} | {size / median(each):.1f} |")


def compare_processes(arguments: argparse.Namespace) -> None:
    """Images a second of whole runs by the number of processes, at one global batch."""
    speeds: dict[int, list[float]] = {count: [] for count in arguments.processes}
    for number in range(arguments.process_rounds):
        for count in arguments.processes[:: 1 if number % 2 == 0 else -1]:
            recipe = recipe_of(arguments, arguments.batch_size)
            speeds[count].append(run_of(recipe, 8, "--num-processes", str(count)).cost.images_per_second)
    print("\n| processes | images/s |\n|--:|--:|")
    for count, each in speeds.items():
        print(f"| {count} | {median(each):.1f} |")


def compare_memory(arguments: argparse.Namespace) -> None:
    """The peak of whole runs by optimizer, and what lies between them in copies of the parameters."""
    print("\n| optimizer | peak, MiB | beyond SGD, MiB | in copies of the parameters |\n|---|--:|--:|--:|")
    least = 0.0
    for name in SPECS:
        recipe = recipe_of(arguments, arguments.batch_size, name)
        if not torch.cuda.is_available():
            recipe["train"]["performance"] = {"retain_memory": False}
        record = run_of(recipe, 4)
        assert record.model is not None
        peak, copy = record.cost.peak_memory_bytes / 2**20, record.model.parameters * 4 / 2**20
        least = least or peak
        print(f"| {name} | {peak:.0f} | {peak - least:.0f} | {(peak - least) / copy:.1f} |")


def run_of(recipe: dict[str, Any], num_steps: int, *options: str) -> RunRecord:
    """The record of a few updates in a command of their own."""
    recipe["train"] |= {"max_steps": num_steps, "evaluate": "validation"}
    recipe["data"]["validation"] = 0.02
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml.dump(recipe))
        command = [sys.executable, "-m", "pugdft", "finetune", str(path), "--output", f"{folder}/run"]
        subprocess.run([*command, *options], check=True, capture_output=True)
        return read_record(Path(folder) / "run" / "record.yaml")


def assembled(recipe: dict[str, Any]) -> RunComponents:
    resolved = read_recipe(recipe)
    return assemble(resolved, make_accelerator(resolved), *load(resolved))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--process-rounds", type=int, default=2)
    arguments = parser.parse_args()
    print(
        f"{arguments.model}, {arguments.precision}, {arguments.image_size} px; {platform.machine()}, "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} at the "
        f"start; torch {torch.__version__}, timm {version('timm')}; medians of {arguments.rounds} "
        f"interleaved rounds; batch {arguments.batch_size} where none is named.",
        flush=True,
    )
    if arguments.rounds:
        compare_optimizers(arguments)
    if arguments.rounds and arguments.batch_sizes:
        compare_batches(arguments)
    if arguments.processes:
        compare_processes(arguments)
    if arguments.memory:
        compare_memory(arguments)


if __name__ == "__main__":
    main()
