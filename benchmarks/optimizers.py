"""Optimizers alone: milliseconds and peak memory of a step, pugdft's methods beside installed peers'.

    python benchmarks/optimizers.py --models 400x8 resnet18 --rounds 6

Needs timm, for its models; 400x8 is 400 tensors of 8 elements. ``pip install pytorch_optimizer`` adds that
library's rows, and a table of each method divided by its peer. Nothing is trained: a pass of the
closure writes fabricated gradients where backward would. Everything runs in one process and one run, a step
of each contender a round in changing order, for a machine's speed drifts by more than the differences that
matter. On a CPU leave all cores to it: a neighbour makes the threads wait for each other, ten times as long.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pugdft.optim import build_optimizer
from pugdft.optim.diagnostics import Diagnostics
from pugdft.optim.methods import METHODS

try:
    import pytorch_optimizer
except ImportError:
    pytorch_optimizer = None

BASE: dict[str, Any] = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 5e-4}
ROUNDS = {"400x8": 60, "resnet18": 30, "deit_tiny_patch16_224": 30, "deit_base_patch16_224": 8}
LOOK_EVERY = 5
"""LookSAM's k, for pugdft's and the peer's: one sample of either is a whole cycle, given per step."""
REFERENCE = "torch SGD"
BY_HAND = "foreach SAM by hand"
PEERS = [
    ("sam", BY_HAND),
    ("sam", "pytorch_optimizer SAM"),
    ("asam", "pytorch_optimizer ASAM"),
    ("gsam", "pytorch_optimizer GSAM"),
    ("looksam", "pytorch_optimizer LookSAM"),
    ("wsam", "pytorch_optimizer WSAM"),
    ("fsam", "pytorch_optimizer FriendlySAM"),
]
"""pugdft's methods and the rows that do the same."""
NUM_WARMUP_ROUNDS = 2
NUM_MEMORY_STEPS = 11
"""Peaks are over this many steps from the first: pugdft takes its evidence at every tenth perturbed one."""

Step = Callable[[], Any]


class Clock:
    """Marks and the time between them; on CUDA the device's own, so that no mark waits for it."""

    def __init__(self, device: torch.device, of_processor: bool = False) -> None:
        self._is_cuda = device.type == "cuda"
        self._now = time.process_time if of_processor else time.perf_counter

    def mark(self) -> Any:
        if not self._is_cuda:
            return self._now()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self, spans: list[tuple[Any, Any]]) -> float:
        if not self._is_cuda:
            return sum(end - start for start, end in spans) * 1e3
        torch.cuda.synchronize()
        return sum(start.elapsed_time(end) for start, end in spans)


@dataclass
class FabricatedPass:
    """The closure: puts a gradient where there is none, adds to one that is there, and times itself.

    Clean and perturbed pass get different gradients: equal ones would make LookSAM's remembered part 0.
    """

    parameters: list[Tensor]
    gradients: tuple[list[Tensor], list[Tensor]]
    clock: Clock
    spans: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loss = torch.ones((), device=self.parameters[0].device)

    def __call__(self) -> Tensor:
        start = self.clock.mark()
        for parameter, gradient in zip(self.parameters, self.gradients[len(self.spans) % 2], strict=True):
            if parameter.grad is None:
                parameter.grad = gradient.clone()
            else:
                parameter.grad.add_(gradient)
        self.spans.append((start, self.clock.mark()))
        return self._loss

    def clear(self) -> None:
        """As the loop's ``zero_grad`` does; outside the time of a step."""
        for parameter in self.parameters:
            parameter.grad = None
        self.spans.clear()


@dataclass(frozen=True)
class Contender:
    """A row. ``build`` makes the step and the torch optimizer that holds the momentum, None without one."""

    label: str
    build: Callable[[nn.Module, FabricatedPass], tuple[Step, torch.optim.Optimizer | None]]
    steps_per_sample: int = 1

    def is_named(self, names: list[str] | None) -> bool:
        words = self.label.lower().replace(",", "").split()
        return names is None or self.label == REFERENCE or any(name.lower() in words for name in names)


def contenders() -> list[Contender]:
    """Every row: what the closure costs, torch's SGD, the peers that are installed, pugdft's methods."""
    rows = [
        Contender("closure, one pass", lambda model, closure: (closure, None)),
        Contender("closure, two passes added", lambda model, closure: (lambda: (closure(), closure()), None)),
        Contender(REFERENCE, _torch_sgd),
        Contender(BY_HAND, _sam_by_hand),
        *(_peers() if pytorch_optimizer else []),
        _ours("sgd", {"name": "sgd"}),
    ]
    for name in METHODS:
        rows.append(_ours(name, {"k": LOOK_EVERY} if name == "looksam" else {}))
    once_fired = {"trigger": {"name": "after", "fraction": 0}}
    return [
        *rows,
        _ours("pugd_t", once_fired, note="once fired"),
        _ours("pugd", {}, note="closure may clear", closure_accumulates=False),
        _ours("sam", {}, note="with evidence", with_evidence=True),
        _ours("pugd", {}, note="with evidence", with_evidence=True),
    ]


def _torch_sgd(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
    base = torch.optim.SGD(model.parameters(), **BASE, fused=True)
    return lambda: (closure(), base.step()), base


def _sam_by_hand(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
    """The least that SAM takes, without any check."""
    base = torch.optim.SGD(model.parameters(), **BASE, fused=True)
    parameters = closure.parameters
    weights = [torch.empty_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step() -> None:
        closure()
        gradients = [gradient for parameter in parameters if (gradient := parameter.grad) is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_copy_(weights, parameters)
        torch._foreach_add_(parameters, gradients, alpha=float(0.05 / (norm + 1e-12)))
        del gradients
        base.zero_grad()
        closure()
        torch._foreach_copy_(parameters, weights)
        base.step()

    return step, base


def _ours(
    name: str,
    options: dict[str, Any],
    *,
    note: str = "",
    closure_accumulates: bool = True,
    with_evidence: bool = False,
) -> Contender:
    def build(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
        spec = {"name": name, **BASE} if name == "sgd" else {"name": name, **options, "base": base_spec}
        optimizer = build_optimizer(spec, model, closure_accumulates=closure_accumulates)

        def step() -> None:
            if with_evidence:  # a new one measures at its first step
                optimizer.diagnostics = Diagnostics()
            optimizer.step(closure)

        return step, optimizer.base

    base_spec = {"name": "sgd", **BASE}
    label = f"pugdft {name}, {note}" if note else f"pugdft {name}"
    return Contender(label, build, LOOK_EVERY if name == "looksam" else 1)


def _peers() -> list[Contender]:
    """pytorch_optimizer's sharpness-aware wrappers, each over the same fused SGD."""
    fused = {**BASE, "fused": True}

    def pass_first(name: str, options: dict[str, Any], base: dict[str, Any]) -> Any:
        """Wrappers whose caller makes the first pass; ``step`` clears the gradients before the second."""

        def build(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
            peer = getattr(pytorch_optimizer, name)(model.parameters(), torch.optim.SGD, **options, **base)
            return lambda: (closure(), peer.step(closure)), peer.base_optimizer

        return build

    def weighted(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
        peer = pytorch_optimizer.WSAM(model, model.parameters(), torch.optim.SGD, **fused)
        return lambda: peer.step(closure), peer.base_optimizer

    def surrogate_gap(model: nn.Module, closure: FabricatedPass) -> tuple[Step, torch.optim.Optimizer]:
        base = torch.optim.SGD(model.parameters(), **fused)
        radius = SimpleNamespace(step=lambda: 0.05)
        peer = pytorch_optimizer.GSAM(model.parameters(), base, model, radius)

        def clearing() -> tuple[None, Tensor]:  # its step leaves that to the closure
            base.zero_grad()
            return None, closure()

        return lambda: peer.step(clearing), base

    rows = {
        "SAM": ("SAM", pass_first("SAM", {}, fused)),
        "SAM, base not fused": ("SAM", pass_first("SAM", {}, BASE)),
        "ASAM": ("SAM", pass_first("SAM", {"adaptive": True}, fused)),
        "GSAM": ("GSAM", surrogate_gap),
        "LookSAM": ("LookSAM", pass_first("LookSAM", {"k": LOOK_EVERY}, fused)),
        "WSAM": ("WSAM", weighted),
        "FriendlySAM": ("FriendlySAM", pass_first("FriendlySAM", {}, fused)),
    }
    return [
        Contender(f"pytorch_optimizer {label}", build, LOOK_EVERY if name == "LookSAM" else 1)
        for label, (name, build) in rows.items()
        if hasattr(pytorch_optimizer, name)
    ]


class LiveBytes(TorchDispatchMode):
    """Bytes of the storages that were made inside and still live, and their peak.

    A storage counts once, however many views and in-place results show it. What a kernel allocates and
    frees within itself is not seen.
    """

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def peak_bytes(contender: Contender, model: nn.Module, closure: FabricatedPass) -> int:
    """Most bytes beyond the weights during the steps, the set of gradients included."""
    device = closure.parameters[0].device
    closure.clear()
    gc.collect()

    def make_steps() -> None:
        step, _ = contender.build(model, closure)
        for _ in range(NUM_MEMORY_STEPS):
            step()
            closure.clear()

    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        make_steps()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes([*closure.parameters, *closure.gradients[0], *closure.gradients[1]]) as memory:
        make_steps()
    return memory.peak


def time_steps(
    rows: list[Contender], model: nn.Module, closure: FabricatedPass, num_rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """For each row and round, milliseconds a step outside and inside the closure."""
    # One momentum for all: thirty of deit_base do not fit into memory, and its values are of no concern.
    momentum = [torch.zeros_like(parameter) for parameter in closure.parameters]
    built = []
    for row in rows:
        step, base = row.build(model, closure)
        if base is not None:
            for parameter, buffer in zip(closure.parameters, momentum, strict=True):
                base.state[parameter]["momentum_buffer"] = buffer
        built.append((row, step))
    samples: dict[str, list[tuple[float, float]]] = {row.label: [] for row in rows}
    for number in range(-NUM_WARMUP_ROUNDS, num_rounds):
        first = number % len(built)
        order = built[first:] + built[:first]
        for row, step in order[:: 1 if number % 2 else -1]:  # so that nobody always follows the same one
            outside, inside = 0.0, 0.0
            for _ in range(row.steps_per_sample):
                closure.clear()
                start = closure.clock.mark()
                step()
                whole = closure.clock.milliseconds([(start, closure.clock.mark())])
                passes = closure.clock.milliseconds(closure.spans)
                outside, inside = outside + whole - passes, inside + passes
            if number >= 0:
                samples[row.label].append((outside / row.steps_per_sample, inside / row.steps_per_sample))
    closure.clear()
    return samples


def made(name: str) -> nn.Module:
    """One of timm's models, or as many vectors as the name says, with a norm for the methods that ask."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", name)):
        return timm.create_model(name, pretrained=False)
    number, size = map(int, found.groups())
    return nn.ModuleList([nn.ParameterList(map(torch.randn, [size] * (number - 2))), nn.LayerNorm(size)])


def measure(
    name: str, rows: list[Contender], device: torch.device, num_rounds: int, of_processor: bool = False
) -> dict[str, Any]:
    """All rows on one model's tensors."""
    torch.manual_seed(0)
    model = made(name).to(device)
    parameters: list[Tensor] = list(model.parameters())
    first, second = ([torch.randn_like(p).mul_(1e-3).detach() for p in parameters] for _ in range(2))
    closure = FabricatedPass(parameters, (first, second), Clock(device, of_processor))
    copy_bytes = sum(parameter.nbytes for parameter in parameters)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # bytes do not depend on it, and one thread waits for nobody
    copies = {row.label: peak_bytes(row, model, closure) / copy_bytes - 1 for row in rows}
    torch.set_num_threads(num_threads)
    gc.collect()
    samples = time_steps(rows, model, closure, num_rounds)
    reference = median(outside for outside, _ in samples[REFERENCE])
    results = []
    for row in rows:
        outside = median(sample[0] for sample in samples[row.label])
        results.append(
            {
                "optimizer": row.label,
                "milliseconds": outside,
                "ratio_to_sgd": outside / reference,
                "closure_milliseconds": median(sample[1] for sample in samples[row.label]),
                "extra_copies": copies[row.label],
                "samples": samples[row.label],
            }
        )
    num_weights = sum(parameter.numel() for parameter in parameters)
    return {"model": name, "parameters": num_weights, "tensors": len(parameters), "rounds": num_rounds,
            "results": results}  # fmt: skip


def machine_facts(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "timm": timm.__version__,
        "pugdft": version("pugdft"),
        "pytorch_optimizer": version("pytorch_optimizer") if pytorch_optimizer else None,
    }


def print_table(machine: dict[str, Any], measured: dict[str, Any]) -> None:
    """One model as Markdown."""
    print(
        f"\n**{measured['model']}**: {measured['parameters'] / 1e6:.1f} M weights in {measured['tensors']} "
        f"tensors, medians of {measured['rounds']} interleaved rounds; {machine['device']}, "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"load {machine['load']:.1f} at the start; torch {machine['torch']}, pugdft {machine['pugdft']}.\n\n"
        "| optimizer | alone, ms | times SGD | closure, ms | peak extra copies |\n|---|--:|--:|--:|--:|"
    )
    for row in measured["results"]:
        print(
            f"| {row['optimizer']} | {row['milliseconds']:.2f} | {row['ratio_to_sgd']:.2f} "
            f"| {row['closure_milliseconds']:.2f} | {row['extra_copies']:.2f} |"
        )


def print_peers(measured: dict[str, Any]) -> None:
    """Each method divided by its peer of the same run."""
    found = {row["optimizer"]: row for row in measured["results"]}
    print("\n| method | its peer | time, ours / peer's | peak, ours / peer's |\n|---|---|--:|--:|")
    for method, peer in PEERS:
        if peer in found and (ours := found.get(f"pugdft {method}")):
            times = ours["milliseconds"] / found[peer]["milliseconds"]
            peaks = (ours["extra_copies"] + 1) / (found[peer]["extra_copies"] + 1)
            print(f"| {method} | {peer} | {times:.2f} | {peaks:.2f} |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--models", nargs="+", default=list(ROUNDS), help="timm's names, or such as 400x8")
    parser.add_argument("--methods", nargs="+", help="rows to keep, such as: sam pugd closure")
    parser.add_argument("--rounds", type=int, help="default: 30 for resnet18, 8 for larger models")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--processor-time", action="store_true", help="of all threads, beside other programs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also every sample, as JSON")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds must be at least 1, not {options.rounds}")
    every = contenders()
    for name in options.methods or []:
        if not any(row.is_named([name]) for row in every if row.label != REFERENCE):
            parser.error(f'--methods: no row has "{name}" in it. Rows: {"; ".join(r.label for r in every)}')
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    machine = machine_facts(device)
    base = ", ".join(f"{key} {value:g}" for key, value in BASE.items())
    print(
        f"Base of all: SGD, fused where not said otherwise, {base}. Time of a step without its closure, "
        f"whose own time stands beside it. Memory beyond weights and one set of gradients, in copies of "
        f"the weights. LookSAM: mean over its cycle of {LOOK_EVERY} steps. pugdft takes evidence at every "
        "tenth perturbed step; medians do not show it, so it has rows of its own."
    )
    if pytorch_optimizer is None:
        print("pytorch_optimizer is not installed: its rows are left out.")
    rows = [row for row in every if row.is_named(options.methods)]
    measured = []
    for name in options.models:
        num_rounds = options.rounds or ROUNDS.get(name, 8)
        measured.append(measure(name, rows, device, num_rounds, options.processor_time))
        print_table(machine, measured[-1])
        print_peers(measured[-1])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "base": BASE, "models": measured}, indent=1))


if __name__ == "__main__":
    main()
