"""The planner against what runs take: planned and measured peaks of configurations whose savings it chose itself.

    python -m benchmarks.planner

Every configuration is chosen as a run chooses it, for a device of the size that it names, and then runs in a process of
its own on the CPU in fp32, with random weights: neither memory nor time depends on their values. "Measured" is the peak
of the resident set over the loaded model, "live" the tensors that were alive at the highest point of another run of the
same process (`recipes/plan/measure.py`). All are four layers of SmolLM2-135M with its whole vocabulary, so that peaks
are some hundred MiB. Not covered: GPUs (`python -m benchmarks.gpu`), optimisers, several processes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import SAVINGS
from thoughtcache.measuring.peak_memory import MIB
from thoughtcache.planning.memory.distillation import sampling_teacher
from thoughtcache.planning.memory.layer import adapter_bytes
from thoughtcache.planning.memory.parts import highest, total
from thoughtcache.planning.memory.rollout import rollout_parts
from thoughtcache.planning.plan import learner_bytes
from thoughtcache.planning.savings import choose_savings, usable_bytes
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.planning.teacher import split_to_fit, with_teacher_batch
from thoughtcache.recipes.plan.measure import Work, measure
from thoughtcache.recipes.plan.measure_distill import DISTILL_CHILD
from thoughtcache.report.plan_advice import savings_of
from thoughtcache.report.results import environment, write_results
from thoughtcache.report.tables import print_wide

TOLERANCE = 0.1
"""Share by which a planned peak may miss the measured one."""
SLICE = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3, num_hidden_layers=4,
    vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192, eos_token_id=None,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One configuration.

    Attributes:
        setting: the run, with what is given; the rest is chosen.
        device_mib: memory of the device that it is chosen for.
        work: what is measured: one micro-batch of the learner, a step of distillation in several, or sampling.
        free: names of the savings that are chosen.
    """

    setting: PlanSetting
    device_mib: int
    work: Work = "learner"
    free: tuple[str, ...] = SAVINGS

    @property
    def chosen(self) -> PlanSetting:
        """The setting with what the planner chooses, as a run does (`recipes/plan/fit.py`)."""
        available = usable_bytes(self.device_mib * MIB)
        setting = self.setting
        if setting.distills:
            setting = split_to_fit(setting, self.free, available)
        found = choose_savings([setting], self.free, available_bytes=available)
        return with_teacher_batch(found.of(setting), available_bytes=available)

    @property
    def planned_bytes(self) -> int:
        """The peak over the loaded model."""
        chosen = self.chosen
        if self.work == "learner":
            waiting = adapter_bytes(chosen) if chosen.micro_batches > 1 else 0  # gradients of the micro-batches before
            return learner_bytes(chosen) + waiting
        sampler = sampling_teacher(chosen) if chosen.distills else chosen
        return total(highest(rollout_parts(sampler).values()))


def setting_of(thought: dict[str, Any] | None = None, **changes: Any) -> PlanSetting:
    """A run on the slice: eight rows of 64 + 256 tokens, a window of 128 of which a quarter leaves at once, rank 32."""
    settings = {"window": 128, "evict_fraction": 0.25, "r": 32, "num_global_tokens": 32, **(thought or {})}
    defaults = {"prompt_tokens": 64, "max_new_tokens": 256, "batch": 8, "group": 8, "dtype": "float32"}
    return PlanSetting(model=SLICE, thought=ThoughtConfig(**settings), device_type="cpu", **{**defaults, **changes})


def cases() -> dict[str, Case]:
    """The configurations by name."""
    grpo = setting_of(pack_weights=False)
    distill = setting_of(pack_weights=False, objective="distill", group=1)
    hybrid = {"memory": "attention", "eviction": "h2o", "window": 64}
    return {
        "GRPO, roomy": Case(setting=grpo, device_mib=8192),
        "GRPO, chunks": Case(setting=replace(grpo, kv_log="host"), device_mib=760, free=("chunk_tokens",)),
        "GRPO, tight": Case(setting=replace(grpo, batch=16, group=16, max_new_tokens=192), device_mib=800),
        "distillation, tight": Case(setting=distill, device_mib=740),
        "distillation, split": Case(setting=distill, device_mib=420),
        "sampling, h2o and attention memory": Case(
            setting=setting_of(hybrid, max_new_tokens=96, batch=64, group=64), device_mib=8192, work="rollout"
        ),
        "teacher's sampling": Case(
            setting=setting_of(objective="distill", group=1, max_new_tokens=192), device_mib=900, work="rollout"
        ),
    }


def measured(case: Case) -> dict[str, Any]:
    """One configuration: what was chosen, and its peaks in MiB."""
    chosen, started = case.chosen, time.perf_counter()
    found = measure(chosen, case.work, module=DISTILL_CHILD if chosen.distills else None)
    planned = case.planned_bytes
    return {
        "device_mib": case.device_mib,
        **asdict(savings_of(chosen)),
        "at_once": chosen.decoded_at_once if case.work == "rollout" else chosen.batch,
        "planned_mib": planned / MIB,
        "measured_mib": found.peak_bytes / MIB,
        "live_mib": found.live_bytes / MIB,
        "ratio": planned / found.peak_bytes,
        "seconds": time.perf_counter() - started,
    }


def print_records(records: dict[str, dict[str, Any]], console: Console) -> None:
    """A row per configuration."""
    table = Table(title="Peak over the loaded model, MiB: planned and measured", title_justify="left")
    for column in ("", "device", "chosen", "rows", "planned", "measured", "ratio", "live"):
        table.add_column(column, justify="left" if column in ("", "chosen") else "right")
    for name, one in records.items():
        layers = "checkpoints" if one["checkpoint_layers"] else "all layers"
        table.add_row(
            name,
            str(one["device_mib"]),
            f"{layers}, chunks of {one['chunk_tokens']}, log on the {one['kv_log']}",
            str(one["at_once"]),
            *[f"{one[key]:.0f}" for key in ("planned_mib", "measured_mib")],
            f"{one['ratio']:.3f}",
            f"{one['live_mib']:.0f}",
        )
    print_wide(table, console)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; returns 1 if a plan misses by more than the tolerance."""
    known = cases()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="runs/bench", help="folder of planner.json")
    parser.add_argument("--cases", nargs="+", choices=list(known), default=list(known), metavar="NAME", help="which")
    options, console = parser.parse_args(arguments), Console()
    records = {name: measured(known[name]) for name in options.cases}
    print_records(records, console)
    file = write_results(Path(options.output) / "planner.json", {"records": records, "environment": environment()})
    console.print(f"results: {file}", soft_wrap=True)
    missed = [name for name, one in records.items() if abs(one["ratio"] - 1) > TOLERANCE]
    if missed:
        console.print(f"more than {TOLERANCE:.0%} beside the measured peak: {', '.join(missed)}", soft_wrap=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
