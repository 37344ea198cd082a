"""Does folding do what it is for? The embedded reasoner learns to close its steps, then thinks under small windows.

    python -m benchmarks.folding --output runs/folding

The whole model is trained on traces with step markers, as links of folded chains and as whole traces alike, so that one
model can do both. Then both ways of thinking are measured on the same held-out problems, with a full cache inside the
context and with windows, greedily and sampled. No adapter is trained, so whatever leaves a window is lost.

Left behind: `results.json` (settings, exact matches with 95 % Wilson intervals) and what is printed.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaForCausalLM

import thoughtcache as tc
from thoughtcache.chains.given import split_trace
from thoughtcache.evaluation.intervals import wilson_interval
from thoughtcache.report.results import environment, write_results
from thoughtcache.tasks.embedded.build_reasoner import (
    BuildSettings,
    build_optimizers,
    learning_rate_factor,
    trace_loss,
)
from thoughtcache.tasks.embedded.chains import STEP_CLOSING, STEP_OPENING
from thoughtcache.tasks.embedded.problem import sample_problems
from thoughtcache.tasks.embedded.reasoner import VOCABULARY, encode_prompt, encode_trace, load_reasoner
from thoughtcache.tasks.example import check

FOLDING = tc.StepFolding(
    opening=[VOCABULARY[STEP_OPENING]],
    closing=[VOCABULARY[STEP_CLOSING]],
    max_steps=6,
    step_tokens=16,
    summary_tokens=1,
    unfold_tokens=66,
)
WINDOWS = (None, 16, 8, 6)
WAYS = {"unfold": FOLDING.unfolded(), "fold": FOLDING}


def batches(tokenizer: Any, num: int, seed: int) -> list[tuple[torch.Tensor, int]]:
    """(token ids, prompt tokens) of the links of these problems by number, and of their whole traces.

    Args:
        tokenizer: of the reasoner.
        num: problems.
        seed: of the problems.
    """
    by_shape: dict[tuple[int, int], list[list[int]]] = {}
    for problem in sample_problems("chains", num, "train", seed, step_markers=True):
        question, trace = encode_prompt(tokenizer, problem.prompt), encode_trace(tokenizer, problem.trace)
        for thinking in WAYS.values():
            for prompt, link in split_trace(thinking, question, trace)[0]:
                by_shape.setdefault((len(prompt), len(link)), []).append([*prompt, *link])
    return [(torch.tensor(rows), prompt) for (prompt, _), rows in by_shape.items()]


def teach(model: LlamaForCausalLM, tokenizer: Any, options: argparse.Namespace, console: Console) -> list[float]:
    """Train all weights; the loss of every step, in nats per token, the mean over links and whole traces."""
    settings = BuildSettings(num_steps=options.steps, num_warmup_steps=20)
    optimizers = build_optimizers(model, settings)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, settings))
        for optimizer in optimizers
    ]
    losses: list[float] = []
    for step in range(options.steps):
        parts = [
            trace_loss(model, *part) for part in batches(tokenizer, options.batch, (options.seed + 1) * 10**6 + step)
        ]
        loss = torch.stack(parts).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if step % 50 == 49:
            console.print(f"step {step + 1}: loss {loss.item():.4f}")
    return losses


def measure(model: nn.Module, tokenizer: Any, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Exact matches of both ways of thinking, by window and temperature."""
    problems = sample_problems("chains", options.problems, "val", 0)
    prompts = [encode_prompt(tokenizer, problem.prompt) for problem in problems]
    rows = []
    for name, thinking in WAYS.items():
        for window in WINDOWS:
            for temperature in (0.0, 1.0):
                chains = tc.rollout_chains(
                    model, prompts, thinking, window=window, temperature=temperature, tokenizer=tokenizer,
                    batch_size=128, anchors=False, seed=options.seed,
                )  # fmt: skip
                texts = [tokenizer.decode(chain.token_ids, skip_special_tokens=True) for chain in chains]
                right = sum(check(p.example, text).correct for p, text in zip(problems, texts, strict=True))
                low, high = wilson_interval(right, len(problems))
                most = max(
                    len(link.prompt_ids) + min(window or len(link.token_ids), len(link.token_ids))
                    for chain in chains
                    for link in chain.links
                )
                rows.append(
                    {
                        "way": name, "window": window, "temperature": temperature, "right": right,
                        "total": len(problems), "low": low, "high": high, "most_resident_tokens": most,
                        "ended": sum(chain.end == "stop" for chain in chains),
                        "links": sum(len(chain.links) for chain in chains) / len(chains),
                    }
                )  # fmt: skip
    return rows


def main() -> None:
    """The command line: see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.folding", description=__doc__)
    parser.add_argument("--output", default="runs/folding", help="folder for results")
    parser.add_argument("--steps", type=int, default=1000, help="training steps")
    parser.add_argument("--batch", type=int, default=32, help="problems of a step")
    parser.add_argument("--problems", type=int, default=500, help="held-out problems")
    parser.add_argument("--seed", type=int, default=0, help="of the training problems and of the sampling")
    options, console = parser.parse_args(), Console()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    base, tokenizer = load_reasoner()
    started = time.perf_counter()
    losses = teach(base, tokenizer, options, console)
    seconds = time.perf_counter() - started
    config = tc.ThoughtConfig(r=1, num_global_tokens=1, initial_state="identity", absorb=False)
    rows = measure(peft.get_peft_model(base.eval(), config), tokenizer, options)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    payload = {"settings": vars(options), "environment": environment(), "seconds": seconds, "losses": losses}
    write_results(Path(options.output) / "results.json", {**payload, "rows": rows})


if __name__ == "__main__":
    main()
