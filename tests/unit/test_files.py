"""Files and folders are whole or not there, and a disk that refuses is one sentence."""

from __future__ import annotations

import errno
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from safetensors import SafetensorError

from thoughtcache.report.files import replace_file, whole_folder, writing


def test_a_folder_takes_its_name_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "adapter"
    for text in ("first", "second"):
        with whole_folder(target) as unfinished:
            (unfinished / text).write_text(text)
            assert not (target / text).exists()
        assert [file.name for file in target.iterdir()] == [text]
    assert [folder.name for folder in target.parent.iterdir()] == ["adapter"]


def half_written(target: Path) -> None:
    with suppress(KeyboardInterrupt), whole_folder(target) as unfinished:
        (unfinished / "new").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    target.mkdir()
    (target / "old").write_text("old")
    half_written(target)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["adapter", "adapter/old"]


def test_what_a_killed_process_left_is_not_taken_over(tmp_path: Path) -> None:
    left = tmp_path / ".adapter.unfinished"
    left.mkdir()
    (left / "half").write_text("half")
    with whole_folder(tmp_path / "adapter") as unfinished:
        (unfinished / "whole").write_text("whole")
    assert [file.name for file in (tmp_path / "adapter").iterdir()] == ["whole"]


def test_a_file_that_fails_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = replace_file(tmp_path / "a" / "file", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace_file(file, b"new")
    assert [(path.name, path.read_bytes()) for path in file.parent.iterdir()] == [("file", b"old")]


REFUSALS: dict[str, tuple[Exception, str]] = {
    "full": (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
    "read-only": (OSError(errno.EROFS, "Read-only file system", "/x/y"), "Read-only file system: /x/y"),
    "permission": (PermissionError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x"),
    "safetensors": (SafetensorError("Error while serializing: I/O error: File too large (os error 27)"), "too large"),
    "tokenizers": (Exception("No space left on device (os error 28)"), "No space left on device"),
    "torch": (
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
        "the disk is full",
    ),
}
OTHERS = {
    "missing": FileNotFoundError(errno.ENOENT, "No such file", "/x"),
    "loss": RuntimeError("expected scalar type Float"),
    "value": ValueError("no space"),
    "damaged": SafetensorError("header too large"),
    "bare": Exception("something else"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_disk_that_refuses_is_one_sentence_with_a_remedy(name: str) -> None:
    error, reason = REFUSALS[name]
    message = rf"^cannot write to runs/a \(.*{reason}.*\); free some space$"
    with pytest.raises(OSError, match=message), writing("runs/a", "free some space"):
        raise error


@pytest.mark.parametrize("name", OTHERS)
def test_other_errors_pass_as_they_are(name: str) -> None:
    with pytest.raises(type(OTHERS[name])) as caught, writing("runs/a", "free some space"):
        raise OTHERS[name]
    assert caught.value is OTHERS[name]


LIBRARIES = """
import pathlib, resource, sys, tempfile
import torch
from safetensors.torch import save_file
from support.grpo import word_tokenizer
from thoughtcache.report.files import writing
tokenizer = word_tokenizer()
writers = {
    "torch": lambda folder: torch.save({"a": torch.zeros(5000)}, folder + "/a.pt"),
    "safetensors": lambda folder: save_file({"a": torch.zeros(5000)}, folder + "/a.safetensors"),
    "tokenizers": lambda folder: tokenizer.save_pretrained(folder),
    "python": lambda folder: pathlib.Path(folder, "a").write_text("a" * 5000),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
for name, write in writers.items():
    try:
        with writing("here", "free some space"):
            write(tempfile.mkdtemp())
    except OSError as error:
        print(name, "|", error)
"""


def test_what_the_libraries_raise_where_files_are_limited_is_recognised(tmp_path: Path) -> None:
    """The real errors of every library that writes here: their texts are not ours, and may change."""
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path[:0] = {sys.path!r}\n{LIBRARIES}")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=240)
    lines = dict(line.split(" | ") for line in done.stdout.splitlines())
    assert set(lines) == {"torch", "safetensors", "tokenizers", "python"}
    assert all(line.startswith("cannot write to here (") for line in lines.values())
