"""`thoughtcache export`: a folder that loads, with a card that says what the run knows and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel, load_peft_weights
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from thoughtcache.recipes.export.card import UNKNOWN_TRAINING, UNMEASURED, make_card
from thoughtcache.recipes.export.folder import export_adapter
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.files import replace_file
from thoughtcache_cli import main

BASE = "somebody/small"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    run = RunConfig(
        model=str(folder / "model"), dataset=str(folder / "questions.jsonl"), output_dir=str(folder / "run"),
        max_new_tokens=9, distill_steps=2, distill_batch_size=2, grpo_steps=1, group_size=2, grpo_batch_size=2,
        held_out=2, beta=0.25, instruction="w7",
    )  # fmt: skip
    run_real_model(run, tc.ThoughtConfig(r=3, num_global_tokens=5, window=4), Console(quiet=True))
    return folder


def export(place: Path, output: Path, **changes: Any) -> Path:
    settings = {"adapter": str(place / "run" / "adapter"), "base_model": BASE, "output_dir": str(output)}
    return export_adapter(**{**settings, "console": Console(quiet=True), **changes})


def test_the_folder_loads_as_the_adapter_does(place: Path, tmp_path: Path) -> None:
    folder = export(place, tmp_path / "hub" / "mine", license="mit")
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == BASE
    one, other = (load_peft_weights(str(one), device="cpu") for one in (place / "run" / "adapter", folder))
    assert set(one) == set(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(place / "model"), str(folder))
    assert model.peft_config["default"].window == 4
    assert AutoTokenizer.from_pretrained(folder).vocab_size > 0
    assert (folder / "thoughtcache_prompt.json").is_file()


def test_the_card_has_settings_training_and_figures_of_the_run(place: Path, tmp_path: Path) -> None:
    card = ModelCard.load(export(place, tmp_path / "mine", license="mit") / "README.md")
    data = card.data.to_dict()
    assert (data["base_model"], data["library_name"], data["license"]) == (BASE, "peft", "mit")
    assert {"thoughtcache", "transformers"} <= set(data["tags"])
    results = json.loads((place / "run" / "results.json").read_text())
    for name, row in results["before_after"].items():
        share = row["accuracy"]
        shown = f"{100 * share['value']:.1f} % ({100 * share['low']:.1f}-{100 * share['high']:.1f})"
        assert f"| {name} | {shown} |" in card.text
    for part in (
        f"for `{BASE}`", "with it 4 thoughts", "rule `linear`", "| `r` | `3` |", "2 held-out questions",
        "| dataset | questions.jsonl |", "| grpo_steps | 1 |", "| beta | 0.25 |", "| stage | the end of the run |",
        "| instruction | w7 |", "| seed | 0 |",
        "| `target_modules` | `['down_proj', 'gate_proj', 'k_proj', 'o_proj', 'q_proj', 'up_proj', 'v_proj']` |",
        "at most 9 tokens", "import thoughtcache", 'from_pretrained("mine")', "one seed",
        f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in card.text, part
    assert str(place) not in card.text
    assert "| split |" not in card.text
    places = [card.text.index(f"| {name} |") for name in ("base, full cache", "base, window", "after GRPO")]
    assert places == sorted(places)


def test_a_stage_of_a_run_is_named(place: Path, tmp_path: Path) -> None:
    folder = export(place, tmp_path / "mine", adapter=str(place / "run" / "distill" / "adapter"))
    assert "| stage | distill |" in (folder / "README.md").read_text()


def test_without_a_run_nothing_is_claimed(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run" / "adapter", tmp_path / "alone")
    text = (export(place, tmp_path / "mine", adapter=str(tmp_path / "alone")) / "README.md").read_text()
    assert UNKNOWN_TRAINING in text
    assert UNMEASURED in text
    assert "%" not in text.split("## Measured")[1].split("## Limits")[0]


def test_another_runs_figures_are_not_taken(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run" / "adapter", tmp_path / "alone")
    file = tmp_path / "alone" / "adapter_model.safetensors"
    replace_file(file, file.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(ValueError, match="did not make the adapter"):
        export(place, tmp_path / "mine", adapter=str(tmp_path / "alone"), run=str(place / "run"))


def test_what_is_no_export_is_not_replaced_and_pickles_stay_behind(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "run" / "adapter", tmp_path / "own")
    (tmp_path / "own" / "optimizer.bin").write_bytes(b"pickle")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    settings = {"adapter": str(tmp_path / "own")}
    with pytest.raises(ValueError, match="exists already; choose another --output-dir, or --overwrite"):
        export(place, tmp_path / "mine", **settings)
    with pytest.raises(ValueError, match="exists already and holds no adapter; choose another"):
        export(place, tmp_path / "mine", overwrite=True, **settings)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="is the adapter itself"):
        export(place, tmp_path / "own", overwrite=True, **settings)
    first = export(place, tmp_path / "new", **settings)
    assert not (first / "optimizer.bin").exists()
    assert export(place, tmp_path / "new", overwrite=True, license="mit", **settings) == first
    assert "license: mit" in (first / "README.md").read_text()


def test_the_command_wants_a_base_that_others_can_find(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["export", "--adapter", str(place / "run" / "adapter"), "--output-dir", str(tmp_path / "mine")]
    assert main(common) == 2
    assert "give its hub id with --base-model" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert main([*common, "--base-model", BASE, "--repo-id", "me/mine"]) == 0
    assert "hf upload me/mine" in capsys.readouterr().out.replace("\n", " ")
    assert 'from_pretrained("me/mine")' in (tmp_path / "mine" / "README.md").read_text()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"window": None, "initial_state": "identity", "absorb": False}, "it keeps the full cache"),
        ({"window": 8, "initial_state": "identity", "absorb": False}, "this is LoRA under that cache"),
        ({"window": "prompt", "eviction": "h2o"}, "as many thoughts as it has tokens (eviction policy `h2o`"),
        ({"window": 8, "memory": "attention"}, "written to a memory inside attention (`linear` writes)"),
        ({"window": 8, "memory": "both"}, "(rule `linear`) and a memory inside attention"),
    ],
)
def test_a_card_says_what_the_cache_keeps_and_what_remembers(settings: dict[str, Any], sentence: str) -> None:
    assert sentence in make_card(tc.ThoughtConfig(**settings), base=BASE, title="mine", record=None).text
