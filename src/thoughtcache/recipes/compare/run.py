"""The run of `thoughtcache compare-eviction`: a phase per window and policy, then tables, CSV, JSON and a picture."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.policy.other_cache import changes_nothing
from thoughtcache.recipes.compare.config import CompareRun
from thoughtcache.recipes.compare.measure import SLIDING, Measurement
from thoughtcache.recipes.compare.report import comparison_csv, layers_csv, panels, tables
from thoughtcache.recipes.compare.rows import Row, row_of
from thoughtcache.recipes.compare.texts import read_source, texts_of
from thoughtcache.recipes.load_adapter import adapted_model
from thoughtcache.recipes.load_model import load_tokenizer
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import model_identities
from thoughtcache.report.files import replace_file, writing
from thoughtcache.report.plots import plot_curves
from thoughtcache.report.progress import loading, plain_line, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

NOT_DESCRIBED = {"resume", "overwrite"}


def run_compare(run: CompareRun, console: Console | None = None) -> dict[str, Any]:
    """Measure every policy under every window; returns what is written to results.json.

    Args:
        run: the settings.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    console = console or Console()
    folder = RunFolder(
        run.output_dir,
        {name: value for name, value in asdict(run).items() if name not in NOT_DESCRIBED},
        resume=run.resume,
        overwrite=run.overwrite,
        free=("window", "eviction"),
    )
    config, tokenizer = load_tokenizer(run.model)
    folder.describe(model_identities(config, run.model, None))
    source = read_source(run, tokenizer, report=partial(console.print, markup=False, soft_wrap=True))
    folder.describe({"texts_digest": source.digest})
    # The full cache beside it does not roll.
    check_positions(source.longest_prompt, run.length, position_reach(config), rolling_window=None)
    start = changes_nothing(window=run.window[0], evict_fraction=run.evict_fraction, positions=run.positions)
    with loading(run.model, console):
        model = adapted_model(run.model, start, adapter=None, dtype=run.dtype, seed=run.seed)
    with writing(folder.path, WRITING_REMEDY):
        texts = texts_of(source, run, model, tokenizer, folder, console)
        measurement = Measurement(run, model, texts)
        policies, refused = measurement.usable(run.eviction)
        for policy, reason in refused.items():
            plain_line(console, f"left out: {policy} ({reason})")
        rows = _rows(run, measurement, policies, folder, console)
        payload = {"run": folder.described, "environment": environment(), "left_out": refused, "rows": rows}
        write_results(folder.path / "results.json", payload)
        replace_file(folder.path / "comparison.csv", comparison_csv(rows).encode())
        replace_file(folder.path / "layers.csv", layers_csv(rows).encode())
        plot_curves(folder.path / "comparison.png", panels(rows))
    for table in tables(rows):
        print_wide(table, console)
    for name in ("results.json", "comparison.csv", "layers.csv", "comparison.png"):
        plain_line(console, str(folder.path / name))
    return payload


def _rows(
    run: CompareRun, measurement: Measurement, policies: list[str], folder: RunFolder, console: Console
) -> list[Row]:
    rows = []
    with progress_bar("policies", len(run.window) * len(policies), console=console) as advance:
        for window in run.window:

            def lose(path: Path, resume: bool, window: int = window) -> PhaseResult:
                return measurement.lost(window)

            lost = folder.phase(f"lost-{window}", lose)
            found: dict[str, PhaseResult] = {}
            for policy in policies:

                def work(
                    path: Path, resume: bool, policy: str = policy, window: int = window, lost: PhaseResult = lost
                ) -> PhaseResult:
                    return measurement.policy(policy, window, lost)

                found[policy] = folder.phase(f"window-{window}-{policy}", work)
                slots = window + run.extra_tokens
                rows.append(row_of(policy, window, slots, lost, found[policy], found[SLIDING]))
                advance(1)
    return rows
