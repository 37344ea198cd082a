"""What every trainer of a recipe gets: the line of its phase, and Ctrl-C between two steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from transformers import TrainerCallback

from thoughtcache.report.trainer_progress import RichProgressCallback
from thoughtcache.train.trainer_options.stop_between_steps import stop_between_steps


@contextmanager
def watched(description: str, console: Console, metrics: Sequence[str] = ()) -> Iterator[list[TrainerCallback]]:
    """The callbacks of a trainer that runs inside this block.

    Ctrl-C is left to whoever calls, unless that is inside `interrupts_between_steps`.

    Args:
        description: text in front of the line.
        console: where it goes.
        metrics: names in the trainer's log that are shown after the loss.

    Raises:
        KeyboardInterrupt: at the end of the block, if a Ctrl-C stopped the trainer between two steps.
    """
    bar = RichProgressCallback(metrics, description=description, console=console)
    with stop_between_steps() as stop:
        try:
            yield [stop, bar]  # steps begin before the line says so
        finally:
            bar.close()
