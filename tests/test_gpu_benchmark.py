"""``benchmarks/gpu.py``: parts as processes, the two files, bad input; all parts at toy size on the CPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import reference

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import gpu
import throughput

JOB = gpu.Job("cpu", toy=True, batch_size=4, data="", timm="", seconds=60)
FAKE = """
import subprocess, sys, time
part = sys.argv[2]
open({log!r}, "a").write(part + "\\n")
print("not a row")
held = "false" if part == "precision" else "true"
print('row {{"what": "first|second", "value": 1e-07, "ok": ' + held + "}}", flush=True)
if part == "resume":
    sys.exit("Traceback\\ntorch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
if part == "processes":
    sys.exit("Traceback\\nValueError: a crash")
if part == "input":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    open({log!r} + ".pid", "w").write(str(child.pid))
    time.sleep(600)
"""

Call = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The names of the parts that ran: a script stands in for their processes."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(log=str(tmp_path / "log")))
    monkeypatch.setattr(gpu, "__file__", str(script))
    return tmp_path / "log"


def call(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = gpu.main(["--toy", "--device", "cpu", "--output", str(folder / "found"), *options])
    return code, json.loads((folder / "found.json").read_text())


def test_each_part_fails_alone_and_both_files_say_how(log: Path, tmp_path: Path) -> None:
    code, results = call(
        tmp_path, "--only", "references", "precision", "resume", "processes", "ratio/resnet18"
    )
    statuses = {name: part["status"] for name, part in results["parts"].items()}
    assert statuses == {
        "references": "done", "precision": "wrong", "resume": "out of memory", "processes": "failed",
        "ratio/resnet18": "done",
    }  # fmt: skip
    assert code == 1
    assert results["parts"]["processes"]["note"] == "ValueError: a crash"
    assert "Traceback" in results["parts"]["processes"]["said"]
    # What a part told before it failed is kept.
    assert results["parts"]["resume"]["rows"] == [{"what": "first|second", "value": 1e-07, "ok": True}]
    page = (tmp_path / "found.md").read_text()
    assert "| processes | failed |" in page
    assert "| first\\|second | 1e-07 | **no** |" in page
    assert f"| torch | {gpu.version('torch')} |" in page


def test_the_same_command_goes_on_with_what_is_missing(log: Path, tmp_path: Path) -> None:
    wanted = ("--skip", "input", "training", "optimizers", "eager", "compiled", "ratio")
    first = ["references", "precision", "resume", "processes"]
    call(tmp_path, *wanted)
    assert log.read_text().split() == first
    call(tmp_path, *wanted)
    assert log.read_text().split() == [*first, "processes"]  # the one that crashed
    call(tmp_path, *wanted, "--only", "re")  # named: again, also what is there
    assert log.read_text().split() == [*first, "processes", "references", "resume"]


def test_parts_for_which_there_is_no_time_are_named(log: Path, tmp_path: Path) -> None:
    code, results = call(tmp_path, "--minutes", "0.001")
    assert code == 0
    assert not log.exists()
    assert {part["status"] for part in results["parts"].values()} == {"no time"}
    assert list(results["parts"]) == list(gpu.PARTS)


def test_a_part_that_takes_too_long_ends_with_all_of_its_processes(log: Path) -> None:
    place, begin = Path(f"{log}.pid"), time.monotonic()
    found = gpu.run_part("input", replace(JOB, seconds=3))
    assert found["status"] == "out of time"
    assert time.monotonic() - begin < 60
    with suppress(psutil.NoSuchProcess, FileNotFoundError):  # gone, or not yet begun on a busy machine
        process = psutil.Process(int(place.read_text()))
        while process.status() != psutil.STATUS_ZOMBIE:  # a kill is not there at once
            assert time.monotonic() - begin < 60
            time.sleep(0.05)


def test_results_of_another_machine_are_not_mixed_in(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(tmp_path, "--only", "references")
    results = json.loads((tmp_path / "found.json").read_text())
    results["facts"]["name"] = "another"
    (tmp_path / "found.json").write_text(json.dumps(results))
    capsys.readouterr()
    code, after = call(tmp_path, "--only", "references")
    assert code == 2
    assert "found.json: was measured with another name: give another --output" in capsys.readouterr().err
    assert after == results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no accelerator that torch can use; --toy --device cpu tests this script without one"),
        (("--device", "cpu"), "no accelerator that torch can use"),
        (("--only", "speed"), "no part begins with 'speed'; parts: references, "),
        (("--skip", "speed"), "no part begins with 'speed'"),
        (("--minutes", "0"), "--minutes must be above 0"),
        (("--batch-size", "1"), "--batch-size at least 2"),
        (("--timm", "/nowhere"), "/nowhere has no train.py"),
        (("--data", "/nowhere"), "/nowhere has no images in train/CLASS/"),
    ],
)
def test_bad_input_is_one_sentence_and_2(
    options: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "device_type", lambda: "cpu")
    assert gpu.main(list(options)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_method_that_is_not_its_reference_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Shorter(reference.Sam):
        rho = 0.0499

    monkeypatch.setattr(reference, "REFERENCES", [("sam", {}, reference.Sam), ("sam", {}, Shorter)])
    gpu.references(JOB, tmp_path)
    rows = [json.loads(line.removeprefix("row ")) for line in capsys.readouterr().out.splitlines()]
    assert [each["ok"] for each in rows] == [True, False, True, True]
    assert rows[0]["sgd torch.float64"] < 1e-14 < rows[1]["sgd torch.float64"]
    assert 1e-9 < rows[0]["adamw torch.float32"] < 1e-5


def test_a_program_that_does_not_fit_is_named_and_the_others_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(name: str, task: throughput.Task) -> throughput.Measured:
        if name == "timm train.py":
            raise SystemExit("timm train.py failed:\nCUDA out of memory.\n")
        slow = 2 if name == "Accelerate loop" else 1
        # 10 s for the first update, 5 s until the fourth; then 3 updates in 1 s and in 2.
        moments = [(1, 10), (4, 15), (7, 15 + slow), (10, 15 + 3 * slow)]
        return throughput.Measured(1.0, 20.0, [throughput.Mark(n, t, 2.0 * t) for n, t in moments], 3 * 2**20)

    monkeypatch.setattr(throughput, "measure", measure)
    gpu.programs(replace(JOB, timm="there"), tmp_path, "resnet18", compiled=False)
    rows = [json.loads(line.removeprefix("row ")) for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == {"program": "timm train.py", "note": "out of memory", "ok": None}
    assert [each["program"] for each in rows[1:]] == ["pugdft finetune", "Accelerate loop"]
    assert rows[1]["images/s"] == "9.0 (6.0–12.0)"
    assert (rows[1]["pugdft is"], rows[2]["pugdft is"]) == ("1.00 ×", "2.00 ×")
    assert rows[1]["ms of a core an image"] == 250.0  # 6 s in 24 images
    assert rows[1]["peak MiB"] == 3
    assert len(list((tmp_path / "images" / "train").rglob("*.png"))) == 4 * 4


def test_given_images_are_linked_until_there_are_enough(image_folder: Path, tmp_path: Path) -> None:
    folder = gpu.images_of(str(image_folder), tmp_path / "images", 100, 5)
    links = sorted((folder / "train").rglob("*.png"))
    assert len(links) == 100  # of 72
    assert len({link.resolve() for link in links}) == 72
    assert len(list((folder / "train" / "ant").iterdir())) == 34
    assert len(list((folder / "test").rglob("*.png"))) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["references", "precision", "resume", "processes", "eager/resnet18", "ratio/resnet18", "input",
     "training", "optimizers"],
)  # fmt: skip
def test_every_part_runs_at_toy_size_on_the_cpu(name: str, tmp_path: Path) -> None:
    code, results = call(tmp_path, "--only", name, "--minutes", "60")
    part = results["parts"][name]
    assert (code, part["status"]) == (0, "done"), part
    assert part["rows"]
