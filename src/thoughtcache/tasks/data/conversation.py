"""Chat messages of a data set: as `role` and `content`, or as `from` and `value` (ShareGPT)."""

from __future__ import annotations

from collections.abc import Mapping

CONVERSATION_COLUMNS = ("messages", "conversations")
"""Columns with a whole conversation: the prompt, then the assistant's turns, the last of which is the solution."""

_ROLES = {"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"}
_KEYS = (("role", "content"), ("from", "value"))


def is_conversation_column(column: str) -> bool:
    """Whether a column of this name holds whole conversations."""
    return column.rpartition(".")[2].strip().casefold() in CONVERSATION_COLUMNS


def parse_messages(value: object) -> list[dict[str, str]] | None:
    """The messages as "role" and "content", or None if `value` is no non-empty list of them."""
    if not isinstance(value, list) or not value:
        return None
    messages: list[dict[str, str]] = []
    for message in value:
        if not isinstance(message, Mapping):
            return None
        found = next(((message[a], message[b]) for a, b in _KEYS if a in message and b in message), None)
        if found is None or not isinstance(found[1], str) or found[0] not in _ROLES:
            return None
        messages.append({"role": _ROLES[found[0]], "content": found[1]})
    return messages


def question_of(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation without the assistant's turns at its end; empty if nobody else spoke."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def solution_of(messages: list[dict[str, str]]) -> str | None:
    """The assistant's last turn, if the conversation ends in one."""
    return messages[-1]["content"] if messages[-1]["role"] == "assistant" else None
