"""A memory plan as tables, lines and a picture."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thoughtcache.learner.options import SAVINGS
from thoughtcache.planning.limits import FIELDS, largest
from thoughtcache.planning.paper import ASSUMPTIONS, LENGTHS_BATCH, PaperRow
from thoughtcache.planning.plan import GIB, Plan, make_plan
from thoughtcache.planning.savings import Savings
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.step_flops import step_flops
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import plain_line
from thoughtcache.report.tables import MISSING, format_flops, print_wide

LABELS = {
    "batch": "largest micro-batch",
    "group": "largest group",
    "max_new_tokens": "longest thoughts",
    "window": "largest window",
}
OURS = ("LoRA, logits in tiles", "LoRA, logits whole", "PTE, segments", "PTE, chunks")
CLOSE_POINTS = 10.0
ROLLING = "--positions rolling with a window"


def print_plans(
    plans: Mapping[str, Plan],
    available_bytes: int | None,
    title: str,
    console: Console,
    *,
    gpu_bytes: int | None = None,
    savings: Mapping[str, Savings] | None = None,
) -> None:
    """One column per system: what is alive at the peak, every phase's total, and whether it fits.

    Args:
        plans: a plan by the name of its system.
        available_bytes: what the device may be filled with; None if it is not known.
        title: title of the table.
        console: where it goes.
        gpu_bytes: what the GPU has, of which a share is printed; None without a GPU.
        savings: what the learners of some of the systems save.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("GiB")
    for name in plans:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for plan in plans.values() for part in plan.peak.parts):
        table.add_row(part, *[_gib(plan.peak.parts.get(part, 0)) for plan in plans.values()])
    table.add_section()
    table.add_row("total", *[_gib(plan.total_bytes) for plan in plans.values()], style="bold")
    table.add_row("highest in", *[plan.peak.name for plan in plans.values()])
    if gpu_bytes is not None:
        table.add_row("share of the GPU", *[f"{100 * plan.total_bytes / gpu_bytes:.1f} %" for plan in plans.values()])
    table.add_row("verdict", *[_verdict(plan, available_bytes) for plan in plans.values()], style="bold")
    for name in SAVINGS if savings else ():
        chosen = [(savings or {}).get(system) for system in plans]
        table.add_row(name, *[MISSING if one is None else _word(getattr(one, name)) for one in chosen])
    if any(plan.host_bytes for plan in plans.values()):
        table.add_row("on the host", *[_gib(plan.host_bytes) for plan in plans.values()])
    table.add_section()
    for phase in dict.fromkeys(phase.name for plan in plans.values() for phase in plan.phases):
        totals = [{p.name: p.total_bytes for p in plan.phases}.get(phase) for plan in plans.values()]
        table.add_row(phase, *[MISSING if total is None else _gib(total) for total in totals])
    print_wide(table, console)


def print_state_size(setting: PlanSetting, console: Console) -> dict[str, int | float] | None:
    """How many numbers the state of a layer takes, and tokens whose keys and values take as many; returns both."""
    if not setting.absorbs or not setting.state_numbers:
        return None
    numbers, tokens = setting.state_numbers, setting.tokens_worth
    each = f"thought states: {numbers:,} numbers per layer and sequence"
    plain_line(console, f"{each}, as many as the keys and values of {tokens:.3g} tokens")
    return {"numbers_per_layer": numbers, "tokens_worth": tokens}


def print_positions(setting: PlanSetting, console: Console) -> None:
    """Say so if the model has too few positions; training would refuse the lengths, whatever the memory."""
    available = setting.max_positions
    if available is not None and setting.positions_needed > available:
        reach = setting.reach
        longer = reach.other_scaling if reach.varies else f"{reach.other_scaling}, or use {ROLLING}"
        remedy = "lower --window" if setting.rolls else f"{longer}, or lower --max-new-tokens"
        needed = f"{setting.positions_needed:,} positions are needed and the model has {available:,}"
        plain_line(console, f"note: {needed}; {remedy}")


def print_limits(
    settings: Mapping[str, PlanSetting],
    available_bytes: int,
    reserve_bytes: int | None,
    console: Console,
    *,
    free: Collection[str] = (),
) -> dict[str, dict[str, int | None]]:
    """The largest batch, group, length and window of every system, with all the free savings; returns them."""
    found = {
        name: {
            field: None
            if (field == "window" and setting.window is None) or (field == "group" and setting.distills)
            else largest(setting, field, available_bytes, reserve_bytes=reserve_bytes, free=free)
            for field in FIELDS
        }
        for name, setting in settings.items()
    }
    saved = ", with every saving that is not given" if free else ""
    table = Table(title=f"What fits, one change at a time{saved}", title_justify="left")
    table.add_column("")
    for name in settings:
        table.add_column(name, justify="right")
    for field in FIELDS:
        table.add_row(LABELS[field], *[_limit(limits[field], field) for limits in found.values()])
    print_wide(table, console)
    plain_line(console, "(>=: bounded by the model's positions, by 4096 rows or by the length, not by memory)")
    return {
        name: {field: None if limit is None else limit[0] for field, limit in limits.items()}
        for name, limits in found.items()
    }


def print_flops(settings: Mapping[str, PlanSetting], console: Console) -> dict[str, dict[str, float]]:
    """Arithmetic per decoded token and per step; returns it."""
    found = {name: step_flops(setting) for name, setting in settings.items()}
    table = Table(title="Arithmetic (FLOP)", title_justify="left")
    table.add_column("")
    for name in settings:
        table.add_column(name, justify="right")
    table.add_row("per decoded token", *[format_flops(flops.per_token) for flops in found.values()])
    rows = next(iter(settings.values())).completions
    table.add_row(f"sampling {rows} completions", *[format_flops(flops.rollout) for flops in found.values()])
    table.add_row("learner, the same", *[format_flops(flops.learner) for flops in found.values()])
    print_wide(table, console)
    return {
        name: {"per_token": flops.per_token, "rollout": flops.rollout, "learner": flops.learner}
        for name, flops in found.items()
    }


def print_sources(
    rows: Sequence[tuple[str, float, float | None]],
    title: str,
    console: Console,
    *,
    unit: tuple[str, float] = ("GiB over the model", GIB),
) -> None:
    """Closed form beside another source: (what, closed, other), in bytes or in whatever `unit` divides."""
    name_of_unit, size = unit
    table = Table(title=title, title_justify="left")
    for column in (name_of_unit, "closed form", "other source", "difference"):
        table.add_column(column, justify="left" if column == name_of_unit else "right")
    for name, closed, other in rows:
        difference = MISSING if not other else f"{100 * (closed / other - 1):+.1f} %"
        table.add_row(name, f"{closed / size:.3f}", MISSING if other is None else f"{other / size:.3f}", difference)
    print_wide(table, console)


def print_sweep(
    by_length: Mapping[int, Mapping[str, PlanSetting]],
    device_bytes: int,
    available_bytes: int,
    reserve_bytes: int | None,
    picture: str | Path,
    console: Console,
) -> dict[str, list[Any]]:
    """Totals over growing lengths as a table and as a picture; returns length and GiB by system.

    What is above `available_bytes` of the `device_bytes` gets a "(no)".
    """
    names = list(next(iter(by_length.values())))
    totals = {
        name: [
            make_plan(settings[name], reserve_bytes=reserve_bytes).total_bytes / GIB for settings in by_length.values()
        ]
        for name in names
    }
    table = Table(title=f"GiB at the peak by length (the device has {_gib(device_bytes)})", title_justify="left")
    table.add_column("thought tokens", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    for index, length in enumerate(by_length):
        cells = [
            f"{totals[name][index]:.1f}{'' if totals[name][index] * GIB <= available_bytes else ' (no)'}"
            for name in names
        ]
        table.add_row(str(length), *cells)
    print_wide(table, console)
    lengths = [float(length) for length in by_length]
    series = {name: (lengths, values) for name, values in totals.items()}
    series["the device"] = (lengths, [device_bytes / GIB] * len(lengths))
    panel = Panel(title="Peak memory of a step", x_label="thought tokens", y_label="GiB", series=series)
    plain_line(console, f"picture: {plot_curves(picture, [panel])}")
    return {"lengths": list(by_length), **totals}


def print_paper(rows: Sequence[PaperRow], longer: Sequence[PaperRow], console: Console) -> None:
    """The paper's shares beside ours, what was assumed, and the same at longer rollouts."""
    table = Table(title="Peak share of an A100-40GB at 3072 new tokens, %", title_justify="left")
    _columns(table, "micro-batch", "weights", "LoRA, paper", *OURS[:2], "PTE, paper", *OURS[2:])
    for row in rows:
        ours = [_with_difference(value, row.figure.lora_percent) for value in _lora(row)]
        ours += [_with_difference(value, row.figure.pte_percent) for value in _pte(row)]
        reported = f"{row.figure.lora_percent:.1f}", f"{row.figure.pte_percent:.1f}"
        cells = [reported[0], *ours[:2], reported[1], *ours[2:]]
        table.add_row(_short(row), str(row.batch), f"{row.weights_percent:.1f}", *cells)
    print_wide(table, console)
    plain_line(console, "In parentheses: ours minus the paper's, in points.")
    for name in dict.fromkeys(_short(row) for row in rows):
        close = [str(row.batch) for row in rows if _short(row) == name and row.is_close(CLOSE_POINTS)]
        found = ", ".join(close) or "none"
        plain_line(
            console, f"{name}: micro-batches with LoRA and PTE within {CLOSE_POINTS:g} points of the paper: {found}"
        )
    plain_line(console, "Assumed:")
    for assumption in ASSUMPTIONS:
        plain_line(console, f"- {assumption}")
    table = Table(title=f"The same at longer rollouts, micro-batch {LENGTHS_BATCH}, %", title_justify="left")
    _columns(table, "new tokens", *OURS)
    for row in longer:
        cells = [f"{value:.1f}{'' if value <= 100 else ' (no)'}" for value in (*_lora(row), *_pte(row))]
        table.add_row(_short(row), str(row.new_tokens), *cells)
    print_wide(table, console)
    plain_line(console, "(no): more than the GPU has.")
    beyond: dict[str, list[str]] = {}
    for row in longer:
        if not row.within_positions:
            beyond.setdefault(_short(row), []).append(str(row.new_tokens))
    for name, lengths in beyond.items():
        remedy = f"load the model with rope scaling, or use {ROLLING}"
        plain_line(console, f"{name}: {' and '.join(lengths)} tokens are beyond its positions; {remedy}")


def _columns(table: Table, *names: str) -> None:
    table.add_column("model")
    for name in names:
        table.add_column(name, justify="right")


def _lora(row: PaperRow) -> tuple[float, float]:
    return row.lora_percent, row.lora_materialised_percent


def _pte(row: PaperRow) -> tuple[float, float]:
    return row.pte_percent, row.pte_chunked_percent


def _short(row: PaperRow) -> str:
    return row.figure.model.rsplit("/", 1)[-1]


def _with_difference(value: float, reported: float) -> str:
    return f"{value:.1f} ({value - reported:+.1f})"


def _verdict(plan: Plan, available_bytes: int | None) -> str:
    if available_bytes is None:
        return "not known"
    return "fits" if plan.total_bytes <= available_bytes else f"{_gib(plan.total_bytes - available_bytes)} too much"


def _word(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "on" if value else "none" if value is None else "off"
    return str(value)


def _limit(limit: tuple[int, bool] | None, field: str) -> str:
    if limit is None:
        return MISSING
    value, at_bound = limit
    if value == 0:
        return "none"
    return f">= {value:,}" if at_bound and field != "window" else f"{value:,}"


def _gib(value: int) -> str:
    return MISSING if not value else f"{value / GIB:,.2f}"
