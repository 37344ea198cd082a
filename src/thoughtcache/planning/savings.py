"""Which savings the learner of a run takes: the cheapest with which it needs no more memory than it may.

A run may need what full-cache LoRA needs at the same batch, as TRL trains it with a checkpoint per layer, and no more
than `COMFORTABLE` of what its device has to offer, or all of it where no combination keeps to that. If none keeps to
the first, as on one row of some hundred tokens of which few were evicted, it takes the cheapest within `NEAR` of the
least; if none keeps to the second, the least. A learner below `SMALL_BYTES` is held to its device alone: there is
nothing to be won from it.

Prices, the lowest first. Smaller chunks are free of arithmetic, and of time as long as a pass still runs
`FULL_PASS_TOKENS`. Keys and values on the host travel there and back, behind the computation. Checkpoints of layers
cost a forward pass of the learner. Chunks of fewer tokens cost more: on one row, halves of 256 took 1.4 times as long
as whole segments on a CPU, quarters 2.1 times (docs/lab-log.md, 2026-11-23).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product

from thoughtcache.learner.options import CHUNK_TOKENS
from thoughtcache.planning.plan import learner_bytes, make_plan
from thoughtcache.planning.setting import PlanSetting, full_cache_lora
from thoughtcache.policy.modes import Place

CHUNKS = (1024, 512, 256, 128, 64)
"""Sizes of chunks that are tried, below the one that a setting has."""
FULL_PASS_TOKENS = 512
"""Tokens of all rows of a chunk from which on a pass is bound by arithmetic, not by its number of kernels: assumed."""
SMALL_BYTES = 2**28
"""A learner that needs less than this over the model is not slowed down to need less still."""
NEAR = 0.02
"""Share by which a choice may miss the least where even that is more than full-cache LoRA needs."""
COMFORTABLE = 0.63
"""Share of what a device may be filled with that a run keeps to where it can: 60 % of the device, as the paper's shares
are (45 to 67 % of theirs). The rest is for longer prompts, fragments, and whoever else uses the device."""
MARGIN = 0.05
"""Share of a device that a plan leaves free, for what it does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """Values of the settings that save memory; each is described in `learner/replay.py`."""

    checkpoint_layers: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    kv_log: Place = "device"

    def of(self, setting: PlanSetting) -> PlanSetting:
        """The setting with them."""
        return replace(setting, **asdict(self))

    def __str__(self) -> str:
        return self.text_of(asdict(self))

    def text_of(self, names: Collection[str]) -> str:
        """Names and values of some of them, in their own order."""
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items() if name in names)


def usable_bytes(device_bytes: int) -> int:
    """Bytes of a device that a plan may fill."""
    return int((1 - MARGIN) * device_bytes)


def combinations(setting: PlanSetting, free: Collection[str]) -> list[Savings]:
    """What a run could save beyond what its setting does, the cheapest first, and the least memory last.

    Args:
        setting: the run; its own values come first.
        free: names of the savings that may change.
    """
    size, place, layers = setting.chunk_tokens, setting.kv_log, setting.checkpoint_layers
    replays = setting.learner == "replay" and setting.recompute
    smaller = [one for one in CHUNKS if one < (size or CHUNKS[0] + 1)] if replays and "chunk_tokens" in free else []
    to_host = replays and "kv_log" in free and setting.device_type == "cuda" and place == "device"
    places: list[Place] = [place, "host"] if to_host else [place]
    checkpoints = [False, True] if replays and "checkpoint_layers" in free and not layers else [layers]

    def halvings(savings: Savings) -> int:
        """How often a chunk was halved below the size that costs no time."""
        chunk = savings.chunk_tokens
        if chunk is None or chunk == size:
            return 0
        return sum(chunk <= one and one * setting.batch < FULL_PASS_TOKENS for one in smaller)

    found = [
        Savings(checkpoint_layers=checkpoint, chunk_tokens=chunk, kv_log=where)
        for checkpoint, where, chunk in product(checkpoints, places, [size, *smaller])
    ]
    return sorted(found, key=halvings)


def tightest(setting: PlanSetting, free: Collection[str]) -> PlanSetting:
    """The setting with every saving that may change."""
    return combinations(setting, free)[-1].of(setting)


def choose_savings(
    settings: Sequence[PlanSetting],
    free: Collection[str],
    *,
    available_bytes: int | None = None,
    host_bytes: int | None = None,
    reserve_bytes: int | None = None,
) -> Savings:
    """The cheapest savings with which every phase of a run needs no more than it may.

    Args:
        settings: the phases, which have the same learner; their own values are the start.
        free: names of the savings that may change.
        available_bytes: what the device may be filled with; None if it is not known.
        host_bytes: the same of the host of a GPU; None if it is not known. It limits what is chosen, not a given
            `kv_log="host"`.
        reserve_bytes: see `make_plan`.
    """
    fewest = min(settings, key=lambda setting: setting.batch)
    tried = combinations(fewest, free)
    host_limit = 2**63 if host_bytes is None or fewest.kv_log == "host" else host_bytes  # what was asked for stays
    if len(tried) == 1:
        return tried[0]
    bounds = [_bound(setting, available_bytes, reserve_bytes) for setting in settings]
    is_small = all(learner_bytes(setting) < SMALL_BYTES for setting in settings)
    comfortable = 2**63 if available_bytes is None or is_small else int(COMFORTABLE * available_bytes)
    needs: dict[Savings, list[int]] = {}
    for one in tried:
        plans = [make_plan(one.of(setting), reserve_bytes=reserve_bytes) for setting in settings]
        if one.kv_log == "host" and max(plan.host_bytes for plan in plans) > host_limit:
            continue
        needs[one] = [plan.total_bytes for plan in plans]
        if all(need <= min(bound, comfortable) for need, bound in zip(needs[one], bounds, strict=True)):
            return one
    for one, row in needs.items():
        if all(need <= bound for need, bound in zip(row, bounds, strict=True)):
            return one
    fitting = {one: row for one, row in needs.items() if available_bytes is None or max(row) <= available_bytes}
    near = NEAR if fitting else 0.0
    rows = fitting or needs
    least = [min(column) for column in zip(*rows.values(), strict=True)]
    bounds = [max(bound, int((1 + near) * lowest)) for bound, lowest in zip(bounds, least, strict=True)]
    return min(rows, key=lambda one: max(0, *(need - bound for need, bound in zip(rows[one], bounds, strict=True))))


def _bound(setting: PlanSetting, available_bytes: int | None, reserve_bytes: int | None) -> int:
    """Bytes that a phase may need."""
    has = 2**63 if available_bytes is None else available_bytes
    if learner_bytes(setting) < SMALL_BYTES:
        return has
    return min(has, make_plan(full_cache_lora(setting), reserve_bytes=reserve_bytes).total_bytes)
