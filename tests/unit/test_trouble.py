"""What a run of GRPO says that went wrong: every sentence is provoked, and a healthy run says nothing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model

import thoughtcache as tc
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.trouble import troubles

HEALTHY: dict[str, Any] = {
    "reward": 0.4, "frac_reward_zero_std": 0.5, "completions/clipped_ratio": 0.1, "answers/literal": 3.0,
    "answers/different": 4.0, "answers/no_answer": 1.0, "policy/gap_outside_clip": 0.0, "policy/gap_max": 1e-5,
    "state/change": 0.3,
}  # fmt: skip


def test_a_healthy_run_says_nothing() -> None:
    assert troubles([HEALTHY, {**HEALTHY, "frac_reward_zero_std": 1.0}]) == []
    assert troubles([{name: value for name, value in HEALTHY.items() if name != "state/change"}]) == []
    assert troubles([]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frac_reward_zero_std": 1.0}, "in all 2 steps the completions of each question had the same reward (mean"),
        ({"completions/clipped_ratio": 0.9}, "90 % of the completions were cut at --max-new-tokens"),
        ({"answers/unreadable": 9.0}, "in 59 % of the completions no answer was found (no_answer, unreadable)"),
        ({"state/change": 0.004}, "the state changes by 0.4 % of its norm"),
        ({"policy/gap_outside_clip": 0.02, "policy/gap_max": 0.5}, "2.0 % of the tokens were scored so far"),
    ],
)  # fmt: skip
def test_each_trouble_has_its_sentence(change: dict[str, float], said: str) -> None:
    (sentence,) = troubles([{**HEALTHY, **change}, {**HEALTHY, **change}])
    assert said in sentence


def test_a_run_prints_them(tmp_path: Path) -> None:
    save_text_model(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl")
    run = RunConfig(
        model=str(tmp_path / "model"), dataset=str(tmp_path / "questions.jsonl"), output_dir=str(tmp_path / "run"),
        max_new_tokens=9, distill_steps=0, grpo_steps=1, group_size=2, grpo_batch_size=2,
    )  # fmt: skip
    console = Console(file=io.StringIO(), width=300)
    run_real_model(run, tc.ThoughtConfig(r=3, num_global_tokens=5, window=4), console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "warning: in all 1 steps the completions of each question had the same reward" in shown
