"""What every probe is given, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peft import PeftModel
from rich.table import Table
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.support import DTYPES
from thoughtcache.cache.eviction import OptionValue, find_eviction_policy
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.report.plots import Panel
from thoughtcache.studies.capacity import FEWEST_CODES
from thoughtcache.studies.families import DISTANCES

Progress = Callable[[int], None]
ON_TEXTS = ("state-use", "anatomy", "attention-share", "sinks")
"""Probes that look at pieces of a text."""
ON_RECALL = ("ages", "families", "capacity")
"""Probes that tell codes and ask for them."""


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """Settings of a probe. Each field is an option of `thoughtcache probe`.

    Attributes:
        model: transformers folder or hub id.
        adapter: folder of a saved adapter.
        what: names of probes, of `ON_TEXTS` and `ON_RECALL`.
        text: file with running text, which is cut into pieces; its sentences stand around codes in "ages", and in one
            of the "families". Probes of `ON_RECALL` have built-in sentences without one.
        output_dir: folder for probe.json and a picture per probe.
        dtype: dtype of the base model.
        prompt_tokens: first tokens of a piece, which stay in the cache.
        length: thought tokens of a piece; those after the first eviction count.
        pieces: most pieces.
        batch_size: pieces, or codes, that are scored at once.
        policies: of "attention-share" and "capacity": eviction policies of the wider windows beside the memory.
        first_tokens: of "sinks": tokens that are the first ones.
        tolerance: of "sinks": mass by which a head may move before it is flagged.
        codes: codes per figure.
        code_length: words or digits of a code when it was taught; of the longest one.
        kind: "words" or "digits" when it was taught.
        distances: evictions between a code and its question.
        before: of "ages": sentences before a code, in evictions that they are enough for.
        eviction: another eviction policy than the adapter's.
        eviction_options: settings of that policy.
        eviction_budgets: other budgets than the adapter's, as in `ThoughtConfig`, or "even".
        seed: seed of eviction policies that draw, and of codes.
        overwrite: replace the results of an earlier probe.

    Raises:
        ValueError: for a value that is unknown or out of range, or a text that is missing.
    """

    model: str
    adapter: str
    what: Sequence[str] = ("state-use",)
    text: str | None = None
    output_dir: str = "runs/probe"
    dtype: str = "float32"
    prompt_tokens: int = 16
    length: int = 256
    pieces: int = 32
    batch_size: int = 8
    policies: Sequence[str] = ("sliding",)
    first_tokens: int = 4
    tolerance: float = 0.1
    codes: int = 32
    code_length: int = 4
    kind: str = "words"
    distances: Sequence[int] = DISTANCES
    before: Sequence[int] = (0, 4, 16)
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    eviction_budgets: str | list[int] | list[list[int]] | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        one_of("kind", self.kind, ("words", "digits"))
        at_least_one(self, "prompt_tokens", "length", "pieces", "batch_size", "first_tokens", "codes", "code_length")
        if not self.what or len(set(self.what)) < len(self.what):
            raise ValueError(f"what must be one probe or several different ones, got {list(self.what)}")
        for name in self.what:
            one_of("what", name, (*ON_TEXTS, *ON_RECALL))
        for field_name in ("distances", "before"):
            values = getattr(self, field_name)
            if not values or min(values) < 0:
                raise ValueError(f"{field_name} must be numbers of evictions from 0 on, got {list(values)}")
        for policy in self.policies:
            try:
                find_eviction_policy(policy)
            except ValueError as error:
                raise ValueError(f"policies: {error}") from error
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance must lie between 0 and 1, the attention of all tokens, got {self.tolerance}")
        if "sinks" in self.what and self.first_tokens > self.prompt_tokens:
            raise ValueError(
                f"first_tokens={self.first_tokens} are more than prompt_tokens={self.prompt_tokens}, which stay in the "
                "cache; count fewer, or give longer prompts"
            )
        if "capacity" in self.what and self.codes < FEWEST_CODES:
            raise ValueError(f"codes={self.codes} gives no interval of a mean; ask for at least {FEWEST_CODES} codes")
        on_texts = [name for name in self.what if name in ON_TEXTS]
        if on_texts and self.text is None:
            raise ValueError(f"the probe {on_texts[0]!r} looks at a text; give a file with running text (--text)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """What is probed.

    Attributes:
        run: the settings.
        model: the adapted model.
        tokenizer: its tokenizer.
        texts: pairs of a prompt and thoughts; none where no probe looks at texts.
        sentences: the sentences of the text; none without one.
    """

    run: ProbeRun
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[tuple[list[int], list[int]]]
    sentences: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one probe has found.

    Attributes:
        payload: all numbers, as JSON can hold them.
        tables: what is printed.
        panels: what is drawn.
        lines: what is printed below the tables.
    """

    payload: Any
    tables: list[Table]
    panels: list[Panel]
    lines: list[str] = field(default_factory=list)


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> Table:
    """A table whose first columns are words, and whose others are numbers."""
    table = Table(title=title)
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < left else "right")
    for row in rows:
        table.add_row(*row)
    return table


def percent(share: float) -> str:
    """A share as text."""
    return f"{100 * share:.0f} %"


def with_interval(share: float, low: float, high: float) -> str:
    """A share with its interval as text."""
    return f"{100 * share:.0f} % ({100 * low:.0f}-{100 * high:.0f})"
