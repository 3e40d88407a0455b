"""Run as ``kills.py random|save FOLDER``: commands killed with SIGKILL; prints what became of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
from conftest import write_image_folder
from small_runs import IMAGES, SGD, differences, outcome_of

from pugdft.training import checkpoint

Install = Callable[[], Any]
KILLS = 8
"""At most, of each of the runs that are killed at random."""
ENOUGH, MOST_RUNS = (10, 3), 12
"""Kills, and different updates that runs went on from; a slow hand at killing needs more runs for them."""


def at_random(root: Path, images: Path) -> dict[str, Any]:
    """Kill a run again and again, at any moment of its life, until it is finished."""
    rng = random.Random(11)
    kills, lost, starts, found = 0, [], [], []
    for number in range(MOST_RUNS):
        if number > 1 and kills >= ENOUGH[0] and len(set(starts)) >= ENOUGH[1]:
            break
        method = ("pugd", "vasso")[number % 2]
        recipe = forks.write_recipe(
            root / f"{method}.yaml", images, {"name": method, "base": SGD}, epochs=12, checkpoint_minutes=1e-6
        )
        if number < 2:
            forks.completed(root / f"whole{number}", recipe)
        folder = root / f"cut{number}"
        step: int | None = None
        for _ in range(KILLS):
            child = forks.start(folder, recipe)
            # While it starts, or some updates after that, at any place of an update or a save.
            if rng.random() < 0.7:
                child.wait_for_step(min(35, (step or 0) + rng.randint(1, 3)))  # of 36
            time.sleep(rng.uniform(0, 0.06))
            child.kill()
            if child.wait() == 0:
                break
            kills += 1
            reached, (step, faults) = child.step, forks.whole_checkpoint(folder)
            assert faults == [], faults
            starts.append(step or 0)
            lost.append(max(0, reached - (step or 0)))
        forks.completed(folder, recipe)  # returns at once if it was finished
        found += differences(outcome_of(root / f"whole{number % 2}"), outcome_of(folder))
    return {"kills": kills, "most_lost": max(lost), "starts": starts, "differences": found}


def kill_at(operation: int) -> Install:
    """In a child: die before the given file operation of the next save, or in the middle of it."""

    def install() -> None:
        forks.save_after_each_step()
        count, saving = 0, False
        save = checkpoint.save_checkpoint

        def counting(*arguments: Any) -> None:
            nonlocal saving
            saving = True
            save(*arguments)
            saving = False
            os._exit(99 if count < operation else 98)  # there are no more operations

        def counted(function: Callable[..., Any], halfway: Callable[..., Any] | None = None) -> Any:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                if saving:
                    count += 1
                    if count == operation:
                        os.kill(os.getpid(), signal.SIGKILL)
                    count += halfway is not None
                    if halfway is not None and count == operation:
                        halfway(function, *arguments, **options)
                        os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return wrapped

        checkpoint.save_checkpoint = counting
        for place, name in (
            (os, "fsync"),
            (os, "replace"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "mkdir"),
        ):
            setattr(place, name, counted(getattr(place, name)))
        Path.write_text = counted(Path.write_text, half_a_text)
        shutil.rmtree = counted(shutil.rmtree, half_a_folder)
        checkpoint.torch.save = counted(checkpoint.torch.save, half_a_file)
        checkpoint.safetensors.torch.save_file = counted(checkpoint.safetensors.torch.save_file, half_a_file)

    return install


def half_a_text(function: Any, path: Path, text: str) -> None:
    function(path, text[: len(text) // 2])


def half_a_file(function: Any, content: Any, path: Path) -> None:
    function(content, path)
    os.truncate(path, os.path.getsize(path) // 2)


def half_a_folder(function: Any, path: Path, **options: Any) -> None:
    files = sorted(path.iterdir()) if path.is_dir() else []
    for each in files[: len(files) // 2]:
        each.unlink()


def save_in_place(
    folder: Path, model: Any, optimizer: dict[str, Any], state: dict[str, Any], *_predictions_and_further: Any
) -> None:
    """What ``save_checkpoint`` would be without its new folder beside the old one."""
    place = folder / checkpoint.CHECKPOINT_NAME
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    checkpoint.save_weights(model, place / "weights.safetensors")
    checkpoint.torch.save(optimizer, place / "optimizer.pt")
    digests = {path.name: checkpoint.file_sha256(path) for path in sorted(place.iterdir())}
    content = {"sha256": digests, "state": state}
    (place / "state.json").write_text(json.dumps({**content, "own_sha256": checkpoint._digest(content)}))


def sweep(
    root: Path, base: Path, recipe: Path, before: Install, after: Callable[[Path], Any] | None
) -> dict[str, Any]:
    """Die at the first, second, … operation of the save that follows the checkpoints in ``base``.

    Args:
        before: called in the child.
        after: called with each folder, after all kills; None: the sweep ends as soon as all is lost.
    """
    resumed: list[int | None] = []
    for operation in range(1, 200):
        folder = root / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)

        def install(operation: int = operation) -> None:
            before()
            kill_at(operation)()

        child = forks.start(folder, recipe, install)
        code = child.wait()
        if code == 99:
            break
        assert code == -signal.SIGKILL, (code, child.output())
        step, _ = forks.whole_checkpoint(folder)
        resumed.append(step)
        # Most operations leave the same checkpoint: go on from the first of each, and from every fourth.
        if after is not None and (step not in resumed[:-1] or operation % 4 == 0):
            after(folder)
        elif after is not None:
            continue
        elif step is None:
            break
    return {"resumed": resumed}


def in_a_save(root: Path, images: Path) -> dict[str, Any]:
    """Sweeps over the operations of a save: as it is, after damage, and of two worse ways of saving."""
    recipe = forks.write_recipe(root / "recipe.yaml", images, {"name": "vasso", "base": SGD}, epochs=2)
    forks.completed(root / "whole", recipe)
    whole = outcome_of(root / "whole")
    base = root / "base"

    def stopped_at_two() -> None:
        forks.save_after_each_step()
        forks.stop_at(2)

    child = forks.start(base, recipe, stopped_at_two)
    assert child.wait() == 143, child.output()
    # One checkpoint alone, and two of which the newer one is damaged.
    single, damaged = root / "single", root / "damaged"
    shutil.copytree(base, single)
    shutil.rmtree(single / checkpoint.PREVIOUS_NAME)
    shutil.copytree(base, damaged)
    os.truncate(damaged / "checkpoint" / "optimizer.pt", 100)
    found: list[str] = []

    def finish(folder: Path) -> None:
        forks.completed(folder, recipe)
        found.extend(differences(whole, outcome_of(folder)))

    def in_place() -> None:
        checkpoint.save_checkpoint = save_in_place

    def with_damage_kept() -> None:
        checkpoint.put_damaged_aside = lambda folder: None

    def plain() -> None:
        pass

    result = {
        "kept": sweep(root, base, recipe, plain, finish),
        "damaged": sweep(root, damaged, recipe, plain, lambda folder: None),
        "in_place": sweep(root, single, recipe, in_place, None),
        "damage_kept": sweep(root, damaged, recipe, with_damage_kept, None),
    }
    return {**result, "differences": found}


if __name__ == "__main__":
    place = Path(sys.argv[2])
    insects = write_image_folder(place / "insects", IMAGES)
    print(json.dumps((at_random if sys.argv[1] == "random" else in_a_save)(place, insects)), flush=True)
    os._exit(0)  # a second sooner than with torch's own end
