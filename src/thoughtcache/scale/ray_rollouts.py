"""Rollouts by Ray actors, with the adapter that a learner has now, at once or while it goes on learning.

A call is split into the shards of `shards.py`, which the actors of a pool (`ray_pool.py`) sample. A shard that is
sampled again, because its actor died, gives the same tokens: a row depends on `(seed, row)`, its neighbours in the
shard and the adapter alone. The adapter travels when it has changed; a call keeps the one that it began with.

Not covered: more than one call at a time (the second one waits); tried on one machine only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Lock, Thread
from typing import Any, Unpack

import torch
from torch import nn

from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.records import Rollout
from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.scale.adapter_weights import pack_adapter
from thoughtcache.scale.backend import SampledBatch
from thoughtcache.scale.ray_actor import RolloutActor
from thoughtcache.scale.ray_pool import ActorPool, LostActors
from thoughtcache.scale.shards import plan_shards
from thoughtcache.scale.wire import unpack_rollouts

LOADER = "thoughtcache.scale.ray_actor:load_from_folders"
GRACE_SECONDS = 60.0
"""Seconds for what surrounds the sampling of a call: sending and receiving."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call to sample; `adapter`, `prompt_ids` and `options` are references into Ray's object store."""

    adapter: Any
    version: int
    prompt_ids: Any
    options: Any
    shards: list[list[int]]
    device: torch.device


class _Pending:
    """A call that a thread of this process looks after."""

    def __init__(self, future: Future[SampledBatch], timeout_seconds: float) -> None:
        self._future, self._timeout_seconds = future, timeout_seconds

    def result(self) -> SampledBatch:
        """The rollouts.

        Raises:
            LostActors: if no actor is left or the time limit is over.
        """
        try:
            return self._future.result(timeout=self._timeout_seconds)
        except TimeoutError as error:
            if self._future.done():
                raise
            raise LostActors(
                f"no rollouts after {self._timeout_seconds:.0f} seconds, calls before this one included; raise "
                "timeout_seconds, or look why the actors hang"
            ) from error


class RayRollouts:
    """A pool of sampling actors; a `RolloutBackend`.

    Connects to the Ray that is initialised, or calls `ray.init()`: the cluster that `RAY_ADDRESS` names, or one on this
    machine.

    Args:
        arguments: keyword arguments of the loader, for the default one `base` and `adapter`.
        loader: import path of the function that makes the adapted model in each actor.
        num_actors: samplers.
        num_shards: parts of a call, at least as many as actors; more parts wait less for the slowest one, fewer
            refill their slots longer. One per actor by default.
        ahead: sample the next batch while a trainer learns from the current one (its rollouts are then one batch
            stale), or wait for every batch.
        timeout_seconds: bound on the sampling of one batch.
        max_replacements: actors that are started in place of lost ones, over the life of the pool; as many as there
            are actors by default.
        num_cpus: CPUs that Ray reserves for each actor.
        num_gpus: GPUs that Ray reserves for each actor.

    Raises:
        ImportError: if Ray is not installed.
        ValueError: if a value is out of range.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        loader: str = LOADER,
        num_actors: int = 1,
        num_shards: int | None = None,
        ahead: bool = True,
        timeout_seconds: float = 1800.0,
        max_replacements: int | None = None,
        num_cpus: float = 1,
        num_gpus: float = 0,
    ) -> None:
        if num_actors < 1:
            raise ValueError(f"num_actors must be at least 1, got {num_actors}")
        if num_shards is not None and num_shards < num_actors:
            raise ValueError(f"num_shards must be at least num_actors={num_actors} or None, got {num_shards}")
        if timeout_seconds <= 0:
            raise ValueError(f"timeout_seconds must be positive, got {timeout_seconds}")
        if ":" not in loader:
            raise ValueError(f'loader={loader!r} must be an import path "package.module:function"')
        ray = _import_ray()
        if not ray.is_initialized():
            ray.init()
        self.ahead, self.timeout_seconds = ahead, timeout_seconds
        self.num_shards = num_shards or num_actors
        self._ray, self._lock = ray, Lock()
        self._under_way: list[Future[SampledBatch]] = []
        self._version, self._adapter, self._adapter_ref = 0, b"", None
        actor_class = ray.remote(RolloutActor).options(num_cpus=num_cpus, num_gpus=num_gpus)
        self._pool = ActorPool(
            ray,
            lambda: actor_class.remote(loader, dict(arguments)),
            num_actors=num_actors,
            max_replacements=num_actors if max_replacements is None else max_replacements,
        )

    def start(
        self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Unpack[RolloutOptions]
    ) -> _Pending:
        """Push the adapter if it has changed, and begin; see `RolloutBackend`, also for the arguments.

        Raises:
            ValueError: if the prompts are no lists of the model's token ids, or if the model has no thought adapter or
                is inside `disable_adapter()`.
        """
        policy = open_policy(model)
        if not policy.tuner.adapter_enabled:
            raise ValueError(
                "the actors sample with the adapter, which is disabled here; leave disable_adapter(), or call "
                "thoughtcache.rollout for the base model"
            )
        check_prompts(prompt_ids, policy)
        shards = plan_shards(prompt_ids, self.num_shards)
        adapter = pack_adapter(model)
        if adapter != self._adapter:
            self._version, self._adapter, self._adapter_ref = self._version + 1, adapter, self._ray.put(adapter)
        call = _Call(
            adapter=self._adapter_ref,
            version=self._version,
            prompt_ids=self._ray.put([list(ids) for ids in prompt_ids]),
            options=self._ray.put(dict(options)),
            shards=shards,
            device=policy.device,
        )
        future: Future[SampledBatch] = Future()
        self._under_way = [*(earlier for earlier in self._under_way if not earlier.done()), future]
        # A daemon: an interrupted program does not wait for its actors.
        Thread(target=self._fulfil, args=(future, call), daemon=True).start()
        return _Pending(future, len(self._under_way) * self.timeout_seconds + GRACE_SECONDS)

    def rollout(
        self, model: nn.Module, prompt_ids: Sequence[Sequence[int]], **options: Unpack[RolloutOptions]
    ) -> list[Rollout]:
        """Sample as `thoughtcache.rollout` does, by the actors, with the adapter of `model`, which must be enabled.

        Args:
            model: the learner's PEFT model, not wrapped.
            prompt_ids: token ids, one list per prompt.
            **options: options as `thoughtcache.rollout` takes them.

        Returns:
            One `Rollout` per prompt, in order.

        Raises:
            LostActors: if no actor is left or the time limit is over.
        """
        return self.start(model, prompt_ids, **options).result().rollouts

    def close(self) -> None:
        """Stop the actors; the Ray cluster stays."""
        self._pool.close()

    def __enter__(self) -> RayRollouts:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fulfil(self, future: Future[SampledBatch], call: _Call) -> None:
        try:
            with self._lock:
                future.set_result(self._sample(call))
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            future.set_exception(error)

    def _sample(self, call: _Call) -> SampledBatch:
        tasks = [partial(_start_shard, call=call, rows=rows) for rows in call.shards]
        found, num_redispatched = self._pool.run(tasks, self.timeout_seconds)
        by_row: dict[int, Rollout] = {}
        for rows, (version, data) in zip(call.shards, found, strict=True):
            assert version == call.version, "an actor sampled with another adapter"
            by_row |= zip(rows, unpack_rollouts(data, call.device), strict=True)
        return SampledBatch(
            rollouts=[by_row[row] for row in range(len(by_row))],
            adapter_version=call.version,
            num_redispatched=num_redispatched,
        )


def _start_shard(actor: Any, call: _Call, rows: list[int]) -> Any:
    return actor.sample.remote(call.adapter, call.version, call.prompt_ids, call.options, rows)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ImportError('RayRollouts needs Ray: pip install "thoughtcache[ray]"') from error
    return ray
