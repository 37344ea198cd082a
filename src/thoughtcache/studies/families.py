"""Does what was learned on one kind of recall carry over to others? One adapter, several families of episodes.

An adapter is taught with codes of certain words, told and asked for in one wording, among certain sentences. Each
family here differs from that in one thing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from thoughtcache.policy.handle import find_tuner
from thoughtcache.studies.passcode import Recall, check_counts, episodes_of, recall_of
from thoughtcache.tasks.recall.filler import OTHER_SENTENCES
from thoughtcache.tasks.recall.passcode import OTHER_WORDS, PasscodeTask, words_for

TAUGHT = "as taught"
ASKED_OTHERWISE = " Now repeat what you were told to remember:"
DISTANCES = (1, 4, 16)
"""Evictions between a code and its question."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRecall:
    """What was remembered of one family.

    Attributes:
        family: its name.
        recall: one value per distance; None where the tokenizer does not tell its words apart.
    """

    family: str
    recall: list[Recall] | None


def families(*, code_length: int, kind: str, own_sentences: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """The settings of `PasscodeTask` for every family; the first one is that of teaching.

    Args:
        code_length: words or digits of a code when it was taught.
        kind: "words" or "digits" when it was taught.
        own_sentences: sentences between a code and its question that were not taught; built-in ones by default.
    """
    taught: dict[str, Any] = {"length": code_length, "kind": kind}
    if kind == "words":
        taught["words"] = words_for(code_length)
    other_kind = "digits" if kind == "words" else "words"
    found: dict[str, dict[str, Any]] = {TAUGHT: taught}
    if kind == "words" and not set(OTHER_WORDS) & set(taught["words"]):
        found["other words"] = {**taught, "words": OTHER_WORDS}
    found[other_kind] = {**taught, "kind": other_kind, "words": None}
    found["another question"] = {**taught, "asked": ASKED_OTHERWISE}
    found["other sentences"] = {**taught, "own_sentences": own_sentences or OTHER_SENTENCES}
    if code_length > 1:
        found["one fact"] = {**taught, "length": 1}
    found[f"{2 * code_length} facts"] = {**taught, "length": 2 * code_length}
    return found


def probe_families(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    distances: Sequence[int] = DISTANCES,
    num_codes: int = 64,
    code_length: int = 4,
    kind: str = "words",
    batch_size: int = 16,
    seed: int = 0,
    own_sentences: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> list[FamilyRecall]:
    """The forgetting curve of an adapter on families of episodes that it was not taught.

    Args:
        model: the adapted model.
        tokenizer: tokenizer of the model.
        distances: evictions between a code and its question.
        num_codes: codes per family and distance.
        code_length: words or digits of a code when it was taught.
        kind: "words" or "digits" when it was taught.
        batch_size: texts that are scored at once.
        seed: seed of codes and sentences, which are those of no training run.
        own_sentences: the sentences of the family of other sentences; built-in ones by default.
        progress: called with the number of codes that were asked; a family that cannot be asked counts as asked.

    Returns:
        One value per family, `TAUGHT` first.

    Raises:
        ValueError: if the window is no integer, numbers are out of range, or the tokenizer does not know what was
            taught.
    """
    check_counts(num_codes, batch_size)
    if not distances or min(distances) < 0:
        raise ValueError(f"distances must be numbers of evictions from 0 on, got {list(distances)}")
    cache = find_tuner(model).thought_config.resolve_window(None)
    found = []
    for name, settings in families(code_length=code_length, kind=kind, own_sentences=own_sentences).items():
        task = PasscodeTask(tokenizer=tokenizer, cache=cache, is_test=True, **settings)
        if name != TAUGHT and not task.is_possible:
            found.append(FamilyRecall(family=name, recall=None))
            if progress is not None:
                progress(num_codes * len(distances))
            continue
        curves = []
        for distance in distances:
            episodes = episodes_of(task, distance, num_codes=num_codes, seed=seed)
            curves.append(recall_of(model, episodes, cache, batch_size=batch_size, seed=seed, progress=progress))
        found.append(FamilyRecall(family=name, recall=curves))
    return found
