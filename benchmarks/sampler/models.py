"""Models, prompts and options that the measurements share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import peft
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

import thoughtcache as tc
from benchmarks.sampler.case import Case
from thoughtcache.tasks.embedded.reasoner import load_reasoner

LORA_B_STD = 0.02
ROOM = 2**20
FIRST_PLAIN_TOKEN = 4
"""Below are the special tokens of both models."""


def load_base(case: Case) -> PreTrainedModel:
    """The base in fp32; it declares no end of sequence and no sampling defaults, so that lengths are what we ask for.

    Without a window its positions are unbounded: speed and memory do not depend on whether they were trained.
    """
    if case.model == "tiny":
        base: Any = load_reasoner()[0]
    elif case.folder is None:
        raise ValueError("this case needs a model; name its folder with --model")
    else:
        layers = {} if case.layers is None else {"num_hidden_layers": case.layers}
        base = AutoModelForCausalLM.from_pretrained(case.folder, dtype=torch.float32, **layers)
    base.generation_config = GenerationConfig(pad_token_id=base.config.pad_token_id or 0)
    if case.window is None:
        base.config.max_position_embeddings = ROOM
    return base.to(case.device).eval()


def load_tokenizer(case: Case) -> Any:
    """Of the base."""
    return load_reasoner()[1] if case.model == "tiny" else AutoTokenizer.from_pretrained(case.folder)


def thought_config(case: Case, **changes: Any) -> tc.ThoughtConfig:
    """The adapter that is measured."""
    options = {
        "r": case.rank, "lora_alpha": case.rank, "num_global_tokens": case.rank, "window": case.window,
        "state_rule": case.rule, "positions": case.positions,
    }  # fmt: skip
    return tc.ThoughtConfig(**{**options, **changes})


def thought_model(case: Case, base: PreTrainedModel | None = None, **changes: Any) -> Any:
    """A base with our adapter, nothing of it zero."""
    torch.manual_seed(0)
    return randomised(peft.get_peft_model(base or load_base(case), thought_config(case, **changes)))


def lora_config(case: Case) -> peft.LoraConfig:
    """PEFT's own LoRA of the same rank on the same linears."""
    return peft.LoraConfig(
        r=case.rank, lora_alpha=case.rank, target_modules=tc.ThoughtConfig().target_modules, task_type="CAUSAL_LM"
    )


def lora_model(case: Case) -> Any:
    """A base with `lora_config`."""
    torch.manual_seed(0)
    return randomised(peft.get_peft_model(load_base(case), lora_config(case)))


def randomised(model: nn.Module) -> nn.Module:
    """B starts at zero, which would hide everything behind it."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * LORA_B_STD)
    return model.eval()


def make_prompts(base: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Random prompts of these lengths, all different from the first few tokens on."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(FIRST_PLAIN_TOKEN, base.config.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]


def uneven_lengths(batch: int, prompt: int) -> list[int]:
    """From half to one and a half times `prompt`, none like its neighbour."""
    return [max(1, prompt // 2 + (7 * row) % (prompt + 1)) for row in range(batch)]


def rollout_options(case: Case) -> dict[str, Any]:
    """Of `rollout`. `compile` is named only where it is asked for."""
    options: dict[str, Any] = {
        "max_new_tokens": case.tokens, "window": case.window, "ignore_eos": True, "anchors": case.anchors,
    }  # fmt: skip
    if case.compile:
        options["compile"] = True
    return options


def sample_generate(model: Any, prompts: Sequence[Sequence[int]], tokens: int, **options: Any) -> torch.Tensor:
    """`generate` of transformers, sampling from the whole distribution at temperature 1; prompts on the right."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, **options}
    with torch.no_grad():
        generated: torch.Tensor = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens, **options)
    return generated[:, width:]


def geometric_head(vocabulary: int, hidden_size: int, stop_token: int, mean_length: int) -> nn.Linear:
    """A head that ignores what it reads: the stop token has probability `1 / mean_length`, all others share the rest.

    Lengths are then geometric, and a function of the seeds alone; the price of a token is that of any other head.
    """
    head = nn.Linear(hidden_size, vocabulary)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    with torch.no_grad():
        head.bias[stop_token] = math.log((vocabulary - 1) / (mean_length - 1))
    return head
