"""Chains on a real pre-trained model: sampling and replay agree, and GRPO with folding runs for a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from support.grpo import quick_arguments
from support.models import randomise_adapter
from support.smollm2 import smollm2_folder
from thoughtcache.chains.chain import links_of
from thoughtcache.tasks.chat import encode_prompt

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path` was renamed:UserWarning"),
]
TOLERANCE = 1e-4  # fp32 with anchors; a 49k vocabulary and 30 layers round more than the tiny models
QUESTIONS = ["Name three colours and say why you like each of them.", "What is 17 + 25? Explain."]
MARKOVIAN = tc.MarkovianThinking(context=24, keep_first=4, keep_last=8, max_links=3)


@pytest.fixture(scope="module")
def folder() -> Path:
    return smollm2_folder()


def load(folder: Path) -> tuple[Any, Any]:
    base, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    model = peft.get_peft_model(base, tc.ThoughtConfig(r=4, num_global_tokens=4, window=8))
    return model.eval(), tokenizer


def sentences(tokenizer: Any) -> tc.StepFolding:
    """What the model writes without training for it: a sentence with exactly one "the" is a step."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    return tc.StepFolding(
        opening=ids(" the"), closing=ids("."), separator=ids("\n"), max_steps=4, step_tokens=30, unfold_tokens=60
    )


@pytest.mark.parametrize("method", ["markovian", "folding"])
def test_sampling_and_replay_agree(folder: Path, method: str) -> None:
    model, tokenizer = load(folder)
    randomise_adapter(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(0.05)  # strong enough to be seen, weak enough to leave a language
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS * 2]
    thinking = MARKOVIAN if method == "markovian" else sentences(tokenizer)
    chains = tc.rollout_chains(model, prompts, thinking, tokenizer=tokenizer, seed=1)
    assert max(len(chain.links) for chain in chains) > 1
    assert any(link.evictions for link in links_of(chains))
    with torch.no_grad():
        replayed = tc.replay_chains(model, chains).logprobs
        naive = tc.naive_chain_logprobs(model, chains[:1]).logprobs
    sampled = torch.nn.utils.rnn.pad_sequence([chain.logprobs for chain in chains], batch_first=True)
    print(
        f"largest difference {(replayed - sampled).abs().max():.1e}, {(naive[0] - chains[0].logprobs).abs().max():.1e}"
    )
    assert (replayed - sampled).abs().max() < TOLERANCE
    assert (naive[0] - chains[0].logprobs).abs().max() < TOLERANCE


def test_grpo_folds_and_unfolds_for_a_few_steps(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load(folder)
    folding = sentences(tokenizer)

    def vowels(completions: list[str], **columns: Any) -> list[float]:
        return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]

    settings = quick_arguments(
        tmp_path, max_completion_length=60, learning_rate=1e-4, loss_type="grpo", scale_rewards="none", max_steps=2
    )
    prompts = [encode_prompt(tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
    trainer = tc.ThoughtGRPOTrainer(
        model,
        vowels,
        tc.ThoughtGRPOConfig(**settings),
        train_dataset=Dataset.from_list([{"prompt": tokenizer.decode(ids)} for ids in prompts]),
        processing_class=tokenizer,
        thinking=[folding.unfolded(), folding],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert max(entry["policy/gap_max"] for entry in logged) < TOLERANCE
    assert [entry["chains/links"] == 1 for entry in logged[::2]] == [True]
    assert max(entry["chains/links"] for entry in logged[1::2]) > 1
    assert all(entry["grad_norm"] > 0 for entry in logged)
