"""Ray actors that share tasks: an idle one takes the next, and the task of one that dies goes back to the queue.

A new actor takes the place of a dead one as soon as it is ready; until then nothing is given to it. Every wait ends:
with the results, without a living actor, or with the time limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

Task = Callable[[Any], Any]
"""Starts something on an actor and returns Ray's reference to the result."""


class LostActors(RuntimeError):
    """No actor is left, or the time limit is over."""


class ActorPool:
    """Actors with a method `ready()`.

    Args:
        ray: the module.
        make_actor: starts an actor; does not wait for it.
        num_actors: how many.
        max_replacements: actors that are started in place of lost ones, over the life of the pool.
    """

    def __init__(self, ray: Any, make_actor: Callable[[], Any], *, num_actors: int, max_replacements: int) -> None:
        self._ray, self._make_actor, self._replacements_left = ray, make_actor, max_replacements
        self._num_actors, self._closed = num_actors, False
        self._idle: deque[Any] = deque()
        self._starting: dict[Any, Any] = {}
        self._busy: dict[Any, tuple[Any, int | None]] = {}
        self._last_loss: Exception | None = None
        for _ in range(num_actors):
            self._add()

    def run(self, tasks: Sequence[Task], timeout_seconds: float) -> tuple[list[Any], int]:
        """Run every task once, on whichever actor is free.

        Args:
            tasks: what to start.
            timeout_seconds: bound on all of them together.

        Returns:
            Their results, in order, and how many tasks were started again because their actor was lost.

        Raises:
            LostActors: if no actor is left, the time limit is over (late actors are stopped), or the pool is closed,
                before or meanwhile.
        """
        deadline = monotonic() + timeout_seconds
        waiting, done, num_again = deque(range(len(tasks))), dict[int, Any](), 0
        try:
            while len(done) < len(tasks):
                while waiting and self._idle:
                    actor, task = self._idle.popleft(), waiting.popleft()
                    self._busy[tasks[task](actor)] = (actor, task)
                event = self._next_event(deadline, [task for task in range(len(tasks)) if task not in done])
                is_old = event in self._busy and self._busy[event][1] is None
                actor, finished = self._busy.pop(event) if event in self._busy else (self._starting.pop(event), None)
                try:
                    result = self._ray.get(event)
                except self._ray.exceptions.RayTaskError as error:
                    self._idle.append(actor)
                    if is_old:
                        continue  # the task is of an earlier call, which has raised its own error
                    raise error.cause from error
                except self._ray.exceptions.RayError as error:
                    # Anything else that Ray says: the actor died, was killed for want of memory, cannot be placed, ...
                    self._replace(actor, error)
                    if finished is not None:
                        waiting.appendleft(finished)
                        num_again += 1
                    continue
                self._idle.append(actor)
                if finished is not None:
                    done[finished] = result
        finally:
            # What goes on after an error: its actor is free again when it is over, its result belongs to nobody.
            self._busy = {event: (actor, None) for event, (actor, _) in self._busy.items()}
        return [done[task] for task in range(len(tasks))], num_again

    def close(self) -> None:
        """Stop all actors and start no other; a call that is under way ends with an error."""
        self._closed = True
        self._kill_all()

    def _add(self) -> None:
        actor = self._make_actor()
        self._starting[actor.ready.remote()] = actor

    def _replace(self, actor: Any, loss: Exception) -> None:
        self._last_loss = loss
        self._ray.kill(actor)
        if self._replacements_left > 0:
            self._replacements_left -= 1
            self._add()

    def _kill_all(self) -> None:
        busy = [*self._busy.values()]  # at once: the thread of a call may change it
        for actor in [*self._idle, *self._starting.values(), *(actor for actor, _ in busy)]:
            self._ray.kill(actor)

    def _check_open(self) -> None:
        if self._closed:
            self._kill_all()  # also one that was given a task in the moment of closing
            raise LostActors("the pool of rollout actors is closed; wait for result() before you leave the `with`")

    def _next_event(self, deadline: float, missing: list[int]) -> Any:
        """The task that is over first; raises if there is nothing to wait for, no time left, or the pool is closed."""
        self._check_open()
        under_way = [*self._busy, *self._starting]
        if not under_way:
            raise LostActors(
                f"none of {self._num_actors} rollout actors is left and no other may be started in its place "
                "(max_replacements). Repair what stopped them, then start again; a training run continues from its "
                f"last checkpoint. The last loss: {self._last_loss}"
            ) from self._last_loss
        ready, _ = self._ray.wait(under_way, num_returns=1, timeout=max(deadline - monotonic(), 0.0))
        self._check_open()
        if ready:
            return ready[0]
        late = [actor for actor, _ in self._busy.values()]
        num_starting = len(self._starting)
        self._busy = {}
        error = LostActors(
            f"the time limit is over: shards {missing} are not sampled, {len(late)} actors are still at work and "
            f"{num_starting} are still starting. Raise timeout_seconds, or look why they hang (too few CPUs or GPUs in "
            "the cluster for all actors?); a training run continues from its last checkpoint"
        )
        for actor in late:
            self._replace(actor, error)
        raise error
