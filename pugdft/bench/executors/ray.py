"""Workers as tasks of Ray: one task a worker, which Ray starts anew if its process or its node is lost."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pugdft.bench.executors import EngineOption, Wanted, number, whole
from pugdft.errors import RunFailed, UserError, reason, refuse
from pugdft.machine import usable_cores
from pugdft.training.launchers import WORKER

_ADDRESS = re.compile(r"(?:ray://)?\[?([\w.:-]+?)\]?:(\d{1,5})")


def _is_address(value: Any) -> bool:
    return value == "auto" or (isinstance(value, str) and _ADDRESS.fullmatch(value) is not None)


OPTIONS = {
    "address": EngineOption(
        "of a cluster's head, or auto for one that runs here; without it Ray starts on this machine",
        "HOST:PORT, ray://HOST:PORT or auto",
        _is_address,
    ),
    "cpus": EngineOption("cores of a worker, else 1", "a number from 0.01 to 10000", number(0.01, 10**4)),
    "gpus": EngineOption("GPUs of a worker, such as 0.5", "a number from 0 to 64", number(0, 64)),
    "retries": EngineOption(
        "how many times a lost worker is started anew; -1, the default: always",
        "a whole number, at least -1",
        whole(-1, 10**6),
    ),
}

_PATIENCE_SECONDS = 10.0  # for a cluster's head
_SAVE_SECONDS = 60.0  # for workers that are told to end
_POLL_SECONDS = 0.2
_LEAST_STORE = 80 * 2**20  # bytes; workers exchange no objects


def run_worker(command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
    """Run a worker, which ends with the task's process, and its cell with it; returns its exit code."""
    environment = {**os.environ, **environment, WORKER: str(os.getpid())}
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment
        )
    try:
        while (code := process.poll()) is None:  # an interrupt of Ray does not end a wait
            time.sleep(_POLL_SECONDS)
        return code
    except KeyboardInterrupt:  # how Ray cancels a task
        process.terminate()
        return process.wait()


class RayExecutor:
    """Starts tasks, which end with this process: Ray keeps none whose owner is gone."""

    goes_on = False

    def __init__(self, wanted: Wanted) -> None:
        self._options, self._workers, self._is_detached = wanted.options, wanted.workers or 0, wanted.detach
        self._needs = {"cpus": wanted.options.get("cpus", 1), "gpus": wanted.options.get("gpus", 0)}
        self._tasks: list[Any] = []

    def check(self) -> None:
        message = 'ray needs Ray, which cannot be imported ({}): pip install "pugdft[ray]"'
        with refuse(ImportError, message.format):
            import ray
        if self._is_detached:
            raise UserError("--detach: tasks of Ray end with the command that has started them; let it run")
        address = self._options.get("address")
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False, "configure_logging": False}
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers else
        try:
            if address is not None:
                _check_reachable(address)
                ray.init(address, **quiet)
            else:
                self._check_fits()
                # All cores of the machine would be those of others too, inside an allocation.
                store = {"object_store_memory": _LEAST_STORE, "include_dashboard": False}
                ray.init("local", num_cpus=usable_cores(), **store, **quiet)
        except (OSError, RuntimeError, ValueError, ImportError) as error:
            if isinstance(error, UserError):
                raise
            raise RunFailed(f"ray: no cluster at {address or 'this machine'}: {reason(error)}") from None

    def _check_fits(self) -> None:
        from pugdft.bench.executors.local import visible_gpus

        for key, have in (("cpus", usable_cores()), ("gpus", len(visible_gpus()))):
            if (needed := self._workers * self._needs[key]) > have:
                raise UserError(
                    f"ray: {self._workers} workers with {key}={self._needs[key]:g} need {needed:g}, this "
                    f"machine has {have}: take fewer workers, a fraction, or the address of a cluster"
                )

    def start(self, count: int, command: Sequence[str], logs: Path) -> None:
        import ray

        logs.mkdir(exist_ok=True)
        # A worker's process ends after its task: it would keep a GPU's memory.
        options = {"max_calls": 1, "max_retries": self._options.get("retries", -1)}
        needs = {"num_cpus": self._needs["cpus"], "num_gpus": self._needs["gpus"]}
        task = ray.remote(**options, **needs)(run_worker)
        # A cluster's nodes have the environment in which they were started.
        environment = {name: value for name, value in os.environ.items() if name.startswith("PUGDFT_")}
        paths = (logs.resolve() / f"worker-{place}.log" for place in range(count))
        self._tasks = [task.remote(list(command), environment, path) for path in paths]

    def alive(self) -> int | None:
        import ray

        if not self._tasks:
            return None
        try:
            return len(ray.wait(self._tasks, num_returns=len(self._tasks), timeout=0)[1])
        except ray.exceptions.RayError:
            return None

    def stop(self) -> None:
        import ray

        for task in self._tasks:
            ray.cancel(task)
        ray.wait(self._tasks, num_returns=len(self._tasks), timeout=_SAVE_SECONDS)
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nobody answers: Ray itself tries for a minute and prints much."""
    if found := _ADDRESS.fullmatch(address):
        socket.create_connection((found[1], int(found[2])), timeout=_PATIENCE_SECONDS).close()


def make(wanted: Wanted, runs: Path) -> RayExecutor:
    return RayExecutor(wanted)
