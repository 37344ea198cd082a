"""How many tokens a step had, for the progress: those of all processes, as TRL counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def num_tokens(rows: Sequence[Any], accelerator: Any) -> int:
    """Tokens of a batch, prompts included, over all processes. Every process has to ask.

    Args:
        rows: the texts of this process, each with `prompt_ids` and `token_ids`.
        accelerator: that of the trainer (`accelerate.Accelerator`).
    """
    own = sum(len(row.prompt_ids) + len(row.token_ids) for row in rows)
    if accelerator.num_processes == 1:
        return own
    return int(accelerator.gather(torch.tensor([own], device=accelerator.device)).sum())
