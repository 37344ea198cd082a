"""The recomputing learner has the gradient of the naive loop, whatever is cut, dropped or unfrozen."""

from __future__ import annotations

from itertools import cycle
from typing import ClassVar

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradient_error, gradients, weighted_loss
from support.models import CONTROLS, tiny_model, use_norms_without_fp32
from support.policies import KINDS
from support.rollouts import ragged_rollouts
from thoughtcache.learner import reverse
from thoughtcache.learner.kv_log import KVLog, check_place
from thoughtcache.policy import scores
from thoughtcache.state import STATE_RULES

PROMPTS = [[3, 1, 4, 1], [6, 5], [9]]
NEW_TOKENS = 12


def case(**config):
    model = tiny_model(**{"window": 3, **config})
    use_norms_without_fp32(model)
    return model, ragged_rollouts(model, max_new_tokens=NEW_TOKENS, prompts=PROMPTS)


def naive(model, rollouts, gradient="exact"):
    return gradients(model, lambda: weighted_loss(tc.naive_logprobs(model, rollouts, gradient=gradient)))


def replayed(model, rollouts, **options):
    return gradients(model, lambda: weighted_loss(tc.replay(model, rollouts, **options)))


@pytest.mark.parametrize("eviction", KINDS)
@pytest.mark.parametrize("chunk_tokens", [1, 2, 3, 5, 7, 100])
def test_chunks_of_any_size_have_the_exact_gradient(chunk_tokens, eviction):
    model, rollouts = case(eviction=eviction, state_rule="gated", window=5, evict_fraction=0.6)
    expected = naive(model, rollouts)
    for anchored in (True, False):
        found = replayed(model, rollouts, anchored=anchored, chunk_tokens=chunk_tokens)
        assert_gradients_match(found, expected)


@pytest.mark.parametrize("gradient", ["exact", "detached", 2])
@pytest.mark.parametrize("rule", [*sorted(STATE_RULES), "orthogonal when read"])
def test_checkpoints_of_layers_have_the_same_gradient(rule, gradient):
    model, rollouts = case(eviction="random", **CONTROLS.get(rule, {"state_rule": rule}))
    expected = naive(model, rollouts, gradient)
    found = replayed(model, rollouts, gradient=gradient, chunk_tokens=2, checkpoint_layers=True)
    assert_gradients_match(found, expected)
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_checkpoints_of_layers_under_full_fine_tuning():
    model, rollouts = case(state_rule="delta")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert_gradients_match(replayed(model, rollouts, checkpoint_layers=True), naive(model, rollouts))


def test_checkpointed_layers_run_three_times():
    model, rollouts = case()
    tokens = []
    layer = model.base_model.backbone.layers[-1]
    hook = layer.self_attn.q_proj.register_forward_hook(
        lambda module, args, output: tokens.append(output.shape[:-1].numel())
    )
    for options, passes in (({}, 2), ({"checkpoint_layers": True}, 3)):
        tokens.clear()
        with torch.no_grad():
            tc.replay(model, rollouts)
        once = sum(tokens)
        tokens.clear()
        tc.replay(model, rollouts, **options).logprobs.sum().backward()
        assert sum(tokens) == passes * once
    hook.remove()


@pytest.mark.parametrize("gradient", ["exact", "detached", 2])
@pytest.mark.parametrize("eviction", KINDS)
def test_rolling_positions(eviction, gradient):
    model, rollouts = case(eviction=eviction, state_rule="gated", window=5, evict_fraction=0.4, positions="rolling")
    expected = naive(model, rollouts, gradient)
    for chunk_tokens in (1, 3, None):
        found = replayed(model, rollouts, gradient=gradient, chunk_tokens=chunk_tokens)
        assert_gradients_match(found, expected)


@pytest.mark.parametrize("positions", ["absolute", "rolling"])
@pytest.mark.parametrize("eviction", KINDS)
def test_every_state_rule_eviction_policy_and_kind_of_positions(eviction, positions):
    # The first segment has 4 + 5 columns, the others 3: no size divides them, and the smaller ones leave rests of 1.
    for rule, chunk_tokens in zip(sorted(STATE_RULES), cycle((2, 4, 5, 7)), strict=False):
        config = {"state_rule": rule, "eviction": eviction, "positions": positions}
        model, rollouts = case(**config, window=5, evict_fraction=0.6)
        found = replayed(model, rollouts, chunk_tokens=chunk_tokens, kv_log="host")
        assert_gradients_match(found, naive(model, rollouts))


@pytest.mark.parametrize("gradient", ["detached", 1, 2, 3])
def test_truncated_gradients_in_chunks_and_without_recomputation(gradient):
    model, rollouts = case(window=5, evict_fraction=0.4)
    expected = naive(model, rollouts, gradient)
    assert_gradients_match(replayed(model, rollouts, gradient=gradient, chunk_tokens=1), expected)
    assert_gradients_match(replayed(model, rollouts, gradient=gradient, recompute=False), expected)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_rows_come_back_in_their_order(order):
    model, rollouts = case()
    whole = tc.replay(model, rollouts)
    shuffled = tc.replay(model, [rollouts[row] for row in order])
    for place, row in enumerate(order):
        assert_close(shuffled.logprobs[place], whole.logprobs[row])
        assert_close(shuffled.entropies[place], whole.entropies[row])
        assert (shuffled.mask[place] == whole.mask[row]).all()


def test_finished_rows_cost_nothing():
    model = tiny_model(window=3)
    lengths = [5, 11, 8]
    rollouts = [
        tc.rollout(model, [prompt], max_new_tokens=length)[0] for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    seen = []
    hook = model.base_model.backbone.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    with torch.no_grad():
        tc.replay(model, rollouts, chunk_tokens=1)
    hook.remove()
    width = max(len(prompt) for prompt in PROMPTS)
    assert sum(seen) == width * len(PROMPTS) + sum(length - 1 for length in lengths)


@pytest.mark.parametrize("tied", [False, True])
def test_full_fine_tuning(tied):
    model, rollouts = case(state_rule="delta", base={"tie_word_embeddings": tied})
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    expected = naive(model, rollouts)
    assert any("embed" in name for name in expected)
    assert any("lm_head" in name for name in expected) != tied
    assert_gradients_match(replayed(model, rollouts, chunk_tokens=3), expected)
    assert_gradients_match(replayed(model, rollouts, gradient=2, chunk_tokens=3), naive(model, rollouts, 2))
    assert_gradients_match(replayed(model, rollouts, recompute=False), expected)


def test_full_fine_tuning_with_logits_in_chunks(monkeypatch):
    monkeypatch.setattr(scores, "CHUNK_ELEMENTS", 1)  # one row of logits at a time
    test_full_fine_tuning(tied=True)


def test_logits_are_formed_twice_and_not_three_times():
    model, rollouts = case()
    rows = []
    head = model.base_model.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[:-1].numel()))
    tc.replay(model, rollouts).logprobs.sum().backward()
    hook.remove()
    forward = sum(rows) / 2
    assert forward == int(forward)
    assert sum(len(rollout.token_ids) for rollout in rollouts) <= forward <= 3 * NEW_TOKENS


@pytest.mark.parametrize("lost", ["keys", "values", "states"])
def test_a_lost_gradient_is_seen(lost, monkeypatch):
    # The mutation: one of the three carried gradients does not arrive at the earlier chunk.
    model, rollouts = case()
    exact = replayed(model, rollouts)
    pair_up = reverse._pair_up

    def lossy(scored, leaving, gradient, carried):
        past, states = carried.past, carried.states
        if past is not None and lost in ("keys", "values"):
            parity = 0 if lost == "keys" else 1
            past = [None if index % 2 == parity else value for index, value in enumerate(past)]
        if lost == "states":
            states = None
        return pair_up(scored, leaving, gradient, reverse._Carried(past=past, states=states))

    monkeypatch.setattr(reverse, "_pair_up", lossy)
    assert gradient_error(replayed(model, rollouts), exact) > 1e-3


def test_a_second_backward_pass_is_refused():
    model, rollouts = case()
    loss = tc.replay(model, rollouts).logprobs.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="go backward once"):
        loss.backward()


def test_gradients_accumulate_and_scale():
    model, rollouts = case()
    once = replayed(model, rollouts)

    def twice():
        weighted_loss(tc.replay(model, rollouts)).backward()
        return 2.0 * weighted_loss(tc.replay(model, rollouts))  # a power of two: norms round in fp32

    assert_gradients_match(gradients(model, twice), {name: 3.0 * value for name, value in once.items()})


def test_a_gradient_scaler_steps_as_if_there_were_none():
    model, rollouts = case()
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer, scaler = torch.optim.SGD(parameters, lr=1e-3), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    exact = replayed(model, rollouts)
    scaler.scale(weighted_loss(tc.replay(model, rollouts)).float()).backward()
    scaler.step(optimizer)
    for was, now, gradient in zip(before, parameters, exact.values(), strict=True):
        assert_close(now.detach(), was - 1e-3 * gradient)
    scaler.update()
    # A loss that overflows must reach every gradient, or the scaler would not skip the step.
    optimizer.zero_grad()
    scaler.scale(float("inf") * weighted_loss(tc.replay(model, rollouts)).float()).backward()
    moved = [p.detach().clone() for p in parameters]
    scaler.step(optimizer)
    assert all(torch.equal(now, was) for now, was in zip(parameters, moved, strict=True))


def test_without_recomputation_too_logits_are_formed_again_under_the_autocast_of_the_first_pass():
    model, rollouts = case()
    model.float()
    found = []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tc.replay(model, rollouts, recompute=False).logprobs.sum()
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, output: found.append(output.dtype))
    loss.backward()
    hook.remove()
    assert set(found) == {torch.bfloat16}


def test_what_runs_again_runs_under_the_autocast_of_the_first_pass():
    model, rollouts = case()
    model.float()
    found = []
    layer = model.base_model.backbone.layers[-1].mlp.act_fn
    hook = layer.register_forward_hook(lambda module, args, output: found.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = tc.replay(model, rollouts).logprobs.sum()
    first = len(found)
    loss.backward()
    hook.remove()
    assert len(found) == 2 * first
    assert set(found) == {torch.bfloat16}


class SeenLog(KVLog):
    """Remembers the logs that replays make, and that everything moves in contiguous memory."""

    made: ClassVar[list[KVLog]] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made.append(self)


@pytest.fixture
def logs(monkeypatch):
    monkeypatch.setattr(reverse, "KVLog", SeenLog)
    SeenLog.made.clear()
    return SeenLog.made


@pytest.mark.parametrize("place", ["device", "host"])
def test_the_log_holds_every_token_once_and_no_others(place, logs):
    model = tiny_model(window=3)
    lengths = [5, 11, 8]
    rollouts = [
        tc.rollout(model, [prompt], max_new_tokens=length, ignore_eos=True)[0]
        for prompt, length in zip(PROMPTS, lengths, strict=True)
    ]
    tc.replay(model, rollouts, kv_log=place, chunk_tokens=1)
    (log,) = logs
    tokens = max(len(prompt) for prompt in PROMPTS) * 3 + sum(length - 1 for length in lengths)
    config = model.config
    assert log.num_bytes == 2 * config.num_hidden_layers * tokens * config.num_key_value_heads * 4 * 8


class Copies(TorchDispatchMode):
    """Layouts of the log's side of all copies to it, and of everything that is taken from it."""

    def __init__(self, logs):
        super().__init__()
        self.logs, self.written, self.read = logs, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kept = {id(tensor.untyped_storage()) for log in self.logs for pair in log.layers for tensor in pair}
        if func is torch.ops.aten.copy_.default and id(args[0].untyped_storage()) in kept:
            self.written.append(args[0].is_contiguous())
        if func is torch.ops.aten.slice.Tensor and id(args[0].untyped_storage()) in kept and args[0].ndim == 3:
            self.read.append(func(*args, **(kwargs or {})).is_contiguous())
        return func(*args, **(kwargs or {}))


def test_what_moves_between_device_and_host_is_contiguous(logs):
    # Otherwise the copies on CUDA would go through memory that is not pinned, and the CPU would wait for each.
    model, rollouts = case()
    with Copies(logs) as copies:
        tc.replay(model, rollouts, kv_log="host", chunk_tokens=2).logprobs.sum().backward()
    assert copies.written
    assert all(copies.written)
    assert copies.read
    assert all(copies.read)


def test_unknown_options_are_refused():
    model, rollouts = case()
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1 or None, got 0"):
        tc.replay(model, rollouts, chunk_tokens=0)
    with pytest.raises(ValueError, match="checkpoint_layers=True goes with recompute=True"):
        tc.replay(model, rollouts, checkpoint_layers=True, recompute=False)
    with pytest.raises(ValueError, match=r'kv_log=.disk. is not known; use "device" or "host"'):
        check_place("disk")
