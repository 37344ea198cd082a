r"""Step folding (Accordion-Thinking, arXiv 2602.03249): a step leaves when its summary is written, the summary stays.

A step is its details, then a summary between an opening and a closing marker. When the marker closes, the details
leave. What becomes of the summary, markers included, is `keep`:

    encoded   the next prompt is the old prompt and the summary, encoded again: the variant that was published
    written   its keys and values stay as they were written, where they were written; the details are absorbed into the
              thought state like any thoughts that leave, and nothing is processed again (ours)

Source: yangzhch6/Accordion-Thinking. Published sizes, which are the defaults here: 6 steps (8 in validation) of up to
6144 tokens, summaries of up to 1536 tokens, prompts of up to 14,336; without folding one answer of up to 16,384 tokens.
A step counts if it has exactly one opening and one closing marker and a summary within its bound; otherwise the chain
ends there. Published prompts have "\n\n...TLDR...\n\n" in front of every summary: that is `separator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from thoughtcache.chains.thinking import ChainEnd, Thinking, Tokens
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.sampler.draw.stop_sequences import count_sequence, ends_with, find_end

Keep = Literal["encoded", "written"]
"""What becomes of a summary when its step leaves."""


@dataclass(frozen=True, kw_only=True)
class StepFolding(Thinking):
    """Accordion-Thinking (arXiv 2602.03249): a step leaves when its summary is written; the sizes are published ones.

    Attributes:
        opening: tokens of the marker that opens a summary.
        closing: tokens of the marker that closes it and ends the step.
        keep: "encoded" (the next prompt is the old prompt and the summary, encoded again; the published variant) or
            "written" (the summary's keys and values stay as they were written, and the details are absorbed).
        separator: tokens put in front of every carried summary; they are prompt, and never scored. None with "written".
        fold: whether details leave. False is the unfold mode: nothing leaves, and a chain is one link.
        max_steps: links that a chain has at most, the one with the answer included.
        step_tokens: bound on the tokens of a step, its summary included.
        summary_tokens: bound on the tokens between the markers.
        max_prompt_tokens: longest prompt that still gets another step.
        unfold_tokens: bound on the tokens of an answer in unfold mode.

    Raises:
        ValueError: if a marker is empty or part of the other one, if a number is out of range, or for a separator that
            nothing would encode.
    """

    opening: Sequence[int]
    closing: Sequence[int]
    keep: Keep = "encoded"
    separator: Sequence[int] = ()
    fold: bool = True
    max_steps: int = 6
    step_tokens: int = 6144
    summary_tokens: int = 1536
    max_prompt_tokens: int = 14_336
    unfold_tokens: int = 16_384

    def __post_init__(self) -> None:
        for name in ("opening", "closing", "separator"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("opening", "closing"):
            if not getattr(self, name):
                raise ValueError(f"{name} is an empty marker; give the token ids of a text that traces contain")
        if count_sequence(self.opening, self.closing) or count_sequence(self.closing, self.opening):
            raise ValueError(
                f"one of the markers {list(self.opening)} and {list(self.closing)} contains the other, so that they "
                "cannot be told apart; use other markers"
            )
        one_of("keep", self.keep, get_args(Keep))
        if self.keeps_written and self.separator:
            raise ValueError(
                f"separator={list(self.separator)} stands in front of summaries that are encoded again, and with "
                'keep="written" none is; leave it out, or use keep="encoded"'
            )
        at_least_one(self, "step_tokens", "max_prompt_tokens", "unfold_tokens")
        if self.summary_tokens < 0:
            raise ValueError(f"summary_tokens must be 0 or more, got {self.summary_tokens}")
        if self.fold and self.max_steps < 2:
            raise ValueError(f"max_steps must be at least 2 to fold anything, got {self.max_steps}; or set fold=False")

    def unfolded(self) -> StepFolding:
        """The same markers without folding."""
        return replace(self, fold=False)

    @property
    def num_links(self) -> int:
        """Links that a chain has at most."""
        return self.max_steps if self.fold else 1

    @property
    def keeps_written(self) -> bool:
        """Whether folds keep keys and values; without folds there is nothing to keep."""
        return self.keep == "written" and self.fold

    def first_kept(self, link: Tokens) -> int:
        """The summary stays, from its opening marker on."""
        return self._opening_at(link)

    @property
    def leaves_last(self) -> tuple[int, ...]:
        """Details leave before the thoughts of an open summary, so that every layer and head holds the same of it."""
        return tuple(self.opening) if self.keeps_written else ()

    @property
    def stop_sequences(self) -> tuple[tuple[int, ...], ...]:
        """The closing marker ends a link."""
        return (tuple(self.closing),) if self.fold else ()

    def max_new_tokens(self, links: Sequence[Tokens]) -> int:
        """Bound on the tokens of a step, or of the whole answer."""
        return self.step_tokens if self.fold else self.unfold_tokens

    def prompt(self, question: Tokens, links: Sequence[Tokens]) -> list[int]:
        """The question and the summaries, from the opening marker on."""
        prompt = list(question)
        for link in links:
            prompt += [*self.separator, *link[self._opening_at(link) :]]
        return prompt

    def after(self, question: Tokens, links: Sequence[Tokens], *, stopped: bool) -> ChainEnd | Literal["next"]:
        """A closed summary is a boundary if the step counts; what ends otherwise ends the chain."""
        if not self.fold or not ends_with(links[-1], self.closing):
            return "stop" if stopped else "length"
        if not self.is_step(links[-1]):
            return "invalid"
        if len(links) == self.max_steps or len(self.prompt(question, links)) > self.max_prompt_tokens:
            return "length"
        return "next"

    def is_step(self, link: Tokens) -> bool:
        """Whether tokens that end in the closing marker are a step: one marker of each kind, a summary in its bound."""
        if count_sequence(link, self.opening) != 1 or count_sequence(link, self.closing) != 1:
            return False
        summary = len(link) - self._opening_at(link) - self._num_markers
        return 0 <= summary <= self.summary_tokens

    def _opening_at(self, link: Tokens) -> int:
        """Number of the token with which the summary's opening marker begins."""
        end = find_end(link, [self.opening])
        assert end is not None, "a chain goes on after steps only"
        return end - len(self.opening)

    @property
    def bounds_of_links(self) -> tuple[str, ...]:
        """What bounds a prompt, and what bounds a step."""
        return ("step_tokens", "summary_tokens", "max_prompt_tokens") if self.fold else ("unfold_tokens",)

    @property
    def _num_markers(self) -> int:
        """Tokens that a step has at least."""
        return len(self.opening) + len(self.closing)

    def longest(self, question_tokens: int, max_new_tokens: int) -> list[tuple[int, int]]:
        """The first step, and the one in front of which all summaries stand, which were sampled from the same budget.

        A token that is carried is one that cannot be sampled again. So the prompt that is as long as it can be is also
        where most positions are taken.
        """
        first = (question_tokens, min(self.step_tokens if self.fold else self.unfold_tokens, max_new_tokens))
        steps = min(self.max_steps - 1, (max_new_tokens - 1) // self._num_markers) if self.fold else 0
        if not steps:
            return [first]
        summary = min(self.step_tokens, self._num_markers + self.summary_tokens)
        shortest = question_tokens + steps * len(self.separator)
        prompt = min(self.max_prompt_tokens, shortest + min(steps * summary, max_new_tokens - 1))
        sampled = max(0, prompt - shortest)
        return [first, (max(question_tokens, prompt), min(self.step_tokens, max_new_tokens - sampled))]

    def check(self, question_tokens: int, max_new_tokens: int) -> None:
        """Refuse a question that is too long to be folded behind, and a budget in which no step fits."""
        if not self.fold:
            return
        markers = self._num_markers
        shortest = question_tokens + len(self.separator) + markers
        if shortest > self.max_prompt_tokens:
            raise ValueError(
                f"the longest question has {question_tokens} tokens, {shortest} with the separator and the markers of "
                f"one summary, and max_prompt_tokens is {self.max_prompt_tokens}, so that no step could follow one; "
                f"raise max_prompt_tokens to {shortest} or more, or leave out the long questions"
            )
        if min(max_new_tokens, self.step_tokens + 1) <= markers:
            raise ValueError(
                f"max_new_tokens={max_new_tokens} and step_tokens={self.step_tokens} hold no step: its markers alone "
                f"have {markers} tokens; raise them"
            )

    def naive_context(self, question: Tokens, trace: Tokens, boundaries: Sequence[int], t: int) -> list[int]:
        """The question; every summary that was closed before the boundary, markers included; all thoughts since."""
        context = list(question)
        start = 0
        for boundary in (b for b in boundaries if b <= t):
            opened = False
            for i in range(start, boundary):
                if not opened and list(trace[i : i + len(self.opening)]) == list(self.opening):
                    opened = True
                    context += self.separator
                if opened:
                    context.append(trace[i])
            start = boundary
        return context + list(trace[start:t])
