"""What a command shows besides its results: that libraries are loaded, and little of what they say in passing."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOADING = "loading libraries"
ERASE = "\r\x1b[2K"
HARMLESS_WARNINGS = (
    # peft and trl read the property of a model under its old name.
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
)
"""Beginnings of warnings that no option of a command changes."""
HARMLESS_RECORDS = (
    # bitsandbytes, which peft imports where it is installed; the kernel is for 4-bit weights on a CPU.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
)
"""Loggers, and beginnings of what they say, of which the same is true."""
HARMLESS_FILTERS = {
    name: lambda record, message=message: not str(record.msg).startswith(message) for name, message in HARMLESS_RECORDS
}
NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")


@contextmanager
def loading_shown() -> Iterator[None]:
    """Say on a terminal, on standard error, that libraries are loaded in this block; the line goes away behind it.

    Without a terminal nothing is said: standard error then has warnings and errors alone.
    """
    shows = sys.stderr.isatty()
    erases = os.environ.get("TERM", "dumb") != "dumb"
    if shows:
        print(LOADING, end="" if erases else "\n", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shows and erases:
            print(ERASE, end="", file=sys.stderr, flush=True)


def hide_harmless() -> None:
    """Keep off standard error what nobody can act on, each by its words; no bars of other libraries in log files."""
    for message, category in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, harmless in HARMLESS_FILTERS.items():
        logging.getLogger(name).addFilter(harmless)  # once, however often it is called
    if not sys.stderr.isatty():
        for variable in NO_BARS:
            os.environ.setdefault(variable, "1")


def hide_model_bars() -> None:
    """No bars of transformers for reading and writing weights; a command says itself that a model is loaded.

    Bars of downloads from the hub, which transformers would switch off with its own, stay as they were.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging as of_transformers

    no_downloads = are_progress_bars_disabled()
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    if not no_downloads:
        enable_progress_bars()
