"""Records that cross stages: what a rollout hands to the learner, and what the learner hands to a loss.

Axis letters, the same everywhere in the project: B batch, T thought tokens, L layers, H kv heads, D head size,
E evicted tokens, G global tokens, R rank, N evictions of one sequence.

Every record is frozen and keyword-only. Not covered: file formats (`report/`), configuration (`config.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenFilters:
    """Filters that make the distribution that tokens are drawn from differ from the scored one; all are off by default.

    Their meaning and order are those of transformers: repetition penalty, minimum length, temperature, top-k, top-p,
    min-p (`sampler/draw/filters.py`). No learner scores them.

    Attributes:
        top_k: number of the most likely tokens that are kept; 0 keeps all.
        top_p: keep the fewest most likely tokens that hold this probability together, in (0, 1]; 1 keeps all.
        min_p: keep tokens that are at least so likely relative to the most likely one, in [0, 1]; 0 keeps all.
        repetition_penalty: positive; divides the positive and multiplies the negative logits of tokens that stand in
            the prompt or were drawn before. Above 1 discourages them; 1 does nothing.
        min_new_tokens: stop tokens are ignored for the first `min_new_tokens` thought tokens.

    Raises:
        ValueError: if a value is out of range.
    """

    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise ValueError(f"top_k must be at least 1 token, or 0 to keep all, got {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be in (0, 1], got {self.top_p}; 1.0 keeps all tokens")
        if not 0.0 <= self.min_p <= 1.0:
            raise ValueError(f"min_p must be in [0, 1], got {self.min_p}; 0.0 keeps all tokens")
        if not 0.0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty must be positive and finite, got {self.repetition_penalty}; 1.0 turns it off"
            )
        if self.min_new_tokens < 0:
            raise ValueError(f"min_new_tokens must be at least 0 tokens, got {self.min_new_tokens}")

    @property
    def truncates(self) -> bool:
        """Whether unlikely tokens are cut off; the most likely one never is."""
        return self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0

    @property
    def active(self) -> bool:
        """Whether any filter is on."""
        return self != TokenFilters()


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """The cache under which sequences are sampled and scored.

    Attributes:
        window: resident thought tokens, an integer by now (`"prompt"` is resolved), or None for the full cache.
        num_evicted: thought tokens that leave at once; None with a full cache.
        eviction: name of the eviction policy.
        positions: "absolute" counts all tokens; "rolling" the prompt and the resident thoughts.
        eviction_options: settings of that policy that are not at their defaults, (name, value) sorted by name.
        budgets: most thoughts that a kv head of every layer holds; None where all have `window`.
        head_budgets: resident thoughts of every kv head of every layer; None where the heads of each layer are alike.
            The mean, of these or else of `budgets`, is `window`.
    """

    window: int | None
    num_evicted: int | None
    eviction: str
    positions: Literal["absolute", "rolling"] = "absolute"
    eviction_options: tuple[tuple[str, int | float | bool | str], ...] = ()
    budgets: tuple[int, ...] | None = None
    head_budgets: tuple[tuple[int, ...], ...] | None = None

    @property
    def first_budgets(self) -> tuple[int, ...] | None:
        """Thoughts before which every layer evicts for the first time; None where all have `window`."""
        return self.budgets if self.head_budgets is None else tuple(map(min, self.head_budgets))

    @property
    def smallest_budget(self) -> int | None:
        """Thoughts before which the first eviction comes; None for the full cache."""
        return self.window if self.first_budgets is None else min(self.first_budgets)

    @property
    def largest_budget(self) -> int | None:
        """Most thoughts that a layer, or a head, holds; None for the full cache."""
        return self.window if self.budgets is None else max(self.budgets)

    @property
    def rolling_window(self) -> int | None:
        """The most thoughts inside which positions roll; None where they count all tokens."""
        return self.largest_budget if self.positions == "rolling" else None


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSettings:
    """Settings under which a rollout was sampled; they travel with it so that nothing is guessed when it is replayed.

    Attributes:
        temperature: divisor of the logits, in sampling and in scoring; 0 means greedy (scored at temperature 1).
        max_new_tokens: upper bound on the thought tokens.
        window: resident thought tokens, an integer by now (`"prompt"` is resolved), or None for the full cache.
        num_evicted: thought tokens that leave at once; None with a full cache.
        eviction: name of the eviction policy.
        seed: seed of the uniform numbers. Row `i` of a call with one seed uses `(seed, i)`, whatever its neighbours
            are; a row with a seed of its own uses `(seed, 0)`, as if it were alone.
        ignore_eos: whether sampling went on past end-of-sequence tokens.
        filters: what was applied to the scored distribution before tokens were drawn.
        stop_strings: texts that ended a sequence.
        positions: "absolute" counts all tokens; "rolling" the prompt and the resident thoughts.
        eviction_options: settings of the eviction policy that are not at their defaults, as in `CacheSettings`.
        budgets: most thoughts that a kv head of every layer holds; None where all have `window`.
        leaves_last: thoughts from the first place of this token sequence on leave after all others, the oldest first; a
            beginning of it counts as soon as it may become one. Empty where no thoughts are so kept back.
        head_budgets: resident thoughts of every kv head, as in `CacheSettings`.
    """

    temperature: float
    max_new_tokens: int
    window: int | None
    num_evicted: int | None
    eviction: str
    seed: int
    ignore_eos: bool
    filters: TokenFilters = TokenFilters()
    stop_strings: tuple[str, ...] = ()
    positions: Literal["absolute", "rolling"] = "absolute"
    eviction_options: tuple[tuple[str, int | float | bool | str], ...] = ()
    budgets: tuple[int, ...] | None = None
    leaves_last: tuple[int, ...] = ()
    head_budgets: tuple[tuple[int, ...], ...] | None = None

    @property
    def cache(self) -> CacheSettings:
        """The part of these settings that describes the cache."""
        return CacheSettings(
            window=self.window,
            num_evicted=self.num_evicted,
            eviction=self.eviction,
            positions=self.positions,
            eviction_options=self.eviction_options,
            budgets=self.budgets,
            head_budgets=self.head_budgets,
        )

    def under_cache(self, cache: CacheSettings) -> SamplingSettings:
        """These settings with another cache in place of their own."""
        return replace(
            self,
            window=cache.window,
            num_evicted=cache.num_evicted,
            eviction=cache.eviction,
            positions=cache.positions,
            eviction_options=cache.eviction_options,
            budgets=cache.budgets,
            head_budgets=cache.head_budgets,
        )

    def with_full_cache(self) -> SamplingSettings:
        """These settings with the full cache, which evicts nothing; positions then count all tokens."""
        full = replace(self.cache, window=None, num_evicted=None, positions="absolute", budgets=None, head_budgets=None)
        return self.under_cache(full)

    @property
    def rolling_window(self) -> int | None:
        """The most thoughts inside which positions roll; None where they count all tokens."""
        return self.cache.rolling_window

    @property
    def scoring_temperature(self) -> float:
        """Temperature of the scored distribution: the sampling temperature, or 1 for greedy decoding."""
        return self.temperature if self.temperature > 0 else 1.0


def slot_dtype(window: int) -> torch.dtype:
    """The smallest dtype in which the slots of a window are recorded: int16, or int32 from 32769 slots on."""
    return torch.int16 if window - 1 <= torch.iinfo(torch.int16).max else torch.int32


@dataclass(frozen=True, kw_only=True, slots=True)
class Eviction:
    """One eviction of one sequence: decided once when sampling, repeated by the learner.

    Attributes:
        before_token: index of the thought token whose processing needed the room (0-based).
        num_tokens: thought tokens that left, per layer and head.
        slots: which resident slots left, ascending, per layer and kv head, of the M layers that were full (all of them,
            unless budgets differ by layer); None means the oldest ones. Slots count what the head holds; where budgets
            differ by head, they are -1 in heads that were not full. Sampling records them in `slot_dtype`.
    """

    before_token: int
    num_tokens: int
    slots: Int[Tensor, "M H E"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Continuation:
    """How a link of a chain goes on from the cache of the link before it; only the end of its prompt is processed.

    Before the last token of the link before is processed, all of that link's thoughts in front of `first_kept` leave
    and are absorbed. The others stay as they were written, where they were written, and belong to the prompt from now
    on. The last token is the first one that is processed behind them, and belongs to the prompt as well.

    Attributes:
        first_kept: number of the first thought of the link before that stays, if it is still resident.
        position: position of the first thought: the tokens that the chain has seen before.
        state: [L, ...] thought state after the others were absorbed; None as `Rollout.states`.
    """

    first_kept: int
    position: int
    state: Float[Tensor, "L *state"] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rollout:
    """One sampled sequence with everything that is needed to repeat it exactly.

    Attributes:
        prompt_ids: tokens of the prompt, without padding; of a link that continues, the tokens that are resident.
        token_ids: sampled thought tokens, including the stop token or the token that completed a stop string.
        logprobs: [T] log-probability of each sampled token under the scored distribution: temperature and the whole
            softmax, without filters. It is what `replay` computes and a learner needs.
        sampled_logprobs: [T] the same under the distribution that was drawn from, after the filters of
            `settings.filters`; None where none was on, because `logprobs` is that already.
        evictions: the evictions in order (N of them).
        states: [N, L, G, R] thought state after each eviction, at least fp32 (the *anchors*); None if the policy
            that sampled has no evolving state, or they were not asked for; on the host.
        keys_values: [L, 2, H, P + T - 1, D] keys and values of all processed tokens, if `rollout` was asked to record
            them.
        entropies: [T] entropy (nats) of each scored distribution, recorded together with `keys_values`.
        finish_reason: "stop" after a stop token, string or sequence, else "length".
        settings: how it was sampled.
        continues: how it goes on from the cache of the link before it; None where it begins with its prompt.
    """

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: Float[Tensor, " T"]
    sampled_logprobs: Float[Tensor, " T"] | None = None
    evictions: tuple[Eviction, ...] = ()
    states: Float[Tensor, "N L *state"] | None = None
    keys_values: Float[Tensor, "L 2 H C D"] | None = None
    entropies: Float[Tensor, " T"] | None = None
    finish_reason: FinishReason
    settings: SamplingSettings
    continues: Continuation | None = None


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
