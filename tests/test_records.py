"""Records from files: both parsers read the same; one bad file costs itself alone."""

from __future__ import annotations

import gc
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_records import SGD, record

from pugdft.config import pyyaml, yaml
from pugdft.errors import UserError
from pugdft.leaderboard import build_leaderboard, collect
from pugdft.records import RunRecord, is_number, read_record, record_reader, write_record

FIRST_VERSION = Path(__file__).parent / "fixtures" / "record_first_version.yaml"
BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)

EVERYTHING = {
    "model": {"name": "resnet18.tv_in1k", "weights_sha256": "cd" * 32, "parameters": 11_181_642},
    "history": [
        {"epoch": 1, "lr": 1e-05, "test_top1": 0.8, "max": None},
        {"epoch": 2, "lr": 0, "test_top1": 0.9},
    ],
    "environment": {"device_name": "NVIDIA H200", "started": "2026-01-01T00:00:00+00:00"},
    "artifacts": {"predictions": {"path": "predictions.npz", "sha256": "ef" * 32}},
    "restarts": [{"time": "2026-01-01T00:00:00+00:00", "step": 5}],
}


def run(optimizer: dict[str, Any] = SGD, **fields: Any) -> RunRecord:
    """A record with everything that one may have; ``fields`` replace the record's own."""
    return record(optimizer, **{**EVERYTHING, **fields})


def in_full(text: str) -> Any:
    return pyyaml.parse(text, "")


def read_by(parse: Any, text: str) -> str:
    """The value with types, order and NaN visible, or the message."""
    try:
        return repr(parse(text))
    except UserError as error:
        return f"refused: {error}"


def read_in_short(text: str) -> str:
    """The same by the fast parser; a reader of many documents says so too, at first and again."""
    found, reader = read_by(yaml.parse, text), yaml.Reader({"a", "b", "recipe", "data", "environment"})
    assert [read_by(reader.parse, text) for _ in range(2)] == [found] * 2
    return found


# --- the fast parser and PyYAML --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        run().to_yaml(),
        run(
            {"name": "x", "betas": [0.9, 0.999], "base": SGD, "rules": [{"a": 1, "of": [2]}, {}, []]}
        ).to_yaml(),
        run(environment={"git": "12345678e9", "device": "Gerät (1:2) it's 5 %, a@b", "none": ""}).to_yaml(),
        run(error="UserError: no such file: /data/cifar10; see `pugdft data`", metrics=None).to_yaml(),
        run(
            status="failed", error="RuntimeError: it's\n\nout of memory: " + "tried to allocate, " * 9
        ).to_yaml(),
        yaml.dump({"rows": [{"a": math.nan, "b": math.inf, "c": None}, {"a": -math.inf, "b": 1e30}]}),
        yaml.dump({"rows": [{"a": 1, "b": -0.0, "c": True}, {"c": 2}], "more": [{"a": 2**63}]}),
    ],
    ids=["plain", "nested", "words", "failed", "folded", "not finite", "tables"],
)
def test_what_a_run_writes_needs_the_fast_parser_alone(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = repr(in_full(text))
    monkeypatch.setattr(pyyaml, "parse", None)
    assert repr(yaml.parse(text)) == repr(record_reader().parse(text)) == expected


KEYS = ["a", "b", "c", "epoch", "null", "1", "a b", "'a'", "<<", "a.b", "é", "NaN", "? a", "x" * 1100]
SCALARS = [
    "1", "0", "-1", "010", "0x1F", "1_000", "1.5", "1e-3", ".5", "5.", "-0.0", "1E400", "12e5", ".inf",
    "-.inf", "+.INF", ".nan", "NaN", "Infinity", "null", "~", "true", "True", "no", "'x'", "''",
    "'it''s'", "'''", '"x"', '"a\\nb"', "[]", "{}", "[1,2]", "{a:1}", "word", "a:b", "a::", ":", "-",
    "-x", "?", "|", ">", "|-", "&", "&a", "*a", "!!str", "!!bool", "#", "x#c", "%x", "@x", "`x", "1:30",
    "2026-01-01", "...", "---", "=", "<<", "a,b", "[", "]", "{", "}", "(x)", "/p", "x:", "é", "𝔸", "'x",
    "x'", '"x', "3.11.7", "-.5", "+", ".", "", "two words", "two  words", "a: b", "x # c", 'x\ty',
    "'a' 'b'", "&a 1", "!x 1", 'x\u2028y', 'x\x85y', 'x\xa0', '\ufeffx', 'x\x7f', 'x\x01', "x ", "'x: y'",
    "'x' ", "9" * 120, "9" * 400, "9" * 5000, "9" * 310 + "e5", "-010", "00.5", "12e34", "0b1", "0o17",
    "-0x1", "0X1", "0xfffffffffffffffff", "[0b1]", '{"a":0b1}', '{"a":*b}', '"\\ud800"',
]  # fmt: skip
LINES = st.builds(
    lambda indent, dash, key, colon, value: f"{' ' * indent}{dash}{key}{colon}{value}".removesuffix(" "),
    st.sampled_from([0, 0, 0, 2, 2, 4, 1, 3]),
    st.sampled_from(["", "", "", "- "]),
    st.sampled_from(KEYS[:4] * 4 + KEYS),
    st.sampled_from([": "] * 8 + [":", ":  ", " : ", ""]),
    st.sampled_from(["", "1", "x", "0.5", "null"] * 10 + SCALARS),
)
DOCUMENTS = st.lists(LINES, min_size=1, max_size=7).map(lambda lines: "\n".join(lines) + "\n")
ROWS = st.lists(
    st.builds(
        lambda keys, values: "\n".join(
            f"{'  ' if index else '- '}{key}: {value}"
            for index, (key, value) in enumerate(zip(keys, values, strict=False))
        ),
        st.just(["epoch", "lr", "loss"]) | st.lists(st.sampled_from(KEYS), min_size=1, max_size=3),
        st.lists(st.sampled_from(SCALARS[:26]) | st.sampled_from(SCALARS), min_size=3, max_size=3),
    ),
    min_size=1,
    max_size=3,
)
TABLES = ROWS.map(lambda rows: "seed: 1\nhistory:\n" + "\n".join(rows) + "\ncost:\n  steps: 1\n")


@settings(max_examples=400, deadline=None)
@given(DOCUMENTS | TABLES)
def test_any_document_reads_the_same_by_both_parsers(text: str) -> None:
    assert read_in_short(text) == read_by(in_full, text)


RECORD = run(
    id="run", error="UserError: a message of more than a hundred characters " + "is folded " * 9
).to_yaml()
ODD = list(" \t\n:-#'\"[]{},&*!|>%@?~.\\\x85\u2028\u00a0\ufeff\r\x00é0aeE+_N")


def damaged(text: str, draw: random.Random) -> str:
    """With some character or line changed, left out, repeated or moved."""
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.5:
            at = draw.randrange(len(text))
            text = text[:at] + draw.choice([*ODD, ""]) + text[at + draw.randint(0, 1) :]
        else:
            lines = text.split("\n")
            at = draw.randrange(len(lines))
            changes = [
                [],
                [lines[at]] * 2,
                [f" {lines[at]}"],
                [lines[at][1:]],
                [lines[at], draw.choice(lines)],
            ]
            text = "\n".join(lines[:at] + draw.choice(changes) + lines[at + 1 :])
    return text


@settings(max_examples=100, deadline=None)
@given(st.randoms(use_true_random=False))
def test_a_damaged_record_reads_the_same_in_both_ways(draw: random.Random) -> None:
    text = damaged(RECORD, draw)
    assert read_in_short(text) == read_by(in_full, text)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\n...\nb: 2\n",
        "a: 'x\n...\nb: 2\n  '\n",
        "a: &x |\n  t\nb: &x |\n  t\n",
        "a: |\n  t\x85...\nb: 2\n",
        "h:\n- a: : \n  \n- b: 1\n",
        "h:\n- a: \n 5\n",
        "h:\n- a: 1\n  a: 1\n",
        "h:\n- a: 1\nh:\n- a: 1\n",
        "h:\n- true: 1\n",
        "e: 'x\nh:\n- a: 1\n'\n",
        "a:\nb: 1\n",
        "a: 1\n  b: 2\n",
        "a:\n  - 1\n b: 2\n",
    ],
)
def test_what_looks_plain_and_is_not_is_left_to_the_long_way(text: str) -> None:
    for document in (text, "plain: 1\nseed: 2\nstatus: completed\nid: run\nerror: null\n" + text):
        assert read_in_short(document) == read_by(in_full, document)


@pytest.mark.parametrize(
    "word",
    ["12e5", "1234567e8", ".5e3", "1e400", "010", "1_000", "yes", "~", "0x1f", ".inf", "a\x85b", "\u2028"],
)
def test_a_word_stays_that_word_whatever_it_looks_like(word: str) -> None:
    assert yaml.parse(yaml.dump({"git": word, word: 1})) == {"git": word, word: 1}


@pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "{a: " * 100_000, "- " * 100_000, "? " * 50_000])
def test_a_hundred_thousand_levels_are_one_message(text: str) -> None:
    with pytest.raises(UserError, match="not readable as YAML: nested too deep"):
        yaml.parse(text)


def test_indentation_without_end_is_one_message() -> None:
    text = "".join(f"{' ' * level}a:\n" for level in range(600)).removesuffix("\n") + " 1\n"
    with pytest.raises(UserError, match="not readable as YAML: nested too deep"):
        yaml.parse(text)


def test_a_refused_text_leaves_nothing_behind() -> None:
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(10):
            with pytest.raises(UserError):
                yaml.parse(RECORD + "note: !!bool maybe\n")
        assert len(gc.get_objects()) - before < 1000
    finally:
        gc.enable()


def test_a_reader_parses_once_what_records_have_in_common(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [run(id=f"run-{seed}", seed=seed, train__seed=seed).to_yaml() for seed in range(3)]
    parse, parsed = yaml.parse, list[str]()
    monkeypatch.setattr(yaml, "parse", lambda text, *source: parsed.append(text) or parse(text, *source))
    reader = record_reader()
    for text in texts:
        parsed.clear()
        assert reader.parse(text) == in_full(text)
    assert "steps: 0" in parsed[-1]
    assert not any(each in "".join(parsed) for each in ("optimizer:", "parameters:", "NVIDIA", "epoch: 1"))


def test_what_a_reader_read_once_is_of_each_document_its_own() -> None:
    reader = record_reader()
    first, second = (reader.parse(RECORD) for _ in range(2))
    first["recipe"]["optimizer"]["name"] = first["environment"]["device_name"] = "another"
    assert second == reader.parse(RECORD) == in_full(RECORD)


@pytest.mark.parametrize(
    "text",
    [
        "id: x\nrecipe:\n  null\n",
        "id: x\nrecipe:\n  true\n",
        "id: x\nrecipe:\n  a: 1\n  'b': 2\n  b: 3\n",
        "a: |\n  a text",
    ],
    ids=[
        "a part that is null",
        "a part that is true",
        "a key twice, once in quotes",
        "no end of the last line",
    ],
)
def test_a_reader_takes_for_a_part_only_a_mapping_of_one_key(text: str) -> None:
    read_in_short(text)


# --- one file --------------------------------------------------------------------------------------------


def test_a_record_reads_back_as_itself(tmp_path: Path) -> None:
    written = run()
    assert read_record(write_record(written, tmp_path)) == written


def test_a_label_has_the_arguments_that_change_the_network() -> None:
    """Dropout acts in training alone; ShakeDrop's rate is a factor of each branch in evaluation too."""
    args = {"depth": 29, "pos_drop_rate": 0.1, "global_pool": "max", "shake_drop_rate": 0}
    one = run()
    one.recipe["model"] = {"name": "cifar_pyramidnet164_a48", "args": args}
    assert one.model_label == "cifar_pyramidnet164_a48[depth=29,global_pool=max,shake_drop_rate=0]"


@pytest.mark.parametrize("prefix", ["\ufeff", "# from a friend\n", "---\n"])
def test_a_record_that_somebody_touched_reads_as_before(prefix: str, tmp_path: Path) -> None:
    written = run()
    path = tmp_path / "record.yaml"
    path.write_text(prefix + written.to_yaml().replace("\n", "\r\n"), encoding="utf-8", newline="")
    assert read_record(path) == written


def test_a_fault_is_named_by_its_line_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "record.yaml"
    lines = run(error="x").to_yaml().splitlines()
    path.write_text("\n".join([*lines, "error: 'a", "  b'", "note: [1", ""]))
    with pytest.raises(
        UserError, match=rf"record.yaml: line {len(lines) + 4}, column 1: expected ',' or '\]'"
    ):
        read_record(path)


def test_a_record_with_aliases_is_refused_before_they_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "record.yaml"
    path.write_text(BOMB + run().to_yaml())
    with pytest.raises(UserError, match=r"line 2, column 10: .* aliases are not read"):
        read_record(path)


def test_a_record_of_the_first_version_is_read_and_ranked(tmp_path: Path) -> None:
    text = FIRST_VERSION.read_text()
    for seed, top1 in enumerate(("0.5", "0.75")):
        path = tmp_path / f"s{seed}" / "record.yaml"
        path.parent.mkdir()
        path.write_text(
            text.replace("-s0-", f"-s{seed}-")
            .replace("seed: 0", f"seed: {seed}")
            .replace("  test:\n    top1: 0.5", f"  test:\n    top1: {top1}")
            .replace("train_loss: 2.0", f"train_loss: 2.{seed}")  # equal losses would be of one run
            .replace("3" * 64, f"{seed + 3}" * 64)
            .replace("2" * 64, f"{seed + 5}" * 64)
        )
    collected = collect([tmp_path])
    assert (collected.left_out, collected.notes) == ((), ())
    assert collected.records[0].record.model.pretrained_tag is None  # type: ignore[union-attr]
    (group,) = build_leaderboard(collected.records)
    (entry,) = group.entries
    assert (entry.num_seeds, entry.rank_low, entry.label) == (2, 1, "pugd")
    assert entry.top1 is not None
    assert entry.top1.mean == 0.625


@pytest.mark.parametrize("schema", ["pugdft.run/2", "pugdft.run/10"])
def test_a_record_of_a_future_version_says_what_to_do(schema: str, tmp_path: Path) -> None:
    path = tmp_path / "record.yaml"
    path.write_text(f"schema: {schema}\nruns: []\n")
    with pytest.raises(UserError, match=f'"{schema}" is of a newer version of pugdft: update it'):
        read_record(path)
    assert len(collect([tmp_path]).left_out) == 1


# --- collect ---------------------------------------------------------------------------------------------


def test_folders_are_searched_for_record_yaml_and_files_of_any_name_are_read(tmp_path: Path) -> None:
    deep = write_record(run(), tmp_path / "runs" / "a" / "b")
    named = write_record(run(), tmp_path / "other").rename(tmp_path / "other" / "sam.yaml")
    (tmp_path / "runs" / "recipe.yaml").write_text("not: a record")
    collected = collect([tmp_path / "runs", named])
    assert [each.path for each in collected.records] == [deep, named]
    assert (collected.left_out, collected.notes) == ((), ())


def test_a_file_reached_twice_or_through_a_looping_link_counts_once(tmp_path: Path) -> None:
    path = write_record(run(), tmp_path / "real" / "a")
    (tmp_path / "real" / "loop").symlink_to(tmp_path / "real")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "runs").symlink_to(tmp_path / "real")
    assert len(collect([tmp_path / "linked", tmp_path, path]).records) == 1


def test_broken_foreign_and_newer_files_are_counted_named_and_left_out(tmp_path: Path) -> None:
    good = write_record(run(), tmp_path / "good")
    text = run().to_yaml()
    bad = {
        "broken": "schema: [",
        "binary": "\0\1",
        "cut": text[:200],
        "empty": "",
        "foreign": "hello: world",
        "newer": "schema: pugdft.run/2\nid: x",
        "incomplete": "schema: pugdft.run/1\nid: x",
        "nameless": run({"lr": 0.1}).to_yaml(),
        "baseless": run({"name": "sam", "base": {"lr": 0.1}}).to_yaml(),
        "tagged": text + "note: !!bool maybe\n",
        "keyed": text + "? {a: b}\n: c\n",
        "twice": text + "seed: 0\n",
        "endless": text.replace("  optimizer:\n", "  optimizer: &o\n    more: *o\n"),
        "deep": text.replace("    lr: 0.01", "    lr: " + "[" * 150 + "]" * 150),
        "deeper": text.replace("    lr: 0.01", "    lr: " + "[" * 100_000),
        "escaping": 'schema: "\\e[31mred"\nid: x',
        "huge": run(cost={"peak_memory_bytes": 10**400}).to_yaml(),
        "unwritable": text.replace("lr: 0.01", "lr: 0x" + "f" * 5000),
        "unwritable key": text.replace("    lr: 0.01", "    0x" + "f" * 5000 + ": 1"),
        "bomb": BOMB + text,
    }
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.yaml").write_text(content)
    (tmp_path / "latin").mkdir()
    (tmp_path / "latin" / "record.yaml").write_bytes(b"id: \xe9\n")
    (tmp_path / "dangling").mkdir()
    (tmp_path / "dangling" / "record.yaml").symlink_to(tmp_path / "nowhere")
    collected = collect([tmp_path])
    assert [each.path for each in collected.records] == [good]
    for name in [*bad, "latin", "dangling"]:
        assert sum(f"{name}/record.yaml" in message for message in collected.left_out) == 1
    assert len(collected.left_out) == len(bad) + 2
    assert all(message.isprintable() for message in collected.left_out)
    assert collected.notes == ()


def test_a_number_without_bounds_leaves_out_its_own_record_and_names_the_field(tmp_path: Path) -> None:
    write_record(run(), tmp_path / "good")
    write_record(run(cost={"peak_memory_bytes": 10**400}), tmp_path / "huge")
    write_record(run(history=[{"epoch": 1}, {"epoch": -(10**101)}]), tmp_path / "row")
    write_record(run(note={"of": "a newer version", "number": 10**101}), tmp_path / "unknown")
    collected = collect([tmp_path])
    assert len(collected.records) == 1
    assert [message.partition("record.yaml: ")[2] for message in collected.left_out] == [
        "cost.peak_memory_bytes: is out of range",
        "history.1.epoch: is out of range",
        "note.number: is out of range",
    ]


def test_a_path_that_no_file_system_takes_is_the_users_error() -> None:
    with pytest.raises(UserError, match="no such file"):
        collect([Path("x" * 5000)])


def test_a_folder_without_records_is_noted_and_counts_as_nothing_left_out(tmp_path: Path) -> None:
    collected = collect([tmp_path])
    assert (collected.records, collected.left_out) == ([], ())
    assert str(tmp_path) in collected.notes[0]


def test_a_missing_path_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file"):
        collect([tmp_path, tmp_path / "nowhere"])


def test_a_copied_record_counts_once_even_with_nan(tmp_path: Path) -> None:
    written = run(metrics={"test": {"top1": math.nan, "top5": 1, "loss": 1, "ece": 0}})
    write_record(written, tmp_path / "a")
    write_record(written, tmp_path / "b")
    collected = collect([tmp_path])
    assert len(collected.records) == 1
    assert collected.left_out == ()


def test_one_id_with_two_contents_is_two_records_and_names_both_files(tmp_path: Path) -> None:
    first = write_record(run(id="same", seed=1), tmp_path / "a")
    second = write_record(run(id="same", seed=2), tmp_path / "b")
    collected = collect([tmp_path])
    assert [each.record.seed for each in collected.records] == [1, 2]
    (note,) = collected.notes
    assert str(first) in note
    assert str(second) in note
    assert gc.isenabled()


def test_a_pipe_or_a_device_is_no_record_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "record.yaml")
    (tmp_path / "device").mkdir()
    (tmp_path / "device" / "record.yaml").symlink_to("/dev/zero")
    collected = collect([tmp_path])
    assert len(collected.left_out) == 2
    assert all("not a file of at most" in message for message in collected.left_out)


def test_of_equal_copies_the_one_with_predictions_counts(tmp_path: Path) -> None:
    written = run()
    for name in ("a", "b"):
        write_record(written, tmp_path / name)
    (tmp_path / "b" / "predictions.npz").write_bytes(b"x")
    for order in (["a", "b"], ["b", "a"]):
        (loaded,) = collect([tmp_path / name for name in order]).records
        assert loaded.path.parent.name == "b"


def test_a_whole_number_beyond_every_float_is_no_number() -> None:
    assert [is_number(each) for each in (10**400, -(10**400), math.nan, math.inf, True, "1")] == [False] * 6
    assert is_number(1.7e308)
    assert is_number(-3)
