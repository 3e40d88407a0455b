"""How a bench scales: a simulated cluster of many workers, and what a claim, a plan and --status cost.

    python benchmarks/scale.py
    python benchmarks/scale.py simulate --cells 100000 --workers 1000 --hours 12

``simulate`` runs the queue of the product (``pugdft.bench.queue.Queue``) in a discrete-event simulation: the
clock, the folder and the cells are made up, the decisions are the product's. Workers die and are replaced,
are cut off for longer than a lease and come back, and their clocks are wrong. "Tries" are attempts to take a
cell, "lost" are cells without a result at the end, "twice" are cells with two accepted results, and "ideal"
is all work divided by the workers. ``claims`` takes and settles real cells from 1, 4 and 16 processes.
``plan`` and ``status`` are the commands' own work, in processes of their own, with their peak memory.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pugdft.bench.queue import MOST_ATTEMPTS, CellNames, FolderLedger, Kind, Queue

PARTS = ("simulate", "claims", "plan", "status")
_RPC = 0.002  # seconds of a small operation on a file server
_NAME = 5e-7  # seconds a name of a listing
_IDLE = 10.0  # seconds until a worker without work looks again; more often it would learn nothing


# --- a simulated cluster ---------------------------------------------------------------------------------


class Listing(dict[str, str]):
    """What was settled at a moment: a view of all that was ever settled, at the cost of one number."""

    def __init__(self, settled_at: dict[str, float], now: float) -> None:
        self._settled_at, self._now = settled_at, now

    def __contains__(self, name: object) -> bool:
        return self._settled_at.get(name, math.inf) <= self._now  # type: ignore[call-overload]


@dataclass
class Lease:
    """Of one attempt at a cell."""

    owner: Worker
    begun: float
    number: int
    place: float  # seconds of its cell that a checkpoint had kept


class Folder:
    """The ledger of a simulated folder; times are those of the simulation."""

    def __init__(self, lease_seconds: float) -> None:
        self.lease_seconds = lease_seconds
        self.now = 0.0
        self.cost = 0.0  # seconds that the last operations took
        self.settled_at: dict[str, float] = {}
        self.leases: dict[str, Lease] = {}
        self.tokens: dict[str, int] = {}  # of the last attempt at each cell
        self.attempts: dict[str, int] = {}
        self.operations = 0

    def settled(self) -> Listing:
        self._spend(_RPC + _NAME * len(self.settled_at))
        return Listing(self.settled_at, self.now)

    def held(self) -> set[str]:
        self._spend(_RPC + _NAME * len(self.leases))
        return set(self.leases)

    def stamp(self, name: str) -> object:
        self._spend(_RPC)
        lease = self.leases.get(name)
        return lease and (lease.number, lease.owner.last_beat(lease, self.now))

    def _spend(self, seconds: float) -> None:
        self.operations += 1
        self.cost += seconds


class Worker:
    """A simulated worker, with a monotonic clock of its own that is wrong by a constant and a rate."""

    def __init__(self, folder: Folder, names: CellNames, draws: random.Random) -> None:
        self.folder = folder
        self._offset, self._rate = draws.uniform(-3600, 3600), draws.uniform(0.999, 1.001)
        self.queue = Queue(names, folder, self.clock, random.Random(draws.getrandbits(60)))
        self.silent_since = math.inf  # dead, or cut off
        self.silent_until = math.inf
        self.name: str | None = None  # of its cell
        self.lease: Lease | None = None

    def clock(self) -> float:
        return self._offset + self._rate * (self.folder.now + self.folder.cost)

    def last_beat(self, lease: Lease, now: float) -> float:
        """When it last touched its lease: every third of the lease's seconds, but while it is silent."""
        beat = self.folder.lease_seconds / 3
        end = now if now >= self.silent_until else min(now, self.silent_since)
        return lease.begun + beat * math.floor(max(0.0, end - lease.begun) / beat)


@dataclass
class Outcome:
    """Of a simulation."""

    cells: int
    workers: int
    tries: int = 0
    twice: int = 0
    superseded: int = 0  # results that the fence refused
    deaths: int = 0
    cuts: int = 0  # from the folder, for longer than a lease
    rescued: int = 0  # cells that were taken from dead or stalled owners
    given_up: int = 0
    lost: int = 0
    makespan: float = 0.0
    work: float = 0.0  # seconds, of one attempt at each cell
    operations: int = 0

    @property
    def ideal(self) -> float:
        return self.work / self.workers


class Simulation:
    """Workers on a queue, event by event.

    Args:
        minutes: mean of a cell; its logarithm has the standard deviation ``sigma``.
        death_hours: mean time between deaths of one worker; another one takes its place after a minute.
        stall_hours: mean time until a worker is cut off from the folder, for two to ten leases.
        saves: seconds between checkpoints, from which a cell goes on.
    """

    def __init__(
        self, cells: int, workers: int, *, minutes: float, sigma: float, death_hours: float,
        stall_hours: float, lease_seconds: float, saves: float, seed: int,
    ) -> None:  # fmt: skip
        self._draws = random.Random(seed)
        self.folder = Folder(lease_seconds)
        self._names = CellNames(f"cell-{number:06d}" for number in range(cells))
        self._lengths = {
            name: 60 * minutes * math.exp(self._draws.gauss(-(sigma**2) / 2, sigma))
            for name in self._names.order
        }
        self._done = dict.fromkeys(self._names.order, 0.0)  # seconds of a cell that a checkpoint keeps
        self._placed: dict[str, float] = {}  # the checkpoint at which the last attempts began
        self._saves, self._death, self._stall = saves, 3600 * death_hours, 3600 * stall_hours
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.outcome = Outcome(cells, workers, work=sum(self._lengths.values()))
        for _ in range(workers):
            self._at(self._draws.uniform(0, 60), self._new_worker)

    def run(self) -> Outcome:
        folder, outcome = self.folder, self.outcome
        while self._events and len(folder.settled_at) < outcome.cells:
            folder.now, _, work = heapq.heappop(self._events)
            folder.cost = 0.0
            work()
        outcome.lost = outcome.cells - len(folder.settled_at)
        outcome.makespan, outcome.operations = folder.now, folder.operations
        return outcome

    def _at(self, seconds: float, work: Callable[[], None]) -> None:
        """Do something so many seconds from now."""
        self._count += 1
        heapq.heappush(self._events, (self.folder.now + seconds, self._count, work))

    def _new_worker(self) -> None:
        worker = Worker(self.folder, self._names, self._draws)
        self._at(self._draws.expovariate(1 / self._death), partial(self._die, worker))
        self._at(self._draws.expovariate(1 / self._stall), partial(self._cut_off, worker))
        self._next(worker)

    def _next(self, worker: Worker) -> None:
        """What the product's worker does between two cells."""
        if worker.silent_since < self.folder.now:
            return  # dead, or it goes on when the stall is over
        worker.queue.look()
        drawn = worker.queue.draw()
        if drawn is None:
            self._at(self.folder.cost + _IDLE, partial(self._next, worker))
            return
        self.outcome.tries += 1
        self._at(self.folder.cost + _RPC, partial(self._try, worker, *drawn))

    def _try(self, worker: Worker, name: str, patience: float, since: float | None = None) -> None:
        """Take a cell, as filelock does: at once, or after it has seen no change for a lease."""
        folder = self.folder
        if worker.silent_since < folder.now:
            return
        lease = folder.leases.get(name)
        if lease is None:
            self._begin(worker, name)
            return
        beat = lease.owner.last_beat(lease, folder.now)
        if patience and since is None:
            waits = partial(self._try, worker, name, patience, hash((lease.number, beat)))
            self._at(folder.lease_seconds, waits)
        elif patience and since == hash((lease.number, beat)):
            self.outcome.rescued += 1
            self._begin(worker, name)
        else:
            worker.queue.found_taken(name)
            self._at(_RPC, partial(self._next, worker))

    def _begin(self, worker: Worker, name: str) -> None:
        folder = self.folder
        if name in folder.settled_at:
            folder.leases.pop(name, None)
            worker.queue.close(name, "completed")
            self._at(_RPC, partial(self._next, worker))
            return
        place = self._done[name]
        is_same = self._placed.get(name) == place
        folder.attempts[name] = folder.attempts.get(name, 0) + 1 if is_same else 1
        self._placed[name] = place
        if folder.attempts[name] > MOST_ATTEMPTS:
            self.outcome.given_up += 1
            folder.settled_at[name] = folder.now
            worker.queue.close(name, "lost")
            self._at(_RPC, partial(self._next, worker))
            return
        folder.tokens[name] = folder.tokens.get(name, 0) + 1
        lease = Lease(worker, folder.now, folder.tokens[name], place)
        worker.name, worker.lease, folder.leases[name] = name, lease, lease
        self._at(self._lengths[name] - place, partial(self._finish, worker, name, lease))

    def _finish(self, worker: Worker, name: str, lease: Lease) -> None:
        folder = self.folder
        if worker.lease is not lease:
            return  # it has died, or was told that its lease is lost
        if worker.silent_since < folder.now:  # cut off: it cannot write its results yet
            self._at(worker.silent_until - folder.now + 1e-3, partial(self._finish, worker, name, lease))
            return
        if folder.tokens[name] != lease.number:
            self._leave(worker, name)
            return
        worker.name = worker.lease = None
        self.outcome.twice += name in folder.settled_at
        folder.settled_at.setdefault(name, folder.now)
        worker.queue.close(name, "completed")
        if folder.leases.get(name) is lease:
            del folder.leases[name]
        self._at(4 * _RPC, partial(self._next, worker))

    def _leave(self, worker: Worker, name: str) -> None:
        """A worker is told that another has its cell; the fence lets it write nothing."""
        self.outcome.superseded += 1
        worker.name = worker.lease = None
        worker.queue.found_taken(name)
        self._at(_RPC, partial(self._next, worker))

    def _keep_progress(self, worker: Worker) -> None:
        """What the checkpoints keep of the cell of a worker that falls silent."""
        name, lease = worker.name, worker.lease
        is_silent = worker.silent_since < self.folder.now
        if name is not None and lease is not None and not is_silent:
            num_saves = math.floor((self.folder.now - lease.begun) / self._saves)
            self._done[name] = lease.place + self._saves * num_saves

    def _die(self, worker: Worker) -> None:
        self.outcome.deaths += 1
        self._keep_progress(worker)
        worker.silent_since, worker.silent_until = min(worker.silent_since, self.folder.now), math.inf
        worker.name = worker.lease = None
        self._at(60, self._new_worker)

    def _cut_off(self, worker: Worker) -> None:
        folder = self.folder
        if worker.silent_since < folder.now:
            return  # dead
        self.outcome.cuts += 1
        self._keep_progress(worker)
        seconds = folder.lease_seconds * self._draws.uniform(2, 10)
        worker.silent_since, worker.silent_until = folder.now, folder.now + seconds
        self._at(seconds, partial(self._come_back, worker))
        self._at(seconds + self._draws.expovariate(1 / self._stall), partial(self._cut_off, worker))

    def _come_back(self, worker: Worker) -> None:
        if worker.silent_until == math.inf:
            return  # it has died meanwhile
        worker.silent_since = worker.silent_until = math.inf
        if worker.lease is None:
            self._next(worker)
        else:  # two beats later it knows whether its lease is another's
            look = partial(self._look_at_lease, worker, worker.lease)
            self._at(2 / 3 * self.folder.lease_seconds, look)

    def _look_at_lease(self, worker: Worker, lease: Lease) -> None:
        name = worker.name
        if worker.lease is lease and name is not None and self.folder.tokens[name] != lease.number:
            self._leave(worker, name)


def simulate(arguments: argparse.Namespace) -> None:
    """Print what a simulation comes to."""
    begin = time.process_time()
    found = Simulation(
        arguments.cells, arguments.workers, minutes=arguments.minutes, sigma=0.5,
        death_hours=arguments.hours, stall_hours=arguments.stall_hours, lease_seconds=arguments.lease,
        saves=arguments.saves, seed=arguments.seed,
    ).run()  # fmt: skip
    cpu, peak = time.process_time() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{found.cells:,} cells of {arguments.minutes:g} min (lognormal, sigma 0.5), {found.workers:,} "
        f"workers, {arguments.hours:g} h between deaths of one, {arguments.stall_hours:g} h until one is cut "
        f"off for 2 to 10 leases of {arguments.lease:g} s, clocks off by up to an hour:\n"
        f"lost {found.lost}, given up {found.given_up}, twice {found.twice}, refused by the fence "
        f"{found.superseded}; {found.deaths:,} deaths, {found.cuts:,} cuts, {found.rescued:,} rescues\n"
        f"{found.tries / found.cells:.2f} tries a cell; {found.makespan / 3600:.2f} h, ideal "
        f"{found.ideal / 3600:.2f} h, ratio {found.makespan / found.ideal:.3f}; "
        f"{found.operations / found.makespan:.0f} operations/s on the folder beside claims\n"
        f"the simulation itself: {cpu:.0f} s CPU, {peak:.0f} MiB"
    )
    assert found.lost == found.twice == 0


# --- real claims, plans and status -----------------------------------------------------------------------


def claim_some(folder: Path, kind: Kind, number: int, count: int) -> None:
    """Take, begin and settle cells of one's own, and print the milliseconds of each part."""
    ledger = FolderLedger(folder, kind)
    times = [0.0] * 3
    for each in range(count):
        name = f"cell-{number}-{each}"
        marks = [time.perf_counter()]
        with ledger.take(name) as claim:
            marks.append(time.perf_counter())
            assert claim is not None
            ledger.begin(name, claim)
            ledger.settle(name, "completed", claim)
            marks.append(time.perf_counter())
        marks.append(time.perf_counter())
        times = [old + after - before for old, before, after in zip(times, marks, marks[1:], strict=False)]
    print(json.dumps([1000 * each / count for each in times] + [1000 * time.process_time() / count]))


def measure_claims(arguments: argparse.Namespace) -> None:
    """Print milliseconds of a claim, of its begin and settle, and of its release, by processes at once."""
    for kind in ("flock", "lease"):
        for processes in (1, 4, 16):
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                FolderLedger(Path(folder), kind).prepare()
                command = [sys.executable, __file__, "--claim", folder, kind]
                started = [
                    subprocess.Popen([*command, str(number)], stdout=subprocess.PIPE, text=True)
                    for number in range(processes)
                ]
                rows = [json.loads(each.communicate()[0]) for each in started]
                take, note, free, _ = (sum(column) / processes for column in zip(*rows, strict=True))
                print(f"{kind}, {processes:2} processes: take {take:.2f}, begin and settle {note:.2f}, "
                      f"release {free:.2f} ms", flush=True)  # fmt: skip


def child(part: str, *options: str) -> None:
    """Run a part in a process of its own, for its memory."""
    subprocess.run([sys.executable, __file__, "--alone", part, *options], check=True)


def own_figures(work: Callable[[], Any], words: str) -> None:
    """Print CPU seconds of ``work`` and the memory that it adds."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    print(f"{words}: {cpu:.2f} s CPU, {wall:.2f} s, {added:.0f} MiB above the imports", flush=True)


def measure_plan(folder: Path, cells: int) -> None:
    """Plan that many cells and write the plan; then read it as a worker does."""
    from pugdft.bench.grid import build_matrix, plan_cells
    from pugdft.bench.plan import Plans, write_plan

    rates = ",".join(f"sam[rho={number / 1000}]" for number in range(1, 11))
    matrix = build_matrix(["quickstart", "model.pretrained=false"], rates, f"0-{cells // 10 - 1}")

    def plan() -> None:
        planned = plan_cells(matrix, folder)
        assert len(planned) == cells
        write_plan(folder, planned)

    own_figures(plan, f"plan of {cells:,} cells")
    own_figures(lambda: Plans(folder).new_cells(()), "the same, read by a worker")
    size = sum(path.stat().st_size for path in (folder / ".plan").iterdir())
    print(f"the plan's file: {size / 1e6:.1f} MB")


def measure_status(folder: Path, cells: int) -> None:
    """``--status`` of a bench of which most is done, a hundred cells run, and some have failed."""
    from pugdft.bench.grid import build_matrix, plan_cells
    from pugdft.bench.plan import write_plan
    from pugdft.bench.queue import Agreement

    matrix = build_matrix(["quickstart", "model.pretrained=false"], "sgd,sam", f"0-{cells // 2 - 1}")
    planned = plan_cells(matrix, folder)
    write_plan(folder, planned)
    Agreement.of(folder, "lease", 60.0)
    ledger = FolderLedger(folder, "lease")
    ledger.prepare()
    for number, cell in enumerate(planned):
        name = cell.folder.name
        if number < cells - 1000:
            (
                folder / ".claims" / "settled" / f"{name}.{'failed' if number % 100 == 0 else 'completed'}"
            ).touch()
        elif number < cells - 900:
            with ledger.take(name) as claim:
                assert claim is not None
                ledger.begin(name, claim)
                (folder / ".claims" / f"{name}.lease").rename(folder / f"{name}.lease")
            (folder / f"{name}.lease").rename(folder / ".claims" / f"{name}.lease")
    command = [sys.executable, "-m", "pugdft", "bench", "--status", str(folder)]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    shown = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert shown.returncode == 4, shown
    print(f"--status at {cells:,} cells: {cpu:.2f} s CPU, {wall:.2f} s; {shown.stdout.splitlines()[0]}")


def main() -> None:
    if "--claim" in sys.argv:
        folder, kind, number = sys.argv[2:]
        claim_some(Path(folder), "lease" if kind == "lease" else "flock", int(number), 50)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=10.0, help="mean of a cell")
    parser.add_argument("--hours", type=float, default=12.0, help="between deaths of one worker")
    parser.add_argument("--stall-hours", type=float, default=48.0, help="until one is cut off")
    parser.add_argument("--lease", type=float, default=120.0, help="seconds")
    parser.add_argument("--saves", type=float, default=600.0, help="seconds between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where claims are measured, such as on a network")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(unknown)}; known are {', '.join(PARTS)}")
    if not arguments.alone:
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for part in arguments.parts:
        if part == "simulate":
            simulate(arguments)
        elif part == "claims":
            measure_claims(arguments)
        elif not arguments.alone:
            child(part)
        else:
            with tempfile.TemporaryDirectory() as folder:
                if part == "plan":
                    measure_plan(Path(folder), 100_000)
                else:
                    measure_status(Path(folder), 10_000)


if __name__ == "__main__":
    main()
