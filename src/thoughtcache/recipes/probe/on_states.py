"""Probes of the states: what they carry, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from thoughtcache.recipes.probe.subject import Finding, Progress, Subject, percent, table_of
from thoughtcache.report.plots import Panel, Series
from thoughtcache.studies.anatomy import Anatomy, StateAnatomy, probe_anatomy
from thoughtcache.studies.state_use import OWN, probe_state_use

MOST_WRITTEN = 8
"""Thoughts that are printed."""


def find_state_use(subject: Subject, progress: Progress) -> Finding:
    """The loss with the adapter's own states, with none, with another text's, and of the base."""
    run = subject.run
    found = probe_state_use(subject.model, subject.texts, batch_size=run.batch_size, seed=run.seed, progress=progress)
    rows = []
    for one in found:
        more = "" if one.states == OWN else f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        rows.append([one.states, f"{one.nats:.4f}", more])
    title = f"nats per token after the first eviction, {found[0].texts} texts"
    series = {
        one.states: ([float(index + 1) for index in range(len(one.by_evictions))], one.by_evictions) for one in found
    }
    y_label = "cross-entropy (nats per token)"
    return Finding(
        payload=[asdict(one) for one in found],
        tables=[table_of(title, ["states", "nats", "more than its own (95 % interval)"], rows)],
        panels=[Panel(title="loss", x_label="evictions so far", y_label=y_label, series=series)],
    )


def find_anatomy(subject: Subject, progress: Progress) -> Finding:
    """Norms, effective ranks and drifts of the states, and which evicted tokens they were written by."""
    run = subject.run
    found = probe_anatomy(subject.model, subject.texts, batch_size=run.batch_size, seed=run.seed, progress=progress)
    by_layer: dict[tuple[str, int], list[StateAnatomy]] = {}
    for one in found.states:
        by_layer.setdefault((one.memory, one.layer), []).append(one)
    rows = [
        [
            memory,
            str(layer),
            *(f"{_mean([getattr(one, name)[-1] for one in heads]):.3g}" for name in _FIGURES),
            percent(_mean([one.half for one in heads])),
        ]
        for (memory, layer), heads in by_layer.items()
    ]
    columns = ["memory", "layer", "norm", "effective rank", "drift", "tokens that wrote half"]
    title = f"states after the last of {len(found.states[0].norms)} evictions, mean of {len(subject.texts)} texts"
    return Finding(
        payload=asdict(found),
        tables=[table_of(title, columns, rows, left=2)],
        panels=[*(_by_eviction(name, label, by_layer) for name, label in _FIGURES.items()), _halves(by_layer)],
        lines=[_most_written(subject, found, memory) for memory in found.written],
    )


_FIGURES = {"norms": "norm", "ranks": "effective rank", "drifts": "drift"}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _by_eviction(name: str, label: str, by_layer: dict[tuple[str, int], list[StateAnatomy]]) -> Panel:
    """The mean over heads of the first layer, the one in the middle, and the last one, after every eviction."""
    last = max(layer for _, layer in by_layer)
    series: dict[str, Series] = {}
    for (memory, layer), heads in by_layer.items():
        if layer in (0, last // 2, last):
            curves = [getattr(one, name) for one in heads]
            y = [_mean(values) for values in zip(*curves, strict=True)]
            series[f"{memory}, layer {layer}"] = ([float(index + 1) for index in range(len(y))], y)
    return Panel(title=label, x_label="evictions so far", y_label=label, series=series, from_zero=True)


def _halves(by_layer: dict[tuple[str, int], list[StateAnatomy]]) -> Panel:
    series: dict[str, Series] = {}
    for (memory, layer), heads in by_layer.items():
        x, y = series.setdefault(memory, ([], []))
        x.append(float(layer))
        y.append(100 * _mean([one.half for one in heads]))
    label = "evicted tokens that wrote half (%)"
    return Panel(title="who wrote", x_label="layer", y_label=label, series=series, from_zero=True)


def _most_written(subject: Subject, found: Anatomy, memory: str) -> str:
    """The thoughts of all texts that were written most, beside their neighbours."""
    ranked = sorted(
        (
            (share * sum(1 for other in shares if other > 0), text, thought)
            for text, shares in enumerate(found.written[memory])
            for thought, share in enumerate(shares)
        ),
        reverse=True,
    )[:MOST_WRITTEN]
    lines = [f"memory {memory!r}, thoughts that were written most, and how much more than the mean of those that left:"]
    for times, text, thought in ranked:
        ids = subject.texts[text][1]
        around = [subject.tokenizer.decode(ids[max(0, thought - 4) : thought]), subject.tokenizer.decode(ids[thought])]
        after = subject.tokenizer.decode(ids[thought + 1 : thought + 4])
        lines.append(f"  {times:5.1f} x  text {text}: {around[0]!r} >{around[1]!r}< {after!r}")
    return "\n".join(lines)
