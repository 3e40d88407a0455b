"""``pugdft data``: fetch, decode and check data sets ahead of a run."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pugdft.errors import RunFailed

app = typer.Typer(help="Prepare and verify data sets.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[
    str,
    typer.Argument(help="cifar10, cifar100, tiny_imagenet, bundled, or a folder.", show_default=False),
]
ImageSize = Annotated[int, typer.Option(min=8, help="Side of the backbone's input, in pixels.")]


@app.command("prepare")
def prepare_data(name: Name, image_size: ImageSize = 224) -> None:
    """Fetch a data set if need be and decode it into the store; prints the store's folder."""
    from pugdft.data.sources import open_source
    from pugdft.data.store import SPLITS, prepare

    store = prepare(open_source(name), image_size)
    for split in SPLITS:
        images = store.images(split)
        side = f"{images.shape[1]} × {images.shape[2]}"
        print(f"{split}: {len(images):,} images of {side} pixels", file=sys.stderr)
    print(f"classes: {len(store.classes)}, sha256 {store.sha256}", file=sys.stderr)
    typer.echo(str(store.folder))


@app.command("verify")
def verify_data(name: Name, image_size: ImageSize = 224) -> None:
    """Read every stored pixel and label again and compare their digest with the one of the decoding."""
    from pugdft.data.sources import open_source
    from pugdft.data.store import content_sha256, prepare

    store = prepare(open_source(name), image_size)
    if content_sha256(store.folder) != store.sha256:
        raise RunFailed(f"{store.folder}: damaged; delete this folder and prepare the data again")
    typer.echo(f"{name}: ok, sha256 {store.sha256}")
