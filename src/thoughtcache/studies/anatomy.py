"""What do the states of an adapter look like, how fast do they change, and whose content is in them?

Axes: B texts, H matrices of a layer (key-value heads, or one), E evicted tokens, T thoughts, N evictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor

from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import with_own_evictions
from thoughtcache.studies.parts import Part, parts_of
from thoughtcache.studies.passes import Piece, Text, check_memory, pieces_of_texts, texts_under


@dataclass(frozen=True, kw_only=True, slots=True)
class StateAnatomy:
    """The state of one layer and head, after every eviction, on average over texts.

    Attributes:
        memory: "adapter" or "attention".
        layer: decoder layer, from 0.
        head: key-value head; 0 for the adapter's state, which is one matrix.
        norms: its Frobenius norm.
        ranks: its effective rank: e to the entropy of its singular values' shares of their sum (Roy and Vetterli 2007);
            0 for a state of zeros.
        drifts: norm of the change by the eviction over the norm after it; 0 where both are 0.
        half: smallest share of the evicted tokens that holds half of what was written; 0.5 if all count the same.
    """

    memory: str
    layer: int
    head: int
    norms: list[float]
    ranks: list[float]
    drifts: list[float]
    half: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Anatomy:
    """The states of an adapter on some texts.

    Attributes:
        states: one value per memory, layer and head.
        written: by memory, of each text, each thought's share of what its evictions wrote: the mean of its shares in
            all layers and heads; 0 for thoughts that never left. The weight of a token is its gate times the mass of
            its features for the memory in attention, and the sum of the weights that the global queries give it for
            the adapter's state (`token_weights` of the memories).
    """

    states: list[StateAnatomy]
    written: dict[str, list[list[float]]]


@torch.no_grad()
def probe_anatomy(
    model: PeftModel,
    texts: Sequence[Text],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Anatomy:
    """Norms, effective ranks and drifts of an adapter's states, and which evicted tokens they were written by.

    Args:
        model: the adapted model.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        batch_size: texts that are run at once.
        seed: seed of eviction policies that draw.
        progress: called with the number of texts that were looked at.

    Returns:
        One value per memory, layer and head, and by text what every thought wrote.

    Raises:
        ValueError: for an adapter whose states no eviction changes, a window that is no integer, or thoughts that
            differ in length or are too short to be evicted.
    """
    tuner = find_tuner(model)
    check_memory(model)
    rollouts = texts_under(texts, tuner.thought_config.resolve_window(None), seed=seed)
    parts = parts_of(tuner.memory())
    looks = []
    for first in range(0, len(rollouts), batch_size):
        some = with_own_evictions(model, rollouts[first : first + batch_size])
        looks.append([_look(model, some, part) for part in parts])
        if progress is not None:
            progress(len(some))
    num_left = sum(eviction.num_tokens for eviction in rollouts[0].evictions)  # of a layer of the smallest budget
    states, written = list[StateAnatomy](), {}
    for part, of_batches in zip(parts, zip(*looks, strict=True), strict=True):
        figures = torch.cat([one for one, _ in of_batches], dim=2).double().mean(dim=2)  # [3, N, L, H]
        weights = torch.cat([one for _, one in of_batches])
        tiny = torch.finfo(weights.dtype).tiny
        shares = weights / weights.sum(dim=-1, keepdim=True).clamp_min(tiny)
        halves = half_of(shares, num_left).mean(dim=0)
        states += [
            StateAnatomy(
                memory=part.name,
                layer=layer,
                head=head,
                norms=figures[0, :, layer, head].tolist(),
                ranks=figures[1, :, layer, head].tolist(),
                drifts=figures[2, :, layer, head].tolist(),
                half=halves[layer, head].item(),
            )
            for layer in range(figures.shape[2])
            for head in range(figures.shape[3])
        ]
        written[part.name] = shares.mean(dim=(1, 2)).tolist()
    return Anatomy(states=states, written=written)


def effective_rank(matrices: Float[Tensor, "*any rows columns"]) -> Float[Tensor, "*any"]:
    """The exponential of the entropy of the singular values' shares of their sum; 0 for a matrix of zeros."""
    values = torch.linalg.svdvals(matrices.double())
    total = values.sum(dim=-1)
    shares = values / torch.where(total > 0, total, 1.0).unsqueeze(-1)
    entropy = -torch.xlogy(shares, shares).sum(dim=-1)
    return torch.where(total > 0, entropy.exp(), 0.0)


def half_of(shares: Float[Tensor, "*any T"], count: int) -> Float[Tensor, "*any"]:
    """Smallest number of shares, over `count`, that are half of all together."""
    reached = shares.sort(dim=-1, descending=True).values.cumsum(dim=-1)
    enough = 0.5 - 1e-9  # shares are rounded
    return ((reached < enough).sum(dim=-1) + 1).clamp_max(count).double() / count


def _look(
    model: PeftModel, texts: Sequence[Rollout], part: Part
) -> tuple[Float[Tensor, "3 N B L H"], Float[Tensor, "B L H T"]]:
    """Norms, ranks and drifts after each eviction, and how much of each thought was written in all."""
    tuner, size = find_tuner(model), len(texts[0].token_ids)
    heads = tuner.kv_shape[0]
    figures, weights = [], torch.zeros((), dtype=torch.float64)
    for piece in pieces_of_texts(model, texts):
        if not piece.chunk.evicts:
            continue
        figures.append(_figures(piece, part))
        of_layers = dict[int, Tensor]()
        for layer in range(tuner.num_layers):
            leaving = piece.evicted(layer, piece.chunk.evicted)
            if leaving is None:
                continue  # not full yet: nothing of it was written
            found = part.memory.token_weights(layer, leaving.keys, leaving.values, leaving.positions)
            thoughts = leaving.thoughts.expand(len(texts), heads, -1)
            of_layers[layer] = by_thought(found, thoughts, size, leaving.heads)
        nothing = torch.zeros_like(next(iter(of_layers.values())))
        by_layer = [of_layers.get(layer, nothing) for layer in range(tuner.num_layers)]
        weights = weights + torch.stack(by_layer, dim=1).double()
    return torch.stack(figures, dim=1), weights


def _figures(piece: Piece, part: Part) -> Float[Tensor, "3 B L H"]:
    """Norms, ranks and drifts by the eviction on entry to a piece."""
    assert piece.entry.states is not None
    assert piece.leaving.states is not None
    found = []
    for before, after in zip(piece.entry.states, piece.leaving.states, strict=True):
        old, new = part.matrices(before), part.matrices(after)
        norm, change = (torch.linalg.matrix_norm(one.double()) for one in (new, new - old))
        drift = torch.where(norm > 0, change / torch.where(norm > 0, norm, 1.0), change.sign())
        found.append(torch.stack([norm, effective_rank(new), drift]))
    return torch.stack(found, dim=2)


def by_thought(
    weights: Float[Tensor, "B heads E"],
    thoughts: Int[Tensor, "B H E"],
    size: int,
    full: tuple[bool, ...] | None = None,
) -> Float[Tensor, "B heads T"]:
    """Weights of leaving tokens at the places of their thoughts.

    A memory of all heads together writes tokens that may be different thoughts in every head; each gets an equal part.
    Heads that are not full write nothing.

    Args:
        weights: of every head, or one for all heads.
        thoughts: which thought left, in every head.
        size: T.
        full: which heads are; None for all.
    """
    placed = weights.new_zeros(*thoughts.shape[:2], size)
    spread, writing = weights.expand(-1, thoughts.shape[1], -1), thoughts.shape[1]
    if full is not None:
        spread = spread.masked_fill(~torch.tensor(full, device=weights.device)[:, None], 0.0)
        thoughts, writing = thoughts.clamp_min(0), sum(full)
    placed.scatter_add_(2, thoughts, spread)
    return placed if weights.shape[1] > 1 else placed.sum(dim=1, keepdim=True) / writing
