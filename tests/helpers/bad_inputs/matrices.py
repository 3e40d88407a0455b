"""The files of ``bench`` and ``tune``: a matrix of runs, and a search."""

from __future__ import annotations

from typing import Any

from bad_inputs.case import Case
from bad_inputs.files import both, file, recipe
from pugdft.config import yaml


def bench(name: str, content: Any, *said: str, lines: int = 1) -> Case:
    """A bench file of this content, over two optimizers unless it says otherwise."""
    text = (
        content
        if isinstance(content, str | bytes)
        else yaml.dump({"recipes": ["r.yaml"], "optimizers": ["sgd", "sam"], **content})
    )
    return Case(
        f"bench file: {name}", ("bench", "b.yaml"), said, both(recipe(), file("b.yaml", text)), lines=lines
    )


def search(name: str, text: str | bytes, *said: str, optimizers: str = "sam", lines: int = 1) -> Case:
    """A search file of this content."""
    command = ("tune", "r.yaml", "--optimizers", optimizers, "--search", "s.yaml")
    return Case(f"search file: {name}", command, said, both(recipe(), file("s.yaml", text)), lines=lines)


BENCH = [
    bench(
        "a typing mistake",
        {"optimisers": ["sgd"]},
        "b.yaml: optimisers: unknown key",
        'Did you mean "optimizers"?',
    ),
    bench(
        "a number",
        {"optimizers": [3]},
        "b.yaml: optimizers.0: must be an entry such as sam[rho=0.1] or {name: sam, rho: 0.1}, not 3",
    ),
    bench("a word for a list", {"optimizers": "sgd"}, 'b.yaml: optimizers: must be a list, not "sgd"'),
    bench("an empty list", {"optimizers": []}, "b.yaml: optimizers: must not be empty"),
    bench("no entry's name", {"optimizers": [{"rho": 1}]}, "b.yaml: optimizers.0: name: is required"),
    bench(
        "an unknown entry", {"optimizers": ["sgd", "smm"]}, 'b.yaml: optimizers.1: "smm": unknown optimizer'
    ),
    bench("an option out of range", {"optimizers": [{"name": "sam", "rho": -1}]}, "rho: must be at least 0"),
    bench("seeds of words", {"seeds": ["a"]}, "b.yaml: seeds: must be a range such as 0-4"),
    bench("a mapping for seeds", {"seeds": {"a": 1}}, "b.yaml: seeds: must be a range such as"),
    bench("a seed below 0", {"seeds": [-1]}, "b.yaml: seeds: "),
    bench("a recipe that is not there", {"recipes": ["nowhere"]}, "nowhere: no such file or bundled recipe"),
    bench("a recipe at a long path", {"recipes": ["a/" * 3000]}, "no such file or bundled recipe"),
    bench("a recipe with a null", {"recipes": ["a\0b"]}, "no such file or bundled recipe"),
    bench("a number for a recipe", {"recipes": [3]}, "b.yaml: recipes.0: must be text, not 3"),
    bench(
        "a bad override",
        {"overrides": ["train.epochs=0"]},
        'override "train.epochs=0": train.epochs: must be',
    ),
    bench("an override without a value", {"overrides": ["train"]}, 'override "train": expected KEY=VALUE'),
    bench("a budget of hours", {"budget": "hours"}, "b.yaml: budget: must be 'epochs' or 'passes', not"),
    bench(
        "a tuning that is none",
        {"optimizers": [{"name": "sgd", "lr": 1, "tuning": 3}]},
        "tuning: must be a mapping",
    ),
    bench(
        "code",
        "optimizers: !!python/object/apply:os.mkdir [harm]\n",
        "b.yaml: line 1, column 13: could not determine",
    ),
    bench("binary", bytes(range(256)), "b.yaml: is not text in UTF-8"),
]

SEARCH = [
    search("a list", "[1]\n", "s.yaml: search: is required"),
    search("nothing", "", "s.yaml: search: is required"),
    search("binary", bytes(range(256)), "s.yaml: is not text in UTF-8"),
    search("code", "search: !!python/object/apply:os.mkdir [harm]\n", "s.yaml: line 1, column 9"),
    search(
        "a typing mistake",
        "search: greedy\nstage: []\n",
        "s.yaml: stage: unknown key",
        'Did you mean "stages"?',
        lines=2,
    ),
    search(
        "a bound of 400 digits",
        f"search: general\nspace: {{rho: {{low: 1, high: 1{'0' * 400}}}}}\n",
        "s.yaml: space.rho.high: must be a number",
    ),
    search(
        "a factor of 400 digits",
        f"search: greedy\nstages: [{{option: rho, times: [1, 1{'0' * 400}]}}]\n",
        "s.yaml: stages.0.times.1: must be a number",
    ),
    search(
        "a list for a sampler",
        "search: general\nsampler: [tpe]\nspace: {rho: [1]}\n",
        "s.yaml: sampler: must be 'tpe' or 'random'",
    ),
    search(
        "a number for an option", "search: general\nspace: {1: [1]}\n", "s.yaml: space.1: keys must be words"
    ),
    search(
        "an option of nobody",
        "search: greedy\nstages: [{option: roh, values: [1]}]\n",
        "--search s.yaml: roh: no optimizer has this option",
    ),
    search(
        "a value that is refused",
        "search: greedy\nstages: [{option: rho, values: [-1]}]\n",
        'rho of "sam": optimizer.rho: must be at least 0',
    ),
    search(
        "trials without end",
        "search: general\ntrials: 1000000000\nspace: {rho: [1]}\n",
        "s.yaml: trials: must be at most 100000, not 1000000000",
    ),
]

CASES = [*BENCH, *SEARCH]
