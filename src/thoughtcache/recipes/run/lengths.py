"""Checks that prompts and thoughts of a run lie within the positions of its model, before any weight is loaded."""

from __future__ import annotations

from typing import Any

from thoughtcache.adapter.positions import position_reach, positions_needed
from thoughtcache.chains.lengths import check_links
from thoughtcache.chains.thinking import Thinking
from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.sampler.going_on import check_goes_on


def check_lengths(
    prompts: list[list[int]], run: RunConfig, thought: ThoughtConfig, config: Any, thinking: Thinking | None = None
) -> None:
    """Refuse a run whose positions the model does not have.

    Positions that roll inside the window bound GRPO by the window; the teacher of distillation keeps everything.

    Args:
        prompts: tokens of all prompts.
        run: its length and stages.
        thought: window and kind of positions.
        config: transformers configuration of the model.
        thinking: how to think in links; None for one context.

    Raises:
        ValueError: if they do not fit, if links cannot keep what was written under the cache, or if no chain can be as
            long as the run allows; the message names the lengths, the positions that there are, and the remedies as
            options of the command line, or as settings, which it puts into its words.
    """
    reach, longest = position_reach(config), max(len(prompt) for prompt in prompts)
    if thinking is not None:
        thinking.check(longest, run.max_new_tokens)
        cache = thought.resolve_window(longest, num_layers=config.num_hidden_layers)
        if thinking.keeps_written:
            check_goes_on(cache)
        check_links(thinking, longest, run.max_new_tokens, reach, rolling_window=cache.rolling_window)
        if run.max_new_tokens > thinking.total_tokens:
            raise ValueError(
                f"--max-new-tokens {run.max_new_tokens} cannot be reached: --thinking {run.thinking} comes to "
                f"{thinking.total_tokens} tokens in {thinking.num_links} links; lower it to {thinking.total_tokens}, "
                f"or raise the thinking option {thinking.bounds_of_links[0]} or the number of links"
            )
        return
    window = (
        None
        if run.distill_steps
        else thought.resolve_window(longest, num_layers=config.num_hidden_layers).rolling_window
    )
    needed = positions_needed(longest, run.max_new_tokens, window)
    if reach.positions is None or needed <= reach.positions:
        return
    if window is not None:
        raise ValueError(
            f"the longest prompt has {longest} tokens and --window is {window}, together more than the "
            f"{reach.positions} positions of the model; lower --window or leave out long "
            "prompts with --max-prompt-tokens"
        )
    rolling = "" if reach.varies else ", or use --positions rolling with a --window and --distill-steps 0"
    raise ValueError(
        f"the longest prompt has {longest} tokens and --max-new-tokens is {run.max_new_tokens}, together more than "
        f"the {reach.described()}; lower --max-new-tokens, leave out long prompts (--max-prompt-tokens), "
        f"{'or ' if reach.varies else ''}"
        f"{reach.other_scaling}{rolling}"
    )
