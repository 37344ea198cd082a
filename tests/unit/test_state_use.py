"""What states carry: the kinds of states are what they are called, and the statistics are those of the definition."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support.text_model import save_text_model

import thoughtcache as tc
from support.models import adapt, tiny_base, tiny_model
from support.texts import Text, texts_of
from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.load_adapter import adapted_model
from thoughtcache.recipes.probe.run import run_probe
from thoughtcache.recipes.probe.subject import ProbeRun
from thoughtcache.recipes.texts import pieces_of
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import given_text, with_own_evictions
from thoughtcache.studies.state_use import FULL, NONE, OTHERS, OWN, WINDOW, _batches, _losses, probe_state_use
from thoughtcache_cli import main

MEMORIES: list[dict[str, Any]] = [{}, {"memory": "attention", "memory_features": 6}]
KINDS = [OWN, NONE, OTHERS, WINDOW, FULL]


def model_of(**options: Any) -> Any:
    return tiny_model(window=5, evict_fraction=0.4, **options)


def texts_under(model: Any, texts: list[Text], first: int = 0, last: int | None = None) -> list[Rollout]:
    cache = find_tuner(model).thought_config.resolve_window(None)
    return [given_text(*text, cache, seed=row) for row, text in enumerate(texts)][first:last]


def losses(model: Any, texts: list[Text], **options: Any) -> torch.Tensor:
    rollouts = with_own_evictions(model, texts_under(model, texts))
    with torch.no_grad():
        return -tc.replay(model, rollouts, anchored=False, **options).logprobs


@pytest.mark.parametrize("memory", MEMORIES)
def test_nothing_written_is_what_absorbs_nothing(memory):
    texts = texts_of(3)
    if memory:  # an adapter that starts as the base is the base under the window as long as nothing is written
        model = adapt(tiny_base(), randomise=False, window=5, evict_fraction=0.4, **memory)
        with model.disable_adapter():
            expected = losses(model, texts)
    else:
        model = model_of()
        model.peft_config["default"].absorb = False
        expected = losses(model, texts)
        model.peft_config["default"].absorb = True
    found = _losses(model, texts_under(model, texts))
    torch.testing.assert_close(found[NONE], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found[OWN], losses(model, texts), rtol=0, atol=1e-12)
    assert (found[OWN] - found[NONE])[:, 6:].abs().max() > 1e-6


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("eviction", ["sliding", "snapkv"])
def test_states_of_others_are_those_of_the_row_before(memory, eviction):
    """Of three rows with texts a, a, b the second one reads the states of its own text."""
    model = model_of(**memory, eviction=eviction, positions="rolling")
    (prompt, a), (_, b) = texts_of(2)
    found = _losses(model, texts_under(model, [(prompt, a), (prompt, a), (prompt, b)]))
    own, other, before = found[OWN], found[OTHERS], 6  # the first thought that is predicted after an eviction
    torch.testing.assert_close(other[:, :before], own[:, :before], rtol=0, atol=1e-12)
    torch.testing.assert_close(other[1], own[1], rtol=0, atol=1e-12)
    assert (other[0, before:] - own[0, before:]).abs().max() > 1e-6
    assert (other[2, before:] - own[2, before:]).abs().max() > 1e-6


@pytest.mark.parametrize("memory", MEMORIES)
def test_the_statistics_are_those_of_the_definition(memory):
    model, texts, done = model_of(**memory), texts_of(5), []
    found = probe_state_use(model, texts, batch_size=2, progress=done.append)
    assert [one.states for one in found] == KINDS
    assert done == [2, 3]
    own = losses(model, texts)
    with model.disable_adapter():
        window, full = losses(model, texts), losses(model, texts, full_cache=True)
    parts = [_losses(model, texts_under(model, texts, first, last))[OTHERS] for first, last in ((0, 2), (2, 5))]
    first = 6  # the window of 5 is full when thought 5 is processed
    for use, loss in ((found[0], own), (found[2], torch.cat(parts)), (found[3], window), (found[4], full)):
        assert use.texts == 5
        assert use.nats == pytest.approx(loss[:, first:].mean().item())
        # Two thoughts leave at once: at 5, 7, 9, 11, 13, the last one of which predicts nothing.
        expected = [loss[:, start : start + 2].mean().item() for start in (6, 8, 10, 12)]
        assert use.by_evictions == pytest.approx(expected)
        differences = (loss - own)[:, first:].mean(dim=1)
        assert use.difference == pytest.approx(differences.mean().item(), abs=1e-12)
        if use.states != OWN:
            assert (use.low, use.high) == pytest.approx(mean_interval(differences.tolist()))
    assert (found[0].difference, found[0].low, found[0].high) == (0, 0, 0)


def test_no_batch_has_a_single_text():
    assert _batches(6, 3) == [(0, 3), (3, 6)]
    assert _batches(7, 3) == [(0, 3), (3, 7)]
    assert _batches(8, 3) == [(0, 3), (3, 6), (6, 8)]
    assert _batches(3, 8) == [(0, 3)]


def test_the_interval_of_a_mean():
    """Four numbers: 2.5 and 3.1824 (Student, three degrees of freedom) times their standard error."""
    error = (5 / 3 / 4) ** 0.5
    assert mean_interval([1.0, 2.0, 3.0, 4.0]) == pytest.approx((2.5 - 3.182446 * error, 2.5 + 3.182446 * error))
    assert mean_interval([2.0, 2.0]) == (2.0, 2.0)
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="confidence must be strictly between 0 and 1, got 1"):
        mean_interval([1.0, 2.0], 1.0)


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        ({"initial_state": "identity", "absorb": False, "num_global_tokens": 3}, {}, "carry nothing"),
        ({}, {"count": 2}, "three texts and batches of two are the least, got 2 texts"),
        ({}, {"batch_size": 1}, "three texts and batches of two are the least, got 4 texts in batches of 1"),
        ({}, {"length": 6}, "all 6 thoughts stay in window=5"),
    ],
)
def test_what_says_nothing_is_refused(options, changes, message):
    model = adapt(tiny_base(), window=5, evict_fraction=0.4, **options)
    texts = texts_of(changes.get("count", 4), changes.get("length", 14))
    with pytest.raises(ValueError, match=message):
        probe_state_use(model, texts, batch_size=changes.get("batch_size", 2))
    with pytest.raises(ValueError, match="equally long, got 13 to 14 tokens"):
        probe_state_use(model_of(), [*texts_of(3), *texts_of(1, 13)])


def test_pieces_of_a_text():
    assert pieces_of(list(range(9)), 1, 3, 9) == [([0], [1, 2, 3]), ([4], [5, 6, 7])]
    assert pieces_of(list(range(9)), 1, 3, 1) == [([0], [1, 2, 3])]
    assert pieces_of([1, 2], 1, 3, 1) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A base model, an adapter, and a text."""
    folder = tmp_path_factory.mktemp("probe")
    base = str(save_text_model(folder / "model"))
    config = tc.ThoughtConfig(memory="attention", memory_features=6, r=2, window=8)
    adapted_model(base, config, adapter=None, dtype="float32", seed=0).save_pretrained(folder / "adapter")
    text = folder / "notes.txt"
    text.write_text("The river is wide, and the bread is old. " * 60)
    return base, str(folder / "adapter"), str(text)


def test_the_command(saved, tmp_path, capsys):
    model, adapter, text = saved
    fixed = ["probe", "--model", model, "--adapter", adapter, "--text", text, "--output-dir", str(tmp_path)]
    sizes = ["--length", "24", "--pieces", "4", "--batch-size", "2", "--prompt-tokens", "3"]
    assert main([*fixed, *sizes]) == 0
    written = json.loads((tmp_path / "probe.json").read_text())
    assert [one["states"] for one in written["states"]] == KINDS
    assert {one["texts"] for one in written["states"]} == {4}
    assert written["state_numbers"] > 0
    assert (tmp_path / "probe.png").stat().st_size > 10_000
    assert main([*fixed, *sizes]) == 2
    assert "already holds a probe" in capsys.readouterr().err
    assert main([*fixed, *sizes, "--overwrite"]) == 0


def test_the_table(saved, tmp_path):
    model, adapter, text = saved
    console = Console(record=True, width=200, file=io.StringIO())
    run = ProbeRun(model=model, adapter=adapter, text=text, output_dir=str(tmp_path), length=20, pieces=3, batch_size=3)
    payload = run_probe(run, console)
    shown = console.export_text()
    for one in payload["states"]:
        assert f"{one['nats']:.4f}" in shown
    assert f"{payload['states'][1]['difference']:+.4f}" in shown


def test_texts_that_are_too_short_are_refused(saved, tmp_path):
    model, adapter, text = saved
    short: Path = tmp_path / "short.txt"
    short.write_text("A few words.")
    run = ProbeRun(model=model, adapter=adapter, text=str(short), output_dir=str(tmp_path / "run"), length=64)
    with pytest.raises(ValueError, match="and three are the least"):
        run_probe(run, Console(quiet=True))
    long = ProbeRun(model=model, adapter=adapter, text=text, output_dir=str(tmp_path / "run"), length=100_000)
    with pytest.raises(ValueError, match="positions"):
        run_probe(long, Console(quiet=True))
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        ProbeRun(model=model, adapter=adapter, text=text, length=0)
