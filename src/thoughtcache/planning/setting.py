"""The setting that a plan is made for: a model, an adapter, lengths, batches and the learner's options."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Literal, get_args

import torch
from transformers import PretrainedConfig

from thoughtcache.adapter.positions import PositionReach, position_reach, positions_needed
from thoughtcache.adapter.state_parameters import state_shape
from thoughtcache.adapter.support import DTYPES
from thoughtcache.cache.eviction import find_eviction_policy
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.chunk_plan import Chunk, plan_chunks
from thoughtcache.learner.options import CHUNK_TOKENS, ReplayOptions, learner_options
from thoughtcache.planning.flops import memory_of
from thoughtcache.planning.model_size import adapter_size, model_size
from thoughtcache.policy.modes import GradientMode, Place
from thoughtcache.policy.other_cache import check_teacher_cache
from thoughtcache.records import CacheSettings
from thoughtcache.state.attention.weights import MemoryShape

Objective = Literal["grpo", "distill"]
Learner = Literal["replay", "checkpointed"]
Logits = Literal["chunked", "materialised"]
SYSTEMS = ("LoRA, full cache", "LoRA_c", "PTE")
WITH_MEMORY = {"adapter": SYSTEMS[2], "attention": "memory in attention", "both": "PTE and memory"}
"""What the third system is called, by its memory."""
DEVICES = ("cuda", "cpu")


@dataclass(frozen=True, kw_only=True)
class PlanSetting:
    """One training run as far as memory is concerned. Every row is assumed to use its full length.

    Attributes:
        model: transformers configuration of the base.
        thought: the adapter with its window.
        objective: "grpo", or "distill" for cache distillation: the base samples and teaches with its full cache, and
            `group`, `beta` and `reuse` have no meaning.
        prompt_tokens: P, tokens of the longest prompt.
        max_new_tokens: T, thought tokens of every row.
        batch: completions in one micro-batch of the learner.
        group: completions per prompt.
        rollout_batch: completions decoded at once. None: the larger one of `batch` and `group`; or, where the teacher
            of distillation samples, one, since as few do it: `planning/teacher.py` chooses more.
        generation_batch: completions of a step, where the learner takes it in several micro-batches. Those of GRPO are
            sampled before it takes the first of them, and are kept until it has seen all. None: the larger one of
            `batch` and `group`.
        teacher_cache: the cache under which the teacher of distillation samples, as settings of `ThoughtConfig` with a
            `window`; None for the full one. Its distributions are those of the full cache in any case.
        dtype: dtype of the base model. The adapter is kept in float32, as PEFT does.
        load_in_4bit: linears of the decoder in bitsandbytes' 4 bits.
        learner: "replay" is this package's; "checkpointed" is one forward pass over whole rows with a checkpoint per
            decoder layer, as TRL trains by default.
        recompute: option of the replay; False keeps the graph of all chunks.
        checkpoint_layers: option of the replay; one checkpoint per layer inside a chunk.
        chunk_tokens: option of the replay; bound on the tokens of a row whose activations live at once.
        kv_log: option of the replay, "device" or "host".
        gradient: option of the replay; see `learner/replay.py`.
        reuse: option of the replay; sampling then records the keys and values of all completions.
        pack_weights: whether sampling on a CPU has a packed copy of the weights; TRL's own sampling never has.
        logits: kind of the checkpointed learner's logits: "chunked" (TRL 1.16) or "materialised" ([B, T, V], earlier
            versions).
        beta: weight of the KL term; above 0 TRL keeps a copy of the adapter and runs a pass without gradient.
        unequal_prompts: whether prompts of one batch differ in length, which brings dense attention masks.
        device_type: "cuda" or "cpu" (masks of chunks are dense there).

    Raises:
        ValueError: for a value that is unknown or out of range, or a combination without a meaning.
    """

    model: PretrainedConfig
    thought: ThoughtConfig
    objective: Objective = "grpo"
    prompt_tokens: int = 512
    max_new_tokens: int = 3072
    batch: int = 8
    group: int = 8
    rollout_batch: int | None = None
    generation_batch: int | None = None
    teacher_cache: dict[str, Any] | None = None
    dtype: str = "bfloat16"
    load_in_4bit: bool = False
    learner: Learner = "replay"
    recompute: bool = True
    checkpoint_layers: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    kv_log: Place = "device"
    gradient: GradientMode = "exact"
    reuse: bool = False
    pack_weights: bool = True
    logits: Logits = "chunked"
    beta: float = 0.0
    unequal_prompts: bool = False
    device_type: str = "cuda"

    def __post_init__(self) -> None:
        at_least_one(self, "prompt_tokens", "max_new_tokens", "batch", "group")
        at_least_one(self, "rollout_batch", "generation_batch", optional=True)
        allowed = {
            "objective": get_args(Objective), "dtype": DTYPES, "learner": get_args(Learner), "logits": get_args(Logits),
            "device_type": DEVICES,
        }  # fmt: skip
        for name, values in allowed.items():
            one_of(name, getattr(self, name), values)
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or positive, got {self.beta}")
        if self.distills and (self.beta or self.reuse or self.learner != "replay"):
            raise ValueError(
                f"distillation replays and has no reference and no records, got learner={self.learner!r}, "
                f"beta={self.beta} and reuse={self.reuse}; leave them out, or use objective='grpo'"
            )
        check_teacher_cache(self.teacher_cache)
        _ = self.replay_options

    @property
    def replay_options(self) -> ReplayOptions:
        """Options with which the learner repeats rollouts."""
        return ReplayOptions(**learner_options(self), reuse=self.reuse)

    @cached_property
    def cache(self) -> CacheSettings:
        """The cache of a call with these prompts."""
        layers, (_, heads, _) = self.model.num_hidden_layers, model_size(self.model).head_counts
        return self.thought.resolve_window(self.prompt_tokens, num_layers=layers, num_kv_heads=heads)

    @property
    def window(self) -> int | None:
        """W as an integer ("prompt" is the prompt's length), or None for the full cache."""
        return self.cache.window

    @property
    def layer_groups(self) -> list[tuple[int | None, int]]:
        """(resident thoughts, number of layers) of layers with the same budget, the smallest first."""
        budgets, layers = self.cache.budgets, int(self.model.num_hidden_layers)
        return [(self.window, layers)] if budgets is None else sorted(Counter(budgets).items())

    @property
    def rolls(self) -> bool:
        """Whether positions stay inside the window, however long the thoughts are."""
        return self.cache.rolling_window is not None

    @property
    def chooses(self) -> bool:
        """Whether evictions are recorded slot by slot."""
        return self.window is not None and find_eviction_policy(self.thought.eviction).chooses

    @property
    def numbers_thoughts(self) -> bool:
        """Whether positions of resident thoughts are kept, see `WindowRules.numbers_thoughts`."""
        un_rotates = self.thought.has_attention_memory and self.thought.memory_keys == "content"
        return un_rotates and self.absorbs and self.chooses and not self.rolls

    @property
    def positions_needed(self) -> int:
        """Positions that the prompt and the thoughts take; with rolling ones, those that are resident."""
        return positions_needed(self.prompt_tokens, self.max_new_tokens, self.cache.rolling_window)

    @property
    def reach(self) -> PositionReach:
        """How far the positions of the model reach."""
        return position_reach(self.model)

    @property
    def max_positions(self) -> int | None:
        """Positions of the model, rope scaling included; None if its configuration does not say."""
        return self.reach.positions

    @property
    def distills(self) -> bool:
        """Whether the objective is distillation."""
        return self.objective == "distill"

    @property
    def num_evicted(self) -> int | None:
        """E, thoughts that leave at once."""
        return self.cache.num_evicted

    @property
    def decoded_at_once(self) -> int:
        """Completions that are decoded at once."""
        return self.rollout_batch or (1 if self.distills else self.completions)

    @property
    def completions(self) -> int:
        """Completions of a step, or its texts; records of GRPO are kept until the learner has seen them."""
        return self.generation_batch or (self.batch if self.distills else max(self.batch, self.group))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step, the last one of which may be smaller."""
        return -(-self.completions // self.batch)

    @property
    def base_bytes(self) -> int:
        """Bytes of one number of the base model's computation."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype.itemsize

    @property
    def logs_on_device(self) -> bool:
        """Whether keys and values that wait for the backward pass take up memory of the device."""
        return self.kv_log == "device" or self.device_type == "cpu"

    @property
    def absorbs(self) -> bool:
        """Whether evicted tokens change the state."""
        return self.thought.absorb and self.window is not None

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Shape of the state of one decoder layer of one sequence."""
        return state_shape(self.thought, model_size(self.model).head_counts)

    @property
    def state_numbers(self) -> int:
        """Numbers of the state of one decoder layer of one sequence; 0 where there is none."""
        return math.prod(self.state_shape)

    @property
    def tokens_worth(self) -> float:
        """Tokens whose keys and values take as many numbers as the state."""
        return self.state_numbers / (2 * model_size(self.model).kv)

    @cached_property
    def adapter_parameters(self) -> int:
        """Trainable parameters."""
        return adapter_size(self.model, self.thought).parameters

    @property
    def attention_memory(self) -> MemoryShape | None:
        """The memory in attention space; None without."""
        return memory_of(self.model, self.thought)


def plain_lora(thought: ThoughtConfig, window: int | str | None) -> ThoughtConfig:
    """The adapter as plain LoRA of the same rank and targets, with another window."""
    return ThoughtConfig(
        r=thought.r,
        num_global_tokens=thought.r,
        lora_alpha=thought.lora_alpha,
        target_modules=thought.target_modules,
        window=window,
        evict_fraction=thought.evict_fraction,
        eviction=thought.eviction,
        eviction_options=thought.eviction_options,
        eviction_budgets=None if window is None else thought.eviction_budgets,
        positions="absolute" if window is None else thought.positions,
        initial_state="identity",
        absorb=False,
    )


def side_by_side(setting: PlanSetting) -> dict[str, PlanSetting]:
    """The setting for LoRA with a full cache (TRL's learner; it needs no distillation), for LoRA_c, and as it is."""
    windowed = {
        SYSTEMS[1]: replace(setting, thought=plain_lora(setting.thought, setting.thought.window)),
        WITH_MEMORY[setting.thought.memory]: setting,
    }
    return windowed if setting.distills else {SYSTEMS[0]: full_cache_lora(setting), **windowed}


def full_cache_lora(setting: PlanSetting) -> PlanSetting:
    """LoRA with a full cache and TRL's learner on rollouts of the same batch; instead of distillation, GRPO of it."""
    if setting.distills:
        setting = replace(setting, objective="grpo", group=1, rollout_batch=setting.batch)
    return replace(setting, thought=plain_lora(setting.thought, None), learner="checkpointed")


def learner_chunks(setting: PlanSetting, budget: int | None = None) -> list[Chunk]:
    """Chunks that the learner runs of every row: those of the replay, or one whole row with the full cache.

    Args:
        setting: the run.
        budget: resident thoughts of the layers that see them, see `plan_chunks`; the smallest budget by default.
    """
    if setting.learner == "checkpointed":  # TRL's forward pass runs the last thought as well
        count = setting.max_new_tokens
        whole = Chunk(
            segment=0,
            start=0,
            stop=setting.prompt_tokens + count,
            opens=True,
            rows=1,
            first_score=0,
            last_score=count,
            entry=0,
            evicted=0,
        )
        return [whole]
    cache = setting.cache
    return list(
        _chunks(
            setting.max_new_tokens,
            setting.prompt_tokens,
            cache.smallest_budget,
            cache.num_evicted,
            setting.chunk_tokens,
            budget,
        )
    )


@lru_cache(maxsize=128)
def _chunks(
    tokens: int, prompt: int, window: int | None, evicted: int | None, size: int | None, budget: int | None
) -> tuple[Chunk, ...]:
    """Chunks of one row, which a plan asks for again and again."""
    return tuple(plan_chunks([tokens], prompt, window, evicted, size, budget=budget))


def grouped_chunks(setting: PlanSetting) -> list[tuple[int, list[Chunk]]]:
    """(number of layers, the chunks as these layers see them) by budget."""
    return [(count, learner_chunks(setting, size)) for size, count in setting.layer_groups]
