"""What went wrong in a run of GRPO although it ended: read from its log, each with a remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

ANSWERS = "answers/"
UNFOUND = ("no_answer", "unclosed_box", "unreadable")
MOST_CUT, MOST_UNFOUND, MOST_OUTSIDE = 0.8, 0.5, 0.01
"""Shares above which a warning is given: cut completions, answers that were not found, tokens beyond the clip."""
LEAST_CHANGE = 0.01
"""Relative change of the state between the first and the last eviction of a rollout below which it does not move."""


def troubles(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences for the user, none if nothing is wrong.

    Args:
        log: the trainer's records, one per optimiser step.
    """
    found = []
    if log and all(record.get("frac_reward_zero_std") == 1.0 for record in log):
        found.append(
            f"in all {len(log)} steps the completions of each question had the same reward (mean "
            f"{_mean(log, 'reward'):.2f}), so that GRPO learned nothing: distil more first, give easier or harder "
            "questions, a larger --group-size, or look at grpo/rollouts.jsonl whether answers are judged rightly"
        )
    cut = _mean(log, "completions/clipped_ratio")
    if cut > MOST_CUT:
        found.append(
            f"{100 * cut:.0f} % of the completions were cut at --max-new-tokens, before they came to an answer; "
            "raise it, or distil more first"
        )
    reasons = {name.removeprefix(ANSWERS) for record in log for name in record if name.startswith(ANSWERS)}
    counts = {reason: sum(float(record.get(f"{ANSWERS}{reason}", 0.0)) for record in log) for reason in reasons}
    unfound = {reason: counts[reason] for reason in UNFOUND if counts.get(reason)}
    if sum(unfound.values()) > MOST_UNFOUND * sum(counts.values()):
        share = 100 * sum(unfound.values()) / sum(counts.values())
        found.append(
            f"in {share:.0f} % of the completions no answer was found ({', '.join(unfound)}); ask for one with "
            "--instruction, such as 'Put the final answer in \\boxed{}.', or see docs/answers.md"
        )
    change = _mean(log, "state/change")
    if change < LEAST_CHANGE and any("state/change" in record for record in log):
        found.append(
            f"from the first to the last eviction the state changes by {100 * change:.2g} % of its norm, so that it "
            "hardly depends on what left: raise --grpo-memory-learning-rate or --write-scale, or distil more first; "
            "`thoughtcache probe` says what it carries"
        )
    outside = _mean(log, "policy/gap_outside_clip")
    if outside > MOST_OUTSIDE:
        found.append(
            f"{100 * outside:.1f} % of the tokens were scored so far from how they were sampled that the clip cut them "
            f"(up to {_most(log, 'policy/gap_max'):.2g} nats), although both should be one policy; train in "
            "float32, or report it"
        )
    return found


def _mean(log: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean of a metric over the records that have it; 0 if none does."""
    values = [float(record[name]) for record in log if name in record]
    return fmean(values) if values else 0.0


def _most(log: Sequence[Mapping[str, Any]], name: str) -> float:
    return max((float(record[name]) for record in log if name in record), default=0.0)
