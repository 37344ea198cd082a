"""The table, the picture and the numbers of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.evaluation.scores import Share, SuiteScores
from thoughtcache.evaluation.thinking.scores import ThinkScores
from thoughtcache.recipes.bounded import cache_text
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import Asked
from thoughtcache.recipes.evaluate.seconds import write_seconds
from thoughtcache.recipes.evaluate.table import percent, without_empty
from thoughtcache.recipes.evaluate.think import print_think
from thoughtcache.records import CacheSettings
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells

HEADER = ("suite", "questions", "samples", "accuracy (95 %)", "pass@k", "maj@k", "pass^k", "cut", "tokens", "evictions")
PASS_AT = 16
"""As in the paper's table; fewer where there are fewer samples."""


def write_report(
    folder: Path,
    run: EvalRun,
    asked: Sequence[Asked],
    scores: Mapping[str, SuiteScores],
    cache: CacheSettings,
    sampled: Mapping[str, Any],
    console: Console,
    think: Mapping[str, ThinkScores],
    by_length: Mapping[int, Mapping[str, SuiteScores]],
) -> dict[str, Any]:
    """Print the table; write table.md, eval.png, results.json, and where the seconds went: time.md, .png and .json.

    The last three are there only if all answers come from one call: of an earlier one nothing is known.

    Args:
        folder: the run folder.
        run: the settings.
        asked: the suites.
        scores: what each of them has come to.
        cache: the cache that answers were sampled under.
        sampled: the call that finished: "last_call" has its answers, tokens and seconds, "phases" its seconds by phase.
        console: where the table goes.
        think: what choosing among answers has come to; empty without `select`.
        by_length: what answers that are cut at smaller bounds have come to; empty for one bound.
    """
    body = [suite_cells(name, own) for name, own in scores.items()]
    header, rows = without_empty(HEADER, body)
    print_cells(f"{run.adapter or run.model or 'the packaged reasoner'}, {cache_text(cache)}", header, rows, console)
    text = markdown(header, rows)
    if think:
        text += "\n" + markdown(*print_think(dict(think), console))
    replace_file(folder / "table.md", text.encode())
    picture = plot_curves(folder / "eval.png", panels(scores))
    last_call = sampled["last_call"]
    num_answers = sum(own.num_questions * own.num_samples for own in scores.values())
    write_seconds(folder, {cache_text(cache): (sampled, num_answers)})
    payload: dict[str, Any] = {
        "environment": environment(),
        "run": asdict(run),
        "cache": asdict(cache),
        "asked": {
            one.name: {
                "source": one.source,
                "instruction": one.instruction,
                "temperature": one.temperature,
                "max_new_tokens": one.max_new_tokens,
            }
            for one in asked
        },
        "suites": {name: as_json(own) for name, own in scores.items()},
        "last_call": last_call,
        "phases": sampled.get("phases"),
        **(
            {"lengths": {str(n): {name: as_json(s) for name, s in own.items()} for n, own in by_length.items()}}
            if by_length
            else {}
        ),
        **({"think": {name: asdict(own) for name, own in think.items()}} if think else {}),
    }
    results = write_results(folder / "results.json", payload)
    for label, path in (("table", folder / "table.md"), ("picture", picture), ("results", results)):
        console.print(f"{label}: {path}", soft_wrap=True)
    return payload


def suite_cells(name: str, scores: SuiteScores) -> list[str]:
    """One row of the table; "" where a figure needs several samples."""
    k = max((k for k in scores.pass_at if k <= PASS_AT), default=None)

    def at(shares: Mapping[int, Share]) -> str:
        return "" if k is None else f"{k}: {percent(shares[k])}"

    return [
        name,
        str(scores.num_questions),
        str(scores.num_samples),
        percent(scores.accuracy),
        at(scores.pass_at),
        at(scores.majority_at),
        at(scores.all_at),
        f"{100 * scores.truncated:.1f} %",
        f"{scores.tokens['mean']:,.0f}",
        f"{scores.evictions_mean:.1f}" if scores.evictions_mean else "",
    ]


def as_json(scores: SuiteScores) -> dict[str, Any]:
    """The scores with names that are text."""
    plain = asdict(scores)
    for name in ("pass_at", "majority_at", "all_at"):
        plain[name] = {str(k): share for k, share in plain[name].items()}
    return plain


def panels(scores: Mapping[str, SuiteScores]) -> list[Panel]:
    """Accuracy by length; and pass@k and maj@k where there are several samples."""
    drawn = [
        Panel(
            title="Accuracy by length",
            x_label="tokens of an answer (mean of its group)",
            y_label="right answers (%)",
            series={
                name: (
                    [group.mean for group in own.by_length],
                    [100 * group.correct / group.num_answers for group in own.by_length],
                )
                for name, own in scores.items()
            },
            from_zero=True,
        )
    ]
    for title, field in (("One of k is right (pass@k)", "pass_at"), ("The majority of k is right", "majority_at")):
        series = {
            name: ([float(k) for k in getattr(own, field)], [100 * s.value for s in getattr(own, field).values()])
            for name, own in scores.items()
            if own.num_samples > 1
        }
        if series:
            drawn.append(
                Panel(title=title, x_label="samples k", y_label="questions (%)", series=series, from_zero=True)
            )
    return drawn
