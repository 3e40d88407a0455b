"""The ranking: what records, and predictions beside them, become; and what they must not be able to do."""

from __future__ import annotations

import io
import math
import os
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_records import PUGD, SAM, SGD, loaded, predictions, record, stored

from pugdft.leaderboard import Entry, Group, Loaded, as_json, build_leaderboard
from pugdft.leaderboard.crossed import spread_of
from pugdft.leaderboard.entry import CurvePoint, TuningBudget
from pugdft.leaderboard.power import seeds_needed
from pugdft.leaderboard.statistics import Sample, compare, summarize
from pugdft.record import RunRecord, write_record

NAN = math.nan
ONLY_THESE = "ranks speak of these test images only"


def one_group(*runs: Any, **options: Any) -> Group:
    groups = build_leaderboard(loaded(*runs), **options)
    assert len(groups) == 1
    return groups[0]


def entry_of(group: Group, label: str) -> Entry:
    return next(entry for entry in group.entries if entry.label == label)


def seeds(optimizer: dict[str, Any], *top1s: float, **changes: Any) -> list[RunRecord]:
    return [record(optimizer, seed, top1, **changes) for seed, top1 in enumerate(top1s)]


def networks(seed: int, num_seeds: int = 3, num_images: int = 300, gain: float = 0.0) -> np.ndarray:
    """Which images each seed's network gets right; one optimizer's networks are alike, and so are all."""
    shared = np.random.default_rng(99).normal(1.0, 1.0, num_images)
    own = np.random.default_rng(seed)
    return own.normal(size=(num_seeds, num_images)) < shared + own.normal(gain, 0.4, num_images)


def stored_seeds(folder: Path, optimizer: dict[str, Any], images: np.ndarray, **changes: Any) -> list[Loaded]:
    return [stored(folder, row, optimizer, seed, **changes) for seed, row in enumerate(images)]


# --- against the best ------------------------------------------------------------------------------------


def test_every_entry_is_held_against_the_best() -> None:
    group = one_group(
        seeds(SGD, 0.90, 0.91, 0.905), seeds(SAM, 0.95, 0.962, 0.953), seeds(PUGD, 0.951, 0.955, 0.955)
    )
    sam, pugd, sgd = group.entries
    assert (sam.label, sam.versus_best) == ("sam", None)
    assert sgd.versus_best is not None
    assert pugd.versus_best is not None
    assert sgd.versus_best.difference == pytest.approx(0.905 - 0.955)
    assert (sgd.versus_best.separated, sgd.versus_best.more_seeds) == (True, None)
    assert sgd.versus_best.p_value is not None
    assert sgd.versus_best.p_value <= 0.05
    assert not pugd.versus_best.separated
    raw = compare(sam.scores, pugd.scores, 1000)
    assert pugd.versus_best.p_value == pytest.approx(raw.p_value)  # the largest of three: times one
    needed = seeds_needed(raw.difference, math.sqrt(raw.seed_variance), num_pairs=3)
    assert needed is not None
    assert pugd.versus_best.more_seeds == needed - 3


def test_one_seed_gives_no_p_value_and_no_number_of_seeds() -> None:
    group = one_group(seeds(SGD, 0.9), seeds(SAM, 0.95, 0.96), seeds(PUGD, 0.93, 0.9))
    versus = entry_of(group, "sgd").versus_best
    assert versus is not None
    assert (versus.p_value, versus.separated, versus.more_seeds) == (None, False, None)


def test_no_difference_needs_no_seeds() -> None:
    group = one_group(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.91, 0.9, 0.92))
    versus = group.entries[1].versus_best
    assert versus is not None
    assert versus.difference == pytest.approx(0, abs=1e-12)
    assert versus.more_seeds is None or versus.more_seeds > 900


def diverged(optimizer: dict[str, Any], *numbers: int) -> list[RunRecord]:
    return [record(optimizer, seed, status="diverged") for seed in numbers]


def ranges(group: Group) -> dict[str, tuple[int | None, int | None]]:
    return {each.label: (each.rank_low, each.rank_high) for each in group.entries}


def test_surviving_seeds_rank_no_optimizer_above_another() -> None:
    sam, sgd = seeds(SAM, 0.95, 0.962, 0.953), seeds(SGD, 0.90, 0.91, 0.905, 0.9, 0.91)
    assert ranges(one_group(sam, sgd)) == {"sam": (1, 1), "sgd": (2, 2)}
    group = one_group(sam, diverged(SAM, 3, 4), sgd)
    assert ranges(group) == {"sam": (1, 2), "sgd": (1, 2)}
    best, second = group.entries
    assert (best.label, best.notes) == ("sam", ("2 of 5 seeds diverged: not ranked above others",))
    assert best.top1 is not None
    assert best.top1.mean == pytest.approx(0.955)
    assert second.versus_best is not None
    assert second.versus_best.difference == pytest.approx(-0.05)
    versus = second.versus_best
    assert (versus.p_value, versus.separated, versus.more_seeds) == (None, False, None)


def test_an_optimizer_with_diverged_seeds_can_rank_below_others() -> None:
    runs = [*seeds(SAM, 0.95, 0.962, 0.953), *diverged(SGD, 3), *seeds(SGD, 0.90, 0.91, 0.905)]
    group = one_group(runs, seeds(PUGD, 0.80, 0.81, 0.805))
    assert ranges(group) == {"sam": (1, 1), "sgd": (2, 3), "pugd": (2, 3)}
    versus = entry_of(group, "sgd").versus_best
    assert versus is not None
    assert versus.separated


def test_a_seed_that_diverged_and_then_completed_or_was_stopped_bars_no_rank() -> None:
    runs = [*seeds(SAM, 0.95, 0.962, 0.953), *diverged(SAM, 1), record(SAM, 7, status="interrupted")]
    group = one_group(runs, record(SAM, 8, status="oom"), seeds(SGD, 0.90, 0.91, 0.905))
    assert ranges(group) == {"sam": (1, 1), "sgd": (2, 2)}
    assert entry_of(group, "sam").unfinished == {"diverged": 1, "interrupted": 1, "oom": 1}


def test_too_few_test_images_are_named_as_what_is_missing(tmp_path: Path) -> None:
    images = networks(1, 5, 60)
    other = images.copy()
    other[:, :6] ^= True  # the same few images in every seed: only others could tell
    group = one_group(stored_seeds(tmp_path, SGD, images), stored_seeds(tmp_path, SAM, other))
    second = group.entries[1]
    assert second.versus_best is not None
    assert second.versus_best.more_seeds is None
    assert any("more test images" in note for note in second.notes)


# --- predictions -----------------------------------------------------------------------------------------


def test_stored_predictions_make_interval_and_p_value_speak_of_other_images(tmp_path: Path) -> None:
    better, worse = networks(1, gain=0.5), networks(2)
    group = one_group(stored_seeds(tmp_path, SAM, better), stored_seeds(tmp_path, SGD, worse))
    sam, sgd = group.entries
    assert sam.top1 == summarize(sam.scores, spread_of(better))
    assert sam.top1 is not None
    assert sam.top1.ci95 != summarize(sam.scores).ci95
    samples = [Sample(e.scores, dict(enumerate(i))) for e, i in ((sam, better), (sgd, worse))]
    assert sgd.versus_best is not None
    assert sgd.versus_best.p_value == pytest.approx(compare(*samples, num_images=300).p_value)
    assert sgd.versus_best.p_value > compare(sam.scores, sgd.scores, 300).p_value
    assert not any(ONLY_THESE in note for note in group.notes)
    assert not sam.notes + sgd.notes


def test_without_predictions_the_group_says_how_far_its_ranks_reach(tmp_path: Path) -> None:
    bare = one_group(seeds(SGD, 0.9, 0.91), seeds(SAM, 0.95, 0.96))
    assert bare.notes == (f"without stored predictions, {ONLY_THESE}",)
    images = networks(1)
    some = one_group(stored_seeds(tmp_path, SAM, images), seeds(SGD, 0.5, 0.5, 0.51, num_images=300))
    assert some.notes == ("without stored predictions, ranks of sgd speak of these test images only",)
    assert one_group(seeds(SGD, 0.9), seeds(SAM, 0.95)).notes == ()  # one seed each: no rank to speak of


@pytest.mark.parametrize("metric", ["top5", "loss"])
def test_other_means_over_images_rank_with_their_images(tmp_path: Path, metric: Any) -> None:
    runs = [*stored_seeds(tmp_path, SAM, networks(1, gain=0.5)), *stored_seeds(tmp_path, SGD, networks(2))]
    group = one_group(runs, metric=metric)
    assert (group.metric, group.entries[0].label) == (metric, "sam")
    assert not any(ONLY_THESE in note for note in group.notes)
    for entry in group.entries:
        for summary in (entry.top1, entry.top5, entry.loss):
            assert summary is not None
            assert summary.ci95 is not None
            assert summary.ci95[0] < summary.mean < summary.ci95[1]


def refuse_nothing(folder: Path) -> None:
    """The control: with nothing wrong the predictions are used."""


def remove(folder: Path) -> None:
    (folder / "predictions.npz").unlink()


def truncate(folder: Path) -> None:
    content = (folder / "predictions.npz").read_bytes()
    (folder / "predictions.npz").write_bytes(content[: len(content) // 2])


def garble(folder: Path) -> None:
    (folder / "predictions.npz").write_bytes(b"PK\x03\x04" + bytes(500))


def flip_an_image(folder: Path) -> None:
    correct = networks(1)[0]
    correct[0] ^= True
    predictions(correct).write(folder / "predictions.npz")


def leave_out_an_image(folder: Path) -> None:
    predictions(networks(1)[0][:-1]).write(folder / "predictions.npz")


def pickle(folder: Path) -> None:
    good = vars(predictions(networks(1)[0]))
    np.savez(folder / "predictions.npz", **{**good, "label": np.array([object()] * 300)})


def replace_by_a_pipe(folder: Path) -> None:
    remove(folder)
    os.mkfifo(folder / "predictions.npz")


def link_outside(folder: Path) -> None:
    (folder / "predictions.npz").rename(folder.parent / "elsewhere.npz")
    (folder / "predictions.npz").symlink_to(folder.parent / "elsewhere.npz")


def promise_a_billion(folder: Path) -> None:
    """A header that says more than the file could hold in memory."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {"descr": "<i8", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(folder / "predictions.npz", "w") as archive:
        for name in ("label", "prediction", "in_top5", "loss"):
            archive.writestr(f"{name}.npy", text.getvalue())


def unfold_the_header(folder: Path) -> None:
    """A version of the format whose header may be as long as it likes: here a few KB become 30 MB."""
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (300,)}" + b" " * 30_000_000 + b"\n"
    head = np.lib.format.magic(2, 0) + len(text).to_bytes(4, "little") + text
    with zipfile.ZipFile(folder / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("label", "prediction", "in_top5", "loss"):
            archive.writestr(f"{name}.npy", head + bytes(8 * 300))


def lengthen_the_header(folder: Path) -> None:
    with zipfile.ZipFile(folder / "predictions.npz") as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(folder / "predictions.npz", "w") as archive:
        for name, data in content.items():
            length = int.from_bytes(data[8:10], "little")
            header = data[10 : 10 + length] + b" " * 60_000
            archive.writestr(
                name, data[:8] + len(header).to_bytes(2, "little") + header + data[10 + length :]
            )


DAMAGES: dict[Callable[[Path], None], str | None] = {
    refuse_nothing: None,
    remove: "no such file",
    truncate: "not readable",
    garble: "not readable",
    flip_an_image: "do not give the record's top1",
    leave_out_an_image: "not for the 300 images",
    pickle: "label is of type object",
    replace_by_a_pipe: "not a file",
    link_outside: "leads out of the record's folder",
    promise_a_billion: "not for the 300 images",
    unfold_the_header: "label is of another format than pugdft writes",
    lengthen_the_header: "not readable",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_predictions_that_cannot_be_trusted_are_left_out_with_a_reason(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    runs = [
        *stored_seeds(tmp_path, SGD, networks(1)),
        *stored_seeds(tmp_path, SAM, networks(2, gain=0.5)),
    ]
    damage(tmp_path / "sgd-0")
    group = one_group(runs)
    sgd, reason = entry_of(group, "sgd"), DAMAGES[damage]
    assert (sgd.notes == ()) is (reason is None)
    if reason is not None:
        assert f"predictions of seed 0 not used: {reason}" in sgd.notes[0] or reason in sgd.notes[0]
        bare = one_group([Loaded(run.record, Path("nowhere")) for run in runs])
        assert sgd.top1 == entry_of(bare, "sgd").top1
        assert sgd.versus_best == entry_of(bare, "sgd").versus_best
        sam = entry_of(group, "sam")
        assert sam.top1 != entry_of(bare, "sam").top1  # its own are as good as before


@pytest.mark.filterwarnings("error")
def test_an_infinite_loss_leaves_the_images_of_the_other_metrics_usable(tmp_path: Path) -> None:
    runs = stored_seeds(tmp_path, SGD, networks(1)) + stored_seeds(tmp_path, SAM, networks(2))
    made = predictions(networks(1)[0])
    made.loss[3] = math.inf
    made.write(runs[0].path.parent / "predictions.npz")
    assert runs[0].record.metrics is not None
    runs[0].record.metrics.test.loss = math.inf
    sgd = entry_of(one_group(runs), "sgd")
    assert (sgd.notes, sgd.loss) == ((), None)
    assert sgd.top1 is not None
    assert sgd.top1.ci95 != summarize(sgd.scores).ci95
    by_loss = one_group(runs, metric="loss")
    assert entry_of(by_loss, "sgd").notes == ("no valid loss for seed 0: ranked last",)


def test_no_damage_to_a_file_stops_the_ranking(tmp_path: Path) -> None:
    run = stored(tmp_path, networks(1)[0])
    file, random_bytes = run.path.parent / "predictions.npz", np.random.default_rng(0)
    content = np.frombuffer(file.read_bytes(), np.uint8)
    noted = 0
    for _ in range(150):
        broken = content.copy()
        broken[random_bytes.integers(0, len(broken), 5)] ^= random_bytes.integers(1, 256, 5, dtype=np.uint8)
        file.write_bytes(broken.tobytes())
        entry = one_group(run).entries[0]
        assert entry.num_seeds == 1
        noted += bool(entry.notes)
    assert noted > 140


@pytest.mark.parametrize("path", ["../sgd-1/predictions.npz", "/etc/passwd", "", ".", "\0", "x" * 5000])
def test_a_record_opens_nothing_but_a_file_beside_it(tmp_path: Path, path: str) -> None:
    images = networks(1)
    runs = stored_seeds(tmp_path, SGD, images)
    runs[0] = stored(tmp_path, images[0], artifacts={"predictions": {"path": path, "sha256": "0" * 64}})
    entry = one_group(runs).entries[0]
    assert entry.notes[0].startswith("predictions of seed 0 not used: ")
    assert entry.num_seeds == 3


def test_a_headers_length_costs_no_memory(tmp_path: Path) -> None:
    run = stored(tmp_path, networks(1)[0])
    unfold_the_header(run.path.parent)
    tracemalloc.start()
    try:
        assert one_group(run).entries[0].notes
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_predictions_beside_the_record_cost_no_look_at_the_folders_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} resolved")

    runs = stored_seeds(tmp_path, SGD, networks(1))
    monkeypatch.setattr(Path, "resolve", refuse)
    assert one_group(runs).entries[0].notes == ()
    remove(runs[0].path.parent)
    assert one_group(runs).entries[0].notes == ("predictions of seed 0 not used: no such file",)


def test_images_in_another_order_are_not_compared_one_by_one(tmp_path: Path) -> None:
    images = networks(1)
    runs = [
        *stored_seeds(tmp_path, SGD, images),
        *stored_seeds(tmp_path, PUGD, images),
        *stored_seeds(tmp_path, SAM, images, labels_seed=7),
    ]
    group = one_group(runs)
    assert "another order" in entry_of(group, "sam").notes[0]
    assert entry_of(group, "sgd").notes == entry_of(group, "pugd").notes == ()
    mixed = [*runs[:2], stored(tmp_path / "x", images[2], SGD, 2, labels_seed=7)]
    assert "different orders" in one_group(mixed).entries[0].notes[0]


# --- metrics ---------------------------------------------------------------------------------------------


def with_metrics(optimizer: dict[str, Any], *losses: float) -> list[RunRecord]:
    return [
        record(optimizer, seed, metrics={"test": {"top1": 0.9, "top5": 0.99, "loss": loss, "ece": loss / 10}})
        for seed, loss in enumerate(losses)
    ]


@pytest.mark.parametrize("metric", ["loss", "ece"])
def test_the_lowest_loss_and_calibration_error_rank_first(metric: Any) -> None:
    group = one_group(with_metrics(SGD, 0.5, 0.51, 0.49), with_metrics(SAM, 0.2, 0.21, 0.205), metric=metric)
    assert [(each.label, each.rank_low, each.rank_high) for each in group.entries] == [
        ("sam", 1, 1),
        ("sgd", 2, 2),
    ]
    versus = group.entries[1].versus_best
    assert versus is not None
    assert versus.difference > 0
    assert group.entries[0].scores[0] == pytest.approx(0.2 if metric == "loss" else 0.02)


def test_a_run_without_the_metric_ranks_last_by_it_and_by_it_alone() -> None:
    runs = [*with_metrics(SGD, 0.5, 0.51), *with_metrics(SAM, 0.2, NAN), *with_metrics(PUGD, -1.0, 0.3)]
    by_loss = one_group(runs, metric="loss")
    assert [each.label for each in by_loss.entries] == ["sgd", "pugd", "sam"]
    assert [(each.rank_low, each.rank_high) for each in by_loss.entries] == [(1, 1), (2, 3), (2, 3)]
    assert "no valid loss for seed 1: ranked last" in entry_of(by_loss, "sam").notes
    assert (entry_of(by_loss, "sam").loss, entry_of(by_loss, "sam").versus_best) == (None, None)
    by_top1 = one_group(runs)
    assert {(each.rank_low, each.rank_high) for each in by_top1.entries} == {(1, 3)}


def test_a_completed_run_without_test_metrics_ranks_last() -> None:
    blind = record(SAM, metrics={"validation": {"top1": 0.9, "top5": 0.99, "loss": 0.3, "ece": 0.02}})
    group = one_group(record(SGD), blind)
    assert [each.label for each in group.entries] == ["sgd", "sam"]
    assert entry_of(group, "sam").notes == ("no valid top-1 for seed 0: ranked last",)


def test_the_best_epochs_are_kept_apart_and_need_every_seed() -> None:
    def picked(best: float | None) -> dict[str, Any]:
        test = {"top1": 0.9, "top5": 0.99, "loss": 0.3, "ece": 0.02}
        return {"test": test} if best is None else {"test": test, "best_test": {"top1": best, "epoch": 3}}

    def best(*values: float | None) -> float | None:
        runs = [record(SGD, seed, metrics=picked(value)) for seed, value in enumerate(values)]
        return one_group(runs).entries[0].best_test_top1

    assert best(0.92, 0.94) == pytest.approx(0.93)
    assert best(0.92, None) is None
    assert best(0.92, NAN) is None


# --- cost ------------------------------------------------------------------------------------------------


def history(passes: float, *top1s: float | None, seconds: float = 10.0) -> list[dict[str, Any]]:
    return [
        {"epoch": n, "gradient_passes": passes * n, "train_seconds": seconds * n, "train_loss": 1 / n}
        | ({} if top1 is None else {"test_top1": top1})
        for n, top1 in enumerate(top1s, 1)
    ]


def test_at_equal_cost_the_dear_one_is_taken_where_it_stood() -> None:
    cheap = [
        record(SGD, seed, 0.8, history=history(100, 0.5, 0.6, 0.7, 0.8), cost={"gradient_passes": 400})
        for seed in (0, 1)
    ]
    dear = [
        record(SAM, seed, 0.9, history=history(200, 0.3, top1, 0.85, 0.9), cost={"gradient_passes": 800})
        for seed, top1 in enumerate((0.64, 0.66))
    ]
    group = one_group(cheap, dear)
    assert group.equal_passes == 400
    assert entry_of(group, "sgd").top1_at_equal_passes == pytest.approx(0.8)
    assert entry_of(group, "sam").top1_at_equal_passes == pytest.approx(0.65)
    assert (group.equal_seconds, entry_of(group, "sam").top1_at_equal_seconds) == (None, None)


def test_an_epoch_without_evaluation_is_passed_over() -> None:
    runs = [
        record(SGD, history=history(100, 0.5), cost={"gradient_passes": 350}),
        record(SAM, history=history(100, 0.4, None, None, 0.9), cost={"gradient_passes": 400}),
    ]
    assert entry_of(one_group(runs), "sam").top1_at_equal_passes == 0.4


def test_the_cheapest_keeps_its_last_epoch_although_its_seeds_took_different_times() -> None:
    def run(optimizer: dict[str, Any], seed: int, seconds: float) -> RunRecord:
        rows = history(1, 0.5, 0.7, seconds=seconds)
        return record(optimizer, seed, history=rows, cost={"train_seconds": 2 * seconds})

    runs = [run(SGD, 0, 9), run(SGD, 1, 11), run(SAM, 0, 19), run(SAM, 1, 21)]
    group = one_group(runs)
    assert group.equal_seconds == pytest.approx(20)
    assert entry_of(group, "sgd").top1_at_equal_seconds == pytest.approx(0.7)
    assert entry_of(group, "sam").top1_at_equal_seconds == pytest.approx(0.5)


def test_runs_with_different_numbers_of_epochs_count_where_each_of_them_stood() -> None:
    """As under a pass budget, where a method draws by chance which updates take two."""

    def run(seed: int, num_epochs: int) -> RunRecord:
        top1s = [0.6 + 0.3 * epoch / num_epochs for epoch in range(1, num_epochs + 1)]
        return record(
            SAM, seed, 0.9, history=history(1000 / num_epochs, *top1s), cost={"gradient_passes": 1000}
        )

    sam = [run(0, 10), run(1, 14)]
    group = one_group(sam, record(SGD, history=history(100, *[0.8] * 10), cost={"gradient_passes": 1000}))
    assert entry_of(group, "sam").top1_at_equal_passes == pytest.approx(0.9)
    assert len(entry_of(group, "sam").curve) == 10
    half = one_group(sam, record(SGD, history=history(100, *[0.8] * 5), cost={"gradient_passes": 500}))
    assert entry_of(half, "sam").top1_at_equal_passes == pytest.approx(0.75)


def test_a_run_that_was_not_evaluated_within_the_budget_leaves_no_figure() -> None:
    sam = [
        record(SAM, 0, history=history(200, 0.5, 0.6), cost={"gradient_passes": 400}),
        record(SAM, 1, history=history(200, None, 0.6), cost={"gradient_passes": 400}),
    ]
    group = one_group(sam, record(SGD, history=history(200, 0.5), cost={"gradient_passes": 200}))
    assert entry_of(group, "sam").top1_at_equal_passes is None


def test_the_budget_is_of_entries_that_are_ranked_by_the_metric() -> None:
    free = record(PUGD, 0, NAN, cost={"gradient_passes": 1})
    group = one_group(record(SGD), free)
    assert group.equal_passes == 1000


def test_curves_are_means_over_the_epochs_that_all_seeds_reached() -> None:
    runs = [
        record(SGD, 0, history=history(100, 0.5, 0.6, 0.7)),
        record(SGD, 1, history=history(100, 0.7, None)),
    ]
    assert one_group(runs).entries[0].curve == (
        CurvePoint(1, 100, 10, 1.0, pytest.approx(0.6)),
        CurvePoint(2, 200, 20, 0.5, None),
    )


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"epoch": None},
        {"epoch": "1"},
        {"epoch": True, "test_top1": True},
        {"epoch": 1, "gradient_passes": 10**400, "test_top1": NAN, "train_seconds": math.inf},
        {"epoch": 10**400},
        {"epoch": -1, "test_top1": 0.5},
        {"epoch": 1.5, "test_top1": 0.5},
        {"epoch": 1, "test_top1": [0.5], "gradient_passes": {"a": 1}},
        {"epoch": 1, "test_top1": 17.0, "gradient_passes": -5},
        {1: 2, None: 3},
    ],
    ids=str,
)
def test_a_history_may_hold_anything(row: dict[Any, Any]) -> None:
    bad = record(SGD, 1)
    bad.history.append(row)
    entry = one_group(record(SGD, 0, history=history(10, 0.5)), bad).entries[0]
    assert entry.num_seeds == 2
    assert entry.top1_at_equal_passes is None
    assert all(point.test_top1 is None for point in entry.curve)


# --- tuning, searches, protocol --------------------------------------------------------------------------


def test_how_an_optimizer_was_tuned_is_shown_and_makes_no_entry_of_its_own() -> None:
    tuned = record(SAM, 0, tuning={"trials": 9, "gradient_passes": 1200, "search": "grid"})
    group = one_group(tuned, record(SAM, 1), record(SGD))
    sam = entry_of(group, "sam")
    assert (sam.num_seeds, sam.tuning) == (2, TuningBudget(9, 1200.0))
    assert entry_of(group, "sgd").tuning is None
    assert [note for note in group.notes if "tuning" in note] == [
        "tuning budgets differ: 9 trials of 1,200 gradient passes in all (sam); none on record (sgd)"
    ]


@pytest.mark.parametrize(
    ("trials", "passes", "doubted"),
    [(10, 1000, False), (10, 1090, False), (10, 1200, True), (12, 1000, True)],
)
def test_budgets_that_differ_by_more_than_a_tenth_are_doubted(
    trials: int, passes: float, doubted: bool
) -> None:
    group = one_group(
        record(SGD, tuning={"trials": 10, "gradient_passes": 1000}),
        record(SAM, tuning={"trials": trials, "gradient_passes": passes}),
    )
    assert any("tuning budgets differ" in note for note in group.notes) is doubted


@pytest.mark.parametrize(
    "tuning", [5, {}, {"trials": "x", "gradient_passes": 1}, {"trials": 1, "gradient_passes": NAN}], ids=str
)
def test_a_tuning_that_says_nothing_is_none(tuning: Any) -> None:
    group = one_group(record(SGD, tuning=tuning), record(SAM))
    assert {entry.tuning for entry in group.entries} == {None}
    assert group.notes == ()


def test_runs_of_a_search_stand_in_no_group_and_are_counted_once() -> None:
    trials = [
        record({**SAM, "rho": rho / 10}, train__evaluate="validation", metrics=None) for rho in range(5)
    ]
    other_protocol = record(SGD, train__epochs=99)
    groups = build_leaderboard(loaded(trials, record(SGD), record(SAM), other_protocol))
    assert [[entry.label for entry in group.entries] for group in groups] == [["sam", "sgd"], ["sgd"]]
    notes = [note for group in groups for note in group.notes]
    assert notes == ["5 runs of a search, on held-out images, not shown"]
    assert build_leaderboard(loaded(trials)) == []


def test_what_epochs_count_is_part_of_the_protocol() -> None:
    groups = build_leaderboard(loaded(record(SGD), record(SAM, train__budget="passes")))
    assert [group.protocol for group in groups] == [
        "224 px, 10 epochs' worth of gradient passes, batch 100, fp32, cosine",
        "224 px, 10 epochs, batch 100, fp32, cosine",
    ]


def test_older_records_without_the_newer_keys_stand_with_newer_ones() -> None:
    new = record(SAM, train__budget="epochs", train__evaluate="all")
    assert len(one_group(record(SGD), new).entries) == 2
    old = record(PUGD)
    assert old.recipe.pop("schedule") == {"name": "cosine"}  # the default
    assert len(one_group(old, new).entries) == 2
    old.recipe["schedule"] = {"name": "constant"}
    assert len(build_leaderboard(loaded(old, new))) == 2


def test_what_makes_runs_faster_is_no_part_of_the_protocol() -> None:
    fast = record(SAM, train__performance={"compile": True}, data__workers=8)
    assert len(one_group(record(SGD), fast).entries) == 2


def test_one_seed_under_several_names_counts_once() -> None:
    runs = [record(SGD, seed, 0.9, id=f"run-{seed}", train__seed=0) for seed in range(3)]
    entry = one_group(runs).entries[0]
    assert (entry.num_seeds, list(entry.scores)) == (1, [0])
    assert entry.notes == (
        "2 runs with another seed on record than in the recipe, which counts: run-1, run-2",
        "seed 0 ran 3 times; run-2, the newest, counts",
    )
    without = [record(SGD, seed, 0.9, train__seed=None) for seed in range(3)]
    assert one_group(without).entries[0].num_seeds == 3


# --- doubts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("torch", ("2.9.0", "2.10.0"), "the version of torch: 2.10.0 (sam); 2.9.0 (sgd)"),
        ("timm", ("1.0.20", "1.0.22"), "the version of timm"),
        ("pugdft", ("0.1.0", "0.2.0"), "the version of pugdft"),
        ("processes", (1, 4), "the number of processes: 1 (sgd); 4 (sam)"),
        ("precision", ("fp32", "bf16"), "the precision"),
        ("device_name", ("A100", "H200"), "times say nothing: A100 (sgd); H200 (sam)"),
    ],
)
def test_runs_in_different_surroundings_are_doubted(key: str, values: tuple[Any, Any], said: str) -> None:
    first, second = values
    runs = [record(SGD, environment={key: first}), record(SAM, environment={key: second})]
    notes = one_group(runs).notes
    assert len(notes) == 1
    assert said in notes[0]
    same = [record(SGD, environment={key: first}), record(SAM, environment={key: first})]
    assert one_group(same, record(PUGD, environment={})).notes == ()


def test_a_modified_checkout_is_named() -> None:
    runs = [record(SGD, environment={"git": "abc-dirty"}), record(SAM, environment={"git": "abc"})]
    assert one_group(runs).notes == ("run from a modified checkout (environment.git): sgd",)


def test_an_environment_may_hold_anything() -> None:
    strange = {"torch": ["2"], "git": 5, "timm": "\x1b[31m" + "x" * 500, "processes": NAN}
    group = one_group(record(SGD, environment=strange), record(SAM, environment={"timm": "1"}))
    assert all(note.isprintable() and len(note) < 300 for note in group.notes)


def test_other_images_of_the_same_name_are_pointed_at() -> None:
    other = {"name": "cifar10", "classes": 10, "sizes": {"test": 1000}, "sha256": "cd" * 32}
    for epochs in (10, 3):  # of one protocol, and of two
        groups = build_leaderboard(loaded(record(SGD), record(SAM, data=other, train__epochs=epochs)))
        assert len(groups) == 2
        assert all("had other images (data.sha256)" in group.notes[0] for group in groups)
    assert all(
        not group.notes for group in build_leaderboard(loaded(record(SGD), record(SAM, train__epochs=3)))
    )


@pytest.mark.parametrize(
    "fact", ["data__order_sha256", "data__split_sha256", "data__augmentation_sha256", "model__head_sha256"]
)
def test_equal_seeds_that_were_not_the_same_draws_are_compared_as_unpaired(fact: str) -> None:
    model = {"name": "resnet18", "weights_sha256": "ab", "parameters": 5}

    def group_of(digest: str | None) -> Group:
        said = {} if digest is None else {fact: digest}
        facts: dict[str, Any] = {"model": model}
        return one_group(
            [facted(SGD, seed, top1, facts, {fact: "aa"}) for seed, top1 in enumerate((0.90, 0.95, 0.92))],
            [facted(SAM, seed, top1, facts, said) for seed, top1 in enumerate((0.905, 0.955, 0.925))],
        )

    def facted(
        optimizer: dict[str, Any], seed: int, top1: float, facts: dict[str, Any], said: dict[str, str]
    ) -> RunRecord:
        made = record(optimizer, seed, top1)
        content = made.model_dump(by_alias=True) | facts
        for key, digest in said.items():
            section, _, name = key.partition("__")
            content[section] = {**content[section], name: digest}
        return RunRecord.model_validate(content)

    agreeing, silent, differing = group_of("aa"), group_of(None), group_of("bb")
    assert [(each.rank_low, each.rank_high) for each in agreeing.entries] == [(1, 1), (2, 2)]
    assert silent.entries[0].rank_high == 1
    assert not any("pairing" in note for note in agreeing.notes + silent.notes)
    assert [(each.rank_low, each.rank_high) for each in differing.entries] == [(1, 2), (1, 2)]
    assert any(
        "seed 0, 1, 2" in note and "pairing by seed is not justified" in note for note in differing.notes
    )


def test_entries_with_different_seeds_say_how_they_are_compared() -> None:
    group = one_group(seeds(SGD, 0.9, 0.91, 0.92), seeds(SAM, 0.9, 0.93))
    assert any(note.startswith("entries ran different seeds") for note in group.notes)
    assert not any("different seeds" in note for note in one_group(seeds(SGD, 0.9, 0.91)).notes)


# --- what must not change --------------------------------------------------------------------------------


def everything(folder: Path) -> list[Loaded]:
    return loaded(
        stored_seeds(folder, SGD, networks(1)),
        stored_seeds(folder, SAM, networks(2, 4, gain=0.4)),
        stored_seeds(folder, PUGD, networks(3, gain=0.1), tuning={"trials": 3, "gradient_passes": 10}),
        seeds({**SGD, "lr": 0.1}, 0.7, 0.71, 0.705, num_images=300, history=history(5, 0.4, 0.5)),
        record({**SGD, "lr": 0.1}, 3, NAN, num_images=300),
        record(SAM, 9, status="diverged"),
        record({**SAM, "rho": 1.0}, train__evaluate="validation"),
        seeds(SGD, 0.9, 0.91, train__epochs=3, environment={"torch": "1"}),
        seeds(SAM, 0.9, 0.92, train__epochs=3, environment={"torch": "2"}),
    )


def test_the_order_of_records_changes_nothing(tmp_path: Path) -> None:
    runs = everything(tmp_path)
    for metric in ("top1", "loss", "ece"):
        expected = as_json(build_leaderboard(runs, metric=metric))  # type: ignore[arg-type]
        for shuffle in range(4):
            shuffled = random.Random(shuffle).sample(runs, len(runs))
            assert as_json(build_leaderboard(shuffled, metric=metric)) == expected  # type: ignore[arg-type]


def test_a_record_changes_only_its_own_group(tmp_path: Path) -> None:
    runs = everything(tmp_path)
    before = build_leaderboard(runs)
    after = build_leaderboard([*runs, *loaded(record(SGD, 5, 0.99, train__epochs=3))])
    assert [group.protocol for group in before] == [group.protocol for group in after]
    assert [one == two for one, two in zip(before, after, strict=True)].count(False) == 1


def test_another_entry_changes_only_ranks_and_comparisons(tmp_path: Path) -> None:
    runs = [*stored_seeds(tmp_path, SGD, networks(1)), *stored_seeds(tmp_path, SAM, networks(2, gain=0.4))]
    before = one_group(runs)
    after = one_group(runs, stored_seeds(tmp_path, PUGD, networks(3, gain=-0.5)))
    for entry in before.entries:
        same = entry_of(after, entry.label)
        assert (same.top1, same.loss, same.ece, same.scores, same.curve, same.notes) == (
            entry.top1, entry.loss, entry.ece, entry.scores, entry.curve, entry.notes,
        )  # fmt: skip
    assert entry_of(after, "pugd").rank_high == 3


def test_a_failed_run_changes_only_its_count(tmp_path: Path) -> None:
    runs = stored_seeds(tmp_path, SGD, networks(1))
    before = one_group(runs).entries[0]
    after = one_group(runs, record(SGD, 7, status="oom")).entries[0]
    assert after.unfinished == {"oom": 1}
    assert (after.top1, after.records, after.rank_low) == (before.top1, before.records, before.rank_low)


def test_predictions_found_by_collect_are_those_beside_the_record(tmp_path: Path) -> None:
    from pugdft.leaderboard import collect

    made = stored_seeds(tmp_path / "runs", SGD, networks(1))
    assert write_record(made[0].record, made[0].path.parent) == made[0].path
    collected = collect([tmp_path / "runs"])
    assert build_leaderboard(collected.records) == build_leaderboard(made)


def test_ten_thousand_records_rank_in_seconds() -> None:
    random_top1 = np.random.default_rng(0).normal(0.9, 0.01, (100, 20, 5)).round(4).tolist()
    runs = [
        record({**SGD, "lr": 0.001 * (entry + 1)}, seed, top1, train__epochs=group + 1)
        for group, entries in enumerate(random_top1)
        for entry, top1s in enumerate(entries)
        for seed, top1 in enumerate(top1s)
    ]
    given = loaded(runs)
    begin = time.process_time()
    groups = build_leaderboard(given)
    spent = time.process_time() - begin
    assert sum(len(group.entries) for group in groups) == 2000
    assert spent < 5, f"{spent:.1f} s; 0.6 s on the machine where this was written"


def test_a_group_of_two_thousand_entries_ranks_in_seconds() -> None:
    top1s = np.random.default_rng(0).normal(0.9, 0.01, (2000, 3)).round(4).tolist()
    runs = [
        record({**SGD, "lr": entry + 1}, seed, top1)
        for entry, values in enumerate(top1s)
        for seed, top1 in enumerate(values)
    ]
    given = loaded(runs)
    begin = time.process_time()
    assert len(build_leaderboard(given)[0].entries) == 2000
    spent = time.process_time() - begin
    assert spent < 10, f"{spent:.1f} s; 1.4 s on the machine where this was written"
