"""Prompts that wait for slots: each different one is processed once, however many requests share it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from thoughtcache.policy.handle import PolicyHandle
from thoughtcache.sampler.prefill import Prefilled, prefill

Prompt = tuple[int, ...]


class PromptStore:
    """Keys, values and the last hidden state of prompts, for as long as a request that has them waits.

    Args:
        policy: the parts of the model.

    Attributes:
        prefilled: what was processed and is still waited for.
    """

    def __init__(self, policy: PolicyHandle) -> None:
        self.policy = policy
        self.prefilled: dict[Prompt, Prefilled] = {}
        self._users: Counter[Prompt] = Counter()

    def wait(self, prompt: Prompt) -> None:
        """One more request has this prompt."""
        self._users[prompt] += 1

    def forget(self, prompt: Prompt, count: int = 1) -> None:
        """So many requests wait for it no longer."""
        self._users[prompt] -= count
        if not self._users[prompt]:
            del self._users[prompt]
            self.prefilled.pop(prompt, None)

    def take(self, prompts: Sequence[Prompt], counts: Sequence[int]) -> list[Prefilled]:
        """Different prompts, processed; so many requests of each begin now."""
        new = [prompt for prompt in prompts if prompt not in self.prefilled]
        if new:
            self.prefilled.update(zip(new, prefill(self.policy, new), strict=True))
        taken = [self.prefilled[prompt] for prompt in prompts]
        for prompt, entry, count in zip(prompts, taken, counts, strict=True):
            self.forget(prompt, count)
            if prompt in self.prefilled and len(new) > 1 and prompt in new:
                self.prefilled[prompt] = entry.copied()  # a view would keep all rows of the padded batch
        return taken
