"""Records of one list of tasks, made by one process or several that share a folder.

The first process writes to the file itself, each other one to a file beside it, which the first one adds to it when all
are done, or when a run goes on after a kill, with any number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console

from thoughtcache.evaluation.record_file import Record, RecordFile, read_records
from thoughtcache.evaluation.sampling import Task
from thoughtcache.report.progress import plain_line, progress_bar
from thoughtcache.scale.crew import Crew

R = TypeVar("R", bound=Record)
Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled(Generic[R]):
    """What is there when all are done.

    Attributes:
        found: every record of the file.
        made: keys of those that were made now, by any process.
    """

    found: dict[Key, R]
    made: list[Key]


def fill(
    file: Path,
    kind: type[R],
    tasks: Sequence[Task],
    sample: Callable[[list[Task], Callable[[R], None]], None],
    *,
    what: str,
    crew: Crew,
    console: Console,
    tokens: Callable[[R], int] | None = None,
    brief: bool = False,
) -> Filled[R]:
    """Make the records that a file lacks.

    Args:
        file: the file.
        kind: class of the records.
        tasks: what there should be a record of, the same in every process.
        sample: makes records of some tasks, at least one, and hands each one over as soon as it is there.
        what: what they are called in the progress.
        crew: the processes.
        console: where the progress goes.
        tokens: tokens that were sampled for a record, for the progress; None where none are.
        brief: see `PhaseLine`.
    """
    missing: list[int] = []
    if crew.is_first:
        gather(file, kind)
        there = {record.key for record in read_records(file, kind)}
        missing = [number for number, task in enumerate(tasks) if task.key not in there]
        if len(missing) < len(tasks) and not brief:
            plain_line(console, f"{len(tasks) - len(missing)} of {len(tasks)} {what} are there")
    wanted = [tasks[number] for number in crew.from_first(missing)]
    mine = crew.share(wanted, [task.example.identifier for task in wanted])
    title = what if crew.size == 1 else f"{what}, process {crew.rank + 1} of {crew.size}"
    own = file if crew.is_first else _beside(file, crew.rank)
    with RecordFile(own, kind) as kept, progress_bar(title, len(mine), console=console, brief=brief) as advance:

        def keep(record: R) -> None:
            kept.add(record)
            advance(tokens=0 if tokens is None else tokens(record))

        if mine:
            sample(mine, keep)
    crew.all(None)
    if crew.is_first:
        gather(file, kind)
    crew.all(None)
    return Filled(found={record.key: record for record in read_records(file, kind)}, made=[task.key for task in wanted])


def gather(file: Path, kind: type[R]) -> None:
    """Add what other processes have left beside a file to it."""
    others = sorted(file.parent.glob(f"{file.stem}.rank-*{file.suffix}"))
    if not others:
        return
    with RecordFile(file, kind) as kept:
        there = {record.key for record in kept.found}
        for other in others:
            for record in read_records(other, kind):
                if record.key not in there:
                    there.add(record.key)
                    kept.add(record)
    for other in others:
        other.unlink()


def forget(file: Path) -> None:
    """Remove a file and what stands beside it."""
    for path in [file, *file.parent.glob(f"{file.stem}.rank-*{file.suffix}")]:
        path.unlink(missing_ok=True)


def _beside(file: Path, rank: int) -> Path:
    return file.with_name(f"{file.stem}.rank-{rank}{file.suffix}")
