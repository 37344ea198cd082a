"""The adapter from which GRPO starts: partly distilled, so that there is something to improve and something to reward.

Accuracy jumps within a few steps of distillation, and where it stands at an evaluation differs between processors. The
weights between the last evaluation below the target and the first one above are interpolated until the accuracy lies
between two bounds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor

from thoughtcache.recipes.builders import save_adapter

LOWEST_PERCENT, HIGHEST_PERCENT = 45.0, 65.0
"""Validation accuracy of the start."""
HALVINGS = 7
Weights = dict[str, Tensor]


class PartialStart:
    """Watches a distillation and saves the start once.

    Args:
        folder: where the start is saved.
        accuracy: validation accuracy of a model, in percent.
    """

    def __init__(self, folder: Path, accuracy: Callable[[PeftModel], float]) -> None:
        self.folder = folder
        self.accuracy = accuracy
        self._below: Weights | None = None

    def note(self, model: PeftModel, percent: float) -> None:
        """Told of every evaluation; the model leaves with the weights with which it came."""
        if self.folder.exists():
            return
        weights = _weights(model)
        if percent < LOWEST_PERCENT:
            self._below = weights
            return
        if percent > HIGHEST_PERCENT and self._below is not None:
            self._search(model, self._below, weights)
        save_adapter(model, self.folder)
        _put(model, weights)

    def _search(self, model: PeftModel, below: Weights, above: Weights) -> None:
        """Halve the way between two sets of weights until the accuracy is between the bounds."""
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            share = (low + high) / 2
            _put(model, {name: torch.lerp(value, above[name], share) for name, value in below.items()})
            percent = self.accuracy(model)
            if percent < LOWEST_PERCENT:
                low = share
            elif percent > HIGHEST_PERCENT:
                high = share
            else:
                return


def _weights(model: PeftModel) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _put(model: PeftModel, weights: Weights) -> None:
    for name, parameter in model.named_parameters():
        if name in weights:
            parameter.copy_(weights[name])
