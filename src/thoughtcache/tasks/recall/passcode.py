"""Passcodes: secret words or digits are told in a thought, ordinary sentences follow, and at last the code is asked.

The code is given in the text and never drawn by the policy, and what it is cannot be guessed from the prompt. Words of
a code are all different; digits may come again, and then what follows one of them is not told by the digit alone.
Distances are counted in evictions, the unit of forgetting under a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from random import Random

from transformers import PreTrainedTokenizerBase

from thoughtcache.records import CacheSettings
from thoughtcache.tasks.recall.episode import RecallEpisode
from thoughtcache.tasks.recall.filler import TEST_FORMS, TRAINING_FORMS, sentence

PROMPT = "Remember the secret {kind}, and repeat them when asked."
SAID = " The secret {kind} are"
"""Before the code, when it is told and when it is asked for."""
WORDS = tuple(
    "apple river stone tiger piano cloud garden silver window rocket bread ocean candle forest mirror bridge".split()  # noqa: SIM905
)
OTHER_WORDS = tuple(
    "table horse music paper winter doctor yellow island coffee finger button castle engine ladder planet sugar".split()  # noqa: SIM905
)
"""Words that no training has in codes of up to sixteen; longer ones are made of all."""
FEWEST_CHOICES = 4
DIGITS = [str(digit) for digit in range(10)]


@dataclass(frozen=True, kw_only=True)
class PasscodeTask:
    """Makes episodes.

    Attributes:
        tokenizer: tokenizer of the model.
        cache: the cache under which distances are counted; its window is an integer.
        length: words (all different) or digits of a code.
        kind: "words" or "digits".
        is_test: whether sentences are those that training never sees: other forms, or every second one of the user's.
        own_sentences: sentences of the user's instead of built-in ones.
        words: what codes of words are made of; None: `words_for` this length.
        asked: stands before the code when it is asked for, with `{kind}` in it or not.
    """

    tokenizer: PreTrainedTokenizerBase
    cache: CacheSettings
    length: int = 4
    kind: str = "words"
    is_test: bool = False
    own_sentences: Sequence[str] = ()
    words: Sequence[str] | None = None
    asked: str = SAID

    def episode(self, seed: str | int, num_evictions: int, num_before: int = 0) -> RecallEpisode:
        """One episode.

        Args:
            seed: decides the code and the sentences.
            num_evictions: evictions between the code and its question; 0 asks at once. Where the window is so small
                that more have happened by then, the episode has more.
            num_before: tokens of sentences before the code is told.

        Raises:
            ValueError: for a cache that evicts nothing, a tokenizer that knows too few of the words, or too few
                sentences of the user's.
        """
        if self.cache.window is None or self.cache.num_evicted is None:
            raise ValueError("window=None evicts nothing, so that distances in evictions have no meaning; set a window")
        if self.cache.budgets is not None:
            given = list(self.cache.head_budgets or self.cache.budgets)
            raise ValueError(
                f"eviction_budgets={given} evict a code at other times in every layer or head, so that "
                "distances in evictions have no meaning; use even budgets"
            )
        random = Random(f"passcode {seed}")
        code = [token for word in self._code(random) for token in self._tokens(" " + word)]
        told = [*self._tokens(SAID.format(kind=self.kind)), *code, *self._tokens(".")]
        asked = self._tokens(self.asked.format(kind=self.kind))
        last = num_before + len(told) - 2  # the last token of the code, counted in thoughts
        wanted = _asked_after(last, num_evictions, self.cache.window, self.cache.num_evicted)
        middle = self._filler(random, max(0, wanted - num_before - len(told) - len(asked)))
        before = self._filler(random, num_before)
        thoughts = [*before, *told, *middle, *asked, *code]
        answer = len(thoughts) - len(code)
        return RecallEpisode(
            prompt_ids=self._tokens(PROMPT.format(kind=self.kind)),
            token_ids=thoughts,
            num_answer=len(code),
            num_evictions=evictions_since(last, answer, self.cache.window, self.cache.num_evicted),
            num_between=answer - last - 1,
        )

    def _code(self, random: Random) -> list[str]:
        choices = self._choices()
        if self.kind == "digits":
            return [random.choice(choices) for _ in range(self.length)]
        if self.length > len(choices):
            raise ValueError(
                f"code_length={self.length} is more than the {len(choices)} words that codes are made of, all of them "
                "different; use a shorter code, or kind='digits'"
            )
        return random.sample(choices, self.length)

    @property
    def is_possible(self) -> bool:
        """Whether the tokenizer tells enough words or digits apart for codes of this length."""
        choices = len(self._of_equal_length)
        return choices >= FEWEST_CHOICES and (self.kind == "digits" or self.length <= choices)

    def _choices(self) -> list[str]:
        """Words or digits of equally many tokens, so that all answers are equally long."""
        found = self._of_equal_length
        if len(found) < FEWEST_CHOICES:
            words = self._known
            raise ValueError(
                f"kind={self.kind!r}: the tokenizer tells {len(found)} of {len(words)} of them apart with equally many "
                "tokens, which is no secret; use the other kind"
            )
        return found

    @property
    def _known(self) -> Sequence[str]:
        if self.kind == "digits":
            return DIGITS
        return words_for(self.length) if self.words is None else self.words

    @cached_property
    def _of_equal_length(self) -> list[str]:
        # Words that a tokenizer does not tell apart, such as unknown ones, are one.
        by_tokens = {tuple(self._tokens(" " + word)): word for word in self._known}
        lengths = [len(tokens) for tokens in by_tokens]
        common = max(sorted(set(lengths)), key=lengths.count)
        return [word for tokens, word in by_tokens.items() if len(tokens) == common]

    def _tokens(self, text: str) -> list[int]:
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # tokenizers has no narrower one
            raise ValueError(
                f"the tokenizer cannot encode {text!r} ({error}); passcodes need a model that knows letters, which the "
                "embedded reasoner does not"
            ) from error
        return ids

    def _filler(self, random: Random, num_tokens: int) -> list[int]:
        """So many tokens of sentences; the first one is cut so that the last one ends with its full stop."""
        forms = TEST_FORMS if self.is_test else TRAINING_FORMS
        own = self.own_sentences[1 if self.is_test else 0 :: 2]
        if len(self.own_sentences) == 1:
            raise ValueError("one sentence cannot be shared between training and measurement; give a longer text")
        found: list[int] = []
        while len(found) < num_tokens:
            text = random.choice(own) if own else sentence(forms, random)
            found += self._tokens(" " + text)
        return found[len(found) - num_tokens :]


def words_for(longest: int) -> tuple[str, ...]:
    """What codes of at most so many words are made of: sixteen words, or thirty-two where those are too few."""
    return WORDS if longest <= len(WORDS) else (*WORDS, *OTHER_WORDS)


def evictions_since(thought: int, asked: int, window: int, num_evicted: int) -> int:
    """Evictions that have happened when thought `asked` is predicted, from the one on that takes `thought`.

    The window holds the thoughts before `asked`; the oldest leave first.
    """
    happened = max(0, -(-(asked - window) // num_evicted))
    taking = thought // num_evicted + 1
    return max(0, happened - taking + 1)


def _asked_after(thought: int, num_evictions: int, window: int, num_evicted: int) -> int:
    """The first thought that is predicted after so many evictions from the one that takes `thought`."""
    return next(
        asked for asked in count(thought) if evictions_since(thought, asked, window, num_evicted) >= num_evictions
    )
