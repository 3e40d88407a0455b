"""Any values at any place of a recipe or a record: read back as they were, or refused in words."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.files import RECIPE, with_changes
from hypothesis import given, settings
from hypothesis import strategies as st
from run_records import record

from pugdft.config import yaml
from pugdft.errors import UserError
from pugdft.leaderboard.load import read_checked
from pugdft.leaderboard.validate import record_faults
from pugdft.records import RunRecord, StoredRun, parse_record
from pugdft.reproduce import rerun_folder, rerun_recipe
from pugdft.training.run import read_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
from fuzz import fuzz
from fuzz_targets import TARGETS, Target

PATH = Path("record.yaml")
FULL_RECIPE = with_changes(
    RECIPE,
    {
        "optimizer.rho": {"schedule": "icos", "min": 0.5, "max": 2.0},
        "optimizer.trigger": {"name": "every", "k": 2},
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        "data.random_resized_crop": {"scale": [0.5, 1.0]},
        "tuning": {"trials": 3, "gradient_passes": 10.0, "search": "greedy"},
    },
)
FULL_RECORD = record(
    history=[{"epoch": 1, "lr": 0.1, "test_top1": 0.5}],
    artifacts={"model": {"path": "model.safetensors", "sha256": "ab" * 32}},
    restarts=[{"time": "2026-01-01T00:00:00+00:00", "step": 5}],
).model_dump(mode="json", by_alias=True)

WORDS = st.text(max_size=6) | st.sampled_from(
    ["name", "sam", "adamw", "auto", "\x1b[31m", "=1", "../x", "~", "2**31"]
)
NUMBERS = (
    st.integers(-3, 3)
    | st.floats()
    | st.sampled_from([10**100, -(10**400), 2**31, 1e308, 5e-324, 0.1, 1e-400])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(WORDS | st.integers() | st.booleans(), inner, max_size=3)
    ),
    max_leaves=5,
)


def places(data: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in nested data, and to a new key of every mapping."""
    found: list[tuple[Any, ...]] = []
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        found += [(*above, key), *places(value, (*above, key))]
    return [*found, (*above, "new")] if isinstance(data, dict) else found


def put(data: dict[str, Any], changes: list[tuple[tuple[Any, ...], Any]]) -> dict[str, Any]:
    """A copy with other values; a place that an earlier change took away is left out."""
    copy = yaml.parse(yaml.dump(data))
    for (*way, last), value in changes:
        try:
            node = reduce(getitem, way, copy)
            node[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    return copy


def changes_of(data: dict[str, Any]) -> Any:
    return st.lists(st.tuples(st.sampled_from(places(data)), VALUES), min_size=1, max_size=3)


def refusal(read: Callable[..., object], *arguments: Any) -> str | None:
    """The words of a refusal; any other exception is a failure."""
    try:
        read(*arguments)
    except UserError as error:
        return str(error)
    return None


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For a file that is written over and over."""
    return tmp_path_factory.mktemp("record")


bounded = settings(max_examples=300, deadline=None, derandomize=True)


@pytest.mark.slow
@bounded
@given(changes_of(FULL_RECIPE))
def test_a_recipe_with_any_values_is_read_back_as_itself_or_refused(changes: Any) -> None:
    data = put(FULL_RECIPE, changes)
    if refusal(read_recipe, data) is not None:
        return
    recipe = read_recipe(data)
    text = yaml.dump(recipe.as_dict())
    again = read_recipe(yaml.parse(text))
    assert again == recipe
    assert again.digest() == recipe.digest()
    assert yaml.dump(again.as_dict()) == text


@pytest.mark.slow
@bounded
@given(st.lists(st.tuples(st.sampled_from(places(FULL_RECIPE)), VALUES), min_size=1, max_size=2))
def test_overrides_with_any_values_are_taken_or_refused_as_overrides(changes: Any) -> None:
    texts = [
        f"{'.'.join(map(str, way))}={yaml.dump(value).removesuffix(chr(10)).removesuffix('...')}"
        for way, value in changes
    ]
    said = refusal(read_recipe, FULL_RECIPE, texts) or ""
    assert all(line.startswith(("override ", "with ")) for line in said.splitlines())


@pytest.mark.slow
@bounded
@given(changes_of(FULL_RECORD))
def test_a_record_with_any_values_is_read_back_as_itself_or_refused(folder: Path, changes: Any) -> None:
    text = yaml.dump(put(FULL_RECORD, changes))
    said = refusal(parse_record, text, PATH)
    if said is not None:
        assert said.startswith("record.yaml: ")
        return
    read = parse_record(text, PATH)
    assert parse_record(read.to_yaml(), PATH).to_yaml() == read.to_yaml()
    folder.joinpath("record.yaml").write_text(text, encoding="utf-8")
    if refusal(read_checked, folder / "record.yaml") is None:  # as all are read that are checked
        assert all(fault.message for fault in record_faults(read))
    run = StoredRun(read, PATH)
    assert rerun_folder(run).parent == Path("reruns")
    assert refusal(rerun_recipe, run) != ""


def test_the_good_ones_are_accepted() -> None:
    assert read_recipe(FULL_RECIPE).tuning is not None
    assert isinstance(parse_record(yaml.dump(FULL_RECORD), PATH), RunRecord)


# --- bytes -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_damaged_files_of_every_format_are_read_or_refused(tmp_path: Path) -> None:
    reports = fuzz(TARGETS, 0, tmp_path, count=20)
    for name, report in reports.items():
        assert not report.failures, (name, report.failures)
        assert report.tried == 20
        assert report.read > 0, f"{name}: not even the good files are read"
        assert report.read < 20, f"{name}: nothing was refused"


def test_the_fuzzer_notices_what_is_no_refusal(tmp_path: Path) -> None:
    def read(data: bytes, folder: Path) -> object:
        return {b"good": True}[data]

    (report,) = fuzz([Target("x", [b"good"], read)], 0, tmp_path, count=30).values()
    assert (report.tried, report.read + report.failures.total()) == (30, 30)
    assert report.failures
    assert all("KeyError" in place for place in report.failures)
