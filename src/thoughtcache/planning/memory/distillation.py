"""Memory of cache distillation, in closed form: what `train/distill.py` adds to the replaying learner.

The base samples the texts, with its full cache or under a bounded one, and passes over them with its full cache and
without the adapter; its hidden states [B, T, d] stay while the student is replayed, and every chunk of scores forms two
distributions over the vocabulary. Not covered: losses other than the forward KL, the texts of a whole run (4 bytes per
token).
"""

from __future__ import annotations

from dataclasses import replace

from thoughtcache.planning.memory.layer import forward_transient_bytes, kv_bytes, layer_numbers
from thoughtcache.planning.memory.parts import Parts, highest
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.setting import PlanSetting, learner_chunks, plain_lora
from thoughtcache.policy.other_cache import changes_nothing

TEXTS_PER_CALL = 4
"""Texts in one call of a teacher that samples under a bounded cache, as a multiple of those that it samples at once."""


def teacher_setting(setting: PlanSetting) -> PlanSetting:
    """The base alone, with its full cache, on prompts that all differ."""
    nothing = replace(plain_lora(setting.thought, None), target_modules=[])
    return replace(setting, objective="grpo", thought=nothing, group=1, generation_batch=None, teacher_cache=None)


def sampling_teacher(setting: PlanSetting) -> PlanSetting:
    """The base alone while it samples, under `teacher_cache` if there is one; each sequence is kept as tokens only.

    Under such a cache, what was evicted of all texts of a call is kept until the call ends.
    """
    rows, teacher = setting.decoded_at_once, teacher_setting(setting)
    if setting.teacher_cache is None:
        return replace(teacher, batch=rows, rollout_batch=rows)
    thought = replace(changes_nothing(**setting.teacher_cache), target_modules=[])
    return replace(teacher, thought=thought, batch=rows, rollout_batch=rows, generation_batch=TEXTS_PER_CALL * rows)


def teacher_parts(setting: PlanSetting) -> Parts:
    """The highest point of the teacher's pass over one batch."""
    teacher = teacher_setting(setting)
    numbers, rows = layer_numbers(teacher), teacher.batch
    per_thought = _state_bytes(setting, 1)
    return highest(
        {
            "resident K/V": kv_bytes(numbers, rows, chunk.entry + chunk.leaving),
            "activations": forward_transient_bytes(numbers, rows * chunk.columns),
            "teacher states": per_thought * max(0, chunk.entry - setting.prompt_tokens + 1),
        }
        for chunk in learner_chunks(teacher)[-2:]  # with the full cache every chunk finds more, and the last is shorter
    )


def kept_for_student(setting: PlanSetting) -> Parts:
    """The teacher's hidden states while the student runs, and a copy of the rows that are scored."""
    scored = [chunk.scored for chunk in learner_chunks(setting)]
    copied = max(scored) if setting.recompute else sum(scored)
    return {"teacher states": _state_bytes(setting, setting.max_new_tokens + (copied if setting.batch > 1 else 0))}


def _state_bytes(setting: PlanSetting, tokens: int) -> int:
    return setting.batch * tokens * model_size(setting.model).hidden * setting.base_bytes
