"""Tokens of a step, over all processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from thoughtcache.train.trainer_options.token_count import num_tokens

ROWS: Any = [SimpleNamespace(prompt_ids=[1, 2, 3], token_ids=[4]), SimpleNamespace(prompt_ids=[], token_ids=[5, 6])]


def accelerator(*others: int) -> Any:
    def gather(own: torch.Tensor) -> torch.Tensor:
        assert others, "one process has nobody to wait for"
        return torch.cat([own, torch.tensor(others)])

    return SimpleNamespace(num_processes=1 + len(others), device="cpu", gather=gather)


def test_tokens_of_all_processes_count() -> None:
    assert num_tokens(ROWS, accelerator()) == 6
    assert num_tokens(ROWS, accelerator(10, 0)) == 16
    assert num_tokens([], accelerator(10)) == 10
