"""The HTML page's text: harmless whatever a record says."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
from page_groups import HOSTILE, board, entry, group, hostile_board, reported

from pugdft.figures.charts import NUM_STYLES
from pugdft.leaderboard.entry import CurvePoint, Group, Summary, Versus
from pugdft.leaderboard.formats.html import as_html, spec_lines
from pugdft.leaderboard.verdicts import versus_text

VOID = {"meta", "link", "input", "br", "img", "hr"}


class Parsed(HTMLParser):
    """Elements, attributes and text; complains of an element that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.mark.parametrize("groups", [[], [group()], [group(entry("sgd"))], board(), hostile_board()], ids=len)
def test_markup_is_balanced_and_asks_for_nothing(groups: list[Group]) -> None:
    page = Parsed(as_html(groups))
    assert page.count("script") == page.count("style") == 1
    assert not {"img", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert not {"src", "srcset", "xlink:href", "action", "formaction", "background"} & attributes.keys()
        link = attributes.get("href")
        assert link is None or re.fullmatch(r"#g\d+n?|data:,|https://arxiv\.org/abs/2110\.00199", link)


def test_the_policy_allows_the_one_style_sheet_and_the_one_script() -> None:
    html = as_html(board())
    page = Parsed(html)
    [policy] = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256("".join(page.texts[tag]).encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_the_answer_comes_before_the_picture_and_the_picture_before_the_table() -> None:
    html = as_html(board())
    places = [html.index(text) for text in ('class="verdict"', 'class="means"', "<table", 'class="warnings"')]
    assert places == sorted(places)
    assert "One of pugd, sam[rho=0.1] is the best here" in html[: html.index("<table")]


def test_ten_columns_show_first_and_each_says_what_it_means() -> None:
    page = Parsed(
        as_html([group(entry("a", peak_memory_bytes=1e9, images_per_second=9.0, **MANY), entry("b"))])
    )
    headings = [attributes for tag, attributes in page.tags if tag == "th" and "data-column" in attributes]
    first = [each for each in headings if "extra" not in str(each["class"]).split()]
    assert (len(first), len(headings)) == (10, 14)
    explained = [attributes["popovertarget"] for _, attributes in page.tags if "popovertarget" in attributes]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "div" and "popover" in attributes]
    assert len(explained) == 1 + len(headings)
    assert set(explained) <= set(ids)
    assert len(ids) == len(set(ids))


MANY = {
    "summaries": {name: Summary(0.9, 0.01, (0.8, 1.0)) for name in ("top1", "top5", "loss", "ece")},
    "rank_low": 1,
    "rank_high": 2,
    "best_test_top1": 0.93,
    "mean_gradient_cosine": 0.9,
}


def test_the_best_are_marked_only_where_somebody_is_ruled_out() -> None:
    def badges(*ranges: tuple[int, int]) -> int:
        pairs = [entry(f"e{low}{high}", rank_low=low, rank_high=high) for low, high in ranges]
        return as_html([group(*pairs)]).count('class="badge"')

    assert badges((1, 2), (1, 3), (2, 3)) == 2
    assert badges((1, 3), (1, 3), (1, 3)) == 0


def test_with_a_baseline_the_picture_shows_differences() -> None:
    versus = Versus(0.02, 0.001, True, None, ci95=(0.01, 0.03))
    entries = entry("sam", 0.92, rank_low=1, rank_high=1, versus_baseline=versus), entry("sgd", 0.9)
    page = Parsed(as_html([group(*entries, baseline="sgd")]))
    assert "Test top-1, %, minus that of sgd " in page.texts["figcaption"]
    assert {"+2.00", "0.00"} <= set(page.texts["span"])
    zeros = [attributes["x1"] for tag, attributes in page.tags if attributes.get("class") == "zero"]
    middles = [attributes["cx"] for tag, attributes in page.tags if attributes.get("class") == "mean"]
    assert zeros == [middles[1]] * 2


def test_hostile_text_is_shown_as_text_on_one_line() -> None:
    html = as_html(hostile_board(), title=HOSTILE[0])
    texts = [text for tag in ("bdi", "h4", "option", "title") for text in Parsed(html).texts[tag]]
    for text in HOSTILE[:6]:
        assert text in texts
    assert "gpj.exe[31m" in texts
    assert not re.search("[\u202e\u2066\u2028\x1b\x00\ud800]", html)
    html.encode()  # no lone surrogate is left


def test_equal_groups_give_equal_text_without_a_date() -> None:
    assert as_html(board()) == as_html(board())
    assert not re.search(r"20\d\d-\d\d", as_html([group(entry("sgd"))]))


def test_what_is_not_finite_is_shown_as_missing() -> None:
    point = CurvePoint(1, math.nan, math.inf, None, math.nan)
    odd = entry(
        "odd",
        None,
        summaries={"top1": Summary(math.nan)},
        train_seconds=math.inf,
        scores={0: math.nan},
        curve=(point,) * 3,
    )
    far = entry(
        "far", 0.9, summaries={"top1": Summary(0.9, math.inf, (-math.inf, math.inf))}, gradient_passes=-1.0
    )
    page = Parsed(as_html([group(odd, far, entry("sgd", 0.8), equal_passes=math.nan)]))
    numbers = [value for _, attributes in page.tags for value in attributes.values() if value]
    shown = [text for tag in ("td", "span", "dd", "text") for text in page.texts.get(tag, [])]
    assert not [text for text in numbers + shown if re.search(r"\b(nan|inf)\b", text)]


def test_only_a_wellformed_arxiv_number_becomes_a_link() -> None:
    good, bad = (
        Parsed(as_html([group(reported("sam", arxiv=arxiv))])) for arxiv in ("2110.00199v1", "x/../y")
    )
    assert [a["href"] for tag, a in good.tags if tag == "a"] == ["https://arxiv.org/abs/2110.00199v1"]
    assert not bad.count("a")
    assert any("x/../y" in text for text in bad.texts["bdi"])


def test_the_best_epoch_says_that_it_never_ranks() -> None:
    texts = Parsed(as_html(board())).texts
    assert "never ranks" in texts["th"]
    assert "picked on test" in texts["span"]
    assert "94.20 %, picked on the test split: never ranks" in texts["dd"]


def test_details_say_what_the_data_allow() -> None:
    groups = group(entry("a"), entry("b"))
    said = [
        versus_text(entry("b", versus_best=versus), groups)
        for versus in (
            Versus(-0.0031, 0.21, False, 7),
            Versus(-0.02, 0.0004, True, None),
            Versus(-0.01, None, False, None),
            Versus(-1e-5, 0.9, False, 400),
        )
    ]
    assert said[0] == (
        "−0.31 percentage points in top-1; p = 0.210 (Holm-corrected): not told apart. "
        "If it is real, 7 more seeds each would tell (4h40 of training); that is a further look: plan the "
        "number now, and rank then with --looks 2"
    )
    assert said[1] == "−2.00 percentage points in top-1; p < 0.001 (Holm-corrected): told apart"
    assert "nothing can be tested" in said[2]
    assert said[3].startswith("0.00 percentage points")


def test_options_keep_their_indentation_and_lose_control_characters() -> None:
    lines = spec_lines({"name": "sam", "base": {"name": "a\u202eb", "lr": 0.1}})
    assert lines == ["name: sam", "base:", "  name: ab", "  lr: 0.1"]


def test_colours_of_text_have_contrast_in_both_themes() -> None:
    css = (
        resources.files("pugdft.leaderboard.formats.templates")
        .joinpath("page.css")
        .read_text(encoding="utf-8")
    )
    pairs = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", css))
    for theme in (0, 1):
        colour = {name: _luminance(pair.split(", ")[theme]) for name, pair in pairs.items()}
        for ground in ("page", "raised", "best", "care"):
            for text in ("text", "muted", "accent"):
                assert _contrast(colour[text], colour[ground]) >= 4.5, (theme, text, ground)
        for style in range(NUM_STYLES):
            assert _contrast(colour[f"s{style}"], colour["page"]) >= 3, (theme, style)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(first: float, second: float) -> float:
    return (max(first, second) + 0.05) / (min(first, second) + 0.05)
