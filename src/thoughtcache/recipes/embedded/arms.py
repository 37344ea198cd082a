"""The compared systems: points of one configuration space (DESIGN section 4), never scripts."""

from __future__ import annotations

from typing import Any

from thoughtcache.config import ThoughtConfig


def lora_window(window: int, rank: int, **lora: Any) -> ThoughtConfig:
    """LoRA_c: plain LoRA that is trained and run under the window."""
    return ThoughtConfig(r=rank, num_global_tokens=rank, window=window, initial_state="identity", absorb=False, **lora)


def thought_paper(window: int, rank: int, **lora: Any) -> ThoughtConfig:
    """PTE with the paper's rule."""
    return ThoughtConfig(r=rank, num_global_tokens=rank, window=window, state_rule="linear", **lora)


def thought_best(window: int, rank: int, **lora: Any) -> ThoughtConfig:
    """PTE with the rule that did best here (docs/lab-log.md): the delta rule without normalisation of the state."""
    return ThoughtConfig(r=rank, num_global_tokens=rank, window=window, state_rule="delta", state_norm="none", **lora)


ARMS = {"lora_window": lora_window, "thought_paper": thought_paper, "thought_best": thought_best}
TITLES = {
    "base_full": "base, full cache",
    "base_window": "base, window only",
    "lora_window": "LoRA_c (LoRA + window)",
    "thought_paper": "PTE, paper's rule",
    "thought_best": "PTE, delta rule",
    "grpo_lora_window": "LoRA_c",
    "grpo_thought_best": "PTE, delta rule",
}
