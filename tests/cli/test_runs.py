"""``pugdft runs``: a table of runs, finished or not, and one record for people."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from bad_inputs.case import call

from pugdft.records import read_record, write_record

BOARD = Path(__file__).parents[2] / "leaderboard" / "records" / "bundled_64px"
RECORD = next(BOARD.glob("*-sam-s0-*")) / "record.yaml"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A completed run, one that diverged on a base that is not SGD, one without a record, and rubbish."""
    good = RECORD.read_text().replace("sam-s0", "good-s0")
    bad = good.replace("good-s0", "bad-s0").replace("status: completed", "status: diverged")
    bad = bad.replace("error: null", "error: the loss is not finite")
    bad = bad.replace("name: sgd", "name: adamw").replace("2026-11-2", "2026-10-2")
    for name, text in (("good", good), ("bad", bad)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.yaml").write_text(text)
    killed = tmp_path / "killed"
    killed.mkdir()
    (killed / ".lock").touch()
    (killed / "recipe.yaml").write_text(
        "{model: {name: resnet18}, data: {name: /a/ants}, optimizer: {name: pugd}, train: {seed: 7}}"
    )
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "recipe.yaml").write_text("model: {name: no run}")  # without a lock
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "rubbish" / "record.yaml").write_text("- not a record")
    return tmp_path


def test_runs_are_listed_by_the_time_of_their_end(runs: Path) -> None:
    done = call(["runs", "ls", str(runs)])
    assert done.code == 0
    heading, bad, good, killed = done.out.splitlines()
    assert heading.split() == [
        "id",
        "status",
        "data",
        "model",
        "optimizer",
        "seed",
        "top-1",
        "ended",
        "folder",
    ]
    assert "diverged" in bad
    assert "sam+adamw" in bad
    words = good.split()
    assert words[1:6] == ["completed", "bundled", "tf_efficientnet_lite0.in1k", "sam", "0"]
    assert words[6].endswith("%")
    assert words[-1] == str(runs / "good")
    assert killed.split()[:6] == ["killed", "unfinished", "ants", "resnet18", "pugd", "7"]
    assert "rubbish/record.yaml: not a run record" in done.err


@pytest.mark.parametrize(
    ("status", "names"), [("completed", ["good"]), ("unfinished", ["killed"]), ("oom", [])]
)
def test_a_status_selects(runs: Path, status: str, names: list[str]) -> None:
    done = call(["runs", "ls", str(runs), "--status", status])
    assert done.code == 0
    assert [Path(line.split()[-1]).name for line in done.out.splitlines()[1:]] == names
    assert ("no runs that are oom" in done.err) == (not names)


def test_a_record_is_shown_in_sections(runs: Path) -> None:
    done = call(["runs", "show", str(runs / "good")])
    assert done.code == 0
    for line in (
        "run\n",
        "  status  completed\n",
        "  images   3,000 train, 2,000 test\n",
        "results\n",
        "cost\n",
    ):
        assert line in done.out
    assert "optimizer.base.lr" in done.out
    assert re.search(r"of +the last epoch\n", done.out)
    assert "picked on the test split; never ranked" in done.out
    assert call(["runs", "show", str(runs / "good" / "record.yaml")]).out == done.out
    assert "error   the loss is not finite" in call(["runs", "show", str(runs / "bad")]).out
    record = read_record(runs / "good" / "record.yaml")
    assert record.metrics is not None
    record.metrics.weights, record.metrics.plain_test = "ema", record.metrics.test
    (runs / "averaged").mkdir()
    write_record(record, runs / "averaged")
    averaged = call(["runs", "show", str(runs / "averaged")]).out
    assert re.search(r"of +the last epoch, averaged weights\n", averaged)
    assert "plain weights, test" in averaged


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("ls", "nowhere"), "nowhere: no such file or folder"),
        (("ls",), "runs: no such file or folder"),
        (("show", "nowhere"), "nowhere: no such file or folder"),
        (("show", "killed"), "killed: no record.yaml here; `pugdft runs ls killed` lists runs below it"),
        (("show", "rubbish"), "rubbish/record.yaml: not a run record"),
    ],
)
def test_what_is_no_run_is_one_message(
    runs: Path, words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(runs)
    done = call(["runs", *words])
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1)
    assert said in done.err
