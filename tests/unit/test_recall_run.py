"""`thoughtcache recall`, end to end on a model of two small layers: folder, table, arms, going on, refusals."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.models import adapt, tiny_base, tiny_model
from support.text_model import save_passcode_model, save_text_model
from thoughtcache.recipes import recall
from thoughtcache.recipes.load_adapter import settings_to_start_from
from thoughtcache.recipes.recall import RecallRun, run_recall
from thoughtcache.recipes.recall_grid import run_recall_grid
from thoughtcache.studies.arms import arms_beside
from thoughtcache_cli import main

ARMS = ["adapter", "full cache", "window 8", *(f"window 12, {name}" for name in ("h2o", "random", "sliding", "snapkv"))]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_passcode_model(tmp_path_factory.mktemp("model")))


def run_of(model: str, output: Path, **changes: Any) -> RecallRun:
    few = {
        "steps": 2,
        "batch_size": 2,
        "code_length": 2,
        "max_evictions": 2,
        "codes": 3,
        "distances": (0, 2),
        "before": (0, 1),
    }
    return RecallRun(**{"model": model, "output_dir": str(output), "save_every": 1, **few, **changes})


def thought(**changes: Any) -> tc.ThoughtConfig:
    settings = {"memory": "attention", "memory_features": 6, "r": 2, "window": 8, "evict_fraction": 0.25}
    return tc.ThoughtConfig(**{**settings, **changes})


def test_a_run_leaves_adapter_table_and_picture(model, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    result = run_recall(run_of(model, tmp_path / "run"), thought(), console)
    assert list(result["recall"]) == ARMS
    for rows in result["recall"].values():
        assert [(row["num_before"], row["num_evictions"]) for row in rows] == [(0, 0), (0, 2), (1, 0), (1, 2)]
        assert all(row["codes"] == 3 and 0 <= row["low"] <= row["high"] <= 1 for row in rows)
    assert [step for step, _ in result["phases"]["teach"]["losses"]] == [1, 2]
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert written["recall"]["adapter"] == [dict(sorted(row.items())) for row in result["recall"]["adapter"]]
    assert (tmp_path / "run" / "recall.png").stat().st_size > 10_000
    text = console.export_text()
    assert "memory: 60 numbers per layer and sequence, as many as the keys and values of 3.8 tokens" in text
    assert all(name in text for name in ARMS)
    config = settings_to_start_from(str(tmp_path / "run" / "teach" / "adapter"), {})
    assert config.memory == "attention"

    again = run_of(model, tmp_path / "measured", steps=0, adapter=str(tmp_path / "run" / "teach" / "adapter"))
    measured = run_recall(again, config, Console(quiet=True))
    assert measured["recall"] == result["recall"]


def test_an_interrupted_run_measures_what_is_missing(model, tmp_path, monkeypatch):
    calls: list[str] = []
    probe = recall.probe_ages

    def interrupted(model: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(str(model.active_adapter))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return probe(model, *args, **kwargs)

    monkeypatch.setattr(recall, "probe_ages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recall(run_of(model, tmp_path), thought(), Console(quiet=True))
    assert calls == ["default", "arm", "arm"]
    result = run_recall(run_of(model, tmp_path, resume=True), thought(), Console(quiet=True))
    assert len(calls) == 3 + len(ARMS) - 2
    assert list(result["recall"]) == ARMS


def test_arms_leave_the_adapter_as_it_was():
    model = tiny_model(memory="attention", memory_features=6, window=8, evict_fraction=0.25)
    before = {name: (parameter.clone(), parameter.requires_grad) for name, parameter in model.named_parameters()}
    arms = arms_beside(model.peft_config["default"], extra_slots=4)
    ids = torch.tensor([[3, 1, 4, 1]])
    with torch.no_grad():
        with model.disable_adapter():
            base = model(ids).logits
        for arm in arms:
            with arm.active(model):
                assert torch.equal(model(ids).logits, base), "an arm is not the base model"
                assert model.peft_config["arm"].window == {"full cache": None, "window 8": 8}.get(arm.name, 12)
    after = {name: (parameter, parameter.requires_grad) for name, parameter in model.named_parameters()}
    assert before.keys() == after.keys()
    for name, (value, requires_grad) in before.items():
        assert torch.equal(after[name][0], value)
        assert after[name][1] == requires_grad


def test_the_size_of_what_remembers():
    tuner = tiny_model(memory="attention", memory_features=6).base_model
    assert tuner.state_size() == (2 * 6 * 5, 60 / 16)
    assert tiny_model().base_model.state_size() == (15, 15 / 16)
    lora = adapt(tiny_base(), initial_state="identity", absorb=False, num_global_tokens=3)
    assert lora.base_model.state_size() == (0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, "steps must be at least 0, got -1"),
        ({"distances": ()}, "distances must be numbers of evictions"),
        ({"distances": (3, -1)}, r"distances must be numbers of evictions from 0 on, got \[3, -1\]"),
        ({"before": ()}, "before must be numbers of evictions"),
        ({"before": (1, -2)}, r"before must be numbers of evictions from 0 on, got \[1, -2\]"),
        ({"codes": 0}, "codes must be at least 1"),
        ({"kind": "letters"}, "kind='letters'"),
        ({"dtype": "float8"}, "dtype='float8'"),
    ],
)
def test_settings_without_meaning_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_of("nowhere", tmp_path, **changes)


def test_a_tokenizer_that_does_not_know_the_words_is_refused(tmp_path):
    """All words would be one token, and every passcode right."""
    other = str(save_text_model(tmp_path / "model"))
    with pytest.raises(ValueError, match="kind='words': the tokenizer tells 1 of 16 of them apart"):
        run_recall(run_of(other, tmp_path / "run"), thought(), Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_a_full_cache_has_nothing_to_remember(model, tmp_path):
    with pytest.raises(ValueError, match="window=None evicts nothing"):
        run_recall(run_of(model, tmp_path / "run"), tc.ThoughtConfig(window=None), Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "positions", "message"),
    [
        (
            {"distances": (2, 99)},
            "absolute",
            "distances=99 evictions behind text for 1 under window=8 take texts of",
        ),
        ({"max_evictions": 99}, "absolute", "max_evictions=99 evictions"),
        ({"max_before": 99}, "absolute", "max_evictions=2 evictions behind text for 99 under window=8 take texts of"),
        ({"distances": (2, 99)}, "rolling", "distances=99 evictions"),
    ],
)
def test_texts_that_are_too_long_are_refused_before_teaching(model, tmp_path, changes, positions, message):
    with pytest.raises(ValueError, match=message):
        run_recall(run_of(model, tmp_path / "run", **changes), thought(positions=positions), Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_the_command_takes_its_options(model, tmp_path, capsys):
    options = ["recall", "--model", model, "--memory", "attention", "--memory-features", "6", "--window", "8"]
    few = [
        "--steps",
        "1",
        "--batch-size",
        "1",
        "--codes",
        "1",
        "--distances",
        "1,2",
        "--before",
        "0,1",
        "--no-baselines",
        "--r",
        "2",
    ]
    assert main([*options, *few, "--output-dir", str(tmp_path / "run")]) == 0
    assert "whole passcodes that are remembered" in capsys.readouterr().out
    assert main([*options, *few, "--output-dir", str(tmp_path / "run")]) == 2
    assert "already holds a run; add --resume" in capsys.readouterr().err
    assert main([*options, "--steps", "0", "--max-evictions", "4"]) == 2
    assert "--max-evictions changes nothing with --steps 0" in capsys.readouterr().err
    assert main(["recall", "--model", model, "--memory", "adapter", "--memory-write", "delta"]) == 2
    assert "--memory-write delta changes nothing under --memory adapter" in capsys.readouterr().err


def test_a_grid_runs_every_learning_rate_and_seed(model, tmp_path, monkeypatch):
    console = Console(record=True, width=200, file=io.StringIO())
    run = run_of(model, tmp_path, steps=3)  # the first step of a warm-up changes nothing
    grid = run_recall_grid(run, thought(), learning_rates=(0.01, 0.5), seeds=(0, 3), console=console)
    cells = [(0.01, 0), (0.01, 3), (0.5, 0), (0.5, 3)]
    assert [(cell["learning_rate"], cell["seed"]) for cell in grid["cells"]] == cells
    for (rate, seed), cell in zip(cells, grid["cells"], strict=True):
        folder = tmp_path / f"learning-rate-{rate:g}-seed-{seed}"
        alone = json.loads((folder / "results.json").read_text())
        assert alone["run"]["learning_rate"] == rate
        assert alone["run"]["seed"] == seed
        assert alone["recall"]["adapter"] == [dict(sorted(row.items())) for row in cell["recall"]]
        assert (list(alone["recall"]) == ["adapter"]) == (rate != 0.01 or seed != 0), "arms are measured once"
        assert cell["last_loss"] == pytest.approx(alone["phases"]["teach"]["losses"][-1][1])
    assert list(grid["beside"]) == ARMS[1:]
    losses = {tuple(loss for _, loss in cell["losses"]) for cell in grid["cells"]}
    assert len(losses) == 4
    for summary, own in zip(grid["by_learning_rate"], (grid["cells"][:2], grid["cells"][2:]), strict=True):
        assert summary["seeds"] == 2
        assert summary["last_loss"] == pytest.approx(sum(cell["last_loss"] for cell in own) / 2)
        for index, one in enumerate(summary["recall"]):
            shares = [cell["recall"][index]["right_codes"] / 3 for cell in own]
            assert (one["lowest"], one["highest"]) == (min(shares), max(shares))
            assert one["mean"] == pytest.approx(sum(shares) / 2)
    best = min(grid["by_learning_rate"], key=lambda one: one["last_loss"])["learning_rate"]
    assert f"lowest loss on the texts of training: learning rate {best:g}" in console.export_text()
    assert (tmp_path / "grid.png").stat().st_size > 10_000

    calls: list[int] = []
    monkeypatch.setattr(recall, "teach_recall", lambda *args, **kwargs: calls.append(1))
    with pytest.raises(ValueError, match="already holds a run; add --resume"):
        run_recall_grid(run, thought(), learning_rates=(0.01,), seeds=(0,), console=Console(quiet=True))
    resumed = run_of(model, tmp_path, steps=3, resume=True)
    again = run_recall_grid(resumed, thought(), learning_rates=(0.01, 0.5), seeds=(0, 3), console=Console(quiet=True))
    assert not calls
    assert again["cells"] == grid["cells"]


@pytest.mark.parametrize(
    ("rates", "seeds", "changes", "message"),
    [
        ((), (0,), {}, r"learning_rate must be one value or several different ones, got \[\]"),
        ((0.1,), (1, 1), {}, r"seed must be one value or several different ones, got \[1, 1\]"),
        ((0.1,), (1, 2), {"steps": 0}, "steps=0 teach nothing"),
    ],
)
def test_grids_without_meaning_are_refused(model, rates, seeds, changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_recall_grid(run_of(model, tmp_path, **changes), thought(), learning_rates=rates, seeds=seeds)
    assert not list(tmp_path.iterdir())


def test_the_command_line_gives_one_run_or_a_grid(model, tmp_path, monkeypatch, capsys):
    few = "--steps 1 --batch-size 1 --code-length 2 --max-evictions 1 --codes 1 --distances 0 --no-baselines"
    adapter = "--memory attention --memory-features 6 --r 2 --window 8"
    fixed = ["recall", "--model", model, *few.split(), *adapter.split()]
    main([*fixed, "--output-dir", str(tmp_path / "one"), "--seed", "5", "--learning-rate", "1e-3"])
    described = json.loads((tmp_path / "one" / "results.json").read_text())["run"]
    assert (described["seed"], described["learning_rate"]) == (5, 1e-3)
    main([*fixed, "--output-dir", str(tmp_path / "grid"), "--seed", "5,6"])
    cells = json.loads((tmp_path / "grid" / "grid.json").read_text())["cells"]
    assert [(cell["learning_rate"], cell["seed"]) for cell in cells] == [(0.02, 5), (0.02, 6)]
