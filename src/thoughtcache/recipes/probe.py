"""`thoughtcache probe`: what do the states of a saved adapter carry, on a text of the user's?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.adapter.support import DTYPES
from thoughtcache.cache.eviction import OptionValue
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.load_adapter import load_adapted
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.report.files import writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide
from thoughtcache.studies.state_use import OWN, StateUse, probe_state_use


@dataclass(frozen=True, kw_only=True)
class ProbeRun:
    """Settings of a probe. Each field is an option of `thoughtcache probe`.

    Attributes:
        model: transformers folder or hub id.
        adapter: folder of a saved adapter.
        text: file with running text, which is cut into pieces.
        output_dir: folder for probe.json and probe.png.
        dtype: dtype of the base model.
        prompt_tokens: first tokens of a piece, which stay in the cache.
        length: thought tokens of a piece; those after the first eviction count.
        pieces: most pieces.
        batch_size: pieces that are scored at once.
        eviction: another eviction policy than the adapter's.
        eviction_options: settings of that policy.
        seed: seed of eviction policies that draw.
        overwrite: replace the results of an earlier probe.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    model: str
    adapter: str
    text: str
    output_dir: str = "runs/probe"
    dtype: str = "float32"
    prompt_tokens: int = 16
    length: int = 256
    pieces: int = 32
    batch_size: int = 8
    eviction: str | None = None
    eviction_options: Mapping[str, OptionValue] | None = None
    seed: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        at_least_one(self, "prompt_tokens", "length", "pieces", "batch_size")


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
    text = Path(run.text).read_text(encoding="utf-8")
    model, tokenizer = load_adapted(
        run.model, run.adapter, run.dtype, eviction=run.eviction, eviction_options=run.eviction_options
    )
    tuner = find_tuner(model)
    cache = tuner.thought_config.resolve_window(None)
    # The base beside it has its full cache, whose positions do not roll.
    check_positions(run.prompt_tokens, run.length, position_reach(tuner.model.config), rolling_window=None)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    texts = pieces_of(ids, run.prompt_tokens, run.length, run.pieces)
    if len(texts) < 3:
        raise ValueError(
            f"{run.text} has {len(ids)} tokens, {len(texts)} pieces of {run.prompt_tokens + run.length}, and three are "
            "the least; give a longer text, or a smaller length"
        )
    numbers, tokens = tuner.state_size()
    console.print(f"state: {numbers:,} numbers per layer, as many as the keys and values of {tokens:.1f} tokens")
    with progress_bar("probing", len(texts), console=console) as advance:
        found = probe_state_use(model, texts, batch_size=run.batch_size, seed=run.seed, progress=advance)
    payload = {
        "environment": environment(),
        "run": asdict(run),
        "window": cache.window,
        "state_numbers": numbers,
        "state_tokens": tokens,
        "states": [asdict(one) for one in found],
    }
    with writing(folder, WRITING_REMEDY):
        write_results(folder / "probe.json", payload)
        plot_curves(folder / "probe.png", [_panel(found)])
    _print(found, console)
    console.print(f"results: {folder / 'probe.json'}\npicture: {folder / 'probe.png'}", soft_wrap=True)
    return payload


def pieces_of(ids: list[int], prompt_tokens: int, length: int, most: int) -> list[tuple[list[int], list[int]]]:
    """Whole pieces of a text, one after the other: pairs of a prompt and thoughts."""
    size = prompt_tokens + length
    starts = range(0, len(ids) - size + 1, size)[:most]
    return [(ids[start : start + prompt_tokens], ids[start + prompt_tokens : start + size]) for start in starts]


def _panel(found: list[StateUse]) -> Panel:
    series = {
        one.states: ([float(index + 1) for index in range(len(one.by_evictions))], one.by_evictions) for one in found
    }
    return Panel(title="loss", x_label="evictions so far", y_label="cross-entropy (nats per token)", series=series)


def _print(found: list[StateUse], console: Console) -> None:
    table = Table(title=f"nats per token after the first eviction, {found[0].texts} texts")
    for name in ("states", "nats", "more than its own (95 % interval)"):
        table.add_column(name, justify="left" if name == "states" else "right")
    for one in found:
        more = "" if one.states == OWN else f"{one.difference:+.4f} ({one.low:+.4f} to {one.high:+.4f})"
        table.add_row(one.states, f"{one.nats:.4f}", more)
    print_wide(table, console)
