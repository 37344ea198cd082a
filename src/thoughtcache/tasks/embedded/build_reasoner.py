"""Pre-train an embedded reasoner: `python -m thoughtcache.tasks.embedded.build_reasoner tiny_reasoner --output DIR`.

One model for the tasks of a reasoner, trained on fresh random problems of the train split; the loss is on the trace and
its `<eos>` only. The hidden matrices are trained by Muon (fewer steps than AdamW in one trial), embeddings and norms by
AdamW. Accuracies are measured on the val split with a full cache; the test split is never read here. The same
settings give the same model on the same machine and library versions (one thread by default).

Written to DIR: model.safetensors, config.json, generation_config.json, the tokenizer files, and build.json with the
settings, versions, accuracies and time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional as F

from thoughtcache.tasks.embedded.long_chains import MOST_OPERATIONS, PROMPT_TOKENS, most_tokens, trace_tokens
from thoughtcache.tasks.embedded.problem import Problem, sample_problems
from thoughtcache.tasks.embedded.reasoner import (
    BOS,
    EOS,
    LONG_REASONER_FOLDER,
    REASONER_FOLDER,
    VOCABULARY,
    build_config,
    build_tokenizer,
    encode_prompt,
)
from thoughtcache.tasks.example import check

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

LOG_EVERY = 50
MAX_NEW_TOKENS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildSettings:
    """Settings of a reasoner's training. Every step sees one batch of each task; losses are in nats per token.

    num_chains, num_multiplications: problems of each task per step (multiplication is the harder one).
    num_long_tokens: tokens of long chains per step; steps take turns with the numbers of operations.
    matrix_learning_rate: learning rate of Muon, which trains the projections.
    vector_learning_rate: learning rate of AdamW, which trains embeddings and norms.
    seed: seed of the initial weights and of the training problems.
    """

    seed: int = 0
    num_steps: int = 1200
    num_chains: int = 64
    num_multiplications: int = 128
    num_long_tokens: int = 0
    matrix_learning_rate: float = 0.02
    vector_learning_rate: float = 4e-3
    num_warmup_steps: int = 100
    weight_decay: float = 0.02
    max_grad_norm: float = 1.0
    num_eval_problems: int = 1000
    num_threads: int = 1

    def __post_init__(self) -> None:
        for name in ("num_steps", "num_eval_problems", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 1 or more; pass a positive number.")
        for name in ("num_chains", "num_multiplications", "num_long_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, allowed: 0 or more; 0 leaves the task out.")
        if not self.batches(0):
            raise ValueError("no task has any problems; give at least one of num_chains, num_multiplications and "
                             "num_long_tokens")  # fmt: skip

    def batches(self, step: int) -> dict[str, tuple[int, int | None]]:
        """Task name -> (problems of this step, operations of each; None for the task's own)."""
        operations = 1 + step % MOST_OPERATIONS
        num_long = self.num_long_tokens and max(1, self.num_long_tokens // (PROMPT_TOKENS + trace_tokens(operations)))
        found = {
            "chains": (self.num_chains, None),
            "multiplication": (self.num_multiplications, None),
            "long_chains": (num_long, operations),
        }
        return {task: batch for task, batch in found.items() if batch[0]}

    def evaluated(self) -> dict[str, tuple[str, int | None]]:
        """Name -> (task, operations) of what is evaluated."""
        found: dict[str, tuple[str, int | None]] = {}
        for task in self.batches(0):
            numbers = (1, 2, 4, 8, MOST_OPERATIONS) if task == "long_chains" else (None,)
            found |= {task if number is None else f"{task}-{number}": (task, number) for number in numbers}
        return found


REASONERS = {
    REASONER_FOLDER.name: BuildSettings(),
    LONG_REASONER_FOLDER.name: BuildSettings(
        num_steps=1500, num_chains=0, num_multiplications=0, num_long_tokens=7680, num_warmup_steps=50
    ),
}
"""Packaged reasoner -> how it was made."""


def learning_rate_factor(step: int, settings: BuildSettings) -> float:
    """Linear warm-up, then a cosine from 1 down to 0 at `num_steps` (steps count from 0)."""
    if step < settings.num_warmup_steps:
        return (step + 1) / settings.num_warmup_steps
    progress = (step - settings.num_warmup_steps) / max(1, settings.num_steps - settings.num_warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def encode_batch(problems: list[Problem]) -> tuple[torch.Tensor, int]:
    """Token ids `[B, P + T]` of problems of one task (equal lengths), and the prompt length P.

    Looks characters up directly: the ids of the tokenizer (a test says so), only faster.
    """
    rows = [
        [
            VOCABULARY[BOS],
            *(VOCABULARY[character] for character in problem.prompt + problem.trace),
            VOCABULARY[EOS],
        ]
        for problem in problems
    ]
    return torch.tensor(rows), len(problems[0].prompt) + 1


def trace_loss(model: LlamaForCausalLM, token_ids: torch.Tensor, num_prompt_tokens: int) -> torch.Tensor:
    """Mean cross-entropy (nats per token) of the trace, its `<eos>` included."""
    num_trace_tokens = token_ids.shape[1] - num_prompt_tokens
    logits = model(input_ids=token_ids[:, :-1], logits_to_keep=num_trace_tokens, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), token_ids[:, num_prompt_tokens:].flatten())


def build_optimizers(model: LlamaForCausalLM, settings: BuildSettings) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the (tied) embedding and the norms."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=settings.matrix_learning_rate, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.vector_learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: LlamaForCausalLM, settings: BuildSettings) -> Iterator[tuple[int, dict[str, float]]]:
    """Train `model` in place; yield (steps done, loss per task in nats per token) after every step."""
    optimizers = build_optimizers(model, settings)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
        for optimizer in optimizers
    ]
    model.train()
    for step in range(settings.num_steps):
        losses: dict[str, float] = {}
        batches = settings.batches(step)
        for task, (num_problems, number) in batches.items():
            seed = settings.seed * 10**9 + step
            problems = sample_problems(task, num_problems, "train", seed, num_operations=number)
            loss = trace_loss(model, *encode_batch(problems))
            (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
            losses[task] = loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        yield step + 1, losses
    model.eval()  # type: ignore[no-untyped-call]


def accuracy(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    *,
    temperature: float,
    seed: int = 0,
) -> float:
    """Fraction of `problems` (of one task) answered exactly, by full-cache `generate`; temperature 0 is greedy.

    Sampling is from the full softmax (no top-k, no top-p). Sets torch's global seed.
    """
    prompts = torch.tensor([encode_prompt(tokenizer, problem.prompt) for problem in problems])
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    torch.manual_seed(seed)
    untyped: Any = model  # `generate` is typed in some of the supported versions of transformers
    output = untyped.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=max(len(problem.trace) for problem in problems) + 1,
        **sampling,
    )
    texts = tokenizer.batch_decode(output[:, prompts.shape[1] :], skip_special_tokens=False)
    return sum(check(p.example, text).correct for p, text in zip(problems, texts, strict=True)) / len(problems)


def build_reasoner(output: Path, settings: BuildSettings, console: Console) -> dict[str, Any]:
    """Train, measure and write the reasoner to the folder `output`; return what build.json says."""
    from transformers import GenerationConfig, LlamaForCausalLM

    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    started = time.monotonic()
    config, tokenizer = build_config(), build_tokenizer()
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        max_new_tokens=most_tokens(MOST_OPERATIONS) if settings.num_long_tokens else MAX_NEW_TOKENS,
    )
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[losses]}"), console=console) as progress:
        bar = progress.add_task("pre-training", total=settings.num_steps, losses="")
        for num_done, losses in train(model, settings):
            text = ", ".join(f"{task} {loss:.4f}" for task, loss in losses.items())
            progress.update(bar, completed=num_done, losses=text)
            if num_done % LOG_EVERY == 0:
                progress.console.print(f"step {num_done}: loss {text} ({time.monotonic() - started:.0f} s)")
    training_seconds = time.monotonic() - started

    accuracies: dict[str, dict[str, float]] = {}
    for name, (task, number) in settings.evaluated().items():
        problems = sample_problems(task, settings.num_eval_problems, "val", settings.seed, num_operations=number)
        accuracies[name] = {
            "greedy": accuracy(model, tokenizer, problems, temperature=0.0),
            "sampled": accuracy(model, tokenizer, problems, temperature=1.0, seed=settings.seed),
        }
        console.print(
            f"{name}: val accuracy, full cache, {len(problems)} problems: "
            f"greedy {accuracies[name]['greedy']:.1%}, sampled at T = 1 {accuracies[name]['sampled']:.1%}"
        )
    record = {
        "settings": asdict(settings),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "val_accuracy_full_cache": accuracies,
        "training_seconds": round(training_seconds, 1),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "tokenizers")},
    }
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    (output / "build.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {output}")
    return record


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(
        description="Pre-train an embedded reasoner (about a quarter of an hour on one core).",
        epilog="example: python -m thoughtcache.tasks.embedded.build_reasoner long_reasoner --output mine --seed 1",
    )
    parser.add_argument("reasoner", choices=sorted(REASONERS), help="which one")
    parser.add_argument("--output", type=Path, required=True, help="folder to write (created if missing)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, help="default: as the packaged one")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args()
    settings = replace(REASONERS[options.reasoner], seed=options.seed, num_threads=options.threads)
    if options.steps is not None:
        settings = replace(settings, num_steps=options.steps)
    build_reasoner(options.output, settings, Console())


if __name__ == "__main__":
    main()
