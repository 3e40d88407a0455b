"""Read folders of image files: class folders, tables of paths, Tiny ImageNet's archive."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pugdft.data.path_tables import SUFFIXES as TABLES
from pugdft.data.path_tables import Labelled, annotated, metadata_of, path_columns, table_rows
from pugdft.data.source import (
    SPLIT_NAMES,
    Contents,
    EncodedImage,
    Source,
    Split,
    SplitChoice,
    class_name,
    content_key,
    is_split_name,
    split_use,
    unknown_classes,
    visible,
)
from pugdft.errors import UserError, counted

# A file with such a name is meant as an image, and refused if it is none; others are recognised by content.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_STARTS = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n|GIF8[79]a|BM.{4}\0{4}|II[*+]\0|MM\0[*+]|RIFF.{4}WEBP|P[1-6]\s+[\d#]",
    re.DOTALL,
)
# What systems and programs leave in folders. Names that begin with a dot are left out too.
_ACCIDENTAL = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "lost+found", "icon\r"}
    | {"@recycle", "#recycle", "@recently-snapshot", "#snapshot", "system volume information", "__pycache__"}
    | {"@tmp", "temporary items", "network trash folder"}
)
_UNFINISHED = ("~", ".bak", ".orig", ".old", ".tmp", ".part", ".crdownload", ".swp")
_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
_ANNOTATIONS = "val_annotations.txt"
_SHOWN = 3


def is_accidental(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or was left by a system or a program."""
    lower = name.casefold()
    return name.startswith((".", "~$")) or lower.endswith(_UNFINISHED) or lower in _ACCIDENTAL


@dataclass
class LeftOut:
    """Files and folders below ``root`` that are not read."""

    root: Path
    accidental: set[Path] = field(default_factory=set)
    others: set[Path] = field(default_factory=set)
    empty: set[Path] = field(default_factory=set)
    unused: set[Path] = field(default_factory=set)
    loose: set[Path] = field(default_factory=set)
    unlisted: set[Path] = field(default_factory=set)
    packed: set[Path] = field(default_factory=set)
    tables: set[Path] = field(default_factory=set)
    twice: set[Path] = field(default_factory=set)

    def notes(self) -> Iterator[str]:
        """Name the first of each kind, with their number."""
        for found, kind in (
            (self.accidental, "hidden, or left by a system"),
            (self.others, "no images in a format that is read"),
            (self.empty, "class folders without images"),
            (self.loose, "images beside the class folders"),
            (self.unlisted, "images that no row of the table names"),
            (self.packed, "archives; unpack them if they belong to the data"),
            (self.tables, "tables without a column of labels, or beside the class folders that are read"),
            (self.unused, "folders of no split that is read; data.splits can name one"),
        ):
            if found:
                yield f"{self.root}: left out {len(found):,} ({kind}): {self._first(found)}"
        if self.twice:
            number = counted(len(self.twice), "image")
            yield f"{self.root}: several rows name {number}: {self._first(self.twice)}"

    def _first(self, found: set[Path]) -> str:
        names = [visible(os.path.relpath(each, self.root)) for each in sorted(found)[:_SHOWN]]
        return ", ".join(names) + (", …" if len(found) > _SHOWN else "")

    def look_beside(self, listed: Sequence[Labelled]) -> None:
        """Find images that tables name twice, and images beside those that they name which no row names."""
        count = Counter(file for rows in listed for file, _ in rows)
        self.twice |= {file for file, number in count.items() if number > 1}
        for place in {file.parent for file in count}:
            named = {each for each in place.iterdir() if each.suffix.lower() in SUFFIXES}
            self.unlisted |= {each for each in named if each not in count and not is_accidental(each.name)}

    def folders_in(self, folder: Path) -> list[Path]:
        """The folders in a folder that count, in the order of their names."""
        entries = sorted(folder.iterdir())
        self.accidental |= {each for each in entries if is_accidental(each.name)}
        return [each for each in entries if not is_accidental(each.name) and each.is_dir()]

    def images_below(self, folder: Path) -> list[Path]:
        """Every image file below a folder, in the order of their names.

        Raises:
            UserError: an image is a link that leads nowhere. What was not fetched must not go missing.
        """
        images: list[Path] = []
        for place, names, files in os.walk(folder):
            here = Path(place)
            self.accidental |= {here / name for name in (*names, *files) if is_accidental(name)}
            names[:] = [name for name in names if not is_accidental(name)]
            self.others |= {here / name for name in names if (here / name).is_symlink()}  # not gone into
            for file in (here / name for name in files if not is_accidental(name)):
                is_named = file.suffix.lower() in SUFFIXES
                if is_named and not file.exists():
                    raise UserError(
                        f"{file}: is a link that leads nowhere; fetch the image, or remove the link"
                    )
                if file.is_file() and (is_named or _begins_like_an_image(file)):
                    images.append(file)
                else:
                    self.others.add(file)
        return sorted(images)


def _begins_like_an_image(file: Path) -> bool:
    with file.open("rb") as opened:
        return _STARTS.match(opened.read(16)) is not None


def image_folder_source(folder: Path, name: str, choice: SplitChoice) -> Source | None:
    """A folder of image files; None if it has no such layout.

    ``train/CLASS/*.jpg`` and ``test|val/CLASS/*.jpg``; ``CLASS/*.jpg`` without a split; a table of paths and
    labels, such as ``metadata.csv`` or ``metadata.jsonl``, for each split or for all; Tiny ImageNet's archive
    (``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with ``val_annotations.txt``).

    Raises:
        UserError: a split is missing, a class folder of train has no image or holds its own split, a test
            class is unknown, a table or the annotations do not fit.
    """
    left = LeftOut(folder)
    folders = {each.name: each for each in left.folders_in(folder)}
    splits = _split_folders(folders, choice)
    classes = [at for each, at in folders.items() if each not in splits]
    files = [each for each in sorted(folder.iterdir()) if each.is_file() and not is_accidental(each.name)]
    left.packed |= {each for each in files if each.suffix.lower() in _ARCHIVES}
    described = [
        each
        for each in files
        if each.suffix.lower() in TABLES and (path_columns(each).path or each == metadata_of(folder))
    ]
    tables = [each for each in described if path_columns(each).are_enough]
    train_names = (*SPLIT_NAMES["train"], choice.named.get("train", "").casefold())
    train = next((at for each, at in splits.items() if each.casefold() in train_names), None)
    train = train or next((at for each, at in splits.items() if split_use(each) == "train"), None)
    # Beside other folders, one called train that holds images alone is a class: of vehicles, perhaps.
    if train is not None and (not classes or left.folders_in(train) or metadata_of(train)):
        has_own_labels = metadata_of(train) is not None or len(left.folders_in(train)) > 1
        if has_own_labels or not described:
            left.unused |= set(classes)
            left.tables |= set(described)
            return _read_splits(folder, name, choice, splits, left)
    if tables or (described and len(classes) < 2):
        left.tables |= set(described) - set(tables)
        return table_source(folder, name, choice, tables or described, left)
    if classes:
        return _read_classes(folder, name, choice, list(folders.values()), described, left)
    if left.packed:
        first = sorted(left.packed)[0].name
        raise UserError(f"{folder}: holds no folders of images, but {first}; unpack it here")
    return None


def _split_folders(folders: Mapping[str, Path], choice: SplitChoice) -> dict[str, Path]:
    """The folders of splits, by name: ``train``; if none is, ``train_data`` and ``my-test`` too."""
    splits = {
        name: at for name, at in folders.items() if is_split_name(name) or name in choice.named.values()
    }
    spoken = {name: split_use(name) for name in folders}
    # Words within a name tell only if all folders have one: a test tube is a class.
    are_splits = {"train"} < set(spoken.values()) and all(spoken.values())
    return dict(folders) if not splits and are_splits else splits


def _read_classes(
    folder: Path,
    name: str,
    choice: SplitChoice,
    classes: list[Path],
    described: Sequence[Path],
    left: LeftOut,
) -> Source:
    """Read class folders without splits above them."""
    notes: tuple[str, ...] = ()
    for place in classes:
        uses = {use for use, words in SPLIT_NAMES.items() for word in words if _has_folder(place, word)}
        if "train" in uses and len(uses) > 1:
            raise UserError(
                f"{folder}: holds no class folders: {place} has splits; give it as data.name. If it is a "
                f"class, move the splits above the classes: train/{place.name}"
            )
    root = _class_root(folder, left)
    if root != folder:
        classes, notes = left.folders_in(root), (f"{folder}: the class folders are those of {root.name}",)
    left.tables |= set(described)
    images = _class_folders(root, classes, left)
    labelled = _by_file_name(images)
    if len(labelled) > 1:
        notes = (*notes, f"{folder}: the images' file names tell their split")
    rows, origins, chosen = _chosen(folder, choice, labelled)
    return _source(folder, name, choice, rows, origins, [], (*notes, *chosen, *left.notes()))


def _by_file_name(images: Labelled) -> dict[str, Labelled]:
    """Images by the word of a split with which all their names begin (``train-0001.jpg``), or under one."""
    labelled: dict[str, Labelled] = {}
    for file, label in images:
        found = re.match(r"([a-z]+)[-._ \d]", file.name.casefold())
        word = found[1] if found and is_split_name(found[1]) else "all"
        labelled.setdefault(word, []).append((file, label))
    uses = {split_use(word) for word in labelled}
    return labelled if "train" in uses and "" not in uses and len(uses) > 1 else {"all": images}


def _class_root(place: Path, left: LeftOut, known: Collection[str] = ()) -> Path:
    """The folder of the class folders: an archive may unpack into one more folder, ``train/train/CLASS``."""
    folders = left.folders_in(place)
    if len(folders) != 1 or class_name(folders[0].name) in known or len(left.folders_in(folders[0])) < 2:
        return place
    files = [*place.iterdir(), *folders[0].iterdir()]
    return place if any(each.suffix.lower() in SUFFIXES for each in files) else folders[0]


def _has_folder(place: Path, word: str) -> bool:
    return any((place / name).is_dir() for name in (word, word.title(), word.upper()))


def _read_splits(
    folder: Path, name: str, choice: SplitChoice, splits: Mapping[str, Path], left: LeftOut
) -> Source:
    """Read a data set that has a folder for each split."""
    metadata = {each: metadata_of(at) for each, at in splits.items()}
    known: set[str] = set()

    def root(split: str) -> Path:
        return _class_root(splits[split], left, known)

    def is_usable(train: str, other: str) -> bool:
        if metadata[other] is not None or (splits[other] / _ANNOTATIONS).is_file():
            return True
        return _share_a_class(root(train), root(other))

    chosen, notes = choice.pick(list(splits), str(folder), is_usable)
    labelled: dict[str, Labelled] = {}
    tables = []
    for use, each in chosen.items():
        place, table, annotations = root(each), metadata[each], splits[each] / _ANNOTATIONS
        has_classes = len(left.folders_in(place)) > 1
        if table is not None and (path_columns(table).are_enough or not has_classes):
            labelled[use] = [row for rows in table_rows(table).values() for row in rows]
            tables.append(table)
        elif annotations.is_file() and not _share_a_class(root(chosen["train"]), place):
            labelled[use] = annotated(annotations)
            tables.append(annotations)
        else:
            left.tables |= {table} if table is not None else set()
            labelled[use] = _class_folders(place, left.folders_in(place), left, use == "train")
        if use == "train":
            known |= {label for _, label in labelled[use]}
    listed = [rows for each, rows in zip(chosen, labelled.values(), strict=True) if metadata[chosen[each]]]
    left.look_beside(listed)
    # An empty class folder of a split and none are the same fact, which ``_source`` tells.
    left.empty = {each for each in left.empty if class_name(each.name) not in known}
    return _source(folder, name, choice, labelled, chosen, tables, (*notes, *left.notes()))


def _share_a_class(train: Path, other: Path) -> bool:
    """Return whether a split has files in a class folder that train has too."""
    classes = {class_name(each.name) for each in LeftOut(train).folders_in(train)}
    known = (each for each in LeftOut(other).folders_in(other) if class_name(each.name) in classes)
    return any(files for each in known for _, _, files in os.walk(each))


def table_source(
    folder: Path, name: str, choice: SplitChoice, tables: Sequence[Path], left: LeftOut | None = None
) -> Source:
    """Tables of image paths, relative to them, and labels: one for each split, or one for all.

    One table's splits are those of a column, or of the folders that the paths begin with.

    Raises:
        UserError: it is not clear which table counts, or one names no image or has no label.
    """
    left = left or LeftOut(folder)
    if len(tables) > 1:
        splits = [each for each in tables if is_split_name(each.stem) or each.stem in choice.named.values()]
        if not splits:
            names = ", ".join(each.name for each in tables)
            raise UserError(f"{folder}: holds several tables: {names}. Give one of them as data.name")
        left.tables |= set(tables) - set(splits)
        rows = {each.stem: [row for rows in table_rows(each).values() for row in rows] for each in splits}
        tables = splits
    else:
        rows = table_rows(tables[0])
        if list(rows) == ["all"]:
            rows = _by_folder(folder, rows["all"], choice)
    left.look_beside(list(rows.values()))
    labelled, origins, notes = _chosen(folder, choice, rows)
    return _source(folder, name, choice, labelled, origins, list(tables), (*notes, *left.notes()))


def _by_folder(root: Path, images: Labelled, choice: SplitChoice) -> dict[str, Labelled]:
    """Images by their folder in ``root``, if each such folder is a split; else under one name."""
    labelled: dict[str, Labelled] = {}
    for file, label in images:
        top = file.relative_to(root).parts[0] if file.is_relative_to(root) else ""
        labelled.setdefault(top, []).append((file, label))
    are_splits = all(split_use(each) or each in choice.named.values() for each in labelled)
    return labelled if are_splits and len(labelled) > 1 else {"all": images}


def _chosen(
    folder: Path, choice: SplitChoice, labelled: Mapping[str, Labelled]
) -> tuple[dict[str, Labelled], dict[str, str], tuple[str, ...]]:
    chosen, notes = choice.pick(list(labelled), str(folder), lambda *_: True)
    return {use: labelled[each] for use, each in chosen.items()}, chosen, notes


def _source(
    folder: Path,
    name: str,
    choice: SplitChoice,
    labelled: Mapping[str, Labelled],
    origins: Mapping[str, str],
    tables: list[Path],
    notes: tuple[str, ...],
) -> Source:
    """Make the source of files with labels, by split."""
    known = {label for _, label in labelled["train"]}
    are_numbers = any(each.suffix != ".txt" for each in tables) and all(
        re.fullmatch(r"\d{1,9}", label) for label in known
    )
    classes = sorted(known, key=int) if are_numbers else sorted(known)
    for files in labelled.values():
        if strangers := sorted({label for _, label in files} - known):
            raise unknown_classes(strangers, str(folder), classes)
    if "test" in labelled and (absent := sorted(known - {label for _, label in labelled["test"]})):
        first = f'"{visible(absent[0])}" first'
        notes = (*notes, f"{folder}: no test image of {counted(len(absent), 'class')}, {first}")
    numbers = {label: number for number, label in enumerate(classes)}

    def split(files: Labelled) -> Split:
        def samples() -> Iterator[EncodedImage]:
            return (EncodedImage(file, numbers[label], str(file)) for file, label in files)

        return Split(len(files), samples)

    splits = {use: split(rows) for use, rows in labelled.items()}
    paths = [file for rows in labelled.values() for file, _ in rows]
    key = content_key("images", folder, [*paths, *tables], choice)
    contents = Contents(classes, splits, origins=origins)
    return choice.applied(Source(name, key, lambda: contents, folder, notes))


def _class_folders(split: Path, folders: Sequence[Path], left: LeftOut, is_train: bool = True) -> Labelled:
    """Every image below the class folders of a split, in the order of their names."""
    labelled: Labelled = []
    files = [each for each in split.iterdir() if not is_accidental(each.name) and each.is_file()]
    left.loose |= {each for each in files if each.suffix.lower() in SUFFIXES}
    left.packed |= {each for each in files if each.suffix.lower() in _ARCHIVES}
    real_split = split.resolve()
    for folder in folders:
        target = folder.resolve()
        if target == real_split or target in real_split.parents:
            raise UserError(
                f"{folder}: is a link to {target}, which holds every class; "
                "a class folder holds the images of one. Remove the link"
            )
        files = left.images_below(folder)
        if not files:
            left.empty.add(folder)
        labelled += [(file, class_name(folder.name)) for file in files]
    for table in (each for each in left.others if each.suffix.lower() in TABLES):
        if path_columns(table).are_enough:
            raise UserError(f"{table}: labels images below a folder of classes; put one table into {split}")
    empty = [folder for folder in folders if folder in left.empty]
    if empty and (is_train or not labelled):
        others = sorted(each.name for each in left.others if empty[0] in each.parents)
        instead = f"; it holds {counted(len(others), 'other file')}, {others[0]} first" if others else ""
        raise UserError(f"{empty[0]}: holds no image ({', '.join(sorted(SUFFIXES))}){instead}")
    if not labelled:
        packed = [each.name for each in sorted(left.packed) if each.parent == split]
        raise UserError(f"{split}: holds no class folders" + (f"; unpack {packed[0]}" if packed else ""))
    return labelled
