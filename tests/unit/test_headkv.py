"""Budgets by kv head from scores of heads, and scores from a model's own attention."""

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
from support.models import adapt, tiny_base, tiny_model
from thoughtcache.cache.budgets.base import on_grid
from thoughtcache.cache.budgets.headkv import HeadKVBudgets, headkv_budgets, wanted_by_score
from thoughtcache.cache.schedule import evict_count

SCORES = [[1.0, 1.0], [2.0, 4.0]]


def test_shares_by_hand():
    """W = 8, E = 2: 6 stay, of which beta = 2 leaves 6 - 6 // 2 = 3 to each and puts 3 x 4 = 12 into the pool.

    In a grid of two the smallest kept part is 4, and (0.25, 0.25, 1, 2.5) become 0, 0, 1, 3 of sum 4.
    """
    assert wanted_by_score([1.0, 1.0, 2.0, 4.0], 6, beta=2.0, temperature=1.0) == [Fraction(9, 2), Fraction(9, 2), 6, 9]
    assert headkv_budgets(SCORES, window=8, evict_fraction=0.25) == [[6, 6], [8, 12]]
    # Squared scores are 1, 1, 4, 16: the last head takes more.
    assert headkv_budgets(SCORES, window=8, evict_fraction=0.25, temperature=2.0)[1][1] > 12
    # A large beta shares out little; below it one comes back to even budgets, which is refused.
    with pytest.raises(ValueError, match=r"comes to even budgets at window=8 with 2 thoughts that leave at once"):
        headkv_budgets(SCORES, window=8, evict_fraction=0.25, beta=7.0)


@given(
    rows=st.integers(1, 6),
    heads=st.integers(1, 5),
    window=st.integers(6, 300),
    evict_fraction=st.floats(0.01, 0.4),
    beta=st.floats(1.0, 4.0),
    seed=st.integers(0, 1000),
)
def test_the_total_and_the_grid(rows, heads, window, evict_fraction, beta, seed):
    scores = torch.rand(rows, heads, generator=torch.Generator().manual_seed(seed)).tolist()
    num_evicted = evict_count(window, evict_fraction)
    flat_scores = [score for row in scores for score in row]
    wanted = wanted_by_score(flat_scores, window - num_evicted, beta=beta, temperature=1.0)
    assume(len(set(on_grid(wanted, window, num_evicted))) > 1)  # else it is refused
    budgets = headkv_budgets(scores, window=window, evict_fraction=evict_fraction, beta=beta)
    flat = [size for row in budgets for size in row]
    assert [len(row) for row in budgets] == [heads] * rows
    assert sum(flat) == rows * heads * window
    assert min(flat) > num_evicted
    assert not any((size - min(flat)) % num_evicted for size in flat)


def test_a_name_becomes_the_numbers_of_its_file(tmp_path):
    """The configuration keeps the budgets, so that a saved adapter needs no file."""
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(SCORES))
    options: dict[str, Any] = {"window": 8, "evict_fraction": 0.25}
    model = tiny_model(**options, eviction="h2o", eviction_budgets=f"headkv:scores={file},beta=2")
    config = model.base_model.thought_config
    assert config.eviction_budgets == [[6, 6], [8, 12]]
    assert config.resolve_window(None).head_budgets == ((6, 6), (8, 12))
    # Scores of query heads: the mean over those of a kv head.
    file.write_text(json.dumps([[0.5, 1.5, 1.0, 1.0], [1.0, 3.0, 8.0, 0.0]]))
    grouped = tc.ThoughtConfig(**options, eviction_budgets=f"headkv:scores={file},group=2")
    assert grouped.eviction_budgets == [[6, 6], [8, 12]]


@pytest.mark.parametrize(
    ("text", "content", "message"),
    [
        ("headkv", None, r"'headkv' needs scores: headkv:scores=FILE"),
        ("headkv:scores={},alpha=1", SCORES, r"'alpha=1' is no setting of 'headkv'; it has scores=FILE, beta=2, temp"),
        ("headkv:scores={},beta=low", SCORES, r"'beta=low' is no setting"),
        ("headkv:scores={},beta=0.5", SCORES, r"beta must be at least 1, got 0.5; at 1 all"),
        ("headkv:scores={},temperature=0", SCORES, r"temperature must be positive, got 0"),
        ("headkv:scores={},group=3", SCORES, r"group=3 query heads to a kv head do not divide the 2 scores of a layer"),
        ("headkv:scores={}", [[1.0], [1.0, 2.0]], r"must be lists of equally many numbers of at least 0, one list per"),
        ("headkv:scores={}", [[1.0, -1.0]], r"must be lists of equally many numbers of at least 0"),
        ("headkv:scores={}", {"0": 1}, r"must be lists of equally many numbers of at least 0"),
        ("headkv:scores={}", [[0.0, 0.0]], r"are all 0"),
        ("headkv:scores=missing.json", None, r"missing.json cannot be read as JSON"),
    ],
)
def test_what_is_refused(tmp_path, text, content, message):
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        tc.ThoughtConfig(window=8, evict_fraction=0.25, eviction_budgets=text.replace("{}", str(file)))


def test_a_window_that_is_not_known_yet_is_refused():
    with pytest.raises(ValueError, match=r"needs a window that is an integer, got window='prompt'"):
        tc.ThoughtConfig(window="prompt", eviction_budgets="headkv:scores=missing.json")
    assert HeadKVBudgets(beta=1.5).temperature == 1.0


def test_far_attention_by_loops():
    """transformers' own weights: what every query past the window gives to thoughts that are further back than it."""
    texts = [([3, 1, 4], [5, 9, 2, 6, 5, 3, 5, 8]), ([7], [1, 8, 2, 8, 1, 8, 2, 8]), ([2, 7], [9, 0, 4, 5, 2, 3, 5, 3])]
    options: dict[str, Any] = {"window": 4, "evict_fraction": 0.25, "initial_state": "zero"}
    model, told = adapt(tiny_base(), **options), []
    found = tc.probe_far_attention(model, texts, batch_size=2, progress=told.append)
    assert told == [2, 1]
    expected = torch.zeros(2, 2, dtype=torch.float64)
    for start, layers in eager_attention(model, texts, **options):
        for layer, weights in enumerate(layers):
            for query in range(start + 4, weights.shape[-1]):
                for head in range(4):
                    far = weights[0, head, query, start : query - 3].sum()
                    expected[layer, head // 2] += far / 2 / 3 / 3  # heads of a group, queries, texts
    assert torch.tensor(found, dtype=torch.float64) == pytest.approx(expected, abs=1e-6)
    assert min(min(row) for row in found) > 0
    budgets = headkv_budgets(found, window=16, evict_fraction=1 / 16, beta=1.0)
    assert sum(map(sum, budgets)) == 64
    with pytest.raises(ValueError, match="nothing is evicted; give longer texts"):
        tc.probe_far_attention(model, [([3], [1, 2, 3])])
