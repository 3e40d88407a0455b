"""Which runs may stand in one ranking, and which of them are seeds of the same entry.

A group is data set × model × protocol, where the protocol is everything in the resolved recipe but the
optimizer, how it was tuned, the seed, the two names, how often and in what batches the test split is
evaluated, which leaves the last epoch's top-1 as it is, and what makes a run faster but for rounding.
(``micro_batch_size`` is none of these: BatchNorm sees it.)
Runs of a search, judged on held-out images alone, stand in no group. Nothing here depends on the order in
which records were read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from pugdft.errors import counted
from pugdft.leaderboard.collect import Loaded
from pugdft.leaderboard.labels import canonical, differing, entry_labels, protocol_line, shown
from pugdft.leaderboard.printable import printable
from pugdft.recipe import DataSection, ModelSection, ScheduleSection, TrainSection
from pugdft.record import RunRecord

_NO_PROTOCOL = {
    ("model", "name"),
    ("data", "name"),
    ("train", "seed"),
    ("train", "eval_batch_size"),
    ("train", "eval_every"),
    ("train", "evaluate"),  # runs on held-out images alone are in no group
    ("train", "performance"),
    ("train", "checkpoint_minutes"),
    ("data", "workers"),
    ("data", "storage"),
}
_MOST_NAMED = 6

# What a run does without a key: an older record lacks the newer ones.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {key: item.default for key, item in section.model_fields.items() if not item.is_required()}
    for name, section in (
        ("model", ModelSection),
        ("data", DataSection),
        ("schedule", ScheduleSection),
        ("train", TrainSection),
    )
}


@dataclass(frozen=True)
class RunEntry:
    """The runs of one optimizer with its options.

    Attributes:
        label: unique in its group unless two option names are themselves confusable.
        spec: the whole ``optimizer`` mapping, which is the entry's identity.
        completed: one run a seed, by seed, with the files they were read from.
        unfinished: every run that ended otherwise.
        notes: what a reader must know, such as a seed that ran twice.
    """

    label: str
    spec: Mapping[str, Any]
    completed: tuple[Loaded, ...]
    unfinished: tuple[RunRecord, ...]
    notes: tuple[str, ...]

    def lost_seeds(self) -> dict[str, list[int]]:
        """Seeds that no run completed, by how a run of them ended."""
        completed = {run.record.seed for run in self.completed}
        lost: dict[str, set[int]] = defaultdict(set)
        for record in self.unfinished:
            if record.seed not in completed:
                lost[record.status].add(record.seed)
        return {status: sorted(seeds) for status, seeds in sorted(lost.items())}


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but the optimizer and the seed.

    Attributes:
        protocol: one line for people, different for each group of the same data set and model.
        recipe: the shared part of the recipes.
        data_sha256: of the images, None if no run came as far as to read them.
        notes: what else there is of the same data set and model.
    """

    dataset: str
    model: str
    protocol: str
    recipe: Mapping[str, Any]
    entries: tuple[RunEntry, ...]
    data_sha256: str | None = None
    notes: tuple[str, ...] = ()


def is_trial(record: RunRecord) -> bool:
    """Whether the run belongs to a search: it was judged on held-out images and never saw the test split."""
    train = record.recipe.get("train")
    return isinstance(train, Mapping) and train.get("evaluate") == "validation"


def group_runs(loaded: Iterable[Loaded]) -> list[RunGroup]:
    """The groups, by data set, model and protocol.

    Runs on data of one name but with different pixels or labels (``data.sha256``) are different groups:
    their test splits are not the same. A run that ended before its data was read goes with the others of
    its recipe if those agree, else into a group of its own.
    """
    buckets: dict[tuple[str, str, str], list[Loaded]] = defaultdict(list)
    num_trials: Counter[tuple[str, str]] = Counter()
    for run in sorted(loaded, key=lambda run: run.record.id):
        names = _dataset_name(run.record), str(run.record.recipe["model"]["name"])
        if is_trial(run.record):
            num_trials[printable(names[0]), printable(names[1])] += 1
        else:
            buckets[*names, canonical(shared_recipe(run.record.recipe))].append(run)
    groups = []
    for (dataset, model, _), runs in buckets.items():
        recipe = shared_recipe(runs[0].record.recipe)
        parts = _by_data(runs)
        for digest, part in parts.items():
            line = protocol_line(recipe) + (f", data {printable(digest[:8])}" if len(parts) > 1 else "")
            groups.append(
                RunGroup(
                    printable(dataset), printable(model), line, recipe, _entries(part), _data_sha256(part)
                )
            )
    ordered = sorted(_told_apart(groups), key=lambda group: (group.dataset, group.model, group.protocol))
    return _with_neighbours(ordered, num_trials)


def shared_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe without what may differ inside a group, and the names that the group is keyed by.

    What a recipe leaves out, a key or a whole section, stands in it with its default.
    """
    return {
        section: {
            key: item
            for key, item in {**_DEFAULTS.get(section, {}), **value}.items()
            if (section, key) not in _NO_PROTOCOL
        }
        if isinstance(value, Mapping)
        else value
        for section, value in {**{name: {} for name in _DEFAULTS}, **recipe}.items()
        if section not in ("optimizer", "tuning")
    }


def _dataset_name(record: RunRecord) -> str:
    """The source's name; before the data was read, the recipe's, whose path is no identity."""
    name = str(record.recipe["data"]["name"])
    return record.data.name if record.data else PurePath(name).name or name


def _by_data(runs: Sequence[Loaded]) -> dict[str, list[Loaded]]:
    """Runs by their data's digest; a single key where there is no need to tell data apart."""
    digests = {run.record.data.sha256 for run in runs if run.record.data}
    if len(digests) <= 1:
        return {"": list(runs)}
    parts: dict[str, list[Loaded]] = defaultdict(list)
    for run in runs:
        parts[run.record.data.sha256 if run.record.data else "unknown"].append(run)
    return parts


def _data_sha256(runs: Sequence[Loaded]) -> str | None:
    return next((run.record.data.sha256 for run in runs if run.record.data), None)


def _with_neighbours(groups: Sequence[RunGroup], num_trials: Mapping[tuple[str, str], int]) -> list[RunGroup]:
    """The groups, with what else there is of their data set and model: other images, runs of a search."""
    digests: dict[tuple[str, str], set[str]] = defaultdict(set)
    for group in groups:
        if group.data_sha256:
            digests[group.dataset, group.model].add(group.data_sha256)
    result, told = [], set()
    for group in groups:
        names = group.dataset, group.model
        notes = []
        if group.data_sha256 and len(digests[names]) > 1:
            notes.append(
                f"other runs of {group.dataset} × {group.model} had other images (data.sha256); "
                "numbers of different groups cannot be compared"
            )
        if num_trials.get(names) and names not in told:
            told.add(names)
            notes.append(f"{counted(num_trials[names], 'run')} of a search, on held-out images, not shown")
        result.append(replace(group, notes=tuple(notes)))
    return result


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


def _entries(loaded: Sequence[Loaded]) -> tuple[RunEntry, ...]:
    by_spec: dict[str, list[Loaded]] = defaultdict(list)
    for run in loaded:
        by_spec[canonical(run.record.recipe["optimizer"])].append(run)
    ordered = [by_spec[key] for key in sorted(by_spec)]
    specs = [runs[0].record.recipe["optimizer"] for runs in ordered]
    entries = []
    for label, spec, runs in zip(entry_labels(specs), specs, ordered, strict=True):
        seeded, doubts = _by_recipes_seed(runs)
        completed, notes = _one_run_a_seed(run for run in seeded if run.record.status == "completed")
        unfinished = tuple(run.record for run in seeded if run.record.status != "completed")
        entries.append(RunEntry(label, spec, completed, unfinished, doubts + notes))
    return tuple(entries)


def _by_recipes_seed(runs: Sequence[Loaded]) -> tuple[list[Loaded], tuple[str, ...]]:
    """The runs by the seed that they were told to use: one seed under five names is no five samples."""
    seeded, differing_ids = [], []
    for run in runs:
        train, record = run.record.recipe.get("train"), run.record
        seed = train.get("seed") if isinstance(train, Mapping) else None
        if type(seed) is int and seed != record.seed:
            differing_ids.append(printable(record.id))
            run = replace(run, record=record.model_copy(update={"seed": seed}))
        seeded.append(run)
    if not differing_ids:
        return seeded, ()
    number, named = counted(len(differing_ids), "run"), ", ".join(differing_ids[:_MOST_NAMED])
    return seeded, (f"{number} with another seed on record than in the recipe, which counts: {named}",)


def _one_run_a_seed(runs: Iterable[Loaded]) -> tuple[tuple[Loaded, ...], tuple[str, ...]]:
    """One run of each seed: of repeated ones the last finished. A second one is no second sample."""
    by_seed: dict[int, list[Loaded]] = defaultdict(list)
    for run in runs:
        by_seed[run.record.seed].append(run)
    chosen, notes = [], []
    for seed, repeated in sorted(by_seed.items()):
        newest = max(
            repeated, key=lambda run: (str(run.record.environment.get("finished") or ""), run.record.id)
        )
        chosen.append(newest)
        if len(repeated) > 1:
            name = printable(newest.record.id)
            notes.append(f"seed {seed} ran {len(repeated)} times; {name}, the newest, counts")
    return tuple(chosen), tuple(notes)
