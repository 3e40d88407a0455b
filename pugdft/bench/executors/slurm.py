"""Workers as the elements of one Slurm array, submitted by submitit.

A job that Slurm preempts, or whose time is nearly over, lets its cell save and is requeued; then it goes on.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pugdft.bench.executors import EngineOption, Wanted, whole
from pugdft.bench.worker import is_stop_requested, request_stop
from pugdft.errors import RunFailed, UserError, reason, refuse
from pugdft.training.launchers import UNTIL, WORKER


def _matches(pattern: str) -> Any:
    return lambda value: type(value) in (int, str) and re.fullmatch(pattern, str(value)) is not None


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value)


def _is_setup(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_extra(value: Any) -> bool:
    kinds = (str, int, float, bool)
    return isinstance(value, dict) and all(
        _is_text(key) and type(each) in kinds for key, each in value.items()
    )


OPTIONS = {
    "partition": EngineOption("as --partition of sbatch", "a name", _is_text),
    "time": EngineOption(
        "minutes of a worker, 60 by default; it is requeued at their end",
        "a whole number of minutes, at least 5",
        whole(5, 10**6),
    ),
    "gpus": EngineOption(
        "GPUs of a worker",
        "a whole number, or a kind and a number such as a100:1",
        _matches(r"([\w.-]+:)?\d+"),
    ),
    "cpus": EngineOption("cores of a worker", "a whole number, at least 1", whole(1, 10**4)),
    "mem": EngineOption("memory of a worker", "an amount with its unit, such as 16G", _matches(r"\d+[KMGT]")),
    "account": EngineOption("as --account of sbatch", "a name", _is_text),
    "qos": EngineOption("as --qos of sbatch", "a name", _is_text),
    "constraint": EngineOption("as --constraint of sbatch", "features of nodes", _is_text),
    "setup": EngineOption(
        "lines of shell before a worker starts", "a list, such as [module load cuda]", _is_setup
    ),
    "extra": EngineOption(
        "any other option of sbatch", "a mapping, such as {nice: 100, reservation: night}", _is_extra
    ),
}

_COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "scancel")
_MINUTES = 60  # of a worker, if nothing is said
_TIMEOUTS = 1000  # requeues after the end of the time; jobs of ten minutes count every signal as one
_ASK_SECONDS = 30.0  # between two questions to the controller, which serves a whole cluster
_PATIENCE_SECONDS = 60.0  # for an answer
_LONGEST_GRACE_SECONDS = 3600.0


@dataclass
class WorkerJob:
    """What an element of the array runs: one worker.

    submitit pickles it, calls it on the node, and calls :meth:`checkpoint` in the handler of its signal.
    """

    command: Sequence[str]
    minutes: int
    runs: Path
    _process: int | None = field(default=None, repr=False)  # a descriptor of the process

    def __call__(self) -> int:
        """Run the worker; returns its exit code."""
        environment = {WORKER: str(os.getpid()), UNTIL: str(time.time() + 60 * self.minutes)}
        process = subprocess.Popen(self.command, env=os.environ | environment, preexec_fn=_ignore_warnings)
        self._process = os.pidfd_open(process.pid)
        code = process.wait()
        if code in (-signal.SIGTERM, 128 + signal.SIGTERM) and not is_stop_requested(self.runs):
            # Slurm has told the worker to end, or its time is nearly over. It requeues no job that ends by
            # itself: so let it end this one.
            time.sleep(_LONGEST_GRACE_SECONDS)
        return code

    def checkpoint(self) -> Any:
        """Let the worker save and end; returns what is submitted again.

        The main thread may be inside ``Popen.wait`` now, whose lock a second wait would never get.
        """
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            with suppress(ProcessLookupError, ChildProcessError):  # it has ended
                signal.pidfd_send_signal(self._process, signal.SIGTERM)
                os.waitid(os.P_PIDFD, self._process, os.WEXITED | os.WNOWAIT)
        return DelayedSubmission(replace(self, _process=None))


def _ignore_warnings() -> None:
    """Slurm sends the signal that is meant for submitit to all processes of a job, and it would end them."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


class SlurmExecutor:
    """Submits an array of workers."""

    goes_on = True

    def __init__(self, options: Mapping[str, Any], workers: int, runs: Path) -> None:
        self._options, self._workers, self._runs = options, workers, runs
        self._job = ""
        self._alive: int | None = None
        self._ask_at = 0.0

    def check(self) -> None:
        message = 'slurm needs submitit, which cannot be imported ({}): pip install "pugdft[slurm]"'
        with refuse(ImportError, message.format):
            import submitit  # noqa: F401
        if missing := [each for each in _COMMANDS if shutil.which(each) is None]:
            raise UserError(
                f"slurm: there is no {missing[0]} here; start this on a machine that submits Slurm's jobs"
            )
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask("scontrol", "show", "config"), re.MULTILINE)
        if found and self._workers > int(found[1]):
            raise UserError(f"slurm: workers: this cluster's arrays have at most {found[1]} (MaxArraySize)")

    def start(self, count: int, command: Sequence[str], logs: Path) -> None:
        import submitit
        from submitit.helpers import clean_env

        given = dict(self._options)
        minutes, cpus, gpus = given.pop("time", _MINUTES), given.pop("cpus", None), given.pop("gpus", None)
        executor = submitit.SlurmExecutor(logs / "slurm", max_num_timeout=_TIMEOUTS)
        executor.update_parameters(
            job_name="pugdft",
            time=minutes,
            array_parallelism=count,
            additional_parameters={"requeue": True, **given.pop("extra", {})},
            **({"gpus_per_node": gpus} if gpus else {}),
            # A step does not inherit the cores of its job.
            **({"cpus_per_task": cpus, "srun_args": [f"--cpus-per-task={cpus}"]} if cpus else {}),
            **given,
        )
        job = WorkerJob(list(command), minutes, self._runs)
        # Inside another job its variables would be options of this one. submitit prints what sbatch has said.
        with (
            clean_env() if "SLURM_JOB_ID" in os.environ else nullcontext(),
            redirect_stderr(StringIO()),
            refuse(RuntimeError, lambda error: f"slurm: {reason(error)}"),
        ):
            jobs = executor.submit_array([job] * count)
        self._job = jobs[0].job_id.partition("_")[0]

    def alive(self) -> int | None:
        # Its accounting, which submitit asks, is not everywhere, and shows requeued jobs as ended.
        if self._job and time.monotonic() >= self._ask_at:
            try:
                shown = _ask("squeue", "--me", "--noheader", "--array", "--format=%F").split()
                self._alive = shown.count(self._job)
            except RunFailed:
                self._alive = None
            self._ask_at = time.monotonic() + _ASK_SECONDS
        return self._alive

    def stop(self) -> None:
        request_stop(self._runs)
        _ask("scancel", "--state=PENDING", self._job)


def _ask(*command: str) -> str:
    """What a command of Slurm answers."""
    try:
        asked = subprocess.run(
            command, capture_output=True, errors="replace", timeout=_PATIENCE_SECONDS, check=True
        )
    except subprocess.TimeoutExpired:
        raise RunFailed(f"slurm: {command[0]} has not answered in {_PATIENCE_SECONDS:.0f} s") from None
    except subprocess.CalledProcessError as error:
        raise RunFailed(f"slurm: {command[0]}: {' '.join(error.stderr.split())[:300]}") from None
    return asked.stdout


def make(wanted: Wanted, runs: Path) -> SlurmExecutor:
    return SlurmExecutor(wanted.options, wanted.workers or 0, runs.resolve())
