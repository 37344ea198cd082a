"""One generation of TRL's trainer against one of ours: `_generate_single_turn`, the same prompts, taking turns.

TRL's trainer has PEFT's LoRA of our rank and calls transformers' `generate`. No token ends a sequence in either.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

import thoughtcache as tc
from benchmarks.sampler.case import Case
from benchmarks.sampler.figures import Measured, over_repeats
from benchmarks.sampler.models import (
    load_base,
    load_tokenizer,
    lora_config,
    make_prompts,
    randomised,
    thought_config,
    uneven_lengths,
)
from benchmarks.sampler.timing import interleaved

NO_TOKEN = -1


def measure(case: Case) -> Measured:
    """Time of TRL's turn over ours."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = {
            "output_dir": str(Path(folder)), "use_cpu": case.device == "cpu", "bf16": False, "report_to": "none",
            "per_device_train_batch_size": case.batch, "num_generations": case.batch, "temperature": 1.0, "beta": 0.0,
            "max_completion_length": case.tokens, "gradient_checkpointing": False, "disable_tqdm": True,
        }  # fmt: skip
        ours = _trainer(case, tc.ThoughtGRPOTrainer, tc.ThoughtGRPOConfig(**arguments), thought_config(case))
        theirs = _trainer(case, GRPOTrainer, GRPOConfig(**arguments, top_k=0, use_vllm=False), lora_config(case))
        prompts = make_prompts(load_base(case), uneven_lengths(case.batch, case.prompt))

        def turn(trainer: Any) -> None:
            completions, _ = trainer._generate_single_turn(prompts, None, {}, case.batch)
            assert {len(ids) for ids in completions} == {case.tokens}

        runs = {"ours": lambda: turn(ours), "TRL": lambda: turn(theirs)}
        seconds = interleaved(runs, case.repeats, case.device)
    name = f"time of TRL's turn / ours, {case.tokens} tokens"
    return Measured(
        figures=[
            seconds["TRL"].over(seconds["ours"], name),
            over_repeats("our turn", seconds["ours"].wall, cpu=seconds["ours"].cpu, unit="s"),
        ]
    )


def _trainer(case: Case, kind: Any, arguments: Any, peft_config: Any) -> Any:
    """A trainer that never sees an end of sequence."""
    trainer = kind(
        model=load_base(case),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["1"] * case.batch}),
        processing_class=load_tokenizer(case),
        peft_config=peft_config,
    )
    randomised(trainer.model)
    trainer.model.train()
    trainer.eos_token_ids = [NO_TOKEN]
    trainer.generation_config.eos_token_id = None
    trainer.generation_kwargs["eos_token_id"] = None
    return trainer
