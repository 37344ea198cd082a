"""Questions of a data set, their prompt tokens, and the rows that the tokenizer's chat template refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.chat import ChatTokenizer, encode_prompt
from thoughtcache.tasks.data.bad_rows import BadRow, Report, settle_bad_rows
from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.example import Example


def examples_of(run: RunConfig, report: Report) -> list[Example]:
    """The questions of a training run, with answers where it has a reward.

    Args:
        run: its settings, with a data set.
        report: gets sentences about what was dropped.

    Raises:
        ValueError: as `load_prompts`.
    """
    assert run.dataset is not None
    return load_prompts(
        run.dataset,
        split=run.split,
        prompt_column=run.prompt_column,
        answer_column=run.answer_column,
        answer_type=run.answer_type,
        limit=run.limit,
        need_answers=run.grpo_steps > 0 and run.reward is None,
        keep_columns=run.reward is not None,
        bad_rows=run.bad_rows,
        report=report,
    )


def encode_examples(
    tokenizer: ChatTokenizer,
    examples: Sequence[Example],
    *,
    instruction: str | None,
    system: str | None = None,
    bad_rows: str,
    report: Report,
) -> tuple[list[Example], list[list[int]]]:
    """The examples that can be encoded, and the prompt token ids of each.

    Args:
        tokenizer: a transformers tokenizer.
        examples: examples to encode, at least one.
        instruction: added to the last message of each, or None.
        system: system message of each, unless it begins with one; None for none.
        bad_rows: "refuse" or "drop" examples whose messages the chat template does not take.
        report: gets one sentence about the examples that were dropped.

    Raises:
        ValueError: if there are such examples under "refuse", or if none is left.
    """

    def encode(messages: Sequence[dict[str, str]]) -> list[int]:
        return encode_prompt(tokenizer, messages, system=system, instruction=instruction)

    return encoded_by(encode, examples, bad_rows=bad_rows, report=report)


def encoded_by(
    encode: Callable[[Sequence[dict[str, str]]], list[int]],
    examples: Sequence[Example],
    *,
    bad_rows: str,
    report: Report,
) -> tuple[list[Example], list[list[int]]]:
    """`encode_examples` with prompts that somebody else makes.

    Args:
        encode: token ids of messages; raises a ValueError for those that make no prompt.
        examples: see there, as the next two, what is returned and what is raised.
        bad_rows: see there.
        report: see there.
    """
    kept: list[Example] = []
    prompts: list[list[int]] = []
    bad: list[BadRow] = []
    for example in examples:
        try:
            prompts.append(encode(example.messages))
        except ValueError as error:
            bad.append(BadRow(place=f"{example.identifier}:", reason=str(error)))
        else:
            kept.append(example)
    settle_bad_rows(bad, len(examples), bad_rows, report)
    return kept, prompts


def no_longer_than(
    examples: Sequence[Example], prompts: Sequence[list[int]], most: int | None, report: Report
) -> tuple[list[Example], list[list[int]]]:
    """The examples whose prompts have at most so many tokens, with their prompts; none of them is cut.

    Args:
        examples: questions, at least one.
        prompts: their token ids.
        most: tokens of the longest prompt that stays; None keeps all.
        report: gets one sentence about what was left out.

    Raises:
        ValueError: if nothing is left.
    """
    kept = [(one, prompt) for one, prompt in zip(examples, prompts, strict=True) if most is None or len(prompt) <= most]
    lengths = sorted(map(len, prompts))
    if not kept:
        raise ValueError(
            f"max_prompt_tokens={most} leaves no question: the shortest prompt has {lengths[0]} tokens, with its "
            f"template and instruction; raise it to {lengths[0]} or more"
        )
    left_out = len(prompts) - len(kept)
    if left_out:
        report(
            f"left out {left_out} of {len(prompts)} questions, whose prompts are longer than {most} tokens "
            f"(the longest has {lengths[-1]})"
        )
    return [one for one, _ in kept], [prompt for _, prompt in kept]
