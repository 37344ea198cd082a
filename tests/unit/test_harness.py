"""lm-evaluation-harness: our model gives what its own transformers backend gives, and less under a window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import thoughtcache as tc
from support.text_model import save_text_model
from thoughtcache.recipes.load_model import load_base

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed", exc_type=ImportError)
# Its imports and its logging warn about other libraries.
pytestmark = pytest.mark.filterwarnings("ignore")

CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
GENERATE = {
    "output_type": "generate_until",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["w9", "w12"], "max_gen_toks": 14},
    "metric_list": [{"metric": "exact_match"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}],
}
NUM_ROWS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_text_model(tmp_path_factory.mktemp("model"), max_position_embeddings=64))


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(1)
    config = tc.ThoughtConfig(r=2, num_global_tokens=2, window=6, evict_fraction=0.5)
    adapted = peft.get_peft_model(load_base(model, "float32"), config)
    for name, parameter in adapted.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(str(folder))
    return str(folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of local tasks: choices of one to three words, generations, and running texts longer than the model."""
    folder = tmp_path_factory.mktemp("tasks")
    words = [f"w{3 + (7 * number + number * number) % 26}" for number in range(400)]
    rows = [
        {
            "question": " ".join(words[5 * row : 5 * row + 3 + 2 * row]),
            "choices": [" ".join(words[40 + 3 * row + at : 41 + 3 * row + 2 * at]) for at in range(3)],
            "answer": row % 3,
        }
        for row in range(NUM_ROWS)
    ]
    long = [{"question": " ".join(words[row : row + count])} for row, count in enumerate((1, 40, 62, 63, 64, 150))]
    data = {"choice": (CHOICE, rows), "generate": (GENERATE, rows), "rolling": (ROLLING, long)}
    for name, (task, content) in data.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
        settings = {
            "task": f"tiny_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}},
            "test_split": "test", "doc_to_text": "" if name == "rolling" else "{{question}}", **task,
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return folder


def evaluated(
    tasks: Path, names: list[str], model: Any, **arguments: Any
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """(scores, answers of every sample in order) by task."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from thoughtcache.harness.model import register

    register()
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = simple_evaluate(
        model=model, model_args=arguments, tasks=names, task_manager=manager, log_samples=True, bootstrap_iters=0,
        device="cpu",
    )  # fmt: skip
    samples = {name: sorted(found["samples"][name], key=lambda one: one["doc_id"]) for name in names}
    return found["results"], {name: [one["resps"] for one in own] for name, own in samples.items()}


def numbers(answers: list[Any]) -> list[float]:
    return [
        float(choice[0][0]) if isinstance(choice[0], tuple | list) else float(choice[0])
        for one in answers
        for choice in one
    ]


def test_the_full_cache_gives_what_the_own_backend_gives(model, tasks):
    names = ["tiny_choice", "tiny_generate", "tiny_rolling"]
    same = {"pretrained": model, "batch_size": 4}
    theirs, their_answers = evaluated(tasks, names, "hf", dtype="float32", max_length=63, **same)
    ours, our_answers = evaluated(tasks, names, "thoughtcache", **same)
    for name in names:
        scores = {key: value for key, value in theirs[name].items() if "," in key and isinstance(value, float)}
        assert scores
        assert {key: ours[name][key] for key in scores} == pytest.approx(scores, rel=1e-6)
    assert theirs["tiny_choice"]["acc,none"] == ours["tiny_choice"]["acc,none"]
    for name in ("tiny_choice", "tiny_rolling"):
        gap = max(abs(a - b) for a, b in zip(numbers(their_answers[name]), numbers(our_answers[name]), strict=True))
        print(f"{name}: largest difference of a log-likelihood {gap:.1e} nats")
        assert gap < 1e-4
    flags = [[choice[0][1] for choice in one] for one in our_answers["tiny_choice"]]
    assert flags == [[choice[0][1] for choice in one] for one in their_answers["tiny_choice"]]
    assert our_answers["tiny_generate"] == their_answers["tiny_generate"]
    assert len({str(one) for one in our_answers["tiny_generate"]}) > NUM_ROWS // 2


def test_a_window_bounds_thoughts_and_with_prompt_tokens_the_context_too(model, adapter, tasks):
    _, full_answers = evaluated(tasks, ["tiny_choice", "tiny_rolling"], "thoughtcache", pretrained=model)
    cases: dict[str, dict[str, Any]] = {
        "thoughts": {"window": 6},
        "context": {"window": 6, "prompt_tokens": 2},
        "h2o": {"window": 6, "prompt_tokens": 2, "eviction": "h2o"},
        "adapter": {"adapter": adapter, "prompt_tokens": 2},
    }
    found = {}
    for name, more in cases.items():
        _, answers = evaluated(tasks, ["tiny_choice", "tiny_rolling"], "thoughtcache", pretrained=model, **more)
        found[name] = {task: numbers(own) for task, own in answers.items()}
    whole = {task: numbers(own) for task, own in full_answers.items()}
    # Answers of at most three words stay in a window of six; running texts do not.
    assert found["thoughts"]["tiny_choice"] == pytest.approx(whole["tiny_choice"], abs=1e-4)
    assert found["thoughts"]["tiny_rolling"] != pytest.approx(whole["tiny_rolling"], abs=1e-2)
    for name in ("context", "h2o", "adapter"):
        assert found[name]["tiny_choice"] != pytest.approx(whole["tiny_choice"], abs=1e-2)
    assert found["h2o"]["tiny_choice"] != pytest.approx(found["context"]["tiny_choice"], abs=1e-3)


def test_generations_are_those_of_the_engine(model, adapter, tasks):
    """Under the adapter's window, with the context in the cache for ever and as thoughts."""
    from thoughtcache.recipes.load_adapter import load_adapted

    reference, tokenizer = load_adapted(model, adapter, "float32")
    rows = [json.loads(line) for line in (tasks / "generate.jsonl").read_text().splitlines()]
    contexts = [tokenizer.encode(row["question"]) for row in rows]
    _, answers = evaluated(tasks, ["tiny_generate"], "thoughtcache", pretrained=model, adapter=adapter)
    wanted = tc.rollout(
        reference, contexts, max_new_tokens=14, temperature=0.0, stop_strings=["w9", "w12"], tokenizer=tokenizer
    )
    texts = [tokenizer.decode(one.token_ids, skip_special_tokens=True) for one in wanted]
    cut = [text.split("w9")[0].split("w12")[0] for text in texts]
    assert [one[0][0] for one in answers["tiny_generate"]] == cut
    assert any(one.evictions for one in wanted)
    more = {"adapter": adapter, "prompt_tokens": 2}
    _, bounded = evaluated(tasks, ["tiny_generate"], "thoughtcache", pretrained=model, **more)
    assert bounded != answers


def test_the_command_line_knows_the_model(model, tasks, tmp_path):
    command = [
        sys.executable, "-m", "thoughtcache.harness", "--model", "thoughtcache", "--tasks", "tiny_choice",
        "--model_args", f"pretrained={model},window=6,prompt_tokens=2", "--include_path", str(tasks), "--device", "cpu",
        "--batch_size", "4", "--output_path", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "tiny_choice" in done.stdout
    (results,) = tmp_path.rglob("results_*.json")
    assert json.loads(results.read_text())["config"]["model"] == "thoughtcache"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": "auto"}, "batch_size must be a number of texts"),
        ({"batch_size": 0}, "batch_size must be a number of texts"),
        ({"prompt_tokens": 0}, "prompt_tokens must be at least 1"),
        ({"max_batch_size": 4}, "leave it out"),
        ({"device": "cuda"}, "leave device out"),
        ({"eviction": "h2o"}, "changes nothing with the full cache"),
    ],
)
def test_arguments_without_a_meaning_are_refused(model, arguments, message):
    from thoughtcache.harness.model import ThoughtCacheLM

    with pytest.raises(ValueError, match=message):
        ThoughtCacheLM(pretrained=model, **arguments)
