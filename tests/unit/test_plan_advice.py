"""What a plan tells to type: every phase fits when it is planned again, from the words of the command."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.unit.test_plan_savings import GPUS, LENGTHS, MODELS, planned
from transformers import LlamaConfig

from support.plans import cpu_setting
from thoughtcache.cache.schedule import num_evictions
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import SAVINGS
from thoughtcache.planning.advice import Phases, advise, most_of_run, phases_of, runs_that_fit
from thoughtcache.planning.plan import GIB, make_plan
from thoughtcache.planning.savings import combinations, usable_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import split_to_fit, with_teacher_batch
from thoughtcache.presets import preset_settings
from thoughtcache.recipes.plan.command import train_commands
from thoughtcache.recipes.plan.memory_plan import plan_memory
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.report.plan_advice import price_lines
from thoughtcache_cli.arguments import build_parser
from thoughtcache_cli.effect import refuse_without_effect

RUN_FIELDS = set(RunConfig.__dataclass_fields__)


def typed(command: str) -> tuple[RunConfig, dict[str, Any]]:
    """The run and the settings of the adapter that a command asks for, as the command line reads it."""
    name, *words = shlex.split(command)
    assert name == "thoughtcache"
    options = vars(build_parser().parse_args(words))
    options.pop("command")
    refuse_without_effect("train", options, {option: option for option in options})
    run = RunConfig(**{option: value for option, value in options.items() if option in RUN_FIELDS})
    return run, {option: value for option, value in options.items() if option not in RUN_FIELDS}


def again(run: RunConfig, setting: PlanSetting, available: int) -> list[PlanSetting]:
    """The phases of a run, planned from the run, with what it chooses itself: texts at once of both sides."""
    shared = replace(
        setting,
        max_new_tokens=run.max_new_tokens,
        dtype=run.dtype,
        rollout_batch=None,
        checkpoint_layers=run.checkpoint_layers,
        chunk_tokens=run.chunk_tokens,
        kv_log=run.kv_log if setting.device_type == "cuda" else "device",
        recompute=run.recompute,
    )
    phases = []
    if run.distill_steps:
        assert (run.distill_micro_batch_size, run.teacher_batch_size) == ("auto", "auto")
        distill = replace(
            shared,
            objective="distill",
            batch=run.distill_batch_size,
            group=1,
            beta=0.0,
            reuse=False,
            generation_batch=None,
        )
        split = split_to_fit(distill, (), available)
        phases.append(with_teacher_batch(split, available_bytes=available))
    if run.grpo_steps:
        phases.append(
            replace(
                shared,
                batch=run.grpo_batch_size // run.gradient_accumulation,
                generation_batch=run.grpo_batch_size,
                group=run.group_size,
                beta=run.beta,
            )
        )
    return phases


def advised(setting: PlanSetting, available: int) -> tuple[Phases, ...]:
    return runs_that_fit(phases_of(setting), SAVINGS, available)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_advised_fits_when_it_is_planned_again(model: str, gpu: int) -> None:
    available = usable_bytes(gpu * GIB)
    for tokens in LENGTHS:
        setting = planned(model, tokens)
        runs = advised(setting, available)
        assert runs, (model, gpu, tokens)
        for command, phases in zip(train_commands(model, {}, runs), runs, strict=True):
            found = again(typed(command)[0], setting, available)
            assert len(found) == len(phases)
            for phase in found:
                assert make_plan(phase).total_bytes <= available
                assert num_evictions(phase.max_new_tokens - 1, phase.window, phase.num_evicted)
        assert {phase.objective for phases in runs for phase in phases} == {"distill", "grpo"}


def test_the_run_that_was_asked_for_is_advised_where_it_fits() -> None:
    ((distill, grpo),) = advised(planned(), usable_bytes(24 * GIB))
    assert (distill.batch, grpo.batch, grpo.group, grpo.max_new_tokens) == (8, 8, 8, 3072)


def test_completions_go_before_thoughts_and_savings_before_both() -> None:
    setting = planned(tokens=16000, checkpoint_layers=False, chunk_tokens=256)
    (fits,) = advise([setting], make_plan(replace(setting, checkpoint_layers=True)).total_bytes) or ()
    assert (fits.batch, fits.max_new_tokens) == (8, 16000)
    (fewer,) = advise([setting], 10 * GIB) or ()
    assert fewer.batch < 8
    assert fewer.max_new_tokens == 16000
    assert make_plan(fewer).total_bytes <= 10 * GIB
    assert advise([setting], 6 * GIB) is None


def test_micro_batches_of_the_same_step_go_before_fewer_completions() -> None:
    setting = planned(tokens=16000)
    available = min(_needs(replace(setting, batch=2, generation_batch=8)))
    (_, grpo) = phases_of(setting)
    ((grpo,),) = runs_that_fit((grpo,), SAVINGS, available)
    assert (grpo.batch, grpo.completions, grpo.group, grpo.max_new_tokens) == (2, 8, 8, 16000)
    run, _ = typed(train_commands("m", {}, [(grpo,)])[0])
    assert (run.grpo_batch_size, run.gradient_accumulation, run.group_size) == (8, 4, 8)


def test_a_plan_of_micro_batches_below_a_group_is_typed_as_it_was_planned() -> None:
    whole, small = (make_plan(phases_of(planned(batch=batch, group=8))[1]) for batch in (8, 2))
    assert small.total_bytes < whole.total_bytes
    run, _ = typed(train_commands("m", {}, [phases_of(planned(batch=2, group=8))])[0])
    assert (run.grpo_batch_size, run.gradient_accumulation) == (8, 4)


def test_a_length_at_which_the_smallest_budget_evicts_is_advice() -> None:
    """The window is 64 thoughts and the smallest budget of the pyramid 20: of 60 thoughts some leave."""
    even = cpu_setting(max_new_tokens=2000, batch=1, group=1, objective="distill", thought={"evict_fraction": 0.25})
    pyramid = replace(even, thought=replace(even.thought, eviction_budgets="pyramid"))
    found = []
    for setting in (even, pyramid):
        least = combinations(replace(setting, max_new_tokens=60, pack_weights=False), SAVINGS)[-1]
        short = least.of(replace(setting, max_new_tokens=60, pack_weights=False))
        found.append(advise([setting], make_plan(short).total_bytes))
    assert found[0] is None
    assert found[1] is not None
    assert found[1][0].max_new_tokens == 60


def test_distillation_goes_first_where_its_teacher_needs_shorter_thoughts() -> None:
    first, second = advised(planned(MODELS[0], 32000, batch=2, group=2), int(2.8 * GIB))
    assert [phase.objective for phase in (*first, *second)] == ["distill", "grpo"]
    assert first[0].max_new_tokens < second[0].max_new_tokens == 32000
    commands = train_commands("m", {"window": 1024}, (first, second))
    (one, adapter), (two, nothing) = map(typed, commands)
    assert (one.grpo_steps, two.distill_steps) == (0, 0)
    assert two.adapter == f"{one.output_dir}/adapter"
    assert (adapter, nothing) == ({"window": 1024}, {})


@pytest.mark.parametrize(
    "adapter",
    [
        {"r": 8, "num_global_tokens": 4, "target_modules": ["q_proj", "v_proj"], "absorb": False},
        {"window": "prompt", "positions": "rolling", "eviction": "h2o", "eviction_options": {"sinks": 2}},
        {"memory": "attention", "memory_features": 32, "memory_weight": 0.05},
    ],
)
def test_a_command_asks_for_the_run_that_was_planned(adapter: dict[str, Any]) -> None:
    setting = planned(beta=0.1, gradient="detached", dtype="float16", load_in_4bit=True)
    (command,) = train_commands("some model", adapter, [phases_of(setting)])
    run, found = typed(command)
    assert found == adapter
    assert (run.model, run.dtype, run.load_in_4bit, run.beta, run.gradient) == (
        "some model", "float16", True, 0.1, "detached",
    )  # fmt: skip
    on_cpu = cpu_setting(recompute=False, pack_weights=False, batch=6, group=4)
    run, _ = typed(train_commands("m", {}, [phases_of(on_cpu)])[0])
    assert (run.recompute, run.pack_weights, run.grpo_batch_size, run.group_size) == (False, False, 4, 4)


@pytest.mark.parametrize(
    "words",
    [
        ["--preset", "lora", "--window", "none"],
        ["--preset", "paper", "--no-absorb"],
        ["--preset", "lora", "--r", "8"],
        ["--preset", "memory", "--window", "256", "--memory-features", "8", "--memory-read", "joint"],
        ["--preset", "hybrid", "--eviction", "tova", "--evict-fraction", "0.5"],
        ["--no-absorb", "--window", "512"],
    ],
)
def test_a_command_of_a_preset_names_it_and_what_was_given_beside_it(words: list[str]) -> None:
    """Both `plan` and the `train` that it prints take the words, and make the same adapter."""
    model = "Qwen/Qwen2.5-0.5B"
    options = vars(build_parser().parse_args(["plan", "--model", model, *words]))
    options.pop("command")
    refuse_without_effect("plan", options, {option: option for option in options})
    advice = plan_memory(**options, console=Console(quiet=True))["advice"]
    assert advice
    given = {name: value for name, value in options.items() if name != "model"}
    for one in advice:
        run, found = typed(one["command"])
        assert (run.model, found) == (model, given)
    ThoughtConfig(**preset_settings(given.pop("preset", "paper"), given))


def test_no_command_is_longer_than_the_positions_of_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`train` refuses lengths beyond them: 400 thoughts behind a prompt of 12 on a model of 312 positions."""
    LlamaConfig(
        vocab_size=500, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=312,
    ).save_pretrained(tmp_path)  # fmt: skip
    asked: dict[str, Any] = {"model": str(tmp_path), "max_new_tokens": 400, "prompt_tokens": 12}
    for one in plan_memory(**asked, window=64)["advice"]:
        assert typed(one["command"])[0].max_new_tokens == 300
    assert "for --max-new-tokens 300, as many as the model's positions allow" in capsys.readouterr().out
    (rolling,) = plan_memory(**asked, window=64, positions="rolling", console=Console(quiet=True))["advice"]
    assert typed(rolling["command"])[0].max_new_tokens == 400
    assert plan_memory(**asked, window=350)["advice"] == []
    assert "nothing to type: the model's positions allow 300 thoughts" in capsys.readouterr().out


def test_without_a_window_there_is_nothing_to_distil() -> None:
    (grpo,) = phases_of(planned(thought=ThoughtConfig(window=None), batch=4, group=8))
    assert (grpo.objective, grpo.batch, grpo.completions) == ("grpo", 4, 8)


def test_the_most_fits_and_one_more_does_not() -> None:
    setting, available = planned(), 16 * GIB
    phases = phases_of(setting)
    most = most_of_run(phases, available)
    for name, value in most.items():
        fields = {"max_new_tokens": ("max_new_tokens",), "group_size": ("batch", "group")}.get(name, ("batch",))
        affected = [one for one in phases if name == "max_new_tokens" or one.distills == (name == "distill_batch_size")]
        for added in (0, setting.group if name == "grpo_batch_size" else 1):
            changed = [replace(one, **dict.fromkeys(fields, value + added)) for one in affected]
            fits = all(min(_needs(one)) <= available for one in changed)
            at_bound = name == "max_new_tokens" and value == 32768 - 512
            assert fits == (not added or at_bound), (name, value, added)


def _needs(setting: PlanSetting) -> list[int]:
    return [make_plan(one.of(setting)).total_bytes for one in combinations(setting, SAVINGS)]


def test_prices_are_those_of_the_planner() -> None:
    saved = planned(tokens=16000, checkpoint_layers=True, chunk_tokens=64, kv_log="host")
    lines = price_lines(saved, tokens_per_second=1000.0)
    # 100 steps of 8 x 16000 tokens at 1000 a second are 12800 s.
    assert any("3.6 hours per 100 steps at 1000 tokens/s" in line for line in lines)
    assert any("--chunk-tokens 64" in line and "512 tokens" in line for line in lines)
    # 2 x 36 layers x 8 rows x 16512 tokens x 256 numbers of 2 bytes.
    assert any(f"{2 * 36 * 8 * 16512 * 256 * 2 / GIB:.2f} GiB there and back" in line for line in lines)
    assert price_lines(planned()) == []
