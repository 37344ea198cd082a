"""What to type so that a run fits, what its savings cost, and how long it takes at a throughput that the user knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from rich.console import Console

from thoughtcache.planning.advice import Phases
from thoughtcache.planning.plan import GIB, make_plan
from thoughtcache.planning.savings import Savings
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.step_flops import step_flops
from thoughtcache.report.progress import plain_line
from thoughtcache.report.tables import format_flops

NAMES = {"grpo": "GRPO", "distill": "distillation"}
HUNDRED = 100


MOST = {
    "max_new_tokens": "thoughts of {:,} tokens",
    "distill_batch_size": "{:,} texts of distillation at once",
    "grpo_batch_size": "{:,} completions of GRPO",
    "group_size": "groups of {:,}",
}


def print_advice(
    runs: Sequence[Phases],
    commands: Sequence[str],
    most: Sequence[Mapping[str, int]],
    console: Console,
    *,
    reserve_bytes: int | None = None,
    objective: str = "grpo",
    tokens_per_second: float | None = None,
) -> list[dict[str, Any]]:
    """The commands, where each phase is highest, how far each could go, and the prices; returns the numbers.

    Args:
        runs: the phases of every run.
        commands: what to type for each.
        most: how far each could go, see `most_of_run`.
        console: where it goes.
        reserve_bytes: see `make_plan`.
        objective: the phase whose throughput is known.
        tokens_per_second: thought tokens that its learner takes per second without any saving; None if it is not known.
    """
    found = []
    for phases, command, limits in zip(runs, commands, most, strict=True):
        plain_line(console, command)
        plans = {phase.objective: make_plan(phase, reserve_bytes=reserve_bytes) for phase in phases}
        peaks = [f"{_gib(plan.total_bytes)} in {NAMES[name]} ({plan.peak.name})" for name, plan in plans.items()]
        plain_line(console, f"  needs {', '.join(peaks)}")
        further = ", ".join(MOST[name].format(value) for name, value in limits.items())
        plain_line(console, f"  fits up to, one change at a time and with every saving: {further}")
        prices = [
            price
            for phase in phases
            for price in price_lines(phase, tokens_per_second if phase.objective == objective else None)
        ]
        for price in prices:
            plain_line(console, f"  {price}")
        found.append(
            {
                "command": command,
                "phases": {
                    phase.objective: {
                        "batch": phase.batch,
                        "group": phase.group,
                        "max_new_tokens": phase.max_new_tokens,
                        "total_bytes": plans[phase.objective].total_bytes,
                        **asdict(savings_of(phase)),
                    }
                    for phase in phases
                },
                "most": dict(limits),
                "prices": prices,
            }
        )
    return found


def savings_of(setting: PlanSetting) -> Savings:
    """What a setting saves."""
    return Savings(
        checkpoint_layers=setting.checkpoint_layers, chunk_tokens=setting.chunk_tokens, kv_log=setting.kv_log
    )


def price_lines(setting: PlanSetting, tokens_per_second: float | None = None) -> list[str]:
    """What the savings of a phase cost, beside the same phase without any.

    Args:
        setting: the phase.
        tokens_per_second: see `print_advice`.
    """
    name, flops = NAMES[setting.objective], step_flops(setting)
    before = step_flops(Savings().of(setting))
    lines = []
    if setting.checkpoint_layers:
        extra = flops.learner - step_flops(replace(setting, checkpoint_layers=False)).learner
        share = extra / (flops.learner - extra)
        lines.append(
            f"price of --checkpoint-layers in {name}: {format_flops(extra)}FLOP more a step, {share:.0%} of the learner"
        )
    if setting.chunk_tokens is not None and setting.chunk_tokens < (Savings().chunk_tokens or 0):
        tokens = setting.batch * setting.chunk_tokens
        lines.append(
            f"price of --chunk-tokens {setting.chunk_tokens} in {name}: no arithmetic; a pass runs {tokens:,} tokens"
        )
    if setting.kv_log == "host" and setting.device_type == "cuda":
        moved = make_plan(setting).host_bytes - make_plan(replace(setting, kv_log="device")).host_bytes
        lines.append(f"price of --kv-log host in {name}: no arithmetic; {_gib(moved)} there and back a micro-batch")
    if tokens_per_second is not None:
        tokens = HUNDRED * setting.completions * setting.max_new_tokens
        hours = tokens / tokens_per_second / 3600
        slower = flops.learner / before.learner
        lines.append(
            f"learner of {name}: {hours:.1f} hours per {HUNDRED} steps at {tokens_per_second:g} tokens/s"
            + (f", {hours * slower:.1f} with its savings, as its arithmetic grows" if slower > 1.005 else "")
        )
    return lines


def _gib(value: int) -> str:
    return f"{value / GIB:,.2f} GiB"
