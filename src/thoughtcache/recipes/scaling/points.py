"""The points of the curves: which lengths are asked for, and what came out at each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from thoughtcache.evaluation.paired import PairedDifference
from thoughtcache.evaluation.scores import Share
from thoughtcache.recipes.evaluate.compare import answers_by_suite, paired_difference

MOST_FACTORS = (1, 2, 4, 8, 16, 32, 64)
"""Those of the paper's figure and beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """What curves are over.

    Attributes:
        column: its name in tables.
        label: its name below a picture.
        folder: its name in folders.
    """

    column: str
    label: str
    folder: str


LENGTHS = Axis(column="at most", label="most tokens of an answer", folder="length")
OPERATIONS = Axis(column="operations", label="operations per chain", folder="operations")


def lengths_of(
    lengths: Sequence[int] | None, factors: Sequence[float] | None, base_length: int | None
) -> tuple[int, ...]:
    """Bounds on the tokens of an answer, the smallest first.

    Args:
        lengths: the bounds themselves; or
        factors: multiples of `base_length`; 1 to 64 if both are left out.
        base_length: tokens of factor 1, such as the length that an adapter was trained at.

    Raises:
        ValueError: for both, for none without a base length, bounds that are not positive and different, or factors
            that are not finite and positive.
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
        for factor in factors or ():
            if not (isfinite(factor) and factor > 0):
                raise ValueError(f"factors must be finite and positive, got {factor}; give numbers such as 1,2,4")
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
        length: bound on the tokens of an answer, or operations per chain: what the curves are over.
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

    def flat(self) -> dict[str, Any]:
        """The attributes as columns of a table of numbers."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        share, less = found.pop("accuracy"), found.pop("less_first")
        found |= {"accuracy": share.value, "accuracy_low": share.low, "accuracy_high": share.high}
        ends = (None, None, None) if less is None else (less.difference, less.low, less.high)
        return found | dict(zip(("less_first", "less_first_low", "less_first_high"), ends, strict=True))


def points_of(
    cache: str,
    folder: Path,
    first: Path | None,
    result: Mapping[str, Any],
    *,
    length: int,
    base_length: int | None,
    is_sampled: bool,
    suite: str | None = None,
) -> list[Point]:
    """One arm at one length, a point for every suite.

    Args:
        cache: name of the arm.
        folder: where its answers are.
        first: where those of the first arm at this length are; None for the first arm itself.
        result: "suites", and "last_call" where this length was sampled by itself, as in results.json.
        length: what the curves are over.
        base_length: that of factor 1, or None.
        is_sampled: whether this length was sampled by itself.
        suite: what a single suite is called in the tables; its own name if left out.

    Raises:
        ValueError: if two arms have different references.
    """
    suites = result["suites"]
    wanted = sum(one["num_questions"] * one["num_samples"] for one in suites.values())
    is_known = is_sampled and result["last_call"]["answers"] == wanted
    last = result["last_call"] if is_known else {}
    own = answers_by_suite(folder)
    beside = None if first is None else answers_by_suite(first)
    return [
        Point(
            cache=cache,
            suite=suite or name,
            length=length,
            factor=None if base_length is None else length / base_length,
            questions=scores["num_questions"],
            samples=scores["num_samples"],
            accuracy=Share(**scores["accuracy"]),
            less_first=None if beside is None else paired_difference(name, beside[name], own[name]),
            cut=scores["truncated"],
            tokens=scores["tokens"]["mean"],
            evictions=scores["evictions_mean"],
            seconds=last.get("seconds"),
            peak_memory_mib=last.get("peak_memory_mib"),
            folder=str(folder),
        )
        for name, scores in suites.items()
    ]
