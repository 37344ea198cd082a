"""How much of the attention output that a window loses does a memory give back, layer by layer?

Let `o` be what comes out of the attention of a layer, after the projection of the heads. On the queries past the first
eviction of some texts, summed over them,

    lost  = |o_full - o_window|^2 / |o_full|^2,        share = 1 - |o_full - o_memory|^2 / |o_full - o_window|^2.

All three are of the same inputs: those that the layer has when the adapted model runs with its full cache. Errors of
one layer never reach the next one, so that every layer is judged alone. `o_window` is the layer under the bounded cache
with the states of the start, `o_memory` the same with the states that absorb what leaves. 1 is all, 0 nothing, and less
than 0 is worse than nothing. LESS (arXiv 2402.09398) trains this quantity.

Not covered: what a linear map without any state would give back of the same inputs, which is much in some layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.cache.eviction import find_eviction_policy
from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.sampler.given import with_own_evictions
from thoughtcache.state.memory import Memory
from thoughtcache.state.unwritten import Unwritten
from thoughtcache.studies.arms import wider_arms
from thoughtcache.studies.passes import Text, check_memory, pieces_of_texts, texts_under

MEMORY = "with its memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShare:
    """What one layer gets back under one cache.

    Attributes:
        layer: decoder layer, from 0.
        cache: `MEMORY` ("with its memory"), or the name of a window without a memory that has as many more slots as the
            states have numbers.
        lost: share of the attention output that the window loses, |o_full - o_window|^2 / |o_full|^2.
        share: how much of that comes back, 1 - |o_full - o_memory|^2 / |o_full - o_window|^2: 1 is all, 0 nothing.
        low: lower end of its 95 % interval over texts (Student's, of the linearised ratio).
        high: upper end of it.
        texts: number of texts.
    """

    layer: int
    cache: str
    lost: float
    share: float
    low: float
    high: float
    texts: int


@torch.no_grad()
def probe_attention_share(
    model: PeftModel,
    texts: Sequence[Text],
    *,
    policies: Sequence[str] = ("sliding",),
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[AttentionShare]:
    """The share of the lost attention output that an adapter's memory gives back, and slots of as many numbers.

    Args:
        model: the adapted model.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        policies: eviction policies of the wider windows beside it, of this package or registered by others. One that
            chooses does so on the base model, token by token, which takes longer than everything else.
        batch_size: texts that are run at once; inputs and outputs of all their layers are held.
        seed: seed of eviction policies that draw.
        progress: called with the number of texts that were looked at.

    Returns:
        One value per cache and layer, `MEMORY` first.

    Raises:
        ValueError: for an adapter whose states no eviction changes, a window that is no integer, an unknown policy,
            fewer than two texts, or thoughts that differ in length or are too short to be evicted.
    """
    tuner = find_tuner(model)
    check_memory(model)
    for policy in policies:
        find_eviction_policy(policy)
    if len(texts) < 2:
        raise ValueError(f"two texts are the least for an interval, got {len(texts)}")
    cache = tuner.thought_config.resolve_window(None)
    rollouts = texts_under(texts, cache, seed=seed)
    errors: dict[str, list[Tensor]] = {}
    for first in range(0, len(rollouts), batch_size):
        last = min(first + batch_size, len(rollouts))
        for name, error in _errors(model, texts[first:last], cache, policies, seed + first).items():
            errors.setdefault(name, []).append(error)
        if progress is not None:
            progress(last - first)
    whole = {name: torch.cat(parts).double() for name, parts in errors.items()}
    full, window = whole.pop(_FULL), whole.pop(_WINDOW)
    return [
        _share(layer, name, full[:, layer].tolist(), window[:, layer].tolist(), error[:, layer].tolist())
        for name, error in whole.items()
        for layer in range(error.shape[1])
    ]


_FULL, _WINDOW = "squared output of the full cache", "error of the window"


def _errors(
    model: PeftModel, texts: Sequence[Text], cache: CacheSettings, policies: Sequence[str], seed: int
) -> dict[str, Float[Tensor, "B L"]]:
    """Squared outputs of the full cache, and squared distances from them, of every text and layer."""
    tuner, rollouts = find_tuner(model), texts_under(texts, cache, seed=seed)
    full = FullCache.of(model, rollouts)
    start = full.prompt_columns + rollouts[0].evictions[0].before_token

    def distance(some: Sequence[Rollout], memory: Memory | None) -> Float[Tensor, "B L"]:
        return squared_distances(model, some, full.inputs, full.outputs, start, memory)

    unwritten, own = Unwritten(tuner.memory()), with_own_evictions(model, rollouts)
    found = {
        _FULL: full.squares(start),
        _WINDOW: distance(own, unwritten),
        MEMORY: distance(own, None),
    }
    extra = math.ceil(tuner.state_size()[1])
    for arm in wider_arms(tuner.thought_config, extra_slots=extra, policies=policies):
        assert arm.config is not None
        wider = arm.config.resolve_window(None)
        assert wider.window is not None
        if len(texts[0][1]) - 1 <= wider.window:
            continue  # it holds everything
        with arm.active(model):
            chosen = with_own_evictions(model, texts_under(texts, wider, seed=seed))
        found[arm.name] = distance(chosen, unwritten)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class FullCache:
    """What the attention of every layer is given and gives when texts run with the full cache.

    Attributes:
        inputs: [B, C, hidden] of every layer.
        outputs: the same, behind the projection of the heads.
        prompt_columns: columns before the first thought.
    """

    inputs: list[Tensor]
    outputs: list[Tensor]
    prompt_columns: int

    @classmethod
    def of(cls, model: PeftModel, texts: Sequence[Rollout]) -> FullCache:
        """Run the texts.

        Nothing else of a piece is kept: each one holds the keys and values of all columns before it.
        """
        inputs, outputs, width = list[list[Tensor]](), list[list[Tensor]](), 0
        for piece in pieces_of_texts(model, texts, full_cache=True):
            inputs.append(piece.inputs)
            outputs.append(piece.outputs)
            width = piece.batch.prompts.ids.shape[1]
        joined = [[torch.cat(of_layer, dim=1) for of_layer in zip(*parts, strict=True)] for parts in (inputs, outputs)]
        return cls(inputs=joined[0], outputs=joined[1], prompt_columns=width)

    def squares(self, start: int) -> Float[Tensor, "B L"]:
        """Squared outputs, summed over the columns from `start` on."""
        return torch.stack([_squared(output[:, start:]) for output in self.outputs], dim=1)


def squared_distances(
    model: PeftModel,
    texts: Sequence[Rollout],
    inputs: Sequence[Float[Tensor, "B C hidden"]],
    outputs: Sequence[Float[Tensor, "B C hidden"]],
    start: int,
    memory: Memory | None,
) -> Float[Tensor, "B L"]:
    """Squared distances of every layer's attention output from another one, summed over columns.

    Args:
        model: the adapted model.
        texts: the texts, with their evictions.
        inputs: what the attention of every layer is given.
        outputs: what is compared.
        start: the first column that counts.
        memory: what learns from the tokens that leave, instead of the adapter's own.
    """
    total = torch.zeros(len(texts), len(outputs), device=outputs[0].device, dtype=torch.float64)
    for piece in pieces_of_texts(model, texts, memory=memory, forced=inputs):
        for layer, output in enumerate(piece.outputs):
            expected = outputs[layer][:, piece.chunk.start : piece.chunk.stop]
            skipped = max(0, start - piece.chunk.start)
            total[:, layer] += _squared((output - expected)[:, skipped:])
    return total


def _squared(values: Float[Tensor, "B n hidden"]) -> Float[Tensor, " B"]:
    return values.double().square().sum(dim=(1, 2))


def _share(
    layer: int, name: str, full: Sequence[float], window: Sequence[float], error: Sequence[float]
) -> AttentionShare:
    """The ratio of sums over texts, and its interval from what each text adds to it."""
    missing, parts = missing_share(window, error)
    low, high = mean_interval(parts)
    return AttentionShare(
        layer=layer,
        cache=name,
        lost=sum(window) / sum(full),
        share=1 - missing,
        low=1 - missing - high,
        high=1 - missing - low,
        texts=len(window),
    )


def missing_share(window: Sequence[float], error: Sequence[float]) -> tuple[float, list[float]]:
    """The share of what the window loses that is still missing, and what each text adds to its error (mean 0).

    Args:
        window: squared distances of the window, one per text.
        error: those of another cache.
    """
    lost, texts = sum(window), len(window)
    ratio = sum(error) / lost
    return ratio, [texts * (one - ratio * of_window) / lost for one, of_window in zip(error, window, strict=True)]
