"""Records as lines of JSON, written one by one, so that a run that was killed loses none of them.

A line that a kill cut short is the last one and has no end; it is dropped, and what it was about is sampled again.
"""

from __future__ import annotations

import dataclasses
import json
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar


class Record(ABC):
    """A dataclass whose fields are JSON data."""

    __slots__ = ()

    @property
    @abstractmethod
    def key(self) -> tuple[str, int]:
        """What a file has once."""


R = TypeVar("R", bound=Record)


def read_records(path: Path, kind: type[R]) -> list[R]:
    """The records in a file, each once; a last line that is not whole is left out.

    Args:
        path: the file; one that does not exist has none.
        kind: their class.

    Raises:
        ValueError: if another line than the last is damaged.
    """
    return _read(path, kind)[0]


class RecordFile(Generic[R]):
    """A file that records are added to; it must not be written to by anybody else.

    Args:
        path: the file, which may exist; what is behind its last whole line is cut off.
        kind: class of the records.

    Attributes:
        found: the records that were there.

    Raises:
        ValueError: as `read_records`.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.found, num_bytes = _read(path, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: a line is with the operating system when `add` returns, and survives a kill of this process.
        self._file = path.open("ab", buffering=0)
        self._file.truncate(num_bytes)

    def add(self, record: R) -> None:
        """Write one record."""
        values: Any = record
        line = json.dumps(dataclasses.asdict(values), ensure_ascii=True).encode() + b"\n"
        rest = memoryview(line)
        while rest:
            rest = rest[self._file.write(rest) :]

    def __enter__(self) -> RecordFile[R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _read(path: Path, kind: type[R]) -> tuple[list[R], int]:
    """The records, and the bytes of the file that hold them."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    found: dict[tuple[str, int], R] = {}
    for number, line in enumerate(data[:end].split(b"\n")[:-1], start=1):
        try:
            record = _record(json.loads(line), kind)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"line {number} of {path} is damaged ({error}); delete the line, and its answer is sampled again"
            ) from error
        found.setdefault(record.key, record)
    return list(found.values()), end


def _record(values: Any, kind: Any) -> Any:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(values, dict) or set(values) != set(names):
        raise ValueError(f"it is no object with {', '.join(names)}")
    return kind(**values)
