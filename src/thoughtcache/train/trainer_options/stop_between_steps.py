"""Ctrl-C while a trainer takes steps: the step is finished and saved, and then the run is interrupted.

So does SIGTERM, which schedulers of clusters and containers send before they end a process.

This holds for programs that ask for it, as the command line does. Elsewhere signals are left alone:

    with interrupts_between_steps():
        run_real_model(...)
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MESSAGES = {
    signal.SIGINT: (
        b"\nstopping after this step, which is saved; Ctrl-C again leaves at once\n",
        b"\nstopping behind this phase, whose steps are done; Ctrl-C again leaves at once\n",
    ),
    signal.SIGTERM: (
        b"\nSIGTERM: stopping after this step, which is saved; a second one leaves at once\n",
        b"\nSIGTERM: stopping behind this phase, whose steps are done; a second one leaves at once\n",
    ),
}
"""What is said when a signal has arrived, while steps are taken and behind the last one."""


@dataclass
class _Asked:
    """What a program wants of interrupts.

    Attributes:
        heard: called when one has arrived.
        late: whether one came when the steps were done; it waits until the phase is written.
    """

    heard: Callable[[], None]
    late: bool = False


_ASKED: ContextVar[_Asked | None] = ContextVar("interrupts between steps", default=None)


@contextmanager
def interrupts_between_steps(heard: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let Ctrl-C stop the trainers of recipes inside this block between two steps.

    Args:
        heard: called by the signal handler when a Ctrl-C has arrived.

    SIGTERM is one Ctrl-C while steps are taken; at other times it ends the process, as ever.

    Raises:
        KeyboardInterrupt: at the end of the block at the latest, for a Ctrl-C that came behind the last step.
    """
    token = _ASKED.set(_Asked(heard))
    try:
        yield
        raise_late_interrupt()
    finally:
        _ASKED.reset(token)


def raise_late_interrupt() -> None:
    """What a run does when a phase is written: end, if a Ctrl-C came behind the last step of the phase.

    Raises:
        KeyboardInterrupt: if so.
    """
    asked = _ASKED.get()
    if asked is not None and asked.late:
        asked.late = False
        _interrupt(signal.getsignal(signal.SIGINT))


class StopBetweenSteps(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which that was asked for.

    Attributes:
        asked: whether training is to end after the step of the moment.
        in_steps: whether a trainer has begun to take steps.
        done: whether the last step is done.
        stopped: whether training was ended because that was asked for.
    """

    def __init__(self) -> None:
        self.asked = self.in_steps = self.done = self.stopped = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Steps begin."""
        self.in_steps = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if somebody asked for it."""
        if self.asked:
            control.should_save = control.should_training_stop = self.stopped = True
        self.done = state.global_step >= state.max_steps

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """There are no more steps."""
        self.done = True


@contextmanager
def stop_between_steps() -> Iterator[StopBetweenSteps]:
    """A callback that a Ctrl-C inside this block stops between two steps; the block then ends as interrupted.

    A Ctrl-C behind the last step leaves the block as it is, and is raised when the phase is written
    (`raise_late_interrupt`). Before the first step, and at the second Ctrl-C, the handler that was there before hears
    of it; after a second one it hears of both. A SIGTERM is the same, but for what was there before, which ends the
    process. Nothing is changed outside `interrupts_between_steps` and in other threads than the first, nor for a signal
    that is ignored or handled outside Python.

    Raises:
        KeyboardInterrupt: at the end of the block, if training was stopped; or what the handler from before raises.
    """
    raise_late_interrupt()
    callback, asked, before = StopBetweenSteps(), _ASKED.get(), signal.getsignal(signal.SIGINT)
    if asked is None or threading.current_thread() is not threading.main_thread():
        yield callback
        return
    with _terminated_between_steps(callback), _interrupted_between_steps(callback, asked):
        yield callback
    if callback.stopped:
        _interrupt(before)
    asked.late = callback.asked


@contextmanager
def _interrupted_between_steps(callback: StopBetweenSteps, asked: _Asked) -> Iterator[None]:
    """Let the first Ctrl-C of this block stop between two steps, if it comes while steps are taken."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before):
        yield
        return

    def press(number: int, frame: FrameType | None) -> None:
        asked.heard()
        if _stops(callback, number):
            return
        signal.signal(signal.SIGINT, before)
        if callback.asked:
            with suppress(KeyboardInterrupt):
                before(number, frame)
        now = signal.getsignal(signal.SIGINT)
        assert callable(now)
        now(number, frame)

    with _handled(signal.SIGINT, press):
        yield


@contextmanager
def _terminated_between_steps(callback: StopBetweenSteps) -> Iterator[None]:
    """Let the first SIGTERM of this block be one Ctrl-C, if it comes while steps are taken."""
    before = signal.getsignal(signal.SIGTERM)
    if before is None or before is signal.SIG_IGN:
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        if _stops(callback, number):
            return
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)

    with _handled(signal.SIGTERM, terminate):
        yield


@contextmanager
def _handled(number: signal.Signals, handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle a signal in this block; whoever has put another handler in the place meanwhile keeps it."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        if signal.getsignal(number) is handler:
            signal.signal(number, before)


def _stops(callback: StopBetweenSteps, number: int) -> bool:
    """Whether a signal is the first one while steps are taken; then training stops behind the step, and is told so."""
    if not callback.in_steps or callback.asked:
        return False
    callback.asked = True
    os.write(2, MESSAGES[signal.Signals(number)][callback.done])  # a stream may be in the middle of a line
    return True


def _interrupt(handler: object) -> NoReturn:
    """What a Ctrl-C would have done at once."""
    if callable(handler):
        handler(signal.SIGINT, None)
    raise KeyboardInterrupt
