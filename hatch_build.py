"""The long description of the package: README.md as it can be read away from the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

# A link or picture that is not absolute; a picture goes, of a link its words stay.
_RELATIVE = re.compile(r"(!?)\[([^\]]+)\]\((?!https?:|#)[^)\s]+\)")


class LongDescription(MetadataHookInterface):
    """Set ``readme``; a package's page shows neither files nor pictures that lie beside README.md."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = _RELATIVE.sub(lambda match: "" if match[1] else match[2], text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
