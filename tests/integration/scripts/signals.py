"""Run as ``signals.py CASE FOLDER``: signals to commands and to their helpers; prints what they came to."""

from __future__ import annotations

import json
import multiprocessing
import operator
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import psutil
from conftest import write_image_folder
from small_runs import IMAGES, SGD, differences, outcome_of

from pugdft.data import workers as image_workers
from pugdft.training import checkpoint
from pugdft.training.distributed import RankSync, SyncDecision


def in_a_save(number: int) -> Callable[[], None]:
    """In a child: a checkpoint after each update, held before the given file of the first is flushed."""

    def install() -> None:
        forks.save_after_each_step()
        flush, count = checkpoint._flush, 0

        def counted(path: Path) -> None:
            nonlocal count
            count += 1
            if count == number:
                forks.held()
            flush(path)

        checkpoint._flush = counted

    return install


def twice(root: Path, images: Path) -> dict[str, Any]:
    """A second Ctrl-C in an update and in a save; a second SIGTERM changes nothing."""
    recipe = forks.write_recipe(root / "recipe.yaml", images, {"name": "vasso", "base": SGD}, epochs=2)
    forks.completed(root / "whole", recipe)
    results: list[Any] = []
    for number, before in (
        (signal.SIGINT, lambda: forks.after_step(1)),
        (signal.SIGINT, in_a_save(1)),
        (signal.SIGINT, in_a_save(4)),
        (signal.SIGTERM, in_a_save(1)),
    ):
        folder = root / f"run{len(results)}"
        child = forks.start(folder, recipe, before)
        child.wait_for(forks.HELD, 1)
        for count in (1, 2):
            child.kill(number)
            child.wait_for(forks.SIGNALS, count)
        if number == signal.SIGTERM:
            child.let_go()  # a second Ctrl-C needs nobody to let it go
        code = child.wait()
        step, faults = forks.whole_checkpoint(folder)
        text = child.output()
        forks.completed(folder, recipe)
        results.append(
            {
                "code": code,
                "step": step,
                "traceback": "Traceback" in text,
                "faults": faults,
                "differences": differences(outcome_of(root / "whole"), outcome_of(folder)),
            }
        )
    return {"results": results}


def two(root: Path, images: Path) -> dict[str, Any]:
    """Two commands on one folder; the first is killed, and its lock file stays."""
    recipe = forks.write_recipe(root / "recipe.yaml", images, SGD, epochs=2)
    other = forks.write_recipe(root / "other.yaml", images, SGD, epochs=3)
    folder = root / "run"
    first = forks.start(folder, recipe, lambda: forks.after_step(1))
    first.wait_for(forks.HELD, 1)
    second = forks.start(folder, recipe)
    refused, said = second.wait(), second.output()
    first.kill()
    first.wait()
    has_lock_file = (folder / ".lock").is_file()
    strange = forks.start(folder, other)
    strange_code, difference = strange.wait(), strange.output()
    forks.completed(folder, recipe)
    return {
        "refused": refused,
        "said": said,
        "lock_file": has_lock_file,
        "other": strange_code,
        "difference": difference,
    }


def ask_late() -> None:
    """In a child: look at signals no sooner than after some updates more, as with an accelerator."""
    poll_now = RankSync.poll_now

    def poll(self: Any, steps: int) -> SyncDecision:
        return poll_now(self, steps) if steps >= 30 else SyncDecision(polled=False)

    RankSync.poll = poll
    RankSync.poll_now = poll


def kill_a_worker() -> None:
    """In a child: kill a process that augments images, and wait until it is seen to be gone."""
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()


def workers(root: Path, images: Path) -> dict[str, Any]:
    """A process that augments images is killed; a whole process group is told to stop; the run is killed."""
    recipe = forks.write_recipe(root / "recipe.yaml", images, SGD, epochs=14)
    recipe.write_text(recipe.read_text().replace("data:", "data:\n  auto_augment: rand-m9\n  workers: 2"))
    folder = root / "run"

    def helpers(child: forks.Child) -> list[psutil.Process]:
        return psutil.Process(child.pid).children(recursive=True)

    def kill_one() -> tuple[int, str]:
        child = forks.start(folder, recipe, lambda: forks.after_step(4, kill_a_worker))
        return child.wait(), child.output()

    def tell_all(where: Path, before: Any) -> tuple[int, str]:
        child = forks.start(where, recipe, lambda: (forks.after_step(8), ask_late(), before()))
        child.wait_for(forks.HELD, 1)
        os.killpg(child.pid, signal.SIGTERM)
        child.wait_for(forks.SIGNALS, 1)
        child.let_go()
        return child.wait(), child.output()

    def survivors(where: Path, step: int, before: Any, seconds: float) -> int:
        child = forks.start(where, recipe, lambda: (forks.after_step(step), before()))
        child.wait_for(forks.HELD, 1)
        left = helpers(child)
        assert len(left) == 4, left  # a tracker, a fork server, two workers
        child.kill()
        child.wait()
        _, alive = psutil.wait_procs(left, timeout=seconds)
        alive = [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
        for each in alive:
            each.kill()
        return len(alive)

    def unprotected() -> None:
        image_workers._start_fork_server = lambda: None

    def unwatched() -> None:
        image_workers._live_as_long_as_the_run = operator.index  # something that does nothing, and pickles

    results: dict[str, Any] = {"killed": kill_one(), "told": tell_all(folder, lambda: None)}
    results["step"] = forks.whole_checkpoint(folder)[0]
    results["survivors"] = survivors(folder, 31, lambda: None, 300)  # as long as it may take
    forks.completed(folder, recipe)
    alone = root / "alone.yaml"
    alone.write_text(recipe.read_text().replace("workers: 2", "workers: 0"))
    forks.completed(root / "whole", alone)
    results["differences"] = differences(outcome_of(root / "whole"), outcome_of(folder))
    results["told_unprotected"] = tell_all(root / "unprotected", unprotected)
    results["survivors_unwatched"] = survivors(root / "unwatched", 1, unwatched, 3)
    return results


if __name__ == "__main__":
    place = Path(sys.argv[2])
    insects = write_image_folder(place / "insects", IMAGES)
    print(
        json.dumps({"twice": twice, "two": two, "workers": workers}[sys.argv[1]](place, insects)), flush=True
    )
    os._exit(0)  # a second sooner than with torch's own end
