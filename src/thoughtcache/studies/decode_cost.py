"""What an eviction policy costs while texts are decoded token by token: seconds, memory, bytes of what it keeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from peft import PeftModel

from thoughtcache.measuring.peak_memory import peak_memory_of
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.sampler.events import Event, Evicted, Evicting, Started
from thoughtcache.sampler.given import rollouts_of_given


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeCost:
    """Seconds of one pass of the sampler, from the end of the prefill on.

    Attributes:
        tokens: thought tokens of all texts.
        wall_seconds: on the wall.
        cpu_seconds: processor time of the process, which does not see what else the machine does.
        eviction_seconds: processor time inside evictions: choice, move of what stays, and record.
        peak_mib: MiB over what was in use before, which the weights are, from the prefill on; see `PeakMemory`. None
            where it cannot be measured.
    """

    tokens: int
    wall_seconds: float
    cpu_seconds: float
    eviction_seconds: float
    peak_mib: float | None


@dataclass(slots=True)
class _Clock:
    """Listens to the engine. All texts start together, so that the last start is the end of the prefill."""

    wall: float = 0.0
    cpu: float = 0.0
    begun: float = 0.0
    evictions: float = field(default=0.0)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self.wall, self.cpu = time.perf_counter(), time.process_time()
        elif isinstance(event, Evicting):
            self.begun = time.process_time()
        elif isinstance(event, Evicted):
            self.evictions += time.process_time() - self.begun


def timed_evictions(model: PeftModel, rollouts: Sequence[Rollout]) -> tuple[list[Rollout], DecodeCost]:
    """Texts with what the model's own policy evicts of them, as `with_own_evictions`, and what deciding it cost.

    Args:
        model: the adapted model, in evaluation mode.
        rollouts: texts under one window; all of them are decoded at once.
    """
    clock = _Clock()
    memory = peak_memory_of(next(model.parameters()).device)
    with memory or nullcontext():
        found = rollouts_of_given(model, rollouts, clock, batch_size=len(rollouts))
        wall_seconds, cpu_seconds = time.perf_counter() - clock.wall, time.process_time() - clock.cpu
    cost = DecodeCost(
        tokens=sum(len(rollout.token_ids) for rollout in rollouts),
        wall_seconds=wall_seconds,
        cpu_seconds=cpu_seconds,
        eviction_seconds=clock.evictions,
        peak_mib=None if memory is None else memory.peak_mib,
    )
    return found, cost


def policy_bytes(model: PeftModel, cache: CacheSettings) -> int:
    """Bytes per sequence that the policy's logged queries and running scores take in all layers.

    Not counted: what a choice needs for a moment, one layer at a time.

    Args:
        model: the adapted model.
        cache: its cache, resolved.
    """
    tuner = find_tuner(model)
    log = tuner.query_log(tuner.window_rules(cache, tuner.memory()))
    if log is None:
        return 0
    heads, size = tuner.kv_shape
    log.allocate(1, (tuner.query_heads, heads, size), tuner.model.dtype, torch.device("meta"))
    kept = [tensor for tensor in (*log.queries, *log.scores) if tensor is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)
