"""``pugdft report``: what the page says is what the run left, and every bad input is one sentence."""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.case import call
from conftest import write_image_folder
from page_groups import HOSTILE
from PIL import Image
from report_runs import made_run, with_record
from run_records import PUGD
from scipy.stats import binomtest

from pugdft.predictions import NUM_BINS, read_predictions, wilson_interval
from pugdft.records import KeptEpoch, RunRecord, read_record, write_record
from pugdft.report.facts import MOST_MISTAKES, run_facts
from pugdft.report.page import MOST_IN_TABLE, as_page
from pugdft.training.run import finetune, read_recipe


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of seconds that gets some images wrong."""
    folder = tmp_path_factory.mktemp("report") / "run"
    recipe = {
        "model": {"name": "test_vit", "pretrained": False},
        "data": {"name": str(image_folder), "image_size": 32, "crop_padding": 2},
        "optimizer": {"name": "sam", "base": {"name": "sgd", "lr": 1e-6}},
        "train": {"epochs": 2, "batch_size": 24},
    }
    record, _ = finetune(read_recipe(recipe), folder)
    assert record.status == "completed", record.error
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def page_of(*words: str) -> str:
    """The page that the command writes; it needs nothing from outside."""
    done = call(["report", *words])
    assert done.code == 0, done.err
    text = Path(done.out.strip().splitlines()[-1]).read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "http" not in re.sub(r"https?://www\.w3\.org/\S+", "", text.partition("<body>")[2])
    return text


def test_the_page_says_what_the_run_left(run: Path) -> None:
    text = page_of(str(run))
    record, stored = read_record(run / "record.yaml"), read_predictions(run / "predictions.npz", 33)
    right = int((stored.label == stored.prediction).sum())
    low, high = binomtest(right, 33).proportion_ci(method="wilson")
    share = f"{100 * right / 33:.2f} % of 33 test images are classified correctly"
    assert f"{share} (95 % interval over images: {100 * low:.2f} to {100 * high:.2f} %)." in text
    assert (run / "report.html").read_text(encoding="utf-8") == text
    for value in (
        record.id,
        record.data.sha256,
        record.environment["torch"],
        "always the most frequent class",
    ):
        assert value in text
    assert "top-5" not in text, "of three classes it is always 100 %"
    for curve in ("Loss", "Top-1", "Learning rate"):
        assert f'aria-label="{curve} over the epochs"' in text
    # Each image is in one cell of the matrix, and the diagonal has the right ones.
    cells = re.findall(r'<td class="(right )?[wn]\w+" title="(\w+) → (\w+): \d+ of 11">(\d+)</td>', text)
    assert len(cells) == 9
    assert sum(int(count) for *_, count in cells) == 33
    assert sum(int(count) for kind, *_, count in cells if kind) == right
    assert all((true == other) == bool(kind) for kind, true, other, _ in cells)


def test_the_page_says_which_weights_the_numbers_are_of(run: Path) -> None:
    assert "These are of" not in page_of(str(run))
    record = read_record(run / "record.yaml")
    assert record.metrics is not None
    record.metrics.kept, record.metrics.weights = KeptEpoch(epoch=1, rule="best"), "ema"
    write_record(record, run)
    assert "These are of epoch 1, best on validation, averaged weights." in page_of(str(run))


def test_mistakes_come_by_confidence_with_their_own_images(run: Path, image_folder: Path) -> None:
    facts = run_facts(run)
    assert facts.evaluated is not None
    stored, mistakes = facts.evaluated.predictions, facts.evaluated.mistakes()
    wrong = np.flatnonzero(stored.label != stored.prediction)
    assert len(mistakes) == min(MOST_MISTAKES, len(wrong)) > 3
    assert [each.confidence for each in mistakes] == sorted(
        map(float, stored.confidence[wrong]), reverse=True
    )[: len(mistakes)]
    for each in mistakes:
        assert each.path.startswith(f"test/{each.label}/")
        picture = Image.open(BytesIO(base64.b64decode(each.picture.removeprefix("data:image/webp;base64,"))))
        original = np.asarray(Image.open(image_folder / each.path), np.float64)
        assert np.abs(np.asarray(picture, np.float64).mean((0, 1)) - original.mean((0, 1))).max() < 8
    assert as_page([facts]).count("data:image/webp") == len(mistakes)


@pytest.mark.parametrize("change", ["gone", "relabelled", "repainted", "damaged"])
def test_images_that_are_not_those_of_the_run_are_not_shown(
    run: Path, tmp_path: Path, change: str, own_cache: Path
) -> None:
    images = write_image_folder(tmp_path / "insects", {"train": 24, "test": 11})
    first = images / "test" / "ant" / "000.png"
    if change == "relabelled":
        first.rename(images / "test" / "bee" / "900.png")
    elif change == "repainted":
        from pugdft.data.cache import prepare
        from pugdft.data.datasets import open_source

        Image.new("RGB", (16, 16)).save(first)
        prepare(open_source(str(images)), 32)
    elif change == "damaged":
        for image in (images / "test").rglob("*.png"):
            image.write_bytes(image.read_bytes()[:60])
    given = [] if change == "gone" else ["--data", str(images)]
    if change == "gone":
        with_record(run, lambda record: record.recipe["data"].update(name=str(tmp_path / "no-such-folder")))
    text = page_of(str(run), *given)
    assert "data:image/webp" not in text
    said = {
        "gone": "The images are not shown: <bdi>data.name: no such folder",
        "relabelled": "other images than the run was evaluated on",
        "repainted": "the digest differs",
        "damaged": "does not decode",
    }
    assert said[change] in text
    assert re.search(r"test/\w+/0\d\d", text), "the mistakes' paths stay"


def test_several_runs_stand_side_by_side_and_are_not_ranked(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with_record(other, lambda record: record.recipe["train"].update(batch_size=48))
    third = Path(shutil.copytree(run, tmp_path / "third"))

    def change(record: RunRecord) -> None:
        record.recipe["optimizer"] = PUGD
        record.data = record.data and record.data.model_copy(update={"sha256": "cd" * 32})

    with_record(third, change)
    page = str(tmp_path / "page.html")
    text = page_of(str(run), str(other / "record.yaml"), str(run), str(third), "--output", page)
    assert "This page does not rank" in text
    assert text.count('<section class="group report"') == 3, "a run given twice is one"
    assert [name in text for name in ("sam, seed 0 (1)", "sam, seed 0 (2)", "pugd, seed 0")] == [True] * 3
    assert "train.batch_size=48" in text
    assert "evaluated on different images: their numbers cannot be compared" in text
    for number in range(3):
        assert f'data-series="alls{number}"' in text


@pytest.mark.parametrize("num_classes", [1, 2, MOST_IN_TABLE, MOST_IN_TABLE + 1, 200])
def test_any_number_of_classes_has_a_page(tmp_path: Path, num_classes: int) -> None:
    evaluated = run_facts(made_run(tmp_path / "run", num_classes)).evaluated
    assert evaluated is not None
    counts = evaluated.confusion()
    stored = evaluated.predictions
    assert counts.sum() == len(stored.label)
    assert np.trace(counts) == (stored.label == stored.prediction).sum()
    results = evaluated.classes()
    assert sum(each.num_images for each in results) == len(stored.label)
    shares = [each.num_right / each.num_images for each in results]
    assert shares == sorted(shares)
    text = page_of(str(tmp_path / "run"))
    assert len(text) < 3_000_000
    assert ('class="matrix"' in text) == (num_classes <= MOST_IN_TABLE)
    assert ('<div class="heat"' in text) == (num_classes > MOST_IN_TABLE)
    assert text.count('scope="row" class="text"') == num_classes


def test_confused_classes_are_neighbours_in_the_picture(tmp_path: Path) -> None:
    # Classes k and k + 20 are taken for each other, and for no other.
    labels = np.repeat(np.arange(40), 10)
    taken = np.where(np.arange(400) % 3 == 0, (labels + 20) % 40, labels)
    text = page_of(str(made_run(tmp_path / "run", 40, labels=labels, taken=taken)))
    [names] = re.findall(r"data-names='(.*?)'", text)
    order = [int(number) for number in re.findall(r"kind (\d+)", names)]
    assert sorted(order) == list(range(40))
    assert all(abs(order.index(number) - order.index(number + 20)) == 1 for number in range(20))


def test_bins_and_intervals_are_those_of_the_metrics(tmp_path: Path) -> None:
    evaluated = run_facts(made_run(tmp_path / "run", 10)).evaluated
    assert evaluated is not None
    bins = evaluated.calibration()
    total = sum(each.num_images for each in bins)
    gaps = sum(each.num_images / total * abs(each.accuracy - each.confidence) for each in bins)
    assert len(bins) <= NUM_BINS
    assert gaps == pytest.approx(evaluated.predictions.metrics().ece, abs=1e-6)
    for right, images in ((0, 7), (7, 7), (3, 11), (160, 2000)):
        assert wilson_interval(right, images) == pytest.approx(
            tuple(binomtest(right, images).proportion_ci(method="wilson")), abs=1e-12
        )
    assert wilson_interval(0, 0) == (0.0, 1.0)


def without_predictions(run: Path) -> None:
    (run / "predictions.npz").unlink()


def diverged(run: Path) -> None:
    without_predictions(run)

    def change(record: Any) -> None:
        record.status, record.error, record.metrics, record.artifacts = (
            "diverged",
            "the loss is nan <b>",
            None,
            {},
        )
        record.history[0]["train_loss"], record.history[1]["train_loss"] = 2.5, float("nan")

    with_record(run, change)


def contradicted(run: Path) -> None:
    with_record(run, lambda record: setattr(record.metrics.test, "top1", 0.99))


@pytest.mark.parametrize(
    ("change", "said", "absent"),
    [
        (
            without_predictions,
            ["The record names test predictions, but there is no such file"],
            ["Calibration"],
        ),
        (
            diverged,
            [
                "No result: the run ended as diverged",
                "the loss is nan &lt;b&gt;",
                "names no test predictions",
                "Loss",
            ],
            ["Calibration", "One run of one seed"],
        ),
        (contradicted, ["contradict the record: top-1 is 0.99 in the record and ", "Calibration"], []),
    ],
)
def test_what_a_run_lacks_is_said_on_the_page(
    run: Path, change: Callable[[Path], None], said: list[str], absent: list[str]
) -> None:
    change(run)
    text = page_of(str(run))
    for words in said:
        assert words in text
    for words in absent:
        assert words not in text


def damaged(run: Path) -> None:
    (run / "predictions.npz").write_bytes((run / "predictions.npz").read_bytes()[:300])


def out_of_range(run: Path) -> None:
    stored = read_predictions(run / "predictions.npz", 33)
    stored.prediction[0] = 3
    stored.write(run / "predictions.npz")


def fewer(run: Path) -> None:
    with_record(run, lambda record: record.data.sizes.update(test=32))


def without_a_method(run: Path) -> None:
    with_record(run, lambda record: record.recipe.pop("optimizer"))


def nothing(run: Path) -> None:
    pass


def emptied(run: Path) -> None:
    shutil.rmtree(run)
    run.mkdir()


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        (emptied, ["run"], "run: no record.yaml here"),
        (nothing, ["nowhere"], "nowhere: no such file"),
        (damaged, ["run"], "run/predictions.npz: not readable as predictions"),
        (out_of_range, ["run"], "run/predictions.npz: prediction has numbers that are none of 3 classes"),
        (fewer, ["run"], "run/predictions.npz: label has the shape (33,)"),
        (without_a_method, ["run"], "run/record.yaml: recipe.optimizer.name: is required"),
        (nothing, ["run", "--data", "nowhere"], "--data nowhere: data.name: no such folder"),
        (nothing, ["run", "--output", "nowhere/page.html"], "--output nowhere/page.html: there is no folder"),
        (nothing, ["run", "--output", "run"], "--output run: is not a file"),
        (nothing, ["run", "--output", "locked/page.html"], "--output locked/page.html: cannot be written"),
        (nothing, ["run", "--output", ""], "is empty: expected a path"),
        (nothing, [], "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence(
    run: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], words: list[str], said: str
) -> None:
    change(run)
    monkeypatch.chdir(run.parent)
    if "locked/page.html" in words:
        Path("locked").mkdir()
        Path("locked").chmod(0o555)
        if os.access("locked", os.W_OK):
            pytest.skip("this user may write everywhere")
    before = sorted(run.parent.rglob("*"))
    done = call(["report", *words])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
    assert "Missing" in said or len([line for line in done.err.splitlines() if said in line]) == 1
    assert sorted(run.parent.rglob("*")) == before


def test_hostile_records_are_text(tmp_path: Path) -> None:
    names = [f"{text[:60]}{number}" for number, text in enumerate(HOSTILE)]
    run = made_run(tmp_path / "run", len(names), names=names, status="failed", error=HOSTILE[0])
    with_record(run, lambda record: record.environment.update({HOSTILE[1]: HOSTILE[2]}))
    text = page_of(str(run))
    for live in ("<script>alert", "<img src=x", "<svg/onload", "</style><title>", "\u202e", "\x1b"):
        assert live not in text
    assert "&lt;script&gt;alert(1)" in text
