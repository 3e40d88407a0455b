"""A verdict over several tasks as one HTML page."""

from __future__ import annotations

import io
from typing import Any

from pugdft.figures import paper
from pugdft.figures.charts import page_svg
from pugdft.leaderboard.across.board import AcrossVerdict
from pugdft.leaderboard.across.formats import SCHEMA, columns_of, legend, remarks, sentence, tables
from pugdft.leaderboard.across.pictures import Draw, pictures
from pugdft.leaderboard.formats.html import PACKAGE, render


def across_html(verdict: AcrossVerdict, title: str = "pugdft: one verdict over tasks") -> str:
    """Write the whole page. Equal verdicts give equal text."""
    chosen = columns_of(verdict)
    rows = [
        {
            "is_best": standing.rank_low == 1 and len(verdict.standings) > 1,
            "cells": [
                {
                    "text": each.write(verdict, place),
                    "ends": each.ends(verdict, place) if each.ends else None,
                    "is_text": each.is_text,
                }
                for each in chosen
            ],
        }
        for place, standing in enumerate(verdict.standings)
    ]
    headings = [{"name": each.title(verdict), "help": each.help, "is_text": each.is_text} for each in chosen]
    return render(
        "across.html.j2",
        (PACKAGE,),
        title=title,
        schema=SCHEMA,
        sentence=sentence(verdict),
        headings=headings,
        rows=rows,
        tables=tables(verdict),
        remarks=remarks(verdict),
        legend=legend(verdict),
        pictures=[{"title": words, "svg": _svg(draw, words)} for words, draw in pictures(verdict).values()],
        tasks=verdict.tasks,
    )


def _svg(draw: Draw, words: str) -> str:
    """Draw a figure in both themes, so that the page can tell which colours differ."""
    drawn: dict[str, bytes] = {}
    for theme in ("light", "dark"):
        with paper.style(theme):
            figure: Any = draw(theme=theme)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        drawn[theme] = buffer.getvalue()
    return page_svg(drawn["light"], f"{words}; the tables have the values", drawn["dark"])
