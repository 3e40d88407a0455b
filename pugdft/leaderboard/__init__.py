"""Rank and compare optimizers by run records: load, group, compute statistics, write.

``load`` reads files, ``grouping`` finds comparable runs, ``stats`` and ``power`` know only numbers.
``ranking``, ``compare`` and ``published`` make the results; ``columns``, ``warnings`` and ``verdicts`` hold
the words that people read, and ``formats`` writes them. ``validate`` checks records that others contribute.
"""

from pugdft.leaderboard.entry import Entry, Group
from pugdft.leaderboard.formats.csv_json import as_csv, as_json
from pugdft.leaderboard.formats.text import as_latex, as_markdown, print_table
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
