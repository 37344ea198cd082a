"""Policies that score thoughts: what sampling chooses is what the naive form chooses, in every way to sample."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients, padded, weighted_loss
from support.grpo import base_with_eos, make_trainer
from support.models import adapt, tiny_model
from support.policies import SCORED, dealt, in_turn
from support.rollouts import PROMPTS
from thoughtcache.adapter.attention import thought_attention
from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionView, ScoredEviction
from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.sampler import decode_step

POSITIONS = ["absolute", "rolling"]
STOPS = [3, 7]
LENGTH = 34


class LargestValues(ScoredEviction):
    """A policy of somebody else, defined here alone: thoughts with large values stay, and one that is new."""

    name: ClassVar[str] = "largest values"
    max_protected: int = 1

    def score(self, view: EvictionView) -> Tensor:
        """The norm of the value."""
        return view.values.norm(dim=-1)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same, one by one."""
        return [sum(float(x) ** 2 for x in value) ** 0.5 for value in head.values]


@pytest.fixture
def _own_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EVICTION_POLICIES, LargestValues.name, LargestValues)


def make(family: str = "llama", **options: Any) -> Any:
    """Window 8, of which 2 leave at once and at most 3 are protected; weights so large that attention is sharp."""
    base = {"initializer_range": 0.6}
    return tiny_model(family, base=base, **{"window": 8, "evict_fraction": 0.25, "state_rule": "gated", **options})


def chosen(rollouts: list[tc.Rollout]) -> list[list[list[list[list[int]]]]]:
    """[row][event][layer][head] -> slots."""
    return [
        [event.slots.tolist() if event.slots is not None else [] for event in rollout.evictions] for rollout in rollouts
    ]


def differ(found: list[tc.Rollout]) -> bool:
    """Whether heads, layers and events differ in what they choose, so that a test can fail."""
    events = [event for row in chosen(found) for event in row]
    heads = {str(head) for event in events for layer in event for head in layer}
    different = heads == {"[3, 4]"} if found[0].settings.eviction == "streaming" else len(heads) > 2
    return len(events) > 8 and different


@pytest.mark.parametrize(("eviction", "positions", "family"), dealt(SCORED, POSITIONS, ["llama", "qwen3", "smollm3"]))
def test_executions_agree_and_so_do_the_choices(eviction, family, positions):
    """Ragged prompts and lengths, slots that are refilled; the naive form chooses by itself."""
    model = make(family, eviction=eviction, positions=positions)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=21, seed=4, stop_ids=STOPS, batch_size=2)
    rollouts += tc.rollout(model, PROMPTS[:2], max_new_tokens=31, seed=5, ignore_eos=True)
    assert differ(rollouts)
    with torch.no_grad():
        naive = tc.naive_logprobs(model, rollouts, choose=True)
        assert_close(naive.logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts, anchored=False).logprobs, padded(rollouts))


@pytest.mark.parametrize(("eviction", "positions"), in_turn(SCORED, POSITIONS))
def test_a_row_chooses_alone_what_it_chooses_in_a_batch(eviction, positions):
    model = make(eviction=eviction, positions=positions)
    together = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=[4, 5, 6, 7][: len(PROMPTS)], ignore_eos=True)
    assert differ(together)
    for rollout, prompt in zip(together, PROMPTS, strict=True):
        (alone,) = tc.rollout(model, [prompt], max_new_tokens=LENGTH, seed=[rollout.settings.seed], ignore_eos=True)
        assert alone.token_ids == rollout.token_ids
        assert chosen([alone]) == chosen([rollout])


@pytest.mark.parametrize(("eviction", "positions"), in_turn(SCORED, POSITIONS))
def test_static_shapes_choose_the_same(eviction, positions, monkeypatch):
    """The functions as they are; test_compiled.py compiles them."""
    monkeypatch.setattr(decode_step, "compile_whole", lambda function, device: function)
    model = make(eviction=eviction, positions=positions)
    options: dict[str, Any] = {"max_new_tokens": LENGTH, "seed": 2, "stop_ids": STOPS, "batch_size": 3}
    found = tc.rollout(model, [*PROMPTS, *PROMPTS], compile=True, **options)
    expected = tc.rollout(model, [*PROMPTS, *PROMPTS], **options)
    assert [r.token_ids for r in found] == [r.token_ids for r in expected]
    assert chosen(found) == chosen(expected)


@pytest.mark.parametrize(("eviction", "implementation", "positions"), in_turn(SCORED, ["sdpa", "eager"], POSITIONS))
def test_generate_chooses_the_same(eviction, implementation, positions):
    """Prompts of unequal lengths, padded; greedy tokens hang on the choices."""
    # Eager attention is not for fp64: transformers takes its softmax in fp32, in which an fp64 mask overflows.
    options = {"positions": positions, "dtype": torch.float64 if implementation == "sdpa" else torch.float32}
    model = make(eviction=eviction, **options)
    model.set_attn_implementation(implementation)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    sliding = make(**options)
    other = tc.rollout(sliding, PROMPTS, max_new_tokens=LENGTH, temperature=0.0, ignore_eos=True)
    assert [r.token_ids for r in rollouts] != [r.token_ids for r in other], "the choice makes no difference"
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    config = GenerationConfig(do_sample=False, max_new_tokens=LENGTH, pad_token_id=0)
    out = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
    assert out[:, width:].tolist() == [rollout.token_ids for rollout in rollouts]
    assert find_tuner(model).model.config._attn_implementation == implementation


@pytest.mark.parametrize(("eviction", "positions"), dealt(SCORED, POSITIONS))
def test_gradients_are_those_of_the_naive_form(eviction, positions):
    model = make(eviction=eviction, positions=positions)
    rollouts = tc.rollout(model, PROMPTS[:2], max_new_tokens=15, seed=4, ignore_eos=True)
    assert max(len(rollout.evictions) for rollout in rollouts) > 2
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, choose=True)))
    assert_gradients_match(gradients(model, lambda: weighted_loss(tc.replay(model, rollouts))), expected)


@pytest.mark.usefixtures("_own_policy")
@pytest.mark.parametrize("positions", ["absolute", "rolling"])
def test_a_policy_that_is_defined_here_alone(positions):
    """Sampling, replay, naive form and gradients know it by its name in the table."""
    model = make(eviction=LargestValues.name, positions=positions)
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=4, stop_ids=STOPS, batch_size=2)
    rollouts += tc.rollout(model, PROMPTS, max_new_tokens=LENGTH, seed=8, ignore_eos=True)
    assert differ(rollouts)
    with torch.no_grad():
        assert_close(tc.naive_logprobs(model, rollouts, choose=True).logprobs, padded(rollouts))
        assert_close(tc.replay(model, rollouts).logprobs, padded(rollouts))
    few = rollouts[:2]
    expected = gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, few)))
    assert_gradients_match(gradients(model, lambda: weighted_loss(tc.replay(model, few))), expected)


def test_what_is_observed_is_what_attention_reads():
    """The queries that are shown and the keys of the cache give the weights that eager attention reports."""
    model = tiny_model("qwen3", window=None)
    base = find_tuner(model).model
    base.set_attn_implementation("eager")
    seen: dict[int, Tensor] = {}

    class Observer:
        def observe(self, layer_index: int, queries: Tensor) -> None:
            seen[layer_index] = queries

    ids = torch.tensor([[3, 1, 4, 1, 5, 9]])
    with torch.no_grad(), thought_attention(base.config):
        out = model(input_ids=ids, output_attentions=True, use_cache=True, thought_queries=Observer())
    cache = next(value for name, value in out.items() if name in ("cache", "past_key_values"))
    hidden = torch.ones(6, 6, dtype=torch.bool).triu(1)
    for layer, weights in enumerate(out.attentions):
        keys = cache.layers[layer].keys.repeat_interleave(2, dim=1)
        logits = seen[layer] @ keys.mT * base.model.layers[layer].self_attn.scaling
        assert_close(logits.masked_fill(hidden, -torch.inf).softmax(dim=-1), weights, torch.float32)


def test_a_pass_that_shows_no_queries_is_an_error():
    """Somebody gives the cache to the base model's layers by another way."""
    model = make(eviction="snapkv")
    tuner = find_tuner(model)
    cache = tuner.new_cache(CacheSettings(window=8, num_evicted=2, eviction="snapkv"), max_new_tokens=9)
    cache.prepare_forward(2)
    for layer in cache.layers:
        layer.update(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
    cache.prepare_forward(1)
    with pytest.raises(RuntimeError, match=r"'snapkv' looks at queries.*those of 0 of 2 layers"):
        cache.prepare_forward(1)
    with pytest.raises(ValueError, match="3 thought tokens arrived at once"):
        cache.prepare_forward(3)


def test_nothing_is_shown_where_nobody_looks():
    """The configuration keeps its attention function, and passes have no argument more."""
    model = make(eviction="sliding")
    names, arguments = set(), set()

    def note(module: Any, args: Any, kwargs: Any) -> None:
        names.add(module.config._attn_implementation)
        arguments.update(kwargs)

    hook = find_tuner(model).backbone.register_forward_pre_hook(note, with_kwargs=True)
    tc.rollout(model, PROMPTS, max_new_tokens=12, ignore_eos=True)
    model.generate(input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=12)
    hook.remove()
    assert names == {"sdpa"}
    assert "thought_queries" not in arguments


@pytest.mark.usefixtures("_own_policy")
@pytest.mark.parametrize("eviction", [*SCORED, LargestValues.name])
def test_a_step_of_grpo(eviction, tmp_path):
    """The trainer's own check of the sampled against the scored policy stays at rounding."""
    model = adapt(base_with_eos(dtype=torch.float32), window=6, evict_fraction=0.4, eviction=eviction)
    trainer = make_trainer(model, tmp_path, max_steps=1)
    trainer.train()
    log = next(entry for entry in trainer.state.log_history if "policy/gap_max" in entry)
    assert log["cache/evictions"] > 0
    assert log["policy/gap_max"] < 1e-4
