"""Runs on a user's model that go on: what may be another one then, what is kept, and what a bad end leaves."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, load_peft_weights
from rich.console import Console
from tests.support.text_model import save_questions, save_text_model
from transformers import AutoModelForCausalLM

import thoughtcache as tc
from thoughtcache.recipes import builders
from thoughtcache.recipes.load_adapter import settings_to_start_from
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.records import Rollout
from thoughtcache.train import distill as distill_module
from thoughtcache.train import rewards
from thoughtcache.train.checkpoints import checkpoints
from thoughtcache.train.distill import under_window

Interrupt = Callable[[RunConfig, int], None]


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl")
    return folder


def thought(**changes: Any) -> tc.ThoughtConfig:
    return tc.ThoughtConfig(**{"r": 3, "num_global_tokens": 5, "window": 4, **changes})


def run_config(user: Path, output: Path, **changes: Any) -> RunConfig:
    settings = {
        "model": str(user / "model"),
        "dataset": str(user / "questions.jsonl"),
        "output_dir": str(output),
        "max_new_tokens": 9,
        "distill_steps": 3,
        "distill_batch_size": 2,
        "grpo_steps": 0,
        "group_size": 2,
        "grpo_batch_size": 2,
        "grpo_learning_rate": 1e-2,
        "beta": 0.5,  # a gradient whatever the rewards are
        "save_every": 1,
    }
    return RunConfig(**{**settings, **changes})


def train(run: RunConfig, config: tc.ThoughtConfig | None = None) -> str:
    """What was printed."""
    text = StringIO()
    run_real_model(run, config or thought(), Console(file=text, width=200))
    return text.getvalue()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_peft_weights(str(folder / "adapter"), device="cpu")
    return found


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def stop_at(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    """The function, interrupted at its n-th call."""
    calls = 0

    @functools.wraps(function)
    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return function(*arguments, **named)

    return counted


@pytest.fixture
def interrupt_distillation(monkeypatch: pytest.MonkeyPatch) -> Interrupt:
    def interrupted(run: RunConfig, step: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(distill_module, "distill_loss", stop_at(distill_module.distill_loss, step))
            with pytest.raises(KeyboardInterrupt):
                train(run)

    return interrupted


def forbid_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill_module, "sample_teacher", lambda *_: pytest.fail("samples were drawn again"))


def cut(checkpoint: Path, name: str = "optimizer.pt") -> None:
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:-30])


@pytest.fixture(scope="module")
def whole(user: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of both stages that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(run_config(user, folder, grpo_steps=3))
    return folder


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"positions": "rolling"}, "positions"),
        ({"target_modules": ["q_proj", "v_proj"]}, "target_modules"),
        ({"write_scale": 0.2}, "write_scale"),
        ({"use_rslora": True}, "use_rslora"),
    ],
)
def test_an_adapter_of_other_settings_is_refused_and_the_setting_named(
    changes: dict[str, Any], name: str, user: Path, whole: Path
) -> None:
    with pytest.raises(ValueError, match=rf"other settings \({name}\); .*\({name}=.* then, {name}=.* now\)"):
        train(run_config(user, whole, grpo_steps=3, resume=True), thought(**changes))


@pytest.mark.parametrize("what", ["model", "questions.jsonl"])
def test_another_base_or_other_data_under_the_old_name_are_refused(
    what: str, user: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(user, tmp_path / "user")
    copied = shutil.copytree(whole, tmp_path / "run")
    marker = copied / "run.json"
    marker.write_text(marker.read_text().replace(str(user), str(tmp_path / "user")))
    run = run_config(tmp_path / "user", copied, grpo_steps=3, resume=True)
    train(run)
    if what == "model":
        save_text_model(tmp_path / "user" / "model", seed=4)
    else:
        save_questions(tmp_path / "user" / what, 7)
    with pytest.raises(ValueError, match=rf"other settings \({'base' if what == 'model' else 'data'}_digest\)"):
        train(run)


def test_exact_options_are_free_when_a_run_goes_on(
    user: Path, whole: Path, tmp_path: Path, interrupt_distillation: Interrupt
) -> None:
    interrupt_distillation(run_config(user, tmp_path), 3)
    changes = {"checkpoint_layers": True, "chunk_tokens": 2, "kv_log": "host", "pack_weights": False, "save_every": 2}
    text = train(run_config(user, tmp_path, resume=True, profile_memory=True, **changes))
    assert "distill goes on from checkpoint-2" in text
    for name, weight in weights(tmp_path / "distill").items():
        torch.testing.assert_close(weight, weights(whole / "distill")[name], rtol=1e-3, atol=1e-5)
    train(run_config(user, tmp_path, resume=True, recompute=False))


def test_a_run_goes_on_with_the_savings_that_it_began_with(
    user: Path, whole: Path, tmp_path: Path, interrupt_distillation: Interrupt
) -> None:
    """Whatever the planner would choose now; else chunks of other sizes change what is computed, by rounding."""
    interrupt_distillation(run_config(user, tmp_path), 3)
    marker = tmp_path / "run.json"
    content = json.loads(marker.read_text())
    content["chosen"] |= {"checkpoint_layers": True, "chunk_tokens": 128, "teacher_batch_size": 2}
    marker.write_text(json.dumps(content))
    text = train(run_config(user, tmp_path, resume=True))
    assert "learner: checkpoint_layers True, chunk_tokens 128, kv_log device: as the run began (" in text
    assert "teacher: samples" not in text  # all its texts are in the folder
    assert json.loads(marker.read_text())["chosen"] == content["chosen"]


def test_a_checkpoint_that_was_cut_short_is_skipped_and_nothing_else_is_lost(
    user: Path, whole: Path, tmp_path: Path, interrupt_distillation: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_distillation(run_config(user, tmp_path), 3)
    cut(tmp_path / "distill" / "checkpoint-2")
    forbid_sampling(monkeypatch)
    text = train(run_config(user, tmp_path, resume=True))
    assert "checkpoint-2 was not written to its end (optimizer.pt is cut short) and is skipped" in text
    assert "distill goes on from checkpoint-1" in text
    assert_same(weights(tmp_path), weights(whole / "distill"))


def test_without_a_whole_checkpoint_a_phase_starts_anew_on_the_kept_samples(
    user: Path, whole: Path, tmp_path: Path, interrupt_distillation: Interrupt, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_distillation(run_config(user, tmp_path), 2)
    (tmp_path / "distill" / "checkpoint-1" / "trainer_state.json").unlink()
    forbid_sampling(monkeypatch)
    assert "distill starts anew" in train(run_config(user, tmp_path, resume=True))
    assert_same(weights(tmp_path), weights(whole / "distill"))


def test_grpo_skips_a_checkpoint_that_was_cut_short(
    user: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_config(user, tmp_path, grpo_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(rewards, "math_correctness", stop_at(rewards.math_correctness, 3))
        with pytest.raises(KeyboardInterrupt):
            train(run)
    assert [path.name for path in checkpoints(tmp_path / "grpo")] == ["checkpoint-1", "checkpoint-2"]
    cut(tmp_path / "grpo" / "checkpoint-2", "adapter_model.safetensors")
    text = train(run_config(user, tmp_path, grpo_steps=3, resume=True))
    rollouts = [(folder / "grpo" / "rollouts.jsonl").read_text() for folder in (tmp_path, whole)]
    assert [json.loads(line)["step"] for line in rollouts[0].splitlines()] == [0, 0, 1, 1, 2, 2]
    own, others = ([json.loads(line)["completion"] for line in text.splitlines()] for text in rollouts)
    assert own == others
    assert "grpo goes on from checkpoint-1" in text
    assert_same(weights(tmp_path), weights(whole))


@pytest.mark.parametrize("phase", ["distill", "grpo"])
def test_a_lost_phase_marker_costs_no_step(phase: str, user: Path, whole: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(whole, tmp_path / "run"))
    before = json.loads((copied / "phases" / f"{phase}.json").read_text())
    (copied / "phases" / f"{phase}.json").unlink()
    shutil.rmtree(copied / phase / "adapter")
    train(run_config(user, copied, grpo_steps=3, resume=True))
    after = json.loads((copied / "phases" / f"{phase}.json").read_text())
    key = "losses" if phase == "distill" else "rewards"
    assert after[key] == before[key]
    assert [path.name for path in checkpoints(copied / phase)] == ["checkpoint-2", "checkpoint-3"]
    assert_same(weights(copied / phase), weights(whole / phase))


def test_a_finished_run_goes_on_with_more_steps(user: Path, whole: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(whole, tmp_path / "run"))
    text = train(run_config(user, copied, grpo_steps=5, resume=True))
    assert "grpo goes on from checkpoint-3" in text
    results = json.loads((copied / "results.json").read_text())
    assert [step for step, _ in results["phases"]["grpo"]["rewards"]] == [1, 2, 3, 4, 5]
    assert results["run"]["grpo_steps"] == 5
    with pytest.raises(ValueError, match=r"other settings \(grpo_steps\).*grpo_steps=5 then, grpo_steps=3 now"):
        train(run_config(user, copied, grpo_steps=3, resume=True))


def test_more_distillation_draws_only_the_samples_that_are_missing(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_config(user, tmp_path, distill_steps=2))
    drawn: list[int] = []
    sample = distill_module.sample_teacher

    def watched(model: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        drawn.append(len(prompts))
        return sample(model, prompts, *arguments, **options)

    monkeypatch.setattr(distill_module, "sample_teacher", watched)
    text = train(run_config(user, tmp_path, distill_steps=3, resume=True))
    assert drawn == [2], "4 were kept, 6 are needed"
    assert "distill goes on from checkpoint-2" in text
    assert [path.name for path in checkpoints(tmp_path / "distill")] == ["checkpoint-2", "checkpoint-3"]


def test_more_distillation_after_grpo_is_refused_with_the_way_to_do_it(user: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"started after 3 steps of distillation.*--adapter"):
        train(run_config(user, whole, distill_steps=4, grpo_steps=3, resume=True))


def test_a_run_starts_from_a_trained_adapter_and_keeps_its_settings(user: Path, whole: Path, tmp_path: Path) -> None:
    config = settings_to_start_from(str(whole / "adapter"), {"window": 3})
    assert (config.r, config.num_global_tokens, config.window) == (3, 5, 3)
    run = run_config(user, tmp_path, adapter=str(whole / "adapter"), distill_learning_rate=1e-12)
    train(run, config)
    start, end = weights(whole), weights(tmp_path)
    for name in start:
        torch.testing.assert_close(end[name], start[name], rtol=0, atol=1e-6)
    changed = run_config(user, tmp_path / "b", adapter=str(whole / "adapter"), distill_learning_rate=1e-2)
    train(changed, config)
    assert any(not torch.equal(weights(tmp_path / "b")[name], start[name]) for name in start)
    base = AutoModelForCausalLM.from_pretrained(user / "model")
    assert PeftModel.from_pretrained(base, tmp_path / "adapter").peft_config["default"].window == 3


def test_a_run_from_another_adapter_is_another_run(user: Path, whole: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(whole / "adapter", tmp_path / "start"))
    run = run_config(user, tmp_path / "run", adapter=str(start))
    config = settings_to_start_from(str(start), {})
    train(run, config)
    shutil.copytree(whole / "distill" / "adapter", start, dirs_exist_ok=True)
    again = run_config(user, tmp_path / "run", adapter=str(start), resume=True)
    with pytest.raises(ValueError, match=r"other settings \(adapter_digest\)"):
        train(again, settings_to_start_from(str(start), {}))


def test_a_disk_that_fills_up_leaves_nothing_that_looks_finished(
    user: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Any, folder: str, **named: Any) -> None:
        (Path(folder) / "tokenizer.json").write_text("{")
        raise Exception("No space left on device (os error 28)")

    copied = Path(shutil.copytree(whole, tmp_path / "run"))
    before = weights(copied)
    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
        with pytest.raises(
            OSError, match=r"^cannot write to .*run \(No space left on device\); free some space .*--resume"
        ):
            train(run_config(user, copied, grpo_steps=3, resume=True))
    assert_same(weights(copied), before)
    assert {path.name for path in copied.iterdir() if path.name.startswith(".")} == set()
    train(run_config(user, copied, grpo_steps=3, resume=True))


def test_adapters_are_saved_whole(user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = PeftModel.save_pretrained

    def interrupted(self: Any, folder: str, **named: Any) -> None:
        save(self, folder, **named)
        (Path(folder) / "adapter_model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PeftModel, "save_pretrained", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(run_config(user, tmp_path, save_every=0))
    assert not (tmp_path / "distill" / "adapter").exists()
    assert builders.find_checkpoint(tmp_path / "distill", Console(quiet=True)) is None


def test_samples_that_mostly_stay_in_the_window_are_said(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of six answers lets something leave; with half of them there is nothing to say."""
    counts: list[int] = []

    def few(samples: Sequence[Rollout], config: tc.ThoughtConfig) -> list[Rollout]:
        """So many evict when the phase counts; the trainer, which asks behind it, gets what is true."""
        bounded = under_window(samples, config)
        if not counts:
            return bounded
        some, count = next(row.evictions for row in bounded if row.evictions), counts.pop()
        return [replace(row, evictions=some if place < count else ()) for place, row in enumerate(bounded)]

    monkeypatch.setattr(distill_module, "under_window", few)
    counts.append(1)
    said = "only 1 of 6 teacher samples are longer than the window; the others teach nothing, lower --window"
    assert said in train(run_config(user, tmp_path / "few"))
    counts.append(3)
    assert "longer than the window" not in train(run_config(user, tmp_path / "half"))
