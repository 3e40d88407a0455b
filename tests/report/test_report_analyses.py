"""Landscapes, spectra and sharpness in a report: all of them, escaped, in the page's theme, to turn."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs.case import call
from drawn_analyses import landscape, spectrum, trajectory
from report_runs import made_run

from pugdft.analysis.files import digest_of, read_analysis, write_analysis
from pugdft.errors import printable
from pugdft.figures import charts, paper
from pugdft.report.analyses import analysis_view
from pugdft.report.facts import run_facts
from pugdft.report.page import as_page

WEIGHTS = "ef" * 32
EVIL = "</script><img src=x onerror=1> $a$\x1b[1m"


def stored(folder: Path, kind: str, facts: dict[str, Any], arrays: dict[str, Any], **more: Any) -> Path:
    """An analysis of the run's weights, with a caveat that must not act."""
    facts = {**facts, "caveats": [EVIL], **more}
    return write_analysis(folder, kind, digest_of({"kind": kind, "more": more}), arrays, facts)


def records(*labels: str, weights: str = WEIGHTS) -> list[dict[str, str]]:
    return [{"label": label, "weights_sha256": weights} for label in labels]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one analysis of each kind, one of other weights, and one that is damaged."""
    artifact = {"path": "model.safetensors", "sha256": WEIGHTS}
    folder = made_run(tmp_path_factory.mktemp("runs") / "run", 3, artifacts__model=artifact)
    below = folder / "analysis"
    facts, arrays = landscape()
    arrays["loss"][0, 0, 0] = np.inf
    stored(below, "landscape", facts, arrays, records=records("sgd", EVIL))
    stored(below, "landscape", facts, arrays, records=records("sgd", "sam", weights="00" * 32))
    stored(below, "landscape", facts, {"alpha": arrays["alpha"]}, records=records("sgd"))
    stored(below, "trajectory", *trajectory(1), records=records("sgd"))
    stored(below, "spectrum", *spectrum(), records=records("sgd"))
    measure = {"value": 6.125, "residual": 1e-5, "half_width": 0.25, "rho": 0.05}
    names = ("lambda1", "adaptive_lambda1", "trace", "worst_rise", "adaptive_worst_rise")
    numbers = dict.fromkeys(names, measure)
    stored(folder, "sharpness", {"numbers": numbers}, {}, records=records("sgd"))
    return folder


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return as_page([run_facts(run)])


def test_everything_beside_a_run_joins_its_report(page: str) -> None:
    for title in (
        "Sharpness", "Loss on a plane through the weights, 256 train images", "The way through weight space",
        "Spectrum of the Hessian",
    ):  # fmt: skip
        assert f"<bdi>{title}" in page
    assert "<dt>λ1</dt><dd>6.125" in page
    assert "± 0.25" in page
    left_out = re.findall(r"Left out: analysis/landscape-\w{8}\.(?:yaml|npz): ([^<]*)<", page)
    assert sorted(left_out) == ["is damaged: &#39;loss&#39;", "is of other weights than the run&#39;s"]


def test_nothing_of_a_file_acts(page: str) -> None:
    assert page.count("&lt;/script&gt;&lt;img") >= 5  # a caveat of each, and a label
    assert "<img src=x" not in page
    assert "style=" not in page.partition("<body>")[2]  # the page's policy would drop it
    assert not re.search(r'(?:href|src)="(?!data:|#)', page)


def test_a_surface_has_the_losses_that_a_script_draws(page: str) -> None:
    canvases = re.findall(r"<canvas [^>]*>", page)
    assert len(canvases) == 2
    loss, side = landscape()[1]["loss"], 9
    for number, tag in enumerate(canvases):
        text = re.search(r'data-heights="([^"]*)"', tag)
        assert text is not None
        heights = np.frombuffer(base64.b64decode(text[1]), "<f4").reshape(side, side)
        known = np.ones((side, side), bool)
        known[0, 0] = number == 1
        assert np.isnan(heights[~known]).all()
        # The same scale for both runs, logarithmic: from the lowest loss of both to the highest.
        low, high = 0.01 / 1.02, 15.1 * 1.02
        expected = np.log(loss[number] / low) / np.log(high / low)
        assert np.abs(heights - expected)[known].max() < 1e-6
    words = re.search(r"data-words='([^']*)'", canvases[1])
    assert words is not None
    assert json.loads(words[1]) == [printable(EVIL), "α", "β", "train loss"]


def test_a_large_surface_stays_small(tmp_path: Path) -> None:
    facts, arrays = landscape("plane", 1)
    axis = np.linspace(-1, 1, 201)
    arrays = {"alpha": axis, "beta": axis, "loss": (0.1 + axis[:, None] ** 2 + axis**2)[None]}
    view = analysis_view(read_analysis(stored(tmp_path, "landscape", facts, arrays)), "a")
    (panel,) = view["panels"]
    assert panel["side"] <= 81
    assert len(panel["heights"]) <= 35_000


def test_only_colours_that_differ_between_themes_follow_the_page() -> None:
    def drawn(theme: str) -> bytes:
        buffer = io.BytesIO()
        with paper.style(theme) as colours:
            figure = paper.figure("column", theme=theme)
            axes = figure.add_subplot()
            axes.plot([0, 1], [0, 1], "o-", color="#ffffff")
            axes.plot([0, 1], [1, 0], "s-", color=colours["s0"])
            figure.savefig(buffer, format="svg")
        return buffer.getvalue()

    svg = charts.page_svg(drawn("light"), "a picture", drawn("dark"))
    assert 'stroke="#ffffff"' in svg  # that line is white in both
    assert 'stroke="var(--s0)"' in svg
    assert 'fill="var(--text)"' in svg
    assert 'aria-label="a picture"' in svg
    assert "style=" not in svg


def test_plot_writes_a_page_of_one_data_file(tmp_path: Path) -> None:
    file = stored(tmp_path, "landscape", *landscape("plane", 1), records=[{"label": "sgd"}])
    done = call(["plot", str(file), "--format", "svg", "--interactive"])
    assert done.code == 0, done.err
    assert [Path(line).name for line in done.out.split()][-1] == f"{file.stem}.html"
    text = file.with_suffix(".html").read_text()
    assert text.count("<canvas ") == 1
    assert "0 runs" not in text
    refused = call(["plot", str(made_run(tmp_path / "run", 3)), "--interactive"])
    assert (refused.code, refused.out) == (2, "")
    assert "--interactive: is of data files" in refused.err


@pytest.mark.slow
def test_a_browser_turns_surfaces_and_shows_pictures_without_scripts(
    browser: Any, page: str, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    asked: list[str] = []
    for width, theme, scripted in ((375, "light", True), (1000, "dark", True), (2400, "light", False)):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, java_script_enabled=scripted
        )
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("console", lambda message: asked.append(message.text))
        tab.on("pageerror", lambda error: asked.append(str(error)))
        tab.goto((tmp_path / "page.html").as_uri())
        assert tab.locator("canvas").first.is_visible() == scripted
        assert tab.locator(".still").first.is_visible() != scripted
        if scripted:
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            canvas = tab.locator("canvas").first
            before = canvas.evaluate("canvas => canvas.toDataURL()")
            blank = canvas.evaluate(
                "canvas => Object.assign(document.createElement('canvas'),"
                "{width: canvas.width, height: canvas.height}).toDataURL()"
            )
            assert before != blank
            canvas.press("ArrowLeft")
            assert canvas.evaluate("canvas => canvas.toDataURL()") != before
        context.close()
    assert {url for url in asked if not url.startswith(("file:", "data:"))} == set()
