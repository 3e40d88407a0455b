"""Several machines, as far as one can be several: mounts with locks of their own, network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import pugdft, write_image_folder
from small_runs import IMAGES, SGD, differences, outcome_of, tiny_recipe
from standing_still import HANG_SECONDS, status_of, until

from pugdft.bench.queue import FolderLedger
from pugdft.config import yaml
from pugdft.records import read_record

# --- a folder that is mounted twice ----------------------------------------------------------------------


@pytest.fixture
def mounts(tmp_path: Path) -> Iterator[list[Path]]:
    """One folder at two places whose locks (flock) do not know of each other, as on NFS with ``nolock``."""
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    (tmp_path / "shared").mkdir()
    made: list[Path] = []
    try:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            command = ["bindfs", "--no-allow-other", str(tmp_path / "shared"), str(tmp_path / name)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"bindfs cannot mount here: {done.stderr.strip()[-200:]}")
            made.append(tmp_path / name)
        yield made
    finally:
        for path in made:
            subprocess.run(["umount", "-l", str(path)], check=True)


def recipe_at(folder: Path, **train: Any) -> Path:
    path = folder / "insects.yaml"
    images = write_image_folder(folder / "insects", IMAGES)
    path.write_text(yaml.dump(tiny_recipe(images, {"name": "sam", "base": SGD}, **train)))
    return path


@pytest.mark.slow
def test_two_workers_on_two_mounts_run_each_cell_once(mounts: list[Path], tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, epochs=1)
    plan = ("bench", str(recipe), "--optimizers", "sgd,sam,pugd", "--seeds", "0-3")
    plan += ("--output", str(mounts[0] / "runs"), "--executor", "local[workers=0]", "--detach")
    done = pugdft(*plan)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, "-m", "pugdft", "bench", "--join"]
    workers = [
        subprocess.Popen([*command, str(mount / "runs")], stderr=subprocess.PIPE, text=True)
        for mount in mounts
    ]
    said = [each.communicate(timeout=HANG_SECONDS * 3)[1] for each in workers]
    assert [each.returncode for each in workers] == [0, 0], said
    runs = tmp_path / "shared" / "runs"
    assert json.loads((runs / ".claims" / "agreement.json").read_text())["kind"] == "lease"
    records = [read_record(path) for path in runs.glob("*/record.yaml")]
    assert [(each.status, each.restarts) for each in records] == [("completed", [])] * 12
    begun = [line.split()[1] for text in said for line in text.splitlines() if line.endswith(": running")]
    assert len(begun) == len(set(begun)) == 12
    assert all(": running" in text for text in said), "both worked"
    status = pugdft("bench", "--status", str(mounts[1] / "runs"))
    assert (status.returncode, status.stdout.splitlines()[0]) == (0, "12 cells: 12 completed")


@pytest.mark.slow
def test_a_dead_machines_lease_is_taken_over_through_another_mount(mounts: list[Path]) -> None:
    """This file system cannot exchange two names, which is what filelock takes a lease over with."""
    first, second = (FolderLedger(mount, "lease", 3.0) for mount in mounts)
    first.prepare()
    holder = f"""
import socket, sys, time
socket.gethostname = lambda: "elsewhere"
from pathlib import Path
from pugdft.bench.queue import FolderLedger
with FolderLedger(Path({str(mounts[0])!r}), "lease", 3.0).take("cell") as claim:
    print("mine", flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "mine\n"
    with second.take("cell", 4.0) as claim:
        assert claim is None, "its owner lives"
    owner.kill()
    owner.communicate()
    with second.take("cell", 4.0) as claim:
        assert claim is not None
        with first.take("cell", 4.0) as third:
            assert third is None
        assert not claim.is_lost()


# --- warm and cold ---------------------------------------------------------------------------------------

_MEASURED = """
import json, multiprocessing.forkserver, resource, sys
from pathlib import Path
import psutil
from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.bench.worker import Options, Watcher, prepare_output, run_cells

recipe, runs, seeds, is_warm = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "warm"
seconds = []

def spent():
    if not is_warm:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime
    times = psutil.Process(multiprocessing.forkserver._forkserver._forkserver_pid).cpu_times()
    return times.children_user + times.children_system  # of the cells that it has forked

class Seen(Watcher):
    def on_state(self, cell, state):
        if state == "completed":
            seconds.append(spent())

prepare_output(runs)
cells = plan_cells(build_matrix([str(recipe)], "sam", seeds), runs)
assert run_cells(cells, Seen(), Options(warm=is_warm)) == 0
print(json.dumps([after - before for before, after in zip([0, *seconds], seconds)]))
"""


@pytest.mark.slow
def test_warm_cells_leave_the_same_bytes_as_cold_ones_in_a_fraction_of_their_time(tmp_path: Path) -> None:
    recipe = tmp_path / "tiny.yaml"
    data = yaml.parse((Path(__file__).parents[2] / "recipes" / "quickstart.yaml").read_text(), "quickstart")
    data["model"] = {"name": "test_resnet.r160_in1k", "pretrained": False}
    data["data"]["image_size"] = 32
    data["train"] |= {"max_steps": 4, "batch_size": 16}
    recipe.write_text(yaml.dump(data))
    seconds = {}
    for kind, seeds in (("cold", "0-1"), ("warm", "0-4")):
        command = [sys.executable, "-c", _MEASURED, str(recipe), str(tmp_path / kind), seeds, kind]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        seconds[kind] = json.loads(done.stdout)
    folders = [path.parent for path in (tmp_path / "cold").glob("*/record.yaml")]
    assert len(folders) == 2
    for cold in folders:
        warm = tmp_path / "warm" / cold.name
        for name in ("model.safetensors", "predictions.npz"):
            assert (cold / name).read_bytes() == (warm / name).read_bytes()
        assert differences(outcome_of(cold), outcome_of(warm)) == []
    print(f"CPU seconds of a cell: {seconds}")
    assert sorted(seconds["warm"])[2] < 0.4 * min(seconds["cold"]), seconds


# --- a worker that is ended beside its warm cell -----------------------------------------------------------

_WORKER = """
import sys
from pathlib import Path
from pugdft.bench.grid import build_matrix, plan_cells
from pugdft.bench.queue import Agreement
from pugdft.bench.worker import Options, Watcher, prepare_output, run_cells

recipe, runs = Path(sys.argv[1]), Path(sys.argv[2])
prepare_output(runs)
Agreement.of(runs, sys.argv[3], 60.0)
cells = plan_cells(build_matrix([str(recipe)], "sam", "0"), runs)
sys.exit(run_cells(cells, Watcher(), Options(warm=True)))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [("flock", signal.SIGKILL), ("lease", signal.SIGTERM)],
    ids=["a killed one leaves its lock to its cell", "told to end with all its processes"],
)
def test_a_worker_that_is_ended_beside_its_warm_cell(kind: str, number: int, tmp_path: Path) -> None:
    recipe, runs = recipe_at(tmp_path, epochs=3000), tmp_path / "runs"
    command = [sys.executable, "-c", _WORKER, str(recipe), str(runs), kind]
    worker = subprocess.Popen(command, start_new_session=True)
    try:
        until(lambda: any(runs.glob("*/checkpoint/state.json")))
        (state,) = runs.glob("*/checkpoint/state.json")
        name, ledger = state.parents[1].name, FolderLedger(runs, "flock")
        if number == signal.SIGTERM:  # as schedulers do: to all processes, the fork server too
            os.killpg(worker.pid, number)
            assert worker.wait(HANG_SECONDS) == 143
            assert read_record(runs / name / "record.yaml").status == "interrupted"
            assert not list((runs / ".claims").glob("*.attempts"))
            assert not list((runs / ".claims").glob("*.lease"))
            return
        worker.kill()
        worker.wait()
        last = state.stat().st_mtime_ns
        until(lambda: state.exists() and state.stat().st_mtime_ns > last)
        assert ledger.is_locked(name), "the cell goes on"
        os.killpg(worker.pid, signal.SIGKILL)
        until(lambda: not ledger.is_locked(name))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)


# --- two machines on one network -------------------------------------------------------------------------

_ADDRESSES = ("10.201.7.1", "10.201.7.2")


class Node:
    """A network namespace with one end of a cable."""

    def __init__(self, number: int) -> None:
        self.number, self.address = number, _ADDRESSES[number]
        self.name, self.cable = f"pugdft-{os.getpid()}-{number}", f"pg{os.getpid()}-{number}"[:15]

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.name, *words], check=True, capture_output=True, text=True)

    def start(self, recipe: Path, folder: Path, **variables: str) -> subprocess.Popen[str]:
        """This node's part of the same ``torchrun`` on both."""
        command = ["ip", "netns", "exec", self.name, sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "it"]
        command += ["--rdzv-endpoint", f"{_ADDRESSES[0]}:29511", "--local-addr", self.address]
        command += ["--rdzv-conf", f"is_host={int(self.number == 0)}"]
        command += ["-m", "pugdft", "finetune", str(recipe), "--output", str(folder)]
        env = {**os.environ, "GLOO_SOCKET_IFNAME": self.cable, **variables}
        streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, text=True, env=env, **streams)

    def processes(self) -> list[psutil.Process]:
        done = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [psutil.Process(int(each)) for each in done.stdout.split() if psutil.pid_exists(int(each))]

    def trainers(self) -> list[psutil.Process]:
        found = []
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "finetune" in (words := each.cmdline()) and "torch.distributed.run" not in words:
                    found.append(each)
        return found

    def kill(self) -> None:
        for each in self.processes():
            with suppress(psutil.NoSuchProcess):
                each.kill()


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need the command ip and the rights of root")
    both = Node(0), Node(1)
    try:
        for node in both:
            done = subprocess.run(["ip", "netns", "add", node.name], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespace can be made here: {done.stderr.strip()[-200:]}")
        one, other = both
        cable = ["link", "add", one.cable, "type", "veth", "peer", "name", other.cable, "netns", other.name]
        one.ip(*cable)
        for node in both:
            node.ip("addr", "add", f"{node.address}/24", "dev", node.cable)
            node.ip("link", "set", node.cable, "up")
            node.ip("link", "set", "lo", "up")
        yield both
    finally:
        for node in both:
            if Path("/var/run/netns", node.name).exists():
                node.kill()
                subprocess.run(["ip", "netns", "del", node.name], check=True)


def seconds_until_gone(processes: list[psutil.Process]) -> float:
    begin = time.monotonic()
    until(lambda: all(status_of(each) in ("gone", psutil.STATUS_ZOMBIE) for each in processes))
    return time.monotonic() - begin


@pytest.mark.slow
def test_a_run_on_two_nodes_ends_soon_when_one_is_lost_and_goes_on_to_the_same_bits(
    nodes: tuple[Node, Node], tmp_path: Path
) -> None:
    one, other = nodes
    recipe, whole, broken = recipe_at(tmp_path, epochs=40), tmp_path / "whole", tmp_path / "broken"
    state = broken / "checkpoint" / "state.json"

    def run_to_the_end(folder: Path) -> None:
        both = [node.start(recipe, folder) for node in nodes]
        said = [each.communicate(timeout=HANG_SECONDS * 2)[1] for each in both]
        assert [each.returncode for each in both] == [0, 0], said

    def begun(since: float, **variables: str) -> list[psutil.Process]:
        """Start both, and wait for a checkpoint."""
        parts = [node.start(recipe, broken, **variables) for node in nodes]
        until(lambda: state.exists() and state.stat().st_mtime > since, parts[0])
        return [each for node in nodes for each in node.trainers()]

    run_to_the_end(whole)
    assert read_record(whole / "record.yaml").environment["processes"] == 2

    trainers = begun(0.0)
    assert len(trainers) == 2
    other.kill()
    after_a_death = seconds_until_gone(trainers)
    assert after_a_death < 30
    one.kill()
    assert read_record(broken / "record.yaml").status == "failed"

    trainers = begun(time.time(), PUGDFT_PROCESS_TIMEOUT="20")
    assert len(trainers) == 2
    other.ip("link", "set", other.cable, "down")
    after_a_cut = seconds_until_gone(trainers)
    assert after_a_cut < 90
    for node in nodes:  # torchrun's own processes wait on
        node.kill()
    other.ip("link", "set", other.cable, "up")
    print(f"gone {after_a_death:.1f} s after a node's death, {after_a_cut:.1f} s after the cut of the cable")

    run_to_the_end(broken)
    assert len(read_record(broken / "record.yaml").restarts) == 2
    assert differences(outcome_of(whole), outcome_of(broken)) == []
