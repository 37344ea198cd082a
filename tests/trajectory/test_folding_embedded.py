"""Step folding from end to end on the embedded reasoner: a cold start on folded links, then GRPO in turns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from transformers import LlamaForCausalLM

import thoughtcache as tc
from support.compare import TOLERANCE
from support.grpo import quick_arguments
from thoughtcache.chains.folding import Keep
from thoughtcache.chains.given import split_trace
from thoughtcache.tasks.embedded.build_reasoner import trace_loss
from thoughtcache.tasks.embedded.chains import STEP_CLOSING, STEP_OPENING
from thoughtcache.tasks.embedded.problem import Problem, sample_problems
from thoughtcache.tasks.embedded.reasoner import EOS, VOCABULARY, encode_prompt, encode_trace, load_reasoner

FOLDING = tc.StepFolding(
    opening=[VOCABULARY[STEP_OPENING]],
    closing=[VOCABULARY[STEP_CLOSING]],
    max_steps=6,
    step_tokens=16,
    summary_tokens=2,
    unfold_tokens=70,
)


def links_of_problem(tokenizer: Any, problem: Problem) -> list[tuple[list[int], list[int]]]:
    """(prompt, tokens) of every link of its marked trace."""
    question, trace = encode_prompt(tokenizer, problem.prompt), encode_trace(tokenizer, problem.trace)
    pairs, end = split_trace(FOLDING, question, trace)
    assert end == "stop"
    return pairs


def cold_start(model: LlamaForCausalLM, tokenizer: Any, num_steps: int) -> float:
    """Cross-entropy on folded links; the last loss. It teaches where markers stand, and hardly what the results are."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.0)
    loss = torch.zeros(())
    for step in range(num_steps):
        by_link: dict[int, list[tuple[list[int], list[int]]]] = {}
        for problem in sample_problems("chains", 12, "train", 1000 + step, step_markers=True):
            for number, pair in enumerate(links_of_problem(tokenizer, problem)):
                by_link.setdefault(number, []).append(pair)
        losses = [
            trace_loss(model, torch.tensor([prompt + link for prompt, link in rows]), len(rows[0][0]))
            for rows in by_link.values()
        ]
        optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 5) * (1 - step / num_steps)
        optimizer.zero_grad()
        loss = torch.stack(losses).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return loss.item()


def right_digits(completions: Sequence[str], answer: Sequence[str], **columns: Any) -> list[float]:
    """Share of the recited digits that are right; a start of seconds gets no whole answer right."""
    recited = [text.rpartition("#")[2] for text in completions]
    return [
        sum(a == b for a, b in zip(found, wanted, strict=False)) / len(wanted)
        for found, wanted in zip(recited, answer, strict=True)
    ]


def test_a_marked_trace_folds_into_its_results() -> None:
    (problem,) = sample_problems("chains", 1, "val", 0, step_markers=True)
    tokenizer = load_reasoner()[1]
    pairs = links_of_problem(tokenizer, problem)
    texts = [(tokenizer.decode(prompt), tokenizer.decode(link)) for prompt, link in pairs]
    question = f"<bos>{problem.prompt}"
    first, second, third, fourth = problem.answer
    assert [prompt for prompt, _ in texts] == [
        question,
        f"{question}={first};",
        f"{question}={first};={second};",
        f"{question}={first};={second};={third};",
        f"{question}={first};={second};={third};={fourth};",
    ]
    assert texts[-1][1] == f"#{problem.answer}<eos>"
    assert "".join(link for _, link in texts) == f"{problem.trace}<eos>"


@pytest.mark.parametrize("keep", ["encoded", "written"])
def test_fold_and_unfold_train_in_turns(keep: Keep, tmp_path: Path) -> None:
    folding = replace(FOLDING, keep=keep)
    base, tokenizer = load_reasoner()
    assert cold_start(base, tokenizer, 36) < 1.3
    torch.manual_seed(0)
    model = peft.get_peft_model(base.double().eval(), tc.ThoughtConfig(r=4, num_global_tokens=4, window=6))
    problems = sample_problems("chains", 16, "train", 0)
    rows = [{"prompt": problem.prompt, "answer": problem.answer} for problem in problems]
    settings = quick_arguments(
        tmp_path,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=70,
        max_steps=4,
        learning_rate=1e-3,
        loss_type="grpo",
        scale_rewards="none",
    )
    trainer = tc.ThoughtGRPOTrainer(
        model,
        tc.folding_reward(right_digits, folding, [VOCABULARY[EOS]]),
        tc.ThoughtGRPOConfig(**settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        thinking=[folding.unfolded(), folding],
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4
    assert [entry["chains/links"] > 1.5 for entry in logged] == [False, True, False, True]
    assert all(entry["cache/evictions"] > 0 for entry in logged), "a window of six inside links of up to sixteen"
    assert max(entry["policy/gap_max"] for entry in logged) < TOLERANCE[torch.float64]
    assert any(entry["reward"] > 0 for entry in logged[1::2])
    assert all(math.isfinite(entry["loss"]) for entry in logged)
    assert any(entry["grad_norm"] > 0 for entry in logged[1::2])
