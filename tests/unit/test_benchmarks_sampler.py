"""The pure parts of the sampler's benchmarks: verdicts, ratios, cycles, lengths, sizes, the picture's curves."""

from __future__ import annotations

import inspect
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from benchmarks.__main__ import make_parser
from benchmarks.sampler import sizes
from benchmarks.sampler.case import KINDS, Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.compiled import logprob_gap
from benchmarks.sampler.figures import Figure, Measured, over_repeats, ratios
from benchmarks.sampler.generate_long import stop_rounds
from benchmarks.sampler.models import geometric_head, rollout_options, uneven_lengths
from benchmarks.sampler.picture import merged, panels
from benchmarks.sampler.positions import BYTES_PER_TOKEN, flatness, records_bytes
from benchmarks.sampler.suite import record
from benchmarks.sampler.timing import round_seconds, speed_curve, timed_calls

import thoughtcache as tc
from support.models import tiny_model
from thoughtcache.measuring.peak_memory import MIB
from thoughtcache.policy.token_logprobs import scaled_log_softmax
from thoughtcache.sampler.draw.inverse_cdf import sample_tokens, uniform_numbers
from thoughtcache.sampler.slots.slot_cache import SlotCache
from thoughtcache.tasks.embedded.reasoner import load_reasoner


def test_the_median_of_paired_ratios_is_judged():
    figure = over_repeats("speed", ratios([4.0, 6.0, 9.0], [2.0, 2.0, 2.0]), at_least=3.0)
    assert (figure.value, figure.low, figure.high) == (3.0, 2.0, 4.5)
    assert (figure.target, figure.verdict()) == (">= 3", "PASS")
    assert over_repeats("speed", [2.9], at_least=3.0).verdict() == "FAIL"
    assert over_repeats("share", [0.03], at_most=0.03).verdict() == "PASS"
    assert over_repeats("share", [0.031], at_most=0.03).verdict() == "FAIL"
    assert over_repeats("seconds", [1.0]).verdict() == ""


def test_quick_sizes_are_not_judged_and_what_could_not_be_measured_always_fails():
    assert Figure(name="speed", value=1.0, at_least=3.0).verdict(judged=False) == "quick"
    assert Figure(name="speed", value=math.nan, at_least=3.0).verdict(judged=False) == "FAIL"


def test_every_block_of_whole_cycles_holds_the_price_of_its_evictions():
    rounds = [5.0 if at % 8 == 3 else 1.0 for at in range(100)]
    for around in (40, 43, 47):
        assert round_seconds(rounds, around=around, cycle=8, cycles=4) == 1.5
    rounds[40] = 1000.0  # one cycle in which the machine did something else
    assert round_seconds(rounds, around=48, cycle=8, cycles=5) == 1.5


def test_a_band_that_leaves_the_counted_rounds_is_refused():
    with pytest.raises(ValueError, match="leave the rounds 32 to 100"):
        round_seconds([1.0] * 100, around=40, cycle=8, cycles=4, first=32)
    with pytest.raises(ValueError, match="leave the rounds"):
        round_seconds([1.0] * 100, around=90, cycle=8, cycles=4)


def test_the_curve_covers_the_rounds_with_a_full_window():
    x, y = speed_curve([1.0] * 16 + [0.5] * 64, batch=2, cycle=8, points=4, first=16)
    assert x == [24.0, 40.0, 56.0, 72.0]
    assert y == [4.0] * 4


def test_lengths_under_the_geometric_head_have_the_mean_that_was_asked_for():
    head = geometric_head(19, 8, stop_token=2, mean_length=256)
    distribution = scaled_log_softmax(torch.randn(1, 8), head, 1.0)
    assert distribution[0, 2].exp().item() == pytest.approx(1 / 256, rel=1e-6)
    others = distribution[0, torch.arange(19) != 2].exp()
    assert others.max().item() == pytest.approx(others.min().item())
    drawn = uniform_numbers(0, range(1), 200_000, torch.device("cpu"))[0]
    stops = (sample_tokens(distribution.expand(200_000, -1), drawn, greedy=False) == 2).sum().item()
    assert 200_000 / stops == pytest.approx(256, rel=0.1)


def test_records_are_states_and_tokens_and_flat_memory_is_without_them():
    model = tiny_model(window=4)
    (rollout,) = tc.rollout(model, [[3, 4]], max_new_tokens=12, ignore_eos=True)
    assert rollout.states is not None
    state = rollout.states[0].numel() * rollout.states.element_size()
    assert records_bytes([rollout], 3) == 3 * BYTES_PER_TOKEN
    assert records_bytes([rollout] * 2, 5) == 2 * (5 * BYTES_PER_TOKEN + 2 * state)
    memory = [(at, 100.0 + records_bytes([rollout], at) / MIB) for at in range(1, 12)]
    grown, flat = flatness(memory, [rollout])
    assert grown > 1.0
    assert flat == pytest.approx(1.0, abs=1e-12)


def test_the_clock_sees_one_round_per_forward_pass_and_evictions_are_timed():
    model = tiny_model(window=4)
    stopped = []
    with (
        timed_calls(SlotCache, "evict", device="cpu") as evictions,
        RoundClock(model.base_model.backbone, "cpu", interrupt={5: lambda: stopped.append(5)}) as clock,
    ):
        tc.rollout(model, [[3, 4], [5, 6, 7]], max_new_tokens=12, ignore_eos=True)
    assert clock.rounds == len(clock.cpu_seconds) == 11
    assert len(evictions.wall) == len(evictions.cpu) == 7
    assert stopped == [5]


def test_log_probabilities_are_compared_up_to_the_first_other_token():
    model = tiny_model(window=4)
    (one,) = tc.rollout(model, [[3, 4]], max_new_tokens=6, ignore_eos=True)
    moved = one.logprobs.clone()
    moved[1] += 0.25
    moved[4] += 100.0
    other = replace(one, logprobs=moved, token_ids=[*one.token_ids[:3], -1, *one.token_ids[4:]])
    gap, common = logprob_gap([one], [other])
    assert (gap, common) == (pytest.approx(0.25), 3)


@pytest.mark.parametrize("chosen", [sizes.full(), sizes.quick()], ids=["full", "quick"])
def test_every_size_travels_as_json_and_looks_only_where_its_rollout_goes(chosen):
    for case in (case for group in chosen.values() for case in group):
        assert Case.from_json(case.to_json()) == case
        assert case.kind in KINDS
        if case.kind == "positions" and case.at:
            assert case.at[0] >= case.window
            assert case.at[-1] < case.tokens
        if case.kind == "generate_long":
            assert stop_rounds(case)[0] - case.cycle >= case.window
            assert case.at[-1] in stop_rounds(case)


def test_windows_fit_the_positions_of_the_embedded_reasoner():
    positions = load_reasoner()[0].config.max_position_embeddings
    for cases in (*sizes.full().values(), *sizes.quick().values()):
        for case in cases:
            if case.model == "tiny" and case.window is not None:
                assert case.positions == "rolling"
                assert case.prompt + case.window <= positions, case.title


def test_compile_is_named_only_where_it_is_asked_for():
    case = Case(kind="compiled", tokens=3)
    assert "compile" not in rollout_options(case)
    assert rollout_options(replace(case, compile=True))["compile"] is True
    assert set(rollout_options(case)) <= set(inspect.signature(tc.rollout).parameters)


def test_uneven_lengths_differ_from_their_neighbours():
    lengths = uneven_lengths(8, 32)
    assert min(lengths) >= 16
    assert max(lengths) <= 48
    assert all(a != b for a, b in pairwise(lengths))


def test_curves_of_one_label_become_one_series():
    curves = [
        {"speed: ours": ([1.0, 2.0], [5.0, 5.0])},
        {"speed: ours": ([1.0, 9.0], [6.0, 6.0])},
        {"batch: window 64": ([1.0], [7.0])},
        {"batch: window 64": ([4.0], [8.0])},
    ]
    assert merged("speed", curves) == {"ours": ([1.0, 9.0], [6.0, 6.0])}
    assert merged("batch", curves) == {"window 64": ([1.0, 4.0], [7.0, 8.0])}


def test_the_picture_shows_whole_models_only():
    curves = {"speed: ours": ([1.0, 2.0], [5.0, 5.0])}
    cases = [{"model": "smollm2"}, {"model": "smollm2", "layers": 4}]
    whole, part = ({"case": case, "curves": curves} for case in cases)
    assert len(panels([whole])) == 1
    assert panels([part]) == []


def test_a_record_holds_verdicts_and_no_path():
    case = Case(kind="prefill", model="smollm2", folder="/somewhere/smollm2")
    entry = record("prefill", case, Measured(figures=[Figure(name="time", value=1.1, at_most=1.2)]))
    assert entry["figures"][0]["verdict"] == "PASS"
    assert entry["case"]["folder"] == "smollm2"


def test_the_command_line_knows_every_name():
    options = make_parser().parse_args(["sampler", "--cases", *sizes.NAMES, "--quick", "--threads", "2"])
    assert options.cases == list(sizes.NAMES)
    assert make_parser().parse_args(["learner", "--cases", "slice_512", "smollm2"]).cases == ["slice_512", "smollm2"]
