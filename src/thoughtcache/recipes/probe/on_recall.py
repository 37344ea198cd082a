"""Probes that tell codes and ask for them: by age, and in other families than the one that was taught."""

from __future__ import annotations

import math
from dataclasses import asdict

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.probe.subject import Finding, Progress, Subject, table_of, with_interval
from thoughtcache.report.plots import Panel, Series
from thoughtcache.studies.ages import probe_ages
from thoughtcache.studies.arms import Arm, arms_beside
from thoughtcache.studies.capacity import lengths_up_to, probe_capacity
from thoughtcache.studies.families import families, probe_families
from thoughtcache.studies.passcode import Recall
from thoughtcache.tasks.recall.passcode import PasscodeTask

CODES = "whole codes (%)"


def find_ages(subject: Subject, progress: Progress) -> Finding:
    """Accuracy by the age of what is needed, for several amounts of text before it."""
    run = subject.run
    found = probe_ages(
        subject.model,
        subject.tokenizer,
        ages=run.distances,
        before=run.before,
        num_codes=run.codes,
        code_length=run.code_length,
        kind=run.kind,
        batch_size=run.batch_size,
        seed=run.seed,
        own_sentences=subject.sentences,
        progress=progress,
    )
    rows = [
        [
            str(one.recall.num_evictions),
            f"{one.num_tokens:.0f}",
            str(one.num_before),
            f"{one.num_evictions:.0f}",
            _share(one.recall),
            f"{one.recall.nats:.2f}",
        ]
        for one in sorted(found, key=lambda one: (one.recall.num_evictions, one.num_before))
    ]
    columns = ["age (evictions)", "age (tokens)", "told after", "evictions in all", "right", "nats per token"]
    series: dict[str, Series] = {}
    for one in found:
        x, y = series.setdefault(f"after {one.num_before} evictions' text", ([], []))
        x.append(one.num_tokens)
        y.append(100 * one.recall.right_codes / one.recall.codes)
    x_label = "tokens since the code was told"
    return Finding(
        payload=[asdict(one) for one in found],
        tables=[table_of("whole codes by age (95 % interval); told after so many evictions' text", columns, rows)],
        panels=[
            Panel(
                title="by age; told after so much text", x_label=x_label, y_label=CODES, series=series, from_zero=True
            )
        ],
    )


def find_families(subject: Subject, progress: Progress) -> Finding:
    """What an adapter remembers in families of episodes that it was not taught."""
    run = subject.run
    found = probe_families(
        subject.model,
        subject.tokenizer,
        distances=run.distances,
        num_codes=run.codes,
        code_length=run.code_length,
        kind=run.kind,
        batch_size=run.batch_size,
        seed=run.seed,
        own_sentences=subject.sentences,
        progress=progress,
    )
    rows = [
        [one.family]
        + (["not known to the tokenizer"] if one.recall is None else [_share(recall) for recall in one.recall])
        for one in found
    ]
    series: dict[str, Series] = {
        one.family: (
            [float(recall.num_evictions) for recall in one.recall],
            [100 * recall.right_codes / recall.codes for recall in one.recall],
        )
        for one in found
        if one.recall is not None
    }
    columns = ["family", *(str(distance) for distance in run.distances)]
    title = "whole codes that are remembered (95 % interval), by evictions since they were told"
    x_label = "evictions since the code was told"
    return Finding(
        payload=[asdict(one) for one in found],
        tables=[table_of(title, columns, rows)],
        panels=[Panel(title="families", x_label=x_label, y_label=CODES, series=series, from_zero=True)],
    )


def find_capacity(subject: Subject, progress: Progress) -> Finding:
    """Facts that are remembered by how many were told, beside caches without a memory."""
    run = subject.run
    counted = find_tuner(subject.model).thought_config.resolve_window(None)
    found = {}
    for arm in _arms(subject):
        with arm.active(subject.model):
            found[arm.name] = probe_capacity(
                subject.model,
                subject.tokenizer,
                distances=run.distances,
                num_codes=run.codes,
                code_length=run.code_length,
                kind=run.kind,
                batch_size=run.batch_size,
                seed=run.seed,
                cache=counted,
                own_sentences=subject.sentences,
                progress=progress,
            )
    count = len(run.distances)
    curves = [(name, values[index::count]) for name, values in found.items() for index in range(count)]
    rows = [
        [name, str(own[0].num_evictions), *(f"{one.remembered:.1f} ({one.low:.1f}-{one.high:.1f})" for one in own)]
        for name, own in curves
    ]
    columns = ["cache", "evictions", *(f"of {length}" for length in lengths_up_to(run.code_length))]
    series: dict[str, Series] = {
        f"{name}, {own[0].num_evictions}" if count > 1 else name: (
            [float(one.num_facts) for one in own],
            [one.remembered for one in own],
        )
        for name, own in curves
    }
    panel = Panel(
        title="facts at once", x_label="facts that were told", y_label="facts that are remembered", series=series,
        from_zero=True,
    )  # fmt: skip
    return Finding(
        payload={name: [asdict(one) for one in values] for name, values in found.items()},
        tables=[table_of("facts that are remembered, mean (95 % interval over codes)", columns, rows)],
        panels=[panel],
    )


def _arms(subject: Subject) -> list[Arm]:
    """The adapter, and what has no memory: full cache, window, and windows with its numbers as slots."""
    tuner = find_tuner(subject.model)
    extra = math.ceil(tuner.state_size()[1])
    beside = arms_beside(tuner.thought_config, extra_slots=extra, policies=subject.run.policies)
    return [Arm(name="adapter", config=None), *beside]


def codes_of_capacity(subject: Subject) -> int:
    """Codes that `find_capacity` asks for."""
    run = subject.run
    return run.codes * len(run.distances) * len(lengths_up_to(run.code_length)) * len(_arms(subject))


def codes_of_ages(subject: Subject) -> int:
    """Codes that `find_ages` asks for."""
    return subject.run.codes * len(subject.run.distances) * len(subject.run.before)


def codes_of_families(subject: Subject) -> int:
    """Codes that `find_families` asks for."""
    run = subject.run
    return run.codes * len(run.distances) * len(families(code_length=run.code_length, kind=run.kind))


def check_lengths(subject: Subject) -> None:
    """Refuse distances whose texts are longer than the model's positions before anything is measured.

    Raises:
        ValueError: if there is one, if there is no window, or if the tokenizer does not know what was taught.
    """
    run, tuner = subject.run, find_tuner(subject.model)
    cache, reach = tuner.thought_config.resolve_window(None), position_reach(tuner.model.config)
    rolling = None if "capacity" in run.what else cache.rolling_window  # the full cache beside it counts all positions
    most_before = max(run.before) if "ages" in run.what else 0
    length = run.code_length * (2 if "families" in run.what else 1)
    for code_length in sorted({run.code_length, length}):
        task = PasscodeTask(
            tokenizer=subject.tokenizer,
            cache=cache,
            length=code_length,
            kind=run.kind,
            is_test=True,
            own_sentences=subject.sentences,
        )
        if code_length > run.code_length and not task.is_possible:
            continue
        text = task.episode("longest", max(run.distances), most_before * (cache.num_evicted or 0))
        try:
            check_positions(len(text.prompt_ids), len(text.token_ids), reach, rolling_window=rolling)
        except ValueError as error:
            raise ValueError(
                f"distances={max(run.distances)} evictions after before={most_before} under window={cache.window} take "
                f"texts of {len(text.token_ids)} tokens: {error}; choose shorter ones"
            ) from error


def _share(recall: Recall) -> str:
    return with_interval(recall.right_codes / recall.codes, recall.low, recall.high)
