"""Profiles of a run: seconds of its parts, and a trace of a few updates for Perfetto or Chrome."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

TRACE_NAME = "profile/trace.json.gz"
PARTS = ("input", "passes", "optimizer", "evaluation", "checkpoint", "trace")
T = TypeVar("T")

# Updates that the trace leaves out, then those that only warm the profiler up, then those in the trace.
_WAIT, _WARM_UP, _ACTIVE = 2, 1, 3


class Profile:
    """Seconds of each part of a run, and a trace in its folder; without a folder, nothing is measured.

    Spans are nested, and time belongs to the innermost one: the optimizer's share does not contain the
    passes that it asks for. On a GPU each begin and end waits for the device, which costs speed.
    """

    def __init__(self, folder: Path | None = None, device: torch.device | None = None) -> None:
        self.is_on, self.trace = folder is not None, (folder or Path()) / TRACE_NAME
        self.seconds: dict[str, float] = defaultdict(float)
        self._gpu = device if device is not None and device.type == "cuda" else None
        self._open: list[str] = []
        self._since = self._whole = 0.0
        self._profiler: torch.profiler.profile | None = None

    @contextmanager
    def span(self, part: str) -> Iterator[None]:
        """Around work that belongs to a part of the run."""
        if not self.is_on:
            yield
            return
        with self._counted(part), torch.profiler.record_function(f"pugdft.{part}"):
            yield

    @contextmanager
    def _counted(self, part: str) -> Iterator[None]:
        """Around work that belongs to a part, without a name in the trace."""
        self._count_open()
        self._open.append(part)
        yield
        self._count_open()
        self._open.pop()

    def _count_open(self) -> None:
        """Add the time since the last call to the innermost open part."""
        if self._gpu is not None:
            torch.cuda.synchronize(self._gpu)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def each(self, part: str, items: Iterator[T]) -> Iterator[T]:
        """Iterate over ``items``; making each of them is work of a part."""
        while True:
            with self.span(part):
                item = next(items, None)
            if item is None:
                return
            yield item

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the whole training."""
        if not self.is_on:
            yield
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it warns of missing GPUs
        kinds = torch.profiler.ProfilerActivity
        self._profiler = torch.profiler.profile(
            activities=[kinds.CPU] if self._gpu is None else [kinds.CPU, kinds.CUDA],
            schedule=torch.profiler.schedule(wait=_WAIT, warmup=_WARM_UP, active=_ACTIVE, repeat=1),
            on_trace_ready=self._write,
            acc_events=True,
        )
        self._open.clear()  # an error, such as of memory, may have ended an earlier training inside a span
        began = time.perf_counter()
        try:
            with self._counted("trace"):
                self._profiler.start()
            yield
        finally:
            self._stop()
            self._whole += time.perf_counter() - began

    def after_step(self) -> None:
        """Called after an update."""
        if self._profiler is not None:
            with self._counted("trace"):
                self._profiler.step()
            if self._profiler.step_num >= _WAIT + _WARM_UP + _ACTIVE:
                self._stop()

    def _stop(self) -> None:
        """End the trace; from now on the profiler costs nothing."""
        if self._profiler is not None:
            with self._counted("trace"):
                self._profiler.stop()
            self._profiler = None

    def table(self) -> str:
        """Format the seconds of each part for people."""
        rows = [(part, self.seconds[part]) for part in PARTS]
        rows.append(("else", max(0.0, self._whole - sum(seconds for _, seconds in rows))))
        whole = max(self._whole, 1e-9)
        where = f"trace: {self.trace} (ui.perfetto.dev or chrome://tracing)"
        short = f"trace: no trace: the run had fewer than {_WAIT + _WARM_UP + 1} updates"
        lines = [f"{part:<12}{seconds:>10.2f}{seconds / whole:>8.1%}" for part, seconds in rows]
        heading = f"{'part':<12}{'seconds':>10}{'share':>8}"
        return "\n".join([heading, *lines, where if self.trace.is_file() else short])

    def _write(self, profiler: Any) -> None:
        self.trace.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(self.trace))
