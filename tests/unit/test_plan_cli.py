"""`thoughtcache plan` as a user runs it: tables, numbers, pictures, and one line for wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.support.command_line import Finished, run_commands

from thoughtcache.planning.paper import FIGURES
from thoughtcache.recipes.plan.memory_plan import parse_bytes

MODEL = ["plan", "--model", "Qwen/Qwen2.5-0.5B"]
SMALL = [
    "plan", "--model", "tiny.json", "--device-type", "cpu", "--dtype", "float32", "--window", "16", "--r", "4",
    "--num-global-tokens", "4", "--prompt-tokens", "8", "--max-new-tokens", "40", "--batch", "2", "--group", "2",
]  # fmt: skip
TINY = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "vocab_size": 200,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
# name -> (options, what is wrong, what the user can do)
WRONG = {
    "no model": (["plan"], "needs a model", "--model with a hub id"),
    "unknown model": (["plan", "--model", "nobody/none"], "nobody/none", "bundled name: .*Qwen/Qwen2.5-7B"),
    "missing file": (["plan", "--model", "./none.json"], "none.json", "bundled name"),
    "unsupported model": (["plan", "--model", "gpt2.json"], "gpt2", "supported are"),
    "memory": ([*MODEL, "--gpu", "big"], "big", "80GB"),
    "memory without a unit": ([*MODEL, "--gpu", "24"], "24 bytes", "write for example 24GB"),
    "reserve without a unit": ([*MODEL, "--reserve", "1.5"], "1 bytes", "write for example 1.5GB"),
    "rolling, no window": (
        [*MODEL, "--window", "none", "--positions", "rolling"],
        "--window none",
        "set a window",
    ),
    "paper with a GPU": (["plan", "--paper", "--gpu", "24GB"], "--gpu", "leave out all but --json"),
    "no memory": ([*MODEL, "--gpu", "0GB"], "0GB", "80GB"),
    "reserve": ([*MODEL, "--reserve", "much"], "much", "80GB"),
    "batch": ([*MODEL, "--batch", "0"], "got 0", "at least 1"),
    "group": ([*MODEL, "--group", "-2"], "got -2", "at least 1"),
    "length": ([*MODEL, "--max-new-tokens", "0"], "got 0", "at least 1"),
    "window": ([*MODEL, "--window", "big"], "big", "use an integer"),
    "chunks": ([*MODEL, "--chunk-tokens", "0"], "got 0", "at least 1 or none"),
    "log": ([*MODEL, "--kv-log", "disk"], "disk", "device.*host"),
    "logits": ([*MODEL, "--logits", "none"], "none", "chunked.*materialised"),
    "gradient": ([*MODEL, "--gradient", "some"], "some", 'use "exact"'),
    "dtype": ([*MODEL, "--dtype", "int4"], "int4", "choose one of"),
    "device": ([*MODEL, "--device-type", "tpu"], "tpu", "choose one of"),
    "rule": ([*MODEL, "--state-rule", "magic"], "magic", "choose one of"),
    "objective": ([*MODEL, "--objective", "sft"], "sft", "choose one of.*distill"),
    "distillation with a KL": ([*MODEL, "--objective", "distill", "--beta", "0.1"], "--beta 0.1", "leave them out"),
    "distillation traced": ([*MODEL, "--objective", "distill", "--trace"], "--trace", "--measure"),
    "no throughput": ([*MODEL, "--tokens-per-second", "0"], "got 0", "must be above 0"),
    "paper with a throughput": (["plan", "--paper", "--tokens-per-second", "9"], "--tokens-per-second", "leave out"),
    "paper with a model": ([*MODEL, "--paper"], "--paper", "leave out"),
    "paper with settings": (["plan", "--paper", "--batch", "3"], "--paper", "leave out"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plan")
    (root / "tiny.json").write_text(json.dumps(TINY))
    (root / "gpt2.json").write_text('{"model_type": "gpt2"}')
    return root


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Finished]:
    commands = {name: case[0] for name, case in WRONG.items()}
    commands["plan"] = [*MODEL, "--gpu", "24GB", "--max-new-tokens", "8000", "--json", "plan.json"]
    commands["tight"] = [
        "plan", "--model", "Qwen/Qwen2.5-3B-Instruct", "--gpu", "24GB", "--chunk-tokens", "256",
        "--tokens-per-second", "1000", "--json", "tight.json",
    ]  # fmt: skip
    commands["hopeless"] = [*MODEL, "--gpu", "1GB"]
    commands["full cache"] = [*MODEL, "--gpu", "24GB", "--window", "none"]
    commands["long"] = [*MODEL, "--gpu", "24GB", "--max-new-tokens", "40000", "--kv-log", "host"]
    commands["rolling"] = [*commands["long"], "--positions", "rolling"]
    commands["small"] = [*SMALL, "--sweep", "--picture", "sweep.png", "--json", "sweep.json"]
    commands["checked"] = [*SMALL, "--trace", "--measure", "--json", "checked.json"]
    commands["distill"] = [*SMALL[:-2], "--objective", "distill", "--measure", "--json", "distill.json"]
    commands["memory in attention"] = [
        *MODEL,
        "--memory",
        "attention",
        "--memory-features",
        "32",
        "--json",
        "memory.json",
    ]
    commands["paper"] = ["plan", "--paper", "--json", "paper.json"]
    return run_commands(commands, folder)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_gets_one_line(name: str, finished: dict[str, Finished]) -> None:
    done, (_, value, remedy) = finished[name], WRONG[name]
    assert done.code == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("thoughtcache: error: ")
    assert re.search(value, line), line
    assert re.search(remedy, line), line
    assert done.stdout == ""


def test_a_plan_has_a_column_per_system_and_says_what_fits(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["plan"]
    assert (done.code, done.stderr) == (0, "")
    for text in ("LoRA, full cache", "LoRA_c", "PTE", "weights", "optimizer", "share of the GPU", "verdict", "fits"):
        assert text in done.stdout
    for text in ("largest micro-batch", "largest group", "longest thoughts", "largest window", "per decoded token"):
        assert text in done.stdout
    numbers = json.loads((folder / "plan.json").read_text())
    assert numbers["parameters"] == 494_032_768
    for plan in numbers["plans"].values():
        assert plan["total_bytes"] == sum(plan["phases"][plan["highest_in"]].values())
    assert numbers["environment"]["versions"]["torch"]


def test_it_ends_with_what_to_type(finished: dict[str, Finished], folder: Path) -> None:
    """The switch that makes PTE need less than full-cache LoRA is in it, with its price; what was given stays."""
    assert (finished["tight"].code, finished["tight"].stderr) == (0, "")
    told = finished["tight"].stdout.split("every phase fits:\n")[1]
    command, needs, most, *prices = told.splitlines()
    assert command.startswith("thoughtcache train --model Qwen/Qwen2.5-3B-Instruct --dataset questions.jsonl")
    assert "--chunk-tokens 256" in command
    assert "--checkpoint-layers" in command
    assert re.search(r"needs .* GiB in distillation .*, .* GiB in GRPO", needs)
    assert re.search(r"thoughts of [\d,]+ tokens, .* completions of GRPO, groups of", most)
    assert any("price of --checkpoint-layers in GRPO" in price for price in prices)
    # 100 steps of 8 x 3072 tokens at 1000 a second are 2458 s.
    assert any(re.search(r"0\.7 hours per 100 steps at 1000 tokens/s, 0\.\d with its savings", line) for line in prices)
    numbers = json.loads((folder / "tight.json").read_text())
    assert numbers["savings"]["PTE"]["chunk_tokens"] == 256
    assert numbers["plans"]["PTE"]["total_bytes"] <= numbers["plans"]["LoRA, full cache"]["total_bytes"]
    (run,) = numbers["advice"]
    assert max(phase["total_bytes"] for phase in run["phases"].values()) <= 0.95 * numbers["gpu_bytes"]
    assert "nothing to type: no setting is enough" in finished["hopeless"].stdout


def test_a_cpu_has_no_share_of_a_gpu(finished: dict[str, Finished]) -> None:
    assert "GPU" not in finished["small"].stdout.split("What fits")[0]
    assert "host 80" in finished["small"].stdout
    assert "--kv-log" not in finished["small"].stdout


def test_a_memory_in_attention_is_planned_and_its_size_is_said(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["memory in attention"]
    assert (done.code, done.stderr) == (0, "")
    assert "memory in attention" in done.stdout
    # 2 heads of 32 features and 65 columns; a token has 2 x 2 x 64 numbers.
    assert "thought states: 4,160 numbers per layer and sequence, as many as the keys and values of 16.2 tokens" in (
        done.stdout
    )
    assert json.loads((folder / "memory.json").read_text())["state"] == {
        "numbers_per_layer": 4160,
        "tokens_worth": 16.25,
    }
    assert "thought states: 1,024 numbers per layer and sequence" in finished["plan"].stdout


def test_the_full_cache_is_called_as_on_the_command_line(finished: dict[str, Finished]) -> None:
    assert finished["full cache"].code == 0
    assert "window none" in finished["full cache"].stdout
    assert "None" not in finished["full cache"].stdout


def test_lengths_beyond_the_positions_are_named(finished: dict[str, Finished]) -> None:
    note = "40,512 positions are needed and the model has 32,768"
    for name in ("long", "rolling"):
        assert (finished[name].code, finished[name].stderr) == (0, "")
        assert (note in finished[name].stdout) == (name == "long")
    assert "--positions rolling" in finished["long"].stdout


def test_a_sweep_is_drawn(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["small"]
    assert (done.code, done.stderr) == (0, "")
    assert (folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    sweep = json.loads((folder / "sweep.json").read_text())["sweep"]
    assert sweep["lengths"] == [3072, 8192, 32768, 65536]
    assert sweep["LoRA, full cache"] == sorted(sweep["LoRA, full cache"])


def test_three_sources(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["checked"]
    assert (done.code, done.stderr) == (0, "")
    assert "under fake tensors" in done.stdout
    assert "child process on" in done.stdout
    numbers = json.loads((folder / "checked.json").read_text())
    assert set(numbers["traced"]) == {"LoRA, full cache", "LoRA_c", "PTE"}
    assert re.search(r"arithmetic.*TFLOP.*learner of PTE", done.stdout, re.DOTALL)
    assert numbers["measured"]["live_bytes"] > 0


def test_distillation(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["distill"]
    assert (done.code, done.stderr) == (0, "")
    for text in ("distill, 8 + 40 tokens", "teacher samples: drawing", "learner: backward", "child process on"):
        assert text in done.stdout
    numbers = json.loads((folder / "distill.json").read_text())
    assert set(numbers["plans"]) == {"LoRA_c", "PTE"}
    assert numbers["largest"]["PTE"]["group"] is None
    assert numbers["measured"]["live_bytes"] > 0


def test_the_paper_stands_beside_ours(finished: dict[str, Finished], folder: Path) -> None:
    done = finished["paper"]
    assert (done.code, done.stderr) == (0, "")
    for figure in FIGURES:
        assert figure.model.rsplit("/", 1)[-1] in done.stdout
        assert f"{figure.lora_percent:.1f}" in done.stdout
        assert f"{figure.pte_percent:.1f}" in done.stdout
    assert "Assumed:" in done.stdout
    rows = json.loads((folder / "paper.json").read_text())
    assert len(rows["paper"]) == 12
    by_length = [row["pte_chunked_percent"] for row in rows["longer"][:4]]
    assert max(by_length) < 1.1 * min(by_length)
    assert rows["longer"][3]["lora_percent"] > 100
    # The same at 8K, 32K and 64K, in print: with 64K the full cache does not fit on any of them, our chunks do on all.
    for figure in FIGURES:
        for length in (8192, 32768, 65536):
            assert re.search(rf"{figure.model.rsplit('/', 1)[-1]}\s+│\s+{length}\s+│", done.stdout)
    longest = [row for row in rows["longer"] if row["new_tokens"] == 65536]
    assert len(longest) == len(FIGURES)
    assert all(row["lora_percent"] > 100 > row["pte_chunked_percent"] for row in longest)
    assert "Qwen2.5-3B-Instruct: 32768 and 65536 tokens are beyond its positions" in done.stdout
    assert "Llama-8B: " not in done.stdout.split("(no): more")[1]


def test_amounts_of_memory() -> None:
    assert parse_bytes("80GB") == parse_bytes("80 GiB") == parse_bytes("80g") == 80 * 2**30
    assert parse_bytes("1.5MB") == 3 * 2**19
    assert parse_bytes("1024") == parse_bytes("1KB") == 1024
