"""The command as a process: Ctrl-C at any moment, launchers of several processes, a disk that refuses, its version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.terminal import hear_interrupts
from tests.support.text_model import save_questions, save_text_model

import thoughtcache as tc
from thoughtcache_cli import main
from thoughtcache_cli.process.console import LOADING
from thoughtcache_cli.process.launch import RANKS, WORLD_SIZES, is_first, several_processes

PRELUDE = """
import os, signal, sys
def press(): os.kill(os.getpid(), signal.SIGINT)
class Hook:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            press()
def fake(name, work):
    import types
    sys.modules["thoughtcache_cli.commands"] = types.SimpleNamespace(
        COMMANDS={name: work}, USER_ERRORS=(ValueError,)
    )
def lose(options):
    for _ in range(2):
        try:
            press()
        except KeyboardInterrupt:
            pass
from thoughtcache_cli import main, program
"""
# what happens -> (script, what is printed)
INTERRUPTS = {
    "while libraries are imported": ("sys.meta_path.insert(0, Hook())", "interrupted\n"),
    "while it works": ("fake('train', lambda options: press())", "interrupted\n"),
    "twice, when a library lost the first": ("fake('train', lose)", "interrupted twice\n"),
    "twice, at the very end": (
        "import atexit\natexit.register(press)\nfake('train', lambda options: press())",
        "interrupted\ninterrupted twice\n",
    ),
}


def run(script: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=folder,
        input=text,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "TERM": "xterm"},
        preexec_fn=hear_interrupts,
    )


@pytest.mark.parametrize("name", INTERRUPTS)
def test_interrupts_end_without_a_traceback(name: str, tmp_path: Path) -> None:
    setup, printed = INTERRUPTS[name]
    done = run(f"{PRELUDE}\n{setup}\nsys.exit(program(['train']))", tmp_path)
    assert (done.returncode, done.stderr) == (130, printed)


def test_the_way_to_go_on_is_shown_where_there_is_something_to_go_on_with(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    script = f"{PRELUDE}\nfake('train', lambda options: press())\nsys.exit(program(['train', '--output-dir', '.']))"
    going_on = "  thoughtcache train --output-dir . --resume\n"
    assert run(script, tmp_path).stderr == f"interrupted; . has what is done, and this goes on:\n{going_on}"


SHOWN = """
class Heavy:
    def find_spec(self, name, path=None, target=None):
        if name in ("numpy", "torch", "transformers", "thoughtcache"):
            os.write(2, b"heavy")
            os._exit(0)
sys.meta_path.insert(0, Heavy())
sys.stderr.isatty = lambda: True
main(['train'])
"""


def test_a_terminal_shows_something_before_heavy_libraries_are_imported(tmp_path: Path) -> None:
    assert run(f"{PRELUDE}\n{SHOWN}", tmp_path).stderr == f"{LOADING}heavy"


LIVING = """
fake('train', lambda options: press())
print(main(['train']))
before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
for _ in range(3):
    try:
        press()
    except KeyboardInterrupt:
        print('host')
print(before == (signal.default_int_handler, -1))
"""


def test_a_process_that_lives_on_keeps_its_interrupts(tmp_path: Path) -> None:
    done = run(f"{PRELUDE}\n{LIVING}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "interrupted\n")
    assert done.stdout.split() == ["130", "host", "host", "host", "True"]


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    ignored = "signal.signal(signal.SIGINT, signal.SIG_IGN)\nfake('train', lambda options: [press(), press()])"
    done = run(f"{PRELUDE}\n{ignored}\nsys.exit(program(['train', '--output-dir', 'run']))", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "command", [["train"], ["generate", "q", "--model", "m", "--adapter", "a"], ["plan", "--paper"]]
)
@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_are_refused_before_anything_is_done(
    command: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, "2")
    for rank in ("0", "1"):
        monkeypatch.setenv(RANKS[WORLD_SIZES.index(name)], rank)
        assert main(command) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        if rank == "0":
            (line,) = printed.err.splitlines()
            assert f"2 processes were started ({name}=2)" in line
            assert "without torchrun" in line
            assert "docs/scale.md" in line
        else:
            assert printed.err == "", "one process speaks"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("environment", [{}, {"WORLD_SIZE": "1", "RANK": "0"}, {"WORLD_SIZE": ""}, {"WORLD_SIZE": "a"}])
def test_one_process_is_one_process(environment: dict[str, str]) -> None:
    assert several_processes(environment, "train") is None
    assert is_first(environment)


def test_torchrun_may_start_several_evaluations() -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    assert several_processes(torchrun, "eval") is None
    assert several_processes(torchrun, "train") is not None
    assert several_processes({"OMPI_COMM_WORLD_SIZE": "2"}, "eval") is not None


DISK = """
import contextlib, io, json, resource, sys
from thoughtcache_cli import main
results = {}
for name, (limit, arguments) in json.load(sys.stdin).items():
    errors = io.StringIO()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = main(arguments)
    results[name] = code, errors.getvalue()
print(json.dumps(results))
"""
# what refuses -> (largest file in bytes, output folder, reason)
REFUSALS = {
    "first file": (100, "first", "File too large"),
    "weights": (9000, "weights", "File too large"),
    "optimizer": (20_000, "optimizer", "the disk is full or limits"),
    "no folder": (10**9, "questions.jsonl/run", "Not a directory"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[int, str]]]:
    folder = tmp_path_factory.mktemp("disk")
    save_text_model(folder / "llama")
    save_questions(folder / "questions.jsonl")
    shared = [
        *("train", "--model", "llama", "--dataset", "questions.jsonl", "--max-new-tokens", "8", "--window", "4"),
        *("--distill-steps", "1", "--distill-batch-size", "2", "--grpo-steps", "0", "--r", "3", "--save-every", "1"),
        *("--num-global-tokens", "3"),
    ]
    commands = {name: (limit, [*shared, "--output-dir", output]) for name, (limit, output, _) in REFUSALS.items()}
    done = run(DISK, folder, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


@pytest.mark.parametrize("name", REFUSALS)
def test_a_disk_that_refuses_is_one_line_and_nothing_looks_finished(
    name: str, refused: tuple[Path, dict[str, tuple[int, str]]]
) -> None:
    folder, results = refused
    code, errors = results[name]
    assert code == 2, errors
    line = errors.splitlines()[-1]
    assert line.startswith(f"thoughtcache: error: cannot write to {REFUSALS[name][1]} (")
    assert REFUSALS[name][2] in line
    assert "--output-dir" in line
    assert "Traceback" not in errors
    run_folder = folder / name
    assert not (run_folder / "phases" / "distill.json").exists()
    assert not list(run_folder.rglob("adapter"))
    assert not list(run_folder.rglob("*.tmp")) + list(run_folder.rglob(".*unfinished"))


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"thoughtcache {tc.__version__}\n"
