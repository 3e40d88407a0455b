"""One command, several processes: torch's own launcher starts this program again in each."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from pugdft.errors import UserError, shortened
from pugdft.machine import usable_cores
from pugdft.training.launchers import WORKER, check_alone

_LAUNCHER = "PUGDFT_LAUNCHER"


def is_first_here() -> bool:
    """Whether this process is the first of a run on this machine: it tells what hinders the run here."""
    local_rank = os.environ.get("LOCAL_RANK")
    return is_main_process() if local_rank is None else local_rank == "0"


def is_main_process() -> bool:
    """Whether this process prints and writes for all; true where there is only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def launch(num_processes: int, arguments: list[str]) -> int:
    """Run ``python -m pugdft ARGUMENTS`` in so many processes here; return 0, or the first failure's code."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_alone(f"{arguments[0]} --num-processes {num_processes}")
    # The processes print their own errors; the launcher would report the same failure again.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Divide the cores: torch would otherwise use all of them in every process.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes)))
    os.environ[_LAUNCHER] = str(os.getpid())
    _leave_at_a_second_ctrl_c()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        # By default torch advertises the host's name, which need not resolve, as in a container.
        local_addr="127.0.0.1",
        run_id="pugdft",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # else a folder stays in the temporary one
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pugdft", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return max(codes) if min(codes) >= 0 else 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def end_with_the_launcher() -> None:
    """End this process, a part of another one's work, when that is gone; it would go on unnoticed.

    Raises:
        UserError: the variable that names the other process names one that has not started this one.
    """
    if not {"TORCHELASTIC_RUN_ID", WORKER} & set(os.environ):
        return
    launcher = os.getppid()
    name = next((each for each in (_LAUNCHER, WORKER) if os.environ.get(each)), None)
    if name is not None and os.environ[name] != str(launcher):
        raise UserError(
            f"{name}: {shortened(os.environ[name])!r} is not the process that has started this one, "
            f"{launcher}. Only pugdft sets it, for processes that it starts and that end with it; unset it"
        )

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def end_one_of_several(code: int) -> None:
    """End one of several processes at once: torch's own shutdown may abort and make a good run fail."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        if code == 2 and not is_first_here():
            time.sleep(5)  # a launcher ends all at the first end: let the first process tell the mistake
        os._exit(code)


def _leave_at_a_second_ctrl_c() -> None:
    """Exit at the second Ctrl-C, for which torch's launcher does not; its processes end with this one."""
    # The launcher replaces our signal handlers, so this reads the signal numbers from Python's wakeup pipe.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def count() -> None:
        presses = 0
        while presses < 2:
            presses += os.read(reading, 64).count(signal.SIGINT)
        os._exit(128 + signal.SIGINT)

    threading.Thread(target=count, daemon=True).start()
