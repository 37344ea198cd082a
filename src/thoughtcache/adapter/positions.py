"""Finds how far a model's positions reach, rope scaling included, and refuses lengths beyond.

Two kinds of rotary embedding (transformers 5, `modeling_rope_utils`):

- Fixed frequencies (default, linear, yarn, llama3, ...): a cached key means the same whenever it is read. Positions
  reach as far as the model was made for; a factor that stretches an original length counts, whether or not
  `max_position_embeddings` was raised with it.
- Frequencies that depend on the length: "longrope" changes them when any row of a forward pass comes to a position
  behind `original_max_position_embeddings`, "dynamic" with every position behind `max_position_embeddings`. Up to there
  they are fixed and everything is exact. Beyond, keys cached under one set would be read under another and rows would
  see each other's lengths: sampling, replay and the naive reference would differ. So their reach ends there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

STRETCHED_FROM_ORIGINAL = ("linear", "yarn", "proportional")
"""Rope types whose factor says how often the original length fits into the reach; llama3's does not say that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PositionReach:
    """The reach of a model's positions.

    Attributes:
        positions: number of positions; None if the model does not say.
        rope_type: type of the rotary embedding.
        factor: factor by which the original length was stretched; None where it was not.
        varies: whether frequencies are others beyond `positions`.
    """

    positions: int | None
    rope_type: str = "default"
    factor: float | None = None
    varies: bool = False

    @property
    def other_scaling(self) -> str:
        """The change of the model's rope scaling that would allow longer sequences."""
        if self.varies:
            return f"load the model with a rope type of fixed frequencies such as 'yarn' instead of {self.rope_type!r}"
        if self.factor is not None:
            return f"raise the factor of its rope scaling ({self.rope_type}, {self.factor:g})"
        return "load the model with rope scaling"

    def described(self) -> str:
        """The number of positions, and what ends with them."""
        ends = f" up to which the frequencies of its rope type {self.rope_type!r} are fixed" if self.varies else ""
        return f"{self.positions} positions of the model{ends}"


def position_reach(config: Any) -> PositionReach:
    """The reach of a model.

    Args:
        config: its transformers configuration.
    """
    made_for: int | None = getattr(config, "max_position_embeddings", None)
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type") or "default"
    original: int | None = rope.get("original_max_position_embeddings") or made_for
    if rope_type == "longrope":
        return PositionReach(positions=original, rope_type=rope_type, varies=True)
    if "dynamic" in rope_type:  # transformers' own condition; it stretches from here, whatever the original length was
        return PositionReach(positions=made_for, rope_type=rope_type, varies=True)
    factor = rope.get("factor")
    if rope_type not in STRETCHED_FROM_ORIGINAL or not factor or original is None:
        return PositionReach(positions=made_for, rope_type=rope_type)
    stretched = int(original * factor)
    return PositionReach(positions=max(stretched, made_for or 0), rope_type=rope_type, factor=factor)


def positions_needed(prompt_tokens: int, thought_tokens: int, rolling_window: int | None) -> int:
    """Positions that a prompt and its thoughts take.

    Args:
        prompt_tokens: tokens of the prompt.
        thought_tokens: tokens of the thoughts.
        rolling_window: resident thoughts where positions roll inside the window; None where they are absolute.
    """
    return prompt_tokens + (thought_tokens if rolling_window is None else min(rolling_window, thought_tokens))


def check_positions(
    prompt_tokens: int, thought_tokens: int, reach: PositionReach, *, rolling_window: int | None
) -> None:
    """Refuse lengths whose positions are beyond the reach.

    Args:
        prompt_tokens: tokens of the longest prompt.
        thought_tokens: tokens of the longest thoughts.
        reach: reach of the model's positions.
        rolling_window: see `positions_needed`.

    Raises:
        ValueError: if they are beyond it; the message names the lengths, the available positions and the remedies.
    """
    needed = positions_needed(prompt_tokens, thought_tokens, rolling_window)
    if reach.positions is None or needed <= reach.positions:
        return
    if rolling_window is not None:
        raise ValueError(
            f"the longest prompt has {prompt_tokens} tokens and the window is {rolling_window}, together more than "
            f"the {reach.positions} positions of the model; lower the window or shorten the prompt"
        )
    lengths = f"the longest prompt has {prompt_tokens} tokens and max_new_tokens is {thought_tokens}"
    rolling = "" if reach.varies else ', or keep positions inside the window with ThoughtConfig(positions="rolling")'
    raise ValueError(
        f"{lengths}, together more than the {reach.described()}; shorten either, "
        f"{'or ' if reach.varies else ''}{reach.other_scaling}{rolling}"
    )
