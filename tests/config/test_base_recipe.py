"""A recipe that begins with another one is the written-out recipe, to the digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pugdft.cli import recipes
from pugdft.config import yaml
from pugdft.config.load import bundled_recipes
from pugdft.errors import UserError
from pugdft.training.run import read_recipe

OWN = {
    "base": "resnet18_cifar10",
    "data": {"name": "bundled", "random_erasing": {"probability": 0.5}},
    "train": {"epochs": 3},
}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.dump(content))
    return path


def test_what_differs_is_laid_over_the_base_and_the_written_out_recipe_has_the_same_digest(
    tmp_path: Path,
) -> None:
    own = read_recipe(write(tmp_path / "own.yaml", OWN), ["train.seed=4"])
    start = read_recipe("resnet18_cifar10").as_dict()
    erasing = {"probability": 0.5, "mode": "const", "area": [0.02, 0.3333], "ratio": [0.3, 3.3333]}
    expected = start | {
        "data": start["data"] | {"name": "bundled", "random_erasing": erasing},
        "train": start["train"] | {"epochs": 3, "seed": 4},
    }
    assert own.as_dict() == expected
    written_out = read_recipe(write(tmp_path / "whole.yaml", own.as_dict()))
    assert written_out.digest() == own.digest() != read_recipe("resnet18_cifar10", ["train.seed=4"]).digest()


def test_a_chain_of_paths_is_read_from_the_folder_of_each_file(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "ours.yaml", OWN)
    write(tmp_path / "shared" / "deep" / "photos.yaml", {"base": "../ours.yaml", "train": {"epochs": 5}})
    last = write(tmp_path / "last.yaml", {"base": "shared/deep/photos.yaml", "train": {"batch_size": 7}})
    recipe = read_recipe(last)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.data.name) == (5, 7, "bundled")
    assert recipe.model.name == "resnet18.tv_in1k"


BASE = {"name": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    ("given", "resolved"),
    [
        ({"rho": 0.5}, {"name": "pugd", "rho": 0.5, "base": BASE}),
        ({"base": {"lr": 0.2}}, {"name": "pugd", "rho": 1.0, "base": BASE | {"lr": 0.2}}),
        # The radius of one method is never another's; the base stays.
        ({"name": "sam"}, {"name": "sam", "rho": 0.05, "base": BASE}),
        ({"name": "sam", "base": {"lr": 0.2}}, {"name": "sam", "rho": 0.05, "base": BASE | {"lr": 0.2}}),
        ({"base": {"name": "adamw", "lr": 1e-3}},
         {"name": "pugd", "rho": 1.0, "base": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}}),
        ({"name": "adamw", "lr": 1e-3}, {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01}),
        ({"rho": {"schedule": "cos", "min": 0.1, "max": 1}},
         {"name": "pugd", "rho": {"schedule": "cos", "min": 0.1, "max": 1}, "base": BASE}),
    ],
)  # fmt: skip
def test_another_optimizer_takes_over_no_options(
    given: dict[str, Any], resolved: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "own.yaml", {"base": "resnet18_cifar10", "optimizer": given})
    found = read_recipe(path).optimizer
    shown = {key: value for key, value in found.items() if key in resolved}
    shown |= {"base": {k: found["base"][k] for k in resolved["base"]}} if "base" in resolved else {}
    assert shown == resolved
    assert ("rho" in found) == ("rho" in resolved)


def test_the_cost_of_tuning_stays_with_the_optimizer_that_was_tuned(tmp_path: Path) -> None:
    tuned = read_recipe("resnet18_cifar10").as_dict() | {"tuning": {"trials": 3, "gradient_passes": 9}}
    write(tmp_path / "tuned.yaml", tuned)
    same = write(tmp_path / "same.yaml", {"base": "tuned.yaml", "train": {"epochs": 2}})
    other = write(tmp_path / "other.yaml", {"base": "tuned.yaml", "optimizer": {"name": "sam"}})
    assert read_recipe(same).tuning is not None
    assert read_recipe(other).tuning is None


def test_circles_long_chains_and_bases_that_are_not_there_are_refused_in_one_sentence(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(UserError) as error:
            read_recipe(path)
        return str(error.value)

    write(tmp_path / "a.yaml", {"base": "b.yaml"})
    write(tmp_path / "b.yaml", {"base": "./a.yaml"})
    assert refusal(tmp_path / "a.yaml").endswith("in a circle: a.yaml → b.yaml → a.yaml")
    for number in range(12):
        write(tmp_path / f"{number}.yaml", {"base": f"{number + 1}.yaml"})
    write(tmp_path / "12.yaml", OWN)
    assert "a chain of more than 8 recipes" in refusal(tmp_path / "0.yaml")
    assert read_recipe(tmp_path / "6.yaml").train.epochs == 3
    misspelt = refusal(write(tmp_path / "misspelt.yaml", {"base": "resnet18_cifar01"}))
    assert "misspelt.yaml: base: resnet18_cifar01: no such file or bundled recipe. Did you mean" in misspelt
    for odd in (3, None, "", ["resnet18_cifar10"], {"name": "x"}):
        assert "must be a bundled recipe's name or the path" in refusal(
            write(tmp_path / "odd.yaml", {"base": odd})
        )
    # A key of the base in the wrong form is told of the file that was given.
    assert refusal(write(tmp_path / "f.yaml", {"base": "resnet18_cifar10", "train": 3})).startswith(
        str(tmp_path / "f.yaml: train: ")
    )
    # A mapping, such as that of a foreign record, names no file to read.
    with pytest.raises(UserError, match="base: unknown key"):
        read_recipe({"base": str(tmp_path / "12.yaml")})


def test_the_bundled_recipes_are_complete_and_the_schema_of_files_knows_the_key(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from pugdft.config.load import find_recipe

    assert all("base" not in yaml.parse(find_recipe(name).read_text()) for name in bundled_recipes())
    recipes.print_schema()
    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["base"]["type"] == "string"
    assert schema["anyOf"][1]["required"] == ["model", "data", "optimizer"]
    for section, keys in {
        "DataSection": ("random_erasing", "color_jitter"),
        "ModelSection": ("drop_rate", "drop_path_rate", "args"),
        "TrainSection": ("freeze", "unfreeze_epoch", "head_epochs"),
    }.items():
        assert all(schema["$defs"][section]["properties"][key]["description"] for key in keys)
