"""`thoughtcache generate --questions`: what is refused leaves older answers, and what makes them other ones is seen."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from thoughtcache.cache.eviction.base import EvictionPolicy
from thoughtcache.cache.eviction.table import EVICTION_POLICIES
from thoughtcache.cache.eviction.view import EvictionView
from thoughtcache.recipes.generate.asking import Asking
from thoughtcache.recipes.generate.many import Questions, answer_questions, question_seeds
from thoughtcache_cli import main

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl", 3)
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    config = tc.ThoughtConfig(r=4, num_global_tokens=4, window=4, init_lora_weights=False)
    peft.get_peft_model(base, config).save_pretrained(folder / "adapter")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "place"))


def command(place: Path, *more: str) -> list[str]:
    return [
        "generate", "--model", str(place / "model"), "--adapter", str(place / "adapter"), "--questions",
        str(place / "questions.jsonl"), "--output", str(place / "out" / "a.jsonl"), "--max-new-tokens", "6", *more,
    ]  # fmt: skip


def answers(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "out" / "a.jsonl").read_text().splitlines()]


@dataclass(frozen=True, kw_only=True)
class Unscored(EvictionPolicy):
    """As a package may have it: the oldest leave, chosen anew."""

    name: ClassVar[str] = "unscored"
    chooses: ClassVar[bool] = True

    def select(self, view: EvictionView) -> Any:
        raise AssertionError("nothing is sampled")


LINKS = ["--thinking", "markovian", "--thinking-option", "keep_last=2"]
# options, and what the error says of them
REFUSED = {
    "a filter of greedy answers": (["--top-p", "0.9"], "--temperature 0"),
    "a share beyond one": (["--top-p", "2", "--temperature", "1"], "--top-p must be in"),
    "no temperature": (["--temperature", "nan"], "--temperature must be"),
    "a seed beyond the generator": (["--temperature", "1", "--seed", str(2**50)], "seed must lie between"),
    "a stop text of no character": (["--stop", ""], "at least one character"),
    "answers that begin with more than they have": (["--min-new-tokens", "7"], "at most --max-new-tokens 6"),
    "no tokens": (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
    "answers beyond the positions": (["--max-new-tokens", "9999999"], "positions of the model"),
    "links beyond the positions": (
        [*LINKS, "--thinking-option", "context=999999", "--max-new-tokens", "9999999"], "positions of the model"),
    "links of which there is one": ([*LINKS, "--thinking-option", "context=4096"], "inside the first context"),
    "kept keys that the policy lets go": (
        ["--thinking", "folding", "--thinking-option", "keep=written", "--thinking-option", "opening=w5",
         "--thinking-option", "closing=w6", "--eviction", Unscored.name], "cannot leave last"),
    "kept keys under other budgets": (
        ["--thinking", "folding", "--thinking-option", "keep=written", "--thinking-option", "opening=w5",
         "--thinking-option", "closing=w6", "--eviction-budgets", "5,3"], "budgets of their own"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_older_answers_and_makes_no_files(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setitem(EVICTION_POLICIES, Unscored.name, Unscored)
    options, message = REFUSED[case]
    assert main(command(place, *options)) == 2
    assert message in capsys.readouterr().err
    assert not (place / "out").exists()
    (place / "out").mkdir()
    for name in ("a.jsonl", "a.jsonl.run.json"):
        (place / "out" / name).write_text(name)
    assert main(command(place, *options, "--overwrite")) == 2
    assert {file.name: file.read_text() for file in (place / "out").iterdir()} == {
        "a.jsonl": "a.jsonl", "a.jsonl.run.json": "a.jsonl.run.json",
    }  # fmt: skip


def other_base(place: Path) -> None:
    file = place / "model" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(bytes(data))


def other_setting(place: Path) -> None:
    change(place / "adapter" / "adapter_config.json", "evict_fraction", 0.5)


def other_end(place: Path) -> None:
    change(place / "model" / "generation_config.json", "eos_token_id", 7)


def other_scores(place: Path) -> None:
    (place / "scores.json").write_text(json.dumps([[1.0, 1.0], [5.0, 5.0]]))


def change(file: Path, name: str, value: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))


OTHERS = {
    "base_digest": other_base, "evict_fraction": other_setting, "end": other_end, "eviction_budgets": other_scores,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_answers_go_on_under_the_same_model_adapter_and_scores_alone(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (place / "scores.json").write_text(json.dumps([[5.0, 5.0], [1.0, 1.0]]))
    budgets = ["--eviction-budgets", f"headkv:scores={place / 'scores.json'}"] if name == "eviction_budgets" else []
    assert main(command(place, *budgets)) == 0
    written = answers(place)
    assert main(command(place, *budgets, "--resume")) == 0
    capsys.readouterr()
    OTHERS[name](place)
    assert main(command(place, *budgets, "--resume")) == 2
    told = capsys.readouterr().err
    assert "was made with other settings" in told
    assert name in told.replace("--", "").replace("-", "_")
    assert answers(place) == written


def test_equal_questions_are_samples_of_one(place: Path) -> None:
    rows = ["w3 w4", "w5", "w3 w4", "w3 w4"]
    (place / "questions.jsonl").write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    asking = Asking(
        model=str(place / "model"), adapter=str(place / "adapter"), max_new_tokens=12, temperature=1.0, seed=3
    )
    asked = Questions(questions=str(place / "questions.jsonl"), output=str(place / "a.jsonl"))
    texts = [one.text for one in answer_questions(asked, asking, QUIET)]
    assert len(set(texts)) == 4
    first, second = [3, 4], [5]
    seeds = question_seeds(3, [first, second, first, second])
    assert len(set(seeds)) == 4
    assert question_seeds(3, [first, first, second]) == [seeds[0], seeds[2], seeds[1]], "other questions change none"


def test_a_question_that_makes_no_prompt_is_named_and_may_be_dropped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(place / "model")
    tokenizer.chat_template = (
        "{% for message in messages %}{% if 'w9' in message['content'] %}{{ raise_exception('no w9 here') }}{% endif %}"
        "{{ message['content'] }} {% endfor %}"
    )
    tokenizer.save_pretrained(place / "model")
    rows = ["w3 w4", "w9", "w5"]
    (place / "questions.jsonl").write_text("".join(json.dumps({"question": row}) + "\n" for row in rows))
    assert main(command(place)) == 2
    assert "questions/1: the chat template refuses its messages (no w9 here)" in capsys.readouterr().err
    assert main(command(place, "--bad-rows", "none")) == 2
    assert "choose one of ['refuse', 'drop']" in capsys.readouterr().err
    assert not (place / "out").exists()
    assert main(command(place, "--bad-rows", "drop")) == 0
    assert [one["messages"][0]["content"] for one in answers(place)] == ["w3 w4", "w5"]
    assert "left out 1 of 3 rows" in capsys.readouterr().err
