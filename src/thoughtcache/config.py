"""The configuration of the adapter and of its cache. The configuration of a run is in `recipes/run/config.py`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, get_args

from peft import LoraConfig
from peft.utils.peft_types import PeftType

from thoughtcache.cache.budgets import checked_budgets, resolve_budgets
from thoughtcache.cache.eviction import OptionValue, checked_options, find_eviction_policy
from thoughtcache.cache.rotation import Positions
from thoughtcache.cache.schedule import evict_count
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.lora_fields import check_lora_fields
from thoughtcache.model_card import write_card
from thoughtcache.records import CacheSettings
from thoughtcache.state.attention.features import FEATURE_MAPS
from thoughtcache.state.attention.read import READS
from thoughtcache.state.attention.writes import WRITE_RULES
from thoughtcache.state.norms import STATE_NORMS, NormAt
from thoughtcache.state.rules import STATE_RULES

PEFT_TYPE_NAME = "THOUGHT"
OWN_WINDOW: Final = "config"
"""Stands for the adapter's own window where another one could be given."""


def _extend_peft_type() -> Any:
    """Add `PeftType.THOUGHT`: the enum is closed, and an own type makes a reload without this package fail loudly."""
    members: dict[str, Any] = PeftType._member_map_
    if PEFT_TYPE_NAME not in members:
        member = str.__new__(PeftType, PEFT_TYPE_NAME)
        member._name_ = PEFT_TYPE_NAME
        member._value_ = PEFT_TYPE_NAME
        members[PEFT_TYPE_NAME] = member
        PeftType._member_names_.append(PEFT_TYPE_NAME)
        PeftType._value2member_map_[PEFT_TYPE_NAME] = member
        type.__setattr__(PeftType, PEFT_TYPE_NAME, member)
    return members[PEFT_TYPE_NAME]


STATE_SETTINGS = frozenset(
    {
        "num_global_tokens", "initial_state", "state_rule", "state_norm", "state_norm_at", "write_scale",
        "encoder_start", "read_start",
    }
)  # fmt: skip
"""Settings that are read under memory="adapter" only."""
MEMORY_SETTINGS = frozenset(
    {"memory_features", "memory_feature_map", "memory_write", "memory_read", "memory_keys", "memory_weight"}
)
"""Settings that are read under memory="attention" only."""
START_SETTINGS = frozenset({"write_scale", "encoder_start", "read_start", "memory_weight"})
"""Settings that only decide where a training starts."""
LORA_NAMES = frozenset(item.name for item in fields(LoraConfig))
THOUGHT_PEFT_TYPE = _extend_peft_type()


@dataclass
class ThoughtConfig(LoraConfig):
    """PEFT configuration of Progressive Thought Encoding (arXiv 2602.16839), its controls and its baselines.

    LoRA with full cache: `window=None, initial_state="identity", absorb=False`. LoRA_c: the same with a window.
    Global-only control: `absorb=False`. Of the fields of `peft.LoraConfig`,
    `lora_fields.py` lists which are kept and why the others are refused.

    Attributes:
        r: rank R (paper: 32).
        lora_alpha: the delta is scaled by `lora_alpha / r`.
        target_modules: linear layers inside the decoder layers; the paper says all of them.
        task_type: PEFT's, always "CAUSAL_LM".
        num_global_tokens: G, global queries and tokens (paper: 32).
        window: thought tokens that stay in the cache: an integer, "prompt" (the paper's training setting: the longest
            prompt of a call of `rollout`, which in GRPO is the generation batch of a process; of all teacher samples in
            distillation), or None for the full cache.
        evict_fraction: share of the window that leaves when it is full (paper: 0.25).
        eviction: name of the eviction policy.
        eviction_options: settings of that policy, by name; what is not given, or given as its default, is left out.
        eviction_budgets: None or "even" (every layer holds `window` thoughts), "pyramid" or "pyramid:beta=8"
            (PyramidKV: lower layers hold more), or the budget of every layer as a list, of mean `window`, or that of
            every kv head, as a list per layer; "headkv:scores=FILE" and
            "adakv:scores=FILE" become such lists.
        positions: "absolute" (a thought keeps its position, and the model's positions bound the length) or "rolling"
            (positions count the prompt and the resident thoughts; cached keys are moved when others leave).
        initial_state: "global" (learned), "zero" or "identity" (plain LoRA; needs num_global_tokens == r).
        absorb: whether evicted tokens change the state.
        state_rule: name of the state rule; "linear" is the paper's.
        state_norm: "frobenius" (the state keeps the norm of the identity), "spectral" (its largest singular value is
            one), "orthogonal" (all of them are) or "none".
        state_norm_at: "write" (the paper: after every write) or "read" (the state keeps raw sums, which are normalised
            where the linears read them).
        write_scale: initial write scale of the encoder, positive.
        encoder_start: "random", or "base": what is kept of keys and values are the leading directions of the base
            layer's `k_proj` and `v_proj`.
        read_start: the factor that starts at zero starts at this scale instead, relative to the other one's, so that
            writes have a gradient from the first step. Under initial_state="zero" the model then is the base until the
            first eviction, under the others it is not the base at the start.
        memory: what learns from evicted tokens: "adapter" (the paper's state inside the LoRA factors), "attention" (a
            memory beside the window, which queries read; the factors are then plain LoRA) or "both".
        memory_features: F, features per key-value head. A layer's memory takes as many numbers as the keys and values
            of about F / 2 tokens.
        memory_feature_map: how keys and queries become features, "softmax", "hedgehog" or "unit".
        memory_write: "linear", "decay" or "delta".
        memory_read: "balanced" (one denominator, in which the window counts one), "joint" (the denominator of
            attention) or "added".
        memory_keys: "content" (un-rotated keys and queries) or "rotated".
        memory_weight: how much the memory counts at the start against the window, positive.

    Raises:
        ValueError: for a value that is unknown or out of range, or settings of which one undoes the other.
    """

    r: int = 32
    lora_alpha: int = 32
    target_modules: list[str] | set[str] | str | None = "all-linear"  # type: ignore[assignment] # PEFT keeps a set
    task_type: str | None = "CAUSAL_LM"  # type: ignore[assignment]
    num_global_tokens: int = field(default=32, metadata={"help": "G, number of global queries and tokens"})
    window: int | str | None = field(default=1024, metadata={"help": 'resident thoughts, "prompt", or None (full)'})
    evict_fraction: float = field(default=0.25, metadata={"help": "share of the window that leaves when it is full"})
    eviction: str = field(default="sliding", metadata={"help": "eviction policy"})
    eviction_options: dict[str, OptionValue] = field(
        default_factory=dict, metadata={"help": "settings of the eviction policy"}
    )
    eviction_budgets: str | list[int] | list[list[int]] | None = field(
        default=None, metadata={"help": "thoughts of every layer or kv head: a name or a list; even by default"}
    )
    positions: str = field(default="absolute", metadata={"help": "absolute or rolling"})
    initial_state: str = field(default="global", metadata={"help": "global, zero or identity"})
    absorb: bool = field(default=True, metadata={"help": "whether evicted tokens change the state"})
    state_rule: str = field(default="linear", metadata={"help": "how evicted tokens change the state"})
    state_norm: str = field(default="frobenius", metadata={"help": "frobenius, spectral, orthogonal or none"})
    state_norm_at: str = field(default="write", metadata={"help": "where states are normalised: write or read"})
    write_scale: float = field(default=0.1, metadata={"help": "initial write scale, positive"})
    encoder_start: str = field(default="random", metadata={"help": "random, or base: the base's own directions"})
    read_start: float = field(default=0.0, metadata={"help": "initial scale of the factor that starts at zero"})
    memory: str = field(
        default="adapter", metadata={"help": "what learns of evicted tokens: adapter, attention or both"}
    )
    memory_features: int = field(default=16, metadata={"help": "features per key-value head of a memory in attention"})
    memory_feature_map: str = field(default="softmax", metadata={"help": "softmax, hedgehog or unit"})
    memory_write: str = field(default="linear", metadata={"help": "linear, decay or delta"})
    memory_read: str = field(default="balanced", metadata={"help": "balanced, joint or added"})
    memory_keys: str = field(default="content", metadata={"help": "content (un-rotated) or rotated"})
    memory_weight: float = field(default=1.0, metadata={"help": "initial weight of the memory, positive"})

    def __post_init__(self) -> None:
        check_lora_fields(self)  # before PEFT warns about, or imports something for, what is refused anyway
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = THOUGHT_PEFT_TYPE
        # Known once the configuration is that of an adapter; no setting, since the model decides it.
        self.num_layers: int | None = None
        self.num_kv_heads: int | None = None
        one_of("initial_state", self.initial_state, ("global", "zero", "identity"))
        one_of("state_rule", self.state_rule, tuple(STATE_RULES))
        one_of("state_norm", self.state_norm, tuple(STATE_NORMS))
        one_of("state_norm_at", self.state_norm_at, get_args(NormAt))
        one_of("encoder_start", self.encoder_start, ("random", "base"))
        if isinstance(self.window, str) and self.window != "prompt":
            raise ValueError(f'window={self.window!r} is not known; use an integer >= 1, "prompt" or None')
        if self.window is not None and not isinstance(self.window, str) and type(self.window) is not int:
            raise ValueError(f'window={self.window!r} is not known; use an integer >= 1, "prompt" or None')
        one_of("positions", self.positions, get_args(Positions))
        if self.window is None and self.positions == "rolling":
            raise ValueError(
                "positions='rolling' moves what is left when others leave, and with window=None nothing leaves; "
                "set a window, or positions='absolute'"
            )
        self.eviction_options = checked_options(find_eviction_policy(self.eviction), self.eviction_options)
        evict_count(self.window if isinstance(self.window, int) else 1, self.evict_fraction)
        self.eviction_budgets = checked_budgets(self.eviction_budgets, self.window, self.evict_fraction)
        if self.r < 1:
            raise ValueError(f"r must be at least 1, got {self.r}; the paper uses 32")
        at_least_one(self, "num_global_tokens")
        if self.write_scale <= 0:
            raise ValueError(f"write_scale must be positive, got {self.write_scale}")
        if not (0 <= self.read_start < math.inf):
            raise ValueError(f"read_start must be a number of at least 0, got {self.read_start}")
        self._check_memory()
        self._check_controls()
        self._check_state()

    def share_out_over(self, num_layers: int, num_kv_heads: int | None = None) -> None:
        """Learn how many layers and kv heads the model has that carries the adapter.

        Raises:
            ValueError: if the budgets are those of another number of layers or heads, or cannot be shared out.
        """
        self.num_layers, self.num_kv_heads = num_layers, num_kv_heads
        if self.window != "prompt":
            self.resolve_window(None)

    def _check_controls(self) -> None:
        if self.initial_state == "identity" and self.num_global_tokens != self.r:
            raise ValueError(
                f"initial_state='identity' needs a square state, got num_global_tokens={self.num_global_tokens} "
                f"and r={self.r}; set num_global_tokens={self.r}"
            )
        if self.initial_state == "zero" and not self.absorb:
            raise ValueError("initial_state='zero' with absorb=False never changes the model; set absorb=True")

    def _check_state(self) -> None:
        """Refuse settings of the state that would do nothing beside the others."""
        if self.state_norm_at == "read" and (self.state_norm == "none" or not self.absorb):
            given = "state_norm='none'" if self.state_norm == "none" else "absorb=False"
            why = "nothing is normalised" if self.state_norm == "none" else "nothing is written"
            raise ValueError(f"state_norm_at='read' changes nothing with {given}, where {why}; leave out one of them")
        if self.read_start and self.init_lora_weights is False:
            raise ValueError(
                f"read_start={self.read_start} changes nothing with init_lora_weights=False, where no factor starts at "
                "zero; leave out one of them"
            )
        if not self.is_plain_lora:
            return
        for name in ("encoder_start", "read_start"):
            value = getattr(self, name)
            if value not in ("random", 0.0):
                raise ValueError(
                    f"{name}={value!r} with initial_state='identity' and absorb=False has nothing to read or write: "
                    "the adapter is plain LoRA; leave it out, or set absorb=True"
                )

    def _check_memory(self) -> None:
        one_of("memory", self.memory, ("adapter", "attention", "both"))
        one_of("memory_feature_map", self.memory_feature_map, tuple(FEATURE_MAPS))
        one_of("memory_write", self.memory_write, tuple(WRITE_RULES))
        one_of("memory_read", self.memory_read, READS)
        one_of("memory_keys", self.memory_keys, ("content", "rotated"))
        at_least_one(self, "memory_features")
        if self.memory_weight <= 0:
            raise ValueError(f"memory_weight must be positive, got {self.memory_weight}")
        self._refuse_unread()
        if not self.has_attention_memory:
            return
        features = FEATURE_MAPS[self.memory_feature_map]
        features.num_columns(self.memory_features)
        if self.memory_read != "added" and not features.is_positive:
            raise ValueError(
                f"memory_read={self.memory_read!r} needs features that are shares, and memory_feature_map="
                f"{self.memory_feature_map!r} has negative ones; use memory_read='added'"
            )
        if not self.absorb:
            raise ValueError(
                f"memory={self.memory!r} with absorb=False remembers nothing; for LoRA under the window use "
                "initial_state='identity', absorb=False with memory='adapter'"
            )
        if self.window is None:
            raise ValueError(
                f"memory={self.memory!r} with window=None remembers nothing, because nothing is ever evicted; set a "
                "window, or leave out the memory"
            )

    def _refuse_unread(self) -> None:
        """Refuse settings of the memory that this adapter does not have: whoever gave them meant them."""
        unread = {"adapter": MEMORY_SETTINGS, "attention": STATE_SETTINGS, "both": frozenset[str]()}[self.memory]
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name in unread and value != item.default:
                other = "attention" if self.memory == "adapter" else "adapter"
                raise ValueError(
                    f"{item.name}={value!r} changes nothing under memory={self.memory!r}; leave it out, or use "
                    f"memory={other!r}"
                )

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, and a model card beside it that says how the adapter is loaded."""
        super().save_pretrained(str(save_directory), **kwargs)
        names = [item.name for item in fields(self) if item.name not in LORA_NAMES]
        settings = {name: getattr(self, name) for name in ("r", "lora_alpha", *names)}
        write_card(Path(save_directory), base=self.base_model_name_or_path, settings=settings)

    def resolve_window(
        self,
        longest_prompt: int | None,
        window: int | str | None = OWN_WINDOW,
        *,
        num_layers: int | None = None,
        num_kv_heads: int | None = None,
    ) -> CacheSettings:
        """The cache of a call: the window as an integer, and what follows from it.

        Args:
            longest_prompt: tokens of the longest prompt, the size of `window="prompt"`; None where no prompt is known.
            window: resident thoughts instead of the adapter's own: an integer, "prompt" or None.
            num_layers: decoder layers of the model, for its budgets; those of the model that carries the adapter by
                default.
            num_kv_heads: the same of its kv heads.

        Raises:
            ValueError: if the window is unknown, "prompt" without prompts, or not the mean of the budgets.
        """
        resolved = self.window_size(longest_prompt, window)
        num_evicted = None if resolved is None else evict_count(resolved, self.evict_fraction)
        budgets = heads = None
        if resolved is not None and num_evicted is not None:
            model = self.num_layers if num_layers is None else num_layers, num_kv_heads or self.num_kv_heads
            budgets, heads = resolve_budgets(self.eviction_budgets, resolved, num_evicted, *model)
        return CacheSettings(
            window=resolved,
            num_evicted=num_evicted,
            eviction=self.eviction,
            positions="rolling" if self.positions == "rolling" and resolved is not None else "absolute",
            eviction_options=tuple(self.eviction_options.items()),
            budgets=budgets,
            head_budgets=heads,
        )

    def window_size(self, longest_prompt: int | None, window: int | str | None = OWN_WINDOW) -> int | None:
        """The window of a call as an integer, as `resolve_window`; None for the full cache."""
        wanted = self.window if window == OWN_WINDOW else window
        resolved = longest_prompt if wanted == "prompt" and longest_prompt is not None else wanted
        if resolved is not None and not isinstance(resolved, int):
            here = "" if longest_prompt is not None else ' ("prompt" has no meaning before the prompts are known)'
            raise ValueError(f'window={wanted!r} is not known{here}; use an integer >= 1, "prompt" or None')
        return resolved

    def behaviour(self) -> dict[str, Any]:
        """Every setting, as JSON data, that decides what weights of given names and shapes compute.

        Which linears are adapted is told by the names of the weights; what only starts a training is left out.
        """
        own = [item.name for item in fields(self) if item.name not in LORA_NAMES | START_SETTINGS]
        return {name: getattr(self, name) for name in ("r", "lora_alpha", "use_rslora", "alpha_pattern", *own)}

    @property
    def has_attention_memory(self) -> bool:
        """Whether a memory in attention space learns from evicted tokens."""
        return self.memory != "adapter"

    @property
    def has_plain_linears(self) -> bool:
        """Whether the adapted linears have the identity as their state for ever, so that they *are* PEFT's LoRA."""
        return self.memory == "attention" or (self.initial_state == "identity" and not self.absorb)

    @property
    def is_plain_lora(self) -> bool:
        """Whether nothing is learned from evicted tokens: the adapter then *is* PEFT's LoRA."""
        return self.memory == "adapter" and self.has_plain_linears

    @property
    def num_state_rows(self) -> int:
        """Inputs of the second factor of an adapted linear: G, or the rank where linears read no state."""
        return self.r if self.memory == "attention" else self.num_global_tokens
