"""One small choice of every eviction policy, worked out by hand. SnapKV and H2O: test_scored_eviction.py."""

from __future__ import annotations

import math

import pytest
import torch

from thoughtcache.cache.eviction import EvictionView, ScoredEviction, make_eviction_policy
from thoughtcache.cache.eviction.policies.expected_attention import ExpectedAttentionEviction
from thoughtcache.cache.eviction.policies.rkv import RKVEviction
from thoughtcache.cache.eviction.policies.scissorhands import ScissorhandsEviction
from thoughtcache.cache.eviction.policies.tova import TOVAEviction
from thoughtcache.cache.eviction.view import Attended
from thoughtcache.cache.rotation import KeyRotation

Heads = list[list[list[float]]]


def view(
    thoughts: Heads,
    *,
    prompt: Heads | None = None,
    queries: Heads | None = None,
    values: Heads | None = None,
    num_evicted: int = 1,
    rotation: KeyRotation | None = None,
) -> EvictionView:
    """One row: [head][token] -> vector, in fp64; the queries are those of the newest thoughts."""
    keys = torch.tensor(thoughts, dtype=torch.float64)[None]
    attended = None
    if queries is not None:
        columns = torch.cat([torch.tensor(prompt, dtype=torch.float64)[None], keys], dim=2)
        shown, count = torch.tensor(queries, dtype=torch.float64)[None], columns.shape[2]
        last = count - shown.shape[2] + torch.arange(shown.shape[2])
        attended = Attended(
            queries=shown, keys=columns, visible=(torch.arange(count) <= last[:, None])[None], scaling=1.0,
            first_thought=torch.tensor([count - keys.shape[2]]), num_thoughts=keys.shape[2],
        )  # fmt: skip
    held = torch.tensor(values, dtype=torch.float64)[None] if values is not None else keys
    return EvictionView(
        layer_index=0,
        keys=keys,
        values=held,
        num_evicted=num_evicted,
        events=[(0, 0)],
        attended=attended,
        rotation=rotation,
    )


def logs(*shares: float) -> list[list[float]]:
    """Keys of size one, of which a query of 1 makes these shares."""
    return [[math.log(share)] for share in shares]


def scores(policy: ScoredEviction, seen: EvictionView) -> list[list[float]]:
    return policy.score(seen)[0].tolist()


def test_tova():
    """Head 0 sees 1 | 1, 2, 4 in all 8, head 1 sees 1 | 6, 1, 2 in all 10; both lose the thought of the lowest mean."""
    seen = view([logs(1, 2, 4), logs(6, 1, 2)], prompt=[logs(1), logs(1)], queries=[[[1.0]], [[1.0]]])
    means = [(1 / 8 + 6 / 10) / 2, (2 / 8 + 1 / 10) / 2, (4 / 8 + 2 / 10) / 2]
    for found in scores(TOVAEviction(), seen):
        assert found == pytest.approx(means)
    assert TOVAEviction().select(seen).tolist() == [[[1], [1]]]
    # The newest thought is not protected; with an option it is.
    newest = view([logs(3, 2, 1)], prompt=[logs(1)], queries=[[[1.0]]])
    assert TOVAEviction().select(newest).tolist() == [[[2]]]
    assert TOVAEviction(max_protected=1).select(newest).tolist() == [[[1]]]


def test_key_norm():
    """Norms 1, 5, 1, 2: the largest leaves first, then the next; of equals the older one."""
    thoughts = [[[0.0, 1.0], [3.0, 4.0], [1.0, 0.0], [0.0, -2.0]]]
    policy = make_eviction_policy("key-norm")
    assert isinstance(policy, ScoredEviction)
    assert scores(policy, view(thoughts)) == [[-1.0, -5.0, -1.0, -2.0]]
    assert policy.select(view(thoughts, num_evicted=2)).tolist() == [[[1, 3]]]
    assert policy.select(view(thoughts, num_evicted=3)).tolist() == [[[0, 1, 3]]]


def test_keydiff():
    """Directions x, y, x: the anchor is (2, 1) / 3 and the cosines 2, 1 and 2, over the root of 5."""
    policy = make_eviction_policy("keydiff")
    assert isinstance(policy, ScoredEviction)
    seen = view([[[2.0, 0.0], [0.0, 3.0], [1.0, 0.0]]])
    assert scores(policy, seen)[0] == pytest.approx([-2 / 5**0.5, -1 / 5**0.5, -2 / 5**0.5])
    assert policy.select(seen).tolist() == [[[0]]]


def test_scissorhands():
    """Two queries behind a prompt of 1, thoughts 1, 5, 1, 1, 2.

    Query 3 sees five tokens, in all 9: below 1/5 are the ones. Query 4 sees six, in all 11: below 1/6 are the ones, and
    2/11 is not.
    """
    seen = view([logs(1, 5, 1, 1, 2)], prompt=[logs(1)], queries=[[[1.0], [1.0]]])
    assert scores(ScissorhandsEviction(), seen) == [[-2.0, 0.0, -2.0, -2.0, 0.0]]
    assert ScissorhandsEviction().num_protected(5, 1) == 2
    assert ScissorhandsEviction().select(seen).tolist() == [[[0]]]


@pytest.mark.parametrize(("sinks", "gone"), [(0, [0, 1]), (1, [1, 2]), (4, [2, 3])])
def test_streaming(sinks, gone):
    """Window 6 of which 2 leave: at most 2 of the 4 that stay are sinks."""
    policy = make_eviction_policy("streaming", {"sinks": sinks})
    assert policy.select(view([logs(1, 1, 1, 1, 1, 1)])).tolist()[0][0] == gone[:1]
    assert policy.select(view([logs(1, 1, 1, 1, 1, 1)], num_evicted=2)).tolist() == [[gone]]


def test_r_kv():
    """Keys x, y, x, x, of which the newest is protected; the query makes shares 2, 1, 2 of the three before it.

    Cosines: thought 0 is like 2 and 3, of which 3 is not counted; 2 is like 0 and 3 (not counted), 3 is like 0 and 2
    (not counted). So 0 is said again by 2 and 3, and 2 by 0: columns (2, 0, 1, 0) / 4.
    """
    seen = view(
        [[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]], prompt=[[[9.0, 9.0]]], queries=[[[math.log(2), 0.0]]]
    )
    policy = RKVEviction(kernel=1)
    assert (policy.num_queries(4, 1), policy.num_protected(4, 1)) == (1, 1)
    total = math.exp(1 / 2) + 1 + math.exp(1 / 4) + 1
    redundancy = [math.exp(1 / 2) / total, 1 / total, math.exp(1 / 4) / total, 1 / total]
    expected = [0.1 * i - 0.9 * r for i, r in zip([2 / 5, 1 / 5, 2 / 5, 0], redundancy, strict=True)]
    assert scores(policy, seen)[0] == pytest.approx(expected)
    assert policy.select(seen).tolist() == [[[0]]]
    # Neighbours share the largest importance.
    wide = [0.1 * i - 0.9 * r for i, r in zip([2 / 5, 2 / 5, 2 / 5, 2 / 5], redundancy, strict=True)]
    assert scores(RKVEviction(kernel=3), seen)[0] == pytest.approx(wide)
    assert RKVEviction(kernel=1, importance=1.0).select(seen).tolist() == [[[1]]]


def test_expected_attention():
    """Positions turn a pair by a right angle, and one position is to come.

    Queries (0, -1) and (3, 0): the first, one position on, is (1, 0). Their mean is (2, 0), the covariance 1 in x; one
    more position on, (0, 2) and 1 in y. So a key's logarithm is 2 y + y^2 / 2: 0, 2.5 and 0 for y of 0, 1 and -4, and 0
    for the prompt. Values have norms 3, 1 and 2.
    """
    rotation = KeyRotation(frequencies=torch.tensor([math.pi / 2], dtype=torch.float64))
    seen = view(
        [[[5.0, 0.0], [0.0, 1.0], [0.0, -4.0]]],
        prompt=[[[0.0, 0.0]]],
        queries=[[[0.0, -1.0], [3.0, 0.0]]],
        values=[[[3.0, 0.0], [0.0, 1.0], [0.0, -2.0]]],
        rotation=rotation,
    )
    total = 3 + math.exp(2.5)
    policy = ExpectedAttentionEviction(future=1)
    assert scores(policy, seen)[0] == pytest.approx([3 / total, math.exp(2.5) / total, 2 / total])
    assert policy.select(seen).tolist() == [[[2]]]


def test_random_shared():
    """The same thoughts in every layer and head; others at every event, and not those of the draws per head."""
    block = torch.zeros(5, 2, 100, 3)

    def drawn(shared: bool, layer: int) -> list[list[list[int]]]:
        policy = make_eviction_policy("random", {"shared": shared})
        events = [(7, number) for number in range(5)]
        seen = EvictionView(layer_index=layer, keys=block, values=block, num_evicted=10, events=events)
        slots = policy.select(seen)
        assert slots is not None
        return slots.tolist()

    first = drawn(True, 0)
    assert all(left == right for left, right in first)
    assert first == drawn(True, 1)
    assert len({str(event) for event in first}) == 5
    assert all(left != right for left, right in drawn(False, 1))
