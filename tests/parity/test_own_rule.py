"""A state rule that is defined here alone: one class, entered in the table, is known to every part of the house."""

from __future__ import annotations

from typing import Any, ClassVar

import peft
import pytest
import torch
from torch import Tensor

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.grpo import base_with_eos, make_trainer
from support.models import adapt, tiny_base, tiny_model
from support.rollouts import PROMPTS
from thoughtcache.planning.flops import absorption_flops
from thoughtcache.planning.model_size import adapter_size
from thoughtcache.state.encoder import ThoughtEncoder
from thoughtcache.state.rules import STATE_RULES, EncoderWeights, ExtraParameter, StateRule

NAME = "mean, tilted"


class TiltedMean(StateRule):
    """`S + c (Q W_K k)(W_V v)^T` of the mean key and the mean value, with a learned `c` per rank and one for all."""

    name: ClassVar[str] = NAME
    parameters: ClassVar[tuple[ExtraParameter, ...]] = (
        ExtraParameter(name="tilt", initial=0.5, size=lambda kv_size: kv_size),
        ExtraParameter(name="strength", initial=0.7),
    )

    @staticmethod
    def write(weights: EncoderWeights, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The block at once."""
        key, value = (keys * weights.extra["tilt"]).mean(dim=1), values.mean(dim=1)
        content, address = key @ weights.key_projection.T @ weights.queries.T, value @ weights.value_projection.T
        return state + weights.extra["strength"] * content.unsqueeze(2) * address.unsqueeze(1)

    @staticmethod
    def naive_write(encoder: ThoughtEncoder, S: Tensor, K_e: Tensor, V_e: Tensor) -> Tensor:
        """Token by token."""
        size = K_e.shape[1]
        key, value = torch.zeros(size, dtype=S.dtype), torch.zeros(size, dtype=S.dtype)
        for k, v in zip(K_e, V_e, strict=True):
            key = key + k / torch.sqrt((k * k).mean() + 1e-6) * encoder.get_parameter("tilt") / len(K_e)
            value = value + v / torch.sqrt((v * v).mean() + 1e-6) / len(K_e)
        projected = encoder.key_projection @ key / size**0.5
        content = torch.stack([(encoder.query_projection @ q / size**0.5) @ projected for q in encoder.global_queries])
        address = encoder.value_projection @ value / size**0.5
        return S + encoder.get_parameter("strength") * torch.outer(content, address)

    @staticmethod
    def flops(kv_size: int, num_evicted: int, rank: int, num_global_tokens: int) -> int:
        """As counted by hand."""
        return 3 * num_evicted * kv_size + 4 * kv_size * rank + 2 * rank * num_global_tokens


@pytest.fixture(autouse=True)
def _rule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STATE_RULES, NAME, TiltedMean)


@pytest.mark.parametrize("eviction", ["sliding", "snapkv"])
def test_executions_and_gradients_agree(eviction):
    model = tiny_model(state_rule=NAME, eviction=eviction, window=6, evict_fraction=0.4)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=19, seed=2, stop_ids=[3, 7])
    assert max(len(rollout.evictions) for rollout in rollouts) > 4
    assert_close(tc.naive_logprobs(model, rollouts).logprobs, padded(rollouts))
    assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts)))
    found = gradients(model, lambda: weighted_loss(tc.replay(model, rollouts)))
    assert_gradients_match(found, expected)
    own = {name: gradient for name, gradient in found.items() if name.endswith(("tilt", "strength"))}
    assert len(own) == 4
    assert all(gradient.count_nonzero() for gradient in own.values())


def test_it_is_saved_and_loaded(tmp_path):
    model = tiny_model(state_rule=NAME)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("tilt", "strength")):
                parameter.mul_(1.7)
    ids = torch.tensor([PROMPTS[0][:4]])
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny_base(), tmp_path)
    expected: Any = model.state_dict()
    found: Any = again.state_dict()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name
    with torch.no_grad():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)


def test_the_planner_knows_its_sizes():
    model = tiny_model(state_rule=NAME)
    config = model.peft_config["default"]
    encoders = sum(p.numel() for name, p in model.named_parameters() if "thought_encoder" in name)
    assert adapter_size(model.base_model.model.config, config).encoders == encoders
    assert absorption_flops(10, 3, 4, 5, NAME) == 3 * 30 + 4 * 40 + 2 * 20


def test_a_step_of_grpo(tmp_path):
    model = adapt(base_with_eos(dtype=torch.float32), state_rule=NAME, window=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name.endswith("strength")}
    trainer = make_trainer(model, tmp_path, max_steps=2)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "policy/gap_max" in entry)
    assert log["policy/gap_max"] < 1e-4
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_an_unknown_rule_lists_this_one():
    with pytest.raises(ValueError, match=f"state_rule='magic' is not known; choose one of .*{NAME}"):
        tc.ThoughtConfig(state_rule="magic")
