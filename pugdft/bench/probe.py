"""A few updates and one evaluation batch of a cell, to say what the whole of it will cost.

``python -m pugdft.bench.probe RECIPE`` prints the facts as JSON: a process of its own, like the cell's, so
that its start-up is measured too and nothing of it stays behind.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pugdft import yaml_text
from pugdft.errors import UserError
from pugdft.recipe import Recipe

_WARM_UP, _TIMED, _EVAL_IMAGES = 2, 3, 200


@dataclass(frozen=True)
class Probe:
    """What a cell takes on this machine.

    Attributes:
        start_seconds: from the start of the process to the first update, data and weights included.
        seconds_per_pass: of one gradient pass over a batch, with its share of the optimizer.
        evaluation_seconds: of all evaluated splits once.
        steps_per_epoch: updates.
        weights_bytes, optimizer_bytes: of the model and of the optimizer's state.
        test_images: in all evaluated splits.
    """

    start_seconds: float
    seconds_per_pass: float
    evaluation_seconds: float
    steps_per_epoch: int
    weights_bytes: int
    optimizer_bytes: int
    test_images: int


def probe(recipe: Recipe) -> Probe:
    """Probe a recipe in a process of its own.

    Raises:
        UserError: the recipe cannot run here; the message is the run's.
    """
    with tempfile.TemporaryDirectory(prefix="pugdft-probe-") as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(yaml_text.dump(recipe.as_dict()), encoding="utf-8")
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pugdft.bench.probe", str(path)], capture_output=True, text=True
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(
            f"the probe of {recipe.model.name} with {recipe.optimizer['name']} failed: {lines[-1]}"
        )
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    measured = facts.pop("measured_seconds")
    return replace(Probe(**facts), start_seconds=time.perf_counter() - begin - measured)


def _measure(recipe: Recipe) -> dict[str, Any]:
    import torch

    from pugdft.accelerator import make_accelerator
    from pugdft.data.batches import EvaluationBatches
    from pugdft.freezing import training_mode
    from pugdft.loop import Position, Totals, Trainer, evaluate, new_totals, train_epoch
    from pugdft.parts import assemble, load
    from pugdft.performance import rounding_of

    accelerator = make_accelerator(recipe)
    parts = assemble(recipe, accelerator, *load(recipe))
    moments: list[tuple[float, float]] = []
    begin = time.perf_counter()

    def note(position: Position, totals: Totals) -> bool:
        totals.means()  # waits for the device
        moments.append((time.perf_counter(), position.gradient_passes))
        return len(moments) == _WARM_UP + _TIMED

    trainer = Trainer(
        model=parts.model,
        optimizer=parts.optimizer,
        batches=parts.training,
        accelerator=accelerator,
        total=10**9,
        counts_passes=False,
        label_smoothing=recipe.train.label_smoothing,
        lr_factor=lambda step: 1.0,
        set_training_mode=lambda: training_mode(
            parts.backbone.model, recipe.train.freeze == "backbone", recipe.train.batch_norm == "fixed"
        ),
        after_step=note,
        ascent=parts.ascent,
    )
    with rounding_of(parts.switches, parts.device.type):
        train_epoch(trainer, Position(), new_totals(parts.device))
    start = moments[min(_WARM_UP, len(moments) - 1) - 1] if len(moments) > 1 else (begin, 0)
    passes = moments[-1][1] - start[1]
    images = {name: len(each.images) for name, each in parts.evaluations.items()}
    first = next(iter(parts.evaluations.values()))
    few = replace(first.images, indices=first.images.indices[:_EVAL_IMAGES])
    part = EvaluationBatches(few, first.to_input, first.device, first.share, first.batch_size)
    before = time.perf_counter()
    evaluate(parts.evaluation_model, part, accelerator)
    per_image = (time.perf_counter() - before) / len(few)
    tensors = [
        each for state in parts.optimizer.state.values() for each in state.values() if torch.is_tensor(each)
    ]
    return {
        "start_seconds": 0.0,
        "seconds_per_pass": (moments[-1][0] - start[0]) / max(1, passes),
        "evaluation_seconds": per_image * sum(images.values()),
        "steps_per_epoch": parts.training.steps_per_epoch,
        "weights_bytes": _bytes(parts.backbone.model.state_dict().values()),
        "optimizer_bytes": _bytes(tensors),
        "test_images": sum(images.values()),
        "measured_seconds": time.perf_counter() - begin,
    }


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _main() -> None:
    from pugdft.finetune import read_recipe

    try:
        facts = _measure(read_recipe(sys.argv[1]))
    except UserError as error:
        sys.exit(" ".join(str(error).split()))
    print(json.dumps(facts))


if __name__ == "__main__":
    _main()
