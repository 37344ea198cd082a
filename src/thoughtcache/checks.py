"""Checks of settings: the value, what is allowed, and so what to change."""

from __future__ import annotations

from collections.abc import Sequence


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a name that is not known.

    Raises:
        ValueError: if `value` is not in `allowed`; the message lists the allowed names.
    """
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose one of {list(allowed)}")


def at_least_one(settings: object, *names: str, optional: bool = False) -> None:
    """Refuse counts below 1.

    Args:
        settings: an object with the counts.
        names: names of the attributes that hold the counts.
        optional: whether they may be None.

    Raises:
        ValueError: if a count is below 1; the message names the first one.
    """
    for name in names:
        value = getattr(settings, name)
        if (value is None and not optional) or (value is not None and value < 1):
            raise ValueError(f"{name} must be at least 1{' or None' if optional else ''}, got {value}")
