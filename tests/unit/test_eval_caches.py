"""`thoughtcache eval --cache ... --cache ...`: every arm is the run that it would be alone, and one table has all."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.text_model import save_questions, save_text_model
from thoughtcache.evaluation.generations import Generation, read_generations
from thoughtcache.evaluation.sampling import sample_seed
from thoughtcache.recipes import bounded
from thoughtcache.recipes.evaluate import run as eval_run
from thoughtcache.recipes.evaluate.arms import arms_of
from thoughtcache.recipes.evaluate.compare import run_compare
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.run import GENERATIONS, run_eval
from thoughtcache.recipes.evaluate.several import run_eval_caches
from thoughtcache.recipes.evaluate.subject import bounded_model
from thoughtcache.recipes.load_model import load_base
from thoughtcache.records import CacheSettings
from thoughtcache_cli import main
from thoughtcache_cli.options.shared import cache_settings

QUIET = Console(quiet=True)


def saved_adapter(model: str, folder: Path, **settings: Any) -> str:
    torch.manual_seed(1)
    config = tc.ThoughtConfig(r=2, window=8, **settings)
    adapted = peft.get_peft_model(load_base(model, "float32"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("model")
    model, questions = save_text_model(folder / "model"), save_questions(folder / "test.jsonl")
    return {"suite": (f"own={questions}",), "model": str(model), "max_new_tokens": 24, "answer_type": "text"}


@pytest.fixture(scope="module")
def adapter(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    return saved_adapter(settings["model"], tmp_path_factory.mktemp("adapter"), num_global_tokens=2)


def answers(folder: str | Path) -> dict[Any, Generation]:
    return {one.key: one for one in read_generations(Path(folder) / GENERATIONS)}


def test_every_arm_is_the_run_that_it_would_be_alone(settings, adapter, tmp_path, monkeypatch):
    """Adapters and the base take turns on one model, which is loaded once."""
    memory = saved_adapter(settings["model"], tmp_path / "memory", memory="attention")
    caches: list[dict[str, Any]] = [
        {"window": 6, "eviction": "h2o"},
        {"adapter": adapter},
        {"adapter": memory, "window": 6},
        {"adapter": adapter, "window": None},
        {"window": 6, "evict_fraction": 0.5},
        {"name": "all"},
    ]
    loads: list[str] = []

    def counted(model: str, dtype: str) -> Any:
        loads.append(model)
        return load_base(model, dtype)

    monkeypatch.setattr(bounded, "load_base", counted)
    monkeypatch.setattr("thoughtcache.recipes.load_adapter.load_base", counted)
    sampled = {"samples": 2, "temperature": 1.0}
    found = run_eval_caches(EvalRun(**settings, **sampled, output_dir=str(tmp_path / "all")), caches, QUIET)
    assert len(loads) == 1
    names = [one["name"] for one in found["caches"]]
    assert names[0] == "window 6, h2o"
    assert names[4:] == ["window 6, evicts 0.5", "all"]
    seen = []
    for number, (cache, one) in enumerate(zip(caches, found["caches"], strict=True)):
        own = {name: value for name, value in cache.items() if name != "name"}
        folder = tmp_path / f"alone-{number}"
        alone = run_eval(EvalRun(**settings, **sampled, **own, output_dir=str(folder)), QUIET)
        assert answers(one["folder"]) == answers(folder)
        assert {name: one[name] for name in ("suites", "cache")} == {name: alone[name] for name in ("suites", "cache")}
        seen.append([answer.text for answer in answers(folder).values()])
    assert len({json.dumps(texts) for texts in seen}) == len(caches), "arms differ, or nothing was compared"
    written = json.loads((tmp_path / "all" / "results.json").read_text())
    assert written["caches"] == json.loads(json.dumps(found["caches"]))
    assert (tmp_path / "all" / "caches.png").stat().st_size > 10_000
    lines = (tmp_path / "all" / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == names


def right_under_the_full_cache(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same questions with the answers that the base gives under its full cache, three of them spoilt."""
    run_eval(EvalRun(**settings, output_dir=str(folder / "first")), QUIET)
    rows = [json.loads(line) for line in Path(settings["suite"][0].removeprefix("own=")).read_text().splitlines()]
    given = answers(folder / "first")
    for number, row in enumerate(rows):
        row["answer"] = given[f"own/{number}", 0].extracted if number % 2 else "apple"
    file = folder / "right.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**settings, "suite": (f"own={file}",)}


def test_differences_are_those_of_compare(settings, tmp_path):
    own = right_under_the_full_cache({**settings, "max_new_tokens": 8}, tmp_path)
    found = run_eval_caches(EvalRun(**own, output_dir=str(tmp_path / "all")), [{}, {"window": 4}], QUIET)
    first, second = found["caches"]
    assert first["suites"]["own"]["accuracy"]["value"] == 0.5
    assert first["less_first"] == {}
    wanted = run_compare(first["folder"], second["folder"], output_dir=str(tmp_path / "c"), console=QUIET)
    assert second["less_first"]["own"] == wanted["suites"]["own"]
    assert second["less_first"]["own"]["difference"] < 0
    table = (tmp_path / "all" / "table.md").read_text()
    assert "| -33.3 (-83.3 to +0.0) | 0 | 2 |" in table
    assert "| full cache |" in table


def test_a_run_goes_on_with_the_arms_that_are_missing(settings, tmp_path, monkeypatch):
    sampled: list[int] = []
    sample_answers = eval_run.sample_answers

    def counted(model: Any, tokenizer: Any, tasks: list[Any], *rest: Any) -> None:
        sampled.append(len(tasks))
        sample_answers(model, tokenizer, tasks, *rest)

    monkeypatch.setattr(eval_run, "sample_answers", counted)
    run = EvalRun(**settings, output_dir=str(tmp_path / "all"))
    run_eval_caches(run, [{"window": 4}], QUIET)
    with pytest.raises(ValueError, match="add --resume to go on"):
        run_eval_caches(run, [{"window": 4}, {}], QUIET)
    on = EvalRun(**settings, output_dir=str(tmp_path / "all"), resume=True)
    found = run_eval_caches(on, [{}, {"window": 4}], QUIET)
    assert sampled == [6, 6]
    assert [one["name"] for one in found["caches"]] == ["full cache", "window 4"]
    # An arm that was stopped goes on; one of the same name with other settings is refused.
    file = tmp_path / "all" / "arms" / "window-4" / GENERATIONS
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:4]))
    (file.parent / "phases" / "sample.json").unlink()
    again = run_eval_caches(on, [{}, {"window": 4}], QUIET)
    assert sampled == [6, 6, 2]
    assert [one["suites"] for one in again["caches"]] == [one["suites"] for one in found["caches"]]
    assert (tmp_path / "all" / "table.md").read_text().splitlines()[3].endswith("| - |"), (
        "seconds of a part say nothing"
    )
    with pytest.raises(ValueError, match="window=4 then, window=5 now"):
        run_eval_caches(on, [{"name": "window 4", "window": 5}], QUIET)
    # A single run and several do not share a folder.
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_eval(on, QUIET)
    run_eval(EvalRun(**settings, output_dir=str(tmp_path / "one")), QUIET)
    with pytest.raises(ValueError, match="holds a run with other settings"):
        run_eval_caches(EvalRun(**settings, output_dir=str(tmp_path / "one"), resume=True), [{}], QUIET)


def test_a_run_that_starts_anew_forgets_the_arms_that_it_does_not_reach(settings, tmp_path, monkeypatch):
    run = EvalRun(**settings, output_dir=str(tmp_path), seed=0, samples=1, temperature=1.0)
    caches: list[dict[str, Any]] = [{}, {"window": 4}]
    run_eval_caches(run, caches, QUIET)
    other = replace(run, overwrite=True, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(eval_run, "sample_answers", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_eval_caches(other, caches, QUIET)
    found = run_eval_caches(replace(other, overwrite=False, resume=True), caches, QUIET)
    assert {one.seed for one in answers(found["caches"][1]["folder"]).values()} == {
        sample_seed(1, f"own/{number}", 0) for number in range(6)
    }
    assert found["caches"][1]["last_call"]["answers"] == 6


@pytest.mark.parametrize(
    ("run", "caches", "message"),
    [
        ({}, [], "names no cache"),
        ({"window": 4}, [{}], "window=4 is the cache of a run with a single one"),
        ({"eviction": "h2o"}, [{}], "eviction='h2o' is the cache of"),
        ({"eviction_budgets": "pyramid"}, [{}], "eviction_budgets='pyramid' is the cache of"),
        ({"select": "think@n"}, [{}], "one cache per run"),
        ({}, [{"size": 4}], "'size' is no setting of a cache; choose among name, adapter, window"),
        ({}, [{}, {"window": None}], "'full cache' and 'full cache' are the same"),
        ({}, [{"window": 4}, {"window": 4, "name": "other"}], "'window 4' and 'other' are the same"),
        ({}, [{"window": 8}, {"window": 8, "eviction": "sliding"}], "'window 8' and 'window 8, sliding' are the same"),
        ({}, [{"window": 8}, {"window": 8, "positions": "absolute"}], "are the same"),
        ({}, [{"window": 8}, {"window": 8, "evict_fraction": 0.26}], "are the same"),
        ({}, [{"window": 8}, {"window": 8, "eviction_budgets": "even"}], "are the same"),
        ({}, [{"window": 8}, {"window": 8, "eviction_budgets": [8, 8]}], "are the same"),
        (
            {},
            [{"window": 8, "eviction_budgets": budgets} for budgets in ("pyramid", "pyramid:beta=20")],
            "are the same",
        ),
        (
            {},
            [{"window": 8, "eviction": "streaming", "eviction_options": own} for own in ({}, {"sinks": 4})],
            "are the same",
        ),
        ({}, [{"window": 4, "name": "a b"}, {"name": "a, b"}], "would share the folder 'a-b'"),
        ({}, [{"name": "/"}], "cannot be the name of a folder"),
        ({}, [{"name": "x" * 101}], "cannot be the name of a folder"),
        ({}, [{"eviction": "h2o"}], "changes nothing with the full cache"),
        ({}, [{"window": 4, "eviction": "nothing"}], "eviction='nothing' is not known"),
        ({}, [{"window": 4, "eviction": "h2o", "eviction_options": {"sinks": 1}}], "sinks=1 is not known"),
        ({}, [{"eviction_budgets": "pyramid"}], "changes nothing with the full cache"),
        ({}, [{"window": 4, "eviction_budgets": "cone"}], "eviction_budgets='cone' is not known"),
        ({}, [{"window": 4, "eviction_budgets": [5, 4]}], "have the mean 4.5"),
        ({}, [{"window": 0}], "window must be at least 1"),
        ({}, [{"window": "large"}], "window='large' is not known"),
        ({}, [{"adapter": "nowhere"}], "nowhere holds no adapter"),
    ],
)
def test_arms_without_a_meaning_are_refused_before_anything_is_loaded(run, caches, message, monkeypatch):
    monkeypatch.setattr(bounded, "load_base", None)
    with pytest.raises(ValueError, match=message):
        arms_of(EvalRun(suite=("embedded",), **run), caches)


def test_the_adapter_of_the_run_is_that_of_arms_that_name_none(adapter):
    arms = arms_of(EvalRun(suite=("embedded",), adapter=adapter), [{}, {"window": 4}, {"adapter": None, "window": 4}])
    assert [arm.run.adapter for arm in arms] == [adapter, adapter, None]
    assert [arm.name for arm in arms] == ["own cache", "window 4", "base, window 4"]


def test_names_say_budgets():
    budgets: list[Any] = ["pyramid:beta=8", [5, 3], "even"]
    arms = arms_of(EvalRun(suite=("embedded",)), [{"window": 4, "eviction_budgets": own} for own in budgets])
    assert [arm.name for arm in arms] == [
        "window 4, budgets pyramid:beta=8", "window 4, budgets 5+3", "window 4, budgets even",
    ]  # fmt: skip
    assert [arm.run.eviction_budgets for arm in arms] == [arm.settings["eviction_budgets"] for arm in arms] == budgets


@pytest.mark.parametrize(("budgets", "text"), [(None, "window 4, h2o"), ((5, 3), "window 4, h2o, budgets 3 to 5")])
def test_a_cache_in_words(budgets, text):
    cache = CacheSettings(window=4, num_evicted=1, eviction="h2o", budgets=budgets)
    assert bounded.cache_text(cache) == text
    assert bounded.cache_text(CacheSettings(window=None, num_evicted=None, eviction="h2o")) == "full cache"


def test_the_cache_of_an_adapter_may_be_written_out(adapter):
    """The adapter's own window is 8."""
    run = EvalRun(suite=("embedded",), adapter=adapter)
    own = arms_of(run, [{}])[0]
    assert bounded_model(own.run).config().window == 8
    for cache in ({"window": 8}, {"adapter": f"{adapter}/"}, {"window": 8, "eviction": "sliding"}):
        with pytest.raises(ValueError, match="are the same; leave out one of them"):
            arms_of(run, [{}, cache])
    assert len(arms_of(run, [{}, {"window": None}, {"window": 5}, {"window": 8, "eviction": "h2o"}])) == 4


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("full", {"window": None}),
        ("own", {}),
        ("adapter=none, full", {"adapter": None, "window": None}),
        ("window=prompt", {"window": "prompt"}),
        ("window=64,eviction=streaming,eviction-option=sinks=2,eviction-option=x=yes,name=my arm",
         {"window": 64, "eviction": "streaming", "eviction_options": {"sinks": 2, "x": "yes"}, "name": "my arm"}),
        ("window=8,eviction-budgets=10+6", {"window": 8, "eviction_budgets": [10, 6]}),
        ("window=8,eviction-budgets=pyramid:beta=8", {"window": 8, "eviction_budgets": "pyramid:beta=8"}),
        ("window=8,eviction-budgets=8+4/6+6", {"window": 8, "eviction_budgets": [[8, 4], [6, 6]]}),
        ("window=8,eviction-budgets=headkv:scores=a+b/c+1.json",
         {"window": 8, "eviction_budgets": "headkv:scores=a+b/c+1.json"}),
        ("window=8,eviction-budgets=headkv:beta=1.5+scores=a+b.json+group=2+temperature=2",
         {"window": 8, "eviction_budgets": "headkv:beta=1.5,scores=a+b.json,group=2,temperature=2"}),
        ("window=8,eviction-budgets=headkv:scores=1+beta.json", {"window": 8,
          "eviction_budgets": "headkv:scores=1+beta.json"}),
        ("window=8,eviction-budgets=even", {"window": 8, "eviction_budgets": "even"}),
        ("adapter=a/b,evict-fraction=0.5,positions=rolling",
         {"adapter": "a/b", "evict_fraction": 0.5, "positions": "rolling"}),
    ],
)  # fmt: skip
def test_settings_as_they_are_written(text, settings):
    assert cache_settings(text) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("windows=4", "'windows=4' in 'windows=4' is no setting of a cache"),
        ("window", "is no setting"),
        ("window=", "is no setting"),
        ("window=4,window=5", "says window twice"),
        ("full,window=4", "says window twice"),
        ("evict-fraction=half", "'evict-fraction=half' in .* has no usable value"),
        ("window=4,eviction-option=sinks", "is no eviction-option=KEY=VALUE"),
        ("window=4,eviction-option=sinks=1,eviction-option=sinks=2", "says sinks twice"),
    ],
)
def test_settings_that_are_none(text, message):
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        cache_settings(text)


def test_the_command_is_the_run(settings, tmp_path, capsys):
    command = ["eval", "--suite", settings["suite"][0], "--model", settings["model"], "--max-new-tokens", "12"]
    arms = ["--cache", "full", "--cache", "window=4,eviction=h2o,name=mine"]
    assert main([*command, *arms, "--output-dir", str(tmp_path / "all")]) == 0
    shown = capsys.readouterr().out
    assert "less the first (95 %)" in shown
    assert [one["name"] for one in json.loads((tmp_path / "all" / "results.json").read_text())["caches"]] == [
        "full cache", "mine",
    ]  # fmt: skip
    assert main([*command, *arms, "--eviction-budgets", "pyramid"]) == 2
    assert "write it into each one" in capsys.readouterr().err
    assert main([*command, *arms, "--window", "4"]) == 2
    assert "--window is the cache of a run without --cache; leave it out" in capsys.readouterr().err
    assert main([*command, "--cache", "window=4", "--cache", "window=4"]) == 2
    assert "are the same; leave out one of them" in capsys.readouterr().err
