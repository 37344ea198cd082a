"""Runs in which nothing would happen are refused, each as early as it can be known."""

from __future__ import annotations

from collections.abc import Sequence

from thoughtcache.chains.thinking import Thinking
from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import RunFolder
from thoughtcache.train.evicted import longest_held

_ALLOW = "or pass --allow-no-eviction"


def check_window(run: RunConfig, thought: ThoughtConfig) -> None:
    """Refuse a window that no thought can leave, before anything is read.

    Named budgets are shared out over layers that are not known yet: `check_prompt_window` looks at them.

    Raises:
        ValueError: if no thought can leave; the message names the window, the bound on the thoughts and what to change.
    """
    if run.allow_no_eviction or run.thinking is not None:
        return  # what a link comes to is known with the tokens of its markers: check_link_window
    if thought.window is None and run.distill_steps:
        raise ValueError(
            "--window none keeps the full cache, which is the teacher's: there is nothing to distil; "
            f"give a window, add --distill-steps 0, {_ALLOW}"
        )
    if not isinstance(thought.window, int) or isinstance(thought.eviction_budgets, str):
        return
    smallest = thought.resolve_window(None).smallest_budget
    assert smallest is not None
    if run.max_new_tokens <= longest_held(smallest):
        raise ValueError(
            f"{_named(thought, smallest)} holds all thoughts of --max-new-tokens {run.max_new_tokens}: nothing is ever "
            f"evicted, and the window makes no difference; lower --window, raise --max-new-tokens, {_ALLOW}"
        )


def check_prompt_window(
    run: RunConfig, thought: ThoughtConfig, prompts: Sequence[Sequence[int]], num_layers: int
) -> None:
    """Refuse what `check_window` cannot know: a window as long as the longest prompt of a batch, and named budgets.

    Args:
        run: its length and stages.
        thought: window and budgets.
        prompts: tokens of all prompts.
        num_layers: decoder layers of the model.

    Raises:
        ValueError: if no thought can leave, even in a batch of the shortest prompts.
    """
    if run.allow_no_eviction or run.thinking is not None:  # links: check_link_window
        return
    smallest = _smallest_budget(thought, prompts, num_layers)
    if smallest is not None and run.max_new_tokens <= longest_held(smallest):
        raise ValueError(
            f"{_named(thought, smallest)} holds all thoughts of --max-new-tokens {run.max_new_tokens}: nothing is ever "
            f"evicted; give a smaller --window, raise --max-new-tokens, {_ALLOW}"
        )


def check_link_window(
    run: RunConfig,
    thought: ThoughtConfig,
    prompts: Sequence[Sequence[int]],
    thinking: Thinking | None,
    num_layers: int,
) -> None:
    """Refuse a window that holds all thoughts of a link, whatever is carried over its boundary.

    Without a window the boundaries alone bound the context, which is not refused. Where links keep keys and values as
    they were written, thoughts leave at every boundary, whatever the window is.

    Args:
        run: its length.
        thought: window and budgets.
        prompts: tokens of all prompts.
        thinking: how to think in links; None for one context.
        num_layers: decoder layers of the model.

    Raises:
        ValueError: if no thought of any link can leave.
    """
    if run.allow_no_eviction or thinking is None or thinking.keeps_written or thought.window is None:
        return
    longest = max(map(len, prompts))
    most = max(thoughts for _, thoughts in thinking.longest(longest, run.max_new_tokens))
    smallest = _smallest_budget(thought, prompts, num_layers)
    if smallest is not None and most <= longest_held(smallest):
        by_budget = most == run.max_new_tokens
        bound = "--max-new-tokens" if by_budget else f"the thinking option {thinking.bounds_of_links[0]}"
        raise ValueError(
            f"{_named(thought, smallest)} holds all thoughts of a link, which are {most} at most: nothing is "
            f"ever evicted, and the window makes no difference; lower --window, raise {bound}, give --window none to "
            f"bound the context by links alone, {_ALLOW}"
        )


def _smallest_budget(thought: ThoughtConfig, prompts: Sequence[Sequence[int]], num_layers: int) -> int | None:
    """The fewest thoughts that a layer holds in any batch of the prompts; None for the full cache.

    A length over which the budgets cannot be shared out is left to the batch that has it, if there is one.
    """
    found = []
    for length in sorted({len(prompt) for prompt in prompts}) if thought.window == "prompt" else [None]:
        try:
            found.append(thought.resolve_window(length, num_layers=num_layers).smallest_budget)
        except ValueError:
            if length is None:
                raise
    return min((budget for budget in found if budget is not None), default=None)


def _named(thought: ThoughtConfig, smallest: int) -> str:
    """The window as it was asked for, with what every layer holds at least where that is another number."""
    budgets = "" if thought.eviction_budgets is None else " with these --eviction-budgets"
    at_least = "" if thought.window == smallest else f" is at least {smallest} thoughts here, and"
    return f"--window {thought.window}{budgets}{at_least}"


def check_questions(run: RunConfig, num_questions: int) -> None:
    """Refuse fewer questions than one step of GRPO takes: its trainer would end without a step.

    Raises:
        ValueError: if there are fewer; the message names both numbers and what to change.
    """
    needed = run.grpo_batch_size // run.group_size
    if run.grpo_steps and num_questions < needed:
        raise ValueError(
            f"{run.dataset} gives {num_questions} questions, and a step of GRPO takes {needed} "
            f"(--grpo-batch-size {run.grpo_batch_size} / --group-size {run.group_size}); "
            f"lower --grpo-batch-size to {num_questions * run.group_size}, or add questions"
        )


def check_more_distillation(run: RunConfig, folder: RunFolder) -> None:
    """Refuse more steps of distillation once GRPO has started from what fewer of them left.

    Raises:
        ValueError: if more steps are asked for; the message names the numbers and what to do instead.
    """
    before = (folder.stored or {}).get("distill_steps", run.distill_steps)
    if run.distill_steps > before and folder.has_begun("grpo"):
        raise ValueError(
            f"GRPO in {folder.path} started after {before} steps of distillation, and --distill-steps is "
            f"{run.distill_steps}; start a run from {folder.path / 'adapter'} with --adapter and another --output-dir"
        )
