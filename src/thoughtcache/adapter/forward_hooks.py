"""Gives a forward pass its states.

A pre-hook on the backbone looks at the cache. A `StatefulCache` evicts and absorbs first and lends its states. Any
other cache, or none, means that nothing was ever evicted, so the initial states apply, and the pass is refused where
something should have been evicted (`other_caches.py`). What is bound is let go of when the pass ends, however it ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PretrainedConfig
from transformers.utils.generic import ModelOutput

from thoughtcache.adapter.attention import MASKS, MEMORY, QUERIES, thought_attention
from thoughtcache.adapter.binding import Wanted
from thoughtcache.adapter.cache_argument import given_cache
from thoughtcache.adapter.checkpointing import CACHE_REFUSAL, bind_in_checkpoints, checkpoints_layers
from thoughtcache.adapter.other_caches import OtherCaches
from thoughtcache.cache.base import StatefulCache

if TYPE_CHECKING:
    from thoughtcache.adapter.model import ThoughtModel


class ForwardHooks:
    """The hooks of one tuner.

    Args:
        tuner: tuner whose model is run.
    """

    def __init__(self, tuner: ThoughtModel) -> None:
        self.tuner = tuner
        self.other_caches = OtherCaches()

    def register(self) -> list[RemovableHandle]:
        """Hook the causal model, which knows what is read of a pass, and its backbone, which has the cache."""
        model, backbone = self.tuner.model, self.tuner.backbone
        return [
            model.register_forward_pre_hook(self._note_wanted, with_kwargs=True),
            model.register_forward_hook(self._forget_wanted, always_call=True),
            backbone.register_forward_pre_hook(self._bind_states, with_kwargs=True),
            backbone.register_forward_hook(self._release_states, with_kwargs=True, always_call=True),
        ]

    def _note_wanted(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tuner.binding.wanted = Wanted(kwargs.get("logits_to_keep", 0), kwargs.get("labels"))

    def _forget_wanted(self, module: nn.Module, args: Any, output: Any) -> None:
        self.tuner.binding.wanted = None

    def _bind_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = given_cache(kwargs)
        if not (isinstance(cache, StatefulCache) and cache.is_samplers):
            self.tuner.use.check()
        if checkpoints_layers(module):
            if isinstance(cache, StatefulCache):
                raise ValueError(CACHE_REFUSAL)
            bind_in_checkpoints(module, self.tuner.binding)
        if isinstance(cache, StatefulCache):
            self._check_owner(cache)
            inputs = _inputs(args, kwargs)
            cache.prepare_forward(inputs.shape[1])
            positions = kwargs.get("position_ids")
            if positions is None:
                first = cache.get_seq_length()
                positions = torch.arange(first, first + inputs.shape[1], device=inputs.device).unsqueeze(0)
            if cache.positions_behind:
                kwargs["position_ids"] = positions = positions - cache.positions_behind
            cache.note_positions(positions)
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2:
                kwargs["attention_mask"] = cache.compact_mask(mask, inputs.shape[1])
            self.tuner.binding.states = cache.linear_states
            is_read = self.tuner.adapter_enabled and not cache.is_initial
            read = cache.reader.of_attention(cache.states, positions) if is_read else None
            if read is not None:
                kwargs[MEMORY] = read
            observer = cache.observer
            if observer is not None:
                kwargs[QUERIES] = observer
            masks = cache.layer_masks
            if masks is not None:
                kwargs[MASKS] = masks
            # Our own sampler changes the attention once for all its passes.
            if (read is not None or observer is not None or masks is not None) and not cache.is_samplers:
                self.tuner.binding.change_attention(thought_attention(self.tuner.model.config))
        elif self.tuner.adapter_enabled:
            config = self.tuner.thought_config
            window = config.window
            if isinstance(window, int):
                window = config.resolve_window(None).smallest_budget
            if window is not None:
                self.other_caches.check(
                    cache,
                    _inputs(args, kwargs).shape[1],
                    window=window,
                    keeps_cache=cache is not None or _keeps_cache(module, kwargs),
                    wanted=self.tuner.binding.wanted,
                )
            # Nothing was evicted: attention has nothing to read, and plain linears have no state.
            if self.tuner.thought_config.has_plain_linears:
                self.tuner.binding.states = None
            else:
                memory = self.tuner.memory()
                self.tuner.binding.states = memory.reader().of_linears(memory.initial_states())
        return args, kwargs

    def _check_owner(self, cache: StatefulCache) -> None:
        """Refuse a cache of another adapter: its states mean nothing to this one."""
        active = self.tuner.active_adapters
        if cache.owner is not None and self.tuner.adapter_enabled and cache.owner not in active:
            raise ValueError(
                f"the cache holds states of the adapter {cache.owner!r}, and {active} is active; give each adapter a "
                "cache of its own"
            )

    def _release_states(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self.tuner.binding.states = None
        self.tuner.binding.change_attention(None)
        if given_cache(kwargs) is None and _keeps_cache(module, kwargs) and isinstance(output, ModelOutput):
            self.other_caches.remember(given_cache(dict(output)), _inputs(args, kwargs).shape[1])


def _inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """[B, T] or [B, T, hidden]: what a forward pass was given."""
    inputs = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
    assert isinstance(inputs, Tensor)
    return inputs


def _keeps_cache(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether a forward pass that was given no cache makes one."""
    asked, config = kwargs.get("use_cache"), module.config
    assert isinstance(config, PretrainedConfig)
    return bool(config.use_cache if asked is None else asked)
