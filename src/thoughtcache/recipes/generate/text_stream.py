"""The text of tokens while they come, piece by piece.

`tokenizers.decoders.DecodeStream` knows which bytes are characters yet. What it keeps back, and all of the text under a
tokenizer that is not one of `tokenizers`, comes with the end: the pieces together are the text as a whole.

One thing cannot be taken back: a byte-fallback tokenizer shows bytes side by side that make no character as one U+FFFD
each, also those that were characters before the others came. The text is then told again from there on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

_TAKEN_BACK = "Invalid prefix encountered while decoding stream"


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
        self._stream: DecodeStream | None = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []

    def add(self, token_ids: Sequence[int]) -> None:
        """New tokens, in order."""
        for token in token_ids:
            self._token_ids.append(token)
            self._say(self._step(token))

    def end(self, text: str) -> None:
        """The text as a whole; what of it was not told yet is told."""
        if self._backend is not None and not text.startswith(self.told):
            # As it was told: `decode` of transformers may also drop spaces in front of punctuation.
            text = self._backend.decode(self._token_ids, skip_special_tokens=True)
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(text, self.told, strict=False)))
        self._say(text[same:])

    def _step(self, token: int) -> str:
        """What a token adds to the text; nothing from where it changes what was told before."""
        if self._stream is None or self._backend is None:
            return ""
        try:
            return self._stream.step(self._backend, token) or ""
        except Exception as error:  # tokenizers raise a bare one
            if type(error) is not Exception or _TAKEN_BACK not in str(error):
                raise
            self._stream = None
            return ""

    def _say(self, piece: str) -> None:
        if piece:
            self.told += piece
            self._tell(piece)
