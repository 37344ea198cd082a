"""Saves what a prompt was made of in training, beside the adapter with its tokenizer and chat template."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "thoughtcache_prompt.json"


def save_prompt_format(folder: str | Path, *, instruction: str) -> None:
    """Remember how questions became prompts.

    Args:
        folder: folder of the adapter.
        instruction: text that was put after each question; "" for none.
    """
    (Path(folder) / FILE).write_text(json.dumps({"instruction": instruction}) + "\n")


def has_prompt_format(folder: str | Path) -> bool:
    """Whether it was saved with an adapter how questions became prompts."""
    return (Path(folder) / FILE).is_file()


def saved_instruction(folder: str | Path) -> str | None:
    """The instruction that an adapter was trained with; None if there was none, or none was saved.

    Raises:
        ValueError: if the file is damaged.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        instruction = json.loads(file.read_text())["instruction"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}); copy it again, or delete it to ask without instruction"
        ) from error
    return instruction or None
