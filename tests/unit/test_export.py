"""`thoughtcache export`: a folder that loads, with a card that says what the run knows and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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
from thoughtcache.model_card import loading_code
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
        "at most 9 tokens", "import thoughtcache", 'place = "this folder or hub id"', "one seed",
        f"torch {torch.__version__}",
    ):  # fmt: skip
        assert part in card.text, part
    assert str(place) not in card.text
    assert "| split |" not in card.text
    places = [card.text.index(f"| {name} |") for name in ("base, full cache", "base, window", "after GRPO")]
    assert places == sorted(places)


def test_a_stage_of_a_run_is_named(place: Path, tmp_path: Path) -> None:
    folder = export(place, tmp_path / "mine", adapter=str(place / "run" / "distill" / "adapter"))
    text = (folder / "README.md").read_text()
    assert "| stage | distill |" in text
    assert "| distill_steps | 2 |" in text
    assert "| after distillation |" in text
    assert "grpo" not in text.split("## How it was trained")[1].lower()


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


def own_adapter(place: Path, folder: Path) -> Path:
    return Path(shutil.copytree(place / "run" / "adapter", folder))


def test_only_files_of_adapters_and_tokenizers_are_taken_and_the_list_is_told(place: Path, tmp_path: Path) -> None:
    own = own_adapter(place, tmp_path / "own")
    for name in ("optimizer.bin", "trainer_state.json", "credentials.json", ".token.txt", "notes.txt"):
        (own / name).write_text("{}")
    (own / "more").mkdir()
    console = Console(record=True, width=500)
    folder = export(place, tmp_path / "mine", adapter=str(own), console=console)
    told = console.export_text()
    taken = {file.name for file in folder.iterdir()} - {"README.md"}
    assert "taken: " + ", ".join(sorted(taken)) in told
    assert {"adapter_model.safetensors", "tokenizer.json", "thoughtcache_prompt.json"} <= taken
    assert "left out: .token.txt, credentials.json, more, notes.txt, optimizer.bin, ref, trainer_state.json" in told
    assert not taken & {
        ".token.txt",
        "credentials.json",
        "more",
        "notes.txt",
        "optimizer.bin",
        "ref",
        "trainer_state.json",
    }
    for file in folder.iterdir():
        assert str(place).encode() not in file.read_bytes(), file.name


def test_an_adapter_without_safetensors_is_refused(place: Path, tmp_path: Path) -> None:
    own = own_adapter(place, tmp_path / "own")
    torch.save(load_peft_weights(str(own), device="cpu"), own / "adapter_model.bin")
    (own / "adapter_model.safetensors").unlink()
    for run in (None, str(place / "run")):
        with pytest.raises(ValueError, match="pickles are not exported"):
            export(place, tmp_path / "mine", adapter=str(own), run=run)


def test_only_an_export_is_replaced(place: Path, tmp_path: Path) -> None:
    own = str(own_adapter(place, tmp_path / "own"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="exists already; choose another --output-dir, or --overwrite"):
        export(place, tmp_path / "mine", adapter=own)
    with pytest.raises(ValueError, match="exists already and holds no adapter, so that"):
        export(place, tmp_path / "mine", adapter=own, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    first = export(place, tmp_path / "new", adapter=own)
    assert export(place, tmp_path / "new", adapter=own, overwrite=True, license="mit") == first
    assert "license: mit" in (first / "README.md").read_text()
    (tmp_path / "link").symlink_to(first)
    with pytest.raises(ValueError, match="is a link or a file"):
        export(place, tmp_path / "link", adapter=own, overwrite=True)
    (first / ".git").mkdir()
    with pytest.raises(ValueError, match=r"holds \.git, so that it is not replaced"):
        export(place, first, adapter=own, overwrite=True)
    another = own_adapter(place, tmp_path / "another")
    shutil.rmtree(another / "ref")  # the reference of the KL term
    with pytest.raises(ValueError, match=r"has no README\.md of an export"):
        export(place, another, adapter=own, overwrite=True)
    assert (another / "adapter_model.safetensors").is_file()


def test_the_adapter_and_the_folder_do_not_lie_in_each_other(place: Path, tmp_path: Path) -> None:
    own = own_adapter(place, tmp_path / "own")
    with pytest.raises(ValueError, match="is the adapter itself"):
        export(place, own, adapter=str(own), overwrite=True)
    inner = own_adapter(place, export(place, tmp_path / "new", adapter=str(own)) / "inner")
    for adapter, output in ((inner, tmp_path / "new"), (own, own / "hub")):
        with pytest.raises(ValueError, match="lies in the other"):
            export(place, output, adapter=str(adapter), overwrite=True)
    assert inner.is_dir()


@pytest.mark.parametrize(
    "base", ["./model", "../private/acme-ft", "~/m", "/data/m", r"C:\Users\me\m", "a/b/c", "small"]
)
def test_a_path_is_no_name_of_a_base(place: Path, tmp_path: Path, base: str) -> None:
    own = own_adapter(place, tmp_path / "own")
    file = own / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": base}))
    with pytest.raises(ValueError, match="nobody else can find; give its hub id with --base-model"):
        export(place, tmp_path / "mine", adapter=str(own), base_model=None)
    with pytest.raises(ValueError, match="is no id on the hub"):
        export(place, tmp_path / "mine", adapter=str(own), base_model=base)
    with pytest.raises(ValueError, match=r"--repo-id .* is no id on the hub"):
        export(place, tmp_path / "mine", adapter=str(own), repo_id=base)


def test_a_folder_that_looks_like_an_id_is_one_only_where_it_is_named(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_adapter(place, tmp_path / "own")
    file = own / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": BASE}))
    monkeypatch.chdir(tmp_path)
    assert export(place, tmp_path / "hub", adapter=str(own), base_model=None).is_dir()
    with pytest.raises(ValueError, match="nobody else can find"):  # the run knew it by its files
        export(place, tmp_path / "mine", adapter=str(own), base_model=None, run=str(place / "run"))
    (tmp_path / BASE).mkdir(parents=True)
    with pytest.raises(ValueError, match="nobody else can find"):
        export(place, tmp_path / "mine", adapter=str(own), base_model=None)
    assert export(place, tmp_path / "mine", adapter=str(own), base_model=BASE).is_dir()


def test_the_code_of_the_card_runs(place: Path, tmp_path: Path) -> None:
    folder = export(place, tmp_path / "mine")
    shutil.copytree(place / "model", tmp_path / BASE)
    block = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert "AutoTokenizer.from_pretrained(place)" in block
    code = block.replace("this folder or hub id", "mine").replace("max_new_tokens=256", "max_new_tokens=3")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=tmp_path)
    assert "apply_chat_template(messages" in loading_code(tokenizer="place", has_template=True)


def test_the_command_wants_a_base_that_others_can_find(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["export", "--adapter", str(place / "run" / "adapter"), "--output-dir", str(tmp_path / "mine")]
    assert main(common) == 2
    assert "give its hub id with --base-model" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()
    assert main([*common, "--base-model", BASE, "--repo-id", "me/mine"]) == 0
    assert "hf upload me/mine" in capsys.readouterr().out.replace("\n", " ")
    assert 'place = "me/mine"' in (tmp_path / "mine" / "README.md").read_text()


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
    assert sentence in make_card(tc.ThoughtConfig(**settings), base=BASE, title="mine", record=None, code="").text
