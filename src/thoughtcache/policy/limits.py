"""How far a model's positions reach."""

from __future__ import annotations

from thoughtcache.records import SamplingSettings


def positions_needed(prompt_tokens: int, thought_tokens: int, window: int | None, *, rolling: bool) -> int:
    """Positions that a prompt and its thoughts take; with rolling ones, those of the thoughts that are resident."""
    return prompt_tokens + (min(window, thought_tokens) if rolling and window is not None else thought_tokens)


def check_positions(
    prompt_tokens: int, thought_tokens: int, settings: SamplingSettings, max_positions: int | None
) -> None:
    """Refuse lengths whose positions the model was not made for.

    Args:
        prompt_tokens: of the longest prompt.
        thought_tokens: of the longest thoughts.
        settings: window and kind of positions.
        max_positions: of the model, rope scaling included; None if it does not say.

    Raises:
        ValueError: with the number that is needed, the number that there is, and the remedies.
    """
    rolling = settings.positions == "rolling" and settings.window is not None
    needed = positions_needed(prompt_tokens, thought_tokens, settings.window, rolling=rolling)
    if max_positions is None or needed <= max_positions:
        return
    if rolling:
        raise ValueError(
            f"the longest prompt has {prompt_tokens} tokens and the window is {settings.window}, together more than "
            f"the {max_positions} positions of the model; lower the window or shorten the prompt"
        )
    raise ValueError(
        f"the longest prompt has {prompt_tokens} tokens and max_new_tokens is {thought_tokens}, together more than the "
        f"{max_positions} positions of the model; shorten either, load the model with rope scaling, or keep positions "
        'inside the window with ThoughtConfig(positions="rolling")'
    )
