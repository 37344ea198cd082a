"""Rolling positions: cached keys move down when thoughts in front of them leave.

A rotary embedding turns a key by an angle proportional to its position, so a key that was cached at one position is
moved to another by turning it by the difference. With `positions="rolling"` the thought in resident slot `i` always
stands at position `P + i`, and no position ever exceeds `P + W`, however long the thoughts are.

Not covered: embeddings whose frequencies change with the length ("dynamic", "longrope").
Proof: tests/unit/test_rotation.py and the parity tests with `positions="rolling"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Positions = Literal["absolute", "rolling"]
FIXED_FREQUENCIES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeyRotation:
    """The rotary embedding of a model as far as cached keys are concerned.

    Attributes:
        frequencies: [F] angle per position of the pair (i, i + F) of a key's entries, fp64; entries behind the first
            2 F do not turn.
    """

    frequencies: Float[Tensor, " F"]

    def shift(self, keys: Float[Tensor, "B H n D"], by: int | Int[Tensor, "#B #H n"]) -> Float[Tensor, "B H n D"]:
        """Keys as they would be `by` positions further on; differentiable.

        Angles are formed in fp64 and the product in at least fp32, so that many small shifts equal one large one.
        """
        size = self.frequencies.shape[0]
        steps = by if isinstance(by, int) else by.unsqueeze(-1)
        angles = steps * self.frequencies.to(keys.device)
        dtype = torch.promote_types(keys.dtype, torch.float32)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        first, second = keys[..., :size].to(dtype), keys[..., size : 2 * size].to(dtype)
        turned = [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)]
        moved = torch.cat(turned, dim=-1).to(keys.dtype)
        return moved if keys.shape[-1] == 2 * size else torch.cat([moved, keys[..., 2 * size :]], dim=-1)


Rotations = list[KeyRotation | None]
"""One rotation per layer; None for a layer without positions."""


def key_rotations(config: Any, rotary_embedding: Any) -> Rotations:
    """The rotations of a model with rotary embeddings.

    Args:
        config: transformers configuration of the model.
        rotary_embedding: its rotary module.

    Raises:
        ValueError: if cached keys cannot be moved exactly.
    """
    if rotary_embedding.rope_type not in FIXED_FREQUENCIES:
        raise ValueError(
            f'positions="rolling" needs fixed rotary frequencies ({list(FIXED_FREQUENCIES)}), the model has rope type '
            f'{rotary_embedding.rope_type!r}; use positions="absolute" or load the model with another rope type'
        )
    rotation = KeyRotation(frequencies=rotary_embedding.inv_freq.double())
    # SmolLM3's list says 1 where a layer has positions.
    has_positions = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    return [rotation if has else None for has in has_positions]
