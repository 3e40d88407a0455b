"""The HTML page in a browser: what its script adds, and what is there without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from page_groups import HOSTILE, board, entry, group, hostile_board, reported
from standing_still import HANG_SECONDS

from pugdft.leaderboard.entry import Group
from pugdft.leaderboard.formats.html import as_html

_PAGES: dict[str, str] = {}


def written(groups: list[Group]) -> str:
    """The groups' page; equal groups are drawn once."""
    key = repr(groups)
    if key not in _PAGES:
        _PAGES[key] = as_html(groups)
    return _PAGES[key]


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page; nothing that it does may ask for anything, complain, or open a dialog."""
    contexts, seen = [], []

    def opened(groups: list[Group], **options: Any) -> Any:
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(written(groups), encoding="utf-8")
        contexts.append(browser.new_context(**{"viewport": {"width": 1400, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.set_default_timeout(1000 * HANG_SECONDS)
        page.on("request", lambda request: seen.append(request.url) if request.url != file.as_uri() else None)
        page.on("console", lambda message: seen.append(message.text))
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.goto(file.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert seen == []


def rows(page: Any, part: str = "#g0 .measured") -> list[str]:
    """Labels of the rows that can be seen, from the top."""
    labels: list[str] = page.locator(f"{part} tbody[data-entry]:visible").evaluate_all(
        "bodies => bodies.map((body) => body.dataset.label)"
    )
    return labels


def heading(page: Any, text: str) -> Any:
    return page.locator("#g0 .measured thead th", has=page.locator("button", has_text=text))


def test_sorting_is_numeric_with_missing_last_and_said_aloud(show: Callable[..., Any]) -> None:
    page = show(board())
    assert heading(page, "top-1").first.get_attribute("aria-sort") == "descending"
    memory = heading(page, "memory")
    memory.locator(".sort").click()  # 8.0 and 11.0 GiB: as text they would change places
    assert (memory.get_attribute("aria-sort"), rows(page)) == (
        "ascending",
        ["pugd", "sgd", "sam[rho=0.1]", "lion"],
    )
    memory.locator(".sort").click()
    assert (memory.get_attribute("aria-sort"), rows(page)) == (
        "descending",
        ["sgd", "pugd", "sam[rho=0.1]", "lion"],
    )
    assert (
        page.locator("#g0 .measured th[aria-sort=descending], #g0 .measured th[aria-sort=ascending]").count()
        == 1
    )
    heading(page, "rank").locator(".sort").click()  # equal ranges keep the order they had
    assert rows(page) == ["pugd", "sam[rho=0.1]", "sgd", "lion"]


def test_sorting_works_from_the_keyboard(show: Callable[..., Any]) -> None:
    page = show(board())
    button = heading(page, "optimizer").locator(".sort")
    button.focus()
    page.keyboard.press("Enter")
    assert rows(page) == ["lion", "pugd", "sam[rho=0.1]", "sgd"]
    page.keyboard.press("Space")
    assert rows(page) == ["sgd", "sam[rho=0.1]", "pugd", "lion"]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#what-optimizer").is_visible(), "what explains a column is next to what sorts it"
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "seeds"


def test_filters_count_what_they_leave(show: Callable[..., Any]) -> None:
    crowd = group(*(entry(f"e{i}") for i in range(8)), dataset="mnist", model="mlp")
    page = show([*board(), crowd])
    count = page.locator("#count")
    assert count.text_content() == "15 of 15 entries"
    page.fill("#filter", "SAM 0.1")
    assert (rows(page), count.text_content()) == (["sam[rho=0.1]"], "1 of 15 entries")
    assert page.locator("#g1").is_hidden()
    assert page.locator("#g0 .chart:visible .mark:visible").count() == 1
    assert page.locator("#g0 .means .series:visible").count() == 1
    page.fill("#filter", "no such optimizer")
    assert (rows(page), count.text_content()) == ([], "0 of 15 entries")
    page.get_by_role("button", name="Show all").click()
    assert (count.text_content(), page.locator("#none").is_hidden()) == ("15 of 15 entries", True)
    page.select_option("#dataset", label="cifar100")
    assert (page.locator("#g0").is_hidden(), count.text_content()) == (True, "2 of 15 entries")
    page.select_option("#model", label="vit")
    assert page.locator("#none").is_visible()


def test_reported_rows_stand_apart_until_they_are_asked_for(show: Callable[..., Any]) -> None:
    elsewhere = group(reported("sam"), dataset="svhn")
    page = show([*board(), elsewhere])
    section = page.locator("#g0 .reported")
    assert rows(page, "#g0 .reported") == rows(page, "#g2 .reported") == []
    section.get_by_text("Reported by others, not ranked (1)").click()
    assert "best epoch on the test split" in section.inner_text()
    assert rows(page, "#g0 .reported") == ["pugd"]
    page.get_by_text("Reported by others on 1 data set and models without runs here").click()
    assert page.locator("#g2").is_visible()


@pytest.mark.slow
def test_themes_follow_the_system_until_somebody_chooses(show: Callable[..., Any]) -> None:
    def ground(page: Any) -> str:
        colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return colour

    light, dark = show(board(), color_scheme="light"), show(board(), color_scheme="dark")
    assert (ground(light), ground(dark)) == ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
    dark.get_by_role("button", name="Light theme").click()
    assert ground(dark) == ground(light)
    dark.reload()
    assert ground(dark) == ground(light)
    dark.emulate_media(color_scheme="light")
    dark.get_by_role("button", name="Dark theme").click()
    assert ground(dark) == "rgb(21, 24, 28)"
    dark.emulate_media(media="print")
    assert ground(dark) == ground(light)


def test_details_open_in_place_and_move_with_their_row(show: Callable[..., Any]) -> None:
    page = show(board())
    page.get_by_role("button", name="Details of sam[rho=0.1]").press("Enter")
    row = page.locator("#g0e1d")
    for text in ("sam[rho=0.1]-s2", "93.70", "rho: 0.05", "not told apart", "12 trials"):
        assert text in row.inner_text()
    heading(page, "optimizer").locator(".sort").click()
    above = row.evaluate("row => row.previousElementSibling.parentElement.dataset.label")
    assert above == "sam[rho=0.1]"
    page.get_by_role("button", name="Details of sam[rho=0.1]").click()
    assert row.is_hidden()
    page.get_by_role("button", name="Details of lion").click()
    assert "seed 1 ran twice" in page.locator("#g0e3d").inner_text()


def test_charts_answer(show: Callable[..., Any]) -> None:
    page = show(board())
    charts = page.locator("#g0 .charts.first")
    page.get_by_text("More pictures: in the course of training").first.click()
    line = page.locator("#g0 .pictures .chart.by-passes .line[data-series=g0e2]")
    series = charts.get_by_role("button", name="sgd")
    series.click()
    assert (series.get_attribute("aria-pressed"), line.is_hidden()) == ("false", True)
    series.click()
    assert line.is_visible()
    charts.get_by_text("training time").first.click()
    shown = charts.locator(".chart:visible")
    assert (shown.count(), "by-seconds" in str(shown.get_attribute("class"))) == (1, True)
    tip = shown.locator(".mark[data-series=g0e2] title").text_content()
    assert tip == "sgd: top-1 91.00 % (95 % CI 90.75 to 91.25); 10.0 min"
    page.locator("#g0e0d").locator("xpath=../tr[1]").hover()
    sgd, pugd = (shown.locator(f".mark[data-series=g0e{number}]") for number in (2, 0))
    assert [mark.evaluate("mark => getComputedStyle(mark).opacity") for mark in (sgd, pugd)] == ["0.18", "1"]


def test_charts_follow_the_theme(show: Callable[..., Any]) -> None:
    page = show(board(), color_scheme="light")
    ink = "element => getComputedStyle(element).%s"
    label, line = (
        page.locator(f"#g0 .first .by-passes {part} >> nth=0") for part in ("text", ".whisker path")
    )
    assert label.evaluate(ink % "fill") == "rgb(89, 97, 107)"
    light = line.evaluate(ink % "stroke")
    page.get_by_role("button", name="Dark theme").click()
    assert label.evaluate(ink % "fill") == "rgb(163, 171, 181)"
    assert line.evaluate(ink % "stroke") != light


def test_hostile_names_do_nothing(show: Callable[..., Any]) -> None:
    page = show(hostile_board())
    assert page.evaluate("[document.scripts.length, document.images.length]") == [1, 0]
    for text in HOSTILE[:6]:
        assert page.locator("bdi", has_text=text).first.is_visible()
    heading(page, "optimizer").locator(".sort").click()
    page.fill("#filter", "alert(1)")
    for button in page.locator("#g0 .more:visible").all():
        button.click()
    for mark in page.locator("#g0 .means button:visible").all():
        mark.hover()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.fill("#filter", "x" * 20)
    assert page.locator("#g0 .measured tbody:visible > tr").first.bounding_box()["height"] < 150


def test_without_a_script_there_are_tables_charts_and_details(show: Callable[..., Any]) -> None:
    page = show(board(), java_script_enabled=False)
    assert page.locator("#g0 .measured tbody[data-entry] > tr:first-child:visible").count() == 4
    assert page.locator("#controls").is_hidden()
    assert page.locator("#g0 .means svg.strip:not(.scale):visible").count() == 3
    assert heading(page, "memory").is_visible()
    assert heading(page, "best epoch").is_hidden()
    page.get_by_text("columns", exact=False).first.click()
    assert heading(page, "best epoch").is_visible()
    heading(page, "memory").locator(".what").click()
    assert "Largest memory" in page.locator(".help:popover-open").inner_text()
    page.keyboard.press("Escape")
    figure = page.locator("#g0 .first figure").nth(1)
    assert figure.locator("svg:visible .mark").count() == 3
    figure.locator("label", has_text="training time").click()  # an axis is chosen without a script, too
    assert figure.locator(".chart.by-seconds svg").is_visible()
    assert figure.locator(".chart.by-passes svg").is_hidden()
    page.get_by_text("Details of pugd").first.click()
    assert page.get_by_text("pugd-s0").is_visible()


def test_a_phone_scrolls_tables_but_not_the_page(show: Callable[..., Any]) -> None:
    page = show(board(), viewport={"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    scroll = page.locator("#g0 .measured .scroll")
    scroll.evaluate("element => { element.scrollLeft = 400; }")
    name = page.locator("#g0e0d").locator("xpath=../tr[1]/th").bounding_box()
    assert 0 <= name["x"] < 30, "the name stays in view"
    size = page.locator("#g0 .chart text").first.evaluate(
        "text => parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a"
    )
    assert size >= 9


@pytest.mark.slow
def test_two_hundred_entries_stay_quick(show: Callable[..., Any]) -> None:
    groups = [group(*(entry(f"e{i}", 0.95 - 0.001 * i, rank_low=i + 1, rank_high=200) for i in range(200)))]
    page = show(groups)
    spent = [
        page.evaluate(
            """() => {
              const start = performance.now();
              document.querySelectorAll("#g0 .sort")[1].click();
              document.querySelector("#filter").value = "e1";
              document.querySelector("#filter").dispatchEvent(new Event("input", { bubbles: true }));
              document.body.getBoundingClientRect();
              return performance.now() - start;
            }"""
        )
        for _ in range(5)
    ]
    assert page.locator("#count").text_content() == "111 of 200 entries"
    assert min(spent) < 2000, "the quickest of five: what else the machine does is not the page's"
