"""A run that would not fit is refused before its weights are read, with the table and the setting to change."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

import thoughtcache as tc
from support.plans import cpu_setting
from thoughtcache.planning.fit import DoesNotFitError, check_fit
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import make_plan
from thoughtcache.planning.setting import PlanSetting, side_by_side
from thoughtcache.recipes.plan.fit import fitted
from thoughtcache.recipes.run.config import RunConfig

RUN = RunConfig(model="m", dataset="d", max_new_tokens=4096, dtype="bfloat16", grpo_batch_size=16, group_size=16)
THOUGHT = tc.ThoughtConfig(window=1024, target_modules="all-linear")
PROMPTS = [[5] * 300, [5] * 512]
GIB = 2**30


def refuse(run: RunConfig, available_bytes: int) -> str:
    """What was printed."""
    text = StringIO()
    console = Console(file=text, width=200)
    fitted(run, THOUGHT, load_config("Qwen2.5-0.5B"), PROMPTS, console, available_bytes=available_bytes)
    return text.getvalue()


def test_a_run_that_fits_says_nothing() -> None:
    assert refuse(RUN, 400 * GIB) == ""


def test_the_line_about_the_choice_names_what_was_chosen() -> None:
    where = (THOUGHT, load_config("Qwen2.5-0.5B"), PROMPTS, Console(file=StringIO(), width=200))
    lines = [
        fitted(replace(RUN, distill_steps=0, **given), *where, available_bytes=400 * GIB)[1]
        for given in (
            {},
            {"chunk_tokens": 64},
            {"chunk_tokens": 64, "kv_log": "device", "checkpoint_layers": True},
            {"recompute": False},  # there is nothing to choose
        )
    ]
    ((whole,), (without_chunks,), *none) = lines
    assert whole.startswith("learner: checkpoint_layers False, chunk_tokens 256, kv_log device: chosen by the")
    assert without_chunks.startswith("learner: checkpoint_layers False, kv_log device: chosen by the planner (")
    assert none == [[], []]


def test_a_run_that_goes_on_keeps_its_choice_where_it_fits() -> None:
    began = {"checkpoint_layers": True, "chunk_tokens": 128, "kv_log": "device"}
    where = (THOUGHT, load_config("Qwen2.5-0.5B"), PROMPTS, Console(file=StringIO(), width=200))

    def goes_on(available_gib: float, stored: dict[str, Any], **given: Any) -> tuple[dict[str, Any], str]:
        asked = replace(RUN, distill_steps=0, **given)
        run, lines = fitted(asked, *where, available_bytes=int(available_gib * GIB), stored=stored)
        return {name: getattr(run, name) for name in began}, "".join(lines)

    kept, line = goes_on(400, began)
    assert kept == began
    assert line.startswith("learner: checkpoint_layers True, chunk_tokens 128, kv_log device: as the run began (")
    kept, line = goes_on(400, began, chunk_tokens=64)
    assert kept == {**began, "chunk_tokens": 64}
    assert line.startswith("learner: checkpoint_layers True, kv_log device: as the run began (")
    larger = {"checkpoint_layers": False, "chunk_tokens": None, "kv_log": "device"}
    kept, line = goes_on(24, larger, group_size=128, grpo_batch_size=128)
    assert kept != larger
    assert "the run began with checkpoint_layers False, chunk_tokens None, kv_log device, which does not fit" in line
    assert "\n" not in line
    assert goes_on(400, began, recompute=False) == (
        {"checkpoint_layers": False, "chunk_tokens": 256, "kv_log": "device"}, "",
    )  # fmt: skip


def test_a_memory_in_attention_counts() -> None:
    memory = tc.ThoughtConfig(memory="attention", memory_features=256, window=64)
    setting = PlanSetting(model=load_config("Qwen2.5-0.5B"), thought=memory, prompt_tokens=512, max_new_tokens=4096)
    window_alone = make_plan(side_by_side(setting)["LoRA_c"])
    with pytest.raises(DoesNotFitError, match="most goes to"):
        check_fit(setting, available_bytes=window_alone.total_bytes)
    where = (load_config("Qwen2.5-0.5B"), PROMPTS, Console(file=StringIO(), width=200))
    fitted(RUN, memory, *where, available_bytes=400 * GIB)
    with pytest.raises(DoesNotFitError):
        fitted(RUN, memory, *where, available_bytes=8 * GIB)


def test_a_run_that_does_not_fit_names_the_setting_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DoesNotFitError, match=r"needs .* GiB and 3\.00 GiB are available.*, or pass --force") as caught:
        refuse(RUN, 3 * GIB)
    assert caught.value.plan.total_bytes > 3 * GIB
    remedy = str(caught.value)
    named = ("--chunk-tokens", "--kv-log", "--grpo-batch-size", "--distill-batch-size", "--gradient-accumulation")
    assert any(name in remedy for name in named)


@pytest.mark.parametrize(
    ("available_gib", "given"),
    [(4, {}), (6, {"chunk_tokens": None, "kv_log": "device"}), (10, {"checkpoint_layers": False, "chunk_tokens": 64})],
)
def test_the_named_settings_make_it_fit(available_gib: int, given: dict[str, Any]) -> None:
    """What a refusal names is enough, at once, whatever was given."""
    run = replace(RUN, grpo_batch_size=128, **given)
    with pytest.raises(DoesNotFitError) as caught:
        refuse(run, available_gib * GIB)
    refuse(replace(run, **named_settings(str(caught.value))), available_gib * GIB)


def named_settings(message: str) -> dict[str, Any]:
    """The settings that a refusal names, as fields of a run."""
    found: dict[str, Any] = {
        name: int(value)
        for option, name in (
            ("chunk-tokens", "chunk_tokens"),
            ("group-size to", "group_size"),
            ("grpo-batch-size to", "grpo_batch_size"),
            ("distill-batch-size to", "distill_batch_size"),
            ("distill-micro-batch-size", "distill_micro_batch_size"),
            ("gradient-accumulation", "gradient_accumulation"),
            ("max-new-tokens to", "max_new_tokens"),
        )
        for value in re.findall(rf"--{option} (\d+)", message)
    }
    found |= {"pack_weights": False} if "set --no-pack-weights" in message else {}
    found |= {"kv_log": "host"} if "--kv-log host" in message else {}
    return found | ({"checkpoint_layers": True} if "set --checkpoint-layers" in message else {})


def test_force_overrides() -> None:
    assert refuse(replace(RUN, force=True), 1) == ""


def test_distillation_is_planned_as_distillation() -> None:
    run = replace(RUN, grpo_steps=0, distill_batch_size=64, chunk_tokens=64, beta=0.1, reuse_rollout=True)
    with pytest.raises(DoesNotFitError, match=r"set --distill-micro-batch-size (16|32), or") as caught:
        refuse(replace(run, distill_micro_batch_size=64), 8 * GIB)
    assert "teacher" in {phase.name for phase in caught.value.plan.phases}
    refuse(run, 8 * GIB)  # the planner splits it


def test_a_step_is_split_before_it_loses_completions() -> None:
    run = replace(RUN, distill_steps=0, grpo_batch_size=64, chunk_tokens=64)
    with pytest.raises(DoesNotFitError, match=r"; set --gradient-accumulation 2, or"):
        refuse(run, 8 * GIB)
    refuse(replace(run, gradient_accumulation=2), 8 * GIB)


def test_on_a_cpu_the_packed_copy_goes_first_if_that_is_enough() -> None:
    setting = cpu_setting(max_new_tokens=64, batch=2, group=2)
    peak = make_plan(setting)
    assert peak.peak.parts["packed weights"] > 0
    without = replace(setting, pack_weights=False)
    with pytest.raises(DoesNotFitError, match=r"; set --no-pack-weights$"):
        check_fit(setting, available_bytes=peak.total_bytes - 1)
    check_fit(without, available_bytes=peak.total_bytes - 1)


def test_a_remedy_names_every_change_that_it_takes() -> None:
    setting = cpu_setting(max_new_tokens=512, batch=32, group=32, recompute=False, pack_weights=False)
    smaller = replace(setting, recompute=True, checkpoint_layers=True)
    available = make_plan(smaller).total_bytes
    assert available < make_plan(replace(setting, recompute=True)).total_bytes
    with pytest.raises(DoesNotFitError, match="leave out --no-recompute and set --checkpoint-layers") as caught:
        check_fit(setting, available_bytes=available)
    assert "pack" not in str(caught.value)
