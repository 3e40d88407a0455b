"""What ``import pugdft`` offers: light, lazy, and equal to what the commands give."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from bad_inputs.case import call
from small_runs import tiny_recipe

import pugdft
from pugdft.config import plugins, yaml
from pugdft.data import datasets
from pugdft.data.cache import prepare
from pugdft.data.datasets import open_source
from pugdft.errors import FaultsError, UserError
from pugdft.optim import methods
from pugdft.records import read_record, write_record

SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


@pytest.fixture(scope="module")
def runs(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of SGD and one of SAM, an epoch each."""
    folder = tmp_path_factory.mktemp("python") / "runs"
    for optimizer in ({"name": "sam", "base": SGD}, SGD):
        recipe = tiny_recipe(image_folder, optimizer, epochs=1)
        place = folder / str(optimizer["name"])
        run = pugdft.finetune(recipe, "train.batch_size=24", output=place, progress=False)
        assert run.record.status == "completed"
    return folder


def test_trackers_get_the_runs_numbers(image_folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(image_folder, SGD, epochs=1)
    pugdft.finetune(recipe, output=tmp_path / "run", progress=False, track=["tensorboard"])
    assert list(tmp_path.rglob("events.out.tfevents*"))
    with pytest.raises(UserError, match="--track: unknown tracker"):
        pugdft.finetune(recipe, output=tmp_path / "other", progress=False, track=["tensorbored"])


def test_import_is_light_and_knows_its_names() -> None:
    code = (
        "import sys, time; begin = time.process_time(); import pugdft; took = time.process_time() - begin; "
        "new = {'torch', 'numpy', 'pydantic', 'rich', 'typer'} & set(sys.modules); "
        "print(took); assert not new, new; assert set(pugdft.__all__) <= set(dir(pugdft))"
    )
    seconds = min(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
        for _ in range(3)
    )
    assert seconds <= 0.05


def test_every_name_exists_and_type_checkers_see_the_same() -> None:
    tree = ast.parse(Path(pugdft.__file__).read_text())
    seen = {
        alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pugdft")
        for alias in node.names
    }
    assert seen == pugdft._HOMES
    assert sorted(seen) == sorted(pugdft.__all__)
    for name in pugdft.__all__:
        assert getattr(pugdft, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'fintune'"):
        pugdft.fintune  # noqa: B018


def test_a_run_gives_its_model_with_the_recorded_accuracy(runs: Path, image_folder: Path) -> None:
    run = pugdft.load_run(runs / "sam")
    assert run.record.data is not None
    assert run.record.metrics is not None
    model, predictions = run.model(), run.predictions()
    store = prepare(open_source(str(image_folder)), 16)
    data = timm.data.resolve_model_data_config(model)
    pixels = torch.from_numpy(np.array(store.images("test"))).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(data[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        classes = model((pixels - mean) / std).argmax(1).numpy()
    assert (classes == predictions.prediction).all()
    assert (classes == store.labels("test")).mean() == run.record.metrics.test.top1  # type: ignore[union-attr]
    with pytest.raises(UserError, match="stores no predictions of a validation split"):
        run.predictions("validation")


def test_runs_become_a_table(runs: Path) -> None:
    pandas = pytest.importorskip("pandas")
    found = pugdft.load_runs(runs)
    table = found.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert len(found) == len(table) == 2
    assert set(table["optimizer"]) == {"sam", "sgd"}
    top1 = {run.record.id: run.record.metrics.test.top1 for run in found}
    assert dict(zip(table["id"], table["test_top1"], strict=True)) == top1
    assert table.set_index("id")["gradient_passes"].to_dict() == {
        run.record.id: run.record.cost.gradient_passes for run in found
    }
    assert len(found[:1]) == 1
    assert "<th>test_top1</th>" in found[0]._repr_html_()


def test_without_pandas_one_sentence_names_the_extra(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install 'pugdft\[pandas\]'"):
        pugdft.load_runs(runs).to_pandas()


def test_compare_says_what_the_command_says(runs: Path) -> None:
    comparison = pugdft.compare("sam", "sgd", runs, margin=0.5)
    done = call(("compare", "sam", "sgd", "--records", str(runs), "--margin", "0.5"))
    assert str(comparison) == done.out.rstrip("\n")
    as_json = call(("compare", "sam", "sgd", "--records", str(runs), "--margin", "0.5", "--format", "json"))
    assert comparison.facts == json.loads(as_json.out)
    with pytest.raises(UserError, match='unknown metric "top2"'):
        pugdft.compare("sam", "sgd", runs, metric="top2")


def test_recipes_and_mistakes(tmp_path: Path, runs: Path) -> None:
    recipe = pugdft.load_recipe("quickstart", "train.epochs=1")
    assert (recipe.train.epochs, recipe.data.name) == (1, "bundled")
    with pytest.raises(FaultsError, match="Did you mean"):
        pugdft.load_recipe("quickstart", "train.epoch=1")
    with pytest.raises(UserError, match=r"no record\.yaml here"):
        pugdft.load_run(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        pugdft.load_runs(tmp_path / "nowhere")
    (tmp_path / "bare").mkdir()
    record = read_record(runs / "sgd" / "record.yaml")
    record.artifacts = {}
    write_record(record, tmp_path / "bare")
    with pytest.raises(UserError, match="no stored weights"):
        pugdft.load_run(tmp_path / "bare").model()


# --- other packages ----------------------------------------------------------------------------------------

PACKAGE = '''
import os
from pathlib import Path

import torch

from pugdft.data.datasets import KnownDataset
from pugdft.optim.combine import Weighted
from pugdft.optim.directions import Gradient
from pugdft.optim.methods import Method
from pugdft.optim.schedules import as_radius


def half_sam(*, rho: float = 0.1) -> Method:
    """The mean of both gradients.

    Cost: 2 passes a step, 1 copy of the parameters.
    """
    return Method(Gradient(), as_radius(rho), combine=Weighted(0.5, 0.5))


class Descent(torch.optim.SGD):
    """Gradient descent under another name."""


def insects() -> KnownDataset:
    return KnownDataset(folder=Path(os.environ["INSECTS"]))


def untyped(**options):
    raise SystemExit("was called")


def needy(*, rho: float) -> Method:
    return Method(Gradient(), as_radius(rho))
'''


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path) -> Iterator[Path]:
    """An installed distribution that adds a method, a base and a data set."""
    site = tmp_path / "site"
    info = site / "acme_tools-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "acme_opt.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tools\nVersion: 1.2\n")
    (info / "RECORD").write_text("acme_opt.py,,\nacme_tools-1.2.dist-info/METADATA,,\n")
    (info / "entry_points.txt").write_text(
        "[pugdft.optimizers]\nhalf_sam = acme_opt:half_sam\ndescent = acme_opt:Descent\n"
        "sam = acme_opt:untyped\nbroken = acme_opt:nothing\n"
        "[pugdft.datasets]\ninsects = acme_opt:insects\n"
    )
    monkeypatch.setenv("INSECTS", str(image_folder))
    monkeypatch.syspath_prepend(str(site))
    forget()
    yield site
    sys.modules.pop("acme_opt", None)
    forget()


def forget() -> None:
    """Forget what packages have provided so far."""
    plugins.provided.cache_clear()
    plugins.find.cache_clear()
    plugins._origins.clear()


def test_other_packages_add_methods_bases_and_data_sets(package: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(Path("insects"), {"name": "half_sam", "base": {"name": "descent", "lr": 0.05}})
    run = pugdft.finetune(
        recipe, "train.epochs=1", "train.batch_size=24", output=tmp_path / "run", progress=False
    )
    origin = {"distribution": "acme-tools", "version": "1.2"}
    assert read_record(run.path).environment["extensions"] == {
        "half_sam": {"module": "acme_opt:half_sam", **origin},
        "descent": {"module": "acme_opt:Descent", **origin},
        "insects": {"module": "acme_opt:insects", **origin},
    }
    assert run.record.method.two_pass_fraction == 1
    # By its place, the same method makes the same updates.
    recipe["optimizer"]["name"] = "acme_opt:half_sam"
    again = pugdft.finetune(
        recipe, "train.epochs=1", "train.batch_size=24", output=tmp_path / "again", progress=False
    )
    assert again.record.metrics == run.record.metrics
    assert again.record.environment["extensions"]["acme_opt:half_sam"]["version"] == "1.2"
    assert call(("leaderboard", "check", str(tmp_path))).out.count(": OK\n") == 2
    listed = call(("optimizers", "ls")).out
    assert "\nhalf_sam " in listed
    assert "broken" not in listed
    assert "The mean of both gradients" in call(("optimizers", "show", "half_sam")).out
    own = pugdft.build_optimizer({"name": "sam", "base": SGD}, torch.nn.Linear(2, 1))
    assert own.method.perturbs, "a package cannot replace a method of ours"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme_opt:untyped", "must be a function `-> Method`"),
        ("acme_opt:needy", "whose options all have defaults"),
        ("acme_opt:nothing", "cannot be imported"),
        ("broken", "cannot be imported"),
        ("acme_opt.deeper:x", "cannot be imported"),
        ("os:system", "no installed package has the module os"),
        ("evil:attack", "no installed package has the module evil"),
        ("acme_opt:_hidden", "unknown optimizer"),
        ("../evil:attack", "unknown optimizer"),
        ("/tmp/evil.py:attack", "unknown optimizer"),
    ],
)
def test_only_functions_of_installed_packages_and_of_the_right_kind_are_called(
    name: str, said: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # as `python -m` does with the current folder
    recipe = tiny_recipe(Path("bundled"), {"name": name, "base": SGD})
    with pytest.raises(UserError, match=r"optimizer\.name: ") as refused:
        pugdft.load_recipe(recipe)
    assert said in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert "evil" not in sys.modules


def test_the_example_in_the_documents_is_accepted() -> None:
    text = (Path(__file__).parents[1] / "docs" / "extensions.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    scope: dict[str, Any] = {}
    exec(example, scope)
    assert methods._as_method("half_sam", scope["half_sam"]) is scope["half_sam"]
    assert scope["half_sam"]().expected_passes == 2
    assert datasets._as_dataset("insects", scope["insects"]).folder.name == "insects"  # type: ignore[union-attr]
    assert all(f'"{group}"' in text for group in plugins.GROUPS)


def test_a_data_set_of_another_kind_is_refused(package: Path) -> None:
    with pytest.raises(UserError, match=r"data\.name: \"acme_opt:Descent\": must be a KnownDataset"):
        open_source("acme_opt:Descent")


def test_reading_records_imports_nothing_that_they_name(
    package: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, run in enumerate(pugdft.load_runs(runs)):
        text = yaml.dump(run.record.model_dump(mode="json", by_alias=True))
        text = text.replace("name: sam", "name: acme_opt:half_sam").replace("insects", "acme_opt:insects")
        (tmp_path / f"theirs/{number}").mkdir(parents=True)
        (tmp_path / f"theirs/{number}/record.yaml").write_text(text)
    for command in (("leaderboard", "theirs"), ("leaderboard", "check", "theirs")):
        monkeypatch.chdir(tmp_path)
        done = call(command)
        assert "Traceback" not in done.err
    assert "acme_opt:half_sam" in call(("leaderboard", "theirs")).out
    assert "acme_opt" not in sys.modules


# --- the notebook ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_notebook_in_the_documents_runs_and_shows_its_progress(tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install 'pugdft[test]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install 'pugdft[test]'")
    import nbformat

    notebook = nbformat.read(Path(__file__).parents[1] / "docs" / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs would go stale"
    root = str(Path(__file__).parents[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", root)
        patch.setenv("OMP_NUM_THREADS", "1")
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
        )
        client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/plain", output.get("text", "")) for output in outputs]
    assert any(text.startswith("device ") for text in texts), "the run's header is shown in a notebook"
    assert any("epoch 6 done: " in text for text in texts)
    assert any("text/html" in output.get("data", {}) and "test_top1" in str(output) for output in outputs)
    assert {run.record.recipe["optimizer"]["name"] for run in pugdft.load_runs(tmp_path / "runs")} == {
        "sam", "adamw",
    }  # fmt: skip
