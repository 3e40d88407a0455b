"""The schema of a recipe: its sections, keys, bounds and descriptions. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from pugdft.errors import ConfigIssue

Number = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """A mapping of known keys with strict types: ``1`` is not text, ``yes`` is not true."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _rising(pair: list[float]) -> list[float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise ValueError("[low, high] with 0 < low ≤ high")
    return pair


def _within_image(scale: list[float]) -> list[float]:
    if scale[1] > 1:
        raise ValueError("at most 1: no box is larger than its image")
    return scale


Range = Annotated[list[Number], AfterValidator(_rising)]
Alpha = Annotated[Number, Field(ge=0, le=1000)]


class RandomResizedCropSection(Section):
    """A box of each training image, resized to ``image_size``; the defaults are the field's."""

    scale: Annotated[Range, AfterValidator(_within_image)] = Field(
        [0.08, 1.0], description="area of the box as a fraction of the image, drawn uniformly"
    )
    ratio: Range = Field([0.75, 1.3333], description="width over height, drawn uniformly in its logarithm")


class SplitsSection(Section):
    """The data set's own names of its splits: folders, files or values of a column."""

    train: StrictStr | None = Field(None, description="the training images; null: train or training")
    test: StrictStr | None = Field(
        None, description="the test images; null: test, or else val, validation, …"
    )
    validation: StrictStr | None = Field(
        None, description="the validation images; null: held out from train by data.validation"
    )


class DataSection(Section):
    """The images."""

    name: StrictStr = Field(
        description="cifar10, cifar100, tiny_imagenet, bundled, a folder of parquet or image files, "
        "a CSV file of paths and labels, or owner/name on the Hugging Face Hub"
    )
    image_size: Annotated[int, Field(ge=8, le=4096)] = Field(
        224, description="side of the square that the backbone sees, in pixels"
    )
    validation: Fraction = Field(
        0.0, description="fraction of the train split held out, seeded and class-balanced"
    )
    test: Fraction = Field(
        0.0,
        description="fraction of each class cut from a data set without a test split, alike for every seed",
    )
    splits: SplitsSection | None = Field(
        None, description="names of splits, such as {train: part_a, test: part_b}; null: the usual names"
    )
    crop_padding: Annotated[int, Field(ge=0, le=512)] = Field(
        4,
        description="pixels added on each side, at stored size, before the random crop; 0 turns it off, "
        "and is the default with random_resized_crop",
    )
    flip: StrictBool = Field(True, description="flip half of the training images left to right")
    random_resized_crop: RandomResizedCropSection | None = Field(
        None, description="{scale: [0.08, 1], ratio: [0.75, 1.3333]}, or {} for these; not with crop_padding"
    )
    cutout: Annotated[int, Field(ge=0, le=4096)] = Field(
        0, description="side, at stored size, of a square blanked in each training image (arXiv 1708.04552)"
    )
    mixup: Alpha = Field(0.0, description="alpha of mixup (arXiv 1710.09412); 0 turns it off")
    cutmix: Alpha = Field(
        0.0, description="alpha of CutMix (arXiv 1905.04899); with mixup, each batch draws one of the two"
    )
    auto_augment: StrictStr | None = Field(
        None, description="timm's name of an augmentation of single images, such as rand-m9-mstd0.5-inc1"
    )
    workers: Annotated[int, Field(ge=0, le=256)] | None = Field(
        None,
        description="processes that decode image files and apply auto_augment, without effect on the result; "
        "null: chosen for the machine",
    )
    storage: Literal["auto", "decoded", "files"] = Field(
        "auto",
        description="decoded: all pixels are stored in the cache; files: image files are decoded each time; "
        "auto: files if the disk is too small; no effect on the result",
    )

    @property
    def holds_out(self) -> bool:
        """Whether there are validation images, of the data set's own or held out from train."""
        return bool(self.validation or "validation" in self.split_names)

    @property
    def split_names(self) -> dict[str, str]:
        """The names in ``splits`` that are given."""
        return self.splits.model_dump(exclude_none=True) if self.splits else {}

    @model_validator(mode="before")
    @classmethod
    def _one_crop(cls, given: Any) -> Any:
        """A random resized crop replaces the default crop, but not one that the recipe sets."""
        if isinstance(given, dict) and given.get("random_resized_crop") is not None:
            return {"crop_padding": 0, **given}
        return given


Switch = Literal["auto", True, False]


class PerformanceSection(Section):
    """Speed and rounding of a run; the word ``auto`` in place of the mapping sets all to ``auto``."""

    channels_last: Switch = Field("auto", description="store images pixel by pixel: faster convolutions")
    fused_attention: Switch = Field(
        "auto", description="torch's fused kernel, or plain products: faster on a CPU, more memory"
    )
    matmul: Literal["auto", "ieee", "tf32", "bf16"] = Field(
        "auto",
        description="rounding inside products of fp32 numbers: ieee; tf32 (a GPU); bf16 (a CPU that has it)",
    )
    onednn_linear: Switch = Field(
        "auto", description="fp32 linear layers by oneDNN instead of the BLAS: a CPU that is not Intel's"
    )
    retain_memory: Switch = Field(
        "auto", description="on a CPU, keep freed memory for the next step: faster, up to half more memory"
    )
    compile: Switch = Field("auto", description="torch.compile: takes half a minute, then may be faster")

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, given: Any) -> Any:
        return {} if given == "auto" else given


class TrainSection(Section):
    """The training loop."""

    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = Field(100, description="passes over the train split")
    budget: Literal["epochs", "passes"] = Field(
        "epochs",
        description="what epochs and max_steps count: updates, or gradient passes (SAM: two per update)",
    )
    max_steps: PositiveInt | None = Field(
        None, description="updates after which the run and its schedule end"
    )
    batch_size: PositiveInt = Field(100, description="images per update, over all processes")
    micro_batch_size: PositiveInt | None = Field(
        None,
        description="images per forward pass and process: less memory, the same update except for BatchNorm",
    )
    ascent_batch: Annotated[Number, Field(gt=0, le=1)] = Field(
        1.0, description="fraction of the batch for the ascent gradient of a two-pass method"
    )
    eval_batch_size: PositiveInt | None = Field(None, description="images per evaluation batch and process")
    eval_every: PositiveInt = Field(1, description="epochs between evaluations")
    evaluate: Literal["all", "validation"] = Field(
        "all", description="validation: the test split is never evaluated, as in a search"
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="of the forward pass; weights stay fp32; fp16 scales the loss"
    )
    label_smoothing: Fraction = Field(0.0, description="in the training loss only")
    freeze: Literal["none", "backbone"] = Field("none", description="backbone trains the new head alone")
    batch_norm: Literal["update", "fixed"] = Field(
        "update", description="fixed: BatchNorm uses the pretrained running statistics"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the validation split, the order, the augmentation, the new head"
    )
    checkpoint_minutes: Annotated[Number, Field(gt=0)] = Field(
        10.0, description="longest time between two checkpoints; each epoch ends with one too"
    )
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="updates without a finite loss and gradient to skip before the run counts as diverged"
    )
    performance: PerformanceSection = Field(
        default_factory=lambda: PerformanceSection.model_validate({}),
        description="auto, or switches that change speed and rounding",
    )


class ModelSection(Section):
    """The backbone."""

    name: StrictStr = Field(
        description="timm model, with its weights tag where pretrained: resnet18.tv_in1k; or "
        "hf-hub:OWNER/NAME, local-dir:FOLDER"
    )
    pretrained: StrictBool | StrictStr = Field(
        True,
        description="true: the name's weights; false: random; or a file of weights, a run's folder, "
        "hf-hub:OWNER/NAME, local-dir:FOLDER",
    )
    head: Literal["auto", "keep", "new"] = Field(
        "auto",
        description="the weights' classifier: auto keeps it if its classes are the data's, else a new one",
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
    """Cost of choosing the optimizer's options on held-out images; only recorded."""

    trials: Annotated[int, Field(ge=0, le=10**9)] = Field(description="runs that the choice is based on")
    gradient_passes: Annotated[Number, Field(ge=0)] = Field(description="of all these runs in total")
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
        # What came later is left out where it is not used: digests of older recipes stay.
        unused = {
            key for key, used in (("test", self.data.test), ("splits", self.data.split_names)) if not used
        }
        exclude: dict[str, Any] = {"data": unused, "model": {"head"} if self.model.head == "auto" else set()}
        return self.model_dump(mode="json", exclude=exclude | ({} if self.tuning else {"tuning": True}))

    def digest(self) -> str:
        """sha256 (hex) of the resolved recipe: equal digests mean equal runs."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()


def cross_faults(recipe: Recipe) -> Iterator[ConfigIssue]:
    """Faults that no single field can see."""
    train, data, micro_batch_size = recipe.train, recipe.data, recipe.train.micro_batch_size or 0
    if micro_batch_size > train.batch_size:
        problem = f"{micro_batch_size} is more than batch_size {train.batch_size}"
        yield ConfigIssue("train.micro_batch_size", problem)
    if data.validation and "validation" in data.split_names:
        yield ConfigIssue("data.validation", "data.splits names a validation split: leave one out")
    if train.evaluate == "validation" and not data.holds_out:
        yield ConfigIssue("train.evaluate", "validation needs held-out images, such as data.validation=0.1")
    if data.random_resized_crop and data.crop_padding:
        problem = "random_resized_crop takes the place of this crop: leave it out, or set it to 0"
        yield ConfigIssue("data.crop_padding", problem)
    if recipe.schedule.warmup_epochs >= train.epochs:
        yield ConfigIssue("schedule.warmup_epochs", f"must be less than train.epochs ({train.epochs})")
