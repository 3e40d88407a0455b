"""`pugdft terrain`: files, table, and messages on bad input."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pugdft.analysis.files import read_analysis
from pugdft.cli.main import application
from pugdft.errors import UserError

runner = CliRunner()
SMALL = ["--passes", "20", "--images", "20", "--slice", "output", "--rest", "random", "--grid", "11"]


def test_paths_on_stdout_and_a_table_on_stderr(tmp_path: Path) -> None:
    given = ["terrain", *SMALL, "--optimizers", "sgd,sam[rho=0.1]", "--format", "png", "--width", "column"]
    done = runner.invoke(application(), [*given, "--output", str(tmp_path)])
    assert done.exit_code == 0, done.output
    files = [Path(line) for line in done.stdout.split()]
    assert [file.suffix for file in files] == [".yaml", ".png", ".png", ".gif"]
    assert all(file.is_file() for file in files)
    found = read_analysis(files[0])
    assert found.kind == "terrain"
    assert sorted(found.arrays) == ["axis", "path_sam_rho_0_1", "path_sgd", "test", "train"]
    assert found.arrays["train"].shape == (11, 11)
    assert "optimizer" in done.stderr
    assert "length of steps" in done.stderr


def test_a_plan_computes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = runner.invoke(
        application(), ["terrain", *SMALL, "--optimizers", "sgd,sam", "--plan", "--output", str(folder)]
    )
    assert done.exit_code == 0, done.output
    assert "candidate 1 of the slices; 2 optimizers × 20 passes; 2 surfaces of 11 × 11" in done.stdout
    assert not folder.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--grid", "10"], "--grid 10: must be odd"),
        (["--start", "1"], "expected two numbers"),
        (["--start", "nan,1"], "expected two numbers"),
        (["--optimizers", "pgud"], 'Did you mean "pugd"'),
        (["--optimizers", "msam"], "momentum"),
        (["--format", "jpg"], 'unknown format "jpg"'),
        (["--width", "0"], "--width: 0"),
        (["--data", "no_such_set"], "no such folder"),
        (["--images", "5000"], "--images 5000: bundled has"),
        (["--optimizers", "sam_on"], "normalisation layers"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(given: list[str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = runner.invoke(application(), ["terrain", *SMALL, *given, "--output", str(folder)])
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)
    assert not folder.exists()
