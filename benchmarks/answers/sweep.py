"""Checks every reference of the public suites against rewritten and wrong forms of itself.

    python -m benchmarks.answers.sweep --data shared/data

Prints per suite how many right forms are accepted and how many wrong ones refused, and lists the rest.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.answers.neighbours import neighbours
from benchmarks.answers.rewrites import rewrites
from thoughtcache.tasks.data.datasets import load_prompts
from thoughtcache.tasks.maths.answers import check_math_answer

SUITES = {
    "aime24": "aime",
    "aime25": "aime",
    "amc23": "integer",
    "gsm8k": "integer",
    "math500": "auto",
    "minerva_math": "auto",
    "olympiadbench": "auto",
}
"""Suite -> declared type of its answers."""


@dataclass(kw_only=True)
class Count:
    """What came out for some references."""

    references: int = 0
    right: int = 0
    refused: list[tuple[str, str, str]] = field(default_factory=list)
    wrong: int = 0
    accepted: list[tuple[str, str, str]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    fewest: int = 10**9
    seconds: float = 0.0


def sweep(references: list[str], answer_type: str) -> Count:
    """Check all forms of these references."""
    count = Count(references=len(references))
    started = time.perf_counter()
    for reference in references:
        right, wrong = rewrites(reference, answer_type), neighbours(reference)
        count.right, count.wrong = count.right + len(right), count.wrong + len(wrong)
        count.fewest = min(count.fewest, len(right) - 1, len(wrong))
        for forms, is_right, errors in ((right, True, count.refused), (wrong, False, count.accepted)):
            for form in forms:
                verdict = check_math_answer(form, reference, answer_type=answer_type)
                count.reasons[verdict.reason] += 1
                if verdict.correct != is_right:
                    errors.append((reference, form, verdict.reason))
    count.seconds = time.perf_counter() - started
    return count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="folder with a folder for each suite")
    parser.add_argument("--suites", nargs="+", choices=list(SUITES), default=list(SUITES))
    parser.add_argument("--limit", type=int, help="references of each suite")
    parser.add_argument("--output", help="JSON file for the errors")
    options = parser.parse_args()
    total, errors = Counter(), {}
    for name in options.suites:
        examples = load_prompts(
            str(Path(options.data) / name),
            split="test",
            need_answers=True,
            answer_type=SUITES[name],
            limit=options.limit,
        )
        count = sweep([example.answer or "" for example in examples], SUITES[name])
        print(
            f"{name:15} {count.references:5} references"
            f"  right {count.right - len(count.refused)}/{count.right}"
            f"  wrong {count.wrong - len(count.accepted)}/{count.wrong}"
            f"  at least {count.fewest} forms each  {count.seconds:.1f} s"
        )
        print("   ", dict(count.reasons))
        total.update(right=count.right, refused=len(count.refused), wrong=count.wrong, accepted=len(count.accepted))
        errors[name] = {"refused": count.refused, "accepted": count.accepted}
    print(f"right forms accepted: {1 - total['refused'] / total['right']:.4%} of {total['right']}")
    print(f"wrong forms refused:  {1 - total['accepted'] / total['wrong']:.4%} of {total['wrong']}")
    if options.output:
        Path(options.output).write_text(json.dumps(errors, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
