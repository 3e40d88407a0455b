"""The command: what it stores and shows, that models stay as they are, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bad_inputs.case import call

from pugdft.analysis.files import read_analysis, write_analysis
from pugdft.analysis.overlay import open_models, weights_sha256
from pugdft.analysis.points import Evaluator, take_sample
from pugdft.analysis.sharpness import SharpnessOptions, measure, sharpness_digest
from pugdft.errors import UserError
from pugdft.leaderboard import collect
from pugdft.leaderboard.sharpness import sharpness_faults, sharpness_of
from pugdft.paths import file_sha256
from pugdft.records import StoredRun
from pugdft.weights import read_weights

QUICK = ("--images", "16", "--products", "3", "--probes", "2")


def sharpness(*arguments: str) -> tuple[int, str]:
    """The exit code, and all that the command prints."""
    done = call(["sharpness", *arguments])
    return done.code, done.out + done.err


@pytest.fixture
def run(sgd_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sgd_run, tmp_path / "run"))


@pytest.mark.slow
def test_the_command_stores_numbers_that_the_leaderboard_takes(run: Path) -> None:
    before = (run / "record.yaml").read_bytes(), (run / "model.safetensors").read_bytes()
    code, output = sharpness(str(run), *QUICK)
    assert code == 0, output
    (path,) = run.glob("sharpness-*.yaml")
    facts = read_analysis(path).facts
    numbers = facts["numbers"]
    assert numbers["lambda1"]["value"] > 0
    assert len(numbers["lambda1"]["quarters"]) == 4
    assert numbers["worst_rise"]["value"] >= numbers["worst_rise"]["one_step"]
    assert facts["sample"]["images"] == len(facts["sample"]["indices"]) == 16
    assert any("not settled" in line for line in facts["caveats"])
    assert any("does not reliably predict accuracy" in line for line in facts["caveats"])
    for expected in ("λ1", "adaptive λ1", "trace", "worst rise", "one step finds", str(path)):
        assert expected in output
    assert ((run / "record.yaml").read_bytes(), (run / "model.safetensors").read_bytes()) == before
    stored = collect([run]).records[0]
    assert sharpness_of(stored)[0].values["lambda1"] == numbers["lambda1"]["value"]
    assert not list(sharpness_faults(StoredRun(stored.record, stored.path)))
    changed = path.stat().st_mtime_ns
    code, output = sharpness(str(run), *QUICK)
    assert code == 0
    assert "measured before" in output
    assert path.stat().st_mtime_ns == changed


@pytest.mark.slow
def test_the_spectrum_is_stored_apart(run: Path) -> None:
    code, output = sharpness(str(run), *QUICK, "--spectrum")
    assert code == 0, output
    (path,) = (run / "analysis").glob("spectrum-*.npz")
    arrays = read_analysis(path).arrays
    assert arrays["nodes"].shape == (5, 30)
    assert arrays["weights"].sum() == pytest.approx(1)
    assert str(path.with_suffix(".yaml")) in output


@pytest.mark.slow
@pytest.mark.parametrize(("batch_norm", "breaks"), [("batch", False), ("fixed", True)])
def test_the_model_stays_as_it_is_to_the_bit(sgd_run: Path, batch_norm: str, breaks: bool) -> None:
    (loaded,) = open_models([sgd_run])
    sample = take_sample(loaded, "train", 16)
    before = {name: each.numpy().tobytes() for name, each in loaded.model.state_dict().items()}
    modes = [module.training for module in loaded.model.modules()]
    options = SharpnessOptions(products=2, probes=2, batch_norm=batch_norm)  # type: ignore[arg-type]
    steps = 0

    def count(share: float) -> None:
        nonlocal steps
        steps += 1
        if breaks and steps == 15:
            raise KeyboardInterrupt

    if breaks:
        with pytest.raises(KeyboardInterrupt):
            measure(loaded, sample, options, count)
    else:
        measure(loaded, sample, options, count)
    assert {name: each.numpy().tobytes() for name, each in loaded.model.state_dict().items()} == before
    assert [module.training for module in loaded.model.modules()] == modes


@pytest.mark.slow
def test_the_loss_is_that_of_every_analysis_in_either_precision(sgd_run: Path) -> None:
    (loaded,) = open_models([sgd_run])
    sample = take_sample(loaded, "train", 16)
    found = [
        measure(loaded, sample, SharpnessOptions(products=2, probes=2, precision=each)).facts["numbers"]  # type: ignore[arg-type]
        for each in ("fp32", "fp64")
    ]
    with torch.no_grad():
        expected = Evaluator.of(loaded, sample).at().loss
    for numbers in found:
        assert numbers["loss"] == pytest.approx(expected, rel=1e-5)
    assert found[0]["lambda1"]["value"] == pytest.approx(found[1]["lambda1"]["value"], rel=1e-3)


@pytest.mark.slow
def test_batches_have_a_ball_each(sgd_run: Path) -> None:
    (loaded,) = open_models([sgd_run])
    sample = take_sample(loaded, "train", 16)
    whole, halves = (
        measure(loaded, sample, SharpnessOptions(products=2, probes=2, batch=batch)).facts["numbers"]
        for batch in (None, 8)
    )
    assert (whole["worst_rise"]["batches"], halves["worst_rise"]["batches"]) == (1, 2)
    assert halves["worst_rise"]["value"] != whole["worst_rise"]["value"]
    assert halves["lambda1"]["value"] == pytest.approx(whole["lambda1"]["value"], rel=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (SharpnessOptions(rho=0.0), "--rho 0: must be above 0"),
        (SharpnessOptions(adaptive_rho=float("inf")), "--adaptive-rho inf: must be above 0 and finite"),
        (SharpnessOptions(products=1), "--products 1: must be from 2 to 1,000"),
        (SharpnessOptions(probes=10**9), "--probes 1000000000: must be from 2 to 1,000"),
        (SharpnessOptions(batch=7), "--batch 7: must be at least 2 and divide the 16 images"),
    ],
)
def test_impossible_options_are_refused(options: SharpnessOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.check(16)


def test_bad_input_ends_with_one_message(run: Path) -> None:
    for arguments, expected in (
        ((str(run / "nowhere"),), "no such file"),
        ((str(run), "--images", "100000"), "--images 100000"),
        ((str(run), "--images", "4"), "must be at least 8"),
        ((str(run), "--batch", "some"), "must be a number of images"),
        ((str(run), "--sample-seed", "9" * 20), "less than or equal to 2147483647"),
        ((str(run), "--minutes", "0"), "--minutes 0: must be above 0"),
    ):
        code, output = sharpness(*arguments)
        assert code == 2, output
        assert expected in output
        assert not list(run.glob("sharpness-*"))


@pytest.mark.slow
def test_weights_of_no_run_are_measured_on_given_data(run: Path, image_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    shutil.copy(run / "model.safetensors", file)
    code, output = sharpness(str(file), "--model", "test_resnet", *QUICK)
    assert code == 2
    assert "--data: is needed" in output
    code, output = sharpness(str(file), "--model", "test_resnet", "--data", str(image_folder), *QUICK)
    assert code == 0, output
    (path,) = (tmp_path / "analysis").glob("sharpness-*.yaml")
    (record,) = read_analysis(path).facts["records"]
    assert record["seed"] is None
    # Of the tensors, not of the file: the same weights in another form are the same.
    torch.save(read_weights(file), tmp_path / "weights.pth")
    (other,) = open_models([str(tmp_path / "weights.pth")], "test_resnet")
    assert record["weights_sha256"] == weights_sha256(other) != file_sha256(file)
    assert "how they were trained is not known" in output


def test_time_that_ends_first_leaves_no_file(run: Path) -> None:
    code, output = sharpness(str(run), *QUICK, "--minutes", "0.00001")
    assert code == 4
    assert "0 of 1 runs are measured" in output
    assert not list(run.glob("sharpness-*"))


def test_a_damaged_measurement_is_said_with_the_way_out(run: Path) -> None:
    loaded = open_models([run])[0]
    sample = take_sample(loaded, "train", 16)
    digest = sharpness_digest(loaded, sample, SharpnessOptions(products=3, probes=2))
    path = write_analysis(run, "sharpness", digest, {}, {"numbers": {"loss": "0.1"}, "caveats": []})
    for text in (path.read_text(), path.read_text()[:20]):
        path.write_text(text)
        code, output = sharpness(str(run), *QUICK)
        assert code == 2, output
        assert f"Without {path.name} the same command measures again" in output
