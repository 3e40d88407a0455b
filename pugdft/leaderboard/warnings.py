"""Warnings about a comparison: conditions that its runs do not share, and what its data cannot show."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pugdft.errors import counted, printable
from pugdft.leaderboard.entry import TuningBudget
from pugdft.leaderboard.grouping import RunEntry, shown
from pugdft.leaderboard.stats import LEVEL, MeanDifference
from pugdft.predictions import METRICS
from pugdft.records import LARGEST

if TYPE_CHECKING:
    from pugdft.leaderboard.ranking import Measured

# Fields of record.environment, with what a difference may change.
_ENVIRONMENT = {
    "pugdft": "the version of pugdft",
    "torch": "the version of torch",
    "timm": "the version of timm",
    "precision": "the precision",
    "processes": "the number of processes",
    "device_name": "the device, so that times say nothing",
}
# What runs of equal seeds must share to be pairs: section and field of the record, and its name for people.
_SHARED_BY_SEED = {
    ("data", "split_sha256"): "training images",
    ("data", "order_sha256"): "order of the images",
    ("data", "augmentation_sha256"): "augmentation",
    ("model", "head_sha256"): "initial head",
}
MORE_IMAGES = "so small a difference{} would need more test images, whatever the number of seeds"
_EQUAL_BUDGETS = 1.1  # ratio up to which budgets count as equal
_MOST_NAMED = 6
_LONGEST_VALUE = 60


def listed(words: Iterable[object]) -> str:
    """Join the first few words, and say how many more there are."""
    texts = list(map(str, words))
    more = f" and {len(texts) - _MOST_NAMED} more" if len(texts) > _MOST_NAMED else ""
    return ", ".join(texts[:_MOST_NAMED]) + more


def condition_warnings(entries: Sequence[RunEntry]) -> list[str]:
    """Describe unequal weights, tuning, software and hardware of completed runs."""
    runs = [(entry.label, run.record) for entry in entries for run in entry.completed]
    notes = []
    weights = {
        record.model.weights_sha256
        for _, record in runs
        if record.model and record.recipe["model"].get("pretrained") is not False
    }
    if len(weights) > 1:
        notes.append(f"the runs started from {len(weights)} different sets of weights (model.weights_sha256)")
    notes += _tuning([entry for entry in entries if entry.completed])
    for key, name in _ENVIRONMENT.items():
        values = [(record.environment.get(key), label) for label, record in runs]
        known = dict.fromkeys(pair for pair in values if isinstance(pair[0], str | int | float))
        found = [(printable(shown(value))[:_LONGEST_VALUE], label) for value, label in known]
        if len({value for value, _ in found}) > 1:
            notes.append(f"the runs differ in {name}: {_by_value(found)}")
    # Code that is in no commit cannot be obtained again.
    modified = [label for label, record in runs if str(record.environment.get("git")).endswith("-dirty")]
    if modified:
        notes.append(f"run from a modified checkout (environment.git): {listed(dict.fromkeys(modified))}")
    return notes


def kept_notes(recipe: Mapping[str, Any]) -> list[str]:
    """Say which epoch's and which weights' metrics a group has, where these are not the last epoch's own."""
    train, notes = recipe.get("train"), []
    if isinstance(train, Mapping) and train.get("keep") == "best":
        notes.append("the metrics are of each run's best epoch on held-out images (train.keep: best)")
    if isinstance(train, Mapping) and train.get("ema"):
        notes.append("the metrics are of averaged weights (train.ema)")
    return notes


def _tuning(entries: Sequence[RunEntry]) -> list[str]:
    budgets = [tuning_budget(entry)[0] for entry in entries]
    known = [(budget.trials, budget.gradient_passes) for budget in budgets if budget]
    is_equal = all(max(column) <= _EQUAL_BUDGETS * min(column) for column in zip(*known, strict=True))
    if not known or (is_equal and len(known) == len(budgets)):
        return []
    found = []
    for entry, budget in zip(entries, budgets, strict=True):
        text = "none on record"
        if budget:
            trials = counted(budget.trials, "trial")
            text = f"{trials} of {budget.gradient_passes:,.0f} gradient passes in all"
        found.append((text, entry.label))
    return [f"tuning budgets differ: {_by_value(found)}"]


def search_notes(measured: Sequence[Measured]) -> list[str]:
    """Say that ranks speak of the options that a search chose, and how far the search's own noise reaches."""
    tuned, reach = [], []
    for each in measured:
        budget = tuning_budget(each.runs)[0]
        if budget is None or budget.trials < 2:
            continue
        tuned.append(each.runs.label)
        if len(scores := each.scores("top1")) > 1:
            # Two trials of equal options differ at least as much as two seeds do.
            reach.append(100 * float(np.std(list(scores.values()), ddof=1)) * math.sqrt(2))
    if not tuned:
        return []
    noise = (
        f"; two trials of equal options differ by about {min(reach):.1f} to {max(reach):.1f} points"
        if reach
        else ""
    )
    return [
        f"a search chose the options of {listed(tuned)}: ranks are of these options, and another search may "
        f"choose others{noise}"
    ]


def _by_value(found: Sequence[tuple[str, str]]) -> str:
    """Write the labels behind each value: ``2.10 (sam, sgd); 2.9 (pugd)``."""
    labels: dict[str, dict[str, None]] = defaultdict(dict)  # as sets that keep their order
    for value, label in found:
        labels[value][label] = None
    return "; ".join(f"{value} ({listed(each)})" for value, each in sorted(labels.items()))


def tuning_budget(entry: RunEntry) -> tuple[TuningBudget | None, list[str]]:
    """Return the tuning budget of an entry's runs, the largest if they differ, and a note if they do."""
    budgets = set()
    for run in entry.completed:
        if isinstance(tuning := run.record.recipe.get("tuning"), Mapping):
            costs: list[Any] = [tuning.get("trials"), tuning.get("gradient_passes")]
            if all(type(cost) in (int, float) and 0 <= cost <= LARGEST for cost in costs):
                budgets.add(TuningBudget(int(costs[0]), float(costs[1])))
    most = max(budgets, key=lambda budget: (budget.gradient_passes, budget.trials), default=None)
    return most, ["its runs name different tuning budgets; the largest is shown"] * (len(budgets) > 1)


def unpaired(entries: Sequence[RunEntry]) -> tuple[np.ndarray | None, list[str]]:
    """Mark pairs of entries whose equal seeds had other random draws, in a square matrix if any; say why."""
    matrix = np.zeros((len(entries), len(entries)), dtype=bool)
    notes = []
    for (section, field), name in _SHARED_BY_SEED.items():
        # Of each seed, the digests by the positions of the entries; what is not on record counts as equal.
        by_seed: dict[int, dict[int, str]] = defaultdict(dict)
        for position, entry in enumerate(entries):
            for run in entry.completed:
                if digest := getattr(getattr(run.record, section), field, None):
                    by_seed[run.record.seed][position] = digest
        differing = sorted(seed for seed, digests in by_seed.items() if len(set(digests.values())) > 1)
        for seed in differing:
            positions, digests = list(by_seed[seed]), np.array(list(by_seed[seed].values()))
            matrix[np.ix_(positions, positions)] |= digests[:, None] != digests
        if differing:
            notes.append(
                f"the {name} of seed {listed(differing)} differs between entries ({section}.{field}): "
                "pairing by seed is not justified, and those entries are compared as unpaired"
            )
    return (matrix if notes else None), notes


def planned(entries: Sequence[RunEntry]) -> tuple[int, list[str]]:
    """Count the steps in which the records' seeds were planned; compare what was planned with what there is.

    A bench writes the seeds and the number of optimizers that it planned into each record. Runs of an entry
    with different plans were planned one after another: each time somebody may have looked.
    """
    looks, notes, num_optimizers = 1, [], 0
    missing: list[tuple[str, str]] = []
    for entry in entries:
        plans: set[tuple[int, ...]] = set()
        for record in (*(run.record for run in entry.completed), *entry.unfinished):
            plan = record.environment.get("planned")
            seeds = plan.get("seeds") if isinstance(plan, Mapping) else None
            if isinstance(seeds, list) and all(type(seed) is int for seed in seeds):
                plans.add(tuple(seeds))
            count = plan.get("optimizers") if isinstance(plan, Mapping) else None
            num_optimizers = max(num_optimizers, count if type(count) is int else 0)
        looks = max(looks, len(plans))
        present = {run.record.seed for run in entry.completed} | {each.seed for each in entry.unfinished}
        if plans and (absent := sorted({seed for plan in plans for seed in plan} - present)):
            missing.append((f"seed {listed(absent)}", entry.label))
        elif not plans and present and (gaps := sorted(set(range(min(present), max(present))) - present)):
            missing.append((f"no seed {listed(gaps)} between the others", entry.label))
    if missing:
        notes.append(f"planned or skipped, and not among these records: {_by_value(missing)}")
    if num_optimizers > len(entries):
        notes.append(
            f"{num_optimizers} optimizers were planned, {len(entries)} are here: the best of many flatter"
        )
    if looks > 1:
        notes.append(
            f"the seeds were planned in {looks} steps, so this counts as one of {looks} looks: p-values are "
            "larger by Pocock's bound"
        )
    return looks, notes


_WIDER = 3.0  # beyond this ratio of spreads, equal optimizers are told apart in up to 9 % instead of 5 %


def spread_notes(measured: Sequence[Measured], metric: str) -> list[str]:
    """Name entries of three seeds or more that spread much more than the others do, and not by chance."""
    from scipy.special import fdtrc

    known = {each.runs.label: list(each.scores(metric).values()) for each in measured}
    variances = {label: float(np.var(values, ddof=1)) for label, values in known.items() if len(values) > 2}
    freedoms = {label: len(known[label]) - 1 for label in variances}
    wide = []
    for label, variance in variances.items():
        freedom = sum(freedoms.values()) - freedoms[label]
        rest = sum(variances[each] * freedoms[each] for each in variances if each != label)
        if not rest:
            continue
        ratio = variance * freedom / rest
        if ratio > _WIDER**2 and fdtrc(freedoms[label], freedom, ratio) <= LEVEL:
            wide.append(f"{label} ({math.sqrt(ratio):.1f} times)")
    if not wide:
        return []
    return [
        f"scores over seeds spread over {_WIDER:g} times as much as the others': {listed(wide)}; with few "
        "seeds, p-values near 5 % are too small there"
    ]


def scope_notes(measured: Sequence[Measured], metric: str) -> list[str]:
    """Say to which seeds and images the ranks of comparable entries are limited."""
    several = [each for each in measured if len(each.runs.completed) > 1]
    if len(several) < 2:
        return []
    notes = []
    if len({frozenset(each.values[metric]) for each in several}) > 1:
        notes.append(
            "entries ran different seeds: those that two share are pairs, the others are compared as unpaired"
        )
    without = [each.runs.label for each in several if each.images is None]
    if METRICS[metric].per_image is None:
        notes.append(f"{METRICS[metric].name} is no mean over images: ranks speak of these test images only")
    elif without:
        whose = "" if len(without) == len(several) else f" of {listed(without)}"
        notes.append(f"without stored predictions, ranks{whose} speak of these test images only")
    return notes


def difference_limits(
    difference: MeanDifference, measured: Sequence[Measured], metric: str, needs_images: bool
) -> list[str]:
    """Say what the data of a comparison of two cannot show."""
    notes = []
    if not difference.testable:
        notes.append(f"no claim about the optimizers: {why_untestable(difference)}")
    common = counted(difference.num_pairs, "common seed")
    if not difference.paired:
        notes.append("no seed is a pair, so the runs are compared as unpaired, which takes more seeds")
    elif difference.share < 1:
        notes.append(
            f"{difference.share:.1%} of the difference are that of {common}, the rest is that of the other "
            "seeds; the means are over all"
        )
    elif any(len(each.runs.completed) > difference.num_seeds for each in measured):
        notes.append(f"the difference is over {common}, the means are over all")
    if METRICS[metric].per_image is None:
        notes.append(f"{METRICS[metric].name} is no mean over images: this speaks of these test images only")
    elif any(each.images is None for each in measured):
        notes.append("without stored predictions on both sides, this speaks of these test images only")
    if needs_images:
        notes.append(MORE_IMAGES.format(""))
    return notes


def why_untestable(difference: MeanDifference) -> str:
    if difference.num_seeds < 2:
        kind = "common seed" if difference.paired else "seed on one side"
        return f"there is one {kind}, and nothing tells how much another would differ"
    return "nothing spreads, so there is nothing to hold the difference against"
