"""Does an adapter forget by age, or by how much it has read? Facts of any age in texts of any length.

A forgetting curve asks later and later, so that the age of a fact grows with everything that was evicted. Here the fact
is told at different places: sentences before it fill the memory and make it no older, sentences behind it do both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.cache.schedule import num_evictions
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.studies.passcode import Recall, check_counts, episodes_of, recall_of
from thoughtcache.tasks.recall.passcode import PasscodeTask

AGES = (0, 1, 4, 16)
"""Evictions between a code and its question."""
BEFORE = (0, 4, 16)
"""Evictions that sentences before the code are enough for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallAtAge:
    """What was remembered of codes of one age in texts of one length.

    Attributes:
        num_before: evictions' worth of sentences before the code.
        num_tokens: tokens between a code and the answer, on average.
        num_evictions: all evictions before the answer, on average.
        recall: what was remembered; its `num_evictions` are those since the code was told.
    """

    num_before: int
    num_tokens: float
    num_evictions: float
    recall: Recall


def probe_ages(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    ages: Sequence[int] = AGES,
    before: Sequence[int] = BEFORE,
    num_codes: int = 64,
    code_length: int = 4,
    kind: str = "words",
    batch_size: int = 16,
    seed: int = 0,
    cache: CacheSettings | None = None,
    own_sentences: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[RecallAtAge]:
    """Accuracy by the age of what is needed, for several amounts of text before it.

    Args:
        model: the adapted model.
        tokenizer: tokenizer of the model.
        ages: evictions between a code and its question.
        before: sentences before the code, in evictions that they are enough for.
        num_codes: codes per age and amount; those of one age are the same for all amounts.
        code_length: words or digits of a code.
        kind: "words" or "digits".
        batch_size: texts that are scored at once.
        seed: seed of codes and sentences, which are those of no training run.
        cache: the cache whose evictions are counted, the adapter's own by default; see `probe_passcode`.
        own_sentences: sentences around a code instead of built-in ones.
        progress: called with the number of codes that were asked.

    Returns:
        One value per amount and age, in this order.

    Raises:
        ValueError: if the window is no integer, or numbers are out of range.
    """
    check_counts(num_codes, batch_size)
    if not ages or not before or min(*ages, *before, 0) < 0:
        raise ValueError(f"ages and before must be numbers of evictions from 0 on, got {ages} and {before}")
    own = find_tuner(model).thought_config.resolve_window(None)
    counted = own if cache is None else cache
    task = PasscodeTask(
        tokenizer=tokenizer, cache=counted, length=code_length, kind=kind, is_test=True, own_sentences=own_sentences
    )
    found = []
    for amount in before:
        for age in ages:
            size = amount * (counted.num_evicted or 0)
            episodes = episodes_of(task, age, num_codes=num_codes, seed=seed, num_before=size)
            asked = [len(episode.token_ids) - episode.num_answer for episode in episodes]
            events = [num_evictions(thoughts, counted.window, counted.num_evicted) for thoughts in asked]
            found.append(
                RecallAtAge(
                    num_before=amount,
                    num_tokens=sum(episode.num_between for episode in episodes) / num_codes,
                    num_evictions=sum(events) / num_codes,
                    recall=recall_of(model, episodes, own, batch_size=batch_size, seed=seed, progress=progress),
                )
            )
    return found
