"""Both stages of training on the device: a few steps of cache distillation and of GRPO on the embedded reasoner."""

from __future__ import annotations

import math
import tempfile
from typing import Any

from datasets import Dataset

import thoughtcache as tc
from benchmarks.gpu.check import Context
from benchmarks.gpu.models import adapt
from benchmarks.sampler.figures import Figure
from thoughtcache.tasks.embedded.reasoner import encode_prompt, load_reasoner
from thoughtcache.train.distill_config import DistillConfig

QUESTIONS = ["347*682=", "12*9=", "805*33=", "7*7="]


def distillation(context: Context) -> list[Figure]:
    """The loss is finite and falls."""
    base, tokenizer = load_reasoner()
    model = adapt(base.to(context.device), window=16, r=8, num_global_tokens=8)
    prompts = [encode_prompt(tokenizer, question) for question in QUESTIONS * 4]
    with tempfile.TemporaryDirectory() as folder:
        config = DistillConfig(
            output_dir=folder, num_steps=6, batch_size=8, learning_rate=5e-3, warmup_steps=0, max_new_tokens=40,
            log_every=1, save_every=0,
        )  # fmt: skip
        result = tc.distill(model, prompts, config)
    losses = [record["loss"] for record in result.history if "loss" in record]
    return [
        Figure(name="first loss", value=losses[0], unit="nats"),
        Figure(name="last / first loss", value=losses[-1] / losses[0], at_most=1.0, unit="x"),
    ]


def grpo(context: Context) -> list[Figure]:
    """Two steps; sampler and learner agree."""
    base, tokenizer = load_reasoner()
    model = adapt(base.to(context.device), window=16, r=8, num_global_tokens=8)
    with tempfile.TemporaryDirectory() as folder:
        arguments: dict[str, Any] = {
            "output_dir": folder, "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 40,
            "max_steps": 2, "learning_rate": 1e-4, "logging_steps": 1, "save_strategy": "no", "report_to": "none",
            "disable_tqdm": True, "beta": 0.01, "use_cpu": not context.on_gpu,
        }  # fmt: skip
        trainer = tc.ThoughtGRPOTrainer(
            model, _digits, tc.ThoughtGRPOConfig(**arguments), processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": QUESTIONS * 4}),
        )  # fmt: skip
        trainer.train()
    logged = [record for record in trainer.state.log_history if "policy/gap_max" in record]
    finite = all(math.isfinite(record["loss"]) for record in logged)
    return [
        Figure(name="steps", value=len(logged), at_least=2),
        Figure(name="losses are finite", value=float(finite), at_least=1),
        Figure(name="gap of sampling and replay", value=max(r["policy/gap_max"] for r in logged), at_most=2e-3),
    ]


def _digits(completions: list[str], **columns: Any) -> list[float]:
    """Share of odd digits."""
    found = [[int(c) for c in text if c.isdecimal()] for text in completions]
    return [sum(d % 2 for d in digits) / max(len(digits), 1) for digits in found]
