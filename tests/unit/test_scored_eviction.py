"""The arithmetic of policies that score: by hand, against loops on random windows, with ties."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionView, ScoredEviction, make_eviction_policy
from thoughtcache.cache.eviction.h2o import H2OEviction
from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.snapkv import SnapKVEviction
from thoughtcache.cache.query_log import QueryLog

SCORED = sorted(name for name, policy in EVICTION_POLICIES.items() if issubclass(policy, ScoredEviction))
HEADS, GROUP, SIZE = 2, 2, 3


def drive(
    eviction: ScoredEviction, window: int, num_evicted: int, prompt: int, seed: int, *, ties: bool = False
) -> tuple[list[list[list[int]]], list[list[list[int]]]]:
    """Four events of one row, fast and in loops: (choices, naive choices), [event][head] -> slots."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.round() if ties else values

    wanted = eviction.num_queries(window, num_evicted)
    log = QueryLog(eviction, num_layers=1, num_queries=wanted, window=window, scaling=0.5)
    log.allocate(1, (HEADS * GROUP, HEADS, SIZE), torch.float64, torch.device("cpu"))
    keys, values = drawn(HEADS, prompt, SIZE), drawn(HEADS, prompt, SIZE)
    heads = [NaiveHead(scaling=0.5, prompt=list(keys[h])) for h in range(HEADS)]
    fast: list[list[list[int]]] = []
    slow: list[list[list[int]]] = []

    def sight() -> Any:
        length = keys.shape[1]
        lengths, starts = torch.tensor([length]), torch.tensor([prompt])
        return log.sight(slice(None), log.unheard.tolist(), length, lengths, starts)

    for _ in range(window + 3 * num_evicted + 1):
        if keys.shape[1] - prompt == window:
            if log.accumulator is not None:
                log.hear(0, sight(), keys[None])
                log.unheard[:] = 0
            view = EvictionView(
                layer_index=0,
                keys=keys[None, :, prompt:],
                values=values[None, :, prompt:],
                num_evicted=num_evicted,
                events=[(0, len(fast))],
                attended=log.attended(0, sight(), keys[None]),
                scores=log.scores[0],
            )
            slots = eviction.select(view)
            log.evict(0, slice(None), slots, None)
            fast.append(slots[0].tolist())
            slow.append([eviction.naive_select(head, num_evicted) for head in heads])
            stay = [[i for i in range(window) if i not in gone] for gone in slow[-1]]
            for head, kept in zip(heads, stay, strict=True):
                head.keys, head.values = [head.keys[i] for i in kept], [head.values[i] for i in kept]
                head.scores = [head.scores[i] for i in kept]
            kept_columns = [list(range(prompt)) + [prompt + i for i in kept] for kept in stay]
            keys = torch.stack([keys[h, columns] for h, columns in enumerate(kept_columns)])
            values = torch.stack([values[h, columns] for h, columns in enumerate(kept_columns)])
        query, key, value = drawn(1, HEADS * GROUP, 1, SIZE), drawn(HEADS, 1, SIZE), drawn(HEADS, 1, SIZE)
        keys, values = torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1)
        log.observe(0, query)
        log.advance(np.array([True]))
        if log.full_rows().any():
            log.hear(0, sight(), keys[None])
            log.unheard[:] = 0
        for h, head in enumerate(heads):
            head.keys.append(key[h, 0])
            head.values.append(value[h, 0])
            head.scores.append(0.0)
            head.queries.append([query[0, h * GROUP + i, 0] for i in range(GROUP)])
            head.queries[:] = head.queries[-wanted:]
            eviction.naive_step(head)
    return fast, slow


@pytest.mark.parametrize("name", SCORED)
def test_choices_are_those_of_the_loops_on_random_windows(name):
    eviction = make_eviction_policy(name)
    assert isinstance(eviction, ScoredEviction)
    for seed in range(50):  # four events each
        window = 2 + seed % 11
        num_evicted = 1 + seed % min(3, window - 1)
        fast, slow = drive(eviction, window, num_evicted, prompt=1 + seed % 4, seed=seed)
        assert len(fast) == 4
        assert fast == slow, (window, num_evicted, seed)


class Counted(SnapKVEviction):
    """Scores that tie: whole numbers."""

    def score(self, view: EvictionView) -> Tensor:
        """Rounded norms."""
        return view.values.square().sum(dim=-1)

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The same."""
        return [float((value * value).sum()) for value in head.values]


def test_of_equal_scores_the_older_thought_leaves():
    for seed in range(50):
        fast, slow = drive(Counted(), 9, 2, prompt=2, seed=seed, ties=True)
        assert fast == slow
    view = EvictionView(
        layer_index=0,
        keys=torch.zeros(1, 1, 6, 1),
        values=torch.ones(1, 1, 6, 1),
        num_evicted=2,
        events=[(0, 0)],
    )
    assert Counted().select(view).tolist() == [[[0, 1]]]


def attended(log: QueryLog, keys: Tensor, prompt: int) -> Any:
    length = keys.shape[2]
    sight = log.sight(slice(None), log.unheard.tolist(), length, torch.tensor([length]), torch.tensor([prompt]))
    return log.attended(0, sight, keys)


def logged(eviction: ScoredEviction, num_queries: int, window: int, queries: list[float]) -> QueryLog:
    """One row, one head of size 1."""
    log = QueryLog(eviction, num_layers=1, num_queries=num_queries, window=window, scaling=1.0)
    log.allocate(1, (1, 1, 1), torch.float64, torch.device("cpu"))
    for query in queries:
        log.observe(0, torch.tensor(query, dtype=torch.float64).view(1, 1, 1, 1))
        log.advance(np.array([True]))
    return log


def test_h2o_by_hand():
    """A prompt key 0, thought keys log 2, log 3 and 0, queries 1: weights are in the ratio of exp(key).

    Query 0 sees [1, 2]: thought 0 gets 2/3. Query 1 sees [1, 2, 3]: 2/6 and 3/6. Query 2 sees [1, 2, 3, 1]: 2/7, 3/7
    and 1/7.
    """
    keys = torch.tensor([0.0, math.log(2), math.log(3), 0.0], dtype=torch.float64).view(1, 1, 4, 1)
    eviction = H2OEviction()
    log = logged(eviction, 3, 3, [1.0, 1.0, 1.0])
    found = eviction.increments(attended(log, keys, 1))[0, 0].tolist()
    assert found == pytest.approx([2 / 3 + 2 / 6 + 2 / 7, 3 / 6 + 3 / 7, 1 / 7])
    view = EvictionView(
        layer_index=0, keys=keys[:, :, 1:], values=keys[:, :, 1:], num_evicted=1, events=[(0, 0)],
        scores=torch.tensor([[found]]),
    )  # fmt: skip
    # One of the two that stay is protected as the newest, so thought 2 stays with the lowest score.
    assert eviction.num_protected(3, 1) == 1
    assert eviction.select(view).tolist() == [[[1]]]


def test_snapkv_by_hand():
    """Two queries of 1 at the end of five thoughts with exp(key) 1, 5, 1, 1, 2 behind a prompt of 1; kernel 5.

    Query 3 sees a total of 9, query 4 one of 11. Sums: 1/9 + 1/11, 5/9 + 5/11, 1/9 + 1/11, 1/9 + 1/11, 2/11.
    """
    keys = torch.tensor([1.0, 1, 5, 1, 1, 2], dtype=torch.float64).log().view(1, 1, 6, 1)
    eviction = SnapKVEviction()
    log = logged(eviction, 2, 5, [7.0, 1.0, 1.0])
    ninth, eleventh = 1 / 9, 1 / 11
    sums = [ninth + eleventh, 5 * (ninth + eleventh), ninth + eleventh, ninth + eleventh, 2 * eleventh]
    view = EvictionView(
        layer_index=0, keys=keys[:, :, 1:], values=keys[:, :, 1:], num_evicted=1, events=[(0, 0)],
        attended=attended(log, keys, 1),
    )  # fmt: skip
    pooled = [sum(sums[max(0, i - 2) : i + 3]) / 5 for i in range(5)]
    assert eviction.score(view)[0, 0].tolist() == pytest.approx(pooled)
    assert eviction.num_protected(5, 1) == 2
    assert eviction.select(view).tolist() == [[[0]]]


def test_queries_that_are_not_there_yet_have_no_weight():
    log = logged(SnapKVEviction(), 4, 3, [1.0, 2.0])
    weights = attended(log, torch.zeros(1, 1, 3, 1, dtype=torch.float64), 1).weights()
    assert weights.shape == (1, 1, 1, 4, 3)
    assert weights[0, 0, 0, :2].count_nonzero() == 0
    assert weights[0, 0, 0, 2].tolist() == pytest.approx([1 / 2, 0, 0])
    assert weights[0, 0, 0, 3].tolist() == pytest.approx([1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(("window", "num_evicted", "snapkv", "h2o"), [(1, 1, 0, 0), (8, 2, 3, 3), (256, 64, 32, 96)])
def test_at_most_half_of_what_stays_is_protected(window, num_evicted, snapkv, h2o):
    assert SnapKVEviction().num_protected(window, num_evicted) == snapkv
    assert H2OEviction().num_protected(window, num_evicted) == h2o
    assert SnapKVEviction().num_queries(window, num_evicted) == max(1, snapkv)
    assert H2OEviction().num_queries(window, num_evicted) == num_evicted
