"""Filters give the distributions of transformers' own processors, and a token that they removed is never drawn."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.compare import assert_close
from support.filters import processors
from thoughtcache.records import TokenFilters
from thoughtcache.sampler.draw.filters import filtered_log_softmax
from thoughtcache.sampler.draw.inverse_cdf import row_seeds, sample_tokens, uniform_numbers

ROWS, VOCABULARY, STOPS = 3, 41, [2, 7]


def seen_mask(token_ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(ROWS, VOCABULARY, dtype=torch.bool).scatter(1, token_ids, True)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([0, 1, 2, 7, VOCABULARY, 100]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.05, 1e-6, 1e-17]),
    min_p=st.sampled_from([0.0, 0.01, 0.2, 0.9, 1.0]),
    penalty=st.sampled_from([1.0, 1.3, 0.5, 3.0]),
    min_new_tokens=st.integers(0, 4),
    num_new=st.integers(0, 4),
    temperature=st.sampled_from([1.0, 0.3, 2.5]),
    ties=st.booleans(),
)
def test_the_same_distribution_as_transformers(
    seed, top_k, top_p, min_p, penalty, min_new_tokens, num_new, temperature, ties
):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64) * 3
    logits = logits.round() if ties else logits
    prompt_length = 3
    token_ids = torch.randint(VOCABULARY, (ROWS, prompt_length + num_new), generator=generator)
    filters = TokenFilters(
        top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, min_new_tokens=min_new_tokens
    )
    barred = torch.isin(torch.arange(VOCABULARY), torch.tensor(STOPS)).expand(ROWS, -1)
    found = filtered_log_softmax(
        logits,
        filters,
        temperature,
        seen=seen_mask(token_ids) if penalty != 1.0 else None,
        barred=barred if num_new < min_new_tokens else None,
    )
    expected = processors(filters, temperature, prompt_length, STOPS)(token_ids, logits).log_softmax(dim=-1)
    assert torch.equal(found.isneginf(), expected.isneginf())
    assert_close(found.exp(), expected.exp())
    assert_close(found[found.isfinite()], expected[expected.isfinite()])


def test_each_filter_by_hand():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64).log()

    def kept(**options) -> list[float]:
        return filtered_log_softmax(logits, TokenFilters(**options), 1.0, seen=None, barred=None).exp()[0].tolist()

    assert kept(top_k=2) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.65) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert kept(top_p=0.75) == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    assert kept(min_p=0.6) == pytest.approx([4 / 7, 3 / 7, 0, 0])
    seen, barred = torch.tensor([[False, True, False, False]]), torch.tensor([[False, False, True, False]])
    # A negative logit times two is a probability squared.
    penalised = filtered_log_softmax(logits, TokenFilters(repetition_penalty=2.0), 1.0, seen=seen, barred=None)
    assert penalised.exp()[0].tolist() == pytest.approx([0.4 / 0.79, 0.09 / 0.79, 0.2 / 0.79, 0.1 / 0.79])
    shortened = filtered_log_softmax(logits, TokenFilters(min_new_tokens=1), 1.0, seen=None, barred=barred)
    assert shortened.exp()[0].tolist() == pytest.approx([0.5, 0.375, 0, 0.125])


def test_positive_logits_are_divided_by_the_penalty():
    logits, seen = torch.tensor([[3.0, 1.0]], dtype=torch.float64), torch.tensor([[True, False]])
    found = filtered_log_softmax(logits, TokenFilters(repetition_penalty=1.5), 1.0, seen=seen, barred=None)
    assert_close(found, torch.tensor([[2.0, 1.0]], dtype=torch.float64).log_softmax(dim=-1))


@pytest.mark.parametrize("largest", [0.0, 0.5, 1.0 - 2**-53])
def test_a_token_of_probability_zero_is_never_drawn(largest):
    """Whatever way the sum of the probabilities is rounded, at both ends of the uniform numbers."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, VOCABULARY, generator=generator, dtype=torch.float32)
    logits[:, [0, 5, VOCABULARY - 1]] = -math.inf
    distribution = logits.log_softmax(dim=-1)
    uniform = torch.full((4000,), largest, dtype=torch.float64)
    chosen = sample_tokens(distribution, uniform, greedy=False)
    assert distribution.gather(1, chosen.unsqueeze(1)).isfinite().all()


def test_the_smallest_uniform_number_draws_the_first_token_that_can_come():
    """Whole blocks of tokens in front of it cannot; a number on the boundary of two blocks belongs to the second."""
    distribution = torch.full((3, 600), -math.inf, dtype=torch.float64)
    distribution[0, [300, 301]] = math.log(0.5)
    distribution[1, [0, 300]] = math.log(0.5)
    distribution[2, [0, 599]] = math.log(0.5)
    uniform = torch.tensor([0.0, 0.5, 0.5], dtype=torch.float64)
    assert sample_tokens(distribution, uniform, greedy=False).tolist() == [300, 300, 599]
    # Rounding: the largest number below 1.
    uniform = torch.full((3,), math.nextafter(1.0, 0.0), dtype=torch.float64)
    assert sample_tokens(distribution, uniform, greedy=False).tolist() == [301, 300, 599]


def test_seeds_of_rows():
    assert row_seeds(5, 3) == [(5, 0), (5, 1), (5, 2)]
    assert row_seeds([4, 9, 4], 3) == [(4, 0), (9, 0), (4, 0)]


def test_no_two_rows_of_any_seeds_share_their_uniform_numbers():
    """Row 1 of seed 0 is not row 0 of seed 1: a run that counts its seeds up would sample the same twice."""
    first = [uniform_numbers(seed, range(9), 1, torch.device("cpu")) for seed in range(-3, 30)]
    assert torch.cat(first).unique().numel() == 33 * 9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k must be at least 1 token, or 0 to keep all, got -1"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"min_p": 1.5}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be positive and finite, got 0.0; 1.0 turns it off"),
        ({"repetition_penalty": math.inf}, "repetition_penalty"),
        ({"min_new_tokens": -1}, "min_new_tokens must be at least 0 tokens, got -1"),
    ],
    ids=str,
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TokenFilters(**options)


def test_what_counts_as_a_filter():
    assert not TokenFilters().active
    assert not TokenFilters(repetition_penalty=1.2, min_new_tokens=3).truncates
    for option in ({"top_k": 1}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert TokenFilters(**option).active
        assert TokenFilters(**option).truncates
    for option in ({"repetition_penalty": 0.9}, {"min_new_tokens": 1}):
        assert TokenFilters(**option).active
