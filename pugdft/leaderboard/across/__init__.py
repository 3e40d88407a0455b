"""One verdict over several tasks: tasks → pooling → board → formats.

``tasks`` decides what a task is and which entries are the same; ``pooling`` knows only numbers; ``compute``
makes the plain data of ``board``, which ``formats``, ``page`` and ``pictures`` show.
"""

from pugdft.leaderboard.across.board import AcrossVerdict
from pugdft.leaderboard.across.compute import build_across

__all__ = ["AcrossVerdict", "build_across"]
