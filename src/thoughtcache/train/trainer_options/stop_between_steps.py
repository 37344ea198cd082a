"""Ctrl-C while a trainer takes steps: the step is finished and saved, and then the run is interrupted."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

MESSAGE = b"\nstopping after this step, which is saved; Ctrl-C again leaves at once\n"


class StopBetweenSteps(TrainerCallback):
    """Saves a checkpoint and ends training after the step in which that was asked for.

    Attributes:
        asked: whether training is to end after the step of the moment.
        in_steps: whether a trainer takes steps.
    """

    def __init__(self) -> None:
        self.asked = self.in_steps = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Steps begin."""
        self.in_steps = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Save and stop, if somebody asked for it."""
        if self.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """There are no more steps."""
        self.in_steps = False


@contextmanager
def stop_between_steps() -> Iterator[StopBetweenSteps]:
    """A callback that a Ctrl-C inside this block stops between two steps; the block then ends as interrupted.

    Before the first step and behind the last one, and at the second Ctrl-C, the handler that was there before hears of
    it; after a second one it hears of both. Nothing is changed in other threads than the first, and where SIGINT is
    ignored or handled outside Python.

    Raises:
        KeyboardInterrupt: at the end of the block, if training was stopped; or what the handler from before raises.
    """
    callback, before = StopBetweenSteps(), signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield callback
        return

    def press(number: int, frame: FrameType | None) -> None:
        if callback.in_steps and not callback.asked:
            callback.asked = True
            os.write(2, MESSAGE)  # a stream may be in the middle of a line
            return
        signal.signal(signal.SIGINT, before)
        if callback.asked:
            with suppress(KeyboardInterrupt):
                before(number, frame)
        now = signal.getsignal(signal.SIGINT)
        assert callable(now)
        now(number, frame)

    signal.signal(signal.SIGINT, press)
    try:
        yield callback
    finally:
        if signal.getsignal(signal.SIGINT) is press:
            signal.signal(signal.SIGINT, before)
    if callback.asked:
        before(signal.SIGINT, None)
        raise KeyboardInterrupt
