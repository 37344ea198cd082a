"""The PEFT tuner: LoRA layers with the thought variant, one encoder per decoder layer, states bound per forward.

How a forward pass gets its states: a pre-hook on the backbone looks at the cache. A `StatefulCache` evicts and absorbs
first and lends its states; any other cache, or none, means that nothing was ever evicted, so the initial states apply.
`generate` of transformers and our own sampler take this same path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thoughtcache.adapter.binding import StateBinding
from thoughtcache.adapter.cache_argument import CACHE_ARGUMENTS, cache_keyword, given_cache
from thoughtcache.adapter.checkpointing import (
    CACHE_REFUSAL,
    bind_in_checkpoints,
    checkpoints_layers,
)
from thoughtcache.adapter.injection import RevertibleInjection
from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.adapter.support import check_layer, check_model, layer_index
from thoughtcache.adapter.variant import ThoughtVariant
from thoughtcache.cache import BoundedCache, SlotCache, StatefulCache
from thoughtcache.cache.bounded_cache import AbsorbFn, States
from thoughtcache.cache.eviction import make_policy
from thoughtcache.cache.rotation import Rotations, key_rotations
from thoughtcache.cache.schedule import evict_count
from thoughtcache.config import ThoughtConfig
from thoughtcache.lora_fields import check_lora_fields
from thoughtcache.records import SamplingSettings
from thoughtcache.state.encoder import ThoughtEncoder, scalars_as_vectors
from thoughtcache.state.rules import absorb, initial_state

ENCODERS = "lora_thought_encoder"


class ThoughtModel(RevertibleInjection):
    """Tuner behind `ThoughtConfig`; users reach it through `peft.get_peft_model`."""

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **kwargs: Any) -> None:
        self.binding = StateBinding()
        self._sampling = False
        super().__init__(model, config, adapter_name, **kwargs)

    @property
    def backbone(self) -> nn.Module:
        """The decoder stack without the language-model head."""
        return self.model.get_decoder()  # type: ignore[no-any-return]

    @property
    def thought_config(self) -> ThoughtConfig:
        """Configuration of the active adapter.

        Raises:
            ValueError: if several adapters are active, whose states would overwrite each other, or none is.
        """
        active = self.active_adapters
        if len(active) != 1:
            raise ValueError(
                f"exactly one thought adapter may be active, got {active}; call set_adapter(name), or wrap the base "
                "again if it was unloaded"
            )
        config = self.peft_config[active[0]]
        assert isinstance(config, ThoughtConfig)
        return config

    @property
    def adapter_enabled(self) -> bool:
        """False inside `disable_adapter()`, and when the model was unloaded."""
        layer = next((module for module in self.model.modules() if isinstance(module, LoraLayer)), None)
        return layer is not None and not layer.disable_adapters

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Sample in this block: the model runs for one sampler alone.

        Raises:
            RuntimeError: if it is sampling already.
        """
        if self._sampling:
            raise RuntimeError(
                "this model is sampling already; let that rollout end before the next one begins (in a callback or "
                "another thread: collect what is to be sampled, or use a model of its own)"
            )
        self._sampling = True
        try:
            yield
        finally:
            self._sampling = False

    def _check_before(self, model: nn.Module, config: ThoughtConfig) -> None:
        check_lora_fields(config)
        check_model(getattr(model, "config", None))

    def _check_after(self, adapter_name: str, config: ThoughtConfig) -> None:
        if not config.is_plain_lora:
            self._encoders_of(adapter_name)

    def _register_hooks(self) -> Sequence[RemovableHandle]:
        return (
            self.backbone.register_forward_pre_hook(self._bind_states, with_kwargs=True),
            self.backbone.register_forward_hook(self._release_states, always_call=True),
        )

    def _create_and_replace(  # type: ignore[override]
        self,
        lora_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        index = layer_index(current_key)
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key=current_key, **kwargs
        )
        module: Any = getattr(parent, target_name)
        check_layer(module, current_key)
        variant = ThoughtVariant(self.binding, index, needs_state=not lora_config.is_plain_lora)
        module.lora_variant[adapter_name] = variant
        variant.init(module, adapter_name, config=lora_config)
        if not lora_config.is_plain_lora and not self._has_encoder(adapter_name, index):
            self._add_encoder(module, lora_config, adapter_name, index)
        module.set_adapter(self.active_adapters, inference_mode=lora_config.inference_mode)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)

    def _add_encoder(self, module: Any, config: ThoughtConfig, adapter_name: str, index: int) -> None:
        """Put the encoder of a decoder layer on its first adapted linear, where PEFT saves, loads and moves it."""
        heads, head_size = self.kv_shape
        weight = module.lora_A[adapter_name].weight
        encoder = ThoughtEncoder(
            layer_index=index,
            kv_size=heads * head_size,
            num_global_tokens=config.num_global_tokens,
            rank=config.r,
            rule=config.state_rule,
            write_scale=config.write_scale,
            dtype=torch.promote_types(weight.dtype, torch.float32),
        ).to(weight.device)
        if ENCODERS not in module._modules:
            module.add_module(ENCODERS, nn.ModuleDict())
            module.adapter_layer_names = (*module.adapter_layer_names, ENCODERS)
        module.get_submodule(ENCODERS).update({adapter_name: encoder})

    def _encoders_by_layer(self, adapter_name: str) -> dict[int, ThoughtEncoder]:
        holders = (m.get_submodule(ENCODERS) for m in self.model.modules() if ENCODERS in m._modules)
        encoders = [h[adapter_name] for h in holders if isinstance(h, nn.ModuleDict) and adapter_name in h]
        return {e.layer_index: e for e in encoders if isinstance(e, ThoughtEncoder)}

    def _has_encoder(self, adapter_name: str, index: int) -> bool:
        return index in self._encoders_by_layer(adapter_name)

    def encoders(self) -> list[ThoughtEncoder]:
        """Encoders of the active adapter by decoder layer; empty for plain LoRA.

        Raises:
            ValueError: if some decoder layer has no adapted linear and so no encoder.
        """
        return [] if self.thought_config.is_plain_lora else self._encoders_of(self.active_adapters[0])

    def _encoders_of(self, adapter_name: str) -> list[ThoughtEncoder]:
        found = self._encoders_by_layer(adapter_name)
        missing = sorted(set(range(self.num_layers)) - set(found))
        if missing:
            raise ValueError(f"decoder layers {missing} have no adapted linear; widen target_modules to every layer")
        return [found[index] for index in range(self.num_layers)]

    @property
    def num_layers(self) -> int:
        """Decoder layers of the base model."""
        return int(self.model.config.num_hidden_layers)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """H and D: key-value heads of a decoder layer, and the size of one."""
        config = self.model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(config.num_key_value_heads), int(head_size)

    def initial_states(self) -> States:
        """[1, G, R] per layer before any eviction; None where the state is the identity for ever."""
        config = self.thought_config
        if config.is_plain_lora:
            return None
        encoders = self.encoders()
        if config.initial_state == "global":
            return [initial_state(encoder.weights()) for encoder in encoders]
        shape = (config.num_global_tokens, config.r)
        make = torch.zeros if config.initial_state == "zero" else torch.eye
        reference = [encoder.log_write_scale for encoder in encoders]
        return [make(*shape, dtype=ref.dtype, device=ref.device).unsqueeze(0) for ref in reference]

    def absorber(self) -> AbsorbFn | None:
        """What makes a layer's next state of what leaves, by the active adapter; None if nothing absorbs."""
        config = self.thought_config
        if not config.absorb or not self.adapter_enabled:
            return None
        weights = [encoder.weights() for encoder in self.encoders()]

        def absorb_block(layer: int, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
            rule, norm = config.state_rule, config.state_norm
            return absorb(weights[layer], state, keys, values, rule=rule, norm=norm)  # type: ignore[arg-type]

        return absorb_block

    def key_rotations(self, positions: str) -> Rotations | None:
        """How the keys of every layer are moved when thoughts leave; None with absolute positions.

        Raises:
            ValueError: if the model's rotary embedding cannot be moved.
        """
        return key_rotations(self.model.config, self.backbone.rotary_emb) if positions == "rolling" else None

    def new_cache(
        self, *, window: int | None, num_evicted: int | None, eviction: str, max_new_tokens: int, seed: int = 0
    ) -> BoundedCache:
        """An empty bounded cache with the active adapter's initial states."""
        return BoundedCache(
            num_layers=self.num_layers,
            states=self.initial_states() if self.adapter_enabled else None,
            window=window,
            num_evicted=num_evicted,
            policy=make_policy(eviction),
            absorb=self.absorber(),
            max_new_tokens=max_new_tokens,
            seed=seed,
            rotations=self.key_rotations(self.thought_config.positions),
        )

    def new_slots(
        self, *, num_slots: int, capacity: int, settings: SamplingSettings, static_shapes: bool = False
    ) -> SlotCache:
        """Empty slots for our own sampler, each starting from the active adapter's initial states."""
        return SlotCache(
            num_layers=self.num_layers,
            num_slots=num_slots,
            capacity=capacity,
            initial_states=self.initial_states() if self.adapter_enabled else None,
            window=settings.window,
            num_evicted=settings.num_evicted,
            policy=make_policy(settings.eviction),
            absorb=self.absorber(),
            device=self.model.device,
            rotations=self.key_rotations(settings.positions),
            static_shapes=static_shapes,
        )

    def _bind_states(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache = given_cache(kwargs)
        if checkpoints_layers(module):
            if isinstance(cache, StatefulCache):
                raise ValueError(CACHE_REFUSAL)
            bind_in_checkpoints(module, self.binding)
        if isinstance(cache, StatefulCache):
            inputs = next(x for x in (*args, kwargs.get("input_ids"), kwargs.get("inputs_embeds")) if x is not None)
            cache.prepare_forward(inputs.shape[1])
            if cache.positions_behind:
                counted = kwargs.get("position_ids")
                if counted is None:
                    first = cache.get_seq_length()
                    counted = torch.arange(first, first + inputs.shape[1], device=inputs.device).unsqueeze(0)
                kwargs["position_ids"] = counted - cache.positions_behind
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.ndim == 2:
                kwargs["attention_mask"] = cache.compact_mask(mask, inputs.shape[1])
            self.binding.states = cache.states
        elif self.adapter_enabled:
            self.binding.states = self.initial_states()
        return args, kwargs

    def _release_states(self, module: nn.Module, args: Any, output: Any) -> None:
        self.binding.states = None

    def forward(self, *args: Any, thought_request: Callable[[ThoughtModel], Any] | None = None, **kwargs: Any) -> Any:
        """The base model's forward, or `thought_request(self)`.

        The request is how the learner runs its segments *through* a DDP-wrapped model, so that gradients synchronise.
        """
        if thought_request is not None:
            return thought_request(self)
        return super().forward(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, under the active adapter's window and state.

        Inside `disable_adapter()` this is the base model's own `generate`, with its full cache.

        Raises:
            ValueError: for options that would break the token-by-token policy (own caches, beams, assistants).
        """
        if not self.adapter_enabled:
            return self.model.generate(*args, **kwargs)
        config = self.thought_config
        for name in (*CACHE_ARGUMENTS, "assistant_model", "prefill_chunk_size", "cache_implementation"):
            if kwargs.get(name) is not None:
                raise ValueError(f"generate({name}=...) cannot be combined with a thought adapter; leave it out")
        generation = kwargs.get("generation_config") or self.model.generation_config
        if (kwargs.get("num_beams", generation.num_beams) or 1) != 1:
            raise ValueError("beam search is not supported with a thought state; use num_beams=1")
        inputs = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs"))
        if inputs is None:
            raise ValueError("generate needs input_ids")
        new_tokens = kwargs.get("max_new_tokens", generation.max_new_tokens)
        total = kwargs.get("max_length", generation.max_length) or 20
        new_tokens = new_tokens if new_tokens is not None else max(total - inputs.shape[1], 1)
        window = inputs.shape[1] if isinstance(config.window, str) else config.window
        rolling_window = window if config.positions == "rolling" else None
        check_positions(inputs.shape[1], new_tokens, position_reach(self.model.config), rolling_window=rolling_window)
        cache = self.new_cache(
            window=window,
            num_evicted=None if window is None else evict_count(window, config.evict_fraction),
            eviction=config.eviction,
            max_new_tokens=new_tokens,
        )
        return self.model.generate(*args, **{**kwargs, **cache_keyword(self.backbone, cache)})

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Nested encoder keys carry the adapter name in their middle; drop it there, so that any name can load it."""
        marker = f".{ENCODERS}.{adapter_name}."
        if marker in key:
            return key.replace(marker, f".{ENCODERS}.")
        return super()._remove_adapter_name_from_key(key, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Adapters of before kept the encoder's scalars without dimensions; they load as well."""
        state_dict = scalars_as_vectors(state_dict)
        remap: Callable[..., dict[str, Tensor]] = super()._remap_adapter_state_dict_for_load
        return remap(model, config, adapter_name, state_dict)
