"""Search files and arguments: those of pugdft fit, mistakes are explained before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tuning_runs import SMALL_GREEDY, Runs, Search, general, outputs_of

from pugdft.errors import UserError
from pugdft.tuning.space import bundled_searches, read_search


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(bundled_searches()))
def test_bundled_searches_are_read_and_fit_every_kind_of_method(
    name: str, search: Search, runs: Runs
) -> None:
    runs.response = lambda spec, seed: (0.5, 1.0)
    optimizers = "sgd,ugd,sam,asam,pugd,pugd_rs,gnp,gsam,looksam,amp,msam,wsam"
    tuned = search(optimizers, name, trials=2 if name == "general" else None)
    assert len({each.num_runs for each in tuned}) == 1
    assert "alpha" in next(each for each in tuned if each.label == "gsam").options


def test_bundled_searches_are_no_recipes() -> None:
    from pugdft.config.load import bundled_recipes

    assert not set(bundled_searches()) & set(bundled_recipes())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]\n", ["search: is required: greedy, with stages, or general"]),
        ("search: gredy\n", ['search: must be greedy or general, not "gredy"']),
        ("search: greedy\nstage: []\n",
         ['stage: unknown key', 'Did you mean "stages"?', "stages: is required"]),
        ("search: greedy\nstages: [1, {}]",
         ["stages.0: must be a mapping", "stages.1.option: is required"]),
        ("search: greedy\nequalize: 1\nstages: [{option: rho, values: [1], time: 2}]",
         ["equalize: must be true or false, not 1", 'stages.0.time: unknown key', 'Did you mean "times"?']),
        ("search: greedy\nstages: [{option: rho, values: [1], times: [1]}]",
         ["stages.0: expected either values or times"]),
        ("search: greedy\nstages: [{option: rho}]", ["stages.0: expected either values or times"]),
        ("search: greedy\nstages: [{option: rho, values: 1}, {option: a.b, values: []}]",
         ["stages.0.values: must be a list", "stages.1.option: must be",
          "stages.1.values: must not be empty"]),
        ("search: greedy\nstages: [{option: rho, times: [1, 0, -2, .inf, a]}]",
         ["greater than 0, not 0", "not -2", "must be a finite number, not Infinity", 'not "a"']),
        ("search: greedy\nstages: [{option: rho, values: [1, 1, .nan]}]",
         ["1 stands twice", "must be finite"]),
        ("search: greedy\nstages: [{option: rho, values: [1], with: base}]",
         ["base searches options of the base"]),
        ("search: greedy\nstages: [{option: base.lr, values: [1], with: bass}]",
         ["must be 'base' or 'method', not \"bass\". Did you mean \"base\"?"]),
        ("search: greedy\nstages: [{option: rho, values: [1]}, {option: base.lr, values: [1], with: base}, "
         "{option: base.momentum, values: [1]}]",
         ["stages.1.with: base must come before stages with the method (rho)"]),
        ("search: greedy\nstages: [{option: rho, values: [1]}, {option: rho, values: [2]}]",
         ['"rho" stands twice']),
        ("search: general\nsampler: tp\nspace: {}\n",
         ["sampler: must be 'tpe' or 'random', not \"tp\". Did you mean \"tpe\"?",
          "space: must not be empty"]),
        ("search: general\ntrials: 0\nseed: -1\nspace: {base.name: [1]}",
         ["trials: must be at least 1", "seed: must be",
          "space.base.name: must be an option"]),
        ("search: general\nspace: {rho: {low: 2, high: 1}, alpha: {low: 0, high: 1, log: true}}",
         ["rho: low (2) must be below high (1)", "alpha: low must be above 0 with log: true, not 0"]),
        ("search: general\nspace: {rho: {low: a, log: 1}, alpha: 3}",
         ["space.rho.low: must be a number", "space.rho.high: is required",
          "space.rho.log: must be", "space.alpha: must be a list"]),
        ("search: general\nspace: {rho: {times: {low: -1, high: 1}, log: true}, alpha: {lo: 1}}",
         ["space.rho.log: unknown key. Known: low, high, times", "must be above 0 with times",
          "space.alpha.lo: unknown key",
          'Did you mean "lo']),
        ("search: general\nspace: {rho: {times: 3}}", ["space.rho.times: must be a list, or {low"]),
        ("search: greedy\nsearch: general", ['the key "search" stands twice']),
    ],
)  # fmt: skip
def test_a_bad_search_file_is_explained_all_at_once(text: str, said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_search(str(path))
    for part in said:
        assert part in str(caught.value)
    assert all(line.startswith(str(path)) for line in str(caught.value).splitlines())


@pytest.mark.parametrize(
    ("optimizers", "text", "options", "said"),
    [
        ("sgd", "gredy", {}, ['no such file or bundled search', 'Did you mean "greedy"?']),
        ("sgd", "greedy", {"trials": 5}, ["--trials: greedy is a greedy search"]),
        ("sam", "search: greedy\nstages: [{option: roh, values: [1]}]\n", {},
         ["roh: no optimizer has this option", 'Did you mean "rho"?']),
        ("sgd,sam", "search: greedy\nstages: [{option: rho, values: [1]}]\n", {},
         ['"sgd" has none of the options that are searched']),
        ("sam,asam", "search: greedy\nstages: [{option: rho, values: [-1, word]}]\n", {},
         ['rho of "sam": optimizer.rho: must be', 'rho of "asam"', "word"]),
        ("sgd", "search: general\nspace: {base.lr: {low: -1, high: 1}}", {},
         ['base.lr of "sgd"', "at least 0"]),
        ("sgd", "search: general\nspace: {base.weight_decay: {times: [1, 2]}}", {},
         ["base.weight_decay", "is 0.0 untuned, which has no multiples"]),
        ("sam", "search: general\nspace: {trigger: {times: [1, 2]}}", {}, ["is None untuned"]),
        ("sgd", "greedy", {"seeds": "x"}, ["--seeds"]),
        ("pgud", "greedy", {}, ["--optimizers", "unknown optimizer"]),
        ("sgd", "greedy", {"overrides": ["train.epoch=1"]}, ["train.epoch: unknown key"]),
    ],
)  # fmt: skip
def test_a_mistake_in_the_arguments_is_said_before_anything_is_written(
    optimizers: str, text: str, options: dict[str, Any], said: list[str], search: Search, runs: Runs
) -> None:
    with pytest.raises(UserError) as caught:
        search(optimizers, text, **options)
    for part in said:
        assert part in str(caught.value)
    assert not runs.started
    assert not search.output.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"overrides": ["train.epochs=3"]}, "recipe.train.epochs: 2 there, 3 here"),
        ({"seeds": "0-1"}, r"seeds: \[0\] there, \[0, 1\] here"),
        ({"text": SMALL_GREEDY.replace("0.5", "0.4")}, "search.stages.0.times.0: 0.5 there, 0.4 here"),
        ({"text": general(3)}, "search.search: 'greedy' there, 'general' here"),
        ({"overrides": ["data.validation=0.1"]}, "recipe.data.validation: 0.0 there, 0.1 here"),
    ],
)
def test_another_question_in_the_same_folder_is_refused_with_the_difference(
    changed: dict[str, Any], said: str, search: Search, runs: Runs
) -> None:
    search("sgd", SMALL_GREEDY)
    written, number = outputs_of(search.output), len(runs.started)
    with pytest.raises(UserError, match=f"holds another search:\n(.*\n)*  {said}"):
        search("sgd", changed.pop("text", SMALL_GREEDY), **changed)
    assert (outputs_of(search.output), len(runs.started)) == (written, number)
