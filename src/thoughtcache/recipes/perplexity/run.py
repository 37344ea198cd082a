"""The run of `thoughtcache perplexity`: a table, JSON and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from thoughtcache.adapter.positions import check_positions
from thoughtcache.policy.handle import open_policy
from thoughtcache.policy.token_ids import check_prompts
from thoughtcache.recipes.bounded import cache_text
from thoughtcache.recipes.perplexity.config import PerplexityRun
from thoughtcache.recipes.run.folder import WRITING_REMEDY
from thoughtcache.recipes.texts import Text, encoded_file, pieces_of, read_tokens
from thoughtcache.report.files import replace_file, writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import loading, plain_line, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import markdown, print_cells
from thoughtcache.sampler.given import each_with_own_evictions, given_text
from thoughtcache.studies.held_out import HeldOut
from thoughtcache.studies.loss_by_place import GroupLoss, all_tokens, by_age, by_position, pair_ages

PIECE_TOKENS = 512
RESULTS = "perplexity.json"
HEADER = ("tokens", "number", "texts", "perplexity", "full cache", "loss - full (nats)", "KL to full (nats)")


def run_perplexity(run: PerplexityRun, console: Console | None = None) -> dict[str, Any]:
    """Measure; returns what is written to perplexity.json.

    Args:
        run: the settings.
        console: where progress and tables go.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    console, folder = console or Console(), Path(run.output_dir)
    if (folder / RESULTS).exists() and not run.overwrite:
        raise ValueError(f"{folder} already holds a result; choose another --output-dir, or add --overwrite")
    with loading(run.bounded.model, console):
        model, tokenizer, config = run.bounded.load()
    texts = _texts(run, tokenizer)
    policy = open_policy(model)
    check_prompts([ids for text in texts for ids in text], policy)
    longest = max(len(prompt) for prompt, _ in texts)
    for prompt, thoughts in texts:
        # The full cache beside it does not roll.
        check_positions(len(prompt), len(thoughts), policy.reach, rolling_window=None)
    cache = config.resolve_window(longest, run.window)
    rows = [given_text(*text, cache, seed=run.seed + number) for number, text in enumerate(texts)]
    with progress_bar("texts", len(rows), console=console) as advance:
        evicted = each_with_own_evictions(model, rows, batch_size=run.batch_size)
        losses = HeldOut(model, rows).losses(model, evicted, advance)
    ages = [pair_ages(*text) for text in texts]
    whole, places, aged = all_tokens(losses), by_position(losses, cache), by_age(losses, ages, cache)
    payload: dict[str, Any] = {
        "environment": environment(),
        "run": asdict(run),
        "cache": asdict(cache),
        "texts": len(texts),
        "all": as_json(whole),
        "by_position": [as_json(group) for group in places],
        "by_age": [as_json(group) for group in aged],
    }
    tables = [
        ("all thoughts, and by their number", [whole, *places]),
        ("by the age of the last equal pair of tokens, after the first eviction", aged),
    ]
    who = f"{run.adapter or run.model}, {cache_text(cache)}"
    for title, groups in tables:
        if groups:
            print_cells(f"{who}: {title}", HEADER, [*map(_cells, groups)], console)
    with writing(folder, WRITING_REMEDY):
        text = "\n".join(markdown(HEADER, [*map(_cells, groups)]) for _, groups in tables if groups)
        paths = [
            replace_file(folder / "perplexity.md", text.encode()),
            plot_curves(folder / "perplexity.png", panels(places, aged)),
            write_results(folder / RESULTS, payload),
        ]
    for path in paths:
        plain_line(console, str(path))
    return payload


def as_json(group: GroupLoss) -> dict[str, Any]:
    """A group with its perplexities."""
    return {**asdict(group), "perplexity": group.perplexity, "full_perplexity": group.full_perplexity}


def panels(places: Sequence[GroupLoss], aged: Sequence[GroupLoss]) -> list[Panel]:
    """Perplexity and divergence by the number of a thought, and divergence by age."""
    middles = [(group.first + group.last) / 2 for group in places]
    of_pairs = [group for group in aged if group.first > 0]
    drawn = [
        Panel(
            title="Perplexity",
            x_label="thoughts before (middle of a group)",
            y_label="perplexity",
            series={
                "this cache": (middles, [group.perplexity for group in places]),
                "full cache of the base": (middles, [group.full_perplexity for group in places]),
            },
        ),
        Panel(
            title="Divergence from the full cache",
            x_label="thoughts before (middle of a group)",
            y_label="KL (nats per token)",
            series={"all": (middles, [group.kl[0] for group in places])},
            from_zero=True,
        ),
    ]
    if of_pairs:
        ages = [(group.first + group.last) / 2 for group in of_pairs]
        drawn.append(
            Panel(
                title="Divergence by age",
                x_label="tokens since the pair was read last (middle of a group)",
                y_label="KL (nats per token)",
                series={"pairs that were read before": (ages, [group.kl[0] for group in of_pairs])},
                from_zero=True,
            )
        )
    return drawn


def _texts(run: PerplexityRun, tokenizer: Any) -> list[Text]:
    """Pairs of a prompt and thoughts."""
    if run.text is not None:
        length = run.length or PIECE_TOKENS
        ids = encoded_file(run.text, tokenizer)
        texts = pieces_of(ids, run.prompt_tokens, length, run.num_texts)
        if not texts:
            raise ValueError(
                f"{run.text} has {len(ids)} tokens, and a piece {run.prompt_tokens + length}; give a longer text, or a "
                "smaller length"
            )
        return texts
    assert run.tokens is not None
    texts = [(prompt, thoughts[: run.length]) for prompt, thoughts in read_tokens(run.tokens)[: run.num_texts]]
    if not texts:
        raise ValueError(f"{run.tokens} has no texts; give at least one line")
    return texts


def _cells(group: GroupLoss) -> list[str]:
    return [
        group.name,
        f"{group.num_tokens:,}",
        str(group.num_texts),
        f"{group.perplexity:.3f}",
        f"{group.full_perplexity:.3f}",
        f"{group.own[0] - group.full[0]:+.4f}",
        f"{group.kl[0]:.4f} ({group.kl[1]:.4f} to {group.kl[2]:.4f})",
    ]
