"""One checkpoint per decoder layer inside a chunk: kept are the inputs of the layers, not their activations.

transformers' own gradient checkpointing drops the cache, because a layer that runs again would write to it twice. Here
every run of a layer writes to a cache of its own, and the first run's replaces the layer of the real one. Cost: one
more forward pass of the chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thoughtcache.adapter.attention import thought_attention
from thoughtcache.adapter.cache_argument import cache_argument
from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.cache.replay_cache import ReplayCache
from thoughtcache.learner.attention import lower_right_attention


@contextmanager
def checkpointed_layers(tuner: ThoughtModel, cache: ReplayCache) -> Iterator[None]:
    """Run the decoder layers under checkpoints inside the block.

    A second block in another thread waits for the first; other forward passes go through the layers as ever.

    Args:
        tuner: tuner of the model.
        cache: cache that the forward pass inside the block is given.
    """
    layers: Any = tuner.backbone.layers
    with tuner.use.changed_layers:
        replaced = [layer.__dict__.get("forward") for layer in layers]
        for index, layer in enumerate(layers):
            layer.forward = _checkpointed(layer.forward, tuner, cache, index)
        try:
            yield
        finally:
            for layer, forward in zip(layers, replaced, strict=True):
                del layer.forward
                if forward is not None:
                    layer.forward = forward


def _checkpointed(forward: Callable[..., Any], tuner: ThoughtModel, cache: ReplayCache, index: int) -> Any:
    """`forward` of decoder layer `index` under a checkpoint."""
    layers: Any = tuner.backbone.layers
    argument = cache_argument(layers[index])

    def run(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get(argument) is not cache:  # a pass of another thread
            return forward(hidden_states, *args, **kwargs)
        entry, states = cache.of_layer(index), tuner.binding.states
        reads_attention = cache.reader.reads_attention and not cache.is_initial
        around = reads_attention or cache.layer_masks is not None

        def once(hidden: Tensor) -> tuple[Any, Any]:
            own = entry.of_layer(index)
            # The backward pass comes when the forward pass of the model has let go of its states and its attention.
            with (
                tuner.binding.bound(states),
                lower_right_attention(tuner.model.config),
                thought_attention(tuner.model.config) if around else nullcontext(),
            ):
                output = forward(hidden, *args, **{**kwargs, argument: own})
            return output, own.layers[index]

        output, cache.layers[index] = checkpoint(once, hidden_states, use_reentrant=False, preserve_rng_state=False)
        return output

    return run
