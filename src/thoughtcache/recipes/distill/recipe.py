"""A recipe of distillation: stages in their order, each with settings of its own.

    [[stage]]                  # the memory learns layer by layer what the window loses
    kind = "transfer"
    num_steps = 200

    [[stage]]                  # the adapter learns the base's next-token distributions
    kind = "logits"
    num_steps = 100
    batch_size = 4

The settings of a stage are fields of its configuration: `TransferConfig`, `RecallConfig` or `DistillConfig`.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.loop_config import LoopConfig
from thoughtcache.train.recall_config import RecallConfig
from thoughtcache.train.transfer.config import TransferConfig

KINDS: dict[str, type[LoopConfig]] = {"transfer": TransferConfig, "recall": RecallConfig, "logits": DistillConfig}
"""Kinds of stages: attention transfer, recall episodes, and the divergence of next-token distributions."""
_OF_THE_RUN = {"output_dir", "seed", "save_every", "log_every", "resume"}
_OF_THE_TEXTS = {
    "max_new_tokens", "temperature", "samples_per_prompt", "sample_batch_size", "pack_weights", "evaluate_every",
    "teacher_cache",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a recipe.

    Attributes:
        kind: a key of `KINDS`.
        settings: fields of its configuration.

    Raises:
        ValueError: for an unknown kind, an unknown setting, or a value out of range.
    """

    kind: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"a stage of kind {self.kind!r} is not known; the kinds are {', '.join(KINDS)}")
        names = {one.name for one in dataclasses.fields(KINDS[self.kind])} - _OF_THE_RUN - _OF_THE_TEXTS
        unknown = sorted(set(self.settings) - names)
        if unknown:
            raise ValueError(
                f"a stage of kind {self.kind!r} has no setting {unknown[0]!r}; it has {', '.join(sorted(names))}"
            )
        hints = get_type_hints(KINDS[self.kind])
        for name, value in self.settings.items():
            if not _fits(value, hints[name]):
                raise ValueError(f"{name} must be {_words(hints[name])}, got {value!r}")
        self.config(output_dir="", seed=0, save_every=0, resume=False)

    @property
    def num_steps(self) -> int:
        """Optimiser steps."""
        return self.config(output_dir="", seed=0, save_every=0, resume=False).num_steps

    def config(self, *, output_dir: str, seed: int, save_every: int, resume: bool | str) -> LoopConfig:
        """The configuration of its trainer."""
        hints = get_type_hints(KINDS[self.kind])
        settings: dict[str, Any] = {name: _typed(value, hints[name]) for name, value in self.settings.items()}
        return KINDS[self.kind](
            **settings, output_dir=output_dir, seed=seed, save_every=save_every, log_every=1, resume=resume
        )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of a TOML file is of a type."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return value in inner
    if kind is tuple:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _typed(value: Any, hint: Any) -> Any:
    """A value of a TOML file that fits, as the type itself: `1` for a number is `1.0`, a list is a tuple."""
    if isinstance(value, list | tuple):
        return tuple(map(_typed, value, get_args(hint)))
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_number and not {int} & {hint, *get_args(hint)} else value


def _words(hint: Any) -> str:
    """A type in words."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_words(one) for one in inner if one is not NoneType)
    if kind is Literal:
        return " or ".join(map(repr, inner))
    if kind is tuple:
        return f"{len(inner)} values, each {_words(inner[0])}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text"}[hint]


RECIPES: dict[str, tuple[Stage, ...]] = {
    "logits": (Stage(kind="logits", settings={"num_steps": 100, "batch_size": 4, "learning_rate": 1e-3}),),
    "memory": (
        Stage(kind="transfer", settings={"num_steps": 200, "batch_size": 4}),
        Stage(
            kind="logits",
            settings={"num_steps": 100, "batch_size": 4, "learning_rate": 1e-3, "memory_learning_rate": 1e-2},
        ),
    ),
}
"""Recipes by name: "logits" for any adapter, "memory" for a memory in attention space."""


def read_recipe(name: str) -> tuple[Stage, ...]:
    """The stages of a recipe.

    Args:
        name: a key of `RECIPES`, or a TOML file.

    Raises:
        ValueError: if there is no such recipe or file, or if the file is none.
    """
    if name in RECIPES:
        return RECIPES[name]
    file = Path(name)
    if not file.is_file():
        raise ValueError(
            f"recipe={name!r} is neither a recipe ({', '.join(RECIPES)}) nor a TOML file; give one of these"
        )
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no TOML file: {error}") from error
    found = content.get("stage")
    tables = isinstance(found, list) and bool(found) and all(isinstance(one, dict) for one in found)
    if set(content) != {"stage"} or not tables:
        raise ValueError(f"{file} must hold tables [[stage]] and nothing else, got {sorted(content) or 'nothing'}")
    assert isinstance(found, list)
    stages = []
    for number, table in enumerate(found, start=1):
        settings = dict(table)
        try:
            stages.append(Stage(kind=str(settings.pop("kind", None)), settings=settings))
        except ValueError as error:
            raise ValueError(f"{file}, stage {number}: {error}") from error
    return tuple(stages)
