"""`thoughtcache probe` with every probe, end to end on a model of two small layers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.support.text_model import save_text_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import thoughtcache as tc
from support.registered_policies import install_policies
from thoughtcache.recipes.load_adapter import adapted_model
from thoughtcache.recipes.probe.run import PROBES, run_probe
from thoughtcache.recipes.probe.subject import ON_RECALL, ON_TEXTS, ProbeRun
from thoughtcache.tasks.recall.passcode import DIGITS, OTHER_WORDS, WORDS
from thoughtcache_cli import effect, main

FEW = {"length": 24, "pieces": 3, "prompt_tokens": 5, "codes": 2, "code_length": 2, "distances": (1, 2), "before": (0,)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base model whose tokenizer knows the words of passcodes, adapters, and a text."""
    folder = tmp_path_factory.mktemp("probe")
    base = str(save_text_model(folder / "model", vocab_size=64))
    special = ["<pad>", "<bos>", "<eos>", "[UNK]", "The", "secret", "words", "digits", "are", "."]
    known = {word: number for number, word in enumerate([*special, *WORDS, *OTHER_WORDS, *DIGITS])}
    words = Tokenizer(WordLevel(known, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    tokenizer.save_pretrained(base)
    adapters: dict[str, dict[str, Any]] = {
        "attention": {"memory": "attention", "memory_features": 6},
        "both": {"memory": "both", "memory_features": 6, "num_global_tokens": 2},
        "plain": {"initial_state": "identity", "absorb": False, "num_global_tokens": 2},
    }
    for name, settings in adapters.items():
        config = tc.ThoughtConfig(r=2, window=8, **settings)
        adapted_model(base, config, adapter=None, dtype="float32", seed=0).save_pretrained(folder / name)
    text = folder / "notes.txt"
    text.write_text("The river is wide, and the bread is old. A stone in the garden is a stone. " * 20)
    return {"model": base, "text": str(text), **{name: str(folder / name) for name in adapters}}


def run_of(saved: dict[str, str], output: Path, adapter: str = "attention", **changes: Any) -> ProbeRun:
    fixed = {"model": saved["model"], "adapter": saved[adapter], "text": saved["text"], "output_dir": str(output)}
    return ProbeRun(**{**fixed, **FEW, **changes})


@pytest.mark.parametrize("adapter", ["attention", "both"])
def test_all_probes_leave_numbers_tables_and_pictures(saved, tmp_path, adapter):
    console = Console(record=True, width=250, file=io.StringIO())
    payload = run_probe(run_of(saved, tmp_path, adapter, what=tuple(PROBES)), console)
    written, shown = json.loads((tmp_path / "probe.json").read_text()), console.export_text()
    assert written["run"]["what"] == list(PROBES) == [*ON_TEXTS, *ON_RECALL]
    for probe in PROBES.values():
        assert written[probe.key]
        assert (tmp_path / probe.picture).stat().st_size > 10_000
    assert set(written["seconds"]) == set(PROBES)
    assert f"{payload['states'][0]['nats']:.4f}" in shown
    memories = ["adapter", "attention"] if adapter == "both" else ["attention"]
    assert list(written["anatomy"]["written"]) == memories
    assert all(f"memory '{memory}', thoughts that were written most" in shown for memory in memories)
    layers = [one["share"] for one in payload["attention_share"] if one["cache"] == "with its memory"]
    assert f"{100 * sum(layers) / 2:.0f} %" in shown
    flagged = sum(one["is_flagged"] for one in payload["sinks"])
    assert f"{flagged} of 16 heads moved by more than 0.1, " in shown
    assert [one["recall"]["num_evictions"] for one in payload["ages"]] == [1, 2]
    assert [one["family"] for one in payload["families"]][:2] == ["as taught", "other words"]
    windows = list(payload["capacity"])
    assert windows[:3] == ["adapter", "full cache", "window 8"]
    assert windows[3].endswith(", sliding")
    assert [one["num_facts"] for one in payload["capacity"]["adapter"]] == [1, 1, 2, 2]
    assert "facts that are remembered, mean" in shown
    assert "told after" in shown
    assert "another question" in shown


def test_the_command_takes_its_options(saved, tmp_path, capsys):
    fixed = ["probe", "--model", saved["model"], "--adapter", saved["attention"]]
    few = ["--codes", "1", "--code-length", "2", "--distances", "1", "--before", "0,1"]
    assert main([*fixed, *few, "--what", "ages", "--output-dir", str(tmp_path)]) == 0
    assert list(json.loads((tmp_path / "probe.json").read_text())["seconds"]) == ["ages"]
    assert not (tmp_path / "probe.png").exists()
    assert "whole codes by age" in capsys.readouterr().out
    sinks = ["--what", "sinks", "--text", saved["text"], "--length", "20", "--first-tokens", "2", "--tolerance", "0.5"]
    assert main([*fixed, *sinks, "--output-dir", str(tmp_path / "sinks")]) == 0
    assert "0 of 16 heads moved by more than 0.5" in capsys.readouterr().out
    assert main(fixed) == 2
    assert "the probe 'state-use' looks at a text; give a file with running text (--text)" in capsys.readouterr().err
    assert main([*fixed, "--what", "norms"]) == 2
    assert "--what norms is not known; choose one of ['state-use'" in capsys.readouterr().err
    assert main([*fixed, "--what", "ages", "--tolerance", "0.2"]) == 2
    assert (
        "--tolerance changes nothing in the other probes; leave it out, or add sinks to --what"
        in capsys.readouterr().err
    )
    assert effect.ON_TEXTS == ON_TEXTS


def test_an_adapter_without_states(saved, tmp_path):
    """Where attention goes and what is remembered can be asked of plain LoRA; what its states are cannot."""
    what = ("sinks", "ages")
    payload = run_probe(run_of(saved, tmp_path, "plain", what=what), Console(quiet=True))
    assert {one["cache"] for one in payload["sinks"]} == {"full cache", "window, nothing written"}
    for name in ("state-use", "anatomy", "attention-share"):
        with pytest.raises(ValueError, match="no eviction changes the states of this adapter"):
            run_probe(run_of(saved, tmp_path / "run", "plain", what=("sinks", name)), Console(quiet=True))
    assert not (tmp_path / "run").exists()


def test_policies_of_other_packages_are_taken(saved, tmp_path, monkeypatch):
    (tmp_path / "package").mkdir()
    install_policies(tmp_path / "package", monkeypatch)
    run = run_of(saved, tmp_path / "run", what=("attention-share",), policies=("largest-values",))
    payload = run_probe(run, Console(quiet=True))
    assert [one["cache"] for one in payload["attention_share"][2:]] == ["window 12, largest-values"] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": ()}, "what must be one probe or several different ones"),
        ({"what": ("sinks", "sinks")}, "what must be one probe or several different ones"),
        ({"what": ("norms",)}, "what='norms' is not known"),
        ({"text": None}, "the probe 'state-use' looks at a text"),
        ({"policies": ("lru",)}, "policies: eviction='lru' is not known"),
        ({"tolerance": 0.0}, "tolerance must lie between 0 and 1"),
        ({"what": ("sinks",), "first_tokens": 6}, "first_tokens=6 are more than prompt_tokens=5"),
        ({"distances": ()}, "distances must be numbers of evictions"),
        ({"before": (-1,)}, "before must be numbers of evictions"),
        ({"codes": 0}, "codes must be at least 1"),
        ({"what": ("capacity",), "codes": 1}, "codes=1 gives no interval of a mean"),
        ({"kind": "letters"}, "kind='letters' is not known"),
    ],
)
def test_settings_without_meaning_are_refused(saved, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_of(saved, tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"what": ("sinks",), "length": 9}, "all 9 thoughts stay in window=8, and nothing is evicted"),
        ({"what": ("ages",), "distances": (1, 99)}, "distances=99 evictions after before=0 under window=8 take texts"),
        ({"what": ("ages",), "before": (99,)}, "evictions after before=99 under window=8 take texts of"),
        ({"what": ("families",), "code_length": 33}, "code_length=33 is more than the 32 words"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(saved, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_probe(run_of(saved, tmp_path / "run", **changes), Console(quiet=True))
    assert not (tmp_path / "run").exists()
