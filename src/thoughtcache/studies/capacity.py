"""How many facts does an adapter remember at once? Longer and longer codes, each word of which is a fact.

A longer code asks for more at the same distance, so that what grows is not the age of what is needed, but its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.studies.passcode import answers_of, check_counts, episodes_of
from thoughtcache.tasks.recall.passcode import PasscodeTask, words_for

FEWEST_CODES = 2
"""For an interval of a mean."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Capacity:
    """What was remembered of codes of one length.

    Attributes:
        num_facts: words or digits of a code.
        num_evictions: evictions between a code and its question.
        remembered: words or digits of a code that greedy decoding gives behind the right ones before them, the mean
            over codes.
        low: lower end of its 95 % interval (Student's, over codes), at least 0.
        high: upper end of it, at most `num_facts`.
        nats: cross-entropy per token of the answers.
        whole: share of codes that were remembered whole.
        codes: codes that were asked for.
    """

    num_facts: int
    num_evictions: int
    remembered: float
    low: float
    high: float
    nats: float
    whole: float
    codes: int


def lengths_up_to(longest: int) -> list[int]:
    """One, two, four, and so on, and the longest."""
    return sorted({*(2**power for power in range(longest.bit_length())), longest})


def probe_capacity(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    distances: Sequence[int] = (4,),
    num_codes: int = 32,
    code_length: int = 32,
    kind: str = "words",
    batch_size: int = 16,
    seed: int = 0,
    cache: CacheSettings | None = None,
    own_sentences: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[Capacity]:
    """Facts that are remembered, by how many were told.

    Args:
        model: the adapted model.
        tokenizer: tokenizer of the model.
        distances: evictions between a code and its question.
        num_codes: codes per length and distance, at least two.
        code_length: words or digits of the longest code; shorter ones have half as many, a quarter, and so on, of the
            same choices.
        kind: "words" or "digits".
        batch_size: texts that are scored at once.
        seed: seed of codes and sentences, which are those of no training run.
        cache: the cache whose evictions are counted, the adapter's own by default; see `probe_passcode`.
        own_sentences: sentences between a code and its question instead of built-in ones.
        progress: called with the number of codes that were asked.

    Returns:
        One value per length and distance, in this order.

    Raises:
        ValueError: if the window is no integer, or numbers are out of range.
    """
    check_counts(num_codes, batch_size)
    if num_codes < FEWEST_CODES:
        raise ValueError(f"num_codes={num_codes} gives a mean without an interval; ask for at least {FEWEST_CODES}")
    own = find_tuner(model).thought_config.resolve_window(None)
    found = []
    for num_facts in lengths_up_to(code_length):
        task = PasscodeTask(
            tokenizer=tokenizer, cache=own if cache is None else cache, length=num_facts, kind=kind, is_test=True,
            own_sentences=own_sentences, words=words_for(code_length),
        )  # fmt: skip
        for distance in distances:
            episodes = episodes_of(task, distance, num_codes=num_codes, seed=seed)
            logprobs, hits = answers_of(model, episodes, own, batch_size=batch_size, seed=seed, progress=progress)
            facts = hits.reshape(num_codes, num_facts, -1).all(dim=2).sum(dim=1)
            low, high = mean_interval([float(count) for count in facts])
            found.append(
                Capacity(
                    num_facts=num_facts,
                    num_evictions=min(episode.num_evictions for episode in episodes),
                    remembered=facts.double().mean().item(),
                    low=max(0.0, low),
                    high=min(float(num_facts), high),
                    nats=-logprobs.mean().item(),
                    whole=(facts == num_facts).double().mean().item(),
                    codes=num_codes,
                )
            )
    return found
