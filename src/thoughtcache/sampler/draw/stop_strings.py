"""Stop strings: where a text first contains one, as a number of tokens.

A stop string may begin or end inside a token, and may span many. Whether a token completes one depends on that token
and the ones before it alone, so that the answer is the same however rarely one looks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

Decode = Callable[[Sequence[int]], str]

INCOMPLETE = "\ufffd"
"""The character that a tokenizer shows for bytes that are no character yet."""
CONTEXT_TOKENS = 8
"""Tokens decoded in front of the longest stop string, since tokenizers may strip or change the first of a text."""


class StopStrings:
    """Finds the token that completes a stop string.

    Args:
        strings: stop strings, at least one and none of them empty.
        decode: tokens to text, special tokens included.

    Raises:
        ValueError: if a string is empty or holds U+FFFD.
    """

    def __init__(self, strings: Sequence[str], decode: Decode) -> None:
        check_stop_strings(strings)
        self.strings = tuple(strings)
        self.decode = decode
        # A token holds at least one byte of text.
        self.reach = max(len(string.encode()) for string in strings) + CONTEXT_TOKENS

    def find(self, tokens: Sequence[int], start: int) -> int | None:
        """Tokens up to and including the first one, from number `start` on, that completes a stop string, or None."""
        window = self.decode(tokens[max(0, start - self.reach) :])
        if not any(string in window for string in self.strings):
            return None
        for count in range(start + 1, len(tokens) + 1):
            if self._completes(tokens[max(0, count - self.reach) : count]):
                return count
        return None

    def _completes(self, tail: Sequence[int]) -> bool:
        """Whether the last token completes a stop string, which the text without it did not hold."""
        before, text = self.decode(tail[:-1]).rstrip(INCOMPLETE), self.decode(tail)
        return any(text.find(string, max(0, len(before) - len(string) + 1)) >= 0 for string in self.strings)


def check_stop_strings(strings: str | Sequence[str]) -> None:
    """Refuse texts that cannot be looked for.

    Raises:
        ValueError: if one is empty or holds U+FFFD.
    """
    for string in (strings,) if isinstance(strings, str) else strings:
        if not string or INCOMPLETE in string:
            raise ValueError(
                f"stop_strings must hold texts of at least one character and without U+FFFD, got {string!r}; "
                "leave it out"
            )


def make_stop_strings(strings: str | Sequence[str], tokenizer: PreTrainedTokenizerBase | None) -> StopStrings | None:
    """The stop strings of a call; None if there are none.

    Raises:
        ValueError: if there is no tokenizer, or if a string cannot be looked for.
    """
    listed = (strings,) if isinstance(strings, str) else tuple(strings)
    if not listed:
        return None
    if tokenizer is None:
        raise ValueError(
            f"stop_strings={listed} need the text of the tokens; pass tokenizer= as well, or give stop_ids instead"
        )

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    return StopStrings(listed, decode)
