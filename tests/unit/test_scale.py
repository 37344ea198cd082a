"""`thoughtcache scale`: an answer that is cut is the answer under a smaller bound, and what comes of all lengths."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.text_model import save_questions, save_text_model
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.sampling import Sampling, Task
from thoughtcache.evaluation.token_answers import TokenAnswer, cut, sample_token_answers
from thoughtcache.recipes.bounded import BoundedModel
from thoughtcache.recipes.evaluate import cutting
from thoughtcache.recipes.evaluate.compare import run_compare
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.load_model import load_base
from thoughtcache.recipes.scaling.operations import run_scale_operations
from thoughtcache.recipes.scaling.points import lengths_of
from thoughtcache.recipes.scaling.run import run_scale
from thoughtcache.records import TokenFilters
from thoughtcache.tasks.embedded.reasoner import load_reasoner
from thoughtcache.tasks.example import Example
from thoughtcache_cli import main

QUIET = Console(quiet=True)
WINDOW = 6
LENGTHS = (1, WINDOW - 1, WINDOW, WINDOW + 1, WINDOW + 2, 23, 31)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    model, questions = save_text_model(folder / "model"), save_questions(folder / "test.jsonl", 4)
    return {"suite": (f"own={questions}",), "model": str(model), "answer_type": "text"}


@pytest.fixture(scope="module")
def adapter(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = tc.ThoughtConfig(r=2, num_global_tokens=2, window=WINDOW)
    adapted = peft.get_peft_model(load_base(settings["model"], "float32"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return str(folder)


def answers(folder: Path) -> dict[Any, Generation]:
    return {one.key: one for one in read_generations(folder / GENERATIONS)}


CACHES: dict[str, dict[str, Any]] = {
    "full": {},
    "sliding": {"window": WINDOW, "evict_fraction": 0.5},
    "h2o": {"window": WINDOW, "eviction": "h2o"},
    "random": {"window": WINDOW, "eviction": "random"},
    "rolling": {"window": WINDOW, "positions": "rolling", "eviction": "snapkv"},
    "budgets": {"window": WINDOW, "evict_fraction": 1 / 3, "eviction_budgets": "pyramid"},
    "adapter": {},
}


@pytest.mark.parametrize("name", CACHES)
def test_an_answer_that_is_cut_is_the_one_under_a_smaller_bound(name, settings, adapter):
    """Every bound is sampled by itself: tokens, evictions and ends are compared, with stop texts and without."""
    own = adapter if name == "adapter" else None
    model, tokenizer, config = BoundedModel(model=settings["model"], adapter=own, **CACHES[name]).load()
    seen = set()
    for temperature, filters, stop in ((0.0, TokenFilters(), ()), (1.3, TokenFilters(top_k=9), ("w7",))):
        sampling = Sampling(
            window=config.window, num_slots=3, seed=0, filters=filters, stop_strings=stop, pack_weights=True
        )
        found: dict[int, dict[Any, TokenAnswer]] = {}
        for length in LENGTHS:
            tasks = [
                Task(
                    suite="own",
                    example=Example(prompt="", answer="1", identifier=f"own/{number}"),
                    prompt_ids=[1, *range(3, 4 + number)],
                    sample=0,
                    temperature=temperature,
                    max_new_tokens=length,
                )
                for number in range(5)
            ]
            answers: list[TokenAnswer] = []
            sample_token_answers(model, tokenizer, tasks, sampling, answers.append)
            found[length] = {answer.key: answer for answer in answers}
        longest = found[max(LENGTHS)]
        for length in LENGTHS:
            assert {key: cut(answer, length) for key, answer in longest.items()} == found[length]
        seen |= {(answer.finish_reason, len(answer.evictions)) for own in found.values() for answer in own.values()}
    assert {"stop", "length"} == {end for end, _ in seen}
    assert len({number for _, number in seen}) > (1 if config.window is None else 4) - 1


def test_lengths_that_are_sampled_by_themselves(settings, adapter, tmp_path):
    caches: list[dict[str, Any]] = [{"window": WINDOW, "eviction": "h2o"}, {"adapter": adapter}]
    run = EvalRun(**settings, samples=2, temperature=1.3)
    both = {}
    for name, sample_each in (("cut", False), ("each", True)):
        own = replace(run, output_dir=str(tmp_path / name))
        both[name] = run_scale(own, caches, lengths=(3, 9, 15), sample_each=sample_each, console=QUIET)["points"]
    assert len(both["cut"]) == len(both["each"]) == 6
    for one, other in zip(both["cut"], both["each"], strict=True):
        assert answers(Path(one["folder"])) == answers(Path(other["folder"]))
        named = ("seconds", "peak_memory_mib", "folder")
        assert {k: v for k, v in one.items() if k not in named} == {k: v for k, v in other.items() if k not in named}
        # Those of the longest alone are known where it was cut.
        assert other["seconds"] > 0
        assert (one["seconds"] is None) == (one["length"] != 15)
        assert other["peak_memory_mib"] >= 0
        assert (one["peak_memory_mib"] is None) == (one["length"] != 15)


def test_a_cut_by_hand():
    answer = TokenAnswer(
        question="q",
        sample=0,
        seed=1,
        token_ids=list(range(10)),
        finish_reason="stop",
        evictions=[[4, 2], [6, 2], [8, 2]],
    )
    assert cut(answer, 10) is answer
    shorter = cut(answer, 7)
    # The seventh token is drawn and not processed: what would have left before it stays.
    assert asdict(shorter) == {
        **asdict(answer), "token_ids": [0, 1, 2, 3, 4, 5, 6], "finish_reason": "length", "evictions": [[4, 2]],
    }  # fmt: skip
    assert cut(answer, 8).evictions == [[4, 2], [6, 2]]


def right_from_some_length_on(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same questions with what the base says under its full cache in 8 tokens as the answer."""
    run = EvalRun(**settings, output_dir=str(folder / "first"))
    run_scale(run, [{}], lengths=(8,), console=QUIET)
    given = answers(folder / "first" / "arms" / "full-cache")
    rows = [json.loads(line) for line in Path(settings["suite"][0].removeprefix("own=")).read_text().splitlines()]
    for number, row in enumerate(rows):
        row["answer"] = given[f"own/{number}", 0].extracted
    file = folder / "right.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**settings, "suite": (f"own={file}",)}


def test_what_is_written(settings, tmp_path):
    own = right_from_some_length_on(settings, tmp_path)
    run = EvalRun(**own, output_dir=str(tmp_path / "all"))
    found = run_scale(run, [{}, {"window": 4}], lengths=(12, 4, 8), base_length=4, console=QUIET)
    points = found["points"]
    assert [(p["cache"], p["length"], p["factor"]) for p in points] == [
        ("full cache", 4, 1.0), ("full cache", 8, 2.0), ("full cache", 12, 3.0),
        ("window 4", 4, 1.0), ("window 4", 8, 2.0), ("window 4", 12, 3.0),
    ]  # fmt: skip
    assert [p["accuracy"]["value"] for p in points[:3]] == [0.0, 1.0, 0.0]
    assert points[4]["difference"] == points[4]["accuracy"]["value"] - 1.0 < 0
    assert points[0]["difference"] is None
    # Each length is an evaluation that others can be compared with.
    folders = (points[1]["folder"], points[4]["folder"])
    wanted = run_compare(*folders, output_dir=str(tmp_path / "c"), console=QUIET)["suites"]["own"]
    assert {**points[4]["less_first"], "difference": points[4]["difference"]} == wanted
    folder = tmp_path / "all"
    assert json.loads((folder / "results.json").read_text())["points"] == json.loads(json.dumps(points))
    rows = list(csv.DictReader((folder / "scale.csv").read_text().splitlines()))
    assert [float(row["accuracy"]) for row in rows] == [p["accuracy"]["value"] for p in points]
    assert (rows[0]["seconds"], rows[0]["less_first"]) == ("", "")
    assert float(rows[5]["seconds"]) == points[5]["seconds"]
    assert (folder / "scale.png").stat().st_size > 10_000
    table = (folder / "table.md").read_text().splitlines()
    assert table[0].startswith("| cache | at most | factor | accuracy (95 %) | less the first (95 %) | cut | tokens")
    assert table[3].startswith("| full cache | 8 | 2x | 100.0 % (")


@pytest.fixture
def short_model(tmp_path):
    """The reasoner of long chains with 300 positions, too few for 16 operations."""
    model, tokenizer = load_reasoner(task="long_chains")
    model.config.max_position_embeddings = 300
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "short")
    return str(tmp_path / "short")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["scale", "--operations", "3,16", "--model", "short"], "suite chains-16: .* give fewer operations, give the"),
        (["scale", "--suite", "embedded", "--lengths", "5,2000"], "suite embedded: .* give shorter lengths, give the"),
        (
            ["scale", "--suite", "embedded", "--lengths", "5,2000", "--sample-each"],
            "take .* positions.*'positions=rolling'",
        ),
        (
            ["eval", "--suite", "chains-16", "--model", "short"],
            "lower --max-new-tokens, leave out .* give the cache 'full cache' a window",
        ),
    ],
)
def test_positions_of_all_arms_are_looked_at_before_anything_is_sampled(
    command, message, short_model, tmp_path, capsys
):
    command = [short_model if word == "short" else word for word in command]
    arms = ["--cache", "window=12,positions=rolling", "--cache", "full"]
    folder = tmp_path / "all"
    assert main([*command, "--limit", "1", *arms, "--output-dir", str(folder)]) == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not folder.exists()


@pytest.mark.parametrize("suite", ["chains-16", "chains-3,chains-16"])
def test_positions_of_a_single_run(suite, short_model, tmp_path, capsys):
    folder = tmp_path / "one"
    assert main(["eval", "--suite", suite, "--model", short_model, "--limit", "1", "--output-dir", str(folder)]) == 2
    assert re.search("suite chains-16: .*use --positions rolling with a window", capsys.readouterr().err)
    assert not folder.exists()


@pytest.mark.parametrize("sample_each", [False, True])
def test_a_folder_may_be_written_in_any_way(sample_each, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = EvalRun(**settings, output_dir=".//all/")
    found = run_scale(run, [{}], lengths=(2, 4), sample_each=sample_each, console=QUIET)["points"]
    assert [p["length"] for p in found] == [2, 4]


def test_a_run_goes_on_and_takes_more_lengths_and_arms(settings, tmp_path, monkeypatch):
    sampled: list[int] = []
    sample = cutting.sample_token_answers

    def counted(model: Any, tokenizer: Any, tasks: list[Any], *rest: Any) -> None:
        sampled.append(len(tasks))
        sample(model, tokenizer, tasks, *rest)

    monkeypatch.setattr(cutting, "sample_token_answers", counted)
    run = EvalRun(**settings, output_dir=str(tmp_path / "all"))
    first = run_scale(run, [{}], lengths=(4, 12), console=QUIET)
    on = replace(run, resume=True)
    found = run_scale(on, [{}, {"window": 4}], lengths=(4, 8, 12), console=QUIET)
    assert sampled == [4, 4]
    assert [p["length"] for p in found["points"]] == [4, 8, 12] * 2
    assert [found["points"][i] for i in (0, 2)] == first["points"]
    # Tokens that are lost are sampled again, and so are seconds of a part not told.
    arm = tmp_path / "all" / "arms" / "window-4"
    lines = (arm / cutting.TOKENS).read_text().splitlines(keepends=True)
    (arm / cutting.TOKENS).write_text("".join(lines[:3]) + lines[3][:20])
    (arm / "phases" / "sample.json").unlink()
    (arm / GENERATIONS).write_text("")
    again = run_scale(on, [{}, {"window": 4}], lengths=(4, 8, 12), console=QUIET)
    assert sampled == [4, 4, 1]
    assert again["points"][5]["seconds"] is None
    assert [p["accuracy"] for p in again["points"]] == [p["accuracy"] for p in found["points"]]
    with pytest.raises(ValueError, match="longest=12 then, longest=16 now"):
        run_scale(on, [{}], lengths=(4, 16), console=QUIET)
    with pytest.raises(ValueError, match="sample_each=False then, sample_each=True now"):
        run_scale(on, [{}], lengths=(4, 12), sample_each=True, console=QUIET)


def test_a_run_that_starts_anew_leaves_nothing_of_the_older_one(settings, tmp_path):
    """Answers that were cut are kept in folders of their own, and those of another seed are others."""
    run = EvalRun(**settings, temperature=1.3, output_dir=str(tmp_path / "all"))
    found = run_scale(run, [{}], lengths=(4, 12), console=QUIET)["points"]
    older = [answers(Path(point["folder"])) for point in found]
    other = replace(run, seed=1)
    again = run_scale(replace(other, overwrite=True), [{}], lengths=(4, 12), console=QUIET)["points"]
    apart = run_scale(replace(other, output_dir=str(tmp_path / "b")), [{}], lengths=(4, 12), console=QUIET)["points"]
    for old, one, wanted in zip(older, again, apart, strict=True):
        assert answers(Path(one["folder"])) == answers(Path(wanted["folder"])) != old
        named = ("seconds", "peak_memory_mib", "folder")
        assert {k: v for k, v in one.items() if k not in named} == {k: v for k, v in wanted.items() if k not in named}


def test_chains_that_grow(tmp_path, capsys):
    """The packaged reasoner of long chains solves all lengths with its full cache, and none under a window."""
    command = ["scale", "--operations", "6,2", "--limit", "4", "--cache", "full", "--cache", "window=16"]
    assert main([*command, "--output-dir", str(tmp_path)]) == 0
    assert "operations" in capsys.readouterr().out
    points = json.loads((tmp_path / "results.json").read_text())["points"]
    assert [(p["cache"], p["suite"], p["length"], p["factor"]) for p in points] == [
        ("full cache", "chains", 2, 2.0), ("full cache", "chains", 6, 6.0),
        ("window 16", "chains", 2, 2.0), ("window 16", "chains", 6, 6.0),
    ]  # fmt: skip
    assert [p["accuracy"]["value"] for p in points] == [1.0, 1.0, 0.0, 0.0]
    assert [p["difference"] for p in points] == [None, None, -1.0, -1.0]
    assert all(p["seconds"] > 0 for p in points)
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    assert main([*command, "--output-dir", str(tmp_path), "--resume"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["points"] == points
    with pytest.raises(ValueError, match="suite must be chains-N only, with N operations, got chains-3, mine"):
        run_scale_operations(EvalRun(suite=("chains-3", "mine=a.jsonl"), model="any"), [{}], console=QUIET)


@pytest.mark.parametrize(
    ("run", "lengths", "message"),
    [
        ({}, (), "lengths must be different numbers"),
        ({}, (4, 4), "lengths must be different numbers"),
        ({"max_new_tokens": 9}, (4,), "max_new_tokens=9 is what lengths say here"),
        ({"thinking": "markovian"}, (4, 8), "thinking=markovian cannot be cut"),
        ({"select": "think@n"}, (4, 80), "select=think@n cannot be cut"),
        ({}, (0, 4), "lengths must be different numbers of at least 1 token"),
        ({"window": 4}, (4,), "window=4 is the cache of a run"),
    ],
)
def test_what_cannot_be_cut_is_refused(run, lengths, message):
    with pytest.raises(ValueError, match=message):
        run_scale(EvalRun(suite=("embedded",), **run), [{}], lengths=lengths, console=QUIET)


def test_a_bound_above_the_run_s_own_is_refused():
    with pytest.raises(ValueError, match="lengths must be 1 to max_new_tokens=56 tokens, got 57; suite embedded"):
        run_eval(EvalRun(suite=("embedded",)), QUIET, lengths=(20, 57))


def test_lengths_and_factors():
    assert lengths_of((56, 14), None, 14) == (14, 56)
    assert lengths_of(None, (0.5, 2.0), 15) == (8, 30)
    assert lengths_of(None, None, 10) == (10, 20, 40, 80, 160, 320, 640)
    for given, message in (
        (((4,), (1.0,), 4), "give one of them"),
        ((None, None, None), "give lengths in tokens"),
        ((None, (1.0, 1.01), 10), r"different numbers of at least 1 token, got \[10, 10\]"),
        (((4, 4), None, None), "different numbers"),
        (((0, 4), None, None), "at least 1 token"),
        ((None, (1.0,), 0), "base_length must be at least 1"),
        ((None, (1.0, float("inf")), 8), "factors must be finite and positive, got inf"),
        ((None, (float("nan"),), 8), "factors must be finite and positive, got nan"),
        ((None, (-1.0,), 8), "factors must be finite and positive, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            lengths_of(*given)


def test_the_command_is_the_run(settings, tmp_path, capsys):
    command = ["scale", "--suite", settings["suite"][0], "--model", settings["model"]]
    some = ["--base-length", "4", "--factors", "1,2", "--window", "4", "--eviction", "h2o"]
    assert main([*command, *some, "--output-dir", str(tmp_path / "one")]) == 0
    shown = capsys.readouterr().out
    assert "sampled at the longest and cut" in shown
    points = json.loads((tmp_path / "one" / "results.json").read_text())["points"]
    assert [(p["cache"], p["length"]) for p in points] == [("window 4, h2o", 4), ("window 4, h2o", 8)]
    arms = ["--cache", "full", "--cache", "window=4", "--lengths", "4,8", "--sample-each"]
    assert main([*command, *arms, "--output-dir", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "arms" / "window-4" / "length-4" / "results.json").is_file()
    assert main(command) == 2
    assert "--base-length" in capsys.readouterr().err
