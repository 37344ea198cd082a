"""One model in several threads: each `generate` has its own states, and what cannot run beside a rollout is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

import thoughtcache as tc
from support.compare import assert_close
from support.grpo import word_tokenizer
from support.models import tiny_model, trainable
from support.rollouts import PROMPTS
from thoughtcache.adapter.attention import thought_attention
from thoughtcache.adapter.binding import StateBinding
from thoughtcache.learner.attention import lower_right_attention

NEW_TOKENS = 14
TIMEOUT_SECONDS = 60


class Turns(LogitsProcessor):
    """Hands the turn to another thread after every token, so that two generations interleave token by token."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier = barrier

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.barrier.wait(TIMEOUT_SECONDS)
        return scores


class Work(threading.Thread):
    """A thread that keeps what its function returns or raises."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.function, self.found, self.error = function, None, None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.function()
        except Exception as error:  # noqa: BLE001 - handed to whoever waits
            self.error = error

    def result(self) -> Any:
        self.join(TIMEOUT_SECONDS)
        if self.error is not None:
            raise self.error
        return self.found


def generate(model: Any, prompt: list[int], *processors: LogitsProcessor) -> list[int]:
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        logits_processor=LogitsProcessorList(processors),
    )
    return out[0, len(prompt) :].tolist()


class Forwards:
    """Lets another thread act in the middle of a forward pass: behind the first layer, once."""

    def __init__(self, model: Any, act: Callable[[], Any]) -> None:
        self.thread, self.act, self.acted = threading.get_ident(), act, False
        layer = model.base_model.backbone.layers[0]
        self.handle = layer.register_forward_hook(self)

    def __call__(self, *args: Any) -> None:
        if threading.get_ident() == self.thread and not self.acted:
            self.acted = True
            self.act()


def test_two_generations_token_by_token():
    model = tiny_model()
    expected = [generate(model, prompt) for prompt in PROMPTS[:2]]
    turns = Turns(threading.Barrier(2))
    works = [Work(lambda prompt=prompt: generate(model, prompt, turns)) for prompt in PROMPTS[:2]]
    assert [work.result() for work in works] == expected


def test_a_generation_in_the_middle_of_a_forward_pass():
    """The states of the other thread are bound and released between two layers of this one."""
    model = tiny_model()
    first, second = (generate(model, prompt) for prompt in PROMPTS[:2])
    other: list[list[int]] = []
    Forwards(model, lambda: other.append(Work(lambda: generate(model, PROMPTS[1])).result()))
    assert generate(model, PROMPTS[0]) == first
    assert other == [second]


@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_a_generation_in_the_middle_of_a_replay(checkpoint_layers):
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS)

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        out = tc.replay(model, rollouts, checkpoint_layers=checkpoint_layers)
        out.logprobs.sum().backward()
        return {name: parameter.grad.clone() for name, parameter in trainable(model).items()}

    expected, tokens = gradients(), generate(model, PROMPTS[1])
    other: list[list[int]] = []
    Forwards(model, lambda: other.append(Work(lambda: generate(model, PROMPTS[1])).result()))
    found = gradients()
    assert other == [tokens]
    for name, gradient in expected.items():
        assert_close(found[name], gradient)


@pytest.mark.parametrize("checkpoint_layers", [False, True])
def test_a_replay_in_the_middle_of_a_generation(checkpoint_layers):
    model = tiny_model()
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=NEW_TOKENS)
    tokens = generate(model, PROMPTS[1])

    def replay() -> torch.Tensor:
        out = tc.replay(model, rollouts, checkpoint_layers=checkpoint_layers).logprobs
        out.sum().backward()
        return out.detach()

    expected = replay()
    other: list[torch.Tensor] = []
    Forwards(model, lambda: other.append(Work(replay).result()))
    assert generate(model, PROMPTS[1]) == tokens
    assert_close(other[0], expected)


def test_what_begins_while_another_thread_samples_is_refused():
    model = tiny_model()
    prompt, ids = PROMPTS[0], torch.tensor([[3, 1]])
    rollouts = tc.rollout(model, PROMPTS, max_new_tokens=9)
    others: list[Callable[[], Any]] = [
        lambda: generate(model, prompt),
        lambda: tc.rollout(model, PROMPTS, max_new_tokens=9),
        lambda: tc.replay(model, rollouts),
        lambda: tc.naive_logprobs(model, rollouts),
        lambda: model(input_ids=ids),
    ]
    errors = []

    def try_all(_: int) -> None:
        if not errors:
            for other in others:
                work = Work(other)
                with pytest.raises(RuntimeError, match=r"is sampling.*another thread"):
                    work.result()
                errors.append(work.error)

    found = tc.rollout(model, PROMPTS, max_new_tokens=9, progress=try_all)
    assert len(errors) == len(others)
    assert [r.token_ids for r in found] == [r.token_ids for r in rollouts]
    generate(model, prompt)


def test_a_rollout_that_begins_while_another_thread_generates_is_refused():
    model = tiny_model()
    expected = generate(model, PROMPTS[0])

    class Sample(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            with pytest.raises(RuntimeError, match="another thread generates"):
                Work(lambda: tc.rollout(model, PROMPTS, max_new_tokens=2)).result()
            return scores

    assert generate(model, PROMPTS[0], Sample()) == expected
    tc.rollout(model, PROMPTS, max_new_tokens=2)


def test_a_rollout_inside_a_generation_of_the_same_thread():
    model = tiny_model()
    expected = generate(model, PROMPTS[0])

    class Sample(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            tc.rollout(model, PROMPTS, max_new_tokens=7)
            return scores

    assert generate(model, PROMPTS[0], Sample()) == expected


def test_a_streamer_is_read_while_another_thread_generates():
    model, tokenizer = tiny_model(), word_tokenizer()
    expected = tokenizer.decode(generate(model, PROMPTS[0]), skip_special_tokens=False)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=TIMEOUT_SECONDS)
    work = Work(
        lambda: model.generate(
            input_ids=torch.tensor([PROMPTS[0]]), max_new_tokens=NEW_TOKENS, do_sample=False, streamer=streamer
        )
    )
    assert "".join(streamer).split() == expected.split()
    work.result()


def test_a_generation_that_fails_leaves_the_model_free():
    model = tiny_model()

    class Fails(LogitsProcessor):
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            raise KeyError("stop")

    work = Work(lambda: generate(model, PROMPTS[0], Fails()))
    with pytest.raises(KeyError):
        work.result()
    tc.rollout(model, PROMPTS, max_new_tokens=2)


def test_the_attention_of_the_last_replay_that_ends_is_put_back():
    model = tiny_model()
    config = model.base_model.model.config
    assert config._attn_implementation == "sdpa"
    first, second = (lower_right_attention(config) for _ in range(2))
    first.__enter__()
    second.__enter__()
    changed = config._attn_implementation
    first.__exit__(None, None, None)
    assert config._attn_implementation == changed
    second.__exit__(None, None, None)
    assert config._attn_implementation == "sdpa"


def test_a_copy_of_the_binding_holds_no_states_of_the_original():
    binding = StateBinding()
    binding.states = [torch.zeros(1)]
    assert copy.deepcopy(binding).states is None
    model = tiny_model()
    twin = copy.deepcopy(model)
    assert twin.base_model.binding is not model.base_model.binding
    assert generate(twin, PROMPTS[0]) == generate(model, PROMPTS[0])


@pytest.mark.parametrize("first", ["lower right", "around"])
def test_attentions_that_overlap_partly_leave_each_other_alone(first):
    """A replay ends while a generation of another thread that began inside it still runs, and the other way round."""
    config = tiny_model().base_model.model.config
    kinds = {"lower right": lower_right_attention, "around": thought_attention}
    (other,) = set(kinds) - {first}
    outer, middle, inner = kinds[first](config), kinds[other](config), kinds[other](config)
    plain = config._attn_implementation
    outer.__enter__()
    alone = config._attn_implementation
    middle.__enter__()
    both = config._attn_implementation
    inner.__enter__()
    assert config._attn_implementation == both
    middle.__exit__(None, None, None)
    assert config._attn_implementation == both
    outer.__exit__(None, None, None)  # `inner` of the other thread is in the middle of its pass
    left = config._attn_implementation
    assert left not in (plain, alone, both), "what is left is the other one alone"
    inner.__exit__(None, None, None)
    assert config._attn_implementation == plain


def test_a_memory_survives_a_replay_that_ends_in_the_middle_of_a_generation():
    """The replay of another thread has begun before a forward pass and ends behind its first layer."""
    model = tiny_model(window=4, memory="attention", memory_features=6, evict_fraction=0.5)
    config = model.base_model.model.config
    expected = generate(model, PROMPTS[0])
    with torch.no_grad():
        for layer in model.base_model.memory_weights():
            layer.log_weight.add_(60.0)
        assert generate(model, PROMPTS[0]) != expected, "the memory makes no difference"
        for layer in model.base_model.memory_weights():
            layer.log_weight.sub_(60.0)
    blocks = []

    def begin(*args: Any) -> None:
        blocks.append(lower_right_attention(config))
        blocks[-1].__enter__()

    def end(*args: Any) -> None:
        blocks.pop().__exit__(None, None, None)

    backbone = model.base_model.backbone
    handles = [
        backbone.register_forward_pre_hook(begin, prepend=True),
        backbone.layers[0].register_forward_hook(end),
    ]
    found = generate(model, PROMPTS[0])
    for handle in handles:
        handle.remove()
    assert found == expected
    assert config._attn_implementation == "sdpa"
