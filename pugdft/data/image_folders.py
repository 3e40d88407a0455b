"""Folders of image files: one folder a class, or Tiny ImageNet's own archive."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pugdft.data.contents import Contents, Sample, Source, Split, content_key
from pugdft.errors import UserError, counted

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_ANNOTATIONS = "val_annotations.txt"
_TEST_NAMES = ("test", "val", "valid")

Labelled = list[tuple[Path, str]]


def image_folder_source(folder: Path, name: str) -> Source:
    """``train/CLASS/*.jpg`` and ``test|val/CLASS/*.jpg``, or Tiny ImageNet as its authors pack it.

    In Tiny ImageNet's archive (``train/WNID/images/*.JPEG``, ``val/images/*.JPEG`` with
    ``val_annotations.txt``) the ``test`` folder has no labels; its ``val`` folder is the test split.

    Raises:
        UserError: a split is missing, a class folder has no image or holds its own split, a test class
            is unknown, the annotations do not fit.
    """
    train = _class_folders(folder / "train")
    annotations = folder / "val" / _ANNOTATIONS
    if annotations.is_file():
        test = _annotated(annotations)
    else:
        test_folder = next((folder / each for each in _TEST_NAMES if (folder / each).is_dir()), None)
        if test_folder is None:
            raise UserError(f"{folder}: has no folder {' or '.join(_TEST_NAMES)} beside train")
        test = _class_folders(test_folder)
    classes = sorted({label for _, label in train})
    if strangers := sorted({label for _, label in test} - set(classes)):
        raise UserError(
            f'{folder}: {counted(len(strangers), "class")} of the test split, "{strangers[0]}" first, '
            "not in the train split"
        )
    numbers = {label: number for number, label in enumerate(classes)}

    def split(files: Labelled) -> Split:
        def samples() -> Iterator[Sample]:
            return (Sample(file, numbers[label], str(file)) for file, label in files)

        return Split(len(files), samples)

    files = [file for file, _ in (*train, *test)]
    if annotations.is_file():
        files.append(annotations)
    key = content_key("images", folder, files)
    return Source(name, key, lambda: Contents(classes, split(train), split(test)), folder)


def _class_folders(split: Path) -> Labelled:
    """Every image below ``split/CLASS``, in the order of their names."""
    labelled: Labelled = []
    real_split = split.resolve()
    for folder in sorted(each for each in split.iterdir() if each.is_dir() and not each.name.startswith(".")):
        target = folder.resolve()
        if target == real_split or target in real_split.parents:
            raise UserError(
                f"{folder}: is a link to {target}, which holds every class; "
                "a class folder holds the images of one. Remove the link"
            )
        named = [file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES]
        files = sorted(file for file in named if file.is_file())
        # What was not fetched must not go missing in silence.
        if len(files) < len(named) and (gone := [file for file in named if not file.exists()]):
            raise UserError(f"{min(gone)}: is a link that leads nowhere; fetch the image, or remove the link")
        if not files:
            raise UserError(f"{folder}: holds no image ({', '.join(sorted(SUFFIXES))})")
        labelled += [(file, folder.name) for file in files]
    if not labelled:
        raise UserError(f"{split}: holds no class folders")
    return labelled


def _annotated(annotations: Path) -> Labelled:
    labelled: Labelled = []
    try:
        lines = annotations.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{annotations} line {number}: is not UTF-8 text; save the file as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        file = annotations.parent / "images" / Path(fields[0]).name
        if len(fields) < 2 or not os.path.isfile(file):  # pathlib's raises where a name is too long
            raise UserError(f"{annotations} line {number}: names no image of {annotations.parent / 'images'}")
        labelled.append((file, fields[1]))
    return labelled
