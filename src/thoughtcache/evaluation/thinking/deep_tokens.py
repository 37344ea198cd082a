"""Which tokens of a text are deep-thinking tokens: the fast form of `naive.py`, in one pass over the text.

A token is deep if it has settled at none of the layers before the first deep one. So only these layers are looked at,
the last of them first: most tokens have settled there, and one product with the vocabulary is enough for them.

The text is passed through the learner's pieces under its own cache, evictions and states (`learner/replay.py`), and
hooks keep the outputs of the layers of one piece. No `[T, V]` tensor exists.

Axes: B texts, n tokens of a piece, N tokens, d model size, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thoughtcache.evaluation.thinking.definition import DeepThinking
from thoughtcache.learner.options import ReplayOptions
from thoughtcache.learner.replay import run_replay
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.policy.handle import PolicyHandle, open_policy
from thoughtcache.policy.scores import CHUNK_ELEMENTS
from thoughtcache.policy.token_logprobs import entropy_of, head_logits
from thoughtcache.records import Rollout

Logits = Callable[[Tensor], Tensor]


@torch.no_grad()
def deep_tokens(
    model: nn.Module, rollouts: Sequence[Rollout], definition: DeepThinking, *, num_tokens: int | None = None
) -> list[list[bool]]:
    """Whether each thought token of each text is a deep-thinking token.

    The prediction of a token is that of the position before it, at temperature 1 and without filters.

    Args:
        model: the adapted model that sampled; inside `disable_adapter()` its base.
        rollouts: texts under one cache, with their evictions. Recorded states are not read.
        definition: what a deep-thinking token is.
        num_tokens: look at the first so many tokens of each text only; None for all.

    Raises:
        ValueError: if there are no texts, one is empty, caches differ, or the definition does not fit the model.
    """
    policy = open_policy(model)
    batch = batch_rollouts([_beginning(rollout, num_tokens) for rollout in rollouts], policy.device)
    layers: Any = policy.backbone.layers
    norm: Any = policy.backbone.norm
    looked_at = definition.deep_from(len(layers)) - 1

    def early(hidden: Tensor) -> Tensor:
        return head_logits(norm(hidden) if definition.norm else hidden, policy.head)

    with _outputs(list(layers)[:looked_at]) as outputs:

        def score(hidden: Tensor, start: int, stop: int, known: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
            count = hidden.shape[1]
            flat = [output[:, -count:].flatten(0, 1) for output in outputs]
            return (_deep(flat, hidden.flatten(0, 1), early, policy, definition).view(hidden.shape[:2]),)

        (found,) = run_replay(model, batch, score, ReplayOptions(anchored=False))
    return [(row[:length] > 0).tolist() for row, length in zip(found, batch.lengths, strict=True)]


def is_deep(
    outputs: Sequence[Float[Tensor, "N d"]],
    last: Float[Tensor, "N V"],
    logits: Logits,
    definition: DeepThinking,
) -> Bool[Tensor, " N"]:
    """Tokens that have settled at none of these layers.

    Args:
        outputs: outputs of the layers before the first deep one, in their order.
        last: logits of the last layer.
        logits: [m, d] outputs of such a layer -> [m, V] logits.
        definition: threshold and base of the logarithm.
    """
    end = last.log_softmax(dim=-1)
    entropy = entropy_of(end)
    open_rows = torch.arange(len(last), device=last.device)
    for output in reversed(outputs):
        if not len(open_rows):
            break
        own = logits(output[open_rows]).log_softmax(dim=-1)
        mean = torch.logaddexp(own, end[open_rows]) - torch.log(torch.tensor(2.0, device=own.device))
        divergence = entropy_of(mean) - (entropy[open_rows] + entropy_of(own)) / 2
        open_rows = open_rows[divergence / definition.unit > definition.threshold]
    found = torch.zeros(len(last), dtype=torch.bool, device=last.device)
    found[open_rows] = True
    return found


def _deep(
    outputs: Sequence[Tensor], hidden: Tensor, early: Logits, policy: PolicyHandle, definition: DeepThinking
) -> Float[Tensor, " N"]:
    """`is_deep` in chunks of rows, as numbers that scores can be made of."""
    size = max(1, CHUNK_ELEMENTS // int(policy.tuner.model.config.vocab_size))
    parts = []
    for start in range(0, len(hidden), size):
        rows = slice(start, start + size)
        last = head_logits(hidden[rows], policy.head)
        parts.append(is_deep([output[rows] for output in outputs], last, early, definition))
    return torch.cat(parts).float()


@contextmanager
def _outputs(layers: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of these layers in the last forward pass, inside the block."""
    kept: list[Any] = [None] * len(layers)

    def keep(index: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept[index] = output

        return hook

    handles = [layer.register_forward_hook(keep(index)) for index, layer in enumerate(layers)]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _beginning(rollout: Rollout, num_tokens: int | None) -> Rollout:
    """The first tokens of a text, at temperature 1, which no score here reads."""
    token_ids = rollout.token_ids[:num_tokens]
    return replace(
        rollout,
        token_ids=token_ids,
        evictions=tuple(one for one in rollout.evictions if one.before_token < len(token_ids) - 1),
        states=None,
        settings=replace(rollout.settings, temperature=1.0),
    )
