"""``pugdft leaderboard``: what it leaves out, prints and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from ranked_records import seeds
from run_records import SAM, SGD
from run_records import record as run

from pugdft.cli.leaderboard import RankedBy
from pugdft.cli.main import main
from pugdft.predictions import METRICS
from pugdft.records import write_record


@dataclass
class Ended:
    """How a command ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def leaderboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """The command, run in this process and in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["pugdft", "leaderboard", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return Ended(int(ended.value.code or 0), *capsys.readouterr())

    return run_command


@pytest.fixture
def one_good_and_two_broken(tmp_path: Path) -> Path:
    write_record(run(), tmp_path / "good")
    for name in ("bad", "worse"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.yaml").write_text("hello: world")
    return tmp_path


def test_what_is_left_out_is_named_and_counted_and_does_not_cost_the_table(
    one_good_and_two_broken: Path, leaderboard: Callable[..., Ended]
) -> None:
    done = leaderboard(str(one_good_and_two_broken), "--format", "json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["groups"]) == 1
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()] == [
        "left out",
        "left out",
        "2 records left out",
    ]
    assert done.stderr.startswith(f"left out: {one_good_and_two_broken}/bad/record.yaml: not a run record")


def test_strict_fails_after_showing_what_there_is(
    one_good_and_two_broken: Path, leaderboard: Callable[..., Ended]
) -> None:
    done = leaderboard(str(one_good_and_two_broken), "--strict", "--format", "json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["groups"]) == 1
    assert leaderboard(str(one_good_and_two_broken / "good"), "--strict").returncode == 0


def test_runs_of_a_search_alone_are_nothing_to_rank(
    tmp_path: Path, leaderboard: Callable[..., Ended]
) -> None:
    write_record(run(train__evaluate="validation", data__validation=0.1), tmp_path / "a")
    done = leaderboard(str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing to rank: 1 record of a search" in done.stderr


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("table", "cifar10 × "),
        ("json", "{"),
        ("csv", "dataset,model,"),
        ("markdown", "### cifar10"),
        ("latex", "% needs"),
        ("html", "<!doctype html>"),
    ],
)
def test_every_format_goes_to_stdout_and_into_a_file_alike(
    form: str, begins: str, tmp_path: Path, leaderboard: Callable[..., Ended]
) -> None:
    for record in (*seeds(SGD, 0.9, 0.91), *seeds(SAM, 0.92, 0.94)):
        write_record(record, tmp_path / "runs" / record.id)
    printed = leaderboard("--format", form, "--metric", "loss")
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.lower().startswith(begins.lower())
    assert printed.stdout.endswith("\n")
    assert "\x1b" not in printed.stdout
    kept = leaderboard("--format", form, "--metric", "loss", "--output", "board")
    assert (kept.returncode, kept.stdout) == (0, "")
    assert (tmp_path / "board").read_text(encoding="utf-8") == printed.stdout


@pytest.mark.parametrize("output", ["folder", "file/below", "/proc/x", "", "pipe", "x" * 300])
def test_an_output_that_cannot_be_written_is_one_message_and_exit_code_2(
    output: str, tmp_path: Path, leaderboard: Callable[..., Ended]
) -> None:
    write_record(run(), tmp_path / "runs" / "a")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    done = leaderboard("runs", "--output", output)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--output" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "pipe", "runs"]
    assert (tmp_path / "pipe").is_fifo()


def test_each_metric_can_rank() -> None:
    assert [each.value for each in RankedBy] == list(METRICS)


def test_a_table_loads_no_more_than_it_needs(tmp_path: Path) -> None:
    """Each of these takes as long to import as the rest of a small table takes."""
    records = [*seeds(SGD, 0.8, 0.81, 0.83), *seeds({**SGD, "lr": 0.5}, 0.82, 0.8, 0.81)]
    for number, each in enumerate(records):
        write_record(each, tmp_path / str(number))
    heavy = (
        "torch",
        "scipy.optimize",
        "scipy.stats",
        "yaml",
        "urllib.request",
        "matplotlib",
        "jinja2",
        "pandas",
        "pugdft.cli.bench",
    )
    code = (
        "import sys; from pugdft.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "leaderboard", str(tmp_path)], capture_output=True, text=True
    )
    assert "would have been found" in " ".join(done.stdout.split()), "so the statistics were needed"
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_import_needs_neither_torch_nor_scipy_nor_rich_nor_jinja() -> None:
    heavy = ("torch", "scipy", "rich", "jinja2")
    code = f"import sys, pugdft.leaderboard; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
