"""One question with its reference, and the one function that says whether a completion answers it.

Rewards and evaluation both call `check`, so that what is trained is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from thoughtcache.tasks.embedded.recitation import recitation
from thoughtcache.tasks.maths.answer_types import ANSWER_TYPES
from thoughtcache.tasks.maths.answers import check_math_answer
from thoughtcache.tasks.maths.workers.pool import POOL
from thoughtcache.tasks.verdict import Verdict


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    r"""One question.

    Attributes:
        prompt: chat messages, each with "role" and "content"; or the text itself for a model without a chat.
        answer: the final answer alone (`72`, `\frac{1}{2}`), or None if there is none to compare with.
        identifier: unique inside its data set: `gsm8k/test/17`.
        columns: what else its row says, by column; empty unless somebody asked for it.
        kind: how answers are compared, a key of `CHECKS`: "maths" takes the type of answer from the reference,
            the others declare one of `maths/answer_types.py`.
    """

    prompt: list[dict[str, str]] | str
    answer: str | None
    identifier: str
    kind: str = "maths"
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as chat messages; a text is one of the user."""
        return [{"role": "user", "content": self.prompt}] if isinstance(self.prompt, str) else self.prompt


CHECKS: dict[str, Callable[[str, str], Verdict]] = {
    "maths": check_math_answer,
    "recitation": recitation,
    **{name: partial(check_math_answer, answer_type=name) for name in ANSWER_TYPES if name != "auto"},
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


def check_all(examples: Sequence[Example], texts: Sequence[str]) -> list[Verdict]:
    """Judge many completions, as many at once as there are answer workers (`POOL.resize`).

    Raises:
        ValueError: as `check`, or if there is not one text for each example.
    """
    with ThreadPoolExecutor(max_workers=POOL.num_workers) as threads:
        return list(threads.map(lambda pair: check(*pair), zip(examples, texts, strict=True)))
