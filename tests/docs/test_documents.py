"""What the documents say is run or parsed; generated pages are current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from thoughtcache_cli.arguments import build_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of every fenced block of a language in all pages."""
    return [
        (f"{page.name}:{number}", text)
        for page in PAGES
        for number, (found, text) in enumerate(FENCE.findall(page.read_text()))
        if found == language
    ]


PYTHON, SHELL = blocks("python"), blocks("bash")


def test_the_readme_shows_python_and_commands() -> None:
    assert any(name.startswith("README") for name, _ in PYTHON)
    assert any(name.startswith("README") for name, _ in SHELL)


@pytest.mark.parametrize(("name", "text"), PYTHON, ids=[name for name, _ in PYTHON])
def test_python_blocks_run(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(text, name, "exec"), {"__name__": "block"})


@pytest.mark.parametrize(("name", "text"), SHELL, ids=[name for name, _ in SHELL])
def test_commands_parse_and_targets_exist(name: str, text: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("thoughtcache"):
            build_parser().parse_args(words[1:])
        elif words and words[0] == "make":
            assert f"\n{words[1]}:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_to_files_work(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_generated_pages_are_current() -> None:
    script = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(script, check=True, timeout=300, env=environment)
