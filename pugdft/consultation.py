"""What all processes of a run must agree on while it goes on: whether to stop, whether to save."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from pugdft.interruption import Interruption

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
