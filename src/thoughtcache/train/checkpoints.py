"""Finds out which checkpoints of a trainer are whole, and what they hold.

A checkpoint may be cut short: the process was killed, or the disk was full. `transformers.Trainer` writes
`trainer_state.json` last, so a checkpoint with a readable state was written to its end; the other files are looked at
as well, for disks that lost some of them. Nothing is unpickled here.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open

STATE = "trainer_state.json"
ROOT_ADAPTER = "adapter_model.safetensors"  # the policy's; other adapters lie in folders of their names
_ZIPPED = {".pt", ".pth"}  # what torch.save writes ends with its table of contents
# One file of each kind; an optimizer under FSDP or DeepSpeed has names of its own.
_NEEDED = (
    (ROOT_ADAPTER,),
    ("adapter_config.json",),
    ("optimizer.pt", "optimizer.bin", "optimizer_*", "latest"),
    ("scheduler.pt",),
    ("rng_state*.pth",),
)


def checkpoints(folder: str | Path) -> list[Path]:
    """Folders `checkpoint-N`, whole or not, by their number (9 before 10)."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)", path.name) for path in Path(folder).glob("checkpoint-*")}
    numbered = [(int(match.group(1)), path) for path, match in found.items() if match and path.is_dir()]
    return [path for _, path in sorted(numbered)]


def damage(checkpoint: Path) -> str | None:
    """The reason why a run cannot go on with a checkpoint; None if it is whole."""
    state = checkpoint / STATE
    if not state.is_file():
        return f"no {STATE}, which is written last"
    for names in _NEEDED:
        if not any(any(checkpoint.glob(name)) for name in names):
            return f"no {names[0]}"
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if not _is_readable(file):
            return f"{file.relative_to(checkpoint)} is cut short"
    step = _state(checkpoint).get("global_step")
    return None if checkpoint.name == f"checkpoint-{step}" else f"{STATE} is of step {step}"


def newest_whole(folder: str | Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that a run can go on with, None if there is none.

    Args:
        folder: the trainer's `output_dir`.
        say: is told of every newer checkpoint that is skipped, and why.
    """
    for checkpoint in reversed(checkpoints(folder)):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint
        say(f"{checkpoint} was not written to its end ({reason}) and is skipped")
    return None


def history_at_end(checkpoint: Path | None, num_steps: int) -> list[dict[str, Any]] | None:
    """The log of a run that took all its steps before it was interrupted; None where steps are missing.

    `transformers.Trainer` takes one step more when it resumes such a run.
    """
    if checkpoint is None:
        return None
    state = _state(checkpoint)
    return list(state["log_history"]) if state["global_step"] >= num_steps else None


def load_weights(model: PeftModel, folder: str | Path) -> None:
    """Put the adapter that a checkpoint or another folder holds into the model."""
    set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def _is_readable(file: Path) -> bool:
    if file.suffix in _ZIPPED:
        return zipfile.is_zipfile(file)
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt"):
                return True
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    except (SafetensorError, ValueError):
        return False
    return True
