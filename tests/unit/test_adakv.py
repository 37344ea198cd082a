"""Budgets by kv head within layers, and the scores that AdaKV's count makes."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import thoughtcache as tc
from support.eager import eager_attention
from support.models import adapt, tiny_base
from thoughtcache.cache.budgets.adakv import AdaKVBudgets
from thoughtcache.cache.budgets.base import rows_on_grid
from thoughtcache.cache.schedule import evict_count

SCORES = [[1.0, 1.0], [1.0, 3.0]]


def test_shares_by_hand():
    """W = 16, E = 2, alpha = 1/2: 14 stay, of which 7 are safe; the others go 1 to 1 and 1 to 3 of 14 per layer.

    Wanted are 14, 14 and 10.5, 17.5. In steps of two from 14 the smallest kept part is 10; above it 2, 2 and 0.25, 3.75
    steps become 2, 2 and 0, 4 of sum 4.
    """
    rule = AdaKVBudgets(alpha=0.5)
    assert rule.wanted(SCORES, 14) == [[14, 14], [Fraction(21, 2), Fraction(35, 2)]]
    assert rule.wanted([[0.0, 0.0], [0.0, 2.0]], 14) == [[14, 14], [7, 21]]
    assert tc.adakv_budgets(SCORES, window=16, evict_fraction=0.125, alpha=0.5) == [[16, 16], [12, 20]]
    # Nothing is safe: 7 and 21 are wanted, 0.5 and 7.5 steps above 6, and of equal rests the earlier head gets more.
    assert tc.adakv_budgets(SCORES, window=16, evict_fraction=0.125, alpha=0.0) == [[16, 16], [10, 22]]


@given(
    layers=st.integers(1, 5),
    heads=st.integers(1, 5),
    window=st.integers(6, 300),
    evict_fraction=st.floats(0.01, 0.4),
    alpha=st.floats(0.0, 0.9),
    seed=st.integers(0, 1000),
)
def test_every_layer_has_its_total_and_all_share_one_grid(layers, heads, window, evict_fraction, alpha, seed):
    scores = torch.rand(layers, heads, generator=torch.Generator().manual_seed(seed)).tolist()
    num_evicted = evict_count(window, evict_fraction)
    wanted = AdaKVBudgets(alpha=alpha).wanted(scores, window - num_evicted)
    assume(len({size for row in rows_on_grid(wanted, window, num_evicted) for size in row}) > 1)  # else it is refused
    budgets = tc.adakv_budgets(scores, window=window, evict_fraction=evict_fraction, alpha=alpha)
    assert [sum(row) for row in budgets] == [heads * window] * layers
    smallest = min(min(row) for row in budgets)
    assert smallest > num_evicted
    assert not any((size - smallest) % num_evicted for row in budgets for size in row)


def test_a_name_becomes_the_numbers_of_its_file(tmp_path):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(SCORES))
    options: dict[str, Any] = {"window": 16, "evict_fraction": 0.125}
    config = tc.ThoughtConfig(**options, eviction_budgets=f"adakv:scores={file},alpha=0.5")
    assert config.eviction_budgets == tc.adakv_budgets(SCORES, **options, alpha=0.5)
    for text, message in {
        f"adakv:scores={file},beta=2": r"'beta=2' is no setting of 'adakv'; it has scores=FILE, alpha=0.2, group=1",
        f"adakv:scores={file},alpha=1": r"alpha must be from 0 to below 1, got 1; 0.2 is the published share",
        f"adakv:scores={file},group=0": "group must be at least 1 query head of a kv head, got 0",
        f"adakv:scores={file},alpha=0.99": r"comes to even budgets .* lower evict_fraction or alpha, or raise the",
    }.items():
        with pytest.raises(ValueError, match=message):
            tc.ThoughtConfig(**options, eviction_budgets=text)


def test_pooled_attention_by_loops():
    """transformers' own weights: of the six largest of both heads of a layer, how many are of each."""
    texts = [([3, 1, 4], [5, 9, 2, 6, 5, 3, 5, 8]), ([7], [1, 8, 2, 8, 1, 8, 2, 8]), ([2, 7], [9, 0, 4, 5, 2, 3, 5, 3])]
    options: dict[str, Any] = {"window": 4, "evict_fraction": 0.25, "initial_state": "zero"}
    model, told = adapt(tiny_base(), **options), []
    found = tc.probe_pooled_attention(model, texts, batch_size=2, progress=told.append)
    assert told == [2, 1]
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for start, layers in eager_attention(model, texts, **options):
        for layer, weights in enumerate(layers):
            for query in range(start + 4, weights.shape[-1]):
                pooled = [
                    ((weights[0, 2 * head, query, column] + weights[0, 2 * head + 1, query, column]).item(), head)
                    for head in range(2)
                    for column in range(start, query + 1)
                ]
                for _, head in sorted(pooled, reverse=True)[:6]:  # three stay in each of two heads
                    expected[layer, head] += 1 / 6 / 3 / 3  # largest weights, queries, texts
    assert torch.tensor(found, dtype=torch.float64) == pytest.approx(expected, abs=1e-6)
    assert [sum(row) for row in found] == pytest.approx([1.0, 1.0])
    with pytest.raises(ValueError, match="nothing is evicted; give longer texts"):
        tc.probe_pooled_attention(model, [([3], [1, 2, 3])])
