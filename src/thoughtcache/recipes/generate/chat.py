"""A chat: histories of messages from a file, and turns that are typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from thoughtcache.recipes.generate.asking import Speaker


def read_messages(file: str | Path) -> list[dict[str, str]]:
    """The messages of a JSON file: a list of objects with "role" and "content", or an object with it as "messages".

    Raises:
        ValueError: if the file is missing or holds anything else; the message names it and what is allowed.
    """
    path = Path(file).expanduser()
    allowed = 'a list such as [{"role": "user", "content": "What is 12 * 13?"}], or an object with it as "messages"'
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); give a JSON file with {allowed}") from error
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error}); allowed is {allowed}") from error
    messages = found.get("messages") if isinstance(found, dict) else found
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{file} holds no messages; allowed is {allowed}")
    for number, message in enumerate(messages):
        good = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not good:
            raise ValueError(f"message {number} of {file} is {message!r:.80}; allowed is {allowed}")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def chat(
    speaker: Speaker,
    questions: Iterable[str],
    tell: Callable[[str], None],
    complain: Callable[[str], None],
    *,
    history: Iterable[dict[str, str]] = (),
) -> list[dict[str, str]]:
    """Answer one question after the other, each with all turns before it in the prompt; empty ones are skipped.

    The prompt never leaves the cache: a bounded window holds for the thoughts of one answer, and what was said before
    is read in full.

    Args:
        speaker: who answers.
        questions: what is asked, in order.
        tell: gets every answer piece by piece, and a line break behind it.
        complain: gets why a question is refused; the chat goes on as if it had not been asked.
        history: turns before the first question; a question at its end is answered first.

    Returns:
        All messages.

    Raises:
        ValueError: if the question at the end of the history is refused.
    """
    messages = [dict(message) for message in history]
    if messages and messages[-1]["role"] == "user":
        messages.append(_reply(speaker, messages, tell))
    for question in questions:
        if not question.strip():
            continue
        asked = {"role": "user", "content": question}
        try:
            reply = _reply(speaker, [*messages, asked], tell)
        except ValueError as error:
            complain(str(error))
        else:
            messages += [asked, reply]
    return messages


def _reply(speaker: Speaker, messages: list[dict[str, str]], tell: Callable[[str], None]) -> dict[str, str]:
    """The message that answers these."""
    text = speaker.answer(messages, tell)
    tell("\n")
    return {"role": "assistant", "content": text}
