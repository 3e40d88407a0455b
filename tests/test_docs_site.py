"""The site builds without a warning, no link in it is dead, and its references know everything there is."""

from __future__ import annotations

import logging
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest
from cifar_networks import NETWORKS, SIZES

from pugdft.bench.grid import build_matrix
from pugdft.cli.help import command_line, commands, examples_of
from pugdft.cli.main import application
from pugdft.config.load import _places, bundled_tables
from pugdft.config.schema import Recipe
from pugdft.optim import describe, optimizer_names
from pugdft.optim.build import base_defaults
from pugdft.optim.methods import METHODS
from pugdft.optim.options import keyword_defaults

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    reason = "the site's packages are not installed: pip install 'pugdft[docs]'"
    for name in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(name, reason=reason)
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        logging.getLogger("mkdocs").setLevel(logging.WARNING)
        # Strict: a warning, such as on a link that leads nowhere, ends the build.
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class Page(HTMLParser):
    """A page's links, anchors and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.anchors |= {given[key] for key in ("id", "name") if key in given}
        self.links += [given[key] for key in ("href", "src") if key in given]
        if tag in ("script", "img") or (tag == "link" and given.get("rel") == "stylesheet"):
            self.loaded.append(given.get("src") or given.get("href") or "")

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":
            continue  # its links are those of a site at the top of a host
        for link in page.links:
            if re.match(r"(https?|mailto|data|javascript):", link):
                continue
            name, anchor = urldefrag(unquote(link))
            target = (path.parent / name).resolve() if name not in ("", ".") else path
            target = target / "index.html" if target.is_dir() else target
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (anchor and target in pages and anchor not in known | {"__skip"}):
                dead.append(f"{path.name}: {link}")
        assert not [each for each in page.loaded if each.startswith(("http:", "https:", "//"))], path
    assert not dead
    assert len(pages) > 12


@pytest.mark.slow
def test_every_optimizer_has_a_card_with_its_starting_values(site: Path, pages: dict[Path, Page]) -> None:
    page = pages[site / "optimizers.html"]
    for name in optimizer_names():
        assert name in page.anchors
        options = keyword_defaults(METHODS[name]) if name in METHODS else base_defaults(name)
        for option in options:
            assert option in page.text
        assert describe(name).splitlines()[0].replace("``", "") in page.text


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_when_to_use_it(name: str) -> None:
    assert re.search(r"^Use: [a-z].*\.$", describe(name), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_references_know_every_key_and_every_command(site: Path, pages: dict[Path, Page]) -> None:
    recipe = pages[site / "recipe-reference.html"].text
    assert [place for place in _places(Recipe) if place not in recipe] == []
    text = " ".join(pages[site / "command-reference.html"].text.split())
    for name, command in commands(command_line(application())):
        assert f"Usage: {name} " in text
        assert all(example in text for example in examples_of(command))
        options = (each for each in command.params if each.param_type_name == "option" and not each.hidden)
        assert [name for each in options for name in each.opts if name not in text] == []


@pytest.mark.slow
def test_every_document_is_in_the_navigation(site: Path, pages: dict[Path, Page]) -> None:
    linked = set(pages[site / "index.html"].links)
    for path in (ROOT / "docs").glob("*.md"):
        if path.name != "index.md":
            assert f"{path.stem}.html" in linked


def test_links_between_documents_lead_somewhere_without_the_site_too() -> None:
    generated = {"optimizers.md", "recipe-reference.md", "command-reference.md", "measured.md"}
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "leaderboard").glob("*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = urldefrag(link)[0]
            if not link.startswith(("http:", "https:", "#")) and target not in generated:
                assert (path.parent / target).exists(), f"{path.name}: {link}"


def test_the_gallery_shows_all_of_its_small_pictures_and_its_bench_files_are_valid() -> None:
    folder = ROOT / "docs" / "gallery"
    shown = re.findall(r"!\[[^\]]+\]\(gallery/([\w-]+\.png)\)", (ROOT / "docs" / "gallery.md").read_text())
    assert sorted(shown) == sorted(path.name for path in folder.glob("*.png"))
    assert sum(path.stat().st_size for path in folder.iterdir()) < 1.2e6
    runs, sweep = (build_matrix([str(folder / name)]) for name in ("runs.yaml", "sweep.yaml"))
    assert (len(runs.entries), runs.budget) == (5, "passes")
    assert len(sweep.entries) == 16


def test_the_long_description_has_absolute_links_only() -> None:
    hatchling = pytest.importorskip("hatchling", reason="hatchling is not installed")
    assert hatchling
    import importlib.util

    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    metadata: dict[str, dict[str, str]] = {}
    module.LongDescription(str(ROOT), {}).update(metadata)
    text = metadata["readme"]["text"]
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "![" not in text


def test_the_citation_names_the_version_and_the_licence() -> None:
    from pugdft.config.yaml import parse

    cited = parse((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])


def test_the_page_on_the_papers_has_every_network_with_its_size_and_every_table_with_its_runs() -> None:
    text = (ROOT / "docs" / "papers.md").read_text()
    sizes = re.findall(
        r"\| `(cifar_\w+)` \| ([\d,]+) \| ([\d,]+) \| [^|]+ \| a reference(?:, public code)? \|", text
    )
    assert sorted(name for name, *_ in sizes) == NETWORKS
    for name, *counts in sizes:  # which tests/architectures compares with the networks
        assert counts == [f"{SIZES[name].of_10:,}", f"{SIZES[name].of_100:,}"], name
    runs = dict(re.findall(r"`pugdft bench (\w+)(?: data.name=FOLDER)?` \| (\d+) \|", text))
    tables = {name: build_matrix([name]) for name in bundled_tables()}
    assert {name: int(number) for name, number in runs.items()} == {
        name: len(each.recipes) * len(each.entries) * len(each.seeds) for name, each in tables.items()
    }
