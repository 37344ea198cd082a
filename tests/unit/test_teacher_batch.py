"""How many texts a teacher samples at once where there is little room, and what that must not change beside it."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import thoughtcache as tc
from support.plans import cpu_setting
from thoughtcache.planning import fit as planning_fit
from thoughtcache.planning.advice import advise
from thoughtcache.planning.fit import DoesNotFitError
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import GIB, make_plan
from thoughtcache.planning.savings import COMFORTABLE, usable_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import ENOUGH, MOST_AT_ONCE, choose_teacher_batch, split_to_fit, teacher_samples
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.plan import memory_plan
from thoughtcache.recipes.plan.fit import fitted
from thoughtcache.recipes.plan.memory_plan import plan_memory
from thoughtcache.recipes.plan.teacher import fitted_teacher
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.dry_run import print_run_plan
from thoughtcache.recipes.run.settings import differences
from thoughtcache.train.distill_config import DistillConfig

QUIET = Console(quiet=True)
RUN = RunConfig(model="m", dataset="d", max_new_tokens=4096, dtype="bfloat16", grpo_steps=0)
WHERE = (tc.ThoughtConfig(window=1024), load_config("Qwen2.5-0.5B"), [[5] * 512] * 800)


def distillation(model: str = "Qwen2.5-3B", **changes: Any) -> PlanSetting:
    return PlanSetting(model=load_config(model), thought=tc.ThoughtConfig(), objective="distill", group=1, **changes)


@pytest.mark.parametrize(("model", "gib"), [("Qwen2.5-3B", 12), ("Qwen2.5-7B", 24)])
def test_weights_that_take_most_of_the_device_leave_the_teacher_what_fits(model: str, gib: int) -> None:
    setting, available = distillation(model), usable_bytes(gib * GIB)

    def needs(count: int) -> int:
        return teacher_samples(replace(setting, rollout_batch=count)).total_bytes

    rows = choose_teacher_batch(setting, 1000, available_bytes=available)
    assert needs(1) > COMFORTABLE * available, "the case is one without comfort"
    assert needs(rows) <= available < needs(rows + 1)
    assert 20 < rows <= ENOUGH["cuda"]


def test_more_memory_never_means_fewer_texts() -> None:
    setting = distillation()
    rows = [choose_teacher_batch(setting, 1000, available_bytes=gib * GIB) for gib in range(6, 40)]
    assert rows == sorted(rows)
    assert ENOUGH["cuda"] in rows, "the device is not filled with more than is enough"
    assert rows[-1] > ENOUGH["cuda"]


def test_a_measured_plan_is_held_to_what_was_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not to what was chosen for the teacher on a GPU that is not here."""
    seen: list[PlanSetting] = []

    def stop(setting: PlanSetting) -> None:
        seen.append(setting)
        raise ValueError("stop")

    monkeypatch.setattr(memory_plan, "check_fit", stop)
    for given in ({}, {"rollout_batch": 3}):
        with pytest.raises(ValueError, match="stop"):
            plan_memory(model="Qwen2.5-0.5B", gpu="80GB", objective="distill", measured=True, console=QUIET, **given)
    assert [one.rollout_batch for one in seen] == [None, 3]


def test_what_fits_is_asked_of_as_few_texts_at_once_as_there_can_be() -> None:
    result = plan_memory(model="Qwen2.5-0.5B", gpu="24GB", objective="distill", max_new_tokens=8192, console=QUIET)
    (longest,) = {run["most"]["max_new_tokens"] for run in result["advice"]}
    assert result["largest"]["PTE"]["max_new_tokens"] == longest


def test_a_teacher_that_does_not_fit_does_not_split_the_learner() -> None:
    setting = cpu_setting(objective="distill", batch=6, max_new_tokens=400, pack_weights=False)
    available = make_plan(setting).total_bytes
    many = replace(setting, rollout_batch=500)
    assert make_plan(many).total_bytes > available
    assert split_to_fit(many, (), available) == many
    run, _ = fitted(replace(RUN, teacher_batch_size=5000, force=True), *WHERE, QUIET, available_bytes=24 * GIB)
    assert (run.teacher_batch_size, run.distill_micro_batch_size) == (5000, 8)


@pytest.mark.parametrize("asked", [1, 4])
def test_advice_leaves_a_number_of_texts_that_fits(asked: int) -> None:
    """Thoughts are too long for the learner; the teacher is no part of it."""
    setting = cpu_setting(objective="distill", batch=4, max_new_tokens=3000, rollout_batch=asked, pack_weights=False)
    weights = make_plan(setting).peak.parts["weights"]
    (found,) = advise([setting], int(weights * 1.4), splits=True) or ()
    assert found.max_new_tokens < 3000
    assert found.rollout_batch == asked


def test_a_refusal_names_the_teachers_number_only_where_it_counts() -> None:
    run = replace(RUN, teacher_batch_size=2, distill_batch_size=64, distill_micro_batch_size=64)
    with pytest.raises(DoesNotFitError, match="--distill-micro-batch-size") as caught:
        fitted(run, *WHERE, QUIET, available_bytes=6 * GIB)
    assert "--teacher-batch-size" not in str(caught.value)
    words = r"teacher samples: [a-z ]+, 5000 texts at once\); leave out --teacher-batch-size, or pass --force$"
    with pytest.raises(DoesNotFitError, match=words):
        fitted(replace(RUN, teacher_batch_size=5000), *WHERE, QUIET, available_bytes=24 * GIB)


@pytest.mark.parametrize("tokens", [5, 6, 7])
def test_a_cache_of_the_teacher_that_never_evicts_is_refused(tokens: int) -> None:
    """A window of 6 holds 7 tokens, the last of which is never processed."""
    cache = {"window": 6, "eviction": "h2o"}
    own = {"teacher_cache": cache, "max_new_tokens": tokens}
    for make in (
        lambda: RunConfig(model="m", dataset="d", **own),
        lambda: DistillRun(model="m", dataset="d", **own),
        lambda: DistillConfig(output_dir="", **own),
        lambda: plan_memory(model="Qwen2.5-0.5B", objective="distill", console=QUIET, **own),
    ):
        with pytest.raises(ValueError, match=rf"window=6,eviction=h2o.*max_new_tokens={tokens}.*leave teacher_cache"):
            make()
    RunConfig(model="m", dataset="d", **{**own, "max_new_tokens": 8})


def test_no_advice_under_which_the_teacher_would_forget_nothing() -> None:
    setting = cpu_setting(
        objective="distill", batch=1, max_new_tokens=3000, teacher_cache={"window": 2000}, pack_weights=False
    )
    for share in (1.05, 1.1, 1.2, 1.3, 1.4):
        found = advise([setting], int(make_plan(setting).peak.parts["weights"] * share))
        assert found is None or found[0].max_new_tokens > 2001


def began(**changes: Any) -> dict[str, Any]:
    return {"checkpoint_layers": False, "chunk_tokens": 256, "kv_log": "device", **changes}


def test_a_run_that_goes_on_says_what_it_keeps_of_its_micro_batches_and_what_it_cannot() -> None:
    run = replace(RUN, distill_batch_size=8)

    def goes_on(available_gib: float, stored: dict[str, Any] | None) -> tuple[int | str, str]:
        found, lines = fitted(run, *WHERE, QUIET, available_bytes=int(available_gib * GIB), stored=stored)
        return found.distill_micro_batch_size, next((line for line in lines if line.startswith("distillation:")), "")

    for size in (4, 3, 1):
        line = f"distillation: its learner takes {size} of the 8 texts of a step at once: as the run began"
        assert goes_on(24, began(distill_micro_batch_size=size)) == (size, line)
    assert goes_on(24, began(distill_micro_batch_size=8)) == goes_on(24, None) == (8, "")
    run = replace(RUN, distill_batch_size=256)
    size, line = goes_on(6, began(distill_micro_batch_size=256))
    assert isinstance(size, int)
    assert size < 256
    assert line.endswith(
        "chosen by the planner; the run began with 256, which do not fit any more, and is not repeated bit by bit"
    )


def test_a_run_that_goes_on_says_so_where_the_texts_of_its_teacher_do_not_fit_any_more() -> None:
    _, lines = fitted(RUN, *WHERE, QUIET, available_bytes=6 * GIB, stored=began(teacher_batch_size=200))
    assert lines[-1].endswith("; the run began with 200, which does not fit any more")


def test_texts_that_are_on_disk_are_not_planned_again() -> None:
    long = replace(RUN, teacher_batch_size=5000)
    with pytest.raises(DoesNotFitError):
        fitted(long, *WHERE, QUIET, available_bytes=24 * GIB)
    run, lines = fitted(long, *WHERE, QUIET, available_bytes=24 * GIB, sampled=True)
    assert run.teacher_batch_size == 5000
    assert not [line for line in lines if "teacher" in line]


def test_without_a_word_about_free_memory_a_run_is_planned_but_not_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planning_fit, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    answers = DistillRun(model="m", dataset="d", max_new_tokens=30_000)
    found, (line,) = fitted_teacher(answers, *WHERE)
    assert found.teacher_batch_size == MOST_AT_ONCE["cpu"]
    assert line.startswith("teacher: samples 32 texts at once: chosen by the planner")
    run, lines = fitted(RUN, *WHERE, QUIET)
    assert run.teacher_batch_size == MOST_AT_ONCE["cpu"]
    shown = StringIO()
    assert set(print_run_plan(run, *WHERE, None, Console(file=shown, width=200))) == {"distillation"}
    assert "not known" in shown.getvalue()
    assert lines[-1] == "plan: nothing says here how much memory is free, so nothing says whether this run fits"


def test_another_cache_of_the_teacher_is_named_as_such() -> None:
    before = {"window": 64, "teacher_cache": {"window": 6, "evict_fraction": 0.25}, "thought": {"window": 3}}
    now = {"window": 64, "teacher_cache": {"window": 8}, "thought": {"window": 4}}
    assert differences(before, now) == [
        ("teacher_cache", {"window": 6, "evict_fraction": 0.25}, {"window": 8}),
        ("window", 3, 4),
    ]
    inside = {"thought": {"eviction_options": {"sinks": 2}}}
    assert differences(inside, {"thought": {"eviction_options": {"seed": 3}}}) == [
        ("eviction_options", {"sinks": 2}, {"seed": 3})
    ]
