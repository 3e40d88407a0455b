"""What a file may not do: reach the network, the terminal, a page, a spreadsheet or another folder."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bad_inputs.case import Done, call, snapshot
from bad_inputs.files import data_set, file
from run_records import SAM, record

from pugdft.cli.progress import ProgressLog
from pugdft.cli.recipes import show_recipe
from pugdft.config import yaml
from pugdft.records import write_record

# --- the network -----------------------------------------------------------------------------------------

# Started by Python itself in every process of the command; leaves a line for each name or address asked for.
WATCH = """
import os, socket

def watched(name):
    original = getattr(socket.socket if name.startswith("connect") else socket, name)

    def ask(*arguments, **options):
        where = arguments[1] if name.startswith("connect") else arguments[0]
        if not isinstance(where, (str, bytes)) or name == "getaddrinfo":
            with open(os.environ["ASKED"], "a") as file:
                print(name, where, file=file)
            raise OSError("no network in this test")
        return original(*arguments, **options)

    return ask

for name in ("connect", "connect_ex"):
    setattr(socket.socket, name, watched(name))
for name in ("getaddrinfo", "gethostbyname"):
    setattr(socket, name, watched(name))
"""
COMMANDS = """
import sys
from pugdft.cli.main import main

def command(*words):
    sys.argv = ["pugdft", *words]
    try:
        main()
    except SystemExit as ended:
        print("ended", ended.code, words[0])

SMALL = ("model.name=test_vit", "model.pretrained=false", "data.image_size=32", "train.max_steps=1")
command("finetune", "quickstart", *SMALL, "--output", "run")
command("verify", "run")
command("leaderboard", "run")
command("leaderboard", "check", "run")
command("compare", "run", "run")
command("recipes", "validate", "resnet18_cifar10")
command("optimizers", "ls")
command("data", "verify", "bundled", "--image-size", "32")
command("doctor")
"""


@pytest.mark.slow
def test_no_command_asks_the_network_for_anything_but_what_has_a_hub_s_name(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    asked = tmp_path / "asked"
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}",
        "ASKED": str(asked),
        "PUGDFT_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hub"),
    }

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        return done.stdout + done.stderr

    said = run("-c", COMMANDS)
    assert "ended 0 finetune" in said, said
    assert "ended 0 verify" in said, said
    assert "ended 0 data" in said, said
    assert not asked.exists(), asked.read_text()
    run("-m", "pugdft", "data", "prepare", "cifar10")
    assert "huggingface.co" in asked.read_text(), "the watch sees what is asked for"


# --- the terminal, a page, a spreadsheet -----------------------------------------------------------------

HOSTILE = {
    "escape": "\x1b]0;owned\x07\x1b[31mred\x9b2J",
    "direction": "a\u202egnp.exe\u2066\u200b",
    "script": "</script><script>alert(1)</script><img src=x onerror=alert(1)>",
    "formula": "=cmd|' /C calc'!A0",
    "lines": "first\r\n=second\ttab\u2028third\x85",
    "template": "{{ 7 * 7 }}{% raw %}${7*7}`id`$(id)",
    "path": "../../../../outside/x",
}
FORMATS = ("table", "json", "csv", "markdown", "latex", "html")
KEPT = ("schema", "status", "sha256", "split_sha256", "weights_sha256", "started", "finished")


def infected(data: Any, text: str, key: str = "") -> Any:
    """Every word of a record replaced, and a key added wherever one may be."""
    if isinstance(data, dict):
        changed = {name: infected(value, text, name) for name, value in data.items()}
        return changed if key in ("sizes", "artifacts") else {**changed, text: text}
    if isinstance(data, list):
        return [infected(value, text, key) for value in data]
    return text if isinstance(data, str) and key not in KEPT else data


def infect(folder: Path, text: str) -> None:
    """Two optimizers' records with this text in every field; their ids differ, or one would count twice."""
    for number, optimizer in enumerate(({"name": "sgd", "lr": 0.1}, SAM)):
        made = record(
            optimizer,
            artifacts={"predictions": {"path": "p.npz", "sha256": "ab" * 32}},
            history=[{"epoch": 1, "lr": 0.1, "test_top1": 0.5}],
            restarts=[{"time": "2026-01-01T00:00:00+00:00", "step": 5}],
            error="failed",
        )
        data = infected(made.model_dump(mode="json", by_alias=True), text)
        data |= {"id": f"{text}{number}", "schema": "pugdft.run/1"}
        data["recipe"]["optimizer"]["rho"] = number
        file(f"{number}/record.yaml", yaml.dump(data))(folder)


def commands() -> list[tuple[str, ...]]:
    boards = [("leaderboard", "runs", "--format", name) for name in FORMATS]
    others = [("leaderboard", "check", "runs"), ("compare", "runs/0", "runs/1"), ("compare", "x", "runs/1")]
    return [
        *boards,
        *others,
        ("verify", "runs/0"),
        ("rerun", "runs/0"),
        ("leaderboard", "runs", "--model", "y"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_no_word_of_a_record_does_anything(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = HOSTILE[name]
    infect(tmp_path / "work" / "runs", text)
    (tmp_path / "outside").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = snapshot(tmp_path)
    boards = 0
    for command in commands():
        done = call(command)
        assert done.code in (0, 2, 3), (command, done)
        assert "Traceback" not in done.err, (command, done.err)
        check_harmless(command, done)
        boards += command[0] == "leaderboard" and done.code == 0
    assert boards >= len(FORMATS), "the records are ranked, so their words were shown"
    assert snapshot(tmp_path) == before, "nothing was written"


def check_harmless(command: tuple[str, ...], done: Done) -> None:
    shown = [*done.err.splitlines(), *([] if "csv" in command else done.out.split("\n"))]
    assert all(line.isprintable() for line in shown), (command, shown)
    if "html" in command:
        assert "<script>alert" not in done.out
        assert "<img src=x" not in done.out
    if "csv" in command:
        assert "\x1b" not in done.out
        cells = [cell for row in csv.reader(io.StringIO(done.out)) for cell in row]
        assert len(cells) > 50
        assert not [cell for cell in cells if cell[:1] in "=+@\t\r" and cell and not is_number(cell)]
        assert not [cell for cell in cells if cell[:1] == "-" and not is_number(cell)]


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def test_a_hostile_record_is_not_run_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "above" / "work"
    work.mkdir(parents=True)
    data_set()(work)
    monkeypatch.chdir(work)
    first = Path(call(("finetune", "r.yaml")).out.strip())
    data = yaml.parse(first.read_text())
    (work / "sent").mkdir()
    write_record(record().model_validate({**data, "id": "../../up/\x1b[31m/etc"}), work / "sent")
    before = set(snapshot(tmp_path))
    done = call(("rerun", "sent"))
    assert done.code == 0, done.err
    assert all(line.isprintable() for line in (done.out + done.err).split("\n"))
    written = set(snapshot(tmp_path)) - before
    assert written
    assert all(name.startswith("above/work/reruns") for name in written), written


# --- progress --------------------------------------------------------------------------------------------


def test_a_data_set_s_name_does_not_drive_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLog().on_message("preparing \x1b[31mred\x9b and test_vit\nsecond line")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["preparing �[31mred� and test_vit", "second line"]


def test_recipes_show_is_safe_on_a_terminal_and_exact_in_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("# \u202ered\tx\n")
    show_recipe(str(path))
    assert capsys.readouterr().out == "# \u202ered\tx\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show_recipe(str(path))
    assert capsys.readouterr().out == "# �red x\n"
