"""The ways of thinking by name, and their settings as texts, as a command line has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

from transformers import PreTrainedTokenizerBase

from thoughtcache.chains.folding import Keep, StepFolding
from thoughtcache.chains.markovian import MarkovianThinking
from thoughtcache.chains.thinking import Thinking
from thoughtcache.checks import one_of

THINKING: dict[str, type[MarkovianThinking] | type[StepFolding]] = {
    "markovian": MarkovianThinking,
    "folding": StepFolding,
}
MARKERS = ("opening", "closing", "separator")
"""Settings that are texts, and become the tokens of these."""
OF_FOLDING = ("keep", "separator", "max_steps", "step_tokens", "summary_tokens", "max_prompt_tokens")
"""Settings without a meaning where nothing is folded."""
OF_UNFOLDING = ("unfold_tokens",)
"""Settings without a meaning where something is."""
_FLAGS = {"true": True, "false": False}


def check_thinking(thinking: str | None, options: Mapping[str, str] | None, stop: Sequence[str] = ()) -> None:
    """Refuse names and combinations that have no meaning, before there is a tokenizer.

    Args:
        thinking: a name of `THINKING`, or None for one context.
        options: settings by name.
        stop: texts that end a sequence.

    Raises:
        ValueError: for a name that is not known, settings of no thinking, or stop texts beside links.
    """
    if thinking is None:
        if options:
            raise ValueError(f"thinking_options={dict(options)} are settings of no thinking; set it, or not them")
        return
    one_of("thinking", thinking, tuple(THINKING))
    if stop:
        raise ValueError(
            f"stop={list(stop)} ends one sequence, and thinking={thinking} makes several of it; leave out one of them"
        )


def make_thinking(name: str, options: Mapping[str, str] | None, tokenizer: PreTrainedTokenizerBase) -> Thinking:
    """A way of thinking from its name and its settings as texts.

    Args:
        name: a name of `THINKING`.
        options: settings by name; markers as they are written, numbers, and true or false. None for the defaults.
        tokenizer: makes tokens of markers.

    Raises:
        ValueError: for a name or a setting that is not known, a missing marker, a value that is refused, or a setting
            that changes nothing beside the others.
    """
    one_of("thinking", name, tuple(THINKING))
    kind: Any = THINKING[name]
    options = options or {}
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
        elif key == "keep":
            one_of(f"thinking_options {key}", text, get_args(Keep))
            values[key] = text
        else:
            if not text.removeprefix("-").isdecimal():
                raise ValueError(f"thinking_options {key}={text} is no integer; its default is {known[key]}")
            values[key] = int(text)
    if kind is StepFolding:
        fold = values.get("fold", True)
        for key in OF_UNFOLDING if fold else OF_FOLDING:
            if key in options:
                raise ValueError(
                    f"thinking_options {key}={options[key]} changes nothing with fold={str(fold).lower()}; leave it "
                    f"out, or set fold={str(not fold).lower()}"
                )
    missing = [key for key in MARKERS[:2] if key in known and key not in options]
    if missing:
        raise ValueError(f"thinking={name} needs the text of a marker: thinking_options {missing[0]}=TEXT")
    try:
        made: Thinking = kind(**values)
    except ValueError as error:
        raise ValueError(f"thinking_options of thinking={name}: {error}") from error
    return made
