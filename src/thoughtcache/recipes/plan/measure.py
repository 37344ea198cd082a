"""The third source: a real run of the learner or the sampler in a child process, and how much memory it took.

On CUDA the allocator's peak; on the CPU the resident set over what it was when the model stood ready. The child runs
with one thread and an allocator that gives memory back at once, so that a peak of freed memory does not hide another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import peft
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.replay import score_rollouts
from thoughtcache.measuring.live_bytes import LiveBytes
from thoughtcache.measuring.peak_memory import MIB, PeakMemory
from thoughtcache.planning.setting import PlanSetting
from thoughtcache.recipes.plan.trace import blank_rollouts
from thoughtcache.sampler.rollout import rollout

Work = Literal["learner", "rollout"]
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Memory that a run took on top of the model, which was already loaded.

    Attributes:
        peak_bytes: peak of the allocator (CUDA) or of the resident set (CPU).
        live_bytes: bytes of the tensors that were alive at the highest point of an earlier run.
    """

    peak_bytes: int
    live_bytes: int


def measure(
    setting: PlanSetting,
    work: Work = "learner",
    *,
    module: str | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> Measured:
    """Run a setting in a child process on its `device_type`, with random weights.

    Args:
        setting: the run; adapters target all linears.
        work: "learner": forward and backward pass of a replay; "rollout": sampling, without early ends.
        module: what the child runs instead: a module that calls `run_child` with work of its own.
        timeout_seconds: time limit of the child.

    Raises:
        ValueError: if the child fails, with its last line.
    """
    given = {
        "model": {**setting.model.to_dict(), "model_type": setting.model.model_type},
        "thought": setting.thought.behaviour(),
        "setting": {
            field.name: getattr(setting, field.name)
            for field in dataclasses.fields(setting)
            if field.name not in ("model", "thought")
        },
        "work": work,
    }
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-m", module or "thoughtcache.recipes.plan.measure"],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout_seconds,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ValueError(f"the measurement ended with exit code {done.returncode}: {last}")
    return Measured(**json.loads(done.stdout.strip().splitlines()[-1]))


def run_child(run: Callable[[PeftModel, PlanSetting, Work], None]) -> None:
    """The work of the child: it reads a setting, runs it twice, and prints the memory that this took.

    Args:
        run: (model, setting, work) -> nothing.
    """
    given = json.load(sys.stdin)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = given["model"]
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    setting = PlanSetting(model=config, thought=ThoughtConfig(**given["thought"]), **given["setting"])
    base: Any = AutoModelForCausalLM.from_config(config).to(getattr(torch, setting.dtype)).to(setting.device_type)  # type: ignore[no-untyped-call]
    model: Any = peft.get_peft_model(base, setting.thought)
    with LiveBytes(setting.device_type) as live:  # first: libraries keep scratch memory after their first calls
        run(model, setting, given["work"])
    model.zero_grad(set_to_none=True)
    with PeakMemory(setting.device_type, interval_seconds=0.001) as memory:
        run(model, setting, given["work"])
    found = Measured(peak_bytes=int(memory.peak_mib * MIB), live_bytes=live.peak_bytes)
    sys.stdout.write(json.dumps(dataclasses.asdict(found)) + "\n")


def _run(model: PeftModel, setting: PlanSetting, work: Work) -> None:
    if work == "rollout":
        different = -(-setting.decoded_at_once // setting.group)
        prompts = [[1 + row % different] * setting.prompt_tokens for row in range(setting.decoded_at_once)]
        tokens = setting.max_new_tokens
        rollout(model, prompts, max_new_tokens=tokens, ignore_eos=True, pack_weights=setting.pack_weights)
        return
    scores = score_rollouts(model, blank_rollouts(setting), setting.replay_options)
    scores.logprobs.sum().backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    run_child(_run)
