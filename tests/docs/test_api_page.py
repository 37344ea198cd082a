"""docs/api.md shows every public name; what a page imports is on it."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

import thoughtcache as tc
from support.documents import PAGES, ROOT

API = (ROOT / "docs" / "api.md").read_text()
SHOWN = set(re.findall(r"^### (?:class )?(\w+)", API, re.MULTILINE))
IMPORTS = re.findall(r"^`from (thoughtcache\.[\w.]+) import (\w+)`$", API, re.MULTILINE)


def test_every_public_name_is_shown() -> None:
    assert set(tc.__all__) <= SHOWN, set(tc.__all__) - SHOWN


def test_names_without_an_import_line_are_those_of_the_package() -> None:
    assert SHOWN - {name for _, name in IMPORTS} == set(tc.__all__)


@pytest.mark.parametrize(("module", "name"), IMPORTS)
def test_import_lines_work(module: str, name: str) -> None:
    if module.startswith("thoughtcache.harness"):
        pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    assert hasattr(import_module(module), name)


def test_what_pages_import_is_shown() -> None:
    for page in PAGES:
        for line in re.findall(r"^from thoughtcache(?:\.[\w.]+)? import (.+)$", page.read_text(), re.MULTILINE):
            assert {name.strip() for name in line.split(",")} <= SHOWN, f"{page.name}: {line}"


def test_groups_follow_the_flow() -> None:
    groups = re.findall(r"^## \d+\. (\w+)$", API, re.MULTILINE)
    flow = ["Prompt", "Rollout", "Eviction", "State", "Adapter", "Replay", "Loss"]
    assert groups == [*flow, "Evaluation", "Planning", "Recipes"]
