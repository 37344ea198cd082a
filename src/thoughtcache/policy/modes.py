"""Two choices that several executions share: how far gradients reach, and where records wait."""

from __future__ import annotations

from typing import Literal, get_args

GradientMode = Literal["exact", "detached"] | int
"""How far gradients reach back; each mode is described in `learner/replay.py`."""

Place = Literal["device", "host"]
"""Where keys and values wait for the backward pass."""


def check_place(place: str, name: str = "kv_log") -> None:
    """Refuse unknown places of keys and values.

    Args:
        place: what was given.
        name: the option, as the message calls it.

    Raises:
        ValueError: if the place is unknown; the message names the allowed values.
    """
    if place not in get_args(Place):
        raise ValueError(f'{name}={place!r} is not known; use "device" or "host"')
