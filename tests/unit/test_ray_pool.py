"""A pool gives each call its own results and its own errors; Ray itself is in `parity/test_ray.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from thoughtcache.scale.ray_pool import ActorPool, LostActors


class AnyRayError(Exception):
    """As Ray's: the class of all its errors."""


class TaskError(AnyRayError):
    """As Ray's: the error of a task, with its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ActorError(AnyRayError):
    """As Ray's: the actor died."""


class OutOfMemory(AnyRayError):
    """As Ray's: the actor was killed for want of memory."""


@dataclass(eq=False, slots=True)
class Event:
    """A reference to a result: a value, or an exception to raise; `started` numbers them."""

    outcome: Any
    started: int = field(default_factory=count().__next__)


@dataclass(slots=True)
class FakeRay:
    """Ray without processes: what was started first is over first; "never" is not over."""

    killed: list[Any] = field(default_factory=list)
    exceptions: Any = field(default_factory=lambda: SimpleNamespace(RayError=AnyRayError, RayTaskError=TaskError))

    def wait(self, events: Sequence[Event], *, num_returns: int, timeout: float) -> tuple[list[Event], list[Event]]:
        """The earliest event that is over, if there is one."""
        assert num_returns == 1
        assert timeout >= 0
        over = [event for event in events if event.outcome != "never"]
        return sorted(over, key=lambda event: event.started)[:1], []

    def get(self, event: Event) -> Any:
        """The value, or the exception."""
        if isinstance(event.outcome, Exception):
            raise event.outcome
        return event.outcome

    def kill(self, actor: Any) -> None:
        """Remember whom."""
        self.killed.append(actor)


def make_actor() -> Any:
    """An actor that is ready at once."""
    return SimpleNamespace(ready=SimpleNamespace(remote=lambda: Event(True)))


def make_pool(num_actors: int, max_replacements: int = 0) -> tuple[FakeRay, ActorPool]:
    """A pool with its fake."""
    ray = FakeRay()
    return ray, ActorPool(ray, make_actor, num_actors=num_actors, max_replacements=max_replacements)


def task(*outcomes: Any) -> Callable[[Any], Event]:
    """A task that gives one outcome after the other, each time it is started."""
    left = list(outcomes)
    return lambda _: Event(left.pop(0))


def test_results_come_in_the_order_of_the_tasks() -> None:
    _, pool = make_pool(2)
    assert pool.run([task(value) for value in "abcde"], 1.0) == (list("abcde"), 0)


def test_the_error_of_one_call_is_not_raised_in_the_next() -> None:
    ray, pool = make_pool(2)
    for _ in range(2):  # both tasks of a call fail; the second failure is seen during the call after it
        with pytest.raises(ValueError, match="of this call"):
            pool.run([task(TaskError(ValueError("of this call"))), task(TaskError(ValueError("of this call")))], 1.0)
        with pytest.raises(TypeError, match="of another call"):
            pool.run([task(TaskError(TypeError("of another call"))), task("x"), task("y")], 1.0)
    assert pool.run([task("x"), task("y")], 1.0) == (["x", "y"], 0)
    assert ray.killed == []


@pytest.mark.parametrize("loss", [ActorError, OutOfMemory])
def test_the_task_of_a_lost_actor_is_started_again(loss: type[Exception]) -> None:
    ray, pool = make_pool(2)
    assert pool.run([task(loss("died"), "a"), task("b")], 1.0) == (["a", "b"], 1)
    assert len(ray.killed) == 1


def test_a_pool_that_is_closed_under_a_call_ends_it() -> None:
    ray, pool = make_pool(2)

    def closing(_: Any) -> Event:
        pool.close()
        return Event("late")

    with pytest.raises(LostActors, match="pool of rollout actors is closed"):
        pool.run([task("x"), closing], 1.0)
    assert len(set(map(id, ray.killed))) == 2
    with pytest.raises(LostActors, match="pool of rollout actors is closed"):
        pool.run([task("x")], 1.0)


def test_the_loss_of_an_actor_at_work_for_an_earlier_call_costs_nothing_but_the_actor() -> None:
    ray, pool = make_pool(2)
    with pytest.raises(ValueError, match="first"):
        pool.run([task(TaskError(ValueError("first"))), task(ActorError("died"))], 1.0)
    assert pool.run([task("x"), task("y")], 1.0) == (["x", "y"], 0)
    assert len(ray.killed) == 1


def test_the_last_loss_is_in_the_error() -> None:
    _, pool = make_pool(1, max_replacements=1)
    with pytest.raises(LostActors, match=r"none of 1 rollout actors(?s:.)*second"):
        pool.run([task(ActorError("first"), ActorError("second"))], 1.0)


def test_a_late_actor_is_replaced() -> None:
    ray, pool = make_pool(1, max_replacements=1)
    with pytest.raises(LostActors, match=r"time limit is over: shards \[0\]"):
        pool.run([task("never")], 1.0)
    assert len(ray.killed) == 1
    assert pool.run([task("x")], 1.0) == (["x"], 0)
