"""Where does attention go: to the first tokens, to the question, or to the memory? Sinks that collapse are seen here.

Pre-trained models put much of their attention on the first tokens of a text, which say nothing (attention sinks, arXiv
2309.17453). A bounded cache keeps them, but its softmax has other competitors, and a memory may take what they had.

The mass of every query head, on average over the queries past the first eviction, as the model runs: with its full
cache, under the window with the states of the start, and with its own states. A memory that shares a denominator with
the window takes its part of the mass; one that is added to the output takes none.

Axes: B texts, Q query heads, H key-value heads, n queries, m columns that are resident, D head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft import PeftModel
from torch import Tensor

from thoughtcache.cache.head_columns import hidden_columns
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import with_own_evictions
from thoughtcache.state.attention_memory import AttentionMemory
from thoughtcache.state.memory import Memory
from thoughtcache.state.unwritten import Unwritten
from thoughtcache.studies.parts import Part, parts_of
from thoughtcache.studies.passes import Piece, Text, pieces_of_texts, texts_under

FULL = "full cache"
WINDOW = "window, nothing written"
OWN = "window, own states"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMass:
    """Where the attention of one query head goes under one cache.

    Attributes:
        layer: decoder layer, from 0.
        head: query head.
        cache: `FULL`, `WINDOW` or `OWN`.
        first: mass on the first tokens of the text.
        question: mass on the rest of the prompt.
        memory: mass on what is remembered.
        moved: how much more mass the first tokens have than with the full cache.
        is_flagged: whether they have moved by more than the tolerance, up or down.
    """

    layer: int
    head: int
    cache: str
    first: float
    question: float
    memory: float
    moved: float
    is_flagged: bool


@torch.no_grad()
def probe_sinks(
    model: PeftModel,
    texts: Sequence[Text],
    *,
    num_first: int = 4,
    tolerance: float = 0.1,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[HeadMass]:
    """The attention of every query head on the first tokens, the rest of the prompt, and the memory.

    Args:
        model: the adapted model; one without a memory has no `OWN`.
        texts: pairs of a prompt and thoughts, as token ids; all thoughts equally long.
        num_first: how many tokens are the first ones; no prompt is shorter.
        tolerance: mass by which a head's first tokens may move before it is flagged.
        batch_size: texts that are run at once.
        seed: seed of eviction policies that draw.
        progress: called with the number of texts that were looked at.

    Returns:
        One value per cache, layer and head, `FULL` first.

    Raises:
        ValueError: for a window that is no integer, thoughts that differ in length or are too short to be evicted,
            prompts of fewer than `num_first` tokens, or a tolerance outside (0, 1).
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie between 0 and 1, the mass of all tokens, got {tolerance}")
    shortest = min((len(prompt) for prompt, _ in texts), default=0)
    if texts and not 1 <= num_first <= shortest:
        raise ValueError(
            f"num_first must be between 1 and {shortest}, the tokens of the shortest prompt, got {num_first}; give "
            "longer prompts, or count fewer tokens"
        )
    tuner = find_tuner(model)
    rollouts = texts_under(texts, tuner.thought_config.resolve_window(None), seed=seed)
    memory = tuner.memory()
    runs: dict[str, dict[str, Any]] = {FULL: {"full_cache": True}, WINDOW: {"memory": Unwritten(memory)}}
    if memory.state_bytes:
        runs[OWN] = {}
    totals: dict[str, Tensor] = {}
    for begin in range(0, len(rollouts), batch_size):
        some = with_own_evictions(model, rollouts[begin : begin + batch_size])
        for name, options in runs.items():
            found = _masses(model, some, num_first, **options).sum(dim=0)
            totals[name] = found + totals[name] if name in totals else found
        if progress is not None:
            progress(len(some))
    means = {name: total / len(rollouts) for name, total in totals.items()}
    return [
        HeadMass(
            layer=layer,
            head=head,
            cache=name,
            first=first,
            question=question,
            memory=remembered,
            moved=first - means[FULL][layer, head, 0].item(),
            is_flagged=abs(first - means[FULL][layer, head, 0].item()) > tolerance,
        )
        for name, mean in means.items()
        for layer, heads in enumerate(mean.tolist())
        for head, (first, question, remembered) in enumerate(heads)
    ]


def _masses(
    model: PeftModel, texts: Sequence[Rollout], num_first: int, memory: Memory | None = None, full_cache: bool = False
) -> Float[Tensor, "B L Q 3"]:
    """Mean masses on the first tokens, on the rest of the prompt, and on the memory."""
    tuner = find_tuner(model)
    layers: Any = tuner.backbone.layers
    part = None
    if memory is None and not full_cache:
        part = next((one for one in parts_of(tuner.memory()) if isinstance(one.memory, AttentionMemory)), None)
    total, count = torch.zeros(()), 0
    for piece, skipped in _past_the_first_eviction(model, texts, memory, full_cache):
        of_layers = [
            _mass_of_layer(piece, layer, float(layers[layer].self_attn.scaling), num_first, part)[:, :, skipped:]
            for layer in range(tuner.num_layers)
        ]
        found = torch.stack(of_layers, dim=1)  # [B, L, Q, n, 3]
        total = total.to(found) + found.sum(dim=3)
        count += found.shape[3]
    return total / count


def _past_the_first_eviction(
    model: PeftModel, texts: Sequence[Rollout], memory: Memory | None, full_cache: bool
) -> Iterator[tuple[Piece, int]]:
    """Pieces of which some columns are past it, and how many are not."""
    for piece in pieces_of_texts(model, texts, memory=memory, full_cache=full_cache):
        start = piece.batch.prompts.ids.shape[1] + texts[0].evictions[0].before_token
        skipped = max(0, start - piece.chunk.start)
        if skipped < piece.chunk.stop - piece.chunk.start:
            yield piece, skipped


def _mass_of_layer(
    piece: Piece, layer: int, scaling: float, num_first: int, part: Part | None
) -> Float[Tensor, "B Q n 3"]:
    """Masses of one layer in one piece."""
    past, prompts = piece.leaving.past, piece.batch.prompts
    assert past is not None
    queries, keys, width = piece.queries[layer], past[layer][0], prompts.ids.shape[1]
    columns = torch.arange(keys.shape[2], device=keys.device)
    padding = (width - prompts.lengths)[:, None]
    is_first = (columns >= padding) & (columns < padding + num_first)
    is_question = (columns >= padding + num_first) & (columns < width)
    groups = torch.stack([is_first, is_question], dim=-1)
    of_heads = None if piece.batch.budgets is None else piece.batch.budgets.of_heads(layer)
    blank = None
    if of_heads is not None:
        counts = torch.tensor([of_heads.blank(piece.chunk.segment)], device=keys.device)
        blank = hidden_columns(counts, counts.new_tensor([width]), keys.shape[2], keys.shape[1])
    mass, size = masses(queries, keys, columns >= padding, scaling, groups, blank)
    window = torch.ones_like(size) if part is None else window_mass(part, piece, layer, queries, size)
    return torch.cat([mass * window.unsqueeze(-1), 1 - window.unsqueeze(-1)], dim=-1)


def masses(
    queries: Float[Tensor, "B Q n D"],
    keys: Float[Tensor, "B H m D"],
    exists: Bool[Tensor, "B m"],
    scaling: float,
    groups: Bool[Tensor, "B m g"],
    blank: Bool[Tensor, "1 H 1 m"] | None = None,
) -> tuple[Float[Tensor, "B Q n g"], Float[Tensor, "B Q n"]]:
    """Attention weights summed over groups of columns, and `log sum_j e^(s_j)` of all columns that a query sees.

    Args:
        queries: queries, the newest one at the last column.
        keys: keys of all columns.
        exists: columns that are no padding.
        scaling: factor of the products of queries and keys.
        groups: which columns belong to which group.
        blank: columns in which a kv head holds nothing, with budgets by head.
    """
    batch, heads, count, size = queries.shape
    dtype = torch.promote_types(keys.dtype, torch.float32)
    grouped = queries.to(dtype).reshape(batch, keys.shape[1], -1, count, size)
    scores = grouped @ keys.to(dtype).unsqueeze(2).mT * scaling
    columns = torch.arange(keys.shape[2], device=keys.device)
    seen = columns <= columns[-count:, None]
    scores = scores.masked_fill(~(seen & exists[:, None, None, None]), float("-inf"))
    if blank is not None:
        scores = scores.masked_fill(blank[:, :, None], float("-inf"))
    weights = scores.softmax(dim=-1).reshape(batch, heads, count, -1)
    found = weights @ groups.to(dtype).unsqueeze(1)
    return found, scores.logsumexp(dim=-1).reshape(batch, heads, count)


def window_mass(
    part: Part, piece: Piece, layer: int, queries: Float[Tensor, "B Q n D"], size: Float[Tensor, "B Q n"]
) -> Float[Tensor, "B Q n"]:
    """The mass that a memory leaves to the window: what attention reads if all values in the window are one, and zero
    is what was remembered.

    Args:
        part: the memory.
        piece: has the states that were read.
        layer: decoder layer.
        queries: queries of the layer, rotated.
        size: `log sum_j e^(s_j)` of the window.
    """
    assert piece.leaving.states is not None
    memory = part.memory
    assert isinstance(memory, AttentionMemory)
    blank = [part.numbers(state).clone() for state in piece.leaving.states]
    for one in blank:
        one[..., :-1] = 0.0
    read = memory.reader().of_attention(blank, piece.positions)
    assert read is not None
    exists = torch.ones_like(queries).transpose(1, 2)  # [B, n, Q, D]
    window = None
    if read.wants == "share":  # the shares of a key of score zero and of the window beside it
        inside = torch.sigmoid(size).transpose(1, 2).unsqueeze(-1).to(queries.dtype)
        exists, window = exists * inside, torch.cat([1 - inside, inside], dim=-1)
    return read(layer, queries, exists, window)[..., 0].transpose(1, 2).to(size.dtype)
