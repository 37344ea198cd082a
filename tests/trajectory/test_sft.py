"""Supervised fine-tuning by TRL, which switches gradient checkpointing on by default."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
import torch
import trl
from trl.trainer.sft_config import SFTConfig

from support.compare import max_difference
from support.grpo import base_with_eos, word_tokenizer
from support.models import adapt, trainable

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`use_cache=True` is incompatible:UserWarning"),
]


def trained(folder: Path, **options):
    """An adapter after two steps, and the losses."""
    model = adapt(base_with_eos(dtype=torch.float32), state_rule="gated", window=16)
    rows = datasets.Dataset.from_list(
        [{"input_ids": [3 + (5 * row + word) % 26 for word in range(9)]} for row in range(4)]
    )
    config = SFTConfig(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=2, learning_rate=1e-2, use_cpu=True,
        bf16=False, report_to="none", save_strategy="no", logging_steps=1, disable_tqdm=True, **options,
    )  # fmt: skip
    trainer = trl.SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=word_tokenizer())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {name: parameter.detach().clone() for name, parameter in trainable(model).items()}, losses


def test_trl_s_default_trains_the_adapter_as_without_checkpoints(tmp_path: Path) -> None:
    assert SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False).gradient_checkpointing
    expected, losses = trained(tmp_path, gradient_checkpointing=False)
    start = adapt(base_with_eos(dtype=torch.float32), state_rule="gated", window=16)
    moved = {name for name, p in trainable(start).items() if max_difference(expected[name], p.detach()) > 0}
    assert any("thought_encoder" in name for name in moved)
    for options in ({}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}):
        found, same = trained(tmp_path, **options)
        assert same == pytest.approx(losses, abs=1e-6)
        assert all(max_difference(found[name], expected[name]) < 1e-5 for name in expected), options
