"""What pyproject.toml declares is what the two files of constraints install, so that a range is tested at both ends."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def pinned(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {project: Version(found) for project, found in (line.split("==") for line in lines)}


LOWEST, NEWEST = pinned("constraints-lowest.txt"), pinned("constraints.txt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = PROJECT["optional-dependencies"]
DECLARED = [Requirement(text) for text in (*PROJECT["dependencies"], *OPTIONAL["quantized"], *OPTIONAL["ray"])]


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_a_range_begins_and_ends_with_versions_that_are_tested(requirement):
    bounds = {specifier.operator: Version(specifier.version) for specifier in requirement.specifier}
    lowest, newest = LOWEST[requirement.name], NEWEST[requirement.name]
    assert bounds[">="] == lowest
    assert newest in requirement.specifier
    if requirement.name != "torch":  # one wheel for CPUs was at hand, see the comment in pyproject.toml
        *leading, last = bounds["<"].release
        # The end is the next version of the precision that the bound is written in: 5.25 after 5.24.x, 16 after 15.x.
        assert newest.release[: len(leading) + 1] == (*leading, last - 1)


def test_both_files_name_the_same_projects():
    assert set(LOWEST) == set(NEWEST)


def test_the_tools_of_development_are_the_same():
    # But for one that no test uses, and whose newest version wants a newer rich than the lowest.
    tools = {Requirement(text).name for text in OPTIONAL["dev"]} - {requirement.name for requirement in DECLARED}
    tools -= {"import-linter"}
    assert {name: LOWEST[name] for name in tools} == {name: NEWEST[name] for name in tools}


@pytest.mark.parametrize("requirement", DECLARED, ids=lambda requirement: requirement.name)
def test_what_is_installed_is_supported(requirement):
    assert Version(version(requirement.name)).public in requirement.specifier
