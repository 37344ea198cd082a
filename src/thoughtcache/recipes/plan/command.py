"""A planned run as something to type: `thoughtcache train` with its options."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from thoughtcache.planning.advice import Phases
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.policy.other_cache import cache_text

DATASET = "questions.jsonl"
"""Stands for the user's data, of which a plan knows nothing."""


def train_commands(model: str, adapter: Mapping[str, Any], runs: Sequence[Phases]) -> list[str]:
    """The commands of these runs, one after the other; a later one starts from the adapter of the one before.

    Args:
        model: what the model was called.
        adapter: settings of the adapter that were given, by the names of `ThoughtConfig`; "preset" for a preset under
            them, which is named instead of what it sets.
        runs: the phases of every run.
    """
    commands = []
    for number, phases in enumerate(runs):
        words = ["thoughtcache", "train", "--model", model, "--dataset", DATASET]
        words += _adapter_options(adapter) if number == 0 else ["--adapter", f"{_folder(runs[number - 1])}/adapter"]
        words += _run_options(phases)
        if len(runs) > 1:
            words += ["--output-dir", _folder(phases)]
        commands.append(shlex.join(words))
    return commands


def saving_options(setting: PlanSetting) -> list[str]:
    """The savings of a setting as options."""
    words = ["--checkpoint-layers" if setting.checkpoint_layers else "--no-checkpoint-layers"]
    words += ["--chunk-tokens", _text(setting.chunk_tokens)]
    return words + (["--kv-log", setting.kv_log] if setting.device_type == "cuda" and setting.recompute else [])


def _folder(phases: Phases) -> str:
    return f"runs/{phases[0].objective}"


def _run_options(phases: Phases) -> list[str]:
    first, names = phases[0], [phase.objective for phase in phases]
    words = ["--dtype", first.dtype, *(["--load-in-4bit"] if first.load_in_4bit else [])]
    words += ["--max-new-tokens", str(first.max_new_tokens)]
    for phase in phases:
        if phase.distills:
            words += ["--distill-batch-size", str(phase.completions)]
            words += [] if phase.rollout_batch is None else ["--teacher-batch-size", str(phase.rollout_batch)]
            words += [] if phase.teacher_cache is None else ["--teacher-cache", cache_text(phase.teacher_cache)]
            continue
        words += ["--group-size", str(phase.group), "--grpo-batch-size", str(phase.completions)]
        words += ["--gradient-accumulation", str(phase.micro_batches)] if phase.micro_batches > 1 else []
        words += ["--beta", str(phase.beta)] if phase.beta else []
        words += ["--reuse-rollout"] if phase.reuse else []
    words += [] if "distill" in names else ["--distill-steps", "0"]
    words += [] if "grpo" in names else ["--grpo-steps", "0"]
    words += ["--gradient", str(first.gradient)] if first.gradient != "exact" else []
    words += [] if first.recompute else ["--no-recompute"]
    words += [] if first.pack_weights or first.device_type == "cuda" else ["--no-pack-weights"]
    return words + saving_options(first)


def _adapter_options(adapter: Mapping[str, Any]) -> list[str]:
    words = []
    for name, value in adapter.items():
        option = "--" + name.replace("_", "-")
        if name == "absorb":
            words += [] if value else ["--no-absorb"]
        elif name == "eviction_options":
            words += [word for key, one in value.items() for word in ("--eviction-option", f"{key}={_text(one)}")]
        else:
            words += [option, _text(value)]
    return words


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple | set) else str(value)
