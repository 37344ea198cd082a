"""What the documents say is run or parsed; generated pages are current."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import thoughtcache as tc
from support.documents import PAGES, ROOT, blocks
from thoughtcache_cli.arguments import build_parser, command_parsers
from thoughtcache_cli.effect import refuse_without_effect

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
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0].endswith("thoughtcache"):
            parser = build_parser()
            options = vars(parser.parse_args(words[1:]))
            command = options.pop("command")
            actions = command_parsers(parser)[command]._actions
            spelled = {action.dest: action.option_strings[-1] for action in actions if action.option_strings}
            refuse_without_effect(command, options, spelled)
        elif words and words[0] == "make":
            assert f"\n{words[1]}:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_to_files_work(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def words_of_now(page: Path) -> str:
    """A page without the log of what was, and without what is planned."""
    return "" if page.name == "lab-log.md" else page.read_text().split("\n## 9. Planned")[0]


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_public_names_and_commands_in_the_documents_exist(page: Path) -> None:
    text = words_of_now(page)
    names = set(re.findall(r"\btc\.([A-Za-z_]\w*)", text))
    assert names <= set(dir(tc)), names - set(dir(tc))
    commands = {word for line in re.findall(r"`thoughtcache (\w[^`]*)`", text) for word in line.split()[:1]}
    assert commands <= set(command_parsers(build_parser()))


def test_the_design_names_every_command_and_public_name() -> None:
    text = words_of_now(ROOT / "docs" / "design.md")
    (line,) = (line for line in text.splitlines() if line.startswith("CLI: "))
    assert set(re.findall(r"`thoughtcache ([\w-]+)`", line)) == set(command_parsers(build_parser()))
    assert set(tc.__all__) <= set(re.findall(r"\w+", text))


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    tree = text.split("    src/thoughtcache/\n")[1].split("    tests/")[0]
    packages = 0
    for line in tree.splitlines():
        match = re.match(r"      ([\w.]+/?)\s+(.*)", line)
        if match is None:
            assert line.startswith("    src/thoughtcache_cli/"), line
            continue
        place = ROOT / "src" / "thoughtcache" / match.group(1)
        assert place.exists(), place
        packages += place.is_dir()
        for name in re.findall(r"\b(\w+(?:\.py|/))(?=\W|$)", match.group(2)) if place.is_dir() else []:
            assert (place / name).exists(), f"{match.group(1)}{name}"
    there = {path.name for path in (ROOT / "src" / "thoughtcache").iterdir() if path.is_dir() and "__" not in path.name}
    assert packages == len(there)


def test_generated_pages_are_current() -> None:
    script = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    subprocess.run(script, check=True, timeout=300, env=environment)
