"""Under an autocast region the layers of the model run in half precision, the thought state does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import TOLERANCE, gradient_error, gradients, max_difference, padded, weighted_loss
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.train.distill import sample_teacher, teacher_hidden, under_window
from thoughtcache.train.distill_config import DistillConfig

LENGTH = 20
RULES: dict[str, dict[str, Any]] = {
    **{rule: {"state_rule": rule} for rule in ("linear", "gated", "delta", "softmax", "decay")},
    "spectral": {"state_norm": "spectral"},
    # After every write it would carry the rounding of the layers on, in directions that little was written to.
    "orthogonal when read": {"state_norm": "orthogonal", "state_norm_at": "read"},
}


def half() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("rule", RULES)
def test_all_executions_agree_and_their_states_are_not_rounded(rule: str) -> None:
    model = tiny_model(dtype=torch.float32, window=3, **RULES[rule])
    with half(), torch.no_grad():
        rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
        naive = tc.naive_logprobs(model, rollouts).logprobs
        free = tc.replay(model, rollouts, anchored=False).logprobs
    plain = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    for row in rollouts:
        assert row.states is not None
        assert row.states.dtype == torch.float32
        assert not torch.equal(row.states, row.states.bfloat16().float())
    # The states are those of fp32; the layers round as in a bf16 model, the same in every execution.
    assert max_difference(naive, padded(rollouts)) < TOLERANCE[torch.bfloat16] / 10
    assert max_difference(free, padded(rollouts)) < TOLERANCE[torch.bfloat16] / 10
    assert max_difference(padded(plain), padded(rollouts)) > 0, "autocast did nothing"


def test_generate_keeps_its_state_under_autocast() -> None:
    model = tiny_model(dtype=torch.float32, window=3)
    prompt = torch.tensor([PROMPTS[0]])
    seen: list[torch.dtype] = []
    hook = model.base_model.backbone.layers[0].register_forward_pre_hook(
        lambda *_: seen.extend(state.dtype for state in model.base_model.binding.states)
    )
    with half():
        sequence = model.generate(prompt, max_new_tokens=LENGTH, do_sample=False)[0, prompt.shape[1] :]
        hook.remove()
        (row,) = tc.rollout(model, PROMPTS[:1], max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    assert set(seen) == {torch.float32}
    assert sequence.tolist() == row.token_ids


def test_a_region_that_accelerate_put_around_forward_is_not_the_policys() -> None:
    """`accelerator.prepare` wraps `forward`; sampling does not go through it, so replay must not either."""
    model = tiny_model(dtype=torch.float32, window=3)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, ignore_eos=True)
    expected = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts)))
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    with torch.no_grad():
        assert max_difference(tc.replay(model, rollouts).logprobs, padded(rollouts)) < TOLERANCE[torch.float32]
    found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts)))
    assert gradient_error(found, expected) == 0.0


def test_distillation_compares_two_passes_under_one_region() -> None:
    model = tiny_model(dtype=torch.float32, window=None)
    samples = sample_teacher(model, PROMPTS, DistillConfig(output_dir="", max_new_tokens=LENGTH))
    batch = batch_rollouts(under_window(samples, model.base_model.thought_config), torch.device("cpu"))
    with half():
        inside = teacher_hidden(model, batch)
    outside = teacher_hidden(model, batch)
    model.forward = torch.autocast("cpu", dtype=torch.bfloat16)(model.forward)
    assert torch.equal(teacher_hidden(model, batch), outside)
    assert max_difference(inside.float(), outside) > 0
