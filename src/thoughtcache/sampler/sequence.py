"""One sequence in a slot: what is recorded of it, from its prompt to its rollout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions
from thoughtcache.cache.eviction import ScoredEviction, find_eviction_policy
from thoughtcache.cache.schedule import eviction_points
from thoughtcache.ends import stop_token_ids
from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.policy.token_ids import check_prompts, check_stop_ids, check_stop_sequences
from thoughtcache.records import CacheSettings, Continuation, Eviction, Rollout, SamplingSettings
from thoughtcache.sampler.draw.drawing import Drawn
from thoughtcache.sampler.draw.rules import DrawRules
from thoughtcache.sampler.draw.stop_strings import make_stop_strings
from thoughtcache.sampler.request import GoingOn, Request
from thoughtcache.sampler.slots.kv_recorder import KVRecorder
from thoughtcache.sampler.slots.slot_cache import SlotCache


@dataclass(kw_only=True, slots=True)
class RunningSequence:
    """A request from its arrival to its end.

    Attributes:
        request: its number.
        prompt: its tokens.
        settings: what its rollout says about how it was sampled.
        rules: how its tokens are drawn.
        recorder: recorder of its keys and values, once it has a slot; None where they are not recorded.
        states: [evictions, L, ...] on the host, with room for all that can come: one piece, so that it does not lie
            between what decoding allocates and frees.
        chosen: [M, H, E] slots of each eviction so far, in the M layers that were full, on the host; None where the
            oldest left.
        num_told: tokens that were told in events.
        go_on: see `Request`.
        continues: how it goes on from the sequence before in its slot; None where it begins with its prompt.
    """

    request: int
    prompt: tuple[int, ...]
    settings: SamplingSettings
    rules: DrawRules
    recorder: KVRecorder | None = None
    states: Tensor | None = None
    chosen: list[Tensor | None] = field(default_factory=list)
    num_told: int = 0
    go_on: Callable[[Rollout], GoingOn | None] | None = None
    continues: Continuation | None = None

    def note_eviction(self, chosen: Tensor | None, states: Tensor | None) -> None:
        """Record an eviction; nothing waits until the sequence is taken out.

        Args:
            chosen: [M, H, E] what left the M layers that were full, None for the oldest.
            states: [L, ...] the states after it, None where they are not recorded.
        """
        if states is not None:
            if self.states is None:
                count = len(self._points(self.settings.max_new_tokens))
                self.states = _on_host((count, *states.shape), states)
            self.states[len(self.chosen)].copy_(states, non_blocking=True)
        # Records grow with the length, so they leave a GPU at once.
        self.chosen.append(None if chosen is None else _on_host(chosen.shape, chosen).copy_(chosen, non_blocking=True))

    def rollout(self, cache: SlotCache, slot: int, num_drawn: int, drawn: Drawn) -> Rollout:
        """The record of the sequence, cut at its end; asked for once, because it takes the states along.

        Args:
            cache: cache in which its last keys and values still are.
            slot: its slot.
            num_drawn: tokens that the slot has drawn.
            drawn: what counts of the drawn tokens.
        """
        length = len(drawn.token_ids)
        processed = len(self.prompt) + length - 1
        points = self._points(length)
        if cache.device.type == "cuda" and self.chosen:
            # The host is about to read what the device was asked to write.
            torch.cuda.current_stream(cache.device).synchronize()
        keys_values = None
        if self.recorder is not None:
            if self.recorder.num_recorded < processed:
                self.recorder.copy_new(cache, slot, len(self.prompt) + num_drawn - 1)
            keys_values = self.recorder.finished(processed)
        return Rollout(
            prompt_ids=list(self.prompt),
            token_ids=drawn.token_ids,
            logprobs=drawn.logprobs,
            sampled_logprobs=drawn.sampled_logprobs,
            entropies=drawn.entropies,
            evictions=tuple(
                Eviction(before_token=point, num_tokens=self.settings.num_evicted or 0, slots=chosen)
                for point, chosen in zip(points, self.chosen, strict=False)
            ),
            states=self._hand_over(len(points)),
            keys_values=keys_values,
            finish_reason=drawn.finish_reason,
            settings=self.settings,
            continues=self.continues,
        )

    def _hand_over(self, num_evictions: int) -> Tensor | None:
        """The states after so many evictions, which this object then has no more; None if there are none.

        They are copied where they would hold on to more memory than they fill, or to pinned memory.
        """
        states, self.states = self.states, None
        if states is None or not num_evictions:
            return None
        return states if len(states) == num_evictions and not states.is_pinned() else states[:num_evictions].clone()

    def _points(self, num_thoughts: int) -> tuple[int, ...]:
        """Numbers of the thoughts before which an eviction happens; the last thought is drawn and not processed."""
        return eviction_points(num_thoughts - 1, self.settings.cache.smallest_budget, self.settings.num_evicted)


def new_sequence(
    number: int,
    request: Request,
    policy: PolicyHandle,
    cache: CacheSettings,
    tokenizer: PreTrainedTokenizerBase | None,
    continues: Continuation | None = None,
) -> RunningSequence:
    """A request as a sequence that waits.

    Args:
        number: number of the request.
        request: what is asked for.
        policy: the parts of the model.
        cache: cache settings of the sampling.
        tokenizer: tokenizer of the model, or None.
        continues: how it goes on from another sequence; None where it begins with its prompt.

    Raises:
        ValueError: if the model cannot sample it.
    """
    check_prompts([request.prompt_ids], policy)
    if request.stop_ids is not None:
        check_stop_ids(request.stop_ids, policy)
    if request.given_tokens is not None:
        check_prompts([request.given_tokens], policy)
    check_stop_sequences(request.stop_sequences, policy)
    texts = make_stop_strings(request.stop_strings, tokenizer)
    settings = SamplingSettings(
        temperature=request.temperature,
        max_new_tokens=request.max_new_tokens,
        window=cache.window,
        num_evicted=cache.num_evicted,
        eviction=cache.eviction,
        seed=request.seed,
        ignore_eos=request.ignore_eos,
        filters=request.filters,
        stop_strings=() if texts is None else texts.strings,
        positions=cache.positions,
        eviction_options=cache.eviction_options,
        budgets=cache.budgets,
        leaves_last=tuple(request.leaves_last),
        head_budgets=cache.head_budgets,
    )
    if request.leaves_last:
        check_leaves_last(cache)
    prompt = tuple(request.prompt_ids)
    before = len(prompt) if continues is None else continues.position
    check_positions(before, request.max_new_tokens, policy.reach, rolling_window=settings.rolling_window)
    if request.ignore_eos or request.is_given_whole:
        stop_ids: tuple[int, ...] = ()
    elif request.stop_ids is not None:
        stop_ids = tuple(request.stop_ids)
    else:
        stop_ids = tuple(stop_token_ids(policy.tuner.model.generation_config.eos_token_id, tokenizer))
    rules = DrawRules(
        temperature=request.temperature,
        filters=request.filters,
        max_new_tokens=request.max_new_tokens,
        seed=(request.seed, request.row),
        stop_ids=stop_ids,
        stop_strings=texts,
        stop_sequences=tuple(tuple(sequence) for sequence in request.stop_sequences),
        given_tokens=None if request.given_tokens is None else tuple(request.given_tokens),
    )
    return RunningSequence(
        request=number, prompt=prompt, settings=settings, rules=rules, go_on=request.go_on, continues=continues
    )


def check_leaves_last(cache: CacheSettings) -> None:
    """Refuse an eviction policy that cannot let some thoughts leave last.

    Raises:
        ValueError: if it chooses without scores.
    """
    kind = find_eviction_policy(cache.eviction)
    if cache.window is not None and kind.chooses and not issubclass(kind, ScoredEviction):
        raise ValueError(
            f"eviction={cache.eviction!r} chooses thoughts without scoring them, so that those of an open summary "
            "cannot leave last; use an eviction policy that scores, or sliding"
        )


def _on_host(shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.empty(tuple(shape), dtype=like.dtype, pin_memory=like.device.type == "cuda")
