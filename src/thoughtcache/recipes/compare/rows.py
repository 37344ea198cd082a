"""The rows of a comparison: means, intervals over texts, and differences to "sliding" on the same texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from thoughtcache.evaluation.intervals import mean_interval
from thoughtcache.studies.attention_share import missing_share

Mean = tuple[float, float, float]
"""A mean, and the ends of its 95 % interval over texts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One policy under one window.

    Attributes:
        window: thoughts whose loss is the measure.
        slots: thoughts that the policy keeps.
        policy: its name.
        texts: number of texts.
        kl: KL to the full cache after the first eviction from the window, nats per token.
        minus_sliding: the same minus that of "sliding", text by text.
        share: the share of the attention output lost by the window that comes back, mean over layers.
        layers: the share of every layer.
        lost: what the window loses of every layer's attention output.
        speed: tokens per second on the wall, median.
        evicting: share of processor time inside evictions, median: choice, move of what stays, and record.
        slower: processor time over that of "sliding" in the pass before, median; None without such passes.
        peak_mib: peak of memory of the sampler with a batch of texts, over what was in use before, median; None
            where it cannot be measured, and in phases of versions that did not measure it.
        kept_bytes: logged queries and running scores per sequence.
    """

    window: int
    slots: int
    policy: str
    texts: int
    kl: Mean
    minus_sliding: Mean
    share: Mean
    layers: list[float]
    lost: list[float]
    speed: float
    evicting: float
    slower: float | None
    peak_mib: float | None
    kept_bytes: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean and its interval."""
    low, high = mean_interval(values)
    return sum(values) / len(values), low, high


def row_of(
    policy: str, window: int, slots: int, lost: Mapping[str, Any], own: Mapping[str, Any], sliding: Mapping[str, Any]
) -> Row:
    """The row of what was measured.

    Args:
        policy: its name.
        window: thoughts whose loss is the measure.
        slots: thoughts that the policy keeps.
        lost: what `Measurement.lost` returned.
        own: what `Measurement.policy` returned.
        sliding: the same for "sliding" with as many slots.
    """
    by_layer = [
        missing_share(window_errors, errors)
        for window_errors, errors in zip(_columns(lost["error"]), _columns(own["error"]), strict=True)
    ]
    layers = [1 - missing for missing, _ in by_layer]
    # The mean over layers of what each text adds to each layer's ratio, as the ratio of one layer has it.
    by_text = zip(*(parts for _, parts in by_layer), strict=True)
    low, high = mean_interval([-sum(parts) / len(parts) for parts in by_text])
    share = sum(layers) / len(layers)
    return Row(
        window=window,
        slots=slots,
        policy=policy,
        texts=len(own["by_text"]),
        kl=mean_of(own["by_text"]),
        minus_sliding=mean_of([a - b for a, b in zip(own["by_text"], sliding["by_text"], strict=True)]),
        share=(share, share + low, share + high),
        layers=layers,
        lost=[sum(a) / sum(b) for a, b in zip(_columns(lost["error"]), _columns(lost["full"]), strict=True)],
        speed=median(cost["tokens"] / cost["wall_seconds"] for cost in own["costs"]),
        evicting=median(cost["eviction_seconds"] / cost["cpu_seconds"] for cost in own["costs"]),
        slower=_slower(own["costs"], own["of_sliding"]),
        peak_mib=_peak(own["costs"]),
        kept_bytes=own["bytes"],
    )


def _columns(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    return list(zip(*rows, strict=True))


def _peak(costs: Sequence[Mapping[str, Any]]) -> float | None:
    peaks = [peak for cost in costs if (peak := cost.get("peak_mib")) is not None]
    return float(median(peaks)) if len(peaks) == len(costs) else None


def _slower(own: Sequence[Mapping[str, Any]], sliding: Sequence[Mapping[str, Any]]) -> float | None:
    if not sliding:
        return None
    ratios = [mine["cpu_seconds"] / before["cpu_seconds"] for mine, before in zip(own, sliding, strict=True)]
    return float(median(ratios))
