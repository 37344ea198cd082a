"""Bytes from every process to every process, within a time limit, and an error that names the process that is missing.

Each pair of processes is waited for by itself, which a collective could not name. A process that was killed closes its
connections and is noticed at once; one that hangs is noticed when the limit is over; one that fails says so first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from math import inf
from time import monotonic

import torch
import torch.distributed as dist
from torch import Tensor

REMEDY = (
    "Look at the output of that process, then start all of them again; a training run continues from its last "
    "checkpoint (--resume, or trainer.train(resume_from_checkpoint=True))."
)
_DONE, _FAILED = 0, 1
_GOODBYE_SECONDS = 5.0
"""Seconds for which a failing process stays to tell the others why."""
_SHORTEST_WAIT = 0.001
"""Seconds; what is there already is taken even when the time is over."""

_Posted = list[tuple[int, dist.Work]]
"""Operations under way, each with the process at the other end."""


class LostProcess(RuntimeError):
    """A process of the group was killed, failed, or did not answer within the time limit."""


@contextmanager
def process_group(timeout_seconds: float) -> Iterator[dist.ProcessGroup]:
    """A group of all processes over TCP (gloo), whatever the default one is; bytes on the host travel over it.

    Args:
        timeout_seconds: bound on each wait.

    Raises:
        LostProcess: if the processes do not all come.
    """
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))
    except RuntimeError as error:
        raise LostProcess(
            f"not all {dist.get_world_size()} processes came to sample together within {timeout_seconds:g} s. {REMEDY}"
        ) from error
    try:
        yield group
    finally:
        dist.destroy_process_group(group)


def exchange(outgoing: Sequence[bytes], group: dist.ProcessGroup, timeout_seconds: float) -> list[bytes]:
    """Send `outgoing[r]` to process `r`, for every process of the group.

    Args:
        outgoing: one message per process; the own one is handed back as it is.
        group: gloo group with all processes.
        timeout_seconds: bound on the whole exchange, so on how long the slowest process is waited for.

    Returns:
        What each process sent to this one, by rank.

    Raises:
        LostProcess: naming the process that was killed, failed, or is late.
    """
    rank, deadline = dist.get_rank(), monotonic() + timeout_seconds
    going = {other: _message(_DONE, payload) for other, payload in enumerate(outgoing) if other != rank}
    sizes = {other: torch.zeros(1, dtype=torch.long) for other in going}
    sending = _post(dist.isend, {other: torch.tensor([message.numel()]) for other, message in going.items()}, group)
    _wait(_post(dist.irecv, sizes, group), deadline)
    coming = {other: torch.zeros(int(size), dtype=torch.uint8) for other, size in sizes.items()}
    sending += _post(dist.isend, going, group)
    _wait(_post(dist.irecv, coming, group), deadline)
    for other, message in coming.items():
        if message[0] == _FAILED:
            raise LostProcess(f"process {other} failed: {message[1:].numpy().tobytes().decode()}. {REMEDY}")
    # Last, for a process that failed receives nothing any more.
    _wait(sending, deadline)
    return [payload if other == rank else coming[other][1:].numpy().tobytes() for other, payload in enumerate(outgoing)]


@contextmanager
def failures_told(group: dist.ProcessGroup) -> Iterator[None]:
    """If the body raises, tell the processes that wait in `exchange`, or soon will; others find the connection closed.

    Args:
        group: gloo group with all processes.
    """
    try:
        yield
    except BaseException as error:
        message = _message(_FAILED, f"{type(error).__name__}: {error}".encode())
        deadline = monotonic() + _GOODBYE_SECONDS
        others = [rank for rank in range(dist.get_world_size()) if rank != dist.get_rank()]
        with suppress(LostProcess):
            for tensor in (torch.tensor([message.numel()]), message):
                _wait(_post(dist.isend, dict.fromkeys(others, tensor), group), deadline)
        raise


@contextmanager
def lost_in_collectives() -> Iterator[None]:
    """Name what a collective raises in the body when a process of the run is gone: it says neither who nor what to do.

    With NCCL only what is raised at once comes here; after the time limit PyTorch's watchdog ends the process itself,
    unless TORCH_NCCL_BLOCKING_WAIT=1.

    Raises:
        LostProcess: if a process is gone; it takes the place of the errors of gloo and NCCL.
    """
    try:
        yield
    except LostProcess:
        raise
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo/" in str(error):
            raise LostProcess(f"another process of this run was killed or is late ({error}). {REMEDY}") from error
        raise


def _message(status: int, payload: bytes) -> Tensor:
    return torch.frombuffer(bytearray([status]) + payload, dtype=torch.uint8)


def _post(operation: Callable[..., dist.Work | None], tensors: dict[int, Tensor], group: dist.ProcessGroup) -> _Posted:
    """Start sending a tensor to each process, or receiving one from each."""
    posted: _Posted = []
    for other, tensor in tensors.items():
        with _naming(other):
            work = operation(tensor, other, group=group)
        assert work is not None, "this process is not in the group"
        posted.append((other, work))
    return posted


def _wait(posted: _Posted, deadline: float) -> None:
    for other, work in posted:
        with _naming(other, deadline):
            work.wait(timedelta(seconds=max(deadline - monotonic(), _SHORTEST_WAIT)))


@contextmanager
def _naming(other: int, deadline: float = inf) -> Iterator[None]:
    """Turn what gloo raises into an error that names the process and the remedy."""
    try:
        yield
    except RuntimeError as error:
        late = monotonic() >= deadline
        what = "did not finish its share within the time limit" if late else "was killed or has left"
        raise LostProcess(f"process {other} {what} ({error}). {REMEDY}") from error
