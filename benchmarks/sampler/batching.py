"""Continuous against static batching, on lengths that are geometric.

The lengths come from the model itself: `geometric_head` ends a sequence with the same probability at every token, so
they are a function of the seeds, and all ways of batching must give the same tokens. Static batching is the same
engine: groups of as many prompts as there are slots, the next group when the last sequence of a group has ended; once
as the engine does it (slots that are free are dropped when half of them are) and once plainly, without that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.clock import RoundClock
from benchmarks.sampler.figures import Figure, Measured, over_repeats
from benchmarks.sampler.models import geometric_head, load_base, make_prompts, rollout_options, thought_model
from benchmarks.sampler.timing import Seconds, timed_calls
from thoughtcache.sampler.engine import Engine
from thoughtcache.sampler.slots.slot_cache import SlotCache

TARGET = 1.8
STOP_TOKEN = 2
STATIC = ("static, dropping free slots", "static, plain")


@contextmanager
def keeping_free_slots() -> Iterator[None]:
    """The engine does not drop slots in this block."""
    plain: Callable[..., None] = Engine._shrink
    Engine._shrink = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Engine._shrink = plain  # type: ignore[method-assign]


def measure(case: Case) -> Measured:
    """Times of both static forms over that of continuous batching."""
    base: Any = load_base(case)
    head = geometric_head(base.config.vocab_size, base.config.hidden_size, STOP_TOKEN, case.mean_length)
    base.lm_head = head.to(case.device)
    model = thought_model(case, base)
    prompts = make_prompts(base, [case.prompt] * case.num_prompts)
    options = {**rollout_options(case), "ignore_eos": False, "stop_ids": [STOP_TOKEN]}
    found: dict[str, list[list[int]]] = {}

    def sample(name: str, size: int) -> None:
        found[name] = []
        for start in range(0, len(prompts), size):
            rows = range(start, min(start + size, len(prompts)))
            part = tc.rollout(model, [prompts[r] for r in rows], seed=list(rows), batch_size=case.batch, **options)
            found[name] += [rollout.token_ids for rollout in part]

    def plainly() -> None:
        with keeping_free_slots():
            sample(STATIC[1], case.batch)

    runs: dict[str, Callable[[], None]] = {
        "continuous": lambda: sample("continuous", len(prompts)),
        STATIC[0]: lambda: sample(STATIC[0], case.batch),
        STATIC[1]: plainly,
    }
    seconds = {name: Seconds() for name in runs}
    rounds: dict[str, int] = {}
    shares = []
    for _ in range(case.repeats):
        for name, run in runs.items():
            clock = RoundClock(model.base_model.backbone, case.device)
            with timed_calls(SlotCache, "evict", device=case.device) as evictions, clock:
                seconds[name].time(run, case.device)
            rounds[name] = clock.rounds
            if name == "continuous":
                shares.append(sum(evictions.wall) / seconds[name].wall[-1])
    if any(found[name] != found["continuous"] for name in STATIC):
        raise RuntimeError("continuous and static batching gave different tokens for the same seeds")
    lengths = [len(tokens) for tokens in found["continuous"]]
    figures = [
        seconds[name].over(seconds["continuous"], f"time, {name} / continuous", at_least=TARGET) for name in STATIC
    ]
    figures += [
        Figure(name="rounds, static / continuous", value=rounds[STATIC[1]] / rounds["continuous"], unit="x"),
        Figure(name="mean length", value=sum(lengths) / len(lengths), unit="tokens"),
        Figure(name="tokens per second, continuous", value=sum(lengths) / min(seconds["continuous"].wall)),
        over_repeats("share of eviction and absorption, continuous", shares),
    ]
    return Measured(figures=figures, values={"lengths": lengths, "rounds": rounds, "same_tokens": True})
