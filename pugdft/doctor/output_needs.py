"""The state of a recipe's output folder, and whether there is room for what a run writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from pugdft.config.schema import Recipe
from pugdft.doctor.folders import existing, file_system, is_held, try_lock
from pugdft.doctor.report import Line, reason, size
from pugdft.errors import UserError
from pugdft.paths import file_sha256
from pugdft.records import RECORD_NAME, read_record
from pugdft.training.run import check

_NAMES = ("checkpoint", "checkpoint.previous")
_CHECKPOINTS = 3  # the newest, the one before, and the one being written
_ANOTHER = "choose another folder by --output"


def output_lines(recipe: Recipe, folder: Path, checkpoint_bytes: int | None) -> Iterator[Line]:
    """What ``pugdft finetune`` would find there.

    Args:
        recipe: resolved.
        folder: of the run.
        checkpoint_bytes: of one checkpoint, None if not known.
    """
    yield _state(recipe, folder)
    place = existing(folder)
    free = shutil.disk_usage(place).free
    try:
        locks = try_lock(place)
    except OSError as error:
        yield Line("problem", "writing", f"{place} is not writable: {error.strerror}", _ANOTHER)
        return
    if locks != "locks work":
        yield Line("problem", "writing", f"{place}: {locks} on this {file_system(place)}", _ANOTHER)
    if checkpoint_bytes is not None:
        needed = _CHECKPOINTS * checkpoint_bytes
        text = f"a run's files take up to {size(needed)}, {size(free)} are free"
        state = "problem" if needed > free else "note" if needed > 0.9 * free else "ok"
        yield Line(state, "room", text, "" if state == "ok" else f"free some space, or {_ANOTHER}")  # type: ignore[arg-type]


def _state(recipe: Recipe, folder: Path) -> Line:
    if not folder.exists():
        return Line("ok", "output", f"{folder}: not there yet")
    if not folder.is_dir():
        return Line("problem", "output", f"{folder} is not a folder", _ANOTHER)
    try:
        check(folder, recipe)
    except UserError as error:
        return Line("problem", "output", " ".join(str(error).split()), _ANOTHER)
    lock = folder / ".lock"
    if lock.is_file() and is_held(lock):
        remedy = "wait for it; the same command is refused until it ends"
        return Line("note", "output", f"{folder}: a process is at work on this run now", remedy)
    status = None
    if (folder / RECORD_NAME).is_file():
        try:
            status = read_record(folder / RECORD_NAME).status
        except UserError as error:
            text = f"{folder}: its record cannot be read: {' '.join(str(error).split())}"
            return Line("note", "output", text, "the same command goes on, and writes another")
    if status == "completed":
        text = f"{folder}: this run is complete; the same command returns its record"
        return Line("note", "output", text, "--no-resume runs it again")
    ended = f"ended as {status}" if status else "not finished"
    done, faults = _newest_checkpoint(folder)
    if done is None and faults:
        return Line(
            "problem", "output", f"{folder}: {ended}, damaged: {'; '.join(faults)}", "--no-resume starts anew"
        )
    if done is None:
        return Line("ok", "output", f"{folder}: {ended}, no checkpoint; the same command begins it")
    text = f"{folder}: {ended}; the same command goes on from update {done}"
    if faults:
        return Line(
            "note", "output", f"{text}; damaged: {'; '.join(faults)}", "none; some updates are made again"
        )
    return Line("ok", "output", text)


def _newest_checkpoint(folder: Path) -> tuple[int | None, list[str]]:
    """Updates made before the newest checkpoint that is whole, and what is wrong with newer ones.

    Without reading a tensor: by the digests that the checkpoint has of its files.
    """
    faults = []
    for name in _NAMES:
        place = folder / name
        if not place.is_dir():
            continue
        try:
            content = json.loads((place / "state.json").read_text(encoding="utf-8"))
            done = int(content["state"]["position"]["steps"])
            changed = [
                file for file, digest in content["sha256"].items() if file_sha256(place / file) != digest
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{name}: {reason(error)}")
            continue
        if not changed:
            return done, faults
        faults.append(f"{name}: {changed[0]} is not what was written")
    return None, faults
