"""The arms of an evaluation: the same questions, asked under several caches and of several adapters.

Each arm is settings by name, such as `{"window": 64, "eviction": "h2o"}`, and becomes an evaluation in a folder of its
own below that of the run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from thoughtcache.cache.budgets.table import make_allocation, written_budgets
from thoughtcache.cache.schedule import evict_count
from thoughtcache.config import OWN_WINDOW
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.subject import bounded_model

CACHE = ("window", "evict_fraction", "positions", "eviction", "eviction_options", "eviction_budgets")
SETTINGS = ("name", "adapter", *CACHE)
FOLDERS = "arms"
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One line of a table.

    Attributes:
        name: what it is called.
        folder: name of its folder, made of the name.
        run: the evaluation; its `resume` says whether the whole run goes on.
    """

    name: str
    folder: str
    run: EvalRun

    @property
    def settings(self) -> dict[str, Any]:
        """Adapter and cache, as they were asked for."""
        return {name: getattr(self.run, name) for name in ("adapter", *CACHE)}


def arms_of(run: EvalRun, caches: Sequence[Mapping[str, Any]]) -> list[Arm]:
    """The arms of a run; everything about them that can be known before the base is loaded is looked at.

    Args:
        run: what all of them share: suites, model, sampling. Its adapter is that of the arms that name none.
        caches: settings of each arm, by name: those of the cache in `EvalRun`, and

            - adapter: another adapter, or None for the base alone,
            - name: what the arm is called; made of the others if it is left out.

    Raises:
        ValueError: if there are none, a setting is unknown or has no effect, or two arms are the same.
    """
    if not caches:
        raise ValueError('caches names no cache; give at least one, such as {"window": None} for the full cache')
    _refuse_beside(run)
    arms = [_arm(run, cache) for cache in caches]
    resolved = [_resolved(arm) for arm in arms]
    for index, arm in enumerate(arms):
        for place, other in enumerate(arms[:index]):
            if resolved[index] == resolved[place]:
                raise ValueError(f"the caches {other.name!r} and {arm.name!r} are the same; leave out one of them")
            if arm.folder == other.folder:
                raise ValueError(
                    f"the caches {other.name!r} and {arm.name!r} would share the folder {arm.folder!r}; give one of "
                    "them another name=NAME"
                )
    return arms


def _refuse_beside(run: EvalRun) -> None:
    """Refuse what has no meaning beside several caches."""
    defaults = {field.name: field.default for field in fields(run)}
    for name in CACHE:
        value = getattr(run, name)
        if value != defaults[name]:
            raise ValueError(f"{name}={value!r} is the cache of a run with a single one; write it into each cache")
    if run.select is not None:
        raise ValueError(
            f"select={run.select} finishes other answers under each cache, so that accuracies are not comparable; ask "
            "one cache per run"
        )


def _arm(run: EvalRun, cache: Mapping[str, Any]) -> Arm:
    for setting in cache:
        if setting not in SETTINGS:
            raise ValueError(f"{setting!r} is no setting of a cache; choose among {', '.join(SETTINGS)}")
    settings = {name: value for name, value in cache.items() if name != "name"}
    name = str(cache.get("name") or _name(settings, run.adapter))
    folder = re.sub(r"[^\w.=]+", "-", name).strip("-.")
    if not folder or len(folder) > LONGEST_NAME:
        raise ValueError(
            f"the cache {name!r} cannot be the name of a folder, which has 1 to {LONGEST_NAME} letters or digits; give "
            "it a name=NAME"
        )
    own = replace(run, **settings, output_dir=f"{run.output_dir}/{FOLDERS}/{folder}")
    return Arm(name=name, folder=folder, run=own)


def _name(settings: Mapping[str, Any], adapter: str | None) -> str:
    """The settings in a few words: `runs/mine/adapter, window 64, h2o`."""
    parts = []
    if "adapter" in settings:
        parts.append("base" if settings["adapter"] is None else str(settings["adapter"]))
    window = settings.get("window", OWN_WINDOW)
    if window is None or (window == OWN_WINDOW and settings.get("adapter", adapter) is None):
        parts.append("full cache")
    elif window != OWN_WINDOW:
        parts.append(f"window {window}")
    if "evict_fraction" in settings:
        parts.append(f"evicts {settings['evict_fraction']:g}")
    parts += [str(settings[name]) for name in ("positions", "eviction") if settings.get(name) is not None]
    parts += [f"{key}={value}" for key, value in (settings.get("eviction_options") or {}).items()]
    budgets = settings.get("eviction_budgets")
    if budgets is not None:
        parts.append(f"budgets {budgets if isinstance(budgets, str) else written_budgets(budgets, '+')}")
    return ", ".join(parts) or "own cache"


def _resolved(arm: Arm) -> tuple[Any, ...]:
    """What tells an arm from others: adapter and cache, with the settings that were left out.

    Not told from each other: fractions of a window that come to the same number of thoughts.

    Raises:
        ValueError: if the adapter or the cache cannot be used.
    """
    config, run = bounded_model(arm.run).config(), arm.run
    adapter = None if run.adapter is None else Path(run.adapter)
    window = config.window if run.window == OWN_WINDOW else run.window
    if window is None:
        return adapter, None
    fraction, budgets = config.evict_fraction, config.eviction_budgets
    leave = evict_count(window, fraction) if isinstance(window, int) else fraction
    layers: Any = None
    if isinstance(budgets, str):
        layers = make_allocation(budgets)
    elif budgets is not None:
        rows = [size if isinstance(size, list) else [size] for size in budgets]
        if {size for row in rows for size in row} != {window}:
            layers = tuple(row[0] if len(set(row)) == 1 else tuple(row) for row in rows)
    policy = (config.eviction, tuple(sorted(config.eviction_options.items())))
    return adapter, window, leave, config.positions, policy, layers
