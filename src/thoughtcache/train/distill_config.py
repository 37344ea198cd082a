"""Settings of cache distillation."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import CHUNK_TOKENS, ReplayOptions, learner_options
from thoughtcache.policy.modes import GradientMode, Place
from thoughtcache.train.divergence import DIVERGENCES


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillConfig:
    """Settings of `tc.distill`. The defaults are the embedded job's (docs/lab-log.md has their history).

    Attributes:
        output_dir: folder for checkpoints and logs.
        num_steps: optimiser steps.
        batch_size: sequences per step and process.
        learning_rate: peak, after `warmup_steps`; cosine down to `min_learning_rate_ratio` of it.
        warmup_steps: linear warm-up.
        min_learning_rate_ratio: where the cosine ends.
        betas: betas of Adam.
        max_grad_norm: gradient clipping.
        loss: "forward_kl" (teacher || student), "reverse_kl" or "cross_entropy".
        gradient: how far the gradient reaches, see `learner/replay.py`, as the next four.
        recompute: run segments again in the backward pass (memory flat in the length); False keeps all activations.
        checkpoint_layers: keep only the inputs of the layers inside a chunk.
        chunk_tokens: bound on the tokens of a row whose activations live at once.
        kv_log: where keys and values wait for the backward pass, "device" or "host".
        max_new_tokens: length of the teacher's samples.
        temperature: temperature of the teacher's samples and of both distributions.
        samples_per_prompt: teacher samples per prompt.
        sample_batch_size: rows sampled at once.
        pack_weights: sample from a faster copy of the weights on a CPU; see `rollout`.
        seed: seed of sampling, data order and initialisation inside the trainer.
        evaluate_every: steps between evaluations, 0 for none.
        save_every: steps between checkpoints, 0 for none.
        log_every: steps between log lines.
        resume: continue from the newest whole checkpoint in `output_dir`, or from the checkpoint whose folder this is.
        allow_no_eviction: train even if no sample is long enough to be evicted under the student's window. Teacher and
            student then see the same cache, and an adapter at its start has nothing but rounding noise to learn.
    """

    output_dir: str
    num_steps: int = 250
    batch_size: int = 32
    learning_rate: float = 5e-3
    warmup_steps: int = 20
    min_learning_rate_ratio: float = 0.05
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    loss: str = "forward_kl"
    gradient: GradientMode = "exact"
    recompute: bool = True
    checkpoint_layers: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    kv_log: Place = "device"
    max_new_tokens: int = 64
    temperature: float = 1.0
    samples_per_prompt: int = 1
    sample_batch_size: int = 256
    pack_weights: bool = True
    seed: int = 0
    evaluate_every: int = 0
    save_every: int = 0
    log_every: int = 10
    resume: bool | str = False
    allow_no_eviction: bool = False

    def __post_init__(self) -> None:
        _ = self.replay_options
        one_of("loss", self.loss, sorted(DIVERGENCES))
        at_least_one(self, "num_steps", "batch_size", "max_new_tokens", "samples_per_prompt", "log_every")

    @property
    def replay_options(self) -> ReplayOptions:
        """Options with which the student repeats the samples; its states come from its own weights, without anchors."""
        return ReplayOptions(**learner_options(self), anchored=False)
