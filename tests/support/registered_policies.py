"""Eviction policies of a package of somebody else, which registers them by entry points."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from thoughtcache.cache.eviction import table

MODULE = """
from dataclasses import dataclass
from typing import ClassVar
from thoughtcache.cache.eviction import ScoredEviction

@dataclass(frozen=True, kw_only=True)
class LargestValues(ScoredEviction):
    name: ClassVar[str] = "largest-values"
    order: float = 2.0

    def score(self, view):
        return view.values.norm(dim=-1, p=self.order)

    def naive_score(self, head):
        return [sum(abs(float(x)) ** self.order for x in value) ** (1 / self.order) for value in head.values]
"""
ENTRIES = """
[thoughtcache.eviction]
largest-values = thought_policies:LargestValues
other-name = thought_policies:LargestValues
a-function = thought_policies:dataclass
not-there = thought_policies:Nothing
not-installed = no_such_thought_policies:Nothing
sliding = no_such_thought_policies:Nothing
"""


def install_policies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the package to a folder and put it on the path."""
    information = folder / "thought_policies-1.0.dist-info"
    information.mkdir()
    (folder / "thought_policies.py").write_text(MODULE)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: thought-policies\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "thought_policies", raising=False)
    table._load.cache_clear()
