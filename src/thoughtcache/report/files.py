"""Files and folders that are whole or not there, and one sentence where a disk does not take them.

    replace_file(folder / "results.json", text.encode())
    with whole_folder(run / "adapter") as unfinished:
        model.save_pretrained(str(unfinished))

Each is written under another name and renamed when it is complete, so that a kill or a full disk leaves the old one.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REFUSALS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EIO,
}  # fmt: skip
_RUST_REASON = re.compile(r"([^:]+) \(os error \d+\)")


def replace_file(path: str | Path, data: bytes) -> Path:
    """Write a file, replacing an older one in one step; a missing parent folder is made.

    Returns:
        The path.

    Raises:
        OSError: if it cannot be written; the older file, if any, stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner reads
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder that takes the name `path` when the block ends, in place of an older folder.

    A block that raises leaves the older folder as it was; a process that is killed leaves `.NAME.unfinished` behind,
    which the next call removes.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if target.exists():
            shutil.rmtree(target)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def writing(place: str | Path, remedy: str) -> Iterator[None]:
    """Turn what libraries raise where a disk refuses into an OSError of one sentence; other errors pass.

    Args:
        place: what was being written to.
        remedy: what to do, such as "free some space, or choose another --output-dir".

    Raises:
        OSError: if the disk is full, the folder is read-only, or a limit on the size of files is reached.
    """
    try:
        yield
    except Exception as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise OSError(f"cannot write to {place} ({reason}); {remedy}") from error


def _refusal(error: Exception) -> str | None:
    """Why the disk refused, or None if it did not."""
    if isinstance(error, OSError):
        if error.errno not in _REFUSALS:
            return None
        return f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
    if isinstance(error, SafetensorError) or type(error) is Exception:  # tokenizers raise a bare Exception
        found = _RUST_REASON.search(str(error))
        return found.group(1).strip() if found else None
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return "the disk is full or limits the size of files"  # torch.save does not say which
    return None
