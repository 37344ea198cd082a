"""Steps that several recipes take in the same way."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.trainer_callback import PrinterCallback

from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.training import watched
from thoughtcache.report.files import whole_folder
from thoughtcache.report.memory import write_memory_profile
from thoughtcache.report.phases import step_seconds, write_phase_seconds
from thoughtcache.report.progress import plain_line
from thoughtcache.train.checkpoints import history_at_end, load_weights, newest_whole
from thoughtcache.train.trainer_options.reports import own_report, reporting


def find_checkpoint(folder: Path, console: Console) -> Path | None:
    """The newest whole checkpoint of a phase; what is skipped for it, and that there is none, is printed."""
    found = newest_whole(folder, lambda text: plain_line(console, f"warning: {text}"))
    plain_line(console, f"{folder.name} starts anew" if found is None else f"{folder.name} goes on from {found.name}")
    return found


def save_adapter(model: PeftModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Save the adapter, and its tokenizer beside it; an older one is replaced when all files are written."""
    with whole_folder(folder) as unfinished:
        model.save_pretrained(str(unfinished))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(unfinished))


def free_memory() -> None:
    """Give back the memory of a model that nobody needs any more: a trainer and its model hold each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def train_grpo(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict[str, Any]],
    reward: Any,
    run: RunConfig,
    *,
    folder: Path,
    resume: bool,
    title: str,
    console: Console,
    thinking: Any = None,
    ignore_eos: bool = False,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Train the adapter with GRPO, save it to `folder/adapter`, and return the log records that have a reward.

    Where the seconds of a step went stands in `folder`: time.md, time.png and time.json.

    Args:
        model: adapted model, trained in place.
        tokenizer: its tokenizer.
        rows: "prompt" and "answer" of every question.
        reward: reward function as TRL takes it.
        run: `save_every`, `seed`, `report_to` and `profile_memory` are used.
        folder: folder for checkpoints and the adapter.
        resume: continue from the newest whole checkpoint in the folder, if there is one.
        title: text in front of the progress bar.
        console: where progress goes.
        thinking: how to think in links, as the trainer takes it; None for one context.
        ignore_eos: every completion is as long as it may be.
        settings: further fields of `ThoughtGRPOConfig` (steps, batch, group, lengths, learning rate, learner).
    """
    from datasets import Dataset

    from thoughtcache.train.trl.trainer import ThoughtGRPOConfig, ThoughtGRPOTrainer

    checkpoint = find_checkpoint(folder, console) if resume else None
    history = history_at_end(checkpoint, settings["max_steps"])
    if checkpoint is not None and history is not None:
        load_weights(model, checkpoint)
        save_adapter(model, folder / "adapter")
        if run.profile_memory:
            plain_line(console, "memory: no timeline, all steps were taken in an earlier call")
        return [record for record in history if "reward" in record]
    arguments = ThoughtGRPOConfig(
        output_dir=str(folder),
        max_grad_norm=1.0,
        profile_memory=run.profile_memory,
        rollouts_file=str(folder / "rollouts.jsonl"),
        logging_steps=1,
        save_strategy="steps" if run.save_every else "no",
        save_steps=run.save_every or 500,
        save_total_limit=2,
        seed=run.seed,
        **reporting(run.report_to, folder),
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        **settings,
    )
    trainer = ThoughtGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        thinking=thinking,
    )
    trainer.remove_callback(PrinterCallback)
    if ignore_eos:
        trainer.eos_token_ids = ()
    with own_report(run.report_to), watched(title, console, ("reward",)) as callbacks:
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_adapter(model, folder / "adapter")
    records = [record for record in trainer.state.log_history if "reward" in record]
    completions = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    seconds = step_seconds("this run", records, completions)
    if seconds is not None:
        write_phase_seconds(folder, [seconds])
    if run.profile_memory:
        picture = write_memory_profile(folder, trainer.memory.timeline, records)
        console.print(f"memory: {picture}", soft_wrap=True)
    return records
