"""`thoughtcache perplexity`: losses against the naive policy and a plain forward pass, groups by hand, the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from tests.support.text_model import save_passcode_model, save_text

import thoughtcache as tc
from support.models import tiny_model
from thoughtcache.evaluation.intervals import mean_interval, ratio_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.load_model import load_base
from thoughtcache.recipes.perplexity.config import PerplexityRun
from thoughtcache.recipes.perplexity.run import run_perplexity
from thoughtcache.records import CacheSettings
from thoughtcache.sampler.given import given_text, with_own_evictions
from thoughtcache.studies.held_out import HeldOut, TextLosses
from thoughtcache.studies.loss_by_place import (
    IN_PROMPT,
    NEVER,
    all_tokens,
    by_age,
    by_position,
    naive_pair_ages,
    pair_ages,
)
from thoughtcache_cli import main

WINDOW = CacheSettings(window=4, num_evicted=2, eviction="sliding")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_passcode_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return save_text(tmp_path / "text.txt", 200)


@pytest.mark.parametrize("eviction", ["sliding", "h2o"])
@pytest.mark.parametrize("is_absorbing", [True, False])
def test_losses_are_those_of_the_naive_policy_and_of_a_plain_pass(eviction, is_absorbing):
    """fp64: the bounded loss token by token, the full one by transformers, the divergence from whole distributions."""
    control = {"state_rule": "gated"} if is_absorbing else {"initial_state": "identity", "absorb": False, "r": 5}
    model = tiny_model(window=5, evict_fraction=0.5, eviction=eviction, **control)
    generator = torch.Generator().manual_seed(0)
    cache = find_tuner(model).thought_config.resolve_window(None)
    texts = [
        (
            torch.randint(29, (prompt,), generator=generator).tolist(),
            torch.randint(29, (n,), generator=generator).tolist(),
        )
        for prompt, n in ((1, 14), (4, 6), (3, 9))
    ]
    rows = with_own_evictions(model, [given_text(*text, cache, seed=row) for row, text in enumerate(texts)])
    found = HeldOut(model, rows).losses(model, rows)
    for row, losses in zip(rows, found, strict=True):
        with torch.no_grad():
            naive = tc.naive_logprobs(model, [row], choose=eviction != "sliding").logprobs[0]
            with model.disable_adapter():
                ids = torch.tensor([row.prompt_ids + row.token_ids])
                full = model(input_ids=ids).logits[0].log_softmax(dim=-1)[len(row.prompt_ids) - 1 : -1]
        own = full.gather(1, torch.tensor(row.token_ids).unsqueeze(1)).squeeze(1)
        assert torch.allclose(losses.own, -naive, atol=1e-12, rtol=0)
        assert torch.allclose(losses.full, -own, atol=1e-12, rtol=0)
        assert (losses.kl > 0).all(), "another adapter, from the first token on"


def test_a_base_under_its_full_cache_is_at_no_distance(model, text, tmp_path):
    run = PerplexityRun(model=model, text=str(text), length=40, prompt_tokens=3, output_dir=str(tmp_path / "out"))
    result = run_perplexity(run, Console(quiet=True))
    assert result["all"]["kl"] == (0.0, 0.0, 0.0)
    assert result["all"]["own"] == result["all"]["full"]
    assert result["texts"] == 4
    with torch.no_grad():
        base = load_base(model, "float32")
        from thoughtcache.recipes.load_model import load_tokenizer

        ids = torch.tensor(load_tokenizer(model)[1].encode(text.read_text(), add_special_tokens=False)[:172]).view(
            4, 43
        )
        logprobs = base(input_ids=ids).logits[:, 2:-1].double().log_softmax(dim=-1)
        wanted = logprobs.gather(2, ids[:, 3:].unsqueeze(2)).mean().neg().exp().item()
    assert result["all"]["perplexity"] == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=200, deadline=None)
@given(prompt=st.lists(st.integers(0, 3), min_size=1, max_size=8), thoughts=st.lists(st.integers(0, 3), max_size=20))
def test_ages_are_those_of_the_loops(prompt, thoughts):
    assert pair_ages(prompt, thoughts) == naive_pair_ages(prompt, thoughts)


def test_ages_by_hand():
    # 1 2 | 3 1 2 3 1 2: the pairs 2 3, 3 1, 1 2, 2 3, 3 1, 1 2.
    assert pair_ages([1, 2], [3, 1, 2, 3, 1, 2]) == [NEVER, NEVER, IN_PROMPT, 3, 3, 3]
    assert pair_ages([5], [5, 5, 5]) == [NEVER, 1, 1]


def losses_of(*values: list[float]) -> list[TextLosses]:
    """Texts whose loss is their divergence plus one."""
    rows = [torch.tensor(own, dtype=torch.float64) for own in values]
    return [TextLosses(kl=row, own=row + 1, full=torch.ones_like(row)) for row in rows]


def test_groups_by_hand():
    """Window 4, two leave: thoughts 0 to 4 are predicted before the first eviction."""
    losses = losses_of([1.0, 1, 1, 1, 1, 2, 2, 2, 2, 5], [3.0, 3, 3, 3, 3, 4])
    whole, places = all_tokens(losses), by_position(losses, WINDOW)
    assert whole.kl[0] == pytest.approx((18 + 19) / 16)
    assert whole.perplexity == pytest.approx(math.exp(37 / 16 + 1))
    assert whole.full_perplexity == pytest.approx(math.e)
    assert [(g.name, g.num_tokens, g.num_texts) for g in places] == [("0-4", 10, 2), ("5-8", 5, 2), ("9-9", 1, 1)]
    assert [g.kl[0] for g in places] == pytest.approx([2.0, 12 / 5, 5.0])
    assert places[2].kl == (5.0, 5.0, 5.0)
    ages = [[1, 1, 1, 1, 1, 3, 4, 5, IN_PROMPT, NEVER], [1, 1, 1, 1, 1, 2]]
    aged = by_age(losses, ages, WINDOW)
    # Three of four thoughts are there right after an eviction, when the next token is predicted.
    assert [(g.name, g.num_tokens) for g in aged] == [
        ("1-3", 2), ("4-4", 1), ("5-8", 1), ("in the prompt", 1), ("never before", 1),
    ]  # fmt: skip
    assert [g.kl[0] for g in aged] == [3.0, 2.0, 2.0, 2.0, 5.0]
    full = replace(WINDOW, window=None, num_evicted=None)
    assert [(g.name, g.num_tokens) for g in by_age(losses, ages, full)] == [
        ("1-10", 14), ("in the prompt", 1), ("never before", 1),
    ]  # fmt: skip
    assert [g.name for g in by_position(losses, full)] == ["0-9"]


def test_the_interval_of_a_mean_over_tokens():
    assert ratio_interval([3.0, 1.0], [2, 2]) == pytest.approx((1.0, *mean_interval([1.5, 0.5])))
    assert ratio_interval([3.0, 0.0], [2, 0]) == (1.5, 1.5, 1.5)
    mean, low, high = ratio_interval([4.0, 1.0, 7.0], [3, 1, 4])
    errors = [3 * (s - 1.5 * n) / 8 for s, n in ((4.0, 3), (1.0, 1), (7.0, 4))]
    assert (mean, low, high) == pytest.approx((1.5, *(1.5 + end for end in mean_interval(errors))))
    with pytest.raises(ValueError, match="at least one, got none"):
        ratio_interval([0.0], [0])


def test_the_command_leaves_a_table_numbers_and_a_picture(model, text, tmp_path, capsys):
    adapter = tmp_path / "adapter"
    torch.manual_seed(1)
    adapted = peft.get_peft_model(load_base(model, "float32"), tc.ThoughtConfig(r=2, num_global_tokens=2, window=8))
    adapted.save_pretrained(str(adapter))
    common = ["perplexity", "--model", model, "--text", str(text), "--length", "40", "--prompt-tokens", "4"]
    runs: dict[str, list[str]] = {
        "base": ["--window", "8"],
        "adapter": ["--adapter", str(adapter)],
        "h2o": ["--window", "8", "--eviction", "h2o", "--batch-size", "3"],
    }
    found: dict[str, Any] = {}
    for name, more in runs.items():
        assert main([*common, *more, "--output-dir", str(tmp_path / name)]) == 0
        found[name] = json.loads((tmp_path / name / "perplexity.json").read_text())
    shown = capsys.readouterr().out
    assert "by the age of the last equal pair" in shown
    assert found["base"]["by_position"][0]["name"] == "0-8"
    assert found["base"]["by_position"][0]["kl"][0] == pytest.approx(0.0, abs=1e-6)
    assert found["base"]["by_position"][1]["kl"][0] > 1e-4
    # An adapter that starts at zero is the base under its window.
    assert found["adapter"]["all"]["own"] == pytest.approx(found["base"]["all"]["own"], abs=1e-5)
    assert found["h2o"]["all"]["own"] != pytest.approx(found["base"]["all"]["own"], abs=1e-5)
    assert found["h2o"]["all"]["full"] == pytest.approx(found["base"]["all"]["full"], abs=1e-6)
    assert (tmp_path / "base" / "perplexity.png").stat().st_size > 10_000
    assert (tmp_path / "base" / "perplexity.md").read_text().startswith("| tokens | number")
    assert main([*common, "--output-dir", str(tmp_path / "base")]) == 2
    assert "already holds a result" in capsys.readouterr().err


def test_token_ids_keep_their_lengths(model, tmp_path):
    file = tmp_path / "tokens.jsonl"
    rows = [{"prompt": [5, 6], "thought": list(range(4, 4 + count))} for count in (3, 12, 7)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings_of: dict[str, Any] = {"model": model, "tokens": str(file), "window": 4}
    run = PerplexityRun(**settings_of, output_dir=str(tmp_path / "a"))
    assert run_perplexity(run, Console(quiet=True))["all"]["num_tokens"] == 22
    run = PerplexityRun(**settings_of, length=5, num_texts=2, output_dir=str(tmp_path / "b"))
    assert run_perplexity(run, Console(quiet=True))["all"]["num_tokens"] == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give either text"),
        ({"text": "a", "tokens": "b"}, "give either text"),
        ({"text": "a", "length": 0}, "length must be at least 1"),
        ({"text": "a", "num_texts": 0}, "num_texts must be at least 1"),
        ({"text": "a", "dtype": "int8"}, "dtype"),
    ],
)
def test_settings_without_a_meaning_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PerplexityRun(model="m", **changes)


def test_a_policy_without_evictions_is_refused():
    run = PerplexityRun(model="m", text="t", eviction="h2o")
    with pytest.raises(ValueError, match="eviction='h2o' changes nothing with the full cache"):
        _ = run.bounded
    assert replace(run, window=8).bounded.eviction == "h2o"


def test_a_text_that_is_too_short_is_refused(model, text, tmp_path):
    run = PerplexityRun(model=model, text=str(text), output_dir=str(tmp_path / "out"))
    with pytest.raises(ValueError, match="has 200 tokens, and a piece 528; give a longer text, or a smaller length"):
        run_perplexity(run, Console(quiet=True))
    with pytest.raises(ValueError, match="positions"):
        run_perplexity(replace(run, length=180), Console(quiet=True))
    assert not (tmp_path / "out").exists()
