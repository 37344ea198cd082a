"""Drawing a token asks nothing of the device: what would wait for it is not called, whatever the options."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from support.models import VOCABULARY, tiny_model
from support.operators import WAITING, Operators
from thoughtcache.policy.handle import open_policy
from thoughtcache.records import TokenFilters
from thoughtcache.sampler.draw.drawing import NOTHING, Drawing
from thoughtcache.sampler.draw.rules import DrawRules
from thoughtcache.sampler.draw.stop_strings import StopStrings
from thoughtcache.sampler.slots.table import SlotTable

SLOTS, LENGTH = 3, 5


def drawing(filters: TokenFilters, stop_strings: StopStrings | None = None) -> Drawing:
    policy = open_policy(tiny_model())
    table = SlotTable(SLOTS, policy.device)
    made = Drawing(policy, table, num_tokens=LENGTH, with_entropies=True)
    rules = [
        DrawRules(
            temperature=0.7,
            filters=filters,
            max_new_tokens=LENGTH,
            seed=(0, row),
            stop_ids=(3, 7),
            stop_strings=stop_strings,
        )
        for row in range(SLOTS)
    ]
    made.admit([0, 1, 2], rules, [[4, 5], [6], [1, 2]])
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
    (plain_group,), (full_group,) = plain.groups, full.groups
    assert plain_group.is_stop is None
    assert full.seen is not None
    assert full_group.is_stop is not None
    assert full.seen.shape == (SLOTS, VOCABULARY)
    assert [row.nonzero().flatten().tolist() for row in full.seen] == [[4, 5], [6], [1, 2]]
    assert full_group.is_stop.nonzero().flatten().tolist() == [3, 7]


def written(made: Drawing, texts: list[str]) -> None:
    """As if the slots had drawn these letters."""
    for slot, text in enumerate(texts):
        made.tokens[slot, : len(text)] = torch.tensor([ord(letter) for letter in text])


def test_text_stays_with_its_sequence_when_slots_are_dropped():
    """Slot 0 has ended; slots 1 and 2 become 0 and 1 and keep what was read of them, and that it held no end."""
    made = drawing(TokenFilters(), StopStrings(["ab"], lambda tokens: "".join(map(chr, tokens))))
    made.draw(torch.randn(SLOTS, 16, dtype=torch.float64))
    made.stops[:] = NOTHING
    made.stopped[:] = False
    written(made, ["ab", "cc", "ca"])
    assert made.ended(np.array([2, 2, 2])).tolist() == [True, False, False]
    made.table.keep(np.array([1, 2]))
    made.regroup()
    assert made.ended(np.array([2, 2])).tolist() == [False, False]
    written(made, ["ccb", "cab"])
    assert made.ended(np.array([3, 3])).tolist() == [False, True]
    assert made.take(1, 3).token_ids == [ord(letter) for letter in "cab"]
    assert made.take(1, 3).finish_reason == "stop"
    assert made.take(0, 3).finish_reason == "length"


def test_text_begins_anew_in_a_refilled_slot():
    """The end of the sequence before, and its first half of a stop string, are gone."""
    made = drawing(TokenFilters(), StopStrings(["ab"], lambda tokens: "".join(map(chr, tokens))))
    made.draw(torch.randn(SLOTS, 16, dtype=torch.float64))
    made.stops[:] = NOTHING
    made.stopped[:] = False
    written(made, ["xab", "cca", "ccc"])
    assert made.ended(np.array([3, 3, 3])).tolist() == [True, False, False]
    again = [replace(rule, seed=(0, row)) for row, rule in enumerate(made.rules[:2], 3)]
    made.table.reset([0, 1])
    made.admit([0, 1], again, [[4], [5]])
    written(made, ["bc", "bc", "cccb"])
    assert made.ended(np.array([2, 2, 4])).tolist() == [False, False, False]
    written(made, ["bcab", "bcca", "cccba"])
    assert made.ended(np.array([4, 4, 5])).tolist() == [True, False, False]
    assert made.take(0, 4).token_ids == [ord(letter) for letter in "bcab"]


def test_text_that_ends_before_the_minimum_goes_on():
    """The stop string of slot 0 is complete with token 2 of at least 3; that of slot 1 with token 4; slot 2: both."""
    made = drawing(TokenFilters(min_new_tokens=3), StopStrings(["ab"], lambda tokens: "".join(map(chr, tokens))))
    made.draw(torch.randn(SLOTS, 16, dtype=torch.float64))
    made.stops[:] = NOTHING
    written(made, ["abccc", "ccabc", "abab"])
    assert made.ended(np.array([2, 2, 2])).tolist() == [False, False, False]
    assert made.ended(np.array([5, 5, 4])).tolist() == [False, True, True]
    assert [len(made.take(slot, count).token_ids) for slot, count in enumerate((5, 5, 4))] == [5, 4, 4]
