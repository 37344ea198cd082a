"""Runs probes on a saved adapter: tables, one JSON file, and a picture per probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.load_adapter import load_adapted
from thoughtcache.recipes.probe.on_attention import find_attention_share, find_sinks
from thoughtcache.recipes.probe.on_recall import (
    check_lengths,
    codes_of_ages,
    codes_of_capacity,
    codes_of_families,
    find_ages,
    find_capacity,
    find_families,
)
from thoughtcache.recipes.probe.on_states import find_anatomy, find_state_use
from thoughtcache.recipes.probe.subject import ON_RECALL, ON_TEXTS, Finding, ProbeRun, Progress, Subject
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.recipes.texts import pieces_of
from thoughtcache.report.files import writing
from thoughtcache.report.plots import plot_curves
from thoughtcache.report.progress import loading, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide
from thoughtcache.studies.passes import check_memory, texts_under
from thoughtcache.tasks.recall.filler import sentences_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """One probe as the command runs it.

    Attributes:
        find: measures.
        count: what its progress counts up to.
        key: its name in probe.json.
        picture: its picture.
    """

    find: Callable[[Subject, Progress], Finding]
    count: Callable[[Subject], int]
    key: str
    picture: str


def _texts(subject: Subject) -> int:
    return len(subject.texts)


PROBES: dict[str, Probe] = {
    "state-use": Probe(find=find_state_use, count=_texts, key="states", picture="probe.png"),
    "anatomy": Probe(find=find_anatomy, count=_texts, key="anatomy", picture="anatomy.png"),
    "attention-share": Probe(
        find=find_attention_share, count=_texts, key="attention_share", picture="attention-share.png"
    ),
    "sinks": Probe(find=find_sinks, count=_texts, key="sinks", picture="sinks.png"),
    "ages": Probe(find=find_ages, count=codes_of_ages, key="ages", picture="ages.png"),
    "families": Probe(find=find_families, count=codes_of_families, key="families", picture="families.png"),
    "capacity": Probe(find=find_capacity, count=codes_of_capacity, key="capacity", picture="capacity.png"),
}
"""By the name that `what` has for it."""


def run_probe(run: ProbeRun, console: Console | None = None) -> dict[str, Any]:
    """Measure; returns what is written to probe.json.

    Args:
        run: the settings.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    console, folder = console or Console(), Path(run.output_dir)
    if (folder / "probe.json").exists() and not run.overwrite:
        raise ValueError(f"{folder} already holds a probe; choose another --output-dir, or add --overwrite")
    with loading(run.model, console):
        subject = _subject(run)
    tuner = find_tuner(subject.model)
    cache, (numbers, tokens) = tuner.thought_config.resolve_window(None), tuner.state_size()
    console.print(f"state: {numbers:,} numbers per layer, as many as the keys and values of {tokens:.1f} tokens")
    payload: dict[str, Any] = {
        "environment": environment(),
        "run": asdict(run),
        "window": cache.window,
        "state_numbers": numbers,
        "state_tokens": tokens,
        "seconds": {},
    }
    for name in run.what:
        probe = PROBES[name]
        with progress_bar(name, probe.count(subject), console=console) as advance:
            begun = monotonic()
            found = probe.find(subject, advance)
        payload[probe.key] = found.payload
        payload["seconds"][name] = monotonic() - begun
        with writing(folder, WRITING_REMEDY):
            plot_curves(folder / probe.picture, found.panels)
        for table in found.tables:
            print_wide(table, console)
        for line in found.lines:
            console.print(line, markup=False, soft_wrap=True)
        console.print(f"picture: {folder / probe.picture}", soft_wrap=True)
    with writing(folder, WRITING_REMEDY):
        write_results(folder / "probe.json", payload)
    console.print(f"results: {folder / 'probe.json'}", soft_wrap=True)
    return payload


def _subject(run: ProbeRun) -> Subject:
    """The adapter and the texts, checked."""
    text = "" if run.text is None else Path(run.text).read_text(encoding="utf-8")
    on_recall = [name for name in run.what if name in ON_RECALL]
    sentences = sentences_of(run.text) if on_recall and run.text is not None else []
    model, tokenizer = load_adapted(
        run.model,
        run.adapter,
        run.dtype,
        eviction=run.eviction,
        eviction_options=run.eviction_options,
        cache={"eviction_budgets": run.eviction_budgets},
    )
    texts: list[tuple[list[int], list[int]]] = []
    if any(name in ON_TEXTS for name in run.what):
        # The base beside it has its full cache, whose positions do not roll.
        reach = position_reach(find_tuner(model).model.config)
        check_positions(run.prompt_tokens, run.length, reach, rolling_window=None)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        texts = pieces_of(ids, run.prompt_tokens, run.length, run.pieces)
        if len(texts) < 3:
            raise ValueError(
                f"{run.text} has {len(ids)} tokens, {len(texts)} pieces of {run.prompt_tokens + run.length}, and three "
                "are the least; give a longer text, or a smaller length"
            )
        texts_under(texts, find_tuner(model).thought_config.resolve_window(None))
        if set(run.what) & {"state-use", "anatomy", "attention-share"}:
            check_memory(model)
    subject = Subject(run=run, model=model, tokenizer=tokenizer, texts=texts, sentences=sentences)
    if on_recall:
        check_lengths(subject)
    return subject
