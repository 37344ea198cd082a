"""The text of tokens while they come, piece by piece.

`tokenizers.decoders.DecodeStream` knows which bytes are characters yet. What it keeps back, and all of the text under a
tokenizer that is not one of `tokenizers`, comes with the end: the pieces together are the text as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


class TextStream:
    """Tells new pieces of a text.

    Args:
        tokenizer: tokenizer of the tokens.
        tell: gets every piece.

    Attributes:
        told: what was told so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None]) -> None:
        self.told = ""
        self._tell = tell
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token_ids: Sequence[int]) -> None:
        """New tokens, in order."""
        if self._backend is None:
            return
        for token in token_ids:
            self._say(self._stream.step(self._backend, token) or "")

    def end(self, text: str) -> None:
        """The text as a whole; what of it was not told yet is told."""
        if text.startswith(self.told):
            self._say(text[len(self.told) :])

    def _say(self, piece: str) -> None:
        if piece:
            self.told += piece
            self._tell(piece)
