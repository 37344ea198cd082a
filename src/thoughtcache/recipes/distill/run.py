"""The run of `thoughtcache distill`: texts, then stage after stage, and a measurement on held-out texts after each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from thoughtcache.adapter.positions import check_positions, position_reach
from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.handle import find_tuner
from thoughtcache.recipes.builders import find_checkpoint, save_adapter
from thoughtcache.recipes.distill.config import DistillRun
from thoughtcache.recipes.distill.recipe import Stage, read_recipe
from thoughtcache.recipes.distill.report import paired, panels_of, print_tables
from thoughtcache.recipes.distill.texts import read_source, texts_of
from thoughtcache.recipes.load_adapter import WEIGHTS, adapted_model
from thoughtcache.recipes.load_model import load_tokenizer
from thoughtcache.recipes.plan.teacher import fitted_teacher
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import adapter_settings, default_settings, model_identities
from thoughtcache.recipes.run.training import watched
from thoughtcache.recipes.teacher_samples import has_samples
from thoughtcache.recipes.texts import TEXTS
from thoughtcache.records import CacheSettings, Rollout
from thoughtcache.report.files import writing
from thoughtcache.report.plots import plot_curves
from thoughtcache.report.progress import loading, plain_line, progress_bar
from thoughtcache.report.results import environment, write_results
from thoughtcache.sampler.given import each_with_own_evictions
from thoughtcache.studies.arms import Arm, wider_arms
from thoughtcache.studies.held_out import HeldOut, summary
from thoughtcache.train.checkpoints import load_weights
from thoughtcache.train.distill import distill, under_window
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.evicted import longest_held
from thoughtcache.train.recall_config import RecallConfig
from thoughtcache.train.teach_recall import check_teachable, teach_recall
from thoughtcache.train.transfer.config import TransferConfig
from thoughtcache.train.transfer.teach import check_transferable, transfer_attention

WINDOW = "base, window"
"""The row of the base under the window, against which the others are compared."""
NOT_DESCRIBED = {"resume", "overwrite", "save_every", "recipe", "force"}


def run_distill(run: DistillRun, thought: ThoughtConfig, console: Console | None = None) -> dict[str, Any]:
    """Run the stages of a recipe; returns what is written to results.json.

    Args:
        run: the settings.
        thought: settings of the adapter; they are those of `run.adapter`, if it is given.
        console: where progress goes.

    Raises:
        ValueError, OSError: if the input cannot be used; nothing is overwritten then, unless the base has to answer
            before it turns out that its answers are too short.
    """
    console = console or Console()
    stages = read_recipe(run.recipe or ("memory" if thought.has_attention_memory else "logits"))
    if thought.window_size(None) is None:
        raise ValueError("window=None evicts nothing, so that there is nothing to distil; set a window")
    if not isinstance(thought.eviction_budgets, str):  # named ones are known with the layers of the model
        _smallest_budget(run, thought.resolve_window(None))
    _check_stages(stages, thought)
    described = {name: value for name, value in asdict(run).items() if name not in NOT_DESCRIBED}
    folder = RunFolder(
        run.output_dir,
        {
            **described,
            "recipe": [{"kind": stage.kind, **stage.settings} for stage in stages],
            "thought": adapter_settings(thought),
        },
        resume=run.resume,
        overwrite=run.overwrite,
        free=("teacher_batch_size", "chosen"),
        defaults={**default_settings(DistillRun), "thought": adapter_settings(ThoughtConfig())},
    )
    config, tokenizer = load_tokenizer(run.model)
    smallest = _smallest_budget(run, thought.resolve_window(None, num_layers=config.num_hidden_layers))
    weights = None if run.adapter is None else Path(run.adapter) / WEIGHTS
    folder.describe(model_identities(config, run.model, weights))
    source = read_source(run, tokenizer, report=partial(console.print, markup=False, soft_wrap=True))
    folder.describe({"texts_digest": source.digest})
    check_positions(source.longest_prompt, run.max_new_tokens, position_reach(config), rolling_window=None)
    chosen = (folder.stored or {}).get("chosen", {})
    answered = folder.stored is not None and has_samples(folder.samples_file(TEXTS), len(source.prompts))
    if source.prompts and not answered:
        began = chosen.get("teacher_batch_size")
        run, lines = fitted_teacher(run, thought, config, source.prompts, began=began)
        chosen = {"teacher_batch_size": run.teacher_batch_size}
        for line in lines:
            plain_line(console, line)
    if source.prompts:
        folder.describe({"chosen": chosen})
    with loading(run.model, console):
        model = adapted_model(run.model, thought, adapter=run.adapter, dtype=run.dtype, seed=run.seed)
    numbers, tokens = find_tuner(model).state_size()
    console.print(f"state: {numbers:,} numbers per layer, as many as the keys and values of {tokens:.1f} tokens")
    with writing(folder.path, WRITING_REMEDY):
        samples = texts_of(source, run, model, tokenizer, folder, console)
        held_out, training = samples[: run.held_out], samples[run.held_out :]
        measure = _Measurement(folder, model, held_out, smallest, console)
        beside = [{"arm": f"base, {arm.name}", **measure.arm(arm)} for arm in _arms(run, thought, tokens)]
        with model.disable_adapter():  # a memory that was not trained may do harm, which is no gain when it ends
            table = [{"stage": WINDOW, **measure("0-window")}]
        table.append({"stage": "start", **measure("0-start")})
        phases: dict[str, PhaseResult] = {}
        for number, stage in enumerate(stages, start=1):
            name = f"{number}-{stage.kind}"

            def work(path: Path, resume: bool, stage: Stage = stage) -> PhaseResult:
                return _train(stage, run, model, tokenizer, training, path, resume, console)

            phases[name] = folder.phase(name, work)
            load_weights(model, folder.path / name / "adapter")  # the stage may have run in an earlier call
            table.append({"stage": name, **measure(name)})
        save_adapter(model, folder.path / "adapter", tokenizer)
        beside = [{**row, "adapter_minus_this": paired(table, row)} for row in beside]
        payload = {
            "run": folder.described,
            "environment": environment(),
            "phases": phases,
            "held_out": table,
            "beside": beside,
        }
        write_results(folder.path / "results.json", payload)
        plot_curves(folder.path / "distill.png", panels_of(phases, table, beside))
    print_tables(table, beside, phases, console)
    console.print(
        f"adapter: {folder.path / 'adapter'}\nresults: {folder.path / 'results.json'}\n"
        f"picture: {folder.path / 'distill.png'}",
        soft_wrap=True,
    )
    return payload


def _arms(run: DistillRun, thought: ThoughtConfig, tokens: float) -> list[Arm]:
    """The base with as many slots more as the states have numbers: the newest ones, and those that `h2o` chooses."""
    if not run.baselines:
        return []
    return wider_arms(thought, extra_slots=math.ceil(tokens), policies=("sliding", "h2o"))


def _smallest_budget(run: DistillRun, cache: CacheSettings) -> int:
    """The fewest thoughts that a layer holds.

    Raises:
        ValueError: if no text is longer.
    """
    smallest = cache.smallest_budget
    assert smallest is not None
    if run.max_new_tokens <= longest_held(smallest):
        with_budgets = "" if cache.budgets is None else f", whose layers hold {smallest} thoughts at least"
        raise ValueError(
            f"max_new_tokens={run.max_new_tokens} is too short for window={cache.window}{with_budgets}, which would "
            f"hold every text; set max_new_tokens above {longest_held(smallest)}, or a smaller window"
        )
    return smallest


def _check_stages(stages: Sequence[Stage], thought: ThoughtConfig) -> None:
    """Refuse stages that train what the adapter does not have, before anything is loaded.

    Raises:
        ValueError: for such a stage, by its number.
    """
    for number, stage in enumerate(stages, start=1):
        config = stage.config(output_dir="", seed=0, save_every=0, resume=False)
        try:
            if isinstance(config, TransferConfig):
                check_transferable(thought)
            elif isinstance(config, RecallConfig):
                check_teachable(thought, config)
        except ValueError as error:
            raise ValueError(f"stage {number} ({stage.kind}): {error}") from error


class _Measurement:
    """Measures the model of the moment on the held-out texts, once per stage of a run."""

    def __init__(
        self, folder: RunFolder, model: PeftModel, texts: list[Rollout], smallest: int, console: Console
    ) -> None:
        self.folder, self.model, self.texts, self.smallest, self.console = folder, model, texts, smallest, console
        self._held_out: HeldOut | None = None

    def __call__(self, name: str) -> PhaseResult:
        """The fields of `HeldOutKL`."""
        return self.folder.phase(f"measure-{name}", self._measure)

    def arm(self, arm: Arm) -> PhaseResult:
        """The same of the base under another cache, on the tokens after the first eviction of this one."""

        def work(path: Path, resume: bool) -> PhaseResult:
            assert arm.config is not None
            held_out = self._texts()  # of the adapter, before another one is active
            with arm.active(self.model):
                return self._measured(held_out, under_window(self.texts, arm.config))

        return self.folder.phase(f"measure-0-{arm.name.replace(', ', '-').replace(' ', '-')}", work)

    def _measure(self, path: Path, resume: bool) -> PhaseResult:
        held_out = self._texts()
        return self._measured(held_out, held_out.rows)

    def _texts(self) -> HeldOut:
        self._held_out = self._held_out or HeldOut(self.model, self.texts)
        return self._held_out

    def _measured(self, held_out: HeldOut, rows: Sequence[Rollout]) -> PhaseResult:
        """Under the cache of these rows, and with what leaves there."""
        chosen = each_with_own_evictions(self.model, rows)
        with progress_bar("held-out texts", len(self.texts), console=self.console) as advance:
            values = held_out.under(self.model, chosen, advance)
        return asdict(summary(values, self.smallest))


def _train(
    stage: Stage,
    run: DistillRun,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[Rollout],
    folder: Path,
    resume: bool,
    console: Console,
) -> PhaseResult:
    """One stage; `model` is trained in place, and its adapter is saved."""
    checkpoint = find_checkpoint(folder, console) if resume else None
    config = stage.config(
        output_dir=str(folder),
        seed=run.seed,
        save_every=run.save_every,
        resume=False if checkpoint is None else str(checkpoint),
    )
    with watched(stage.kind, console) as callbacks:
        if isinstance(config, TransferConfig):
            result = transfer_attention(model, texts, config, callbacks=callbacks)
        elif isinstance(config, RecallConfig):
            result = teach_recall(model, tokenizer, config, callbacks=callbacks)
        else:
            assert isinstance(config, DistillConfig)
            result = distill(model, (), config, samples=texts, callbacks=callbacks)
    save_adapter(model, folder / "adapter", tokenizer)
    return {
        "losses": [[record["step"], record["loss"]] for record in result.history if "loss" in record],
        "seconds": result.elapsed_seconds,
    }
