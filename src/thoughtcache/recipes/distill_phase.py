"""Cache distillation as a phase of a run on the user's model."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.learner.options import learner_options
from thoughtcache.planning.teacher import texts_at_once
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.builders import find_checkpoint, save_adapter
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import PhaseResult
from thoughtcache.recipes.run.training import watched
from thoughtcache.recipes.teacher_samples import kept_samples
from thoughtcache.records import Rollout
from thoughtcache.report.progress import finished_rows, plain_line, progress_bar
from thoughtcache.train.trainer_options.schedules import WITH_MINIMUM


def distill_phase(
    run: RunConfig,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    folder: Path,
    samples_file: Path,
    resume: bool,
    console: Console,
    title: str = "",
) -> PhaseResult:
    """Distil `model` in place; returns the losses by step and the seconds of both parts.

    Args:
        run: the settings.
        model: adapted model.
        tokenizer: tokenizer of the model; its end-of-sequence token ends the teacher's samples as well.
        prompts: token ids of all questions.
        folder: folder for checkpoints and the adapter.
        samples_file: file in which the teacher's samples are kept.
        resume: whether the folder may hold checkpoints to go on from.
        console: where progress goes.
        title: text in front of the lines of its progress.
    """
    from thoughtcache.train.distill import distill, sample_teacher, under_window
    from thoughtcache.train.distill_config import DistillConfig

    checkpoint = find_checkpoint(folder, console) if resume else None
    config = DistillConfig(
        output_dir=str(folder),
        num_steps=run.distill_steps,
        batch_size=run.distill_batch_size,
        learning_rate=run.distill_learning_rate,
        memory_learning_rate=run.distill_memory_learning_rate,
        scheduler=run.learning_rate_scheduler or WITH_MINIMUM,
        warmup_steps=min(20, run.distill_steps // 5),
        max_new_tokens=run.max_new_tokens,
        sample_batch_size=texts_at_once(run.teacher_batch_size),
        teacher_cache=run.teacher_cache,
        micro_batch_size=run.distill_micro_batch_size,
        temperature=run.temperature,
        pack_weights=run.pack_weights,
        report_to=run.report_to,
        seed=run.seed,
        save_every=run.save_every,
        log_every=1,
        resume=False if checkpoint is None else str(checkpoint),
        allow_no_eviction=run.allow_no_eviction,
        **learner_options(run),
    )
    if len(prompts) < run.distill_batch_size:
        _warn(console, f"a step takes {len(prompts)} samples, not --distill-batch-size {run.distill_batch_size}: "
              "there are no more questions")  # fmt: skip

    def draw(start: int, stop: int) -> list[Rollout]:
        # Samples that a longer run adds have numbers of their own.
        settings = replace(config, seed=config.seed + start, resume=False)
        with progress_bar(f"{title}teacher samples", stop - start, console=console) as advance:
            return sample_teacher(
                model, prompts[start:stop], settings, tokenizer=tokenizer, on_event=finished_rows(advance)
            )

    started = time.perf_counter()
    needed = min(len(prompts), run.distill_steps * run.distill_batch_size)
    samples = kept_samples(samples_file, needed, draw)
    sampling_seconds = time.perf_counter() - started
    bounded = under_window(samples, find_tuner(model).thought_config)
    evicted = sum(bool(sample.evictions) for sample in bounded)
    if 0 < 2 * evicted < len(bounded):
        _warn(console, f"only {evicted} of {len(bounded)} teacher samples are longer than the window; the others teach "
              "nothing, lower --window")  # fmt: skip
    with watched(f"{title}distillation", console) as callbacks:
        result = distill(model, (), config, samples=samples, callbacks=callbacks)
    save_adapter(model, folder / "adapter")
    return {
        "losses": [[record["step"], record["loss"]] for record in result.history if "loss" in record],
        "seconds": {"rollout": sampling_seconds, "distil": result.elapsed_seconds},
    }


def _warn(console: Console, text: str) -> None:
    plain_line(console, f"warning: {text}")
