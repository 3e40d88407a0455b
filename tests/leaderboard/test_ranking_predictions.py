"""Ranks from predictions for each image, which nothing that lies beside a record can spoil."""

from __future__ import annotations

import io
import math
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranked_records import compare, entry_of, networks, one_group, seeds, stored_seeds
from run_records import PUGD, SAM, SGD, predictions, stored

from pugdft.leaderboard import Loaded
from pugdft.leaderboard.stats import EntryScores, spread_of, summarize

ONLY_THESE = "ranks speak of these test images only"


def test_stored_predictions_make_interval_and_p_value_speak_of_other_images(tmp_path: Path) -> None:
    better, worse = networks(1, gain=0.5), networks(2)
    group = one_group(stored_seeds(tmp_path, SAM, better), stored_seeds(tmp_path, SGD, worse))
    sam, sgd = group.entries
    assert sam.top1 == summarize(sam.scores.values(), spread_of(better), num_images=better.shape[1])
    assert sam.top1 is not None
    assert sam.top1.ci95 != summarize(sam.scores.values()).ci95
    samples = [EntryScores(e.scores, dict(enumerate(i))) for e, i in ((sam, better), (sgd, worse))]
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
        for summary in map(entry.summary, ("top1", "top5", "loss")):
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
    leave_out_an_image: "one value for each of 300 images",
    pickle: "label is of type object",
    replace_by_a_pipe: "no such file",
    link_outside: "leads out of the record's folder",
    promise_a_billion: "one value for each of 300 images",
    unfold_the_header: "label is in another version of the format than pugdft writes",
    lengthen_the_header: "not readable",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_predictions_that_cannot_be_trusted_are_left_out_with_a_reason(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    runs = [*stored_seeds(tmp_path, SGD, networks(1)), *stored_seeds(tmp_path, SAM, networks(2, gain=0.5))]
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


@pytest.mark.parametrize("field", ["top1", "top5", "loss", "ece"])
@pytest.mark.parametrize("by", [1e-3, -0.02, math.inf, math.nan])
def test_a_record_that_its_own_predictions_contradict_is_named_and_does_not_rank(
    tmp_path: Path, field: str, by: float
) -> None:
    runs = [*stored_seeds(tmp_path, SGD, networks(1)), *stored_seeds(tmp_path, SAM, networks(2, gain=0.5))]
    assert runs[1].record.metrics is not None
    setattr(runs[1].record.metrics.test, field, getattr(runs[1].record.metrics.test, field) + by)
    sgd = entry_of(one_group(runs), "sgd")
    assert (sgd.num_seeds, dict(sgd.unfinished)) == (2, {"contradicted": 1})
    assert sgd.unfinished_records == (runs[1].record.id,)
    said = f"left out, for their own predictions contradict them: {runs[1].record.id} ({field} "
    assert sgd.notes[0].startswith(said)
    assert sorted(sgd.scores) == [0, 2]


def test_predictions_of_another_run_contradict_the_record(tmp_path: Path) -> None:
    runs = stored_seeds(tmp_path, SGD, networks(1))
    correct = networks(1)[0]
    correct[0] ^= True
    for run in runs:
        predictions(correct).write(run.path.parent / "predictions.npz")
    entry = one_group(runs).entries[0]
    assert (entry.num_seeds, entry.rank_low) == (0, None)
    assert dict(entry.unfinished) == {"contradicted": 3}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("metric", ["top1", "loss", "ece"])
@pytest.mark.parametrize("loss", [math.inf, math.nan, 1e200])
def test_a_completed_run_whose_loss_is_not_finite_counts_as_diverged_by_every_metric(
    tmp_path: Path, loss: float, metric: str
) -> None:
    bare = seeds(SAM, 0.98, 0.99, num_images=300)
    with_predictions = stored_seeds(tmp_path, SGD, networks(1))
    if loss != 1e200:  # which float32 cannot hold
        made = predictions(networks(1)[0])
        made.loss[3] = loss
        made.write(with_predictions[0].path.parent / "predictions.npz")
        assert with_predictions[0].record.metrics is not None
        with_predictions[0].record.metrics.test.loss = loss
    assert bare[0].metrics is not None
    bare[0].metrics.test.loss = loss
    group = one_group(with_predictions, bare, metric=metric)
    for label in ["sam"] + ["sgd"] * (loss != 1e200):
        entry = entry_of(group, label)
        assert dict(entry.unfinished) == {"diverged": 1}
        assert 0 not in entry.scores
        assert "the loss of seed 0 is not a number up to 1e+100: counted as diverged" in entry.notes


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
