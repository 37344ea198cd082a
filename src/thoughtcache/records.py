"""Records that cross stages: what a rollout hands to the learner, and what the learner hands to a loss.

Axis letters, the same everywhere in the project: B batch, T thought tokens, L layers, H kv heads, D head size,
E evicted tokens, G global tokens, R rank, N evictions of one sequence.

Every record is frozen and keyword-only. Not covered: file formats (`report/`), configuration (`config.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """How a rollout was sampled; it travels with the rollout so that nothing is guessed when it is replayed.

    Attributes:
        temperature: divisor of the logits, in sampling and in scoring; 0 means greedy (scored at temperature 1).
        max_new_tokens: upper bound on the thought tokens.
        window: resident thought tokens, an integer by now (`"prompt"` is resolved), or None for the full cache.
        num_evicted: thought tokens that leave at once; None with a full cache.
        eviction: name of the eviction policy.
        seed: seed of the uniform numbers; row `i` of a call uses `(seed, i)`, whatever its neighbours are.
        ignore_eos: whether sampling went on past end-of-sequence tokens.
    """

    temperature: float
    max_new_tokens: int
    window: int | None
    num_evicted: int | None
    eviction: str
    seed: int
    ignore_eos: bool

    @property
    def scoring_temperature(self) -> float:
        """Temperature of the scored distribution: the sampling temperature, or 1 for greedy decoding."""
        return self.temperature if self.temperature > 0 else 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Eviction:
    """One eviction of one sequence: decided once when sampling, repeated by the learner.

    Attributes:
        before_token: index of the thought token whose processing needed the room (0-based).
        num_tokens: thought tokens that left, per layer and head.
        slots: which resident slots left, ascending, per layer and kv head; None means the oldest ones.
    """

    before_token: int
    num_tokens: int
    slots: Int[Tensor, "L H E"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled sequence with everything that is needed to repeat it exactly.

    Attributes:
        prompt_ids: tokens of the prompt, without padding.
        token_ids: sampled thought tokens, the end-of-sequence token included if there was one.
        logprobs: [T] log-probability of each sampled token under the scored distribution.
        evictions: the evictions in order (N of them).
        states: [N, L, G, R] thought state after each eviction, at least fp32 (the *anchors*); None if the policy
            that sampled has no evolving state.
        keys_values: [L, 2, H, P + T - 1, D] keys and values of all processed tokens, if `rollout` was asked to record
            them; a view into the record of its whole batch.
        entropies: [T] entropy (nats) of each scored distribution, recorded together with `keys_values`.
        finish_reason: "stop" after an end-of-sequence token, else "length".
        settings: how it was sampled.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: Float[Tensor, " T"]
    evictions: tuple[Eviction, ...] = ()
    states: Float[Tensor, "N L G R"] | None = None
    keys_values: Float[Tensor, "L 2 H C D"] | None = None
    entropies: Float[Tensor, " T"] | None = None
    finish_reason: FinishReason
    settings: SamplingSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogProbs:
    """Log-probabilities of the sampled tokens of a batch, right-padded with zeros.

    Attributes:
        logprobs: [B, T] log-probability of each thought token; 0 where `mask` is False.
        mask: [B, T] True on real thought tokens.
        entropies: [B, T] entropy (nats) of each scored distribution, without gradient; 0 where `mask` is False.
    """

    logprobs: Float[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    entropies: Float[Tensor, "B T"]
