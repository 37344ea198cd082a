"""Refuses what PEFT's LoRA tuner can do and a thought adapter cannot; each method does so before anything changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from peft.tuners.lora import LoraModel

from thoughtcache.adapter.variant import MERGE_REFUSAL

COMBINATION_REFUSAL = (
    "thought adapters cannot be combined by their weights: each has a state of its own, which is not linear in what it "
    "reads. Train one adapter on both data sets, or switch between them with set_adapter(name)"
)
BATCH_REFUSAL = (
    "{name} is not supported with thought adapters: one adapter makes the states of the whole batch. Run one batch per "
    "adapter, after set_adapter(name)"
)
CONVERSION_REFUSAL = (
    "a thought adapter starts from the base weights as they are, so there is no other initialisation to convert from; "
    "leave out path_initial_model_for_weight_conversion"
)


class PeftRefusals(LoraModel):
    """The part of the tuner that refuses."""

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: states do not add up as weights do."""
        raise ValueError(COMBINATION_REFUSAL)

    def subtract_mutated_init(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: for initialisations that change the base, and these are refused."""
        raise ValueError(CONVERSION_REFUSAL)

    @classmethod
    def _convert_state_dict_for_initial_model(cls, *args: Any, **kwargs: Any) -> NoReturn:
        """`save_pretrained(path_initial_model_for_weight_conversion=...)`: refused."""
        raise ValueError(CONVERSION_REFUSAL)

    def _check_merge_allowed(self) -> NoReturn:
        """Merging: refused before the first layer is touched."""
        raise ValueError(MERGE_REFUSAL)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """The context that PEFT opens around `forward` and `generate`; arguments for single rows are refused."""
        for name in ("adapter_names", "alora_offsets"):
            if kwargs.get(name) is not None:
                raise ValueError(BATCH_REFUSAL.format(name=name))
        yield
