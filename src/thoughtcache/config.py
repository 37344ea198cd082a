"""The two configurations: `ThoughtConfig` (the adapter and its cache) and `RunConfig` (everything else of a run)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from peft import LoraConfig
from peft.utils.peft_types import PeftType

from thoughtcache.cache.eviction import POLICIES
from thoughtcache.cache.rotation import Positions
from thoughtcache.cache.schedule import evict_count
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.lora_fields import check_lora_fields
from thoughtcache.model_card import write_card

PEFT_TYPE_NAME = "THOUGHT"
GradientMode = Literal["exact", "detached"] | int
DTYPES = ("float32", "bfloat16", "float16")
TEACHER_BATCHES = 4
"""Batches of distillation that the teacher samples at once: sampling takes less memory than the learner."""


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
        num_global_tokens: G, global queries and tokens (paper: 32).
        window: thought tokens that stay in the cache: an integer, "prompt" (the paper's training setting: the longest
            prompt of a call of `rollout`, which in GRPO is the generation batch of a process; of all teacher samples in
            distillation), or None for the full cache.
        evict_fraction: share of the window that leaves when it is full (paper: 0.25).
        eviction: name of the eviction policy.
        positions: "absolute" (a thought keeps its position, and the model's positions bound the length) or "rolling"
            (positions count the prompt and the resident thoughts; cached keys are moved when others leave).
        initial_state: "global" (learned), "zero" or "identity" (plain LoRA; needs num_global_tokens == r).
        absorb: whether evicted tokens change the state.
        state_rule: "linear" (the paper's), "gated", "delta", "softmax" or "decay".
        state_norm: "frobenius" (the state keeps the norm of the identity) or "none".
        write_scale: initial write scale of the encoder, positive.
    """

    r: int = 32
    lora_alpha: int = 32
    target_modules: list[str] | set[str] | str | None = "all-linear"  # type: ignore[assignment] # PEFT keeps a set
    task_type: str | None = "CAUSAL_LM"  # type: ignore[assignment]
    num_global_tokens: int = field(default=32, metadata={"help": "G, number of global queries and tokens"})
    window: int | str | None = field(default=1024, metadata={"help": 'resident thoughts, "prompt", or None (full)'})
    evict_fraction: float = field(default=0.25, metadata={"help": "share of the window that leaves when it is full"})
    eviction: str = field(default="sliding", metadata={"help": "eviction policy"})
    positions: str = field(default="absolute", metadata={"help": "absolute or rolling"})
    initial_state: str = field(default="global", metadata={"help": "global, zero or identity"})
    absorb: bool = field(default=True, metadata={"help": "whether evicted tokens change the state"})
    state_rule: str = field(default="linear", metadata={"help": "linear, gated, delta, softmax or decay"})
    state_norm: str = field(default="frobenius", metadata={"help": "frobenius or none"})
    write_scale: float = field(default=0.1, metadata={"help": "initial write scale, positive"})

    def __post_init__(self) -> None:
        check_lora_fields(self)  # before PEFT warns about, or imports something for, what is refused anyway
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = THOUGHT_PEFT_TYPE
        one_of("initial_state", self.initial_state, ("global", "zero", "identity"))
        one_of("state_rule", self.state_rule, ("linear", "gated", "delta", "softmax", "decay"))
        one_of("state_norm", self.state_norm, ("frobenius", "none"))
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
        one_of("eviction", self.eviction, tuple(sorted(POLICIES)))
        evict_count(self.window if isinstance(self.window, int) else 1, self.evict_fraction)
        if self.r < 1:
            raise ValueError(f"r must be at least 1, got {self.r}; the paper uses 32")
        at_least_one(self, "num_global_tokens")
        if self.write_scale <= 0:
            raise ValueError(f"write_scale must be positive, got {self.write_scale}")
        self._check_controls()

    def _check_controls(self) -> None:
        if self.initial_state == "identity" and self.num_global_tokens != self.r:
            raise ValueError(
                f"initial_state='identity' needs a square state, got num_global_tokens={self.num_global_tokens} "
                f"and r={self.r}; set num_global_tokens={self.r}"
            )
        if self.initial_state == "zero" and not self.absorb:
            raise ValueError("initial_state='zero' with absorb=False never changes the model; set absorb=True")

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Write `adapter_config.json`, and a model card beside it that says how the adapter is loaded."""
        super().save_pretrained(str(save_directory), **kwargs)
        names = [item.name for item in fields(self) if item.name not in LORA_NAMES]
        settings = {name: getattr(self, name) for name in ("r", "lora_alpha", *names)}
        write_card(Path(save_directory), base=self.base_model_name_or_path, settings=settings)

    @property
    def is_plain_lora(self) -> bool:
        """Whether the state is the identity for ever: the adapter then *is* PEFT's LoRA."""
        return self.initial_state == "identity" and not self.absorb


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    r"""Everything of a run that is not the adapter. Each field is an option of `thoughtcache train`.

    With `model=None` the embedded job runs (`recipes/embedded.py`); otherwise the same two stages, cache distillation
    and GRPO, run on the given model and data (`recipes/real_model.py`).

    Attributes:
        output_dir: run folder: checkpoints, adapter, results.json, curves.png.
        model: transformers folder or hub id; None for the embedded reasoner.
        dataset: JSONL, JSON, CSV, TSV or parquet file, folder, or hub id; needed with `model`.
        split: split of a hub data set.
        prompt_column: column with the question; found by name if None.
        answer_column: column with the reference answer; found by name if None.
        instruction: text put after each question, such as "Put the final answer in \boxed{}."; "" for none.
        limit: use only the first rows of the data set; rows that are dropped count.
        bad_rows: "refuse" rows without a usable question or reference (by name, before anything is loaded), or "drop".
        adapter: folder of a trained adapter to start from instead of a new one.
        task: embedded task, "chains" or "multiplication".
        dtype: dtype of the base model.
        load_in_4bit: quantise the base with bitsandbytes.
        max_new_tokens: length of the thoughts.
        distill_steps: optimiser steps of cache distillation, 0 to skip it.
        distill_batch_size: sequences per distillation step.
        distill_learning_rate: peak learning rate of distillation.
        grpo_steps: optimiser steps of GRPO, 0 to skip it.
        group_size: completions per question (G of GRPO).
        grpo_batch_size: completions per GRPO step and process, a multiple of `group_size`.
        grpo_learning_rate: learning rate of GRPO (paper: 1e-5).
        beta: weight of the KL term to the cache-consistent reference: the adapter as GRPO begins with it.
        gradient: "exact", "detached" or a number of segments.
        recompute: run segments again in the backward pass, so that memory stays flat in the length; False keeps all
            activations. The embedded job, where everything fits, always keeps them.
        checkpoint_layers: inside a chunk keep the inputs of the layers only, for one more forward pass.
        chunk_tokens: bound on the tokens of a row whose activations live at once; None keeps segments whole.
        kv_log: where keys and values wait for the backward pass, "device" or "host".
        pack_weights: on a CPU, sample from a faster copy of the weights.
        allow_no_eviction: train even if the window holds every thought, so that it makes no difference.
        force: train even if the planner says that the run does not fit.
        profile_memory: leave a timeline of the memory in use during GRPO, as JSON and as a picture.
        reuse_rollout: let GRPO's learner start from the sampler's own keys, values and log-probabilities.
        evaluation_size: problems of the embedded test split.
        seed: of everything.
        save_every: optimiser steps between checkpoints.
        resume: go on in `output_dir` where the last run stopped.
        overwrite: start anew in an `output_dir` that holds another run.
    """

    output_dir: str = "runs/train"
    model: str | None = None
    dataset: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None
    instruction: str = ""
    limit: int | None = None
    bad_rows: Literal["refuse", "drop"] = "refuse"
    adapter: str | None = None
    task: str = "chains"
    dtype: str = "float32"
    load_in_4bit: bool = False
    max_new_tokens: int = 3072
    distill_steps: int = 100
    distill_batch_size: int = 8
    distill_learning_rate: float = 1e-3
    grpo_steps: int = 100
    group_size: int = 8
    grpo_batch_size: int = 8
    grpo_learning_rate: float = 1e-5
    beta: float = 0.0
    gradient: GradientMode = "exact"
    recompute: bool = True
    checkpoint_layers: bool = False
    chunk_tokens: int | None = 256
    kv_log: Literal["device", "host"] = "device"
    reuse_rollout: bool = False
    pack_weights: bool = True
    profile_memory: bool = False
    allow_no_eviction: bool = False
    force: bool = False
    evaluation_size: int = 1000
    seed: int = 0
    save_every: int = 50
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("task", self.task, ("chains", "multiplication"))
        one_of("dtype", self.dtype, DTYPES)
        one_of("kv_log", self.kv_log, ("device", "host"))
        one_of("bad_rows", self.bad_rows, ("refuse", "drop"))
        if self.reuse_rollout and not self.recompute:
            raise ValueError("reuse_rollout goes with recompute; leave out --reuse-rollout or --no-recompute")
        at_least_one(self, "chunk_tokens", optional=True)
        at_least_one(self, "max_new_tokens", "distill_batch_size", "group_size", "grpo_batch_size", "evaluation_size")
        for name in ("distill_steps", "grpo_steps", "save_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("distill_learning_rate", "grpo_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or positive, got {self.beta}")
        if self.grpo_steps and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 to compare answers, got {self.group_size}")
        if self.resume and self.overwrite:
            raise ValueError("resume=True goes on with a run and overwrite=True forgets it; give one of them")
        if self.grpo_batch_size % self.group_size:
            raise ValueError(
                f"grpo_batch_size={self.grpo_batch_size} must be a multiple of group_size={self.group_size}"
            )
        if self.model is not None and self.dataset is None:
            raise ValueError("a model needs data: add --dataset with a file, folder or hub id")
        if self.model is not None and not self.distill_steps and not self.grpo_steps:
            raise ValueError("distill_steps=0 and grpo_steps=0 leave nothing to do; set one of them above 0")
        if self.model is None and self.dataset is not None:
            raise ValueError("a data set needs a model: add --model with a folder or hub id")
