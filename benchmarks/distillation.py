"""Does the state help a real model? LoRA_c and PTE distilled towards the full-cache base, at equal tokens.

    python -m benchmarks.distillation --model FOLDER --output FOLDER --arms lora_window delta paper lora_window_equal

The base samples essay-like texts from prompts of this file (T = 1), once per output folder. Every arm sees the same
texts in the same order; `lora_window_equal` has the parameters that PTE spends on its encoder as additional LoRA rank.
Measured on held-out texts, per token and in nats: KL from the full-cache base before the first eviction ("early"),
after it ("late") and past `--far` tokens. A stopped study continues from its checkpoints with the same command.

Left behind: `samples.jsonl`, `results.json` (settings, curves, KL of every held-out text) and `curves.png`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import Rollout, SamplingSettings
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.studies.held_out import HeldOut
from thoughtcache.train.distill import sample_teacher
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.transfer.config import TransferConfig

FORMS = (
    "Write a detailed essay about {}.",
    "Explain {} step by step to a curious student, with examples.",
    "Tell a long story in which {} matters to every character.",
    "Write a dialogue between two experts who disagree about {}.",
    "Give a lecture on {}: history, main ideas, open questions.",
    "Write a careful plan for a week-long course about {}.",
    "List ten facts about {} and discuss each of them in a paragraph.",
    "Write a report on {} for the mayor of a small town.",
)
TOPICS = (
    "bridges", "the tides", "bread", "chess", "volcanoes", "the printing press", "migrating birds", "clocks",
    "the human heart", "lighthouses", "coffee", "earthquakes", "the bicycle", "forests", "glass", "the moon",
    "money", "rivers", "vaccines", "trains", "honey bees", "maps", "music", "winter",
)  # fmt: skip


PER_ARM = ("window", "rank", "steps", "transfer_steps", "memory_learning_rate", "seed")
"""Options that may differ between calls for one folder; each arm keeps its own."""

TRANSFER_WEIGHT = 0.05
"""Weight of a memory before attention transfer: on running text everything that left is too much at first."""


SELECTING = ("h2o", "snapkv", "tova")
"""Eviction policies that do best untrained (docs/eviction.md), each with a LoRA alone and with a memory."""


def arms(rank: int, window: int) -> dict[str, Callable[[], tc.ThoughtConfig]]:
    """The compared systems. `lora_window_equal` is sized so that its parameters are PTE's, to the nearest rank.

    `attention_N_transfer` begins with attention transfer on the same texts, and is distilled from there;
    `attention_N_POLICY_transfer` does so under an eviction policy, so that the memory learns what is not selected.
    `lora_slots_N` and `lora_POLICY_N` have the numbers of `attention_N` as slots, at a head size of 64.
    """

    def config(r: int = rank, **options: Any) -> tc.ThoughtConfig:
        scale = {"lora_alpha": 2 * r, "num_global_tokens": rank, "window": window}
        return tc.ThoughtConfig(r=r, **{**scale, **options})

    plain = {"initial_state": "identity", "absorb": False}

    def slots(features: int, eviction: str = "sliding") -> tc.ThoughtConfig:
        """No memory, and its numbers as slots of the window: F (D + 1) of 2 D."""
        return config(**plain, window=window + math.ceil(features / 2 * 65 / 64), eviction=eviction)

    def attention(features: int, **options: Any) -> tc.ThoughtConfig:
        return tc.ThoughtConfig(
            r=rank, lora_alpha=2 * rank, window=window, memory="attention", memory_features=features, **options
        )

    selecting = {
        name: arm
        for features, policy in itertools.product((16, 64), SELECTING)
        for name, arm in (
            (f"lora_{policy}_{features}", partial(slots, features, policy)),
            (
                f"attention_{features}_{policy}_transfer",
                partial(attention, features, memory_weight=TRANSFER_WEIGHT, eviction=policy),
            ),
        )
    }
    return {
        **selecting,
        "lora_window": lambda: config(**plain),
        "lora_slots_16": lambda: slots(16),
        "lora_slots_64": lambda: slots(64),
        "attention_16": lambda: attention(16),
        "attention_64": lambda: attention(64),
        "attention_16_transfer": lambda: attention(16, memory_weight=TRANSFER_WEIGHT),
        "attention_64_transfer": lambda: attention(64, memory_weight=TRANSFER_WEIGHT),
        "attention_64_rotated": lambda: attention(64, memory_keys="rotated"),
        "attention_64_delta": lambda: attention(64, memory_write="delta"),
        "lora_window_equal": lambda: config(r=rank + rank // 8, num_global_tokens=rank + rank // 8, **plain),
        "paper": lambda: config(state_rule="linear"),
        "gated": lambda: config(state_rule="gated", state_norm="none"),
        "delta": lambda: config(state_rule="delta", state_norm="none"),
        # Starts as LoRA_c, S = I, and writes little before it has learned what to write.
        "gated_identity": lambda: config(
            state_rule="gated", state_norm="none", initial_state="identity", write_scale=0.01
        ),
    }


def texts(model: peft.PeftModel, tokenizer: Any, folder: Path, options: argparse.Namespace) -> list[Rollout]:
    """The base's own texts, sampled once and kept in the folder."""
    prompts = [form.format(topic) for topic, form in itertools.product(TOPICS, FORMS)]
    random.Random(options.seed).shuffle(prompts)
    ids = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
        )
        for prompt in prompts[: options.samples]
    ]
    path = folder / "samples.jsonl"
    config = distill_config(options, folder)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    with path.open("a") as file:
        for start in range(len(done), len(ids), config.sample_batch_size):
            piece, settings = ids[start : start + config.sample_batch_size], replace(config, seed=start)
            part = sample_teacher(model, piece, settings, tokenizer=tokenizer)
            rows = [{"prompt": row.prompt_ids, "thought": row.token_ids} for row in part]
            done += rows
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            print(f"sampled {len(done)} of {len(ids)} texts", flush=True)
    settings = SamplingSettings(
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        window=None,
        num_evicted=None,
        eviction="sliding",
        seed=config.seed,
        ignore_eos=False,
    )
    return [
        Rollout(
            prompt_ids=row["prompt"],
            token_ids=row["thought"],
            logprobs=torch.zeros(len(row["thought"])),
            finish_reason="stop",
            settings=settings,
        )
        for row in done
        if len(row["thought"]) >= options.min_new_tokens
    ]


def distill_config(options: argparse.Namespace, folder: Path) -> DistillConfig:
    """Settings that every arm shares."""
    return DistillConfig(
        output_dir=str(folder),
        num_steps=max(1, options.steps),  # with 0 these settings are for samples alone
        batch_size=2,
        learning_rate=1e-3,
        warmup_steps=5,
        min_learning_rate_ratio=0.1,
        max_new_tokens=options.max_new_tokens,
        sample_batch_size=32,
        recompute=False,
        evaluate_every=options.evaluate_every,
        save_every=options.evaluate_every,
        log_every=5,
        seed=options.seed,
        resume=any(folder.glob("checkpoint-*")),
    )


class Parts:
    """Mean KL from the full-cache base on held-out texts, before and after the first eviction, and far behind it.

    "Late" begins at the first eviction of a window of `window` thoughts, also for arms with wider ones.
    """

    def __init__(self, held_out: HeldOut, window: int, far: int) -> None:
        self.held_out = held_out
        self.parts = {"early": slice(0, window), "late": slice(window, None), "far": slice(far, None)}
        self.last: list[dict[str, float]] = []

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """Means per token of the parts; sums per text are kept in `last`."""
        values = self.held_out(model)
        self.last = [{part: kl[where].sum().item() for part, where in self.parts.items()} for kl in values]
        return {
            part: sum(text[part] for text in self.last) / max(1, sum(kl[where].numel() for kl in values))
            for part, where in self.parts.items()
        }


def distill(
    model: peft.PeftModel,
    samples: list[Rollout],
    target: Path,
    options: argparse.Namespace,
    evaluate: Callable[[nn.Module], dict[str, float]],
) -> list[dict[str, Any]]:
    """Distil an arm towards the base with its full cache; returns what was logged."""
    has_memory = find_tuner(model).thought_config.has_attention_memory
    memory_rate = options.memory_learning_rate if has_memory else None
    config = replace(distill_config(options, target), memory_learning_rate=memory_rate)
    return list(tc.distill(model, [], config, samples=samples, evaluator=evaluate).history)


def run_arm(name: str, folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train one arm, or read what it left."""
    target = folder / name
    if (target / "arm.json").is_file():
        return json.loads((target / "arm.json").read_text())
    if not options.steps and not name.endswith("_transfer"):
        raise SystemExit(
            f"--steps 0 leaves {name} untrained: only arms whose names end in _transfer learn without them"
        )
    start = time.perf_counter()
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    torch.manual_seed(options.seed)
    model = peft.get_peft_model(base, arms(options.rank, options.window)[name]())
    assert isinstance(model, peft.PeftModel)
    samples = texts(model, tokenizer, folder, options)
    held_out = Parts(HeldOut(model, samples[: options.held_out]), options.window, options.far)
    before = {"step": 0, **held_out(model)}
    console.print(f"{name}, step 0: {before}")

    def evaluate(current: nn.Module) -> dict[str, float]:
        values = held_out(current)
        console.print(f"{name}: {values}")
        return values

    transferred = None
    if name.endswith("_transfer"):
        config = TransferConfig(
            output_dir=str(target / "transfer"), num_steps=options.transfer_steps, batch_size=2, save_every=25,
            log_every=5, seed=options.seed, resume=any((target / "transfer").glob("checkpoint-*")),
        )  # fmt: skip
        tc.transfer_attention(model, samples[options.held_out :], config)
        transferred = held_out(model)
        console.print(f"{name}, after {options.transfer_steps} steps of attention transfer: {transferred}")
    history = distill(model, samples[options.held_out :], target, options, evaluate) if options.steps else []
    curve = [before] + [
        {"step": record["step"], **{part: record[f"eval_{part}"] for part in ("early", "late", "far")}}
        for record in history
        if "eval_late" in record
    ]
    model.save_pretrained(str(target / "adapter"))
    payload = {
        "transferred": transferred,
        "curve": curve,
        "held_out_texts": held_out.last,
        "num_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "elapsed_seconds": time.perf_counter() - start,
        "settings": {name: getattr(options, name) for name in PER_ARM},
        "num_training_texts": len(samples) - options.held_out,
    }
    write_results(target / "arm.json", payload)
    return payload


def main() -> None:
    """Run the arms one after the other and compare them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distillation", description=__doc__)
    parser.add_argument("--model", required=True, help="folder or hub id of the base")
    parser.add_argument("--output", default="runs/bench/distillation", help="folder of the study")
    parser.add_argument("--arms", nargs="+", default=["lora_window", "delta", "paper", "lora_window_equal"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--steps",
        type=int,
        default=100,
        help="of distillation; 0 leaves arms that end in _transfer with attention transfer",
    )
    parser.add_argument("--samples", type=int, default=192, help="texts to sample; the first ones are held out")
    parser.add_argument("--held-out", type=int, default=16)
    parser.add_argument("--min-new-tokens", type=int, default=160, help="shorter texts are dropped")
    parser.add_argument("--max-new-tokens", type=int, default=384)
    parser.add_argument("--far", type=int, default=192)
    parser.add_argument("--evaluate-every", type=int, default=25)
    parser.add_argument("--memory-learning-rate", type=float, default=1e-2, help="of memories in attention space")
    parser.add_argument("--transfer-steps", type=int, default=200, help="of the arms whose names end in _transfer")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    console = Console()
    folder = Path(options.output)
    folder.mkdir(parents=True, exist_ok=True)
    measured = {name: run_arm(name, folder, options, console) for name in options.arms}
    write_results(folder / "results.json", {"arms": measured, "settings": vars(options), "environment": environment()})
    panels = [
        Panel(
            title=title,
            x_label="optimiser step",
            y_label="KL to the full-cache base (nats / token)",
            series={
                name: ([float(p["step"]) for p in arm["curve"]], [p[part] for p in arm["curve"]])
                for name, arm in measured.items()
            },
        )
        for part, title in (("late", "after the first eviction"), ("far", f"past {options.far} tokens"))
    ]
    console.print(f"results: {folder / 'results.json'}, {plot_curves(folder / 'curves.png', panels)}", soft_wrap=True)


if __name__ == "__main__":
    main()
