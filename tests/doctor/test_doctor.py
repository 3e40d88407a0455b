"""The doctor: what it finds, what it never shows, what it cleans, and that nothing broken stops it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import call
from conftest import pugdft
from standing_still import HANG_SECONDS

from pugdft.doctor.apart import run_apart
from pugdft.doctor.devices import accelerator_lines, library_lines
from pugdft.doctor.report import Line, Section, as_json, as_text, num_problems, section, shown, size, within

TITLES = ["Software", "Devices", "Environment variables", "Folders", "Cache"]


def test_text_is_fit_to_be_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert shown("in /home/alice/x, /home/alice; /home/alicette/y") == "in ~/x, ~; /home/alicette/y"
    assert shown("https://alice:pass@proxy:80/x") == "https://***@proxy:80/x"
    assert shown("a\x1b[31mb\nc\u202ed\udc80") == "a\\x1b[31mb\\nc\\u202ed\\udc80"


def test_sizes() -> None:
    assert [size(0), size(999), size(1536), size(20 * 2**20), size(1.5 * 2**40)] == [
        "0 bytes", "999 bytes", "1.5 KiB", "20 MiB", "1.5 TiB",
    ]  # fmt: skip


def test_a_part_that_fails_is_a_line_and_the_others_are_heard() -> None:
    def breaks() -> Any:
        yield Line("ok", "before", "is kept")
        raise ValueError("two\nlines")

    found = section("Title", ("first", breaks), ("second", lambda: [Line("ok", "after", "too")]))
    assert [line.name for line in found.lines] == ["before", "first", "after"]
    assert found.lines[1].state == "problem"
    assert "ValueError: two lines" in found.lines[1].text


def test_what_never_answers_is_a_problem() -> None:
    never = threading.Event()
    (line,) = within(0.05, lambda: never.wait(HANG_SECONDS) and [], "drive")
    never.set()
    assert (line.state, line.name, "no answer" in line.text) == ("problem", "drive", True)


def test_text_and_json_say_the_same_and_colour_only_when_asked() -> None:
    sections = [
        Section("T", (Line("ok", "a", "b"), Line("problem", "c", "d", "do e"), Line("note", "f", "g")))
    ]
    text = as_text(sections)
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "1 problem, 1 note"
    assert "remedy: do e" in text
    assert "\x1b[" in as_text(sections, colour=True)
    whole = json.loads(as_json(sections))
    assert (whole["schema"], whole["problems"]) == ("pugdft.doctor/1", num_problems(sections))
    assert whole["sections"][0]["lines"][1] == {
        "state": "problem", "name": "c", "text": "d", "remedy": "do e",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import os; os.kill(os.getpid(), 4)", "crashed: SIGILL"),
        (f"import time; time.sleep({HANG_SECONDS})", "did not end within {} s"),
        ("raise SystemError('no luck')", "failed: SystemError: no luck"),
        ("", ""),
    ],
)
def test_what_was_told_before_an_end_is_known(
    code: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told_then_ended.py").write_text(
        f"from pugdft.doctor.apart import say\nprint('noise', end='')\nsay(doing='this', n=1)\n{code}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for seconds in (2, 8, 32, 128):  # one that does not end is given up; it has to have begun by then
        facts = run_apart("told_then_ended", [], seconds)
        if facts.said:
            break
    assert facts.said == ({"doing": "this", "n": 1},)
    assert facts.ending == ending.format(seconds)


@pytest.mark.parametrize(
    ("torch_code", "said"),
    [
        (
            "raise ImportError('libcublas.so.13: cannot open')",
            "does not import: ImportError: libcublas.so.13",
        ),
        ("import os; os.kill(os.getpid(), 4)", "to import torch crashed: SIGILL"),
    ],
)
def test_a_broken_torch_is_one_problem_in_a_whole_report(torch_code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text(torch_code)
    done = pugdft("doctor", "quickstart", cwd=tmp_path, PYTHONPATH=str(tmp_path / "path"))
    assert done.returncode == 1, done.stderr
    assert [line for line in done.stdout.splitlines() if line in TITLES] == TITLES
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("  problem")]
    assert said in lines[0]
    # The other one: the recipe could not be looked at.
    assert len(lines) == 2, lines


def test_the_report_needs_none_of_what_it_looks_at() -> None:
    code = (
        "import sys, pugdft.cli.doctor, pugdft.doctor.examine; heavy = {'torch', 'timm', 'numpy', 'pyarrow', "
        "'datasets', 'accelerate', 'PIL', 'scipy'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=-3).returncode == 0


def test_an_accelerator_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from pugdft.doctor import devices
    from pugdft.doctor.apart import Facts

    def facts(cuda: str | None, *said: str, found: list[dict[str, Any]] | None = None) -> Facts:
        return Facts(({"torch": {"cuda": cuda}, "accelerators": {"said": said, "devices": found or []}},), "")

    assert [line.state for line in accelerator_lines(facts(None))] == ["ok"]
    monkeypatch.setattr(devices, "nvidia_driver", lambda: "550.54.15")
    (cpu_only,) = accelerator_lines(facts(None))
    assert (cpu_only.state, "for CPUs alone" in cpu_only.text) == ("problem", True)
    (too_old,) = accelerator_lines(facts("13.2", "The NVIDIA driver is too old"))
    assert (too_old.state, "too old" in too_old.text) == ("problem", True)
    gpu = {
        "device": "cuda:0", "name": "NVIDIA H100", "capability": "9.0", "total": 80 * 2**30,
        "free": 79 * 2**30, "bf16": True, "fault": "",
    }  # fmt: skip
    (line,) = accelerator_lines(facts("13.2", found=[gpu]))
    assert line.text == "NVIDIA H100, 79 GiB of 80 GiB free, capability 9.0, bf16, driver 550.54.15"
    (line,) = accelerator_lines(facts("13.2", found=[{**gpu, "fault": "no kernel image"}]))
    assert (line.state, bool(line.remedy)) == ("problem", True)
    assert next(iter(library_lines(Facts((), "")))).state == "note"


def test_a_healthy_report_is_short_shows_no_home_and_no_secret(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    environment = {
        "HOME": str(home), "HF_TOKEN": "hf_verysecret", "HTTPS_PROXY": "http://u:p@proxy",
        "PUGDFT_CACHE": str(home / "cache"),
    }  # fmt: skip
    done = pugdft("doctor", "--format", "json", cwd=home / "work", **environment)
    assert done.returncode == min(1, json.loads(done.stdout)["problems"])
    assert [each["title"] for each in json.loads(done.stdout)["sections"]] == TITLES
    software = json.loads(done.stdout)["sections"][0]["lines"]
    assert {line["state"] for line in software} == {"ok"}, software
    for hidden in (str(home), "verysecret", "u:p"):
        assert hidden not in done.stdout
    assert "HF_TOKEN=set" in done.stdout
    assert "~/cache" in done.stdout
    assert len(done.stdout.splitlines()) < 200
    assert list(home.iterdir()) == [home / "work"], "looking leaves nothing behind"
    assert list((home / "work").iterdir()) == []


def test_a_recipe_s_needs_on_one_page(recipe_file: Path, tmp_path: Path) -> None:
    done = pugdft("doctor", str(recipe_file), "train.precision=bf16", cwd=tmp_path)
    assert done.returncode in (0, 1)
    assert done.stderr == ""
    needs = done.stdout.split(f"Recipe {recipe_file}\n")[1]
    for name in ("data", "decoded", "precision", "memory", "weights", "output", "room"):
        assert f"  {name} " in needs
    assert "problem" not in needs.rpartition("\n\n")[0], needs
    assert len(done.stdout.splitlines()) < 60
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quikstart"], 'Did you mean "quickstart"?'),
        (["quickstart", "train.epohcs=1", "optimizer.rho=-1"], "train.epohcs: unknown key"),
        (["quickstart", "--format", "xml"], "xml"),
    ],
)
def test_a_slip_is_one_message_and_exit_code_2(arguments: list[str], said: str) -> None:
    done = call(("doctor", *arguments))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err
