"""``pugdft plot``: pictures of records and of data files, without torch, and one message for a mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_records import drawn, write
from run_records import SAM, SGD

from pugdft.analysis.files import write_analysis
from pugdft.cli.main import main
from pugdft.figures import redraw

_WITHOUT_TORCH = """
import sys
from pugdft.cli.main import main
sys.argv = ["pugdft", *sys.argv[1:]]
try:
    main()
finally:
    assert "torch" not in sys.modules, "drawing needs no torch"
"""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write(tmp_path / "runs", drawn(SGD), drawn(SGD, 1), drawn(SAM, passes=2))


def called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["pugdft", "plot", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.mark.slow
def test_equal_records_give_equal_bytes_without_torch(runs: Path, tmp_path: Path) -> None:
    written = []
    for name in ("one", "two"):
        command = [sys.executable, "-c", _WITHOUT_TORCH, "plot", str(runs), "--format", "svg,pdf,png"]
        done = subprocess.run([*command, "--output", str(tmp_path / name)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        written.append([Path(line) for line in done.stdout.splitlines()])
    assert [path.suffix for path in written[0]] == [".svg", ".pdf", ".png"]
    for one, two in zip(*written, strict=True):
        assert one.name == two.name
        assert one.read_bytes() == two.read_bytes(), one.suffix
    assert ">test loss</text>" in written[0][0].read_text()


def test_pictures_lie_in_analysis_beside_the_records(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(monkeypatch, capsys, runs, "--format=svg", "--y=top1", "--theme=dark")
    (path,) = map(Path, out.splitlines())
    assert (code, path.parent) == (0, runs / "analysis")
    assert path.name.startswith("histories-")
    assert "lines: means of 1 to 2 runs" in err
    record = next(runs.glob("run-*/record.yaml"))
    _, out, _ = called(monkeypatch, capsys, record, "--format=svg")
    assert Path(out.strip()).parent == record.parent / "analysis"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--y", "los"), '--y: unknown quantity "los"'),
        (("--y", "loss,grad"), '--y: unknown quantity "grad"'),
        (("--y", ","), "--y: names none of loss"),
        (("--format", "jpg"), '--format: unknown format "jpg"'),
        (("--width", "wide"), "--width: wide is none of column, text, nor inches from 1 to 40"),
        (("--series", "optimizer.rho"), "--series: goes with --sweep"),
        (("--sweep", "optimizer.rhoo"), 'Did you mean "optimizer.rho"'),
        (("--metric", "top2"), "top2"),
        (("--x", "hours"), "hours"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(
    words: tuple[str, ...],
    message: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = called(monkeypatch, capsys, runs, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_what_cannot_be_drawn_is_refused(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    newer = tmp_path / "landscape-00000000.yaml"
    newer.write_text("schema: pugdft.analysis/2\nkind: landscape\n")
    (tmp_path / "damaged.npz").write_bytes(b"PK no zip")
    other = write_analysis(tmp_path, "cloud", "ab" * 32, {}, {"options": {}})
    full = tmp_path / "file"
    full.write_text("")
    for words, message in {
        (tmp_path / "empty",): "no run record in",
        (tmp_path / "nothing",): "no such file or folder",
        (newer,): "is of a newer version of pugdft: update it",
        (tmp_path / "damaged.npz",): "damaged.yaml is not beside it",
        (other,): 'no picture is known: unknown kind "cloud"',
        (runs, other): "draw records and data files apart",
        (runs, "--output", full / "below"): "cannot be written",
    }.items():
        code, out, err = called(monkeypatch, capsys, *words)
        assert (code, out) == (2, ""), words
        assert message in err


def test_a_data_file_is_drawn_again_by_the_function_of_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def draw(facts: Any, arrays: Any, stem: Path, formats: list[str], **options: Any) -> list[Path]:
        seen.update(facts=facts, arrays=arrays, stem=stem, formats=formats, **options)
        return [stem.with_suffix(".pdf")]

    monkeypatch.setattr(redraw, "drawer_of", lambda kind, path: {"cloud": draw}[kind])
    loss = np.arange(6.0).reshape(2, 3)
    file = write_analysis(tmp_path, "cloud", "ab" * 32, {"loss": loss}, {"options": {"grid": 3}})
    for given in (file, file.with_suffix(".npz")):
        code, out, _ = called(monkeypatch, capsys, given, "--format=pdf", "--view=contour", "--theme=dark")
        assert (code, out.strip()) == (0, str(file.with_suffix(".pdf")))
        assert (seen["formats"], seen["view"], seen["theme"], seen["width"]) == (
            ["pdf"],
            "contour",
            "dark",
            None,
        )
        assert np.array_equal(seen["arrays"]["loss"], loss)
        assert seen["facts"]["options"] == {"grid": 3}
    called(monkeypatch, capsys, file, "--output", tmp_path / "there")
    assert seen["stem"] == tmp_path / "there" / file.stem


def test_every_registered_kind_has_its_function() -> None:
    for kind in redraw.DRAWN_BY:
        assert callable(redraw.drawer_of(kind, Path(kind)))
