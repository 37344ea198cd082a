"""GRPO starts from an adapter of middling accuracy, however far distillation jumped between two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from support.models import tiny_base, tiny_model, trainable
from thoughtcache.recipes.embedded.partial_start import HIGHEST_PERCENT, LOWEST_PERCENT, PartialStart


def moved(model: Any, share: float) -> None:
    """All weights of the adapter are this number."""
    with torch.no_grad():
        for parameter in trainable(model).values():
            parameter.fill_(share)


def accuracy(model: Any) -> float:
    """A steep curve of the weights: 0 below 0.62, 100 above 0.64."""
    share = next(iter(trainable(model).values())).flatten()[0].item()
    return min(100.0, max(0.0, (share - 0.62) / 0.02 * 100))


def saved(folder: Path) -> float:
    again = peft.PeftModel.from_pretrained(tiny_base(), folder, is_trainable=True)
    return accuracy(again)


@pytest.mark.parametrize(("below", "above"), [(0.0, 1.0), (0.6, 0.7), (0.5, 0.95)])
def test_a_jump_is_interpolated(below: float, above: float, tmp_path: Path) -> None:
    model = tiny_model()
    start = PartialStart(tmp_path / "start", accuracy)
    for share in (below / 2, below, above, 1.0):
        moved(model, share)
        before = {name: p.detach().clone() for name, p in trainable(model).items()}
        start.note(model, accuracy(model))
        assert all(torch.equal(p, before[name]) for name, p in trainable(model).items()), "training goes on from here"
    assert LOWEST_PERCENT <= saved(tmp_path / "start") <= HIGHEST_PERCENT


def test_what_lies_between_the_bounds_is_taken_as_it_is(tmp_path: Path) -> None:
    model = tiny_model()
    start = PartialStart(tmp_path / "start", accuracy)
    for share in (0.2, 0.631, 0.7):
        moved(model, share)
        start.note(model, accuracy(model))
    assert saved(tmp_path / "start") == pytest.approx(55.0)


def test_without_an_evaluation_below_the_first_above_is_taken(tmp_path: Path) -> None:
    """As when a run goes on behind it."""
    model = tiny_model()
    moved(model, 0.9)
    PartialStart(tmp_path / "start", accuracy).note(model, 100.0)
    assert saved(tmp_path / "start") == 100.0
