"""What people call an optimizer or a protocol: the shortest words that tell it from its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pugdft.leaderboard.printable import printable

DEFAULT_BASE = "sgd"
_BASE = "base."

_MOST_TEXTS = 4096
_canonical_texts: dict[str, str] = {}


def entry_labels(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A label for each different ``optimizer`` mapping of one group, such as ``sam+adamw[rho=0.1]``.

    The base is named where it is not SGD, or where the group's methods have several; options stand only
    where labels would otherwise be equal, and only those that differ.
    """
    bases = [_base_name(spec) for spec in specs]
    several = len({base for base in bases if base is not None}) > 1
    names = [
        f"{spec['name']}+{base}"
        if base is not None and (several or base != DEFAULT_BASE)
        else str(spec["name"])
        for spec, base in zip(specs, bases, strict=True)
    ]
    suffixes = [""] * len(specs)
    for name in set(names):
        alike = [index for index, other in enumerate(names) if other == name]
        for index, options in zip(alike, differing([specs[index] for index in alike]), strict=True):
            suffixes[index] = _bracketed(options)
    return [printable(name + suffix) for name, suffix in zip(names, suffixes, strict=True)]


def protocol_line(recipe: Mapping[str, Any]) -> str:
    """The conditions of a run for a table's title: ``224 px, 100 epochs, batch 100, fp32, cosine``.

    What departs from the usual is added: a step limit, warm-up, held-out images, weights, freezing.
    """
    values = _flat(recipe)
    forms = {
        "data.image_size": "{} px",
        "train.epochs": _epochs_form(values),
        "train.max_steps": "at most {} steps",
        "train.batch_size": "batch {}",
        "train.precision": "{}",
        "schedule.name": "{}",
        "schedule.warmup_epochs": "warm-up {}",
        "data.validation": "{} held out",
    }
    parts = [form.format(shown(values[key])) for key, form in forms.items() if values.get(key)]
    pretrained = values.get("model.pretrained", True)
    if pretrained is False:
        parts.append("from scratch")
    elif pretrained is not True:
        parts.append(f"weights {shown(pretrained)}")
    if values.get("train.freeze", "none") != "none":
        parts.append(f"{shown(values['train.freeze'])} frozen")
    return printable(", ".join(parts))


def _epochs_form(values: Mapping[str, Any]) -> str:
    """What an epoch counts: passes over the train split, or as many gradient passes as those have batches."""
    is_one = values.get("train.epochs") == 1
    if values.get("train.budget") == "passes":
        return "{} epoch's worth of gradient passes" if is_one else "{} epochs' worth of gradient passes"
    return "{} epoch" if is_one else "{} epochs"


def differing(mappings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each mapping, the options that are not equal in all of them, under dotted keys."""
    flats = [_flat(mapping) for mapping in mappings]
    # A method's own options first, then its base's.
    keys = sorted({key for flat in flats for key in flat}, key=lambda key: (key.startswith(_BASE), key))
    absent = "absent"
    varying = [
        key for key in keys if len({canonical(flat[key]) if key in flat else absent for flat in flats}) > 1
    ]
    return [{key: flat[key] for key in varying if key in flat} for flat in flats]


def canonical(value: Any) -> str:
    """A text that two values share only if they are equal: key order and 1 against 1.0 do not matter."""
    # A thousand records have a few dozen different recipes; Python writes a value faster than it sorts one.
    written = repr(value)
    text = _canonical_texts.get(written)
    if text is None:
        if len(_canonical_texts) == _MOST_TEXTS:
            _canonical_texts.clear()
        text = _canonical_texts[written] = _canonical(value)
    return text


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping):
        items = sorted(f"{_canonical(key)}: {_canonical(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_canonical, value))}]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return repr(value)


def shown(value: Any) -> str:
    """A value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def _bracketed(options: Mapping[str, Any]) -> str:
    """``[rho=0.1,lr=0.01]``; the base's options lose their prefix unless the method has the same key."""
    words = []
    for key, value in options.items():
        short = key.removeprefix(_BASE)
        words.append(f"{key if short in options and short != key else short}={shown(value)}")
    return f"[{','.join(words)}]" if words else ""


def _base_name(spec: Mapping[str, Any]) -> str | None:
    base = spec.get("base")
    return str(base["name"]) if isinstance(base, Mapping) else None


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, under dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
