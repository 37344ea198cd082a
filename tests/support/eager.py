"""Attention weights as transformers itself works them out, with the full cache of an adapted model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel

import thoughtcache as tc
from support.models import adapt, tiny_base


def eager_attention(
    model: PeftModel, texts: Sequence[tuple[list[int], list[int]]], **options: Any
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """For every text the length of its prompt, and the weights of every layer, [1, query heads, tokens, tokens].

    Args:
        model: a tiny model, whose weights are taken over.
        texts: pairs of a prompt and thoughts; the last thought is read by nobody.
        options: those of its adapter.
    """
    eager = tiny_base()
    eager.config._attn_implementation = "eager"
    adapted = adapt(eager, **options)
    adapted.load_state_dict(model.state_dict())
    with torch.no_grad(), tc.full_cache(adapted):
        for prompt, thoughts in texts:
            yield (
                len(prompt),
                list(adapted(torch.tensor([[*prompt, *thoughts[:-1]]]), output_attentions=True).attentions),
            )
