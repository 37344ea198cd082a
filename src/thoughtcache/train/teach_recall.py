"""Teaches an adapter to remember: `transformers.Trainer` on passcode episodes of growing distance.

Episodes are made when they are needed, each from the seed and its number alone, so that a run that is resumed sees what
it would have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from thoughtcache.adapter.state_parameters import is_of_states
from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.handle import find_tuner
from thoughtcache.records import CacheSettings
from thoughtcache.tasks.recall.episode import RecallEpisode
from thoughtcache.tasks.recall.passcode import PasscodeTask, words_for
from thoughtcache.train.arguments import last_checkpoint, training_arguments
from thoughtcache.train.checkpoints import history_at_end, load_weights
from thoughtcache.train.distill import DistillResult
from thoughtcache.train.memory_rate import MemoryRate
from thoughtcache.train.recall import answer_logprobs
from thoughtcache.train.recall_config import RecallConfig
from thoughtcache.train.trainable import train_only
from thoughtcache.train.trainer_options.reports import own_report
from thoughtcache.train.trainer_options.token_count import num_tokens

WRITE_COST = 0.05
"""Nats per token that is written to a memory in attention space; docs/lab-log.md, "a price on writing"."""


class _Episodes(Dataset[RecallEpisode]):
    """All episodes of a run, by number; those of one step lie at the same place, so that they are equally long."""

    def __init__(self, task: PasscodeTask, config: RecallConfig, num_processes: int) -> None:
        self.task, self.config = task, config
        self.per_step = config.batch_size * num_processes
        shortest = config.min_code_length or config.code_length
        self.tasks = {length: replace(task, length=length) for length in range(shortest, config.code_length + 1)}

    def __len__(self) -> int:
        return self.config.num_steps * self.per_step

    def __getitem__(self, index: int) -> RecallEpisode:
        step = index // self.per_step
        before = self.before(step) * (self.task.cache.num_evicted or 0)
        task = self.tasks[self.code_length(step)]
        return task.episode(f"training {self.config.seed} {index}", self.distance(step), before)

    def code_length(self, step: int) -> int:
        """Words or digits of the codes of a step; drawn as the distance is."""
        return self._drawn("code length", step, min(self.tasks), max(self.tasks))

    def distance(self, step: int) -> int:
        """The distance of a step: uniform in its logarithm, so that short ones are not rare, and long ones come."""
        return self._drawn("distance", step, self.config.min_evictions, self.config.longest(step))

    def before(self, step: int) -> int:
        """The text before the codes of a step, in evictions that it is enough for; drawn as the distance is."""
        return self._drawn("before", step, 0, self.config.most_before)

    def _drawn(self, name: str, step: int, shortest: int, longest: int) -> int:
        drawn = Random(f"{name} {self.config.seed} {step}").uniform(math.log(shortest + 1), math.log(longest + 2))
        return min(longest, int(math.exp(drawn)) - 1)


class RecallTrainer(MemoryRate, Trainer):
    """`transformers.Trainer` whose loss is the cross-entropy of the answers.

    Args:
        recall_config: the settings.
        cache: the adapter's cache, resolved.
        kwargs: arguments of `Trainer`.
    """

    def __init__(self, *, recall_config: RecallConfig, cache: CacheSettings, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.recall_config, self.cache = recall_config, cache
        self.memory_learning_rate = recall_config.memory_learning_rate
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> SequentialSampler:
        """Episodes come in their order: distances grow."""
        dataset: Any = self.train_dataset
        return SequentialSampler(dataset)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean cross-entropy (nats) per token of the answers."""
        adapted = self.accelerator.unwrap_model(model)
        self.state.num_input_tokens_seen += num_tokens(inputs["episodes"], self.accelerator)
        options, seed = self.recall_config.replay_options, self.state.global_step
        logprobs, _ = answer_logprobs(model, adapted, inputs["episodes"], self.cache, options, seed=seed)
        return -logprobs.mean()


def teach_recall(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    config: RecallConfig,
    *,
    own_sentences: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillResult:
    """Teach the adapter of `model` to find, under its window, what it was told before.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter whose window is an integer; it is trained in place.
        tokenizer: tokenizer of the model.
        config: the settings.
        own_sentences: sentences between a code and its question instead of built-in ones.
        callbacks: further trainer callbacks (progress, early stopping).

    Returns:
        The log history. The adapter stays in `model`; checkpoints are in `config.output_dir`.

    Raises:
        ValueError: for an adapter without a memory, or one that nothing reads yet, a window that is no integer, mixed
            precision, or if `resume` finds no whole checkpoint.
    """
    arguments = training_arguments(config)
    checkpoint = last_checkpoint(config)
    thought = find_tuner(model).thought_config
    _check_trainable(model, thought, config)
    cache = thought.resolve_window(None)
    task = PasscodeTask(
        tokenizer=tokenizer,
        cache=cache,
        length=config.code_length,
        kind=config.kind,
        own_sentences=own_sentences,
        words=words_for(config.code_length),
    )
    finished = history_at_end(checkpoint, config.num_steps)
    if checkpoint is not None and finished is not None:
        load_weights(model, checkpoint)
        return DistillResult(history=finished)
    model.train()
    with (
        train_only(model, is_of_states if config.trains == "memory" else None),
        priced_writes(model, WRITE_COST if config.write_cost is None else config.write_cost),
    ):
        trainer = RecallTrainer(
            recall_config=config,
            cache=cache,
            model=model,
            args=arguments,
            train_dataset=_Episodes(task, config, arguments.world_size),
            data_collator=lambda rows: {"episodes": rows},
            callbacks=list(callbacks),
        )
        with own_report(config.report_to):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.eval()
    return DistillResult.of(trainer)


def check_teachable(thought: ThoughtConfig, config: RecallConfig) -> None:
    """Refuse settings that train what an adapter does not have.

    Raises:
        ValueError: for such settings.
    """
    config.check_write_cost(thought.memory)
    if config.trains == "memory" and thought.is_plain_lora:
        raise ValueError("the adapter is plain LoRA and has no memory to train; use trains='adapter'")


def _check_trainable(model: nn.Module, thought: ThoughtConfig, config: RecallConfig) -> None:
    """Refuse to train what has no influence on the answers."""
    check_teachable(thought, config)
    if (
        config.trains == "memory"
        and thought.memory == "adapter"
        and not any(parameter.count_nonzero() for name, parameter in model.named_parameters() if "lora_B" in name)
    ):
        raise ValueError(
            "trains='memory' would train nothing: under memory='adapter' linears read the state through factors that "
            "are still zero; use trains='adapter', or memory='attention'"
        )


@contextmanager
def priced_writes(model: nn.Module, cost: float) -> Iterator[None]:
    """Let what is written to a memory in attention space add to the loss, in this block.

    Args:
        model: the adapted model; nothing happens under the paper's state.
        cost: units of the loss per token that is written with strength one in all heads of all layers.
    """
    layers = find_tuner(model).memory_weights()
    for layer in layers:
        layer.write_price = cost / len(layers)
    try:
        yield
    finally:
        for layer in layers:
            layer.write_price = 0.0
