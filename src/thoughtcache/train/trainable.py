"""Trains a part of an adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def train_only(model: nn.Module, chosen: Callable[[str], bool] | None) -> Iterator[None]:
    """Let no other parameter be trained inside the block.

    Args:
        model: the model.
        chosen: (name of a parameter) -> whether it stays trainable; None changes nothing.
    """
    frozen = [
        parameter
        for name, parameter in model.named_parameters()
        if chosen is not None and parameter.requires_grad and not chosen(name)
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
