"""The stored form of analyses: what was written comes back, and what is damaged is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pugdft.analysis.files import digest_of, find_analyses, read_analysis, write_analysis
from pugdft.errors import UserError

DIGEST = digest_of({"grid": 5, "weights": ["ab" * 32]})


def written(folder: Path) -> Path:
    arrays = {"loss": np.arange(12, dtype=np.float64).reshape(3, 4), "done": np.array([True, False])}
    arrays["loss"][1, 2] = np.nan
    facts = {"options": {"grid": np.int64(5), "range": np.float64(0.5)}, "caveats": ("one seed",)}
    return write_analysis(folder, "landscape", DIGEST, arrays, facts)


@pytest.mark.parametrize("suffix", [".yaml", ".npz"])
def test_arrays_and_facts_come_back(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / "analysis")
    assert path.name == f"landscape-{DIGEST[:8]}.yaml"
    found = read_analysis(path.with_suffix(suffix))
    assert (found.kind, found.path) == ("landscape", path)
    assert found.facts["options"] == {"grid": 5, "range": 0.5}
    assert found.facts["caveats"] == ["one seed"]
    assert found.arrays.keys() == {"loss", "done"}
    assert found.arrays["loss"].shape == (3, 4)
    assert np.isnan(found.arrays["loss"][1, 2])
    assert found.arrays["done"].tolist() == [True, False]


def test_equal_analyses_are_equal_files(tmp_path: Path) -> None:
    first, second = written(tmp_path / "a"), written(tmp_path / "b")
    for suffix in (".yaml", ".npz"):
        assert first.with_suffix(suffix).read_bytes() == second.with_suffix(suffix).read_bytes()


def test_facts_alone_need_no_arrays(tmp_path: Path) -> None:
    path = write_analysis(tmp_path, "sharpness", DIGEST, {}, {"lambda_max": 6.59})
    assert not path.with_suffix(".npz").exists()
    assert read_analysis(path).facts["lambda_max"] == 6.59
    assert find_analyses(tmp_path, ["sharpness"]) == [path]
    assert find_analyses(tmp_path, ["terrain"]) == []


def test_the_digest_is_of_values_not_of_their_order() -> None:
    assert digest_of({"a": 1, "b": (2, 3)}) == digest_of({"b": [2, np.int64(3)], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})


@pytest.mark.parametrize("place", [0.2, 0.5, 0.9])
def test_a_changed_byte_of_the_arrays_is_refused(tmp_path: Path, place: float) -> None:
    file = written(tmp_path).with_suffix(".npz")
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"\.npz: is (damaged|of another analysis)"):
        read_analysis(file)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path).with_suffix(".npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        read_analysis(file)


def test_arrays_of_another_analysis_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    other = write_analysis(tmp_path, "landscape", digest_of({"grid": 7}), {"loss": np.ones(3)}, {})
    facts = read_analysis(other)
    assert facts.arrays["loss"].tolist() == [1, 1, 1]
    other.with_suffix(".npz").write_bytes(path.with_suffix(".npz").read_bytes())
    with pytest.raises(UserError, match="another analysis"):
        read_analysis(other)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("pugdft.analysis/1", "pugdft.analysis/2", "is of a newer version of pugdft: update it"),
        ("pugdft.analysis/1", "other/1", "is not one that pugdft reads"),
        ("schema:", "scheme:", "not an analysis"),
        ("digest:", "digets:", "is damaged"),
    ],
)
def test_facts_of_another_form_are_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=words):
        read_analysis(path)


def test_missing_files_are_said(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.with_suffix(".npz").unlink()
    with pytest.raises(UserError, match=r"npz: is missing"):
        read_analysis(path)
    with pytest.raises(UserError, match="no such file"):
        read_analysis(tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"end in \.yaml or \.npz"):
        read_analysis(tmp_path / "picture.svg")


def test_a_folder_that_cannot_be_made_is_a_readable_message(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_analysis(tmp_path / "file" / "analysis", "landscape", DIGEST, {"a": np.ones(1)}, {})


def test_reading_needs_no_torch() -> None:
    code = "import sys, pugdft.analysis.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
