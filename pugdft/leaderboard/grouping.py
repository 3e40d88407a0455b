"""Group runs that can be compared, and find the runs that are seeds of one entry.

A group is data set × model × protocol. Data sets are equal if their images, their labels and the number
of test images are. The protocol is the resolved recipe without the optimizer, its tuning, the seed, the two
names, and settings that change results only by rounding or not at all, such as those of speed and of
evaluation. ``micro_batch_size`` stays in it because BatchNorm depends on it. Runs of a search are in no
group: they were judged on held-out images.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Any, TypeVar

from pugdft.config.schema import DataSection, ModelSection, ScheduleSection, Section, TrainSection
from pugdft.errors import UserError, close_match, counted, printable
from pugdft.leaderboard.load import Loaded
from pugdft.records import LARGEST, RunRecord

_DEFAULT_BASE = "sgd"
_BASE = "base."
_MOST_NAMED = 6
_LONGEST_FLOAT = 14  # characters; a longer one is the sum of others, such as 0.35000000000000003

# Keys that are no part of the protocol. ``evaluate`` decides only whether a run has a group at all.
_NO_PROTOCOL = {
    "model": {"name"},
    "data": {"name", "workers", "storage"},
    "train": {
        "seed",
        "eval_batch_size",
        "eval_every",
        "evaluate",
        "performance",
        "checkpoint_minutes",
        "evaluate_train",
        "snapshots",
    },
}

# Defaults of all keys: older records lack the newer keys.
_SECTIONS: Mapping[str, type[Section]] = {
    "model": ModelSection, "data": DataSection, "schedule": ScheduleSection, "train": TrainSection,
}  # fmt: skip
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    name: {
        key: item.get_default(call_default_factory=True)
        for key, item in section.model_fields.items()
        if not item.is_required() and key not in _NO_PROTOCOL.get(name, ())
    }
    for name, section in _SECTIONS.items()
}

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")

_canonical_texts: dict[str, str] = {}
_shared_texts: dict[str, str] = {}


class NothingMatches(UserError):
    """No name matches a filter; the caller may try another list of names."""


def chosen(kind: str, wanted: str, names: Iterable[str], source: str = "record") -> str:
    """Find the name that is equal to ``wanted``, else equal but for case, else the only one that contains it.

    ``kind``, such as ``data set``, and ``source``, which has these names, are words for the message.
    """
    known = sorted(set(names))
    folded = wanted.casefold()
    matches = (
        [name for name in known if name == wanted]
        or [name for name in known if name.casefold() == folded]
        or [name for name in known if folded in name.casefold()]
    )
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f'{kind} "{printable(wanted)}" is part of several names: {", ".join(matches)}')
    exists = f"Known: {', '.join(known)}" if known else f"There are no {source}s"
    raise NothingMatches(
        f'no {source} of {kind} "{printable(wanted)}". {exists}.{close_match(wanted, known)}'
    )


def entry_labels(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Label a group's ``optimizer`` mappings: ``sam+adamw[rho=0.1]``, with the options that differ."""
    # The base is named if it is not SGD, or if the group's methods have different bases.
    bases = [str(spec["base"]["name"]) if isinstance(spec.get("base"), Mapping) else "" for spec in specs]
    hidden = {""} if len(set(bases) - {""}) > 1 else {"", _DEFAULT_BASE}
    names = [
        f"{spec['name']}" if base in hidden else f"{spec['name']}+{base}"
        for spec, base in zip(specs, bases, strict=True)
    ]
    labels = []
    for name, options in zip(names, _told_apart(names, specs), strict=True):
        # Options of the base have no prefix unless the method has the same key.
        keys = {key: key.removeprefix(_BASE) for key in options}
        words = [
            f"{key if short != key and short in options else short}={shown(options[key])}"
            for key, short in keys.items()
        ]
        labels.append(printable(f"{name}[{','.join(words)}]" if words else name))
    return labels


def protocol_line(recipe: Mapping[str, Any]) -> str:
    """Write a run's conditions, ``224 px, 100 epochs, batch 100, fp32, cosine``, and what is not default."""
    values = _flat(recipe)
    epochs, worth = ("{} epoch", "'s worth") if values.get("train.epochs") == 1 else ("{} epochs", "' worth")
    if values.get("train.budget") == "passes":
        epochs += f"{worth} of gradient passes"
    forms = {
        "data.image_size": "{} px",
        "train.epochs": epochs,
        "train.max_steps": "at most {} steps",
        "train.batch_size": "batch {}",
        "train.precision": "{}",
        "schedule.name": "{}",
        "schedule.warmup_epochs": "warm-up {}",
        "schedule.min_lr": "down to {}",
        "schedule.milestones": "at {}",
        "schedule.step_epochs": "each {} epochs",
        "data.validation": "{} held out",
    }
    parts = [form.format(shown(values[key])) for key, form in forms.items() if values.get(key)]
    pretrained = values.get("model.pretrained", True)
    if pretrained is not True:
        parts.append("from scratch" if pretrained is False else f"weights {shown(pretrained)}")
    if values.get("train.keep", "last") == "best":
        parts.append("best validation epoch")
    if values.get("train.patience"):
        parts.append(f"patience {shown(values['train.patience'])}")
    if values.get("train.ema"):
        parts.append(f"averaged weights {shown(values['train.ema'])}")
    if values.get("train.freeze", "none") != "none":
        parts.append(f"{shown(values['train.freeze'])} frozen")
    return printable(", ".join(parts))


def differing(mappings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the options of each mapping that are not equal in all, under dotted keys."""
    flats = [_flat(mapping) for mapping in mappings]
    # A method's own options first, then its base's.
    keys = sorted({key for flat in flats for key in flat}, key=lambda key: (key.startswith(_BASE), key))
    texts = {key: {canonical(flat[key]) if key in flat else None for flat in flats} for key in keys}
    return [{key: flat[key] for key in keys if key in flat and len(texts[key]) > 1} for flat in flats]


def _told_apart(names: Sequence[Any], mappings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the options of each mapping that are not equal in all mappings of the same name."""
    options: list[dict[str, Any]] = [{}] * len(names)
    for alike in by_key(range(len(names)), names.__getitem__).values():
        found = differing([mappings[index] for index in alike])
        for index, own in zip(alike, found, strict=True):
            options[index] = _with_short_parts(own, found)
    return options


def _with_short_parts(own: dict[str, Any], beside: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Write a trigger or another named part as its name alone, if all of that name are equal."""
    for part in [key.removesuffix(".name") for key in own if key.endswith(".name") and key != "base.name"]:

        def inside(options: dict[str, Any], start: str = f"{part}.") -> dict[str, Any]:
            return {key: value for key, value in options.items() if key.startswith(start)}

        name = own[f"{part}.name"]
        if all(inside(each) == inside(own) for each in beside if each.get(f"{part}.name") == name):
            short = {part if key == f"{part}.name" else key: value for key, value in own.items()}
            own = {key: value for key, value in short.items() if not key.startswith(f"{part}.")}
    return own


def by_key(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Sort items into lists of equal keys, both in the order of the items."""
    lists: dict[Key, list[Item]] = {}
    for item in items:
        lists.setdefault(key(item), []).append(item)
    return lists


def canonical(value: Any) -> str:
    """Write a value such that equal values have equal texts; key order, and 1 or 1.0, do not matter."""
    # A thousand records have a few dozen different recipes, and repr is faster than sorting.
    written = text = repr(value)
    if written in _canonical_texts:
        return _canonical_texts[written]
    if isinstance(value, Mapping):
        items = sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())
        text = f"{{{', '.join(items)}}}"
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(canonical, value))}]"
    elif isinstance(value, float) and value.is_integer():
        text = repr(int(value))
    _canonical_texts[written] = text
    return text


def shown(value: Any) -> str:
    """Write a value as a recipe does, a float without the digits that only its last bits cause."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return f"{value:.12g}" if isinstance(value, float) and len(repr(value)) > _LONGEST_FLOAT else str(value)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@dataclass(frozen=True)
class RunEntry:
    """The runs of one optimizer with its options."""

    label: str  # unique in its group, unless only characters that cannot be printed differ
    spec: Mapping[str, Any]  # the whole optimizer mapping, which is the entry's identity
    completed: tuple[Loaded, ...]  # one run for each seed, in the order of seeds
    unfinished: tuple[RunRecord, ...]  # all runs that ended otherwise
    notes: tuple[str, ...]  # for readers, such as that a seed ran twice

    def lost_seeds(self) -> dict[str, list[int]]:
        """Return the seeds that no run completed, by the status of their runs."""
        completed = {run.record.seed for run in self.completed}
        lost = {(each.status, each.seed) for each in self.unfinished if each.seed not in completed}
        by_status = by_key(sorted(lost), lambda pair: pair[0])
        return {status: [seed for _, seed in pairs] for status, pairs in by_status.items()}


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in the optimizer and the seed."""

    dataset: str
    model: str
    protocol: str  # one line for people, different for each group of the same data set and model
    recipe: Mapping[str, Any]  # the shared part
    entries: tuple[RunEntry, ...]
    data_sha256: str | None = None  # digest of the images; None if no run read them
    num_test_images: int | None = None  # None if no run counted them
    notes: tuple[str, ...] = ()  # about other runs of the same data set and model


def group_runs(
    loaded: Iterable[Loaded], dataset: str | None = None, model: str | None = None
) -> list[RunGroup]:
    """Sort runs into groups by data set, model and protocol, and keep those of ``dataset`` and ``model``.

    Data sets of one name but with different images or labels (``data.sha256``), or of which runs evaluated
    different numbers of test images, make different groups. A run that ended before it read its data joins
    the other runs of its recipe if all of those have the same data.
    """
    loaded = list(loaded)
    names_of_data: dict[str, Counter[str]] = defaultdict(Counter)
    for run in loaded:
        if run.record.data:
            names_of_data[run.record.data.sha256][run.record.data.name] += 1
    # Equal images may lie in folders of several names: most records' name, or the first by the alphabet.
    name_of = {key: min(each, key=lambda name: (-each[name], name)) for key, each in names_of_data.items()}
    buckets: dict[tuple[str, str, str], list[Loaded]] = defaultdict(list)
    num_trials: Counter[tuple[str, str]] = Counter()
    for run in sorted(loaded, key=lambda run: run.record.id):
        record, recipe = run.record, run.record.recipe
        path, network = recipe["data"]["name"], record.model_label
        # A recipe may name its data by a path: the name is its last part if the data was never read.
        data = name_of[record.data.sha256] if record.data else PurePath(path).name or path
        if _train_value(record, "evaluate") == "validation":
            num_trials[printable(data), printable(network)] += 1
        else:
            buckets[data, network, _shared_key(recipe)].append(run)
    groups = []
    for (data, network, _), runs in buckets.items():
        recipe = shared_recipe(runs[0].record.recipe)
        by_data = by_key(runs, _images)
        known = by_data.keys() - {_NO_IMAGES}
        if len(known) <= 1:
            by_data = {next(iter(known), _NO_IMAGES): runs}
        for (digest, size), part in by_data.items():
            line = protocol_line(recipe)
            if len({each for each, _ in known}) > 1:
                line += f", data {printable((digest or 'unknown')[:8])}"
            if len({each for _, each in known}) > 1:
                line += f", {size or 0:,} test images"
            entries = _entries(part)
            groups.append(RunGroup(printable(data), printable(network), line, recipe, entries, digest, size))
    names = [(group.dataset, group.model, group.protocol) for group in groups]
    for index, settings in enumerate(_told_apart(names, [group.recipe for group in groups])):
        words = [f"{key}={shown(value)}" for key, value in settings.items()]
        protocol = printable(", ".join([groups[index].protocol, *words]))
        groups[index] = replace(groups[index], protocol=protocol)
    digests = {
        (group.dataset, group.model, group.data_sha256, group.num_test_images)
        for group in groups
        if group.data_sha256
    }
    num_data = Counter(each[:2] for each in digests)
    result = []
    for group in sorted(groups, key=lambda group: (group.dataset, group.model, group.protocol)):
        both, notes = (group.dataset, group.model), []
        if group.data_sha256 and num_data[both] > 1:
            notes.append(
                f"other runs of {group.dataset} × {group.model} had other images (data.sha256, "
                "data.sizes.test); numbers of different groups cannot be compared"
            )
        others = set(names_of_data.get(group.data_sha256 or "", ())) - {name_of.get(group.data_sha256 or "")}
        if others:
            notes.append(f"the same images are also called {', '.join(map(printable, sorted(others)))}")
        if number := num_trials.pop(both, 0):  # said once
            notes.append(f"{counted(number, 'run')} of a search, on held-out images, not shown")
        result.append(replace(group, notes=tuple(notes)))
    for kind, field, wanted in (("data set", "dataset", dataset), ("model", "model", model)):
        if wanted is not None:
            name = chosen(kind, wanted, {getattr(group, field) for group in result})
            result = [group for group in result if getattr(group, field) == name]
    return result


_NO_IMAGES = (None, None)


def _images(run: Loaded) -> tuple[str | None, int | None]:
    """What a run was evaluated on: the digest of the data set, and the number of test images."""
    data = run.record.data
    return (data.sha256, data.sizes.get("test")) if data else _NO_IMAGES


def _train_value(record: RunRecord, key: str) -> Any:
    train = record.recipe.get("train")
    return train.get(key) if isinstance(train, Mapping) else None


def shared_recipe(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the recipes of a group share, with defaults for missing keys and sections."""
    return {section: _shared(section, value) for section, value in _sections(recipe)}


def _sections(recipe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the sections of the protocol, those that the recipe lacks too."""
    all_of_them = {**{name: {} for name in _DEFAULTS}, **recipe}
    return (each for each in all_of_them.items() if each[0] not in ("optimizer", "tuning"))


def _shared(section: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    items = {**_DEFAULTS.get(section, {}), **value}.items()
    return {key: item for key, item in items if key not in _NO_PROTOCOL.get(section, ())}


def _shared_key(recipe: Mapping[str, Any]) -> str:
    """The same text for recipes that share what :func:`shared_recipe` returns."""
    # Thousands of records have a few dozen different sections.
    texts = []
    for section, value in _sections(recipe):
        if (written := f"{section!r}: {value!r}") not in _shared_texts:
            _shared_texts[written] = canonical([section, _shared(section, value)])
        texts.append(_shared_texts[written])
    return " ".join(sorted(texts))


def _entries(loaded: Sequence[Loaded]) -> tuple[RunEntry, ...]:
    by_spec = by_key(loaded, lambda run: canonical(run.record.recipe["optimizer"]))
    ordered = [by_spec[key] for key in sorted(by_spec)]
    specs = [runs[0].record.recipe["optimizer"] for runs in ordered]
    entries = []
    for label, spec, runs in zip(entry_labels(specs), specs, ordered, strict=True):
        seeded, notes = _by_recipes_seed(runs)
        done = [run for run in seeded if run.record.status == "completed"]
        completed = []
        for seed, repeated in sorted(by_key(done, lambda run: run.record.seed).items()):
            # A repeated seed is no second sample. No later run can replace a result that is known.
            first = min(repeated, key=_with_result_first) if len(repeated) > 1 else repeated[0]
            completed.append(first)
            if len(repeated) > 1:
                name = printable(first.record.id)
                notes.append(f"seed {seed} ran {len(repeated)} times; {name}, which finished first, counts")
        unfinished = tuple(run.record for run in seeded if run.record.status != "completed")
        entries.append(RunEntry(label, spec, tuple(completed), unfinished, tuple(notes)))
    return tuple(entries)


def is_lost(record: RunRecord) -> bool:
    """Whether the final loss is no finite number, whatever the status says."""
    loss = record.metrics.test.loss if record.metrics and record.metrics.test else None
    return loss is not None and not abs(loss) <= LARGEST


def _with_result_first(run: Loaded) -> tuple[bool, float, str]:
    """Order the runs of a seed: lost ones last, then by the end of the run, undated last, then by content."""
    finished = math.inf
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(str(run.record.environment.get("finished")))
        finished = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return is_lost(run.record), finished, run.record.to_yaml()


def _by_recipes_seed(runs: Sequence[Loaded]) -> tuple[list[Loaded], list[str]]:
    """Use the seed of each run's recipe: a wrong seed on record would count one seed twice."""
    seeded, differing_ids = [], []
    for run in runs:
        seed = _train_value(run.record, "seed")
        if type(seed) is int and seed != run.record.seed:
            differing_ids.append(printable(run.record.id))
            run = replace(run, record=run.record.model_copy(update={"seed": seed}))
        seeded.append(run)
    if not differing_ids:
        return seeded, []
    number, named = counted(len(differing_ids), "run"), ", ".join(differing_ids[:_MOST_NAMED])
    return seeded, [f"{number} with another seed on record than in the recipe, which counts: {named}"]
