"""The planner's benchmark: its configurations are what their names say, and its smallest ones keep to the tolerance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import planner

from thoughtcache.measuring.peak_memory import can_measure_resident_bytes
from thoughtcache.recipes.plan.measure import Measured
from thoughtcache.recipes.plan.trace import with_layers
from thoughtcache.report.plan_advice import savings_of


def test_the_planner_chooses_what_the_names_say() -> None:
    chosen = {name: case.chosen for name, case in planner.cases().items()}
    kept = {name: savings_of(setting) for name, setting in chosen.items()}
    assert not kept["GRPO, roomy"].checkpoint_layers
    assert kept["GRPO, roomy"].chunk_tokens == 256
    assert kept["GRPO, chunks"].chunk_tokens in (64, 128)
    assert kept["GRPO, chunks"].kv_log == "host"
    assert kept["GRPO, tight"].checkpoint_layers
    assert kept["distillation, tight"].checkpoint_layers
    assert (chosen["distillation, split"].batch, chosen["distillation, split"].completions) == (4, 8)
    assert chosen["teacher's sampling"].decoded_at_once > 1
    assert all(case.planned_bytes > 190 * 2**20 for case in planner.cases().values()), "less is noise"


@pytest.mark.slow
@pytest.mark.skipif(not can_measure_resident_bytes(), reason="no /proc on this system")
def test_small_configurations_keep_to_the_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that is chosen for a tight device, a split step, and a teacher that samples, on two layers."""
    tight = planner.setting_of(pack_weights=False, batch=12, group=12, max_new_tokens=140)
    texts = planner.setting_of(objective="distill", group=1, max_new_tokens=24)
    step = planner.setting_of(pack_weights=False, objective="distill", group=1, batch=4, max_new_tokens=140)
    small = {
        "tight": planner.Case(setting=with_layers(tight, 2), device_mib=600),
        "split": planner.Case(setting=with_layers(step, 2), device_mib=300),
        "teacher": planner.Case(setting=with_layers(texts, 2), device_mib=4096, work="rollout"),
    }
    assert small["split"].chosen.micro_batches == 2
    assert savings_of(small["tight"].chosen) != savings_of(small["tight"].setting)
    monkeypatch.setattr(planner, "cases", lambda: small)
    assert planner.main(["--output", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "planner.json").read_text())["records"]
    assert set(records) == set(small)
    assert all(abs(one["ratio"] - 1) <= 0.1 for one in records.values())


def test_a_plan_that_misses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    name, case = next(iter(planner.cases().items()))
    monkeypatch.setattr(planner, "cases", lambda: {name: replace(case, device_mib=8192)})
    too_much = int(case.planned_bytes * 1.2)
    monkeypatch.setattr(planner, "measure", lambda *_, **__: Measured(peak_bytes=too_much, live_bytes=too_much))
    assert planner.main(["--output", str(tmp_path)]) == 1
    assert name in capsys.readouterr().out.splitlines()[-1]
