"""One question with its reference, and the one function that says whether a completion answers it.

Rewards and evaluation both call `check`, so that what is trained is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from thoughtcache.tasks.embedded.recitation import recitation
from thoughtcache.tasks.maths.answers import check_math_answer
from thoughtcache.tasks.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    r"""One question.

    Attributes:
        prompt: chat messages, each with "role" and "content"; or the text itself for a model without a chat.
        answer: the final answer alone (`72`, `\frac{1}{2}`), or None if there is none to compare with.
        identifier: unique inside its data set: `gsm8k/test/17`.
        kind: how answers are compared, a key of `CHECKS`.
    """

    prompt: list[dict[str, str]] | str
    answer: str | None
    identifier: str
    kind: str = "maths"

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages; a text is one of the user."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt


CHECKS: dict[str, Callable[[str, str], Verdict]] = {
    "maths": check_math_answer,
    "recitation": recitation,
}
"""(completion, reference) -> verdict, by kind of answer."""


def check(example: Example, text: str) -> Verdict:
    """Judge whether a completion answers the question.

    Args:
        example: example with an answer.
        text: the completion, without its prompt.

    Raises:
        ValueError: if the example has no answer, or a reference that nothing can be compared with.
    """
    if example.answer is None:
        raise ValueError(f"example {example.identifier} has no answer to compare with; leave it out")
    return CHECKS[example.kind](text, example.answer)
