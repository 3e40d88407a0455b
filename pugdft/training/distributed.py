"""Environment variables that decide how processes meet, looked at before anything goes by them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pugdft.errors import RunFailed, UserError

_COUNTS = {"WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "RANK": 0, "LOCAL_RANK": 0}

"""What a launcher sets, and the least of each."""

_NEEDED = ("RANK", "MASTER_ADDR", "MASTER_PORT")

_TRUE, _FALSE = {"1", "true", "yes", "on", "y", "t"}, {"", "0", "false", "no", "off", "n", "f"}
# Each would change what is trained behind the recipe's back.
_PLUGINS = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)


def check_variables() -> None:
    """See that the variables of launchers and of Accelerate can be followed.

    Raises:
        UserError: a number is none, some are missing, or one asks for what no recipe says.
    """
    for name, least in _COUNTS.items():
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) >= least):
            raise UserError(
                f"{name}: must be a whole number of at least {least}, not {value!r}. Launchers set it "
                "(torchrun, accelerate launch, --num-processes); without one, unset it"
            )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in _NEEDED if name not in os.environ]
    if world > 1 and missing:
        raise UserError(
            f"WORLD_SIZE: {world} says that this is one of several processes, but {', '.join(missing)} "
            "is not set. Start them with --num-processes, torchrun or accelerate launch, or unset WORLD_SIZE"
        )
    if world > 1 and int(os.environ["RANK"]) >= world:
        raise UserError(f"RANK: {os.environ['RANK']} is no number of {world} processes, which begin at 0")
    for name in _PLUGINS:
        if _is_on(name):
            raise UserError(f"{name}: is not supported; unset it (Accelerate's config may have set it)")
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() not in ("no", ""):
        raise UserError(
            f"ACCELERATE_DYNAMO_BACKEND: {backend} would compile unrecorded; unset it and set "
            "train.performance.compile=true"
        )


def must_use_cpu() -> bool:
    """Whether Accelerate is told to leave accelerators alone.

    Raises:
        UserError: the variable says neither yes nor no.
    """
    return _is_on("ACCELERATE_USE_CPU")


def _is_on(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in _TRUE | _FALSE:
        raise UserError(f"{name}: must be true or false, not {os.environ[name]!r}")
    return value in _TRUE


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Inside ``with``, remembers the first signal instead of dying of it.

    Attributes:
        received: the signal's number, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


# What gloo, NCCL and torch's own store say when the other side has gone.
_LOST_PEER = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "barrier")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no memory left for a tensor."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or should_reduce_batch_size(error)


def explained(error: BaseException, num_processes: int) -> str | None:
    """The cause in a sentence; None if it may be a bug of ours, whose traceback somebody needs."""
    first_line = (str(error).splitlines() or [""])[0]
    if isinstance(error, UserError | RunFailed):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or 'a file'}: {error.strerror}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in str(error):
        return f"a process that reads images was killed, perhaps for its memory ({first_line[:200]})"
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        return (
            "BatchNorm has nothing to average over in a pass of one image, whose features are 1 × 1: give "
            "train.batch_size or train.micro_batch_size more images a process, or set train.batch_norm=fixed"
        )
    lost = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST_PEER)
    )
    if num_processes > 1 and lost:
        return f"another process of this run has ended or cannot be reached ({first_line[:200]})"
    return None


# Asking other processes waits for them, and asking an accelerator for a number waits for its work: not more
# often than this, in seconds and in updates.
_SECONDS = 2.0

_STEPS = 50


@dataclass(frozen=True)
class Decision:
    """What every process does after this update; ``looked`` says whether anybody was asked at all."""

    stop: bool = False
    save: bool = False
    looked: bool = True


class Consultation:
    """Decides after each update, the same on all processes.

    Args:
        accelerator: of the run.
        interruption: what this process was told by signals.
        checkpoint_seconds: at most this long between two checkpoints.
    """

    def __init__(
        self, accelerator: Accelerator, interruption: Interruption, checkpoint_seconds: float
    ) -> None:
        self._accelerator, self._interruption = accelerator, interruption
        self._checkpoint_seconds = checkpoint_seconds
        self._is_cheap = accelerator.device.type == "cpu" and accelerator.num_processes == 1
        self._next, self._last = 0, (0, time.monotonic())
        self._saved = time.monotonic()

    def start(self, steps: int) -> None:
        """Training begins, or goes on, after so many updates."""
        self._next, self._last = steps + 1, (steps, time.monotonic())
        self.saved()

    def saved(self) -> None:
        """A checkpoint was made, or tried: the next is due after the interval."""
        self._saved = time.monotonic()

    def after_step(self, steps: int) -> Decision:
        """After an update: asks if that costs nothing or if it is time to."""
        if self._is_cheap:
            return Decision(self._interruption.received > 0, self._is_due())
        if steps < self._next:
            return Decision(looked=False)
        return self.ask(steps)

    def ask(self, steps: int) -> Decision:
        """Ask all processes now."""
        steps_before, time_before = self._last
        moment = time.monotonic()
        pace = (moment - time_before) / max(1, steps - steps_before)
        accelerator = self._accelerator
        # The first process's clock decides on saving.
        due = accelerator.is_main_process and self._is_due()
        facts = torch.tensor([float(self._interruption.received > 0), pace, due], device=accelerator.device)
        told, pace_sum, is_due = accelerator.reduce(facts, "sum").tolist()
        self._last = (steps, moment)
        steps_away = int(_SECONDS / max(pace_sum / accelerator.num_processes, 1e-9))
        self._next = steps + min(_STEPS, max(1, steps_away))
        if told and not self._interruption.received:
            self._interruption.received = int(signal.SIGTERM)
        return Decision(told > 0, is_due > 0)

    def _is_due(self) -> bool:
        return time.monotonic() - self._saved >= self._checkpoint_seconds


Result = TypeVar("Result")


class Attempt(Generic[Result]):
    """Work that is done at once, and whose failure waits until all processes can hear of it.

    Args:
        work: needs no other process.
    """

    def __init__(self, work: Callable[[], Result]) -> None:
        self._results: list[Result] = []
        self.problem: Exception | None = None
        try:
            self._results.append(work())
        except Exception as error:
            self.problem = error

    def result(self) -> Result:
        """What the work gave; the caller's from now on."""
        assert self.problem is None
        return self._results.pop()


def agree(accelerator: Accelerator, problem: Exception | None) -> None:
    """End all processes if one of them has a problem: the others would wait for it in vain.

    Raises:
        Exception: this process's own. A process that has none ends with nothing to add.
    """
    if accelerator.num_processes > 1:
        code = 0 if problem is None else 2 if isinstance(problem, UserError) else 1
        codes = accelerator.gather(torch.tensor([code], device=accelerator.device)).tolist()
        # The first process speaks for all of what a user has done; what it did not meet is this machine's.
        by_user = codes[0] == 2
        if problem is None and any(codes):
            problem = UserError("") if by_user else RunFailed("")
        elif isinstance(problem, UserError) and not by_user:
            problem = RunFailed(str(problem))
    if problem is not None:
        raise problem


def on_first_process(accelerator: Accelerator, work: Callable[[], Result]) -> Result | None:
    """What ``work`` gives on the first process; None on the others, which wait for it.

    Raises:
        Exception: the first process's; the others end as well.
    """
    attempt = Attempt(work) if accelerator.is_main_process else None
    agree(accelerator, attempt.problem if attempt else None)
    return attempt.result() if attempt else None


def require_same(accelerator: Accelerator, number: int, problem: str) -> None:
    """See that all processes have the same number.

    Raises:
        UserError: they have not; with ``problem`` as its words.
    """
    if accelerator.num_processes > 1:
        numbers = accelerator.gather(torch.tensor([number], device=accelerator.device))
        if len(set(numbers.tolist())) > 1:
            raise UserError(problem)


def settle_order_of_sums(model: nn.Module, image_size: int, device: torch.device) -> None:
    """Have the sums of gradients over processes taken in one order from the first update on.

    After its first backward pass DDP lays gradients out anew, in the order in which they came. Of three or
    more numbers the sum depends on the order, so a run that goes on would otherwise make its first update
    in other last bits than the unbroken one, whose layout had changed long before. A pass over nothing, whose
    gradients are dropped, has that change made before training.

    Args:
        model: as Accelerate wrapped it; anything else than DDP of three or more processes is left alone.
            It is put into evaluation mode, so that BatchNorm learns nothing from the pass.
        image_size: side of its square inputs.
        device: where it is.
    """
    wrapped = getattr(model, "_orig_mod", model)  # of torch.compile
    if not isinstance(wrapped, DistributedDataParallel) or torch.distributed.get_world_size() < 3:
        return
    wrapped.eval()
    with torch.enable_grad():
        wrapped(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    wrapped.zero_grad(set_to_none=True)
