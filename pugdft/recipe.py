"""The recipe: everything that decides a run, in one strict YAML file.

A recipe is read in three steps: text to mapping (``yaml_text``), overrides laid over it, mapping to
:class:`Recipe`. Every fault is collected before any is reported. Nothing here imports torch: sections
whose names only torch or timm know (optimizers, models) are checked by functions handed in.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, StrictBool, StrictStr, ValidationError

from pugdft import yaml_text
from pugdft.errors import Fault, FaultsError, UserError, close_match
from pugdft.sections import DataSection, Number, Section, TrainSection

SectionCheck = Callable[[Any], Sequence[Fault]]
_LONGEST_SHOWN = 80


class ModelSection(Section):
    """The backbone."""

    name: StrictStr = Field(description="timm model, with its weights tag where pretrained: resnet18.tv_in1k")
    pretrained: StrictBool | StrictStr = Field(
        True, description="true: the tag's weights; false: random; or a path to .safetensors or .pth"
    )
    head_init: Literal["timm", "zero"] = Field(
        "timm", description="of the new head: as timm initialises this model, by the seed; or zeros"
    )


class ScheduleSection(Section):
    """The learning rate over the run, as a factor of the base optimizer's lr, changed at every step."""

    name: Literal["cosine", "constant"] = Field("cosine", description="cosine falls to 0 at the last step")
    warmup_epochs: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="linear rise from 0 to lr, in epochs"
    )


class TuningSection(Section):
    """What was spent on held-out images to choose the optimizer's options; decides nothing, is kept."""

    trials: Annotated[int, Field(ge=0, le=10**9)] = Field(description="runs that the choice rests on")
    gradient_passes: Annotated[Number, Field(ge=0)] = Field(description="of all these runs together")
    search: StrictStr = Field("", description="how the options were searched")


class Recipe(Section):
    """One run, resolved. The optimizer stays a mapping: its options belong to the optimizer core."""

    model: ModelSection
    data: DataSection
    optimizer: dict[str, Any] = Field(
        description="name, the method's options, and base: {name, lr, …}; or a base optimizer alone"
    )
    schedule: ScheduleSection = Field(default_factory=lambda: ScheduleSection.model_validate({}))
    train: TrainSection = Field(default_factory=lambda: TrainSection.model_validate({}))
    tuning: TuningSection | None = Field(None, description="what the choice of the optimizer's options cost")

    def as_dict(self) -> dict[str, Any]:
        """Plain data in the order of the schema: what ``--dry-run`` prints and the record keeps."""
        return self.model_dump(mode="json", exclude=None if self.tuning else {"tuning"})

    def digest(self) -> str:
        """sha256 (hex) of the resolved recipe: equal digests mean equal runs."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    checks: Mapping[str, SectionCheck] | None = None,
) -> Recipe:
    """Read a recipe from a file, a bundled recipe's name, or a mapping.

    Args:
        source: path, bundled name, or the mapping itself.
        overrides: ``KEY=VALUE`` texts, see :func:`apply_override`.
        checks: section name to a function that returns the section's further faults.

    Raises:
        UserError: the file cannot be read or is no mapping.
        FaultsError: with every fault of the recipe and of the overrides.
    """
    label, data = _read(source)
    given = deepcopy(data) if overrides else {}
    unreadable = [fault for text in overrides for fault in apply_override(data, text)]
    recipe, faults = _checked(data, checks or {})
    if faults and overrides:
        own = set(_checked(given, checks or {})[1])
        faults = [fault if fault in own else _of_override(fault, label, overrides) for fault in faults]
    if unreadable or faults:
        raise FaultsError(label, [*unreadable, *faults])
    assert recipe is not None
    return recipe


def _checked(
    data: Mapping[str, Any], checks: Mapping[str, SectionCheck]
) -> tuple[Recipe | None, list[Fault]]:
    """The recipe, if the schema accepts it, and everything that is wrong with it."""
    recipe: Recipe | None = None
    faults: list[Fault] = []
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        # One alternative of a union may fail as another does: said once.
        faults += dict.fromkeys(_as_fault(details) for details in error.errors())
    for section, check in checks.items():
        # A section that is missing or of the wrong kind already has its fault from the schema.
        if isinstance(data.get(section), Mapping):
            faults += check(data[section])
    if recipe is not None:
        faults += _cross_faults(recipe)
    return recipe, faults


def _of_override(fault: Fault, label: str, overrides: Sequence[str]) -> Fault:
    """A fault that the file alone does not have, said of the override that stands for its place."""
    keys = {text: text.partition("=")[0].strip() for text in overrides}
    near = [
        text
        for text, key in keys.items()
        if f"{fault.where}.".startswith(f"{key}.") or f"{key}.".startswith(f"{fault.where}.")
    ]
    if len(near) == 1:
        return replace(fault, source=_quoted(near[0]))
    return replace(fault, source=f"{label} with {' '.join(map(_shown, overrides))}".strip())


def _quoted(override: str) -> str:
    return f'override "{_shown(override)}"'


def _shown(override: str) -> str:
    """On one line, not too long for a message."""
    line = " ".join(override.split())
    return line if len(line) <= _LONGEST_SHOWN else f"{line[:_LONGEST_SHOWN]}…"


def recipe_folder() -> Path:
    """Where the bundled recipes are: inside an installed package, or at the top of a checkout."""
    installed = Path(__file__).parent / "bundled_recipes"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "recipes"


def bundled_recipes() -> list[str]:
    """Names of the recipes that come with pugdft."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def find_recipe(source: str | Path) -> Path:
    """The file of a path or of a bundled recipe's name.

    Raises:
        UserError: neither a file nor a bundled name.
    """
    path = Path(source)
    # Unlike pathlib's, os.path's tests are false for a name that is too long for any file.
    if str(source) and os.path.isfile(path):
        return path
    bundled = recipe_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
    # `recipes/x.yaml` is how the documents name a recipe; it works outside a checkout too.
    if os.path.isfile(bundled) and path.parent in (Path("."), Path("recipes")):
        return bundled
    if str(source) and os.path.isdir(path):
        raise UserError(f"{source}: is a folder; a recipe is a YAML file")
    shown = str(source)[:_LONGEST_SHOWN] or '""'
    hint = close_match(path.name[:_LONGEST_SHOWN].removesuffix(".yaml"), bundled_recipes())
    raise UserError(f"{shown}: no such file or bundled recipe.{hint} `pugdft recipes ls` lists them.")


def apply_override(data: dict[str, Any], text: str) -> list[Fault]:
    """Lay ``section.key=VALUE`` over a recipe in place; VALUE is YAML; returns what is wrong with it.

    Giving ``optimizer.name`` another method keeps the base, since that is what one compares; the old
    method's options stay and are refused by the check if the new one does not have them.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [Fault(_quoted(text), "expected KEY=VALUE, such as optimizer.rho=0.1", source="")]
    try:
        value = yaml_text.parse(value_text)
    except UserError as error:
        return [Fault(_quoted(text), str(error), source="")]
    node = data
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            message = f"{'.'.join(parts[:depth])} is a value, not a section"
            return [Fault(_quoted(text), message, source="")]
    node[parts[-1]] = value
    return []


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "", json.loads(json.dumps(source))
    path = find_recipe(source)
    data = yaml_text.parse(yaml_text.read_text(path), str(path))
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a mapping with the sections {', '.join(Recipe.model_fields)}")
    return str(path), data


def _as_fault(details: Mapping[str, Any]) -> Fault:
    """Pydantic's error in our words, with the known keys and a close match for an unknown one."""
    location = [str(part) for part in details["loc"] if part not in ("bool", "str", "function-after[...]")]
    where = ".".join(location)
    if details["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return Fault(where, f"unknown key. Known: {', '.join(known)}.{close_match(location[-1], known)}")
    if details["type"] == "missing":
        return Fault(where, "is required")
    if location[-1] == "[key]" or details["type"] == "invalid_key":
        return Fault(where.removesuffix(".[key]"), "keys must be words")
    message = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if details["type"] in ("model_type", "dict_type"):
        example = "{scale: [0.08, 1]}" if where == "data.random_resized_crop" else "{name: …}"
        message = f"a mapping, such as {example}"
    if details["type"] in ("bool_type", "string_type"):
        message = "true, false or a path" if where == "model.pretrained" else message
    given = details["input"]
    shown = f", not {json.dumps(given)[:80]}" if isinstance(given, str | int | float | bool | None) else ""
    return Fault(where, f"must be {message}{shown}")


def _known_keys(location: Sequence[str]) -> list[str]:
    """The keys of the section at this place."""
    schema: Any = Recipe
    for part in location:
        annotation = schema.model_fields[part].annotation
        schema = next((each for each in (annotation, *get_args(annotation)) if _is_section(each)), None)
        if schema is None:
            return []
    return list(schema.model_fields)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _cross_faults(recipe: Recipe) -> list[Fault]:
    """What no single field can see."""
    faults = []
    train = recipe.train
    if train.micro_batch_size and train.micro_batch_size > train.batch_size:
        faults.append(
            Fault(
                "train.micro_batch_size",
                f"{train.micro_batch_size} is more than batch_size {train.batch_size}",
            )
        )
    if train.evaluate == "validation" and not recipe.data.validation:
        faults.append(
            Fault("train.evaluate", "validation needs held-out images, such as data.validation=0.1")
        )
    if recipe.data.random_resized_crop and recipe.data.crop_padding:
        faults.append(
            Fault(
                "data.crop_padding",
                "random_resized_crop takes the place of this crop: leave it out, or set it to 0",
            )
        )
    if recipe.schedule.warmup_epochs >= train.epochs:
        faults.append(Fault("schedule.warmup_epochs", f"must be less than train.epochs ({train.epochs})"))
    return faults
