"""Makes a run's checkpoints and takes it back to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pugdft.checkpoint import Checkpoint, load_checkpoint, put_damaged_aside, save_checkpoint
from pugdft.errors import UserError
from pugdft.observer import Observer
from pugdft.outcome import Progress
from pugdft.parts import Parts
from pugdft.processes import require_same
from pugdft.starts import Starts


class Keeper:
    """The checkpoints of one run in its folder.

    Args:
        folder: the run's.
        parts: whose state is kept; changed in place when the run goes back to a checkpoint.
        starts: of the run so far; one more is noted.
        observer: hears of what is found or fails.
    """

    def __init__(self, folder: Path, parts: Parts, starts: Starts, observer: Observer) -> None:
        self._folder, self._parts, self._starts, self._observer = folder, parts, starts, observer
        self._saved_at: int | None = None

    def begin(self) -> tuple[Progress, list[float]] | None:
        """Go back to the newest whole checkpoint and note the start.

        Returns:
            What the run had come to and the sums of its epoch; None without a checkpoint.

        Raises:
            UserError: it was made with other images or other initial weights, or not all processes find it.
        """
        checkpoint, damage = load_checkpoint(self._folder)
        for fault in damage:
            self._observer.on_message(f"a checkpoint is damaged and is left out: {fault}")
        accelerator, facts, found = self._parts.accelerator, dict[str, Any](), None
        require_same(
            accelerator,
            -1 if checkpoint is None else checkpoint.state["position"]["steps"],
            f"{self._folder}: the processes of this run find different checkpoints here; --output has to be "
            "on a disk that all of them share",
        )
        if damage and accelerator.is_main_process:
            put_damaged_aside(self._folder)
        if checkpoint is not None:
            found = self._restored(checkpoint), checkpoint.state["totals"]
            self._saved_at = found[0].position.steps
            self._observer.on_message(f"going on from update {self._saved_at}")
            if checkpoint.state["processes"] != accelerator.num_processes:
                facts = {"processes": accelerator.num_processes}
                self._observer.on_message(
                    f"it began with {checkpoint.state['processes']} processes and goes on with "
                    f"{accelerator.num_processes}: the result is not what it would have been, for BatchNorm "
                    "averages over each process's images and sums are taken in another order"
                )
        self._starts.add(self._saved_at or 0, **facts)
        if accelerator.is_main_process:
            self._starts.write()
        return found

    def save(self, progress: Progress, totals: list[float]) -> None:
        """Make a checkpoint, all processes together; a disk that does not take it is only told of.

        Args:
            progress: of the run.
            totals: the epoch's sums over all processes.
        """
        parts, accelerator = self._parts, self._parts.accelerator
        optimizer = parts.optimizer.state_dict()
        if accelerator.is_main_process:
            state = {
                **progress.to_state(),
                "totals": totals,
                "sources": self._sources(),
                "processes": accelerator.num_processes,
            }
            try:
                save_checkpoint(self._folder, parts.backbone.model, optimizer, state, progress.predictions)
                self._saved_at = progress.position.steps
            except OSError as error:
                where = f"{error.filename or self._folder}: {error.strerror or error}"
                stays = self.in_words("; that of update {} stays")
                self._observer.on_message(f"no checkpoint could be made: {where}{stays}")
        accelerator.wait_for_everyone()

    def in_words(self, words: str) -> str:
        """``words`` with the update that the newest checkpoint is of; nothing if there is none."""
        return "" if self._saved_at is None else words.format(self._saved_at)

    def _restored(self, checkpoint: Checkpoint) -> Progress:
        now = self._sources()
        for what, digest in checkpoint.state["sources"].items():
            if now[what] != digest:
                raise UserError(
                    f"{self._folder}: the {what} have changed since this run began ({digest[:12]}… then, "
                    f"{now[what][:12]}… now); --no-resume starts anew"
                )
        self._parts.backbone.model.load_state_dict(checkpoint.weights)
        self._parts.optimizer.load_state_dict(checkpoint.optimizer)
        return Progress.from_state(checkpoint.state, checkpoint.predictions)

    def _sources(self) -> dict[str, str]:
        return {"images": self._parts.store.sha256, "weights": self._parts.backbone.weights_sha256}
