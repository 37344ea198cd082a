"""Folders as a user has them: a small random model with its tokenizer, and a file of questions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tests.support.grpo import BOS, EOS, PAD, base_with_eos, word_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from thoughtcache.tasks.recall.passcode import DIGITS, WORDS

NUM_ROWS = 6


def save_text_model(folder: Path, **overrides: Any) -> Path:
    """A random Llama in float32 with a tokenizer of words; unknown words become padding tokens."""
    base_with_eos(dtype=torch.float32, **overrides).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_passcode_model(folder: Path) -> Path:
    """The same with a tokenizer that knows the words and digits of passcodes."""
    save_text_model(folder, vocab_size=64)
    special = ["<pad>", "<bos>", "<eos>", "[UNK]", "The", "secret", "words", "digits", "are", "."]
    known = {word: number for number, word in enumerate([*special, *WORDS, *DIGITS])}
    words = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    tokenizer.save_pretrained(folder)
    return folder


def save_unsupported_model(folder: Path) -> Path:
    """A random GPT-2 with the same tokenizer: no rotary positions, fused projections."""
    config = GPT2Config(
        vocab_size=32, n_positions=64, n_embd=8, n_layer=1, n_head=2, pad_token_id=PAD, bos_token_id=BOS,
        eos_token_id=EOS,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


def save_questions(file: Path, num_rows: int = NUM_ROWS) -> Path:
    """Questions of one to four known words, with answers that a random model does not give."""
    rows = [
        {"question": " ".join(f"w{3 + (5 * row + 3 * word) % 26}" for word in range(1 + row % 4)), "answer": str(row)}
        for row in range(num_rows)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def save_text(file: Path, num_words: int) -> Path:
    """A text of words that the passcode model knows."""
    words = ["The", "secret", "words", "are", "apple", ".", "The", "digits", "are", "not", "secret", "."]
    file.write_text(" ".join(words[(7 * index) % len(words)] for index in range(num_words)))
    return file
