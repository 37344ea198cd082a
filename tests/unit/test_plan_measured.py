"""Closed form against real runs in child processes: within 10 % of the resident set and of the live tensors."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest

from support.plans import cpu_setting
from thoughtcache.measuring.peak_memory import MIB, can_measure_resident_bytes
from thoughtcache.planning.memory.distillation import sampling_teacher
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.plan import learner_bytes
from thoughtcache.planning.setting import side_by_side
from thoughtcache.recipes.plan.measure import Measured, measure
from thoughtcache.recipes.plan.measure_distill import DISTILL_CHILD
from thoughtcache.recipes.plan.trace import with_layers

pytestmark = pytest.mark.skipif(not can_measure_resident_bytes(), reason="no /proc on this system")
TOLERANCE = 0.1
LONG = {
    "prompt_tokens": 64,
    "max_new_tokens": 512,
    "thought": {"window": 128, "evict_fraction": 0.25, "r": 32, "num_global_tokens": 32},
}


def compare(closed: int, found: Measured, *, live_tolerance: float = TOLERANCE) -> None:
    print(f"closed {closed / MIB:.1f}, live {found.live_bytes / MIB:.1f}, set {found.peak_bytes / MIB:.1f} MiB")
    assert closed == pytest.approx(found.live_bytes, rel=live_tolerance)
    assert closed == pytest.approx(found.peak_bytes, rel=TOLERANCE)


def test_the_learner():
    setting = with_layers(cpu_setting("smollm2", prompt_tokens=64, max_new_tokens=90, batch=8, group=8), 2)
    compare(learner_bytes(setting), measure(setting), live_tolerance=0.05)


@pytest.mark.parametrize(
    "thought", [{"memory": "attention", "memory_read": "joint", "num_global_tokens": 32}, {"memory": "both"}], ids=str
)
def test_the_learner_of_a_memory_in_attention(thought):
    setting = cpu_setting(
        "smollm2", thought=thought, prompt_tokens=64, max_new_tokens=150, batch=8, group=8, chunk_tokens=32
    )
    compare(learner_bytes(with_layers(setting, 2)), measure(with_layers(setting, 2)), live_tolerance=0.05)


@pytest.mark.parametrize("budgets", [None, [6, 2], [[6, 2, 4], [2, 6, 4]]], ids=["even", "by layer", "by head"])
def test_sampling(budgets):
    setting = with_layers(cpu_setting("smollm2", max_new_tokens=8, batch=96, group=96), 2)
    setting = replace(setting, thought=replace(setting.thought, window=4, eviction_budgets=budgets))
    compare(total(highest(rollout_parts(setting).values())), measure(setting, "rollout"))


MIXED = {
    "whole segments": cpu_setting(**LONG, batch=4),
    "small chunks": cpu_setting(**{**LONG, "max_new_tokens": 400}, batch=4, chunk_tokens=32),
    "another shape, window 256": cpu_setting(
        "qwen2", **{**LONG, "thought": {"window": 256, "r": 32, "num_global_tokens": 32}}, batch=2
    ),
    "everything kept": cpu_setting("qwen2", **{**LONG, "max_new_tokens": 300}, batch=2, recompute=False),
    "LoRA_c": side_by_side(cpu_setting(**{**LONG, "max_new_tokens": 320}, batch=6, chunk_tokens=64))["LoRA_c"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXED)
def test_five_configurations(name):
    setting = MIXED[name]
    compare(learner_bytes(setting), measure(setting), live_tolerance=0.05)


DISTILLATION = {
    "whole segments": cpu_setting(objective="distill", prompt_tokens=64, max_new_tokens=90, batch=8),
    "chunks": cpu_setting("qwen2", objective="distill", max_new_tokens=300, batch=4, chunk_tokens=32),
    "everything kept": cpu_setting("qwen2", objective="distill", max_new_tokens=300, batch=2, recompute=False),
    "checkpoints of layers": cpu_setting(
        "qwen2", objective="distill", prompt_tokens=96, max_new_tokens=70, batch=8, checkpoint_layers=True
    ),
}


@pytest.mark.parametrize("name", DISTILLATION)
def test_distillation(name):
    setting = with_layers(DISTILLATION[name], 2)
    compare(learner_bytes(setting), measure(setting, module=DISTILL_CHILD), live_tolerance=0.05)


@pytest.mark.parametrize("cache", [None, {"window": 4, "eviction": "h2o", "evict_fraction": 0.5}], ids=str)
def test_the_teachers_sampling(cache):
    setting = cpu_setting("smollm2", objective="distill", max_new_tokens=8, rollout_batch=96, teacher_cache=cache)
    setting = with_layers(setting, 2)
    closed = total(highest(rollout_parts(sampling_teacher(setting)).values()))
    compare(closed, measure(setting, "rollout", module=DISTILL_CHILD))


def test_a_child_that_fails_says_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="Traceback\nValueError: too long\n")
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(ValueError, match="exit code 1: ValueError: too long"):
        measure(cpu_setting())
