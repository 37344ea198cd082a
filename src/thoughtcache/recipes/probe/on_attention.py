"""Probes of attention: what a memory gives back of its output, and where it goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from thoughtcache.recipes.probe.subject import Finding, Progress, Subject, percent, table_of, with_interval
from thoughtcache.report.plots import Panel, Series
from thoughtcache.studies.attention_share import AttentionShare, probe_attention_share
from thoughtcache.studies.sinks import FULL, HeadMass, probe_sinks

MOST_FLAGGED = 8
"""Heads that are printed."""
LOWEST_DRAWN = -100.0
"""What makes a layer worse by more than the window's own loss is drawn here, in percent."""


def find_attention_share(subject: Subject, progress: Progress) -> Finding:
    """The share of the attention output that the window loses which comes back, by layer."""
    run = subject.run
    found = probe_attention_share(
        subject.model,
        subject.texts,
        policies=run.policies,
        batch_size=run.batch_size,
        seed=run.seed,
        progress=progress,
    )
    by_cache: dict[str, list[AttentionShare]] = {}
    for one in found:
        by_cache.setdefault(one.cache, []).append(one)
    first = next(iter(by_cache.values()))
    rows = [
        [str(own.layer), percent(own.lost)]
        + [with_interval(one.share, one.low, one.high) for one in (layers[index] for layers in by_cache.values())]
        for index, own in enumerate(first)
    ]
    rows.append(["mean", "", *(percent(_mean([one.share for one in layers])) for layers in by_cache.values())])
    title = f"attention output that comes back (95 % interval), {first[0].texts} texts"
    shares: dict[str, Series] = {
        name: ([float(one.layer) for one in layers], [max(LOWEST_DRAWN, 100 * one.share) for one in layers])
        for name, layers in by_cache.items()
    }
    lost: Series = [float(one.layer) for one in first], [100 * one.lost for one in first]
    return Finding(
        payload=[asdict(one) for one in found],
        tables=[table_of(title, ["layer", "lost by the window", *by_cache], rows)],
        panels=[
            Panel(
                title="given back (-100: or less)",
                x_label="layer",
                y_label="lost attention output given back (%)",
                series=shares,
            ),
            Panel(
                title="lost by the window",
                x_label="layer",
                y_label="lost attention output (% of its square)",
                series={"window": lost},
                from_zero=True,
            ),
        ],
    )


def find_sinks(subject: Subject, progress: Progress) -> Finding:
    """The attention on the first tokens, on the rest of the prompt, and on the memory, by layer and head."""
    run = subject.run
    found = probe_sinks(
        subject.model,
        subject.texts,
        num_first=run.first_tokens,
        tolerance=run.tolerance,
        batch_size=run.batch_size,
        seed=run.seed,
        progress=progress,
    )
    caches = list(dict.fromkeys(one.cache for one in found))
    layers = sorted({one.layer for one in found})

    def of(cache: str, layer: int) -> list[HeadMass]:
        return [one for one in found if one.cache == cache and one.layer == layer]

    def curve(name: str, cache: str) -> Series:
        return [float(layer) for layer in layers], [
            100 * _mean([getattr(one, name) for one in of(cache, layer)]) for layer in layers
        ]

    rows = [
        [
            str(layer),
            *(percent(_mean([one.first for one in of(cache, layer)])) for cache in caches),
            percent(_mean([one.memory for one in of(caches[-1], layer)])),
            *(str(sum(one.is_flagged for one in of(cache, layer))) for cache in caches[1:]),
        ]
        for layer in layers
    ]
    columns = ["layer", *caches, f"memory ({caches[-1]})", *(f"flagged: {cache}" for cache in caches[1:])]
    heads = len(of(FULL, 0))
    title = (
        f"attention on the first {run.first_tokens} tokens, mean of {heads} heads and {len(subject.texts)} texts; "
        f"flagged: heads that moved by more than {run.tolerance:g}"
    )
    flagged = sorted((one for one in found if one.is_flagged), key=lambda one: -abs(one.moved))
    lost, count = sum(one.moved < 0 for one in flagged), heads * len(layers) * (len(caches) - 1)
    lines = [f"{len(flagged)} of {count} heads moved by more than {run.tolerance:g}, {lost} of them down"]
    lines += [f"  {one.moved:+.2f}  layer {one.layer}, head {one.head}: {one.cache}" for one in flagged[:MOST_FLAGGED]]
    series = {cache: curve("first", cache) for cache in caches}
    others = {f"question, {cache}": curve("question", cache) for cache in caches}
    others["memory"] = curve("memory", caches[-1])
    return Finding(
        payload=[asdict(one) for one in found],
        tables=[table_of(title, columns, rows)],
        panels=[
            Panel(title="first tokens", x_label="layer", y_label="attention (%)", series=series, from_zero=True),
            Panel(title="question and memory", x_label="layer", y_label="attention (%)", series=others, from_zero=True),
        ],
        lines=["\n".join(lines)],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
