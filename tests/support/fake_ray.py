"""Ray without processes: actors are objects of this one, and what they are asked is done at once."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class TaskError(Exception):
    """As Ray's: the error of a task, with its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Reference:
    """To a result that is there already; Ray's are no more than names."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


def remote(function: Callable[..., Any]) -> Callable[..., Reference]:
    """Calls at once; an error is raised by who asks for the result."""

    def call(*arguments: Any) -> Reference:
        try:
            return Reference(function(*arguments))
        except ValueError as error:
            return Reference(TaskError(error))

    return call


class Actor:
    """An object whose methods are called by `remote`."""

    def __init__(self, inner: Any) -> None:
        self.ready = SimpleNamespace(remote=remote(inner.ready))
        self.sample = SimpleNamespace(remote=remote(inner.sample))


class FakeRay:
    """What is started last is over first, so that nothing comes back in the order in which it went out."""

    exceptions = SimpleNamespace(RayError=TaskError, RayTaskError=TaskError)

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def put(value: Any) -> Any:
        return value

    @staticmethod
    def remote(actor: type) -> Any:
        make = SimpleNamespace(remote=lambda *arguments: Actor(actor(*arguments)))
        return SimpleNamespace(options=lambda **_: make)

    @staticmethod
    def wait(references: list[Reference], **_: Any) -> tuple[list[Reference], list[Reference]]:
        return references[-1:], []

    @staticmethod
    def get(reference: Reference) -> Any:
        if isinstance(reference.outcome, TaskError):
            raise reference.outcome
        return reference.outcome

    @staticmethod
    def kill(actor: Any) -> None:
        """Nothing is left to stop."""
