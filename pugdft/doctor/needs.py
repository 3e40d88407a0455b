"""``python -m pugdft.doctor.needs JSON``: what a recipe would need, and whether it is here; run apart.

Nothing is trained, fetched or decoded. The digest of a folder's images is taken and remembered, as by a run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pugdft.doctor.apart import Facts, run_apart, say
from pugdft.doctor.devices import memory_bytes
from pugdft.doctor.report import Line, Section, failed, size
from pugdft.errors import UserError, counted

if TYPE_CHECKING:
    from pugdft.config.schema import Recipe
    from pugdft.doctor.memory import Memory

_SECONDS = 300.0
# What a process takes before its first update: on a CPU with all that is imported, on a GPU its context.
_PROCESS_BYTES = {"cpu": 0.85 * 2**30}
_PROCESS_BYTES_ELSEWHERE = 0.5 * 2**30


def recipe_section(recipe: str, overrides: list[str], output: Path | None) -> Section:
    """What a process of its own finds out about a recipe.

    Raises:
        UserError: the recipe is not valid.
    """
    given = {"recipe": recipe, "overrides": overrides, "output": None if output is None else str(output)}
    facts = run_apart("pugdft.doctor.needs", [json.dumps(given)], _SECONDS)
    if (mistake := facts.get("mistake")) is not None:
        raise UserError(mistake)
    return Section(f"Recipe {recipe}", tuple(_lines(facts)))


def _lines(facts: Facts) -> Iterator[Line]:
    for each in facts.said:
        if "line" in each:
            yield Line(**each["line"])
    if facts.ending:
        doing = facts.get("doing") or "start"
        remedy = "see what is wrong with the software above"
        yield Line("problem", str(doing), f"the process that looked at it {facts.ending}", remedy)


def device_lines(recipe: Recipe, device: str) -> Iterator[Line]:
    """Where it would train, and whether the recipe's precision and switches are for that."""
    import torch

    from pugdft.training.performance import pick

    precision = recipe.train.precision
    name = torch.cuda.get_device_name() if device == "cuda" else device.upper()
    try:
        pick(recipe, device)
    except UserError as error:
        yield Line("problem", "precision", " ".join(str(error).split()), "change that switch")
        return
    text = f"{precision} on {name}"
    if precision == "fp16" and device == "cpu":
        yield Line(
            "problem",
            "precision",
            "fp16 needs a GPU, and there is none",
            "set train.precision to bf16 or fp32",
        )
    elif precision == "bf16" and device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        yield Line("note", "precision", f"{text} is emulated", "set train.precision to fp16 or fp32")
    elif precision == "bf16" and device == "cpu" and not _cpu_has_bf16():
        yield Line("note", "precision", f"{text} is emulated", "train.precision=fp32 may be faster")
    else:
        yield Line("ok", "precision", text)


def memory_lines(memory: Memory, recipe: Recipe, device: str, retains: bool) -> Iterator[Line]:
    """What the model and an update take, compared with what is free.

    Args:
        memory: as counted.
        recipe: resolved.
        device: its type.
        retains: whether memory that a step frees is kept for the next, which takes up to a half more.
    """
    import torch

    images = recipe.train.micro_batch_size or recipe.train.batch_size
    process = _PROCESS_BYTES.get(device, _PROCESS_BYTES_ELSEWHERE)
    total = memory.total_bytes + process
    most = total + (memory.activation_bytes / 2 if retains else 0)
    parts = (
        f"{memory.parameters / 1e6:.1f} M weights {size(memory.weights_bytes)}",
        f"gradients and {recipe.optimizer['name']} {size(memory.copies * memory.trained_bytes)}",
        f"activations of {counted(images, 'image')} {size(memory.activation_bytes)}",
        f"the process {size(process)}",
    )
    about = (
        f"about {size(total)}, up to {size(most)} as freed memory is kept"
        if retains
        else f"about {size(total)}"
    )
    text = f"{about}: {', '.join(parts)}"
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else memory_bytes()[1]
    if free is None or most <= 0.9 * free:
        yield Line("ok", "memory", text)
    elif total - memory.activation_bytes > free:
        yield Line(
            "problem", "memory", f"{text}; {size(free)} are free", "take a smaller model, or another device"
        )
    else:
        remedy = f"train.micro_batch_size={max(1, images // 2)} or fewer, or end what else uses memory"
        yield Line("note", "memory", f"{text}; {size(free)} are free", remedy)


def _cpu_has_bf16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True  # nobody can tell
    return any(flag in text for flag in ("avx512_bf16", "amx_bf16", " bf16"))


def _main() -> None:
    given = json.loads(sys.argv[1])
    say(doing="recipe")
    from pugdft.training.run import read_recipe

    try:
        recipe = read_recipe(given["recipe"], given["overrides"])
    except UserError as error:
        say(mistake=str(error))
        return
    found: dict[str, Any] = {"classes": 1000, "device": "cpu", "memory": None}
    for look in (_data, _precision, _memory, _weights, _output):
        name = look.__name__.lstrip("_")
        say(doing=name)
        try:  # an import that fails in one part leaves the others
            for line in look(recipe, found, given):
                say(line=asdict(line))
        except Exception as error:
            say(line=asdict(failed(name, error)))


def _data(recipe: Recipe, found: dict[str, Any], given: dict[str, Any]) -> Iterator[Line]:
    from pugdft.doctor.data_needs import DataNeeds

    data = DataNeeds(recipe)
    yield from data.lines()
    found["classes"] = data.num_classes or found["classes"]


def _precision(recipe: Recipe, found: dict[str, Any], given: dict[str, Any]) -> Iterator[Line]:
    import torch

    kinds = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}
    found["device"] = next((name for name, kind in kinds.items() if kind.is_available()), "cpu")
    yield from device_lines(recipe, found["device"])


def _memory(recipe: Recipe, found: dict[str, Any], given: dict[str, Any]) -> Iterator[Line]:
    from pugdft.doctor.memory import memory_of
    from pugdft.training.performance import pick

    switches = pick(recipe, found["device"])
    found["memory"] = memory_of(recipe, found["classes"], switches)
    yield from memory_lines(found["memory"], recipe, found["device"], switches.retain_memory)


def _weights(recipe: Recipe, found: dict[str, Any], given: dict[str, Any]) -> Iterator[Line]:
    from pugdft.doctor.weight_needs import weight_lines

    yield from weight_lines(recipe, found["memory"].names if found["memory"] else None)


def _output(recipe: Recipe, found: dict[str, Any], given: dict[str, Any]) -> Iterator[Line]:
    from pugdft.doctor.output_needs import output_lines
    from pugdft.training.run import run_id

    folder = Path(given["output"] or Path("runs") / run_id(recipe))
    yield from output_lines(recipe, folder, found["memory"].checkpoint_bytes if found["memory"] else None)


if __name__ == "__main__":
    _main()
