"""Pages of the site that are made from the program: optimizers, recipe keys and commands.

mkdocs calls the functions with ``on_`` in their names. A new optimizer, key or command appears at the next
build, and a page that somebody puts into this folder joins the navigation.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pugdft.cli.help import command_line, commands, examples_of
from pugdft.cli.main import app
from pugdft.config.schema import Recipe
from pugdft.optim import describe, optimizer_names, summary
from pugdft.optim.base import BASES
from pugdft.optim.build import ALGORITHM_OPTIONS, base_defaults, takes_two_passes
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults

DOCS = Path(__file__).parent

# The order of the pages; those that do not exist are left out.
ORDER = {
    "index.md": "Start",
    "own-photos.md": "Your own photos",
    "guide.md": "Guide",
    "first-comparison.md": "A first comparison",
    "reading-a-leaderboard.md": "Reading a leaderboard",
    "plots.md": "Plots",
