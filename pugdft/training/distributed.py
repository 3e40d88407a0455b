"""Runs of several processes: stop signals, errors, and decisions made together."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pugdft.errors import FolderBusy, RunFailed, UserError


class StopSignal:
    """Remember SIGINT and SIGTERM inside a ``with`` instead of ending at once; a second SIGINT does end."""

    def __init__(self) -> None:
        self.received = 0  # the number of the first signal
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


# Words in the errors of gloo, NCCL and torch's store when another process has ended.
_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "barrier")


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether the device or the machine had no memory left for a tensor."""
    is_known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_known or (isinstance(error, Exception) and should_reduce_batch_size(error))


def explain_failure(error: BaseException, num_processes: int) -> str | None:
    """Explain an error in one sentence; None for what may be a bug, whose traceback is needed."""
    text = str(error)
    first_line = (text.splitlines() or [""])[0][:200]
    if isinstance(error, UserError | RunFailed):
        return text
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:
        return f"a process that reads images was killed, perhaps for its memory ({first_line})"
    if isinstance(error, ValueError) and "more than 1 value per channel" in text:
        return (
            "BatchNorm has nothing to average over in a pass of one image, whose features are 1 × 1: give "
            "train.batch_size or train.micro_batch_size more images a process, or set train.batch_norm=fixed"
        )
    says_so = isinstance(error, RuntimeError) and any(word in text.lower() for word in _LOST_PEER)
    if num_processes > 1 and (says_so or isinstance(error, torch.distributed.DistError)):
        return f"another process of this run has ended or cannot be reached ({first_line})"
    return None


# Polling waits for the other processes and for the accelerator's work: once in so many seconds or updates.
_SECONDS, _STEPS = 2.0, 50


class SyncDecision(NamedTuple):
    """What all processes do after an update; ``polled`` says whether they were asked at all."""

    stop: bool = False
    save: bool = False
    polled: bool = True


class RankSync:
    """Decide after each update, equally on all processes, whether to stop and whether to save."""

    def __init__(self, accelerator: Accelerator, stop_signal: StopSignal, minutes: float, steps: int) -> None:
        """``minutes``: the longest time between two checkpoints; ``steps``: updates made before."""
        self._accelerator, self._stop_signal, self._save_seconds = accelerator, stop_signal, 60 * minutes
        self._is_cheap = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        self._next_poll, self._last_poll = steps + 1, (steps, time.monotonic())
        self.note_saved()

    def note_saved(self) -> None:
        """Start the interval until the next checkpoint."""
        self._saved = time.monotonic()

    def poll(self, steps: int) -> SyncDecision:
        """Decide after an update; ask the other processes only from time to time."""
        if self._is_cheap:
            return SyncDecision(self._stop_signal.received > 0, self._is_due())
        if steps < self._next_poll:
            return SyncDecision(polled=False)
        return self.poll_now(steps)

    def poll_now(self, steps: int) -> SyncDecision:
        """Ask all processes and decide."""
        accelerator, (last_steps, last_time) = self._accelerator, self._last_poll
        now = time.monotonic()
        step_seconds = (now - last_time) / max(1, steps - last_steps)
        # The first process's clock decides on saving.
        is_due = accelerator.is_main_process and self._is_due()
        own = [float(self._stop_signal.received > 0), step_seconds, float(is_due)]
        stop, seconds, save = accelerator.reduce(torch.tensor(own, device=accelerator.device), "sum").tolist()
        self._last_poll = (steps, now)
        steps_until = int(_SECONDS / max(seconds / accelerator.num_processes, 1e-9))
        self._next_poll = steps + min(_STEPS, max(1, steps_until))
        if stop and not self._stop_signal.received:
            self._stop_signal.received = int(signal.SIGTERM)
        return SyncDecision(stop > 0, save > 0)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved >= self._save_seconds


Result = TypeVar("Result")


def attempt(work: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """Call ``work``; return its result, or the error that is to be raised on all processes."""
    try:
        return work(), None
    except Exception as error:
        return None, error


def raise_together(accelerator: Accelerator, error: Exception | None) -> None:
    """Raise this process's error, or an empty one if another process has one: else it would wait forever."""
    if accelerator.num_processes > 1:
        code = error.exit_code if isinstance(error, UserError) else 1
        codes = gathered(accelerator, 0 if error is None else code)
        # An error of the user is the same on the first process; any other one is of a single machine.
        kinds = {kind.exit_code: kind for kind in (UserError, FolderBusy)}
        by_user = codes[0] in kinds
        if error is None and any(codes):
            error = kinds[codes[0]]("") if by_user else RunFailed("")
        elif isinstance(error, UserError) and not by_user:
            error = RunFailed(str(error))
    if error is not None:
        raise error


def gathered(accelerator: Accelerator, number: int) -> list[int]:
    """Return the numbers of all processes."""
    return list(accelerator.gather(torch.tensor([number], device=accelerator.device)).tolist())


def fix_reduction_order(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Make DDP sum gradients in the same order in every update, the first one after a restart included.

    After its first backward pass DDP groups gradients anew, in the order in which they came. The sum of three
    or more numbers depends on the order, so the first update after a restart would differ in its last bits.
    One pass over zeros has DDP do so now, in evaluation mode, so that BatchNorm does not see it.
    """
    wrapped = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(wrapped, DistributedDataParallel) or torch.distributed.get_world_size() < 3:
        return
    wrapped.eval()
    with torch.enable_grad():
        wrapped(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    wrapped.zero_grad(set_to_none=True)


def wrapped_anew(model: nn.Module) -> nn.Module:
    """Wrap a model in DDP again: it waits for the gradients of what was trained when it was made."""
    before = getattr(model, "_orig_mod", model)  # of torch.compile
    assert isinstance(before, DistributedDataParallel)
    return DistributedDataParallel(
        before.module, device_ids=before.device_ids, output_device=before.output_device
    )
