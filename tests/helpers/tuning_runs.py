"""Searches that run nothing: a run's record is made from a known response to the options."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pugdft.bench.cell import BenchCell
from pugdft.paths import write_atomically
from pugdft.records import Cost, Metrics, RunRecord, SplitMetrics, read_record, write_record
from pugdft.tuning.search import TuneRequest, tune
from pugdft.tuning.trials import Tuned

Response = Callable[[Mapping[str, Any], int], tuple[float, float] | str]
"""Of an optimizer's mapping and a seed: top-1 and loss on the held-out images, or how the run ends badly."""


SMALL_GREEDY = """\
search: greedy
stages: [{option: base.lr, times: [0.5, 1, 2], with: base}, {option: rho, times: [1, 2]}]"""


def log_distance(value: float, best: float) -> float:
    return math.log10(value / best) ** 2


def response(spec: Mapping[str, Any], seed: int = 0) -> tuple[float, float]:
    """Best at lr .025 (pugd: .1), rho .1 (pugd: .4), alpha .3."""
    base = spec.get("base", spec)
    best_lr, best_rho = (0.1, 0.4) if spec["name"] == "pugd" else (0.025, 0.1)
    worse = 0.1 * log_distance(base["lr"], best_lr)
    worse += 0.05 * log_distance(spec.get("rho", best_rho), best_rho)
    worse += 0.2 * (spec.get("alpha", 0.3) - 0.3) ** 2
    return 0.9 - worse, 0.5 + worse


class Runs:
    """Stands in for the processes of runs: makes records, and counts what was started."""

    def __init__(self) -> None:
        self.started: list[BenchCell] = []
        self.response: Response = response
        self.exit_codes: dict[int, int] = {}  # of the n-th run that is started, which then leaves no record
        self.seconds = 0.0

    def run(self, cell: BenchCell, *others: Any) -> int:
        number = len(self.started)
        self.started.append(cell)
        time.sleep(self.seconds)
        if number in self.exit_codes:
            return self.exit_codes[number]
        assert cell.recipe.train.evaluate == "validation"
        result = self.response(cell.recipe.optimizer, cell.seed)
        passes = 10.0 * cell.passes_per_update
        record = RunRecord(
            id=cell.folder.name, status="completed", recipe=cell.recipe.as_dict(), seed=cell.seed
        )
        record.cost = Cost(gradient_passes=passes)
        if isinstance(result, str):
            record.status = result  # type: ignore[assignment]
        else:
            top1, loss = result
            split = SplitMetrics(top1=top1, top5=1.0, loss=loss, ece=0.0)
            record.metrics = Metrics(validation=split)
        cell.folder.mkdir(parents=True, exist_ok=True)
        write_record(record, cell.folder)
        return 0 if record.status == "completed" else 1


class Search:
    """One recipe, one output folder, and what was said."""

    def __init__(self, recipe: Path) -> None:
        self.recipe, self.output = recipe, recipe.parent / "tuned"
        self.lines: list[str] = []

    def __call__(self, optimizers: str, search: str = "greedy", **options: Any) -> list[Tuned]:
        overrides = options.pop("overrides", ())
        if "\n" in search:
            path = self.recipe.parent / "mine.yaml"
            write_atomically(path, search.encode())  # commands side by side never read half of it
            search = str(path)
        options = {"output": self.output, **options}
        request = TuneRequest(str(self.recipe), overrides, optimizers, search, **options)
        tuned, self.bench = tune(request, self.lines.append)
        return tuned

    @property
    def records(self) -> list[RunRecord]:
        return [read_record(path) for path in self.output.glob("trials/*/record.yaml")]


def general(trials: int, space: str = "base.lr: {times: {low: 0.1, high: 10, log: true}}") -> str:
    return f"search: general\ntrials: {trials}\nspace:\n  {space}\n  rho: {{low: 0.01, high: 1, log: true}}"


def outputs_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.yaml")}
