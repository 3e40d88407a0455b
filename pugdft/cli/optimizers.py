"""``pugdft optimizers``: list and explain optimizers."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List and explain optimizers.", no_args_is_help=True, rich_markup_mode=None)


@app.command("ls")
def list_optimizers() -> None:
    """List every optimizer.

    With passes a step, extra copies of the parameters, its paper, and what it is.

    Examples:
      pugdft optimizers ls
      pugdft optimizers ls | grep pugd
    """
    from pugdft.optim import optimizer_names, summary

    rows = [("name", "passes", "memory", "paper", "what")]
    for name in optimizer_names():
        line = summary(name)
        rows.append((name, line["passes"], line["memory"], line["paper"], line["what"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:4], widths, strict=True)]
        typer.echo("  ".join([*cells, row[4]]))
    typer.echo("\nAny of timm's optimizers is a base too, by timm's name.")


@app.command("show")
def show_optimizer(
    name: Annotated[str, typer.Argument(metavar="OPTIMIZER", help="Such as pugd.", show_default=False)],
) -> None:
    """Explain one optimizer: equation, source, cost, options.

    Examples:
      pugdft optimizers show pugd
      pugdft optimizers show adamw
    """
    from pugdft.optim import describe, explain_options

    typer.echo(f"{name}: {describe(name)}\n\n{explain_options(name)}")
