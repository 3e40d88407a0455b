"""Images read from their files: the same pixels and results as decoded ones, told by nothing but the disk."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import pugdft
from PIL import Image
from standing_still import until
from torch import Tensor
from typer.testing import CliRunner

from pugdft import reproduce as verify_module
from pugdft.config import yaml
from pugdft.data.cache import ImageFiles, Store, prepare
from pugdft.data.datasets import open_source
from pugdft.data.decode import decode
from pugdft.data.loader import EvaluationBatches, Images, Share, gathered, resident
from pugdft.data.transforms import ToInput
from pugdft.data.workers import ImageWorkers
from pugdft.errors import RunFailed, UserError
from pugdft.leaderboard.grouping import shared_recipe
from pugdft.records import RunRecord, read_record
from pugdft.training.run import finetune, read_recipe
from pugdft.training.trainer import Observer, Position, Totals

CPU = torch.device("cpu")
CLASSES = ("ant", "bee", "cat")
SIZE = 24


def write_photos(root: Path, per_class: dict[str, int], seed: int = 0) -> Path:
    """Class folders of JPEG, PNG, grey and palette images, no two alike in size, tall and wide."""
    draws = np.random.default_rng(seed)
    for split, count in per_class.items():
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                height, width = draws.integers(SIZE - 6, 3 * SIZE, 2)
                pixels = draws.integers(0, 90, (height, width, 3), dtype=np.uint8)
                pixels[..., number] += 120
                image, kind = Image.fromarray(pixels), ("jpg", "png", "jpeg")[index % 3]
                if index % 7 == 3:
                    image = image.convert("L" if index % 2 else "P")
                if image.mode == "P":
                    kind = "png"
                image.save(folder / f"{index:03d}.{kind}", quality=80)
    return root


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 training and 5 test photos a class."""
    return write_photos(tmp_path_factory.mktemp("photos") / "garden", {"train": 17, "test": 5})


def both(folder: Path, image_size: int = SIZE) -> tuple[Store, Store]:
    source = open_source(str(folder))
    return prepare(source, image_size, "decoded"), prepare(source, image_size, "files")


def disk(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=total, used=0, free=free))


@pytest.mark.parametrize("kind", ["photos of all sizes", "small squares"])
def test_files_give_the_pixels_labels_and_digest_of_the_decoded_store(
    kind: str, photos: Path, image_folder: Path, own_cache: Path
) -> None:
    folder = photos if kind == "photos of all sizes" else image_folder
    decoded, files = both(folder)
    assert files.sha256 == decoded.sha256 == files.content_sha256()
    assert files.classes == decoded.classes
    side = SIZE if kind == "photos of all sizes" else 16
    for split in ("train", "test"):
        ours, theirs = files.images(split), decoded.images(split)
        assert isinstance(ours, ImageFiles)
        assert ours.shape == theirs.shape == (len(ours), side, side, 3)
        assert (ours.dtype, ours.nbytes) == (theirs.dtype, theirs.nbytes)
        assert np.array_equal(ours[:], theirs)
        assert np.array_equal(files.labels(split), decoded.labels(split))


def test_indices_mean_what_they_mean_to_an_array(photos: Path) -> None:
    decoded, files = (store.images("train") for store in both(photos))
    assert isinstance(files, ImageFiles)
    mask = np.arange(len(files)) % 5 == 2
    for key in (0, -1, np.int64(7), slice(3, 9, 2), np.array([4, 4, 0]), np.array([-2, 1]), mask):
        assert np.array_equal(files[key], decoded[key])
    assert files[np.array([], np.int64)].shape == (0, SIZE, SIZE, 3)
    for beyond in (len(files), np.array([0, len(files)])):
        with pytest.raises(IndexError):
            files[beyond]
    chosen = np.array([50, 2, 33, 2])
    assert np.array_equal(gathered(files, chosen, CPU).numpy(), decoded[chosen])
    assert resident(files, CPU, 1e18) is None
    sent = pickle.dumps(files)
    assert len(sent) < len(files) * 250, "paths, not pixels"
    assert np.array_equal(pickle.loads(sent)[chosen], decoded[chosen])


def test_evaluation_sees_the_same_batches(photos: Path) -> None:
    to_input = ToInput(SIZE, 32, "bicubic", (0.5,) * 3, (0.5,) * 3, CPU)
    seen = []
    for store in both(photos):
        images = Images(store.images("test"), store.labels("test"), np.arange(15))
        batches = EvaluationBatches(images, to_input, CPU, Share(1, 2), 4)
        seen.append([(positions.tolist(), inputs, labels) for positions, inputs, labels in batches])
    assert len(seen[0]) == 2
    for ours, theirs in zip(*seen, strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])


def run(
    folder: Path, output: Path, *overrides: str, observer: Observer | None = None
) -> tuple[RunRecord, dict[str, Tensor], dict[str, np.ndarray]]:
    """A small run; its record, weights and predictions."""
    recipe = {
        "model": {"name": "test_vit", "pretrained": False, "args": {"depth": 2}},
        "data": {"name": str(folder), "image_size": SIZE + 8, "validation": 0.2},
        "optimizer": {"name": "sam", "base": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
        "train": {"epochs": 2, "batch_size": 12},
    }
    record, _ = finetune(read_recipe(recipe, overrides), output, observer=observer)
    predictions = {}
    for name in ("predictions", "predictions_validation"):
        with np.load(output / f"{name}.npz") as stored:
            predictions |= {f"{name}/{key}": stored[key] for key in stored.files}
    return record, safetensors.torch.load_file(output / "model.safetensors"), predictions


@pytest.mark.slow
@pytest.mark.parametrize(
    "augmentation",
    [(), ("data.random_resized_crop={}",), ("data.auto_augment=rand-m9-mstd0.5-inc1", "data.mixup=0.3")],
    ids=["crop and flip", "random resized crop", "auto_augment and mixup"],
)
def test_a_run_from_files_is_the_run_from_the_store_to_the_bit(
    augmentation: tuple[str, ...], photos: Path, tmp_path: Path
) -> None:
    decoded, weights, predictions = run(photos, tmp_path / "a", "data.storage=decoded", *augmentation)
    assert decoded.data is not None
    assert decoded.status == "completed"
    for workers in (0, 2):
        name = f"files-{workers}"
        files, ours, predicted = run(
            photos, tmp_path / name, "data.storage=files", f"data.workers={workers}", *augmentation
        )
        assert files.data == decoded.data
        assert files.metrics == decoded.metrics
        assert ours.keys() == weights.keys()
        assert all(torch.equal(ours[key], weights[key]) for key in weights)
        assert predicted.keys() == predictions.keys()
        assert all(np.array_equal(predicted[key], predictions[key]) for key in predictions)
        assert shared_recipe(files.recipe) == shared_recipe(decoded.recipe), "one ranking has both"


@pytest.mark.slow
def test_two_processes_reading_files_make_the_run_of_one(photos: Path, tmp_path: Path) -> None:
    _, weights, _ = run(photos, tmp_path / "one", "data.storage=decoded")
    recipe = read_record(tmp_path / "one" / "record.yaml").recipe
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump({**recipe, "data": {**recipe["data"], "storage": "files", "workers": 1}}))
    done = pugdft("finetune", str(path), "--num-processes", "2", "--output", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    same = safetensors.torch.load_file(tmp_path / "two" / "model.safetensors")
    assert max(float((same[key] - weights[key]).abs().max()) for key in weights) < 2e-5


def test_a_record_of_either_form_is_verified_in_either_form(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(photos, tmp_path / "run", "data.storage=files", "data.workers=0")
    used: list[Any] = []
    plain = verify_module.prepare
    monkeypatch.setattr(verify_module, "prepare", lambda *given: used.append(store := plain(*given)) or store)
    assert verify_module.verify(tmp_path / "run" / "record.yaml").agrees
    assert used[0].files is not None
    # The same digest is asked of the data, whatever form it has here.
    tables = as_parquet(photos, tmp_path / "tables")
    assert verify_module.verify(tmp_path / "run" / "record.yaml", str(tables)).agrees
    assert used[1].files is None


def as_parquet(images: Path, folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    for split in ("train", "test"):
        files = [
            (f, number) for number, c in enumerate(CLASSES) for f in sorted((images / split / c).iterdir())
        ]
        cells = [{"bytes": file.read_bytes(), "path": None} for file, _ in files]
        table = pa.table({"image": cells, "label": [number for _, number in files]})
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def count_decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from pugdft.data import decode as decoding

    decoded: list[str] = []

    def counting(sample: Any, *more: Any) -> np.ndarray:
        decoded.append(sample.where)
        return decode(sample, *more)

    monkeypatch.setattr(decoding, "decode", counting)
    return decoded


def test_every_file_is_decoded_once_for_its_digest_and_not_again(
    image_folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = count_decodes(monkeypatch)
    source = open_source(str(image_folder))
    first = prepare(source, SIZE, "files")
    assert len(decoded) == len(set(decoded)) == 3 * (24 + 11)
    assert not list((own_cache / "stores").glob("*/")), "no pixels are kept"
    assert prepare(source, SIZE, "files").sha256 == first.sha256
    assert len(decoded) == 105
    assert prepare(source, 8, "files").sha256 != first.sha256, "another size is resized"
    assert prepare(source, 8, "files").images("test").shape == (33, 8, 8, 3)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:40],
        lambda text: "[1]",
        lambda text: text.replace('"sha256": "', '"sha256": "x'),
        lambda text: text.replace(f'"side": {SIZE}', '"side": 99'),
        lambda text: text.replace(f'"side": {SIZE}', f'"side": "{SIZE}"'),
        lambda text: text.replace("pillow", "pillow 0.1"),
        lambda text: "\x00\x81",
    ],
)
def test_damaged_facts_and_those_of_another_decoder_are_learnt_again(
    damage: Callable[[str], str], photos: Path, own_cache: Path
) -> None:
    source = open_source(str(photos))
    store = prepare(source, SIZE, "files")
    whole = store.kept.read_text()
    assert json.loads(whole)["sha256"] == store.sha256
    assert damage(whole) != whole
    store.kept.write_text(damage(whole))
    assert prepare(source, SIZE, "files").sha256 == store.sha256
    assert store.kept.read_text() == whole


def test_a_changed_image_is_other_data(photos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(photos, tmp_path / "garden")
    before = prepare(open_source(str(folder)), SIZE, "files")
    file = folder / "test" / "bee" / "001.png"
    Image.open(file).rotate(180).save(file)
    after = prepare(open_source(str(folder)), SIZE, "files")
    assert after.kept != before.kept
    assert after.sha256 != before.sha256
    assert after.sha256 == both(folder)[0].sha256


def test_auto_reads_files_where_the_store_would_nearly_fill_the_disk(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, said = open_source(str(photos)), list[str]()
    needed = 66 * SIZE**2 * 3
    assert needed == both(photos)[1].images("train").nbytes + both(photos)[1].images("test").nbytes
    shutil.rmtree(own_cache / "stores")
    total = 20 * needed
    disk(monkeypatch, total, total // 10 + needed - 1)
    assert prepare(source, SIZE, "auto", said.append).files is not None
    assert len(said) == 1
    assert str(own_cache) in said[0]
    assert "decoded from their files each time" in said[0]
    decoded = count_decodes(monkeypatch)
    assert prepare(source, SIZE, "auto", said.append).files is not None
    assert (len(said), decoded) == (2, []), "what the images take is known by now"
    disk(monkeypatch, total, total // 10 + needed)
    assert prepare(source, SIZE, "auto", said.append).files is None
    disk(monkeypatch, total, 0)
    assert prepare(source, SIZE, "auto", said.append).files is None, "it is there already"
    assert len(said) == 2


def test_a_run_says_that_it_reads_files_unasked(
    photos: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    observer = Observer()
    observer.on_message = said.append  # type: ignore[method-assign]
    disk(monkeypatch, 10**9, 10**5)
    monkeypatch.setattr("pugdft.training.setup._check_room", lambda *_: None)  # for the weights
    record, _, _ = run(photos, tmp_path / "run", "train.epochs=1", "data.workers=0", observer=observer)
    assert record.status == "completed"
    assert [each for each in said if "decoded from their files each time" in each]


def test_auto_decodes_what_is_little_beside_the_free_disk(
    photos: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 66 * SIZE**2 * 3
    disk(monkeypatch, 10**6 * needed, 10 * needed)
    assert prepare(open_source(str(photos)), SIZE).files is None


def test_a_store_that_cannot_fit_is_refused_before_it_is_written(
    photos: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 66 * SIZE**2 * 3
    disk(monkeypatch, 20 * needed, needed - 1)
    with pytest.raises(UserError, match=r"garden takes .*PUGDFT_CACHE .* data\.storage=files"):
        prepare(open_source(str(photos)), SIZE, "decoded")
    tables = open_source(str(as_parquet(photos, tmp_path / "tables")))
    with pytest.raises(UserError, match=r"tables takes .*PUGDFT_CACHE .* train/CLASS/\*\.png"):
        prepare(tables, SIZE, "auto")
    assert not [each for each in (own_cache / "stores").iterdir() if each.suffix != ".lock"]
    disk(monkeypatch, 0, 0)  # a file system that does not tell
    assert prepare(tables, SIZE, "auto").files is None


@pytest.mark.slow
def test_tables_have_no_files_to_read(photos: Path, tmp_path: Path, small_recipe: dict[str, Any]) -> None:
    tables = as_parquet(photos, tmp_path / "tables")
    for name in (str(tables), "bundled"):
        with pytest.raises(UserError, match=r"data\.storage: files .*train/CLASS/\*\.png.*PUGDFT_CACHE"):
            prepare(open_source(name), SIZE, "files")
    small_recipe["data"]["name"] = str(tables)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(small_recipe))
    done = pugdft("finetune", str(path), "data.storage=files", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "data.storage: files is for folders of image files" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def vanish(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:60])


def repaint(file: Path) -> None:
    Image.new("RGB", (40, 30)).save(file)


SPOILT = pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (vanish, "this image is gone"),
        (truncate, "does not decode|not an image"),
        (repaint, "has changed since it was first read"),
    ],
)


@pytest.mark.slow
@SPOILT
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_spoilt_under_a_run_is_named(
    spoil: Callable[[Path], None], said: str, num_workers: int, photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "garden")
    images = prepare(open_source(str(folder)), SIZE, "files").images("train")
    file = folder / "train" / "ant" / "004.png"
    assert file.is_file()
    workers = ImageWorkers(images, 0, None, num_workers)
    requests = [
        SimpleNamespace(epoch=0, step=step, rows=np.arange(3), chosen=np.arange(3) + 3 * step)
        for step in range(4)
    ]
    try:
        assert len(list(workers.fetch(iter(requests)))) == 4
        spoil(file)
        with pytest.raises(RunFailed, match=rf"^{file}: .*({said}).*put the file back") as caught:
            list(workers.fetch(iter(requests)))
        assert "\n" not in str(caught.value)
    finally:
        workers.close()
    with pytest.raises(RunFailed, match=said):
        gathered(images, np.arange(8), CPU)


class SpoilAt(Observer):
    """Something happens to a file after an update."""

    def __init__(self, step: int, file: Path) -> None:
        self.step, self.file = step, file

    def on_step(self, position: Position, totals: Totals, done: float) -> None:
        if position.steps == self.step:
            self.file.rename(self.file.with_suffix(".away"))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_that_loses_a_file_leaves_a_record_and_goes_on_when_it_is_back(
    split: str, photos: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "garden")
    options = "data.storage=files", "data.workers=2"
    whole, weights, _ = run(folder, tmp_path / "whole", *options)
    file = folder / split / "cat" / "002.jpeg"
    with pytest.raises(RunFailed, match=f"{file}: this image is gone"):
        run(folder, tmp_path / "cut", *options, observer=SpoilAt(4, file))
    record = read_record(tmp_path / "cut" / "record.yaml")
    assert record.status == "failed"
    assert str(file) in (record.error or "")
    file.with_suffix(".away").rename(file)
    again, same, _ = run(folder, tmp_path / "cut", *options)
    assert again.status == "completed"
    assert again.data == whole.data
    assert all(torch.equal(same[key], weights[key]) for key in weights)


def test_a_run_that_loses_a_file_ends_with_one_message(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's own way out; the file goes after the images were prepared."""
    import pugdft.cli.main
    import pugdft.training.run

    folder = shutil.copytree(photos, tmp_path / "garden")
    file = folder / "train" / "bee" / "001.png"
    plain = pugdft.training.run.assemble

    def losing(*given: Any, **named: Any) -> Any:
        file.unlink(missing_ok=True)
        return plain(*given, **named)

    monkeypatch.setattr(pugdft.training.run, "assemble", losing)
    recipe = {
        "model": {"name": "test_vit", "pretrained": False},
        "data": {"name": str(folder), "image_size": 32, "storage": "files", "workers": 2},
        "optimizer": {"name": "sgd", "lr": 0.05},
        "train": {"epochs": 1, "batch_size": 51},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.dump(recipe))
    monkeypatch.setattr(sys, "argv", ["pugdft", "finetune", str(path), "--output", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        pugdft.cli.main.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert f"pugdft: {file}: this image is gone" in said
    assert "Traceback" not in said


def test_an_image_that_never_decoded_is_the_same_mistake_in_both_forms(
    photos: Path, tmp_path: Path, own_cache: Path
) -> None:
    folder = shutil.copytree(photos, tmp_path / "garden")
    file = folder / "test" / "cat" / "003.jpg"
    shutil.copy(next((folder / "test" / "cat").iterdir()), file)
    truncate(file)
    messages = []
    for storage in ("decoded", "files"):
        with pytest.raises(UserError) as caught:
            prepare(open_source(str(folder)), SIZE, storage)  # type: ignore[arg-type]
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert str(file) in messages[0]


def test_the_data_command_prepares_and_verifies_files(photos: Path, own_cache: Path) -> None:
    from pugdft.cli.data import app

    runner = CliRunner()
    options = [str(photos), "--image-size", str(SIZE), "--storage", "files"]
    prepared = runner.invoke(app, ["prepare", *options])
    assert prepared.exit_code == 0, prepared.output
    assert prepared.stdout.strip() == str(photos)
    assert "train: 51 images of 24 × 24 pixels" in prepared.stderr
    verified = runner.invoke(app, ["verify", *options])
    digest = both(photos)[0].sha256
    assert verified.stdout.strip() == f"{photos}: ok, sha256 {digest}"
    kept = both(photos)[1].kept
    kept.write_text(kept.read_text().replace(digest[:8], "0" * 8))
    damaged = runner.invoke(app, ["verify", *options])
    assert isinstance(damaged.exception, RunFailed)
    assert str(damaged.exception).startswith(f"{kept}: damaged; delete this file")


@pytest.mark.slow
def test_workers_leave_nothing_behind_and_images_are_the_same_in_any_of_them(photos: Path) -> None:
    import multiprocessing

    decoded, files = (store.images("train") for store in both(photos))
    chosen = np.array(random.Random(3).choices(range(len(files)), k=20))
    for num_workers in (0, 1, 3):
        workers = ImageWorkers(files, 0, None, num_workers)
        request = SimpleNamespace(epoch=0, step=0, rows=np.arange(20), chosen=chosen)
        ((same, pixels),) = workers.fetch(iter([request]))
        assert same is request
        assert np.array_equal(pixels.numpy(), decoded[chosen])
        workers.close()
    until(lambda: not multiprocessing.active_children())


def test_a_grey_image_of_sixteen_bits_keeps_its_greys(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    for split in ("train", "test"):
        for name, value in (("a", 0), ("b", 65535)):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(np.full((9, 12), value, np.uint16)).save(folder / split / name / "x.png")
    decoded, files = both(folder, 9)
    assert sorted(np.unique(files.images("train")[:])) == [0, 255]
    assert files.sha256 == decoded.sha256


def test_threads_are_as_many_as_cores_and_one_in_a_worker(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    images = both(photos)[1].images("train")
    assert isinstance(images, ImageFiles)
    used: set[str] = set()
    plain = Image.open

    def noting(content: io.BytesIO, **options: Any) -> Image.Image:
        used.add(threading.current_thread().name)
        return plain(content, **options)

    monkeypatch.setattr(Image, "open", noting)
    here = threading.current_thread().name
    images[np.arange(20)]
    assert here not in used or len(os.sched_getaffinity(0)) == 1
    used.clear()
    pickle.loads(pickle.dumps(images))[np.arange(20)]
    assert used == {here}
