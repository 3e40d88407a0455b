"""Where a recipe's images are or would come from, and whether they fit on the disk when decoded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from pugdft.config.schema import Recipe
from pugdft.data.cache import NoRoom, check_room, find_facts
from pugdft.data.datasets import (
    BUNDLED,
    HUB_DATASETS,
    SPLITS,
    Contents,
    Sample,
    Source,
    open_source,
    remembered_key,
)
from pugdft.data.decode import FORMATS, kept_name
from pugdft.doctor.caches import StoreState, examine
from pugdft.doctor.folders import existing, hub_cache
from pugdft.doctor.report import Line, size
from pugdft.errors import UserError, counted
from pugdft.paths import cache_folder, data_folder, stay_offline_without_network


@dataclass(frozen=True)
class Published:
    """What is known of a data set of the Hub before it is here."""

    images: int
    side: int
    classes: int


PUBLISHED = {
    "cifar10": Published(60_000, 32, 10),
    "cifar100": Published(60_000, 32, 100),
    "tiny_imagenet": Published(110_000, 64, 200),
}
_LARGEST_READ = 8 * 2**30


class DataNeeds:
    """Lines about a recipe's data; ``num_classes`` is what they found, None if nothing."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.num_classes: int | None = None

    def lines(self) -> Iterator[Line]:
        """The source, then what is decoded of it, or the room for it."""
        name = self.recipe.data.name
        if name in HUB_DATASETS and not (data_folder() / name).is_dir():
            yield from self._of_the_hub(name)
            return
        place = Path(os.path.expanduser(name)) if name not in HUB_DATASETS else data_folder() / name
        if place.is_dir() and (num_bytes := _bytes_in(place)) > _LARGEST_READ:
            text = f"{place}, more than {size(_LARGEST_READ)}: too much to read now"
            yield Line("note", "data", text, f"pugdft data prepare {name}")
            return
        try:
            source = open_source(name)
        except UserError as error:
            yield Line("problem", "data", _one_line(error), "give a folder with one of these layouts")
            return
        where = "bundled with pugdft" if name == BUNDLED else f"{place}, {size(num_bytes)}"
        yield Line("ok", "data", f"{name}: {where}" if name in HUB_DATASETS else where)
        yield from self._of_source(source)

    def _of_the_hub(self, name: str) -> Iterator[Line]:
        published, repository = PUBLISHED[name], HUB_DATASETS[name].repository
        self.num_classes = published.classes
        key = remembered_key(f"{name}.hub.txt")
        if key and (store := self._store(key)):
            yield Line("ok", "data", f"{name}: prepared before; the Hub is not asked")
            yield self._whole(store)
            return
        fetched = Path(os.environ.get("HF_DATASETS_CACHE") or hub_cache() / "datasets")
        here = fetched / repository.replace("/", "___")
        remedy = (
            f"with a network: pugdft data prepare {name}; without: put its files into {data_folder() / name}"
        )
        if here.is_dir():
            yield Line("ok", "data", f"{name}: fetched before, in {here}")
        elif stay_offline_without_network():
            text = f"{name}: not here, and there is no way to the Hub (no network, or HF_HUB_OFFLINE)"
            yield Line("problem", "data", text, remedy)
        else:
            yield Line("note", "data", f"{name}: a run would fetch {repository} from the Hub first", remedy)
        side = min(published.side, self.recipe.data.image_size)
        yield self._room(Source(name, "", _nothing), published.images * side * side * 3, published.images)

    def _of_source(self, source: Source) -> Iterator[Line]:
        if store := self._store(source.key):
            self.num_classes = store.num_classes
            yield self._whole(store)
            return
        contents = source.read()
        self.num_classes = len(contents.classes)
        parts = [getattr(contents, split) for split in SPLITS]
        num_images = sum(part.size for part in parts)
        root = cache_folder() / "stores"
        if root.is_dir() and (facts := find_facts(root, source, self.recipe.data.image_size)):
            yield Line("ok", "decoded", f"no: {num_images:,} images are read from their files each time")
            if self.recipe.data.storage == "files":
                return
            num_bytes = facts.nbytes
        else:
            side = _side_when_kept(next(parts[0].samples()), self.recipe.data.image_size)
            num_bytes = num_images * side * side * 3
        yield self._room(source, num_bytes, num_images)
        held_out = round(parts[0].size * self.recipe.data.validation)
        if self.recipe.train.batch_size > parts[0].size - held_out:
            text = f"{self.recipe.train.batch_size} is more than {counted(parts[0].size - held_out, 'image')}"
            yield Line("problem", "batch size", text, "set train.batch_size to fewer")

    def _store(self, key: str) -> StoreState | None:
        """The decoded store that a run would use."""
        image_size = self.recipe.data.image_size
        for resize_to in (None, image_size):
            folder = cache_folder() / "stores" / kept_name(key, resize_to)
            if folder.is_dir():
                store = examine(folder)
                if not store.fault and store.side <= image_size and self.recipe.data.storage != "files":
                    return store
        return None

    def _whole(self, store: StoreState) -> Line:
        return Line("ok", "decoded", f"{store.num_images:,} images of {store.side}², {size(store.num_bytes)}")

    def _room(self, source: Source, num_bytes: int, num_images: int) -> Line:
        storage, root = self.recipe.data.storage, existing(cache_folder())
        text = f"not yet; {counted(num_images, 'image')} will take {size(num_bytes)} in the cache"
        if storage == "files":
            return Line("ok", "decoded", "never: data.storage is files")
        try:
            check_room(root, source, num_bytes, storage == "auto" and source.folder is not None)
        except NoRoom as error:
            remedy = "slower, and right; for speed set PUGDFT_CACHE to a folder on a larger disk"
            return Line(
                "note", "decoded", f"{error}: images will be decoded from their files each time", remedy
            )
        except UserError as error:
            return Line(
                "problem", "decoded", _one_line(error), "set PUGDFT_CACHE to a folder on a larger disk"
            )
        return Line("ok", "decoded", text)


def _side_when_kept(sample: Sample, image_size: int) -> int:
    """The side at which a store would keep images like this one."""
    content = BytesIO(sample.content) if isinstance(sample.content, bytes) else sample.content
    with Image.open(content, formats=FORMATS) as image:
        width, height = image.size
    return width if width == height <= image_size else image_size


def _bytes_in(folder: Path) -> int:
    """Size of the files in a folder; counting ends where it is too much to read."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except OSError:
                continue
        if total > _LARGEST_READ:
            break
    return total


def _one_line(error: UserError) -> str:
    return " ".join(str(error).split())


def _nothing() -> Contents:
    raise AssertionError("is not read")
