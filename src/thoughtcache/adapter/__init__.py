"""The PEFT method: a LoRA whose middle factor is the thought state of the sequence.

The import makes `peft.get_peft_model` and `PeftModel.from_pretrained` know `ThoughtConfig`, and does nothing else.
"""

from __future__ import annotations

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import register_peft_method

from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.config import PEFT_TYPE_NAME, THOUGHT_PEFT_TYPE, ThoughtConfig


def register() -> None:
    """Register the method once; a second call does nothing."""
    if THOUGHT_PEFT_TYPE not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(
            name=PEFT_TYPE_NAME.lower(), config_cls=ThoughtConfig, model_cls=ThoughtModel, prefix=ThoughtModel.prefix
        )


register()
