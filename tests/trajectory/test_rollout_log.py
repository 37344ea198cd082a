"""Rollouts for people: columns beside TRL's completions, the table that a tracker gets, and a file with a line each."""

from __future__ import annotations

import json
import math
from collections import defaultdict, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trl.trainer import grpo_trainer

import thoughtcache as tc
from support.grpo import base_with_eos, make_trainer, prompts, quick_arguments, word_tokenizer
from support.models import adapt
from thoughtcache.train.rewards import math_correctness, recited_answer
from thoughtcache.train.trl.rollout_log import RolloutLog, logged_rows


def _model() -> Any:
    return adapt(base_with_eos(dtype=torch.float32), evict_fraction=0.4)


def _lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_rollout_of_training_is_a_line(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    # Two steps learn from one generation, which is written once; evaluation is not written.
    settings: dict[str, Any] = {
        "rollouts_file": str(file), "steps_per_generation": 2, "max_steps": 4, "eval_strategy": "steps",
        "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 4,
    }  # fmt: skip
    rows = prompts().map(lambda row: {"answer": "w4"})
    trainer = tc.ThoughtGRPOTrainer(
        _model(),
        [recited_answer, math_correctness],
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, **settings)),
        train_dataset=rows,
        eval_dataset=rows.select(range(2)),
        processing_class=word_tokenizer(),
    )
    trainer.train()
    lines = _lines(file)
    assert [line["step"] for line in lines] == [0] * 8 + [2] * 8
    last = trainer._run.generations["train"].rollouts
    texts = word_tokenizer().batch_decode([row.token_ids for row in last], skip_special_tokens=True)
    assert [line["completion"] for line in lines[8:]] == texts
    assert [line["tokens"] for line in lines[8:]] == [len(row.token_ids) for row in last]
    assert [line["evictions"] for line in lines[8:]] == [len(row.evictions) for row in last]
    assert [line["finish_reason"] for line in lines[8:]] == [row.finish_reason for row in last]
    assert any(line["evictions"] for line in lines)
    assert all(line["prompt"] in rows["prompt"] for line in lines)
    assert all(set(line["rewards"]) == {"recited_answer", "math_correctness"} for line in lines)
    assert {line["recited_answer/reason"] for line in lines} == {"no_answer"}
    assert all(isinstance(line["math_correctness/reason"], str) for line in lines)
    assert "links" not in lines[0]


def test_a_tracker_gets_the_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL logs a table of completions to trackio; ours has more columns. A double stands for trackio."""
    logged: list[dict[str, Any]] = []
    double = SimpleNamespace(log=logged.append, Table=lambda dataframe: dataframe)
    monkeypatch.setattr(grpo_trainer, "trackio", double, raising=False)
    trainer = make_trainer(_model(), tmp_path, max_steps=1, log_completions=True, num_completions_to_print=0)
    trainer.args.report_to = ["trackio"]  # its callback, which wants trackio itself, is not there
    trainer.train()
    table = logged[0]["completions"]
    rollouts = trainer._run.generations["train"].rollouts
    assert len(table) == 4
    assert list(table["evictions"]) == [len(row.evictions) for row in rollouts]
    assert list(table.columns) == ["step", "prompt", "completion", "even_words", "evictions", "advantage"]


def test_a_chain_says_how_many_links_it_has(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    thinking = tc.MarkovianThinking(context=8, keep_first=1, keep_last=1, max_links=4)
    trainer = tc.ThoughtGRPOTrainer(
        _model(),
        lambda completions, **columns: [float(len(text)) for text in completions],
        tc.ThoughtGRPOConfig(**quick_arguments(tmp_path, max_steps=1, rollouts_file=str(file))),
        train_dataset=prompts(),
        processing_class=word_tokenizer(),
        thinking=thinking,
    )
    trainer.train()
    chains = trainer._run.generations["train"].rollouts
    assert [line["links"] for line in _lines(file)] == [len(chain.links) for chain in chains]
    assert max(len(chain.links) for chain in chains) > 1


def test_a_run_that_goes_on_writes_no_step_twice(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "rollouts.jsonl"
    log = RolloutLog(file)
    for step in (0, 1, 2):
        log.add(step, [{"completion": f"first {step}"}])
    file.write_text(file.read_text() + '{"step": 0, "comp')
    on = RolloutLog(file)
    on.add(1, [{"completion": "again 1"}])
    on.add(2, [{"completion": "again 2"}])
    assert [(line["step"], line["completion"]) for line in _lines(file)] == [
        (0, "first 0"), (1, "again 1"), (2, "again 2"),
    ]  # fmt: skip
    RolloutLog(file).add(0, [{"completion": "anew"}])
    assert [line["completion"] for line in _lines(file)] == ["anew"]


def test_rows_of_the_logs_by_hand(tmp_path: Path) -> None:
    logs = {
        "prompt": deque(["p0", "p1", "p2"]),
        "completion": deque(["c0", "c1", "c2"]),
        "advantages": deque([0.0, 0.5, -0.5]),
        "rewards": defaultdict(deque, right=deque([1.0, 0.0, math.nan])),
        "extra": {"tokens": deque([7, 8, 9])},
    }
    log = RolloutLog(tmp_path / "rollouts.jsonl")
    log.add(7, logged_rows(logs, 2))
    assert _lines(log.path) == [
        {"step": 7, "prompt": "p1", "completion": "c1", "rewards": {"right": 0.0}, "advantage": 0.5, "tokens": 8},
        {"step": 7, "prompt": "p2", "completion": "c2", "rewards": {"right": None}, "advantage": -0.5, "tokens": 9},
    ]


def test_rewards_say_why() -> None:
    seen: dict[str, list[Any]] = {}
    rewards = recited_answer(["#12", "#13", "12"], ["12"] * 3, log_extra=seen.__setitem__)
    assert rewards == [1.0, 0.0, 0.0]
    assert seen == {
        "recited_answer/reason": ["literal", "different", "no_answer"],
        "recited_answer/answer": ["12", "13", None],
    }


def test_what_json_lacks_is_written_as_null_or_text_and_no_column_hides_the_step(tmp_path: Path) -> None:
    log = RolloutLog(tmp_path / "rollouts.jsonl")
    log.add(
        3, [{"step": 99, "n": np.int64(4), "x": float("nan"), "all": [torch.tensor(2.0), (1, None)], "who": Path("a")}]
    )
    (line,) = _lines(log.path)
    assert line == {"step": 3, "n": 4, "x": None, "all": [2.0, [1, None]], "who": "a"}


def test_a_second_training_begins_the_file_anew(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    trainer = make_trainer(_model(), tmp_path, rollouts_file=str(file), max_steps=1)
    trainer.train()
    count = len(_lines(file))
    trainer.train()
    assert len(_lines(file)) == count > 0
