"""Which runs may stand in one ranking, and which of them are seeds of the same entry.

A group is data set × model × protocol, where the protocol is everything in the resolved recipe but the
optimizer, the seed, the two names, and how often and in what batches the test split is evaluated, which
leaves the last epoch's top-1 as it is. (``micro_batch_size`` does not: BatchNorm sees it.) Nothing here
depends on the order in which records were read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from pugdft.leaderboard.collect import Loaded
from pugdft.leaderboard.labels import canonical, differing, entry_labels, protocol_line, shown
from pugdft.leaderboard.printable import printable
from pugdft.record import RunRecord

_NO_PROTOCOL = {
    ("model", "name"),
    ("data", "name"),
    ("train", "seed"),
    ("train", "eval_batch_size"),
    ("train", "eval_every"),
}


@dataclass(frozen=True)
class RunEntry:
    """The runs of one optimizer with its options.

    Attributes:
        label: unique in its group unless two option names are themselves confusable.
        spec: the whole ``optimizer`` mapping, which is the entry's identity.
        completed: one run a seed, by seed.
        unfinished: every run that ended otherwise.
        notes: what a reader must know, such as a seed that ran twice.
    """

    label: str
    spec: Mapping[str, Any]
    completed: tuple[RunRecord, ...]
    unfinished: tuple[RunRecord, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but the optimizer and the seed.

    Attributes:
        protocol: one line for people, different for each group of the same data set and model.
        recipe: the shared part of the recipes.
    """

    dataset: str
    model: str
    protocol: str
    recipe: Mapping[str, Any]
    entries: tuple[RunEntry, ...]
    notes: tuple[str, ...]


def group_runs(loaded: Iterable[Loaded]) -> list[RunGroup]:
    """The groups, by data set, model and protocol.

    Runs on data of one name but with different pixels or labels (``data.sha256``) are different groups:
    their test splits are not the same. A run that ended before its data was read goes with the others of
    its recipe if those agree, else into a group of its own.
    """
    buckets: dict[tuple[str, str, str], list[RunRecord]] = defaultdict(list)
    for record in sorted((each.record for each in loaded), key=lambda record: record.id):
        shared = canonical(shared_recipe(record.recipe))
        buckets[_dataset_name(record), str(record.recipe["model"]["name"]), shared].append(record)
    groups = []
    for (dataset, model, _), records in buckets.items():
        recipe = shared_recipe(records[0].recipe)
        for digest, runs in _by_data(records).items():
            line = protocol_line(recipe) + (f", data {printable(digest[:8])}" if digest else "")
            entries, notes = _entries(runs), _group_notes(runs)
            groups.append(RunGroup(printable(dataset), printable(model), line, recipe, entries, notes))
    return sorted(_told_apart(groups), key=lambda group: (group.dataset, group.model, group.protocol))


def shared_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what may differ inside a group, and the names that the group is keyed by."""
    return {
        section: {key: item for key, item in value.items() if (section, key) not in _NO_PROTOCOL}
        if isinstance(value, Mapping)
        else value
        for section, value in recipe.items()
        if section != "optimizer"
    }


def _dataset_name(record: RunRecord) -> str:
    """The source's name; before the data was read, the recipe's, whose path is no identity."""
    name = str(record.recipe["data"]["name"])
    return record.data.name if record.data else PurePath(name).name or name


def _by_data(records: Sequence[RunRecord]) -> dict[str, list[RunRecord]]:
    """Runs by their data's digest; the key is empty where there is no need to tell data apart."""
    digests = {record.data.sha256 for record in records if record.data}
    if len(digests) <= 1:
        return {"": list(records)}
    parts: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        parts[record.data.sha256 if record.data else "unknown"].append(record)
    return parts


def _told_apart(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """The groups, with what differs added to protocol lines that would otherwise be equal."""
    alike: dict[tuple[str, str, str], list[RunGroup]] = defaultdict(list)
    for group in groups:
        alike[group.dataset, group.model, group.protocol].append(group)
    result = []
    for same in alike.values():
        for group, settings in zip(same, differing([group.recipe for group in same]), strict=True):
            words = [f"{key}={shown(value)}" for key, value in settings.items()]
            result.append(replace(group, protocol=printable(", ".join([group.protocol, *words]))))
    return result


def _entries(records: Sequence[RunRecord]) -> tuple[RunEntry, ...]:
    by_spec: dict[str, list[RunRecord]] = defaultdict(list)
    for record in records:
        by_spec[canonical(record.recipe["optimizer"])].append(record)
    ordered = [by_spec[key] for key in sorted(by_spec)]
    specs = [runs[0].recipe["optimizer"] for runs in ordered]
    entries = []
    for label, spec, runs in zip(entry_labels(specs), specs, ordered, strict=True):
        completed, notes = _one_run_a_seed(run for run in runs if run.status == "completed")
        unfinished = tuple(run for run in runs if run.status != "completed")
        entries.append(RunEntry(label, spec, completed, unfinished, notes))
    return tuple(entries)


def _one_run_a_seed(runs: Iterable[RunRecord]) -> tuple[tuple[RunRecord, ...], tuple[str, ...]]:
    """One run of each seed: of repeated ones the last finished. A second one is no second sample."""
    by_seed: dict[int, list[RunRecord]] = defaultdict(list)
    for run in runs:
        by_seed[run.seed].append(run)
    chosen, notes = [], []
    for seed, repeated in sorted(by_seed.items()):
        newest = max(repeated, key=lambda run: (str(run.environment.get("finished") or ""), run.id))
        chosen.append(newest)
        if len(repeated) > 1:
            notes.append(f"seed {seed} ran {len(repeated)} times; {printable(newest.id)}, the newest, counts")
    return tuple(chosen), tuple(notes)


def _group_notes(records: Sequence[RunRecord]) -> tuple[str, ...]:
    """Doubts about the whole comparison: one name of pretrained weights, several contents."""
    pretrained = [run for run in records if run.model and run.recipe["model"].get("pretrained") is not False]
    digests = {run.model.weights_sha256 for run in pretrained if run.model}
    if len(digests) <= 1:
        return ()
    return (f"the runs started from {len(digests)} different sets of weights (model.weights_sha256)",)
