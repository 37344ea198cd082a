"""Settings of `thoughtcache compare-eviction`."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.adapter.support import DTYPES
from thoughtcache.checks import at_least_one, one_of


@dataclass(frozen=True, kw_only=True)
class CompareRun:
    """Each field is an option of `thoughtcache compare-eviction`.

    Attributes:
        model: transformers folder or hub id.
        text: file with running text, which is cut into pieces.
        dataset: file, folder or hub id with questions that the base answers; instead of `text`.
        tokens: file of JSON lines with token ids, "prompt" and "thought"; instead of both.
        split: split of a hub data set.
        prompt_column: column with the question.
        instruction: text after each question.
        window: resident thoughts, one or several numbers.
        eviction: names of policies; empty for all of the package that work with the model.
        extra_tokens: slots that every policy gets beside the window, such as the tokens whose keys and values take as
            many numbers as a state; what is lost is still that of the window alone.
        evict_fraction: share of the slots that leaves when they are full.
        positions: "absolute" or "rolling".
        output_dir: run folder: results.json, comparison.csv, layers.csv, comparison.png.
        dtype: dtype of the base model.
        num_texts: texts at most.
        prompt_tokens: with `text`, first tokens of a piece, which stay in the cache.
        length: thoughts of every text; shorter answers are left out, longer ones are cut.
        share_texts: the first texts, whose attention outputs are compared; inputs and outputs of all layers are held.
        batch_size: texts that are decoded at once; the first batch is timed.
        repeats: timed passes of every policy, each one right behind a pass of "sliding"; with 0 there is one pass of
            every policy and nothing beside it.
        seed: seed of policies and of answers.
        resume: go on in `output_dir` where the last run stopped, also with more windows or policies.
        overwrite: start anew in an `output_dir` that holds another run.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    model: str
    text: str | None = None
    dataset: str | None = None
    tokens: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    instruction: str = ""
    window: tuple[int, ...] = (64,)
    eviction: tuple[str, ...] = ()
    extra_tokens: int = 0
    evict_fraction: float = 0.25
    positions: str = "absolute"
    output_dir: str = "runs/compare-eviction"
    dtype: str = "float32"
    num_texts: int = 16
    prompt_tokens: int = 16
    length: int = 384
    share_texts: int = 8
    batch_size: int = 8
    repeats: int = 2
    seed: int = 0
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        at_least_one(self, "prompt_tokens", "length", "batch_size")
        if sum(source is not None for source in (self.text, self.dataset, self.tokens)) != 1:
            raise ValueError(
                "give one of text, a file that is cut into pieces, dataset, questions that the base answers, and "
                "tokens, a file of token ids"
            )
        for name in ("window", "eviction"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} must be different values, got {list(values)}")
        if not self.window or min(self.window) < 2:
            raise ValueError(f"window must be numbers of at least 2 thoughts, got {list(self.window)}")
        for name in ("extra_tokens", "repeats"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("num_texts", "share_texts"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} must be at least 2, for an interval, got {getattr(self, name)}")
        slots = max(self.window) + self.extra_tokens
        if self.length <= slots + 1:
            raise ValueError(
                f"length must be more than {slots + 1}, or nothing is predicted after an eviction from {slots} slots, "
                f"got {self.length}"
            )
