"""The points of the curves: which lengths are asked for, and what came out at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from thoughtcache.evaluation.paired import PairedDifference
from thoughtcache.evaluation.scores import Share

MOST_FACTORS = (1, 2, 4, 8, 16, 32, 64)
"""Those of the paper's figure and beyond."""


def lengths_of(
    lengths: Sequence[int] | None, factors: Sequence[float] | None, base_length: int | None
) -> tuple[int, ...]:
    """Bounds on the tokens of an answer, the smallest first.

    Args:
        lengths: the bounds themselves; or
        factors: multiples of `base_length`; 1 to 64 if both are left out.
        base_length: tokens of factor 1, such as the length that an adapter was trained at.

    Raises:
        ValueError: for both, for none without a base length, or bounds that are not positive and different.
    """
    if lengths is not None and factors is not None:
        raise ValueError("lengths and factors say the same in two ways; give one of them")
    if base_length is not None and base_length < 1:
        raise ValueError(f"base_length must be at least 1 token, got {base_length}")
    if lengths is None:
        if base_length is None:
            raise ValueError(
                "give lengths in tokens, such as 56,112,224, or the base_length of which factors are multiples"
            )
        lengths = [round(factor * base_length) for factor in (MOST_FACTORS if factors is None else factors)]
    if not lengths or min(lengths) < 1 or len(set(lengths)) < len(lengths):
        raise ValueError(f"lengths must be different numbers of at least 1 token, got {list(lengths)}")
    return tuple(sorted(lengths))


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One arm at one length.

    Attributes:
        cache: name of the arm.
        suite: name of the suite.
        length: bound on the tokens of an answer.
        factor: multiple of the base length; None without one.
        questions: how many were asked.
        samples: answers to each.
        accuracy: share of right answers, with its interval.
        less_first: paired difference to the first arm at this length; None for the first.
        cut: share of answers that reached the bound.
        tokens: mean tokens of an answer.
        evictions: mean evictions of an answer.
        seconds: of sampling all answers of the arm, of all suites; None where this length was not sampled by itself,
            or not in one call.
        peak_memory_mib: peak of sampling over what was in use before; None as for `seconds`.
        folder: where its answers are.
    """

    cache: str
    suite: str
    length: int
    factor: float | None
    questions: int
    samples: int
    accuracy: Share
    less_first: PairedDifference | None
    cut: float
    tokens: float
    evictions: float
    seconds: float | None
    peak_memory_mib: float | None
    folder: str

    @classmethod
    def of(
        cls,
        scores: Mapping[str, Any],
        *,
        last_call: Mapping[str, Any] | None,
        base_length: int | None,
        length: int,
        **named: Any,
    ) -> Point:
        """A point from what is written to results.json.

        Args:
            scores: figures of a suite.
            last_call: what the call that sampled it took; None where this length was not sampled by itself.
            base_length: tokens of factor 1, or None.
            length: bound on the tokens.
            named: the other attributes that the scores do not have.
        """
        last = last_call or {}
        return cls(
            length=length,
            factor=None if base_length is None else length / base_length,
            questions=scores["num_questions"],
            samples=scores["num_samples"],
            accuracy=Share(**scores["accuracy"]),
            cut=scores["truncated"],
            tokens=scores["tokens"]["mean"],
            evictions=scores["evictions_mean"],
            seconds=last.get("seconds"),
            peak_memory_mib=last.get("peak_memory_mib"),
            **named,
        )

    def flat(self) -> dict[str, Any]:
        """The attributes as columns of a table of numbers."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        share, less = found.pop("accuracy"), found.pop("less_first")
        found |= {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}
        ends = (None, None, None) if less is None else (less.difference, less.low, less.high)
        return found | dict(zip(("less_first", "less_first_low", "less_first_high"), ends, strict=True))
