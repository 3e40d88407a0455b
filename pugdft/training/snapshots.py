"""Weights that are stored along a run, so that its way can be drawn: which, where, and the room they take."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from pugdft.config.schema import EveryStepsSection, Recipe, TrainSection
from pugdft.data.cache import find_store
from pugdft.errors import UserError, counted, human_bytes, reason
from pugdft.models import build_model
from pugdft.paths import cache_folder, file_sha256, nearest_folder
from pugdft.records import SNAPSHOT, Artifact
from pugdft.training.averaging import Weights
from pugdft.training.checkpoint import save_weights
from pugdft.training.setup import source_of

FOLDER = "snapshots"
_CLASSES = 10  # of a model whose data is not known yet: its size depends little on them


@dataclass
class Snapshots:
    """The snapshots of one run: the first weights, those of each so many epochs or updates, and the last.

    ``digests`` has the sha256 of each that is stored, by its number of updates in words; it is part of the
    run's checkpoints. The weights are those that are trained, not their average. Without ``is_on``, as in all
    processes but the first one, nothing is written.
    """

    folder: Path  # the run's
    train: TrainSection
    digests: dict[str, str]
    is_on: bool
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        """Remove what a killed run has stored after its checkpoint: it is made again."""
        self.is_on = self.is_on and self.train.takes_snapshots
        for file in self.folder.glob(f"{FOLDER}/*") if self.is_on else ():
            if file.stem not in self.digests:
                file.unlink(missing_ok=True)
        for name in [name for name in self.digests if self.is_on and not self._file(name).is_file()]:
            self.say(f"{self._file(name)} is missing: the run goes on without this snapshot")
            del self.digests[name]

    def is_due_after_step(self, steps: int) -> bool:
        every = self.train.snapshots
        return isinstance(every, EveryStepsSection) and steps % every.every_steps == 0

    def is_due_after_epoch(self, epoch: int) -> bool:
        every = self.train.snapshots
        return isinstance(every, int) and every > 0 and epoch % every == 0

    def take(self, steps: int, weights: Callable[[], Weights]) -> None:
        """Store weights and their digest, once for a number of updates; only report a disk that is full."""
        name = f"{steps:08d}"
        if not self.is_on or name in self.digests:
            return
        file = self._file(name)
        try:
            file.parent.mkdir(exist_ok=True)
            save_weights(weights(), file)
            self.digests[name] = file_sha256(file)
        except OSError as error:
            self.say(f"{file}: this snapshot cannot be stored: {reason(error)}")

    def _file(self, name: str) -> Path:
        return self.folder / FOLDER / f"{name}.safetensors"


def artifacts(digests: dict[str, str]) -> dict[str, Artifact]:
    """The entries of a record for its snapshots."""
    return {
        f"{SNAPSHOT}{name}": Artifact(path=f"{FOLDER}/{name}.safetensors", sha256=digest)
        for name, digest in digests.items()
    }


def count(train: TrainSection, steps_per_epoch: int | None) -> int | None:
    """How many snapshots a run takes at most; None if that depends on a number of images not known yet."""
    every, epochs, steps = train.snapshots, train.epochs, None
    if steps_per_epoch is not None:
        steps = min(train.epochs * steps_per_epoch, train.max_steps or train.epochs * steps_per_epoch)
        epochs = -(-steps // steps_per_epoch)
    if isinstance(every, int):
        return 1 + -(-epochs // every) if train.takes_snapshots else 0
    return None if steps is None else 1 + -(-steps // every.every_steps)


def num_bytes(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def described(recipe: Recipe, steps_per_epoch: int | None, size: int) -> str:
    """Say how many snapshots of ``size`` bytes a run stores, and what they take."""
    found = count(recipe.train, steps_per_epoch)
    if found is None:
        return f"one of {human_bytes(size)} each {recipe.train.snapshots.every_steps:,} updates"  # type: ignore[union-attr]
    return f"{counted(found, 'file')} × {human_bytes(size)} = {human_bytes(found * size)} in the run's folder"


def planned(recipe: Recipe) -> str:
    """Say the same before anything is prepared, of a model without its weights."""
    steps, classes, data = None, _CLASSES, recipe.data
    with suppress(UserError, OSError):  # no data, which the run itself will tell
        if store := find_store(cache_folder() / "stores", source_of(recipe), data.image_size):
            num_images, classes = len(store.labels("train")), len(store.classes)
            steps = int(num_images * (1 - data.validation)) // recipe.train.batch_size
    section = recipe.model.model_copy(update={"pretrained": False, "head": "auto"})
    model = build_model(section, classes, data.image_size, recipe.train.seed, look=data).model
    return described(recipe, steps, num_bytes(model.state_dict()))


def check_room(recipe: Recipe, steps_per_epoch: int, size: int, folder: Path) -> None:
    """Refuse a disk that has no room for the snapshots that are still to be stored."""
    usage = shutil.disk_usage(nearest_folder(folder))
    there = sum(file.stat().st_size for file in folder.glob(f"{FOLDER}/*.safetensors"))
    needed = (count(recipe.train, steps_per_epoch) or 0) * size - there
    if usage.total and needed > usage.free:  # not every file system can tell
        taken = described(recipe, steps_per_epoch, size)
        raise UserError(
            f"train.snapshots: {taken}, {human_bytes(usage.free)} are free; take fewer, or choose another "
            "--output"
        )
