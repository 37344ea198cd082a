"""Progress of a transformers or TRL trainer: steps, loss and chosen metrics.

    trainer = ThoughtGRPOTrainer(..., args=ThoughtGRPOConfig(..., disable_tqdm=True))
    trainer.remove_callback(transformers.PrinterCallback)      # it would print every log as a dictionary
    trainer.add_callback(RichProgressCallback(metrics=("reward",)))

Not covered: a bar for evaluation inside training (use `progress.progress_bar`).
"""

from __future__ import annotations

import atexit
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thoughtcache.report.progress import format_fields, new_progress, plain_line


class RichProgressCallback(TrainerCallback):
    """A live bar on a terminal; elsewhere a plain line every `steps_per_line` steps and one for the last step.

    It is quiet on processes other than the first.

    Args:
        metrics: names in the trainer's logs that are shown after the loss; absent ones are skipped.
        steps_per_line: steps between two plain lines, at least 1 (a line needs a log: see `logging_steps`).
        description: text in front of the bar.
        console: where to write; standard output by default.

    Raises:
        ValueError: if there is less than 1 step per line.
    """

    def __init__(
        self,
        metrics: Sequence[str] = (),
        *,
        steps_per_line: int = 10,
        description: str = "training",
        console: Console | None = None,
    ) -> None:
        if steps_per_line < 1:
            raise ValueError(f"steps_per_line must be at least 1, got {steps_per_line}")
        self.names = tuple(dict.fromkeys(("loss", *metrics)))
        self.steps_per_line = steps_per_line
        self.description = description
        self.console = console or Console()
        self._shown: dict[str, float] = {}
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._next_line = 0
        self._printed = 0
        self._started = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the bar."""
        self.close()
        self._shown, self._next_line, self._started = {}, state.global_step + 1, time.perf_counter()
        self._printed = state.global_step
        if state.is_world_process_zero and self.console.is_terminal:
            self._progress = new_progress(self.console)
            self._task = self._progress.add_task(
                self.description, total=state.max_steps, completed=state.global_step, fields=""
            )
            self._progress.start()
            # If training raises, nobody calls `on_train_end`, and the cursor would stay hidden.
            atexit.register(self.close)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over the newest values; print a line where one is due."""
        self._shown |= {name: float(logs[name]) for name in self.names if logs and name in logs}
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, fields=self._fields())
        elif state.is_world_process_zero and state.global_step >= self._next_line:
            # Steps 1, n, 2n, ...: the first line says early that training runs.
            self._next_line = (state.global_step // self.steps_per_line + 1) * self.steps_per_line
            self._print_line(state)

    def _fields(self) -> str:
        return format_fields({name: self._shown[name] for name in self.names if name in self._shown})

    def _print_line(self, state: TrainerState) -> None:
        self._printed = state.global_step
        seconds = f"{time.perf_counter() - self._started:.0f} s"
        parts = [f"{self.description} {state.global_step}/{state.max_steps}", seconds, self._fields()]
        plain_line(self.console, "  ".join(part for part in parts if part))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop the bar; where there is none, the last step gets its line."""
        if self._progress is None and state.is_world_process_zero and state.global_step > self._printed:
            self._print_line(state)
        self.close()

    def close(self) -> None:
        """Stop the bar and give the terminal back; harmless if there is none."""
        atexit.unregister(self.close)
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None
