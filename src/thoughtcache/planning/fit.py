"""Does a run fit, and if not, which setting to change. Meant to be asked before the first rollout.

check_fit(PlanSetting(model=model.config, thought=thought, max_new_tokens=32768), model_is_loaded=True)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from thoughtcache.planning.advice import advise
from thoughtcache.planning.plan import GIB, Plan, make_plan
from thoughtcache.planning.savings import usable_bytes
from thoughtcache.planning.setting import PlanSetting

OPTION_NAMES = {
    "rollout_batch": "--rollout-batch",
    "recompute": "--no-recompute",
    "checkpoint_layers": "--checkpoint-layers",
    "chunk_tokens": "--chunk-tokens",
    "kv_log": "--kv-log",
    "pack_weights": "--no-pack-weights",
    "batch": "--batch",
    "group": "--group",
    "max_new_tokens": "--max-new-tokens",
}
ACCUMULATION = "gradient_accumulation"
MICRO_BATCH = "micro_batch_size"
NOTHING_HELPS = "no setting is enough; use a smaller model, 4-bit weights or a larger device"
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
        available_bytes: what may be used; None asks the device that `setting.device_type` names, and leaves a margin.
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
    available = usable_bytes(free_bytes(setting.device_type)) if available_bytes is None else available_bytes
    plan = make_plan(setting, reserve_bytes=reserve_bytes)
    if model_is_loaded:
        available += plan.peak.parts["weights"] + plan.peak.parts["adapter"]
    if plan.total_bytes <= available:
        return plan
    found = advise([setting], available, reserve_bytes=reserve_bytes, whole_groups=whole_groups)
    remedy = NOTHING_HELPS if found is None else " and ".join(changes(setting, found[0], option_names))
    raise refusal(plan, available, remedy)


def refusal(plan: Plan, available_bytes: int, remedy: str, texts: int | None = None) -> DoesNotFitError:
    """What is said of a run that needs more than there is: how much, where most of it goes, and what to do.

    Args:
        plan: what the run needs.
        available_bytes: what there is.
        remedy: what to do.
        texts: texts that the phase of the peak takes at once, which are named then.
    """
    part, size = plan.largest_part
    rows = "" if texts is None else f", {texts} text{'s' if texts > 1 else ''} at once"
    return DoesNotFitError(
        f"the run needs {_gib(plan.total_bytes)} and {_gib(available_bytes)} are available; most goes to {part} "
        f"({_gib(size)}, {plan.peak.name}{rows}); {remedy}",
        plan,
        available_bytes,
    )


def changes(
    before: PlanSetting,
    after: PlanSetting,
    option_names: Mapping[str, str] | None = None,
    *,
    free: Collection[str] = (),
) -> list[str]:
    """What differs between two settings of a run, as things to do.

    Args:
        before: the run.
        after: what it is to be.
        option_names: what the caller calls the settings in its own options (see `OPTION_NAMES`). With a name for
            `ACCUMULATION` or `MICRO_BATCH` its batches are the completions of a step, or its texts, which may be split
            into micro-batches.
        free: settings that are not told, since the planner chooses them.
    """
    names = OPTION_NAMES | dict(option_names or {})
    texts = []
    for name, option in names.items():
        if name in (ACCUMULATION, MICRO_BATCH):
            continue
        value = getattr(after, name)
        if name == "batch" and {ACCUMULATION, MICRO_BATCH} & set(names):
            texts += _steps(before, after, names, free)
            continue
        if name in free or value == getattr(before, name):
            continue
        if name == "rollout_batch" and after.distills:
            texts.append(f"leave out {option}")
            continue
        if name in ("batch", "group", "max_new_tokens"):
            texts.append(f"lower {option} to {value}")
        elif name == "recompute":
            texts.append(f"leave out {option}")
        else:
            texts.append(f"set {option}" if isinstance(value, bool) else f"set {option} {value}")
    return texts


def _steps(before: PlanSetting, after: PlanSetting, names: Mapping[str, str], free: Collection[str]) -> list[str]:
    """What differs between the steps of two runs: completions or texts, and micro-batches."""
    texts = []
    if after.completions != before.completions:
        texts.append(f"lower {names['batch']} to {after.completions}")
    if ACCUMULATION in names and after.micro_batches != before.micro_batches:
        texts.append(f"set {names[ACCUMULATION]} {after.micro_batches}")
    if MICRO_BATCH in names and MICRO_BATCH not in free and after.batch != before.batch:
        texts.append(f"set {names[MICRO_BATCH]} {after.batch}")
    return texts


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


def usable_here(device_type: str) -> int | None:
    """Bytes that a run may fill here, a margin left; None where nothing says what is free, as on macOS."""
    if device_type == "cpu" and not _MEMINFO.is_file():
        return None
    return usable_bytes(free_bytes(device_type))


def _gib(value: int) -> str:
    return f"{value / GIB:.2f} GiB"
