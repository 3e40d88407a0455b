"""What a run says: JSON lines only for programs, little and at once for people."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from bad_inputs.case import call

from pugdft.cli.bench_view import precision_notes
from pugdft.cli.progress import JsonProgress, ProgressLog
from pugdft.config import yaml
from pugdft.training.performance import precision_note

JSON = ("--progress", "json")


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_progress_for_programs_is_json_only_from_start_to_end(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy(self: Any, row: dict[str, Any]) -> None:
        sys.stderr.write("half a line")
        on_epoch(self, {**row, "test_loss": float("nan")})
        warnings.warn("two\nlines", stacklevel=1)

    on_epoch = JsonProgress.on_epoch
    monkeypatch.setattr(JsonProgress, "on_epoch", noisy)
    done = call(("finetune", str(recipe_file), *JSON, "--output", "o"))
    events = events_of(done.err)
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("start", "end")
    assert {"device", "data", "progress", "epoch", "message", "warning"} <= set(names)
    assert [event["test_loss"] for event in events if event["event"] == "epoch"] == [None, None]
    end = {"event": "end", "status": "completed", "message": None, "record": "o/record.yaml", "exit_code": 0}
    assert events[-1] == end


@pytest.mark.parametrize(
    "words",
    [("r.yaml",), ("quickstart", "--seed", "x"), ("quickstart", "train.epoch=3"), ("quickstart", "--such")],
    ids=" ".join,
)
def test_errors_for_programs_are_events_too(words: tuple[str, ...]) -> None:
    done = call(("finetune", *words, "--progress=json"))
    *_, error, end = events_of(done.err)
    assert (error["event"], end) == ("error", {"event": "end", "exit_code": 2})
    assert error["message"]


def test_what_other_code_writes_to_stderr_becomes_messages() -> None:
    code = (
        "import os, subprocess, sys; from pugdft.cli.output import JsonLines\n"
        "sys.stderr = JsonLines(sys.stderr)\n"
        "os.write(2, b'native \\xff\\n'); subprocess.run(['sh', '-c', 'echo child >&2'])\n"
        "sys.stderr.write('10 %\\r20 %'); sys.stderr.close_with(3, says_end=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    *messages, end = events_of(done.stderr)
    assert sorted(event["message"] for event in messages) == ["20 %", "child", "native �"]
    assert end == {"event": "end", "exit_code": 3}


@pytest.mark.parametrize("progress", ["text", "json"])
def test_ctrl_c_says_where_the_run_stopped(
    progress: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for observer in (JsonProgress, ProgressLog):
        monkeypatch.setattr(observer, "on_step", interrupt)
    done = call(("finetune", str(recipe_file), "--progress", progress))
    assert done.code == 130
    last = done.err.splitlines()[-1]
    said = "stopped after update 1 of 6; the same command goes on"
    assert (last if progress == "text" else json.loads(last)["message"]) == said
    assert "gradient passes" not in done.err


def test_two_lines_open_a_run_and_six_rows_end_it_and_the_rest_comes_with_verbose(recipe_file: Path) -> None:
    words = ("finetune", str(recipe_file), "train.epochs=1", "--output")
    first, second, *rest = call((*words, "o")).err.splitlines()
    assert first.startswith("preparing ")
    assert first.endswith(" and test_vit: 1 epoch, seed 0")
    assert second.startswith("device ")
    assert second.endswith("fp32; 72 training and 33 test images in 3 classes; folder o")
    assert rest[0].startswith("epoch 1 done: ")
    rows = [line for line in rest if line.startswith("│")]
    assert rows[0].startswith("│ test top-1 (last epoch) │ ")
    assert len(rows) == 6
    loud = call((*words, "p", "--verbose")).err.splitlines()
    assert [line.split(":")[0] for line in loud[2:5]] == ["model", "performance", "versions"]
    assert any("mean cos(g, g*)" in line for line in loud)


def test_bf16_without_instructions_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = SimpleNamespace(train=SimpleNamespace(precision="bf16"))
    monkeypatch.setattr("pugdft.cli.bench_view.device_type", lambda: "cpu")
    for has_bf16 in (False, True):
        known = {"avx2": True, "avx512_bf16": has_bf16, "amx_bf16": False}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda known=known: known, raising=False)
        note = precision_note("bf16", "cpu")
        assert ("train.precision=fp32" in note) is not has_bf16
        assert precision_note("fp32", "cpu") == ""
        assert precision_notes([SimpleNamespace(recipe=recipe)] * 2) == [note] * (not has_bf16)  # type: ignore[list-item]


def test_finetune_takes_an_optimizer_as_bench_does(recipe_file: Path) -> None:
    words = ("finetune", str(recipe_file), "--dry-run", "--optimizer")
    done = call((*words, "pugd[rho=0.3]+adamw[lr=1e-4]"))
    spec = yaml.parse(done.out)["optimizer"]
    assert (spec["name"], spec["rho"]) == ("pugd", 0.3)
    assert (spec["base"]["name"], spec["base"]["lr"]) == ("adamw", 1e-4)
    for wrong in ("sam,sgd", "sam[rho", "sam[rhoo=1]", "nosuch", ""):
        refused = call((*words, wrong))
        assert refused.code == 2, wrong
        assert refused.err.startswith("pugdft: --optimizer: "), refused.err


@pytest.mark.parametrize("progress", ["text", "json"])
def test_ctrl_c_before_the_first_update_is_said(
    progress: str, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pugdft.training.run.finetune", interrupted)
    done = call(("finetune", str(recipe_file), "--progress", progress))
    assert done.code == 130
    if progress == "text":
        assert done.err.splitlines()[-1] == "pugdft: interrupted"
    else:
        assert events_of(done.err)[-2]["message"] == "interrupted"
