"""Does a run fit, and if not, which setting to change. Meant to be asked before the first rollout.

check_fit(PlanSetting(model=model.config, thought=thought, max_new_tokens=32768), model_is_loaded=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from thoughtcache.planning.limits import largest
from thoughtcache.planning.plan import GIB, Plan, make_plan
from thoughtcache.planning.setting import PlanSetting

CHUNKS = (1024, 512, 256, 128, 64)
OPTION_NAMES = {
    "batch": "--batch",
    "group": "--group",
    "rollout_batch": "--rollout-batch",
    "chunk_tokens": "--chunk-tokens",
    "checkpoint_layers": "--checkpoint-layers",
    "kv_log": "--kv-log",
    "pack_weights": "--no-pack-weights",
    "window": "--window",
    "max_new_tokens": "--max-new-tokens",
}
_MEMINFO = Path("/proc/meminfo")


class DoesNotFitError(ValueError):
    """A run needs more memory than there is.

    Attributes:
        plan: what it needs.
        available_bytes: what there is.
    """

    def __init__(self, message: str, plan: Plan, available_bytes: int) -> None:
        super().__init__(message)
        self.plan = plan
        self.available_bytes = available_bytes


def check_fit(
    setting: PlanSetting,
    *,
    available_bytes: int | None = None,
    model_is_loaded: bool = False,
    reserve_bytes: int | None = None,
    option_names: Mapping[str, str] | None = None,
    whole_groups: bool = False,
) -> Plan:
    """Plan a run and refuse it if it needs more than there is.

    Args:
        setting: the run.
        available_bytes: what may be used; None asks the device that `setting.device_type` names.
        model_is_loaded: whether weights and adapter already lie on the device and so are not part of what is free.
        reserve_bytes: see `make_plan`.
        option_names: what the caller calls the settings in its own options, by name (see `OPTION_NAMES`).
        whole_groups: whether a micro-batch of the caller must hold whole groups, so that only such a one is advised.

    Returns:
        The plan.

    Raises:
        DoesNotFitError: if the run needs more than is available; the message names the total, what is available, the
            largest part and a setting that makes it fit.
        ValueError: if the available memory cannot be found out.
    """
    available = free_bytes(setting.device_type) if available_bytes is None else available_bytes
    plan = make_plan(setting, reserve_bytes=reserve_bytes)
    if model_is_loaded:
        available += plan.peak.parts["weights"] + plan.peak.parts["adapter"]
    if plan.total_bytes <= available:
        return plan
    names = OPTION_NAMES | dict(option_names or {})
    part, size = plan.largest_part
    raise DoesNotFitError(
        f"the run needs {_gib(plan.total_bytes)} and {_gib(available)} are available; most goes to {part} "
        f"({_gib(size)}, {plan.peak.name}); {_remedy(setting, available, reserve_bytes, names, whole_groups)}",
        plan,
        available,
    )


def free_bytes(device_type: str) -> int:
    """Bytes that a run may use: free on the CUDA device (unused blocks of PyTorch's allocator too), or on the host.

    Raises:
        ValueError: if there is no such device, or if /proc/meminfo is missing or lacks MemAvailable.
    """
    if device_type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError("there is no CUDA device here; pass available_bytes")
        free, _ = torch.cuda.mem_get_info()
        return int(free) + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    if not _MEMINFO.is_file():
        raise ValueError(f"{_MEMINFO} does not exist, so free memory is unknown; pass available_bytes")
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{_MEMINFO} does not state MemAvailable; pass available_bytes")


def _remedy(
    setting: PlanSetting, available: int, reserve_bytes: int | None, names: Mapping[str, str], whole_groups: bool
) -> str:
    """The first change, in the order of what it costs, that makes the run fit."""

    def fits(changed: PlanSetting) -> bool:
        return make_plan(changed, reserve_bytes=reserve_bytes).total_bytes <= available

    def lowered(changed: PlanSetting, field: str) -> int:
        found, _ = largest(changed, field, available, reserve_bytes=reserve_bytes)
        return found - found % setting.group if field == "batch" and whole_groups else found

    changes = list(_changes(setting, names))
    for change, text in changes:
        if fits(change):
            return text
    for field in ("batch", "group", "window", "max_new_tokens"):
        fixed = isinstance(setting.thought.eviction_budgets, list) or not isinstance(setting.thought.window, int)
        if field == "window" and fixed:
            continue
        if field == "group" and setting.distills:
            continue
        found = lowered(setting, field)
        if found >= (2 if field == "group" else 1):
            return f"lower {names[field]} to {found}"
    if changes:
        change, text = changes[-1]
        found = lowered(change, "batch")
        if found:
            return f"{text} and lower {names['batch']} to {found}"
        smallest = replace(change, batch=2, group=2)
        if whole_groups and fits(smallest):
            return f"{text} and lower {names['group']} and {names['batch']} to 2"
    return "no single setting is enough; use a smaller model, 4-bit weights or a larger device"


def _changes(setting: PlanSetting, names: Mapping[str, str]) -> Iterator[tuple[PlanSetting, str]]:
    """Changes that cost time only, the cheapest first; each one keeps those before it."""
    if setting.learner != "replay":
        return
    if setting.decoded_at_once > setting.batch and not setting.distills:
        yield replace(setting, rollout_batch=setting.batch), f"set {names['rollout_batch']} {setting.batch}"
    before: list[str] = []
    if not setting.recompute:
        setting, before = replace(setting, recompute=True), ["leave out --no-recompute"]
        yield setting, before[0]
    sizes = [None, *(size for size in CHUNKS if size < (setting.chunk_tokens or CHUNKS[0] + 1))]
    places = [None, "host"] if setting.kv_log == "device" and setting.device_type == "cuda" else [None]
    layers = [False] if setting.checkpoint_layers else [False, True]
    packs = [True, False] if setting.pack_weights and setting.device_type == "cpu" else [setting.pack_weights]
    for checkpoint, size, place, pack in product(layers, sizes, places, packs):
        changed, texts = setting, before
        if checkpoint:
            changed, texts = replace(changed, checkpoint_layers=True), [*texts, f"set {names['checkpoint_layers']}"]
        if size is not None:
            changed, texts = replace(changed, chunk_tokens=size), [*texts, f"set {names['chunk_tokens']} {size}"]
        if place is not None:
            changed, texts = replace(changed, kv_log="host"), [*texts, f"set {names['kv_log']} host"]
        if pack != setting.pack_weights:
            changed, texts = replace(changed, pack_weights=False), [*texts, f"set {names['pack_weights']}"]
        if len(texts) > len(before):
            yield changed, " and ".join(texts)


def _gib(value: int) -> str:
    return f"{value / GIB:.2f} GiB"
