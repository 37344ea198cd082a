"""Forward passes without the adapter's own cache: how far they are still its policy.

The policy is defined for a prompt and thoughts under the bounded cache. Without that cache nothing is evicted and
nothing absorbed, which is the same thing only as long as nothing would be: at most `window` thoughts behind the prompt.

Where the prompt ends is known from what the caller asks for. The first pass into a cache is the prompt, later ones are
thoughts. In a pass over a whole text the prompt ends where the first score is read: `logits_to_keep` and `labels` say
so; with neither, every position may be read, and the prompt is one token. The last position alone is that of a prompt
of any length, if the pass keeps its keys and values; a loop that keeps none would run everything again for each token.
"""

from __future__ import annotations

from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from transformers.cache_utils import Cache

from thoughtcache.adapter.binding import Wanted

REMEDY = (
    "Sample with model.generate or thoughtcache.rollout, score with thoughtcache.replay, train with "
    "thoughtcache.ThoughtGRPOTrainer or thoughtcache.distill. If all of it is a prompt, pass logits_to_keep=1; if the "
    "adapter is to run with the full cache and its initial state, which is another policy, say so: "
    "`with thoughtcache.full_cache(model):`, or window=None in its configuration."
)


def refuse_continuous_batching(window: int | str) -> NoReturn:
    """Its paged cache holds many sequences in one row and keeps all of their tokens.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"continuous batching evicts and absorbs nothing, so it cannot run an adapter with a window of {window!r}; use "
        "thoughtcache.rollout, which refills its slots as sequences end, or `with thoughtcache.full_cache(model):` for "
        "the full cache"
    )


class OtherCaches:
    """Remembers the length of the prompt in every cache that is not ours, as long as the cache lives."""

    def __init__(self) -> None:
        self._prompts: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[OtherCaches], tuple[()]]:
        """A copy of the model has seen no caches."""
        return OtherCaches, ()

    def check(
        self, cache: Any, num_tokens: int, *, window: int | str, keeps_cache: bool, wanted: Wanted | None
    ) -> None:
        """Let a forward pass begin that is the adapter's policy without the adapter's cache.

        Args:
            cache: cache that the pass was given; None if it was given none.
            num_tokens: tokens of each row.
            window: window of the adapter, or its smallest budget.
            keeps_cache: whether its keys and values can be used by a later pass.
            wanted: which of its logits are read; None if every position may be.

        Raises:
            ValueError: if thoughts would have left the window before its last position.
        """
        if cache is not None and not isinstance(cache, Cache):
            refuse_continuous_batching(window)
        past = 0 if cache is None else int(cache.get_seq_length())
        if cache is not None and past:
            prompt = self._prompts.get(cache, 1)
        elif isinstance(window, int) and num_tokens - 1 <= window:
            prompt = 1  # however it is split, so there is no need to ask
        else:
            scored = num_tokens if wanted is None else wanted.num_scored(num_tokens)
            prompt = num_tokens - scored + 1 if scored > 1 or keeps_cache else 1
        thoughts = past + num_tokens - prompt
        resident = prompt if isinstance(window, str) else window
        if thoughts > resident:
            raise ValueError(
                f"this forward pass has {thoughts} tokens behind its prompt of {prompt} under a window of {resident}, "
                f"without the adapter's own cache: nothing was evicted or absorbed. {REMEDY}"
            )
        if cache is not None and not past:
            self.remember(cache, num_tokens)

    def remember(self, cache: Any, num_tokens: int) -> None:
        """These tokens are the prompt in this cache."""
        if isinstance(cache, Cache):
            self._prompts[cache] = num_tokens
