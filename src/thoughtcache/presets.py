"""Named methods: settings of a `ThoughtConfig` that belong together. Settings that are given win over a preset's.

Which is the default of a command follows from what was measured (docs/lab-log.md): `hybrid` won back most of what a
window costs on a model's own long answers, `memory` is what repeats passcodes, and the paper's method is one name away.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thoughtcache.checks import one_of
from thoughtcache.config import STATE_SETTINGS, ThoughtConfig

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "r": 32, "num_global_tokens": 32, "target_modules": "all-linear", "evict_fraction": 0.25, "eviction": "sliding",
        "positions": "absolute", "memory": "adapter", "initial_state": "global", "absorb": True,
        "state_rule": "linear", "state_norm": "frobenius", "state_norm_at": "write",
    },
    "lora": {"memory": "adapter", "initial_state": "identity", "absorb": False, "eviction": "sliding"},
    "memory": {"memory": "attention", "memory_features": 16, "eviction": "sliding"},
    "hybrid": {"memory": "attention", "memory_features": 16, "eviction": "h2o"},
}  # fmt: skip
"""`paper`: Progressive Thought Encoding. `lora`: plain LoRA, with its full cache where `window=None`.
`memory`: a memory in attention space. `hybrid`: the same, where H2O chooses what stays."""
CHOOSES_METHOD = frozenset({"memory", "eviction", "eviction_options", "absorb"}) | STATE_SETTINGS
"""Whoever gives one of these without a preset has chosen a method."""


def preset(name: str, **settings: Any) -> ThoughtConfig:
    """A configuration by its name.

    Args:
        name: "paper", "lora" (under a window: LoRA_c), "memory" or "hybrid"; what they set stands in `PRESETS`.
        **settings: settings of `ThoughtConfig`, which win over those of the preset.

    Returns:
        The configuration, for `peft.get_peft_model` or for a trainer's `peft_config`.

    Raises:
        ValueError: for an unknown name, or settings that do not go together.
    """
    return ThoughtConfig(**preset_settings(name, settings))


def preset_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a preset under those that are given.

    Args:
        name: a key of `PRESETS`.
        given: settings of `ThoughtConfig`.

    Raises:
        ValueError: for an unknown name.
    """
    one_of("preset", name, tuple(PRESETS))
    settings = {**PRESETS[name], **given}
    if name == "lora":  # its state is the identity, which is square
        settings.setdefault("num_global_tokens", settings.get("r", ThoughtConfig.r))
    return settings


def default_preset(name: str, given: Mapping[str, Any]) -> str:
    """The preset where none was asked for: this one, or the paper's where a method is chosen or nothing is evicted."""
    keeps_all = "window" in given and given["window"] is None
    return "paper" if keeps_all or CHOOSES_METHOD & set(given) else name
