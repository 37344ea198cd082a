"""Held-out questions that a run asks before and after: which they are, what is asked, and what trains on them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.text_model import save_text_model

import thoughtcache as tc
from thoughtcache.recipes import before_after, real_model
from thoughtcache.recipes.before_after import num_held_out, split_questions
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.example import Example
from thoughtcache_cli import main

ROWS = ["base, full cache", "base, window", "after distillation", "after GRPO"]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    words = random.Random(0)
    rows = [{"question": f"w{3 + n} w{words.randint(3, 9)}", "answer": f"w{3 + n % 4}"} for n in range(12)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_config(user: Path, output: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": str(user / "model"), "dataset": str(user / "questions.jsonl"), "output_dir": str(output),
        "answer_type": "text", "max_new_tokens": 9, "distill_steps": 1, "distill_batch_size": 3, "grpo_steps": 1,
        "group_size": 2, "grpo_batch_size": 2, "save_every": 1, "held_out": 4,
    }  # fmt: skip
    return RunConfig(**{**settings, **changes})


def thought(**changes: Any) -> tc.ThoughtConfig:
    return tc.ThoughtConfig(**{"r": 3, "num_global_tokens": 5, "window": 4, **changes})


def question(number: int) -> tuple[Example, list[int]]:
    return Example(prompt=str(number), answer="1", identifier=str(number)), [number, 7]


def test_the_same_questions_are_held_out_in_any_order_and_of_more_rows() -> None:
    pairs = [question(number) for number in range(40)]
    (trained, own), (held, prompts) = split_questions(*zip(*pairs, strict=True), 6)
    assert (len(trained), len(held)) == (34, 6)
    assert [[int(one.identifier), 7] for one in trained + held] == own + prompts
    turned = pairs[::-1]
    assert {one.identifier for one in split_questions(*zip(*turned, strict=True), 6)[1][0]} == {
        one.identifier for one in held
    }
    fewer = split_questions(*zip(*pairs[:30], strict=True), 6)[1][0]
    assert {one.identifier for one in held if int(one.identifier) < 30} <= {one.identifier for one in fewer}


def test_equal_prompts_stay_together_and_none_may_be_held_out() -> None:
    pairs = [question(number % 5) for number in range(20)]
    (_, trained), (_, held) = split_questions(*zip(*pairs, strict=True), 3)
    assert len(held) == 4
    assert not {tuple(prompt) for prompt in trained} & {tuple(prompt) for prompt in held}
    assert split_questions(*zip(*pairs, strict=True), 0)[1] == ([], [])


def test_a_tenth_is_held_out_and_never_all(user: Path, tmp_path: Path) -> None:
    run = run_config(user, tmp_path, held_out=None)
    assert [num_held_out(run, count) for count in (9, 10, 55, 320, 10_000)] == [0, 1, 5, 32, 32]
    with pytest.raises(ValueError, match="held_out=12 leaves nothing to train on: there are 12 questions"):
        run_real_model(run_config(user, tmp_path, held_out=12), thought(), Console(quiet=True))
    with pytest.raises(ValueError, match="held_out must be at least 0 questions, got -1"):
        run_config(user, tmp_path, held_out=-1)


def test_a_run_asks_four_times_and_trains_on_the_others(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    grpo, distill = real_model._grpo, real_model._distill
    monkeypatch.setattr(
        real_model, "_grpo", lambda *given: (seen.extend(one.prompt[0]["content"] for one in given[3]), grpo(*given))[1]
    )
    lengths: list[int] = []
    monkeypatch.setattr(real_model, "_distill", lambda *given: (lengths.append(len(given[3])), distill(*given))[1])
    console = Console(file=io.StringIO(), width=200)
    found = run_real_model(run_config(user, tmp_path), thought(), console)
    assert list(found["before_after"]) == ROWS
    assert (len(seen), lengths) == (8, [8])
    asked = json.loads((tmp_path / "phases" / "ask-base-window.json").read_text())["answers"]
    assert len(asked) == 4
    assert found["before_after"]["base, full cache"]["evictions_mean"] == 0
    assert found["before_after"]["base, window"]["evictions_mean"] > 0
    assert found["before_after"]["after GRPO"]["less_base_window"]["num_questions"] == 4
    table = (tmp_path / "before_after.md").read_text()
    assert [name for name in ROWS if f"| {name} |" in table] == ROWS
    assert "did it help? n = 4, greedy" in console.file.getvalue()  # type: ignore[attr-defined]


def test_answers_are_those_of_a_rollout(user: Path, tmp_path: Path) -> None:
    run_real_model(run_config(user, tmp_path, distill_steps=0), thought(), Console(quiet=True))
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(user / "model"), tmp_path / "adapter").eval()
    rows = [json.loads(line) for line in (user / "questions.jsonl").read_text().splitlines()]
    texts = {}
    for row in rows:
        prompt = tokenizer(f"Question: {row['question']}\n\nAnswer:")["input_ids"]
        (one,) = tc.rollout(model, [prompt], max_new_tokens=9, temperature=0.0, tokenizer=tokenizer)
        texts.setdefault(row["answer"], []).append(tokenizer.decode(one.token_ids, skip_special_tokens=True))
    asked = json.loads((tmp_path / "phases" / "ask-after-GRPO.json").read_text())["answers"]
    assert all(one["text"] in texts[one["reference"]] for one in asked)


def test_a_run_that_goes_on_asks_nothing_twice_but_after_more_steps(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_real_model(run_config(user, tmp_path, distill_steps=0), thought(), Console(quiet=True))
    asked: list[str] = []
    answers = before_after.BeforeAfter._answers
    monkeypatch.setattr(
        before_after.BeforeAfter,
        "_answers",
        lambda self, name, *given: (asked.append(name), answers(self, name, *given))[1],
    )
    again = run_config(user, tmp_path, distill_steps=0, resume=True)
    run_real_model(again, thought(), Console(quiet=True))
    assert asked == []
    run_real_model(
        run_config(user, tmp_path, distill_steps=0, grpo_steps=2, resume=True), thought(), Console(quiet=True)
    )
    assert asked == ["after GRPO"]


def test_another_answer_to_a_held_out_question_is_other_data(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def split(examples: Any, prompts: Any, count: int) -> Any:
        found = split_questions(examples, prompts, count)
        held.extend(one.messages[0]["content"] for one in found[1][0])
        return found

    monkeypatch.setattr(real_model, "split_questions", split)
    data = tmp_path / "questions.jsonl"
    data.write_text((user / "questions.jsonl").read_text())
    settings: dict[str, Any] = {"dataset": str(data), "distill_steps": 0}
    run_real_model(run_config(user, tmp_path / "run", **settings), thought(), Console(quiet=True))
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    changed = [{**row, "answer": "w9"} if row["question"] == held[0] else row for row in rows]
    assert changed != rows
    data.write_text("".join(json.dumps(row) + "\n" for row in changed))
    with pytest.raises(ValueError, match="data_digest"):
        run_real_model(run_config(user, tmp_path / "run", resume=True, **settings), thought(), Console(quiet=True))


def test_nothing_is_asked_without_questions_or_answers(user: Path, tmp_path: Path) -> None:
    found = run_real_model(run_config(user, tmp_path / "a", held_out=0), thought(), Console(quiet=True))
    assert found["before_after"] is None
    assert not (tmp_path / "a" / "before_after.md").exists()
    found = run_real_model(run_config(user, tmp_path / "b", grpo_steps=0), thought(), Console(quiet=True))
    assert found["before_after"] is None


def test_the_adapter_that_a_run_starts_from_is_asked(user: Path, tmp_path: Path) -> None:
    run_real_model(run_config(user, tmp_path / "first", grpo_steps=0), thought(), Console(quiet=True))
    adapter = str(tmp_path / "first" / "adapter")
    run = run_config(user, tmp_path / "second", distill_steps=0, adapter=adapter)
    found = run_real_model(run, thought(), Console(quiet=True))
    assert list(found["before_after"]) == ["base, full cache", "base, window", "adapter at the start", "after GRPO"]


def test_an_option_without_effect_is_refused(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["train", "--model", str(user / "model"), "--dataset", str(user / "questions.jsonl"), "--held-out", "3"]
    assert main([*given, "--grpo-steps", "0"]) == 2
    assert "--held-out changes nothing with --grpo-steps 0" in capsys.readouterr().err
