"""What do the states of an adapter carry? Its loss on a text, with its own states, with none, and with another text's.

The loss is that of the tokens after the first eviction. Differences are taken text by text. Recorded states of one text
are put in the place of another's for the replay, so that everything else stays: weights, window, evictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.learner.replay import replay
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import given_text, rollouts_of_given, with_own_evictions

OWN = "its own states"
NONE = "nothing written"
OTHERS = "another text's"
WINDOW = "base, window"
FULL = "base, full cache"


@dataclass(frozen=True, kw_only=True, slots=True)
class StateUse:
    """The loss on texts under one kind of states.

    Attributes:
        states: what they are: `OWN`, `NONE` (those of the start), `OTHERS` (of another text of the batch, after as many
            evictions), `WINDOW` or `FULL`.
        nats: cross-entropy per token after the first eviction, on average over texts.
        by_evictions: the same for the tokens between one eviction and the next, one value per eviction.
        difference: how much more it is than under the adapter's own states; 0 for these.
        low: lower end of the 95 % interval of the difference, paired by text.
        high: upper end of it.
        texts: number of texts.
    """

    states: str
    nats: float
    by_evictions: list[float]
    difference: float
    low: float
    high: float
    texts: int


@torch.no_grad()
def probe_state_use(
    model: PeftModel,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[StateUse]:
    """Losses of an adapter with its own states, with none, with another text's, and of the base beside it.

    Args:
        model: the adapted model.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        batch_size: texts that are scored at once, at least 2; each one lends its states to the next.
        seed: seed of eviction policies that draw.
        progress: called with the number of texts that were looked at.

    Returns:
        One value per kind of states, `OWN` first.

    Raises:
        ValueError: for an adapter whose states no eviction changes, a window that is no integer, fewer than three
            texts, or thoughts that differ in length or are too short to be evicted.
    """
    tuner = find_tuner(model)
    cache = tuner.thought_config.resolve_window(None)
    if not tuner.memory().state_bytes:
        raise ValueError(
            "no eviction changes the states of this adapter (plain LoRA, absorb=False, or window=None), so that they "
            "carry nothing; probe an adapter that absorbs"
        )
    lengths = sorted({len(thoughts) for _, thoughts in texts})
    if batch_size < 2 or len(texts) < 3:  # with two, one difference has no spread
        raise ValueError(
            f"three texts and batches of two are the least, got {len(texts)} texts in batches of {batch_size}"
        )
    if len(lengths) != 1:
        raise ValueError(
            f"thoughts must be equally long, got {lengths[0]} to {lengths[-1]} tokens; cut the longer ones"
        )
    rollouts = [given_text(*text, cache, seed=seed + row) for row, text in enumerate(texts)]
    if not rollouts[0].evictions:
        raise ValueError(
            f"all {lengths[0]} thoughts stay in window={cache.window}, and nothing is evicted; give longer texts"
        )
    losses: dict[str, list[Tensor]] = {name: [] for name in (OWN, NONE, OTHERS, WINDOW, FULL)}
    for first, last in _batches(len(texts), batch_size):
        for name, loss in _losses(model, rollouts[first:last]).items():
            losses[name].append(loss)
        if progress is not None:
            progress(last - first)
    whole = {name: torch.cat(parts) for name, parts in losses.items()}
    starts = [eviction.before_token + 1 for eviction in rollouts[0].evictions]
    return [_use(name, loss, whole[OWN], starts) for name, loss in whole.items()]


def _losses(model: PeftModel, texts: Sequence[Rollout]) -> dict[str, Float[Tensor, "B T"]]:
    """Losses of all tokens of a batch under every kind of states."""
    own = rollouts_of_given(model, texts)
    initial = find_tuner(model).initial_states()
    assert initial is not None
    start = torch.stack([state[0] for state in initial])  # [L, ...]
    empty = [replace(row, states=start.expand(len(row.evictions), *start.shape)) for row in own]
    others = [replace(row, states=own[index - 1].states) for index, row in enumerate(own)]
    kinds = ((OWN, own), (NONE, empty), (OTHERS, others))
    found = {name: -replay(model, rows).logprobs.double() for name, rows in kinds}
    with model.disable_adapter():
        found[WINDOW] = -replay(model, with_own_evictions(model, texts)).logprobs.double()
        found[FULL] = -replay(model, texts, full_cache=True).logprobs.double()
    return found


def _batches(count: int, size: int) -> list[tuple[int, int]]:
    """First and last of every batch; none has a single text, which would have no other."""
    starts = list(range(0, count, size))
    if count - starts[-1] == 1 and len(starts) > 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))


def _use(name: str, loss: Float[Tensor, "N T"], own: Float[Tensor, "N T"], starts: Sequence[int]) -> StateUse:
    """The statistics of one kind of states.

    Args:
        name: its name.
        loss: losses of all thoughts.
        own: the same under the adapter's own states.
        starts: the first thought that is predicted after each eviction.
    """
    per_text = loss[:, starts[0] :].mean(dim=1)
    difference = per_text - own[:, starts[0] :].mean(dim=1)
    low, high = (0.0, 0.0) if name == OWN else mean_interval(difference.tolist())
    ends = [*starts[1:], loss.shape[1]]
    return StateUse(
        states=name,
        nats=per_text.mean().item(),
        by_evictions=[loss[:, start:end].mean().item() for start, end in zip(starts, ends, strict=True) if start < end],
        difference=difference.mean().item(),
        low=low,
        high=high,
        texts=len(per_text),
    )
