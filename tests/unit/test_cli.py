"""The command line: cheap help, options that are fields, and wrong input answered with one line."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
from tests.support.command_line import Finished, run_commands
from tests.support.text_model import save_questions, save_text_model, save_unsupported_model
from transformers import AutoModelForCausalLM

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache_cli.arguments import build_parser

HELP_SECONDS = 3.0  # a third of that is the promise; the rest is for busy machines
FIELDS = {field.name: field.default for config in (ThoughtConfig, RunConfig) for field in dataclasses.fields(config)}
FIELDS["preset"] = "paper"  # what a configuration is by itself
FIELDS["steps"] = FIELDS["grpo_steps"]  # and those of distillation, which are as many


def subcommands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def options(command: str) -> list[argparse.Action]:
    return [action for action in subcommands()[command]._actions if action.dest != "help"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["generate", "--help"]])
def test_help_is_quick_and_imports_no_library(arguments: list[str]) -> None:
    script = (
        "import sys, time\nfrom thoughtcache_cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "print('heavy', sorted({'torch', 'transformers', 'peft', 'numpy', 'thoughtcache'} & set(sys.modules)))\n"
        "print('seconds', time.process_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "heavy []" in done.stdout
    assert float(done.stdout.split()[-1]) < HELP_SECONDS


@pytest.mark.parametrize("command", sorted(subcommands()))
def test_help_of_each_command_has_examples_that_parse(command: str) -> None:
    assert f"examples:\n  thoughtcache {command}" in subcommands()[command].format_help()


@pytest.mark.parametrize("action", options("train"), ids=lambda action: action.dest)
def test_options_of_train_are_fields_and_state_their_defaults(action: argparse.Action) -> None:
    assert action.dest in FIELDS
    assert action.default is argparse.SUPPRESS, "defaults live in the configurations only"
    default, text = FIELDS[action.dest], str(action.help)
    marked = re.search(r"(\S+) \((?:[^()]*, )?default\)", text) or re.search(r"\(([^()]+)\)$", text)
    documented = marked.group(1) if marked else None
    if isinstance(action, argparse._StoreTrueAction | argparse._StoreFalseAction):
        assert default in (not action.const, AUTO)
        assert documented is None
    elif default is dataclasses.MISSING:
        assert documented is None  # options of a policy, whose lines state their defaults
    elif default is None or default == "":
        assert documented in (None, "found by name")
    elif isinstance(default, str):
        assert documented == default
    else:
        assert documented is not None
        assert float(documented) == default


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["--steps", "7"], (7, 7)),
        (["--steps", "7", "--grpo-steps", "0"], (7, 0)),
        (["--distill-steps", "0", "--steps", "7"], (0, 7)),
    ],
)
def test_steps_are_those_of_both_phases_unless_one_has_its_own(arguments: list[str], steps: tuple[int, int]) -> None:
    given = vars(build_parser().parse_args(["train", *arguments]))
    assert (given["distill_steps"], given["grpo_steps"]) == steps
    assert set(given) == {"command", "distill_steps", "grpo_steps"}


def test_every_setting_of_a_run_is_an_option() -> None:
    given = {action.dest for action in options("train")}
    assert {field.name for field in dataclasses.fields(RunConfig)} - given == set()


# What is wrong, how it is said, and what the user can do: name -> (options, value, remedy).
TRAIN = {
    "missing data file": (["--dataset", "none.jsonl"], "none.jsonl", "pass an existing file"),
    "unknown hub data set": (["--dataset", "nobody/none"], "nobody/none", "pass a file|check the network"),
    "wrong prompt column": (["--prompt-column", "quest"], "quest", "the columns are 'question', 'answer'"),
    "wrong answer column": (["--answer-column", "reply"], "reply", "the columns are 'question', 'answer'"),
    "unknown columns": (["--dataset", "labels.csv"], "'text', 'label'", "name it with --prompt-column"),
    "shifted columns": (
        ["--dataset", "shifted.csv"],
        r"line 3, row 1 of 'shifted\.csv'",
        "double quotes.*--bad-rows drop",
    ),
    "no UTF-8": (["--dataset", "latin.csv"], r"line 2, row 0 of 'latin\.csv' is not UTF-8", "save the file as UTF-8"),
    "no JSON": (["--dataset", "cut.jsonl"], r"line 2, row 1 of 'cut\.jsonl'", "repair"),
    "long reference": (["--dataset", "long.jsonl"], "1199 characters", "1 to 1000.*--bad-rows drop"),
    "policy for bad rows": (["--bad-rows", "skip"], "--bad-rows skip", "refuse.*drop"),
    "type of answers": (["--answer-type", "aimee"], "--answer-type aimee", "aime.*integer"),
    "no system role": (["--model", "gemma", "--dataset", "system.jsonl"], "System role not supported", "leave out"),
    "empty data set": (["--dataset", "empty.jsonl"], "empty.jsonl", "check that the file"),
    "beyond the positions": (["--max-new-tokens", "1000"], "1000", "lower --max-new-tokens"),
    "window 0": (["--window", "0"], "got 0", "at least 1"),
    "window word": (["--window", "big"], "--window big", 'use an integer >= 1, "prompt" or none'),
    "window of the full cache": (["--window", "none"], "--window none", "--distill-steps 0"),
    "window that holds everything": (["--window", "7"], "--window 7 .*--max-new-tokens 8", "--allow-no-eviction"),
    "rolling without a window": (["--window", "none", "--positions", "rolling"], "--window none", "set a window"),
    "few questions": (["--grpo-batch-size", "14", "--group-size", "2"], "6 questions.* 7", "--grpo-batch-size to 12"),
    "chunks": (["--chunk-tokens", "0"], "--chunk-tokens .*got 0", "at least 1 or none"),
    "no adapter": (["--adapter", "train-folder"], "train-folder holds no adapter", "training saved"),
    "embedded option": (["--task", "chains"], "--task", "leave it out"),
    "evict fraction": (["--evict-fraction", "1.5"], "1.5", r"in \(0, 1\]"),
    "unsupported model": (["--model", "gpt2"], "gpt2", "supported are"),
    "state rule": (["--state-rule", "magic"], "magic", "choose one of"),
    "eviction policy": (["--eviction", "oldest"], "--eviction oldest", "choose one of .*'sliding'"),
    "option of no policy": (
        ["--eviction-option", "sinks=1"],
        "--eviction-option sinks=1 .*--eviction sliding",
        "leave",
    ),
    "value of an option": (
        ["--eviction", "snapkv", "--eviction-option", "kernel=4"],
        "--eviction-option of --eviction snapkv",
        "odd",
    ),
    "target modules": (["--target-modules", "nothing"], "nothing", "check the target modules"),
    "rank": (["--r", "0"], "got 0", "at least 1"),
    "missing model folder": (["--model", "./nomodel"], "nomodel", "pass an existing folder"),
    "folder without model": (["--model", "no-model"], "no-model", "pass the folder of a transformers model"),
    "damaged model": (["--model", "damaged-model"], "damaged-model", "pass the folder of a transformers model"),
    "unknown hub model": (["--model", "nobody/none"], "nobody/none", "or a hub id"),
    "batch and group": (
        ["--grpo-batch-size", "6", "--group-size", "4"],
        "--grpo-batch-size 6",
        "multiple of --group-size 4",
    ),
    "group of one": (["--group-size", "1"], "got 1", "at least 2"),
    "learning rate": (["--distill-learning-rate", "-1"], "got -1", "must be positive"),
    "learning rate of GRPO": (["--grpo-learning-rate", "0"], "got 0", "must be positive"),
    "micro-batches": (
        ["--gradient-accumulation", "3"],
        "--gradient-accumulation 3 must divide --grpo-batch-size 8",
        "one of .*4",
    ),
    "long prompts": (
        ["--max-prompt-tokens", "2"],
        "--max-prompt-tokens 2 .* the shortest prompt has 3",
        "raise it to 3",
    ),
    "bound on prompts": (["--max-prompt-tokens", "0"], "got 0", "at least 1"),
    "greedy training": (["--temperature", "0"], "--temperature .*got 0", "use 1.0"),
    "schedule": (["--learning-rate-scheduler", "stairs"], "--learning-rate-scheduler stairs", "choose one of .*cosine"),
    "report": (["--report-to", "paper"], "--report-to paper", "choose one of .*tensorboard"),
    "beta": (["--beta", "-1"], "got -1", "0 or positive"),
    "gradient": (["--gradient", "sometimes"], "sometimes", 'use "exact"'),
    "gradient of 0 segments": (["--gradient", "0"], "--gradient 0", "positive number"),
    "limit": (["--limit", "0"], "limit is 0", "1 or more"),
    "dtype": (["--dtype", "int4"], "int4", "choose one of"),
    "nothing to do": (["--distill-steps", "0", "--grpo-steps", "0"], "--grpo-steps 0", "set one of them"),
    "resume and overwrite": (["--resume"], "--resume .*--overwrite", "give one of them"),
}
GENERATE = {
    "no adapter": ("train-folder", "llama", [], "train-folder", "give the folder that training saved"),
    "other base": ("adapter", "other", [], "other.*16x4", "use the base model it was trained on"),
    "deeper base": ("adapter", "deeper", [], "does not fit deeper", "use the base model it was trained on"),
    "unsupported base": ("adapter", "gpt2", [], "gpt2", "supported are"),
    "missing base": ("adapter", "./nomodel", [], "nomodel", "pass an existing folder"),
    "truncated adapter": ("truncated", "llama", [], "truncated.*damaged", "copy it again"),
    "garbage adapter": ("garbage", "llama", [], "garbage.*damaged", "copy it again"),
    "damaged adapter config": ("bad-config", "llama", [], "bad-config.*damaged", "copy it again"),
    "no weights": ("no-weights", "llama", [], "no-weights.*damaged", "copy it again"),
    "plain LoRA": ("lora", "llama", [], "lora holds a .*LORA", "give one that"),
    "eviction": ("adapter", "llama", ["--eviction", "oldest"], "--eviction oldest", "choose one of"),
    "option": (
        "adapter",
        "llama",
        ["--eviction", "h2o", "--eviction-option", "a=1"],
        "a=1.*--eviction h2o",
        "leave it",
    ),
    "too long": ("adapter", "llama", ["--max-new-tokens", "1000"], "1000", "shorten"),
    "no tokens": ("adapter", "llama", ["--max-new-tokens", "0"], "got 0", "at least 1"),
    "temperature": ("adapter", "llama", ["--temperature", "-1"], "got -1", "or positive"),
    "top-p": ("adapter", "llama", ["--temperature", "1", "--top-p", "0"], r"--top-p.*got 0\.0", "1.0 keeps all"),
    "top-k when greedy": (
        "adapter",
        "llama",
        ["--top-k", "5"],
        "--top-k 5.*--temperature 0",
        "set a positive temperature",
    ),
    "min-p": ("adapter", "llama", ["--temperature", "1", "--min-p", "2"], r"--min-p.*got 2\.0", "0.0 keeps all"),
    "penalty": ("adapter", "llama", ["--repetition-penalty", "0"], r"--repetition-penalty.*got 0\.0", "turns it off"),
    "minimum length": ("adapter", "llama", ["--min-new-tokens", "9"], "got 9", "raise --max-new-tokens"),
    "empty stop string": ("adapter", "llama", ["--stop", ""], "got ''", "leave it out"),
    "dtype": ("adapter", "llama", ["--dtype", "int4"], "int4", "choose one of"),
}
OTHER_RUN = {
    "another run": ([], "existing", "--resume to go on, or --overwrite"),
    "other settings": (["--resume"], r"existing holds a run with other settings \(.*--max-new-tokens", "--overwrite"),
    "output is a file": (["--output-dir", "questions.jsonl"], "questions.jsonl is a file", "choose another"),
    "nothing to resume": (["--output-dir", "new", "--resume"], "new holds no run", "leave out --resume"),
}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, adapters, data and an older run, as a user may have them."""
    root = tmp_path_factory.mktemp("user")
    save_text_model(root / "llama")
    save_text_model(root / "other", hidden_size=24)
    save_text_model(root / "deeper", num_hidden_layers=3)
    save_unsupported_model(root / "gpt2")
    save_questions(root / "questions.jsonl")
    (root / "empty.jsonl").write_text("")
    (root / "labels.csv").write_text("text,label\nw3,4\n")
    (root / "shifted.csv").write_text("question,answer\nw3,4\nw5, w6,7\n")
    (root / "latin.csv").write_bytes("question,answer\ncaf\xe9,4\n".encode("latin-1"))
    (root / "cut.jsonl").write_text('{"question": "w3", "answer": "4"}\n{"question": "w4", "ans')
    rows: dict[str, dict[str, object]] = {"long": {"question": "w3", "answer": "7" * 1199}}
    rows["system"] = {"prompt": [{"role": role, "content": "w3"} for role in ("system", "user")], "answer": "4"}
    for name, row in rows.items():
        (root / f"{name}.jsonl").write_text(
            json.dumps(row) + "\n" + json.dumps(dict.fromkeys(row, "w4") | {"answer": "5"})
        )
    shutil.copytree(root / "llama", root / "gemma")
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}w3"
    (root / "gemma" / "chat_template.jinja").write_text(refusing)
    for name in ("no-model", "train-folder"):
        (root / name).mkdir()
    shutil.copytree(root / "llama", root / "damaged-model")
    (root / "damaged-model" / "model.safetensors").write_bytes(b"\xff" * 300)
    for name, config in {
        "adapter": ThoughtConfig(r=4, num_global_tokens=4, window=4),
        "lora": peft.LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM"),
    }.items():
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(root / "llama"), config).save_pretrained(root / name)
    for name in ("truncated", "garbage", "bad-config", "no-weights"):
        shutil.copytree(root / "adapter", root / name)
    weights = "adapter_model.safetensors"
    (root / "truncated" / weights).write_bytes((root / "adapter" / weights).read_bytes()[:-100])
    (root / "garbage" / weights).write_bytes(b"\xff" * 500)
    (root / "bad-config" / "adapter_config.json").write_text('{"peft_type": ')
    (root / "no-weights" / weights).unlink()
    older = root / "existing"
    (older / "phases").mkdir(parents=True)
    (older / "distill" / "checkpoint-2").mkdir(parents=True)
    (older / "run.json").write_text('{"seed": 5}')
    (older / "phases" / "distill.json").write_text("{}")
    (older / "distill" / "checkpoint-2" / "trainer_state.json").write_text("{}")
    return root


@pytest.fixture(scope="module")
def finished(folder: Path) -> dict[str, Finished]:
    train = ["train", "--model", "llama", "--dataset", "questions.jsonl", "--max-new-tokens", "8", "--window", "4"]
    overwriting = [*train, "--output-dir", "existing", "--overwrite"]
    commands = {f"train {name}": [*overwriting, *case[0]] for name, case in TRAIN.items()}
    commands |= {f"run {name}": [*train, "--output-dir", "existing", *case[0]] for name, case in OTHER_RUN.items()}
    for name, (adapter, model, more, _, _) in GENERATE.items():
        common = ["generate", "w3 w4", "--model", model, "--adapter", adapter, "--max-new-tokens", "4"]
        commands[f"generate {name}"] = [*common, *more]
    commands["embedded"] = ["train", "--window", "0"]
    good = ["generate", "w3 w4", "--model", "llama", "--adapter", "adapter"]
    commands["good"] = [*good, "--max-new-tokens", "4"]
    commands["sampled"] = [*good, *SAMPLED]
    commands["stopped"] = [*good, *SAMPLED, "--stop", "w", "--stop", "nothing"]
    commands["at least two"] = [*good, *SAMPLED, "--stop", "w", "--min-new-tokens", "2"]
    before = snapshot(folder)
    results = run_commands(commands, folder)
    after = snapshot(folder)
    after.pop(str(folder / "report.json"))
    assert after == before, "a refused command changed a file"
    return results


SAMPLED = [
    *("--max-new-tokens", "6", "--temperature", "0.9", "--top-k", "20", "--top-p", "0.95"),
    *("--min-p", "0.01", "--repetition-penalty", "1.1", "--seed", "5"),
]
CASES = (
    [(f"train {name}", value, remedy) for name, (_, value, remedy) in TRAIN.items()]
    + [(f"run {name}", value, remedy) for name, (_, value, remedy) in OTHER_RUN.items()]
    + [(f"generate {name}", value, remedy) for name, (_, _, _, value, remedy) in GENERATE.items()]
    + [("embedded", "--window", "add --model")]
)


@pytest.mark.parametrize(("name", "value", "remedy"), CASES, ids=[name for name, _, _ in CASES])
def test_wrong_input_gets_one_line_with_the_value_and_a_remedy(
    name: str, value: str, remedy: str, finished: dict[str, Finished]
) -> None:
    done = finished[name]
    assert done.code == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("thoughtcache: error: ")
    assert len(line) < 600
    assert re.search(value, line), line
    assert re.search(remedy, line), line
    assert done.stdout == ""


def test_generate_prints_the_answer_and_nothing_else(finished: dict[str, Finished]) -> None:
    done = finished["good"]
    assert (done.code, done.stderr) == (0, "")
    assert len(done.stdout.split()) <= 4
    assert set(done.stdout.split()) <= {f"w{index}" for index in range(3, 29)}


def test_generate_with_sampling_options(finished: dict[str, Finished]) -> None:
    runs = {name: finished[name] for name in ("sampled", "stopped", "at least two")}
    assert all((done.code, done.stderr) == (0, "") for done in runs.values())
    words = {name: done.stdout.split() for name, done in runs.items()}
    assert 3 < len(words["sampled"]) <= 6
    assert words["stopped"] == words["sampled"][:1]
    assert 1 < len(words["at least two"]) <= 3  # the third token ends it; a special one is not shown
