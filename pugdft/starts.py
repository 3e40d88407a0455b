"""Every start of a run, kept in its folder until the run is finished: what its record lists as restarts."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pugdft.environment import now
from pugdft.record import write_atomically

STARTS_NAME = "starts.json"


@dataclass
class Starts:
    """The starts of the run in a folder.

    Attributes:
        entries: of each, the time, the update that it went on from, and what was different.
        micro_batch_size: images a forward pass and process, if memory did not hold more.
    """

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)
    micro_batch_size: int | None = None

    @classmethod
    def of(cls, folder: Path) -> Starts:
        """What the folder says; nothing if it says nothing that can be read."""
        try:
            known = json.loads((folder / STARTS_NAME).read_text(encoding="utf-8"))
            entries = [dict(each) for each in known["starts"]]
            size = known["micro_batch_size"]
        except (OSError, ValueError, KeyError, TypeError):
            return cls(folder)
        return cls(folder, entries, size if type(size) is int and size > 0 else None)

    @property
    def began(self) -> str:
        """When the run was first started, in UTC."""
        return str(self.entries[0].get("time", "")) if self.entries else now()

    @property
    def restarts(self) -> list[dict[str, Any]]:
        """The starts that went on from an earlier one: all but the first, even if that one's was lost."""
        is_whole = not self.entries or not self.entries[0].get("step")
        return self.entries[1:] if is_whole else self.entries

    def add(self, step: int, **facts: Any) -> None:
        """The run starts now, after ``step`` updates that were made before."""
        if self.micro_batch_size is not None:
            facts["micro_batch_size"] = self.micro_batch_size
        self.entries.append({"time": now(), "step": step, **facts})

    def write(self) -> None:
        """Keep them in the folder."""
        content = {"micro_batch_size": self.micro_batch_size, "starts": self.entries}
        write_atomically(self.folder / STARTS_NAME, json.dumps(content).encode())

    def remove(self) -> None:
        """Forget them: the record has them, or the run begins anew."""
        (self.folder / STARTS_NAME).unlink(missing_ok=True)
        self.entries, self.micro_batch_size = [], None
