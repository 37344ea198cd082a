"""How the teacher of distillation samples: any number of texts at once, under any cache; and parts of the learner's."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import thoughtcache as tc
from support.compare import assert_close, assert_gradients_match, gradients
from support.models import tiny_model
from support.plans import cpu_setting
from support.text_model import save_questions, save_text_model
from thoughtcache.planning.fit import DoesNotFitError
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import GIB, make_plan
from thoughtcache.planning.savings import COMFORTABLE
from thoughtcache.planning.teacher import ENOUGH, MOST_AT_ONCE, choose_teacher_batch, split_to_fit, teacher_samples
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.plan.fit import fitted
from thoughtcache.recipes.plan.teacher import fitted_teacher
from thoughtcache.recipes.real_model import run_real_model
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.train.arguments import training_arguments
from thoughtcache.train.distill import DistillTrainer, sample_teacher, under_window
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache_cli.arguments import build_parser

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12], [13, 14], [15], [16, 17], [18, 19, 20]]
CACHE = {"window": 6, "evict_fraction": 0.25, "eviction": "h2o"}
RUN = RunConfig(model="m", dataset="d", max_new_tokens=4096, dtype="bfloat16", grpo_steps=0)
THOUGHT = tc.ThoughtConfig(window=1024, target_modules="all-linear")
LONG = [[5] * 300, [5] * 512] * 400


def model_that_stops() -> Any:
    """A tiny model with a window of 5, four of whose 29 tokens end a text."""
    model = tiny_model(window=5)
    model.base_model.model.generation_config.eos_token_id = [1, 2, 3, 4]
    return model


def config(**changes: Any) -> DistillConfig:
    return DistillConfig(**{"output_dir": "", "max_new_tokens": 19, "seed": 3, **changes})


@pytest.mark.parametrize("cache", [None, CACHE, {"window": 4, "eviction": "random"}], ids=str)
def test_a_text_does_not_depend_on_who_is_sampled_beside_it(cache: dict[str, Any] | None) -> None:
    model = model_that_stops()
    texts = [
        [text.token_ids for text in sample_teacher(model, PROMPTS, config(sample_batch_size=size, teacher_cache=cache))]
        for size in (1, 2, 3, 7)
    ]
    assert len({len(text) for text in texts[0]}) > 1, "texts of one length would hide a slot that is filled again"
    assert texts[1:] == [texts[0]] * 3


def test_the_bounded_teacher_is_the_base_under_that_cache() -> None:
    """As another model samples that was never anything else; the student stays as it was."""
    model, bare = (
        tiny_model(window=5),
        tiny_model(window=6, eviction="h2o", absorb=False, initial_state="identity", r=5),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = [name for name, value in model.named_parameters() if value.requires_grad]
    drawn = torch.get_rng_state()
    texts = sample_teacher(model, PROMPTS, config(teacher_cache=CACHE))
    assert torch.equal(torch.get_rng_state(), drawn), "the adapter in between draws from a state of its own"
    with bare.disable_adapter():
        expected = tc.rollout(bare, PROMPTS, max_new_tokens=19, seed=3)
    assert [text.token_ids for text in texts] == [row.token_ids for row in expected]
    full = sample_teacher(model, PROMPTS, config())
    assert [text.token_ids for text in texts] != [text.token_ids for text in full]
    assert {text.settings.window for text in texts} == {None}
    assert all(not text.evictions and text.states is None for text in texts)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [name for name, value in model.named_parameters() if value.requires_grad] == trained


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_micro_batches_leave_loss_and_gradient_unchanged(size: int, tmp_path: Path) -> None:
    model = tiny_model(window=5)
    texts = under_window(sample_teacher(model, PROMPTS[:5], config()), model.base_model.thought_config)
    cut = [replace(text, token_ids=text.token_ids[: 4 * row + 3]) for row, text in enumerate(texts)]
    rows = under_window(cut, model.base_model.thought_config)

    def trainer(micro: int | str) -> DistillTrainer:
        settings = config(output_dir=str(tmp_path), micro_batch_size=micro)
        return DistillTrainer(
            distill_config=settings, evaluator=None, model=model, args=training_arguments(settings), train_dataset=rows
        )

    whole, parts = trainer(5), trainer(size)
    expected = gradients(model, lambda: whole.compute_loss(model, {"rollouts": rows}))
    value = whole.compute_loss(model, {"rollouts": rows})
    model.zero_grad()
    assert_close(parts.compute_loss(model, {"rollouts": rows}), value)
    assert_gradients_match(gradients(model, lambda: parts.compute_loss(model, {"rollouts": rows})), expected)


@pytest.mark.parametrize("gib", [8, 12, 24])
def test_as_many_texts_at_once_as_keep_to_the_bound(gib: int) -> None:
    setting = replace(cpu_setting(objective="distill", max_new_tokens=4000), device_type="cuda")
    setting = replace(setting, model=load_config("Qwen2.5-3B"), dtype="bfloat16", prompt_tokens=512)
    rows = choose_teacher_batch(setting, 10_000, available_bytes=gib * GIB)

    def needs(count: int) -> int:
        return teacher_samples(replace(setting, rollout_batch=count)).total_bytes

    bound = COMFORTABLE * gib * GIB if rows > ENOUGH["cuda"] else gib * GIB
    assert needs(rows) <= bound
    assert rows in (ENOUGH["cuda"], MOST_AT_ONCE["cuda"]) or needs(rows + 1) > bound
    assert choose_teacher_batch(setting, 3, available_bytes=24 * GIB) == 3
    assert choose_teacher_batch(setting, 3, available_bytes=None) == 3
    assert choose_teacher_batch(setting, 9, available_bytes=2**20) == 1
    bounded = replace(setting, teacher_cache={"window": 256})
    assert choose_teacher_batch(bounded, 10_000, available_bytes=12 * GIB) > choose_teacher_batch(
        setting, 10_000, available_bytes=12 * GIB
    )


def test_a_step_is_split_where_it_does_not_fit_and_only_there() -> None:
    setting = cpu_setting(objective="distill", batch=6, max_new_tokens=400, pack_weights=False)
    needs = {size: split_to_fit(replace(setting, batch=size), (), 2**62) for size in (1, 2, 3, 6)}
    total = {size: make_plan(replace(one, generation_batch=6)).total_bytes for size, one in needs.items()}
    assert split_to_fit(setting, (), total[6]) == setting
    assert split_to_fit(setting, (), None) == setting
    for size in (1, 2, 3):
        split = split_to_fit(setting, (), total[size])
        assert (split.batch, split.completions) == (size, 6)
    assert split_to_fit(setting, (), 2**20).batch == 1


def planned(run: RunConfig, available_gib: float, **more: Any) -> tuple[RunConfig, list[str]]:
    where = (THOUGHT, load_config("Qwen2.5-0.5B"), LONG, Console(file=StringIO(), width=200))
    return fitted(run, *where, available_bytes=int(available_gib * GIB), **more)


def test_a_run_says_what_was_chosen_for_its_teacher() -> None:
    run, (learner, teacher) = planned(RUN, 24)
    assert learner.startswith("learner: ")
    assert teacher.startswith(f"teacher: samples {run.teacher_batch_size} texts at once: chosen by the planner (")
    assert isinstance(run.teacher_batch_size, int)
    assert run.distill_micro_batch_size == 8
    given, lines = planned(replace(RUN, teacher_batch_size=5), 24)
    assert (given.teacher_batch_size, len(lines)) == (5, 1)
    began = {"checkpoint_layers": False, "chunk_tokens": 256, "kv_log": "device", "teacher_batch_size": 3}
    kept, lines = planned(RUN, 24, stored=began)
    assert kept.teacher_batch_size == 3
    assert "teacher: samples 3 texts at once: as the run began (" in lines[1]
    _, lines = planned(replace(RUN, teacher_cache=CACHE), 24)
    assert "window=6,evict-fraction=0.25,eviction=h2o" in lines[-1]
    assert "distributions of the full cache" in lines[-1]


def test_a_learner_that_does_not_fit_is_split_and_the_run_says_so() -> None:
    run, lines = planned(replace(RUN, distill_batch_size=256), 6)
    assert isinstance(run.distill_micro_batch_size, int)
    assert 256 % run.distill_micro_batch_size == 0
    size = run.distill_micro_batch_size
    assert size < 256
    assert any(line.startswith(f"distillation: its learner takes {size} of the 256 texts") for line in lines)
    again, _ = planned(replace(run, teacher_batch_size="auto"), 6)
    assert again.distill_micro_batch_size == size


def test_too_many_texts_of_a_teacher_are_refused_with_the_phase_the_numbers_and_the_remedy() -> None:
    with pytest.raises(DoesNotFitError, match="; leave out --teacher-batch-size, or pass --force") as caught:
        planned(replace(RUN, teacher_batch_size=5000), 24)
    message = str(caught.value)
    assert "24.00 GiB are available" in message
    assert ", 5000 texts at once); " in message
    assert "GiB, teacher samples: " in message
    planned(replace(RUN, teacher_batch_size="auto"), 24)


def test_one_text_that_does_not_fit_is_refused_with_the_bounded_teacher_where_that_helps() -> None:
    """The weights take 0.92 GiB, the full cache of 30,000 tokens 0.36; a window holds 1024 of them."""
    run = DistillRun(model="m", dataset="d", max_new_tokens=30_000, dtype="bfloat16")
    where = (THOUGHT, load_config("Qwen2.5-0.5B"), [[5] * 512])
    with pytest.raises(DoesNotFitError) as caught:
        fitted_teacher(run, *where, available_bytes=int(1.3 * GIB))
    message = str(caught.value)
    assert ", 1 text at once); " in message
    assert "--teacher-cache window=1024" in message
    (shorter,) = {
        int(word) for word in message.replace(",", "").split() if word.isdigit() and 1024 < int(word) < 30_000
    }
    for changes in ({"max_new_tokens": shorter}, {"teacher_cache": {"window": 1024}}):
        found, lines = fitted_teacher(replace(run, **changes), *where, available_bytes=int(1.3 * GIB))
        assert found.teacher_batch_size == 1
        assert lines[0].startswith("teacher: samples 1 text at once")
    forced, _ = fitted_teacher(replace(run, force=True), *where, available_bytes=int(1.3 * GIB))
    assert forced.teacher_batch_size == 1


@pytest.mark.parametrize(
    "cache", [{"eviction": "h2o"}, {"window": "prompt"}, {"window": 8, "positions": "rolling"}, {"window": 0}], ids=str
)
def test_what_is_no_cache_of_a_teacher_is_refused(cache: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"window"):
        replace(RUN, teacher_cache=cache)
    with pytest.raises(ValueError, match=r"window"):
        config(teacher_cache=cache)


def test_options_are_read() -> None:
    words = [
        "train",
        "--teacher-batch-size",
        "auto",
        "--teacher-cache",
        "window=64,eviction=streaming,eviction-option=sinks=2",
    ]
    options = build_parser().parse_args(words)
    assert options.teacher_batch_size == "auto"
    assert options.teacher_cache == {"window": 64, "eviction": "streaming", "eviction_options": {"sinks": 2}}
    assert replace(RUN, teacher_cache=options.teacher_cache).teacher_cache == options.teacher_cache
    assert build_parser().parse_args(["train", "--teacher-cache", "full"]).teacher_cache is None
    with pytest.raises(ValueError, match='teacher_batch_size must be at least 1 or "auto", got 0'):
        replace(RUN, teacher_batch_size=0)


def test_a_run_is_the_same_whatever_its_teacher_samples_at_once(tmp_path: Path) -> None:
    save_text_model(tmp_path / "model")
    save_questions(tmp_path / "questions.jsonl")
    own = {"model": str(tmp_path / "model"), "dataset": str(tmp_path / "questions.jsonl"), "max_new_tokens": 12}
    steps = {"distill_steps": 2, "distill_batch_size": 3, "grpo_steps": 0}
    thought = tc.ThoughtConfig(r=3, num_global_tokens=5, window=4)
    changes = {
        "auto": {},
        "two": {"teacher_batch_size": 2, "distill_micro_batch_size": 1},
        "bounded": {"teacher_cache": CACHE},
    }

    def run_of(name: str) -> RunConfig:
        return RunConfig(**own, **steps, **changes[name], output_dir=str(tmp_path / name))

    losses = {}
    for name in changes:
        result = run_real_model(run_of(name), replace(thought), Console(quiet=True))
        losses[name] = [loss for _, loss in result["phases"]["distill"]["losses"]]
    assert losses["two"] == pytest.approx(losses["auto"], rel=1e-4)
    assert losses["bounded"] != pytest.approx(losses["auto"], rel=1e-4)
    recorded = json.loads((tmp_path / "two" / "run.json").read_text())
    assert (recorded["teacher_batch_size"], recorded["chosen"]["teacher_batch_size"]) == (2, 2)
    again, shown = replace(run_of("auto"), resume=True), StringIO()
    run_real_model(again, replace(thought), Console(file=shown, width=200))
    assert "learner: " in shown.getvalue()
    assert "teacher: samples" not in shown.getvalue(), "all texts are on disk"
    recorded = json.loads((tmp_path / "auto" / "run.json").read_text())
    assert isinstance(recorded["chosen"]["teacher_batch_size"], int)
    other = replace(run_of("auto"), output_dir=str(tmp_path / "bounded"), resume=True)
    with pytest.raises(ValueError, match=r"other settings \(teacher_cache\)"):
        run_real_model(other, thought, Console(quiet=True))
