"""The caches without a memory that stand beside an adapter in a study: each one is an adapter that changes nothing.

Comparisons are at equal floats: whoever has no memory gets the adapter's numbers back as slots of its window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.other_cache import changes_nothing, under_adapter

POLICIES_BESIDE = ("h2o", "random", "sliding", "snapkv")
"""Eviction policies of the arms with more slots if no others are named: the newest, by chance, and the two that are
known best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One line of a table.

    Attributes:
        name: what it is called.
        config: settings of an adapter that is added, untrained LoRA; None for the adapter that is studied.
    """

    name: str
    config: ThoughtConfig | None

    @contextmanager
    def active(self, model: PeftModel) -> Iterator[None]:
        """Make it the active adapter in this block."""
        if self.config is None:
            yield
            return
        with under_adapter(model, self.config):
            yield


def arms_beside(thought: ThoughtConfig, *, extra_slots: int, policies: Sequence[str] = POLICIES_BESIDE) -> list[Arm]:
    """The base model with the full cache, under the window, and under a window with more slots.

    Args:
        thought: settings of the adapter that is studied.
        extra_slots: tokens whose keys and values take as many numbers as its states.
        policies: names of eviction policies of the windows with more slots.
    """
    window = thought.window
    assert isinstance(window, int)
    arms = [
        _arm(thought, "full cache", window=None, positions="absolute"),
        _arm(
            thought,
            f"window {window}",
            window=window,
            eviction=thought.eviction,
            eviction_options=thought.eviction_options,
            eviction_budgets=thought.eviction_budgets,
        ),
    ]
    return [*arms, *wider_arms(thought, extra_slots=extra_slots, policies=policies)]


def wider_arms(thought: ThoughtConfig, *, extra_slots: int, policies: Sequence[str] = POLICIES_BESIDE) -> list[Arm]:
    """The base model under windows with more slots, one for every policy; none if there are no more slots.

    Args:
        thought: settings of the adapter that is studied.
        extra_slots: see `arms_beside`.
        policies: names of eviction policies, of this package or registered by others.

    Raises:
        ValueError: if a policy is not known.
    """
    assert isinstance(thought.window, int)
    if not extra_slots:
        return []
    wider = thought.window + extra_slots
    return [
        _arm(thought, f"window {wider}, {policy}", window=wider, eviction=policy) for policy in dict.fromkeys(policies)
    ]


def _arm(thought: ThoughtConfig, name: str, **cache: Any) -> Arm:
    settings = {"evict_fraction": thought.evict_fraction, "positions": thought.positions, **cache}
    return Arm(name=name, config=changes_nothing(**settings))
