"""Cache distillation: the frozen base with its full cache teaches the bounded student on the teacher's own samples.

The flow: teacher samples (`sample_teacher`), the student's cache schedule put over them (`under_window`), one loss per
batch (`distill_loss`): the divergence between both next-token distributions, averaged over thought
tokens. The loop, checkpoints, resume, schedules and processes are `transformers.Trainer`'s.

Why before GRPO: from a zero adapter outcome reward alone taught nothing in the prototypes (DESIGN section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from thoughtcache.cache.eviction.policies.sliding import sliding_evictions
from thoughtcache.config import ThoughtConfig
from thoughtcache.learner.options import AUTO, CHUNK_TOKENS, ReplayOptions, left_to_the_planner
from thoughtcache.learner.replay import run_replay
from thoughtcache.planning.memory.distillation import TEXTS_PER_CALL
from thoughtcache.planning.savings import Savings
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import find_tuner, open_policy
from thoughtcache.policy.other_cache import changes_nothing, under_adapter
from thoughtcache.policy.token_ids import check_prompts, check_rollouts
from thoughtcache.records import Rollout
from thoughtcache.sampler.events import Event
from thoughtcache.sampler.given import with_own_evictions
from thoughtcache.sampler.rollout import rollout
from thoughtcache.train.arguments import last_checkpoint, training_arguments
from thoughtcache.train.checkpoints import history_at_end, load_weights
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.divergence import divergence
from thoughtcache.train.evicted import check_evicted
from thoughtcache.train.memory_rate import MemoryRate
from thoughtcache.train.savings import available_to, choose_for_texts, describe, record
from thoughtcache.train.trainer_options.reports import own_report
from thoughtcache.train.trainer_options.token_count import num_tokens

Evaluator = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillResult:
    """The result of a distillation.

    Attributes:
        history: log records in order (step, loss, and the evaluator's numbers under `eval_`).
        elapsed_seconds: wall-clock time of the training loop, evaluations included.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    elapsed_seconds: float = 0.0

    @classmethod
    def of(cls, trainer: Trainer) -> DistillResult:
        """The result of a trainer that took its steps."""
        history = trainer.state.log_history
        return cls(
            history=list(history), elapsed_seconds=float(history[-1].get("train_runtime", 0.0)) if history else 0.0
        )


def sample_teacher(
    model: PeftModel,
    prompts: Sequence[Sequence[int]],
    config: DistillConfig,
    progress: Callable[[int], None] | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> list[Rollout]:
    """The teacher's own samples: adapter off, full cache, or the cache that the settings name.

    A sample depends on its number, the seed and the prompt, not on `sample_batch_size` (up to rounding). Where a cache
    is named, the samples come back as texts: what was evicted while they were drawn is not kept, and their
    log-probabilities are those under that cache.

    Args:
        model: the adapted model; its base is the teacher.
        prompts: token ids of the prompts.
        config: lengths, temperature, seed and samples per prompt.
        progress: called with the number of rows that were finished.
        tokenizer: tokenizer of the model; its end-of-sequence token ends a sample as those that the model declares do.
        on_event: is told what happens, as by `rollout`.

    Returns:
        `samples_per_prompt` rollouts per prompt, side by side, for `distill(samples=...)`.

    Raises:
        ValueError: if there are no prompts, or if `rollout` refuses them.
    """
    check_prompts(prompts, open_policy(model), purpose=" to distil on")
    repeated = [list(prompt) for prompt in prompts for _ in range(config.samples_per_prompt)]
    sample = partial(
        rollout,
        model,
        repeated,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=config.seed,
        batch_size=config.sample_batch_size,
        pack_weights=config.pack_weights,
        tokenizer=tokenizer,
        progress=progress,
        on_event=on_event,
    )
    if config.teacher_cache is None:
        with model.disable_adapter():
            return sample(window=None)
    size = TEXTS_PER_CALL * config.sample_batch_size  # what a call records of its evictions is kept until it ends
    texts: list[Rollout] = []
    with under_adapter(model, changes_nothing(**config.teacher_cache)):
        for start in range(0, len(repeated), size):
            drawn = sample(rows=range(start, min(start + size, len(repeated))), anchors=False)
            texts += [replace(text, settings=text.settings.with_full_cache(), evictions=()) for text in drawn]
    return texts


def under_window(samples: Sequence[Rollout], config: ThoughtConfig) -> list[Rollout]:
    """The same tokens with the evictions that the student's window would have made.

    What leaves is known for eviction="sliding" only. Other policies choose under the student's weights of the moment:
    `distill_loss` lets the student go through the tokens first.
    """
    longest = max(len(sample.prompt_ids) for sample in samples)
    cache = config.resolve_window(longest)
    results = []
    for sample in samples:
        evictions = sliding_evictions(len(sample.token_ids) - 1, cache.smallest_budget, cache.num_evicted)
        results.append(replace(sample, settings=sample.settings.under_cache(cache), evictions=evictions, states=None))
    return results


def check_unfiltered(samples: Sequence[Rollout]) -> None:
    """Refuse samples of another distribution than the one that the student is taught.

    Raises:
        ValueError: if a sample was drawn through top-k or another filter.
    """
    for row, sample in enumerate(samples):
        if sample.settings.filters.active:
            raise ValueError(
                f"sample {row} was drawn with {sample.settings.filters}, and both distributions are compared without "
                "filters; draw teacher samples without them, as sample_teacher does"
            )


class RolloutRows(Dataset[Rollout]):
    """Texts as a data set of torch."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = list(rollouts)

    def __len__(self) -> int:
        return len(self.rollouts)

    def __getitem__(self, index: int) -> Rollout:
        return self.rollouts[index]


def longest_first(rows: list[Rollout]) -> dict[str, list[Rollout]]:
    """A batch whose longest text comes first."""
    return {"rollouts": sorted(rows, key=lambda row: -len(row.token_ids))}


class DistillTrainer(MemoryRate, Trainer):
    """`transformers.Trainer` whose loss is the divergence from the full-cache base.

    Args:
        distill_config: the settings.
        evaluator: called with the model every `evaluate_every` steps; its numbers go to the log.
        kwargs: arguments of `Trainer`.
    """

    def __init__(self, *, distill_config: DistillConfig, evaluator: Evaluator | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distill_config = distill_config
        self.memory_learning_rate = distill_config.memory_learning_rate
        self.evaluator = evaluator
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean divergence per thought token (nats) of one batch of rollouts.

        All micro-batches but the last go backward here, each weighed by its share of the tokens, so that gradients are
        those of the batch in one piece; the trainer sends the last one backward.
        """
        rows, config = inputs["rollouts"], self.distill_config
        self.state.num_input_tokens_seen += num_tokens(rows, self.accelerator)
        size = len(rows) if config.micro_batch_size == AUTO else config.micro_batch_size
        *before, last = [rows[start : start + size] for start in range(0, len(rows), size)]
        tokens = sum(len(row.token_ids) for row in rows)

        def share(part: list[Rollout]) -> Tensor:
            weight = sum(len(row.token_ids) for row in part) / tokens
            return weight * distill_loss(model, self.accelerator.unwrap_model(model), part, config)

        done = 0.0
        for part in before:
            with self.accelerator.no_sync(model):
                loss = share(part)
                self.accelerator.backward(loss)
            done += float(loss.detach())
        return share(last) + done

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The evaluator's numbers, logged under `eval_`."""
        metrics = {} if self.evaluator is None else self.evaluator(self.accelerator.unwrap_model(self.model))
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log(named)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, named)
        return named


def distill_loss(
    model: nn.Module, adapted: PeftModel, rollouts: Sequence[Rollout], config: DistillConfig
) -> Float[Tensor, ""]:
    """Mean divergence per thought token (nats).

    Args:
        model: the student, wrapped (DDP, accelerate) or not.
        adapted: the student without a wrapper; its base is the teacher.
        rollouts: the teacher's samples, see `under_window`.
        config: `loss` and the learner's options are used.
    """
    policy = open_policy(model)
    batch = batch_rollouts(with_own_evictions(adapted, rollouts), policy.device)
    teacher = teacher_hidden(adapted, batch, chunk_tokens=config.replay_options.chunk_tokens)
    (per_token,) = run_replay(model, batch, divergence(policy, batch, teacher, config.loss), config.replay_options)
    return per_token[batch.mask].mean()


@torch.no_grad()
def teacher_hidden(
    model: PeftModel, batch: RolloutBatch, *, chunk_tokens: int | None = CHUNK_TOKENS
) -> Float[Tensor, "B T d"]:
    """Hidden states from which the full-cache base predicts each thought token.

    Args:
        model: the adapted model; its base is the teacher.
        batch: the tokens.
        chunk_tokens: bound on the tokens of a row whose activations live at once; None runs whole rows.
    """
    options = ReplayOptions(anchored=False, full_cache=True, chunk_tokens=chunk_tokens)
    with model.disable_adapter():
        (hidden,) = run_replay(model, batch, lambda h, start, stop, known: (h,), options)
    return hidden


def distill(
    model: PeftModel,
    prompts: Sequence[Sequence[int]],
    config: DistillConfig,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    samples: Sequence[Rollout] | None = None,
    evaluator: Evaluator | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillResult:
    """Teach the adapter of `model` to predict under its bounded cache what the base predicts with the full cache.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter; it is trained in place.
        prompts: token ids of the prompts; the teacher continues them.
        config: the settings.
        tokenizer: tokenizer of the model; with it the teacher's samples end where those of GRPO and of `generate` do.
        samples: teacher samples from an earlier `sample_teacher`, to share them between students; drawn without
            filters.
        evaluator: called with the model every `config.evaluate_every` steps; its numbers go to the log, under `eval_`.
        callbacks: further trainer callbacks (progress, early stopping).

    Returns:
        The log history. The adapter stays in `model`; checkpoints are in `config.output_dir`.

    Raises:
        ValueError: if there is nothing to train on, no sample is ever evicted, samples are filtered, mixed precision
            was asked for, or `resume` finds no whole checkpoint.
    """
    arguments = training_arguments(config, evaluate_every=config.evaluate_every if evaluator is not None else 0)
    checkpoint = last_checkpoint(config)
    if samples is None:
        samples = sample_teacher(model, prompts, config, tokenizer=tokenizer)
    check_rollouts(samples, open_policy(model), may_be_empty=True)
    check_unfiltered(samples)
    sampled = [sample for sample in samples if sample.token_ids]
    if not sampled:
        raise ValueError("no teacher sample holds a token; check the prompts, and that the base model answers them")
    student = under_window(sampled, find_tuner(model).thought_config)
    if not config.allow_no_eviction:
        check_evicted(student)
    finished = history_at_end(checkpoint, config.num_steps)
    if checkpoint is not None and finished is not None:
        load_weights(model, checkpoint)
        return DistillResult(history=finished)
    model.train()
    chosen, at_once = _chosen_for(model, student, config)
    free = left_to_the_planner(config) if config.recompute else ()
    left = config.micro_batch_size == AUTO
    config = replace(config, **asdict(chosen), micro_batch_size=at_once)
    trainer = DistillTrainer(
        distill_config=config,
        evaluator=evaluator,
        model=model,
        args=arguments,
        train_dataset=RolloutRows(student),
        eval_dataset=RolloutRows(student[:1]) if evaluator is not None else None,
        data_collator=longest_first,
        callbacks=list(callbacks),
    )
    split = left and at_once < min(config.batch_size, len(student))
    if (free or split) and trainer.accelerator.is_main_process:
        trainer.accelerator.print(describe(chosen, free, micro_batch_size=at_once if left else None))
        record(chosen, config.output_dir, micro_batch_size=at_once)
    with own_report(config.report_to):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.eval()
    return DistillResult.of(trainer)


def _chosen_for(model: PeftModel, student: Sequence[Rollout], config: DistillConfig) -> tuple[Savings, int]:
    """The savings of the learner for these texts, and how many it takes at once."""
    prompts = {len(sample.prompt_ids) for sample in student}
    return choose_for_texts(
        model,
        config.replay_options,
        left_to_the_planner(config),
        available_to(model),
        at_once=config.micro_batch_size,
        prompt_tokens=max(prompts),
        max_new_tokens=max(len(sample.token_ids) for sample in student),
        batch=min(config.batch_size, len(student)),
        unequal_prompts=len(prompts) > 1,
    )
