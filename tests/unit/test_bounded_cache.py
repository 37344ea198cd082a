"""What transformers' cache methods do to a bounded cache: states move with keys, or the call is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.cache_utils import Cache

import thoughtcache as tc
from support.caches import given
from support.compare import assert_close
from support.models import VOCABULARY, tiny_model
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.cache.base import StatefulCache
from thoughtcache.cache.generate_cache import BoundedCache
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.slots.slot_cache import SlotCache
from thoughtcache.sampler.slots.table import SlotTable

PROMPT, NEW_TOKENS, WINDOW = 4, 12, 5
METHODS = ("reset", "reorder_cache", "crop", "batch_repeat_interleave", "batch_select_indices")


def new_cache(model: Any) -> BoundedCache:
    cache = model.base_model.new_cache(
        CacheSettings(window=WINDOW, num_evicted=2, eviction="sliding"), max_new_tokens=40
    )
    assert isinstance(cache, BoundedCache)
    return cache


def feed(model: Any, cache: BoundedCache, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a prompt at once and further tokens one by one."""
    found = []
    with torch.no_grad():
        if not cache.get_seq_length():
            found.append(model(input_ids=tokens[:, :PROMPT], **given(model, cache)).logits)
            tokens = tokens[:, PROMPT:]
        found += [model(input_ids=column[:, None], **given(model, cache)).logits for column in tokens.T]
    return torch.cat(found, dim=1)


def rows(count: int, length: int = PROMPT + NEW_TOKENS, seed: int = 0) -> torch.Tensor:
    return torch.randint(VOCABULARY, (count, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("change", "order"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reorder_cache", "batch_select_indices", "batch_repeat_interleave"],
)
@pytest.mark.parametrize(
    "length", [PROMPT, PROMPT + 3, PROMPT + NEW_TOKENS], ids=["prompt", "no eviction", "evictions"]
)
def test_rows_move_with_their_states(change, order, length):
    model, history, more = tiny_model(), rows(3, length), rows(len(order), 9, seed=1)
    cache = new_cache(model)
    feed(model, cache, history)
    change(cache)
    found = feed(model, cache, more)
    expected = feed(model, new_cache(model), torch.cat([history[order], more], dim=1))
    assert_close(found, expected[:, length:])
    wrong = feed(model, new_cache(model), torch.cat([history[:1].expand(len(order), -1), more], dim=1))
    assert (wrong[:, length:] - expected[:, length:]).abs().max() > 1e-3, "the rows are too much alike"


def test_one_row_is_repeated():
    """The initial state has one row for all; so has a cache of one row."""
    model, history, more = tiny_model(), rows(1), rows(3, 9, seed=1)
    cache = new_cache(model)
    feed(model, cache, history)
    cache.batch_repeat_interleave(3)
    expected = feed(model, new_cache(model), torch.cat([history.expand(3, -1), more], dim=1))
    assert_close(feed(model, cache, more), expected[:, -9:])


def test_reset_is_a_new_cache():
    model, first, second = tiny_model(), rows(2), rows(3, seed=1)
    cache = new_cache(model)
    feed(model, cache, first)
    assert cache.num_evictions
    cache.reset()
    assert (cache.get_seq_length(), cache.physical_length, cache.prompt_length, cache.num_evictions) == (0, 0, 0, 0)
    assert torch.equal(feed(model, cache, second), feed(model, new_cache(model), second))


def test_an_empty_cache_is_changed_without_harm():
    model, tokens = tiny_model(), rows(2)
    cache = new_cache(model)
    cache.reset()
    cache.reorder_cache(torch.tensor([0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    assert torch.equal(feed(model, cache, tokens), feed(model, new_cache(model), tokens))


def test_crop_is_refused():
    model = tiny_model()
    cache = new_cache(model)
    feed(model, cache, rows(1))
    cache.crop(0)
    with pytest.raises(ValueError, match=r"crop\(-1\).*cannot come back.*new cache"):
        cache.crop(-1)
    assert not cache.is_croppable


@pytest.mark.parametrize("method", METHODS)
def test_the_other_caches_refuse(method):
    tuner = tiny_model().base_model
    arguments = {"reset": (), "crop": (-1,), "batch_repeat_interleave": (1,)}.get(method, (torch.tensor([0]),))
    slots = SlotCache(
        num_layers=2, table=SlotTable(1, torch.device("cpu")), room=(1, 2), initial_states=None,
        reader=tuner.memory().reader(), rules=new_cache(tiny_model()).rules,
    )  # fmt: skip
    for cache in (ReplayCache(2, None, 0, tuner.initial_states(), tuner.memory().reader()), slots):
        with pytest.raises(ValueError, match=rf"{type(cache).__name__}.{method}"):
            getattr(cache, method)(*arguments)


def test_every_method_that_changes_a_cache_of_transformers_is_decided():
    """A new one would move keys and leave the states where they are."""
    harmless = {
        "offload", "prefetch", "update", "update_conv_state", "update_recurrent_state", "update_indexer",
        "early_initialization", "activate_past_recording",
    }  # fmt: skip
    reading = {name for name in vars(Cache) if name.startswith(("get_", "is_", "has_"))} | {"batch_size"}
    public = {name for name in vars(Cache) if not name.startswith("_")}
    assert public - harmless - reading <= {*METHODS, "max_cache_len", "max_batch_size"}
    assert set(METHODS) <= set(vars(StatefulCache))


def test_rows_move_with_the_positions_of_their_prompts():
    """Prompts of unequal lengths, padded: keys are un-rotated by positions of their own row."""
    model = tiny_model(window=4, memory="attention", memory_features=6, evict_fraction=0.5)
    prompts, thoughts = [[3, 1, 4], [6, 5, 2, 8, 7]], torch.randint(3, 20, (2, 9))

    def run(order, moved_after):
        tuner = model.base_model
        cache = new_cache(model)
        ids = torch.tensor([[0] * (5 - len(prompts[row])) + prompts[row] for row in order])
        mask = (torch.arange(5) >= 5 - torch.tensor([[len(prompts[row])] for row in order])).long()
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        rows = torch.tensor(order)
        with torch.no_grad():
            for step in range(10):
                hidden = tuner.backbone(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=True,
                    **cache_keyword(tuner.backbone, cache),
                ).last_hidden_state[:, -1]
                if step == moved_after:
                    cache.reorder_cache(torch.tensor([1, 0]))
                    rows, mask, positions = rows.flip(0), mask.flip(0), positions.flip(0)
                if step < 9:
                    ids = thoughts[rows, step : step + 1]
                    mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
                    positions = positions[:, -1:] + 1
        return hidden

    assert_close(run([0, 1], 1), run([1, 0], None))
    assert_close(run([0, 1], 6), run([1, 0], None))


def test_a_cache_of_another_adapter_is_refused():
    model = tiny_model(window=4)
    cache, tokens = new_cache(model), rows(2)
    feed(model, cache, tokens)
    model.add_adapter("other", tc.ThoughtConfig(r=3, num_global_tokens=5, window=4))
    feed(model, cache, tokens[:, :1])
    model.set_adapter("other")
    with pytest.raises(ValueError, match=r"holds states of the adapter 'default', and \['other'\] is active"):
        feed(model, cache, tokens[:, :1])


def test_without_its_adapter_a_cache_shows_no_memory():
    model = tiny_model(window=4, memory="attention", memory_features=6, evict_fraction=0.5)
    cache = new_cache(model)
    with torch.no_grad():
        for column in range(9):
            model.base_model.backbone(
                input_ids=rows(1)[:, column % 3 : column % 3 + 1],
                use_cache=True,
                **cache_keyword(model.base_model.backbone, cache),
            )
    assert cache.num_evictions > 1
    read = []
    hook = model.base_model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: read.append("thought_memory" in kwargs), with_kwargs=True
    )
    ids = rows(1)[:, :1]
    with torch.no_grad():
        with model.disable_adapter():
            model.base_model.backbone(input_ids=ids, use_cache=True, **cache_keyword(model.base_model.backbone, cache))
        model.base_model.backbone(input_ids=ids, use_cache=True, **cache_keyword(model.base_model.backbone, cache))
    hook.remove()
    assert read == [False, True]
