"""Trackers get a run's numbers; whatever they do, the run is the same as without them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import small_runs
from accelerate import tracking as accelerate_tracking
from conftest import write_image_folder
from small_runs import IMAGES, SGD, Messages, cut_run, differences, outcome_of, tiny_recipe, whole_run

from pugdft.cli.main import application
from pugdft.config import plugins
from pugdft.errors import UserError
from pugdft.training import tracking
from pugdft.training.run import finetune, read_recipe


class Fake(accelerate_tracking.GeneralTracker):
    """Keeps what it is told; may fail, or hang, at one of its calls."""

    name = "fake"
    requires_logging_directory = True
    main_process_only = True
    fails_at: ClassVar[str] = ""
    hangs_at: ClassVar[str] = ""
    made: ClassVar[list[Fake]] = []
    freed: ClassVar[threading.Event] = threading.Event()

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.place, self.calls = (run_name, logging_dir), list[str]()
        self.rows: list[tuple[int, dict[str, float]]] = []
        Fake.made.append(self)

    @property
    def tracker(self) -> None:
        return None

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name == Fake.hangs_at:
            Fake.freed.wait(60)
        if name == Fake.fails_at:
            raise OSError(f"the server refuses {name}")

    def start(self) -> None:
        self._call("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._call("configuration")
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        self._call("log")
        assert step is not None
        self.rows.append((step, values))

    def finish(self) -> None:
        self._call("finish")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tiny") / "insects", IMAGES)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Fake]]:
    """The class, known to Accelerate."""
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "fake", Fake)
    Fake.made, Fake.freed = [], threading.Event()
    yield Fake
    Fake.freed.set()
    Fake.fails_at = Fake.hangs_at = ""


def test_tensorboard_gets_each_epoch_and_the_run_is_the_same_as_without(images: Path, tmp_path: Path) -> None:
    """Also where it was stopped and went on; its files lie in the run's folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = tiny_recipe(images, {"name": "sam", "base": SGD})
    whole = whole_run(recipe, tmp_path / "whole")
    record, path = finetune(read_recipe(recipe), tmp_path / "tracked", track=["tensorboard"])
    assert differences(whole, outcome_of(path.parent)) == []
    assert record.id == whole.record.id
    events = EventAccumulator(str(path.parent / "tensorboard"))
    events.Reload()
    rows = record.history
    for tag, key in {
        "train/loss": "train_loss",
        "test/top1": "test_top1",
        "lr": "lr",
        "epoch": "epoch",
    }.items():
        scalars = events.Scalars(tag)
        assert [each.step for each in scalars] == [row["steps"] for row in rows] == [3, 6]
        assert [each.value for each in scalars] == pytest.approx([row[key] for row in rows])
    assert list((path.parent / "tensorboard").glob("*/hparams.yml"))


def test_a_tracker_is_told_the_recipe_and_numbers_of_the_progress(
    images: Path, tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_SECONDS", 0.0)
    recipe = read_recipe(tiny_recipe(images, SGD, epochs=1, ema=0.5))
    record, path = finetune(recipe, tmp_path / "run", track=["fake"])
    [told] = fake.made
    assert told.place == ("fake", str(path.parent))
    assert told.calls == ["start", "configuration", *["log"] * 4, "finish"]
    assert (told.config["optimizer.name"], told.config["train.epochs"]) == ("sgd", 1)
    assert "data.workers" not in told.config
    assert [step for step, _ in told.rows] == [1, 2, 3, 3]
    assert "running/images_per_second" in told.rows[1][1]
    for split in ("test", "plain_test"):
        assert told.rows[-1][1][f"{split}/loss"] == record.history[0][f"{split}_loss"]
    # A finished run has nothing to tell.
    finetune(recipe, tmp_path / "run", track=["fake"])
    assert len(fake.made) == 1


@pytest.mark.parametrize("place", ["start", "configuration", "log", "finish"])
def test_one_that_fails_is_said_once_and_left_out(
    place: str, images: Path, tmp_path: Path, fake: type[Fake]
) -> None:
    fake.fails_at = place
    messages = Messages()
    recipe = read_recipe(tiny_recipe(images, SGD))
    record, _ = finetune(recipe, tmp_path, observer=messages, track=["fake"])
    assert record.status == "completed"
    said = [text for text in messages.texts if "--track" in text]
    assert said == [f"--track: fake failed and is left out: the server refuses {place}"]


def test_one_that_hangs_does_not_keep_the_run(
    images: Path, tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.05)
    fake.hangs_at = "start"
    messages = Messages()
    record, _ = finetune(read_recipe(tiny_recipe(images, SGD)), tmp_path, observer=messages, track=["fake"])
    assert record.status == "completed"
    assert messages.among("fake failed and is left out: it has not finished within 0 seconds")


def test_a_stopped_run_tells_its_trackers_the_end(
    images: Path, tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_runs, "finetune", partial(finetune, track=["fake"]))
    cut = cut_run(tiny_recipe(images, SGD), tmp_path, (2, 4))
    assert [each.calls[-1] for each in fake.made] == ["finish"] * 3
    assert [step for each in fake.made for step, _ in each.rows] == [3, 6]
    assert [row["steps"] for row in cut.record.history] == [3, 6]


def test_a_tracker_of_another_package_is_used_by_its_name(
    images: Path, tmp_path: Path, fake: type[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = {"acme": Fake, "acme_log:make": len}
    monkeypatch.setattr(plugins, "find", lambda group, name: objects.get(name) if "track" in group else None)
    finetune(read_recipe(tiny_recipe(images, SGD, epochs=1)), tmp_path, track=["acme"])
    assert [each.calls[-1] for each in fake.made] == ["finish"]
    with pytest.raises(UserError, match=r'^--track: "acme_log:make": is no subclass of accelerate\.tracking'):
        tracking.check_trackers(["acme_log:make"])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("tensorbord", 'unknown tracker "tensorbord".*Did you mean "tensorboard"'),
        ("", 'unknown tracker ""'),
        ("tensorboard,,", 'unknown tracker ""'),
        ("wandb, comet_ml", "wandb, comet-ml are not installed: pip install wandb comet-ml$"),
    ],
)
def test_an_unknown_tracker_or_one_that_is_not_installed_is_refused_first(
    given: str, words: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"--track: {words}"):
        application()(["finetune", "quickstart", "--track", given], standalone_mode=False)
    assert list(tmp_path.iterdir()) == []
