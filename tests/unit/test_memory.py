"""The closed form of the KV cache, and the measured peak of a block."""

from __future__ import annotations

import time

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from thoughtcache import ThoughtConfig
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.measuring.peak_memory import MIB, PeakMemory
from thoughtcache.planning.memory.kv_cache import kv_cache_bytes
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=40,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=10,
    )


def test_kv_cache_by_hand():
    # 2 (keys and values) x 3 layers x 5 rows x 7 tokens x 2 heads x 10 numbers of 2 bytes
    assert kv_cache_bytes(tiny_config(), tokens=7, batch=5, dtype=torch.bfloat16) == 2 * 3 * 5 * 7 * 2 * 10 * 2
    assert kv_cache_bytes(tiny_config(), tokens=0, batch=5, dtype=torch.float32) == 0
    with pytest.raises(ValueError, match="tokens=-1"):
        kv_cache_bytes(tiny_config(), tokens=-1, batch=5, dtype=torch.float32)


def test_kv_cache_without_a_head_size_in_the_configuration():
    config = tiny_config()
    config.head_dim = None
    assert kv_cache_bytes(config, tokens=1, batch=1, dtype=torch.float64) == 2 * 3 * 2 * (24 // 4) * 8


def test_kv_cache_equals_the_buffers_of_the_bounded_cache():
    prompt, window, batch = 5, 4, 2
    model = peft.get_peft_model(LlamaForCausalLM(tiny_config()), ThoughtConfig(r=3, num_global_tokens=2, window=window))
    tuner = find_tuner(model)
    cache = tuner.new_cache(CacheSettings(window=window, num_evicted=1, eviction="sliding"), max_new_tokens=63)
    with torch.no_grad():
        model(input_ids=torch.ones(batch, prompt, dtype=torch.long), **cache_keyword(tuner.model, cache))
    measured = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert measured == kv_cache_bytes(tiny_config(), tokens=prompt + window, batch=batch, dtype=torch.float32)


def test_a_temporary_allocation_is_seen():
    with PeakMemory(interval_seconds=0.001) as memory:
        block = torch.ones(64 * MIB // 4)
        time.sleep(0.2)
        del block
    # Gone at the exit, so only sampling can have seen it. Other allocations of the process are a few MiB.
    assert 60 <= memory.peak_mib <= 80
    assert memory.baseline_mib > 10


def test_what_was_there_before_does_not_count():
    before = torch.ones(64 * MIB // 4)
    with PeakMemory() as memory:
        time.sleep(0.02)
    assert memory.peak_mib < 16
    assert memory.baseline_mib > before.nbytes / MIB


def test_the_last_moment_counts_without_any_sample():
    with PeakMemory(interval_seconds=60.0) as memory:
        block = torch.ones(64 * MIB // 4)
    assert memory.peak_mib >= 60
    assert block.nbytes == 64 * MIB


def test_it_measures_again_and_lets_errors_pass():
    memory = PeakMemory()
    with pytest.raises(RuntimeError, match="inside"), memory:
        raise RuntimeError("inside")
    with memory:
        block = torch.ones(64 * MIB // 4)
        del block
    assert 0 <= memory.peak_mib <= 80


def test_refusals():
    with pytest.raises(ValueError, match="'meta'"):
        PeakMemory("meta")
    with pytest.raises(ValueError, match="interval_seconds must"):
        PeakMemory(interval_seconds=0.0)
