"""``leaderboard check``: what a contributed record must withstand, and that our own do."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.case import call

from pugdft.config import yaml
from pugdft.leaderboard.validate import CheckedRecord, check_records
from pugdft.optim import build
from pugdft.paths import file_sha256
from pugdft.predictions import Predictions

CLASSES, SIZE = 7, 200
SHA = "ab" * 32


def predictions(seed: int = 0, labels_seed: int = 0) -> Predictions:
    """What a model with random logits says of ``SIZE`` images."""
    labels = np.random.default_rng(labels_seed).integers(0, CLASSES, SIZE)
    logits = np.random.default_rng(seed).normal(0, 2, (SIZE, CLASSES))
    logits[np.arange(SIZE), labels] += 2
    odds = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Predictions(
        label=labels,
        prediction=odds.argmax(1),
        in_top5=(np.argsort(-odds, 1)[:, :5] == labels[:, None]).any(1),
        confidence=odds.max(1).astype(np.float32),
        loss=-np.log(odds[np.arange(SIZE), labels]).astype(np.float32),
    )


def content(made: Predictions, identity: str = "resnet18-mine-sam-s0-12345678") -> dict[str, Any]:
    """A completed run of 3 epochs of 10 updates, whose last epoch made these predictions."""
    metrics = made.metrics()
    rows = [
        {"epoch": epoch, "steps": 10 * epoch, "lr": 0.1, "train_loss": 1.0, "train_top1": 0.5,
         "gradient_passes": 20 * epoch, "train_seconds": 2.5 * epoch, "test_top1": top1, "test_loss": loss}
        for epoch, top1, loss in ((1, 0.1, 2.0), (2, metrics.top1, 1.5), (3, metrics.top1, metrics.loss))
    ]  # fmt: skip
    return {
        "schema": "pugdft.run/1",
        "id": identity,
        "status": "completed",
        "seed": 3,
        "recipe": {
            "model": {"name": "resnet18.tv_in1k"},
            "data": {"name": "mine"},
            "optimizer": {"name": "sam", "rho": 0.05, "base": {"name": "sgd", "lr": 0.1}},
            "train": {"epochs": 3, "batch_size": 16, "seed": 3},
        },
        "data": {"name": "mine", "classes": CLASSES, "sizes": {"train": 165, "test": SIZE}, "sha256": SHA},
        "model": {"name": "resnet18.tv_in1k", "weights_sha256": "cd" * 32, "parameters": 10},
        "metrics": {"test": metrics.model_dump(), "best_test": {"top1": metrics.top1, "epoch": 2}},
        "history": rows,
        "cost": {"epochs": 3, "steps": 30, "gradient_passes": 60.0, "train_seconds": 7.5, "eval_seconds": 1.0,
                 "images_per_second": 64.0, "peak_memory_bytes": 1000},
        "method": {"two_pass_fraction": 1.0, "mean_perturbation_norm": 0.05, "mean_gradient_cosine": 0.9},
        "environment": {"started": "2025-01-31T12:00:00+00:00", "finished": "2025-01-31T12:00:20+00:00"},
    }  # fmt: skip


def write(folder: Path, record: dict[str, Any], made: Predictions | None) -> Path:
    """The record with its predictions beside it, hashed as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    if made is not None:
        made.write(folder / "predictions.npz")
        artifact = {"path": "predictions.npz", "sha256": file_sha256(folder / "predictions.npz")}
        record.setdefault("artifacts", {}).setdefault("predictions", artifact)
    (folder / "record.yaml").write_text(yaml.dump(record))
    return folder / "record.yaml"


def check(*paths: Path) -> list[CheckedRecord]:
    return check_records(paths, lambda note: None)


def wheres(checked: CheckedRecord) -> list[str]:
    return [fault.where for fault in checked.faults]


def changed(record: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """A copy with dotted keys replaced; a value that is ``...`` removes its key."""
    result = copy.deepcopy(record)
    for key, value in change.items():
        place: Any = result
        *parents, last = key.split(".")
        for part in parents:
            place = place[int(part) if isinstance(place, list) else part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    return result


def test_a_good_record_is_ok_in_one_line(tmp_path: Path) -> None:
    made = predictions()
    path = write(tmp_path / "a", content(made), made)
    (checked,) = check(tmp_path)
    assert checked.lines() == [f"{path}: OK"]


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"id": "a b"}, "id"),
        ({"id": "../x"}, "id"),
        ({"seed": 4}, "seed"),
        ({"recipe.train.batch_size": 0}, "recipe.train.batch_size"),
        ({"recipe.train.epocs": 3}, "recipe.train.epocs"),
        ({"recipe.data": ...}, "recipe.data.name"),
        ({"data": ...}, "data"),
        ({"data.sha256": "ab"}, "data.sha256"),
        ({"data.sizes.train": 0}, "data.sizes.train"),
        ({"model": ...}, "model"),
        ({"model.name": "vgg16"}, "model.name"),
        ({"model.weights_sha256": "unknown"}, "model.weights_sha256"),
        ({"metrics": ...}, "metrics.test"),
        ({"metrics.test.top1": 1.2}, "metrics.test.top1"),
        ({"metrics.test.top5": 0.1}, "metrics.test.top5"),
        ({"metrics.test.loss": float("nan")}, "metrics.test.loss"),
        ({"metrics.test.loss": -0.1}, "metrics.test.loss"),
        ({"metrics.test.ece": -0.1}, "metrics.test.ece"),
        ({"metrics.best_test.top1": 0.1}, "metrics.best_test.top1"),
        ({"metrics.best_test.epoch": 3}, "metrics.best_test"),
        ({"history": []}, "history"),
        ({"history.1.epoch": 1}, "history.1.epoch"),
        ({"history.1.epoch": ...}, "history.1.epoch"),
        ({"history.2.steps": 19}, "history.2.steps"),
        ({"history.0.gradient_passes": 1}, "history.0.gradient_passes"),
        ({"metrics.test.top1": True}, "metrics.test.top1"),
        ({"status": "diverged", "artifacts": {"model": {"path": "m", "sha256": "a" * 64}}}, "status"),
        ({"recipe.tuning": {"trials": 0, "gradient_passes": 9.0}}, "recipe.tuning.trials"),
        ({"history.1.gradient_passes": 70}, "history.2.gradient_passes"),
        ({"history.1.train_seconds": -1.0}, "history.1.train_seconds"),
        ({"history.2.train_seconds": 1.0}, "history.2.train_seconds"),
        ({"history.0.train_top1": 50}, "history.0.train_top1"),
        ({"history.0.train_loss": -1.0}, "history.0.train_loss"),
        ({"history.2.test_top1": 0.2}, "metrics.test.top1"),
        ({"history.2.test_loss": 0.2}, "metrics.test.loss"),
        ({"cost.gradient_passes": 29.0}, "cost.gradient_passes"),
        ({"cost.gradient_passes": 61.0, "history.2.gradient_passes": 61}, "cost.gradient_passes"),
        ({"cost.gradient_passes": 50.0}, "cost.gradient_passes"),
        ({"cost.steps": 40, "cost.gradient_passes": 60.0}, "cost.steps"),
        ({"cost.train_seconds": 9.0}, "cost.train_seconds"),
        ({"cost.images_per_second": 640.0}, "cost.images_per_second"),
        ({"cost.peak_memory_bytes": -1}, "cost.peak_memory_bytes"),
        ({"cost.epochs": 4}, "cost.epochs"),
        ({"recipe.train.epochs": 4}, "cost"),
        ({"recipe.train.max_steps": 29}, "cost"),
        ({"cost.eval_seconds": 60.0}, "cost"),
        ({"method.two_pass_fraction": 1.5}, "method.two_pass_fraction"),
        ({"method.mean_gradient_cosine": -1.5}, "method.mean_gradient_cosine"),
        ({"method.mean_perturbation_norm": float("inf")}, "method.mean_perturbation_norm"),
        ({"method.skipped_steps": 31}, "method.skipped_steps"),
        ({"environment.finished": "2025-01-31T11:00:00+00:00"}, "environment.finished"),
        ({"environment.finished": "2025-01-31T12:00:20"}, "environment.finished"),
        ({"environment.started": "yesterday"}, "environment.started"),
        ({"environment.started": ...}, "environment.started"),
    ],
    ids=str,
)
def test_what_cannot_be_true_is_named_where_it_stands(
    change: dict[str, Any], where: str, tmp_path: Path
) -> None:
    made = predictions()
    path = write(tmp_path, changed(content(made), change), made)
    (checked,) = check(tmp_path)
    assert any(line.startswith(f"{path}: {where}: ") for line in checked.lines())


def test_every_fault_of_a_record_is_named_at_once(tmp_path: Path) -> None:
    made = predictions()
    write(tmp_path, changed(content(made), {"id": "a b", "seed": 4, "cost.epochs": 9}), made)
    assert wheres(check(tmp_path)[0]) == ["id", "seed", "cost.epochs"]


def test_a_budget_of_passes_counts_passes(tmp_path: Path) -> None:
    made = predictions()
    half = {
        "recipe.train.budget": "passes", "cost.steps": 15, "cost.gradient_passes": 30.0, "cost.epochs": 1,
        "cost.images_per_second": 32.0, "history.0.gradient_passes": 10, "history.1.gradient_passes": 20,
        "history.2.gradient_passes": 30, "history.0.steps": 5, "history.1.steps": 10, "history.2.steps": 15,
    }  # fmt: skip
    write(tmp_path / "half", changed(content(made, "half"), half), made)
    write(tmp_path / "whole", changed(content(made, "whole"), {"recipe.train.budget": "passes"}), made)
    assert [wheres(each) for each in check(tmp_path)] == [[], ["cost"]]


@pytest.mark.parametrize("status", ["diverged", "failed", "interrupted", "oom"])
def test_an_unfinished_run_needs_no_results(status: str, tmp_path: Path) -> None:
    record = changed(
        content(predictions()),
        {"status": status, "metrics": ..., "data": ..., "model": ..., "history": [], "environment": {}},
    )
    write(tmp_path, record, None)
    assert wheres(check(tmp_path)[0]) == []


# --- the files beside the record ---------------------------------------------------------------------------


def test_a_completed_record_needs_its_predictions(tmp_path: Path) -> None:
    made = predictions()
    write(tmp_path / "unnamed", content(made, "unnamed"), None)
    write(tmp_path / "absent", content(made, "absent"), made)
    (tmp_path / "absent" / "predictions.npz").unlink()
    absent, unnamed = check(tmp_path)
    assert str(unnamed.faults[0]) == "artifacts.predictions: is missing"
    assert str(absent.faults[0]) == "artifacts.predictions: predictions.npz is not there"


def test_absent_weights_are_only_a_remark(tmp_path: Path) -> None:
    made = predictions()
    artifacts = {"model": {"path": "model.safetensors", "sha256": SHA}}
    write(tmp_path, {**content(made), "artifacts": artifacts}, made)
    (line,) = check(tmp_path)[0].lines()
    assert line.endswith("OK; weights not stored here: `pugdft verify` cannot re-evaluate")


def test_another_hash_is_named(tmp_path: Path) -> None:
    made = predictions()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    artifacts = {"model": {"path": "model.safetensors", "sha256": SHA}}
    write(tmp_path, {**content(made), "artifacts": artifacts}, made)
    assert wheres(check(tmp_path)[0]) == ["artifacts.model.sha256"]


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/hostname", "", "a/../../secret", "link/secret", "x" * 5000, "a\0b", "..\\x"]
)
def test_a_path_that_leaves_the_folder_is_not_followed(path: str, tmp_path: Path) -> None:
    made = predictions()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    artifacts = {"model": {"path": path, "sha256": file_sha256(tmp_path / "secret")}}
    write(tmp_path / "run", {**content(made), "artifacts": artifacts}, made)
    (fault,) = check(tmp_path / "run")[0].faults
    assert fault.where == "artifacts.model"
    assert "leads out" in fault.message or "no file's name" in fault.message


@pytest.mark.parametrize("metric", ["top1", "top5", "loss", "ece", "balanced_top1"])
def test_metrics_that_the_predictions_do_not_give_are_named(metric: str, tmp_path: Path) -> None:
    made = predictions()
    record = content(made)
    record["metrics"]["test"][metric] += 1e-4
    write(tmp_path, record, made)
    faults = {fault.where: fault.message for fault in check(tmp_path)[0].faults}
    assert (
        f"but predictions.npz gives {getattr(made.metrics(), metric):.8g}" in faults[f"metrics.test.{metric}"]
    )


def _with(**arrays: Any) -> Callable[[Predictions], Predictions]:
    return lambda made: Predictions(**{**vars(made), **arrays})


def _flatter(made: Predictions) -> Predictions:
    """Say of ten wrong images that they were right, and leave confidence and loss as they are."""
    wrong = np.flatnonzero(made.prediction != made.label)[:10]
    better = made.prediction.copy()
    better[wrong] = made.label[wrong]
    in_top5 = made.in_top5.copy()
    in_top5[wrong] = True
    return Predictions(**{**vars(made), "prediction": better, "in_top5": in_top5})


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (_flatter, "loss and confidence of 10 images do not go together"),
        (_with(label=np.full(SIZE, CLASSES)), f"label must lie in 0 to {CLASSES - 1}"),
        (_with(prediction=np.full(SIZE, -1)), f"prediction must lie in 0 to {CLASSES - 1}"),
        (_with(confidence=np.full(SIZE, 1.5)), "confidence must be"),
        (_with(confidence=np.full(SIZE, np.nan)), "confidence must be"),
        (_with(loss=np.full(SIZE, np.inf)), "loss must be finite"),
        (_with(in_top5=np.zeros(SIZE, bool)), "in_top5 is false for images that are predicted right"),
        (_with(label=np.zeros(SIZE)), "label is of type float64, expected whole numbers"),
        (_with(in_top5=np.zeros(SIZE, np.int8)), "in_top5 is of type int8, expected true or false"),
        (
            _with(loss=np.zeros(SIZE - 1)),
            f"loss has the shape ({SIZE - 1},), expected one value for each of {SIZE} images",
        ),
        (_with(loss=np.zeros((SIZE, 1), np.float32)), "loss has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_predictions_that_no_evaluation_gives_are_refused(
    forge: Callable[[Predictions], Predictions], said: str, tmp_path: Path
) -> None:
    write(tmp_path, content(predictions()), forge(predictions()))
    assert any(said in line for line in check(tmp_path)[0].lines())


class Bomb:
    """Leaves a mark wherever it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; os.mkdir(os.environ['MARK'])",)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return buffer.getvalue()


def array(value: Any, claimed: tuple[int, ...] | None = None) -> bytes:
    """A ``.npy`` file; ``claimed`` puts another shape into its header."""
    buffer = io.BytesIO()
    if claimed is None:
        np.save(buffer, value, allow_pickle=True)
    else:
        header = {"descr": value.dtype.str, "fortran_order": False, "shape": claimed}
        np.lib.format.write_array_header_1_0(buffer, header)
        buffer.write(value.tobytes())
    return buffer.getvalue()


def _members(**changes: bytes) -> bytes:
    return archive(**({name: array(value) for name, value in vars(predictions()).items()} | changes))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"no archive", "not readable as predictions"),
        (b"", "not readable as predictions"),
        (_members()[:-40], "not readable as predictions"),
        (_members(loss=b"no array"), "not readable as predictions"),
        (
            _members(loss=array(np.array([Bomb()] * SIZE))),
            "loss is of type object, expected floating-point numbers",
        ),
        (_members(extra=array(np.zeros(3))), "must hold the arrays"),
        (archive(label=array(np.zeros(SIZE))), "must hold the arrays"),
        (_members(loss=bytes(10_000_000)), "not readable as predictions"),
        (_members(loss=array(np.zeros(SIZE), claimed=(10**15,))), "has the shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_hostile_archive_is_refused_and_nothing_is_unpickled(
    data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "unpickled"))
    record = write(tmp_path / "run", content(predictions()), predictions())
    (record.parent / "predictions.npz").write_bytes(data)
    assert any(said in line for line in check(tmp_path)[0].lines())
    assert not (tmp_path / "unpickled").exists()


def test_a_claimed_size_beyond_any_split_is_not_read(tmp_path: Path) -> None:
    made = predictions()
    write(tmp_path, changed(content(made), {"data.sizes.test": 10**12}), made)
    assert any("1,000,000,000,000 images are not read" in line for line in check(tmp_path)[0].lines())


def test_validation_predictions_are_held_to_validation_metrics(tmp_path: Path) -> None:
    made, held_out = predictions(), predictions(seed=5, labels_seed=6)
    record = content(made)
    record["data"]["sizes"]["validation"] = SIZE
    record["metrics"]["validation"] = held_out.metrics().model_dump() | {"top1": 0.99}
    held_out.write(tmp_path / "predictions_validation.npz")
    sha256 = file_sha256(tmp_path / "predictions_validation.npz")
    record["artifacts"] = {"predictions_validation": {"path": "predictions_validation.npz", "sha256": sha256}}
    write(tmp_path, record, made)
    assert "metrics.validation.top1" in wheres(check(tmp_path)[0])


# --- several records ---------------------------------------------------------------------------------------


def test_records_of_the_same_data_must_agree_in_their_labels(tmp_path: Path) -> None:
    for name, labels_seed, sha in (("a", 0, SHA), ("b", 0, SHA), ("c", 1, SHA), ("d", 1, "ef" * 32)):
        made = predictions(seed=labels_seed, labels_seed=labels_seed)
        write(tmp_path / name, changed(content(made, name), {"data.sha256": sha}), made)
    assert [bool(each.faults) for each in check(tmp_path)] == [False, False, True, False]
    (fault,) = check(tmp_path)[2].faults
    assert str(tmp_path / "a" / "record.yaml") in fault.message


def test_one_id_with_two_contents_is_a_remark_and_a_copy_is_none(tmp_path: Path) -> None:
    made = predictions()
    for name, memory in (("a", 1000), ("b", 1000), ("c", 2000)):
        write(tmp_path / name, changed(content(made), {"cost.peak_memory_bytes": memory}), made)
    checked = check(tmp_path)
    assert [wheres(each) for each in checked] == [[], [], []]
    said = f"its id stands in {tmp_path / 'a' / 'record.yaml'} too, with other contents: one seed counts once"
    assert [each.remarks for each in checked] == [[], [], [said]]


# --- the command -------------------------------------------------------------------------------------------


def test_the_commands_exit_code_and_lines_say_what_holds(tmp_path: Path) -> None:
    made = predictions()
    good = write(tmp_path / "good", content(made, "good"), made)
    done = call(("leaderboard", "check", str(tmp_path)))
    assert (done.code, done.out) == (0, f"{good}: OK\n")
    bad = write(tmp_path / "bad", changed(content(made, "bad"), {"seed": 4}), made)
    broken = tmp_path / "broken" / "record.yaml"
    broken.parent.mkdir()
    broken.write_text("hello: \x1b[31mworld")
    dangling = tmp_path / "dangling" / "record.yaml"
    dangling.parent.mkdir()
    dangling.symlink_to(tmp_path / "nowhere")
    done = call(("leaderboard", "check", str(tmp_path)))
    assert done.code == 3
    lines = done.out.splitlines()
    assert f"{bad}: seed: 4, where the recipe has train.seed 3" in lines
    assert f"{good}: OK" in lines
    assert sum(line.startswith(f"{broken}: ") for line in lines) == 1
    assert f"{dangling}: a link that leads nowhere" in lines
    assert done.err == "1 good, 3 with problems\n"
    assert all(line.isprintable() for line in lines)


def test_a_path_without_a_record_is_the_users_mistake(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        done = call(("leaderboard", "check", str(path)))
        assert (done.code, done.out) == (2, "")
        assert str(path) in done.err


def test_check_has_its_own_help_and_a_folder_of_that_name_is_still_ranked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranking, checking = (call(("leaderboard", *words, "--help")).out for words in ((), ("check",)))
    assert "--metric" in ranking
    assert "leaderboard check" in ranking
    assert checking.startswith("Usage: pugdft leaderboard check ")
    assert "--metric" not in checking
    made = predictions()
    write(tmp_path / "check" / "a", content(made), made)
    monkeypatch.chdir(tmp_path)
    done = call(("leaderboard", "./check", "--format", "csv"))
    assert (done.code, done.out.count("\n")) == (0, 2)


@pytest.mark.parametrize(("lr", "status"), [(0.05, "completed"), (1e30, "diverged")])
def test_what_a_run_leaves_passes(
    lr: float, status: str, small_recipe: dict[str, Any], tmp_path: Path
) -> None:
    from pugdft.training.run import finetune, read_recipe

    small_recipe["optimizer"]["base"]["lr"] = lr
    record, path = finetune(read_recipe(small_recipe), tmp_path / "run")
    assert record.status == status
    assert check(tmp_path)[0].lines() == [f"{path}: OK"]


def test_checking_needs_no_torch() -> None:
    code = (
        "import sys, pathlib; from pugdft.leaderboard.validate import check_records\n"
        "from pugdft.predictions import Predictions; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_options_of_many_seeds_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find, found = build.spec_faults, list[Any]()
    monkeypatch.setattr(build, "spec_faults", lambda *given: found.append(given) or find(*given))
    for seed in range(3):
        made = predictions(seed)
        wrong = {"id": f"run-{seed}", "seed": seed, "recipe.train.seed": seed, "recipe.optimizer.rho": -0.125}
        write(tmp_path / str(seed), changed(content(made), wrong), made)
    assert [wheres(each) for each in check(tmp_path)] == [["recipe.optimizer.rho"]] * 3
    assert len(found) == 1


# --- facts that no run leaves ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"recipe.optimizer.name": "zzz"}, "recipe.optimizer.name"),
        ({"recipe.optimizer.name": "ѕam"}, "recipe.optimizer.name"),
        ({"recipe.optimizer.base.name": "ѕgd"}, "recipe.optimizer.name"),
        ({"recipe.optimizer.roh": 0.1}, "recipe.optimizer.roh"),
        ({"method.two_pass_fraction": 0.5}, "method.two_pass_fraction"),
        ({"recipe.optimizer": {"name": "sgd", "lr": 0.1}}, "method.two_pass_fraction"),
        (
            {"cost.gradient_passes": 30.0, "history.0.gradient_passes": 10, "history.1.gradient_passes": 20,
             "history.2.gradient_passes": 30},
            "method.two_pass_fraction",
        ),
        (
            {"cost.gradient_passes": 30.0, "history.0.gradient_passes": 10, "history.1.gradient_passes": 20,
             "history.2.gradient_passes": 30, "method.two_pass_fraction": 0.0},
            "method.two_pass_fraction",
        ),
        ({"environment.finished": "2025-01-31T12:02:00+00:00"}, "cost"),
    ],
    ids=str,
)  # fmt: skip
def test_facts_that_contradict_the_method_are_refused(
    change: dict[str, Any], where: str, tmp_path: Path
) -> None:
    made = predictions()
    write(tmp_path, changed(content(made), change), made)
    assert where in wheres(check(tmp_path)[0])


def test_a_restarted_run_may_have_waited(tmp_path: Path) -> None:
    made = predictions()
    late = {"environment.finished": "2025-01-31T18:00:00+00:00"}
    write(tmp_path, changed(content(made), late) | {"restarts": [{"step": 3}]}, made)
    assert wheres(check(tmp_path)[0]) == []


def passes(an_update: float, share: float = 1.0) -> dict[str, Any]:
    """So many gradient passes of each of the 30 updates, of which ``share`` take two or more."""
    rows = {f"history.{row}.gradient_passes": 10 * (row + 1) * an_update for row in range(3)}
    return {**rows, "cost.gradient_passes": 30 * an_update, "method.two_pass_fraction": share}


SGD = {"name": "sgd", "lr": 0.1}


@pytest.mark.parametrize(
    ("optimizer", "train", "an_update"),
    [
        ({"name": "multi_step", "k": 3}, {}, 4),
        ({"name": "lookbehind"}, {}, 3),
        ({"name": "amp", "inner_iter": 2}, {}, 3),
        ({"name": "sam"}, {"ascent_batch": 0.5}, 1.5),
    ],
    ids=str,
)
def test_an_update_has_as_many_passes_as_its_method_and_its_ascent_batch_say(
    optimizer: dict[str, Any], train: dict[str, Any], an_update: float, tmp_path: Path
) -> None:
    made = predictions()
    good = content(made)
    good["recipe"]["train"] |= train
    good = changed(good, {"recipe.optimizer": {**optimizer, "base": SGD}})
    write(tmp_path / "good", changed(good, passes(an_update)), made)
    write(tmp_path / "more", changed(good, passes(an_update + 2)), made)
    write(tmp_path / "fewer", changed(good, passes(1.2)), made)
    faults = [wheres(each) for each in check(tmp_path)]
    assert faults[1] == []
    assert faults[0] == ["method.two_pass_fraction"]
    assert "cost.gradient_passes" in faults[2]


# Nowhere installed: nothing that another package provides is looked up.
FOREIGN_BASE = {"recipe.optimizer.base.name": "acme_opt:Lion2", "recipe.optimizer.base.sharpness": 3}
FOREIGN_METHOD = {"recipe.optimizer": {"name": "half_sam", "zeal": 3, "base": SGD}}
ORIGIN = {"module": "acme_opt:anything", "distribution": "acme-opt", "version": "1.2"}
ORIGINS = {"environment.extensions": {"acme_opt:Lion2": ORIGIN, "half_sam": ORIGIN}}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (FOREIGN_BASE, None),
        (FOREIGN_METHOD, None),
        ({**FOREIGN_METHOD, **passes(5)}, None),
        ({**FOREIGN_METHOD, **passes(1, 0.0)}, None),
        ({**FOREIGN_BASE, **passes(1)}, "method.two_pass_fraction"),
        ({**FOREIGN_METHOD, **passes(1)}, "method.two_pass_fraction"),
        ({**FOREIGN_METHOD, **passes(2, 0.0)}, "method.two_pass_fraction"),
        ({**FOREIGN_METHOD, **passes(0.5)}, "cost.gradient_passes"),
        ({**FOREIGN_BASE, **passes(3)}, "cost.gradient_passes"),
        ({**FOREIGN_BASE, "environment.finished": "2025-01-31T12:02:00+00:00"}, "cost"),
        ({**FOREIGN_BASE, "recipe.optimizer.roh": 0.1}, "recipe.optimizer.roh"),
        ({**FOREIGN_METHOD, "recipe.optimizer.base.rl": 0.1}, "recipe.optimizer.base.rl"),
        ({"recipe.optimizer.base.name": "acme_opt:Liоn2"}, "recipe.optimizer.name"),
        ({"recipe.optimizer.name": "hаlf_sam"}, "recipe.optimizer.name"),
        ({"recipe.optimizer.base.name": "acme_opt:Lion3"}, "environment.extensions"),
        ({**FOREIGN_METHOD, "environment.extensions": {"half_sam": {}}}, "environment.extensions"),
        ({**FOREIGN_METHOD, "environment.extensions": None}, "recipe.optimizer.name"),
        ({**passes(1), "environment.extensions": {"sam": ORIGIN, "sgd": ORIGIN}}, "method.two_pass_fraction"),
    ],
    ids=str,
)
def test_what_another_package_provides_is_judged_by_all_that_is_known_without_it(
    change: dict[str, Any], where: str | None, tmp_path: Path
) -> None:
    made = predictions()
    write(tmp_path, changed(content(made), {**ORIGINS, **change}), made)
    found = wheres(check(tmp_path)[0])
    assert found == [] if where is None else where in found
