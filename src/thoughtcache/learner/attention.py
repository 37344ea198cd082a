"""Attention of a chunk of queries over [resident | itself]: causal, aligned at the lower right corner.

transformers' own `sdpa` forms a dense mask for this case and then repeats keys and values for every query head.
Here CUDA gets a lower-right causal bias, which FlashAttention takes, and no mask where no row is padded; the CPU gets
the mask but no copies. The same numbers up to rounding. Models loaded with another implementation keep it. Inside
`torch.compile` CUDA gets a dense mask as well, so that the backbone of a chunk is one graph.

On CUDA: benchmarks/gpu/parity.py and benchmarks/gpu/profiled.py.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from thoughtcache.adapter.attention import attention_block

REPLACED = "sdpa"
NAME = "thoughtcache_lower_right"


def lower_right_attention(config: PretrainedConfig) -> AbstractContextManager[None]:
    """Use this attention inside a block, if the model would use `sdpa`; transformers learns its name here.

    Args:
        config: configuration that the model's attention layers read.
    """
    return attention_block(config, "function", _instead)


def _instead(name: str) -> str:
    """The name of this attention where a model would use `sdpa`; any other name stays."""
    if name != REPLACED:
        return name
    _register()  # now and not on import, which is to change nothing
    return NAME


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[B, heads, n, D] queries over [B, H, m, D] keys and values -> [B, n, heads, D]."""
    queries, columns = query.shape[2], key.shape[2]
    if attention_mask is None and 1 < queries < columns and torch.compiler.is_compiling():
        # The bias below is a class of tensor that would end a compiled graph in every layer.
        attention_mask = torch.ones(queries, columns, dtype=torch.bool, device=query.device).tril(columns - queries)
        attention_mask = attention_mask[None, None]
    if attention_mask is not None and query.is_cuda:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    bias = attention_mask
    if bias is None and 1 < queries < columns:
        with _disable_current_modes():  # what watches operators (memory, arithmetic) would get a tensor of no class
            bias = causal_lower_right(queries, columns)
    is_causal = False
    if bias is None and queries > 1:  # a branch: while a compiler has symbols for shapes, the condition is one as well
        is_causal = True
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=bias,
        dropout_p=dropout,
        is_causal=is_causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2).contiguous(), None


def _mask(*, attention_mask: Tensor | None, device: torch.device, **kwargs: Any) -> Tensor | None:
    """No mask on CUDA where no row is padded; elsewhere what `sdpa` forms."""
    if attention_mask is None and device.type == "cuda":
        return None
    return sdpa_mask(attention_mask=attention_mask, device=device, **kwargs)


def _register() -> None:
    """Enter both in transformers' tables, under a name that is nobody else's; again changes nothing."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _mask)
