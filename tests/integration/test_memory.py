"""Memory that runs out, memory that is kept, and passes through a frozen backbone that are not made twice."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import Messages, Weights
from small_runs import run as trained
from torch import nn

from pugdft import models as freezing
from pugdft.models import Backbone
from pugdft.training import setup as parts
from pugdft.training.trainer import Observer


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def with_hook(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Has every model that is built from now on call a function before each forward pass."""

    def install(hook: Callable[..., None]) -> None:
        build = parts.build_model

        def built(*arguments: Any, **options: Any) -> Backbone:
            backbone = build(*arguments, **options)
            backbone.model.register_forward_pre_hook(hook)
            return backbone

        monkeypatch.setattr(parts, "build_model", built)

    return install


def too_large(limit: int, training_only: bool = True) -> Callable[..., None]:
    """A memory that holds passes of so many images: more of them ask for a petabyte, and are refused it."""

    def hook(model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > limit and (torch.is_grad_enabled() or not training_only):
            torch.empty(1 << 50)

    return hook


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam", "pugd", "looksam"])
def test_a_batch_that_memory_does_not_hold_is_halved_until_it_fits_and_results_stay(
    method: str, small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    small_recipe["optimizer"]["name"] = method
    _, expected = trained(small_recipe, tmp_path / "given", "train.micro_batch_size=6")
    with_hook(too_large(8))
    messages = Messages()
    record, weights = trained(small_recipe, tmp_path / "found", observer=messages)
    assert record.status == "completed"
    assert same(weights, expected)
    assert [(each["step"], each["micro_batch_size"]) for each in record.restarts] == [(0, 12), (0, 6)]
    assert record.environment["micro_batch_size"] == 6
    assert sum("trying again with 12" in text for text in messages.texts) == 1
    assert record.cost.steps == 6, "the batch of an update is what it was"


@pytest.mark.slow
def test_memory_that_runs_out_in_an_evaluation_costs_no_finished_epoch(
    small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    _, expected = trained(small_recipe, tmp_path / "given", "train.micro_batch_size=12")
    evaluations = 0

    def hook(model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal evaluations
        if not torch.is_grad_enabled() and len(inputs[0]) > 32:
            evaluations += 1
            if evaluations > 1:  # the first epoch's still finds memory
                torch.empty(1 << 50)

    with_hook(hook)
    record, weights = trained(small_recipe, tmp_path / "found")
    assert record.status == "completed"
    assert [(each["step"], each["micro_batch_size"]) for each in record.restarts] == [(3, 12)]
    whole, _ = trained(small_recipe, tmp_path / "whole", "train.eval_batch_size=16")
    assert record.metrics is not None
    assert whole.metrics is not None
    assert record.metrics.test is not None
    assert record.metrics.test.top1 == pytest.approx(whole.metrics.test.top1)
    for name, value in weights.items():  # one epoch in whole batches, one in halves
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_what_holds_not_even_the_smallest_pass_ends_as_out_of_memory(
    small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    with_hook(too_large(0))
    record, _ = trained(small_recipe, tmp_path)
    assert record.status == "oom"
    assert "out of memory with 1 images a pass" in (record.error or "")
    assert [each["micro_batch_size"] for each in record.restarts] == [12, 6, 3, 2, 1]


@pytest.mark.slow
def test_batch_norm_is_never_left_with_one_image(
    small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    with_hook(too_large(0))
    record, _ = trained(small_recipe, tmp_path)
    assert [each["micro_batch_size"] for each in record.restarts] == [12, 6, 3, 2]


def test_nor_with_one_as_the_rest_of_a_division(
    small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    """Seven images in passes of two would leave one."""
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    with_hook(too_large(0))
    record, _ = trained(small_recipe, tmp_path, "train.batch_size=7")
    assert [each["micro_batch_size"] for each in record.restarts] == [4]


@pytest.mark.slow
def test_a_run_that_goes_on_remembers_what_memory_held(
    small_recipe: dict[str, Any], tmp_path: Path, with_hook: Any
) -> None:
    class Stop(Observer):
        def on_step(self, position: Any, totals: Any, done: float) -> None:
            if position.steps == 4:
                raise OSError(5, "the disk is gone")

    with_hook(too_large(12))
    with pytest.raises(RuntimeError, match="the disk is gone; the same command goes on from update 3"):
        trained(small_recipe, tmp_path, observer=Stop())
    messages = Messages()
    record, _ = trained(small_recipe, tmp_path, observer=messages)
    assert not any("out of memory" in text for text in messages.texts), "it is not tried again"
    assert [(each["step"], each["micro_batch_size"]) for each in record.restarts] == [(0, 12), (3, 12)]
    anew, _ = trained(small_recipe, tmp_path, resume=False)
    assert [each["step"] for each in anew.restarts] == [0], "a fresh run tries the whole batch"


@pytest.mark.parametrize("method", ["sgd", "sam"])
def test_memory_that_the_optimizer_itself_lacks_is_not_taken_for_that_of_passes(
    method: str, small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As timm's kron does, whose preconditioners may be larger than any batch."""
    kron = {"name": "kron", "lr": 1e-3}
    small_recipe["optimizer"] = kron if method == "sgd" else {"name": "sam", "base": kron}

    def preconditioners(*given: Any, **named: Any) -> None:
        torch.empty(1 << 50)

    monkeypatch.setattr("timm.optim.kron._init_Q_exprs", preconditioners)
    messages = Messages()
    record, _ = trained(small_recipe, tmp_path, observer=messages)
    assert (record.status, record.restarts) == ("oom", [])
    assert "out of memory in the optimizer's own work" in (record.error or "")
    assert not any("trying again" in text for text in messages.texts)


_UNDER_A_LIMIT = """
import json, resource, sys
from pathlib import Path
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer

class Limit(Observer):
    def on_start(self, total, done, images):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        if hard == resource.RLIM_INFINITY:
            resource.setrlimit(resource.RLIMIT_AS, (used + (400 << 20),) * 2)

record, _ = finetune(read_recipe(json.loads(sys.argv[1])), sys.argv[2], observer=Limit())
print(json.dumps([record.status, record.environment["micro_batch_size"], record.error]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux")
def test_a_real_limit_of_the_system_is_met(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["model"] = {"name": "resnet18", "pretrained": False}
    small_recipe["data"]["image_size"] = 160
    small_recipe["train"] |= {"epochs": 1, "batch_size": 64, "performance": {"retain_memory": False}}
    arguments = [json.dumps(small_recipe), str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-c", _UNDER_A_LIMIT, *arguments], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    status, size, error = json.loads(done.stdout.splitlines()[-1])
    assert (status, error) == ("completed", None)
    assert 2 <= size < 64


def test_a_second_pass_takes_a_frozen_backbone_s_features_from_the_first(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model in ("test_vit", "test_resnet"):
        small_recipe["model"] = {"name": model, "pretrained": False}
        calls: list[int] = []
        remember = freezing.cache_features

        def counting(module: Any, remember: Any = remember, calls: list[int] = calls) -> None:
            compute = module.forward_features
            module.forward_features = lambda *given, **named: calls.append(1) or compute(*given, **named)
            remember(module)

        monkeypatch.setattr(parts, "cache_features", counting)
        overrides = (
            "train.freeze=backbone",
            "train.micro_batch_size=12",
            "train.eval_every=9",
            "train.epochs=2",
        )
        record, weights = trained(small_recipe, tmp_path / model, *overrides)
        evaluations = 2  # 33 images, once
        assert len(calls) - evaluations <= record.cost.steps * 2, "two micro-batches an update, in one pass"
        assert record.cost.gradient_passes == 2 * record.cost.steps
        monkeypatch.setattr(parts, "cache_features", lambda module: None)
        _, expected = trained(small_recipe, tmp_path / f"{model}-plain", *overrides)
        assert same(weights, expected)
        monkeypatch.setattr(parts, "cache_features", remember)


def test_features_that_a_head_changed_are_made_again() -> None:
    class Model(nn.Module):
        num_calls = 0

        def forward_features(self, inputs: torch.Tensor) -> torch.Tensor:
            self.num_calls += 1
            return inputs * 2

    model, inputs = Model().eval(), torch.ones(3)
    freezing.cache_features(model)
    first = model.forward_features(inputs)
    assert model.forward_features(inputs) is first
    first.add_(1)
    assert torch.equal(model.forward_features(inputs), torch.full((3,), 2.0))
    assert model.num_calls == 2
    model.forward_features(torch.ones(3))
    assert model.num_calls == 3, "other inputs"
    weight = torch.ones(3, requires_grad=True)
    model.forward_features(moving := weight * 1)
    model.forward_features(moving)
    assert model.num_calls == 5, "what learns is computed at every pass"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone counts so")
def test_peak_memory_is_this_process_s_and_not_of_the_one_that_started_it() -> None:
    code = "from pugdft.training.record_writer import *; print(peak_memory_bytes(torch.device('cpu')))"
    held = bytearray(b"x") * (1 << 30)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 100 << 20 < int(done.stdout) < len(held)


_KEPT_AND_GIVEN_BACK = """
import os, torch
from pathlib import Path
from pugdft.training.performance import retain_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

for retain in (False, True):
    assert retain_freed_memory(retain)
    before = resident()
    torch.ones(64 << 20)  # 256 MiB
    print(resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc alone has the switch")
def test_freed_memory_is_kept_or_given_back() -> None:
    if not hasattr(ctypes.CDLL(None), "mallopt"):
        pytest.skip("another C library")
    done = subprocess.run([sys.executable, "-c", _KEPT_AND_GIVEN_BACK], capture_output=True, text=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back < 32
    assert kept > 200
