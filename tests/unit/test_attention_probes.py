"""Shares of attention that come back, and sinks: each against loops over tokens and heads."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from support.models import adapt, tiny_base, tiny_model
from support.registered_policies import install_policies
from support.texts import Text, texts_of
from thoughtcache.cache.rotation import naive_turn
from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.given import given_text, rollouts_of_given, with_own_evictions
from thoughtcache.state.attention.naive import naive_features, naive_read, naive_write
from thoughtcache.state.unwritten import Unwritten
from thoughtcache.studies import attention_share, passes, sinks
from thoughtcache.studies.attention_share import MEMORY, _share, probe_attention_share, squared_distances
from thoughtcache.studies.parts import parts_of
from thoughtcache.studies.passes import pieces_of_texts, texts_under
from thoughtcache.studies.sinks import FULL, OWN, WINDOW, masses, probe_sinks

ATTENTION: dict[str, Any] = {"memory": "attention", "memory_features": 6}
BOTH: dict[str, Any] = {"memory": "both", "memory_features": 6}


def model_of(**options: Any) -> Any:
    return tiny_model(window=5, evict_fraction=0.4, **options)


def rollouts_of(model: Any, texts: list[Text]) -> Any:
    cache = find_tuner(model).thought_config.resolve_window(None)
    return with_own_evictions(model, texts_under(texts, cache))


def full_inputs(model: Any, texts: list[Text]) -> tuple[list[Tensor], list[Tensor]]:
    (piece,) = pieces_of_texts(model, rollouts_of(model, texts), full_cache=True)
    return piece.inputs, piece.outputs


def layer_by_loops(
    model: Any, layer: int, x: Tensor, prompt: int, window: int | None, num_evicted: int, written: bool
) -> tuple[Tensor, list[int]]:
    """What comes out of the attention of one layer for inputs x [C, hidden], and before which columns tokens leave."""
    tuner = find_tuner(model)
    block, weights = tuner.backbone.layers[layer].self_attn, tuner.memory_weights()[layer]
    frequencies, size = tuner.backbone.rotary_emb.inv_freq, block.head_dim
    S, inside, outputs, events = torch.zeros(weights.shape.state_shape, dtype=x.dtype), list[int](), [], []
    plain = {name: getattr(block, f"{name}_proj")(x).view(len(x), -1, size) for name in "qkv"}
    turned = {
        name: torch.stack([torch.stack([naive_turn(head, c, frequencies) for head in heads]) for c, heads in
                           enumerate(plain[name])])
        for name in "qk"
    }  # fmt: skip
    for column in range(len(x)):
        if window is not None and column >= prompt and len(inside) - prompt == window:
            gone = inside[prompt : prompt + num_evicted]
            inside = inside[:prompt] + inside[prompt + num_evicted :]
            events.append(column)
            if written:
                S = naive_write(weights, S, [list(plain["k"][c]) for c in gone], [list(plain["v"][c]) for c in gone])
        inside.append(column)
        heads = []
        for head, q in enumerate(turned["q"][column]):
            group = head // (turned["q"].shape[1] // turned["k"].shape[1])
            p = torch.stack([q @ turned["k"][c, group] * block.scaling for c in inside]).softmax(dim=0)
            heads.append(sum(one * plain["v"][c, group] for one, c in zip(p, inside, strict=True)))
        o = torch.stack(heads)
        if events:
            o = naive_read(weights, S, plain["q"][column], o)
        outputs.append(block.o_proj(o.flatten()))
    return torch.stack(outputs), events


@torch.no_grad()
def test_shares_are_those_of_the_definition():
    """Every layer by loops over tokens, heads and texts, on the inputs that it has with the full cache."""
    model, texts, told = model_of(**ATTENTION), texts_of(3), []
    full = torch.zeros(2, 3)
    window, memory = torch.zeros(2, 3), torch.zeros(2, 3)
    for row, (prompt, thoughts) in enumerate(texts):
        inputs, outputs = full_inputs(model, [(prompt, thoughts)])
        for layer in range(2):
            arguments = (model, layer, inputs[layer][0], len(prompt))
            expected, _ = layer_by_loops(*arguments, None, 0, False)
            torch.testing.assert_close(outputs[layer][0], expected)
            without, events = layer_by_loops(*arguments, 5, 2, False)
            with_it, _ = layer_by_loops(*arguments, 5, 2, True)
            counts = slice(events[0], None)
            full[layer, row] = (expected[counts] ** 2).sum()
            window[layer, row] = ((expected - without)[counts] ** 2).sum()
            memory[layer, row] = ((expected - with_it)[counts] ** 2).sum()
    found = probe_attention_share(model, texts, batch_size=2, progress=told.append)
    assert told == [2, 1]
    assert [(one.cache, one.layer) for one in found] == [
        (cache, layer) for cache in (MEMORY, "window 9, sliding") for layer in range(2)
    ]
    for layer, one in enumerate(found[:2]):
        assert one.lost == pytest.approx((window[layer].sum() / full[layer].sum()).item(), rel=1e-5)
        assert one.share == pytest.approx(1 - (memory[layer].sum() / window[layer].sum()).item(), rel=1e-5)
        assert one.low < one.share < one.high
        assert one.texts == 3


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, ATTENTION, BOTH, {**BOTH, "eviction": "snapkv"}, {**BOTH, "eviction": "snapkv", "positions": "rolling"}],
)
def test_a_layer_with_its_own_inputs_gives_its_own_outputs(options):
    """With every memory and prompts of unequal lengths: nothing is lost between a run and what is forced."""
    model = model_of(**options)
    rollouts = rollouts_of(model, texts_of(3))
    pieces = list(pieces_of_texts(model, rollouts))
    inputs, outputs = (
        [torch.cat([getattr(piece, name)[layer] for piece in pieces], dim=1) for layer in range(2)]
        for name in ("inputs", "outputs")
    )
    assert squared_distances(model, rollouts, inputs, outputs, 0, None).abs().max() < 1e-24
    shifted = [value + 0.01 for value in inputs]
    assert squared_distances(model, rollouts, shifted, outputs, 0, None).min() > 1e-8


def test_the_interval_of_a_ratio_by_hand():
    """Errors 1 and 3 of losses 4 and 4: half is given back, and texts differ by a quarter each way."""
    found = _share(0, "window", [10.0, 10.0], [4.0, 4.0], [1.0, 3.0])
    assert (found.lost, found.share) == (0.4, 0.5)
    low, high = mean_interval([-0.25, 0.25])
    assert (found.low, found.high) == pytest.approx((0.5 + low, 0.5 + high))


def test_windows_of_any_policy_stand_beside_it(tmp_path, monkeypatch):
    """One that no other study has, one of another package, and one that is named twice."""
    install_policies(tmp_path, monkeypatch)
    model = model_of(**ATTENTION)
    found = probe_attention_share(model, texts_of(3), policies=("largest-values", "tova", "tova"))
    assert [one.cache for one in found[::2]] == [MEMORY, "window 9, largest-values", "window 9, tova"]
    assert found[2].share != found[4].share


def test_only_inputs_and_outputs_of_pieces_are_kept(monkeypatch):
    """Each piece holds keys and values of all columns before it."""
    model, seen, most = model_of(**ATTENTION), list[weakref.ref[Any]](), list[int]()

    def watched(*args: Any, **options: Any) -> Any:
        for piece in pieces_of_texts(*args, **options):
            most.append(sum(one() is not None for one in seen))
            if options.get("full_cache"):
                seen.append(weakref.ref(piece))
            yield piece

    whole = probe_attention_share(model, texts_of(3))
    monkeypatch.setattr(passes, "CHUNK_TOKENS", 3)
    monkeypatch.setattr(attention_share, "pieces_of_texts", watched)
    found = probe_attention_share(model, texts_of(3))
    assert len(seen) > 4
    assert max(most) == 1, "the piece before the newest one is all that may be left"
    for one, expected in zip(found, whole, strict=True):
        assert (one.share, one.lost) == pytest.approx((expected.share, expected.lost))


def test_what_gives_nothing_back_is_refused():
    plain = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    with pytest.raises(ValueError, match="no eviction changes the states of this adapter"):
        probe_attention_share(plain, texts_of(3))
    with pytest.raises(ValueError, match="two texts are the least for an interval, got 1"):
        probe_attention_share(model_of(), texts_of(1))
    with pytest.raises(ValueError, match="eviction='lru' is not known"):
        probe_attention_share(model_of(), texts_of(3), policies=("lru",))
    with pytest.raises(ValueError, match="nothing is evicted"):
        probe_attention_share(model_of(), texts_of(3, length=6))


def test_masses_by_loops():
    queries, keys = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 2, 6, 5, dtype=torch.float64)
    exists = torch.arange(6) >= torch.tensor([[0], [2]])
    groups = torch.zeros(2, 6, 2, dtype=torch.bool)
    groups[0, :2, 0] = groups[1, 2:4, 0] = groups[:, 4:, 1] = True
    found, size = masses(queries, keys, exists, 0.7, groups)
    for row, head, query in ((row, head, query) for row in range(2) for head in range(4) for query in range(3)):
        weights = [
            float((0.7 * queries[row, head, query] @ keys[row, head // 2, column]).exp())
            if exists[row, column] and column <= 3 + query
            else 0.0
            for column in range(6)
        ]
        assert size[row, head, query].exp().item() == pytest.approx(sum(weights))
        for group in range(2):
            inside = sum(one for column, one in enumerate(weights) if groups[row, column, group])
            assert found[row, head, query, group].item() == pytest.approx(inside / sum(weights))


@torch.no_grad()
@pytest.mark.parametrize("read", ["balanced", "joint", "added"])
def test_the_mass_that_a_memory_takes_by_loops(read):
    """`w phi(q)^T z` beside one, beside the window's own sum, or nothing at all."""
    model, texts = model_of(**ATTENTION, memory_read=read), texts_of(2)
    tuner = find_tuner(model)
    (part,) = parts_of(tuner.memory())
    frequencies = tuner.backbone.rotary_emb.inv_freq
    piece = list(pieces_of_texts(model, rollouts_of(model, texts)))[-1]
    size = torch.randn(2, 4, piece.queries[1].shape[2], dtype=torch.float64)
    found = sinks.window_mass(part, piece, 1, piece.queries[1], size)
    weights, states = tuner.memory_weights()[1], piece.leaving.states[1]
    for row in range(2):
        for head in range(4):
            for column, query in enumerate(piece.queries[1][row, head]):
                q = naive_turn(query, -int(piece.positions[row, column]), frequencies)
                phi = naive_features(weights, weights.query_features[head], q)
                share = float(weights.log_weight[head].exp() * (phi @ states[row, head // 2, :, -1]).clamp_min(0))
                beside = {"balanced": 1.0, "joint": float(size[row, head, column].exp()), "added": 0.0}[read]
                expected = beside / (beside + share) if beside else 1.0
                assert found[row, head, column].item() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
def test_masses_of_the_full_cache_are_those_of_the_model():
    """transformers' own attention weights, text by text; in batches prompts are padded."""
    model, texts = model_of(**ATTENTION), texts_of(4, prompt=2)
    found = probe_sinks(model, texts, num_first=2, tolerance=0.05, batch_size=3)
    assert [one.cache for one in found] == [cache for cache in (FULL, WINDOW, OWN) for _ in range(8)]
    expected = torch.zeros(2, 4, 2, dtype=torch.float64)
    eager = tiny_base()
    eager.config._attn_implementation = "eager"
    adapted = adapt(eager, window=5, evict_fraction=0.4, **ATTENTION)
    adapted.load_state_dict(model.state_dict())
    find_tuner(adapted).peft_config["default"].window = None
    for prompt, thoughts in texts:
        ids = torch.tensor([[*prompt, *thoughts[:-1]]])
        for layer, weights in enumerate(adapted(ids, output_attentions=True).attentions):
            seen = weights[0, :, len(prompt) + 5 :]  # the window of 5 is full when thought 5 is processed
            expected[layer, :, 0] += seen[..., :2].sum(dim=-1).mean(dim=-1) / 4
            expected[layer, :, 1] += seen[..., 2 : len(prompt)].sum(dim=-1).mean(dim=-1) / 4
    for one in found[:8]:
        assert (one.first, one.question) == pytest.approx(expected[one.layer, one.head].tolist())
        assert (one.memory, one.moved, one.is_flagged) == (0.0, 0.0, False)
    for one in found[8:]:
        # transformers' own softmax is in fp32.
        assert one.moved == pytest.approx(one.first - expected[one.layer, one.head, 0].item(), abs=1e-6)
        assert one.is_flagged == (abs(one.moved) > 0.05)
        assert (one.memory > 0) == (one.cache == OWN)
    assert {one.is_flagged for one in found[8:]} == {True, False}


def test_sinks_without_a_memory_or_without_an_eviction():
    plain = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    assert {one.cache for one in probe_sinks(plain, texts_of(2), num_first=1)} == {FULL, WINDOW}
    with pytest.raises(ValueError, match="nothing is evicted"):
        probe_sinks(plain, texts_of(2, length=6), num_first=1)
    with pytest.raises(ValueError, match="num_first must be between 1 and 1, the tokens of the shortest prompt, got 2"):
        probe_sinks(plain, texts_of(2), num_first=2)
    with pytest.raises(ValueError, match="tolerance must lie between 0 and 1"):
        probe_sinks(plain, texts_of(2), num_first=1, tolerance=1.5)
    full = tiny_model(window=None)
    with pytest.raises(ValueError, match="window=None evicts nothing"):
        probe_sinks(full, texts_of(2), num_first=1)


def test_given_texts_are_read_as_they_are():
    """The pieces of a text have the states of the sampler."""
    model, texts = model_of(**BOTH), texts_of(2)
    cache = find_tuner(model).thought_config.resolve_window(None)
    sampled = rollouts_of_given(model, [given_text(*text, cache, seed=0) for text in texts])
    pieces = [piece for piece in pieces_of_texts(model, texts_under(texts, cache)) if piece.chunk.evicts]
    for event, piece in enumerate(pieces):
        for layer, state in enumerate(piece.leaving.states):
            for row in range(2):
                torch.testing.assert_close(state[row], sampled[row].states[event, layer], rtol=0, atol=1e-12)


@pytest.mark.parametrize("options", [{}, ATTENTION, BOTH])
def test_an_unwritten_memory_keeps_its_start(options):
    """In pieces and in loops; it reads as the other one does."""
    model = model_of(**options)
    memory = find_tuner(model).memory()
    unwritten = Unwritten(memory)
    assert unwritten.absorber() is None
    assert unwritten.state_bytes == 0
    assert unwritten.parameters() == memory.parameters()
    assert type(unwritten.reader()) is type(memory.reader())
    assert type(unwritten.naive_reader()) is type(memory.naive_reader())
    start = [state[0] for state in memory.initial_states()]
    for layer, state in enumerate(unwritten.naive_initial_states()):
        torch.testing.assert_close(state, start[layer])
        assert unwritten.naive_absorb(layer, state, []) is state
    for piece in pieces_of_texts(model, rollouts_of(model, texts_of(2)), memory=unwritten):
        assert all(torch.equal(state[0], start[layer]) for layer, state in enumerate(piece.leaving.states))
