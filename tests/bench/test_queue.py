"""A folder of runs as a queue: leases, the order of draws, attempts, the agreement, and the fence."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import write_image_folder
from small_runs import IMAGES, StopAt, tiny_recipe
from standing_still import HANG_SECONDS

from pugdft.bench.queue import LOST, MOST_ATTEMPTS, Agreement, CellNames, Claim, FolderLedger, Queue
from pugdft.errors import FolderBusy, UserError
from pugdft.training.attempts import ATTEMPT, attempts_file, check_mine, read_attempts
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer, Position, Totals

LEASE = 3.0  # seconds; its owner gives a sign of life every second

# --- leases ----------------------------------------------------------------------------------------------

_OWNER = """
import socket, sys, time
socket.gethostname = lambda: sys.argv[2]
real = time.time
time.time = lambda: real() + float(sys.argv[3])
from pathlib import Path
from pugdft.bench.queue import FolderLedger
with FolderLedger(Path(sys.argv[1]), "lease", float(sys.argv[4])).take("cell") as claim:
    print("mine", flush=True)
    while not claim.is_lost():
        time.sleep(0.05)
    print("lost", flush=True)
"""


@contextmanager
def owner_of_a_lease(
    folder: Path, host: str = "elsewhere", clock: float = 0.0
) -> Iterator[subprocess.Popen[str]]:
    """A process, by its own words on another host and with a clock that is wrong by so many seconds."""
    command = [sys.executable, "-c", _OWNER, str(folder), host, str(clock), str(LEASE)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "mine\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def leases(folder: Path) -> FolderLedger:
    ledger = FolderLedger(folder, "lease", LEASE)
    ledger.prepare()
    return ledger


@pytest.fixture(params=["exchanges names", "cannot exchange names"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Network file systems and FUSE cannot swap two names, with which filelock takes a lease over."""
    if request.param.startswith("cannot"):
        monkeypatch.setattr("filelock._soft.exchange_names", lambda *names: False)
        monkeypatch.setattr("filelock._util.exchange_names", lambda *names: False)
    return str(request.param)


def test_a_dead_owners_lease_on_another_host_is_taken_after_its_time_and_not_before(
    tmp_path: Path, file_system: str
) -> None:
    ledger = leases(tmp_path)
    with owner_of_a_lease(tmp_path) as owner:
        owner.kill()
        owner.wait()
        begin = time.monotonic()
        with ledger.take("cell") as claim:
            assert claim is None
        with ledger.take("cell", LEASE + 1) as claim:
            assert claim is not None
            assert time.monotonic() - begin >= LEASE
            with ledger.take("cell") as second:
                assert second is None
            time.sleep(LEASE)
            assert not claim.is_lost()
    with ledger.take("cell") as claim:
        assert claim is not None, "released"
    assert not list((tmp_path / ".claims").glob("*.over"))


@pytest.mark.slow
@pytest.mark.parametrize("clock", [3600.0, -3600.0])
def test_a_living_owner_keeps_its_lease_whatever_the_clocks_say(
    clock: float, tmp_path: Path, file_system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with owner_of_a_lease(tmp_path, clock=clock) as owner:
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() - clock)
        with leases(tmp_path).take("cell", LEASE + 1) as claim:
            assert claim is None
        assert owner.poll() is None


def test_a_stopped_owner_loses_its_lease_and_is_told_when_it_goes_on(
    tmp_path: Path, file_system: str
) -> None:
    with owner_of_a_lease(tmp_path) as owner:
        os.kill(owner.pid, signal.SIGSTOP)
        with leases(tmp_path).take("cell", LEASE + 1) as claim:
            assert claim is not None
            os.kill(owner.pid, signal.SIGCONT)
            assert owner.communicate(timeout=HANG_SECONDS)[0] == "lost\n"
            assert not claim.is_lost(), "and it has not taken the new owner's lease with it"
            with leases(tmp_path).take("cell") as third:
                assert third is None


def test_a_lease_of_this_host_is_free_as_soon_as_its_owner_is_dead(tmp_path: Path) -> None:
    with owner_of_a_lease(tmp_path, host=socket.gethostname()) as owner:
        owner.kill()
        owner.wait()
    with leases(tmp_path).take("cell", 1.0) as claim:
        assert claim is not None


def test_the_right_to_remove_a_lease_is_one_workers_and_ends_with_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = leases(tmp_path)
    right = tmp_path / ".claims" / "cell.over"
    with owner_of_a_lease(tmp_path):
        stamp = ledger.stamp("cell")
        assert stamp is not None
        right.touch()
        assert not ledger._free_silent("cell", stamp)
        assert right.exists()
        os.utime(right, (time.time() - 2 * LEASE,) * 2)
        assert not ledger._free_silent("cell", stamp)
        assert not right.exists()
        assert not ledger._free_silent("cell", (0, 0, 0)), "another lease than the silent one"
        assert ledger.held() == {"cell"}


# --- the order of draws ----------------------------------------------------------------------------------


class Ledger:
    """A ledger in memory; stamps of dead owners do not change."""

    lease_seconds = 60.0

    def __init__(self) -> None:
        self.status: dict[str, str] = {}
        self.leased: set[str] = set()
        self.dead: set[str] = set()
        self.now, self.looks = 0.0, 0

    def settled(self) -> dict[str, str]:
        self.looks += 1
        return dict(self.status)

    def held(self) -> set[str]:
        return set(self.leased)

    def stamp(self, name: str) -> object:
        return None if name not in self.leased else 0 if name in self.dead else self.now


def queue_of(ledger: Ledger, count: int, seed: int = 0) -> Queue:
    names = CellNames(f"cell-{number}" for number in range(count))
    return Queue(names, ledger, lambda: ledger.now, random.Random(seed))


def drawn(queue: Queue) -> str:
    found = queue.draw()
    assert found is not None
    assert found[1] == 0
    return found[0]


def test_a_worker_that_is_alone_takes_the_cells_in_their_order() -> None:
    ledger = Ledger()
    queue, order = queue_of(ledger, 50), list[str]()
    while queue.has_open():
        queue.look()
        order.append(drawn(queue))
        queue.close(order[-1], "completed")
        ledger.status[order[-1]] = "completed"
        ledger.now += 3
    assert order == queue.names.order
    assert queue.draw() is None
    assert ledger.looks == 50 * 3 // 10 - 2, "a listing every ten seconds: at 0, 12, 24, …"


def test_a_worker_that_finds_cells_taken_draws_from_more_of_them() -> None:
    ledger = Ledger()
    tried: list[str] = []
    queue = queue_of(ledger, 200)
    queue.look()
    for _ in range(6):
        tried.append(drawn(queue))
        queue.found_taken(tried[-1])
    assert tried[0] == "cell-0"
    assert len(set(tried)) == 6, "none twice within a second"
    firsts = set()
    for seed in range(40):
        other = queue_of(ledger, 200, seed)
        other.look()
        for _ in range(5):
            other.found_taken(drawn(other))
        firsts.add(drawn(other))
    assert len(firsts) > 15, "of 32"
    ledger.now += 1
    assert "cell-0" in queue._free()


def test_with_many_leases_the_first_draws_of_workers_differ() -> None:
    ledger = Ledger()
    ledger.leased = {f"cell-{number}" for number in range(300)}
    firsts = set()
    for seed in range(300):
        queue = queue_of(ledger, 1000, seed)
        queue.look()
        firsts.add(int(drawn(queue).removeprefix("cell-")))
    assert firsts == set(range(300, 320)), "a place for each 15 workers, right after the leased ones"


def test_every_dead_workers_cell_is_found_and_no_living_ones() -> None:
    ledger = Ledger()
    ledger.leased = {f"cell-{number}" for number in range(60)}
    ledger.dead = {f"cell-{number}" for number in range(0, 60, 3)}
    queues = [queue_of(ledger, 60, seed) for seed in range(200)]
    for _ in range(2):
        for queue in queues:
            queue.look()
        assert all(queue.draw() is None for queue in queues) == (ledger.now < 60)
        ledger.now += 61
    found: set[str] = set()
    for queue in queues:
        queue.look()
        while (each := queue.draw()) is not None:
            assert each[1] > ledger.lease_seconds
            found.add(each[0])
    assert found == ledger.dead


def test_a_lease_that_was_left_behind_at_a_settled_cell_is_no_work() -> None:
    ledger = Ledger()
    ledger.leased = ledger.dead = {"cell-0", "cell-1"}
    ledger.status = {"cell-0": "completed"}
    queue = queue_of(ledger, 2)
    for _ in range(3):
        queue.look()
        ledger.now += 61
    assert [queue.draw(), queue.draw()] == [("cell-1", 65.0), None]


def test_cells_that_are_put_last_come_after_the_others_and_left_ones_not_at_all() -> None:
    queue = queue_of(Ledger(), 4)
    queue.look()
    queue.put_last("cell-0", is_left=False)
    queue.put_last("cell-1", is_left=True)
    order = []
    while found := queue.draw():
        order.append(found[0])
        queue.close(found[0], "completed")
    assert order == ["cell-2", "cell-3", "cell-0"]
    assert not queue.has_open()


def test_news_are_what_others_have_settled_each_once() -> None:
    ledger = Ledger()
    queue = queue_of(ledger, 4)
    queue.look()
    queue.close("cell-0", "completed")
    ledger.status |= {"cell-0": "completed", "cell-2": "failed", "of another matrix": "completed"}
    assert queue.news() == {}
    ledger.now += 10
    assert queue.look()
    assert not queue.look()
    assert (queue.news(), queue.news()) == ({"cell-2": "failed"}, {})
    queue.add(["cell-3", "cell-4"])
    assert queue.names.order == [f"cell-{number}" for number in range(5)]


def test_the_simulated_cluster_loses_nothing_and_does_nothing_twice() -> None:
    """The product's queue; ``benchmarks/scale.py`` has a hundred thousand cells and a thousand workers."""
    folder = Path(__file__).parents[2] / "benchmarks"
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); import scale; print(scale.Simulation(600, 30, "
    code += (
        "minutes=10, sigma=0.5, death_hours=8, stall_hours=8, lease_seconds=120, saves=600, seed=0).run())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    found = dict(part.split("=") for part in done.stdout.strip()[:-1].partition("(")[2].split(", "))
    assert (found["lost"], found["twice"], found["given_up"]) == ("0", "0", "0"), done.stderr
    assert min(int(found[each]) for each in ("deaths", "rescued", "cuts")) > 10
    assert int(found["superseded"]) > 0
    assert int(found["tries"]) < 2 * 600


# --- attempts --------------------------------------------------------------------------------------------


def attempt_at(ledger: FolderLedger, name: str = "cell") -> Claim | None:
    with ledger.take(name) as claim:
        assert claim is not None
        return claim if ledger.begin(name, claim) else None


def test_a_cell_that_takes_its_worker_along_is_given_up_but_not_one_that_comes_further(
    tmp_path: Path,
) -> None:
    ledger = FolderLedger(tmp_path)
    ledger.prepare()
    for _ in range(MOST_ATTEMPTS):
        assert attempt_at(ledger) is not None
    assert attempt_at(ledger) is None
    state = tmp_path / "cell" / "checkpoint" / "state.json"
    state.parent.mkdir(parents=True)
    for number in range(5):
        state.write_text("")
        os.utime(state, (number, number))
        for _ in range(MOST_ATTEMPTS - 1):
            assert attempt_at(ledger) is not None
    assert len(read_attempts(tmp_path, "cell")) == MOST_ATTEMPTS + 5 * (MOST_ATTEMPTS - 1)


def test_only_the_last_who_began_a_cell_forgets_its_attempts(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path)
    ledger.prepare()
    first, second = attempt_at(ledger), attempt_at(ledger)
    assert first is not None
    assert second is not None
    ledger.settle("cell", "completed", first)
    assert [each["token"] for each in read_attempts(tmp_path, "cell")] == [first.token, second.token]
    ledger.settle("cell", "completed", second)
    assert not attempts_file(tmp_path, "cell").exists()
    assert ledger.settled() == {"cell": "completed"}


def test_what_was_given_up_keeps_its_attempts_until_the_next_command(tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path)
    ledger.prepare()
    claim = attempt_at(ledger)
    assert claim is not None
    ledger.settle("cell", LOST, claim)
    assert len(read_attempts(tmp_path, "cell")) == 1
    ledger.reopen(["cell"], retry=False)
    assert (ledger.settled(), read_attempts(tmp_path, "cell")) == ({}, [])


@pytest.mark.parametrize("retry", [False, True])
def test_what_the_next_command_tries_again(retry: bool, tmp_path: Path) -> None:
    ledger = FolderLedger(tmp_path)
    ledger.prepare()
    for status in ("completed", "diverged", "failed", "oom", "interrupted", "missing", LOST):
        (tmp_path / status).mkdir()
        (tmp_path / status / "record.yaml").touch()
        ledger.settle(status, status, Claim(""))
    ledger.settle("removed", "completed", Claim(""))  # its folder is gone
    names = [*ledger.settled()]
    ledger.reopen(names, retry)
    assert set(ledger.settled()) == {"completed"} | (set() if retry else {"diverged"})


# --- the fence -------------------------------------------------------------------------------------------


def test_a_run_is_its_last_workers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, folder = FolderLedger(tmp_path), tmp_path / "cell"
    ledger.prepare()
    check_mine(folder)  # of no worker
    first = attempt_at(ledger)
    assert first is not None
    monkeypatch.setenv(ATTEMPT, first.token)
    check_mine(folder)
    second = attempt_at(ledger)
    assert second is not None
    with pytest.raises(
        FolderBusy, match=f"a worker on {socket.gethostname()} has taken this run over"
    ) as told:
        check_mine(folder)
    assert told.value.exit_code == 5
    ledger.settle("cell", "completed", second)
    with pytest.raises(FolderBusy, match="another worker has ended this run"):
        check_mine(folder)


class TakenOver(Observer):
    """Another worker takes the run over after an update, while this one was cut off."""

    def __init__(self, ledger: FolderLedger, then: Observer) -> None:
        self._ledger, self._then = ledger, then

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == 2:
            attempt_at(self._ledger, "cell")
        self._then.on_step(position, totals, done)


@pytest.mark.parametrize("end", ["a signal", "the last update"])
def test_a_superseded_run_writes_neither_checkpoint_nor_record(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read_recipe(tiny_recipe(write_image_folder(tmp_path / "insects", IMAGES)))
    ledger, folder = FolderLedger(tmp_path / "runs"), tmp_path / "runs" / "cell"
    ledger.prepare()
    first = attempt_at(ledger)
    assert first is not None
    monkeypatch.setenv(ATTEMPT, first.token)
    observer = TakenOver(ledger, StopAt(3) if end == "a signal" else Observer())
    with pytest.raises(FolderBusy, match="has taken this run over"):
        finetune(recipe, folder, observer=observer)
    assert sorted(each.name for each in folder.iterdir()) == [".lock", "recipe.yaml", "starts.json"]


# --- the agreement ---------------------------------------------------------------------------------------


def test_the_first_command_decides_how_all_exclude_each_other(tmp_path: Path) -> None:
    first = Agreement.of(tmp_path, "lease", 30.0)
    assert Agreement.of(tmp_path, "flock") == first == Agreement.read(tmp_path)
    assert (first.kind, first.lease_seconds, first.host) == ("lease", 30.0, socket.gethostname())
    assert [each.name for each in (tmp_path / ".claims").iterdir()] == ["agreement.json"]


def test_locks_of_one_machines_kernel_are_not_for_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Agreement.of(tmp_path, "flock")
    with pytest.raises(UserError, match=r"by locks of the kernel of .*agreement\.json"):
        Agreement.of(tmp_path, "lease")
    monkeypatch.setattr(socket, "gethostname", lambda: "another")  # such as a new container's
    assert Agreement.of(tmp_path, "flock").kind == "flock"


def test_a_file_system_without_hard_links_has_an_agreement_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*names: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    first = Agreement.of(tmp_path, "lease", 30.0)
    assert Agreement.of(tmp_path, "lease", 60.0) == first
    (tmp_path / ".claims" / "agreement.json").write_text(json.dumps({"kind": 1}))
    with pytest.raises(UserError, match="cannot be read; remove it"):
        Agreement.of(tmp_path, "lease", 60.0)
