"""One command, several processes: torch's own launcher starts this program again in each."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

from pugdft.machine import usable_cores

_LAUNCHER = "PUGDFT_LAUNCHER"


def is_main_process() -> bool:
    """Whether this process prints and writes for all; true where there is only one."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def launch(num_processes: int, arguments: list[str]) -> int:
    """Run ``python -m pugdft ARGUMENTS`` in so many processes here; return 0, or the first failure's code."""
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
        rdzv_endpoint="localhost:0",
        # By default torch advertises the host's name, which need not resolve, as in a container.
        local_addr="localhost",
        run_id="pugdft",
        max_restarts=0,
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
    """End this process, started by ``launch``, when the launcher is gone; it would train on unnoticed."""
    launcher = os.environ.get(_LAUNCHER, "")

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os._exit(1)

    if launcher.isdigit() and "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def end_one_of_several(code: int) -> None:
    """End one of several processes at once: torch's own shutdown may abort and make a good run fail."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        with suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
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
