"""The options of GRPO's learner, of which the planner chooses some as soon as it has seen prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from torch import nn

from thoughtcache.learner.options import ReplayOptions, left_to_the_planner
from thoughtcache.train.savings import available_to, choose_for, describe, record
from thoughtcache.train.trl.config import ThoughtGRPOConfig


class PlannedLearner:
    """Chooses at the first prompts, and again where longer ones come; every rollout may reach its longest length.

    Chains are not planned: their learner has its defaults.

    Args:
        model: the adapted model, on its device and before there is an optimiser.
        args: settings of the trainer.
        max_new_tokens: T.
        plans: whether there is anything to plan, which there is not for chains.
        report: where a choice is printed; None in processes that do not report.
    """

    def __init__(
        self,
        model: nn.Module,
        args: ThoughtGRPOConfig,
        *,
        max_new_tokens: int,
        plans: bool,
        report: Callable[[str], None] | None,
    ) -> None:
        self.options: ReplayOptions = args.replay_options
        self._model, self._args, self._report, self._length = model, args, report, max_new_tokens
        self._free = left_to_the_planner(args)
        self._plans = plans and args.recompute and bool(self._free)
        self._available = available_to(model) if self._plans else None
        self._longest = 0

    def look_at(self, prompt_ids: Sequence[Sequence[int]]) -> None:
        """Choose for these prompts, if any of them is longer than all before."""
        longest = max(map(len, prompt_ids), default=0)
        if not self._plans or longest <= self._longest:
            return
        first, self._longest = self._longest == 0, longest
        args, rows, group = self._args, self._args.per_device_train_batch_size, self._args.num_generations or 1
        sampled = rows * (args.steps_per_generation or 1)
        chosen = choose_for(
            self._model,
            args.replay_options,
            self._free,
            self._available,
            prompt_tokens=longest,
            max_new_tokens=self._length,
            batch=rows,
            group=group,
            rollout_batch=args.rollout_batch_size or sampled,
            generation_batch=sampled,
            beta=args.beta,
            reuse=args.reuse_rollout,
            pack_weights=args.pack_weights,
            unequal_prompts=rows > group or (args.steps_per_generation or 1) > 1,
        )
        before, self.options = self.options, replace(self.options, **asdict(chosen))
        if self._report is not None and (first or self.options != before):
            self._report(describe(chosen, self._free))
            record(chosen, str(args.output_dir))
