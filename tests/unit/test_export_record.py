"""What `thoughtcache export` takes from a run folder: the stages of the adapter, and figures that are its own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import thoughtcache as tc
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.export.card import limits
from thoughtcache.recipes.export.measured import measured_rows
from thoughtcache.recipes.export.names import is_hub_id, public_name
from thoughtcache.recipes.export.run_record import RunRecord, find_record
from thoughtcache.recipes.export.training import training_rows
from thoughtcache.recipes.run.config import RunConfig

SHARE = {"value": 0.5, "low": 0.25, "high": 0.75}
ANSWERED = {"accuracy": SHARE, "truncated": 0.0, "reasons": {"correct": 1, "wrong": 1}}
EMBEDDED = {
    "correct": 3,
    "total": 4,
    "low": 0.25,
    "high": 0.75,
    "mean_tokens": 1,
    "evictions_mean": 0,
    "elapsed_seconds": 1,
}
TRAIN = {"model": "somebody/small", "dataset": "owner/data", "distill_steps": 7, "grpo_steps": 20, "max_new_tokens": 9}


def put(file: Path, content: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


def weights(folder: Path, content: str) -> Path:
    put(folder / "adapter_model.safetensors", content)
    return folder


def trained(folder: Path, **changes: Any) -> Path:
    """A run of `thoughtcache train` that has ended; its stages left other weights."""
    run = {**asdict(RunConfig(**TRAIN)), **changes}
    del run["task"]
    phases = {"distill": {"steps": run["distill_steps"]}, "grpo": {"steps": run["grpo_steps"]}}
    put(folder / "run.json", run)
    for name, phase in phases.items():
        put(folder / "phases" / f"{name}.json", phase)
        weights(folder / name / "adapter", f"{name} {phase['steps']}")
    weights(folder / "adapter", f"grpo {run['grpo_steps']}")
    rows = ("after GRPO", "after distillation", "base, window")
    put(folder / "results.json", {"run": run, "phases": phases, "before_after": dict.fromkeys(rows, ANSWERED)})
    return folder


def record_of(adapter: Path, run: Path | None = None) -> RunRecord:
    found = find_record(adapter, None if run is None else str(run))
    assert found is not None
    return found


def rows_of(record: RunRecord) -> dict[str, str]:
    return dict(training_rows(record))


def names_of(record: RunRecord) -> list[str] | None:
    found = measured_rows(record)
    return None if found is None else [row[0] for row in found[2]]


def test_a_stage_has_its_own_settings_and_rows(tmp_path):
    run = trained(tmp_path / "run")
    end, stage = record_of(run / "adapter"), record_of(run / "distill" / "adapter")
    assert {"distill_steps": "7", "grpo_steps": "20", "stage": "the end of the run"}.items() <= rows_of(end).items()
    assert names_of(end) == ["base, window", "after distillation", "after GRPO"]
    assert measured_rows(end)[0] == "2 held-out questions of the training data, greedy"
    assert rows_of(stage)["stage"] == "distill"
    assert not {"grpo_steps", "grpo_learning_rate", "group_size"} & rows_of(stage).keys()
    assert names_of(stage) == ["base, window", "after distillation"]


def test_a_run_that_goes_on_has_the_steps_that_it_has_done(tmp_path):
    run = trained(tmp_path / "run")
    longer = json.loads((run / "run.json").read_text()) | {"grpo_steps": 100}
    put(run / "run.json", longer)
    assert rows_of(record_of(run / "adapter"))["grpo_steps"] == "20"
    assert names_of(record_of(run / "adapter"))[-1] == "after GRPO"
    put(run / "phases" / "grpo.json", {"steps": 100})  # and was killed before its end
    weights(run / "grpo" / "adapter", "grpo 100")
    assert rows_of(record_of(run / "adapter"))["grpo_steps"] == "20"
    assert names_of(record_of(run / "adapter"))[-1] == "after GRPO"
    assert rows_of(record_of(run / "grpo" / "adapter"))["grpo_steps"] == "100"
    assert names_of(record_of(run / "grpo" / "adapter")) is None
    weights(run / "adapter", "grpo 100")  # or before it wrote its figures
    assert rows_of(record_of(run / "adapter"))["grpo_steps"] == "100"
    assert names_of(record_of(run / "adapter")) is None


def test_a_run_that_is_begun_anew_says_nothing_of_older_adapters_but_by_its_results(tmp_path):
    run = trained(tmp_path / "run")
    put(run / "run.json", json.loads((run / "run.json").read_text()) | {"beta": 0.5, "grpo_steps": 3})
    for file in (run / "phases").glob("*.json"):
        file.unlink()
    end = record_of(run / "adapter")
    assert (rows_of(end)["grpo_steps"], rows_of(end)["beta"]) == ("20", "0.0")
    assert names_of(end)[-1] == "after GRPO"
    assert find_record(run / "distill" / "adapter", None) is None
    with pytest.raises(ValueError, match="has begun anew since"):
        find_record(run / "distill" / "adapter", str(run))
    put(run / "phases" / "distill.json", {"steps": 7})
    weights(run / "distill" / "adapter", "new")
    assert names_of(record_of(run / "distill" / "adapter")) is None, "results are of the older run"


@pytest.mark.parametrize("quick", [False, True])
def test_the_embedded_job_is_described_by_what_it_did(tmp_path, quick):
    run = tmp_path / "run"
    put(run / "run.json", asdict(RunConfig(quick=quick)))
    for name in ("base_full", "base_window"):
        put(run / "phases" / f"{name}.json", {"accuracy": EMBEDDED})
    put(run / "phases" / "thought_best.json", {"accuracy": EMBEDDED, "curve": [[10, 5.0], [400, 98.0]]})
    logged = {"rewards": [[1, 50.0], [60, 70.0]], "before": EMBEDDED, "start": "partly_distilled"}
    put(run / "phases" / "grpo_thought_best.json", {"accuracy": EMBEDDED, **logged})
    for name in ("thought_best", "grpo_thought_best"):
        weights(run / name / "adapter", name)
    distilled, after = (record_of(run / name / "adapter") for name in ("thought_best", "grpo_thought_best"))
    shown = {"job": "the embedded one", "task": "chains", "seed": "0", **({"quick": "True"} if quick else {})}
    steps = {"distill_steps of thought_best": "400"}
    assert rows_of(distilled) == {"stage": "thought_best", **shown, **steps}
    started = {"started from": "partly_distilled of thought_best", "grpo_steps of grpo_thought_best": "60"}
    assert rows_of(after) == {"stage": "grpo_thought_best", **shown, **steps, **started}
    assert names_of(distilled) == ["base, full cache", "base, window only", "PTE, delta rule"]
    assert names_of(after)[-2:] == ["PTE, delta rule, start of GRPO", "PTE, delta rule, after GRPO"]
    assert measured_rows(after)[0] == "4 problems of the test split of the embedded task chains, greedy"
    assert measured_rows(after)[2][0][1] == "75.0 % (25.0-75.0)"
    said = " ".join(limits(tc.ThoughtConfig(), distilled))
    assert "at most" not in said
    assert ("shortened" in said) is quick


def test_a_distillation_is_described_up_to_its_stage(tmp_path):
    run, kinds = tmp_path / "run", ("transfer", "logits")
    recipe = [{"kind": "transfer"}, {"kind": "logits", "num_steps": 100, "betas": [0.9, 0.99] * 40}]
    settings = {**asdict(DistillRun(model="m", text=r"C:\Users\me\pages.txt")), "recipe": recipe}
    put(run / "run.json", settings)
    held_out = [
        {"stage": name, "after": 0.5, "low": 0.25, "high": 0.75, "by_text": [0, 1]}
        for name in ("base, window", "start", "1-transfer", "2-logits")
    ]
    put(run / "results.json", {"run": settings, "phases": {"1-transfer": {}, "2-logits": {}}, "held_out": held_out})
    for number, kind in enumerate(kinds, start=1):
        put(run / "phases" / f"{number}-{kind}.json", {})
        weights(run / f"{number}-{kind}" / "adapter", kind)
    weights(run / "adapter", "logits")
    end, stage = record_of(run / "adapter"), record_of(run / "1-transfer" / "adapter")
    assert (rows_of(end)["recipe"], rows_of(end)["text"]) == ("transfer 200, logits 100", "pages.txt")
    assert rows_of(stage)["recipe"] == "transfer 200"
    assert names_of(end) == ["base, window", "start", "1-transfer", "2-logits"]
    assert names_of(stage) == ["base, window", "start", "1-transfer"]


def test_a_lesson_in_passcodes_has_the_steps_that_it_has_done(tmp_path):
    put(tmp_path / "run.json", {"model": "m", "steps": 400, "code_length": 4, "text": "a/b.txt"})
    put(tmp_path / "phases" / "teach.json", {"steps": 200})
    weights(tmp_path / "teach" / "adapter", "taught")
    assert rows_of(record_of(tmp_path / "teach" / "adapter")) == {
        "stage": "teach", "text": "b.txt", "teach_steps": "200",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("owner/data", "owner/data"), ("owner/data-v1.5", "owner/data-v1.5"), ("gsm8k", "gsm8k"),
        ("notes/pages.jsonl", "pages.jsonl"), ("notes/acme-merger/pages.txt", "pages.txt"), ("../private/x", "x"),
        (r"C:\Users\me\data", "data"), ("~/data/", "data"), ("/data/mine.csv", "mine.csv"), ("x" * 400, "x" * 400),
    ],
)  # fmt: skip
def test_names_tell_no_paths(text, shown):
    assert public_name(text) == shown


def test_a_folder_that_is_here_is_none_of_the_hub(tmp_path, monkeypatch):
    (tmp_path / "owner" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("owner/data") == "data"
    assert is_hub_id("owner/data")
