"""The deep-thinking ratio as its paper writes it (arXiv 2602.13517, equations 1 to 6): loops over tokens and layers.

p[t, l] = softmax(W_U h[t, l])                       l = 1..L
D[t, l] = H((p[t, L] + p[t, l]) / 2) - (H(p[t, L]) + H(p[t, l])) / 2
Dbar[t, l] = min over j <= l of D[t, j]
c[t] = min {l : Dbar[t, l] <= g}
DTR = share of tokens with c[t] >= the first deep layer
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thoughtcache.evaluation.thinking.definition import DeepThinking


def naive_settling_depths(logits: Float[Tensor, "L N V"], definition: DeepThinking) -> list[int]:
    """The layer, counted from 1, at which the prediction of each token has settled.

    Args:
        logits: logits of every layer; those of the last one are the model's own.
        definition: threshold and base of the logarithm; norm and head have been applied.
    """
    L, N, _ = logits.shape
    depths = []
    for t in range(N):
        p = [logits[layer, t].double().softmax(dim=-1) for layer in range(L)]
        Dbar = float("inf")
        for layer in range(L):
            mean = (p[L - 1] + p[layer]) / 2
            D = _entropy(mean) - (_entropy(p[L - 1]) + _entropy(p[layer])) / 2
            Dbar = min(Dbar, D / definition.unit)
            if Dbar <= definition.threshold:
                depths.append(layer + 1)
                break
    return depths


def naive_ratio(depths: Sequence[int], num_layers: int, definition: DeepThinking) -> float:
    """The share of tokens that settle at a deep layer.

    Args:
        depths: what `naive_settling_depths` found, at least one token.
        num_layers: L.
        definition: which layers are deep.
    """
    return sum(depth >= definition.deep_from(num_layers) for depth in depths) / len(depths)


def _entropy(p: Tensor) -> float:
    """Entropy in nats."""
    return float(-torch.where(p > 0, p * p.log(), 0.0).sum())
