"""``pugdft recipes``: list, show, copy and check recipes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from pugdft.errors import UserError, reason, refuse, undriven

app = typer.Typer(help="List, show, copy and check recipes.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|TABLE", help="A bundled recipe's or table's name, or a file.", show_default=False
    ),
]


def _read(name: str) -> tuple[Path, str]:
    from pugdft.config.load import find_recipe, find_table
    from pugdft.config.yaml import read_text

    path = find_table(name) or find_recipe(name)
    return path, read_text(path)


@app.command("ls")
def list_recipes() -> None:
    """List the bundled recipes, and the papers' tables, which are for bench.

    Examples:
      pugdft recipes ls
      pugdft recipes ls | grep vit
    """
    from pugdft.config.load import bundled_recipes, bundled_tables

    names, scratch = set(bundled_recipes()), {name for name in bundled_recipes() if "scratch_" in name}
    groups = {
        "A first run, offline": {"quickstart"},
        "Fine-tuning, ImageNet weights, 224 px": names - scratch - {"quickstart"},
        "From scratch, as the papers did (figures and price: pugdft recipes show NAME)": scratch,
        "The papers' tables (price: pugdft bench NAME --plan)": set(bundled_tables()),
    }
    for heading, members in groups.items():
        typer.echo(f"{heading}:")
        width = max(map(len, members))
        for name in sorted(members):
            first, *_ = _read(name)[1].splitlines()
            typer.echo(f"  {name:<{width}}  {first.strip('# .')}")


@app.command("show")
def show_recipe(name: Name) -> None:
    """Print a recipe or a table as it stands.

    Examples:
      pugdft recipes show scratch_resnet18_cifar10
      pugdft recipes show my_recipe.yaml
    """
    _, text = _read(name)
    # Control characters of a foreign file must not reach the terminal; a pipe gets the file as it is.
    typer.echo(undriven(text.replace("\t", " ")) if sys.stdout.isatty() else text, nl=False)


@app.command("copy")
def copy_recipe(
    name: Name,
    target: Annotated[
        Path, typer.Argument(metavar="PATH", help="The new file, or a folder.", show_default="here")
    ] = Path(),
) -> None:
    """Copy a bundled recipe or table to change it.

    Examples:
      pugdft recipes copy resnet18_cifar10
      pugdft recipes copy vit_cifar100 my_recipe.yaml
    """
    source, text = _read(name)
    path = target / source.name if os.path.isdir(target) else target

    def say(error: OSError) -> str:
        exists = isinstance(error, FileExistsError)
        return "exists already; choose another name" if exists else f"cannot be written: {reason(error)}"

    with refuse(OSError, lambda error: f"{path}: {say(error)}"), path.open("x", encoding="utf-8") as file:
        file.write(text)
    typer.echo(str(path))


@app.command("validate")
def validate_recipes(
    names: Annotated[
        list[str], typer.Argument(metavar="RECIPE", help="Recipe files or bundled names.", show_default=False)
    ],
) -> None:
    """Check recipes without running them; every fault is reported.

    Examples:
      pugdft recipes validate my_recipe.yaml
      pugdft recipes validate recipes/*.yaml
    """
    from pugdft.training.run import read_recipe

    errors = []
    for name in names:
        try:
            read_recipe(name)
        except UserError as error:
            errors.append(str(error))
        else:
            typer.echo(f"{name}: ok")
    if errors:
        raise UserError("\n".join(errors))


@app.command("schema")
def print_schema() -> None:
    """Print the recipes' JSON schema, for editors.

    Examples:
      pugdft recipes schema
      pugdft recipes schema > recipe.schema.json
    """
    from pugdft.config.schema import BASE_KEY, Recipe

    schema = Recipe.model_json_schema()
    # Only a file has this key: it is resolved when the file is read.
    schema["properties"] = {"base": {"type": "string", "description": BASE_KEY}, **schema["properties"]}
    schema["anyOf"] = [{"required": ["base"]}, {"required": schema.pop("required")}]
    typer.echo(json.dumps(schema, indent=2))
