"""`thoughtcache eval` on a tiny random model: what is asked, under which cache, what is kept, and what goes on."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.text_model import save_questions, save_text_model
from thoughtcache.evaluation import suites
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.sampling import sample_seed
from thoughtcache.recipes.embedded.job import EMBEDDED_TASKS
from thoughtcache.recipes.evaluate import run as eval_run
from thoughtcache.recipes.evaluate.compare import run_compare
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import read_questions
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.evaluate.subject import model_name
from thoughtcache.recipes.load_model import load_base, load_tokenizer, read_tokenizer
from thoughtcache.tasks.chat import encode_prompt
from thoughtcache.tasks.embedded.reasoner import LONG_REASONER_FOLDER, REASONER_FOLDER
from thoughtcache.tasks.saved_prompt import save_prompt_format
from thoughtcache_cli import main
from thoughtcache_cli.arguments import build_parser

WORKER = Path(__file__).parents[1] / "support" / "eval_worker.py"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_questions(tmp_path_factory.mktemp("data") / "test.jsonl"))


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An adapter with a window, a tokenizer and an instruction of its own, whose states matter."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    adapted = peft.get_peft_model(load_base(model, "float32"), tc.ThoughtConfig(r=2, num_global_tokens=2, window=8))
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    _, tokenizer = load_tokenizer(model)
    tokenizer.chat_template = "{% for m in messages %}w3 {{ m['content'] }} w4{% endfor %}"
    tokenizer.save_pretrained(str(folder))
    save_prompt_format(folder, instruction="w5 w6")
    return str(folder)


def evaluated(model: str, questions: str, folder: Path, **changes: Any) -> tuple[dict[str, Any], list[Generation]]:
    settings = {"suite": (f"own={questions}",), "model": model, "max_new_tokens": 24, "output_dir": str(folder)}
    result = run_eval(EvalRun(**{**settings, **changes}), Console(quiet=True))
    return result, read_generations(folder / GENERATIONS)


def prompts_of(tokenizer: Any, instruction: str | None) -> list[list[int]]:
    words = [" ".join(f"w{3 + (5 * row + 3 * word) % 26}" for word in range(1 + row % 4)) for row in range(6)]
    return [encode_prompt(tokenizer, [{"role": "user", "content": text}], instruction=instruction) for text in words]


def tokens_and_texts(rollouts: list[tc.Rollout], tokenizer: Any) -> list[tuple[int, str, str]]:
    return [
        (len(one.token_ids), tokenizer.decode(one.token_ids, skip_special_tokens=True), one.finish_reason)
        for one in rollouts
    ]


def shown(generations: list[Generation]) -> list[tuple[int, str, str]]:
    ordered = sorted(generations, key=lambda one: (one.question, one.sample))
    return [(one.num_tokens, one.text, one.finish_reason) for one in ordered]


def test_the_base_alone_has_the_full_cache_or_a_window(model, questions, tmp_path):
    base, (_, tokenizer) = load_base(model, "float32"), load_tokenizer(model)
    plain = tc.ThoughtConfig(r=2, num_global_tokens=2, initial_state="identity", absorb=False, evict_fraction=0.5)
    reference = peft.get_peft_model(base, plain)
    prompts = prompts_of(tokenizer, suites.REASONING_INSTRUCTION)
    for number, window in enumerate((None, 8)):
        changes = {} if window is None else {"window": window, "evict_fraction": 0.5}
        result, found = evaluated(model, questions, tmp_path / str(number), **changes)
        wanted = tc.rollout(reference, prompts, max_new_tokens=24, temperature=0.0, window=window, tokenizer=tokenizer)
        assert shown(found) == tokens_and_texts(wanted, tokenizer)
        assert [len(one.evictions) for one in found] == [len(w.evictions) for w in wanted] or window
        assert sum(len(one.evictions) for one in found) == sum(len(w.evictions) for w in wanted)
        assert result["cache"]["window"] == window
    assert shown(found) != shown(read_generations(tmp_path / "0" / GENERATIONS))


def test_an_adapter_is_asked_as_it_was_trained(model, adapter, questions, tmp_path):
    result, found = evaluated(model, questions, tmp_path / "own", adapter=adapter)
    reference = peft.PeftModel.from_pretrained(load_base(model, "float32"), adapter)
    tokenizer = read_tokenizer(adapter)
    wanted = tc.rollout(
        reference, prompts_of(tokenizer, "w5 w6"), max_new_tokens=24, temperature=0.0, tokenizer=tokenizer
    )
    assert shown(found) == tokens_and_texts(wanted, tokenizer)
    assert result["asked"]["own"]["instruction"] == "w5 w6"
    assert result["cache"]["window"] == 8
    # Overridden: another instruction, tokenizer, window and policy.
    changes = {"instruction": "", "tokenizer": model, "window": 6, "eviction": "h2o"}
    result, found = evaluated(model, questions, tmp_path / "other", adapter=adapter, **changes)
    assert (result["asked"]["own"]["instruction"], result["cache"]["window"]) == (None, 6)
    assert result["cache"]["eviction"] == "h2o"
    assert all(evictions[0][0] == 6 for evictions in (one.evictions for one in found if one.num_tokens > 7))


def test_the_full_cache_and_the_longest_prompt_as_window(model, adapter, questions, tmp_path):
    full, found = evaluated(model, questions, tmp_path / "full", adapter=adapter, window=None)
    assert full["cache"]["window"] is None
    assert not any(one.evictions for one in found)
    longest, found = evaluated(model, questions, tmp_path / "prompt", adapter=adapter, window="prompt")
    # Four words, two of the instruction, two of the template.
    assert longest["cache"]["window"] == 8
    assert any(one.evictions for one in found)


def test_right_answers_count(model, questions, tmp_path):
    """References that the model does give, for half of the questions."""
    _, found = evaluated(model, questions, tmp_path / "first", answer_type="text", max_new_tokens=8)
    rows = [json.loads(line) for line in Path(questions).read_text().splitlines()]
    ordered = sorted(found, key=lambda one: one.question)
    assert all(one.extracted for one in ordered)
    own = tmp_path / "own.jsonl"
    for row, one in zip(rows[::2], ordered[::2], strict=True):
        row["answer"] = one.extracted
    for row in rows[1::2]:
        row["answer"] = "apple"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result, _ = evaluated(model, str(own), tmp_path / "second", answer_type="text", max_new_tokens=8)
    scores = result["suites"]["own"]
    assert scores["accuracy"]["value"] == 0.5
    assert scores["reasons"] == {"different": 3, "literal": 3}
    console = Console(record=True, width=200, file=io.StringIO())
    with pytest.raises(ValueError, match="has the reference '0' in one run"):
        run_compare(str(tmp_path / "first"), str(tmp_path / "second"), output_dir=str(tmp_path / "c"), console=console)
    found = run_compare(
        str(tmp_path / "second"), str(tmp_path / "second"), output_dir=str(tmp_path / "c"), console=console
    )
    assert found["suites"]["own"]["difference"] == 0.0
    assert (tmp_path / "c" / "comparison.png").stat().st_size > 5_000
    assert "+0.0" in console.export_text()


def test_a_seed_belongs_to_question_and_sample(model, questions, tmp_path):
    """Neither the batch, nor the limit, nor the number of samples changes an answer."""
    sampled = {"samples": 3, "temperature": 1.0}
    _, all_of_them = evaluated(model, questions, tmp_path / "a", batch_size=32, **sampled)
    _, one_by_one = evaluated(model, questions, tmp_path / "b", batch_size=1, **{**sampled, "samples": 2}, limit=4)
    by_key = {one.key: one for one in all_of_them}
    assert len(by_key) == 18
    assert len({one.seed for one in all_of_them}) == 18
    assert len({one.text for one in all_of_them}) > 10
    assert len(one_by_one) == 8
    assert all(by_key[one.key] == one for one in one_by_one)
    assert by_key["own/2", 1].seed == sample_seed(0, "own/2", 1)
    _, other = evaluated(model, questions, tmp_path / "c", **sampled, seed=1)
    assert shown(other) != shown(all_of_them)


def test_a_run_goes_on_with_more_samples_and_refuses_another_one(model, questions, tmp_path, monkeypatch):
    sampled = {"temperature": 1.0, "max_new_tokens": 12}
    whole, _ = evaluated(model, questions, tmp_path / "whole", samples=4, **sampled)
    evaluated(model, questions, tmp_path / "grows", samples=2, **sampled)
    with pytest.raises(ValueError, match="add --resume to go on"):
        evaluated(model, questions, tmp_path / "grows", samples=4, **sampled)
    with pytest.raises(ValueError, match=r"other settings \(temperature"):
        evaluated(model, questions, tmp_path / "grows", samples=4, resume=True, temperature=0.5, max_new_tokens=12)
    with pytest.raises(ValueError, match="window=None then, window=4 now"):
        evaluated(model, questions, tmp_path / "grows", samples=4, resume=True, window=4, **sampled)
    grown, _ = evaluated(model, questions, tmp_path / "grows", samples=4, resume=True, **sampled)
    assert grown["suites"] == whole["suites"]
    assert grown["last_call"]["answers"] == 12
    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "sample_answers", None)
        again, _ = evaluated(model, questions, tmp_path / "grows", samples=4, resume=True, **sampled)
    assert again["suites"] == whole["suites"]
    fresh, found = evaluated(model, questions, tmp_path / "grows", samples=1, overwrite=True, **sampled)
    assert len(found) == 6
    assert fresh["suites"]["own"]["num_samples"] == 1


def test_killed_at_random_places_it_gives_the_same_table(model, questions, tmp_path):
    """Real kills of real processes: no answer that was written is lost or changed."""
    settings: dict[str, Any] = {"suite": [f"own={questions}"], "model": model, "samples": 6, "temperature": 1.0}
    settings |= {"max_new_tokens": 40, "window": 8, "batch_size": 3}
    whole = run_eval(EvalRun(**settings, output_dir=str(tmp_path / "whole")), Console(quiet=True))
    settings["output_dir"] = str(tmp_path / "killed")
    file = tmp_path / "settings.json"
    file.write_text(json.dumps({"settings": settings, "most_bytes": 3000, "kills": 8, "seed": 2}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(WORKER), str(file)], capture_output=True, text=True, check=True, env=environment
    )
    left = json.loads(done.stdout)
    assert all(after[: len(before)] == before for before, after in pairwise(left))
    assert len(left[-1]) == 36
    assert sum(0 < len(lines) < 36 for lines in left) > 2
    results = json.loads((tmp_path / "killed" / "results.json").read_text())
    written = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["suites"] == written["suites"] == json.loads(json.dumps(whole["suites"]))
    by_key = {one.key: one for one in read_generations(tmp_path / "whole" / GENERATIONS)}
    assert {one.key: one for one in read_generations(tmp_path / "killed" / GENERATIONS)} == by_key


def test_the_embedded_suite_is_that_of_training():
    for name in ("embedded", "multiplication"):
        suite = suites.SUITES[name]
        assert suite.max_new_tokens == EMBEDDED_TASKS[str(suite.embedded)].max_new_tokens
    (asked,) = read_questions(EvalRun(suite=("embedded",), limit=3), print)
    assert [example.identifier for example in asked.examples] == ["embedded/0", "embedded/1", "embedded/2"]


def test_the_embedded_suite_has_the_accuracies_of_the_job(tmp_path):
    from thoughtcache.evaluation.accuracy import exact_match_accuracy
    from thoughtcache.recipes.embedded.arms import lora_window
    from thoughtcache.tasks.embedded.problem import sample_problems
    from thoughtcache.tasks.embedded.reasoner import load_reasoner

    base, tokenizer = load_reasoner()
    reference = peft.get_peft_model(base, lora_window(16, 8, lora_alpha=32))
    problems = sample_problems("chains", 25, "test", 0)
    for window in (None, 40):
        with reference.disable_adapter():
            wanted = exact_match_accuracy(reference, tokenizer, problems, max_new_tokens=56, window=window)
        run = EvalRun(suite=("embedded",), limit=25, window=window, output_dir=str(tmp_path / str(window)))
        scores = run_eval(run, Console(quiet=True))["suites"]["embedded"]
        assert scores["accuracy"] == {"value": wanted.correct / 25, "low": wanted.low, "high": wanted.high}
        assert scores["tokens"]["mean"] == wanted.mean_tokens
        assert scores["evictions_mean"] == wanted.evictions_mean


def test_the_command_is_the_run(model, questions, tmp_path, capsys):
    options = ["--model", model, "--max-new-tokens", "12", "--limit", "3", "--samples", "2"]
    for name, more in {"a": [], "b": ["--window", "4", "--eviction", "h2o"]}.items():
        assert main(["eval", "--suite", f"own={questions}", *options, *more, "--output-dir", str(tmp_path / name)]) == 0
    shown_text = capsys.readouterr().out
    assert "2 samples at temperature 0.6" in shown_text
    assert "pass@k" in shown_text
    same, _ = evaluated(model, questions, tmp_path / "same", max_new_tokens=12, limit=3, samples=2)
    assert json.loads((tmp_path / "a" / "results.json").read_text())["suites"] == json.loads(json.dumps(same["suites"]))
    assert (tmp_path / "a" / "eval.png").stat().st_size > 10_000
    assert (tmp_path / "a" / "table.md").read_text().startswith("| suite | questions")
    compared = ["eval", "--compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", str(tmp_path / "c")]
    assert main(compared) == 0
    assert "detectable" in capsys.readouterr().out
    assert main(["eval", "--suite", "nothing", "--model", model]) == 2
    assert "choose from math500, aime24" in capsys.readouterr().err
    assert main(["eval", "--model", model]) == 2
    assert "names no suite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"suite": ("math500",)}, "needs a model"),
        ({"suite": ("other",), "model": "m"}, "give other=PATH"),
        ({"suite": ("embedded=file",)}, "takes no path"),
        ({"suite": ("embedded", "embedded")}, "several times"),
        ({"suite": ("embedded",), "samples": 2, "temperature": 0.0}, "would all be the same"),
        ({"suite": ("embedded",), "top_p": 0.9}, "changes nothing in greedy"),
        ({"suite": ("embedded",), "instruction": "x"}, "is for questions of text"),
        ({"suite": ("embedded",), "data": "folder"}, "no suite is looked for there"),
        ({"suite": ("embedded",), "samples": 0}, "samples must be at least 1"),
        ({"suite": ("embedded",), "resume": True, "overwrite": True}, "give one of them"),
        ({"suite": ("embedded",), "temperature": -1.0}, "must be 0"),
        ({"suite": ("embedded",), "temperature": float("nan")}, "must be 0"),
        ({"suite": ("embedded",), "temperature": 1.0, "top_p": 2.0}, "top_p must be in"),
        ({"suite": ("embedded",), "stop": ("",)}, "at least one character"),
        ({"suite": ("embedded",), "limit": 0}, "limit must be at least 1 question"),
        ({"suite": ("embedded",), "limit": {"embedded": 0}}, "limit of embedded must be at least 1 question"),
        (
            {"suite": ("embedded",), "limit": {"multiplication": 3}},
            "limit must be of suites of this run .embedded., got one of 'multiplication'",
        ),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalRun(**settings)


def test_chains_of_any_number_of_operations_are_suites():
    run = EvalRun(suite=("chains-1", "chains-12"), limit=3)
    short, longer = read_questions(run, print)
    assert model_name(run) == str(LONG_REASONER_FOLDER)
    assert model_name(EvalRun(suite=("embedded", "multiplication"))) == str(REASONER_FOLDER)
    assert [one.max_new_tokens for one in (short, longer)] == [33, 182]
    assert [len(str(e.prompt)) for e in (*short.examples, *longer.examples)] == [205] * 6
    assert longer.examples[0].identifier == "chains-12/0"
    for name, message in (("chains-0", "is not known"), ("chains-17", "choose chains-1 to chains-16")):
        with pytest.raises(ValueError, match=message):
            EvalRun(suite=(name,))
    several = r"several packaged models \(chains, long_chains\); ask them in runs of their own, or give a model"
    with pytest.raises(ValueError, match=several):
        EvalRun(suite=("embedded", "chains-2"))
    assert EvalRun(suite=("embedded", "chains-2"), model="mine").model == "mine"


def test_a_limit_of_each_suite():
    run = EvalRun(suite=("embedded", "multiplication"), limit={"embedded": 3, "multiplication": 2})
    assert [len(one.examples) for one in read_questions(run, print)] == [3, 2]
    # A suite without a number is asked whole.
    run = dataclasses.replace(run, limit={"multiplication": 2})
    assert [len(one.examples) for one in read_questions(run, print)] == [1000, 2]


@pytest.mark.parametrize(
    ("text", "limit"),
    [("7", 7), ("gsm8k=50", {"gsm8k": 50}), ("gsm8k=50, math500=20", {"gsm8k": 50, "math500": 20})],
)
def test_limits_as_they_are_written(text, limit):
    assert vars(build_parser().parse_args(["eval", "--limit", text]))["limit"] == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("many", "'many' is no number"),
        ("5,gsm8k=3", "neither a number nor SUITE=N"),
        ("gsm8k=3,gsm8k=4", "gsm8k is given twice"),
        ("gsm8k=x", "'x' is no number"),
    ],
)
def test_limits_that_are_none(text, message, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["eval", "--limit", text])
    assert message in capsys.readouterr().err


def test_what_a_suite_says_and_what_is_asked():
    aime, gsm = suites.SUITES["aime24"], suites.SUITES["gsm8k"]
    asked = EvalRun(suite=("aime24",), model="m").asked
    assert (asked(aime), asked(gsm)) == ((16, 0.6, 3072), (1, 0.0, 3072))
    asked = EvalRun(suite=("aime24",), model="m", temperature=0.0, max_new_tokens=5).asked
    assert (asked(aime), asked(gsm)) == ((1, 0.0, 5), (1, 0.0, 5))
    asked = EvalRun(suite=("aime24",), model="m", samples=4).asked
    assert (asked(aime), asked(gsm)) == ((4, 0.6, 3072), (4, 0.6, 3072))


def test_a_folder_of_suites(tmp_path):
    (tmp_path / "minerva_math").mkdir()
    row = {"problem": "w3", "solution": r"so \boxed{2}"}
    (tmp_path / "minerva_math" / "test.jsonl").write_text(json.dumps(row) + "\n")
    run = EvalRun(suite=("minerva",), model="m", data=str(tmp_path))
    (asked,) = read_questions(run, print)
    assert [(one.identifier, one.answer) for one in asked.examples] == [("minerva/0", "2")]
    with pytest.raises(ValueError, match="has no folder math500 or math_500; give math500=PATH"):
        read_questions(dataclasses.replace(run, suite=("math500",)), print)


@pytest.mark.real_model
@pytest.mark.skipif("THOUGHTCACHE_DATA" not in os.environ, reason="THOUGHTCACHE_DATA names no folder of data sets")
def test_every_suite_is_read_whole():
    names = tuple(name for name, suite in suites.SUITES.items() if suite.embedded is None)
    asked = read_questions(EvalRun(suite=names, model="m", data=os.environ["THOUGHTCACHE_DATA"]), pytest.fail)
    assert {one.name: len(one.examples) for one in asked} == {
        "math500": 500, "aime24": 30, "aime25": 30, "amc23": 40, "olympiadbench": 675, "minerva": 272, "gsm8k": 1319,
    }  # fmt: skip
