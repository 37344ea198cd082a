"""The table, the picture and the numbers of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thoughtcache.evaluation.scores import Share, SuiteScores
from thoughtcache.recipes.evaluate.config import EvalRun
from thoughtcache.recipes.evaluate.questions import Asked
from thoughtcache.records import CacheSettings
from thoughtcache.report.files import replace_file
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

HEADER = ("suite", "questions", "samples", "accuracy (95 %)", "pass@k", "maj@k", "pass^k", "cut", "tokens", "evictions")
PASS_AT = 16
"""As in the paper's table; fewer where there are fewer samples."""


def write_report(
    folder: Path,
    run: EvalRun,
    asked: Sequence[Asked],
    scores: Mapping[str, SuiteScores],
    cache: CacheSettings,
    last_call: Mapping[str, int | float],
    console: Console,
) -> dict[str, Any]:
    """Print the table and write table.md, eval.png and results.json.

    Args:
        folder: the run folder.
        run: the settings.
        asked: the suites.
        scores: what each of them has come to.
        cache: the cache that answers were sampled under.
        last_call: answers, tokens and seconds of the call that finished.
        console: where the table goes.
    """
    body = [suite_cells(name, own) for name, own in scores.items()]
    header, rows = without_empty(HEADER, body)
    print_table(f"{run.adapter or run.model or 'the packaged reasoner'}, {cache_text(cache)}", header, rows, console)
    replace_file(folder / "table.md", markdown(header, rows).encode())
    picture = plot_curves(folder / "eval.png", panels(scores))
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
        "last_call": dict(last_call),
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


def percent(share: Share) -> str:
    """Percent and interval: `92.7 % (91.0-94.1)`."""
    return f"{100 * share.value:.1f} % ({100 * share.low:.1f}-{100 * share.high:.1f})"


def cache_text(cache: CacheSettings) -> str:
    """The cache in a few words."""
    return "full cache" if cache.window is None else f"window {cache.window}, {cache.eviction}"


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


def without_empty(header: Sequence[str], body: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """A table without the columns that are empty in every row; "-" for other empty cells."""
    kept = [index for index in range(len(header)) if any(row[index] for row in body)]
    return [header[index] for index in kept], [[row[index] or "-" for index in kept] for row in body]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print a table whose first column is words."""
    table = Table(title=title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    print_wide(table, console)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table in Markdown, ending in a newline."""
    lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)
