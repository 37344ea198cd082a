"""What a page refers to exists: anchors, images, commands of every kind, options, modules, settings."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.documents import PAGES, ROOT, anchors, blocks, without_blocks
from thoughtcache_cli.arguments import build_parser, command_parsers

SHELL = blocks("bash")
OF_OTHERS = {
    "--nproc_per_node", "--nnodes", "--node_rank", "--rdzv_backend", "--rdzv_endpoint", "--num_processes", "--cpu",
    "--model_args", "--tasks", "--strict",
}  # fmt: skip
"""Options of torchrun, accelerate, lm-evaluation-harness, mypy and tools of this repository that pages name."""
FEWEST_WORDS = 8
"""Words of a picture's alternative text: it says what one sees, for whoever does not."""


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_anchors_exist(page: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", without_blocks(page)):
        target = (page.parent / file).resolve() if file else page
        assert anchor in anchors(target), f"{file}#{anchor}"


def test_an_anchor_that_is_not_there_is_found_out(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One `two`: 3\n```text\n# no heading\n```\n## One two 3\n")
    assert anchors(page) == {"one-two-3", "one-two-3-1"}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_images_exist_and_say_what_they_show(page: Path) -> None:
    text = without_blocks(page)
    assert "<img" not in text
    for alternative, target in re.findall(r"!\[([^]]*)\]\(([^)]+)\)", text):
        assert (page.parent / target).is_file(), target
        assert len(alternative.split()) >= FEWEST_WORDS, f"{target}: {alternative!r}"


def test_every_image_is_shown() -> None:
    shown = {Path(target).name for page in PAGES for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())}
    assert shown == {file.name for file in (ROOT / "docs" / "images").iterdir()}


@pytest.mark.parametrize(("name", "text"), SHELL, ids=[name for name, _ in SHELL])
def test_every_line_of_the_shell_is_a_command_that_exists(name: str, text: str) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "torchrun":  # what it runs stands behind -m
            words = ["python", *words[words.index("-m") :]]
        if words[0] == "python":
            assert words[1] == "-m", line
            module = words[2]
            assert find_spec(module) or (ROOT / module.replace(".", "/")).is_dir(), module
            check_command(module, words[3:])
        elif words[0] == "pip":
            check_install(words)
        elif words[0] == "thoughtcache":
            check_command("thoughtcache_cli", words[1:])
        else:
            assert words[0] == "make", line  # looked at in test_documents.py


def check_command(module: str, words: list[str]) -> None:
    """The command line of this package, and options that a script of the repository declares."""
    if module == "thoughtcache_cli":
        command = vars(build_parser().parse_args(words))["command"]
        known = {text for action in command_parsers(build_parser())[command]._actions for text in action.option_strings}
        given = {word.split("=")[0] for word in words if word.startswith("--")}
        assert given <= known, given - known  # argparse takes the beginning of an option, too
    elif module.startswith("benchmarks."):
        file = ROOT / module.replace(".", "/")
        source = "".join(
            one.read_text() for one in ([*file.rglob("*.py")] if file.is_dir() else [file.with_suffix(".py")])
        )
        for option in (word for word in words if word.startswith("--")):
            assert f'"{option}"' in source, option


def check_install(words: list[str]) -> None:
    """`pip install` of a clone or of this package, with extras that are declared."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert words[1] == "install"
    for target in (word for word in words[2:] if not word.startswith("-")):
        match = re.fullmatch(r"(\.|thoughtcache)(?:\[([\w,]+)\])?", target)
        assert match, target
        assert set(filter(None, (match.group(2) or "").split(","))) <= set(project["optional-dependencies"]), target


@cache
def options_of_commands() -> frozenset[str]:
    found: set[str] = {"--version"}
    for parser in command_parsers(build_parser()).values():
        for action in parser._actions:
            assert isinstance(action, argparse.Action)
            found |= set(action.option_strings)
    return frozenset(found)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_options_in_the_text_exist(page: Path) -> None:
    if page.name == "lab-log.md":  # the log of what was
        return
    scripts = "".join(file.read_text() for file in (ROOT / "benchmarks").rglob("*.py"))
    for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", without_blocks(page)):
        assert option in options_of_commands() | OF_OTHERS or f'"{option}"' in scripts, option


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_targets_of_make_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = re.findall(r"^ {4}make ([a-z][\w-]*)|`make ([a-z][\w-]*)`", page.read_text(), re.MULTILINE)
    assert {first or second for first, second in named} <= targets


@pytest.mark.parametrize(("name", "text"), blocks("toml"))
def test_settings_can_be_read(name: str, text: str) -> None:
    assert tomllib.loads(text), name


def ten_tasks() -> list[str]:
    """The tasks of the quickstart, each with its commands."""
    text = (ROOT / "docs" / "quickstart.md").read_text().split("\n## Ten tasks of a new user\n")[1]
    return re.split(r"^(?=\*\*)", text.split("\n## ")[0], flags=re.MULTILINE)[1:]


def test_the_quickstart_has_ten_tasks_of_one_command() -> None:
    tasks = ten_tasks()
    assert len(tasks) == 10
    for task in tasks[:-1]:
        (block,) = re.findall(r"^```bash\n(.*?)^```$", task, re.MULTILINE | re.DOTALL)
        (words,) = (shlex.split(line, comments=True) for line in block.replace("\\\n", " ").splitlines() if line)
        assert words[0] == "thoughtcache"
        build_parser().parse_args(words[1:])
    assert "trl.md" in tasks[-1]  # a script of the user's, of which at most five lines change
    page = (ROOT / "docs" / "trl.md").read_text()
    (diff,) = re.findall(r"^```diff\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert sum(line.startswith("+") for line in diff.splitlines() if line != "+") <= 5
