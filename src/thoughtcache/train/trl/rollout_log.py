"""What was sampled in training, for people: columns beside TRL's completions, and a file with a line per rollout.

TRL keeps the completions of a generation batch, gathered over processes, and with `log_completions=True` writes them as
a table (parquet; trackio and wandb, if they are asked to report). The columns here are in that table as well.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from thoughtcache.chains.chain import Trace, links_of


def rollout_columns(traces: Sequence[Trace], *, for_file: bool) -> dict[str, list[Any]]:
    """Columns about rollouts or chains, one value for each.

    Args:
        traces: the records.
        for_file: also those that are not worth the width of a terminal, where TRL prints the table.

    Returns:
        evictions: evictions, those of all links of a chain.
        links: links of a chain; left out where every record is a rollout.
        tokens: for a file, tokens that were sampled.
        finish_reason: for a file, "stop", or "length" if it was cut.
    """
    links = [links_of([trace]) for trace in traces]
    columns: dict[str, list[Any]] = {"evictions": [sum(len(link.evictions) for link in own) for own in links]}
    if for_file:
        columns["tokens"] = [len(trace.token_ids) for trace in traces]
        columns["finish_reason"] = [trace.finish_reason for trace in traces]
    if any(own != [trace] for own, trace in zip(links, traces, strict=True)):
        columns["links"] = [len(own) for own in links]
    return columns


def logged_rows(logs: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """The newest completions of TRL's logs as dictionaries.

    Args:
        logs: "prompt", "completion", "advantages", and by name "rewards" and "extra".
        count: how many.

    Returns:
        prompt, completion, advantage, rewards by name, and the extra columns with other names.
    """
    prompts, completions, advantages = (list(logs[name])[-count:] for name in ("prompt", "completion", "advantages"))
    rewards = {name: list(values)[-count:] for name, values in logs["rewards"].items()}
    extra = {name: list(values)[-count:] for name, values in logs["extra"].items()}
    return [
        {
            **{name: values[row] for name, values in extra.items() if len(values) == len(prompts)},
            "prompt": prompt,
            "completion": completion,
            "rewards": {name: values[row] for name, values in rewards.items()},
            "advantage": advantage,
        }
        for row, (prompt, completion, advantage) in enumerate(zip(prompts, completions, advantages, strict=True))
    ]


class RolloutLog:
    """A file with a line of JSON for every rollout of training, in the order of the steps.

    Before its first line in a run, lines of this step and later ones are dropped: a run that goes on from a checkpoint
    samples them again, and a new one has none.

    Args:
        path: the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._begun = False

    def restart(self) -> None:
        """A run begins."""
        self._begun = False

    def add(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rollouts of a generation.

        Args:
            step: optimiser steps that were done before it.
            rows: what is written of each.
        """
        if not self._begun:
            kept = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
            kept = [line for line in kept if line.endswith("\n") and json.loads(line)["step"] < step]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            shorter = self.path.with_name(f".{self.path.name}.tmp")
            shorter.write_text("".join(kept))
            shorter.replace(self.path)
        self._begun = True
        with self.path.open("a") as file:
            file.writelines(json.dumps(_plain({**row, "step": step}), ensure_ascii=True) + "\n" for row in rows)


def _plain(value: Any) -> Any:
    """JSON data: null for numbers that JSON lacks, such as a reward that was not given; text for what is unknown."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
