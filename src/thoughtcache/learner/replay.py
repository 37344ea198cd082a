"""Execution 2: the learner repeats a rollout segment by segment, with gradient.

What is scored is the scored distribution: temperature and the whole softmax. Filters that sampling applied (top-k and
the like, `SamplingSettings.filters`) are not repeated, so a filtered rollout is scored under another distribution than
it was drawn from (`Rollout.sampled_logprobs` has that one); training refuses such rollouts.

The learner decides nothing: lengths give the segments, the record gives the evicted slots, the anchors give the states
(their recorded values with the gradient of the recomputed ones). One segment is `chunk.py`; loss functions take what
comes out.

Gradient modes:
    "exact"     through keys, values and states of all segments;
    "detached"  keys and values are cut at every segment boundary, the states are not (cheaper, and biased: measured);
    n           exact inside blocks of n segments; keys, values and states are cut between blocks.

Two ways to the same gradient: `recompute=True` (reverse.py) keeps memory flat in the length of the rollout for one more
forward pass; `recompute=False` is plain autograd through all segments, its naive twin, and the faster one where
everything fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.options import CHUNK_TOKENS, ReplayOptions
from thoughtcache.learner.plain import plain_replay
from thoughtcache.learner.reverse import reverse_replay
from thoughtcache.learner.waves import score_waves
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.limits import check_rollout_positions
from thoughtcache.policy.modes import GradientMode, Place
from thoughtcache.policy.scores import ScoreFunction, running_autocast, token_scores
from thoughtcache.policy.token_ids import check_rollouts
from thoughtcache.records import Rollout, TokenLogProbs


def replay(
    model: nn.Module,
    rollouts: Sequence[Rollout],
    *,
    gradient: GradientMode = "exact",
    anchored: bool = True,
    full_cache: bool = False,
    recompute: bool = True,
    checkpoint_layers: bool = False,
    chunk_tokens: int | None = CHUNK_TOKENS,
    kv_log: Place = "device",
    reuse: bool = False,
) -> TokenLogProbs:
    """Log-probabilities of the sampled tokens under the policy that sampled them, without filters; differentiable.

    Args:
        model: the adapted model, wrapped (DDP, accelerate) or not; the call goes through its `forward`. An autocast
            region counts if this call stands in it, as it does for `rollout`; states stay in fp32 in either case.
        rollouts: sequences sampled under one set of cache settings. A link that goes on from the cache of another one
            stands behind it (`waves.py`); with such links the gradient is exact and nothing is reused.
        gradient: "exact", "detached" or the number of segments per exact block.
        anchored: use the recorded states (with the gradient of the recomputed ones). Right as long as the weights are
            those that sampled; turn it off after an optimiser step.
        full_cache: score without evictions, for a full-context reference.
        recompute: keep activations of one chunk at a time and run chunks again in the backward pass; False keeps all.
        checkpoint_layers: keep only the inputs of the layers inside a chunk, for one more forward pass.
        chunk_tokens: bound on the tokens of a row whose activations live at once; None keeps segments whole.
        kv_log: where `recompute` keeps the keys and values of all tokens: "device" or "host".
        reuse: take keys, values, states and scores from the records of `rollout(record_kv=...)`, so that nothing runs
            twice before the backward pass. Right as long as the weights are those that sampled, as `anchored`. The
            returned scores are the recorded ones. Without gradients the flag has no effect.

    Returns:
        One row per rollout, in order: log-probabilities [B, T] with gradient, in nats and at least fp32, and a mask.

    Raises:
        ValueError: if a mode is unknown, `rollouts` is no list of rollouts of the model's tokens, settings are mixed,
            anchors are missing or of another shape, or `reuse` comes without records or together with what was not
            sampled.
    """
    options = ReplayOptions(
        gradient=gradient,
        anchored=anchored,
        full_cache=full_cache,
        recompute=recompute,
        checkpoint_layers=checkpoint_layers,
        chunk_tokens=chunk_tokens,
        kv_log=kv_log,
        reuse=reuse,
    )
    return score_rollouts(model, rollouts, options)


def score_rollouts(model: nn.Module, rollouts: Sequence[Rollout], options: ReplayOptions) -> TokenLogProbs:
    """`replay`, with its options as one value."""
    policy = open_policy(model)
    check_rollouts(rollouts, policy)
    if any(rollout.continues is not None for rollout in rollouts):
        return score_waves(model, policy, rollouts, options)
    by_length = sorted(range(len(rollouts)), key=lambda row: -len(rollouts[row].token_ids))
    batch = batch_rollouts([rollouts[row] for row in by_length], policy.device)
    score = token_scores(policy, batch.token_ids, batch.settings.scoring_temperature)
    logprobs, entropies = run_replay(model, batch, score, options)
    back = torch.tensor(by_length, device=policy.device).argsort()
    zero = logprobs.new_zeros(())
    return TokenLogProbs(
        logprobs=torch.where(batch.mask, logprobs, zero)[back],
        mask=batch.mask[back],
        entropies=torch.where(batch.mask, entropies, zero.to(entropies.dtype))[back],
    )


def run_replay(
    model: nn.Module,
    batch: RolloutBatch,
    score: ScoreFunction,
    options: ReplayOptions,
) -> tuple[Tensor, ...]:
    """Run all segments through the wrapped model and join the scores to [B, T] tensors.

    Args:
        model: adapted model, wrapped or not.
        batch: the rollouts, best sorted by falling length.
        score: see `scores.ScoreFunction`.
        options: see `replay`; with `reuse`, `score` must return what the records hold: log-probabilities and entropies.
    """
    policy = open_policy(model)
    if options.full_cache:
        batch = replace(batch, settings=batch.settings.with_full_cache())
    check_rollout_positions(batch.rollouts, batch.settings, policy.reach)
    chunks = batch_chunks(batch, options.chunk_tokens)
    autocast = running_autocast(policy.device.type)

    def request(tuner: ThoughtModel) -> tuple[Tensor, ...]:
        run = reverse_replay if options.recompute and torch.is_grad_enabled() else plain_replay
        # Sampling does not go through `forward`: a region that accelerate has put around it is not the policy's.
        with torch.autocast(**autocast):
            return run(policy, batch, chunks, score, options)[0]

    outputs: tuple[Tensor, ...] = model(thought_request=request)
    return outputs
