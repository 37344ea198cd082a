"""`thoughtcache plan`: does a run fit, what would, and where the memory goes."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from rich.console import Console

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import SAVINGS
from thoughtcache.planning.advice import most_of_run, phases_of, runs_that_fit
from thoughtcache.planning.fit import NOTHING_HELPS, check_fit
from thoughtcache.planning.limits import max_length
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.model_size import adapter_size, model_size
from thoughtcache.planning.paper import length_rows, paper_rows
from thoughtcache.planning.plan import GIB, Plan, learner_bytes, make_plan
from thoughtcache.planning.savings import MARGIN, choose_savings, usable_bytes
from thoughtcache.planning.setting import PlanSetting, side_by_side
from thoughtcache.planning.step_flops import learner_flops_per_row
from thoughtcache.planning.teacher import with_teacher_batch
from thoughtcache.policy.other_cache import check_teacher_cache
from thoughtcache.presets import preset_settings
from thoughtcache.recipes.plan.command import DATASET, train_commands
from thoughtcache.recipes.plan.measure import measure
from thoughtcache.recipes.plan.measure_distill import DISTILL_CHILD
from thoughtcache.recipes.plan.trace import trace_learner
from thoughtcache.report.plan import (
    print_flops,
    print_limits,
    print_paper,
    print_plans,
    print_positions,
    print_sources,
    print_state_size,
    print_sweep,
)
from thoughtcache.report.plan_advice import print_advice, savings_of
from thoughtcache.report.progress import plain_line
from thoughtcache.report.results import environment, write_results

SWEEP_LENGTHS = (3072, 8192, 32768, 65536)
SMALLEST_BYTES = 2**20
_UNITS = {"": 1, "B": 1, "KB": 2**10, "MB": 2**20, "GB": 2**30, "TB": 2**40}
_SETTING_FIELDS = {field.name for field in fields(PlanSetting)} - {"model", "thought"}


def parse_bytes(text: str) -> int:
    """`80GB`, `512 MiB` or a number of bytes; a GB has 2^30 bytes, as on the box of a GPU.

    Raises:
        ValueError: if the text is something else, or if the amount is zero.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)i?(B?)\s*", text, re.IGNORECASE)
    unit = "" if found is None else found.group(2).upper() + ("B" if found.group(2) else "")
    if found is None or float(found.group(1)) <= 0:
        raise ValueError(f"{text!r} is not an amount of memory; write for example 80GB or 512MB")
    return int(float(found.group(1)) * _UNITS[unit])


def plan_memory(
    *,
    model: str | None = None,
    preset: str | None = None,
    gpu: str = "80GB",
    reserve: str | None = None,
    paper: bool = False,
    sweep: bool = False,
    picture: str = "plan.png",
    trace: bool = False,
    measured: bool = False,
    tokens_per_second: float | None = None,
    json: str | None = None,
    console: Console | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Plan a run for three systems, print it, and return what was printed.

    Args:
        model: see `load_config`.
        preset: a key of `PRESETS`, under the settings of the adapter that are given; None for their defaults.
        gpu: memory of the device, such as "80GB".
        reserve: memory for everything that is not a tensor; 1 GiB on CUDA by default.
        paper: print the comparison with the paper instead.
        sweep: plan growing lengths as well and draw them.
        picture: where the drawing goes.
        trace: check the learner against the real code under fake tensors.
        measured: check it against a run in a child process.
        tokens_per_second: thought tokens that the learner takes per second without savings, for hours beside FLOPs.
        json: file for the numbers.
        console: where to print.
        **options: fields of `PlanSetting` and of `ThoughtConfig`; savings of the learner that are not among them are
            chosen (`planning/savings.py`).

    Raises:
        ValueError: if a value is wrong, or if the model is missing.
    """
    console = console or Console()
    if paper:
        if model is not None or preset is not None or options or sweep or trace or measured:
            raise ValueError("--paper has models and settings of its own; leave out everything but --json")
        result: dict[str, Any] = _paper(console)
    else:
        if tokens_per_second is not None and not tokens_per_second > 0:
            raise ValueError(f"tokens_per_second must be above 0, got {tokens_per_second:g}")
        device = _Device(bytes=_parse_device(gpu), reserve=None if reserve is None else _parse_reserve(reserve))
        asked = _setting(model, options if preset is None else preset_settings(preset, options))
        if trace and asked.distills:
            raise ValueError("--trace runs the learner of GRPO; check distillation with --measure")
        free = [name for name in SAVINGS if name not in options]
        setting = _chosen(asked, free, device)
        result = _plans(asked, free, device, model or "", console)
        if trace:
            result["traced"] = _traced(setting, console)
        if measured:
            result["measured"] = _measured(replace(setting, rollout_batch=asked.rollout_batch), console)
        if sweep:
            lengths = {n: _systems(replace(asked, max_new_tokens=n), free, device) for n in SWEEP_LENGTHS}
            result["sweep"] = print_sweep(lengths, device.bytes, device.usable, device.reserve, picture, console)
        adapter = {name: value for name, value in options.items() if name not in _SETTING_FIELDS}
        adapter = adapter if preset is None else {"preset": preset, **adapter}
        result["advice"] = _advice(asked, free, device, model or "", adapter, tokens_per_second, console)
    if json is not None:
        file = write_results(json, {"environment": environment(), **result})
        console.print(f"numbers: {file}", soft_wrap=True, markup=False, highlight=False)
    return result


@dataclass(frozen=True, kw_only=True, slots=True)
class _Device:
    """The device: what it has, and what of that is no tensor (None: see `make_plan`)."""

    bytes: int
    reserve: int | None

    @property
    def usable(self) -> int:
        """What it may be filled with."""
        return usable_bytes(self.bytes)


def _parse_device(text: str) -> int:
    """An amount of memory that a device may have: without a unit, `24` would be 24 bytes."""
    found = parse_bytes(text)
    if found < SMALLEST_BYTES:
        number = re.sub(r"\D*$", "", text.strip())
        raise ValueError(f"{text!r} is {found} bytes, less than any device has; write for example {number}GB")
    return found


def _parse_reserve(text: str) -> int:
    return 0 if text.strip() == "0" else _parse_device(text)


def _setting(model: str | None, options: Mapping[str, Any]) -> PlanSetting:
    if model is None:
        raise ValueError("a plan needs a model: add --model with a hub id, a folder or a config.json")
    thought = ThoughtConfig(**{name: value for name, value in options.items() if name not in _SETTING_FIELDS})
    chosen = {name: value for name, value in options.items() if name in _SETTING_FIELDS}
    setting = PlanSetting(model=load_config(model), thought=thought, **chosen)
    check_teacher_cache(setting.teacher_cache, setting.max_new_tokens)
    return setting


def _chosen(setting: PlanSetting, free: Collection[str], device: _Device) -> PlanSetting:
    """A setting with the savings that are chosen for it."""
    found = choose_savings([setting], free, available_bytes=device.usable, reserve_bytes=device.reserve)
    return with_teacher_batch(found.of(setting), available_bytes=device.usable, reserve_bytes=device.reserve)


def _systems(setting: PlanSetting, free: Collection[str], device: _Device) -> dict[str, PlanSetting]:
    """The systems side by side, each of ours with the savings that are chosen for it."""
    return {name: _chosen(one, free, device) for name, one in side_by_side(setting).items()}


def _plans(
    setting: PlanSetting, free: Collection[str], device: _Device, model: str, console: Console
) -> dict[str, Any]:
    settings = _systems(setting, free, device)
    plans = {name: make_plan(chosen, reserve_bytes=device.reserve) for name, chosen in settings.items()}
    rows = f"batch {setting.batch}" if setting.distills else f"micro-batch {setting.batch}, group {setting.group}"
    window = "none" if setting.thought.window is None else setting.thought.window
    on_gpu = setting.device_type == "cuda"
    title = (
        f"{model}, {setting.objective}, {setting.prompt_tokens} + {setting.max_new_tokens} tokens, window "
        f"{window}, {rows}, {setting.dtype}, {'GPU' if on_gpu else 'host'} {device.bytes / GIB:g} GiB"
    )
    savings = {name: savings_of(one) for name, one in settings.items() if one.learner == "replay"}
    gpu_bytes = device.bytes if on_gpu else None
    print_plans(plans, device.usable, title, console, gpu_bytes=gpu_bytes, savings=savings)
    plain_line(console, f"(fits: with {MARGIN:.0%} of the memory to spare)")
    state = print_state_size(setting, console)
    print_positions(setting, console)
    least = {name: replace(one, rollout_batch=setting.rollout_batch) for name, one in settings.items()}
    limits = print_limits(least, device.usable, device.reserve, console, free=free)
    flops = print_flops(settings, console)
    return {
        "model": model,
        "objective": setting.objective,
        "parameters": model_size(setting.model).parameters,
        "trainable_parameters": adapter_size(setting.model, setting.thought).parameters,
        "state": state,
        "gpu_bytes": device.bytes,
        "savings": {name: asdict(one) for name, one in savings.items()},
        "plans": {name: _numbers(plan) for name, plan in plans.items()},
        "largest": limits,
        "flops": flops,
    }


def _advice(
    setting: PlanSetting,
    free: Collection[str],
    device: _Device,
    model: str,
    adapter: Mapping[str, Any],
    tokens_per_second: float | None,
    console: Console,
) -> list[dict[str, Any]]:
    """What to type so that every phase of the run fits, and how far it could go; within the positions of the model."""
    allowed, window = max_length(setting), setting.cache.window
    if allowed < setting.max_new_tokens:
        if window is not None and allowed <= window:
            plain_line(
                console,
                f"nothing to type: the model's positions allow {allowed:,} thoughts, and none of them would leave a "
                f"window of {window:,}; lower --window",
            )
            return []
        plain_line(console, f"for --max-new-tokens {allowed}, as many as the model's positions allow:")
        setting = replace(setting, max_new_tokens=allowed)
    runs = runs_that_fit(phases_of(setting), free, device.usable, reserve_bytes=device.reserve)
    if not runs:
        plain_line(console, f"nothing to type: {NOTHING_HELPS}")
        return []
    most = [most_of_run(phases, device.usable, reserve_bytes=device.reserve) for phases in runs]
    plain_line(console, f"to type, with your data for {DATASET}; every phase fits:")
    chosen = [
        tuple(with_teacher_batch(one, available_bytes=device.usable, reserve_bytes=device.reserve) for one in phases)
        for phases in runs
    ]
    return print_advice(
        chosen,
        train_commands(model, adapter, runs),  # the run chooses what its teacher samples at once, as here
        most,
        console,
        reserve_bytes=device.reserve,
        objective=setting.objective,
        tokens_per_second=tokens_per_second,
    )


def _numbers(plan: Plan) -> dict[str, Any]:
    return {
        "total_bytes": plan.total_bytes,
        "host_bytes": plan.host_bytes,
        "highest_in": plan.peak.name,
        "phases": {phase.name: phase.parts for phase in plan.phases},
    }


def _traced(setting: PlanSetting, console: Console) -> dict[str, Any]:
    """The learner of every system in the layout of the CPU, whose masks the closed form then counts as well."""
    rows: list[tuple[str, float, float | None]] = []
    arithmetic: list[tuple[str, float, float | None]] = []
    numbers: dict[str, Any] = {}
    for name, chosen in side_by_side(replace(setting, device_type="cpu", load_in_4bit=False, reuse=False)).items():
        traced = trace_learner(chosen)
        rows.append((f"learner of {name}", learner_bytes(chosen), traced.peak_bytes))
        arithmetic.append((f"learner of {name}", chosen.batch * learner_flops_per_row(chosen), traced.flops))
        numbers[name] = asdict(traced)
    print_sources(rows, "Check: the real code under fake tensors (in the layout of the CPU)", console)
    print_sources(arithmetic, "Check: its arithmetic", console, unit=("TFLOP", 1e12))
    return numbers


def _measured(setting: PlanSetting, console: Console) -> dict[str, Any]:
    """The learner with the thought states, with random weights."""
    import torch

    here = replace(setting, device_type="cuda" if torch.cuda.is_available() else "cpu", load_in_4bit=False, reuse=False)
    check_fit(here)
    found = measure(here, module=DISTILL_CHILD if here.distills else None)
    rows: list[tuple[str, float, float | None]] = [
        ("tensors alive", learner_bytes(here), found.live_bytes),
        ("allocator" if here.device_type == "cuda" else "resident set", learner_bytes(here), found.peak_bytes),
    ]
    print_sources(rows, f"Check: a run in a child process on {here.device_type}", console)
    return asdict(found)


def _paper(console: Console) -> dict[str, Any]:
    rows, longer = paper_rows(), length_rows()
    print_paper(rows, longer, console)
    return {"paper": [asdict(row) for row in rows], "longer": [asdict(row) for row in longer]}
