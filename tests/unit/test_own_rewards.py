"""Reward functions of the user: found, tried before anything is trained, and what GRPO maximises."""

from __future__ import annotations

import inspect
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.grpo import word_tokenizer
from tests.support.text_model import save_text_model

import thoughtcache as tc
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.own_rewards import load_reward, try_reward

MODULE = '''
"""Rewards of a user."""

import json
seen = []
LIMIT = 3

def length(completions, **kwargs):
    seen.append(kwargs)
    return [len(text.split()) for text in completions]

def level(completions, level, log_metric, **kwargs):
    log_metric("levels", sum(level))
    return [float(one) for one in level]

async def later(completions, **kwargs):
    return [None] * len(completions)

def narrow(completions):
    return [0.0] * len(completions)

def text(completions, **kwargs):
    return "good"

def short(completions, **kwargs):
    return [1.0]

def words(completions, **kwargs):
    return ["1"] * len(completions)

def endless(completions, **kwargs):
    return [float("inf")] * len(completions)

def broken(completions, **kwargs):
    return [kwargs["difficulty"]]

def wrong(completions, **kwargs):
    assert not completions, "no mercy"

def lazy(completions, **kwargs):
    import a_module_that_nobody_has

def single(completions, **kwargs):
    import numpy
    return [numpy.float32(0.5), True][: len(completions)]

def enormous(completions, **kwargs):
    return [10**400] * len(completions)

def turns(completions, trainer_state, **kwargs):
    good = [0.0] * len(completions)
    return good if trainer_state.global_step == 0 else BAD

BAD = [1.0]

class Judge:
    pass
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a package of rewards, which no other test finds imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "judges.py").write_text(MODULE)
    (tmp_path / "own" / "torn.py").write_text("def length(:\n")
    (tmp_path / "own" / "needy.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "own" / "failing.py").write_text("def length(completions, **kwargs): ...\nassert not 'ready'\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "own"]:
        del sys.modules[name]


def tried(name: str) -> None:
    rows = [{"prompt": f"w{n}", "answer": str(n), "answer_type": "maths", "level": n} for n in (3, 4, 5)]
    try_reward(name, load_reward(name), rows, word_tokenizer())


@pytest.mark.parametrize("name", ["length", "level", "later", "single"])
def test_a_reward_in_trls_signature_is_taken(place: Path, name: str) -> None:
    tried(f"own.judges:{name}")


def test_with_a_chat_template_prompts_and_completions_are_messages() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        seen.update(columns, prompts=prompts, completions=completions)
        return [0.0] * len(completions)

    rows = [{"prompt": [{"role": "user", "content": "w3"}], "answer": "4", "answer_type": "maths"}]
    try_reward("chats", reward, rows, word_tokenizer())
    assert seen["prompts"] == [rows[0]["prompt"]]
    assert seen["completions"] == [[{"role": "assistant", "content": "The answer is 4."}]]
    assert seen["answer"] == ["4"]
    assert len(seen["completion_ids"]) == 1


def test_the_documented_reward_works_on_texts_and_on_messages(place: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "runs.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def short(" in text]
    (place / "rewards.py").write_text(block)
    try:
        short = load_reward("rewards:short")
    finally:
        sys.modules.pop("rewards", None)
    texts = ["w" * 399, "w" * 400]
    assert short(completions=texts, level=[4, 5], answer=["1", "2"]) == [0.25, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert short(completions=messages, level=[4, 5]) == [0.25, 0.0]


def test_the_package_has_rewards_under_the_same_names() -> None:
    tried("thoughtcache.train.rewards:math_correctness")


WRONG = {
    "no colon": ("own.judges.length", "write package.module:function"),
    "no module": ("own.judge:length", r"no module own\.judge, neither in .* correct the name"),
    "no package": ("nobody.judges:length", r"no module nobody, .* where nobody\.py or its package lies"),
    "no function": ("own.judges:lenght", r"has no lenght; it has \['length', 'level', "),
    "no code": ("own.torn:length", r"own\.torn cannot be imported .* repair it"),
    "missing package": ("own.needy:length", "a_module_that_nobody_has.*install it"),
    "a number": ("own.judges:LIMIT", "is a int, not a function"),
    "a class": ("own.judges:Judge", "is a class, not a function"),
    "no keywords": ("own.judges:narrow", r"does not take what TRL passes .* end its parameters with \*\*kwargs"),
    "no list": ("own.judges:text", r"returned a str \('good'\); return a list"),
    "another length": ("own.judges:short", "returned 1 values for 2 completions"),
    "words": ("own.judges:words", r"returned '1', a str; allowed: finite numbers, and None"),
    "infinity": ("own.judges:endless", "returned inf"),
    "an error": (
        "own.judges:broken",
        r"failed in judges.py, line 35 .KeyError: 'difficulty'.; it was tried on 2 completions",
    ),
    "an assertion": ("own.judges:wrong", r"failed in judges.py, line \d+ .AssertionError: no mercy"),
    "a late import": ("own.judges:lazy", r"failed in .*a_module_that_nobody_has"),
    "too large": ("own.judges:enormous", r"returned 1000\d*, a int; allowed: finite numbers"),
    "a failing module": ("own.failing:length", r"own\.failing cannot be imported .AssertionError"),
    "a file": ("rewards.py:short", r"is the path of a file, .* write rewards:short$"),
    "a file here": ("./own/judges.py:length", r"write own\.judges:length$"),
    "a file elsewhere": ("/home/me/rewards.py:short", r"write rewards:short$"),
    "a file of Windows": (r"C:\me\rewards.py:short", r"write rewards:short$"),
    "a relative module": ("..rewards:short", r"write rewards:short$"),
    "a folder": ("own/judges:length", r"write own\.judges:length$"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_reward_is_refused_with_the_remedy(place: Path, case: str) -> None:
    name, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        tried(name)


def test_names_are_those_that_were_given_whatever_decorators_say(place: Path) -> None:
    (place / "own" / "alike.py").write_text(
        "from functools import partial\n"
        "def make(value):\n    def wrapper(completions, **kwargs):\n        return [value] * len(completions)\n"
        "    return wrapper\n"
        "class Judge:\n    async def __call__(self, completions, **kwargs):\n        return [3] * len(completions)\n"
        "first, second, judge = make(1), make(2), Judge()\nthird = partial(first)\n"
    )
    loaded = [load_reward(f"own.alike:{name}") for name in ("first", "second", "third", "judge")]
    assert [reward.__name__ for reward in loaded] == ["first", "second", "third", "judge"]
    assert inspect.iscoroutinefunction(loaded[3])
    assert loaded[1](completions=["a", "b"]) == [2.0, 2.0]
    tried("own.alike:judge")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward": ["a:f", "a:f"], "reward_weight": [1.0, 2.0]}, "'a:f' is given twice; give it once"),
        ({"reward": ["a:score", "b:Judge.score"]}, "'a:score' and 'b:Judge.score' are logged under one name, score"),
        ({"reward": ["a:f"], "reward_weight": [float("nan")]}, "reward_weight=nan is no finite number"),
        ({"reward": ["a:f"], "reward_weight": [float("inf")]}, "reward_weight=inf is no finite number"),
    ],
)
def test_rewards_that_cannot_be_told_apart_or_weighed_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig(**settings)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([3, None, "hard"], r"column 'level' of questions.jsonl cannot be .* 3 is of type int, 'hard' is of type str"),
        ([None, "hard", 3], "'hard' is of type str, 3 is of type int"),
        ([{"n": 3}, {"n": "hard"}, None], "column 'level' .* Could not convert 'hard'"),
        ([1, 10**30, 1], "column 'level' .* too large"),
    ],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_column_of_several_types_is_refused_before_anything_is_loaded(
    place: Path, levels: list[Any], message: str, dry_run: bool
) -> None:
    save_text_model(place / "model")
    rows = [{"question": f"w{3 + n} w9", "level": level} for n, level in enumerate(levels)]
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        run(place, "none", reward=["own.judges:length"], dry_run=dry_run)
    assert not (place / "none").exists()


def test_a_reward_is_tried_on_rows_as_training_shows_them(place: Path) -> None:
    """In a table all objects of a column have all keys."""
    save_text_model(place / "model")
    rows = [{"question": f"w{3 + n} w9", "level": {"ab"[n % 2]: n}} for n in range(6)]
    (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(place, "run", reward=["own.judges:length"], grpo_steps=1)
    seen = [set(one) for kwargs in sys.modules["own.judges"].seen for one in kwargs["level"]]  # type: ignore[attr-defined]
    assert len(seen) > 2
    assert all(keys == {"a", "b"} for keys in seen)


def run(place: Path, output: str, console: Console | None = None, **changes: Any) -> dict[str, Any]:
    if not (place / "questions.jsonl").is_file():
        save_text_model(place / "model")
        rows = [{"question": f"w{3 + n} w9", "level": n % 3} for n in range(6)]
        (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "model": "model", "dataset": "questions.jsonl", "output_dir": output, "max_new_tokens": 9, "distill_steps": 0,
        "grpo_steps": 2, "group_size": 2, "grpo_batch_size": 2,
    }  # fmt: skip
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    return run_real_model(RunConfig(**{**settings, **changes}), thought, console or Console(quiet=True))


def test_what_is_held_out_and_who_judges_is_said(place: Path) -> None:
    save_text_model(place / "model")
    rows = [{"question": f"w{3 + n} w9", "answer": str(n), "level": n % 3} for n in range(10)]

    def printed(output: str, **changes: Any) -> str:
        (place / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        console = Console(file=io.StringIO(), width=200)
        run(place, output, console, **{"reward": ["own.judges:length"], "grpo_steps": 1, **changes})
        return console.file.getvalue()  # type: ignore[attr-defined]

    title = "did it help? n = 1, greedy, judged by reference answers, while GRPO maximises length"
    assert title in printed("judged")
    assert (place / "judged" / "before_after.md").read_text().startswith(f"{title}\n\n| who is asked |")
    printed("same", reward=["thoughtcache.train.rewards:math_correctness"])
    assert (place / "same" / "before_after.md").read_text().startswith(title.split(", while")[0] + "\n\n|")
    rows[3]["answer"] = None
    told = printed("unjudged", dry_run=True)
    assert "held out: no questions, because they are judged by reference answers, and a row has one in which no" in told
    assert "held out" not in printed("none", held_out=0, dry_run=True)
    del rows[3]
    assert "held out: no questions, because there are fewer than 10" in printed("few", dry_run=True)


def test_grpo_maximises_them_with_their_weights_and_needs_no_answers(place: Path) -> None:
    rewards = ["own.judges:length", "own.judges:level"]
    result = run(place, "run", reward=rewards, reward_weight=[2.0, -1.0])
    lines = [json.loads(line) for line in (place / "run" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for line in lines:
        assert line["rewards"]["length"] == len(line["completion"].split())
        assert line["rewards"]["level"] in (0, 1, 2)
    for step, reward in result["phases"]["grpo"]["rewards"]:
        own = [line["rewards"] for line in lines if line["step"] == step - 1]
        mean = sum(2 * one["length"] - one["level"] for one in own) / len(own)
        assert reward == pytest.approx(mean)
    assert result["before_after"] is None
    written = json.loads((place / "run" / "run.json").read_text())
    assert (written["reward"], written["reward_weight"]) == (rewards, [2.0, -1.0])
    with pytest.raises(ValueError, match=r"other settings \(reward"):
        run(place, "run", reward=rewards[:1], resume=True)


def test_a_wrong_reward_leaves_no_folder(place: Path) -> None:
    with pytest.raises(ValueError, match="returned 1 values for 2"):
        run(place, "none", reward=["own.judges:short"])
    assert not (place / "none").exists()


def test_a_reward_that_turns_bad_ends_training_with_its_name_and_no_adapter(place: Path) -> None:
    with pytest.raises(ValueError, match=r"the reward own\.judges:turns returned 1 values for 2 completions"):
        run(place, "short", reward=["own.judges:turns"])
    sys.modules["own.judges"].BAD = [float("nan")] * 2  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"the reward own\.judges:turns returned nan"):
        run(place, "nan", reward=["own.judges:turns"])
    assert not (place / "nan" / "adapter").exists()


def test_folding_takes_plain_functions_with_their_names(place: Path) -> None:
    markers = {"opening": "w7", "closing": "w11 w12", "step_tokens": "9", "max_steps": "3", "fold": "true"}
    folding = {"thinking": "folding", "thinking_options": markers}
    with pytest.raises(ValueError, match=r"own\.judges:later is a coroutine function, .* write a plain function"):
        run(place, "none", reward=["own.judges:later"], dry_run=True, **folding)
    assert not (place / "none").exists()
    run(place, "run", reward=["own.judges:length"], grpo_steps=1, **folding)
    line = json.loads((place / "run" / "grpo" / "rollouts.jsonl").read_text().splitlines()[0])
    assert list(line["rewards"]) == ["length"]


def test_a_run_goes_on_with_the_code_that_it_began_with(place: Path) -> None:
    settings = {"reward": ["own.judges:length"], "save_every": 1}
    run(place, "run", **settings)
    run(place, "run", **settings, resume=True, grpo_steps=3)
    with (place / "own" / "judges.py").open("a") as file:
        file.write("LIMIT = 4\n")
    with pytest.raises(ValueError, match=r"other settings \(reward_digests\)"):
        run(place, "run", **settings, resume=True, grpo_steps=4)


def test_weights_and_held_out_questions_need_what_they_are_about(place: Path) -> None:
    with pytest.raises(ValueError, match=r"reward_weight=\[1.0\] is one weight for each reward, of which there are 2"):
        RunConfig(reward=["a:b", "a:c"], reward_weight=[1.0])
    with pytest.raises(ValueError, match=r"held_out=2 questions are judged by reference answers"):
        run(place, "none", reward=["own.judges:length"], held_out=2)
