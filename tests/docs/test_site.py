"""The site of the pages: its navigation is the table of README.md, and it loses no table, list, block or anchor."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from support.documents import PAGES, ROOT, anchors

CONFIG = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]


def test_the_navigation_is_the_table_of_the_readme() -> None:
    table = (ROOT / "README.md").read_text().split("\n## Pages\n")[1]
    rows = re.findall(r"^\| ([^|]+) \| (\[.*\)) \|$", table, re.MULTILINE)
    expected = [(task, re.findall(r"\[([^]]+)\]\(([^)]+)\)", links)) for task, links in rows]
    start, *groups = CONFIG["nav"]
    assert start == {"Start": "README.md"}
    found = [
        (lowered(title), [(lowered(name), page) for entry in entries for name, page in entry.items()])
        for group in groups
        for title, entries in group.items()
    ]
    assert found == [(lowered(task), [(lowered(name), page) for name, page in links]) for task, links in expected]


def lowered(title: str) -> str:
    """A title with a small first letter."""
    return title[0].lower() + title[1:]


def content(html: str) -> str:
    """The page itself, without navigation."""
    return html.split("<article", 1)[-1].split("</article>")[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("zensical") is None:
        pytest.skip('zensical is not installed: pip install ".[docs]" -c constraints.txt')
    folder = tmp_path_factory.mktemp("site")
    pages = folder / "build" / "pages"
    shutil.copytree(ROOT / "docs", pages / "docs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, pages)
    shutil.copy(ROOT / "zensical.toml", folder)
    subprocess.run([sys.executable, "-m", "zensical", "build", "--strict"], check=True, cwd=folder, timeout=300)
    return folder / "site"


def page_of(site: Path, page: Path) -> str:
    name = "index" if page.name == "README.md" else page.stem
    return ((site / "docs" if page.parent.name == "docs" else site) / f"{name}.html").read_text()


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_has_the_tables_lists_and_blocks_that_it_has_on_github(site: Path, page: Path) -> None:
    shown, expected = content(page_of(site, page)), MarkdownIt("gfm-like", {"linkify": False}).render(page.read_text())
    for tag in ("h2", "h3", "h4", "table", "tr", "td", "li", "pre", "img"):
        assert len(re.findall(rf"<{tag}[ >]", shown)) == len(re.findall(rf"<{tag}[ >]", expected)), tag


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_a_page_has_the_anchors_that_it_has_on_github(site: Path, page: Path) -> None:
    found = set(re.findall(r'<h[1-6] id="([^"]+)"', content(page_of(site, page))))
    assert found == anchors(page)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for file in site.rglob("*.html"):
        for tag in re.findall(r"<(?:script|link|img)\b[^>]*>", file.read_text()):
            assert not re.search(r"(?:src|href)=\"?(?:https?:)?//", tag), f"{file.name}: {tag}"
