"""Records to a ranking that claims no more than the seeds allow: collect → group → statistics → render.

``collect`` reads files, ``grouping`` sorts them into comparable runs, ``statistics`` knows only numbers,
``ranking`` joins the three, ``render`` writes a format. A new format is one function that takes groups.
"""

from pugdft.leaderboard.collect import Loaded, collect
from pugdft.leaderboard.ranking import Entry, Group, build_leaderboard
from pugdft.leaderboard.render import as_json, print_table

__all__ = ["Entry", "Group", "Loaded", "as_json", "build_leaderboard", "collect", "print_table"]
