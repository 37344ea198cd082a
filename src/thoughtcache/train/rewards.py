"""Rewards as TRL calls them: `reward(completions=..., <columns of the data set>, log_metric=...) -> list[float]`.

A completion is a string or a list of chat messages, of which the last one counts. An answer that cannot be read or
takes too long to compare earns 0.0 and is counted in a metric, so that a broken parser does not look like a weak
policy. An error in our own code is raised: a reward never hides one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thoughtcache.checks import one_of
from thoughtcache.tasks.data.final_answer import answer_text
from thoughtcache.tasks.example import CHECKS, Example, check_all
from thoughtcache.tasks.verdict import REASONS, Verdict

Completion = str | Sequence[Mapping[str, Any]]
Reference = object
"""The answer of a data set: text, a number, or a list of these that belong together; None is refused."""
LogMetric = Callable[[str, float], None]
LogExtra = Callable[[str, list[Any]], None]


def math_correctness(
    completions: Sequence[Completion],
    answer: Sequence[Reference],
    log_metric: LogMetric | None = None,
    answer_type: Sequence[str] | None = None,
    log_extra: LogExtra | None = None,
    **kwargs: Any,
) -> list[float]:
    """1.0 where the final answer equals `answer`, else 0.0 (see `tasks/maths/answers.py`).

    Args:
        completions: what the model wrote: texts, or lists of chat messages, of which the last one counts.
        answer: the reference of each: text, a number, or a list of these that belong together.
        log_metric: TRL's; takes the fractions `malformed_answers` (no readable answer) and `answer_timeouts`, and
            `answers/<reason>`: how many completions of the batch got their verdict for that reason (`REASONS` in
            `tasks/verdict.py`).
        answer_type: the declared type of each reference (`tasks/maths/answer_types.py`); without it each answer says of
            which type it is.
        log_extra: TRL's; takes the reason of each completion and what was taken for its answer, as columns of the table
            of completions.
        **kwargs: other columns of the data set, which are not read.

    Returns:
        One reward per completion.

    Raises:
        ValueError: if an answer is missing or of another type, or there is not one for each completion.
    """
    checks = _verdicts(completions, answer, answer_type or ["maths"] * len(completions))
    if log_metric is not None and checks:
        log_metric("malformed_answers", sum(not check.parsed and not check.timed_out for check in checks) / len(checks))
        log_metric("answer_timeouts", sum(check.timed_out for check in checks) / len(checks))
        for reason in REASONS:
            log_metric(f"answers/{reason}", float(sum(check.reason == reason for check in checks)))
    _log_verdicts("math_correctness", checks, log_extra)
    return [float(check.correct) for check in checks]


def recited_answer(
    completions: Sequence[Completion], answer: Sequence[Reference], log_extra: LogExtra | None = None, **kwargs: Any
) -> list[float]:
    """1.0 where the completion recites `answer` after its last `#`, else 0.0; the embedded tasks, as their metric.

    Args:
        completions: what the model wrote: texts, or lists of chat messages, of which the last one counts.
        answer: the reference of each.
        log_extra: as in `math_correctness`.
        **kwargs: other columns of the data set, which are not read.

    Returns:
        One reward per completion.

    Raises:
        ValueError: if an answer is missing or empty, or there is not one for each completion.
    """
    checks = _verdicts(completions, answer, ["recitation"] * len(completions))
    _log_verdicts("recited_answer", checks, log_extra)
    return [float(check.correct) for check in checks]


def exact_match(completions: Sequence[Completion], answer: Sequence[Reference], **kwargs: Any) -> list[float]:
    """1.0 where the stripped completion ends in exactly `answer`, else 0.0; with or without a mark before it.

    "Exactly": what stands before must not belong to the answer, so `18054`, `-8054` or `0.8054` do not match `8054`,
    while `#8054`, `= 8054` and `8054` do.

    Args:
        completions: what the model wrote: texts, or lists of chat messages, of which the last one counts.
        answer: the reference of each.
        **kwargs: other columns of the data set, which are not read.

    Returns:
        One reward per completion.

    Raises:
        ValueError: if an answer is missing or empty, or there is not one for each completion.
    """
    return [float(_ends_in(completion.strip(), reference)) for completion, reference in _pairs(completions, answer)]


def completion_text(completion: Completion) -> str:
    """Text of a completion: the string itself, or the content of the last chat message ("" if it has none)."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1].get("content") or "") if completion else ""


def _verdicts(completions: Sequence[Completion], answers: Sequence[Reference], kinds: Sequence[str]) -> list[Verdict]:
    pairs = _pairs(completions, answers)
    examples = []
    for index, ((_, reference), kind) in enumerate(zip(pairs, kinds, strict=True)):
        if kind != "auto":
            one_of("answer_type", kind, tuple(CHECKS))
        known = "maths" if kind == "auto" else kind
        examples.append(Example(prompt="", answer=reference, identifier=str(index), kind=known))
    return check_all(examples, [text for text, _ in pairs])


def _log_verdicts(name: str, checks: Sequence[Verdict], log_extra: LogExtra | None) -> None:
    """Columns with the name of the reward, because several rewards may have reasons."""
    if log_extra is not None:
        log_extra(f"{name}/reason", [check.reason for check in checks])
        log_extra(f"{name}/answer", [check.extracted for check in checks])


def _pairs(completions: Sequence[Completion], answers: Sequence[Reference]) -> list[tuple[str, str]]:
    if len(completions) != len(answers):
        raise ValueError(f"there are {len(completions)} completions and {len(answers)} answers; pass one answer each")
    pairs: list[tuple[str, str]] = []
    for index, (completion, reference) in enumerate(zip(completions, answers, strict=True)):
        text = answer_text(reference)
        if text is None:
            raise ValueError(
                f"answer {index} is {reference!r:.80}, allowed: non-empty text, a number, or a list of these; "
                "drop problems without answer"
            )
        pairs.append((completion_text(completion), text))
    return pairs


def _ends_in(text: str, answer: str) -> bool:
    before = text.removesuffix(answer)
    return before != text and not (before and (before[-1].isalnum() or before[-1] in "+-.,_/"))
