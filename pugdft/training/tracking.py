"""``finetune --track``: a run's numbers go to TensorBoard, wandb, MLflow, … by Accelerate's trackers.

A tracker can neither stop nor slow down a run. Each works in a thread of its own, from a queue; the loop only
puts numbers into it, once an epoch and every ten seconds. One that fails is reported once and dropped.
"""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from accelerate import tracking as accelerate_tracking

from pugdft.config.plugins import TRACKERS, OpenRegistry
from pugdft.config.schema import Recipe
from pugdft.errors import UserError, reason, refuse, unknown
from pugdft.training.record_writer import run_id
from pugdft.training.trainer import Observer, Position, Totals

_SECONDS = 10.0  # between two rows within an epoch: reading the loss waits for the device
_FINISH_SECONDS = 30.0  # for trackers to send what is left, at the end of a run

_PROJECT = "pugdft"
# What has to be installed for Accelerate's own trackers.
_PACKAGES = {"comet_ml": "comet-ml"} | {
    name: name
    for name in ("aim", "clearml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
}


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that nobody knows, or whose package is not installed."""
    known = _known_trackers()
    with refuse(UserError, lambda error: f"--track: {error}"):
        for name in names:
            if name not in known:
                raise UserError(unknown("tracker", name, known))
    missing = [_PACKAGES[name] for name in names if name in _PACKAGES and not importlib.util.find_spec(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        packages = " ".join(missing)
        raise UserError(f"--track: {', '.join(missing)} {verb} not installed: pip install {packages}")


def _known_trackers() -> Mapping[str, Any]:
    """Accelerate's trackers, those registered there, and those that other packages provide."""

    def accepts(name: str, found: Any) -> Any:
        if isinstance(found, type) and issubclass(found, accelerate_tracking.GeneralTracker):
            return found
        raise UserError(f'"{name}": is no subclass of accelerate.tracking.GeneralTracker')

    return OpenRegistry(accelerate_tracking.LOGGER_TYPE_TO_CLASS, TRACKERS, accepts)


class _TrackerThread(threading.Thread):
    """One tracker, which starts, logs and finishes in this thread alone."""

    def __init__(self, name: str, make: Callable[[], Any], config: Mapping[str, Any]) -> None:
        super().__init__(name=f"pugdft-{name}", daemon=True)  # one that hangs does not keep the process alive
        self.tracker_name, self._make, self._config = name, make, config
        self.rows: SimpleQueue[tuple[dict[str, float], int] | None] = SimpleQueue()  # None is the end
        self.failure = ""
        self.is_told = False

    def run(self) -> None:
        try:
            tracker = self._make()
            tracker.start()
            tracker.store_init_configuration(self._config)
            while (row := self.rows.get()) is not None:
                tracker.log(row[0], step=row[1])
            tracker.finish()
        except (Exception, SystemExit) as error:  # whatever a tracker raises, the run goes on without it
            self.failure = reason(error)


class Tracking(Observer):
    """An observer that passes all calls on to another one, and a run's numbers to trackers."""

    def __init__(self, observer: Observer, names: Sequence[str], recipe: Recipe, folder: Path) -> None:
        self._observer, self._names, self._recipe, self._folder = observer, names, recipe, folder
        self._threads: list[_TrackerThread] = []

    def on_message(self, text: str) -> None:
        self._observer.on_message(text)

    def on_detail(self, text: str) -> None:
        self._observer.on_detail(text)

    def on_facts(self, event: str, facts: dict[str, Any]) -> None:
        self._observer.on_facts(event, facts)

    def on_start(self, total: int, done: float, images_per_step: int) -> None:
        self._observer.on_start(total, done, images_per_step)
        self._images_per_step, self._shown = images_per_step, (time.monotonic(), -1)
        config = dict(_flat(self._recipe.as_dict()))
        for name in self._names:
            thread = _TrackerThread(name, self._maker(name), config)
            thread.start()
            self._threads.append(thread)

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        self._observer.on_step(position, totals, done)
        (since, steps), now = self._shown, time.monotonic()
        if now - since < _SECONDS:
            return
        loss, top1 = totals.means()  # waits for the device
        values = {"running/loss": loss, "running/top1": top1}
        if steps >= 0:  # the first steps of a run are slower
            num_images = (position.steps - steps) * self._images_per_step
            values["running/images_per_second"] = num_images / (now - since)
        self._shown = time.monotonic(), position.steps
        self._log(values, position.steps)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self._observer.on_epoch(row)
        splits = ("train", "validation", "test", "train_eval")
        values = {}
        for key, value in row.items():
            split, _, what = key.rpartition("_")
            if isinstance(value, int | float) and key != "steps":
                values[f"{split}/{what}" if split.removeprefix("plain_") in splits else key] = value
        self._log(values, row["steps"])

    def on_end(self) -> None:
        self._observer.on_end()
        deadline = time.monotonic() + _FINISH_SECONDS
        for thread in self._threads:
            thread.rows.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
            if thread.is_alive():
                thread.failure = f"it has not finished within {_FINISH_SECONDS:.0f} seconds"
        self._tell_failures()
        self._threads = []

    def _log(self, values: dict[str, float], step: int) -> None:
        for thread in self._threads:
            thread.rows.put((values, step))
        self._tell_failures()

    def _tell_failures(self) -> None:
        for thread in self._threads:
            if thread.failure and not thread.is_told:
                thread.is_told = True
                self.on_message(f"--track: {thread.tracker_name} failed and is left out: {thread.failure}")

    def _maker(self, name: str) -> Callable[[], Any]:
        """What makes a tracker, with its files in the run's folder."""
        kind, run, folder = _known_trackers()[name], run_id(self._recipe), self._folder
        options: dict[str, Any] = {
            "dvclive": {"dir": str(folder / name)},
            "mlflow": {"run_name": run},
            "swanlab": {"experiment_name": run, "logdir": str(folder / name)},
            "trackio": {"name": run},
            "wandb": {"name": run, "dir": str(folder)},
        }.get(name, {})

        def make() -> Any:
            if name == "mlflow":  # a server of the user's own has its address in this variable
                os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.absolute()}/mlflow.db")
            if not kind.requires_logging_directory:
                return kind(_PROJECT, **options)
            return kind(run if name == "aim" else name, logging_dir=str(folder), **options)

        return make


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """A recipe's values under dotted keys, as trackers take them: lists as text, nothing for null."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _flat(each, f"{place}.{key}" if place else str(key))
    elif value is not None:
        yield place, value if isinstance(value, str | int | float) else str(value)
