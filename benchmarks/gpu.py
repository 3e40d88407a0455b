"""What only an accelerator can answer, in one command: is pugdft right there, and how fast is it?

    python benchmarks/gpu.py --minutes 20 --timm ~/pytorch-image-models

Correctness first: every method against the float64 references of the tests, fp16 and bf16 with loss scaling,
resumed runs, two processes if there are two devices. Then speed: beside timm's own train.py, SAM and PUGD
divided by SGD, memory, input, a short training, optimizers alone. Nothing is fetched: models have random
weights, images are the bundled ones, or those of --data, a folder with train/CLASS/ and test/CLASS/.

Each part is a process of its own, so one that runs out of memory or crashes costs no other. After each,
OUTPUT.md and OUTPUT.json are written; the same command goes on with the parts that they lack. Parts are in
the order of their worth, and each may take its share of the time that is left. --only and --skip take names
or what they begin with. Ends with 1 if a check failed, with 2 if there is no accelerator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from itertools import count, cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from pugdft.machine import usable_cores
from pugdft.paths import write_atomically
from pugdft.training.performance import device_name, emulates_bf16
from pugdft.training.setup import device_type

TESTS = Path(__file__).parents[1] / "tests"
MIB = 2**20
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.01, "momentum": 0.9}
SPECS: dict[str, dict[str, Any]] = {"sgd": SGD} | {
    name: {"name": name, "base": SGD} for name in ("sam", "pugd")
}
# A float64 method on any device may differ from its reference on the CPU by rounding alone.
LARGEST_FP64, LARGEST_FP32 = 1e-8, 1e-3
LARGEST_RESTARTED = 10  # times as far apart as two runs that nothing has stopped


@dataclass(frozen=True)
class Job:
    """What a part is given."""

    device: str
    toy: bool
    batch_size: int
    data: str
    timm: str
    seconds: float = 0.0

    @property
    def half(self) -> str:
        """The precision that this device has instructions for."""
        return "fp16" if self.device == "cuda" and emulates_bf16("cuda") else "bf16"

    def of(self, toy: Any, real: Any) -> Any:
        return toy if self.toy else real


def row(**facts: Any) -> None:
    """Tell a result: a row of the part's table. ``ok`` says whether a check held; a measurement has none."""
    print("row " + json.dumps(facts), flush=True)


def rounds(job: Job, most: int) -> Sequence[int]:
    """Count rounds, as many as time allows if another takes as long as the longest: one at least."""
    begin = last = time.monotonic()
    longest = 0.0
    for number in range(most):
        if number and time.monotonic() - begin + longest > 0.9 * job.seconds:
            return
        yield number
        longest, last = max(longest, time.monotonic() - last), time.monotonic()


def wait(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()


def peak_mib(device: str) -> float | None:
    """The device's own count since :func:`forget_peak`; None where there is none."""
    return torch.accelerator.max_memory_allocated() / MIB if device in ("cuda", "xpu") else None


def forget_peak(device: str) -> None:
    if device in ("cuda", "xpu"):
        torch.accelerator.reset_peak_memory_stats()


def spread(values: Sequence[float], digits: int = 1) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


def images_of(job: Job, folder: Path, num_train: int, num_test: int) -> Path:
    """Class folders with so many images: bundled ones as PNG files, or links to those of --data."""
    from throughput import export_images

    if not job.data:
        export_images(folder, num_train, num_test)
    for split, number in (("train", num_train), ("test", num_test)) if job.data else ():
        classes = sorted(path for path in (Path(job.data) / split).iterdir() if path.is_dir())
        files = [cycle(sorted(path for path in each.iterdir() if path.is_file())) for each in classes]
        for index, source in enumerate(islice((next(each) for _ in count() for each in files), number)):
            path = folder / split / source.parent.name / f"{index:06d}{source.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source.resolve())
    return folder


def finetuned(
    runs: dict[str, dict[str, Any]], folder: Path, *launcher: str, **environment: str
) -> dict[str, Any]:
    """Each recipe's outcome, all trained in one start of the script that the tests have for this."""
    from small_runs import outcome_of

    from pugdft.config import yaml

    command = [sys.executable, *launcher, str(TESTS / "integration" / "scripts" / "several_runs.py")]
    folder.mkdir()
    for name, recipe in runs.items():
        path = folder / f"{name}.yaml"
        path.write_text(yaml.dump(recipe))
        command += [str(path), str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {name: outcome_of(folder / name) for name in runs}


# --- correctness -----------------------------------------------------------------------------------------


def references(job: Job) -> None:
    """Each method over SGD and AdamW against its reference."""
    import optimizer_cases as cases
    from reference import REFERENCES, AdamW, Plain, PugdT, reference_run
    from reference import SGD as ReferenceSgd

    from pugdft.optim import LossScale

    decays = [cases.DECAYS[0]] * 3 + [cases.DECAYS[1]] * 3
    bases = {"sgd": cases.SGD_BASE, "adamw": cases.ADAMW_BASE}
    # How a closure treats gradients, whether it promises to keep them, and whether the loss is scaled.
    ways = [("optimizer", False, False), ("nothing", True, True), ("in place", False, True)][: job.of(1, 3)]
    dtypes = [torch.float32] if job.device == "mps" else [torch.float64, torch.float32]  # mps has no fp64

    def deviations(name: str, options: dict[str, Any], written: type[Plain], base: str) -> dict[str, float]:
        steps = job.of(3, 40 if written is PugdT else 7)
        expected = reference_run(
            written(), ReferenceSgd(0.9, decays) if base == "sgd" else AdamW(decays), steps
        )
        found = {}
        for dtype in dtypes:
            spec, each = cases.spec_of(name, bases[base], **options), []
            for clear, promises, scales in ways:
                contexts = {"closure_accumulates": promises, "loss_scale": LossScale() if scales else None}
                net, _ = cases.run(spec, steps, clear, dtype=dtype, device=job.device, **contexts)
                each.append(cases.deviation([p.double() for p in net.cpu().parameters()], expected))
            found[f"{base} {str(dtype).removeprefix('torch.')}"] = max(each)
        return found

    for name, options, written in REFERENCES:
        found = {
            key: value for base in bases for key, value in deviations(name, options, written, base).items()
        }
        held = all(value < (LARGEST_FP64 if "64" in key else LARGEST_FP32) for key, value in found.items())
        row(method=f"{name} {options or ''}".strip(), **found, ok=held)
    for base, spec in bases.items():
        scale = LossScale()
        net, optimizer = cases.run(
            cases.spec_of("sam", spec),
            1,
            scale=float("inf"),
            dtype=dtypes[0],
            device=job.device,
            loss_scale=scale,
        )
        moved = cases.deviation(net, cases.network(dtypes[0]))
        held = moved == 0 and int(optimizer.num_skipped_steps) == 1 and scale.state_dict()["scale"] == 2.0**15
        row(
            method=f"sam+{base}, an update that overflows: weights moved by",
            **{f"{base} float64": moved},
            ok=held,
        )


def precision(job: Job) -> None:
    """A network in half precision beside fp32; small runs on the device beside the CPU in fp32."""
    import optimizer_cases as cases
    from small_runs import tiny_recipe

    from pugdft.optim import LossScale

    for name in ("plain", "sam", "pugd", "gsam", "wsam"):
        full = cases.half_run(name, None, None, job.device)
        moved = cases.deviation(full, cases.Half(None))
        for dtype in (torch.float16, torch.bfloat16):
            share = cases.deviation(cases.half_run(name, dtype, LossScale(), job.device), full) / moved
            what = f"{name}, tiny gradients in {str(dtype).removeprefix('torch.')}, loss scaled"
            row(what=what, deviation=share, unit="share of the way from the start", ok=share < 0.05)
    with tempfile.TemporaryDirectory() as temporary:
        images = images_of(replace(job, data=""), Path(temporary) / "images", 24, 11)
        recipes = {
            f"{name}-{precision}": tiny_recipe(images, SPECS[name], precision=precision)
            for name in job.of(["sam"], list(SPECS))
            for precision in ["fp32", "bf16", *(["fp16"] if job.device != "cpu" else [])]
        }
        on_cpu = {name: recipe for name, recipe in recipes.items() if name.endswith("fp32")}
        expected = finetuned(on_cpu, Path(temporary) / "cpu", ACCELERATE_USE_CPU="true")
        found = finetuned(recipes, Path(temporary) / "device")
    for name, outcome in found.items():
        theirs = expected[f"{name.partition('-')[0]}-fp32"].record.history[-1]["train_loss"]
        off = abs(outcome.record.history[-1]["train_loss"] / theirs - 1)
        most = 1e-3 if name.endswith("fp32") else 0.05
        row(
            what=f"{name}: training loss after 6 updates",
            deviation=off,
            unit="of the CPU's in fp32",
            ok=off < most,
        )


def resume(job: Job) -> None:
    """A run that is stopped after updates 2 and 4 beside one that is not; and two that are not."""
    from small_runs import cut_run, differences, largest_difference, tiny_recipe, whole_run

    torch.use_deterministic_algorithms(True, warn_only=True)
    cases = [("pugd", "fp32"), ("vasso", job.half), *([("sam", "fp16")] if job.device != "cpu" else [])]
    cases += [] if job.toy else [("sgd", "fp32"), ("sam", job.half), ("looksam", "fp32")]
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        images = images_of(replace(job, data=""), place / "images", 24, 11)
        for name, precision in cases:
            spec = SGD if name == "sgd" else {"name": name, "base": SGD}
            recipe, folder = tiny_recipe(images, spec, precision=precision), place / f"{name}-{precision}"
            whole = whole_run(recipe, folder / "whole")
            cut = cut_run(recipe, folder / "cut", [2, 4])
            parts, moved = differences(whole, cut), largest_difference(whole.weights, cut.weights)
            noise = 0.0
            if parts:  # so are two uninterrupted runs different too?
                noise = largest_difference(whole.weights, whole_run(recipe, folder / "again").weights)
            held = not parts or 0 < moved <= LARGEST_RESTARTED * noise
            row(run=f"{name}, {precision}", bits="the same" if not parts else f"{len(parts)} arrays differ",
                largest=moved, two_whole_runs=noise, ok=held)  # fmt: skip


def processes(job: Job) -> None:
    """Two processes with a device each make the updates of one; then their speed."""
    from scaling import run_of
    from small_runs import largest_difference, tiny_recipe

    if job.device != "cpu" and torch.accelerator.device_count() < 2:
        row(what="there is one device: two processes are not measured")
        return
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    with tempfile.TemporaryDirectory() as temporary:
        images = images_of(replace(job, data=""), Path(temporary) / "images", 24, 11)
        # A ViT: BatchNorm averages over a process's own images. 7 images are shared as 4 and 3.
        recipes = {name: tiny_recipe(images, spec, batch_size=7) for name, spec in SPECS.items()}
        for recipe in recipes.values():
            recipe["model"]["name"] = "test_vit"
        one = finetuned(recipes, Path(temporary) / "one")
        two = finetuned(recipes, Path(temporary) / "two", *launcher)
    for name in recipes:
        apart = largest_difference(one[name].weights, two[name].weights)
        row(what=f"{name}: largest difference of a weight", value=apart, ok=apart < 1e-4)
    for number in () if job.toy else (1, 2):
        recipe = recipe_of(job, "resnet50", "sgd")
        recipe["train"]["batch_size"] = number * job.batch_size
        speed = run_of(recipe, 20, "--num-processes", str(number)).cost.images_per_second
        row(what=f"resnet50, {number} of the devices, {job.batch_size} images each: images/s", value=speed)


# --- speed -----------------------------------------------------------------------------------------------


def recipe_of(job: Job, model: str, optimizer: str) -> dict[str, Any]:
    return {
        "model": {"name": job.of("test_vit", model), "pretrained": False},
        "data": {"name": job.data or "bundled", "image_size": job.of(32, 224)},
        "optimizer": SPECS[optimizer],
        "train": {"epochs": 1, "batch_size": job.batch_size, "precision": job.half},
    }


def throughput(model: str, compiled: bool, job: Job) -> None:
    """Whole programs, each for one epoch: pugdft, timm's train.py, a loop as in Accelerate's examples."""
    from throughput import Measured, Task, measure

    mark_every = job.of(1, 20)
    num_train = (1 + 3 * mark_every) * job.batch_size  # the first interval warms up
    programs = ["pugdft finetune"]
    programs += ["pugdft finetune with cudnn.benchmark"] if job.device == "cuda" and not compiled else []
    programs += ["timm train.py"] if job.timm else []
    programs += ["Accelerate loop"] if not compiled and not job.data else []
    samples: dict[str, list[Measured]] = {}
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["PUGDFT_CACHE"] = f"{temporary}/cache"
        images = images_of(job, Path(temporary) / "images", num_train, 2 * job.batch_size)
        task = Task(job.of("test_resnet", model), job.half, str(images), job.batch_size, job.of(32, 224),
                    min(16, max(1, usable_cores() - 1)), job.timm, job.device, compiled, mark_every)  # fmt: skip
        for number in rounds(job, 3):
            for program in programs[:: 1 if number % 2 == 0 else -1]:
                try:
                    samples.setdefault(program, []).append(measure(program, task))
                except SystemExit as error:  # the others may fit
                    failed[program] = as_note(str(error))
    for program in programs:
        if program in failed:
            row(program=program, note=failed[program], ok="out of memory" in failed[program] and None)
            continue
        each = samples[program]
        rates = [rate for sample in each for rate in sample.rates(job.batch_size)]
        ours = [rate for sample in samples.get(programs[0], []) for rate in sample.rates(job.batch_size)]
        row(**{
            "program": program, "images/s": spread(rates),
            "pugdft is": f"{median(ours) / median(rates):.2f} ×" if ours else "",
            "ms of a core an image": round(median(s.milliseconds_an_image(job.batch_size) for s in each), 2),
            "to the first update, s": round(median(s.start_seconds for s in each), 1),
            "peak MiB": round(max(s.peak_bytes for s in each) / MIB), "rounds": len(each),
        })  # fmt: skip


def ratios(model: str, job: Job) -> None:
    """Updates of pugdft's own loop, and of a plain torch loop on one batch that stays on the device."""
    import gc

    import timm
    from scaling import assembled, seconds_an_update

    from pugdft.optim import build_optimizer

    num_timed, num_rounds = job.of(2, 20), job.of(1, 7)
    parts = assembled(recipe_of(job, model, "sgd"))
    copy = sum(parameter.nbytes for parameter in parts.backbone.model.parameters()) / MIB

    def contender(name: str) -> Callable[[], float]:
        optimizer = build_optimizer(SPECS[name], parts.backbone.model, closure_accumulates=True)
        return partial(seconds_an_update, replace(parts, optimizer=optimizer), num_timed)

    peaks: dict[str, float | None] = {}
    for name in SPECS:  # alone: the others' momentum takes memory too
        parts.backbone.model.zero_grad(set_to_none=True)
        gc.collect()
        forget_peak(job.device)
        contender(name)()
        peaks[name] = peak_mib(job.device)
    net = timm.create_model(parts.recipe.model.name, num_classes=10, **({"img_size": 32} if job.toy else {}))
    net = net.to(job.device, memory_format=torch.channels_last).train()
    plain = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=job.device != "mps")
    inputs = torch.randn(job.batch_size, 3, *2 * [job.of(32, 224)], device=job.device)
    inputs = inputs.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(job.batch_size, device=job.device) % 10

    def loop(num_updates: int) -> None:
        for _ in range(num_updates):
            with torch.autocast(job.device, {"bf16": torch.bfloat16, "fp16": torch.float16}[job.half]):
                loss = torch.nn.functional.cross_entropy(net(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            plain.step()
            plain.zero_grad()

    def plain_seconds() -> float:
        loop(1)
        wait(job.device)
        begin = time.perf_counter()
        loop(num_timed)
        wait(job.device)
        return (time.perf_counter() - begin) / num_timed

    contenders = {name: contender(name) for name in SPECS} | {"plain torch loop, SGD": plain_seconds}
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in rounds(job, num_rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            seconds = contenders[name]()
            if number or job.toy:  # the first round warms up
                samples[name].append(seconds)
    for name, each in samples.items():
        if not each:
            raise SystemExit("there was time for warming up only")
        shares = [mine / sgd for mine, sgd in zip(each, samples["sgd"], strict=True)]
        facts: dict[str, Any] = {"optimizer": name, "ms an update": spread([1e3 * s for s in each], 2),
                                 "÷ SGD": spread(shares, 3), "rounds": len(each)}  # fmt: skip
        if (peak := peaks.get(name)) is not None:
            least = peaks["sgd"] or 0.0
            facts |= {
                "peak MiB": round(peak),
                "copies of the weights beyond SGD": round((peak - least) / copy, 2),
            }
        row(**facts)


def input_speed(job: Job) -> None:
    """Batches on the device, with no model: from decoded 32-pixel images, and from photographs."""
    from inference import write_photos
    from input import OURS, SIDE, OneByOne, exhaust, ours, timm_loader
    from scaling import assembled

    from pugdft.data.cache import prepare
    from pugdft.data.datasets import open_source

    device, batch, workers = torch.device(job.device), job.batch_size, max(1, usable_cores() - 1)
    store = prepare(open_source("bundled"), SIDE)
    number = job.of(2 * batch, 3000 // batch * batch)
    pixels, labels = store.images("train")[:number].copy(), store.labels("train")[:number]
    with tempfile.TemporaryDirectory() as temporary:
        from torchvision.datasets import ImageFolder

        folder = Path(temporary) / "photos"
        num_photos = job.of(1, 8) * batch
        if job.data:
            images_of(job, folder, num_photos, 8)
        else:
            write_photos(folder / "train", num_photos)
            write_photos(folder / "test", 8)
        recipe = recipe_of(job, "resnet18", "sgd")
        recipe["data"] |= {"name": str(folder), "storage": "files", "image_size": SIDE}
        recipe["model"]["name"] = "resnet18"
        parts = assembled(recipe)
        epochs = count()
        contenders: dict[str, tuple[int, Callable[[], Any]]] = {
            f"pixels, pugdft: {name}": (len(pixels), ours(pixels, labels, OURS[name], device, batch))
            for name in job.of(["crop, flip"], ["crop, flip", "random resized crop, flip", "all of it"])
        }
        timm_pixels = timm_loader(OneByOne(pixels, labels), workers, device, batch)
        timm_photos = timm_loader(ImageFolder(str(folder / "train")), workers, device, batch)
        contenders |= {
            "pixels, timm: random resized crop, flip": (len(pixels), timm_pixels),
            "photos, pugdft: crop, flip": (num_photos, lambda: parts.training.epoch(next(epochs))),
            "photos, timm: random resized crop, flip": (num_photos, timm_photos),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in rounds(job, job.of(1, 6)):
            for name, (size, work) in list(contenders.items())[:: 1 if turn % 2 == 0 else -1]:
                begin = time.perf_counter()
                exhaust(work)
                wait(job.device)
                if turn or job.toy:  # the first round warms up, and starts worker processes
                    rates[name].append(size / (time.perf_counter() - begin))
    for name, each in rates.items():
        row(
            **{
                "input": name,
                "images/s": spread(each) if each else "",
                "rounds": len(each),
                "workers": workers,
            }
        )


def training(job: Job) -> None:
    """resnet18 from random weights for a few epochs."""
    import optimizer_cases  # noqa: F401  (its folder is on the path)
    from small_runs import whole_run

    epochs = job.of(1, 10)
    for name, precision in [("sgd", "fp32"), *((name, job.half) for name in SPECS)][: job.of(1, 4)]:
        base = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
        recipe = {
            "model": {"name": job.of("test_resnet", "resnet18"), "pretrained": False},
            "data": {"name": job.data or "bundled", "image_size": job.of(32, 64)},
            "optimizer": base if name == "sgd" else {"name": name, "base": base},
            "train": {
                "epochs": epochs,
                "batch_size": 100,
                "precision": precision,
                "max_steps": job.of(20, 2000),
            },
        }
        with tempfile.TemporaryDirectory() as temporary:
            record = whole_run(recipe, Path(temporary) / "run").record
        losses = [each["train_loss"] for each in record.history]
        assert record.test is not None
        row(**{
            "optimizer": name, "precision": precision, "epochs": len(losses), "top-1": round(record.test.top1, 4),
            "training loss": f"{losses[0]:.3f} → {losses[-1]:.3f}", "seconds": round(record.cost.train_seconds, 1),
            "skipped updates": record.method.skipped_steps if record.method else 0,
            "ok": job.toy or losses[-1] < 0.9 * losses[0],
        })  # fmt: skip


def optimizers_alone(job: Job) -> None:
    """``optimizers.py`` here: steps without the passes."""
    import optimizers

    device = torch.device(job.device)
    rows = [each for each in optimizers.contenders() if each.is_named(job.of(["sam"], None))]
    for name in job.of(["test_vit"], ["resnet18", "vit_base_patch16_224"]):
        for each in optimizers.measure(name, rows, device, job.of(1, 20))["results"]:
            row(**{"model": name, "optimizer": each["optimizer"], "ms": round(each["milliseconds"], 3),
                   "÷ torch SGD": round(each["ratio_to_sgd"], 2),
                   "peak extra copies": round(each["extra_copies"], 2)})  # fmt: skip


@dataclass(frozen=True)
class Part:
    """What is measured; ``worth`` is its share of the time."""

    title: str
    worth: int
    work: Callable[[Job], None]


PARTS: dict[str, Part] = {
    "references": Part("Methods against their float64 references", 60, references),
    "precision": Part("fp16 and bf16, and this device beside the CPU", 90, precision),
    "resume": Part("Runs that are stopped and resumed", 90, resume),
    "processes": Part("Two processes", 60, processes),
}
_MODELS = ("resnet50", "resnet18", "vit_base_patch16_224")
for _model in _MODELS:
    PARTS[f"throughput/{_model}"] = Part(f"{_model}: whole programs", 70, partial(throughput, _model, False))
for _model in _MODELS:
    PARTS[f"ratio/{_model}"] = Part(f"{_model}: SAM and PUGD ÷ SGD", 50, partial(ratios, _model))
for _model in _MODELS:
    PARTS[f"compiled/{_model}"] = Part(
        f"{_model}: whole programs, compiled", 120, partial(throughput, _model, True)
    )
PARTS |= {
    "input": Part("Input alone", 60, input_speed),
    "training": Part("A short training", 90, training),
    "optimizers": Part("Optimizers alone", 40, optimizers_alone),
}
FINAL = ("done", "wrong", "out of memory")
"""Statuses of parts that the same command does not run again."""


# --- parts as processes, and the two files ---------------------------------------------------------------


def as_note(said: str) -> str:
    """What a failed process said, in a line."""
    if "out of memory" in said.lower() or "OutOfMemoryError" in said:
        return "out of memory"
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def run_part(name: str, job: Job) -> dict[str, Any]:
    """One part's status, seconds, rows and note; rows that it told before it failed are kept."""
    command = [sys.executable, __file__, "--child", name, json.dumps(asdict(job))]
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if job.device == "cpu" else {}
    begin, status, note = time.monotonic(), "done", ""
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=told, stderr=errors, env=environment)
        try:
            if process.wait(job.seconds):
                status = "failed"
        except subprocess.TimeoutExpired:
            status, note = "out of time", f"stopped after {job.seconds:.0f} s"
        finally:  # of an interrupted command too
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()
        told.seek(0)
        rows = [json.loads(line.removeprefix("row ")) for line in told if line.startswith("row ")]
        errors.seek(0)
        if status == "failed":
            note = as_note(errors.read())
            status = "out of memory" if note == "out of memory" else status
    if status == "done" and any(each.get("ok") is False for each in rows):
        status = "wrong"
    return {"status": status, "seconds": round(time.monotonic() - begin, 1), "note": note, "rows": rows}


def machine_facts(job: Job) -> dict[str, Any]:
    """What the results belong to: device, versions, and how fp32 products are rounded outside a run."""
    from torch.utils import collect_env

    facts: dict[str, Any] = {"device": job.device, "name": device_name(job.device)}
    if job.device != "cpu":
        facts["devices"] = torch.accelerator.device_count()
    if job.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts["memory GiB"] = round(properties.total_memory / 2**30, 1)
        facts["capability"] = f"{properties.major}.{properties.minor}"
        facts["driver"] = collect_env.get_nvidia_driver_version(collect_env.run)
        facts["cuda"], facts["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
        facts["matmul tf32"] = torch.backends.cuda.matmul.fp32_precision
        facts["convolution tf32"] = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        facts["cudnn.benchmark"] = torch.backends.cudnn.benchmark
    facts |= {"python": platform.python_version(), "cpu": device_name("cpu"), "cores": usable_cores()}
    facts |= {name: version(name) for name in ("pugdft", "torch", "timm", "accelerate")}
    return facts | {"half precision": job.half, "batch": job.batch_size, "data": job.data or "bundled",
                    "timm's train.py": job.timm or "none: its rows are left out", "toy": job.toy}  # fmt: skip


def as_markdown(results: dict[str, Any]) -> str:
    """Facts, a table of the parts, and each part's table."""
    lines = ["# pugdft on an accelerator", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in results["facts"].items()]
    lines += ["", "| part | status | seconds | note |", "|---|---|--:|---|"]
    for name, part in results["parts"].items():
        note = str(part["note"]).replace("|", "\\|")
        lines.append(f"| {name} | {part['status']} | {part['seconds']} | {note} |")
    for name, part in results["parts"].items():
        columns = list(dict.fromkeys(key for each in part["rows"] for key in each))
        if columns:
            lines += [
                "",
                f"## {PARTS[name].title} (`{name}`)",
                "",
                f"{(PARTS[name].work.__doc__ or '').strip()}",
            ]
            lines += ["", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [
                f"| {' | '.join(in_words(each.get(key)) for key in columns)} |" for each in part["rows"]
            ]
    return "\n".join(lines) + "\n"


def in_words(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "**no**"}[value]
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1 else str(value)


def measure_all(names: Sequence[str], again: bool, job: Job, minutes: float, output: Path) -> dict[str, Any]:
    """Run the parts that the files lack, in order, each within its share of the time that is left."""
    facts, place = machine_facts(job), output.with_suffix(".json")
    results = json.loads(place.read_text()) if place.exists() else {"facts": facts, "parts": {}}
    if results["facts"] != facts:
        changed = [key for key in facts if results["facts"].get(key) != facts[key]]
        raise ValueError(f"{place}: was measured with another {', '.join(changed)}: give another --output")
    known = results["parts"]
    missing = [name for name in names if again or known.get(name, {}).get("status") not in FINAL]
    end = time.monotonic() + 60 * minutes
    for index, name in enumerate(missing):
        left = end - time.monotonic()
        # What the parts so far have not used goes to all that follow; each may take up to twice its share.
        share = 2 * PARTS[name].worth / sum(PARTS[each].worth for each in missing[index:])
        seconds = left * min(1.0, share)
        if seconds < 0.1 * PARTS[name].worth and not job.toy:
            known[name] = {"status": "no time", "seconds": 0, "note": f"{left:.0f} s were left", "rows": []}
        else:
            print(f"{name}: up to {seconds:.0f} s …", file=sys.stderr, flush=True)
            known[name] = run_part(name, replace(job, seconds=seconds))
            print(f"{name}: {known[name]['status']} {known[name]['note']}", file=sys.stderr, flush=True)
        results["parts"] = known = {each: known[each] for each in PARTS if each in known}
        write_atomically(place, json.dumps(results, indent=1, ensure_ascii=False).encode())
        write_atomically(output.with_suffix(".md"), as_markdown(results).encode())
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--output", type=Path, default=Path("gpu"), help="without .md and .json")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"run these, again too: {', '.join(PARTS)}")
    parser.add_argument("--skip", nargs="+", default=[], metavar="PART")
    parser.add_argument("--timm", default="", metavar="PATH", help="a checkout of pytorch-image-models")
    parser.add_argument("--data", default="", metavar="FOLDER", help="with train/CLASS/ and test/CLASS/")
    parser.add_argument("--batch-size", type=int, help="of the measurements of speed; default: 128")
    parser.add_argument("--device", choices=["cuda", "xpu", "mps", "cpu"], help="default: the accelerator")
    parser.add_argument("--toy", action="store_true", help="toy sizes: tests this script, on a CPU too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        sys.path[:0] = [str(TESTS / "helpers")]
        PARTS[given.child[0]].work(Job(**json.loads(given.child[1])))
        return 0
    for name in [*(given.only or []), *given.skip]:
        if not any(each.startswith(name) for each in PARTS):
            parser.error(f"no part begins with {name!r}; parts: {', '.join(PARTS)}")
    if given.minutes <= 0 or (given.batch_size or 2) < 2:
        parser.error("--minutes must be above 0, and --batch-size at least 2")
    if given.timm and not (Path(given.timm) / "train.py").is_file():
        parser.error(f"--timm: {given.timm} has no train.py; give a checkout of pytorch-image-models")
    for split in ("train", "test") if given.data else ():
        if not (Path(given.data) / split).is_dir():
            parser.error(f"--data: {given.data} has no folder {split}")
    device = device_type() if given.device != "cpu" else "cpu"
    if device == "cpu" and not (given.toy and given.device == "cpu"):
        parser.error(
            "this machine has no accelerator that torch can use; --toy --device cpu tests the script"
        )
    if given.device not in (None, device):
        parser.error(f"--device: there is no {given.device} here, but {device}")
    names = [name for name in PARTS if given.only is None or name.startswith(tuple(given.only))]
    names = [name for name in names if not name.startswith(tuple(given.skip))] if given.skip else names
    paths = (str(Path(each).expanduser().resolve()) if each else "" for each in (given.data, given.timm))
    job = Job(device, given.toy, given.batch_size or (4 if given.toy else 128), *paths)
    try:
        results = measure_all(names, given.only is not None, job, given.minutes, given.output)
    except ValueError as error:
        parser.error(str(error))
    print(as_markdown(results))
    return int(any(results["parts"][name]["status"] in ("wrong", "failed") for name in names))


if __name__ == "__main__":
    raise SystemExit(main())
