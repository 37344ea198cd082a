"""Ways of thinking by name: settings as texts, the lines of the help, and a run of the user from end to end."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model

import thoughtcache as tc
from support.grpo import word_tokenizer
from thoughtcache.chains.table import THINKING, make_thinking
from thoughtcache.evaluation.generations import read_generations
from thoughtcache.evaluation.sampling import sample_seed
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.generate.answer import answer
from thoughtcache.recipes.load_model import load_base
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache_cli.arguments import build_parser
from thoughtcache_cli.options import thinking as thinking_options

FOLDING = {"opening": "w7", "closing": "w11 w12", "step_tokens": "9", "max_steps": "3", "fold": "true"}
KEPT = {"thinking": "folding", "thinking_options": {**FOLDING, "keep": "written"}}
MARKOVIAN = {"context": "6", "keep_first": "1", "keep_last": "2", "max_links": "3"}


def test_settings_as_texts():
    made = make_thinking("folding", {**FOLDING, "separator": "w3"}, word_tokenizer())
    assert made == tc.StepFolding(opening=[7], closing=[11, 12], separator=[3], step_tokens=9, max_steps=3)
    unfolded = {"opening": "w7", "closing": "w11 w12", "fold": "false", "unfold_tokens": "9"}
    assert make_thinking("folding", unfolded, word_tokenizer()) == tc.StepFolding(
        opening=[7], closing=[11, 12], unfold_tokens=9, fold=False
    )
    kept = make_thinking("folding", {**FOLDING, "keep": "written"}, word_tokenizer())
    assert kept == tc.StepFolding(opening=[7], closing=[11, 12], keep="written", step_tokens=9, max_steps=3)
    assert make_thinking("markovian", {}, word_tokenizer()) == tc.MarkovianThinking()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("folded", {}, r"thinking='folded' is not known; choose one of \['markovian', 'folding'\]"),
        ("markovian", {"window": "3"}, "thinking_options window=3 is not known to thinking=markovian; it has"),
        ("markovian", {"context": "many"}, "context=many is no integer; its default is 8192"),
        ("markovian", {"max_links": "1"}, "thinking_options of thinking=markovian: max_links must be at least 2"),
        ("folding", {"closing": "w3"}, "thinking=folding needs the text of a marker: thinking_options opening=TEXT"),
        ("folding", {**FOLDING, "fold": "yes"}, "thinking_options fold='yes' is not known"),
        ("folding", {**FOLDING, "closing": "w7"}, "contains the other"),
        ("folding", {**FOLDING, "keep": "kept"}, "thinking_options keep='kept' is not known; choose one of"),
        ("folding", {**FOLDING, "keep": "written", "separator": "w3"}, r"separator=\[3\] stands in front of"),
        (
            "folding",
            {**FOLDING, "fold": "false"},
            "max_steps=3 changes nothing with fold=false; leave it out, or set fold=true",
        ),
        (
            "folding",
            {**FOLDING, "unfold_tokens": "9"},
            "unfold_tokens=9 changes nothing with fold=true; .* set fold=false",
        ),
    ],
)
def test_settings_that_are_refused(name: str, options: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        make_thinking(name, options, word_tokenizer())


def test_the_help_has_every_way_with_its_defaults():
    assert [name for name, _, _ in thinking_options.THINKING] == list(THINKING)
    for name, _, told in thinking_options.THINKING:
        expected = [
            f"{field.name}={str(field.default).lower() if isinstance(field.default, int | str) else 'TEXT'}"
            for field in dataclasses.fields(THINKING[name])
        ]
        assert told.split() == expected


def test_values_stay_texts_and_may_hold_equal_signs():
    words = ["generate", "q", "--model", "m", "--adapter", "a", "--thinking", "folding"]
    parsed = build_parser().parse_args([*words, "--thinking-option", "opening==", "--thinking-option", "closing=007"])
    assert parsed.thinking_options == {"opening": "=", "closing": "007"}


def run_config(folder: Path, **changes: Any) -> RunConfig:
    settings = {
        "model": str(folder / "model"),
        "dataset": str(folder / "questions.jsonl"),
        "output_dir": str(folder / "run"),
        "max_new_tokens": 11,
        "distill_steps": 0,
        "grpo_steps": 2,
        "group_size": 2,
        "grpo_batch_size": 2,
        "thinking": "markovian",
        "thinking_options": MARKOVIAN,
        "overwrite": True,
    }
    return RunConfig(**{**settings, **changes})


def test_a_run_of_the_user_thinks_in_links_and_its_adapter_answers_in_links(tmp_path: Path):
    save_text_model(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl")
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    results = run_real_model(run_config(tmp_path), thought, Console(quiet=True))
    logged = results["phases"]["grpo"]["log"]
    assert max(entry["chains/links"] for entry in logged) > 1
    assert json.loads((tmp_path / "run" / "run.json").read_text())["thinking_options"] == MARKOVIAN

    for keep in ("encoded", "written"):
        folding = {"thinking": "folding", "thinking_options": {**FOLDING, "keep": keep}}
        folded = run_real_model(run_config(tmp_path, **folding), thought, Console(quiet=True))
        assert all("chains/unfinished" in entry for entry in folded["phases"]["grpo"]["log"])
        assert max(entry["policy/gap_max"] for entry in folded["phases"]["grpo"]["log"]) < 1e-5
    rolling = tc.ThoughtConfig(r=3, window=4, positions="rolling")
    with pytest.raises(ValueError, match='positions="rolling" moves keys'):
        run_real_model(run_config(tmp_path, **folding), rolling, Console(quiet=True))

    asked: dict[str, Any] = {
        "prompt": "w3 w4",
        "model": str(tmp_path / "model"),
        "adapter": str(tmp_path / "run" / "adapter"),
        "max_new_tokens": 11,
        "temperature": 1.0,
        "dtype": "float32",
        "seed": 3,
    }
    one, several = answer(**asked), answer(**asked, thinking="markovian", thinking_options=MARKOVIAN)
    assert one.split()[:5] == several.split()[:5], "the first link draws the same numbers"
    assert one != several
    with pytest.raises(ValueError, match=r"thinking_options=\{'context': '6'\} are settings of no thinking"):
        answer(**asked, thinking_options={"context": "6"})
    for more, message in (({"stop": ["w3"]}, "makes several of it"), ({"min_new_tokens": 2}, "no meaning for a chain")):
        with pytest.raises(ValueError, match=message):
            answer(**asked, thinking="markovian", thinking_options=MARKOVIAN, **more)


def test_an_evaluation_in_links_keeps_whole_traces(tmp_path: Path):
    model = str(save_text_model(tmp_path / "model"))
    save_questions(tmp_path / "questions.jsonl")
    settings: dict[str, Any] = {
        "suite": (f"own={tmp_path / 'questions.jsonl'}",),
        "model": model,
        "max_new_tokens": 11,
        "samples": 2,
        "temperature": 0.8,
        "window": 2,
        "instruction": "",
        "batch_size": 3,
        "thinking": "markovian",
        "thinking_options": MARKOVIAN,
        "output_dir": str(tmp_path / "eval"),
    }
    run_eval(EvalRun(**settings), Console(quiet=True))
    found = read_generations(tmp_path / "eval" / GENERATIONS)
    plain = tc.ThoughtConfig(r=2, num_global_tokens=2, initial_state="identity", absorb=False, window=2)
    reference = peft.get_peft_model(load_base(model, "float32"), plain)
    rows = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    prompts = {f"own/{n}": row["question"] for n, row in enumerate(rows)}
    tokenizer = word_tokenizer()
    assert len(found) == 2 * len(prompts)
    for one in found:
        (chain,) = tc.rollout_chains(
            reference,
            [encode_prompt(tokenizer, [{"role": "user", "content": prompts[one.question]}])],
            make_thinking("markovian", MARKOVIAN, tokenizer),
            max_new_tokens=11,
            temperature=0.8,
            seed=[sample_seed(0, one.question, one.sample)],
            tokenizer=tokenizer,
        )
        assert one.text == tokenizer.decode(chain.token_ids, skip_special_tokens=True)
        assert (one.num_tokens, one.finish_reason) == (len(chain.token_ids), chain.finish_reason)
        # A window of two: in the first link of six before thoughts 2 to 4, in the next one of three before none.
        full = one.num_tokens == 11
        assert not full or [before for before, _ in one.evictions] == [2, 3, 4]
    assert any(one.num_tokens == 11 for one in found)
    # Going on with more samples leaves those that are there; another way of thinking is another run.
    run_eval(EvalRun(**{**settings, "samples": 3, "resume": True}), Console(quiet=True))
    again = read_generations(tmp_path / "eval" / GENERATIONS)
    assert again[: len(found)] == found
    assert len(again) == 3 * len(prompts)
    with pytest.raises(ValueError, match=r"other settings \(.*thinking"):
        run_eval(EvalRun(**{**settings, "thinking": None, "thinking_options": None, "resume": True}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop": ("w3",)}, "makes several of it; leave out one of them"),
        ({"thinking": None}, "are settings of no thinking"),
        ({"max_new_tokens": 6}, "no chain has a boundary"),
        ({"thinking_options": {"context": "200"}, "max_new_tokens": 300}, "fill the context of 200"),
        ({**KEPT, "window": 4, "positions": "rolling"}, 'positions="rolling" moves keys'),
        ({**KEPT, "max_new_tokens": 170}, "up to 170 tokens of a chain, take .* positions"),
    ],
)
def test_evaluations_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    settings: dict[str, Any] = {
        "suite": (f"own={save_questions(tmp_path / 'questions.jsonl')}",),
        "model": str(save_text_model(tmp_path / "model")),
        "max_new_tokens": 11,
        "thinking": "markovian",
        "thinking_options": MARKOVIAN,
        "output_dir": str(tmp_path / "eval"),
    }
    with pytest.raises(ValueError, match=message):
        run_eval(EvalRun(**{**settings, **changes}), Console(quiet=True))
    assert not (tmp_path / "eval").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distill_steps": 3}, "thinking=markovian is for GRPO alone.*set distill_steps=0"),
        ({"thinking": None}, "are settings of no thinking"),
        ({"thinking": "aloud"}, "thinking='aloud' is not known"),
        ({"max_new_tokens": 6}, "no chain has a boundary"),
        ({"thinking_options": {**MARKOVIAN, "context": "200"}, "max_new_tokens": 300}, "160 positions"),
        (
            {"thinking_options": {**MARKOVIAN, "context": "5"}, "max_new_tokens": 9},
            "--window 4 holds all thoughts of a link, which are 5",
        ),
        (
            {"max_new_tokens": 13},
            "--max-new-tokens 13 cannot be reached: --thinking markovian comes to 12 .* lower it to 12",
        ),
    ],
)
def test_runs_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path):
    save_text_model(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl")
    with pytest.raises(ValueError, match=message):
        run_real_model(run_config(tmp_path, **changes), tc.ThoughtConfig(r=3, window=4), Console(quiet=True))
    assert not (tmp_path / "run").exists()
