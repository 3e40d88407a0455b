"""Help and shell completion of all commands, made from what each command's function says.

A docstring may end with ``Examples:``, one command line a row. A parameter without a metavar gets its own
name. Metavars choose what the shell completes: RECIPE, TABLE, RUN, RECORD, KEY=VALUE, OPTIMIZER, OPTIMIZERS,
DATA. Nothing here imports torch.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

_EXAMPLES = re.compile(r"\n\s*Examples:\s*")
_WIDEST_SUMMARY = 60  # of a command's line in its group's help


def command_line(app: typer.Typer) -> Any:
    """Return the command of a Typer application with its examples, metavars and completion."""
    root = typer.main.get_command(app)
    for _, command in commands(root):
        finish(command)
    return root


def commands(root: Any, name: str = "pugdft") -> Iterator[tuple[str, Any]]:
    """Yield every command with its whole name, such as ``pugdft recipes ls``; a group comes first."""
    yield name, root
    for word, command in {**getattr(root, "commands", {}), **getattr(root, "further", {})}.items():
        yield from commands(command, f"{name} {word}")


def finish(command: Any) -> None:
    """Set a command's examples apart, name what its parameters take, and let shells complete them."""
    text, *examples = _EXAMPLES.split(command.help or "", maxsplit=1)
    command.help, command.short_help = text.strip(), _summary(text)
    if examples:
        lines = re.split(r";\s+|\n", examples[0].strip())
        rows = "\n".join(f"  {line.strip()}" for line in lines if line.strip())
        command.epilog = f"\b\nExamples:\n{rows}"  # \b: click leaves the lines as they are
    for parameter in command.params:
        is_argument, kind = (
            parameter.param_type_name == "argument",
            getattr(parameter, "type_descriptor", None),
        )
        if is_argument:
            parameter.display_type_rich = lambda ctx: ""  # its metavar says it
        is_told = getattr(parameter, "is_flag", False) or (
            not is_argument and getattr(kind, "is_choice", False)
        )
        if parameter.metavar is None and not is_told:
            known: dict[Any, str] = {int: "N", float: "X", Path: "PATH"}
            parameter.metavar = known.get(getattr(kind, "annotation", None)) or parameter.name.upper()
        if parameter.metavar:
            parameter.metavar = "|".join(_words(parameter.metavar))
        if completers := [_COMPLETERS[each] for each in _words(parameter.metavar) if each in _COMPLETERS]:
            parameter._custom_shell_complete = _completion(completers)


def examples_of(command: Any) -> list[str]:
    """Return the command lines that a command's help shows."""
    return [line.strip() for line in (command.epilog or "").splitlines()[2:]]


def _summary(text: str) -> str:
    """Return the first sentence; of a long one, what stands before a comma, a colon or an "and"."""
    sentence = re.split(r"\.\s|\n\n", " ".join(text.split(" ")).strip(), maxsplit=1)[0]
    sentence = " ".join(sentence.split()).removesuffix(".")
    if len(sentence) >= _WIDEST_SUMMARY:
        ends = [match.start() for match in re.finditer(r"[,:;]? and |[,:;] ", sentence[:_WIDEST_SUMMARY])]
        sentence = sentence[: ends[-1]] if ends else sentence
    return f"{sentence}."


def _words(metavar: str | None) -> list[str]:
    """Return the names in a metavar, such as RECIPE and KEY=VALUE of ``[RECIPE …] [KEY=VALUE …]``."""
    return re.findall(r"[\w=/-]+(?:\.\w+)?", metavar or "")


def _completion(completers: list[Callable[[str], list[str]]]) -> Callable[[Any, Any, str], list[Any]]:
    """Return what click calls with a context, a parameter and the beginning of a word."""

    def complete(context: Any, parameter: Any, incomplete: str) -> list[Any]:
        words = [word for each in completers for word in each(incomplete)]
        return [word for word in dict.fromkeys(words) if word.startswith(incomplete)]

    return complete


# --- what is completed -----------------------------------------------------------------------------------


def _recipes(incomplete: str) -> list[str]:
    """Bundled names, and the recipes' files at hand."""
    from pugdft.config.load import bundled_recipes

    return [*bundled_recipes(), *_files(incomplete, "*.yaml")]


def _tables(incomplete: str) -> list[str]:
    """Names of the papers' tables."""
    from pugdft.config.load import bundled_tables

    return [*bundled_tables()]


def _runs(incomplete: str) -> list[str]:
    """Folders with a record: in ``runs``, or below what is typed already."""
    from pugdft.records import RECORD_NAME

    typed = Path(incomplete)
    tops = {Path("runs"), typed if incomplete.endswith("/") else typed.parent}
    return sorted(str(file.parent) for top in tops for file in top.glob(f"*/{RECORD_NAME}"))


def _keys(incomplete: str) -> list[str]:
    """A recipe's keys; the names of optimizers after ``optimizer=``."""
    from pugdft.config.load import recipe_keys

    for key in ("optimizer=", "optimizer.name=", "optimizer.base.name="):
        if incomplete.startswith(key):
            return [f"{key}{name}" for name in optimizer_names()]
    return [f"{key}=" for key in recipe_keys()]


def _optimizers(incomplete: str) -> list[str]:
    """Names of optimizers, also after a comma or a plus."""
    begun = incomplete[: max(incomplete.rfind(mark) for mark in ",+") + 1]
    return [f"{begun}{name}" for name in optimizer_names()]


def _data(incomplete: str) -> list[str]:
    """The data sets that have a name, and folders."""
    return [*dataset_names(), *_files(incomplete, "*/")]


def _files(incomplete: str, pattern: str) -> list[str]:
    folder = incomplete.rpartition("/")[0]
    return sorted(str(path) for path in Path(folder or ".").glob(pattern))


_COMPLETERS: dict[str, Callable[[str], list[str]]] = {
    "RECIPE": _recipes,
    "TABLE": _tables,
    "RUN": _runs,
    "RECORD": _runs,
    "KEY=VALUE": _keys,
    "OPTIMIZER": _optimizers,
    "OPTIMIZERS": _optimizers,
    "DATA": _data,
}


def optimizer_names() -> list[str]:
    """Names of every base and method, read from the source: importing the methods would import torch."""
    from pugdft.config.plugins import OPTIMIZERS, provided

    methods = [
        node.name
        for node in _source("optim/methods.py").body
        if isinstance(node, ast.FunctionDef)
        and isinstance(node.returns, ast.Name)
        and node.returns.id == "Method"
        and node.name != "plain"
    ]
    return [*_keys_of("optim/base.py", "BASES"), *methods, *provided(OPTIMIZERS)]


def dataset_names() -> list[str]:
    """Names of the known data sets, read from the source likewise."""
    from pugdft.config.plugins import DATASETS, provided

    return [*_keys_of("data/datasets.py", "DATASETS"), *provided(DATASETS)]


def _source(path: str) -> ast.Module:
    return ast.parse((Path(__file__).parents[1] / path).read_text(encoding="utf-8"))


def _keys_of(path: str, table: str) -> list[str]:
    """The keys of a table that a module spells out as a mapping of names."""
    constants: dict[str, str] = {}
    for node in _source(path).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = (each.id for each in node.targets if isinstance(each, ast.Name))
            constants |= dict.fromkeys(names, str(node.value.value))
        is_table = isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == table
        mapping = next((each for each in ast.walk(node) if is_table and isinstance(each, ast.Dict)), None)
        if mapping:
            keys = (ast.unparse(key) for key in mapping.keys if key is not None)
            return [constants.get(key, key.strip("'")) for key in keys]
    return []
