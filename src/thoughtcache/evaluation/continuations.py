"""How likely continuations are under the bounded policy, and whether greedy decoding would give them.

The end of a text is scored. What stands before it is the prompt, which stays in the cache, and thoughts, which may
leave.

Axes: N tokens, d model size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.scores import row_scores
from thoughtcache.policy.token_logprobs import head_logits
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.sampler.given import given_text, with_own_evictions


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """A text whose end is scored.

    Attributes:
        prompt_ids: tokens that stay in the cache, at least one.
        thought_ids: the tokens behind them, those that are scored included.
        num_scored: last tokens that are scored, 1 to all of the thoughts.
    """

    prompt_ids: list[int]
    thought_ids: list[int]
    num_scored: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinuationScore:
    """The score of one continuation.

    Attributes:
        logprob: sum of the log-probabilities of its tokens, in nats, at temperature 1.
        is_greedy: whether each of its tokens is the most likely one.
    """

    logprob: float
    is_greedy: bool


@torch.no_grad()
def score_continuations(
    model: nn.Module,
    texts: Sequence[Continuation],
    cache: CacheSettings,
    *,
    batch_size: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[ContinuationScore]:
    """Score texts, the longest first.

    Args:
        model: the adapted model.
        texts: what is scored.
        cache: the cache, resolved.
        batch_size: texts that are passed at once.
        seed: seed of eviction policies that draw; text `i` has `seed + i`.
        progress: called with the number of texts that were scored.

    Returns:
        One score per text, in order.
    """
    order = sorted(range(len(texts)), key=lambda i: (-len(texts[i].thought_ids), -len(texts[i].prompt_ids), i))
    found: dict[int, ContinuationScore] = {}
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        rows = [given_text(texts[i].prompt_ids, texts[i].thought_ids, cache, seed=seed + i) for i in numbers]
        logprobs, greedy = _score(model, with_own_evictions(model, rows))
        for row, i in enumerate(numbers):
            scored = slice(len(texts[i].thought_ids) - texts[i].num_scored, len(texts[i].thought_ids))
            found[i] = ContinuationScore(
                logprob=logprobs[row, scored].double().sum().item(), is_greedy=bool(greedy[row, scored].all())
            )
        if progress is not None:
            progress(len(numbers))
    return [found[i] for i in range(len(texts))]


def _score(model: nn.Module, rows: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """[B, T] log-probability of each thought, and whether it is the most likely token."""
    policy = open_policy(model)
    batch = batch_rollouts(rows, policy.device)

    def of_rows(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logits = head_logits(hidden, policy.head)
        chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)
        return chosen, logits.argmax(dim=-1) == targets

    def score(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        return row_scores(of_rows, policy.head, hidden, batch.token_ids[: hidden.shape[0], start:stop], known=known)

    logprobs, greedy = run_replay(model, batch, score, ReplayOptions(anchored=False))
    return logprobs, greedy
