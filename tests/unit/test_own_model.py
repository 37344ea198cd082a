"""The job on a user's own model and data, end to end on a model of two small layers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel, load_peft_weights
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import thoughtcache as tc
from thoughtcache.recipes import real_model
from thoughtcache.recipes.generate.answer import answer
from thoughtcache.recipes.load_model import load_base
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.tasks.verdict import REASONS

WINDOW, LENGTH = 4, 9


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    return folder


def thought(**changes: Any) -> tc.ThoughtConfig:
    return tc.ThoughtConfig(**{"r": 3, "num_global_tokens": 5, "window": WINDOW, **changes})


def run_config(user: Path, output: Path, **changes: Any) -> RunConfig:
    settings = {
        "model": str(user / "model"),
        "dataset": str(user / "questions.jsonl"),
        "output_dir": str(output),
        "max_new_tokens": LENGTH,
        "distill_steps": 2,
        "distill_batch_size": 3,
        "grpo_steps": 2,
        "group_size": 2,
        "grpo_batch_size": 2,
        "save_every": 1,
    }
    return RunConfig(**{**settings, **changes})


def test_trains_saves_and_reloads(user: Path, tmp_path: Path) -> None:
    results = run_real_model(run_config(user, tmp_path), thought(), Console(quiet=True))
    chosen = json.loads((tmp_path / "run.json").read_text())["chosen"]
    assert chosen == {
        "checkpoint_layers": False,
        "chunk_tokens": 256,
        "kv_log": "device",
        "teacher_batch_size": 6,  # all that there are, of two steps
        "distill_micro_batch_size": 3,
    }
    assert [step for step, _ in results["phases"]["distill"]["losses"]] == [1, 2]
    assert [step for step, _ in results["phases"]["grpo"]["rewards"]] == [1, 2]
    assert json.loads((tmp_path / "results.json").read_text())["run"]["thought"]["window"] == WINDOW
    assert (tmp_path / "curves.png").stat().st_size > 0
    rollouts = [json.loads(line) for line in (tmp_path / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    assert [line["step"] for line in rollouts] == [0, 0, 1, 1]
    assert all(line["rewards"] == {"math_correctness": 0.0} for line in rollouts)
    assert all(line["math_correctness/reason"] in REASONS for line in rollouts)
    assert all(line["evictions"] == max(0, line["tokens"] - 1 - WINDOW) for line in rollouts)

    base = AutoModelForCausalLM.from_pretrained(user / "model")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    prompt = "Question: w3 w4\n\nAnswer:"
    inputs = tokenizer(prompt, return_tensors="pt")
    generated = model.generate(**inputs, max_new_tokens=LENGTH, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    text = answer(
        prompt="w3 w4",
        model=str(user / "model"),
        adapter=str(tmp_path / "adapter"),
        max_new_tokens=LENGTH,
        temperature=0.0,
        dtype="float32",
    )
    assert text == tokenizer.decode(generated, skip_special_tokens=True)


def test_training_changes_the_adapter_and_each_phase_saves_its_own(user: Path, tmp_path: Path) -> None:
    # Lucky rewards are rare; a KL term gives GRPO a gradient whatever the rewards are.
    run_real_model(run_config(user, tmp_path, beta=0.5, grpo_learning_rate=1e-2), thought(), Console(quiet=True))
    distilled, final = (
        load_peft_weights(str(tmp_path / name / "adapter"), device="cpu") for name in ("distill", "grpo")
    )
    joint = load_peft_weights(str(tmp_path / "adapter"), device="cpu")
    assert all(torch.equal(final[name], joint[name]) for name in joint)
    assert any(weight.count_nonzero() for name, weight in distilled.items() if "lora_B" in name)
    assert any(not torch.equal(distilled[name], final[name]) for name in final)


def test_an_interrupted_run_reuses_the_finished_phase(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(real_model, "_grpo", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_real_model(run_config(user, tmp_path), thought(), Console(quiet=True))
    distilled = load_peft_weights(str(tmp_path / "distill" / "adapter"), device="cpu")
    with pytest.raises(ValueError, match="--resume"):
        run_real_model(run_config(user, tmp_path), thought(), Console(quiet=True))
    with pytest.raises(ValueError, match=r"other settings \(window\).*window=4 then, window=5 now"):
        run_real_model(run_config(user, tmp_path, resume=True), thought(window=WINDOW + 1), Console(quiet=True))

    started_from: dict[str, torch.Tensor] = {}
    train = real_model._grpo

    def watched(run: RunConfig, model: Any, *arguments: Any) -> Any:
        started_from.update({n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad})
        return train(run, model, *arguments)

    monkeypatch.setattr(real_model, "_distill", interrupted)  # a repeated phase would stop the run again
    monkeypatch.setattr(real_model, "_grpo", watched)
    results = run_real_model(run_config(user, tmp_path, resume=True), thought(), Console(quiet=True))
    assert set(results["phases"]) == {"distill", "grpo"}
    assert len(started_from) == len(distilled)
    for name, weight in distilled.items():
        (found,) = (p for n, p in started_from.items() if n.replace(".default", "") == name)
        assert torch.equal(found, weight), "GRPO starts from the distilled adapter"


def test_one_stage_alone_and_overwriting(user: Path, tmp_path: Path) -> None:
    first = run_real_model(run_config(user, tmp_path, grpo_steps=0), thought(), Console(quiet=True))
    assert set(first["phases"]) == {"distill"}
    again = run_config(user, tmp_path, distill_steps=0, grpo_steps=1, overwrite=True)
    second = run_real_model(again, thought(window="prompt"), Console(quiet=True))
    assert set(second["phases"]) == {"grpo"}
    assert second["run"]["thought"]["window"] == "prompt"
    assert not (tmp_path / "phases" / "distill.json").exists()


def test_data_without_answers_can_be_distilled_only(user: Path, tmp_path: Path) -> None:
    questions = tmp_path / "plain.jsonl"
    questions.write_text('{"prompt": "w3 w4"}\n{"prompt": "w5"}\n')
    config = run_config(user, tmp_path / "run", dataset=str(questions))
    with pytest.raises(ValueError, match=r"no reference answers .*--answer-column.*--grpo-steps 0"):
        run_real_model(config, thought(), Console(quiet=True))
    assert not (tmp_path / "run").exists()
    only = dataclasses.replace(config, grpo_steps=0)
    assert set(run_real_model(only, thought(), Console(quiet=True))["phases"]) == {"distill"}


def test_an_instruction_reaches_both_stages(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts: list[list[list[int]]] = []
    sample = tc.rollout

    def watched(model: Any, prompt_ids: Any, **arguments: Any) -> Any:
        prompts.append([list(ids) for ids in prompt_ids])
        return sample(model, prompt_ids, **arguments)

    monkeypatch.setattr("thoughtcache.train.distill.rollout", watched)
    monkeypatch.setattr("thoughtcache.train.trl.chain_turns.rollout", watched)
    config = run_config(user, tmp_path, instruction="w28 w27", distill_steps=1, grpo_steps=1, limit=1)
    run_real_model(config, thought(), Console(quiet=True))
    distilled, grpo = prompts
    assert distilled[0] == grpo[0], "the same prompt tokens"
    assert distilled[0][-3:-1] == [28, 27]  # then "Answer:"


def test_half_precision_bases_keep_the_encoder_in_fp32(user: Path) -> None:
    base = load_base(str(user / "model"), "bfloat16")
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    model = peft.get_peft_model(base, thought())
    assert {p.dtype for name, p in model.named_parameters() if "encoder" in name} == {torch.float32}


def test_a_tokenizer_of_more_words_than_the_model_has_is_named(tmp_path: Path) -> None:
    """`thoughtcache generate` with a token that was added to the tokenizer and not to the model."""
    save_text_model(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["w99"])
    tokenizer.save_pretrained(tmp_path / "model")
    adapted = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), thought())
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ValueError, match=r"prompt 0 holds token 29 at place [0-9]+, the model has tokens 0 to 28; take"
    ):
        answer(
            prompt="w3 w99",
            model=str(tmp_path / "model"),
            adapter=str(tmp_path / "adapter"),
            max_new_tokens=LENGTH,
            temperature=0.0,
            dtype="float32",
        )
