"""Result files: machine-readable, complete or absent, with the environment they were made in.

    write_results(folder / "results.json", {"environment": environment(), "rows": rows})

Not covered: reading them back (`json.loads`), tables and plots of them.
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch

from thoughtcache.report.files import replace_file

DISTRIBUTIONS = ("torch", "transformers", "peft", "trl", "thoughtcache")
_GIT_TIMEOUT_SECONDS = 10.0


def write_results(path: str | Path, payload: Mapping[str, object]) -> Path:
    """Write a payload as JSON with sorted keys, replacing the file in one step: readers never see half of it.

    Dataclasses become objects, tuples become lists, paths become text, and numbers that JSON lacks (NaN, infinities)
    become null. A missing parent folder is made.

    Args:
        path: the file.
        payload: names and values; nested as deep as needed.

    Returns:
        The path that was written.

    Raises:
        ValueError: if a value is none of these; the old file, if any, stays as it was.
    """
    text = json.dumps(_plain(payload, "payload"), indent=2, sort_keys=True, allow_nan=False) + "\n"
    return replace_file(path, text.encode())


def environment() -> dict[str, object]:
    """The origin of a result: the code, the libraries and the machine.

    Returns:
        git_commit: commit of the package's repository; null if it is not under version control.
        git_dirty: whether tracked files differ from that commit; null without one.
        versions: python and the libraries; null for those that are not installed as distributions.
        device: name of the GPU, or "cpu".
        num_threads: threads of PyTorch on the CPU.
        date: UTC, ISO 8601, to the second.
    """
    folder = Path(__file__).resolve().parent
    # A package installed inside somebody else's repository is not tracked there, and that commit says nothing.
    tracked = _git(folder, "ls-files", Path(__file__).name)
    commit = _git(folder, "rev-parse", "HEAD") if tracked else None
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no") if commit else None
    return {
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in DISTRIBUTIONS}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "num_threads": torch.get_num_threads(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command, or None if git is missing, slow, or refuses."""
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_GIT_TIMEOUT_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _plain(value: object, where: str) -> object:
    """The value in JSON's own types."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), where) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{where} has the key {wrong[0]!r}; names in a result file are text")
        return {key: _plain(inner, f"{where}.{key}") for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(inner, f"{where}[{index}]") for index, inner in enumerate(value)]
    raise ValueError(
        f"{where} is a {type(value).__name__}, which a result file cannot hold; pass numbers, text, lists, mappings or "
        "dataclasses (for a tensor: .tolist())"
    )
