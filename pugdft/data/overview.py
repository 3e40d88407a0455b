"""Look at a data set without preparing it: splits, classes, sizes, what is left out, and a contact sheet."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pugdft.data.cache import known_sha256
from pugdft.data.decode import all_named, decode, stated_size
from pugdft.data.source import Contents, EncodedImage, Source, visible
from pugdft.errors import ConfigIssue, UserError, collect, counted, reason, refuse
from pugdft.paths import write_atomically

_CHUNK = 512
_SIDE, _GAP, _TITLE = 72, 4, 20  # of a contact sheet, in pixels
_MOST_DRAWN = 1_000  # classes
_PAPER, _INK, _FAULT = (255, 255, 255), (40, 40, 40), (200, 60, 60)


def overview(source: Source, image_size: int) -> dict[str, Any]:
    """Facts of a data set, ready for JSON; reads the header of every image.

    Args:
        source: opened with ``only_looks``.
        image_size: side of the backbone's input: the digest of prepared images may depend on it.

    Raises:
        UserError: the data set cannot be read.
    """
    contents = source.read()
    counts = {split: Counter[int]() for split in contents.splits}
    sizes, faults = list[tuple[int, int]](), list[ConfigIssue]()

    def measure(sample: EncodedImage) -> None:
        with collect(faults):
            if not 0 <= sample.label < len(contents.classes):
                raise UserError(f"{sample.where}: label {sample.label} is not one of the classes")
            sizes.append(stated_size(sample))

    with ThreadPoolExecutor() as pool:
        for split, part in contents.splits.items():
            samples = part.samples()
            while chunk := list(islice(samples, _CHUNK)):
                counts[split].update(sample.label for sample in chunk)
                list(pool.map(measure, chunk))
    train = [counts["train"][number] for number in range(len(contents.classes))]
    smallest = min(train, default=0)
    return {
        "name": source.name,
        "folder": None if source.folder is None else str(source.folder),
        "splits": {
            split: {"images": part.size, "from": contents.origins.get(split, split)}
            for split, part in contents.splits.items()
        },
        "classes": [
            {"name": name, **{split: counts[split][number] for split in counts}}
            for number, name in enumerate(contents.classes)
        ],
        "imbalance": max(train) / smallest if smallest else None,
        "sizes": _sizes(np.array(sizes)) if sizes else None,
        "notes": [*dict.fromkeys((*source.notes, *contents.notes))],
        "faults": sorted(map(str, faults)),
        "sha256": known_sha256(source, image_size),
        "key": source.key,
    }


def _sizes(sizes: np.ndarray) -> dict[str, dict[str, float]]:
    """Smallest, median and largest width and height of (images, 2) sizes."""
    return {
        name: {"min": int(each.min()), "median": float(np.median(each)), "max": int(each.max())}
        for name, each in zip(("width", "height"), sizes.T, strict=True)
    }


def overview_text(facts: dict[str, Any]) -> str:
    """The facts of :func:`overview` for people."""
    from rich.cells import cell_len

    splits, classes = facts["splits"], facts["classes"]
    total = sum(each["images"] for each in splits.values())
    where = f" in {facts['folder']}" if facts["folder"] else ""
    lines = [f"{facts['name']}: {counted(total, 'image')} of {counted(len(classes), 'class')}{where}", ""]
    for name, each in splits.items():
        origin = "" if each["from"] in (name, "all") else f"  from {visible(each['from'])}"
        lines.append(f"{name:<10}  {each['images']:>9,}{origin}")
    rows = _shown_classes(classes)
    names = [visible(row["name"]) for row in rows if row]
    width = max([5, *map(cell_len, names)])
    lines += ["", "class".ljust(width) + "".join(f"  {split:>10}" for split in splits)]
    for row in rows:
        if row is None:
            lines.append(f"… {len(classes) - len(names):,} more; --format json lists all")
            continue
        name = visible(row["name"])
        numbers = "".join(f"  {row[split]:>10,}" for split in splits)
        lines.append(name + " " * (width - cell_len(name)) + numbers)
    ratio = facts["imbalance"]
    lines += ["", f"imbalance: the largest class of train has {ratio:.2f} times the images of the smallest"]
    for name, each in (facts["sizes"] or {}).items():
        lines.append(f"{name + ':':<8} {each['min']} to {each['max']} pixels, median {each['median']:g}")
    if facts["faults"]:
        lines += ["", all_named(facts["faults"])]
    lines += ["", *facts["notes"]] if facts["notes"] else []
    prepared = facts["sha256"] or "not prepared yet; `pugdft data prepare` computes it from the pixels"
    return "\n".join([*lines, "", f"sha256:  {prepared}", f"files:   {facts['key']}"])


def _shown_classes(classes: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """All classes, or of many the largest and the smallest of train, with None between them."""
    if len(classes) <= 40:
        return [*classes]
    ordered = sorted(classes, key=lambda each: -int(each["train"]))
    return [*ordered[:15], None, *ordered[-15:]]


def contact_sheet(source: Source, path: Path) -> None:
    """Draw a few images of each class, as a backbone sees them, into a picture file.

    Training images stand on the left, test images on the right of a line.

    Raises:
        UserError: the file cannot be written, has a suffix of no picture, or would lie among the images.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in ("PNG", "JPEG", "WEBP"):
        raise UserError(f"--contact-sheet: {path}: must end in .png, .jpg or .webp")
    if source.folder and path.resolve().is_relative_to(source.folder.resolve()):
        raise UserError(f"--contact-sheet: {path}: lies in the data set, and would become one of its images")
    contents = source.read()
    number = min(len(contents.classes), _MOST_DRAWN)
    num_train, num_test = (6, 3) if number <= 24 else (3, 1) if number <= 100 else (1, 0)
    drawn = {"train": num_train} | ({"test": num_test} if num_test and "test" in contents.splits else {})
    picture = _draw(contents, number, drawn)
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    with refuse(OSError, lambda error: f"--contact-sheet: {path}: cannot be written: {reason(error)}"):
        write_atomically(path, buffer.getvalue())


def _draw(contents: Contents, number: int, drawn: dict[str, int]) -> Image.Image:
    """Blocks of a class each, its name above a row of images, in as many columns as make a page."""
    step = _SIDE + _GAP
    width = sum(drawn.values()) * step + 4 * _GAP
    height = step + _TITLE
    columns = max(1, min(number, round(math.sqrt(1.3 * number * height / width))))
    rows = -(-number // columns)
    page = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(page), _font()
    counts = {split: _counts(contents, split) for split in drawn}
    corners = [(i // rows * width + 2 * _GAP, i % rows * height + _GAP) for i in range(number)]
    for i, (left, top) in enumerate(corners):
        numbers = "  " + " + ".join(f"{counts[split][i]:,}" for split in drawn)
        name = f"{i}: {visible(contents.classes[i])}"  # the font may lack the letters of a name
        while len(name) > 2 and draw.textlength(name + numbers, font) > width - 4 * _GAP:
            name = name[:-2] + "…"
        draw.text((left, top), name + numbers, _INK, font)
        if "test" in drawn:
            line = left + drawn["train"] * step
            draw.line((line, top + _TITLE, line, top + _TITLE + _SIDE), _INK, 1)
    start = 0
    for split, wanted in drawn.items():
        for i, place, sample in _chosen(contents, split, number, wanted, counts[split]):
            left, top = corners[i]
            corner = left + (start + place) * step + (2 * _GAP if start else 0), top + _TITLE
            with_fault: list[ConfigIssue] = []
            with collect(with_fault):
                page.paste(Image.fromarray(decode(sample, _SIDE)), corner)
            if with_fault:
                draw.rectangle((*corner, corner[0] + _SIDE, corner[1] + _SIDE), outline=_FAULT)
                draw.text((corner[0] + _GAP, corner[1] + _GAP), "unreadable", _FAULT, font)
        start += wanted
    return page


def _counts(contents: Contents, split: str) -> Counter[int]:
    return Counter(sample.label for sample in contents.splits[split].samples())


def _chosen(
    contents: Contents, split: str, number: int, wanted: int, counts: Counter[int]
) -> Iterator[tuple[int, int, EncodedImage]]:
    """Images spread evenly over each class: the class, the place in its row, and the image."""
    places = {
        label: {int(index): place for place, index in enumerate(_spread(counts[label], wanted))}
        for label in range(number)
    }
    seen = Counter[int]()
    for sample in contents.splits[split].samples():
        place = places.get(sample.label, {}).get(seen[sample.label])
        seen[sample.label] += 1
        if place is not None:
            yield sample.label, place, sample


def _spread(count: int, wanted: int) -> np.ndarray:
    """At most ``wanted`` of ``count`` indices, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with matplotlib, which knows more letters than Pillow's own."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
