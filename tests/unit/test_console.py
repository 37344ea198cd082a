"""What somebody sees who types a long command: on a terminal, in a log file, and when Ctrl-C is pressed."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import huggingface_hub.utils as hub
import pytest
import transformers.utils.logging
from tests.support.command_line import run_commands
from tests.support.terminal import Process, ended, hear_interrupts, works
from tests.support.text_model import save_questions, save_text_model

from thoughtcache.recipes.probe.subject import ProbeRun
from thoughtcache.report.trainer_progress import RichProgressCallback
from thoughtcache.train.checkpoints import checkpoints
from thoughtcache.train.trainer_options.stop_between_steps import interrupts_between_steps, stop_between_steps
from thoughtcache_cli import main
from thoughtcache_cli.arguments import build_parser
from thoughtcache_cli.process.console import LOADING, hide_harmless, hide_model_bars
from thoughtcache_cli.process.interrupts import HEARD
from thoughtcache_cli.process.next_steps import going_on, next_steps

CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
TIME = r"\d+(\.\d+)? (s|min|h)"
STEPS = 2000
"""More than a test waits for."""


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    save_text_model(folder / "model")
    save_questions(folder / "questions.jsonl", 12)
    return folder


def train(output: Path, *, grpo_steps: int, distill_steps: int = 0) -> list[str]:
    return [
        *("train", "--model", "model", "--dataset", "questions.jsonl", "--max-new-tokens", "9", "--window", "4"),
        *("--distill-steps", str(distill_steps), "--grpo-steps", str(grpo_steps)),
        *(("--distill-batch-size", "3") if distill_steps else ()),
        *("--group-size", "2", "--grpo-batch-size", "2", "--r", "3", "--num-global-tokens", "3", "--held-out", "2"),
        *("--output-dir", str(output)),
    ]


@pytest.fixture(scope="module")
def runs(user: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """The same run twice, its folder and what it showed: in a log file, and on a terminal with completions."""
    found = {}
    for name, more in (("log", []), ("terminal", ["--log-completions", "1"])):
        folder = tmp_path_factory.mktemp(name) / "run"
        arguments = [*train(folder, grpo_steps=3, distill_steps=2), *more]
        with Process(arguments, user, terminal=name == "terminal") as running:
            assert running.end() == 0, running.text
        found[name] = folder, running.text
    return found


@pytest.mark.slow
def test_a_terminal_shows_one_live_line_per_phase(runs: dict[str, tuple[Path, str]]) -> None:
    folder, text = runs["terminal"]
    assert text.startswith(LOADING)
    assert "Traceback" not in text
    for noise in ("FutureWarning", "gemm_4bit", "Loading weights", "Writing model shards", "UserWarning"):
        assert noise not in text
    plain = CODES.sub("", text)
    assert re.search(rf"GRPO 3/3  {TIME}  loss \S+  reward \S+  [\d,]+ tok/s  \d+(\.\d+)? GiB", plain), plain
    assert re.search(r"distillation 2/2  ", plain)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is there again"
    assert f"results folder: {folder}" in plain
    assert f"thoughtcache generate --model model --adapter {folder / 'adapter'} 'a question'" in plain


@pytest.mark.slow
def test_a_log_file_has_plain_lines_and_the_last_step(runs: dict[str, tuple[Path, str]]) -> None:
    folder, text = runs["log"]
    assert not CONTROL.search(text)
    lines = [line for line in text.splitlines() if not line.startswith("loading ")]
    assert lines[0].startswith("held out: 2 questions")
    for phase, total in (("distillation", 2), ("GRPO", 3), ("teacher samples", 6), ("held out: after GRPO", 2)):
        shown = [line.split("  ")[0] for line in lines if line.startswith(f"{phase} ")]
        # What takes long has lines in between.
        assert (shown[0], shown[-1]) == (f"{phase} 0/{total}", f"{phase} {total}/{total}")
        assert len(set(shown)) == len(shown)
    assert lines[-5] == f"results folder: {folder}"
    assert [line.split()[1] for line in lines[-3:]] == ["generate", "eval", "export"]


@pytest.mark.slow
def test_completions_are_shown_once_and_change_nothing(runs: dict[str, tuple[Path, str]]) -> None:
    (without, log), (folder, text) = runs["log"], runs["terminal"]
    assert "Step 1" not in log
    plain = CODES.sub("", text)
    for step in (1, 2, 3):
        assert plain.count(f" Step {step} ") == 1
        panel = plain.split(f" Step {step} ")[1].split("╰")[0]
        assert panel.count("Question: ") == 1
    tops = [line for line in plain.replace("\r", "\n").splitlines() if "Step" in line]
    assert all(line.startswith("╭") for line in tops), "the live line is out of the way"
    weights = [place / "adapter" / "adapter_model.safetensors" for place in (without, folder)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    kept = [(place / "grpo" / "rollouts.jsonl").read_text() for place in (without, folder)]
    assert kept[0] == kept[1]
    assert len(kept[0].splitlines()) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("terminal", "number"), [(True, signal.SIGINT), (False, signal.SIGINT), (False, signal.SIGTERM)]
)
def test_one_interrupt_saves_the_step_and_names_the_command_that_goes_on(
    terminal: bool, number: signal.Signals, user: Path, tmp_path: Path
) -> None:
    arguments = train(tmp_path / "run", grpo_steps=STEPS)
    with Process(arguments, user, terminal=terminal) as running:
        running.wait_for("GRPO ")
        running.press(number)
        assert running.end() == 130
    assert "Traceback" not in running.text
    assert "stopping after this step, which is saved" in running.text
    last = running.text.replace("\r", "").rstrip().splitlines()
    command = last[-1].strip()
    assert last[-2].endswith(f"interrupted; {tmp_path / 'run'} has what is done, and this goes on:")
    assert command == f"thoughtcache {' '.join(arguments)} --resume"
    (saved,) = checkpoints(tmp_path / "run" / "grpo")
    step = int(saved.name.removeprefix("checkpoint-"))
    assert 1 <= step < STEPS
    rollouts = [json.loads(line) for line in (tmp_path / "run" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in rollouts) == step - 1


def test_two_interrupts_leave_at_once(user: Path, tmp_path: Path) -> None:
    long_steps = ["--group-size", "64", "--grpo-batch-size", "64", "--max-new-tokens", "60"]
    with Process([*train(tmp_path / "run", grpo_steps=STEPS), *long_steps], user, terminal=False) as running:
        running.wait_for("GRPO ")
        running.press()
        running.wait_for("stopping after this step")
        running.press()
        assert running.end() == 130
    assert "Traceback" not in running.text
    assert "interrupted twice\n" in running.text


@pytest.mark.slow
def test_an_interrupted_embedded_job_goes_on(tmp_path: Path) -> None:
    arguments = ["train", "--quick", "--evaluation-size", "4", "--output-dir", "run"]
    with Process(arguments, tmp_path, terminal=False) as running:
        running.wait_for("PTE, delta rule 0/110")
        running.press()
        assert running.end() == 130
    (saved,) = checkpoints(tmp_path / "run" / "thought_best")
    with Process([*arguments, "--resume"], tmp_path, terminal=False) as again:
        again.wait_for(f"thought_best goes on from {saved.name}")
        again.wait_for("PTE, delta rule ")
        again.press()
        assert again.end() == 130
    assert len(checkpoints(tmp_path / "run" / "thought_best")) == 2
    assert again.text.rstrip().endswith("thoughtcache train --quick --evaluation-size 4 --output-dir run --resume")


def test_two_interrupts_end_compiled_code_that_hears_of_neither() -> None:
    script = (
        "import hashlib, sys, thoughtcache_cli as cli\n"
        "def work(*given):\n"
        "    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"  # minutes without an instruction of Python
        "cli._run = work\n"
        "sys.exit(cli.program(['train']))\n"
    )
    paths = os.pathsep.join(path for path in sys.path if path)
    with ended(
        subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths},
            preexec_fn=hear_interrupts,
        )
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        works(process.pid, seconds=0.3)  # Python would take a signal that comes before the compiled code does
        process.send_signal(signal.SIGINT)
        said = process.stderr.readline() + process.stderr.readline()
        assert said == HEARD.decode(), "before anybody presses again"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (130, "interrupted twice\n")


def press_twice(heard: list[int]) -> None:
    with stop_between_steps() as stop:
        stop.in_steps = True
        signal.raise_signal(signal.SIGINT)
        assert heard == []
        assert stop.asked
        signal.raise_signal(signal.SIGINT)


def test_between_steps_a_second_press_is_two_for_the_handler_from_before() -> None:
    heard: list[int] = []

    def before(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    shown = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps(), stop_between_steps():
            signal.raise_signal(signal.SIGINT)  # no trainer takes steps
        assert len(heard) == 1
        heard.clear()
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
            press_twice(heard)
        assert len(heard) == 2
        assert signal.getsignal(signal.SIGINT) is before
        with stop_between_steps():
            assert signal.getsignal(signal.SIGINT) is before, "nobody has asked for it"
    finally:
        signal.signal(signal.SIGINT, shown)


def terminate_once(heard: list[int]) -> None:
    with stop_between_steps() as stop:
        stop.in_steps = True
        signal.raise_signal(signal.SIGTERM)
        assert len(heard) == 1
        assert stop.asked
        stop.stopped = True


@pytest.mark.parametrize("interrupts", [signal.default_int_handler, signal.SIG_IGN], ids=["heard", "ignored"])
def test_the_first_sigterm_between_steps_is_one_interrupt_and_others_are_as_ever(interrupts: Any) -> None:
    """Also where SIGINT is ignored, as in what a script starts in the background."""
    heard: list[int] = []

    def before(number: int, frame: object) -> None:
        heard.append(number)

    shown = signal.signal(signal.SIGTERM, before)
    of_interrupts = signal.signal(signal.SIGINT, interrupts)
    try:
        with interrupts_between_steps(), stop_between_steps() as stop:
            signal.raise_signal(signal.SIGTERM)  # no trainer takes steps
            assert heard == [signal.SIGTERM]
            assert not stop.asked
        with pytest.raises(KeyboardInterrupt), interrupts_between_steps():
            terminate_once(heard)
        assert signal.getsignal(signal.SIGTERM) is before
        with interrupts_between_steps(), stop_between_steps() as stop:
            stop.in_steps = True
            for _ in range(2):
                signal.raise_signal(signal.SIGTERM)
            assert len(heard) == 2
            stop.asked = False  # or the interrupt would be raised here, behind the last step
        with stop_between_steps():
            assert signal.getsignal(signal.SIGTERM) is before, "nobody has asked for it"
    finally:
        signal.signal(signal.SIGTERM, shown)
        signal.signal(signal.SIGINT, of_interrupts)


@pytest.mark.parametrize("phase", ["distill", "grpo"])
def test_an_interrupt_behind_the_last_step_keeps_the_phase(
    phase: str, user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    log = RichProgressCallback.on_log

    def press(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        log(self, args, state, control, logs, **more)
        if state.global_step == state.max_steps and "loss" in logs:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RichProgressCallback, "on_log", press)
    monkeypatch.chdir(user)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert (
            main([*train(tmp_path, grpo_steps=2, distill_steps=2 * (phase == "distill")), "--save-every", "0"]) == 130
        )
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capfd.readouterr().err
    assert "which is saved" not in printed
    assert "stopping behind this phase, whose steps are done" in printed
    assert "this goes on:" in printed
    assert (tmp_path / phase / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "phases" / f"{phase}.json").is_file()
    assert not (tmp_path / "phases" / "ask-after-GRPO.json").exists()


@pytest.mark.slow
def test_commands_whose_output_is_data_print_nothing_else(user: Path, runs: dict[str, tuple[Path, str]]) -> None:
    adapter = str(runs["log"][0] / "adapter")
    asked = ["generate", "w3 w4", "--model", "model", "--adapter", adapter, "--max-new-tokens", "3"]
    plan = ["plan", "--model", "model", "--window", "4", "--max-new-tokens", "9", "--device-type", "cpu"]
    found = run_commands({"generate": asked, "plan": plan}, user)
    answered = found["generate"]
    assert (answered.code, found["plan"].code) == (0, 0)
    assert len(answered.stdout.splitlines()) == 1
    assert LOADING not in answered.stdout + answered.stderr
    assert "next:" not in found["plan"].stdout
    with Process(asked, user, terminal=True) as on_terminal:
        assert on_terminal.end() == 0
    shown = on_terminal.text.split("\x1b[2K")
    assert shown[0].strip() == LOADING
    assert shown[-1].strip() == answered.stdout.strip()


def test_what_is_hidden_is_hidden_by_its_words() -> None:
    records: list[str] = []
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    filters = list(logger.filters)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logger.filters.clear()
            hide_harmless()
            for text in ("`is_gradient_checkpointing` is deprecated and will be removed", "another matter"):
                warnings.warn(text, FutureWarning, stacklevel=1)
            logger.warning("Failed to load CPU gemm_4bit_forward from %s", "somewhere")
            logger.warning("something else")
            logger.warning(ValueError("an object"))
            hide_harmless()
            assert len(logger.filters) == 1
    finally:
        logger.removeHandler(handler)
        logger.filters[:] = filters
    assert [str(one.message) for one in caught] == ["another matter"]
    assert records == ["something else", "an object"]


def test_bars_of_downloads_stay_as_they_were() -> None:
    before, of_models = hub.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    try:
        for shown in (True, False):
            (hub.enable_progress_bars if shown else hub.disable_progress_bars)()
            hide_model_bars()
            assert hub.are_progress_bars_disabled() is not shown
            assert not transformers.utils.logging.is_progress_bar_enabled()
    finally:
        (transformers.utils.logging.enable_progress_bar if of_models else hide_model_bars)()
        (hub.disable_progress_bars if before else hub.enable_progress_bars)()


def test_the_command_that_goes_on() -> None:
    given = ["eval", "--suite", "a b", "--overwrite", "--output-dir", "x"]
    assert going_on(given, {}) == "thoughtcache eval --suite 'a b' --output-dir x --resume"
    several = "torchrun --nproc_per_node 2 -m thoughtcache_cli eval --resume"
    assert going_on(["eval", "--resume"], {"WORLD_SIZE": "2"}) == several
    assert going_on(["eval", "--resume"], {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}) == several
    nodes = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    assert going_on(["eval"], nodes) == "torchrun ... -m thoughtcache_cli eval --resume"


@pytest.mark.parametrize(
    ("command", "options", "expected"),
    [
        ("train", {"model": "m", "dry_run": True}, ["next:", "  thoughtcache train --model m"]),
        ("cost", {}, ["results folder: runs/cost"]),
        ("probe", {}, ["results folder: runs/probe"]),
        ("plan", {}, []),
        ("generate", {}, []),
        ("eval", {"compare": ["a", "b"]}, ["results folder: runs/comparison"]),
        ("eval", {}, ["results folder: runs/eval", "next:", "  thoughtcache eval --compare runs/eval OTHER_RUN"]),
    ],
)
def test_what_to_do_next(command: str, options: dict[str, object], expected: list[str]) -> None:
    given = ["train", "--model", "m", "--dry-run"]
    assert next_steps(command, options, given) == expected


# settings of the saved adapter -> the cache of the row beside it
CACHES: dict[str, tuple[dict[str, Any], str]] = {
    "by default": ({}, "window=1024"),
    "another policy": ({"window": 512, "eviction": "h2o"}, "window=512,eviction=h2o"),
    "settings": (
        {"window": "prompt", "evict_fraction": 0.5, "eviction": "sinks", "eviction_options": {"sinks": 2}},
        "window=prompt,eviction=sinks,evict-fraction=0.5,eviction-option=sinks=2",
    ),
    "budgets": ({"eviction_budgets": [20, 12]}, "window=1024,eviction-budgets=20+12"),
    "budgets of heads": ({"eviction_budgets": [[8, 4], [6, 6]]}, "window=1024,eviction-budgets=8+4/6+6"),
    "an allocation": (
        {"eviction_budgets": "pyramid:beta=8,least=2"},
        "window=1024,eviction-budgets=pyramid:beta=8+least=2",
    ),
    "nothing leaves": ({"window": None}, ""),
}


@pytest.mark.parametrize("name", CACHES)
def test_the_evaluation_that_follows_has_the_cache_of_the_adapter_and_parses(name: str, tmp_path: Path) -> None:
    settings, cache = CACHES[name]
    saved = {"eviction": "sliding", "evict_fraction": 0.25, "positions": "absolute", "window": 1024, **settings}
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(saved))
    options = {"model": "m", "dtype": "bfloat16", "output_dir": str(tmp_path)}
    commands = [shlex.split(line) for line in next_steps("train", options, []) if line.startswith("  ")]
    parsed = {command[1]: vars(build_parser().parse_args(command[1:])) for command in commands}
    assert [parsed[command]["dtype"] for command in ("generate", "eval")] == ["bfloat16"] * 2
    given = commands[1]
    assert [given[place + 1] for place, one in enumerate(given) if one == "--cache"][1:-1] == ([cache] if cache else [])
    if cache:
        assert parsed["eval"]["caches"][1] == {"window": saved["window"], **settings}


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", {}),
        ("distill", {"model": "m", "dtype": "float16", "dataset": "d", "split": "s", "prompt_column": "q"}),
        ("recall", {"model": "m", "dtype": "float16", "kind": "digits", "code_length": 3}),
        ("eval", {}),
    ],
)
def test_every_command_that_is_named_parses_and_keeps_what_it_needs(command: str, options: dict[str, Any]) -> None:
    for line in next_steps(command, options, []):
        if line.startswith("  "):
            given = vars(build_parser().parse_args(shlex.split(line)[1:]))
            shared = {
                name: value for name, value in options.items() if given["command"] != "generate" or name == "dtype"
            }
            assert given | shared == given
    if command == "recall":
        ProbeRun(**{name: value for name, value in given.items() if name != "command"})


@pytest.mark.parametrize("arguments", [["train", "--overwr"], ["eval", "--suite", "embedded", "--resum"], ["--vers"]])
def test_options_have_no_short_forms(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(arguments)
    assert "usage:" in capsys.readouterr().err
