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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from bad_inputs.case import call
from conftest import pugdft, write_image_folder
from standing_still import HANG_SECONDS
from torch import nn

from pugdft import yaml_text
from pugdft.checkpoint import save_checkpoint
from pugdft.data.sources import open_source
from pugdft.data.store import prepare
from pugdft.doctor import folders
from pugdft.doctor.apart import run_apart
from pugdft.doctor.caches import cache_lines, examine, leftovers, remove
from pugdft.doctor.data_needs import PUBLISHED, DataNeeds
from pugdft.doctor.devices import accelerator_lines, library_lines
from pugdft.doctor.memory import copies_of, memory_of
from pugdft.doctor.needs import device_lines, memory_lines
from pugdft.doctor.output_needs import output_lines
from pugdft.doctor.report import Line, Section, as_json, as_text, num_problems, section, shown, size, within
from pugdft.doctor.variables import variable_lines
from pugdft.doctor.weight_needs import weight_lines
from pugdft.finetune import finetune, read_recipe
from pugdft.optim import resolve_spec, summary
from pugdft.optim.registry import METHODS
from pugdft.performance import pick
from pugdft.recipe import Recipe

TITLES = ["Software", "Devices", "Environment variables", "Folders", "Cache"]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test alone."""
    monkeypatch.setenv("PUGDFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def resolved(small_recipe: dict[str, Any]) -> Recipe:
    return read_recipe(small_recipe)


def named(lines: Any, name: str) -> Line:
    return next(line for line in lines if line.name == name)


# ----------------------------------------------------------------------------------------------- the report


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


# ---------------------------------------------------------------------------------------- broken software


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


# ------------------------------------------------------------------------------------------- the command


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


# ------------------------------------------------------------------------------------ variables and folders


@pytest.mark.parametrize(
    ("name", "value", "state"),
    [
        ("OMP_NUM_THREADS", "many", "problem"),
        ("OMP_NUM_THREADS", "100000", "note"),
        ("CUDA_VISIBLE_DEVICES", "", "note"),
        ("WORLD_SIZE", "4", "problem"),
        ("HF_HUB_OFFLINE", "1", "note"),
    ],
)
def test_a_variable_with_a_catch_has_a_line(
    name: str, value: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, value)
    line = named(variable_lines(), name)
    assert (line.state, bool(line.remedy)) == (state, True)


def test_a_launcher_s_variables_are_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert "WORLD_SIZE=2" in named(variable_lines(), "others set").text


@pytest.mark.parametrize("name", ["HF_TOKEN", "PUGDFT_API_KEY", "HTTP_PROXY", "https_proxy", "NCCL_SECRET_X"])
def test_a_secret_is_only_said_to_be_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "hunter2")
    text = as_text([Section("v", tuple(variable_lines()))])
    assert (f"{name}=set" in text, "hunter2" in text) == (True, False)


def test_a_folder_that_is_none_or_has_no_locks_is_a_problem(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_cache.mkdir()
    assert named(folders.folder_lines(), "cache").text.endswith("locks work")
    assert list(own_cache.iterdir()) == []

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        line = named(folders.folder_lines(), "cache")
        assert (line.state, "no locks (Function not implemented)" in line.text) == ("problem", True)
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        assert "keep nobody out" in named(folders.folder_lines(), "cache").text
    assert list(own_cache.iterdir()) == []
    own_cache.rmdir()
    own_cache.write_text("a file")
    line = named(folders.folder_lines(), "cache")
    assert (line.state, "is not a folder" in line.text) == ("problem", True)


def test_the_nearest_mount_decides_the_file_system() -> None:
    assert folders.file_system(Path("/proc/self/fd")) == "proc"


# ------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def store(own_cache: Path, tmp_path: Path) -> Path:
    """A store of 15 images of 16 pixels, in a cache of its own."""
    data = write_image_folder(tmp_path / "pictures", {"train": 3, "test": 2})
    return prepare(open_source(str(data)), 32).folder


def test_a_whole_store_is_whole(store: Path) -> None:
    state = examine(store, deep=True)
    assert (state.fault, state.name, state.num_images, state.side) == ("", "pictures", 15, 16)
    lines = list(cache_lines(deep=False, clean=False))
    assert "1 whole" in lines[0].text
    assert {line.state for line in lines} == {"ok"}


def shorten(folder: Path) -> None:
    os.truncate(folder / "test_images.npy", 500)


def lengthen(folder: Path) -> None:
    with (folder / "train_images.npy").open("ab") as file:
        file.write(b"x")


def garble(folder: Path) -> None:
    (folder / "train_labels.npy").write_bytes(b"PK\3\4 no array")


def relabel(folder: Path) -> None:
    labels = np.load(folder / "test_labels.npy")
    np.save(folder / "test_labels.npy", labels + 1)


@pytest.mark.parametrize(
    "damage",
    [
        shorten,
        lengthen,
        garble,
        relabel,
        lambda folder: (folder / "meta.json").unlink(),
        lambda folder: (folder / "meta.json").write_text("[]"),
        lambda folder: (folder / "test_images.npy").unlink(),
    ],
)
def test_damage_that_shape_and_size_show_needs_no_deep_look(damage: Any, store: Path) -> None:
    damage(store)
    lines = list(cache_lines(deep=False, clean=False))
    assert "none" in lines[0].text
    line = named(lines, "damaged")
    assert (line.state, bool(line.remedy), str(store) in line.text) == ("problem", True, True)


def test_a_changed_pixel_takes_a_deep_look(store: Path) -> None:
    content = bytearray((store / "train_images.npy").read_bytes())
    content[-1] ^= 1
    (store / "train_images.npy").write_bytes(content)
    assert not examine(store).fault
    assert "not those that were decoded" in examine(store, deep=True).fault


def test_a_store_of_another_version_is_noted(store: Path) -> None:
    other = store.with_name(store.name.replace("-v", "-v9"))
    store.rename(other)
    assert named(cache_lines(deep=False, clean=False), "outdated").state == "note"


def make_old(path: Path, hours: float = 2) -> None:
    moment = time.time() - hours * 3600
    for each in [*path.rglob("*"), path]:
        os.utime(each, (moment, moment), follow_symlinks=False)


def make_folder(root: Path, name: str, hours: float) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "train_images.npy").write_bytes(bytes(100_000))
    make_old(folder, hours)
    return folder


def test_cleaning_removes_what_killed_preparations_left_and_nothing_else(store: Path, tmp_path: Path) -> None:
    root = store.parent
    gone = make_folder(root, ".making-old", 2)
    stale = root / f"{'a' * 64}.lock"
    stale.touch()
    make_old(stale)
    elsewhere = make_folder(tmp_path, "precious", 5)
    (root / ".making-link").symlink_to(elsewhere)
    make_folder(root, ".making-young", 0.5)
    make_folder(root, "something", 5)
    fresh_lock = root / f"{'b' * 64}.lock"
    fresh_lock.touch()
    own_lock = next(root.glob(f"{store.name[:64]}.lock"))
    make_old(own_lock)
    before = {*root.rglob("*"), *elsewhere.rglob("*")}

    (note,) = (line for line in cache_lines(deep=False, clean=False) if line.name == "leftovers")
    assert (note.state, "--clean" in note.remedy) == ("note", True)
    assert {*root.rglob("*"), *elsewhere.rglob("*")} == before
    (line,) = (line for line in cache_lines(deep=False, clean=True) if line.name == "cleaned")
    freed = int(line.text.split()[0])
    assert 97 <= freed <= 120, line.text
    assert "KiB freed: 2 folders or locks" in line.text
    after = {*root.rglob("*"), *elsewhere.rglob("*")}
    assert before - after == {gone, gone / "train_images.npy", stale}
    assert not examine(store, deep=True).fault


def test_nothing_is_a_leftover_while_somebody_prepares_data(store: Path) -> None:
    root = store.parent
    make_folder(root, ".making-theirs", 3)
    lock = root / f"{'c' * 64}.lock"
    lock.touch()
    make_old(lock)
    assert {each.path.name for each in leftovers(root)} == {".making-theirs", lock.name}
    found = leftovers(root)
    with lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert leftovers(root) == []
        # Taken between looking and removing: it stays.
        remove([each for each in found if each.path == lock])
        assert lock.exists()
    assert len(leftovers(root)) == 2


# --------------------------------------------------------------------------------------- a recipe's needs


@pytest.mark.parametrize("name", sorted(METHODS))
def test_counted_copies_are_those_that_the_method_documents(name: str) -> None:
    spec = resolve_spec({"name": name, "base": {"name": "sgd", "lr": 0.01, "momentum": 0.9}})
    documented = summary(name)["memory"]
    own = int(documented[0]) if documented.endswith("P") else 0
    copies, kept = copies_of(spec)
    # Beside its own: the gradient, the momentum, and the sample by which the method's evidence is measured.
    assert copies == pytest.approx(2 + own, abs=0.11)
    assert kept in (1, 2)


def test_copies_follow_the_base() -> None:
    def copies(base: dict[str, Any]) -> tuple[float, float]:
        return copies_of(resolve_spec({"name": "sam", "base": {"lr": 0.01, **base}}))

    assert copies({"name": "sgd"}) == pytest.approx((2, 0), abs=0.11)
    assert copies({"name": "adamw", "layer_decay": 0.7, "no_decay": True}) == pytest.approx((4, 2), abs=0.11)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnet18"])
def test_activations_are_counted_without_any(name: str, precision: str, small_recipe: dict[str, Any]) -> None:
    small_recipe["model"]["name"] = name
    small_recipe["data"]["image_size"] = 64
    small_recipe["train"].update(precision=precision, micro_batch_size=3)
    recipe = read_recipe(small_recipe)
    counted = memory_of(recipe, 3, pick(recipe, "cpu"))
    model = timm.create_model(name, num_classes=3, **({"img_size": 64} if name == "test_vit" else {}))
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor.untyped_storage()
        return tensor

    images = torch.randn(3, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        nn.functional.cross_entropy(model(images).float(), torch.tensor([0, 1, 2]))
    real = sum(storage.nbytes() for storage in kept.values())
    assert counted.activation_bytes == pytest.approx(real, rel=0.02)
    assert counted.parameters == sum(each.numel() for each in model.parameters())
    assert counted.weights_bytes == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))


def test_a_frozen_backbone_is_not_copied(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["freeze"] = "backbone"
    recipe = read_recipe(small_recipe)
    memory = memory_of(recipe, 3, pick(recipe, "cpu"))
    assert memory.trained_bytes == 4 * (64 * 3 + 3)
    assert memory.trained_bytes < memory.weights_bytes / 100


def test_memory_that_is_not_there_is_said(resolved: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = memory_of(resolved, 3, pick(resolved, "cpu"))
    for free, state in ((2**40, "ok"), (2**29, "problem"), (memory.total_bytes + int(0.86 * 2**30), "note")):
        monkeypatch.setattr("pugdft.doctor.needs.memory_bytes", lambda free=free: (free, free))
        (line,) = memory_lines(memory, resolved, "cpu", retains=False)
        assert line.state == state


def test_a_precision_that_the_device_has_not_is_a_problem(small_recipe: dict[str, Any]) -> None:
    small_recipe["train"]["precision"] = "fp16"
    (line,) = device_lines(read_recipe(small_recipe), "cpu")
    assert (line.state, "bf16 or fp32" in line.remedy) == ("problem", True)
    small_recipe["train"].update(precision="fp32", performance={"matmul": "tf32"})
    (line,) = device_lines(read_recipe(small_recipe), "cpu")
    assert (line.state, "tf32 needs a GPU" in line.text) == ("problem", True)


def test_data_before_and_after_it_is_decoded(
    small_recipe: dict[str, Any], own_cache: Path, image_folder: Path
) -> None:
    recipe = read_recipe(small_recipe)
    needs = DataNeeds(recipe)
    lines = list(needs.lines())
    assert needs.num_classes == 3
    assert "not yet; 105 images will take 79 KiB" in named(lines, "decoded").text  # 105 · 16² · 3 bytes
    assert not (own_cache / "stores").exists(), "nothing is decoded"
    prepare(open_source(str(image_folder)), 32)
    lines = list(DataNeeds(recipe).lines())
    assert named(lines, "decoded").text.startswith("105 images of 16²")
    small_recipe["train"]["batch_size"] = 100
    assert {line.state for line in lines} == {"ok"}


def test_a_batch_larger_than_the_data_is_a_problem(small_recipe: dict[str, Any], own_cache: Path) -> None:
    small_recipe["train"]["batch_size"] = 100
    line = named(DataNeeds(read_recipe(small_recipe)).lines(), "batch size")
    assert (line.state, "100 is more than 72 images" in line.text) == ("problem", True)


def test_decoded_images_that_do_not_fit_are_a_problem(
    small_recipe: dict[str, Any], own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from pugdft.data import disk_room

    usage = SimpleNamespace(total=10**6, used=10**6 - 1000, free=1000)
    monkeypatch.setattr(disk_room.shutil, "disk_usage", lambda place: usage)
    small_recipe["data"]["storage"] = "decoded"
    assert named(DataNeeds(read_recipe(small_recipe)).lines(), "decoded").state == "problem"


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_data_of_the_hub_that_is_not_here_has_a_remedy(
    name: str, small_recipe: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    small_recipe["data"]["name"] = name
    lines = list(DataNeeds(read_recipe(small_recipe)).lines())
    assert lines[0].state == "problem"
    assert f"pugdft data prepare {name}" in lines[0].remedy
    own = write_image_folder(own_cache / "data" / name, {"train": 2, "test": 2})
    lines = list(DataNeeds(read_recipe(small_recipe)).lines())
    assert (lines[0].state, str(own) in lines[0].text) == ("ok", True)


def test_weights_in_a_file_fit_or_do_not(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    path = tmp_path / "own.safetensors"
    small_recipe["model"]["pretrained"] = str(path)

    def line(tensors: dict[str, torch.Tensor]) -> Line:
        safetensors.torch.save_file(tensors, path)
        recipe = read_recipe(small_recipe)
        return next(iter(weight_lines(recipe, memory_of(recipe, 3, pick(recipe, "cpu")).names)))

    assert line(state).state == "ok"
    missing = line({key: value for key, value in state.items() if "blocks.0" not in key})
    assert (missing.state, "missing, such as blocks.0" in missing.text) == ("problem", True)
    os.truncate(path, 1000)
    (damaged,) = weight_lines(read_recipe(small_recipe), None)
    assert (damaged.state, "damaged" in damaged.text) == ("problem", True)


def test_weights_that_are_not_here_have_a_remedy(
    small_recipe: dict[str, Any], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_recipe["model"] = {"name": "resnet18.a1_in1k", "pretrained": True}
    recipe = read_recipe(small_recipe)
    (line,) = weight_lines(recipe, None)
    assert (line.state, "resnet18.a1_in1k.safetensors" in line.remedy) == ("problem", True)
    (own_cache / "weights").mkdir(parents=True)
    safetensors.torch.save_file({"x": torch.zeros(1)}, own_cache / "weights/resnet18.a1_in1k.safetensors")
    (line,) = weight_lines(recipe, None)
    assert line.state == "ok"


def test_the_output_folder_s_states(resolved: Recipe, small_recipe: dict[str, Any], tmp_path: Path) -> None:
    def state(folder: Path, recipe: Recipe = resolved) -> Line:
        return named(output_lines(recipe, folder, 1000), "output")

    folder = tmp_path / "run"
    assert "not there yet" in state(folder).text
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml_text.dump(resolved.as_dict()))
    assert "no checkpoint" in state(folder).text

    for steps in (3, 6):
        progress = {"position": {"steps": steps}}
        save_checkpoint(folder, nn.Linear(2, 2), {"state": {}}, progress, {})
    line = state(folder)
    assert (line.state, "goes on from update 6" in line.text) == ("ok", True)
    (folder / "checkpoint" / "weights.safetensors").write_bytes(b"damaged")
    line = state(folder)
    assert (line.state, "goes on from update 3" in line.text) == ("note", True)
    (folder / "checkpoint.previous" / "state.json").write_text("{")
    assert state(folder).state == "problem"

    small_recipe["train"]["seed"] = 5
    line = state(folder, read_recipe(small_recipe))
    assert (line.state, "another recipe" in line.text) == ("problem", True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "at work" in state(folder).text
    assert "at work" not in state(folder).text
    (tmp_path / "file").write_text("")
    assert state(tmp_path / "file").state == "problem"


def test_a_finished_run_and_a_full_disk_are_said(small_recipe: dict[str, Any], tmp_path: Path) -> None:
    small_recipe["train"]["max_steps"] = 1
    recipe = read_recipe(small_recipe)
    finetune(recipe, tmp_path / "done")
    lines = list(output_lines(recipe, tmp_path / "done", 2**60))
    assert "complete" in named(lines, "output").text
    assert named(lines, "room").state == "problem"
