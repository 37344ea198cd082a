"""Matmul arithmetic of one training step, in closed form; a multiply-add counts as two.

A frozen linear costs its forward arithmetic once more in the backward pass (no gradient of its weights), an adapter
twice more, attention two and a half times more (its kernel forms the scores again). Attention counts whole rectangles
of queries and keys, as PyTorch's counter does. Proof: tests/unit/test_plan_trace.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.planning.flops import (
    FlopsPerToken,
    absorption_flops,
    flops_per_token,
    rollout_flops_per_token,
    share_columns,
)
from thoughtcache.planning.memory.distillation import sampling_teacher, teacher_setting
from thoughtcache.planning.model_size import model_size
from thoughtcache.planning.setting import PlanSetting, grouped_chunks, learner_chunks
from thoughtcache.state.attention.read import read_flops, write_flops

BACKWARD_OF_ATTENTION = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """Floating-point operations.

    Attributes:
        per_token: one decoded token of one completion, on average over a rollout.
        rollout: all completions of a step, prompts included.
        learner: forward and backward pass over all of them.
    """

    per_token: float
    rollout: float
    learner: float


def step_flops(setting: PlanSetting) -> StepFlops:
    """Count one step over `setting.completions` completions of full length."""
    sampler = sampling_teacher(setting) if setting.distills else setting
    rows, prompt = setting.completions, setting.prompt_tokens
    prompts = -(-rows // sampler.group)
    per_token = rollout_flops_per_token(
        setting.model,
        sampler.thought,
        prompt_tokens=prompt,
        num_tokens=max(setting.max_new_tokens, 2),
        window=sampler.window,
    ).total
    first = _forward(sampler, context=(prompt + 1) / 2)
    prefill = first.total - first.memory_read  # nothing to read yet
    learner = learner_flops_per_row(setting)
    return StepFlops(
        per_token=per_token,
        rollout=rows * (setting.max_new_tokens - 1) * per_token + prompts * prompt * prefill,
        learner=rows * (learner + _teacher_flops_per_row(setting) if setting.distills else learner),
    )


def learner_flops_per_row(setting: PlanSetting) -> float:
    """One row through the learner."""
    size = model_size(setting.model)
    replays = setting.learner == "replay"
    groups = grouped_chunks(setting)
    chunks = groups[0][1]
    tokens = sum(chunk.columns for chunk in chunks)
    one = _forward(setting, context=0.0)
    attended = sum(count * chunk.columns * chunk.leaving for count, seen in groups for chunk in seen)
    attention = 4.0 * size.query * attended
    evictions = sum(count * (chunk.evicted > 0) for count, seen in groups for chunk in seen)
    absorbed = _absorbed(setting, evictions) if setting.absorbs else 0.0
    forwards = 1 if replays and (setting.reuse or not setting.recompute) else 2
    # A checkpointed layer runs once more; what stands between the layers (absorption, head) does not.
    again = 1 if replays and setting.checkpoint_layers else 0
    memory = setting.attention_memory
    reading = [chunk for chunk in chunks if not chunk.is_initial] if memory is not None else []
    if memory is not None:
        longer = sum(chunk.columns * share_columns(memory, float(chunk.leaving)) for chunk in reading)
        attention += 4.0 * size.layers * longer
    read = sum(chunk.columns for chunk in reading) * size.layers * (0 if memory is None else read_flops(memory))
    return (
        tokens * one.linears * (forwards + again + 1)
        + (tokens * (one.adapter + one.state_read) + read) * (forwards + again + 2)
        + attention * (forwards + again + BACKWARD_OF_ATTENTION)
        + absorbed * (forwards + 2)
        + one.head * _head_passes(setting) * sum(chunk.scored for chunk in chunks)
    )


def _absorbed(setting: PlanSetting, evictions: int) -> float:
    """So many evictions of single layers of one row."""
    size, thought, evicted = model_size(setting.model), setting.thought, setting.num_evicted or 0
    event = 0 if setting.attention_memory is None else write_flops(setting.attention_memory, evicted)
    if not thought.has_plain_linears:
        event += absorption_flops(size.kv, evicted, thought.r, thought.num_global_tokens, thought.state_rule)
    return float(evictions * event)


def _teacher_flops_per_row(setting: PlanSetting) -> float:
    """One row through the base with its full cache, up to its hidden states."""
    teacher = teacher_setting(setting)
    chunks = learner_chunks(teacher)
    one, size = _forward(teacher, context=0.0), model_size(setting.model)
    attention = 4.0 * size.layers * size.query * sum(chunk.columns * chunk.leaving for chunk in chunks)
    return one.linears * sum(chunk.columns for chunk in chunks) + attention


def _head_passes(setting: PlanSetting) -> int:
    """Products with the vocabulary per scored token: scores, scores again, gradient; the teacher's scores as often."""
    if setting.learner == "checkpointed":
        return 2 if setting.logits == "materialised" else 3
    passes = 2 if setting.reuse else 3
    return 2 * passes - 1 if setting.distills else passes


def _forward(setting: PlanSetting, context: float) -> FlopsPerToken:
    return flops_per_token(
        setting.model,
        context=context,
        rank=setting.thought.r,
        num_global_tokens=setting.thought.num_state_rows,
        target_modules=setting.thought.target_modules,
        reads_state=not setting.thought.has_plain_linears,
        memory=setting.attention_memory,
    )
