"""The report in a browser: it asks for nothing, fits a phone, and names what one points at."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import made_run
from standing_still import HANG_SECONDS

from pugdft.report.facts import run_facts
from pugdft.report.page import as_page


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Pages of runs, by their number of classes; 0: both on one page."""
    root = tmp_path_factory.mktemp("pages")
    runs = {number: run_facts(made_run(root / str(number), number)) for number in (10, 200)}
    for number, facts in {10: [runs[10]], 200: [runs[200]], 0: list(runs.values())}.items():
        (root / f"{number}.html").write_text(as_page(facts), encoding="utf-8")
    return {number: root / f"{number}.html" for number in (0, 10, 200)}


@pytest.fixture
def show(browser: Any, pages: dict[int, Path]) -> Iterator[Callable[..., Any]]:
    """Opens a page; nothing that it does may ask for anything or complain."""
    contexts, seen = [], []

    def opened(number: int, width: int = 1400, theme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme))
        page, address = contexts[-1].new_page(), pages[number].as_uri()
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.on("request", lambda request: seen.append(request.url) if request.url != address else None)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [each for each in seen if not each.startswith("data:")] == []


@pytest.mark.slow
def test_every_width_and_theme_fits(show: Callable[..., Any]) -> None:
    for width, theme in ((375, "dark"), (1000, "light"), (2400, "light")):
        page = show(0, width, theme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
        sizes = page.locator(".chart text:visible, .heat text:visible").evaluate_all(
            "all => all.map((one) => parseFloat(getComputedStyle(one).fontSize) * one.getScreenCTM().a)"
        )
        assert min(sizes) >= 8, width
        assert max(sizes) <= 20, width


def test_the_picture_names_the_classes_under_the_pointer(show: Callable[..., Any]) -> None:
    page = show(200)
    heat = page.locator(".heat")
    assert "Point at the picture" in heat.locator("output").inner_text()
    names = heat.evaluate("heat => JSON.parse(heat.dataset.names)")
    cells = heat.evaluate("heat => JSON.parse(heat.dataset.cells)")
    box = heat.locator("image").bounding_box()
    row, column, count = next(cell for cell in cells if cell[0] != cell[1])
    at = {"x": box["width"] * (column + 0.5) / 200, "y": box["height"] * (row + 0.5) / 200}
    heat.locator("image").hover(position=at)
    said = f"{names[row]}, taken for {names[column]}: {count} of 20 images"
    assert heat.locator("output").inner_text() == said
    # The picture has an orange point there, and none where no image is.
    assert re.match(r"data:image/png;base64,", heat.locator("image").get_attribute("href"))


def test_classes_are_sorted_by_a_click(show: Callable[..., Any]) -> None:
    page = show(10)
    rows = page.locator(".tall tbody")

    def shares() -> list[float]:
        found: list[float] = rows.evaluate_all(
            "rows => rows.map((row) => +row.rows[0].cells[1].dataset.sort)"
        )
        return found

    assert shares() == sorted(shares())
    page.locator(".tall thead button", has_text="accuracy").click()
    assert shares() == sorted(shares(), reverse=True)
    page.locator(".tall thead button", has_text="class").first.click()
    assert rows.first.get_attribute("data-label") == "kind 0"


def test_a_legend_hides_its_curves(show: Callable[..., Any]) -> None:
    page = show(10)
    button = page.locator(".report .legend button", has_text="train")
    line = page.locator(".report .line[data-series=r0s0]").first
    assert line.is_visible()
    button.click()
    assert line.is_hidden()
