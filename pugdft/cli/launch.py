"""One command, several processes: torch's own launcher starts this program again in each."""

from __future__ import annotations

import os
import sys


def is_main_process() -> bool:
    """Whether this process speaks for all; true where there is only one."""
    return os.environ.get("RANK", "0") == "0"


def launch(num_processes: int, arguments: list[str]) -> int:
    """Run ``python -m pugdft ARGUMENTS`` in each of ``num_processes`` processes on this machine.

    Returns:
        0, or the exit code of a process that failed first.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes speak for themselves; the launcher's report of the same failure helps nobody.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Processes share the cores; torch would otherwise give all of them to each.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
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
