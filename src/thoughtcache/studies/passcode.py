"""How far back does an adapter remember? Passcodes, asked more and more evictions later, on texts it never saw."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.tasks.recall.episode import RecallEpisode
from thoughtcache.tasks.recall.passcode import PasscodeTask
from thoughtcache.train.recall import answer_logprobs

DISTANCES = (0, 1, 2, 4, 8, 16, 32, 64)
"""Evictions between a code and its question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """What was remembered at one distance.

    Attributes:
        num_evictions: evictions between the code and its question, as the texts have them. They are more than were
            asked for where the window is too small for so few.
        num_thoughts: thoughts of a text, the answer included, on average.
        nats: cross-entropy per token of the answer.
        right_tokens: tokens of answers that greedy decoding gives.
        tokens: tokens of all answers.
        right_codes: whole codes that greedy decoding gives.
        codes: codes that were asked for.
        low: lower end of the 95 % Wilson interval of the share of right codes.
        high: upper end of it.
    """

    num_evictions: int
    num_thoughts: float
    nats: float
    right_tokens: int
    tokens: int
    right_codes: int
    codes: int
    low: float
    high: float


@torch.no_grad()
def probe_passcode(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    distances: Sequence[int] = DISTANCES,
    num_codes: int = 64,
    code_length: int = 4,
    kind: str = "words",
    batch_size: int = 16,
    seed: int = 0,
    cache: CacheSettings | None = None,
    own_sentences: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Recall]:
    """The forgetting curve of an adapter.

    Args:
        model: the adapted model.
        tokenizer: tokenizer of the model.
        distances: evictions between a code and its question.
        num_codes: codes per distance.
        code_length: words or digits of a code.
        kind: "words" or "digits".
        batch_size: texts that are scored at once.
        seed: seed of codes and sentences, which are those of no training run.
        cache: the cache whose evictions are counted, the adapter's own by default. Give it inside `full_cache(model)`,
            so that the full cache sees the same texts.
        own_sentences: sentences between a code and its question instead of built-in ones.
        progress: called with the number of codes that were asked.

    Returns:
        One value per distance.

    Raises:
        ValueError: if the window is no integer, or numbers are out of range.
    """
    check_counts(num_codes, batch_size)
    own = find_tuner(model).thought_config.resolve_window(None)
    counted = own if cache is None else cache
    task = PasscodeTask(
        tokenizer=tokenizer, cache=counted, length=code_length, kind=kind, is_test=True, own_sentences=own_sentences
    )
    results = []
    for distance in distances:
        episodes = episodes_of(task, distance, num_codes=num_codes, seed=seed)
        results.append(recall_of(model, episodes, own, batch_size=batch_size, seed=seed, progress=progress))
    return results


def episodes_of(
    task: PasscodeTask, distance: int, *, num_codes: int, seed: int, num_before: int = 0
) -> list[RecallEpisode]:
    """Texts that no training run has seen; their codes depend on the seed and the distance alone.

    Args:
        task: what is told and asked.
        distance: evictions between a code and its question.
        num_codes: number of texts.
        seed: seed of codes and sentences.
        num_before: tokens of sentences before the code.
    """
    return [task.episode(f"probe {seed} {distance} {index}", distance, num_before) for index in range(num_codes)]


def recall_of(
    model: PeftModel,
    episodes: Sequence[RecallEpisode],
    cache: CacheSettings,
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Recall:
    """What is remembered of some episodes together; their answers have equally many tokens.

    Args:
        model: the adapted model.
        episodes: the texts.
        cache: the adapter's cache, resolved.
        batch_size: texts that are scored at once.
        seed: seed of eviction policies that draw.
        progress: called with the number of codes that were asked.
    """
    logprobs, right = answers_of(model, episodes, cache, batch_size=batch_size, seed=seed, progress=progress)
    count = len(episodes)
    codes = int(right.all(dim=1).sum())
    low, high = wilson_interval(codes, count)
    return Recall(
        num_evictions=min(episode.num_evictions for episode in episodes),
        num_thoughts=sum(len(episode.token_ids) for episode in episodes) / count,
        nats=-logprobs.mean().item(),
        right_tokens=int(right.sum()),
        tokens=right.numel(),
        right_codes=codes,
        codes=count,
        low=low,
        high=high,
    )


@torch.no_grad()
def answers_of(
    model: PeftModel,
    episodes: Sequence[RecallEpisode],
    cache: CacheSettings,
    *,
    batch_size: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> tuple[Float[Tensor, "N A"], Float[Tensor, "N A"]]:
    """Log-probability of every token of the answers, and 1 where it is the most likely one; as `recall_of`."""
    options, logprobs, hits = ReplayOptions(anchored=False), [], []
    for start in range(0, len(episodes), batch_size):
        part = episodes[start : start + batch_size]
        found = answer_logprobs(model, model, part, cache, options, seed=seed + start)
        logprobs.append(found[0])
        hits.append(found[1])
        if progress is not None:
            progress(len(part))
    return torch.cat(logprobs), torch.cat(hits)


def check_counts(num_codes: int, batch_size: int) -> None:
    """Refuse numbers below one.

    Raises:
        ValueError: if there is one.
    """
    if num_codes < 1 or batch_size < 1:
        raise ValueError(f"num_codes and batch_size must be at least 1, got {num_codes} and {batch_size}")
