"""A task where the memory must matter: SmolLM2 is taught ledgers with the full cache, then gets a fifth of it.

    python -m benchmarks.ledger teach --model FOLDER --output runs/ledger
    python -m benchmarks.ledger compare --output runs/ledger --arms lora_window lora_slots_64 attention_64_transfer

`teach` fine-tunes the whole model on worked solutions (TRL's SFTTrainer) until the list at the end is right, and leaves
it in OUTPUT/base. `compare` distils every arm of `benchmarks.distillation` towards that base, on the same texts in the
same order, and measures greedy answers to the same held-out questions. Both go on where they were stopped.

Left behind: `base/`, `teach.json`, a folder per arm, `results.json` (settings, accuracies with 95 % Wilson intervals)
and `ledger.png`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from benchmarks.distillation import arms
from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.sampler.given import given_text
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.tasks.embedded.problem import Problem
from thoughtcache.tasks.example import check
from thoughtcache.tasks.ledger import sample_ledgers
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.transfer.config import TransferConfig

SPARE_TOKENS = 16
"""Tokens that an answer may be longer than the longest solution."""


def encoded(tokenizer: Any, problem: Problem) -> tuple[list[int], list[int]]:
    """Tokens of the question as the model is asked it, and of the worked solution with its end."""
    solution = tokenizer.encode(problem.trace, add_special_tokens=False)
    return encode_prompt(tokenizer, problem.example.messages), [*solution, tokenizer.eos_token_id]


def teach(options: argparse.Namespace, console: Console) -> None:
    """Fine-tune the base on worked solutions, and measure it with the full cache."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    folder = Path(options.output)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    texts = [encoded(tokenizer, one) for one in sample_ledgers(options.steps * options.batch, "train", options.seed)]
    rows = [{"input_ids": p + s, "completion_mask": [0] * len(p) + [1] * len(s)} for p, s in texts]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(folder / "teach"), max_steps=options.steps, per_device_train_batch_size=options.batch,
            learning_rate=options.learning_rate, lr_scheduler_type="cosine", warmup_steps=10, seed=options.seed,
            gradient_checkpointing=False, bf16=False, logging_steps=5, save_steps=25, save_total_limit=1, report_to=[],
            completion_only_loss=True, max_length=None,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=any((folder / "teach").glob("checkpoint-*")) or None)
    trainer.save_model(str(folder / "base"))
    tokenizer.save_pretrained(str(folder / "base"))
    problems = sample_ledgers(options.test, "val", options.seed)
    found = accuracy(plain(folder / "base"), tokenizer, problems, full_cache=True)
    console.print(f"full cache, val split: {shown(found)}")
    losses = [record for record in trainer.state.log_history if "loss" in record]
    write_results(folder / "teach.json", {"settings": vars(options), "val": found, "losses": losses})


def plain(base: Path) -> peft.PeftModel:
    """The base with an adapter that changes nothing."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(
        model, tc.ThoughtConfig(r=1, num_global_tokens=1, initial_state="identity", absorb=False)
    )
    assert isinstance(adapted, peft.PeftModel)
    return adapted.eval()


def accuracy(
    model: nn.Module, tokenizer: Any, problems: list[Problem], *, full_cache: bool = False, window: int | None = None
) -> dict[str, Any]:
    """Right lists among greedy answers.

    Args:
        model: adapted model.
        tokenizer: its tokenizer.
        problems: the questions.
        full_cache: nothing is evicted.
        window: resident thoughts; None for the adapter's own.
    """
    texts = [encoded(tokenizer, problem) for problem in problems]
    longest = max(len(solution) for _, solution in texts) + SPARE_TOKENS
    bounds = {"window": None} if full_cache else {} if window is None else {"window": window}
    prompts = [prompt for prompt, _ in texts]
    rows = tc.rollout(
        model, prompts, max_new_tokens=longest, temperature=0.0, batch_size=32, tokenizer=tokenizer, **bounds
    )
    answers = [tokenizer.decode(row.token_ids, skip_special_tokens=True) for row in rows]
    right = sum(check(problem.example, text).correct for problem, text in zip(problems, answers, strict=True))
    low, high = wilson_interval(right, len(problems))
    return {"right": right, "total": len(problems), "low": low, "high": high}


def shown(found: dict[str, Any]) -> str:
    """Right answers as text."""
    share = 100 * found["right"] / found["total"]
    return f"{share:.1f} % ({100 * found['low']:.1f}-{100 * found['high']:.1f}), n = {found['total']}"


def run_arm(name: str, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Distil one arm and measure it, or read what it left."""
    folder = Path(options.output)
    target = folder / name
    if (target / "arm.json").is_file():
        return json.loads((target / "arm.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    torch.manual_seed(options.seed)
    model = peft.get_peft_model(base, arms(options.rank, options.window)[name]())
    assert isinstance(model, peft.PeftModel)
    thought = find_tuner(model).thought_config
    cache = thought.resolve_window(None)
    problems = sample_ledgers(options.steps * options.batch, "train", options.seed + 1)
    texts = [given_text(*encoded(tokenizer, one), cache, seed=row) for row, one in enumerate(problems)]
    common: dict[str, Any] = {"batch_size": options.batch, "save_every": 25, "log_every": 5, "seed": options.seed}
    transfer, logits = target / "transfer", target / "logits"
    if name.endswith("_transfer"):
        tc.transfer_attention(
            model, texts, TransferConfig(
                output_dir=str(transfer), num_steps=options.transfer_steps, resume=any(transfer.glob("checkpoint-*")),
                **common,
            ),
        )  # fmt: skip
    result = tc.distill(
        model, [], DistillConfig(
            output_dir=str(logits), num_steps=options.steps, learning_rate=options.learning_rate, warmup_steps=10,
            memory_learning_rate=options.memory_learning_rate if thought.has_attention_memory else None,
            recompute=False, resume=any(logits.glob("checkpoint-*")), **common,
        ), samples=texts,
    )  # fmt: skip
    model.eval()
    found = accuracy(model, tokenizer, sample_ledgers(options.test, "test", options.seed))
    console.print(f"{name}: {shown(found)}")
    model.save_pretrained(str(target / "adapter"))
    payload = {
        "test": found,
        "losses": [[record["step"], record["loss"]] for record in result.history if "loss" in record],
        "elapsed_seconds": result.elapsed_seconds,
        "state_tokens": find_tuner(model).state_size()[1],
        "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    write_results(target / "arm.json", payload)
    return payload


def compare(options: argparse.Namespace, console: Console) -> None:
    """Run the arms one after the other; the base with its full cache and under the window beside them."""
    folder = Path(options.output)
    if not (folder / "base" / "config.json").is_file():
        raise SystemExit(f"{folder / 'base'} holds no model; run `python -m benchmarks.ledger teach` first")
    measured = {name: run_arm(name, options, console) for name in options.arms}
    tokenizer, model = AutoTokenizer.from_pretrained(folder / "base"), plain(folder / "base")
    problems = sample_ledgers(options.test, "test", options.seed)
    beside = {
        "base, full cache": accuracy(model, tokenizer, problems, full_cache=True),
        "base, window": accuracy(model, tokenizer, problems, window=options.window),
    }
    for name, found in beside.items():
        console.print(f"{name}: {shown(found)}")
    write_results(
        folder / "results.json",
        {"arms": measured, "base": beside, "settings": vars(options), "environment": environment()},
    )
    series = {
        name: ([float(step) for step, _ in arm["losses"]], [float(loss) for _, loss in arm["losses"]])
        for name, arm in measured.items()
    }
    panel = Panel(title="ledgers", x_label="optimiser step", y_label="KL to the full cache (nats)", series=series)
    console.print(f"results: {folder / 'results.json'}, {plot_curves(folder / 'ledger.png', [panel])}", soft_wrap=True)


def main() -> None:
    """Read the options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["teach", "compare"])
    parser.add_argument("--model", help="folder or hub id of the model that is taught")
    parser.add_argument("--output", default="runs/bench/ledger", help="folder of the study")
    parser.add_argument("--arms", nargs="+", default=["lora_window", "lora_slots_64", "attention_64_transfer"])
    parser.add_argument("--window", type=int, default=48)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--transfer-steps", type=int, default=100, help="of the arms whose names end in _transfer")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--memory-learning-rate", type=float, default=1e-2)
    parser.add_argument("--test", type=int, default=64, help="held-out questions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "teach" and options.model is None:
        parser.error("teach needs --model")
    Path(options.output).mkdir(parents=True, exist_ok=True)
    {"teach": teach, "compare": compare}[options.what](options, Console())


if __name__ == "__main__":
    main()
