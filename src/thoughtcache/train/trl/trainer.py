"""GRPO under the bounded cache: TRL's trainer with its two seams, sampling and scoring, replaced.

`_generate_single_turn` samples with `rollout` and keeps the records; `_get_per_token_logps_and_entropies` scores them
with `replay`. The policy, the old policy and the reference all pass through the second. A chain is the row of its whole
trace (`chain_turns.py`). Losses, advantages, checkpoints, callbacks and processes stay TRL's. TRL's private signatures
are held by tests/unit/test_grpo_config.py.

Not covered: images, tools, vLLM, autocast (refused); FSDP and DeepSpeed ZeRO-3 (not tried).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from thoughtcache.chains.chain import links_of
from thoughtcache.chains.replay import join_links
from thoughtcache.chains.thinking import Thinking
from thoughtcache.ends import prompt_token_ids, stop_token_ids
from thoughtcache.learner.replay import score_rollouts
from thoughtcache.measuring.phase_memory import PhaseMemory
from thoughtcache.measuring.phase_timer import PhaseCallback, PhaseTimer
from thoughtcache.policy.handle import find_tuner
from thoughtcache.sampler.options import RolloutOptions
from thoughtcache.scale.backend import RolloutBackend
from thoughtcache.scale.exchange import lost_in_collectives
from thoughtcache.train.checkpoints import ROOT_ADAPTER, load_weights
from thoughtcache.train.memory_rate import MemoryRate
from thoughtcache.train.trl.ahead import AheadSampler, backend_metrics
from thoughtcache.train.trl.chain_turns import (
    check_kept,
    check_turns,
    generation_number,
    sample_traces,
)
from thoughtcache.train.trl.checks import check_arguments, check_backend, check_special_tokens
from thoughtcache.train.trl.config import ThoughtGRPOConfig
from thoughtcache.train.trl.encoder_precision import encoders_to_fp32
from thoughtcache.train.trl.generations import Generation, Scoring, check_same_tokens, scores_reference
from thoughtcache.train.trl.model_generation import check_model_generation
from thoughtcache.train.trl.planned_learner import PlannedLearner
from thoughtcache.train.trl.policy_log import PolicyLog
from thoughtcache.train.trl.rollout_log import RolloutLog
from thoughtcache.train.trl.run_state import RunState
from thoughtcache.train.trl.weights_version import WeightsCounter

__all__ = ["ThoughtGRPOConfig", "ThoughtGRPOTrainer"]


class ThoughtGRPOTrainer(PolicyLog, MemoryRate, GRPOTrainer):
    """`trl.GRPOTrainer` for a model with a `ThoughtConfig` adapter; arguments as there.

    Args:
        model: a model with a thought adapter, or a base model (or its name) together with `peft_config`.
        reward_funcs: rewards as TRL takes them.
        args: a `ThoughtGRPOConfig`.
        peft_config: the `ThoughtConfig` of a new adapter.
        rollout_backend: who samples instead of this process, `scale.ray_rollouts.RayRollouts` for example; each process
            of a data-parallel run has its own.
        thinking: sample chains instead of rollouts, `MarkovianThinking` or `StepFolding`; of several, each generation
            of training takes the next one, and evaluation the last. `max_completion_length` bounds a whole chain.
        tools: refused, as `rollout_func` and `environment_factory`: their tokens are not sampled by the policy.
        rollout_func: refused.
        environment_factory: refused.
        **kwargs: data sets, tokenizer, callbacks and optimizers, as TRL takes them.

    Raises:
        ValueError: if there is no thought adapter, or if anything would score another policy than was sampled.
    """

    args: ThoughtGRPOConfig
    model: nn.Module
    max_completion_length: int
    _tag_names = ["trl", "grpo", "thoughtcache"]  # noqa: RUF012 - TRL declares a list

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *,
        peft_config: Any = None,
        rollout_backend: RolloutBackend | None = None,
        thinking: Thinking | Sequence[Thinking] | None = None,
        tools: Any = None,
        rollout_func: Any = None,
        environment_factory: Any = None,
        **kwargs: Any,
    ) -> None:
        given = {"tools": tools, "rollout_func": rollout_func, "environment_factory": environment_factory}
        args = check_arguments(model, args, peft_config, given)
        check_backend(rollout_backend, args)
        self._turns = check_turns(thinking, rollout_backend, args.max_completion_length)
        check_kept(self._turns, args)
        super().__init__(model=model, reward_funcs=reward_funcs, args=args, peft_config=peft_config, **kwargs)
        if self.aux_loss_enabled:
            raise ValueError("the replay returns no router loss; set router_aux_loss_coef=0.0")
        generation_config = find_tuner(self.model).model.generation_config
        check_model_generation(generation_config, min_p=args.min_p)
        self.eos_token_ids = stop_token_ids(generation_config.eos_token_id, self._tokenizer)
        check_special_tokens(self._tokenizer, self.eos_token_ids)
        encoders_to_fp32(self.model)
        self.memory_learning_rate = args.memory_learning_rate
        self.memory = PhaseMemory(self.accelerator.device, keep_timeline=args.profile_memory)
        self._run = RunState(
            sampler=None if rollout_backend is None else AheadSampler(rollout_backend),
            timer=PhaseTimer(self.accelerator.device, self.memory),
            weights=WeightsCounter(),
            log=None if args.rollouts_file is None else RolloutLog(args.rollouts_file),
        )
        self._learner = PlannedLearner(
            self.model,
            args,
            max_new_tokens=self.max_completion_length,
            plans=not self._turns,
            report=self.accelerator.print if self.accelerator.is_main_process else None,
        )
        self.add_callback(PhaseCallback(self._run.timer, self._report_phases))
        self.add_callback(self._run.weights)

    def _phase(self, name: str) -> AbstractContextManager[None]:
        return self._run.timer.phase(name) if self.model.training else nullcontext()

    def _rollout_seed(self) -> int:
        process = self.accelerator.process_index
        return self._run.next_seed(self.args.seed, self._mode, self.state.global_step, process)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[list[int]], Any, dict[str, Any]]:
        """Tokenize as TRL does, less an end-of-sequence token that the tokenizer appends to a text."""
        if isinstance(prompts[0], str):
            return [prompt_token_ids(self._tokenizer, text) for text in prompts], None, {}
        tokenized: tuple[list[list[int]], Any, dict[str, Any]] = super()._tokenize_prompts(prompts)
        return tokenized

    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]]]:
        if images is not None or multimodal_fields:
            raise ValueError("images are not supported under a bounded cache; use a data set of text prompts")
        with (
            self._phase("rollout"),
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
        ):
            generation = self._sample(model, prompt_ids)
        rollouts = generation.rollouts
        self._run.generations[self._mode] = generation
        self._run.scoring = Scoring(rollouts=rollouts, on_policy=self._is_on_policy(generation), is_loss=False)
        self._log_rollouts(rollouts)
        return [r.token_ids for r in rollouts], [r.logprobs.tolist() for r in rollouts]

    def _sample(self, model: nn.Module, prompt_ids: list[list[int]]) -> Generation:
        """Here, or through the backend; a training batch of the backend may have been started a batch ago."""
        self._learner.look_at(prompt_ids)
        train, weights = self.model.training, self._run.weights.version(self.model)
        if self._run.sampler is None:
            timer = self._run.timer if train else None
            rollouts = sample_traces(model, prompt_ids, self._turn(), timer=timer, **self._rollout_options())
            return Generation(rollouts=rollouts, sampled_by=weights)
        if not train:
            batch = self._run.sampler.sample_now(model, prompt_ids, **self._rollout_options())
            return Generation(rollouts=[*batch.rollouts], sampled_by=weights)
        batch, sampled_by = self._run.sampler.sample(model, prompt_ids, weights, **self._rollout_options())
        following = self._following_prompts(self._run.sampler)
        if following:
            self._run.sampler.start_next(model, following, weights, **self._rollout_options())
        self._append_metrics(backend_metrics(batch, weights.optimizer_steps - sampled_by.optimizer_steps))
        return Generation(rollouts=[*batch.rollouts], sampled_by=sampled_by)

    def _turn(self) -> Thinking | None:
        """The way of thinking of this generation; None for rollouts."""
        if not self._turns or not self.model.training:
            return self._turns[-1] if self._turns else None
        every = (self.args.steps_per_generation or 1) * self.num_iterations
        accumulation = self.args.gradient_accumulation_steps
        return self._turns[
            generation_number(self.state.global_step, self._step, accumulation, every) % len(self._turns)
        ]

    def _is_on_policy(self, generation: Generation) -> bool:
        """Whether the weights are still those that sampled."""
        return generation.sampled_by == self._run.weights.version(self.model)

    def _rollout_options(self) -> RolloutOptions:
        return RolloutOptions(
            max_new_tokens=self.max_completion_length,
            temperature=self.temperature,
            seed=self._rollout_seed(),
            batch_size=self.args.rollout_batch_size,
            compile=self.args.compile_rollout,
            pack_weights=self.args.pack_weights,
            stop_ids=self.eos_token_ids,
            record_kv=self._learner.options.kv_log if self.args.reuse_rollout and self.model.training else None,
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as TRL does.

        Raises:
            LostProcess: if another process of the run is gone, at the latest after the time limit of the process group.
        """
        if self._run.log is not None:
            self._run.log.restart()
        with lost_in_collectives():
            return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        """Take batches as TRL does, from an iterator that a sampler ahead of the training can look into."""
        steps_to_go = self.state.max_steps - self.state.global_step
        self._run.last_micro_step = self._step + steps_to_go * self.args.gradient_accumulation_steps
        if self._run.sampler is not None:
            epoch_iterator = self._run.sampler.watch(epoch_iterator, self._step + num_batches)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def _following_prompts(self, sampler: AheadSampler) -> list[list[int]]:
        """The prompts of the next generation; none at the end of an epoch or run, or where nobody samples ahead."""
        generate_every = (self.args.steps_per_generation or 1) * self.num_iterations
        micro_step = (self._step // generate_every + 1) * generate_every
        batch = sampler.batch_at(micro_step)
        if batch is None or micro_step >= self._run.last_micro_step:
            return []
        prompt_ids: list[list[int]] = self._tokenize_prompts(deepcopy([row["prompt"] for row in batch]))[0]
        return prompt_ids

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self._run.scoring = None
        if not self._is_on_policy(self._run.generations[self._mode]):
            # Stale rollouts: the policy that sampled is the old policy of TRL's importance weights.
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        self._write_rollouts(len(inputs))
        output["rollout_index"] = torch.arange(len(inputs), device=self.accelerator.device)
        return output

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        with self._phase("rewards"):
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Also where TRL's frozen copy lies beside the policy: transformers below 5.23 then loads only the copy."""
        policy: Any = self.model
        super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[no-untyped-call, unused-ignore]
        if (Path(resume_from_checkpoint) / ROOT_ADAPTER).is_file():
            load_weights(policy, resume_from_checkpoint)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step; what follows the loss in it is the backward pass."""
        try:
            loss: Tensor = super().training_step(model, inputs, num_items_in_batch)  # type: ignore[no-untyped-call]
            return loss
        finally:
            self._run.end_backward()

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Any:
        self._run.end_backward()
        generation = self._run.generations[self._mode]
        on_policy = self._is_on_policy(generation)
        rollouts = [generation.rollouts[index] for index in inputs["rollout_index"].tolist()]
        if not on_policy and inputs.get("old_per_token_logps") is None:
            # Where TRL expects fresh rollouts it takes the policy of now for the old one.
            inputs = {**inputs, "old_per_token_logps": inputs["sampling_per_token_logps"]}
        scoring = Scoring(rollouts=rollouts, on_policy=on_policy, is_loss=True)
        with self._run.scored(scoring):
            loss = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        if self.model.training:
            self._run.begin_backward()
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **unused: Any,
    ) -> tuple[Tensor, Tensor | None, None]:
        """Replayed log-probabilities [B, logits_to_keep] and entropies; masks are not read, the records say it all."""
        scoring = self._run.scoring
        if scoring is None:
            raise RuntimeError("log-probabilities were asked for outside of a generation and of a loss")
        check_same_tokens(scoring.rollouts, input_ids[:, -logits_to_keep:])
        is_reference = scores_reference(model)
        rows = batch_size or len(scoring.rollouts)
        options = replace(
            self._learner.options,
            anchored=scoring.on_policy and not is_reference,
            full_cache=is_reference and self.args.reference == "full",
            reuse=self.args.reuse_rollout and scoring.on_policy and scoring.is_loss and self.model.training,
        )
        logps, entropies = [], []
        with self._phase("reference" if is_reference else "replay"):
            for start in range(0, len(scoring.rollouts), rows):
                traces = scoring.rollouts[start : start + rows]
                scores = join_links(score_rollouts(model, links_of(traces), options), traces)
                missing = logits_to_keep - scores.logprobs.shape[1]
                logps.append(pad(scores.logprobs, (0, missing)))
                entropies.append(pad(scores.entropies, (0, missing)))
        joined = torch.cat(logps)
        if scoring.is_loss and scoring.on_policy:
            self._log_gap(joined, scoring.rollouts)
        return joined, torch.cat(entropies) if compute_entropy else None, None
