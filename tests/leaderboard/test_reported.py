"""What papers printed: read strictly, never mixed with what was measured, and shown only when asked for."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
from bad_inputs.case import Done, call

import pugdft.architectures  # noqa: F401 - registers cifar_* in timm
from pugdft.config import yaml
from pugdft.errors import FaultsError, UserError
from pugdft.leaderboard.entry import Entry, Group, Summary
from pugdft.leaderboard.published import (
    NOTHING_MEASURED,
    read_reported,
    reported_folder,
    reported_rows,
    select_rows,
    with_reported,
)

ROW = {
    "source": "p",
    "table": "1",
    "dataset": "cifar10",
    "model": "resnet18",
    "optimizer": "sam",
    "top1": 0.95,
}
SOURCES = {"p": {"title": "A Paper", "arxiv": "2110.00199", "year": 2022}}


def written(folder: Path, *rows: dict[str, Any], **changes: Any) -> Path:
    path = folder / "p.yaml"
    path.write_text(yaml.dump({"sources": SOURCES, "rows": [{**ROW, **row} for row in rows], **changes}))
    return path


def entry_of(folder: Path, **row: Any) -> Entry:
    ((_, entry),) = read_reported(written(folder, row))
    return entry


def measured(model: str = "resnet18.tv_in1k", dataset: str = "cifar10", **settings: Any) -> Group:
    entry = Entry(
        "sgd", "measured", {}, rank_low=1, rank_high=1, num_seeds=1, summaries={"top1": Summary(0.9)}
    )
    recipe = {
        "data": {"image_size": 224},
        "train": {"epochs": 100, **settings},
        "model": {"pretrained": True},
    }
    return Group(dataset, model, f"epochs {settings}", recipe, (entry,))


def labels(group: Group) -> list[str]:
    return [entry.label for entry in group.entries]


# --- the files that come with pugdft -----------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(reported_folder().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_bundled_file_is_valid_and_says_where_each_figure_stands(path: Path) -> None:
    pairs = read_reported(path)
    assert pairs
    for row, entry in pairs:
        assert entry.source is not None
        assert entry.source.title
        assert entry.source.protocol
        assert entry.source.table == row.table


def test_the_bundled_figures_are_all_there() -> None:
    rows = [row for row, _ in reported_rows(reported_folder())]
    assert len(rows) == 258
    assert {row.source for row in rows} == {"pugd", "sam_gns", "gnp", "rts"}
    assert sum(row.caveat is not None for row in rows) == 59
    assert sum(row.std is not None for row in rows) == 64
    assert sum(row.top1 for row in rows) == pytest.approx(221.9688, abs=5e-5)


# Networks that a paper's rows have and nobody can build: what they are is not published.
NOT_PUBLISHED = {"pyramidnet_shakedrop"}


def test_every_row_from_scratch_names_a_network_that_can_be_built() -> None:
    rows = [row for row, _ in reported_rows(reported_folder()) if row.conditions().get("pretrained") is False]
    names = {row.model for row in rows}
    assert names >= NOT_PUBLISHED
    assert [name for name in sorted(names - NOT_PUBLISHED) if not timm.is_model(name)] == []
    small = {row.model for row in rows if row.dataset.startswith("cifar")} - NOT_PUBLISHED
    assert all(name.startswith("cifar_") for name in small), "an ImageNet network would join fine-tuned runs"
    assert all(row.caveat for row in rows if row.model in NOT_PUBLISHED)


def test_what_the_paper_does_not_state_is_not_claimed() -> None:
    rows = [row for row, _ in reported_rows(reported_folder()) if (row.source, row.table) == ("gnp", "1")]
    assert len(rows) == 54
    assert not any("epochs" in row.conditions() for row in rows)
    assert {row.selection for row in rows} == {"best test epoch"}


# --- reading -----------------------------------------------------------------------------------------------


def test_a_row_becomes_an_entry_without_rank_interval_or_cost(tmp_path: Path) -> None:
    entry = entry_of(tmp_path, std=0.002, num_seeds=3, caveat="provenance doubtful")
    assert (entry.label, entry.status, entry.num_seeds) == ("sam", "reported", 3)
    assert entry.top1 == Summary(0.95, 0.002, None)
    assert (entry.rank_low, entry.rank_high, entry.gradient_passes, entry.scores) == (None, None, None, {})
    assert entry.source is not None
    assert (entry.source.title, entry.source.arxiv, entry.source.year) == ("A Paper", "2110.00199", 2022)
    assert (entry.source.table, entry.source.caveat) == ("1", "provenance doubtful")


@pytest.mark.parametrize(
    ("conditions", "protocol"),
    [
        ({"pretrained": False, "lr": 0.1, "batch_size": 100, "epochs": 200, "image_size": 32},
         "32 px, 200 epochs, batch 100, lr 0.1, from scratch"),
        ({"image_size": 224, "pretrained": True, "selection": "best test epoch", "final_top1": 0.8574},
         "224 px, pretrained, best test epoch, last epoch 85.74 %"),
        ({"rho": 0.3333, "patch_size": 8, "augmentation": "cutout"},
         "patches of 8 px, rho 0.3333, augmentation cutout"),
        ({"quoted_from": "SAM paper", "selection": "median"}, "selection median, quoted from SAM paper"),
        ({"weight_decay": 5e-4, "nesterov": True}, "weight decay 0.0005, nesterov true"),
        ({}, ""),
    ],
)  # fmt: skip
def test_every_condition_of_a_row_stands_in_its_protocol(
    conditions: dict[str, Any], protocol: str, tmp_path: Path
) -> None:
    source = entry_of(tmp_path, **conditions).source
    assert source is not None
    assert source.protocol == protocol


def test_a_figure_of_the_best_test_epoch_is_labelled_as_such(tmp_path: Path) -> None:
    assert entry_of(tmp_path, selection="best test epoch").best_test_top1 == 0.95
    assert entry_of(tmp_path).best_test_top1 is None


@pytest.mark.parametrize(
    ("rows", "changes", "said"),
    [
        ([{"top1": 95.0}], {}, "rows.0.top1"),
        ([{"std": -1}], {}, "rows.0.std"),
        ([{}, {"table": None}], {}, "rows.1.table"),
        ([{"num_seeds": 0}], {}, "rows.0.num_seeds"),
        ([{"source": "q"}], {}, 'rows.0.source: unknown source "q". Known: p.'),
        ([{"lr": [0.1]}], {}, "rows.0.lr"),
        ([{"final_top1": 85.0}], {}, "rows.0.final_top1"),
        ([{}], {"sources": {"p": {"name": "A Paper"}}}, "sources.p.title"),
        ([{}], {"sources": {"p": {"title": "A Paper", "arxiv": 2110.00199}}}, "sources.p.arxiv"),
        ([{}], {"comment": "x"}, "comment"),
    ],
)
def test_a_slip_in_a_file_is_named_where_it_stands(
    rows: list[dict[str, Any]], changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = written(tmp_path, *rows, **changes)
    with pytest.raises(FaultsError) as caught:
        read_reported(path)
    assert f"{path}: {said}" in str(caught.value)


def test_all_slips_are_named_at_once_and_no_yaml_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(FaultsError) as caught:
        read_reported(written(tmp_path, {"top1": 95}, {"std": 2}))
    assert len(caught.value.faults) == 2
    for text in ("rows: [", "- 1", "\0"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(UserError, match=r"p\.yaml"):
            read_reported(tmp_path / "p.yaml")


# --- beside what was measured ------------------------------------------------------------------------------


def test_rows_join_the_group_of_their_data_set_and_architecture_below_the_measured(tmp_path: Path) -> None:
    rows = read_reported(written(tmp_path, {}, {"model": "vgg16"}, {"dataset": "cifar100"}))
    groups = with_reported([measured(), measured("vgg11")], rows)
    assert [(group.dataset, group.model, labels(group)) for group in groups] == [
        ("cifar10", "resnet18.tv_in1k", ["sgd", "sam"]),
        ("cifar10", "vgg11", ["sgd"]),
        ("cifar10", "vgg16", ["sam"]),
        ("cifar100", "resnet18", ["sam"]),
    ]
    assert [group.protocol for group in groups[2:]] == [NOTHING_MEASURED] * 2
    assert [group.recipe for group in groups[2:]] == [{}, {}]


def test_a_row_joins_no_network_with_arguments_of_its_own(tmp_path: Path) -> None:
    rows = read_reported(written(tmp_path, {}))
    for name in ("resnet18[width=8]", "resnet18.tv_in1k[zero_init_last=false]", "resnet18[drop=0.5]"):
        groups = with_reported([measured(name)], rows)
        assert [(group.model, labels(group)) for group in groups] == [(name, ["sgd"]), ("resnet18", ["sam"])]


def test_rows_with_cutout_join_the_runs_with_cutout(tmp_path: Path) -> None:
    rows = read_reported(
        written(
            tmp_path,
            {"augmentation": "cutout", "optimizer": "cut"},
            {"augmentation": "basic", "optimizer": "plain"},
        )
    )
    plain, cut = measured(), measured(seed_of_nothing=1)
    cut = replace(cut, recipe={**cut.recipe, "data": {"image_size": 224, "cutout": 16}})
    for groups in ([plain, cut], [cut, plain]):
        found = [labels(group) for group in with_reported(groups, rows)]
        assert sorted(found) == [["sgd", "cut"], ["sgd", "plain"]]
        assert found[groups.index(cut)] == ["sgd", "cut"]


def test_a_row_stands_once_in_the_group_with_the_nearest_protocol(tmp_path: Path) -> None:
    long = {"epochs": 200, "batch_size": 100, "optimizer": "long"}
    rows = read_reported(
        written(tmp_path, long, {"epochs": 100, "optimizer": "short"}, {"optimizer": "bare"})
    )
    groups = with_reported([measured(epochs=100), measured(epochs=200, batch_size=100)], rows)
    assert [labels(group) for group in groups] == [["sgd", "short", "bare"], ["sgd", "long"]]


def test_rows_of_one_table_and_protocol_stand_together_the_highest_first(tmp_path: Path) -> None:
    figures = [("a", "1", 200, 0.8), ("b", "2", 100, 0.99), ("c", "1", 100, 0.7), ("d", "1", 200, 0.9)]
    rows = [
        {"optimizer": name, "table": table, "epochs": epochs, "top1": top1}
        for name, table, epochs, top1 in figures
    ]
    (group,) = with_reported([], read_reported(written(tmp_path, *rows)))
    assert labels(group) == ["d", "a", "b", "c"]


def test_filters_follow_what_was_measured_and_else_the_rows_own_names(tmp_path: Path) -> None:
    rows = read_reported(
        written(tmp_path, {}, {"model": "vgg16"}, {"dataset": "cifar100"}, {"model": "resnet18_cpa"})
    )

    def left(groups: list[Group], dataset: str | None, model: str | None) -> list[tuple[str, str]]:
        return [(row.dataset, row.model) for row, _ in select_rows(rows, groups, dataset, model)]

    assert left([measured()], "cifar10", "tv_in1k") == [("cifar10", "resnet18")]
    assert left([], "CIFAR100", None) == [("cifar100", "resnet18")]
    assert left([], None, "vgg") == [("cifar10", "vgg16")]
    assert len(left([], None, None)) == 4
    with pytest.raises(UserError, match="part of several names: cifar10, cifar100"):
        left([], "cifar", None)
    with pytest.raises(UserError, match='no reported row of model "x"'):
        left([], None, "x")


# --- the command -------------------------------------------------------------------------------------------


def leaderboard(*options: str) -> Done:
    return call(("leaderboard", *options))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without runs."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("elsewhere")
def test_papers_tables_need_no_runs_and_are_never_ranked() -> None:
    done = leaderboard("--reported", "--format", "json")
    assert (done.code, done.err) == (0, "")
    entries = [entry for group in json.loads(done.out)["groups"] for entry in group["entries"]]
    assert len(entries) == 258
    assert {(entry["status"], entry["rank_low"]) for entry in entries} == {("reported", None)}


@pytest.mark.usefixtures("elsewhere")
def test_without_being_asked_nothing_reported_is_shown_and_a_named_path_must_exist() -> None:
    assert leaderboard().code == 2
    done = leaderboard("nowhere", "--reported")
    assert (done.code, "nowhere" in done.err) == (2, True)


@pytest.mark.usefixtures("elsewhere")
def test_filters_reach_the_reported_rows() -> None:
    done = leaderboard("--reported", "--dataset", "cifar100", "--model", "deit", "--format", "csv")
    made = list(csv.DictReader(io.StringIO(done.out)))
    assert {(row["dataset"], row["model"]) for row in made} == {("cifar100", "deit_base_patch16_224")}
    done = leaderboard("--reported", "--model", "resnet19")
    assert (done.code, done.out) == (2, "")
    assert 'Did you mean "' in done.err
    assert 'resnet18"?' in done.err
