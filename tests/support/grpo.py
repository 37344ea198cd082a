"""What the trainer's tests share: a tokenizer of words, a toy data set and reward, a configuration that is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import thoughtcache as tc
from support.models import VOCABULARY, tiny_base

PAD, BOS, EOS = 0, 1, 2


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: `<pad> <bos> <eos>` and `w3` ... up to the tiny models' vocabulary."""
    words = ["<pad>", "<bos>", "<eos>", *(f"w{index}" for index in range(3, VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


def prompts(count: int = 8) -> Dataset:
    """Prompts of one to four words."""
    texts = [" ".join(f"w{3 + (5 * row + 3 * word) % 26}" for word in range(1 + row % 4)) for row in range(count)]
    return Dataset.from_dict({"prompt": texts})


def even_words(completions: list[str], **columns: Any) -> list[float]:
    """Share of words with an even number, so that rewards differ within a group."""
    numbers = [[int(word[1:]) for word in text.split() if word[0] == "w"] for text in completions]
    return [sum(n % 2 == 0 for n in row) / max(len(row), 1) for row in numbers]


def base_with_eos(**arguments: Any) -> PreTrainedModel:
    """A tiny base that stops at the tokenizer's end-of-sequence token."""
    return tiny_base(**{"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, **arguments})


def quick_arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings of a run of three steps of four rollouts on the CPU."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 14,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 7,
        **changes,
    }


def make_trainer(model: Any, folder: Path, *, peft_config: Any = None, **changes: Any) -> tc.ThoughtGRPOTrainer:
    """A trainer on the toy task."""
    return tc.ThoughtGRPOTrainer(
        model,
        even_words,
        tc.ThoughtGRPOConfig(**quick_arguments(folder, **changes)),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
        peft_config=peft_config,
    )
