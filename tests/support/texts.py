"""Random texts that are given to a model: prompts of unequal lengths, and thoughts."""

from __future__ import annotations

import torch

Text = tuple[list[int], list[int]]


def texts_of(count: int, length: int = 14, seed: int = 0, prompt: int = 1) -> list[Text]:
    """Texts of the tiny models' vocabulary; prompts have `prompt` to `prompt + 2` tokens."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> list[int]:
        return torch.randint(0, 29, (size,), generator=generator).tolist()

    return [(draw(prompt + row % 3), draw(length)) for row in range(count)]
