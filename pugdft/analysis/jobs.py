"""A computation of many points that can be stopped anywhere, is stored as far as it is, and goes on later."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pugdft.analysis.files import read_analysis
from pugdft.analysis.overlay import Overlay
from pugdft.analysis.points import Evaluator, PointValue, restored
from pugdft.errors import UserError, refuse
from pugdft.records import is_number

_SAVE_SECONDS = 10.0

Point = tuple[int, ...]


@dataclass
class Progress:
    """Of a computation that may be stopped: who asks for it, and who is told.

    Attributes:
        deadline: on the clock of ``time.monotonic``.
        is_stopped: asked before each point.
        on_point: called with the points done and all points.
    """

    deadline: float = math.inf
    is_stopped: Callable[[], bool] = lambda: False
    on_point: Callable[[int, int], None] = lambda done, total: None

    @property
    def must_end(self) -> bool:
        return self.is_stopped() or time.monotonic() >= self.deadline


class PointJob(ABC):
    """Points of weight space, each evaluated once, in an order in which every beginning can be drawn.

    Attributes:
        resume: whether what an earlier command stored is taken over.
        digest: of weights, sample and options.
        loss: NaN where a point is not done, infinite where the loss is not a number.
        seconds: of all computations so far.
    """

    overlay: Overlay
    resume: bool
    digest: str
    evaluators: list[Evaluator]
    loss: np.ndarray
    seconds: float = 0.0

    @property
    @abstractmethod
    def title(self) -> str:
        """What is computed, in a few words."""

    @property
    @abstractmethod
    def path(self) -> Path:
        """The ``.yaml`` of the stored form."""

    @property
    @abstractmethod
    def num_points(self) -> int: ...

    @property
    @abstractmethod
    def num_done(self) -> int: ...

    @abstractmethod
    def points(self) -> Iterator[Point]:
        """All points in their order."""

    @abstractmethod
    def begin(self, stack: ExitStack) -> None:
        """Get ready; what has to be undone goes on the stack."""

    @abstractmethod
    def is_done(self, point: Point) -> bool: ...

    @abstractmethod
    def evaluate(self, point: Point) -> PointValue: ...

    @abstractmethod
    def keep(self, point: Point, value: PointValue) -> None: ...

    @abstractmethod
    def store(self) -> Path:
        """Write the stored form as far as it is computed."""

    def take_stored(self, **shapes: tuple[int, ...]) -> list[np.ndarray] | None:
        """The arrays of these names and shapes that an earlier command left; None if there are none to use.

        Raises:
            UserError: the stored form is damaged, or of another computation.
        """
        if not (self.resume and self.path.exists()):
            return None
        with refuse(UserError, lambda error: f"{error}\n--no-resume computes it again"):
            stored = read_analysis(self.path)
            found = {name: stored.arrays.get(name) for name in shapes}
            wrong = [
                name
                for name, each in found.items()
                if each is None or each.shape != shapes[name] or each.dtype != np.float64
            ]
            if wrong:
                raise UserError(
                    f"{self.path}: is damaged: it has no {' and no '.join(wrong)} as computed here"
                )
            if stored.facts["digest"] != self.digest:
                raise UserError(f"{self.path}: is of other weights, images or options than its name says")
        seconds = stored.facts.get("seconds")
        self.seconds = float(seconds) if is_number(seconds) else 0.0
        return [each for each in found.values() if each is not None]

    @property
    def passes(self) -> int:
        """Forward passes over the sample for all points."""
        return self.num_points * self.evaluators[0].passes

    def compute(self, progress: Progress | None = None) -> bool:
        """Compute what is missing, and store it every ten seconds and at the end; False if it was stopped.

        Raises:
            UserError: no loss is a finite number.
        """
        progress = progress or Progress()
        start = saved = time.monotonic()
        earlier = self.seconds
        with ExitStack() as stack:
            self.begin(stack)  # what it refuses leaves no file
            stack.callback(self.store)  # on every way out, also by an error or Ctrl-C
            for point in self.points():
                if self.is_done(point):
                    continue
                if progress.must_end:
                    return False
                self.keep(point, self.evaluate(point))
                self.seconds = earlier + time.monotonic() - start
                progress.on_point(self.num_done, self.num_points)
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    self.store()
                    saved = time.monotonic()
        if not np.isfinite(self.loss).any():
            raise UserError(
                f"{self.overlay.models[0].name}: no loss is a finite number, not even at the run's own "
                "weights: nothing can be drawn"
            )
        return True

    def seconds_a_point(self) -> float:
        """The mean of two points that are thrown away, after one to get ready."""
        with restored(self.overlay.models[0].model):
            self.evaluators[0].at()
            start = time.perf_counter()
            for _ in range(2):
                self.evaluators[0].at()
            return (time.perf_counter() - start) / 2
