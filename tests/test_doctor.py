"""The doctor: what it finds, what it never shows, what it cleans, and that nothing broken stops it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from bad_inputs.case import call
from conftest import write_image_folder
from standing_still import HANG_SECONDS
from torch import nn
from torch.utils import collect_env

from pugdft import doctor
from pugdft.cli.doctor import as_json, as_text, shown
from pugdft.config import yaml
from pugdft.data import cache as data_cache
from pugdft.data.cache import prepare
from pugdft.data.datasets import DATASETS, open_source
from pugdft.data.health import check_store, leftovers, remove_leftovers
from pugdft.doctor import Check, RecipeNeeds, run_check
from pugdft.errors import human_bytes
from pugdft.paths import file_system
from pugdft.training.checkpoint import save_checkpoint
from pugdft.training.run import finetune, read_recipe

TITLES = ["Software", "Devices", "Environment variables", "Folders", "Cache"]


def named(checks: Iterable[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process's work is done in this one, which has imported torch already."""

    def run(module: str, arguments: list[str], seconds: float) -> tuple[list[dict[str, Any]], str]:
        said: list[dict[str, Any]] = []
        with monkeypatch.context() as patch:
            patch.setattr(doctor, "say", lambda **facts: said.append(json.loads(json.dumps(facts))))
            doctor.probe(arguments)
        return said, ""

    monkeypatch.setattr(doctor, "run_apart", run)


# --- the report ------------------------------------------------------------------------------------------


def test_text_is_fit_to_be_published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert shown("in /home/alice/x, /home/alice; /home/alicette/y") == "in ~/x, ~; /home/alicette/y"
    assert shown("https://alice:pass@proxy:80/x") == "https://***@proxy:80/x"
    assert shown("a\x1b[31mb\nc\u202ed\udc80") == "a\\x1b[31mb\\nc\\u202ed\\udc80"


def test_sizes() -> None:
    sizes = [human_bytes(each) for each in (0, 999, 1536, 20 * 2**20, 1.5 * 2**40)]
    assert sizes == ["0 bytes", "999 bytes", "1.5 KiB", "20 MiB", "1.5 TiB"]


def test_a_check_that_fails_is_a_result_and_those_before_it_are_kept() -> None:
    def breaks() -> Any:
        yield Check("ok", "before", "is kept")
        raise ValueError("two\nlines")

    before, failed = run_check("name", breaks())
    assert (before.text, failed.state, failed.name) == ("is kept", "problem", "name")
    assert "ValueError: two lines" in failed.text


def test_what_never_answers_is_a_problem() -> None:
    never = threading.Event()

    def choose() -> Path:
        never.wait(HANG_SECONDS)
        return Path.cwd()

    (check,) = doctor.run_in_time("drive", doctor.check_folder("drive", choose, "another", True), 0.05)
    never.set()
    assert (check.state, check.name, "no answer" in check.text) == ("problem", "drive", True)


def test_text_and_json_say_the_same_and_colour_only_when_asked() -> None:
    report = {"T": [Check("ok", "a", "b"), Check("problem", "c", "d", "do e"), Check("note", "f", "g")]}
    text = as_text(report)
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "1 problem, 1 note"
    assert "remedy: do e" in text
    assert "\x1b[" in as_text(report, colour=True)
    whole = json.loads(as_json(report))
    assert (whole["schema"], whole["problems"]) == ("pugdft.doctor/1", 1)
    assert whole["sections"][0]["title"] == "T"
    line = {"state": "problem", "name": "c", "text": "d", "remedy": "do e"}
    assert whole["sections"][0]["lines"][1] == line


def test_the_report_needs_none_of_what_it_looks_at() -> None:
    code = (
        "import sys, pugdft.cli.doctor, pugdft.doctor; heavy = {'torch', 'timm', 'numpy', 'pyarrow', "
        "'datasets', 'accelerate', 'PIL', 'scipy'}; sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


# --- the second process ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "ending"),
    [
        ("import os; os.kill(os.getpid(), 4)", "crashed: Illegal instruction"),
        (f"import time; time.sleep({HANG_SECONDS})", "did not end within {} s"),
        ("raise SystemError('no luck')", "failed: SystemError: no luck"),
        ("", ""),
    ],
)
def test_what_was_told_before_an_end_is_known(
    code: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "told_then_ended.py").write_text(
        f"from pugdft.doctor import say\nprint('noise', end='')\nsay(doing='this', n=1)\n{code}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for seconds in (2, 8, 32, 128):  # one that does not end is given up; it has to have begun by then
        said, ended = doctor.run_apart("told_then_ended", [], seconds)
        if said:
            break
    assert said == [{"doing": "this", "n": 1}]
    assert ended == ending.format(seconds)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torch_code", "said"),
    [
        ("raise ImportError('libcublas.so.13: no file')", "does not import: ImportError: libcublas.so.13"),
        ("import os; os.kill(os.getpid(), 4)", "to import torch crashed: Illegal instruction"),
    ],
)
def test_a_broken_torch_is_one_problem_in_a_whole_report(
    torch_code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text(torch_code)
    monkeypatch.syspath_prepend(str(tmp_path))
    done = call(("doctor", "quickstart"))
    assert done.code == 1, done.err
    assert [line for line in done.out.splitlines() if line in TITLES] == TITLES
    assert "Traceback" not in done.out + done.err
    problems = [line for line in done.out.splitlines() if line.startswith("  problem")]
    assert said in problems[0]
    # The other one: the recipe could not be looked at.
    assert len(problems) == 2, problems


def test_a_whole_report_is_short_shows_no_home_and_no_secret(
    recipe_file: Path, tmp_path: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "work").mkdir(parents=True)
    monkeypatch.chdir(home / "work")
    for name, value in {
        "HOME": str(home), "HF_TOKEN": "hf_verysecret", "HTTPS_PROXY": "http://u:p@proxy",
        "PUGDFT_CACHE": str(home / "cache"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    done = call(("doctor", str(recipe_file), "train.precision=bf16", "--format", "json"))
    report = json.loads(done.out)
    assert (done.code, done.err) == (min(1, report["problems"]), "")
    assert [each["title"] for each in report["sections"]] == [*TITLES, f"Recipe {recipe_file}"]
    assert {line["state"] for line in report["sections"][0]["lines"]} == {"ok"}, report["sections"][0]
    needs = {line["name"]: line["state"] for line in report["sections"][-1]["lines"]}
    assert set(needs) == {"data", "decoded", "precision", "weights", "folder", "output"}
    assert "problem" not in needs.values(), done.out
    for hidden in (str(home), "verysecret", "u:p"):
        assert hidden not in done.out
    assert "HF_TOKEN=set" in done.out
    assert "~/cache" in done.out
    assert len(done.out.splitlines()) < 250
    assert not (home / "cache" / "stores").exists(), "nothing is decoded"
    assert list((home / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quikstart"], 'Did you mean "quickstart"?'),
        (["quickstart", "train.epohcs=1", "optimizer.rho=-1"], "train.epohcs: unknown key"),
        (["quickstart", "--format", "xml"], "xml"),
    ],
)
def test_a_slip_is_one_message_and_exit_code_2(arguments: list[str], said: str, in_process: None) -> None:
    done = call(("doctor", *arguments))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


# --- devices and variables -------------------------------------------------------------------------------


def test_an_accelerator_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor._no_accelerator(None, "").state == "ok"
    cpu_only = doctor._no_accelerator("550.54.15", "")
    assert (cpu_only.state, "for CPUs alone" in cpu_only.text) == ("problem", True)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    too_old = doctor._no_accelerator("550.54.15", "; torch says: The NVIDIA driver is too old")
    assert (too_old.state, "too old" in too_old.text) == ("problem", True)
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0, total_memory=80 * 2**30)
    for name, value in {
        "is_available": True, "device_count": 1, "get_device_properties": properties,
        "mem_get_info": (79 * 2**30, 0),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *index, value=value: value)
    monkeypatch.setattr(collect_env, "get_nvidia_driver_version", lambda run: "550.54.15")
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    ones = torch.ones(64, 64)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones)
    (check,) = doctor.check_accelerators()
    assert check.text == "NVIDIA H100, 79 GiB of 80 GiB free, capability 9.0, bf16, driver 550.54.15"

    def fails(*shape: int, device: str) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(torch, "ones", fails)
    (check,) = doctor.check_accelerators()
    assert (check.state, bool(check.remedy), "no kernel" in check.text) == ("problem", True, True)


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("OMP_NUM_THREADS", "many", "problem"),
        ("OMP_NUM_THREADS", "100000", "note"),
        ("CUDA_VISIBLE_DEVICES", "", "note"),
        ("HF_HUB_OFFLINE", "1", "note"),
    ],
)
def test_a_variable_with_a_catch_has_a_result(
    name: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    check = named(doctor.check_variables(), name)
    assert (check.state, bool(check.remedy)) == (state, True)


def test_a_variable_that_stops_or_moves_a_run_is_judged_as_training_judges_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def results() -> list[Check]:
        return run_check("training", doctor.check_training_variables())

    for each in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")
    (check,) = results()
    assert (check.state, check.text.startswith("WORLD_SIZE: 4"), bool(check.remedy)) == (
        "problem",
        True,
        True,
    )
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert results() == []
    assert "WORLD_SIZE=2" in named(doctor.check_variables(), "others set").text
    monkeypatch.setenv("ACCELERATE_USE_CPU", "yes")
    assert [each.state for each in results()] == ["note"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "perhaps")
    assert [each.state for each in results()] == ["problem"]


@pytest.mark.parametrize("name", ["HF_TOKEN", "PUGDFT_API_KEY", "HTTP_PROXY", "https_proxy", "NCCL_SECRET_X"])
def test_a_secret_is_only_said_to_be_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")
    text = as_text({"v": list(doctor.check_variables())})
    assert (f"{name}=set" in text, "hunter2" in text) == (True, False)


# --- folders and the cache -------------------------------------------------------------------------------


def test_a_folder_that_is_none_or_has_no_locks_is_a_problem(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> Check:
        return run_check("cache", doctor.check_folder("cache", doctor.cache_folder, "another", True))[0]

    own_cache.mkdir()
    assert look().text.endswith("locks work")

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        assert (look().state, "and locked (Function not implemented)" in look().text) == ("problem", True)
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        assert "keep nobody out" in look().text
    assert list(own_cache.iterdir()) == []
    own_cache.rmdir()
    own_cache.write_text("a file")
    assert (look().state, "is not a folder" in look().text) == ("problem", True)


def test_the_nearest_mount_decides_the_file_system() -> None:
    assert file_system(Path("/proc/self/fd")) == "proc"


@pytest.fixture
def store(own_cache: Path, tmp_path: Path) -> Path:
    """A store of 15 images of 16 pixels, in a cache of its own."""
    data = write_image_folder(tmp_path / "pictures", {"train": 3, "test": 2})
    return prepare(open_source(str(data)), 32).folder


def relabel(folder: Path) -> None:
    np.save(folder / "test_labels.npy", np.load(folder / "test_labels.npy") + 1)


def lengthen(folder: Path) -> None:
    with (folder / "train_images.npy").open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "damage",
    [
        relabel,
        lengthen,
        lambda folder: os.truncate(folder / "test_images.npy", 500),
        lambda folder: (folder / "train_labels.npy").write_bytes(b"PK\3\4 no array"),
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "test_images.npy").unlink(),
    ],
)
def test_damage_that_shape_and_size_show_needs_no_deep_look(damage: Any, store: Path) -> None:
    damage(store)
    (check,) = doctor.check_stores()
    assert check.name == "damaged"
    assert (check.state, bool(check.remedy), str(store) in check.text) == ("problem", True, True)


def test_a_changed_pixel_takes_a_deep_look(store: Path) -> None:
    (whole,) = doctor.check_stores(deep=True)
    assert whole.state == "ok"
    assert "pictures (15 × 16²), every pixel right" in whole.text
    assert call(("data", "verify")).code == 0
    content = bytearray((store / "train_images.npy").read_bytes())
    content[-1] ^= 1
    (store / "train_images.npy").write_bytes(content)
    assert [check.state for check in doctor.check_stores()] == ["ok"]
    done = call(("data", "verify"))
    assert (done.code, "not those that were decoded" in done.out) == (1, True)


def make_old(path: Path, hours: float) -> None:
    moment = time.time() - hours * 3600
    for each in [*path.rglob("*"), path]:
        os.utime(each, (moment, moment), follow_symlinks=False)


def make_folder(root: Path, name: str, hours: float) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "train_images.npy").write_bytes(bytes(100_000))
    make_old(root / name, hours)
    return root / name


def make_lock(root: Path, letter: str, hours: float) -> Path:
    lock = root / f"{letter * 64}.lock"
    lock.touch()
    make_old(lock, hours)
    return lock


def test_cleaning_removes_what_killed_preparations_left_and_nothing_else(store: Path, tmp_path: Path) -> None:
    root = store.parent
    gone, stale = make_folder(root, ".making-old", 2), make_lock(root, "a", 2)
    elsewhere = make_folder(tmp_path, "precious", 5)
    (root / ".making-link").symlink_to(elsewhere)
    make_folder(root, ".making-young", 0.5)
    make_folder(root, "something", 5)
    make_lock(root, "b", 0)
    make_old(next(root.glob(f"{store.name[:64]}.lock")), 2)
    before = {*root.rglob("*"), *elsewhere.rglob("*")}
    (note,) = doctor.check_leftovers()
    assert (note.state, "clean" in note.remedy) == ("note", True)
    assert {*root.rglob("*"), *elsewhere.rglob("*")} == before
    done = call(("data", "clean"))
    assert (done.code, "KiB freed: 2 folders or locks" in done.out) == (0, True)
    assert 97 <= int(done.out.partition(" KiB freed")[0].split()[-1]) <= 120
    assert before - {*root.rglob("*"), *elsewhere.rglob("*")} == {gone, gone / "train_images.npy", stale}
    assert check_store(store, deep=True) == "pictures (15 × 16²)"


def test_a_recipe_that_is_not_valid_ends_the_command_before_it_cleans(store: Path, in_process: None) -> None:
    stale = make_folder(store.parent, ".making-old", 2)
    assert call(("doctor", "quickstart", "train.epochs=-1", "--clean")).code == 2
    assert stale.exists()


def test_nothing_is_a_leftover_while_somebody_prepares_data(store: Path) -> None:
    root = store.parent
    folder, lock = make_folder(root, ".making-theirs", 3), make_lock(root, "c", 2)
    assert set(leftovers(root)) == {folder, lock}
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leftovers(root) == []
        remove_leftovers([lock])  # taken between looking and removing: it stays
        assert lock.exists()
    assert len(leftovers(root)) == 2


# --- what a recipe needs ---------------------------------------------------------------------------------


def needs(recipe: dict[str, Any], folder: Path = Path("runs/x")) -> RecipeNeeds:
    return RecipeNeeds(read_recipe(recipe), folder)


def with_network(check: Check, monkeypatch: pytest.MonkeyPatch) -> Check:
    """What the report says of a result of the second process, which has no network, where this one has it."""
    monkeypatch.setattr(doctor, "stay_offline_without_network", lambda: False)
    said = [{"title": "Recipe", "check": asdict(check)}]
    monkeypatch.setattr(doctor, "run_apart", lambda *arguments: (said, ""))
    return doctor.examine("x", (), "", deep=False, clean=False)["Recipe x"][0]


def test_data_before_and_after_it_is_decoded(
    small_recipe: dict[str, Any], own_cache: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = needs(small_recipe)
    checks = run_check("data", look.data())
    assert look.num_classes == 3
    assert "not yet; 105 images will take 79 KiB" in named(checks, "decoded").text  # 105 · 16² · 3 bytes
    assert not (own_cache / "stores").exists(), "nothing is decoded"
    small_recipe["data"]["storage"] = "decoded"
    with monkeypatch.context() as patch:
        usage = SimpleNamespace(total=10**6, used=10**6 - 1000, free=1000)
        patch.setattr(data_cache.shutil, "disk_usage", lambda place: usage)
        assert run_check("data", needs(small_recipe).data())[-1].state == "problem"
    prepare(open_source(str(image_folder)), 32)
    checks = run_check("data", needs(small_recipe).data())
    assert named(checks, "decoded").text.startswith("105 images of 16²")
    assert {check.state for check in checks} == {"ok"}
    small_recipe["train"]["batch_size"] = 100
    check = run_check("data", needs(small_recipe).data())[-1]
    assert (check.state, "100 is more than the 72 training images" in check.text) == ("problem", True)


@pytest.mark.parametrize("name", sorted(name for name, entry in DATASETS.items() if entry.repository))
def test_data_of_the_hub_that_is_not_here_has_a_remedy(
    name: str, small_recipe: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    small_recipe["data"]["name"] = name
    (check,) = run_check("data", needs(small_recipe).data())
    assert (check.state, f"pugdft data prepare {name}" in check.remedy) == ("problem", True)
    assert with_network(check, monkeypatch).state == "note"
    write_image_folder(own_cache / "data" / name, {"train": 10, "test": 2})
    assert {check.state for check in run_check("data", needs(small_recipe).data())} == {"ok"}


def test_a_precision_that_the_device_has_not_is_a_problem(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["precision"] = "fp16"
    (check,) = run_check("precision", needs(small_recipe).precision())
    assert (check.state, "bf16 or fp32" in check.text) == ("problem", True)
    small_recipe["train"].update(precision="fp32", performance={"matmul": "tf32"})
    (check,) = run_check("precision", needs(small_recipe).precision())
    assert (check.state, "tf32 needs a GPU" in check.text) == ("problem", True)


def test_weights_fit_or_do_not_or_are_not_here(
    small_recipe: dict[str, Any], own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look() -> Check:
        return run_check("weights", needs(small_recipe).weights(), "a remedy")[0]

    state = timm.create_model("test_vit", num_classes=7, depth=2).state_dict()
    path = tmp_path / "own.safetensors"
    small_recipe["model"]["pretrained"] = str(path)
    safetensors.torch.save_file(state, path)
    assert look().state == "ok"
    safetensors.torch.save_file({key: state[key] for key in state if "blocks.0" not in key}, path)
    assert (look().state, 'missing, such as "blocks.0' in look().text) == ("problem", True)
    os.truncate(path, 1000)
    assert (look().state, "not readable as weights" in look().text) == ("problem", True)
    small_recipe["model"] = {"name": "resnet18.a1_in1k", "pretrained": True}
    assert (look().state, "resnet18.a1_in1k.safetensors" in look().remedy) == ("problem", True)
    assert with_network(look(), monkeypatch).state == "note"


def test_passes_that_the_model_cannot_make_are_a_problem(small_recipe: dict[str, Any]) -> None:
    small_recipe["model"] = {"name": "test_resnet", "pretrained": False}
    assert {check.name for check in run_check("weights", needs(small_recipe).weights())} == {"weights"}
    small_recipe["train"]["micro_batch_size"] = 1
    check = named(run_check("weights", needs(small_recipe).weights()), "passes")
    assert (check.state, "train.micro_batch_size: makes passes of one" in check.text) == ("problem", True)


def test_the_output_folder_s_states(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def look(place: Path = folder) -> Check:
        return run_check("output", needs(small_recipe, place).output())[-1]

    assert "begins it" in look().text
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.dump(read_recipe(small_recipe).as_dict()))
    assert "begins it" in look().text
    for steps in (3, 6):
        save_checkpoint(folder, nn.Linear(2, 2), {"state": {}}, {"position": {"steps": steps}}, {})
    assert (look().state, "goes on from update 6" in look().text) == ("ok", True)
    (folder / "checkpoint" / "weights.safetensors").write_bytes(b"damaged")
    assert (look().state, "goes on from update 3" in look().text) == ("note", True)
    (folder / "checkpoint.previous" / "state.json").write_text("{")
    assert look().state == "problem"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "at work" in look().text
    assert "at work" not in look().text
    small_recipe["train"]["seed"] = 5
    assert (look().state, "another recipe" in look().text) == ("problem", True)
    (tmp_path / "file").write_text("")
    assert look(tmp_path / "file").state == "problem"


def test_a_finished_run_and_a_full_disk_are_said(
    small_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_recipe["train"]["max_steps"] = 1
    look = needs(small_recipe, tmp_path / "done")
    finetune(look.recipe, tmp_path / "done")
    usage = SimpleNamespace(total=10**9, used=10**9 - 1000, free=1000)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: usage)
    checks = run_check("output", look.output())
    assert "complete" in named(checks, "output").text
    assert named(checks, "folder").state == "note"
    assert named(run_check("weights", look.weights()), "room").state == "problem"


def test_a_folder_that_other_machines_may_have_is_said_to_use_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.disk_partitions", lambda **options: [_Mount(str(tmp_path), "nfs4")])
    found = run_check("x", doctor.check_folder("x", lambda: tmp_path, "take another", True))
    assert [each.state for each in found] == ["note"]
    assert "nfs4" in found[0].text
    assert "a bench here uses leases" in found[0].text
    monkeypatch.setattr("psutil.disk_partitions", lambda **options: [_Mount(str(tmp_path), "xfs")])
    found = run_check("x", doctor.check_folder("x", lambda: tmp_path, "take another", True))
    assert [each.state for each in found] == ["ok"]


class _Mount(NamedTuple):
    mountpoint: str
    fstype: str
