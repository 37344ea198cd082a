"""Runs under options of TRL and transformers that are around the learning: loading, evaluating, saving, logging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import thoughtcache as tc
from support.compare import TOLERANCE
from support.grpo import base_with_eos, even_words, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.train.trl.options import WORKS


def _model() -> Any:
    return adapt(base_with_eos(dtype=torch.float32), evict_fraction=0.4)


def test_a_run_evaluates_saves_keeps_and_loads_the_best(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "per_device_eval_batch_size": 2,
        "num_generations_eval": 2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True,
        "learning_rate": 0.05, "max_steps": 3, "logging_steps": 2,
    }  # fmt: skip
    trainer = tc.ThoughtGRPOTrainer(
        _model(),
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **settings)),
        train_dataset=prompts(),
        eval_dataset=prompts(2),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    rewards = {e["step"]: e["eval_reward"] for e in trainer.state.log_history if "eval_reward" in e}
    assert sorted(rewards) == [0, 1, 2, 3]
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == [2]
    best = max((1, 2, 3), key=lambda step: rewards[step])
    assert trainer.state.best_global_step == best
    kept = sorted(int(folder.name.split("-")[1]) for folder in tmp_path.glob("checkpoint-*"))
    assert kept in (sorted({best, 3}), [2, 3])  # the best one and the last one
    import peft

    saved = peft.PeftModel.from_pretrained(base_with_eos(dtype=torch.float32), tmp_path / f"checkpoint-{best}")
    loaded = dict(saved.named_parameters())
    assert all(torch.equal(p, loaded[n]) for n, p in trainer.model.named_parameters() if "lora_" in n)


def test_completions_are_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pandas

    trainer = make_trainer(_model(), tmp_path, max_steps=1, log_completions=True, num_completions_to_print=1)
    trainer.train()
    (file,) = (tmp_path / "completions").glob("*.parquet")
    table = pandas.read_parquet(file)
    rollouts = trainer._run.generations["train"].rollouts
    texts = word_tokenizer().batch_decode([row.token_ids for row in rollouts], skip_special_tokens=True)
    assert sorted(table["completion"]) == sorted(texts)
    assert "even_words" in table
    assert "Completion" in capsys.readouterr().out


def test_a_head_in_fp32_scores_as_it_samples(tmp_path: Path) -> None:
    """A bf16 model whose logits are formed in fp32, by sampler and learner alike."""
    base = base_with_eos(dtype=torch.bfloat16)
    trainer = make_trainer(adapt(base, evict_fraction=0.4), tmp_path, cast_lm_head_to_fp32=True, max_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.model.get_output_embeddings().weight.dtype == torch.float32
    assert max(entry["policy/gap_max"] for entry in logged) < TOLERANCE[torch.bfloat16]
    assert all(entry["grad_norm"] > 0 for entry in logged)


def test_a_head_in_fp32_is_refused_where_it_is_the_embedding(tmp_path: Path) -> None:
    base = base_with_eos(dtype=torch.bfloat16, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="cast_lm_head_to_fp32=True is not supported with tied embeddings"):
        make_trainer(adapt(base), tmp_path, cast_lm_head_to_fp32=True)


def test_a_model_is_loaded_by_its_name_with_the_options_that_are_given(tmp_path: Path) -> None:
    base_with_eos(dtype=torch.float32).save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    trainer = make_trainer(
        str(tmp_path / "model"),
        tmp_path / "run",
        peft_config=tc.ThoughtConfig(r=3, num_global_tokens=5, window=5),
        model_init_kwargs={"dtype": "bfloat16"},
        max_steps=1,
    )
    assert trainer.model.dtype == torch.bfloat16
    trainer.train()
    assert trainer.state.log_history[0]["policy/gap_max"] < TOLERANCE[torch.bfloat16]


def test_options_of_the_chat_template_reach_it(tmp_path: Path) -> None:
    trainer = make_trainer(_model(), tmp_path, chat_template_kwargs={"word": "w7"})
    trainer._tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {{ word }}{% endfor %}"
    rows, _, _ = trainer._tokenize_prompts([[{"role": "user", "content": "w9"}]])
    assert rows == [[9, 7]]


def test_every_option_that_is_said_to_be_tried_here_is() -> None:
    source = Path(__file__).read_text() + Path(quick_arguments.__code__.co_filename).read_text()
    named = set(WORKS["tests/trajectory/test_trl_surroundings.py"])
    assert sorted(name for name in named if f'"{name}"' not in source and f"{name}=" not in source) == []
