"""Workers on this machine: one for each visible GPU, or as many as were asked for."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pugdft.bench.executors import EngineOption, Wanted
from pugdft.training.launchers import SHARED_WITH, WORKER

OPTIONS: dict[str, EngineOption] = {}


def visible_gpus() -> list[str]:
    """The names of this machine's GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` has them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(number) for number in range(count)]


class LocalExecutor:
    """Starts processes, which end with this one unless they are ``detached``."""

    goes_on = False

    def __init__(self, shared_with: int = 1, detached: bool = False) -> None:
        self._further = {} if detached else {WORKER: str(os.getpid())}
        self._further |= {SHARED_WITH: str(shared_with)} if shared_with > 1 else {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def check(self) -> None:
        """Everything is there."""

    def start(self, count: int, command: Sequence[str], logs: Path) -> None:
        gpus = visible_gpus()
        logs.mkdir(exist_ok=True)
        for number in range(count):
            environment = os.environ | self._further
            if gpus:
                environment["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            with (logs / f"worker-{number}.log").open("ab") as log:
                self._processes.append(
                    subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment,
                        start_new_session=True,  # Ctrl-C is for the command, which ends them once
                    )
                )  # fmt: skip

    def alive(self) -> int | None:
        return sum(each.poll() is None for each in self._processes)

    def wait(self) -> list[int]:
        """Wait for their ends; returns their exit codes."""
        return [each.wait() for each in self._processes]

    def stop(self) -> None:
        self.terminate()
        self.wait()

    def terminate(self) -> None:
        """Tell them to end: for a signal's handler, in which ``Popen.wait`` may never return."""
        for each in self._processes:
            if each.poll() is None:
                each.terminate()


def make(wanted: Wanted, runs: Path) -> LocalExecutor:
    return LocalExecutor(detached=wanted.detach)
