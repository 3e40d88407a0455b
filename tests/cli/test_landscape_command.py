"""The commands that draw landscapes and trajectories: what they print, how they end, what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from analysis_runs import SGD, trained_run

from pugdft.analysis.files import read_analysis, write_analysis
from pugdft.analysis.jobs import PointJob
from pugdft.analysis.landscape import Landscape
from pugdft.cli import landscape, pictures, trajectory
from pugdft.config import yaml
from pugdft.errors import UserError

SMALL: dict[str, Any] = {"kind": "line", "directions": 1, "grid": 5, "images": 12, "form": "png"}


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], str]:
    out, err = capsys.readouterr()
    return out.splitlines(), err


def test_paths_go_to_stdout_and_notes_to_stderr(
    sgd_run: Path, sam_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landscape.command(sgd_run, [sam_run], **SMALL | {"kind": "line,plane"}, output=tmp_path)
    paths, notes = printed(capsys)
    assert [Path(path).suffix for path in paths] == [".yaml", ".png", ".yaml", ".png", ".png"]
    assert all(Path(path).is_file() for path in paths)
    line, plane = (read_analysis(Path(path)) for path in paths if path.endswith(".yaml"))
    assert line.arrays["loss"].shape == (2, 1, 5)
    assert plane.arrays["loss"].shape == (2, 5, 5)
    for caveat in plane.facts["caveats"]:
        assert f"note: {caveat}" in notes


def test_both_splits_have_files_of_their_own(
    sgd_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landscape.command(sgd_run, **SMALL, split="both", output=tmp_path)
    stored = [read_analysis(Path(path)) for path in printed(capsys)[0] if path.endswith(".yaml")]
    assert [each.facts["sample"]["split"] for each in stored] == ["train", "test"]
    assert any("not for choosing" in each for each in stored[1].facts["caveats"])


def test_the_plan_computes_and_writes_nothing(
    sgd_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landscape.command(sgd_run, **SMALL, output=tmp_path, plan=True)
    (line,), _ = printed(capsys)
    assert line.startswith("line, train: 5 points of 5 left; 10 forward passes over 12 images; about ")
    assert not list(tmp_path.iterdir())


def test_the_end_of_the_minutes_is_code_4_and_the_same_command_goes_on(
    sgd_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as end:
        landscape.command(sgd_run, **SMALL, output=tmp_path, minutes=1e-9)
    assert end.value.exit_code == 4
    (path, *_), said = printed(capsys)
    assert "the same command goes on" in said
    assert read_analysis(Path(path)).facts["done"] == 0
    landscape.command(sgd_run, **SMALL, output=tmp_path)
    assert read_analysis(Path(path)).facts["done"] == 5


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_what_is_done_is_stored(
    sgd_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    code: int,
) -> None:
    evaluate = pictures.Watched._show

    def send(self: pictures.Watched, done: int) -> None:
        evaluate(self, done)
        if done == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(pictures.Watched, "_show", send)
    with pytest.raises(typer.Exit) as end:
        landscape.command(sgd_run, **SMALL, output=tmp_path)
    assert end.value.exit_code == code
    assert read_analysis(Path(printed(capsys)[0][0])).facts["done"] == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "plain"}, r'unknown kind "plain"\. Known: between, line, plane\. Did you mean "plane"'),
        ({"kind": "between"}, "--kind between: needs another run"),
        ({"view": "surface"}, "--view surface: no line has this view"),
        ({"grid": 4}, "--grid 4: must be odd"),
        ({"grid": 99_999}, "--grid 99999: must be odd .* at most 1,001"),
        ({"directions": 10**9}, "--directions 1000000000: must be from 1 to 1,001"),
        ({"images": 1}, "--images 1: BatchNorm's statistics need batches of at least 2 images"),
        ({"extent": float("nan")}, "--range nan: must be a finite number"),
        ({"extent": 1e39}, r"--range 1e\+39: must be a finite number above 0, and at most 1e\+06"),
        ({"form": "jpg"}, "--format.*jpg"),
        ({"width": "page"}, "--width: page"),
        ({"images": 100}, "--images 100: the train split has 72 images"),
        ({"minutes": 0.0}, "--minutes 0: must be above 0"),
    ],
)
def test_mistakes_are_said_before_anything_is_computed(
    sgd_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setattr(PointJob, "compute", None)
    with pytest.raises(UserError, match=words):
        landscape.command(sgd_run, **SMALL | options, output=tmp_path)


def test_a_stored_form_that_is_not_of_this_computation_is_not_taken_over(
    sgd_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    landscape.command(sgd_run, **SMALL, output=tmp_path)
    path = Path(printed(capsys)[0][0])
    stored = read_analysis(path)
    whole = dict(stored.arrays)
    facts = {name: stored.facts[name] for name in ("records", "options", "sample", "caveats")}

    def refused(digest: str, arrays: dict[str, np.ndarray], words: str) -> None:
        write_analysis(tmp_path, "landscape", digest, arrays, facts)
        with pytest.raises(UserError, match=rf"{words}[^\n]*\n--no-resume computes it again"):
            landscape.command(sgd_run, **SMALL, output=tmp_path)

    digest = stored.facts["digest"]
    refused(digest, {"loss": whole["loss"]}, "is damaged: it has no top1")
    refused(digest, {**whole, "loss": whole["loss"][..., :3]}, "is damaged: it has no loss")
    refused(digest, {**whole, "loss": np.zeros(whole["loss"].shape, int)}, "is damaged: it has no loss")
    refused(f"{digest[:8]}{'0' * 56}", whole, "is of other weights, images or options")
    landscape.command(sgd_run, **SMALL, output=tmp_path, resume=False)
    assert read_analysis(path).arrays["loss"].tobytes() == whole["loss"].tobytes()


def test_what_is_refused_while_getting_ready_leaves_no_file(
    sgd_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise UserError("no directions")

    monkeypatch.setattr(Landscape, "directions_of", refuse)
    with pytest.raises(UserError, match="no directions"):
        landscape.command(sgd_run, **SMALL, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_time_that_is_left_does_not_count_what_came_before_the_first_point(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 300.0, 320.0])  # five minutes to get ready, 20 seconds for the second point
    monkeypatch.setattr(pictures.time, "monotonic", lambda: next(clock))
    show = pictures.Watched(11, None, "text", None).of(0).on_point
    show(1, 11)
    show(2, 11)
    assert printed(capsys)[1] == "2/11 points  3 min 00 s left\n"


@pytest.mark.parametrize("is_file", [True, False])
def test_a_folder_that_cannot_be_written_is_said_before_anything_is_computed(
    sgd_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    monkeypatch.setattr(PointJob, "compute", None)
    if is_file:
        (tmp_path / "place").touch()
    else:
        monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"place.inside: cannot be written: .* is (not a folder|read-only)"):
        landscape.command(sgd_run, **SMALL, output=tmp_path / "place" / "inside")


def test_weights_that_are_not_those_of_the_record_are_refused(sgd_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(sgd_run, tmp_path / "run")
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="has changed since the record"):
        landscape.command(run, **SMALL)
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no stored weights"):
        landscape.command(run, **SMALL)


def test_weights_that_no_run_left_have_a_landscape_too(
    sgd_run: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "weights.safetensors"
    shutil.copy(sgd_run / "model.safetensors", file)
    landscape.command(str(file), **SMALL, data=str(image_folder), model_name="test_resnet")
    paths, notes = printed(capsys)
    stored = read_analysis(Path(paths[0]))
    assert stored.path.parent == tmp_path / "analysis"
    (record,) = stored.facts["records"]
    assert (record["label"], record["model"], record["seed"]) == ("weights.safetensors", "test_resnet", None)
    assert "how they were trained is not known" in notes
    shutil.copy(sgd_run / "config.json", tmp_path)
    shutil.copy(sgd_run / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match="is not known, there it is"):
        landscape.command(str(sgd_run), [str(tmp_path)], **SMALL)


def test_a_trajectory_of_two_runs_is_drawn(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [
        trained_run(tmp_path / str(seed), image_folder, SGD, seed, snapshots={"every_steps": 4})
        for seed in (0, 1)
    ]
    capsys.readouterr()
    trajectory.command(runs, grid=5, images=12, form="png", progress="json")
    paths, notes = printed(capsys)
    assert [Path(path).suffix for path in paths] == [".yaml", ".png"]
    assert Path(paths[0]).parent == runs[0] / "analysis"
    stored = yaml.parse(Path(paths[0]).read_text())
    assert [each["label"] for each in stored["records"]] == ["sgd, seed 0", "sgd, seed 1"]
    assert "outside this plane" in notes
    for line in notes.splitlines():
        if line.startswith("{"):
            assert json.loads(line)["event"] == "progress"
    with pytest.raises(UserError, match="--plane ends: goes through the ends of three runs; given are 2"):
        trajectory.command(runs, "ends", grid=5, images=12)
