"""A policy's own settings: the fields of its class, if that is a dataclass. Defaults give their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from thoughtcache.cache.eviction.base import EvictionPolicy

OptionValue = int | float | bool | str
_KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def default_options(policy: type[EvictionPolicy]) -> dict[str, OptionValue]:
    """The settings of a policy and their defaults; nothing for a class that is no dataclass."""
    described: Any = policy
    defaults: dict[str, Any] = (
        {item.name: item.default for item in fields(described)} if is_dataclass(described) else {}
    )
    return defaults


def checked_options(policy: type[EvictionPolicy], options: Mapping[str, OptionValue]) -> dict[str, OptionValue]:
    """The options that are not at their defaults, sorted by name, in the types of these.

    Args:
        policy: class of the policy.
        options: values by name.

    Raises:
        ValueError: for a name that the policy does not have, a value of another type, or one that it refuses.
    """
    defaults = default_options(policy)
    checked: dict[str, OptionValue] = {}
    for name, value in sorted(options.items()):
        if name not in defaults:
            known = ", ".join(f"{known}={default}" for known, default in defaults.items())
            there = f"; it has {known}" if known else ", which has no options; leave it out"
            raise ValueError(f"eviction_options {name}={value} is not known to eviction={policy.name!r}{there}")
        wanted = type(defaults[name])
        converted = float(value) if wanted is float and type(value) is int else value
        if type(converted) is not wanted:
            raise ValueError(
                f"eviction_options {name}={value!r} of eviction={policy.name!r} is not {_KINDS[wanted]}; its "
                f"default is {defaults[name]}"
            )
        checked[name] = converted
    try:
        policy(**checked)
    except ValueError as error:
        raise ValueError(f"eviction_options of eviction={policy.name!r}: {error}") from error
    return {name: value for name, value in checked.items() if value != defaults[name]}


def at_least(policy: EvictionPolicy, least: int, *names: str) -> None:
    """Refuse options below a bound.

    Raises:
        ValueError: if one is; the message names the first one.
    """
    for name in names:
        if getattr(policy, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(policy, name)}")


def odd(policy: EvictionPolicy, *names: str) -> None:
    """Refuse kernels that have no middle.

    Raises:
        ValueError: if one is even, or below 1; the message names the first one.
    """
    for name in names:
        value = getattr(policy, name)
        if value < 1 or value % 2 == 0:
            raise ValueError(f"{name} must be odd and at least 1, got {value}")
