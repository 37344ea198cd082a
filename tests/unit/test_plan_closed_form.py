"""Parts of a plan against numbers computed by hand, and what fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from support.plans import cpu_setting
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.chunk import batch_chunks
from thoughtcache.learner.chunk_plan import plan_chunks
from thoughtcache.learner.kv_log import KVLog
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.measuring.operator_flops import OperatorFlops
from thoughtcache.planning import fit
from thoughtcache.planning.fit import DoesNotFitError, check_fit, free_bytes
from thoughtcache.planning.limits import largest, max_length, max_window, with_field
from thoughtcache.planning.memory.kv_cache import kv_cache_bytes
from thoughtcache.planning.memory.replay import anchor_bytes, backward_parts, forward_parts, slot_bytes
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.model_configs import load_config
from thoughtcache.planning.plan import GIB, make_plan, resident_parts
from thoughtcache.planning.setting import PlanSetting, learner_chunks, side_by_side
from thoughtcache.policy.batch import batch_rollouts
from thoughtcache.recipes.plan.trace import blank_rollouts


def qwen(**changes):
    defaults = {"model": load_config("Qwen/Qwen2.5-3B"), "thought": ThoughtConfig(), "max_new_tokens": 8192}
    return PlanSetting(**{**defaults, **changes})


@pytest.mark.parametrize("window", [None, 1, 5, 20, 100])
@pytest.mark.parametrize("chunk_tokens", [None, 1, 3, 1000])
@pytest.mark.parametrize("tokens", [1, 2, 19, 63])
def test_chunks_are_those_of_the_replay(window, chunk_tokens, tokens):
    setting = cpu_setting(thought={"window": window}, max_new_tokens=tokens, prompt_tokens=7, batch=2)
    found = learner_chunks(replace(setting, chunk_tokens=chunk_tokens))
    expected = batch_chunks(batch_rollouts(blank_rollouts(setting), torch.device("cpu")), chunk_tokens)
    assert [shape.columns for shape in found] == [chunk.stop - chunk.start for chunk in expected]
    assert [shape.scored for shape in found] == [chunk.last_score - chunk.first_score for chunk in expected]
    assert [shape.segment for shape in found] == [chunk.segment for chunk in expected]
    assert [shape.evicted > 0 for shape in found] == [chunk.evicts for chunk in expected]
    if window is not None:
        assert max(shape.leaving for shape in found) <= 7 + window


def test_what_is_always_resident():
    parts = resident_parts(qwen())
    assert parts["weights"] == 3_085_938_688 * 2
    # Per layer, rank 32 and 32 columns on linears of (inputs, outputs): q, o 2048x2048; k, v 2048x256; MLP 2048x11008.
    factors = 36 * 32 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 11008))
    encoders = 36 * (5 * 32 * 256 + 1)
    assert parts["adapter"] == 4 * (factors + encoders)
    assert parts["optimizer"] == 2 * parts["adapter"]
    assert parts["reference adapter"] == 0
    assert resident_parts(qwen(beta=0.1))["reference adapter"] == parts["adapter"]


def test_four_bits():
    linears = 36 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008)
    expected = int(linears * 0.5625) + 2 * (3_085_938_688 - linears)
    assert resident_parts(qwen(load_in_4bit=True))["weights"] == expected


def test_keys_and_values():
    setting = qwen(batch=2, group=4)
    # 2 x 36 layers x rows x tokens x 256 numbers of 2 bytes
    assert backward_parts(setting)["K/V log"] == 2 * 36 * 2 * (512 + 8192 - 1) * 256 * 2
    assert backward_parts(replace(setting, kv_log="host"))["K/V log"] == 0
    assert rollout_parts(setting)["drawing"]["rollout K/V"] == kv_cache_bytes(
        setting.model, 512 + 1024, 4, torch.bfloat16
    )
    full = side_by_side(setting)["LoRA, full cache"]
    assert rollout_parts(full)["drawing"]["rollout K/V"] == kv_cache_bytes(full.model, 512 + 8192, 4, torch.bfloat16)
    assert make_plan(replace(setting, kv_log="host")).host_bytes >= backward_parts(setting)["K/V log"]


def test_budgets_by_layer_hold_as_much_as_even_ones():
    """Keys, values, scores and positions of full layers; a short rollout fills the small layers only."""
    options = {"eviction": "h2o", "memory": "attention", "memory_features": 16}
    even = qwen(thought=ThoughtConfig(**options), batch=4, group=4)
    uneven = replace(even, thought=ThoughtConfig(**options, eviction_budgets="pyramid"))
    held = [rollout_parts(setting)["drawing"] for setting in (even, uneven)]
    for part in ("rollout K/V", "eviction policy"):
        assert held[0][part] == held[1][part]
    budgets = uneven.cache.budgets
    assert sum(budgets) == 36 * 1024
    short = replace(uneven, max_new_tokens=600)
    columns = sum(512 + min(size, 600) for size in budgets)
    assert rollout_parts(short)["drawing"]["rollout K/V"] == 2 * 4 * columns * 256 * 2
    # A layer is evicted from as often as if its budget were the window.
    chosen = replace(uneven, batch=3)
    evictions = sum(-(-max(0, 8191 - size) // 256) for size in budgets)
    assert slot_bytes(chosen, 3) == evictions * 3 * 256 * 2 * 2


def test_states():
    # 8191 inputs, window 1024, 256 leave at once: 28 evictions of [32, 32] in fp32, 36 layers, 3 rows
    assert anchor_bytes(qwen(), 3) == 28 * 3 * 36 * 32 * 32 * 4
    assert anchor_bytes(side_by_side(qwen())["LoRA_c"], 3) == 0


def test_slots_of_evictions_that_choose():
    chosen = qwen(thought=ThoughtConfig(eviction="random"), batch=3, group=3)
    # 28 evictions of 256 thoughts, 36 layers of 2 heads, 2 bytes
    assert slot_bytes(chosen, 3) == 28 * 3 * 256 * 36 * 2 * 2
    assert slot_bytes(qwen(), 3) == 0
    on_cpu = make_plan(replace(chosen, device_type="cpu"))
    assert {phase.parts.get("evicted slots") for phase in on_cpu.phases[2:]} == {slot_bytes(chosen, 3)}
    assert on_cpu.host_bytes == 0
    # The log notes 4 bytes for each thought that a chunk finds resident; on the host it takes nothing of the device.
    resident = sum(max(0, shape.entry - 512) for shape in plan_chunks([8192], 512, 1024, 256, 256))
    with_columns, without = (
        backward_parts(qwen(thought=t, batch=3))["K/V log"] for t in (chosen.thought, ThoughtConfig())
    )
    assert with_columns - without == 3 * resident * 36 * 2 * 4
    assert backward_parts(replace(chosen, kv_log="host"))["K/V log"] == 0


def test_records_of_evictions_leave_a_gpu():
    setting = qwen(thought=ThoughtConfig(eviction="random"), batch=3, group=3)
    plan = make_plan(setting)
    assert all("evicted slots" not in phase.parts for phase in plan.phases)
    # What is left are the states in the slots.
    one_state_each = 3 * 36 * 32 * 32 * 4
    parts = {phase.name: phase.parts.get("thought states") for phase in plan.phases}
    assert parts["rollout: drawing"] == parts["rollout: collecting"] == one_state_each
    assert parts["optimizer step"] is None
    assert plan.host_bytes == anchor_bytes(setting, 3) + slot_bytes(setting, 3)
    logged = make_plan(replace(setting, kv_log="host")).host_bytes - plan.host_bytes
    columns = 3 * 36 * 2 * 4 * sum(max(0, shape.entry - 512) for shape in plan_chunks([8192], 512, 1024, 256, 256))
    assert logged == 2 * 36 * 3 * (512 + 8192) * 256 * 2 + columns


@pytest.mark.parametrize(
    "budgets", [None, "pyramid", [32, 64, 64, 96], [[32, 96, 64], [64] * 3, [64] * 3, [96, 32, 64]]]
)
def test_the_log_notes_what_the_plan_counts(budgets):
    thought = {"eviction": "random", "eviction_budgets": budgets}
    setting = cpu_setting(thought=thought, max_new_tokens=150, chunk_tokens=32)
    batch = batch_rollouts(blank_rollouts(setting), torch.device("cpu"))
    log = KVLog(batch, batch_chunks(batch, setting.chunk_tokens), "device")
    noted = sum(columns.nbytes for columns in log.resident if columns is not None)
    plain = replace(setting, thought=replace(setting.thought, eviction="sliding", eviction_budgets=None))
    assert noted == backward_parts(setting)["K/V log"] - backward_parts(plain)["K/V log"]
    recorded = sum(eviction.slots.nbytes for rollout in batch.rollouts for eviction in rollout.evictions)
    assert recorded == slot_bytes(setting, setting.batch)


def test_rolling_positions_bound_nothing_but_the_window():
    rolling = qwen(thought=ThoughtConfig(positions="rolling"), kv_log="host", max_new_tokens=65536)
    assert rolling.positions_needed == 512 + 1024
    assert replace(rolling, max_new_tokens=100).positions_needed == 512 + 100
    assert qwen(max_new_tokens=65536).positions_needed == 512 + 65536
    assert max_length(qwen()) == 32768 - 512
    assert max_length(rolling) > 10**6
    # A window that the positions do not hold is too wide for any length.
    wide = qwen(thought=ThoughtConfig(positions="rolling", window=40_000))
    assert max_length(wide) == 32768 - 512
    assert max_window(replace(wide, max_new_tokens=65536)) == 32768 - 512
    assert max_window(qwen(max_new_tokens=65536)) == 65536
    assert side_by_side(rolling)["LoRA, full cache"].positions_needed == 512 + 65536
    assert side_by_side(rolling)["LoRA_c"].positions_needed == 512 + 1024


def test_logits_come_in_chunks():
    # 2^23 // 151936 = 55 rows of two fp32 numbers per entry
    short = qwen(max_new_tokens=64, prompt_tokens=1, batch=8, chunk_tokens=8)
    assert forward_parts(short, keeps_log=True)["logits"] == 55 * 151936 * 8


def test_the_learner_is_flat_in_the_length_and_the_full_cache_is_not():
    def total(system: str, tokens: int) -> int:
        setting = qwen(max_new_tokens=tokens, kv_log="host", chunk_tokens=256)
        return make_plan(side_by_side(setting)[system]).total_bytes

    assert total("PTE", 65536) <= 1.1 * total("PTE", 8192)
    assert total("LoRA_c", 65536) <= 1.1 * total("LoRA_c", 8192)
    assert total("LoRA, full cache", 65536) > 4 * total("LoRA, full cache", 8192)


@pytest.mark.parametrize("field", ["batch", "group", "max_new_tokens", "window"])
def test_the_largest_value_fits_and_the_next_does_not(field):
    setting, budget = qwen(chunk_tokens=128, max_new_tokens=4096), 24 * GIB
    value, at_bound = largest(setting, field, budget)
    assert make_plan(with_field(setting, field, value)).total_bytes <= budget
    if not at_bound:
        assert make_plan(with_field(setting, field, value + 1)).total_bytes > budget


def test_nothing_fits():
    assert largest(qwen(), "batch", GIB) == (0, False)
    with pytest.raises(ValueError, match="field='rank'"):
        largest(qwen(), "rank", GIB)


def test_check_fit_names_total_part_and_a_change_that_helps():
    with pytest.raises(DoesNotFitError) as caught:
        check_fit(qwen(chunk_tokens=None), available_bytes=20 * GIB)
    text = str(caught.value)
    assert f"{caught.value.plan.total_bytes / GIB:.2f} GiB" in text
    assert "20.00 GiB are available" in text
    assert "most goes to activations" in text
    assert "learner: backward" in text
    assert "set --chunk-tokens" in text
    chunk = int(text.rsplit("--chunk-tokens ", 1)[1].split()[0])
    assert check_fit(qwen(chunk_tokens=chunk), available_bytes=20 * GIB).total_bytes <= 20 * GIB


def test_check_fit_offers_checkpoints_of_layers_when_chunks_are_not_enough():
    tight = {"batch": 32, "kv_log": "host", "chunk_tokens": 64}
    with pytest.raises(DoesNotFitError, match=r"set --checkpoint-layers$") as caught:
        check_fit(qwen(**tight), available_bytes=22 * GIB)
    assert caught.value.plan.total_bytes > 22 * GIB
    assert check_fit(qwen(**tight, checkpoint_layers=True), available_bytes=22 * GIB).total_bytes <= 22 * GIB


def test_check_fit_uses_the_names_of_the_caller():
    small = qwen(batch=64, chunk_tokens=64, kv_log="host")
    with pytest.raises(DoesNotFitError, match="lower --grpo-batch-size to"):
        check_fit(small, available_bytes=20 * GIB, option_names={"batch": "--grpo-batch-size"})
    with pytest.raises(DoesNotFitError, match=r"lower --batch to (8|16|24|32|40|48|56)$"):
        check_fit(small, available_bytes=20 * GIB, whole_groups=True)
    with pytest.raises(DoesNotFitError, match="use a smaller model"):
        check_fit(qwen(), available_bytes=GIB)


def test_check_fit_of_a_loaded_model_counts_what_it_holds_already():
    setting = cpu_setting()
    plan = make_plan(setting)
    loaded = plan.peak.parts["weights"] + plan.peak.parts["adapter"]
    assert check_fit(setting, available_bytes=plan.total_bytes - loaded, model_is_loaded=True) == plan
    with pytest.raises(DoesNotFitError):
        check_fit(setting, available_bytes=plan.total_bytes - loaded)


def test_free_memory(monkeypatch, tmp_path):
    assert free_bytes("cpu") > GIB // 16
    monkeypatch.setattr(fit, "_MEMINFO", tmp_path / "meminfo")
    with pytest.raises(ValueError, match="pass available_bytes"):
        free_bytes("cpu")
    (tmp_path / "meminfo").write_text("MemTotal: 5 kB\nMemAvailable:       3 kB\n")
    assert free_bytes("cpu") == 3 * 1024


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"chunk_tokens": 0}, "chunk_tokens must be at least 1 or None"),
        ({"dtype": "int4"}, "dtype='int4'"),
        ({"beta": -1.0}, "beta must be 0 or positive"),
        ({"device_type": "tpu"}, "device_type='tpu'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        qwen(**options)


def test_live_bytes_by_hand():
    with LiveBytes() as live:
        first = torch.zeros(256)
        view = first[:10]
        temporary = first + 1
        del temporary
        second = first * 2
    assert live.live_bytes == 2 * 1024
    assert live.peak_bytes == 2 * 1024
    assert view.shape[0] + second.shape[0] == 266
    with LiveBytes("cuda") as none:
        torch.zeros(256)
    assert none.peak_bytes == 0


def test_operator_flops_by_hand():
    query, key = torch.zeros(2, 4, 3, 8), torch.zeros(2, 4, 5, 8)
    with OperatorFlops() as flops:
        torch.zeros(3, 4) @ torch.zeros(4, 5)
        torch.nn.functional.scaled_dot_product_attention(query, key, key)
    assert flops.total == 2 * 3 * 4 * 5 + 2 * 4 * (2 * 3 * 5 * 8) * 2
