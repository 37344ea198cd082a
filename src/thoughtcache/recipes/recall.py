"""`thoughtcache recall`: teach an adapter to remember, and measure how far back it does, beside what has no memory.

Phases of a run folder: `teach` (left out with 0 steps) and one measurement per arm, so that an interrupted run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.adapter.support import DTYPES
from thoughtcache.checks import at_least_one, one_of
from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.builders import find_checkpoint, save_adapter
from thoughtcache.recipes.load_adapter import WEIGHTS, adapted_model
from thoughtcache.recipes.load_model import load_tokenizer
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import adapter_settings, default_settings, model_identities
from thoughtcache.recipes.run.training import watched
from thoughtcache.report.files import writing
from thoughtcache.report.plots import Panel, plot_curves
from thoughtcache.report.progress import loading, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide
from thoughtcache.studies.ages import probe_ages
from thoughtcache.studies.arms import Arm, arms_beside
from thoughtcache.studies.passcode import DISTANCES
from thoughtcache.tasks.recall.filler import sentences_of
from thoughtcache.tasks.recall.passcode import PasscodeTask
from thoughtcache.train.checkpoints import load_weights
from thoughtcache.train.recall_config import RecallConfig
from thoughtcache.train.teach_recall import teach_recall

NOT_DESCRIBED = {"resume", "overwrite", "save_every"}
FORGETTING_X = "evictions since the passcode was told"
FORGETTING_Y = "whole passcodes (%)"


@dataclass(frozen=True, kw_only=True)
class RecallRun:
    """Everything of a recall run that is not the adapter. Each field is an option of `thoughtcache recall`.

    Attributes:
        model: transformers folder or hub id.
        adapter: folder of a trained adapter to start from, or to measure with 0 steps.
        output_dir: run folder: checkpoints, adapter, results.json, recall.png.
        dtype: dtype of the base model.
        steps: optimiser steps of teaching, 0 to measure only.
        batch_size: episodes per step.
        learning_rate: peak learning rate.
        memory_learning_rate: the same for what writes and reads the states; None for no other one.
        code_length: words or digits of a passcode; in training, the longest.
        min_code_length: those of the shortest one in training, see `RecallConfig`.
        kind: "words" or "digits".
        max_evictions: longest distance in training, in evictions.
        max_before: most text before a code in training, in evictions that it is enough for; None: as `max_evictions`.
        growth_steps: steps over which the longest distance grows to it.
        trains: "memory" or "adapter", see `RecallConfig`.
        write_cost: nats per written token, or None for the default, see `RecallConfig`.
        text: file whose sentences stand between a code and its question, in training and measurement.
        codes: passcodes per distance.
        distances: evictions between a code and its question, where it is measured.
        before: text before a code, in evictions that it is enough for, where it is measured.
        baselines: measure the base model beside the adapter: full cache, window, and window with as many more slots as
            the adapter's states have numbers, under several eviction policies.
        seed: seed of all random numbers of the run.
        save_every: optimiser steps between checkpoints.
        resume: go on in `output_dir` where the last run stopped.
        overwrite: start anew in an `output_dir` that holds another run.

    Raises:
        ValueError: for a value that is unknown or out of range.
    """

    model: str
    adapter: str | None = None
    output_dir: str = "runs/recall"
    dtype: str = "float32"
    steps: int = 200
    batch_size: int = 8
    learning_rate: float = 2e-2
    memory_learning_rate: float | None = None
    code_length: int = 4
    min_code_length: int | None = None
    kind: str = "words"
    max_evictions: int = 8
    max_before: int | None = None
    growth_steps: int = 0
    trains: str = "memory"
    write_cost: float | None = None
    text: str | None = None
    codes: int = 64
    distances: Sequence[int] = DISTANCES
    before: Sequence[int] = (0, 16)
    baselines: bool = True
    seed: int = 0
    save_every: int = 50
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, DTYPES)
        at_least_one(self, "codes", "save_every")
        if self.steps < 0:
            raise ValueError(f"steps must be at least 0, got {self.steps}")
        if not self.distances or min(self.distances) < 0:
            raise ValueError(f"distances must be numbers of evictions from 0 on, got {list(self.distances)}")
        if not self.before or min(self.before) < 0:
            raise ValueError(f"before must be numbers of evictions from 0 on, got {list(self.before)}")
        self.teaching("", 1)

    def teaching(self, folder: str, num_steps: int, resume: bool | str = False) -> RecallConfig:
        """The settings of the teaching phase."""
        return RecallConfig(
            output_dir=folder,
            num_steps=num_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            memory_learning_rate=self.memory_learning_rate,
            code_length=self.code_length,
            min_code_length=self.min_code_length,
            kind=self.kind,
            min_evictions=1,
            max_evictions=self.max_evictions,
            max_before=self.max_before,
            growth_steps=self.growth_steps,
            trains=self.trains,
            write_cost=self.write_cost,
            seed=self.seed,
            save_every=self.save_every,
            log_every=1,
            resume=resume,
        )


def run_recall(run: RecallRun, thought: ThoughtConfig, console: Console | None = None) -> dict[str, Any]:
    """Teach and measure; returns what is written to results.json.

    Args:
        run: the settings.
        thought: settings of the adapter; they are those of `run.adapter`, if it is given.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then.
    """
    console = console or Console()
    if thought.window_size(None) is None:
        raise ValueError("window=None evicts nothing, so that there is nothing to remember; set a window")
    run.teaching("", 1).check_write_cost(thought.memory)
    described = {name: value for name, value in asdict(run).items() if name not in NOT_DESCRIBED}
    folder = RunFolder(
        run.output_dir,
        {**described, "thought": adapter_settings(thought)},
        resume=run.resume,
        overwrite=run.overwrite,
        growing=("steps",),
        defaults={**default_settings(RecallRun), "thought": adapter_settings(ThoughtConfig())},
    )
    own_sentences = [] if run.text is None else sentences_of(run.text)
    config, tokenizer = load_tokenizer(run.model)
    weights = None if run.adapter is None else Path(run.adapter) / WEIGHTS
    folder.describe(model_identities(config, run.model, weights))
    _check_lengths(run, thought, config, tokenizer, own_sentences)
    with loading(run.model, console):
        model = adapted_model(run.model, thought, adapter=run.adapter, dtype=run.dtype, seed=run.seed)
    console.print(_size(model), markup=False, soft_wrap=True)
    with writing(folder.path, WRITING_REMEDY):
        phases: dict[str, PhaseResult] = {}
        if run.steps:
            phases["teach"] = folder.phase(
                "teach",
                lambda path, resume: _teach(run, model, tokenizer, own_sentences, path, resume, console),
                num_steps=run.steps,
            )
            load_weights(model, folder.path / "teach" / "adapter")
        measured = _measure(run, folder, model, tokenizer, own_sentences, console)
        payload = {"run": folder.described, "environment": environment(), "phases": phases, "recall": measured}
        write_results(folder.path / "results.json", payload)
        plot_curves(folder.path / "recall.png", _panels(phases, measured))
    _print_table(measured, console)
    console.print(f"results: {folder.path / 'results.json'}\npicture: {folder.path / 'recall.png'}", soft_wrap=True)
    return payload


def _check_lengths(
    run: RecallRun,
    thought: ThoughtConfig,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    own_sentences: Sequence[str],
) -> None:
    """Refuse texts that are longer than the model's positions before anything is taught."""
    cache, reach = thought.resolve_window(None, num_layers=config.num_hidden_layers), position_reach(config)
    task = PasscodeTask(
        tokenizer=tokenizer, cache=cache, length=run.code_length, kind=run.kind, own_sentences=own_sentences
    )
    furthest = max(run.distances), max(run.before)
    measured = [("distances", *furthest, cache.rolling_window)]
    if run.baselines:
        measured.append(("distances", *furthest, None))  # the full cache counts all positions
    if run.steps:
        taught = run.teaching("", 1)
        measured.append(("max_evictions", taught.max_evictions, taught.most_before, cache.rolling_window))
    for name, distance, before, rolling in measured:
        text = task.episode("longest", distance, before * (cache.num_evicted or 0))
        try:
            check_positions(len(text.prompt_ids), len(text.token_ids), reach, rolling_window=rolling)
        except ValueError as error:
            raise ValueError(
                f"{name}={distance} evictions behind text for {before} under window={cache.window} take texts of "
                f"{len(text.token_ids)} tokens: {error}; choose shorter distances, less text before codes, or a "
                "smaller window"
            ) from error


def _size(model: PeftModel) -> str:
    """How much the adapter remembers in, as a line."""
    tuner = find_tuner(model)
    floats, tokens = tuner.state_size()
    if not floats:
        return "the adapter has no memory of what is evicted"
    return f"memory: {floats:,} numbers per layer and sequence, as many as the keys and values of {tokens:.1f} tokens"


def _teach(
    run: RecallRun,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    own_sentences: Sequence[str],
    folder: Path,
    resume: bool,
    console: Console,
) -> PhaseResult:
    checkpoint = find_checkpoint(folder, console) if resume else None
    config = run.teaching(str(folder), run.steps, resume=False if checkpoint is None else str(checkpoint))
    with watched("teaching", console) as callbacks:
        result = teach_recall(model, tokenizer, config, own_sentences=own_sentences, callbacks=callbacks)
    save_adapter(model, folder / "adapter", tokenizer)
    return {
        "losses": [[record["step"], record["loss"]] for record in result.history if "loss" in record],
        "seconds": result.elapsed_seconds,
    }


def _measure(
    run: RecallRun,
    folder: RunFolder,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    own_sentences: Sequence[str],
    console: Console,
) -> dict[str, list[dict[str, Any]]]:
    """What every arm remembers, by its name."""
    thought = find_tuner(model).thought_config
    counted = thought.resolve_window(None)
    arms = [Arm(name="adapter", config=None)]
    if run.baselines:
        arms += arms_beside(thought, extra_slots=math.ceil(find_tuner(model).state_size()[1]))
    found = {}
    total = run.codes * len(run.distances) * len(run.before)
    for arm in arms:

        def work(path: Path, resume: bool, arm: Arm = arm) -> PhaseResult:
            with arm.active(model), progress_bar(arm.name, total, console=console) as advance:
                results = probe_ages(
                    model,
                    tokenizer,
                    ages=run.distances,
                    before=run.before,
                    num_codes=run.codes,
                    code_length=run.code_length,
                    kind=run.kind,
                    seed=run.seed,
                    cache=counted,
                    own_sentences=own_sentences,
                    progress=advance,
                )
            return {"recall": [{"num_before": one.num_before, **asdict(one.recall)} for one in results]}

        name = arm.name.replace(" ", "-").replace(",", "")
        steps = run.steps if arm.config is None else None
        found[arm.name] = folder.phase(f"measure-{name}", work, num_steps=steps)["recall"]
    return found


def _print_table(measured: dict[str, list[dict[str, Any]]], console: Console) -> None:
    table = Table(title="whole passcodes that are remembered (95 % interval), by evictions since they were told")
    table.add_column("cache")
    table.add_column("told after", justify="right")
    for row in next(iter(by_text_before(next(iter(measured.values()))).values())):
        table.add_column(str(row["num_evictions"]), justify="right")
    for name, rows in measured.items():
        for before, part in by_text_before(rows).items():
            table.add_row(name, f"{before} evictions' text" if before else "nothing", *[_share(row) for row in part])
    print_wide(table, console)


def by_text_before(rows: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The rows of a measurement, by the text before the codes."""
    found: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["num_before"], []).append(row)
    return found


def _share(row: dict[str, Any]) -> str:
    return f"{100 * row['right_codes'] / row['codes']:.0f} % ({100 * row['low']:.0f}-{100 * row['high']:.0f})"


def _panels(phases: dict[str, PhaseResult], measured: dict[str, list[dict[str, Any]]]) -> list[Panel]:
    panels = []
    if "teach" in phases:
        points = phases["teach"]["losses"]
        series = {"teaching": ([float(x) for x, _ in points], [float(y) for _, y in points])}
        label = "cross-entropy (nats per token)"
        panels.append(Panel(title="teaching", x_label="optimiser step", y_label=label, series=series))
    curves = {
        f"{name}, after {before}" if before else name: (
            [float(row["num_evictions"]) for row in part],
            [100 * row["right_codes"] / row["codes"] for row in part],
        )
        for name, rows in measured.items()
        for before, part in by_text_before(rows).items()
    }
    panels.append(Panel(title="forgetting", x_label=FORGETTING_X, y_label=FORGETTING_Y, series=curves, from_zero=True))
    return panels
