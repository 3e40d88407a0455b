"""Read folders of image files: class folders, tables of paths, Tiny ImageNet's archive."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

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
    unknown_classes,
    visible,
)
from pugdft.errors import UserError, counted, refuse

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
_ANNOTATIONS, _METADATA = "val_annotations.txt", "metadata.csv"
_PATH_COLUMNS = ("file_name", "path", "file", "filename", "filepath", "file_path", "image_path", "image")
_LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "labels")
_SPLIT_COLUMNS = ("split", "set", "subset")
_SHOWN = 3

Labelled = list[tuple[Path, str]]


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

    def notes(self) -> Iterator[str]:
        """Name the first of each kind, with their number."""
        for found, kind in (
            (self.accidental, "hidden, or left by a system"),
            (self.others, "no images in a format that is read"),
            (self.empty, "class folders without images"),
            (self.loose, "images beside the class folders"),
            (self.unused, "folders of no split that is read; data.splits can name one"),
        ):
            if found:
                names = [visible(str(each.relative_to(self.root))) for each in sorted(found)]
                more = ", …" if len(names) > _SHOWN else ""
                yield f"{self.root}: left out {len(found):,} ({kind}): {', '.join(names[:_SHOWN])}{more}"

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
    labels, such as ``metadata.csv``, for each split or for all; Tiny ImageNet's archive
    (``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with ``val_annotations.txt``).

    Raises:
        UserError: a split is missing, a class folder of train has no image or holds its own split, a test
            class is unknown, a table or the annotations do not fit.
    """
    left = LeftOut(folder)
    folders = {each.name: each for each in left.folders_in(folder)}
    splits = {
        each: at for each, at in folders.items() if is_split_name(each) or each in choice.named.values()
    }
    classes = [at for each, at in folders.items() if each not in splits]
    train_names = (*SPLIT_NAMES["train"], choice.named.get("train", "").casefold())
    train = next((at for each, at in splits.items() if each.casefold() in train_names), None)
    # Beside other folders, one called train that holds images alone is a class: of vehicles, perhaps.
    if train is not None and (not classes or left.folders_in(train) or (train / _METADATA).is_file()):
        left.unused |= set(classes)
        return _read_splits(folder, name, choice, splits, left)
    if tables := [each for each in sorted(folder.glob("*.[ct]sv")) if _columns(each)]:
        return table_source(folder, name, choice, tables)
    if classes:
        for place in classes:
            uses = {use for use, words in SPLIT_NAMES.items() for word in words if _has_folder(place, word)}
            if "train" in uses and len(uses) > 1:
                raise UserError(f"{folder}: holds no class folders: {place} has splits; give it as data.name")
        labelled = {"all": _class_folders(folder, list(folders.values()), left)}
        rows, origins, notes = _chosen(folder, choice, labelled)
        return _source(folder, name, choice, rows, origins, [], (*notes, *left.notes()))
    return None


def _has_folder(place: Path, word: str) -> bool:
    return any((place / name).is_dir() for name in (word, word.title(), word.upper()))


def _read_splits(
    folder: Path, name: str, choice: SplitChoice, splits: Mapping[str, Path], left: LeftOut
) -> Source:
    """Read a data set that has a folder for each split."""

    def is_usable(train: str, other: str) -> bool:
        marks = (splits[other] / _ANNOTATIONS, splits[other] / _METADATA)
        return any(map(os.path.isfile, marks)) or _share_a_class(splits[train], splits[other])

    chosen, notes = choice.pick(list(splits), str(folder), is_usable)
    labelled: dict[str, Labelled] = {}
    tables = []
    for use, place in ((use, splits[each]) for use, each in chosen.items()):
        annotations, metadata = place / _ANNOTATIONS, place / _METADATA
        if metadata.is_file():
            labelled[use] = [row for rows in _rows(metadata).values() for row in rows]
            tables.append(metadata)
        elif annotations.is_file() and not _share_a_class(splits[chosen["train"]], place):
            labelled[use] = _annotated(annotations)
            tables.append(annotations)
        else:
            labelled[use] = _class_folders(place, left.folders_in(place), left, use == "train")
    # An empty class folder of a split and none are the same fact, which ``_source`` tells.
    trained = {label for _, label in labelled["train"]}
    left.empty = {each for each in left.empty if class_name(each.name) not in trained}
    return _source(folder, name, choice, labelled, chosen, tables, (*notes, *left.notes()))


def _share_a_class(train: Path, other: Path) -> bool:
    """Return whether a split has files in a class folder that train has too."""
    classes = {class_name(each.name) for each in LeftOut(train).folders_in(train)}
    known = (each for each in LeftOut(other).folders_in(other) if class_name(each.name) in classes)
    return any(files for each in known for _, _, files in os.walk(each))


def table_source(folder: Path, name: str, choice: SplitChoice, tables: Sequence[Path]) -> Source:
    """Tables of image paths, relative to them, and labels: one for each split, or one, perhaps with a column.

    Raises:
        UserError: it is not clear which table counts, or one names no image or has no label.
    """
    if len(tables) > 1:
        splits = [each for each in tables if is_split_name(each.stem) or each.stem in choice.named.values()]
        if not splits:
            names = ", ".join(each.name for each in tables)
            raise UserError(f"{folder}: holds several tables: {names}. Give one of them as data.name")
        rows = {each.stem: [row for rows in _rows(each).values() for row in rows] for each in splits}
        tables = splits
    else:
        rows = _rows(tables[0])
    labelled, origins, notes = _chosen(folder, choice, rows)
    return _source(folder, name, choice, labelled, origins, list(tables), notes)


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
            raise unknown_classes(strangers, str(folder))
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
    named = [each for each in split.iterdir() if each.suffix.lower() in SUFFIXES]
    left.loose |= {each for each in named if not is_accidental(each.name) and each.is_file()}
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
    empty = [folder for folder in folders if folder in left.empty]
    if empty and (is_train or not labelled):
        others = sorted(each.name for each in left.others if empty[0] in each.parents)
        instead = f"; it holds {counted(len(others), 'other file')}, {others[0]} first" if others else ""
        raise UserError(f"{empty[0]}: holds no image ({', '.join(sorted(SUFFIXES))}){instead}")
    if not labelled:
        raise UserError(f"{split}: holds no class folders")
    return labelled


def _columns(table: Path) -> tuple[str, str, str | None, str] | None:
    """The names of a table's columns of paths, labels and perhaps splits, and what divides its fields."""
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        line = file.readline(10_000).rstrip("\r\n")
    divider = max(",;\t", key=line.count)
    names = {each.strip().lower(): each for each in next(csv.reader([line], delimiter=divider), [])}
    path, label, split = (
        next((names[each] for each in known if each in names), None)
        for known in (_PATH_COLUMNS, _LABEL_COLUMNS, _SPLIT_COLUMNS)
    )
    return None if path is None or label is None else (path, label, split, divider)


def _rows(table: Path) -> dict[str, Labelled]:
    """The images of a table with their labels, by split; all under one name if it has no such column."""
    columns = _columns(table)
    if columns is None:
        raise UserError(
            f"{table}: needs a column of paths ({', '.join(_PATH_COLUMNS)}) and one of labels "
            f"({', '.join(_LABEL_COLUMNS)})"
        )
    path, label, split, divider = columns
    labelled: dict[str, Labelled] = {}
    text = StringIO(_utf8_text(table).removeprefix("\ufeff"), newline="")
    reader = csv.DictReader(text, delimiter=divider)
    with refuse(csv.Error, lambda error: f"{table} line {reader.line_num}: {error}"):
        for row in reader:
            file, name = table.parent / (row[path] or "").strip(), class_name(row[label] or "")
            if not os.path.isfile(file):
                raise UserError(f'{table} line {reader.line_num}: "{visible(row[path] or "")}" is no file')
            if not name:
                raise UserError(f"{table} line {reader.line_num}: has no label")
            part = (row[split] or "").strip() if split else "all"
            labelled.setdefault(part, []).append((file, name))
    if not labelled:
        raise UserError(f"{table}: has no rows")
    return labelled


def _utf8_text(file: Path) -> str:
    def not_utf8(error: UnicodeDecodeError) -> str:
        number = error.object[: error.start].count(b"\n") + 1
        return f"{file} line {number}: is not UTF-8 text; save the file as UTF-8"

    with refuse(UnicodeDecodeError, not_utf8):
        return file.read_text(encoding="utf-8")


def _annotated(annotations: Path) -> Labelled:
    """The images and classes that Tiny ImageNet's annotations name."""
    labelled: Labelled = []
    for number, line in enumerate(_utf8_text(annotations).splitlines(), start=1):
        fields = line.split("\t")
        file = annotations.parent / "images" / Path(fields[0]).name
        if len(fields) < 2 or not os.path.isfile(file):  # pathlib's raises where a name is too long
            raise UserError(f"{annotations} line {number}: names no image of {annotations.parent / 'images'}")
        labelled.append((file, class_name(fields[1])))
    return labelled
