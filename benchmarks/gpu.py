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
import gc
import inspect
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from itertools import chain, count, cycle, islice, product
from operator import attrgetter
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any

import inference
import input
import numpy as np
import optimizers
import psutil
import scaling
import throughput
import torch
from torch.utils import collect_env
from torchvision.datasets import ImageFolder

from pugdft.config import yaml
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.errors import UserError
from pugdft.machine import usable_cores
from pugdft.optim import LossScale, build_optimizer
from pugdft.paths import write_atomically
from pugdft.training.performance import device_name, emulates_bf16
from pugdft.training.setup import device_type

TESTS = Path(__file__).parents[1] / "tests"
sys.path.append(str(TESTS / "helpers"))
cases: Any = import_module("optimizer_cases")
reference: Any = import_module("reference")
small_runs: Any = import_module("small_runs")

MIB = 2**20
METHODS = ("plain", "sam", "pugd")  # plain: the base alone
# What a method may differ from its reference by, for rounding differs between devices.
LARGEST_FP64, LARGEST_FP32 = 1e-8, 1e-3
# And how far the weights of a run may be from the CPU's in fp32, as a share of the way that those went.
SHARES = {"fp32": 0.01, "bf16": 0.2, "fp16": 0.05}
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

    def rounds(self, most: int) -> Iterator[int]:
        """Count rounds, as many as time allows if another takes as long as the longest: one at least."""
        begin = last = time.monotonic()
        longest = 0.0
        for number in range(most):
            if number and time.monotonic() - begin + longest > 0.9 * self.seconds:
                return
            yield number
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    def wait(self) -> None:
        if self.device != "cpu":
            torch.accelerator.synchronize()


def row(**facts: Any) -> None:
    """Tell a row of the part's table. ``ok`` says whether a check held; a measurement has none."""
    print("row " + json.dumps(facts), flush=True)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, the lowest and the highest; nothing of nothing."""
    return (
        f"{median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})" if values else ""
    )


def in_turn(names: Iterable[str], number: int) -> list[str]:
    """Every second round backwards, so that nobody always follows the same one."""
    return list(names)[:: 1 if number % 2 == 0 else -1]


def images_of(data: str, folder: Path, num_train: int, num_test: int) -> Path:
    """Class folders with so many images: bundled ones as PNG files, or links to those of ``data``."""
    if not data:
        throughput.export_images(folder, num_train, num_test)
        return folder
    for split, number in (("train", num_train), ("test", num_test)):
        by_class = [
            sorted(filter(Path.is_file, path.iterdir())) for path in sorted(Path(data, split).glob("*/"))
        ]
        sources = zip(*(cycle(files) for files in by_class if files), strict=True)
        for index, source in enumerate(islice(chain.from_iterable(sources), number)):
            path = folder / split / source.parent.name / f"{index:06d}{source.suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(source)
    return folder


def finetuned(recipes: dict[str, Any], folder: Path, *launcher: str, **environment: str) -> dict[str, Any]:
    """Each recipe's outcome, all trained in one start of the script that the tests have for this."""
    command = [sys.executable, *launcher, str(TESTS / "integration" / "scripts" / "several_runs.py")]
    folder.mkdir()
    for name, recipe in recipes.items():
        (folder / f"{name}.yaml").write_text(yaml.dump(recipe))
        command += [str(folder / f"{name}.yaml"), str(folder / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return {name: small_runs.outcome_of(folder / name) for name in recipes}


# --- correctness -----------------------------------------------------------------------------------------


def references(job: Job, place: Path) -> None:
    """Largest difference of a weight after 7 updates (`pugd_t`: 40) from the float64 reference on the CPU.

    Methods that draw random numbers are compared on a CPU alone: each device and type draws others.
    """
    drawn = (reference.Rwp, reference.RwpMixed, reference.RandomPart)
    decays = [cases.DECAYS[0]] * 3 + [cases.DECAYS[1]] * 3
    # How a closure treats gradients, whether it promises to keep them, and whether the loss is scaled.
    ways = [("nothing", True, True), ("optimizer", False, False), ("in place", False, True)][: job.of(1, 3)]
    dtypes = [torch.float64, torch.float32] if job.device != "mps" else [torch.float32]  # mps has no fp64
    bases = {"sgd": cases.SGD_BASE, "adamw": cases.ADAMW_BASE}
    for name, options, written in reference.REFERENCES:
        if written in drawn and job.device != "cpu":
            continue
        found, steps = {}, job.of(3, 40 if written is reference.PugdT else 7)
        for base, spec in bases.items():
            expected_base = reference.SGD(0.9, decays) if base == "sgd" else reference.AdamW(decays)
            expected = reference.reference_run(written(), expected_base, steps)
            for dtype in dtypes[: 1 if written in drawn else None]:
                nets = [
                    cases.run(
                        cases.spec_of(name, spec, **options), steps, clear, dtype=dtype, device=job.device,
                        closure_accumulates=promises, loss_scale=LossScale() if scales else None,
                    )[0].cpu().double()
                    for clear, promises, scales in ways
                ]  # fmt: skip
                found[f"{base} {dtype}"] = max(cases.deviation(net, expected) for net in nets)
        held = all(value < (LARGEST_FP64 if "64" in key else LARGEST_FP32) for key, value in found.items())
        row(method=f"{name} {options or ''}".strip(), **found, ok=held)
    for base, spec in bases.items():
        scale, where = LossScale(), {"dtype": dtypes[0], "device": job.device}
        spec = cases.spec_of("sam", spec)
        net, optimizer = cases.run(spec, 1, scale=math.inf, loss_scale=scale, **where)
        moved = cases.deviation(net, cases.network(dtypes[0]))
        held = moved == 0 and optimizer.num_skipped_steps == 1 and scale.state_dict()["scale"] == 2.0**15
        row(method=f"sam+{base}, an update that overflows", **{f"{base} {dtypes[0]}": moved}, ok=held)


def precision(job: Job, place: Path) -> None:
    """A network with tiny gradients in half precision beside fp32, and small runs beside a CPU's in fp32."""
    for name in ("plain", "sam", "pugd", "gsam", "wsam"):
        full = cases.half_run(name, None, None, job.device)
        for dtype in (torch.float16, torch.bfloat16):
            half = cases.half_run(name, dtype, LossScale(), job.device)
            share = cases.deviation(half, full) / cases.deviation(full, cases.Half(None))
            row(what=f"{name}, {dtype}: off, share of the way made", value=share, ok=share < 0.05)
    images, base = images_of("", place / "images", 24, 11), small_runs.SGD
    recipes: dict[str, Any] = {}
    for model, method, precision in product(("test_vit", "test_resnet"), METHODS[: job.of(2, 3)], SHARES):
        # With BatchNorm over so few pixels, plain SGD in bf16 too was half of its way from fp32's after 6
        # updates, presumably for rounding that the norm magnifies. A CPU has no fp16.
        if precision == "fp32" or (model == "test_vit" and (precision, job.device) != ("fp16", "cpu")):
            recipe = small_runs.tiny_recipe(
                images, cases.spec_of(method, base), precision=precision, max_steps=3
            )
            recipes[f"{model}+{method}+{precision}"] = recipe | {
                "model": {"name": model, "pretrained": False}
            }
    on_cpu = {name: recipe for name, recipe in recipes.items() if name.endswith("fp32")}
    for model in ("test_vit", "test_resnet"):
        still = cases.spec_of("plain", base | {"lr": 1e-12})
        on_cpu[f"{model}+start"] = on_cpu[f"{model}+plain+fp32"] | {"optimizer": still}
    expected = finetuned(on_cpu, place / "cpu", ACCELERATE_USE_CPU="true")
    for name, outcome in finetuned(recipes, place / "device").items():
        model, method, precision = name.split("+")
        theirs, start = (expected[f"{model}+{method}+fp32"].weights, expected[f"{model}+start"].weights)
        share = distance(outcome.weights, theirs) / distance(theirs, start)
        row(what=f"{name}, 3 updates: off, share of the way made", value=share, ok=share < SHARES[precision])


def distance(first: dict[str, Any], second: dict[str, Any]) -> float:
    """Between two models' weights, without BatchNorm's statistics."""
    names = [name for name in first if "running_" not in name and "num_batches" not in name]
    return math.sqrt(sum(float((first[n].double() - second[n].double()).square().sum()) for n in names))


def resume(job: Job, place: Path) -> None:
    """Runs stopped after updates 2 and 4 beside whole ones; a second whole one shows what is the device's."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it, its sums are not the same each time
    torch.use_deterministic_algorithms(True, warn_only=True)
    images = images_of("", place / "images", 24, 11)
    runs = [("pugd", "fp32"), ("vasso", job.half), ("sam", "fp16"), ("plain", "fp32"), ("looksam", job.half)]
    for name, precision in runs[: job.of(2, 5)]:
        spec = cases.spec_of(name, small_runs.SGD)
        recipe = small_runs.tiny_recipe(images, spec, precision=precision)
        folder = place / f"{name}-{precision}"
        whole = small_runs.whole_run(recipe, folder / "whole")
        cut = small_runs.cut_run(recipe, folder / "cut", [2, 4])
        again = small_runs.whole_run(recipe, folder / "again") if job.device != "cpu" else whole
        parts, noisy = small_runs.differences(whole, cut), small_runs.differences(whole, again)
        moved = small_runs.largest_difference(whole.weights, cut.weights)
        noise = small_runs.largest_difference(whole.weights, again.weights)
        row(
            run=f"{name}, {precision}",
            differs=", ".join(parts[:3]) or "nothing, to the last bit",
            **{"largest difference of a weight": moved, "of two uninterrupted runs": noise},
            ok=not parts or (bool(noisy) and moved <= LARGEST_RESTARTED * noise),
        )


def processes(job: Job, place: Path) -> None:
    """Largest difference of a weight between runs in one process, and in two with a device each."""
    if job.device != "cpu" and torch.accelerator.device_count() < 2:
        row(run="there is one device, which two processes do not share")
        return
    images = images_of("", place / "images", 24, 11)
    # A ViT: BatchNorm averages over a process's own images. 7 images are shared as 4 and 3.
    specs = {name: cases.spec_of(name, small_runs.SGD) for name in METHODS}
    recipes = {name: small_runs.tiny_recipe(images, spec, batch_size=7) for name, spec in specs.items()}
    for recipe in recipes.values():
        recipe["model"]["name"] = "test_vit"
    one = finetuned(recipes, place / "one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for name, two in finetuned(recipes, place / "two", *launcher).items():
        apart = small_runs.largest_difference(one[name].weights, two.weights)
        row(run=name, value=apart, ok=apart < 1e-4)


# --- speed -----------------------------------------------------------------------------------------------


def recipe_of(job: Job, model: str, data: Path | None = None) -> dict[str, Any]:
    return {
        "model": {"name": model, "pretrained": False},
        "data": {"name": str(data or "bundled"), "image_size": job.of(32, 224)},
        "optimizer": scaling.BASE,
        "train": {"epochs": 1, "batch_size": job.batch_size, "precision": job.half},
    }


def programs(job: Job, place: Path, model: str, compiled: bool) -> None:
    """Whole programs, an epoch of 61 updates each, of which the first 21 warm up."""
    names = ["pugdft finetune"]
    names += ["pugdft finetune with cudnn.benchmark"] if job.device == "cuda" and not compiled else []
    names += ["timm train.py"] if job.timm else []
    names += ["Accelerate loop"] if not compiled and not job.data else []
    mark_every, batch, workers = job.of(1, 20), job.batch_size, min(16, max(1, usable_cores() - 1))
    images = images_of(job.data, place / "images", (1 + 3 * mark_every) * batch, 2 * batch)
    task = throughput.Task(
        job.of("test_resnet", model), job.half, str(images), batch, job.of(32, 224), workers, job.timm,
        job.device, compiled, mark_every,
    )  # fmt: skip
    samples: dict[str, list[throughput.Measured]] = {name: [] for name in names}
    for number in job.rounds(job.of(1, 3)):
        for name in in_turn(samples, number):
            try:
                samples[name].append(throughput.measure(name, task))
            except SystemExit as error:  # the others may fit
                note = as_note(str(error))
                is_fault = name.startswith("pugdft") and note != OUT_OF_MEMORY
                row(program=name, note=note, ok=False if is_fault else None)
                del samples[name]
    rates = {name: [rate for each in some for rate in each.rates(batch)] for name, some in samples.items()}
    for name, some in samples.items():
        facts: dict[str, Any] = {"images/s": spread(rates[name]), "rounds": len(some)}
        if names[0] in rates:
            facts["pugdft is"] = f"{median(rates[names[0]]) / median(rates[name]):.2f} ×"
        cost = median(each.milliseconds_an_image(batch) for each in some)
        facts |= {"ms of a core an image": round(cost, 2)}
        facts |= {"to first update, s": round(median(each.start_seconds for each in some), 1)}
        row(program=name, **facts, **{"peak MiB": max(each.peak_bytes for each in some) // MIB})


def ratios(job: Job, place: Path, model: str) -> None:
    """Updates of pugdft's own loop, of which 1 warms up, beside torch's SGD on one batch that is there."""
    parts = scaling.assembled(recipe_of(job, model := job.of("test_vit", model)))
    net, num_timed = parts.backbone.model, job.of(2, 20)
    counts_memory = job.device in ("cuda", "xpu")

    def contender(spec: dict[str, Any]) -> Callable[[], float]:
        optimizer = build_optimizer(spec, net, closure_accumulates=True)
        return partial(scaling.seconds_an_update, replace(parts, optimizer=optimizer), num_timed)

    peaks: dict[str, float] = {}
    for name, spec in (
        scaling.SPECS.items() if counts_memory else ()
    ):  # alone: the others' momentum takes memory too
        net.zero_grad(set_to_none=True)
        gc.collect()
        torch.accelerator.reset_peak_memory_stats()
        contender(spec)()
        peaks[name] = torch.accelerator.max_memory_allocated() / MIB
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[job.half]
    step = input.training_step(model, torch.device(job.device), job.batch_size, job.of(32, 224), dtype)

    def plain() -> float:
        step()
        job.wait()
        begin = time.perf_counter()
        for _ in range(num_timed):
            step()
        job.wait()
        return (time.perf_counter() - begin) / num_timed

    contenders = {name: contender(spec) for name, spec in scaling.SPECS.items()} | {
        "torch SGD, no input": plain
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    for number in job.rounds(job.of(2, 8)):
        for name in in_turn(contenders, number):
            samples[name].append(contenders[name]())
    copy = sum(parameter.nbytes for parameter in net.parameters()) / MIB
    for name, (_, *each) in samples.items():  # the first round warms up
        shares = [mine / sgd for mine, sgd in zip(each, samples["sgd"][1:], strict=True)]
        facts: dict[str, Any] = {"ms an update": spread([1e3 * seconds for seconds in each], 2)}
        facts |= {"÷ SGD": spread(shares, 3), "rounds": len(each)}
        if name in peaks:
            copies = (peaks[name] - peaks["sgd"]) / copy
            facts |= {"peak MiB": round(peaks[name]), "copies of the weights beyond SGD": round(copies, 2)}
        row(optimizer=name, **facts)


def input_speed(job: Job, place: Path) -> None:
    """Batches on the device and no model, from decoded 32-pixel images and from photographs."""
    device, batch, workers = torch.device(job.device), job.batch_size, max(1, usable_cores() - 1)
    number, num_photos = job.of(2 * batch, 2900 // batch * batch), job.of(1, 8) * batch
    store = prepare(open_source("bundled"), 32)
    pixels, labels = np.array(store.images("train")[:number]), store.labels("train")[:number]
    photos = place / "photos"
    if job.data:
        images_of(job.data, photos, num_photos, 12)
    else:
        inference.write_photos(photos / "train", num_photos)
        inference.write_photos(photos / "test", 12)
    recipe = recipe_of(job, "test_resnet", photos)
    recipe["data"] |= {"storage": "files", "image_size": input.SIDE}
    parts, epochs = scaling.assembled(recipe), count()
    contenders: dict[str, tuple[int, Callable[[], Any]]] = {
        f"pixels, pugdft: {name}": (number, input.ours(pixels, labels, input.OURS[name], device, batch))
        for name in ("crop, flip", "random resized crop, flip", "all of it")
    }
    for name, dataset in (
        ("pixels", input.OneByOne(pixels, labels)), ("photos", ImageFolder(str(photos / "train")))
    ):  # fmt: skip
        loader = input.timm_loader(dataset, workers, device, batch)
        contenders[f"{name}, timm: random resized crop, flip"] = len(dataset) // batch * batch, loader
    contenders["photos, pugdft: crop, flip"] = num_photos, lambda: parts.training.epoch(next(epochs))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in job.rounds(job.of(2, 6)):
        for name in in_turn(contenders, turn):
            size, work = contenders[name]
            begin = time.perf_counter()
            input.exhaust(work)
            job.wait()
            rates[name].append(size / (time.perf_counter() - begin))
    for name, (_, *each) in rates.items():  # the first round warms up, and starts worker processes
        row(input=name, **{"images/s": spread(each)}, rounds=len(each), workers=workers)


def training(job: Job, place: Path) -> None:
    """resnet18 from random weights at 64 px, for 10 epochs or 2,000 updates."""
    data = images_of(job.data, place / "images", 20_000, 2_000) if job.data else None
    for name, precision in [("plain", "fp32"), *((name, job.half) for name in METHODS)][: job.of(1, 4)]:
        recipe = recipe_of(job, job.of("test_resnet", "resnet18"), data)
        recipe["data"]["image_size"] = job.of(16, 64)
        recipe["optimizer"] = cases.spec_of(name, small_runs.SGD)
        recipe["train"] |= {"epochs": job.of(1, 10), "batch_size": 100, "precision": precision}
        recipe["train"]["max_steps"] = job.of(20, 2000)
        record = small_runs.whole_run(recipe, place / f"{name}-{precision}").record
        losses = [each["train_loss"] for each in record.history]
        row(
            run=f"{name}, {precision}",
            **{"top-1": round(record.metrics.test.top1, 4), "loss": f"{losses[0]:.3f} → {losses[-1]:.3f}"},
            seconds=round(record.cost.train_seconds, 1),
            ok=job.toy or losses[-1] < 0.9 * losses[0],
        )


def optimizers_alone(job: Job, place: Path) -> None:
    """Steps without the passes, as `optimizers.py` measures them."""
    rows = [each for each in optimizers.contenders() if each.is_named(job.of(["sam"], None))]
    for name in job.of(["test_vit"], ["resnet18", "vit_base_patch16_224"]):
        for each in optimizers.measure(name, rows, torch.device(job.device), job.of(1, 20))["results"]:
            facts = {"ms": round(each["milliseconds"], 3), "÷ torch SGD": round(each["ratio_to_sgd"], 2)}
            row(model=name, optimizer=each["optimizer"], **facts, copies=round(each["extra_copies"], 2))


@dataclass(frozen=True)
class Part:
    """What is measured, and the seconds that it is worth of 20 minutes."""

    title: str
    seconds: int
    work: Callable[..., None]  # of a job, a folder that is empty, and these
    arguments: tuple[Any, ...] = ()


MODELS = ("resnet50", "resnet18", "vit_base_patch16_224")
PARTS: dict[str, Part] = {
    "references": Part("Methods against their references", 60, references),
    "precision": Part("fp16 and bf16 with loss scaling", 90, precision),
    "resume": Part("Runs that are stopped and resumed", 90, resume),
    "processes": Part("Two processes", 60, processes),
    **{f"eager/{name}": Part(f"{name}: programs", 70, programs, (name, False)) for name in MODELS},
    **{f"ratio/{name}": Part(f"{name}: SAM and PUGD ÷ SGD, memory", 50, ratios, (name,)) for name in MODELS},
    **{f"compiled/{name}": Part(f"{name}: compiled", 120, programs, (name, True)) for name in MODELS},
    "input": Part("Input alone", 60, input_speed),
    "training": Part("A short training", 90, training),
    "optimizers": Part("Optimizers alone", 40, optimizers_alone),
}
OUT_OF_MEMORY = "out of memory"
FINAL = ("done", "wrong", OUT_OF_MEMORY)
"""Statuses of parts that the same command does not run again."""


# --- parts as processes, and the two files ---------------------------------------------------------------


def as_note(said: str) -> str:
    """What a failed process said, in a line."""
    if "out of memory" in said.lower() or "OutOfMemoryError" in said:
        return OUT_OF_MEMORY
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def run_part(name: str, job: Job) -> dict[str, Any]:
    """One part's status, seconds, rows and note; rows that it told before it failed are kept."""
    command = [sys.executable, __file__, "--child", name, json.dumps(asdict(job))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment |= {"ACCELERATE_USE_CPU": "true"} if job.device == "cpu" else {}
    begin, status, note = time.monotonic(), "done", ""
    with TemporaryFile("w+") as told, TemporaryFile("w+") as errors, TemporaryDirectory() as cache:
        environment["PUGDFT_CACHE"] = cache
        process = psutil.Popen(command, stdout=told, stderr=errors, env=environment)
        try:
            if process.wait(job.seconds):
                status = "failed"
        except psutil.TimeoutExpired:
            status, note = "out of time", f"stopped after {job.seconds:.0f} s"
        finally:  # of an interrupted command too
            if process.is_running():
                for each in [*process.children(recursive=True), process]:
                    with suppress(psutil.NoSuchProcess):
                        each.kill()
                process.wait()
        told.seek(0)
        errors.seek(0)
        rows = [json.loads(line.removeprefix("row ")) for line in told if line.startswith("row ")]
        said = errors.read()[-3000:]
    if status == "failed":
        note = as_note(said)
        status = note if note == OUT_OF_MEMORY else status
    elif any(each.get("ok") is False for each in rows):
        status = "wrong"
    facts = {"status": status, "seconds": round(time.monotonic() - begin, 1), "note": note, "rows": rows}
    return facts | ({"said": said} if status == "failed" else {})


def machine_facts(job: Job) -> dict[str, Any]:
    """What the results belong to: device, versions, how fp32 products are rounded where no recipe says."""
    facts: dict[str, Any] = {"device": job.device, "name": device_name(job.device)}
    if job.device != "cpu":
        facts["devices"] = torch.accelerator.device_count()
    if job.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {"memory GiB": round(properties.total_memory / 2**30, 1)}
        facts |= {"capability": f"{properties.major}.{properties.minor}", "cuda": torch.version.cuda}
        facts |= {"driver": collect_env.get_nvidia_driver_version(collect_env.run)}
        facts |= {"cudnn": torch.backends.cudnn.version(), "cudnn.benchmark": torch.backends.cudnn.benchmark}
        for place in ("cuda.matmul", "cudnn.conv"):
            facts[f"{place}.fp32_precision"] = attrgetter(f"{place}.fp32_precision")(torch.backends)
    facts |= {"python": platform.python_version(), "cpu": device_name("cpu"), "cores": usable_cores()}
    facts |= {name: version(name) for name in ("pugdft", "torch", "timm", "accelerate")}
    facts |= {"half precision": job.half, "batch": job.batch_size, "data": job.data or "bundled"}
    return facts | {"timm's train.py": job.timm or "none: its rows are left out", "toy": job.toy}


def as_markdown(results: dict[str, Any]) -> str:
    """Facts, a table of the parts, and each part's table."""
    lines = ["# pugdft on an accelerator", "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in results["facts"].items()]
    lines += ["", "| part | status | seconds | note |", "|---|---|--:|---|"]
    for name, part in results["parts"].items():
        lines.append(f"| {name} | {part['status']} | {part['seconds']} | {in_words(part['note'])} |")
    for name, part in results["parts"].items():
        if columns := list(dict.fromkeys(key for each in part["rows"] for key in each)):
            lines += ["", f"## {PARTS[name].title} (`{name}`)", "", f"{inspect.getdoc(PARTS[name].work)}", ""]
            lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
            lines += [
                f"| {' | '.join(in_words(each.get(key)) for key in columns)} |" for each in part["rows"]
            ]
    return "\n".join(lines) + "\n"


def in_words(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else "yes" if value else "**no**"
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1 else str(value).replace("|", "\\|")


def measure_all(names: Sequence[str], again: bool, job: Job, minutes: float, output: Path) -> dict[str, Any]:
    """Run the parts that the files lack, in order, while there is time; write the files after each."""
    facts, place = machine_facts(job), output.with_suffix(".json")
    results = json.loads(place.read_text()) if place.exists() else {"facts": facts, "parts": {}}
    if changed := [key for key in facts if results["facts"].get(key) != facts[key]]:
        raise UserError(f"{place}: was measured with another {', '.join(changed)}: give another --output")
    known = results["parts"]
    missing = [name for name in names if again or known.get(name, {}).get("status") not in FINAL]
    end = time.monotonic() + 60 * minutes
    for index, name in enumerate(missing):
        left, worth = end - time.monotonic(), PARTS[name].seconds
        # Twice what it is worth, or twice its share of what is left if that is more.
        most = min(left, 2 * worth * max(1.0, left / sum(PARTS[each].seconds for each in missing[index:])))
        if left < job.of(1, worth / 4):
            known[name] = {"status": "no time", "seconds": 0, "note": f"{left:.0f} s were left", "rows": []}
        else:
            print(f"{name}, up to {most:.0f} s: ", end="", file=sys.stderr, flush=True)
            known[name] = run_part(name, replace(job, seconds=most))
            print(f"{known[name]['status']} {known[name]['note']}", file=sys.stderr, flush=True)
        results["parts"] = known = {each: known[each] for each in PARTS if each in known}
        write_atomically(place, json.dumps(results, indent=1, ensure_ascii=False).encode())
        write_atomically(output.with_suffix(".md"), as_markdown(results).encode())
    return results


def checked(given: argparse.Namespace) -> tuple[list[str], Job]:
    """The parts that are asked for, and what they are given, or a :class:`UserError`."""
    for name in [*(given.only or []), *given.skip]:
        if not any(each.startswith(name) for each in PARTS):
            raise UserError(f"no part begins with {name!r}; parts: {', '.join(PARTS)}")
    if given.minutes <= 0 or given.batch_size < 2:
        raise UserError("--minutes must be above 0, and --batch-size at least 2")
    if given.timm and not Path(given.timm, "train.py").is_file():
        raise UserError(f"--timm: {given.timm} has no train.py; give a checkout of pytorch-image-models")
    for split in ("train", "test") if given.data else ():
        if not any(Path(given.data, split).glob("*/*")):
            raise UserError(f"--data: {given.data} has no images in {split}/CLASS/")
    device = "cpu" if given.device == "cpu" and given.toy else device_type()
    if device == "cpu" and not (given.device == "cpu" and given.toy):
        raise UserError("no accelerator that torch can use; --toy --device cpu tests this script without one")
    if given.device not in (None, device):
        raise UserError(f"--device: there is no {given.device} here, but {device}")
    names = [name for name in PARTS if name.startswith(tuple(given.only or [""]))]
    names = [name for name in names if not given.skip or not name.startswith(tuple(given.skip))]
    data, timm = (str(Path(each).expanduser().resolve()) if each else "" for each in (given.data, given.timm))
    return names, Job(device, given.toy, 12 if given.toy else given.batch_size, data, timm)


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
    parser.add_argument("--batch-size", type=int, default=128, help="of the measurements of speed")
    parser.add_argument("--device", choices=["cuda", "xpu", "mps", "cpu"], help="default: the accelerator")
    parser.add_argument("--toy", action="store_true", help="toy sizes: tests this script, on a CPU too")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        part, job = PARTS[given.child[0]], Job(**json.loads(given.child[1]))
        with TemporaryDirectory() as place:
            part.work(job, Path(place), *part.arguments)
        return 0
    try:
        names, job = checked(given)
        results = measure_all(names, given.only is not None, job, given.minutes, given.output)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_markdown(results))
    return int(any(results["parts"][name]["status"] in ("wrong", "failed") for name in names))


if __name__ == "__main__":
    raise SystemExit(main())
