"""The recipe: everything that decides a run, in one strict YAML file.

A recipe is read in three steps: text to mapping (``yaml_text``), overrides laid over it, mapping to
:class:`Recipe`. Every fault is collected before any is reported. Nothing here imports torch: sections
whose names only torch or timm know (optimizers, models) are checked by functions handed in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, StrictBool, StrictStr, ValidationError

from pugdft import yaml_text
from pugdft.errors import Fault, FaultsError, UserError, close_match
from pugdft.sections import DataSection, Fraction, Number, PerformanceSection, PositiveInt, Section

SectionCheck = Callable[[Any], Sequence[Fault]]


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


class TrainSection(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = Field(100, description="passes over the train split")
    budget: Literal["epochs", "passes"] = Field(
        "epochs",
        description="what epochs and max_steps count: updates, or gradient passes, of which SAM's take two",
    )
    max_steps: PositiveInt | None = Field(
        None, description="stop after so many updates; the schedule ends there"
    )
    batch_size: PositiveInt = Field(100, description="images per update, over all processes")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images per forward pass and process: less memory, the same update but for BatchNorm",
    )
    ascent_batch: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="fraction of the batch that the ascent gradient of a two-pass method is taken from"
    )
    eval_batch_size: PositiveInt | None = Field(None, description="images per evaluation batch and process")
    eval_every: PositiveInt = Field(1, description="epochs between evaluations")
    evaluate: Literal["all", "validation"] = Field(
        "all", description="validation: the test split is never looked at, as in a search"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; weights stay fp32, and fp16 scales the loss"
    )
    label_smoothing: Fraction = Field(0.0, description="in the training loss only")
    freeze: Literal["none", "backbone"] = Field("none", description="backbone trains the new head alone")
    batch_norm: Literal["update", "fixed"] = Field(
        "update", description="fixed: BatchNorm keeps normalising by the pretrained running statistics"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the validation split, the order, the augmentation, the new head"
    )
    performance: PerformanceSection = Field(
        default_factory=lambda: PerformanceSection.model_validate({}),
        description="auto, or switches that change speed and rounding",
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
    faults: list[Fault] = []
    for text in overrides:
        faults += apply_override(data, text)
    recipe: Recipe | None = None
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        # One alternative of a union may fail as another does: said once.
        faults += dict.fromkeys(_as_fault(details) for details in error.errors())
    for section, check in (checks or {}).items():
        # A section that is missing or of the wrong kind already has its fault from the schema.
        if isinstance(data.get(section), Mapping):
            faults += check(data[section])
    if recipe is not None:
        faults += _cross_faults(recipe)
    if faults:
        raise FaultsError(label, faults)
    assert recipe is not None
    return recipe


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
    if not str(source) or len(path.name) > 255:
        raise UserError(
            f'"{str(source)[:80]}": no such file or bundled recipe. `pugdft recipes ls` lists them.'
        )
    if path.is_file():
        return path
    bundled = recipe_folder() / f"{path.name.removesuffix('.yaml')}.yaml"
    # `recipes/x.yaml` is how the documents name a recipe; it works outside a checkout too.
    if bundled.is_file() and path.parent in (Path("."), Path("recipes")):
        return bundled
    if path.is_dir():
        raise UserError(f"{source}: is a folder; a recipe is a YAML file")
    hint = close_match(path.name.removesuffix(".yaml"), bundled_recipes())
    raise UserError(f"{source}: no such file or bundled recipe.{hint} `pugdft recipes ls` lists them.")


def apply_override(data: dict[str, Any], text: str) -> list[Fault]:
    """Lay ``section.key=VALUE`` over a recipe in place; VALUE is YAML; returns what is wrong with it.

    Giving ``optimizer.name`` another method keeps the base, since that is what one compares; the old
    method's options stay and are refused by the check if the new one does not have them.
    """
    key, equals, value_text = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        return [Fault(f'override "{text}"', "expected KEY=VALUE, such as optimizer.rho=0.1")]
    try:
        value = yaml_text.parse(value_text)
    except UserError as error:
        return [Fault(f'override "{text}"', str(error))]
    node = data
    for depth, part in enumerate(parts[:-1], start=1):
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            return [Fault(f'override "{text}"', f"{'.'.join(parts[:depth])} is a value, not a section")]
    node[parts[-1]] = value
    return []


def read_text(path: Path) -> str:
    """A recipe's text.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "", json.loads(json.dumps(source))
    path = find_recipe(source)
    data = yaml_text.parse(read_text(path), str(path))
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
