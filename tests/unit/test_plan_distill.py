"""The plan of cache distillation: against the real code, by hand, and what it refuses (learner: test_plan_measured)."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import peft
import pytest
from transformers import AutoModelForCausalLM

from support.plans import cpu_setting
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.measuring.operator_flops import OperatorFlops
from thoughtcache.planning.fit import DoesNotFitError, check_fit
from thoughtcache.planning.memory.distillation import TEXTS_PER_CALL, sampling_teacher
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.plan import make_plan
from thoughtcache.planning.setting import PlanSetting, side_by_side
from thoughtcache.planning.step_flops import step_flops
from thoughtcache.recipes.plan.trace import blank_rollouts, with_layers
from thoughtcache.train.distill import distill_loss, sample_teacher
from thoughtcache.train.distill_config import DistillConfig

TOLERANCE = 0.05
CASES = {
    "whole segments": cpu_setting("qwen2", objective="distill", max_new_tokens=70),
    "chunks": cpu_setting("qwen2", objective="distill", max_new_tokens=90, batch=2, chunk_tokens=16),
    "everything kept": cpu_setting("qwen2", objective="distill", max_new_tokens=90, batch=2, recompute=False),
    "large vocabulary": cpu_setting("smollm2", objective="distill", max_new_tokens=40, batch=6),
}


def built(setting: PlanSetting) -> tuple[peft.PeftModel, DistillConfig]:
    model = peft.get_peft_model(AutoModelForCausalLM.from_config(setting.model), deepcopy(setting.thought))
    config = DistillConfig(
        output_dir="",
        chunk_tokens=setting.chunk_tokens,
        recompute=setting.recompute,
        max_new_tokens=setting.max_new_tokens,
        sample_batch_size=setting.decoded_at_once,
        teacher_cache=setting.teacher_cache,
        micro_batch_size=setting.batch,
    )
    assert isinstance(model, peft.PeftModel)
    return model, config


@pytest.mark.parametrize("name", CASES)
def test_arithmetic_of_teacher_and_student(name: str) -> None:
    setting = with_layers(CASES[name], 2)
    model, config = built(setting)
    with OperatorFlops() as counted:
        distill_loss(model, model, blank_rollouts(setting), config).backward()
    assert step_flops(setting).learner == pytest.approx(counted.total, rel=TOLERANCE)


@pytest.mark.parametrize("cache", [None, {"window": 16, "eviction": "h2o", "evict_fraction": 0.5}], ids=str)
@pytest.mark.parametrize("name", ["whole segments", "large vocabulary"])
def test_memory_of_the_teacher_that_samples(name: str, cache: dict[str, Any] | None) -> None:
    """Four texts at once, with the full cache, and sixteen by four under a window whose evictions are chosen."""
    setting = replace(with_layers(CASES[name], 2), rollout_batch=4, teacher_cache=cache)
    model, config = built(setting)
    texts = setting.decoded_at_once * (1 if cache is None else TEXTS_PER_CALL)
    prompts = [[1 + row] * setting.prompt_tokens for row in range(texts)]
    with LiveBytes() as live:
        sample_teacher(model, prompts, config)
    closed = total(highest(rollout_parts(sampling_teacher(setting)).values()))
    assert closed == pytest.approx(live.peak_bytes, rel=TOLERANCE)


def test_parts_by_hand() -> None:
    setting = cpu_setting(objective="distill", prompt_tokens=32, max_new_tokens=120, batch=4, chunk_tokens=16)
    phases = {phase.name: phase.parts for phase in make_plan(setting).phases}
    assert list(phases)[-4:] == ["teacher", "learner: forward", "learner: backward", "optimizer step"]
    # 4 rows of 120 tokens, and a copy of one chunk of 16; 576 numbers of 4 bytes.
    assert phases["learner: backward"]["teacher states"] == 4 * (120 + 16) * 576 * 4
    # 4 x 16 rows of 49152 logits, five fp32 tensors.
    assert phases["learner: forward"]["logits"] == 64 * 49152 * 5 * 4
    # The teacher can sample one text at once, and evicts nothing: 2 x 4 layers x 152 tokens x 192 numbers of 4 bytes.
    assert phases["teacher samples: drawing"]["rollout K/V"] == 2 * 4 * 152 * 192 * 4
    assert "thought states" not in phases["teacher samples: drawing"]
    assert list(side_by_side(setting)) == ["LoRA_c", "PTE"]


def test_parts_of_several_texts_and_micro_batches_by_hand() -> None:
    """Eight texts a step, two in the learner at once; the teacher samples 16 under a window of 20."""
    small = cpu_setting(objective="distill", prompt_tokens=32, max_new_tokens=120, batch=2, chunk_tokens=16)
    step = replace(small, generation_batch=8, rollout_batch=16, teacher_cache={"window": 20})
    phases = {phase.name: phase.parts for phase in make_plan(step).phases}
    assert phases["teacher samples: drawing"]["rollout K/V"] == 2 * 4 * 16 * (32 + 20) * 192 * 4
    alone = {phase.name: phase.parts for phase in make_plan(small).phases}
    assert phases["teacher"]["resident K/V"] == alone["teacher"]["resident K/V"], "distributions are the full cache's"
    assert phases["learner: backward"]["teacher states"] == alone["learner: backward"]["teacher states"]
    waiting = phases["learner: forward"]["gradients"] - alone["learner: forward"].get("gradients", 0)
    assert waiting == alone["optimizer step"]["gradients"], "of the micro-batches before"
    assert step_flops(step).learner == pytest.approx(4 * step_flops(small).learner)


def test_what_a_bounded_teacher_evicted_waits_for_the_end_of_its_call() -> None:
    """Sixteen texts of 119 processed thoughts, four at once, a window of 20 of which a quarter leaves: 20 evictions."""
    cache = {"window": 20, "eviction": "h2o", "evict_fraction": 0.25}
    here = cpu_setting(objective="distill", max_new_tokens=120, batch=1, rollout_batch=4, teacher_cache=cache)
    phases = {phase.name: phase.parts for phase in make_plan(here).phases}
    # 4 layers, 3 heads, 5 slots of two bytes.
    assert phases["teacher samples: drawing"]["evicted slots"] == 16 * 20 * 4 * 3 * 5 * 2
    on_gpu = make_plan(replace(here, device_type="cuda"))
    assert "evicted slots" not in dict(on_gpu.phases[0].parts)
    assert on_gpu.host_bytes >= 16 * 20 * 4 * 3 * 5 * 2


def test_no_advice_that_distillation_cannot_take() -> None:
    setting = cpu_setting(objective="distill", batch=64, chunk_tokens=64)
    with pytest.raises(DoesNotFitError, match="lower --batch to") as caught:
        check_fit(setting, available_bytes=make_plan(setting).total_bytes // 2)
    assert "--rollout-batch" not in str(caught.value)
    with pytest.raises(DoesNotFitError) as hopeless:
        check_fit(setting, available_bytes=2**20)
    assert "--group" not in str(hopeless.value)


@pytest.mark.parametrize("changes", [{"beta": 0.1}, {"reuse": True}, {"learner": "checkpointed"}])
def test_settings_without_a_meaning_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="distillation replays and has no reference and no records"):
        cpu_setting(objective="distill", **changes)
