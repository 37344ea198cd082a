"""Moves keys and queries to other positions.

Rolling positions: cached keys move down when thoughts in front of them leave. A memory in attention space moves keys
and queries to position 0, where they are un-rotated.

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
        return turn(keys, self.turning(by, keys))

    def turning(self, by: int | Int[Tensor, "#B #H n"], like: Tensor) -> Turning:
        """The cosines and sines of a move by so many positions, for vectors of the device and the dtype of `like`."""
        steps = by if isinstance(by, int) else by.unsqueeze(-1)
        angles = steps * self.frequencies.to(like.device)
        dtype = torch.promote_types(like.dtype, torch.float32)
        return angles.cos().to(dtype), angles.sin().to(dtype)


Turning = tuple[Tensor, Tensor]
"""Cosines and sines, [F] or [..., n, F]."""


def turn(vectors: Float[Tensor, "B H n D"], turning: Turning) -> Float[Tensor, "B H n D"]:
    """Keys or queries turned by given angles, computed in at least fp32; entries behind the first 2 F stay."""
    cos, sin = turning
    size = cos.shape[-1]
    first, second = vectors[..., :size].to(cos.dtype), vectors[..., size : 2 * size].to(cos.dtype)
    turned = [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)]
    moved = torch.cat(turned, dim=-1).to(vectors.dtype)
    return moved if vectors.shape[-1] == 2 * size else torch.cat([moved, vectors[..., 2 * size :]], dim=-1)


def naive_turn(vector: Tensor, steps: int, frequencies: Tensor) -> Tensor:
    """A vector [D] `steps` positions further on: the pair (x_i, x_i+F) as a complex number, times e^(i angle steps)."""
    angle = frequencies.to(vector.device).double()
    x, y, rest = vector[: len(angle)], vector[len(angle) : 2 * len(angle)], vector[2 * len(angle) :]
    z = torch.complex(x.double(), y.double()) * torch.polar(torch.ones_like(angle), steps * angle)
    return torch.cat([z.real.to(vector), z.imag.to(vector), rest])


Rotations = list[KeyRotation | None]
"""One rotation per layer; None for a layer without positions."""


def key_rotations(config: Any, rotary_embedding: Any, remedy: str = 'positions="absolute"') -> Rotations:
    """The rotations of a model with rotary embeddings.

    Args:
        config: transformers configuration of the model.
        rotary_embedding: its rotary module.
        remedy: setting under which no key is moved, for the error.

    Raises:
        ValueError: if cached keys cannot be moved exactly.
    """
    if rotary_embedding.rope_type not in FIXED_FREQUENCIES:
        raise ValueError(
            f"cached keys can be moved only with fixed rotary frequencies ({list(FIXED_FREQUENCIES)}), and the model "
            f"has rope type {rotary_embedding.rope_type!r}; use {remedy}, or load the model with another rope type"
        )
    rotation = KeyRotation(frequencies=rotary_embedding.inv_freq.double())
    # SmolLM3's list says 1 where a layer has positions.
    has_positions = getattr(config, "no_rope_layers", None) or [1] * config.num_hidden_layers
    return [rotation if has else None for has in has_positions]
