"""The schema of a recipe: its sections, keys, bounds and descriptions. No torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    model_validator,
)

from pugdft.errors import ConfigIssue, UserError

Number = Annotated[float, Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(ge=1, le=10**9)]


class Section(BaseModel):
    """A mapping of known keys with strict types: ``1`` is not text, ``yes`` is not true."""

    # Validators are built at first use: a table reads defaults alone, and building them takes longer than it.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, defer_build=True)


def _rising(pair: list[float]) -> list[float]:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
        raise ValueError("[low, high] with 0 < low ≤ high")
    return pair


def _within_image(scale: list[float]) -> list[float]:
    if scale[1] > 1:
        raise ValueError("at most 1: no box is larger than its image")
    return scale


def _three(values: list[float]) -> list[float]:
    if len(values) != 3:
        raise ValueError("three numbers in 0..1, such as [0.5, 0.5, 0.5]")
    return values


def _three_above_0(values: list[float]) -> list[float]:
    if len(values) != 3 or not all(values):
        raise ValueError("three numbers above 0 and at most 1, such as [0.25, 0.25, 0.25]")
    return values


Channels = list[Annotated[Number, Field(ge=0, le=1)]]
Range = Annotated[list[Number], AfterValidator(_rising)]
Alpha = Annotated[Number, Field(ge=0, le=1000)]


class RandomResizedCropSection(Section):
    """A box of each training image, resized to ``image_size``; the defaults are the field's."""

    scale: Annotated[Range, AfterValidator(_within_image)] = Field(
        [0.08, 1.0], description="area of the box as a fraction of the image, drawn uniformly"
    )
    ratio: Range = Field([0.75, 1.3333], description="width over height, drawn uniformly in its logarithm")


class RandomErasingSection(Section):
    """A box of some of the training images, blanked or filled with noise (arXiv 1708.04896)."""

    probability: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.25, description="of a box in a training image"
    )
    mode: Literal["const", "rand", "pixel"] = Field(
        "const",
        description="what fills the box, by timm's names: const, the mean of all images; rand, one random "
        "colour; pixel, a random colour for each pixel",
    )
    area: Annotated[Range, AfterValidator(_within_image)] = Field(
        [0.02, 0.3333], description="of the box as a fraction of the input, drawn uniformly"
    )
    ratio: Range = Field([0.3, 3.3333], description="width over height, drawn uniformly in its logarithm")


Strength = Annotated[Number, Field(ge=0, le=10)]


class ColorJitterSection(Section):
    """Random colours of each training image, as torchvision's ColorJitter, in an order drawn for each."""

    brightness: Strength = Field(
        0.0, description="b: a factor from 1 − b (at least 0) to 1 + b; also of contrast and saturation"
    )
    contrast: Strength = Field(0.0, description="of the distance to the image's mean grey")
    saturation: Strength = Field(0.0, description="of the distance to each pixel's grey")
    hue: Annotated[Number, Field(ge=0, le=0.5)] = Field(
        0.0, description="h: a turn from −h to h; 1 is a whole turn of the colour circle"
    )

    @model_validator(mode="after")
    def _changes_something(self) -> ColorJitterSection:
        if not any(self.model_dump().values()):
            raise UserError("give at least one of brightness, contrast, saturation, hue, such as {hue: 0.1}")
        return self


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
    resize: Literal["float", "pillow"] = Field(
        "float",
        description="of images that are stored smaller than image_size: in floating point, or to the bits "
        "of Pillow, so that timm's transform gives the recorded accuracy exactly",
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
    padding: Literal["black", "reflect"] = Field(
        "black", description="what crop_padding adds: black pixels, or the image mirrored at its edge"
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
    random_erasing: RandomErasingSection | None = Field(
        None, description="{probability: 0.25, mode: const, area: [0.02, 0.3333], …}, or {} for these"
    )
    color_jitter: ColorJitterSection | None = Field(
        None, description="{brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.1}, or some of them"
    )
    auto_augment: StrictStr | None = Field(
        None,
        description="timm's name of an augmentation of single images, such as rand-m9-mstd0.5-inc1; or "
        "cifar10: AutoAugment's policy for CIFAR-10 and CIFAR-100 (arXiv 1805.09501)",
    )
    mean: Annotated[Channels, AfterValidator(_three)] | None = Field(
        None,
        description="of red, green and blue, for pixels in 0..1, subtracted from the images; null: the "
        "model's own, which its weights were trained with",
    )
    std: Annotated[Channels, AfterValidator(_three_above_0)] | None = Field(
        None, description="what the images are divided by after that; null: the model's own"
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


def _class_weights(value: Any) -> Any:
    """``none``, ``balanced``, or a positive number for each class that is named."""
    if isinstance(value, dict):
        if not value or not all(isinstance(key, str) for key in value):
            raise ValueError('a mapping of class names, in quotes if they are numbers, such as {"7": 2}')
        for name, weight in value.items():
            is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not is_number or not 0 < weight <= 1e6:
                raise ValueError(f"a number above 0 and at most 1e6 for each class; that of {name} is none")
        return {name: float(weight) for name, weight in value.items()}
    if value not in ("none", "balanced"):
        raise ValueError("none, balanced, or a mapping such as {ant: 2}")
    return value


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
    gemm_convolution: Switch = Field(
        "auto", description="weight gradients of fp32 convolutions as matrix products: a CPU without AVX-512"
    )
    retain_memory: Switch = Field(
        "auto", description="on a CPU, keep all freed memory for the next step: faster, a sixth more memory"
    )
    compile: Switch = Field("auto", description="torch.compile: takes half a minute, then may be faster")

    @model_validator(mode="before")
    @classmethod
    def _auto(cls, given: Any) -> Any:
        return {} if given == "auto" else given


class EveryStepsSection(Section):
    """Snapshots by updates."""

    every_steps: PositiveInt = Field(description="updates between two snapshots")


def _says_when(given: Any) -> Any:
    is_mapping = isinstance(given, dict) and list(given) == ["every_steps"]
    number, least = (given["every_steps"], 1) if is_mapping else (given, 0)
    is_known = isinstance(given, EveryStepsSection)
    if not is_known and not (type(number) is int and least <= number <= 10**9):
        raise ValueError("0, epochs between snapshots such as 1, or updates such as {every_steps: 100}")
    return given


def _names_what_is_frozen(given: Any) -> Any:
    is_list = isinstance(given, list) and given and all(isinstance(each, str) and each for each in given)
    if given not in ("none", "backbone") and not is_list:
        raise ValueError("none, backbone, or a list of patterns of parameters' names, such as [layer1.*]")
    return given


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
    class_weights: Annotated[Any, AfterValidator(_class_weights)] = Field(
        "none",
        description="in the training loss only; balanced: images / (classes · images of the class); or a "
        "mapping of class names to weights, others have 1. The loss is the mean over images of weight times "
        "cross-entropy",
    )
    freeze: Annotated[
        Literal["none", "backbone"] | list[StrictStr], BeforeValidator(_names_what_is_frozen)
    ] = Field(
        "none",
        description="backbone trains the head alone; or shell-style patterns of the names of parameters that "
        "stay as they are, such as [stem.*, 'stages.[01].*']. A BatchNorm layer whose scale and shift are "
        "both frozen keeps its running statistics too, and normalises by them",
    )
    unfreeze_epoch: PositiveInt | None = Field(
        None, description="epochs after which what freeze names is trained too; null: never"
    )
    head_epochs: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        0, description="epochs at the start that train the head alone, as freeze=backbone does"
    )
    batch_norm: Literal["update", "fixed"] = Field(
        "update", description="fixed: BatchNorm uses the pretrained running statistics"
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        0, description="of the validation split, the order, the augmentation, the new head"
    )
    checkpoint_minutes: Annotated[Number, Field(gt=0)] = Field(
        10.0, description="longest time between two checkpoints; each epoch ends with one too"
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="the epoch whose weights are stored and whose metrics rank; best: of the best validation "
        "top-1, then the lowest validation loss (held-out images alone choose; one more copy of the weights)",
    )
    patience: PositiveInt | None = Field(
        None, description="epochs without a better validation top-1 or loss after which the run ends"
    )
    ema: Annotated[Number, Field(gt=0, lt=1)] | None = Field(
        None,
        description="decay of a moving average of the weights, such as 0.999: it is evaluated, stored and "
        "ranked, the plain weights are evaluated and stored beside it (one more copy of the model in memory)",
    )
    evaluate_train: Annotated[int, Field(ge=0, le=10**9)] = Field(
        0,
        description="fixed training images, of all classes alike, that each evaluation also sees as it sees "
        "test images: train_eval_loss and train_eval_top1 in the history, from before the first update on; "
        "without effect on the result",
    )
    snapshots: Annotated[int | EveryStepsSection, BeforeValidator(_says_when)] = Field(
        0,
        description="epochs between stored copies of the weights, or {every_steps: 100}; the first and the "
        "last weights are stored too. 0 and a search (evaluate: validation) store none; without effect on "
        "the result",
    )
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="updates without a finite loss and gradient to skip before the run counts as diverged"
    )
    performance: PerformanceSection = Field(
        default_factory=lambda: PerformanceSection.model_validate({}),
        description="auto, or switches that change speed and rounding",
    )

    @property
    def takes_snapshots(self) -> bool:
        """Whether weights are stored along the run; those of a search, which makes many runs, are not."""
        return bool(self.snapshots) and self.evaluate == "all"

    @property
    def evaluates_start(self) -> bool:
        """Whether the history begins with epoch 0, before the first update.

        It costs one evaluation, so only a run that is to be drawn pays for it.
        """
        return bool(self.evaluate_train) or self.takes_snapshots


# Arguments of a timm model that have a place of their own in a recipe, and which.
_SET_ELSEWHERE = {
    "num_classes": "the data decides it",
    "in_chans": "images have three channels",
    "img_size": "set data.image_size",
    "drop_rate": "set model.drop_rate",
    "drop_path_rate": "set model.drop_path_rate",
    "model_name": "set model.name",
    "dtype": "set train.precision",
    "device": "the machine decides it",
    "features_only": "a classifier is trained",
    "out_indices": "a classifier is trained",
    **dict.fromkeys(
        ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path"),
        "set model.pretrained",
    ),
    **dict.fromkeys(("cache_dir", "pretrained_filter_fn", "kwargs_filter", "feature_cfg"), "is timm's own"),
}


def _plain_arguments(given: dict[str, Any]) -> dict[str, Any]:
    for key, value in given.items():
        if key in _SET_ELSEWHERE:
            raise UserError(f"{key}: cannot be given here: {_SET_ELSEWHERE[key]}")
        for each in value if isinstance(value, list) else [value]:
            is_number = isinstance(each, int | float) and math.isfinite(each)
            if not (isinstance(each, str) or is_number):
                raise UserError(f"{key}: must be a number, true, false, a word, or a list of these")
    return given


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
    drop_rate: Fraction | None = Field(
        None, description="of dropout before the classifier, in training; null: as timm builds the model"
    )
    drop_path_rate: Fraction | None = Field(
        None,
        description="largest rate of stochastic depth (arXiv 1603.09382), in training; null: as timm builds "
        "the model",
    )
    args: Annotated[dict[str, Any], AfterValidator(_plain_arguments)] = Field(
        default_factory=dict,
        description="further arguments of timm.create_model for this model, such as {global_pool: max}: "
        "numbers, true, false, words, lists",
    )

    @property
    def options(self) -> dict[str, Any]:
        """What ``timm.create_model`` is given beside the name, the classes and the weights."""
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        lists = {key: tuple(each) if isinstance(each, list) else each for key, each in self.args.items()}
        return lists | {key: rate for key, rate in rates.items() if rate is not None}


class ScheduleSection(Section):
    """The learning rate over the run, as a factor of the base optimizer's lr, changed at every step."""

    name: Literal["cosine", "linear", "step", "one_cycle", "constant"] = Field(
        "cosine",
        description="cosine and linear fall to min_lr at the last step; step multiplies by factor; one_cycle "
        "rises from lr/25 for warmup_epochs (0: 30 % of the run), then falls like cosine",
    )
    warmup_epochs: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="linear rise from 0 to lr, in epochs"
    )
    min_lr: Annotated[Number, Field(ge=0)] = Field(
        0.0, description="the lowest learning rate after the warm-up; with layer_decay, of the last layer"
    )
    milestones: Annotated[list[Annotated[Number, Field(gt=0)]], Field(min_length=1)] | None = Field(
        None, description="of step: epochs after which lr is multiplied by factor, such as [30, 60, 90]"
    )
    step_epochs: Annotated[Number, Field(gt=0)] | None = Field(
        None,
        description="of step, in place of milestones: lr is multiplied by factor after each so many epochs",
    )
    factor: Annotated[Number, Field(gt=0, lt=1)] = Field(0.1, description="of step")


def base_lr(spec: Mapping[str, Any]) -> float:
    """The learning rate of a checked ``optimizer`` mapping: of its base, or of the base alone."""
    return float(spec.get("base", spec)["lr"])


class TuningSection(Section):
    """Cost of choosing the optimizer's options on held-out images; only recorded."""

    trials: Annotated[int, Field(ge=0, le=10**9)] = Field(description="runs that the choice is based on")
    gradient_passes: Annotated[Number, Field(ge=0)] = Field(description="of all these runs in total")
    search: StrictStr = Field("", description="how the options were searched")


# Keys that were added after the first recipes had digests.
_LATER_KEYS: Mapping[str, Sequence[str]] = {
    "model": ("head", "drop_rate", "drop_path_rate", "args"),
    "data": ("test", "splits", "resize", "random_erasing", "color_jitter", "padding", "mean", "std"),
    "schedule": ("min_lr", "milestones", "step_epochs", "factor"),
    "train": ("class_weights", "keep", "patience", "ema", "unfreeze_epoch", "head_epochs", "evaluate_train",
              "snapshots"),
}  # fmt: skip
# Keys that change what a run leaves, and no update.
_NOT_IN_DIGEST: Mapping[str, Sequence[str]] = {"train": ("evaluate_train", "snapshots")}


def _is_used(section: Section, key: str) -> bool:
    value, field = getattr(section, key), type(section).model_fields[key]
    if isinstance(value, SplitsSection):
        return bool(value.model_dump(exclude_none=True))
    return bool(value != field.get_default(call_default_factory=True))


BASE_KEY = "a bundled recipe's name or a recipe's file that this one begins with; the rest is what differs"


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
        exclude: dict[str, Any] = {
            name: {key: True for key in keys if not _is_used(getattr(self, name), key)}
            for name, keys in _LATER_KEYS.items()
        }
        if not _is_used(self.train.performance, "gemm_convolution"):
            exclude["train"]["performance"] = {"gemm_convolution"}
        return self.model_dump(mode="json", exclude=exclude | ({} if self.tuning else {"tuning": True}))

    def digest(self) -> str:
        """sha256 (hex) of what decides a run's updates: equal digests mean equal runs."""
        content = self.as_dict()
        for section, keys in _NOT_IN_DIGEST.items():
            content[section] = {key: each for key, each in content[section].items() if key not in keys}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


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
    for key, used in (("keep", train.keep == "best"), ("patience", train.patience is not None)):
        if used and not data.holds_out:
            problem = "needs held-out images, such as data.validation=0.1: the test split never chooses"
            yield ConfigIssue(f"train.{key}", problem)
    if data.random_resized_crop and data.crop_padding:
        problem = "random_resized_crop takes the place of this crop: leave it out, or set it to 0"
        yield ConfigIssue("data.crop_padding", problem)
    if data.padding != "black" and not data.crop_padding:
        yield ConfigIssue("data.padding", "has no effect: data.crop_padding is 0, so no pixels are added")
    yield from _schedule_faults(recipe)
    yield from _freezing_faults(recipe)


def _schedule_faults(recipe: Recipe) -> Iterator[ConfigIssue]:
    schedule, epochs, given = recipe.schedule, recipe.train.epochs, recipe.schedule.model_fields_set
    if schedule.warmup_epochs >= epochs:
        yield ConfigIssue("schedule.warmup_epochs", f"must be less than train.epochs ({epochs})")
    if schedule.name != "step":
        own = [key for key in ("milestones", "step_epochs", "factor") if key in given]
        is_used = [key for key in own if getattr(schedule, key) != ScheduleSection.model_fields[key].default]
        yield from (ConfigIssue(f"schedule.{key}", "is only for schedule.name=step") for key in is_used)
    elif (schedule.milestones is None) == (schedule.step_epochs is None):
        problem = "step needs either milestones, such as [30, 60, 90], or step_epochs, such as 30"
        yield ConfigIssue("schedule.name", problem)
    times = [schedule.warmup_epochs, *(schedule.milestones or ()), epochs]
    if schedule.milestones and any(first >= second for first, second in pairwise(times)):
        problem = f"must rise, after the warm-up and before the end of the run ({epochs} epochs)"
        yield ConfigIssue("schedule.milestones", problem)
    if schedule.step_epochs is not None and schedule.step_epochs >= epochs:
        yield ConfigIssue("schedule.step_epochs", f"must be less than train.epochs ({epochs})")
    if schedule.min_lr and schedule.name == "constant":
        yield ConfigIssue("schedule.min_lr", "constant never falls: leave it out, or choose another schedule")
    with suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError):  # the optimizer has faults
        if 0 < schedule.min_lr > (lr := base_lr(recipe.optimizer)):
            yield ConfigIssue("schedule.min_lr", f"must be at most the optimizer's lr, {lr:g}")


def _freezing_faults(recipe: Recipe) -> Iterator[ConfigIssue]:
    train, model = recipe.train, recipe.model
    until = train.unfreeze_epoch
    if until is not None and train.freeze == "none":
        problem = "nothing is frozen; train.head_epochs is for training the head first"
        yield ConfigIssue("train.unfreeze_epoch", problem)
    for key, number in (("unfreeze_epoch", until or 0), ("head_epochs", train.head_epochs)):
        if number >= train.epochs:
            yield ConfigIssue(f"train.{key}", f"must be less than train.epochs ({train.epochs})")
    if train.head_epochs and train.freeze == "backbone":
        problem = "freeze=backbone trains the head alone already; train.unfreeze_epoch ends that"
        yield ConfigIssue("train.head_epochs", problem)
    elif until is not None and until <= train.head_epochs:
        problem = f"must be more than train.head_epochs ({train.head_epochs})"
        yield ConfigIssue("train.unfreeze_epoch", problem)
    for key in ("drop_rate", "drop_path_rate"):
        if getattr(model, key) and train.freeze == "backbone" and until is None:
            problem = "has no effect while train.freeze=backbone: the frozen backbone drops nothing"
            yield ConfigIssue(f"model.{key}", problem)
