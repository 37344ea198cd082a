"""Think@n: of n answers that were begun, those that think deepest are finished, and they vote (arXiv 2602.13517).

A pure function of the beginnings says which answers are finished. Of equal ratios the earlier sample is kept: samples
of a question are drawn independently, so that their numbers mean nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from thoughtcache.evaluation.thinking.definition import DeepThinking
from thoughtcache.evaluation.token_answers import TokenAnswer

NUM_SAMPLES = 48
"""n of the paper."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkAtN:
    """How answers are chosen; the defaults are the published ones.

    Attributes:
        definition: what a deep-thinking token is.
        prefix_tokens: tokens that every answer is begun with.
        keep: eta, share of the answers to a question that are finished.
        finish_rest: finish the others as well, which says what maj@n would have come to on the same samples.

    Raises:
        ValueError: if a value is out of range.
    """

    definition: DeepThinking
    prefix_tokens: int = 50
    keep: float = 0.5
    finish_rest: bool = False

    def __post_init__(self) -> None:
        if self.prefix_tokens < 1:
            raise ValueError(f"think_prefix must be at least 1 token, got {self.prefix_tokens}")
        if not 0.0 < self.keep < 1.0:
            raise ValueError(f"think_keep must be a share between 0 and 1, got {self.keep}; 1 would choose nothing")

    def num_kept(self, num_samples: int) -> int:
        """Answers to a question that are finished, at least one and not all.

        Args:
            num_samples: answers that are begun.

        Raises:
            ValueError: if there are fewer than two.
        """
        if num_samples < 2:
            raise ValueError(f"think@n chooses among several samples, got samples={num_samples}; give at least 2")
        nearest = (Fraction(str(self.keep)) * num_samples + Fraction(1, 2)).__floor__()
        return min(max(nearest, 1), num_samples - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefix(TokenAnswer):
    """An answer that was begun: its first tokens, which are all of it where it ended with them.

    Attributes:
        num_deep: deep-thinking tokens among them.
    """

    num_deep: int

    @property
    def ratio(self) -> float:
        """Its deep-thinking ratio."""
        return self.num_deep / len(self.token_ids)


def kept_samples(prefixes: Iterable[Prefix], selection: ThinkAtN) -> set[tuple[str, int]]:
    """The answers that are finished and vote: those with the highest ratios of each question.

    Args:
        prefixes: all beginnings of every question.
        selection: how many are kept.
    """
    questions: dict[str, list[Prefix]] = {}
    for prefix in prefixes:
        questions.setdefault(prefix.question, []).append(prefix)
    kept: set[tuple[str, int]] = set()
    for own in questions.values():
        ordered = sorted(own, key=lambda one: (-one.ratio, one.sample))
        kept |= {one.key for one in ordered[: selection.num_kept(len(own))]}
    return kept
