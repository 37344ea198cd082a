"""What Ray actors load in the tests: the tiny model, and one that gets into trouble in the middle of sampling."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from support.grpo import base_with_eos
from support.models import adapt, tiny_model


def plain_model(**config: Any) -> PeftModel:
    """The tiny model of the parity tests."""
    torch.set_num_threads(1)
    return tiny_model(**config)


def trainer_model(**config: Any) -> PeftModel:
    """The tiny model of the trainer's tests, with another adapter than the learner's."""
    torch.set_num_threads(1)
    return adapt(base_with_eos(dtype=torch.float32), seed=9, **config)


def troubled_model(flag: str, trouble: str = "die") -> PeftModel:
    """`plain_model` that dies or hangs once: the actor that creates the file `flag` first."""
    return _in_trouble(plain_model(), flag, trouble)


def troubled_trainer_model(flag: str, **config: Any) -> PeftModel:
    """`trainer_model` that dies once."""
    return _in_trouble(trainer_model(**config), flag, "die")


def _in_trouble(model: PeftModel, flag: str, trouble: str, forward_pass: int = 5) -> PeftModel:
    count = iter(range(10**6))

    def hook(*_: Any) -> None:
        if next(count) != forward_pass:
            return
        try:
            Path(flag).touch(exist_ok=False)
        except FileExistsError:
            return
        if trouble == "hang":
            time.sleep(600)
        os._exit(1)

    model.get_input_embeddings().register_forward_hook(hook)
    return model


def always_dying_model() -> PeftModel:
    """Dies at its second forward pass."""
    model = plain_model()
    count = iter(range(10**6))
    model.get_input_embeddings().register_forward_hook(lambda *_: os._exit(1) if next(count) == 1 else None)
    return model
