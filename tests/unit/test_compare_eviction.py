"""`thoughtcache compare-eviction`: rows by hand, measurements beside other ways to them, and runs that go on."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.support.text_model import save_passcode_model, save_questions, save_text, save_text_model

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.policy.handle import find_tuner
from thoughtcache.policy.other_cache import changes_nothing
from thoughtcache.recipes.compare import measure
from thoughtcache.recipes.compare.config import CompareRun
from thoughtcache.recipes.compare.measure import Measurement
from thoughtcache.recipes.compare.rows import row_of
from thoughtcache.recipes.compare.run import run_compare
from thoughtcache.recipes.load_adapter import adapted_model
from thoughtcache.recipes.texts import read_tokens
from thoughtcache.sampler.given import given_text, with_own_evictions
from thoughtcache.studies.decode_cost import policy_bytes
from thoughtcache.studies.held_out import HeldOut, summary
from thoughtcache_cli import main

FEW = {"num_texts": 3, "prompt_tokens": 4, "length": 24, "window": (8,), "repeats": 1, "share_texts": 2}
POLICIES = ("h2o", "random")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_passcode_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return save_text(tmp_path / "text.txt", 300)


def run_of(model: str, output: Path, **changes: Any) -> CompareRun:
    return CompareRun(**{"model": model, "output_dir": str(output), "eviction": POLICIES, **FEW, **changes})


def test_a_row_by_hand():
    """Two texts, two layers: the window loses 8 of 16 and 10 of 20, and 2 and 5 of that are still missing."""
    lost = {"full": [[8.0, 4.0], [8.0, 16.0]], "error": [[4.0, 4.0], [4.0, 6.0]]}
    seconds = {"tokens": 12, "wall_seconds": 2.0, "cpu_seconds": 1.5, "eviction_seconds": 0.3, "peak_mib": 5.0}
    before = {**seconds, "cpu_seconds": 1.0}
    own = {
        "by_text": [0.1, 0.3],
        "error": [[1.0, 2.0], [1.0, 3.0]],
        "costs": [seconds],
        "of_sliding": [before],
        "bytes": 64,
    }
    row = row_of("h2o", 8, 10, lost, own, {"by_text": [0.3, 0.4]})
    assert row.lost == [0.5, 0.5]
    assert row.layers == [0.75, 0.5]
    assert row.share[0] == pytest.approx(0.625)
    # Every text misses a quarter of the first layer and a half of the second one: no text differs from the ratio.
    assert row.share[1:] == pytest.approx((0.625, 0.625))
    assert row.kl[0] == pytest.approx(0.2)
    assert row.kl[1:] == pytest.approx(mean_interval([0.1, 0.3]))
    assert row.minus_sliding[0] == pytest.approx(-0.15)
    assert row.minus_sliding[1:] == pytest.approx(mean_interval([-0.2, -0.1]))
    assert (row.speed, row.peak_mib, row.kept_bytes) == (6.0, 5.0, 64)
    seconds.pop("peak_mib")  # as an earlier version wrote it
    assert row_of("h2o", 8, 10, lost, own, {"by_text": [0.3, 0.4]}).peak_mib is None
    assert row.evicting == pytest.approx(0.2)
    assert row.slower == pytest.approx(1.5)
    one_sided = row_of("h2o", 8, 10, lost, {**own, "error": [[0.0, 2.0], [2.0, 3.0]]}, {"by_text": [0.3, 0.4]})
    # The first layer misses 2 of 8: its texts add 2 (0 - 4/4) / 8 and 2 (2 - 4/4) / 8, the second layer's nothing.
    assert one_sided.share[0] == pytest.approx(0.625)
    assert one_sided.share[1:] == pytest.approx([0.625 + end for end in mean_interval([-0.125, 0.125])])


def test_what_a_policy_keeps(model):
    """Two queries of every head and a score of every thought, in fp32."""
    adapted = adapted_model(model, changes_nothing(window=8), adapter=None, dtype="float32", seed=0)
    tuner = find_tuner(adapted)
    heads, size = tuner.kv_shape
    for policy, expected in {"sliding": 0, "h2o": (tuner.query_heads * 2 * size + heads * 8) * 4}.items():
        adapted.add_adapter(policy, changes_nothing(window=8, eviction=policy))
        adapted.set_adapter(policy)
        cache = find_tuner(adapted).thought_config.resolve_window(None)
        assert policy_bytes(adapted, cache) == tuner.num_layers * expected


def test_the_figures_are_those_of_the_studies(model, text, tmp_path):
    """A run of the command beside texts that choose one by one, and beside the full output by `FullCache`."""
    result = run_compare(run_of(model, tmp_path / "run", text=str(text)), Console(quiet=True))
    rows = {row.policy: row for row in result["rows"]}
    assert list(rows) == ["sliding", *POLICIES]
    assert rows["sliding"].share == (0.0, 0.0, 0.0)
    assert rows["sliding"].minus_sliding == (0.0, 0.0, 0.0)
    assert {row.texts for row in rows.values()} == {3}
    adapted = adapted_model(
        model, changes_nothing(window=8, eviction="h2o"), adapter=None, dtype="float32", seed=0
    ).eval()
    run = run_of(model, tmp_path, text=str(text))
    cache = find_tuner(adapted).thought_config.resolve_window(None)
    texts = measured_texts(run)
    samples = [given_text(*one, cache, seed=row) for row, one in enumerate(texts)]
    found = summary(HeldOut(adapted, samples)(adapted), 8)
    assert rows["h2o"].kl[0] == pytest.approx(found.after, rel=1e-3)
    assert rows["h2o"].minus_sliding[0] == pytest.approx(rows["h2o"].kl[0] - rows["sliding"].kl[0])
    phase = json.loads((tmp_path / "run" / "phases" / "window-8-h2o.json").read_text())
    assert phase["by_text"] == pytest.approx(found.by_text, rel=1e-3)
    assert rows["h2o"].layers != rows["random"].layers
    assert all(share < 1 for share in rows["h2o"].layers)


def measured_texts(run: CompareRun) -> list[tuple[list[int], list[int]]]:
    from thoughtcache.recipes.compare.texts import read_source
    from thoughtcache.recipes.load_model import load_tokenizer

    return read_source(run, load_tokenizer(run.model)[1], report=print).texts


def test_the_command_writes_tables_and_a_picture(model, text, tmp_path, capsys):
    options = ["--model", model, "--text", str(text), "--output-dir", str(tmp_path / "run"), "--eviction", "h2o"]
    sizes = ["--num-texts", "2", "--prompt-tokens", "4", "--length", "24", "--repeats", "0"]
    assert main(["compare-eviction", *options, *sizes, "--window", "8", "--extra-tokens", "4"]) == 0
    shown = capsys.readouterr().out
    assert "window 8, 12 slots" in shown
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "comparison.csv").read_text())))
    assert [(row["policy"], row["slots"], row["slower"]) for row in rows] == [("sliding", "12", ""), ("h2o", "12", "")]
    assert all(float(row["peak_mib"]) >= 0 for row in rows)
    assert float(rows[0]["share"]) != 0  # four slots more than the window whose loss is the measure
    layers = list(csv.DictReader(io.StringIO((tmp_path / "run" / "layers.csv").read_text())))
    assert [row["layer"] for row in layers] == ["0", "1"] * 2
    assert (tmp_path / "run" / "comparison.png").stat().st_size > 10_000
    assert main(["compare-eviction", *options, *sizes, "--window", "8", "--extra-tokens", "4"]) != 0
    assert "add --resume to go on" in capsys.readouterr().err


def test_a_run_goes_on_with_more_windows(model, text, tmp_path, monkeypatch):
    measured: list[tuple[str, int]] = []
    whole = measure.Measurement.policy

    def counted(self: Measurement, policy: str, window: int, lost: Any) -> Any:
        if policy == "h2o" and not measured.count(("sliding", window)) == 1:
            raise AssertionError("sliding comes first")
        if policy == "random" and window == 8 and measured.count(("h2o", 8)) and not resumed:
            raise KeyboardInterrupt
        measured.append((policy, window))
        return whole(self, policy, window, lost)

    monkeypatch.setattr(measure.Measurement, "policy", counted)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        run_compare(run_of(model, tmp_path / "run", text=str(text)), Console(quiet=True))
    resumed = True
    again = run_of(model, tmp_path / "run", text=str(text), resume=True, window=(8, 10))
    result = run_compare(again, Console(quiet=True))
    assert measured == [(policy, 8) for policy in ("sliding", *POLICIES)] + [
        (policy, 10) for policy in ("sliding", *POLICIES)
    ]
    assert [(row.window, row.policy) for row in result["rows"]] == [(window, policy) for policy, window in measured]
    with pytest.raises(ValueError, match="other settings"):
        run_compare(run_of(model, tmp_path / "run", text=str(text), resume=True, extra_tokens=1), Console(quiet=True))


def test_all_policies_of_the_package_and_answers_of_the_base(tmp_path):
    from thoughtcache.cache.eviction import EVICTION_POLICIES

    folder = str(save_text_model(tmp_path / "model"))
    questions = save_questions(tmp_path / "questions.jsonl", 12)
    changes = {"dataset": str(questions), "eviction": (), "num_texts": 12, "length": 14, "repeats": 0}
    result = run_compare(run_of(folder, tmp_path / "run", **changes), Console(quiet=True))
    assert {row.policy for row in result["rows"]} == set(EVICTION_POLICIES)
    assert result["left_out"] == {}
    assert (tmp_path / "run" / "phases" / "texts.samples").is_file()


def test_token_ids_of_a_file(model, tmp_path):
    file = tmp_path / "tokens.jsonl"
    file.write_text('{"prompt": [5], "thought": [6, 7]}\n{"prompt": [5, 8], "thought": [9]}\n')
    assert read_tokens(str(file)) == [([5], [6, 7]), ([5, 8], [9])]
    run = run_of(model, tmp_path / "run", tokens=str(file), length=10)
    with pytest.raises(ValueError, match="has 0 texts of length=10, and two are the least"):
        run_compare(run, Console(quiet=True))
    file.write_text('{"prompt": [5], "thought": [6, 7]}\n{"prompt": [5], "thought": "six"}\n')
    with pytest.raises(ValueError, match=r"line 2 of .* is no text in token ids"):
        read_tokens(str(file))
    file.write_text("".join(json.dumps({"prompt": [5], "thought": [1000] * 30}) + "\n" for _ in range(2)))
    with pytest.raises(ValueError, match="holds token 1000"):
        run_compare(run_of(model, tmp_path / "run", tokens=str(file)), Console(quiet=True))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give one of text"),
        ({"text": "a", "tokens": "b"}, "give one of text"),
        ({"text": "a", "window": (8, 8)}, "window must be different values"),
        ({"text": "a", "window": (1,)}, "at least 2 thoughts"),
        ({"text": "a", "extra_tokens": -1}, "extra_tokens must be 0 or more"),
        ({"text": "a", "share_texts": 1}, "share_texts must be at least 2"),
        ({"text": "a", "extra_tokens": 16}, "length must be more than 25"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        run_of("model", Path("run"), **changes)


def test_an_unknown_policy_is_refused(model, text, tmp_path):
    with pytest.raises(ValueError, match="'newest' is not known"):
        run_compare(run_of(model, tmp_path / "run", text=str(text), eviction=("newest",)), Console(quiet=True))


def test_evictions_that_are_known_give_the_same_divergence(model, text, tmp_path):
    """`HeldOut.under` with the texts' own evictions is `HeldOut` itself."""
    config = changes_nothing(window=8, eviction="h2o")
    adapted = adapted_model(model, config, adapter=None, dtype="float32", seed=0).eval()
    cache = find_tuner(adapted).thought_config.resolve_window(None)
    texts = measured_texts(run_of(model, tmp_path, text=str(text)))
    samples = [given_text(*one, cache, seed=row) for row, one in enumerate(texts)]
    held_out = HeldOut(adapted, samples)
    whole = held_out.under(adapted, with_own_evictions(adapted, samples))
    for alone, together in zip(held_out(adapted), whole, strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-3, atol=1e-6)
