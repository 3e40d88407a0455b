"""Records to a ranking that claims no more than the seeds allow: collect → group → statistics → render.

``collect`` reads files, ``grouping`` sorts them into comparable runs, ``statistics`` knows only numbers,
``ranking`` joins the three, ``reported`` adds what papers printed. ``columns`` and ``remarks`` say what
people read, ``fields`` what programs read; ``table``, ``markdown``, ``latex`` and ``page`` write it: a new
format is one function that takes groups. ``check`` validates records from others.
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
