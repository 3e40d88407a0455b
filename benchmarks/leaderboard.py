"""The leaderboard over many records: seconds of the command and of its parts, and peak memory.

    python benchmarks/leaderboard.py --sizes 100 1000 10000 --rows 8

Every record is made up and says so in its id; all lie in a temporary folder that is removed afterwards.
They are shaped like those of benches: up to 25 optimizers by 5 or 10 seeds on each of several data sets and
models, some runs failed, in the text that a run writes. "command" is the whole of ``pugdft leaderboard``
less the same over four records, which is the start of the interpreter and its imports; "CPU" is that in
processor time, which says more where others use the machine, and so are the parts. Each number is the best
of ``--repeats``, each in a process of its own; the peak is that of the process that times the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, cycle, product
from pathlib import Path
from typing import Any

from pugdft.config import yaml
from pugdft.records import RunRecord

MODELS = ["resnet18.tv_in1k", "vit_base_patch16_224.augreg_in21k_ft_in1k", "deit_small_patch16_224.fb_in1k"]
DATA_SETS = {"cifar10": 10, "cifar100": 100, "tiny_imagenet": 200}
SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": name, "rho": rho, "base": SGD}
    if name in ("sam", "asam", "pugd")
    else {**SGD, "name": name, "lr": rho / 5}
    for rho in (0.05, 0.1, 0.5, 1.0, 2.0)
    for name in ("sgd", "adamw", "sam", "asam", "pugd")
]
STEPS_PER_EPOCH = 500
PARTS = ["collect", "rank", "render"]
# What stands in the text of a made-up record where a run has something of its own, and the place for that.
PLACES = {
    "status: completed": "status: {status}",
    "seed: -1": "seed: {seed}",
    "top1: 11.0": "top1: {top1}",
    "loss: 12.0": "loss: {numbers[0]}",
    "ece: 13.0": "ece: {numbers[1]}",
    "- here: 1\n": "{history}",
    "train_seconds: 14.0": "train_seconds: {numbers[2]}",
    "norm: 15.0": "norm: {numbers[3]}",
    "cosine: 16.0": "cosine: {numbers[4]}",
    ":59:": ":{minute}:",
    "sha0": "{sha256[0]}",
    "sha1": "{sha256[1]}",
    "error: null": "error: {error}",
}


@dataclass(frozen=True)
class Cell:
    """A run of a bench."""

    model: str
    data: str
    batch_size: int
    optimizer: dict[str, Any]
    seed: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 10_000], metavar="N")
    parser.add_argument("--rows", type=int, default=8, help="epochs in each history")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--time", type=Path, help=argparse.SUPPRESS)  # what the processes of their own do
    arguments = parser.parse_args()
    if arguments.time:
        print(json.dumps(timed_parts(arguments.time)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, best of {arguments.repeats}, "
          f"{arguments.rows} epochs in each history")  # fmt: skip
    print(
        f"{'records':>8} {'MB':>6} "
        + " ".join(f"{part + ' s':>10}" for part in [*PARTS, "command", "CPU"])
        + "   peak MiB"
    )
    with tempfile.TemporaryDirectory(prefix="pugdft-made-up-records-") as folder:
        few = Path(folder, "few")
        write_records(few, 4, arguments.rows)
        start, start_cpu = best_command(few, arguments.repeats)
        for size in arguments.sizes:
            root = Path(folder, str(size))
            num_bytes = write_records(root, size, arguments.rows)
            runs = [measured(root) for _ in range(arguments.repeats)]
            cells = [f"{min(run[part] for run in runs):10.3f}" for part in PARTS]
            elapsed, cpu = best_command(root, arguments.repeats)
            cells.append(f"{elapsed - start:10.3f} {cpu - start_cpu:10.3f}")
            peak = max(run["peak_mib"] for run in runs)
            print(f"{size:8} {num_bytes / 1e6:6.1f} {' '.join(cells)} {peak:10.0f}", flush=True)
    print(f"Subtracted, the command's start: {start:.3f} s. Memory without any record: {idle_mib():.0f} MiB.")


def measured(root: Path) -> dict[str, float]:
    """What :func:`timed_parts` says, from a fresh process."""
    command = [sys.executable, __file__, "--time", str(root)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def timed_parts(root: Path) -> dict[str, float]:
    """Processor seconds of each part, and this process's peak memory."""
    import io

    import scipy.special  # noqa: F401 (its import is no part of the ranking)
    from rich.console import Console

    from pugdft.leaderboard import build_leaderboard, collect, print_table

    marks = [time.process_time()]
    collected = collect([root])
    marks.append(time.process_time())
    groups = build_leaderboard(collected.records)
    marks.append(time.process_time())
    print_table(groups, Console(file=io.StringIO(), width=120))
    marks.append(time.process_time())
    assert not collected.left_out
    times = {part: after - before for part, before, after in zip(PARTS, marks, marks[1:], strict=False)}
    return {**times, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def best_command(root: Path, repeats: int) -> tuple[float, float]:
    """Seconds of the whole command, and of processors at work for it."""
    times = []
    for _ in range(repeats):
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, "-m", "pugdft", "leaderboard", str(root)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        elapsed, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append((elapsed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    return min(elapsed for elapsed, _ in times), min(cpu for _, cpu in times)


def idle_mib() -> float:
    """Memory of a process that has imported everything and read nothing."""
    code = (
        "import resource, scipy.special, rich.console, pugdft.leaderboard; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )


def write_records(root: Path, number: int, rows: int) -> int:
    """Write ``number`` made-up records below ``root``; returns their bytes."""
    draw = random.Random(0)
    total = 0
    for index, cell in zip(range(number), cells(), strict=False):
        text = record_text(index, cell, rows, draw)
        if index == 0:
            record = RunRecord.model_validate(yaml.parse(text))
            assert record.to_yaml() == text, "no longer the text that a run writes"
        folder = root / f"{index // 1000:03d}" / f"run-{index:06d}"
        folder.mkdir(parents=True)
        total += (folder / "record.yaml").write_bytes(text.encode())
    return total


def cells() -> Iterator[Cell]:
    """One run after another, bench by bench; when all models and data sets are through, in larger batches."""
    sizes = cycle(product([5, 12, 25], [5, 10]))
    for batch_size in count(100, 10):
        for model, data in product(MODELS, DATA_SETS):
            num_optimizers, num_seeds = next(sizes)
            for optimizer in OPTIMIZERS[:num_optimizers]:
                for seed in range(num_seeds):
                    yield Cell(model, data, batch_size, optimizer, seed)


_texts: dict[str, str] = {}


def record_text(index: int, cell: Cell, rows: int, draw: random.Random) -> str:
    """What :meth:`RunRecord.to_yaml` would write, but soon: the dumper writes what seeds have in common."""
    key = repr((replace(cell, seed=0), rows))
    if key not in _texts:
        _texts.clear()  # seeds follow each other
        _texts[key] = _text_with_places(cell, rows)
    failed = draw.random() < 0.03
    top1 = round(0.8 + 0.1 * draw.random(), 4)
    history = "".join(
        f"- epoch: {epoch}\n  steps: {epoch * STEPS_PER_EPOCH}\n  lr: {0.01 * draw.random()!r}\n"
        f"  train_loss: {draw.random()!r}\n  train_top1: {draw.random()!r}\n"
        f"  gradient_passes: {2.0 * epoch * STEPS_PER_EPOCH!r}\n"
        f"  train_seconds: {37.5 * epoch + round(draw.random(), 3)!r}\n"
        f"  test_top1: {round(top1 - 0.3 / epoch, 4)!r}\n  test_loss: {draw.random()!r}\n"
        for epoch in range(1, rows + 1)
    )
    return _texts[key].format(
        index=f"{index:06d}",
        status="failed" if failed else "completed",
        seed=cell.seed,
        top1=repr(top1),
        numbers=[repr(0.05 + draw.random()) for _ in range(5)],
        history=history,
        minute=f"{index % 60:02d}",
        sha256=[f"f{draw.getrandbits(252):063x}" for _ in range(2)],
        error="'RuntimeError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of\n"
        "  139.81 GiB: it is made up.'" if failed else "null",
    )  # fmt: skip


def _text_with_places(cell: Cell, rows: int) -> str:
    """A record's text in which ``PLACES`` stand for what is a run's own."""
    record = RunRecord.model_validate(
        {
            "schema": "pugdft.run/1",
            "id": "made-up-{index}",
            "status": "completed",
            "recipe": {
                "model": {"name": cell.model, "pretrained": True, "head_init": "timm"},
                "data": {
                    "name": cell.data, "image_size": 224, "validation": 0.0, "crop_padding": 4, "flip": True,
                },
                "optimizer": cell.optimizer,
                "schedule": {"name": "cosine", "warmup_epochs": 0.0},
                "train": {
                    "epochs": rows, "budget": "epochs", "max_steps": None, "batch_size": cell.batch_size,
                    "micro_batch_size": None, "eval_batch_size": None, "eval_every": 1, "evaluate": "all",
                    "precision": "bf16", "label_smoothing": 0.0, "freeze": "none", "batch_norm": "update",
                    "seed": -1,
                },
            },
            "seed": -1,
            "data": {
                "name": cell.data, "classes": DATA_SETS[cell.data],
                "sizes": {"train": 50_000, "test": 10_000}, "sha256": f"{len(cell.data):064x}a"[1:],
            },
            "model": {
                "name": cell.model, "pretrained_tag": cell.model.partition(".")[2],
                "weights_sha256": f"{len(cell.model):064x}b"[1:], "parameters": 11_181_642,
            },
            "metrics": {
                "test": {"top1": 11.0, "top5": 0.99, "loss": 12.0, "ece": 13.0},
                "best_test": {"top1": 11.0, "epoch": rows},
            },
            "history": [{"here": 1}],
            "cost": {
                "epochs": rows, "steps": rows * STEPS_PER_EPOCH,
                "gradient_passes": 2.0 * rows * STEPS_PER_EPOCH, "train_seconds": 14.0,
                "eval_seconds": 30.5, "images_per_second": 1342.33,
                "peak_memory_bytes": 3_456_789_012,
            },
            "method": {
                "two_pass_fraction": 1.0, "mean_perturbation_norm": 15.0, "mean_gradient_cosine": 16.0,
            },
            "environment": {
                "pugdft": "0.1.0", "git": "9a881b9b9f23849475296a8cd768ea1965bc3152-dirty",
                "python": "3.11.7", "torch": "2.9.1+cu128", "timm": "1.0.22", "accelerate": "1.11.0",
                "numpy": "2.3.4", "platform": "linux", "device": "cuda",
                "device_name": "a made-up device", "processes": 1, "threads": 16,
                "precision": "bf16", "started": "2026-01-01T00:00:00+00:00",
                "finished": "2026-01-01T01:59:00+00:00",
            },
            "artifacts": {
                "predictions": {"path": "predictions.npz", "sha256": "sha0"},
                "model": {"path": "model.safetensors", "sha256": "sha1"},
            },
            "error": None,
        }
    )  # fmt: skip
    text = record.to_yaml()
    for written, place in PLACES.items():
        assert written in text, f"{written} is not in a record's text"
        text = text.replace(written, place)
    return text


if __name__ == "__main__":
    main()
