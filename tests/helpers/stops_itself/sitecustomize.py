"""Imported by Python itself in what tests start: the process stops (SIGSTOP) in the middle of its training.

That is as it is about to replace a checkpoint, or so many seconds after, wherever it is then. A test that
waits until it stands still needs no luck to find a run that has a checkpoint and is not finished.
"""

import os
import signal
import sys
from pathlib import Path

_num_finished, _seconds = os.environ["STOPS_ITSELF"].split(":")
_is_done = False


def _stop(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    global _is_done
    if event != "os.rename" or _is_done or Path(str(arguments[1])).name != "checkpoint.previous":
        return
    run = Path(str(arguments[1])).parent
    others = [path for path in run.parent.glob("*/record.yaml") if path.parent != run]
    if len(others) >= int(_num_finished):
        _is_done = True
        if float(_seconds):
            signal.signal(signal.SIGALRM, _stop)
            signal.setitimer(signal.ITIMER_REAL, float(_seconds))
        else:
            _stop()


sys.addaudithook(_watch)
