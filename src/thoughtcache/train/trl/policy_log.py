"""What the trainer logs beside what TRL logs: the cache, the distance of two executions, seconds, memory, rollouts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from thoughtcache.chains.chain import Trace
from thoughtcache.train.trl.chain_turns import chain_metrics, chain_totals
from thoughtcache.train.trl.policy_metrics import (
    NUM_TOTALS,
    cache_metrics,
    cache_totals,
    gap_metrics,
    sampled_log_ratio,
)
from thoughtcache.train.trl.rollout_log import logged_rows, rollout_columns


class PolicyLog:
    """The logging of `ThoughtGRPOTrainer`; a mixin in front of TRL's trainer."""

    @property
    def _mode(self: Any) -> str:
        return "train" if self.model.training else "eval"

    def _append_metrics(self: Any, metrics: dict[str, float], mode: str | None = None) -> None:
        """Add to what is logged next.

        Args:
            metrics: values by name.
            mode: "train" or "eval"; None for the one of the moment.
        """
        for name, value in metrics.items():
            self._metrics[mode or self._mode][name].append(value)

    def _report_phases(self, seconds: dict[str, float], peaks: dict[str, float]) -> None:
        """Log the seconds and the peaks in MiB of the phases of a step."""
        self._append_metrics({f"time/{name}": value for name, value in seconds.items()}, "train")
        self._append_metrics({f"memory/{name}_mib_max": value for name, value in peaks.items()}, "train")

    def _log_rollouts(self: Any, rollouts: list[Trace]) -> None:
        """Log what the cache did in all processes, and the columns of TRL's table of completions."""
        device = self.accelerator.device
        self._append_metrics(
            cache_metrics(self.accelerator.gather(cache_totals(rollouts).to(device)).view(-1, NUM_TOTALS).cpu())
        )
        if self._turns:
            totals = self.accelerator.gather(chain_totals(rollouts).to(device))
            self._append_metrics(chain_metrics(totals.view(-1, 4).cpu()))
        for name, values in rollout_columns(rollouts, for_file=self._run.log is not None).items():
            self._log_completion_extra(name, values)

    def _write_rollouts(self: Any, count: int) -> None:
        """Write the last `count` rollouts of every process into the file of rollouts, if the run has one."""
        if self._run.log is None or not self.model.training or not self.accelerator.is_main_process:
            return
        self._run.log.add(self.state.global_step, logged_rows(self._logs, count * self.accelerator.num_processes))

    def _log_gap(self: Any, replayed: Tensor, rollouts: list[Trace]) -> None:
        """Log the distance between sampled and replayed policy over the tokens of all processes."""
        log_ratio = sampled_log_ratio(replayed, rollouts)
        padded = self.accelerator.pad_across_processes(log_ratio, dim=0, pad_index=float("nan"))
        gathered = self.accelerator.gather(padded)
        self._append_metrics(gap_metrics(gathered, self.epsilon_low, self.epsilon_high))

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL logs means over the steps since the last log; of `*_max` metrics of ours the maximum is logged."""
        for name, values in self._metrics[self._mode].items():
            if values and (name.endswith("_mib_max") or name in ("policy/gap_max", "state/norm_max")):
                self._metrics[self._mode][name] = [max(values)]
        # TRL prints its table behind every log, and the summary at the end is one: the last step has been shown.
        shown, self.log_completions = self.log_completions, self.log_completions and "train_runtime" not in logs
        try:
            super().log(logs, start_time)  # type: ignore[misc]
        finally:
            self.log_completions = shown
