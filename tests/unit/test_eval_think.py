"""Think@n: which answers are chosen, that they are those of a plain run, what it costs, and that it goes on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
from rich.console import Console

import thoughtcache as tc
from support.text_model import save_questions, save_text_model
from thoughtcache.evaluation.generations import Generation, by_question, read_generations
from thoughtcache.evaluation.record_file import read_records
from thoughtcache.evaluation.thinking.deep_tokens import deep_tokens
from thoughtcache.evaluation.thinking.definition import DeepThinking
from thoughtcache.evaluation.thinking.scores import think_scores
from thoughtcache.evaluation.thinking.selection import Prefix, ThinkAtN, kept_samples
from thoughtcache.evaluation.votes import majority_at_k, vote_groups
from thoughtcache.policy.other_cache import changes_nothing
from thoughtcache.recipes.evaluate import run as eval_run
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.evaluate.think import PREFIXES
from thoughtcache.recipes.load_model import load_base, load_tokenizer
from thoughtcache_cli import main

WORKER = Path(__file__).parents[1] / "support" / "eval_worker.py"
ANY = DeepThinking()
CHOICE = {"select": "think@n", "think_prefix": 10, "think_threshold": 0.05, "think_depth": 0.7}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    model = save_text_model(folder / "model", num_hidden_layers=4)
    questions = save_questions(folder / "test.jsonl", 3)
    return {
        "suite": (f"own={questions}",), "model": str(model), "samples": 5, "temperature": 1.0, "max_new_tokens": 30,
        "window": 6, "evict_fraction": 0.5, "answer_type": "text",
    }  # fmt: skip


def evaluated(settings: dict[str, Any], folder: Path, **changes: Any) -> tuple[dict[str, Any], list[Generation]]:
    result = run_eval(EvalRun(**{**settings, "output_dir": str(folder), **changes}), Console(quiet=True))
    return result, read_generations(folder / GENERATIONS)


@pytest.fixture(scope="module")
def plain(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Generation]:
    return {one.key: one for one in evaluated(settings, tmp_path_factory.mktemp("plain"))[1]}


def test_the_chosen_answers_are_those_of_a_plain_run(settings, plain, tmp_path):
    result, found = evaluated(settings, tmp_path, **CHOICE, batch_size=4)
    prefixes = read_records(tmp_path / PREFIXES, Prefix)
    assert len(prefixes) == 15
    assert len(found) == 9, "3 of 5 are kept: half of them, rounded up"
    assert all(plain[one.key] == one for one in found)
    assert any(len(one.evictions) > 2 for one in found)
    assert len({prefix.ratio for prefix in prefixes}) > 3
    for question, own in by_question(found).items():
        ratios = sorted((prefix.ratio for prefix in prefixes if prefix.question == question), reverse=True)
        taken = [prefix.ratio for prefix in prefixes if prefix.key in {one.key for one in own}]
        assert sorted(taken, reverse=True) == ratios[:3]
    ended = [prefix for prefix in prefixes if prefix.finish_reason == "stop"]
    assert ended, "some answers end within their beginning"
    assert all(len(prefix.token_ids) == plain[prefix.key].num_tokens for prefix in ended)
    think, kept = result["think"]["own"], {one.key for one in found}
    spent = sum(plain[one].num_tokens for one in kept)
    spent += sum(len(prefix.token_ids) for prefix in prefixes if prefix.key not in kept)
    assert think["tokens"] == spent / 3
    assert result["last_call"]["tokens"] == spent
    assert think["is_estimate"]
    assert think["majority_tokens"] == 5 * sum(plain[one].num_tokens for one in kept) / 9
    assert think["tokens_again"] == sum(10 for p in prefixes if p.key in kept and p.finish_reason != "stop") / 3


def test_the_ratio_is_that_of_the_sampled_policy(settings, plain, tmp_path):
    evaluated(settings, tmp_path, **CHOICE)
    config = changes_nothing(window=6, evict_fraction=0.5)
    model = peft.get_peft_model(load_base(settings["model"], "float32"), config).eval()
    _, tokenizer = load_tokenizer(settings["model"])
    definition = DeepThinking(threshold=0.05, depth=0.7)
    from thoughtcache.recipes.evaluate.questions import read_questions, tasks_of

    run = EvalRun(**settings, output_dir=str(tmp_path))
    tasks, _ = tasks_of(run, read_questions(run, print), tokenizer, print)
    seeds = [plain[task.key].seed for task in tasks]
    rollouts = tc.rollout(
        model, [t.prompt_ids for t in tasks], max_new_tokens=30, seed=seeds, tokenizer=tokenizer, window=6
    )
    flags = deep_tokens(model, rollouts, definition, num_tokens=10)
    by_key = {prefix.key: prefix for prefix in read_records(tmp_path / PREFIXES, Prefix)}
    assert [by_key[task.key].num_deep for task in tasks] == [sum(row) for row in flags]
    assert [by_key[task.key].token_ids for task in tasks] == [one.token_ids[:10] for one in rollouts]


def test_the_rest_can_be_finished_later(settings, plain, tmp_path, monkeypatch):
    short, _ = evaluated(settings, tmp_path, **CHOICE)
    whole, found = evaluated(settings, tmp_path, **CHOICE, think_finish_rest=True, resume=True)
    assert {one.key: one for one in found} == plain
    assert whole["last_call"]["answers"] == 6
    before, think = short["think"]["own"], whole["think"]["own"]
    assert not think["is_estimate"]
    assert think["majority_tokens"] == sum(one.num_tokens for one in plain.values()) / 3
    assert {name: think[name] for name in ("accuracy", "tokens", "kept_right", "ratio")} == {
        name: before[name] for name in ("accuracy", "tokens", "kept_right", "ratio")
    }
    majorities = [
        majority_at_k(vote_groups(own), [one.correct for one in own], 5) for own in by_question(plain.values()).values()
    ]
    assert think["majority"]["value"] == sum(majorities) / 3
    assert think["majority"] == whole["suites"]["own"]["majority_at"]["5"], "with the same interval"
    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "sample_answers", None)
        again, _ = evaluated(settings, tmp_path, **CHOICE, resume=True)
    assert again["think"] == short["think"]
    with pytest.raises(ValueError, match=r"other settings \(prefix_tokens"):
        evaluated(settings, tmp_path, **{**CHOICE, "think_prefix": 11}, resume=True)


def test_killed_while_it_begins_or_finishes_it_gives_the_same_table(settings, tmp_path):
    for watched in (PREFIXES, GENERATIONS):
        whole, found = evaluated(settings, tmp_path / f"whole-{watched}", **CHOICE)
        killed = {**settings, **CHOICE, "batch_size": 2, "output_dir": str(tmp_path / watched)}
        file = tmp_path / "settings.json"
        file.write_text(json.dumps({"settings": killed, "most_bytes": 900, "kills": 3, "seed": 2, "file": watched}))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, str(WORKER), str(file)], capture_output=True, check=True, env=environment)
        results = json.loads((tmp_path / watched / "results.json").read_text())
        assert results["think"] == json.loads(json.dumps(whole["think"]))
        assert results["suites"] == json.loads(json.dumps(whole["suites"]))
        by_key = {one.key: one for one in found}
        assert {one.key: one for one in read_generations(tmp_path / watched / GENERATIONS)} == by_key


def test_the_command_shows_both_majorities_and_their_tokens(settings, tmp_path, capsys):
    options = ["--model", settings["model"], "--samples", "4", "--max-new-tokens", "16", "--think-prefix", "4"]
    command = ["eval", "--suite", settings["suite"][0], *options, "--output-dir", str(tmp_path / "a")]
    assert main([*command, "--select", "think@n", "--think-finish-rest"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 4" in shown
    assert "sampled for think@n" in shown
    assert "| think@n (95 %) |" in (tmp_path / "a" / "table.md").read_text()
    assert main(command) == 2
    assert "--think-prefix changes nothing without --select think@n, which" in capsys.readouterr().err


def prefix(sample: int, num_deep: int, *, question: str = "q", length: int = 10) -> Prefix:
    return Prefix(
        question=question, sample=sample, seed=0, token_ids=[1] * length, finish_reason="length", evictions=[],
        num_deep=num_deep,
    )  # fmt: skip


def answer(sample: int, text: str, *, correct: bool = False, length: int = 100, question: str = "q") -> Generation:
    return Generation(
        suite="s", question=question, sample=sample, seed=0, text=text, num_tokens=length, finish_reason="stop",
        evictions=[], correct=correct, reason="exact", extracted=text, reference="r", kind="text",
    )  # fmt: skip


def test_who_is_kept_by_hand():
    found = [prefix(0, 3), prefix(1, 5), prefix(2, 2, length=4), prefix(3, 3), prefix(0, 0, question="other")]
    found += [prefix(1, 0, question="other"), prefix(2, 1, question="other"), prefix(3, 0, question="other")]
    # Ratios .3, .5, .5, .3 and 0, 0, .1, 0: of equal ones the earlier.
    assert kept_samples(found, ThinkAtN(definition=ANY)) == {("q", 1), ("q", 2), ("other", 2), ("other", 0)}
    one = ThinkAtN(definition=ANY, keep=0.1)
    assert kept_samples(found, one) == {("q", 1), ("other", 2)}
    sizes = {keep: [ThinkAtN(definition=ANY, keep=keep).num_kept(n) for n in (2, 3, 5, 48)] for keep in (0.1, 0.5, 0.9)}
    assert sizes == {0.1: [1, 1, 1, 5], 0.5: [1, 2, 3, 24], 0.9: [1, 2, 4, 43]}


def test_scores_by_hand():
    begun = [prefix(0, 5), prefix(1, 4), prefix(2, 3), prefix(3, 0)]
    answers = [answer(0, "b", length=60), answer(1, "a", correct=True), answer(2, "a", correct=True)]
    answers.append(answer(3, "b", length=20))
    kept = {("q", 0), ("q", 1), ("q", 2)}
    whole = think_scores(begun, answers, kept, {"q": 7})
    assert (whole.accuracy.value, whole.tokens, whole.majority_tokens) == (1.0, 270.0, 280.0)
    assert whole.majority is not None
    assert whole.majority.value == 0.5, "a tie"
    assert whole.minus_majority is not None
    assert whole.minus_majority.difference == 0.5
    assert (whole.kept_right.value, whole.rest_right.value, whole.ratio) == (2 / 3, 0.0, 0.3)
    assert (whole.tokens_again, whole.tokens_looked_at) == (30.0, 4 * 16)
    half = think_scores(begun, answers[:3], kept, {"q": 7})
    assert (half.majority, half.minus_majority, half.is_estimate) == (None, None, True)
    assert half.majority_tokens == pytest.approx(4 * 260 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"select": "best"}, "select"),
        ({"select": "think@n", "samples": 1}, "chooses among several samples, got samples=1"),
        ({"select": "think@n", "samples": None, "temperature": 0.0}, "chooses among several samples"),
        ({"select": "think@n", "think_prefix": 30}, "must be below max_new_tokens=30"),
        ({"select": "think@n", "think_keep": 1.0}, "1 would choose nothing"),
        ({"select": "think@n", "think_threshold": 2.0}, "threshold must be between 0 and 1"),
        (
            {"select": "think@n", "thinking": "markovian"},
            "select=think@n chooses .* thinking=markovian, a beginning is not defined; leave out one of them",
        ),
        ({"think_depth": 0.9}, 'think_depth=0.9 changes nothing without select="think@n"'),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, changes, message):
    with pytest.raises(ValueError, match=message):
        EvalRun(**{**settings, "think_prefix": 10 if "select" in changes else 50, **changes})


def test_the_published_number_of_samples_is_the_default():
    run = EvalRun(suite=("aime24",), model="m", select="think@n")
    from thoughtcache.evaluation.suites import SUITES

    assert run.asked(SUITES["aime24"]) == (48, 0.6, 3072)
    assert run.asked(SUITES["gsm8k"]) == (48, 0.6, 3072)
