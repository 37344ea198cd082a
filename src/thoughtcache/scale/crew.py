"""The processes that torchrun started for one command: the first one decides, and all of them work.

    with open_crew() as crew:
        numbers = crew.from_first(list(range(100)) if crew.is_first else None)
        mine = crew.share(numbers)

Without torchrun it is a crew of one, and no process group is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from thoughtcache.scale.exchange import exchange, failures_told, process_group

WAIT_SECONDS = 24 * 3600.0
"""Bound on how long the slowest process is waited for; one that was killed is noticed at once."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The processes of a command.

    Attributes:
        rank: number of this one.
        size: how many they are.
        group: what they talk over; None in a crew of one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides, writes and speaks."""
        return self.rank == 0

    def all(self, value: Any) -> list[Any]:
        """What every process says, by rank; all of them call it.

        Args:
            value: JSON data.

        Raises:
            LostProcess: if another process was killed, failed, or is late.
        """
        if self.group is None:
            return [value]
        told = exchange([json.dumps(value).encode()] * self.size, self.group, WAIT_SECONDS)
        return [json.loads(one) for one in told]

    def from_first(self, value: Any) -> Any:
        """What the first process says; all of them call it.

        Args:
            value: JSON data; only that of the first process counts.
        """
        return self.all(value if self.is_first else None)[0]

    def share(self, items: Sequence[T], owners: Sequence[Hashable]) -> list[T]:
        """The items of this process. Those of one owner stay together where there are enough owners.

        Args:
            items: all items, the same in every process.
            owners: what each of them belongs to.
        """
        places = {owner: place for place, owner in enumerate(dict.fromkeys(owners))}
        if len(places) < self.size:
            return list(items[self.rank :: self.size])
        return [item for item, owner in zip(items, owners, strict=True) if places[owner] % self.size == self.rank]


@contextmanager
def open_crew() -> Iterator[Crew]:
    """The processes of this launch inside the block; what one of them raises ends the others as well.

    Raises:
        LostProcess: if the processes do not all come, or one is lost.
    """
    started = os.environ.get("WORLD_SIZE", "")
    size = int(started) if started.isdigit() else 1
    if size == 1:
        yield Crew()
        return
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    owns = not dist.is_initialized()
    if owns:
        dist.init_process_group("gloo")
    try:
        with process_group(WAIT_SECONDS) as group, failures_told(group):
            yield Crew(rank=rank, size=size, group=group)
    finally:
        if owns:
            dist.destroy_process_group()
