"""``pugdft data``: fetch, decode and check data sets ahead of a run."""

from __future__ import annotations

import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pugdft.cli.doctor import end_with
from pugdft.cli.output import given_path
from pugdft.errors import RunFailed, UserError, undriven

app = typer.Typer(
    help="Show, prepare, verify and clean data sets.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="cifar10, cifar100, tiny_imagenet, bundled, a folder, a CSV file, or owner/name on the Hub.",
        show_default=False,
    ),
]
ImageSize = Annotated[int, typer.Option(min=8, help="Side of the backbone's input, in pixels.")]


class StorageForm(StrEnum):
    """``data.storage`` of a recipe."""

    AUTO = "auto"
    DECODED = "decoded"
    FILES = "files"


Storage = Annotated[
    StorageForm, typer.Option(help="Keep decoded images, or read their files; auto: as the disk allows.")
]
Test = Annotated[
    float, typer.Option(min=0, max=0.99, help="Fraction cut from train as the test split, as data.test.")
]

Splits = Annotated[
    list[str] | None,
    typer.Option("--split", metavar="USE=NAME", help="Name a split, as data.splits: --split test=val."),
]


class TextFormat(StrEnum):
    """The form of what is printed."""

    TEXT = "text"
    JSON = "json"


def _named(splits: list[str] | None) -> dict[str, str]:
    """Read ``--split USE=NAME`` options."""
    from pugdft.data.source import SPLITS

    pairs = [each.partition("=") for each in splits or ()]
    for use, mark, name in pairs:
        if use not in SPLITS or not mark or not name:
            raise UserError(f"--split {use}{mark}{name}: expected USE=NAME; USE is {', '.join(SPLITS)}")
    return {use: name for use, _, name in pairs}


@app.command("show")
def show_data(
    name: Name,
    image_size: ImageSize = 224,
    test: Test = 0.0,
    splits: Splits = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="FILE.png", help="Draw a few images of each class.", show_default=False
        ),
    ] = None,
    form: Annotated[TextFormat, typer.Option("--format", help="For people, or for programs.")] = (
        TextFormat.TEXT
    ),
) -> None:
    """Show splits, classes, sizes and what is left out.

    Fetches and prepares nothing.

    Examples:
      pugdft data show photos --test 0.2
      pugdft data show photos --contact-sheet sheet.png
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # the Hub's client reads it when it is imported
    from pugdft.data.datasets import open_source
    from pugdft.data.overview import contact_sheet as draw
    from pugdft.data.overview import overview, overview_text

    source = open_source(name, test, _named(splits), only_looks=True)
    facts = overview(source, image_size)
    if contact_sheet is not None:
        draw(source, contact_sheet)
    typer.echo(json.dumps(facts, indent=1) if form is TextFormat.JSON else undriven(overview_text(facts)))


@app.command("prepare")
def prepare_data(
    name: Name,
    image_size: ImageSize = 224,
    storage: Storage = StorageForm.AUTO,
    test: Test = 0.0,
    splits: Splits = None,
) -> None:
    """Fetch a data set if need be, and decode it.

    Prints the folder that images are read from.

    Examples:
      pugdft data prepare cifar10
      pugdft data prepare photos --image-size 224 --test 0.2
    """
    from pugdft.data.cache import prepare
    from pugdft.data.datasets import open_source

    store = prepare(open_source(name, test, _named(splits)), image_size, storage.value, _say)
    for split in store.splits:
        images = store.images(split)
        side = f"{images.shape[1]} × {images.shape[2]}"
        print(f"{split}: {len(images):,} images of {side} pixels", file=sys.stderr)
    print(f"classes: {len(store.classes)}, sha256 {store.sha256}", file=sys.stderr)
    typer.echo(str(store.folder))


@app.command("verify")
def verify_data(
    name: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="A data set; without one, all in the cache.", show_default=False),
    ] = None,
    image_size: ImageSize = 224,
    storage: Storage = StorageForm.AUTO,
    test: Test = 0.0,
    splits: Splits = None,
) -> None:
    """Check every stored pixel and label.

    Reads them again and compares their digest with the one of the first decoding.

    Examples:
      pugdft data verify
      pugdft data verify cifar10 --image-size 32
    """
    if name is None:
        from pugdft.doctor import check_stores

        end_with({"Cache": list(check_stores(deep=True))})
    from pugdft.data.cache import prepare
    from pugdft.data.datasets import open_source

    source = open_source(name, test, _named(splits), trusts_memory=False)
    store = prepare(source, image_size, storage.value, _say)
    if store.content_sha256() != store.sha256:
        kind = "file" if store.files else "folder"
        raise RunFailed(f"{store.kept}: damaged; delete this {kind} and prepare the data again")
    typer.echo(f"{name}: ok, sha256 {store.sha256}")


@app.command("clean")
def clean_data() -> None:
    """Remove what interrupted preparations of data left.

    Prepared data stays in the cache.

    Examples:
      pugdft data clean
      pugdft data prepare cifar10 && pugdft data clean
    """
    from pugdft.doctor import check_leftovers

    end_with({"Cache": list(check_leftovers(clean=True))})


def _say(text: str) -> None:
    print(text, file=sys.stderr)
