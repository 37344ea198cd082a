"""Progress of a transformers or TRL trainer: steps, loss and chosen metrics, on the line of a phase (`progress.py`).

    trainer = ThoughtGRPOTrainer(..., args=ThoughtGRPOConfig(..., disable_tqdm=True))
    trainer.remove_callback(transformers.PrinterCallback)      # it would print every log as a dictionary
    trainer.add_callback(RichProgressCallback(metrics=("reward",)))

Not covered: a bar for evaluation inside training (use `progress.progress_bar`).
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thoughtcache.report.progress import PhaseLine


class RichProgressCallback(TrainerCallback):
    """The line of a phase whose steps are those of a trainer. It is quiet on processes other than the first.

    Tokens are those that the trainer counts in its state, prompts included (`num_input_tokens_seen`).

    Args:
        metrics: names in the trainer's logs that are shown after the loss; absent ones are skipped.
        description: text in front of the bar.
        console: where to write; standard output by default.
    """

    def __init__(
        self, metrics: Sequence[str] = (), *, description: str = "training", console: Console | None = None
    ) -> None:
        self.names = tuple(dict.fromkeys(("loss", *metrics)))
        self.description = description
        self.console = console or Console()
        self._line: PhaseLine | None = None
        self._first_tokens = 0
        self._paused = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the line."""
        self.close()
        self._first_tokens, self._paused = int(state.num_input_tokens_seen), False
        self._line = PhaseLine(
            self.description,
            state.max_steps,
            console=self.console,
            done=state.global_step,
            shows=state.is_world_process_zero,
        )
        # If training raises, nobody calls `on_train_end`, and the cursor would stay hidden.
        atexit.register(self.close)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the line again below what TRL has printed."""
        if self._line is not None and self._paused:
            self._line.resume()
            self._paused = False

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take over the newest values, those of a step that is done."""
        if self._line is None:
            return
        shown = {name: float(logs[name]) for name in self.names if logs and name in logs}
        self._line.update(state.global_step, tokens=int(state.num_input_tokens_seen) - self._first_tokens, **shown)
        if getattr(args, "log_completions", False):  # TRL prints a table behind the log
            self._line.pause()
            self._paused = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the step, where it is not logged."""
        if self._line is not None and not control.should_log:
            self._line.update(state.global_step, tokens=int(state.num_input_tokens_seen) - self._first_tokens)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End the line; where it is plain text, the last step gets one."""
        self.close()

    def close(self) -> None:
        """End the line and give the terminal back; harmless if there is none."""
        atexit.unregister(self.close)
        if self._line is not None:
            self._line.stop()
            self._line = None
