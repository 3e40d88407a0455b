"""What ``pugdft bench`` does with workers: start them, be one, ask how they stand, ask them to end."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pugdft.bench.cell import BenchCell
from pugdft.bench.plan import Plans, write_plan
from pugdft.bench.queue import Agreement, CellNames, Queue, server_time
from pugdft.bench.status import last_line, standing
from pugdft.bench.worker import (
    LEAST_SECONDS,
    LOGS,
    Options,
    Watcher,
    Worker,
    forget_stop,
    is_stop_requested,
    ledger_of,
    request_stop,
)
from pugdft.cli.launch import end_with_the_launcher
from pugdft.cli.output import duration, say
from pugdft.errors import UserError, counted, printable
from pugdft.training.launchers import UNTIL, end_of_time

if TYPE_CHECKING:  # they import torch, which a worker and --status do not need
    from pugdft.bench.executors import Executor, Wanted

_WATCH_SECONDS = 2.0
_MOST_LAST_WORDS = 5
_IDLE_SECONDS = 600.0  # a worker of a cluster costs also while it only waits for the last cells of others


def run(cells: Sequence[BenchCell], runs: Path, wanted: Wanted, watcher: Watcher, retry: bool) -> int:
    """Plan the cells, start what runs them, and watch until they are done; returns the exit code so far."""
    from pugdft.bench.executors import make_executor
    from pugdft.bench.executors.local import visible_gpus

    engine = make_executor(wanted, runs)
    engine.check()
    is_alone = wanted.is_this_process
    workers = 1 if is_alone and len(visible_gpus()) < 2 else wanted.workers
    if workers is None:
        workers, is_alone = max(1, len(visible_gpus())), False
    lease = wanted.lease or (60.0 if wanted.engine != "local" else None)
    ledger = ledger_of(runs, lease)
    named = {cell.folder.name: cell for cell in cells}
    ledger.reopen(named, retry)
    write_plan(runs, cells)
    forget_stop(runs)
    queue = Queue(CellNames(named), ledger)
    if is_alone:
        return Worker(queue, ledger, named, watcher, Options(retry=retry, warm=wanted.warm)).work()
    begin = server_time(ledger.folder)
    if workers:
        engine.start(workers, wanted.command(runs, retry), runs / LOGS)
    if wanted.detach:
        say(f"{counted(workers, 'worker')} started; `pugdft bench --status {runs}` tells how they stand")
        return 0
    try:
        if not _watch(queue, named, watcher, engine, waits=workers == 0):
            _say_last_words(runs / LOGS, begin)
        return 0
    except KeyboardInterrupt:
        if not engine.goes_on:
            engine.stop()
            raise
        words = f"the workers go on; `pugdft bench --status {runs}` tells how they stand, --stop ends them"
        say(words)
        return 130


def _watch(
    queue: Queue, cells: dict[str, BenchCell], watcher: Watcher, engine: Executor, waits: bool
) -> bool:
    """Tell what workers settle until nothing is open, or, which returns False, no worker is left."""
    seen: set[str] = set()
    while True:
        alive = engine.alive()
        queue.look_soon()
        queue.look()
        for name, status in queue.news().items():
            watcher.on_state(cells[name], status)
        for name in queue.held & cells.keys() - seen:
            seen.add(name)
            watcher.on_state(cells[name], "elsewhere")
        if not queue.has_open():
            return True
        if alive == 0 and not waits:
            return False
        time.sleep(_WATCH_SECONDS)


def _say_last_words(logs: Path, begin: float) -> None:
    """What the workers of this command, all of which have ended, have said last."""
    said: dict[str, list[str]] = {}
    for log in sorted([*logs.glob("worker-*.log"), *logs.glob("slurm/*.err")]):
        if log.stat().st_mtime >= begin and (line := last_line(log)):
            said.setdefault(line, []).append(log.name)
    say(f"no worker is left; their logs are in {logs}")
    for line, names in list(said.items())[:_MOST_LAST_WORDS]:
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        say(f"{names[0]}{others}: {line}")


def join(runs: Path, side_by_side: int, is_warm: bool, retry: bool = False) -> int:
    """Be a worker, or one for each GPU; returns 0, 4 if cells are left undone, 2, 130 or 143."""
    end_with_the_launcher()
    until = end_of_time()
    plans = Plans(runs)
    plans.require()
    count = side_by_side * _num_gpus()
    if count > 1:
        return _join_several(runs, count, side_by_side, is_warm, retry)
    agreement = Agreement.read(runs)
    ledger = ledger_of(runs, agreement.lease_seconds if agreement and agreement.kind == "lease" else None)
    ledger.forget_deleted()
    cells, refused = plans.new_cells(ledger.settled())
    if refused and not cells:
        raise UserError(refused[0])

    def news() -> dict[str, BenchCell]:
        new, others = plans.new_cells(queue.settled)
        for problem in others:
            say(problem)
        return new

    for problem in refused:
        say(problem)
    queue = Queue(CellNames(cells), ledger)
    options = Options(retry=retry, warm=is_warm, logs=True, until=until, idle_seconds=_IDLE_SECONDS)
    code = Worker(queue, ledger, cells, _Lines(), options, news).work()
    if code == 143 and is_stop_requested(runs):
        say("`pugdft bench --stop` was said here; the same bench command lets workers begin again")
    elif code == 143 and time.time() > until - LEAST_SECONDS:
        say(f"too little of this worker's time is left for one more cell ({UNTIL}={until:.0f})")
    if code == 0 and queue.has_open():
        say(f"no cell was free for {duration(_IDLE_SECONDS)}: the last ones are with other workers")
        return 0
    ended = ledger.settled()
    return code or (4 if any(ended.get(name) != "completed" for name in cells) else 0)


def _num_gpus() -> int:
    """The GPUs that a worker's cells are to be spread over; at least 1. One GPU is told without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if "," not in given if given is not None else not Path("/dev/nvidia1").exists():
        return 1
    from pugdft.bench.executors.local import visible_gpus

    return max(1, len(visible_gpus()))


def _join_several(runs: Path, count: int, side_by_side: int, is_warm: bool, retry: bool) -> int:
    from pugdft.bench.executors import Wanted
    from pugdft.bench.executors.local import LocalExecutor

    wanted = Wanted("local", count, 1, is_warm, None, {})
    engine = LocalExecutor(shared_with=side_by_side)
    received: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        received.append(number)
        engine.terminate()

    signal.signal(signal.SIGTERM, on_signal)
    engine.start(count, wanted.command(runs, retry), runs / LOGS)
    codes = engine.wait()
    return 128 + received[0] if received else max(codes)


class _Lines(Watcher):
    """A line for every change, for a worker's log, and the last words of a cell that has not ended well."""

    follows_others = False

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=5)

    def on_state(self, cell: BenchCell, state: str) -> None:
        lines = [f"{time.strftime('%H:%M:%S')} {cell.folder.name}: {state}"]
        if state in ("stopped", "failed", "missing"):
            lines += self._last
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._last.clear()

    def on_line(self, cell: BenchCell, line: str) -> None:
        self._last.append(line)


def show(runs: Path, form: str) -> int:
    """Tell how a bench stands."""
    found = standing(runs)
    if form == "json":
        print(json.dumps(dataclasses.asdict(found)))
        return 0 if found.is_complete else 4
    parts = [f"{number:,} {status}" for status, number in found.counts.items() if number]
    print(f"{counted(found.total, 'cell')}: {', '.join(parts)}")
    if found.counts["waiting"] and not found.running and (runs / LOGS).is_dir():
        print(f"no worker is at a cell now; what workers have said is in {runs / LOGS}")
    if found.per_hour is not None and not found.is_complete:
        print(f"{found.per_hour:.3g} cells an hour; about {duration(found.seconds_left or 0)} left")
    for each in found.running:
        silent = ""
        if each.silent_seconds is not None:
            silent = f", last sign of life {duration(each.silent_seconds)} ago"
        attempt = f", attempt {each.attempt}" if each.attempt > 1 else ""
        where = f"{each.host} process {each.pid}, since {each.since}"
        print("  " + printable(f"{each.cell.optimizer} seed {each.cell.seed} on {where}{attempt}{silent}"))
    for lost in found.unfinished:
        attempts = f" in {counted(lost.attempts, 'attempt')}" if lost.attempts > 1 else ""
        line = f": {lost.last_line}" if lost.last_line else ""
        what = f"{lost.cell.optimizer} seed {lost.cell.seed}: {lost.status}{attempts} ({lost.cell.name})"
        print("  " + printable(f"{what}{line}"))
    return 0 if found.is_complete else 4


def stop(runs: Path) -> int:
    """Ask all workers to save and to end."""
    Plans(runs).require()
    request_stop(runs)
    say("asked: workers save and end within seconds; the same bench command goes on")
    return 0
