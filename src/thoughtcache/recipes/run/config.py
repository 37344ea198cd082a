"""Everything of a run that is not the adapter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from thoughtcache.adapter.support import DTYPES
from thoughtcache.chains.table import check_thinking
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import AUTO, Auto, count_or_auto, take_savings
from thoughtcache.policy.modes import GradientMode, Place
from thoughtcache.policy.other_cache import check_teacher_cache
from thoughtcache.recipes.run.reward_names import check_reward_names
from thoughtcache.tasks.maths.answer_types import ANSWER_TYPES
from thoughtcache.train.trainer_options.reports import REPORTS
from thoughtcache.train.trainer_options.schedules import SCHEDULERS


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    r"""Everything of a run that is not the adapter. Each field is an option of `thoughtcache train`.

    With `model=None` the embedded job runs (`recipes/embedded/job.py`); otherwise the same two stages, cache
    distillation and GRPO, run on the given model and data (`recipes/real_model.py`).

    Attributes:
        output_dir: run folder: checkpoints, adapter, results.json, curves.png.
        model: transformers folder or hub id; None for the embedded reasoner.
        dataset: JSONL, JSON, CSV, TSV or parquet file, folder, or hub id; needed with `model`.
        split: split of a hub data set.
        prompt_column: column with the question; found by name if None.
        answer_column: column with the reference answer; found by name if None.
        answer_type: how answers are compared, one of `ANSWER_TYPES`; "auto" takes it from each reference.
        instruction: text put after each question, such as "Put the final answer in \boxed{}."; "" for none.
        limit: use only the first rows of the data set; rows that are dropped count.
        max_prompt_tokens: leave out questions whose prompts are longer; prompts are never cut. None for no bound.
        bad_rows: "refuse" rows without a usable question or reference (by name, before anything is loaded), or "drop".
        adapter: folder of a trained adapter to start from instead of a new one.
        task: embedded task, "chains" or "multiplication".
        dtype: dtype of the base model.
        load_in_4bit: quantise the base with bitsandbytes.
        max_new_tokens: length of the thoughts.
        distill_steps: optimiser steps of cache distillation, 0 to skip it.
        distill_batch_size: sequences per distillation step.
        distill_micro_batch_size: how many of them the learner takes at once; the step stays the same up to rounding.
            "auto": all, or where they do not fit the largest equal parts of a step that do (`planning/teacher.py`).
        teacher_batch_size: texts that the teacher of distillation samples at once; a text does not depend on the others
            beside it. "auto": as many as keep to 60 % of the device.
        teacher_cache: the cache under which it samples them, as settings of `ThoughtConfig` with a window; None for the
            full one. What is learned from are the distributions of the full cache on these texts in any case.
        distill_learning_rate: peak learning rate of distillation.
        distill_memory_learning_rate: the same for what writes and reads the states; None for no other one.
        grpo_steps: optimiser steps of GRPO, 0 to skip it.
        group_size: completions per question (G of GRPO).
        grpo_batch_size: completions per GRPO step and process, a multiple of `group_size`.
        gradient_accumulation: micro-batches that the learner takes these completions in; a micro-batch may be smaller
            than a group. Gradients are those of the whole step, in less memory.
        grpo_learning_rate: learning rate of GRPO (paper: 1e-5).
        grpo_memory_learning_rate: the same for what writes and reads the states; None for no other one.
        temperature: temperature of what training samples, in GRPO and by the teacher of distillation, and scores.
            Held-out questions are answered greedily.
        learning_rate_scheduler: how both learning rates move, one of `SCHEDULERS`; None for the own ones of the phases,
            a cosine down to 5 % in distillation and a line down to 0 in GRPO.
        reward: reward functions of GRPO, each as `package.module:function`, in TRL's signature; None for
            `thoughtcache.train.rewards:math_correctness`.
        reward_weight: weights of the rewards, one each; None weighs all alike.
        beta: weight of the KL term to the cache-consistent reference: the adapter as GRPO begins with it.
        gradient: "exact", "detached" or a number of segments.
        recompute: run segments again in the backward pass, so that memory stays flat in the length; False keeps all
            activations. The embedded job, where everything fits, always keeps them.
        checkpoint_layers: keep only the inputs of the layers inside a chunk, for one more forward pass. "auto", as for
            the next two: chosen by the planner for all phases at once (`planning/savings.py`).
        chunk_tokens: bound on the tokens of a row whose activations live at once; None keeps segments whole.
        kv_log: where keys and values wait for the backward pass, "device" or "host".
        pack_weights: sample from a faster copy of the weights on a CPU.
        allow_no_eviction: train even if the window holds every thought, so that it makes no difference.
        force: train even if the planner says that the run does not fit.
        thinking: let GRPO think in links, "markovian" or "folding" (`chains/table.py`); `max_new_tokens` then bounds
            all links together, and there is no distillation. None for one context.
        thinking_options: its settings as texts, by name.
        profile_memory: leave a timeline of the memory in use during GRPO, as JSON and as a picture.
        reuse_rollout: let GRPO's learner start from the sampler's own keys, values and log-probabilities.
        evaluation_size: problems of the embedded test split.
        held_out: questions that are asked before and after every stage of a run with GRPO, and never trained on; None
            for a tenth of them, at most 32; 0 for none.
        baseline: train LoRA under the same window, without a memory, beside it (`recipes/run/baseline.py`).
        report_to: where the trainers of both phases report their logs, one of `REPORTS`.
        log_completions: completions of every step of GRPO that are shown, 0 for none; TRL's options `log_completions`
            and `num_completions_to_print`. All of them are in `grpo/rollouts.jsonl` in any case.
        seed: seed of all random numbers of the run.
        dry_run: read the data, print the first prompts and the plan, and end there; nothing is written or trained.
        quick: a shortened embedded job, about a minute, whose figures say nothing about the method.
        save_every: optimiser steps between checkpoints.
        resume: go on in `output_dir` where the last run stopped.
        overwrite: start anew in an `output_dir` that holds another run.

    Raises:
        ValueError: for a value that is unknown or out of range, or a combination without a meaning.
    """

    output_dir: str = "runs/train"
    model: str | None = None
    dataset: str | None = None
    split: str = "train"
    prompt_column: str | None = None
    answer_column: str | None = None
    answer_type: str = "auto"
    instruction: str = ""
    limit: int | None = None
    max_prompt_tokens: int | None = None
    bad_rows: Literal["refuse", "drop"] = "refuse"
    adapter: str | None = None
    task: str = "chains"
    dtype: str = "float32"
    load_in_4bit: bool = False
    max_new_tokens: int = 3072
    distill_steps: int = 100
    distill_batch_size: int = 8
    distill_micro_batch_size: int | Auto = AUTO
    teacher_batch_size: int | Auto = AUTO
    teacher_cache: dict[str, Any] | None = None
    distill_learning_rate: float = 1e-3
    distill_memory_learning_rate: float | None = None
    grpo_steps: int = 100
    group_size: int = 8
    grpo_batch_size: int = 8
    gradient_accumulation: int = 1
    grpo_learning_rate: float = 1e-5
    grpo_memory_learning_rate: float | None = None
    temperature: float = 1.0
    learning_rate_scheduler: str | None = None
    reward: list[str] | None = None
    reward_weight: list[float] | None = None
    beta: float = 0.0
    gradient: GradientMode = "exact"
    recompute: bool = True
    checkpoint_layers: bool | Auto = AUTO
    chunk_tokens: int | Auto | None = AUTO
    kv_log: Place | Auto = AUTO
    reuse_rollout: bool = False
    pack_weights: bool = True
    thinking: str | None = None
    thinking_options: dict[str, str] | None = None
    profile_memory: bool = False
    allow_no_eviction: bool = False
    force: bool = False
    evaluation_size: int = 1000
    held_out: int | None = None
    baseline: bool = False
    report_to: str = "none"
    log_completions: int = 0
    seed: int = 0
    dry_run: bool = False
    quick: bool = False
    save_every: int = 50
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("task", self.task, ("chains", "multiplication"))
        one_of("dtype", self.dtype, DTYPES)
        take_savings(self)
        for name in ("distill_micro_batch_size", "teacher_batch_size"):
            object.__setattr__(self, name, count_or_auto(name, getattr(self, name)))
        one_of("answer_type", self.answer_type, ANSWER_TYPES)
        one_of("bad_rows", self.bad_rows, ("refuse", "drop"))
        check_thinking(self.thinking, self.thinking_options)
        if self.thinking is not None and self.distill_steps:
            raise ValueError(
                f"thinking={self.thinking} is for GRPO alone, and distill_steps is {self.distill_steps}; "
                "distillation knows one context only: set distill_steps=0, and distil in a run of its own"
            )
        if self.reuse_rollout and not self.recompute:
            raise ValueError("reuse_rollout goes with recompute; leave out --reuse-rollout or --no-recompute")
        if self.chunk_tokens != AUTO:
            at_least_one(self, "chunk_tokens", optional=True)
        at_least_one(self, "max_prompt_tokens", optional=True)
        at_least_one(
            self,
            "gradient_accumulation",
            "max_new_tokens",
            "distill_batch_size",
            "group_size",
            "grpo_batch_size",
            "evaluation_size",
        )
        check_teacher_cache(self.teacher_cache, self.max_new_tokens)
        for name in ("distill_steps", "grpo_steps", "save_every", "log_completions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for phase in ("distill", "grpo"):
            for name in (f"{phase}_learning_rate", f"{phase}_memory_learning_rate"):
                if getattr(self, name) is not None and not 0 < getattr(self, name) < float("inf"):
                    raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.held_out is not None and self.held_out < 0:
            raise ValueError(f"held_out must be at least 0 questions, got {self.held_out}")
        one_of("report_to", self.report_to, REPORTS)
        if self.learning_rate_scheduler is not None:
            one_of("learning_rate_scheduler", self.learning_rate_scheduler, SCHEDULERS)
        if not 0 < self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be positive, got {self.temperature:g}: logits are divided by it, and greedy answers "
                "to one question are all alike; use 1.0 or something near it"
            )
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"beta must be 0 or positive, got {self.beta}")
        if self.grpo_steps and self.group_size < 2:
            raise ValueError(f"group_size must be at least 2 to compare answers, got {self.group_size}")
        if self.quick and self.model is not None:
            raise ValueError("quick=True shortens the embedded job, and there is a model; set steps of it instead")
        if self.dry_run and self.model is None:
            raise ValueError("dry_run=True looks at a model and data, and the embedded job has its own; add --model")
        if self.resume and self.overwrite:
            raise ValueError("resume=True goes on with a run and overwrite=True forgets it; give one of them")
        if self.grpo_batch_size % self.group_size:
            raise ValueError(
                f"grpo_batch_size={self.grpo_batch_size} must be a multiple of group_size={self.group_size}"
            )
        check_reward_names(self.reward, self.reward_weight)
        if self.grpo_batch_size % self.gradient_accumulation:
            raise ValueError(
                f"gradient_accumulation={self.gradient_accumulation} must divide "
                f"grpo_batch_size={self.grpo_batch_size}, which it splits into equal micro-batches; use one of "
                f"{[n for n in range(1, self.grpo_batch_size + 1) if self.grpo_batch_size % n == 0]}"
            )
        if self.model is not None and self.dataset is None:
            raise ValueError("a model needs data: add --dataset with a file, folder or hub id")
        if self.model is not None and not self.distill_steps and not self.grpo_steps:
            raise ValueError("distill_steps=0 and grpo_steps=0 leave nothing to do; set one of them above 0")
        if self.model is None and self.dataset is not None:
            raise ValueError("a data set needs a model: add --model with a folder or hub id")
