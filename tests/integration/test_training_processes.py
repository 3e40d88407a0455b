"""Runs in two processes make the updates of one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from small_runs import largest_difference, run

from pugdft.config import yaml
from pugdft.optim.methods import METHODS
from pugdft.predictions import read_predictions
from pugdft.records import read_record


def by_two_processes(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder in two gloo processes; their start is dear, so one does for many runs."""
    path = Path(__file__).parent / "scripts" / script
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, path, *arguments], capture_output=True, text=True, cwd=path.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    # 13 images are shared as 7 and 6, and micro-batches of 4 make two passes of unequal length
    small_recipe["train"] |= {"batch_size": 13, "micro_batch_size": 4}
    base = small_recipe["optimizer"]["base"]
    methods = {"sgd": base, "sam": {"name": "sam", "base": base}, "pugd": {"name": "pugd", "base": base}}
    arguments = []
    for method, optimizer in methods.items():
        path = tmp_path / f"{method}.yaml"
        path.write_text(yaml.dump({**small_recipe, "optimizer": optimizer}))
        arguments += [str(path), str(tmp_path / "two" / method)]
    by_two_processes("several_runs.py", *arguments)
    for method, optimizer in methods.items():
        one, two = (tmp_path / number / method for number in ("one", "two"))
        single, weights = run({**small_recipe, "optimizer": optimizer}, one)
        double = read_record(two / "record.yaml")
        assert double.recipe == single.recipe
        assert double.environment["processes"] == 2
        assert largest_difference(weights, safetensors.torch.load_file(two / "model.safetensors")) < 2e-5
        assert double.history[-1]["train_top1"] == single.history[-1]["train_top1"]
        assert double.history[-1]["train_loss"] == pytest.approx(single.history[-1]["train_loss"], rel=1e-4)
        theirs, ours = (read_predictions(folder / "predictions.npz") for folder in (one, two))
        assert np.array_equal(theirs.label, ours.label)
        assert np.array_equal(theirs.prediction, ours.prediction)


@pytest.mark.slow
def test_two_processes_equal_one_for_every_method_and_local_is_the_mean_of_each_process_s_own() -> None:
    """One start of two gloo processes for all methods: see ``two_processes.py``."""
    done = by_two_processes("two_processes.py")
    assert done.stdout.count("equal: ") == len(METHODS) + 1
    assert done.stdout.count("local: ") == 3


@pytest.mark.slow
def test_processes_draw_noise_of_their_own_and_both_passes_of_each_the_same(
    small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    args = {"depth": 11, "alpha": 6}  # three blocks
    small_recipe["model"] = {"name": "cifar_pyramidnet164_a48", "pretrained": False, "args": args}
    small_recipe["train"] |= {"max_steps": 2, "batch_size": 13}
    path = tmp_path / "noisy.yaml"
    path.write_text(yaml.dump(small_recipe))
    by_two_processes("noise.py", str(path), str(tmp_path))
    first, second = (torch.load(tmp_path / f"noise-{rank}.pt") for rank in range(2))
    for drawn, images in ((first, 7), (second, 6)):
        numbers, is_true = [row[0] for row in drawn], [row[1] for row in drawn]
        assert [len(each) for each in numbers] == [3 * images] * 12
        assert is_true == ([True] * 3 + [False] * 3) * 2
        for clean, perturbed in ((0, 3), (6, 9)):
            for block in range(3):
                assert torch.equal(numbers[clean + block], numbers[perturbed + block])
        assert not torch.equal(numbers[0], numbers[6]), "the second update draws anew"
    assert not set(first[0][0].tolist()) & set(second[0][0].tolist())
