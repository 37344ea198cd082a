"""Settings that the training loops of this package share."""

from __future__ import annotations

from dataclasses import dataclass

from thoughtcache.checks import at_least_one, one_of
from thoughtcache.learner.options import AUTO, Auto, ReplayOptions, replay_options, take_savings
from thoughtcache.policy.modes import GradientMode, Place
from thoughtcache.train.memory_rate import check_memory_rate
from thoughtcache.train.trainer_options.reports import NONE, REPORTS, check_report
from thoughtcache.train.trainer_options.schedules import MINIMUM_RATIO, SCHEDULERS, WITH_MINIMUM


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """Settings of every loop of `transformers.Trainer`.

    Attributes:
        output_dir: folder for checkpoints and logs.
        num_steps: optimiser steps.
        batch_size: sequences per step and process.
        learning_rate: peak, after `warmup_steps`.
        scheduler: how it moves from there, by transformers' name: "linear", "cosine", "constant" and others
            (`SCHEDULERS`); by default a cosine down to `min_learning_rate_ratio`.
        memory_learning_rate: the same for what writes and reads the states; None takes `learning_rate`.
        warmup_steps: linear warm-up, which "constant" is without.
        min_learning_rate_ratio: where a `cosine_with_min_lr` ends, as a share of the peak.
        betas: betas of Adam.
        max_grad_norm: gradient clipping.
        seed: seed of the data, their order and the trainer.
        save_every: steps between checkpoints, 0 for none.
        log_every: steps between log lines.
        report_to: where they are reported: "none", "tensorboard", "trackio", "wandb" or "mlflow".
        resume: continue from the newest whole checkpoint in `output_dir`, or from the checkpoint whose folder this is.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    output_dir: str
    num_steps: int = 250
    batch_size: int = 8
    learning_rate: float = 5e-3
    memory_learning_rate: float | None = None
    scheduler: str = WITH_MINIMUM
    warmup_steps: int = 20
    min_learning_rate_ratio: float = MINIMUM_RATIO
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = 1.0
    seed: int = 0
    save_every: int = 0
    log_every: int = 10
    report_to: str = NONE
    resume: bool | str = False

    def __post_init__(self) -> None:
        check_memory_rate(self.memory_learning_rate)
        one_of("scheduler", self.scheduler, SCHEDULERS)
        one_of("report_to", self.report_to, REPORTS)
        check_report(self.report_to)
        at_least_one(self, "num_steps", "batch_size", "log_every")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0, got {self.warmup_steps}")
        if self.scheduler != WITH_MINIMUM and self.min_learning_rate_ratio != MINIMUM_RATIO:
            raise ValueError(
                f"min_learning_rate_ratio={self.min_learning_rate_ratio} changes nothing with "
                f"scheduler={self.scheduler!r}; leave it out, or use {WITH_MINIMUM!r}"
            )
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise ValueError(f"min_learning_rate_ratio must lie in [0, 1], got {self.min_learning_rate_ratio}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayLoopConfig(LoopConfig):
    """Settings of a loop whose learner repeats texts under the adapter's cache: those of every loop, and these.

    Attributes:
        gradient: how far the gradient reaches, see `learner/replay.py`, as the next four.
        recompute: run segments again in the backward pass (memory flat in the length); False keeps all activations.
        checkpoint_layers: keep only the inputs of the layers inside a chunk. "auto", as for the next two: the planner
            chooses when lengths and device are known, see `train/savings.py`; recall episodes, which are short, take
            the defaults of `replay`.
        chunk_tokens: bound on the tokens of a row whose activations live at once; None keeps segments whole.
        kv_log: where keys and values wait for the backward pass, "device" or "host".

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    gradient: GradientMode = "exact"
    recompute: bool = True
    checkpoint_layers: bool | Auto = AUTO
    chunk_tokens: int | Auto | None = AUTO
    kv_log: Place | Auto = AUTO

    def __post_init__(self) -> None:
        LoopConfig.__post_init__(self)
        take_savings(self)
        _ = self.replay_options

    @property
    def replay_options(self) -> ReplayOptions:
        """Options with which texts are repeated; states come from the weights of the moment, without anchors."""
        return replay_options(self, anchored=False)
