"""Stop sequences: where a sequence of tokens first holds another one, as a number of tokens.

The tokens are compared, not their text: what a tokenizer would spell in two ways is two sequences. Whether a token
completes one depends on that token and the ones before it alone, so that the answer is the same however rarely one
looks. For texts there is `stop_strings.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

Tokens = Sequence[int]


def find_end(tokens: Tokens, sequences: Sequence[Tokens], start: int = 0) -> int | None:
    """Tokens up to and including the first one, from number `start` on, that completes a sequence; None without one.

    Args:
        tokens: the tokens in which one looks.
        sequences: sequences to look for, none of them empty.
        start: number of the first token that may complete one; a sequence may begin before it.
    """
    wanted = [list(sequence) for sequence in sequences]
    for count in range(start + 1, len(tokens) + 1):
        for sequence in wanted:
            if count >= len(sequence) and list(tokens[count - len(sequence) : count]) == sequence:
                return count
    return None


def ends_with(tokens: Tokens, sequence: Tokens) -> bool:
    """Whether `sequence` is the end of `tokens`."""
    return len(tokens) >= len(sequence) and list(tokens[len(tokens) - len(sequence) :]) == list(sequence)


def count_sequence(tokens: Tokens, sequence: Tokens) -> int:
    """How often `sequence` stands in `tokens`, from left to right and without overlap.

    Args:
        tokens: the tokens in which one looks.
        sequence: what is counted, at least one token.
    """
    count = start = 0
    while start + len(sequence) <= len(tokens):
        found = list(tokens[start : start + len(sequence)]) == list(sequence)
        count += found
        start += len(sequence) if found else 1
    return count
