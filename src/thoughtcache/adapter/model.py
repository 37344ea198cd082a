"""The PEFT tuner: LoRA layers with the thought variant, parameters of the states per layer, states bound per forward.

How a forward pass gets its states: `forward_hooks.py`. `generate` of transformers and our own sampler take this same
path.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thoughtcache.adapter.binding import StateBinding
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.adapter.forward_hooks import ForwardHooks
from thoughtcache.adapter.generation import (
    check_options,
    keyword_arguments,
    merged_options,
    new_token_bound,
    prompt_tokens,
)
from thoughtcache.adapter.injection import RevertibleInjection
from thoughtcache.adapter.other_caches import refuse_continuous_batching
from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.adapter.state_parameters import (
    adapter_state,
    attach,
    by_layer,
    holders_of,
    new_parameters,
    of_all_layers,
    without_adapter_name,
)
from thoughtcache.adapter.support import check_layer, check_model, layer_index
from thoughtcache.adapter.usage import ModelUse
from thoughtcache.adapter.variant import ThoughtVariant
from thoughtcache.cache.base import States
from thoughtcache.cache.budgets import layer_budgets
from thoughtcache.cache.eviction import make_eviction_policy
from thoughtcache.cache.generate_cache import BoundedCache
from thoughtcache.cache.layer_masks import check_masked_attention
from thoughtcache.cache.query_log import QueryLog, new_query_log
from thoughtcache.cache.rotation import Rotations, key_rotations
from thoughtcache.cache.window_rules import WindowRules
from thoughtcache.config import ThoughtConfig
from thoughtcache.lora_fields import check_lora_fields
from thoughtcache.records import CacheSettings
from thoughtcache.state.attention.weights import MEMORIES, MemoryWeights
from thoughtcache.state.attention_memory import AttentionMemory
from thoughtcache.state.both_memories import BothMemories
from thoughtcache.state.encoder import ENCODERS, ThoughtEncoder, scalars_as_vectors
from thoughtcache.state.memory import Memory

INJECTED = (
    "a thought adapter cannot be put into a model without its tuner around it, which holds the states; wrap the model "
    "with peft.get_peft_model(base, config), or load a saved adapter with "
    "peft.AutoPeftModelForCausalLM.from_pretrained(folder) or peft.PeftModel.from_pretrained(base, folder)"
)


class ThoughtModel(RevertibleInjection):
    """Tuner behind `ThoughtConfig`; users reach it through `peft.get_peft_model`.

    Raises:
        ValueError: if it is made to be left out afterwards, as `inject_adapter_in_model` and transformers' own
            integration do.
    """

    def __init__(self, model: nn.Module, config: Any, adapter_name: str, **kwargs: Any) -> None:
        if isinstance(config, PeftConfig):  # a PeftModel passes a dictionary
            raise ValueError(INJECTED)
        self.binding = StateBinding()
        self.use = ModelUse()
        super().__init__(model, config, adapter_name, **kwargs)

    @property
    def backbone(self) -> nn.Module:
        """The decoder stack without the language-model head."""
        return self.model.get_decoder()  # type: ignore[no-any-return]

    @property
    def thought_config(self) -> ThoughtConfig:
        """Configuration of the active adapter; without its window inside `full_cache()`.

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
        if self.use.has_full_cache:
            config = copy.copy(config)
            config.window = None
        return config

    @property
    def adapter_enabled(self) -> bool:
        """False inside `disable_adapter()`, and when the model was unloaded."""
        layer = next((module for module in self.model.modules() if isinstance(module, LoraLayer)), None)
        return layer is not None and not layer.disable_adapters

    def sampling(self) -> AbstractContextManager[None]:
        """Sample in a block: the model runs for one sampler alone; see `ModelUse.sampling`."""
        return self.use.sampling()

    def full_cache(self) -> AbstractContextManager[None]:
        """Run the adapter without its window in a block, in all threads: full cache, and the initial state for ever."""
        return self.use.with_full_cache()

    def _check_before(self, model: nn.Module, config: ThoughtConfig) -> None:
        check_lora_fields(config)
        check_model(getattr(model, "config", None))
        config.share_out_over(model.config.num_hidden_layers, model.config.num_key_value_heads)  # type: ignore[union-attr,arg-type]

    def _check_after(self, adapter_name: str, config: ThoughtConfig) -> None:
        for holder in holders_of(config):
            of_all_layers(self.model, holder, adapter_name, self.num_layers)
        self._unrotations(config)  # refuses rotary embeddings that cannot be undone

    def _register_hooks(self) -> Sequence[RemovableHandle]:
        return ForwardHooks(self).register()

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
        variant = ThoughtVariant(self.binding, index, needs_state=not lora_config.has_plain_linears)
        module.lora_variant[adapter_name] = variant
        variant.init(module, adapter_name, config=lora_config)
        if any(index not in by_layer(self.model, one, adapter_name) for one in holders_of(lora_config)):
            self._add_parameters(module, lora_config, adapter_name, index)
        module.set_adapter(self.active_adapters, inference_mode=lora_config.inference_mode)
        if adapter_name not in self.active_adapters:
            module.requires_grad_(False)

    def _add_parameters(self, module: Any, config: ThoughtConfig, adapter_name: str, index: int) -> None:
        """Put what is behind the states of a decoder layer on its first adapted linear."""
        weight = module.lora_A[adapter_name].weight
        new = new_parameters(
            config,
            layer_index=index,
            layer=self.backbone.get_submodule(f"layers.{index}"),
            heads=(self.query_heads, *self.kv_shape),
            dtype=torch.promote_types(weight.dtype, torch.float32),
        )
        for holder, parameters in new.items():
            attach(module, holder, adapter_name, parameters.to(weight.device))

    def encoders(self) -> list[ThoughtEncoder]:
        """Encoders of the active adapter by decoder layer; empty where no adapted linear has a state.

        Raises:
            ValueError: if some decoder layer has no adapted linear and so no encoder.
        """
        if self.thought_config.has_plain_linears:
            return []
        found = of_all_layers(self.model, ENCODERS, self.active_adapters[0], self.num_layers)
        return [one for one in found if isinstance(one, ThoughtEncoder)]

    def memory_weights(self) -> list[MemoryWeights]:
        """Parameters of the active adapter's memory in attention space by decoder layer; empty if it has none.

        Raises:
            ValueError: if some decoder layer has no adapted linear and so none.
        """
        if not self.thought_config.has_attention_memory:
            return []
        found = of_all_layers(self.model, MEMORIES, self.active_adapters[0], self.num_layers)
        return [one for one in found if isinstance(one, MemoryWeights)]

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

    def memory(self) -> Memory:
        """The active adapter's memory of tokens that left; it holds nothing inside `disable_adapter()`."""
        config, is_on = self.thought_config, self.adapter_enabled
        linears = adapter_state(config, self.encoders() if is_on else [])
        if not config.has_attention_memory:
            return linears
        attention = AttentionMemory(self.memory_weights() if is_on else [], self._unrotations(config))
        return attention if config.has_plain_linears else BothMemories(linears, attention)

    def state_size(self) -> tuple[int, float]:
        """Numbers of a layer's state of one sequence, and tokens whose keys and values take as many; 0 without one."""
        memory = self.memory()
        states = memory.initial_states() if memory.state_bytes else None
        heads, head_size = self.kv_shape
        numbers = 0 if states is None else states[0][0].numel()
        return numbers, numbers / (2 * heads * head_size)

    def initial_states(self) -> States:
        """[1, ...] per layer before any eviction; None where there is no state."""
        return self.memory().initial_states()

    def key_rotations(self, positions: str) -> Rotations | None:
        """The rotations that move the keys of every layer when thoughts leave; None with absolute positions.

        Raises:
            ValueError: if the model's rotary embedding cannot be moved.
        """
        return key_rotations(self.model.config, self.backbone.rotary_emb) if positions == "rolling" else None

    def _unrotations(self, config: ThoughtConfig) -> Rotations | None:
        """How the keys that the memory un-rotates were rotated; None if it takes them as they are."""
        if not config.has_attention_memory or config.memory_keys == "rotated":
            return None
        return key_rotations(self.model.config, self.backbone.rotary_emb, remedy='memory_keys="rotated"')

    def window_rules(self, cache: CacheSettings, memory: Memory) -> WindowRules:
        """The rules that bound a cache under the active adapter, whose memory it is given."""
        eviction = make_eviction_policy(cache.eviction, dict(cache.eviction_options))
        turning = None
        if eviction.turns_queries and cache.window is not None:
            turning = key_rotations(self.model.config, self.backbone.rotary_emb, remedy="another eviction policy")
        return WindowRules(
            budgets=check_masked_attention(self.model.config, layer_budgets(cache, self.num_layers)),
            num_evicted=cache.num_evicted or 0,
            eviction=eviction,
            absorb=memory.absorber(),
            rotations=self.key_rotations(cache.positions),
            query_rotations=turning,
            absorbs_positions=memory.absorbs_positions,
        )

    def new_cache(self, cache: CacheSettings, *, max_new_tokens: int, seed: int = 0) -> BoundedCache:
        """An empty bounded cache with the active adapter's initial states."""
        memory = self.memory()
        rules = self.window_rules(cache, memory)
        return BoundedCache(
            num_layers=self.num_layers,
            states=memory.initial_states(),
            reader=memory.reader(),
            rules=rules,
            max_new_tokens=max_new_tokens,
            seed=seed,
            log=self.query_log(rules),
            owner=self.active_adapters[0],
        )

    @property
    def query_heads(self) -> int:
        """Query heads of a decoder layer."""
        return int(self.model.config.num_attention_heads)

    def query_log(self, rules: WindowRules) -> QueryLog | None:
        """An empty log for an eviction policy that looks at queries; None for others."""
        layers: Any = self.backbone.layers
        return new_query_log(rules, self.num_layers, layers[0].self_attn.scaling)

    def forward(self, *args: Any, thought_request: Callable[[ThoughtModel], Any] | None = None, **kwargs: Any) -> Any:
        """The base model's forward, or `thought_request(self)`.

        The request is how the learner runs its segments *through* a DDP-wrapped model, so that gradients synchronise.
        """
        if thought_request is not None:
            return thought_request(self)
        return super().forward(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generate as transformers does, under the active adapter's window and state.

        Without a window, and inside `disable_adapter()`, this is the base model's own `generate` with any cache.

        Raises:
            ValueError: if the prompt is empty, or if an option would break the token-by-token policy (`generation.py`),
                wherever it was set.
            RuntimeError: if another thread samples with this model.
        """
        with self.use.generating():
            if not self.adapter_enabled or self.thought_config.window is None:
                return self.model.generate(*args, **kwargs)
            config = self.thought_config
            arguments = keyword_arguments(self.model.generate, args, kwargs)
            options = merged_options(self.model.generation_config, arguments.get("generation_config"), arguments)
            check_options(options, arguments)
            prompt_length = prompt_tokens(arguments).shape[1]
            settings = config.resolve_window(prompt_length)
            reach = position_reach(self.model.config)
            new_tokens = new_token_bound(options, prompt_length, reach.positions)
            check_positions(prompt_length, new_tokens, reach, rolling_window=settings.rolling_window)
            cache = self.new_cache(settings, max_new_tokens=new_tokens)
            return self.model.generate(**{**arguments, **cache_keyword(self.backbone, cache)})

    def _refuse_continuous_batching(self) -> None:
        if self.adapter_enabled and self.thought_config.window is not None:
            refuse_continuous_batching(self.thought_config.window)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, where the adapter has no window; refused where it has."""
        self._refuse_continuous_batching()
        return self.model.init_continuous_batching(*args, **kwargs)

    def continuous_batching_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, where the adapter has no window; refused where it has."""
        self._refuse_continuous_batching()
        return self.model.continuous_batching_context_manager(*args, **kwargs)

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's, where the adapter has no window; refused where it has."""
        self._refuse_continuous_batching()
        return self.model.generate_batch(*args, **kwargs)

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        """Nested encoder keys carry the adapter name in their middle; drop it there, so that any name can load it."""
        own = without_adapter_name(key, adapter_name)
        return super()._remove_adapter_name_from_key(key, adapter_name) if own is None else own

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Adapters of before kept the encoder's scalars without dimensions; they load as well."""
        state_dict = scalars_as_vectors(state_dict)
        remap: Callable[..., dict[str, Tensor]] = super()._remap_adapter_state_dict_for_load
        return remap(model, config, adapter_name, state_dict)
