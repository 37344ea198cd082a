"""Teacher samples on disk: a run that goes on does not draw them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from thoughtcache.records import Rollout
from thoughtcache.report.files import replace_file
from thoughtcache.scale.wire import pack_rollouts, unpack_rollouts


def kept_samples(file: Path, num_samples: int, draw: Callable[[int, int], list[Rollout]]) -> list[Rollout]:
    """The first `num_samples` rollouts of a run, from disk as far as they were drawn before.

    Args:
        file: where they are kept; it is written when all that were missing are drawn, and never in part.
        num_samples: how many are needed.
        draw: rollouts `start` (inclusive) to `stop` (exclusive).

    Raises:
        ValueError: if the file is damaged.
    """
    found = _read(file) if file.is_file() else []
    if len(found) < num_samples:
        found += draw(len(found), num_samples)
        replace_file(file, pack_rollouts(found))
    return found[:num_samples]


def has_samples(file: Path, num_samples: int) -> bool:
    """Whether so many rollouts were drawn before, so that none is drawn again.

    Raises:
        ValueError: if the file is damaged.
    """
    return file.is_file() and len(_read(file)) >= num_samples


def _read(file: Path) -> list[Rollout]:
    try:
        return unpack_rollouts(file.read_bytes())
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"{file} is damaged ({error}); remove it, and they are drawn again") from error
