"""Turns chat messages into prompt token ids.

With a chat template, the template decides. Without one (base models), the plain format:

    Question: <content>

    Answer:

where a system message is printed as it is, and an earlier assistant turn follows its `Answer:`. Special tokens at the
start (`<bos>`) are the tokenizer's in both cases; nothing is added at the end, where the thought begins (`ends.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from jinja2.exceptions import TemplateError

from thoughtcache.ends import prompt_token_ids

REASONING_INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."


@runtime_checkable
class ChatTokenizer(Protocol):
    """The part of a transformers tokenizer that is used here."""

    chat_template: Any
    eos_token_id: Any

    def apply_chat_template(self, conversation: Any, **kwargs: Any) -> Any:
        """Render messages and, if asked, tokenize them."""

    def __call__(self, text: Any, **kwargs: Any) -> Any:
        """Tokenize a text with the tokenizer's special tokens."""


def encode_prompt(
    tokenizer: ChatTokenizer,
    messages: Sequence[dict[str, str]],
    *,
    system: str | None = None,
    instruction: str | None = None,
) -> list[int]:
    """Token ids of a prompt, ready to be continued by the model.

    Args:
        tokenizer: a transformers tokenizer.
        messages: "role" (system, user, assistant) and "content" each; the last one is the user's.
        system: put before as a system message, unless the messages already begin with one.
        instruction: added to the last message after an empty line, such as `REASONING_INSTRUCTION`.

    Raises:
        ValueError: if there is no message, a role is unknown, the last message is not the user's, or the template
            refuses the messages.
    """
    if not messages:
        raise ValueError("messages is empty, allowed: at least one user message")
    for message in messages:
        if message["role"] not in PLAIN_FORMAT:
            raise ValueError(f"role is {message['role']!r}, allowed: {', '.join(PLAIN_FORMAT)}; rename it")
    if messages[-1]["role"] != "user":
        raise ValueError(f"the last role is {messages[-1]['role']!r}, allowed: 'user'; drop what follows the question")
    chat = [dict(message) for message in messages]
    if instruction is not None:
        chat[-1]["content"] += f"\n\n{instruction}"
    if system is not None and chat[0]["role"] != "system":
        chat.insert(0, {"role": "system", "content": system})
    if not tokenizer.chat_template:
        return prompt_token_ids(tokenizer, plain_prompt(chat))
    try:
        ids = tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True, return_dict=False)
    except TemplateError as error:  # Gemma's template has no system role, others want the roles to alternate
        roles = ", ".join(message["role"] for message in chat)
        raise ValueError(
            f"the chat template refuses its messages ({error}); the roles are {roles}; leave out those it does not know"
        ) from error
    return [int(token) for token in ids]


PLAIN_FORMAT = {
    "system": "{content}\n\n",
    "user": "Question: {content}\n\nAnswer:",
    "assistant": " {content}\n\n",
}
"""The text of a message of each role, for a tokenizer without a chat template."""


def plain_prompt(messages: Sequence[dict[str, str]]) -> str:
    """The plain format of the module's docstring."""
    return "".join(PLAIN_FORMAT[message["role"]].replace("{content}", message["content"]) for message in messages)
