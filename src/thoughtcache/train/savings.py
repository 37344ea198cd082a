"""Savings of the learner that are left to the planner, chosen when model, device and lengths are known.

On a GPU the learner may fill what was free when the trainer was made, less a margin; on a CPU the rule of
`planning/savings.py` holds without a limit of the device. What was chosen is printed, and written to `LEARNER_FILE`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from thoughtcache.adapter.support import DTYPES
from thoughtcache.learner.options import AUTO, Auto, ReplayOptions, learner_options
from thoughtcache.planning.fit import free_bytes
from thoughtcache.planning.savings import Savings, choose_savings, usable_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import split_to_fit
from thoughtcache.policy.handle import find_tuner

LEARNER_FILE = "learner.json"


def available_to(model: nn.Module) -> int | None:
    """Bytes that a run on the device of a loaded model may fill, those of the model included; None on a CPU."""
    tensors = [*model.parameters(), *model.buffers()]
    if tensors[0].device.type != "cuda":
        return None
    held = sum(tensor.nbytes for tensor in tensors if tensor.device == tensors[0].device)
    return usable_bytes(free_bytes("cuda") + held)


def choose_for(
    model: nn.Module, options: ReplayOptions, free: Collection[str], available_bytes: int | None, **planned: Any
) -> Savings:
    """The savings of a trainer: those that are given, and for the others what the planner chooses.

    Args:
        model: the adapted model.
        options: options of the learner, with defaults for what is free.
        free: names of the savings that are left to the planner.
        available_bytes: see `available_to`.
        planned: the other fields of `PlanSetting`: lengths, batches and what else the run is.
    """
    if not free or not options.recompute:
        return _given(options)
    setting = _setting(model, options, **planned)
    return _chosen(setting, free, available_bytes)


def choose_for_texts(
    model: nn.Module,
    options: ReplayOptions,
    free: Collection[str],
    available_bytes: int | None,
    *,
    at_once: int | Auto,
    batch: int,
    **planned: Any,
) -> tuple[Savings, int]:
    """The savings of distillation's learner, as `choose_for`, and how many texts of a step it takes at once.

    Args:
        model: the adapted model.
        options: options of the learner, with defaults for what is free.
        free: names of the savings that are left to the planner.
        available_bytes: see `available_to`.
        at_once: texts that it is to take at once; "auto" for the most that fit.
        batch: texts of a step.
        planned: lengths, and what else the run is.
    """
    free = free if options.recompute else ()
    setting = _setting(model, options, objective="distill", group=1, batch=batch, rollout_batch=1, **planned)
    if at_once != AUTO:
        size = min(at_once, batch)
        setting = replace(setting, batch=size, generation_batch=None if size == batch else batch)
    else:
        setting = split_to_fit(setting, free, available_bytes)
    return _chosen(setting, free, available_bytes) if free else _given(options), setting.batch


def _given(options: ReplayOptions) -> Savings:
    return Savings(
        checkpoint_layers=options.checkpoint_layers, chunk_tokens=options.chunk_tokens, kv_log=options.kv_log
    )


def _chosen(setting: PlanSetting, free: Collection[str], available_bytes: int | None) -> Savings:
    host_bytes = usable_bytes(free_bytes("cpu")) if setting.device_type == "cuda" else None
    return choose_savings([setting], free, available_bytes=available_bytes, host_bytes=host_bytes)


def _setting(model: nn.Module, options: ReplayOptions, **planned: Any) -> PlanSetting:
    """The setting of a loaded model."""
    tuner = find_tuner(model)
    base = tuner.model
    dtype = str(base.dtype).removeprefix("torch.")
    return PlanSetting(
        model=base.config,
        thought=tuner.thought_config,
        dtype=dtype if dtype in DTYPES else "float32",
        load_in_4bit=any(type(module).__name__ == "Linear4bit" for module in base.modules()),
        device_type="cuda" if base.device.type == "cuda" else "cpu",
        **learner_options(options),
        **planned,
    )


def describe(chosen: Savings, free: Collection[str], *, micro_batch_size: int | None = None) -> str:
    """One line about what the planner chose, which is what was `free`, and texts at once if it chose them too."""
    words = [chosen.text_of(free)] if free else []
    words += [] if micro_batch_size is None else [f"micro_batch_size {micro_batch_size}"]
    return f"learner: {', '.join(words)}: chosen by the planner"


def record(chosen: Savings, output_dir: str, **more: int) -> None:
    """Write down with what a learner works, beside the checkpoints of the run.

    Args:
        chosen: the savings, of which the planner chose some.
        output_dir: folder of the run.
        more: what else makes a continuation equal bit by bit.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LEARNER_FILE).write_text(json.dumps(asdict(chosen) | more, indent=2) + "\n", encoding="utf-8")
