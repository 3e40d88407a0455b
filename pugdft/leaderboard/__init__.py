"""Rank optimizers from the records of their runs, and claim no more than the seeds allow.

``collect`` reads files, ``grouping`` sorts them into comparable runs, ``stats`` computes with numbers alone,
``ranking`` joins the three, ``published`` adds what papers printed. ``columns`` lists what a format shows,
``verdicts`` the sentences below a table, and ``formats`` has a file for each format: a function that takes
groups. ``validate`` checks records from others.
"""

from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.formats.csv_json import as_csv, as_json
from pugdft.leaderboard.formats.latex import as_latex
from pugdft.leaderboard.formats.markdown import as_markdown
from pugdft.leaderboard.formats.table import print_table
from pugdft.leaderboard.load import Collected, Loaded, collect
from pugdft.leaderboard.ranking import build_leaderboard

__all__ = [
    "Collected",
    "Entry",
    "Group",
    "Loaded",
    "as_csv",
    "as_json",
    "as_latex",
    "as_markdown",
    "build_leaderboard",
    "collect",
    "print_table",
]
