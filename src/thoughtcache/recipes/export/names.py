"""Names of models and data that a card may tell: ids of the hub whole, files and folders by their last part."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

_FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*$")


def is_hub_id(text: str) -> bool:
    """Whether a text has the form OWNER/NAME of an id on the hub."""
    return _is_valid(text) and text.count("/") == 1


def is_on_hub(text: str) -> bool:
    """Whether a data set is one of the hub, as far as a text says: no path, no suffix of a file, and not here.

    A relative folder such as `data/mine` has the form of an id, and counts as one where it is not found from here.
    """
    return _is_valid(text) and not _FILE_SUFFIX.search(text) and not Path(text).exists()


def public_name(text: str) -> str:
    """A data set of the hub as it is; any other text without the folders before it, be they of Windows or not."""
    return text if is_on_hub(text) else last_part(text)


def last_part(path: str) -> str:
    """The name of a file or folder alone."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _is_valid(text: str) -> bool:
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True
