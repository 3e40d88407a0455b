"""Pages of the site that are made from the program: optimizers, recipe keys and commands.

mkdocs calls the functions with ``on_`` in their names. A new optimizer, key or command appears at the next
build, and a page that somebody puts into this folder joins the navigation.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache, partial
from html import escape
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pugdft.cli.help import command_line, commands, examples_of
from pugdft.cli.main import application
from pugdft.config.schema import Recipe
from pugdft.leaderboard import Group, as_markdown, build_leaderboard, collect
from pugdft.leaderboard.across import AcrossVerdict, build_across
from pugdft.leaderboard.across.formats import across_markdown
from pugdft.leaderboard.across.page import across_html
from pugdft.leaderboard.formats.html import as_html
from pugdft.optim import describe, optimizer_names, summary
from pugdft.optim.base import BASES
from pugdft.optim.build import ALGORITHM_OPTIONS, base_defaults, takes_two_passes
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults

DOCS = Path(__file__).parent
RECORDS = DOCS.parent / "leaderboard" / "records"

# The order of the pages; those that do not exist are left out.
ORDER = {
    "index.md": "Start",
    "own-photos.md": "Your own photos",
    "guide.md": "Guide",
    "first-comparison.md": "A first comparison",
    "reading-a-leaderboard.md": "Reading a leaderboard",
    "measured.md": "Measured here",
    "report.md": "A report on a run",
    "plots.md": "Plots",
    "landscapes.md": "Landscapes",
    "gallery.md": "Gallery",
    "sharpness.md": "Sharpness",
    "optimizers.md": "Optimizers",
    "papers.md": "The papers' tables",
    "clusters.md": "Many machines",
    "export.md": "Export",
    "training-options.md": "Training options",
    "your-own-loop.md": "Your own loop",
    "python.md": "Python",
    "extensions.md": "Extensions",
    "recipe-reference.md": "Recipe reference",
    "command-reference.md": "Command reference",
    "environment.md": "Environment variables",
    "faq.md": "Questions",
    "comparisons.md": "Statistics",
    "across.md": "One verdict over tasks",
    "reliability.md": "Reliability",
    "performance.md": "Performance",
    "architecture.md": "Architecture",
}

_OPTIMIZERS_HEAD = """# Optimizers

A method computes the gradient; its base optimizer updates the weights with it. Every method works over every
base, also over timm's by timm's names. The values below are the defaults: start there, then let `pugdft tune`
search around them on held-out images.

Which one? Begin with the base alone, then `sam`. Compare with `pugdft bench`, over three seeds at least:
differences between these methods are often smaller than those between seeds.

| name | passes a step | extra memory | paper | what |
|---|---|---|---|---|
"""

_RECIPE_HEAD = """# Recipe reference

A recipe is a YAML file with the sections below. A key that is left out has its default;
`pugdft finetune RECIPE --dry-run` prints every value. On the command line a key is written with dots:
`train.epochs=10`.

The keys of `optimizer` are those of its [method](optimizers.md) and, under `base`, of its base.
`pugdft recipes schema` prints all this as a JSON schema, for editors.
"""

_MEASURED_HEAD = """# Measured here

Comparisons of our own. Each table is drawn from the records in `leaderboard/records` when this site is
built. The predictions on every test image lie beside them, so `pugdft leaderboard leaderboard/records` and
`pugdft compare` show the same and more. [Reading a leaderboard](reading-a-leaderboard.md) explains the
columns.
"""

_COMMAND_HEAD = """# Command reference

Results go to stdout, progress and messages to stderr. `pugdft --install-completion` lets your shell complete
recipes, keys, optimizers, data sets and runs.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | a usage or recipe error |
| 3 | a check did not hold |
| 4 | a bench is incomplete |
| 5 | another process is running in the folder |
| 130, 143 | interrupted, after a checkpoint |
"""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the navigation from the pages that there are."""
    there = {path.name for path in DOCS.glob("*.md")} | {name for name in generated() if name.endswith(".md")}
    names = [name for name in ORDER if name in there] + sorted(there - set(ORDER))
    config.nav = [{ORDER[name]: name} if name in ORDER else name for name in names]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for name, page in generated().items():
        files.append(File.generated(config, name, content=page()))
    return files


def generated() -> dict[str, Any]:
    """The functions that write generated pages, by their files' names."""
    return {
        "optimizers.md": optimizers_page,
        "recipe-reference.md": recipe_page,
        "command-reference.md": command_page,
        "measured.md": measured_page,
        **{f"measured/{each.name}.html": partial(as_html, ranked(each)) for each in measured()},
        **{f"measured/{each.name}-across.html": partial(across_html, across(each)) for each in over_tasks()},
    }


# --- optimizers ------------------------------------------------------------------------------------------

_PARTS = ("Source:", "Defaults:", "Use:", "Cost:", "Args:")


def optimizers_page() -> str:
    """A card for each optimizer: what it is, when it helps, its equation, cost and starting values."""
    rows = [
        f"| [`{name}`](#{name}) | {line['passes']} | {line['memory']} | {line['paper']} | {line['what']} |"
        for name in optimizer_names()
        for line in [summary(name)]
    ]
    cards = [card(name) for name in (*METHODS, *BASES)]
    return (
        _OPTIMIZERS_HEAD
        + "\n".join(rows)
        + "\n\nP: one copy of the parameters.\n\n"
        + "\n\n".join(cards)
        + "\n"
    )


def card(name: str) -> str:
    """One optimizer's section."""
    what, *paragraphs = _parts(describe(name))
    options = keyword_defaults(METHODS[name]) if name in METHODS else base_defaults(name)
    rows = [f"| `{key}` | {_default(value)} |" for key, value in options.items()]
    table = "\n".join(["| option | default |", "|---|---|", *rows]) if rows else "No options."
    further = ", ".join(f"`{key}`" for key in ALGORITHM_OPTIONS) if takes_two_passes(name) else ""
    notes = [f"Also, as every method with two passes: {further}."] if further else []
    example = f"{name}+sgd" if name in METHODS else name
    run = f"```sh\npugdft finetune resnet18_cifar10 --optimizer '{example}[lr=0.01]'\n```"
    return "\n\n".join([f"## {name}", f"**{what}**", *paragraphs, table, *notes, run])


def _parts(text: str) -> Iterator[str]:
    """The first line; then a paragraph for each part of the documentation, named in bold."""
    first, *lines = text.splitlines()
    yield _code(first)
    parts: list[list[str]] = [[]]
    for line in lines:
        word = line.partition(" ")[0]
        if word in _PARTS:
            parts.append([])
        if line.strip():
            parts[-1].append(line.strip() if word != "Args:" else "Args:")
    for part in parts:
        joined = " ".join(part)
        if joined.startswith("Args:"):
            yield "\n".join(f"* {_code(item)}" for item in re.split(r" (?=\w+: )", joined)[1:])
        elif joined:
            name, _, rest = joined.partition(" ")
            named = f"**{name.rstrip(':')}.** {_code(rest[:1].upper() + rest[1:])}"
            yield named if name in _PARTS else _code(joined)


def _code(text: str) -> str:
    """Markdown of a docstring's text, where ``double`` backquotes mark code and stars are gradients."""
    pieces = text.split("``")
    plain = [escape(piece, quote=False).replace("*", r"\*").replace("_", r"\_") for piece in pieces]
    return "".join(
        f"`{raw}`" if odd % 2 else words for odd, (raw, words) in enumerate(zip(pieces, plain, strict=True))
    )


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if isinstance(value, Mapping | bool):
        value = json.dumps(value)
    return "none" if value is None else f"`{value}`"


# --- recipe ----------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key of a recipe from its JSON schema."""
    schema = Recipe.model_json_schema()
    return _RECIPE_HEAD + "\n".join(_section(schema, schema["$defs"], ""))


def _section(schema: Mapping[str, Any], known: Mapping[str, Any], where: str) -> Iterator[str]:
    """A table of a section's keys, then the sections inside."""
    inner, rows = [], []
    for key, field in schema["properties"].items():
        names = [each for each in _references(field) if "properties" in known[each]]
        inner += [(f"{where}{key}", known[name]) for name in names]
        about = str(field.get("description", "")).replace("|", r"\|")
        if where or not names:
            rows.append(
                f"| `{where}{key}` | {_kind(field, known)} | {_given(schema, key, field)} | {about} |"
            )
    if rows:
        yield "\n| key | value | default | what |\n|---|---|---|---|\n" + "\n".join(rows)
    for name, section in inner:
        about = " ".join(str(section.get("description", "")).split())
        yield f"\n## {name}\n\n{about}"
        yield from _section(section, known, f"{name}.")


def _references(field: Mapping[str, Any]) -> list[str]:
    places = [field, *field.get("anyOf", ()), *field.get("allOf", ())]
    return [place["$ref"].rpartition("/")[2] for place in places if "$ref" in place]


def _kind(field: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What a key takes, in words: type, bounds, choices."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(each, known) for each in field["anyOf"]))
    if "$ref" in field:
        return "mapping" if "properties" in known[field["$ref"].rpartition("/")[2]] else "text"
    if "enum" in field or "const" in field:
        return " or ".join(f"`{_yaml(each)}`" for each in field.get("enum", [field.get("const")]))
    words = {
        "integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`",
        "object": "mapping", "array": "list", "null": "`null`",
    }  # fmt: skip
    marks = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{mark} {field[key]:,}" for key, mark in marks.items() if key in field]
    return " ".join([words.get(str(field.get("type")), "value"), ", ".join(bounds)]).strip()


def _given(section: Mapping[str, Any], key: str, field: Mapping[str, Any]) -> str:
    if key in section.get("required", ()):
        return "required"
    return f"`{_yaml(field['default'])}`" if "default" in field else ""


def _yaml(value: object) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


# --- measured --------------------------------------------------------------------------------------------


def measured() -> list[Path]:
    """The folders of comparisons whose records lie in the repository."""
    return sorted(path.parent for path in RECORDS.glob("*/README.md"))


@cache
def ranked(folder: Path) -> list[Group]:
    """The leaderboard of a folder of records."""
    return build_leaderboard(collect([folder]).records)


def over_tasks() -> list[Path]:
    """Those of these folders that have several tasks."""
    return [folder for folder in measured() if len(ranked(folder)) > 1]


@cache
def across(folder: Path) -> AcrossVerdict:
    """The verdict over all tasks of a folder."""
    return build_across(collect([folder]).records)


def measured_page() -> str:
    """What each comparison is, its tables, and where its pages are."""
    sections = []
    for folder in measured():
        sections.append((folder / "README.md").read_text(encoding="utf-8").strip())
        if folder in over_tasks():
            sections.append(across_markdown(across(folder)).strip())
            sections.append(f"[The same as a page with charts](measured/{folder.name}-across.html)")
        sections.append(as_markdown(ranked(folder)).strip())
        sections.append(f"[The same as a page with charts](measured/{folder.name}.html)")
    return _MEASURED_HEAD + "\n" + "\n\n".join(sections) + "\n"


# --- commands --------------------------------------------------------------------------------------------


def command_page() -> str:
    """Every command's help, as the terminal shows it."""
    sections = []
    for name, command in commands(command_line(application())):
        text = command.get_help(typer.Context(command, info_name=name))
        text = text.partition("\n  Examples:")[0].rstrip()
        examples = "\n".join(examples_of(command))
        sections.append(f"## {name}\n\n```text\n{text}\n```")
        if examples:
            sections.append(f"```sh\n{examples}\n```")
    return _COMMAND_HEAD + "\n" + "\n\n".join(sections) + "\n"
