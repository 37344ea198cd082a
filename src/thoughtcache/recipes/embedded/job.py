"""The embedded job: what `thoughtcache train` does without arguments. Two CPU cores, about ten minutes.

1. evaluate the base with its full cache and with the window only;
2. distil LoRA_c, PTE with the paper's rule and PTE with the delta rule, on the same teacher samples and budget;
3. GRPO on PTE from the first adapter on its way that passed 50 % of the validation split, and on LoRA_c (which never
   gets there) from its end, with the same budget;
4. write the table, the learning curves, the adapters and results.json.

Accuracy is exact match with greedy decoding on the test split; learning curves use the validation split.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from rich.console import Console

from thoughtcache.config import OWN_WINDOW, ThoughtConfig
from thoughtcache.evaluation.accuracy import Accuracy, exact_match_accuracy
from thoughtcache.measuring.peak_memory import PeakMemory
from thoughtcache.planning.flops import rollout_flops_per_token
from thoughtcache.planning.memory.kv_cache import kv_cache_bytes
from thoughtcache.recipes.builders import find_checkpoint, save_adapter, train_grpo
from thoughtcache.recipes.embedded.arms import ARMS, TITLES, lora_window
from thoughtcache.recipes.embedded.partial_start import PartialStart
from thoughtcache.recipes.embedded.report import write_report
from thoughtcache.recipes.run.config import RunConfig
from thoughtcache.recipes.run.folder import WRITING_REMEDY, PhaseResult, RunFolder
from thoughtcache.recipes.run.settings import EXACT_OPTIONS, TRANSIENT_OPTIONS, default_settings
from thoughtcache.recipes.run.training import watched
from thoughtcache.recipes.teacher_samples import kept_samples
from thoughtcache.records import Rollout
from thoughtcache.report.files import writing
from thoughtcache.report.progress import finished_rows, plain_line, progress_bar
from thoughtcache.tasks.embedded.problem import Problem, sample_problems
from thoughtcache.tasks.embedded.reasoner import encode_prompt, load_reasoner


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedTask:
    """Sizes of one embedded task and the budget of its job.

    Attributes:
        window: resident thoughts of every bounded arm.
        prompt_tokens: P.
        trace_tokens: T of a right answer, the end-of-sequence token included.
        max_new_tokens: bound on the thoughts.
        distill_steps: budget of each distilled arm.
        grpo_steps: budget of each GRPO arm.
        arms: systems that are distilled, keys of `ARMS`.
        grpo_arms: those of them that are trained with GRPO.
        teacher_samples: samples of the teacher, which all arms share.
    """

    window: int
    prompt_tokens: int
    trace_tokens: int
    max_new_tokens: int
    distill_steps: int
    grpo_steps: int
    arms: tuple[str, ...] = tuple(ARMS)
    grpo_arms: tuple[str, ...] = ("lora_window", "thought_best")
    teacher_samples: int = 4096


EMBEDDED_TASKS = {
    "chains": EmbeddedTask(
        window=16, prompt_tokens=34, trace_tokens=50, max_new_tokens=56, distill_steps=400, grpo_steps=60,
    ),
    "multiplication": EmbeddedTask(
        window=20, prompt_tokens=9, trace_tokens=41, max_new_tokens=46, distill_steps=400, grpo_steps=60,
    ),
}  # fmt: skip
QUICK: dict[str, Any] = {
    "distill_steps": 110, "grpo_steps": 3, "arms": ("thought_best",), "grpo_arms": ("thought_best",),
    "teacher_samples": 1024,
}  # fmt: skip
"""What a shortened job changes: about a minute on one core."""
QUICK_NOTE = (
    f"shortened job: one system, {QUICK['distill_steps']} steps of distillation and {QUICK['grpo_steps']} of GRPO; its "
    "figures are those of a job that was cut short, not of the method"
)
RANK = 8
PARTLY_DISTILLED = "partly_distilled"
LORA_ALPHA = 32  # 8 instead of 32 trained the gated rule to 58 % instead of 98 % or so: docs/lab-log.md
VALIDATION_SIZE = 100
EVALUATE_EVERY = 10
GRPO_PROMPTS, GRPO_GROUP, GRPO_LEARNING_RATE = 16, 8, 3e-4


@dataclass(kw_only=True)
class _Job:
    """Everything that all phases share."""

    run: RunConfig
    task: EmbeddedTask
    samples_file: Path
    console: Console

    def __post_init__(self) -> None:
        self.validation = self.problems(VALIDATION_SIZE, "val")
        self._samples: list[Rollout] | None = None

    def problems(self, num: int, split: str) -> list[Problem]:
        return sample_problems(self.run.task, num, split, self.run.seed if split == "train" else 0)

    def new_model(self, config: ThoughtConfig) -> PeftModel:
        """The packaged base with a fresh adapter; the same seed gives the same weights."""
        base, self.tokenizer = load_reasoner()
        torch.manual_seed(self.run.seed)
        return peft.get_peft_model(base, config)

    def load_model(self, folder: Path) -> PeftModel:
        """The packaged base with a saved adapter, ready to be trained on."""
        base, self.tokenizer = load_reasoner()
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True)

    def teacher_samples(self) -> list[Rollout]:
        """Sampled once, shared by all students, so that they differ in nothing but the adapter."""
        from thoughtcache.train.distill import sample_teacher
        from thoughtcache.train.distill_config import DistillConfig

        if self._samples is None:
            model = self.new_model(lora_window(self.task.window, RANK, lora_alpha=LORA_ALPHA))
            prompts = [
                encode_prompt(self.tokenizer, p.prompt) for p in self.problems(self.task.teacher_samples, "train")
            ]
            config = DistillConfig(
                output_dir="", max_new_tokens=self.task.max_new_tokens, seed=self.run.seed, sample_batch_size=512
            )

            def draw(start: int, stop: int) -> list[Rollout]:
                with progress_bar("teacher samples", stop - start, console=self.console) as advance:
                    return sample_teacher(
                        model,
                        prompts[start:stop],
                        config,
                        tokenizer=self.tokenizer,
                        on_event=finished_rows(advance),
                    )

            self._samples = kept_samples(self.samples_file, len(prompts), draw)
        return self._samples

    def accuracy(self, model: PeftModel, problems: list[Problem], window: Any = OWN_WINDOW) -> Accuracy:
        return exact_match_accuracy(
            model, self.tokenizer, problems, max_new_tokens=self.task.max_new_tokens, window=window
        )

    def test(self, model: PeftModel, window: Any = OWN_WINDOW) -> PhaseResult:
        """Accuracy on the test split, with the peak memory of sampling it."""
        problems = self.problems(self.run.evaluation_size, "test")
        with PeakMemory() as memory:
            accuracy = self.accuracy(model, problems, window)
        return {"accuracy": asdict(accuracy), "peak_memory_mib": memory.peak_mib}

    def accounting(self, config: ThoughtConfig | None, window: int | None) -> PhaseResult:
        """Closed forms: cached bytes at the fullest moment and FLOPs per decoded token."""
        base, _ = load_reasoner()
        task = self.task
        resident = task.prompt_tokens + (task.trace_tokens if window is None else window)
        flops = rollout_flops_per_token(
            base, config, prompt_tokens=task.prompt_tokens, num_tokens=task.trace_tokens, window=window
        )
        return {
            "window": window,
            "kv_cache_kib": kv_cache_bytes(base.config, resident, 1, torch.float32) / 1024,
            "flops_per_token": flops.total,
        }


def run_embedded(run: RunConfig, console: Console | None = None) -> dict[str, Any]:
    """The whole job. Returns what is written to results.json.

    Args:
        run: `task`, `quick`, `seed`, `evaluation_size`, `output_dir`, `save_every`, `resume` and `overwrite` are used.
        console: where progress and the table go.
    """
    console = console or Console()
    described = {name: value for name, value in asdict(run).items() if name not in TRANSIENT_OPTIONS}
    folder = RunFolder(
        run.output_dir,
        described,
        resume=run.resume,
        overwrite=run.overwrite,
        free=EXACT_OPTIONS,
        defaults=default_settings(RunConfig),
    )
    samples = folder.samples_file("teacher")
    task = EMBEDDED_TASKS[run.task]
    if run.quick:
        task = replace(task, **QUICK)
        plain_line(console, QUICK_NOTE)
    job = _Job(run=run, task=task, samples_file=samples, console=console)
    with writing(folder.path, WRITING_REMEDY):
        return _run_phases(run, folder, job, console)


def _run_phases(run: RunConfig, folder: RunFolder, job: _Job, console: Console) -> dict[str, Any]:
    started = time.perf_counter()
    rows = {
        "base_full": folder.phase("base_full", lambda *_: _evaluate_base(job, None)),
        "base_window": folder.phase("base_window", lambda *_: _evaluate_base(job, job.task.window)),
    }
    for arm in job.task.arms:
        rows[arm] = folder.phase(arm, lambda path, resume, arm=arm: _distil_arm(job, arm, path, resume))  # type: ignore[misc]
    grpo = {
        arm: folder.phase(f"grpo_{arm}", lambda path, resume, arm=arm: _grpo_arm(job, arm, path, resume))  # type: ignore[misc]
        for arm in job.task.grpo_arms
    }
    elapsed = time.perf_counter() - started
    note = QUICK_NOTE if run.quick else None
    return write_report(folder.path, run, rows, grpo, TITLES, elapsed, console, note=note)


def _evaluate_base(job: _Job, window: int | None) -> PhaseResult:
    job.console.print(f"[bold]base model, {'full cache' if window is None else f'window {window}'}[/bold]")
    model = job.new_model(lora_window(job.task.window, RANK, lora_alpha=LORA_ALPHA))
    started = time.perf_counter()
    with model.disable_adapter():
        result = job.test(model, window)
    seconds = {"evaluate": time.perf_counter() - started}
    return {**result, **job.accounting(None, window), "parameters": 0, "seconds": seconds}


def _distil(job: _Job, model: PeftModel, folder: Path, steps: int, resume: bool, title: str) -> dict[str, Any]:
    """Distil and return the learning curve and the wall time.

    The adapter is saved to `folder/adapter`; one on its way, to `folder/partly_distilled` (`partial_start.py`).
    """
    from thoughtcache.train.distill import distill
    from thoughtcache.train.distill_config import DistillConfig

    evaluation_seconds = 0.0
    start = PartialStart(folder / PARTLY_DISTILLED, lambda current: job.accuracy(current, job.validation).percent)

    def evaluate(current: torch.nn.Module) -> dict[str, float]:
        nonlocal evaluation_seconds
        started = time.perf_counter()
        accuracy = job.accuracy(current, job.validation)  # type: ignore[arg-type]
        start.note(model, accuracy.percent)
        evaluation_seconds += time.perf_counter() - started
        return {"accuracy": accuracy.percent}

    checkpoint = find_checkpoint(folder, job.console) if resume else None
    config = DistillConfig(
        output_dir=str(folder),
        num_steps=steps,
        max_new_tokens=job.task.max_new_tokens,
        recompute=False,
        seed=job.run.seed,
        evaluate_every=min(EVALUATE_EVERY, steps),
        save_every=job.run.save_every,
        resume=False if checkpoint is None else str(checkpoint),
    )
    if checkpoint is None:
        shutil.rmtree(folder / PARTLY_DISTILLED, ignore_errors=True)
    samples = job.teacher_samples()
    started = time.perf_counter()
    with watched(title, job.console, ("eval_accuracy",)) as callbacks:
        result = distill(model, (), config, samples=samples, evaluator=evaluate, callbacks=callbacks)
    seconds = {"distil": time.perf_counter() - started - evaluation_seconds, "evaluate": evaluation_seconds}
    save_adapter(model, folder / "adapter")
    curve = [[h["step"], h["eval_accuracy"]] for h in result.history if "eval_accuracy" in h]
    losses = [[h["step"], h["loss"]] for h in result.history if "loss" in h]
    return {"curve": curve, "losses": losses, "seconds": seconds}


def _distil_arm(job: _Job, arm: str, folder: Path, resume: bool) -> PhaseResult:
    job.console.print(f"[bold]distil {TITLES[arm]}[/bold]")
    config = ARMS[arm](job.task.window, RANK, lora_alpha=LORA_ALPHA)
    model = job.new_model(config)
    trained = _distil(job, model, folder, job.task.distill_steps, resume, TITLES[arm])
    started = time.perf_counter()
    result = job.test(model)
    trained["seconds"]["evaluate"] += time.perf_counter() - started
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {**result, **trained, **job.accounting(config, job.task.window), "parameters": parameters}


def _grpo_arm(job: _Job, arm: str, folder: Path, resume: bool) -> PhaseResult:
    """A partly distilled start, then outcome reward alone."""
    from thoughtcache.train.rewards import recited_answer

    distilled = folder.parent / arm
    partly = distilled / PARTLY_DISTILLED
    start = partly if partly.exists() else distilled / "adapter"
    job.console.print(f"[bold]GRPO on {TITLES[arm]}, starting from {start.name}[/bold]")
    model = job.load_model(start)
    before = job.test(model)
    problems = job.problems(GRPO_PROMPTS * job.task.grpo_steps, "train")
    started = time.perf_counter()
    logged = train_grpo(
        model,
        job.tokenizer,
        [{"prompt": p.prompt, "answer": p.answer} for p in problems],
        recited_answer,
        job.run,
        folder=folder,
        resume=resume,
        title=f"GRPO {TITLES[arm]}",
        console=job.console,
        max_steps=job.task.grpo_steps,
        per_device_train_batch_size=GRPO_PROMPTS * GRPO_GROUP,
        num_generations=GRPO_GROUP,
        max_completion_length=job.task.max_new_tokens,
        learning_rate=GRPO_LEARNING_RATE,
        lr_scheduler_type="constant",
        recompute=False,
    )
    seconds = {"grpo": time.perf_counter() - started}
    return {
        "start": start.name,
        "before": before["accuracy"],
        **job.test(model),
        "rewards": [[h["step"], 100 * h["reward"]] for h in logged],
        "gap_max": max((h.get("policy/gap_max", 0.0) for h in logged), default=0.0),
        "log": logged,
        "seconds": seconds,
    }
