"""What the loops of this package ask of `transformers.Trainer`: its arguments, and the checkpoint to go on from."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import TrainingArguments

from thoughtcache.train.checkpoints import newest_whole
from thoughtcache.train.loop_config import LoopConfig
from thoughtcache.train.trainer_options.reports import reporting
from thoughtcache.train.trainer_options.schedules import schedule


def last_checkpoint(config: LoopConfig) -> Path | None:
    """The checkpoint that a run goes on from; None if it starts anew.

    Raises:
        ValueError: if `resume` finds no whole checkpoint.
    """
    if not config.resume:
        return None
    if isinstance(config.resume, str):
        return Path(config.resume)
    found = newest_whole(config.output_dir, lambda text: warnings.warn(text, stacklevel=4))
    if found is None:
        raise ValueError(
            f"resume was asked for, but {config.output_dir} holds no whole checkpoint; start without resume"
        )
    return found


def training_arguments(config: LoopConfig, *, evaluate_every: int = 0) -> TrainingArguments:
    """The arguments of a trainer that runs without autocast.

    Args:
        config: the settings.
        evaluate_every: steps between evaluations, 0 for none.

    Raises:
        ValueError: if mixed precision was asked for.
    """
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        max_steps=config.num_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        **schedule(config.scheduler, config.min_learning_rate_ratio),
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        eval_strategy="steps" if evaluate_every else "no",
        eval_steps=evaluate_every or None,
        save_strategy="steps" if config.save_every else "no",
        save_steps=config.save_every or 500,
        save_total_limit=2,
        logging_steps=config.log_every,
        **reporting(config.report_to, config.output_dir),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        average_tokens_across_devices=False,
    )
    if arguments.mixed_precision != "no":
        raise ValueError(
            f"mixed_precision={arguments.mixed_precision!r} is not supported under a bounded cache: the teacher "
            "samples and the student is used without autocast; use ACCELERATE_MIXED_PRECISION=no (accelerate launch "
            "--mixed_precision no) and load the model in bfloat16"
        )
    return arguments
