"""The same promises on a real pre-trained model and its tokenizer, and on real questions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import peft
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from support.smollm2 import smollm2_folder
from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.generate.answer import answer
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.train.distill import distill
from thoughtcache.train.distill_config import DistillConfig

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]
TOLERANCE = 1e-4  # fp32 with anchors; a 49k vocabulary and 30 layers round more than the tiny models
DATA = Path(os.environ.get("THOUGHTCACHE_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A briefly distilled adapter (so that the state matters), its tokenizer, and two prompts of unequal lengths."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = tc.ThoughtConfig(r=4, num_global_tokens=4, window=8, state_rule="gated", state_norm="none")
    model = peft.get_peft_model(base, config)
    questions = ["What is 17 + 25?", "Name three colours and say why you like each of them."]
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in questions]
    settings = DistillConfig(
        output_dir=str(tmp_path_factory.mktemp("distill")), num_steps=3, batch_size=2, warmup_steps=1, max_new_tokens=24
    )
    distill(model, prompts, settings)
    return model.eval(), tokenizer, prompts


def test_three_executions_agree(trained) -> None:
    model, _, prompts = trained
    rollouts = tc.rollout(model, prompts, max_new_tokens=26, ignore_eos=True)
    assert all(len(rollout.evictions) == 9 for rollout in rollouts)
    sampled = torch.stack([rollout.logprobs for rollout in rollouts])
    with torch.no_grad():
        replayed = tc.replay(model, rollouts).logprobs
        naive = tc.naive_logprobs(model, rollouts).logprobs
        with model.disable_adapter():
            base = tc.replay(model, rollouts).logprobs
    differences = [(a - b).abs().max().item() for a, b in ((sampled, replayed), (sampled, naive), (replayed, naive))]
    print("sampled/replayed, sampled/naive, replayed/naive:", *(f"{difference:.1e}" for difference in differences))
    assert max(differences) < TOLERANCE
    assert (base - replayed).abs().max() > 100 * TOLERANCE  # the adapter does something


def test_generate_is_the_greedy_rollout(trained) -> None:
    model, tokenizer, prompts = trained
    tokenizer.padding_side = "left"
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=20)[:, inputs["input_ids"].shape[1] :]
    for row, rollout in zip(out.tolist(), tc.rollout(model, prompts, max_new_tokens=20, temperature=0.0), strict=True):
        assert row[: len(rollout.token_ids)] == rollout.token_ids


@pytest.mark.parametrize("source", ["gsm8k/train.jsonl", "dapo_math_17k/dapo_math_17k.parquet"])
def test_trains_on_real_questions_from_end_to_end(source: str, folder: Path, tmp_path: Path) -> None:
    if not (DATA / source).is_file():
        pytest.skip(f"{DATA / source} is missing; set THOUGHTCACHE_DATA to a folder with the public data sets")
    run = RunConfig(
        output_dir=str(tmp_path), model=str(folder), dataset=str(DATA / source), limit=2, max_new_tokens=32,
        distill_steps=2, distill_batch_size=1, grpo_steps=1, group_size=2, grpo_batch_size=2,
    )  # fmt: skip
    results = run_real_model(run, ThoughtConfig(r=4, num_global_tokens=4, window=12), Console(quiet=True))
    (log,) = results["phases"]["grpo"]["log"]
    assert log["policy/gap_max"] < TOLERANCE
    assert log["cache/evictions"] > 0
    assert json.loads((tmp_path / "results.json").read_text())["phases"]["distill"]["losses"]
    text = answer(
        prompt="What is 2 + 3?", model=str(folder), adapter=str(tmp_path / "adapter"), max_new_tokens=16,
        temperature=0.0, dtype="float32",
    )  # fmt: skip
    assert text.strip()


def test_a_memory_in_attention_is_the_same_policy_and_learns_to_recall(folder: Path, tmp_path: Path) -> None:
    """After sixteen steps answers that have left the window are far more likely than before; the base is untouched."""
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = tc.ThoughtConfig(memory="attention", window=12, r=1, target_modules=["q_proj"])
    model = peft.get_peft_model(base, config)
    settings = tc.RecallConfig(output_dir=str(tmp_path), num_steps=16, code_length=2, max_evictions=3, log_every=4)
    history = tc.teach_recall(model, tokenizer, settings).history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    print("cross-entropy of the answers, mean of four steps each:", *(f"{loss:.1f}" for loss in losses))
    assert losses[-1] < losses[0] / 2
    assert not any(parameter.count_nonzero() for name, parameter in model.named_parameters() if "lora_B" in name)
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in ("What is 17 + 25?", "Hi")]
    rollouts = tc.rollout(model, prompts, max_new_tokens=30, ignore_eos=True)
    sampled = torch.stack([rollout.logprobs for rollout in rollouts])
    with torch.no_grad():
        replayed = tc.replay(model, rollouts).logprobs
        with model.disable_adapter():
            window_alone = tc.replay(model, rollouts).logprobs
    assert (sampled - replayed).abs().max() < TOLERANCE
    assert (window_alone - replayed).abs().max() > 100 * TOLERANCE
