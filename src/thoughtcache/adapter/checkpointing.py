"""Gradient checkpointing of transformers, with the thought states as part of what is run again.

A checkpointed decoder layer runs a second time in the backward pass, when the forward pass of the model has long let go
of its states. transformers gives every layer the function that checkpoints it; here that function is wrapped, so that
the states that were bound when the layer first ran are bound again, for the layer alone. Gradients reach the encoders
with and without `use_reentrant`: every layer has states of its own.

A forward pass with a cache of ours is refused instead: transformers takes the cache away from checkpointed layers. The
learner has checkpoints of its own (`learner/layer_checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from thoughtcache.adapter.binding import StateBinding

CACHE_REFUSAL = (
    "gradient checkpointing drops the cache in training mode, and the window and the thought state live in it; call "
    "model.eval() or model.gradient_checkpointing_disable() first"
)


class CheckpointWithStates:
    """A checkpoint function that binds, whenever it runs a layer, the states of the layer's first run.

    Args:
        checkpoint: checkpoint function that transformers gave the layer.
        binding: binding of the adapter.
    """

    def __init__(self, checkpoint: Callable[..., Any], binding: StateBinding) -> None:
        self.checkpoint = checkpoint
        self.binding = binding

    def __call__(self, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`checkpoint(run, *args, **kwargs)`, under the states that are bound now."""
        states = self.binding.states

        def run_with_states(*inputs: Any, **named: Any) -> Any:
            with self.binding.bound(states):
                return run(*inputs, **named)

        return self.checkpoint(run_with_states, *args, **kwargs)


def checkpoints_layers(backbone: Any) -> bool:
    """Whether a forward pass of the decoder stack would checkpoint its layers."""
    return bool(backbone.training and backbone.gradient_checkpointing)


def bind_in_checkpoints(backbone: nn.Module, binding: StateBinding) -> None:
    """Wrap the checkpoint function of every layer that has none of ours yet."""
    for layer in _checkpointed(backbone):
        if not isinstance(layer._gradient_checkpointing_func, CheckpointWithStates):
            layer._gradient_checkpointing_func = CheckpointWithStates(layer._gradient_checkpointing_func, binding)


def release_checkpoints(backbone: nn.Module) -> None:
    """Give every layer back the checkpoint function that transformers gave it."""
    for layer in _checkpointed(backbone):
        if isinstance(layer._gradient_checkpointing_func, CheckpointWithStates):
            layer._gradient_checkpointing_func = layer._gradient_checkpointing_func.checkpoint


def _checkpointed(backbone: nn.Module) -> Iterator[Any]:
    """The layers that transformers has given a checkpoint function, switched on or not."""
    layers = (module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer))
    return (layer for layer in layers if "_gradient_checkpointing_func" in vars(layer))
