"""The arithmetic of policies that score: by hand, against loops on random windows, with ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.compare import assert_close
from support.policies import SCORED
from thoughtcache.cache.eviction import EVICTION_POLICIES, EvictionView, ScoredEviction, make_eviction_policy
from thoughtcache.cache.eviction.naive_view import NaiveHead
from thoughtcache.cache.eviction.policies import rkv
from thoughtcache.cache.eviction.policies.h2o import H2OEviction
from thoughtcache.cache.eviction.policies.snapkv import SnapKVEviction
from thoughtcache.cache.eviction.view import Attended
from thoughtcache.cache.query_log import QueryLog
from thoughtcache.cache.rotation import KeyRotation

HEADS, GROUP, SIZE, LAYER = 2, 2, 3, 1
ROTATION = KeyRotation(frequencies=torch.tensor([0.3], dtype=torch.float64))  # the third entry does not turn


@dataclass(kw_only=True)
class Choice:
    """One event of one kv head: slots and scores, fast and in loops."""

    fast: list[int]
    slow: list[int]
    fast_scores: list[float]
    slow_scores: list[float]


def drive(
    eviction: ScoredEviction, window: int, num_evicted: int, prompt: int, seed: int, *, ties: bool = False
) -> list[Choice]:
    """Four events of one row with two kv heads; the loops decide what leaves.

    With ties, every token is one of three, in keys and values of all heads.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    three = normal(2, HEADS, 3, SIZE)

    def tokens(count: int) -> Tensor:
        """[keys and values, H, count, D]"""
        which = torch.randint(3, (count,), generator=generator)
        return three[:, :, which] if ties else normal(2, HEADS, count, SIZE)

    wanted = eviction.num_queries(window, num_evicted)
    log = QueryLog(eviction, num_queries=max(1, wanted), windows=[window], scaling=0.5)
    log.allocate(1, (HEADS * GROUP, HEADS, SIZE), torch.float64, torch.device("cpu"))
    keys, values = tokens(prompt)
    heads: list[NaiveHead] = []
    for h in range(HEADS):
        head = NaiveHead(
            scaling=0.5, prompt=list(keys[h]), index=h, heads=heads, num_evicted=num_evicted, layer_index=LAYER,
            frequencies=ROTATION.frequencies,
        )  # fmt: skip
        heads.append(head)
    choices: list[Choice] = []

    def sight() -> Any:
        length = keys.shape[1]
        lengths, starts = torch.tensor([length]), torch.tensor([prompt])
        return log.sight(slice(None), log.unheard.tolist(), length, lengths, starts, num_thoughts=window)

    for _ in range(window + 3 * num_evicted + 1):
        if keys.shape[1] - prompt == window:
            if log.accumulator is not None:
                log.hear(0, sight(), keys[None])
                log.unheard[:] = 0
            view = EvictionView(
                layer_index=LAYER,
                keys=keys[None, :, prompt:],
                values=values[None, :, prompt:],
                num_evicted=num_evicted,
                events=[(seed, len(choices) // HEADS)],
                attended=log.attended(0, sight(), keys[None]) if wanted else None,
                scores=log.scores[0],
                rotation=ROTATION,
            )
            for head in heads:
                head.event = seed, len(choices) // HEADS
            fast, scores = eviction.select(view)[0].tolist(), eviction.score(view)[0].tolist()
            slow = [eviction.naive_select(head, num_evicted) for head in heads]
            for h, head in enumerate(heads):
                choices.append(
                    Choice(
                        fast=fast[h],
                        slow=slow[h],
                        fast_scores=scores[h],
                        slow_scores=list(eviction.naive_score(head)),
                    )
                )
            log.evict(0, sight(), torch.tensor([slow]), None, num_evicted)
            stay = [[i for i in range(window) if i not in gone] for gone in slow]
            for head, kept in zip(heads, stay, strict=True):
                head.keys, head.values = [head.keys[i] for i in kept], [head.values[i] for i in kept]
                head.scores = [head.scores[i] for i in kept]
            kept_columns = [list(range(prompt)) + [prompt + i for i in kept] for kept in stay]
            keys = torch.stack([keys[h, columns] for h, columns in enumerate(kept_columns)])
            values = torch.stack([values[h, columns] for h, columns in enumerate(kept_columns)])
        query, (key, value) = normal(1, HEADS * GROUP, 1, SIZE), tokens(1)
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
            head.queries[:] = head.queries[max(0, len(head.queries) - wanted) :]
        for head in heads:
            eviction.naive_step(head)
    return choices


@pytest.mark.parametrize("ties", [False, True], ids=["generic", "ties"])
@pytest.mark.parametrize("name", SCORED)
def test_choices_are_those_of_the_loops_on_random_windows(name, ties):
    """Scores agree to rounding, and so do choices, but among thoughts that rounding alone tells apart."""
    eviction = make_eviction_policy(name)
    assert isinstance(eviction, ScoredEviction)
    num_different = 0
    for seed in range(50):  # four events each
        window = 2 + seed % 11
        num_evicted = 1 + seed % min(3, window - 1)
        choices = drive(eviction, window, num_evicted, prompt=1 + seed % 4, seed=seed, ties=ties)
        assert len(choices) == 4 * HEADS
        for choice in choices:
            assert choice.fast_scores == pytest.approx(choice.slow_scores, rel=0, abs=1e-12)
            num_different += choice.fast != choice.slow
            worth = [[choice.slow_scores[slot] for slot in slots] for slots in (choice.fast, choice.slow)]
            assert sorted(worth[0]) == pytest.approx(sorted(worth[1]), rel=0, abs=1e-12)
    # Two directions are equally far from their mean, so that rounding decides windows of two under KeyDiff.
    assert num_different <= (40 if name == "keydiff" else 0) or ties


class Given(ScoredEviction):
    """Scores that are given as values, whole numbers that tie."""

    name: ClassVar[str] = "given"
    max_protected: int = 2

    def score(self, view: EvictionView) -> Tensor:
        """The values."""
        return view.values[..., 0]

    def naive_score(self, head: NaiveHead) -> list[float]:
        """The values."""
        return [float(value[0]) for value in head.values]


def test_of_equal_scores_the_older_thought_leaves():
    """All policies that score choose by the same two methods; 200 windows of one head, in which most scores tie."""
    for name in SCORED:
        policy: Any = EVICTION_POLICIES[name]
        assert policy.select is ScoredEviction.select
        assert policy.naive_select is ScoredEviction.naive_select
    eviction, generator = Given(), torch.Generator().manual_seed(0)
    for number in range(200):
        window = 2 + number % 11
        num_evicted = 1 + number % min(3, window - 1)
        values = torch.randint(3, (1, 1, window, 1), generator=generator).double()
        view = EvictionView(layer_index=0, keys=values, values=values, num_evicted=num_evicted, events=[(0, 0)])
        head = NaiveHead(scaling=1.0, keys=list(values[0, 0]), values=list(values[0, 0]), num_evicted=num_evicted)
        assert eviction.select(view)[0, 0].tolist() == eviction.naive_select(head, num_evicted)
    ones = torch.ones(1, 1, 6, 1)
    view = EvictionView(layer_index=0, keys=ones, values=ones, num_evicted=2, events=[(0, 0)])
    assert eviction.select(view).tolist() == [[[0, 1]]]


def attended(log: QueryLog, keys: Tensor, prompt: int) -> Any:
    length = keys.shape[2]
    lengths, starts = torch.tensor([length]), torch.tensor([prompt])
    sight = log.sight(slice(None), log.unheard.tolist(), length, lengths, starts, num_thoughts=log.windows[0])
    return log.attended(0, sight, keys)


def logged(eviction: ScoredEviction, num_queries: int, window: int, queries: list[float]) -> QueryLog:
    """One row, one head of size 1."""
    log = QueryLog(eviction, num_queries=num_queries, windows=[window], scaling=1.0)
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


def test_sums_of_weights_are_those_of_the_weights():
    """Also where queries are missing, thoughts lie behind a query, and a row has fewer thoughts."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(3, 6, 4, 5, generator=generator, dtype=torch.float64)
    keys = torch.randn(3, 2, 11, 5, generator=generator, dtype=torch.float64)
    last_seen = torch.tensor([[7, 8, 9, 10], [-1, -1, 9, 10], [3, 4, 5, 6]])
    seen = Attended(
        queries=queries,
        keys=keys,
        visible=torch.arange(11) <= last_seen.unsqueeze(2),
        first_thought=torch.tensor([3, 2, 4]),
        num_thoughts=8,
        scaling=0.7,
    )
    sums = seen.weight_sums()
    assert_close(sums, seen.weights().sum(dim=(2, 3)))
    assert sums.abs().max() > 1
    assert (sums[2, :, 3:] == 0).all()


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


def all_pairs(keys: Tensor, threshold: float) -> Tensor:
    """The redundancy of R-KV from all pairs at once, row by row."""
    directions = torch.nn.functional.normalize(keys, dim=-1)
    cosines = directions @ directions.mT
    for row in cosines.flatten(0, 1):
        row.fill_diagonal_(0.0)
        for one in row:
            alike = (one > threshold).nonzero().flatten()
            one[alike[-1:]] = 0.0
    return cosines.mean(dim=2).softmax(dim=-1)


@pytest.mark.parametrize("threshold", [-0.5, 0.5, 0.99])
@pytest.mark.parametrize("size", [1, 2, 6, 7, 13])
def test_redundancy_in_blocks_of_rows(size, threshold, monkeypatch):
    """Directions that come again and again, so that rows have several columns above the threshold, one or none."""
    keys = torch.randint(-1, 2, (2, 3, size, 2), generator=torch.Generator().manual_seed(size)).double()
    expected = all_pairs(keys, threshold)
    assert_close(rkv._redundancy(keys, threshold), expected)
    monkeypatch.setattr(rkv, "NUM_ROWS", 3)
    assert_close(rkv._redundancy(keys, threshold), expected)


def test_redundancy_holds_a_block_of_rows_at_once(monkeypatch):
    class Sizes(TorchDispatchMode):
        largest = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, Tensor):
                self.largest = max(self.largest, found.untyped_storage().nbytes())
            return found

    monkeypatch.setattr(rkv, "NUM_ROWS", 4)
    with Sizes() as sizes:
        rkv._redundancy(torch.randn(2, 3, 64, 2), 0.5)
    assert sizes.largest == 2 * 3 * 4 * 64 * 4  # fp32
