"""``pugdft optimizers``: what there is and what it does."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List and explain optimizers.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def list_optimizers() -> None:
    """List every optimizer, base or method, with a line about it."""
    from pugdft.optim import describe, optimizer_names

    names = optimizer_names()
    width = max(map(len, names))
    for name in names:
        typer.echo(f"{name:<{width}}  {describe(name).splitlines()[0]}")


@app.command("show")
def show_optimizer(
    name: Annotated[str, typer.Argument(help="Such as pugd.", show_default=False)],
) -> None:
    """Explain one optimizer: equation, source, cost, options."""
    from pugdft.optim import describe

    typer.echo(f"{name}: {describe(name)}")
