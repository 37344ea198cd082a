"""The code that runs in a Ray actor: a model is loaded once, its adapter is replaced, shards are sampled.

Nothing here needs Ray: the class is an ordinary one until `ray_rollouts.py` starts it elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

import thoughtcache.adapter  # noqa: F401  registers the PEFT method
from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.sampler.rollout import rollout
from thoughtcache.scale.adapter_weights import load_adapter
from thoughtcache.scale.wire import pack_rollouts


def load_from_folders(base: str, adapter: str, *, dtype: str = "auto", device: str | None = None) -> nn.Module:
    """The usual `loader` of `RayRollouts`.

    Args:
        base: folder or hub id of the base model, readable on the actor's machine.
        adapter: folder with a thought adapter of the learner's settings; its weights are replaced.
        dtype: dtype of the base model; "auto" takes that of its file.
        device: "cuda", "cpu", ...; None takes the GPU that Ray gave to the actor, or the CPU.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model: nn.Module = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    adapted: nn.Module = PeftModel.from_pretrained(model.to(place), adapter).eval()
    return adapted


class RolloutActor:
    """One sampler.

    Args:
        loader: import path of the function that makes the adapted model, "package.module:function".
        arguments: its keyword arguments.
    """

    def __init__(self, loader: str, arguments: Mapping[str, Any]) -> None:
        module, _, function = loader.partition(":")
        self.model: nn.Module = getattr(import_module(module), function)(**arguments)
        self.version: int | None = None

    def ready(self) -> bool:
        """True, once the model is loaded."""
        return True

    def sample(
        self,
        adapter: bytes,
        version: int,
        prompt_ids: Sequence[Sequence[int]],
        options: RolloutOptions,
        rows: Sequence[int],
    ) -> tuple[int, bytes]:
        """Sample some rows of a call.

        Args:
            adapter: packed weights.
            version: version of the adapter, which is loaded only if the version is another one than before.
            prompt_ids: all prompts of the call.
            options: options of `rollout`.
            rows: numbers of the rows to sample.

        Returns:
            The adapter version that sampled, and the packed rollouts in the order of `rows`.
        """
        if version != self.version:
            load_adapter(self.model, adapter)
            self.version = version
        return version, pack_rollouts(rollout(self.model, prompt_ids, rows=rows, **options))
