"""Drawing a token asks nothing of the device: what would wait for it is not called, whatever the options."""

from __future__ import annotations

import pytest
import torch

from support.models import VOCABULARY, tiny_model
from support.operators import WAITING, Operators
from thoughtcache.policy.drawing import Drawing
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.stop_strings import StopStrings
from thoughtcache.records import SamplingSettings, TokenFilters

SLOTS, LENGTH = 3, 5


def drawing(filters: TokenFilters, stop_strings: StopStrings | None = None) -> Drawing:
    settings = SamplingSettings(
        temperature=0.7,
        max_new_tokens=LENGTH,
        window=None,
        num_evicted=None,
        eviction="sliding",
        seed=0,
        ignore_eos=False,
        filters=filters,
    )
    policy = open_policy(tiny_model())
    made = Drawing(policy, settings, [3, 7], stop_strings, num_slots=SLOTS, with_entropies=True)
    made.admit([0, 1, 2], [(0, 0), (0, 1), (0, 2)], [[4, 5], [6], [1, 2]])
    return made


@pytest.mark.parametrize(
    "filters",
    [
        TokenFilters(),
        TokenFilters(top_k=9, top_p=0.8, min_p=0.05, repetition_penalty=1.4, min_new_tokens=2),
    ],
    ids=["plain", "all"],
)
def test_nothing_waits_for_the_device(filters):
    made = drawing(filters, StopStrings(["x"], lambda tokens: "y" * len(tokens)))
    hidden = torch.randn(SLOTS, 16, dtype=torch.float64)
    with torch.no_grad(), Operators() as seen:
        for _ in range(LENGTH):
            made.draw(hidden)
    assert "searchsorted" in seen.names
    assert not seen.names & WAITING


def test_the_list_of_operators_notices_waiting():
    with Operators() as seen:
        torch.ones(2)[torch.tensor([True, False])].sum().item()
    assert seen.names & WAITING


def test_masks_exist_only_where_they_are_read():
    plain, full = drawing(TokenFilters(top_k=3)), drawing(TokenFilters(repetition_penalty=2.0, min_new_tokens=1))
    assert plain.seen is None
    assert plain.is_stop is None
    assert full.seen is not None
    assert full.is_stop is not None
    assert full.seen.shape == (SLOTS, VOCABULARY)
    assert [row.nonzero().flatten().tolist() for row in full.seen] == [[4, 5], [6], [1, 2]]
    assert full.is_stop.nonzero().flatten().tolist() == [3, 7]
