"""The savings that the planner chooses: never more memory than full-cache LoRA, what fits a device, the cheapest."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from support.plans import cpu_setting
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO, SAVINGS, left_to_the_planner, replay_options
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.paper import BATCHES, FIGURES, GPU_BYTES, PaperFigure, paper_settings
from thoughtcache.planning.plan import GIB, learner_bytes, make_plan
from thoughtcache.planning.savings import SMALL_BYTES, Savings, choose_savings, combinations, usable_bytes
from thoughtcache.planning.setting import PlanSetting, full_cache_lora
from thoughtcache.train.distill_config import DistillConfig

MODELS = (
    "Qwen/Qwen2.5-0.5B",
    "Qwen/Qwen2.5-3B-Instruct",
    "Qwen/Qwen2.5-7B-Instruct",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
)
GPUS, LENGTHS = (24, 48, 80), (3072, 16000, 32000)


def planned(model: str = MODELS[1], tokens: int = 3072, **changes: Any) -> PlanSetting:
    defaults: dict[str, Any] = {"thought": ThoughtConfig(), "batch": 8, "group": 8}
    return PlanSetting(model=load_config(model), max_new_tokens=tokens, **{**defaults, **changes})


def need(setting: PlanSetting, savings: Savings | None = None) -> int:
    return make_plan(setting if savings is None else savings.of(setting)).total_bytes


@pytest.mark.parametrize("tokens", LENGTHS)
@pytest.mark.parametrize("model", MODELS)
def test_never_more_than_full_cache_lora_and_what_fits_a_device_fits(model: str, tokens: int) -> None:
    """At equal batch, on every device; a device on which one combination fits is not overrun."""
    for batch in (1, 8):
        setting = planned(model, tokens, batch=batch)
        lora, least = need(full_cache_lora(setting)), min(need(setting, one) for one in combinations(setting, SAVINGS))
        for gpu in GPUS:
            found = need(setting, choose_savings([setting], SAVINGS, available_bytes=usable_bytes(gpu * GIB)))
            assert found <= lora
            assert found <= max(least, usable_bytes(gpu * GIB))
        assert need(setting, choose_savings([setting], SAVINGS)) <= lora


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.model)
def test_the_papers_share_of_its_gpu_is_enough(figure: PaperFigure, batch: int) -> None:
    """The paper's run, on a GPU that is no larger than the share of an A100-40GB that the paper reports of PTE."""
    setting, share = paper_settings(figure, batch), int(figure.pte_percent / 100 * GPU_BYTES)
    assert need(setting, choose_savings([setting], SAVINGS, available_bytes=share)) <= share


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.model)
def test_the_papers_share_of_its_gpu_is_kept_to_by_default(figure: PaperFigure, batch: int) -> None:
    """On the paper's whole GPU, at every micro-batch, which the paper does not state."""
    setting, share = paper_settings(figure, batch), int(figure.pte_percent / 100 * GPU_BYTES)
    assert need(setting, choose_savings([setting], SAVINGS, available_bytes=usable_bytes(GPU_BYTES))) <= share


@pytest.mark.parametrize("gpu", [9, 12, 16, 24, 80])
@pytest.mark.parametrize("batch", [1, 8])
def test_the_choice_is_the_first_that_keeps_to_the_bound(gpu: int, batch: int) -> None:
    setting = planned(batch=batch)
    needs = {one: need(setting, one) for one in combinations(setting, SAVINGS)}
    least = min(needs.values())
    comfortable = min(need(full_cache_lora(setting)), int(0.63 * gpu * GIB))
    bound = comfortable if least <= comfortable else min(need(full_cache_lora(setting)), gpu * GIB)
    if bound < least:  # as near as 2 %, unless not even the least fits
        bound = min(int(1.02 * least), gpu * GIB) if least <= gpu * GIB else least
    allowed = [one for one, total in needs.items() if total <= bound]
    assert choose_savings([setting], SAVINGS, available_bytes=gpu * GIB) == allowed[0]


def test_no_price_is_paid_for_the_last_of_what_lora_needs_less() -> None:
    """One row of 512 thoughts, of which none is evicted: chunks of 64 and a log on the host would not win 2 %."""
    short = planned(tokens=512, batch=1)
    assert min(need(short, one) for one in combinations(short, SAVINGS)) > need(full_cache_lora(short))
    assert choose_savings([short], SAVINGS, available_bytes=24 * GIB) == Savings(checkpoint_layers=True)


def test_the_order_of_prices() -> None:
    """Eight rows: 64 tokens of each are a full pass. One row: 128 cost more than checkpoints do."""
    on_gpu = combinations(planned(), SAVINGS)
    assert [one.chunk_tokens for one in on_gpu[:3]] == [256, 128, 64]
    assert [(one.checkpoint_layers, one.kv_log) for one in on_gpu[::3]] == [
        (False, "device"),
        (False, "host"),
        (True, "device"),
        (True, "host"),
    ]
    alone = combinations(planned(batch=1), SAVINGS)
    assert [one.chunk_tokens for one in alone] == [256] * 4 + [128] * 4 + [64] * 4
    assert alone[-1] == on_gpu[-1] == Savings(checkpoint_layers=True, chunk_tokens=64, kv_log="host")
    assert {one.kv_log for one in combinations(cpu_setting(), SAVINGS)} == {"device"}


def test_what_is_given_stays() -> None:
    setting = planned(chunk_tokens=None)
    assert choose_savings([setting], ("checkpoint_layers", "kv_log"), available_bytes=GIB) == Savings(
        checkpoint_layers=True, chunk_tokens=None, kv_log="host"
    )
    assert choose_savings([setting], (), available_bytes=GIB) == Savings(chunk_tokens=None)
    everything_kept = planned(recompute=False)
    assert choose_savings([everything_kept], SAVINGS, available_bytes=GIB) == Savings()


def test_a_small_learner_is_left_alone_where_it_fits() -> None:
    small = replace(cpu_setting("qwen3", prompt_tokens=128, batch=1, group=2), device_type="cuda")
    assert learner_bytes(small) < SMALL_BYTES
    assert need(small) > need(full_cache_lora(small))
    assert choose_savings([small], SAVINGS) == Savings()
    assert choose_savings([small], SAVINGS, available_bytes=need(small)) == Savings(), "it may fill the device"
    assert choose_savings([small], SAVINGS, available_bytes=need(small) - 1) != Savings()


def test_a_host_that_has_no_room_is_not_used() -> None:
    setting = planned(tokens=32000)
    with_host = choose_savings([setting], SAVINGS, available_bytes=15 * GIB)
    assert with_host.kv_log == "host"
    on_host = make_plan(with_host.of(setting)).host_bytes
    assert choose_savings([setting], SAVINGS, available_bytes=15 * GIB, host_bytes=on_host) == with_host
    assert choose_savings([setting], SAVINGS, available_bytes=15 * GIB, host_bytes=on_host - 1).kv_log == "device"


def test_records_of_a_whole_generation_count() -> None:
    """Eight micro-batches of eight rows are sampled before the first is learned from: 64 rows of recorded K/V wait."""
    one = planned(tokens=16000, reuse=True, rollout_batch=8)
    eight = replace(one, generation_batch=64)
    assert (one.completions, eight.completions) == (8, 64)
    records = [make_plan(setting).peak.parts["recorded K/V"] for setting in (one, eight)]
    assert records[1] == 8 * records[0]
    assert need(eight) > need(one) + 7 * records[0]
    assert make_plan(replace(one, generation_batch=8)) == make_plan(one)
    available = usable_bytes(48 * GIB)
    chosen = choose_savings([eight], SAVINGS, available_bytes=available)
    assert chosen != choose_savings([one], SAVINGS, available_bytes=available)
    assert need(eight, chosen) <= available


def test_a_host_that_was_given_is_not_taken_back() -> None:
    """A host too small for what was asked of it: the other savings are chosen all the same."""
    setting = planned(tokens=16000, kv_log="host")
    chosen = choose_savings([setting], ("checkpoint_layers", "chunk_tokens"), available_bytes=15 * GIB, host_bytes=GIB)
    assert chosen.kv_log == "host"
    assert chosen == choose_savings([setting], ("checkpoint_layers", "chunk_tokens"), available_bytes=15 * GIB)


def test_all_phases_have_one_choice() -> None:
    grpo = planned(batch=8)
    distill = replace(grpo, objective="distill", group=1)
    apart = [choose_savings([one], SAVINGS, available_bytes=14 * GIB) for one in (grpo, distill)]
    together = choose_savings([grpo, distill], SAVINGS, available_bytes=14 * GIB)
    assert together in apart
    assert max(need(grpo, together), need(distill, together)) <= 14 * GIB


def test_settings_say_what_is_left_to_the_planner(tmp_path: Any) -> None:
    config = DistillConfig(output_dir=str(tmp_path))
    assert left_to_the_planner(config) == SAVINGS
    assert asdict(Savings()) == {name: getattr(config.replay_options, name) for name in SAVINGS}
    given = replace(config, chunk_tokens=None, kv_log="host")
    assert left_to_the_planner(given) == ("checkpoint_layers",)
    options = replay_options(given)
    assert (options.checkpoint_layers, options.chunk_tokens, options.kv_log) == (False, None, "host")
    assert config.checkpoint_layers == AUTO
