"""A leaderboard as one HTML file: no request to anywhere, and of use without JavaScript.

``view`` decides what is shown; ``board``, ``cells`` and ``details`` write it in words; charts are geometry;
``page.html.j2`` makes markup of it, ``page.js`` adds sorting, filtering and tooltips.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from pugdft import __version__
from pugdft.leaderboard.entry import Group
from pugdft.leaderboard.fields import SCHEMA
from pugdft.leaderboard.printable import printable

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["as_html"]


def as_html(groups: Sequence[Group], title: str = "pugdft leaderboard") -> str:
    """The whole page. Equal groups give equal text.

    Everything from a record is untrusted: it is put on one line, without control characters or
    bidirectional overrides, and escaped, in one place for all of the template. The page's own policy allows
    the one style sheet and the one script whose hashes it names.
    """
    from markupsafe import Markup

    from pugdft.leaderboard.page.view import page_view

    style, script = _text("page.css"), _text("page.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page_view(groups),
            title=title,
            schema=SCHEMA,
            version=__version__,
            # Our own text, not a record's.
            style=Markup(style),  # noqa: S704
            script=Markup(script),  # noqa: S704
            style_hash=_digest(style),
            script_hash=_digest(script),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    from pugdft.leaderboard.page.cells import STRIP_WIDTH
    from pugdft.leaderboard.page.frame import COST_WORDS, NUM_STYLES
    from pugdft.leaderboard.page.quantities import MEASURES

    def harmless(value: Any) -> Any:
        """Markup is the template's own; all other text came from somewhere."""
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=PackageLoader("pugdft.leaderboard", "page"),
        autoescape=True,
        finalize=harmless,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        strip_width=STRIP_WIDTH, words=COST_WORDS, measures=MEASURES, num_styles=NUM_STYLES
    )
    environment.filters["indented"] = escape  # made printable line by line before, with its indentation
    return environment


def _text(name: str) -> str:
    """A file of this folder, with the line ends that a browser hashes."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
