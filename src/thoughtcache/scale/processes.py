"""Data-parallel rollouts: the processes that torchrun or accelerate started share the rows of one call.

Every process holds the same model and makes the same call; process `r` samples shard `r` of the plan (`shards.py`), and
the rollouts travel as bytes (`wire.py`, `exchange.py`). Row `i` draws from `(seed, i)` wherever it is sampled, so the
tokens are those of one process, as long as no draw falls within the rounding of a boundary between two tokens, which
depends on the number of rows that share a forward pass, as `batch_size` does.

Not covered: rows that move to another process while it samples (`shards.py` says why); processes that lose a member
(`ray_rollouts.py` survives that).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Unpack, cast

import torch.distributed as dist
from torch import nn

from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.records import Rollout
from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.sampler.rollout import rollout
from thoughtcache.scale.exchange import exchange, failures_told, process_group
from thoughtcache.scale.shards import plan_shards
from thoughtcache.scale.wire import pack_rollouts, unpack_rollouts


def rollout_across_processes(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    *,
    to_rank: int | None = None,
    timeout_seconds: float = 1800.0,
    **options: Unpack[RolloutOptions],
) -> list[Rollout]:
    """Sample one thought sequence per prompt, on all processes of the default process group together.

    Without a process group, or in one of a single process, it is `rollout`. All processes call it with the same
    arguments and weights.

    Args:
        model: model as `rollout` takes it.
        prompt_ids: token ids of *all* prompts, the same on every process.
        to_rank: the only process that gets the rollouts; None gives them to every process.
        timeout_seconds: how long a process waits for the slowest other one after its own share.
        **options: options as `rollout` takes them; `batch_size` counts the sequences that one process decodes at once.

    Returns:
        One `Rollout` per prompt, in order; an empty list on processes other than `to_rank`.

    Raises:
        ValueError: if `rollout` refuses its arguments, if `to_rank` or `timeout_seconds` is out of range, or if another
            process made another call.
        LostProcess: if another process was killed, failed, or is late; the message names it.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    if to_rank is not None and not 0 <= to_rank < world:
        raise ValueError(f"to_rank must be a rank from 0 to {world - 1} or None for all, got {to_rank}")
    if timeout_seconds <= 0:
        raise ValueError(f"timeout_seconds must be positive, got {timeout_seconds}")
    if world == 1:
        return rollout(model, prompt_ids, **options)
    check_prompts(prompt_ids, open_policy(model))
    rank = dist.get_rank()
    with process_group(timeout_seconds) as group:
        call = _digest(prompt_ids, to_rank, options)
        for other, theirs in enumerate(exchange([call] * world, group, timeout_seconds)):
            if theirs != call:
                raise ValueError(
                    f"process {other} called with other prompts or options than process {rank}; give every process all "
                    "prompts in the same order, not its own share of them"
                )
        shards = plan_shards(prompt_ids, world)
        with failures_told(group):
            mine = rollout(model, prompt_ids, rows=shards[rank], **options) if rank < len(shards) else []
        packed = pack_rollouts(mine)
        wanted = [packed if to_rank in (None, other) else b"" for other in range(world)]
        received = exchange(wanted, group, timeout_seconds)
    if to_rank not in (None, rank):
        return []
    device = open_policy(model).device
    found = {rank: mine} | {r: unpack_rollouts(data, device) for r, data in enumerate(received) if r != rank}
    by_row = {row: record for r, rows in enumerate(shards) for row, record in zip(rows, found[r], strict=True)}
    return [by_row[row] for row in range(len(prompt_ids))]


def _digest(prompt_ids: Sequence[Sequence[int]], to_rank: int | None, options: RolloutOptions) -> bytes:
    """A digest of what a call asks for, 32 bytes; the tokenizer, like the weights, is taken on trust."""
    plain = sorted((name, value) for name, value in options.items() if name != "tokenizer")
    call = json.dumps([[list(ids) for ids in prompt_ids], to_rank, plain], default=_plain)
    return hashlib.blake2b(call.encode(), digest_size=32).digest()


def _plain(value: object) -> int | list[object]:
    """The JSON form of values that have none of their own: integers of numpy, and sequences of all kinds."""
    return int(value) if isinstance(value, Integral) else list(cast(Iterable[object], value))
