"""Training on recall episodes: how likely the adapter, under its window, finds what it was told before.

The loss is the cross-entropy of the answer's tokens alone. Nothing in the window tells them, so that a memory that does
not carry them has no way to a low loss; ordinary text lets a model do without (docs/lab-log.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.scores import ScoreFunction, row_scores
from thoughtcache.policy.token_logprobs import token_logprobs
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.given import given_text, with_own_evictions
from thoughtcache.tasks.recall.episode import RecallEpisode


def answer_logprobs(
    model: nn.Module,
    adapted: PeftModel,
    episodes: Sequence[RecallEpisode],
    cache: CacheSettings,
    options: ReplayOptions,
    *,
    seed: int = 0,
) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
    """Log-probability of every token of the answers under the cache, and whether it is the most likely one.

    Args:
        model: the adapted model, wrapped (DDP, accelerate) or not.
        adapted: the same without a wrapper.
        episodes: texts whose answers have equally many tokens.
        cache: the adapter's cache, resolved.
        options: the learner's; states come from the weights of the moment, so `anchored` must be False.
        seed: seed of eviction policies that draw.

    Raises:
        ValueError: for answers of different lengths.
    """
    lengths = {episode.num_answer for episode in episodes}
    if len(lengths) != 1:
        raise ValueError(f"answers of one batch must have equally many tokens, got {sorted(lengths)}")
    policy = open_policy(adapted)
    by_length = sorted(range(len(episodes)), key=lambda row: -len(episodes[row].token_ids))
    texts = [(episodes[row].prompt_ids, episodes[row].token_ids) for row in by_length]
    rollouts = [given_text(*text, cache, seed=seed + row) for text, row in zip(texts, by_length, strict=True)]
    batch = batch_rollouts(with_own_evictions(adapted, rollouts), policy.device)
    num_answer = lengths.pop()
    logprobs, hits = run_replay(model, batch, _answers_only(policy, batch, num_answer), options)
    ends = torch.tensor(batch.lengths, device=logprobs.device)
    columns = ends[:, None] - num_answer + torch.arange(num_answer, device=logprobs.device)
    back = torch.tensor(by_length, device=logprobs.device).argsort()
    return logprobs.gather(1, columns)[back], hits.gather(1, columns)[back]


def _answers_only(policy: PolicyHandle, batch: RolloutBatch, num_answer: int) -> ScoreFunction:
    """Scores of the answers' tokens; the head never sees the others, whose scores are zero."""
    lengths = batch.lengths

    def rows(hidden: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        logprobs, _ = token_logprobs(hidden, targets, policy.head, 1.0)
        with torch.no_grad():
            best = policy.head(hidden).argmax(dim=-1)
        return logprobs, (best == targets).to(logprobs.dtype)

    def score(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        taking_part = range(hidden.shape[0])
        first = min(max(start, lengths[row] - num_answer) for row in taking_part)
        last = min(stop, max(lengths[row] for row in taking_part))
        nothing = hidden.sum(dim=-1) * 0.0
        if first >= last:
            return nothing, nothing.detach()
        part = slice(first - start, last - start)
        targets = batch.token_ids[: hidden.shape[0], first:last]
        values = None if known is None else tuple(value[:, part].contiguous() for value in known)
        found, hits = row_scores(rows, policy.head, hidden[:, part], targets, known=values)
        ends = torch.tensor(lengths[: hidden.shape[0]], device=hidden.device)[:, None]
        columns = torch.arange(first, last, device=hidden.device)
        is_answer = (columns >= ends - num_answer) & (columns < ends)
        padding = (first - start, stop - last)
        scored = nn.functional.pad(torch.where(is_answer, found, 0.0), padding)
        return nothing + scored, nn.functional.pad(torch.where(is_answer, hits, 0.0), padding)

    return score
