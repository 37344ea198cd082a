"""The lengths that links can come to, against the positions of a model."""

from __future__ import annotations

from thoughtcache.adapter.positions import PositionReach, positions_needed
from thoughtcache.chains.thinking import Thinking


def check_links(
    thinking: Thinking, question_tokens: int, max_new_tokens: int, reach: PositionReach, *, rolling_window: int | None
) -> list[tuple[int, int]]:
    """Refuse chains of which a link could come to positions beyond the reach.

    Args:
        thinking: where boundaries are and what is carried.
        question_tokens: tokens of the longest question.
        max_new_tokens: bound on the tokens of a whole chain.
        reach: reach of the model's positions.
        rolling_window: resident thoughts where positions roll inside the window; None where they are absolute.

    Returns:
        `thinking.longest(question_tokens, max_new_tokens)`.

    Raises:
        ValueError: if a link could; the message names its lengths, the available positions and the remedies.
    """
    for prompt, thoughts in thinking.farthest(question_tokens, max_new_tokens):
        if reach.positions is None or positions_needed(prompt, thoughts, rolling_window) <= reach.positions:
            continue
        carried = f", {prompt - question_tokens} carried ones" if prompt > question_tokens else ""
        held = "" if rolling_window is None else f", of which the window holds {rolling_window},"
        whole = "chain" if thinking.keeps_written else "link"
        window = "" if rolling_window is None else "the window, "
        scaling = reach.other_scaling
        if rolling_window is None and not reach.varies and not thinking.keeps_written:
            scaling += ', or keep positions inside the window with ThoughtConfig(positions="rolling")'
        raise ValueError(
            f"a question of {question_tokens} tokens{carried} and {thoughts} thoughts of a {whole}{held} can be "
            f"together more than the {reach.described()}; lower max_new_tokens={max_new_tokens}, {window}or of the "
            f"thinking options {', '.join(thinking.bounds_of_links)}, leave out long questions, or {scaling}"
        )
    return thinking.longest(question_tokens, max_new_tokens)
