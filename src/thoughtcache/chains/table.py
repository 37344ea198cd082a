"""The ways of thinking by name, and their settings as texts, as a command line has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.folding import StepFolding
from thoughtcache.chains.markovian import MarkovianThinking
from thoughtcache.chains.thinking import Thinking
from thoughtcache.checks import one_of

THINKING: dict[str, type[MarkovianThinking] | type[StepFolding]] = {
    "markovian": MarkovianThinking,
    "folding": StepFolding,
}
MARKERS = ("opening", "closing", "separator")
"""Settings that are texts, and become the tokens of these."""
_FLAGS = {"true": True, "false": False}


def make_thinking(name: str, options: Mapping[str, str], tokenizer: PreTrainedTokenizerBase) -> Thinking:
    """A way of thinking from its name and its settings as texts.

    Args:
        name: a name of `THINKING`.
        options: settings by name; markers as they are written, numbers, and true or false.
        tokenizer: makes tokens of markers.

    Raises:
        ValueError: for a name or a setting that is not known, a missing marker, or a value that is refused.
    """
    one_of("thinking", name, tuple(THINKING))
    kind: Any = THINKING[name]
    known = {field.name: field.default for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in known:
            raise ValueError(f"thinking_options {key}={text} is not known to thinking={name}; it has {sorted(known)}")
        if key in MARKERS:
            values[key] = tokenizer(text, add_special_tokens=False)["input_ids"]
        elif isinstance(known[key], bool):
            one_of(f"thinking_options {key}", text, tuple(_FLAGS))
            values[key] = _FLAGS[text]
        else:
            if not text.removeprefix("-").isdecimal():
                raise ValueError(f"thinking_options {key}={text} is no integer; its default is {known[key]}")
            values[key] = int(text)
    missing = [key for key in MARKERS[:2] if key in known and key not in options]
    if missing:
        raise ValueError(f"thinking={name} needs the text of a marker: thinking_options {missing[0]}=TEXT")
    try:
        made: Thinking = kind(**values)
    except ValueError as error:
        raise ValueError(f"thinking_options of thinking={name}: {error}") from error
    return made
