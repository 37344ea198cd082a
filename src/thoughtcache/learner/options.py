"""Options with which the learner repeats a rollout: what is exact, what is kept, where it waits. Checked once, here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from thoughtcache.policy.modes import GradientMode, Place, check_place

CHUNK_TOKENS = 256
"""Default of `chunk_tokens`: later segments have no more columns up to a window of 1024, so only the first is cut."""
Auto = Literal["auto"]
AUTO: Auto = "auto"
"""The value of a saving that the planner is to choose, see `planning/savings.py`."""
SAVINGS = ("checkpoint_layers", "chunk_tokens", "kv_log")
"""Options that cost time or a transfer, save memory, and change no number beyond rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayOptions:
    """Options of `replay`, where each is described.

    Raises:
        ValueError: if a mode or a place is unknown, a size is below 1, or a combination has no meaning.
    """

    gradient: GradientMode = "exact"
    anchored: bool = True
    full_cache: bool = False
    recompute: bool = True
    checkpoint_layers: bool = False
    chunk_tokens: int | None = CHUNK_TOKENS
    kv_log: Place = "device"
    reuse: bool = False

    def __post_init__(self) -> None:
        known = self.gradient in ("exact", "detached") or (isinstance(self.gradient, int) and self.gradient >= 1)
        if not known:
            raise ValueError(
                f'gradient={self.gradient!r} is not known; use "exact", "detached" or a positive number of segments'
            )
        check_place(self.kv_log)
        if not isinstance(self.checkpoint_layers, bool):
            raise ValueError(f"checkpoint_layers must be True or False, got {self.checkpoint_layers!r}")
        if self.chunk_tokens is not None and self.chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1 or None, got {self.chunk_tokens}")
        if self.checkpoint_layers and not self.recompute:
            raise ValueError(
                "checkpoint_layers=True goes with recompute=True: plain autograd (recompute=False) keeps everything"
            )
        if self.reuse and (self.full_cache or not self.anchored or not self.recompute):
            raise ValueError(
                "reuse=True repeats what was sampled; it goes with anchored=True, full_cache=False and recompute=True"
            )


LEARNER_OPTIONS = ("gradient", "recompute", *SAVINGS)
"""Options of every learner of a run; distillation, GRPO, the planner and a run have them under these names."""


def take_savings(settings: object) -> None:
    """Convert savings that came as text, from a command line or a file, in place.

    Args:
        settings: settings with all of `SAVINGS`, frozen or not.

    Raises:
        ValueError: for another text, or a value of another kind.
    """
    for name, read in (("checkpoint_layers", _checkpoint_layers), ("chunk_tokens", _chunk_tokens), ("kv_log", _place)):
        object.__setattr__(settings, name, read(getattr(settings, name)))


def _checkpoint_layers(value: object) -> bool | Auto:
    if isinstance(value, bool):
        return value
    found: dict[object, bool | Auto] = {AUTO: AUTO, "true": True, "false": False}
    text = value.lower() if isinstance(value, str) else None
    if text not in found:
        raise ValueError(f'checkpoint_layers={value!r} is not known; use "auto", True or False')
    return found[text]


def _chunk_tokens(value: object) -> int | Auto | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    text = value.lower() if isinstance(value, str) else ""
    if text == AUTO:
        return AUTO
    if text != "none" and not text.isdecimal():
        raise ValueError(f'chunk_tokens={value!r} is not known; use "auto", "none" or a number of tokens')
    return None if text == "none" else int(text)


def _place(value: object) -> Place | Auto:
    for known in (AUTO, *get_args(Place)):
        if value == known:
            return cast("Place | Auto", known)
    raise ValueError(f'kv_log={value!r} is not known; use "auto", "device" or "host"')


def count_or_auto(name: str, value: object) -> int | Auto:
    """A count that may be left to the planner, from a number or a text.

    Args:
        name: what it is called in an error.
        value: what was given.

    Raises:
        ValueError: for another text, or a number below 1.
    """
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if number == AUTO:
        return AUTO
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f'{name} must be at least 1 or "auto", got {value!r}')
    return number


def learner_options(settings: object) -> dict[str, Any]:
    """The values of these options in some settings that have all of them, "auto" included."""
    return {name: getattr(settings, name) for name in LEARNER_OPTIONS}


def replay_options(settings: object, **others: Any) -> ReplayOptions:
    """The same as options of a replay; what is still left to the planner has its default.

    Args:
        settings: settings that have all of `LEARNER_OPTIONS`.
        others: further fields, or other values of these.
    """
    return ReplayOptions(**{name: value for name, value in learner_options(settings).items() if value != AUTO} | others)


def left_to_the_planner(settings: object) -> tuple[str, ...]:
    """Names of the savings that are "auto"."""
    return tuple(name for name in SAVINGS if getattr(settings, name) == AUTO)
