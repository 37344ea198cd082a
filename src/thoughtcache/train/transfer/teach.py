"""Attention transfer as a training loop of `transformers.Trainer`, and its measure on texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from thoughtcache.adapter.attention import thought_attention
from thoughtcache.adapter.cache_argument import cache_keyword
from thoughtcache.adapter.model import ThoughtModel
from thoughtcache.config import ThoughtConfig
from thoughtcache.policy.batch import RolloutBatch, batch_rollouts
from thoughtcache.policy.handle import PolicyHandle, find_tuner, open_policy
from thoughtcache.policy.scores import running_autocast
from thoughtcache.policy.token_ids import check_rollouts
from thoughtcache.records import Rollout
from thoughtcache.sampler.given import with_own_evictions
from thoughtcache.state.attention.weights import MEMORIES
from thoughtcache.train.arguments import last_checkpoint, training_arguments
from thoughtcache.train.checkpoints import history_at_end, load_weights
from thoughtcache.train.distill import DistillResult, RolloutRows, longest_first, under_window
from thoughtcache.train.memory_rate import MemoryRate
from thoughtcache.train.trainable import train_only
from thoughtcache.train.trainer_options.reports import own_report
from thoughtcache.train.trainer_options.token_count import num_tokens
from thoughtcache.train.transfer.config import TransferConfig
from thoughtcache.train.transfer.errors import BoundedPass, LayerErrors


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionShares:
    """What texts say of the attention that a window loses.

    Attributes:
        lost: [L] squared error of the attention output under the window, behind the output projection, summed over the
            thoughts after the first eviction.
        left: [L] the same with the memory.
    """

    lost: Float[Tensor, " L"]
    left: Float[Tensor, " L"]

    @property
    def given_back(self) -> Float[Tensor, " L"]:
        """The share of the lost output that the memory gives back, per layer; negative where it does harm."""
        return 1.0 - self.left / self.lost.clamp_min(torch.finfo(self.lost.dtype).tiny)


def attention_shares(model: nn.Module, adapted: PeftModel, rollouts: Sequence[Rollout]) -> AttentionShares:
    """Errors of a batch of texts under the policy's own evictions; differentiable in the parameters of the memory.

    Args:
        model: the adapted model, wrapped (DDP, accelerate) or not.
        adapted: the same without a wrapper.
        rollouts: texts under the window of the adapter, each with at least one eviction.
    """
    return _shares(model, adapted, with_own_evictions(adapted, rollouts))


def _shares(model: nn.Module, adapted: PeftModel, rollouts: Sequence[Rollout]) -> AttentionShares:
    """Errors under the evictions that the texts have."""
    policy, tuner = open_policy(adapted), find_tuner(adapted)
    ordered = sorted(rollouts, key=lambda row: -len(row.token_ids))
    batch = batch_rollouts(ordered, policy.device)
    memory = tuner.memory()  # of the adapter, which is off while the base runs
    initial = memory.initial_states()
    assert initial is not None
    layers: Any = policy.backbone.layers
    bounded = BoundedPass(
        batch=batch,
        rules=tuner.window_rules(batch.settings.cache, memory),
        reader=memory.reader(),
        initial=initial,
        modules=[layer.self_attn for layer in layers],
    )
    autocast = running_autocast(policy.device.type)

    def request(_: ThoughtModel) -> tuple[Tensor, Tensor]:
        with torch.autocast(**autocast):
            return _run_base(policy, batch, bounded)

    with adapted.disable_adapter():
        left, lost = model(thought_request=request)
    return AttentionShares(lost=lost, left=left)


@torch.no_grad()
def choose_once(model: PeftModel, rows: Sequence[Rollout]) -> list[Rollout]:
    """Texts with what the base, under the window and without a memory, lets leave; they stay that way for all steps.

    Where the oldest leave there is nothing to choose. Any other policy goes through every text token by token, which
    takes longer than a step of training, and a memory changes the choice only as far as it changes the queries.

    Args:
        model: the adapted model.
        rows: texts under the window of the adapter.
    """
    with model.disable_adapter():
        return [*with_own_evictions(model, rows)]


START_SCALES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Factors of the weight of a memory, of which the best one is where transfer begins."""


@torch.no_grad()
def scale_weights(model: PeftModel, rollouts: Sequence[Rollout]) -> list[float]:
    """Let the memory of every layer count as much, or as little, as serves best at the start.

    A memory that was not trained gives a sum over everything that left as much weight as its features happen to say.
    On long texts that drowns the window, and training would spend its first steps on nothing else.

    Args:
        model: the adapted model.
        rollouts: texts under the window of the adapter, each with at least one eviction, as they leave.

    Returns:
        The factor of every layer, one of `START_SCALES`.
    """
    weights = [layer.log_weight for layer in find_tuner(model).memory_weights()]
    start = [weight.clone() for weight in weights]
    errors = []
    for scale in START_SCALES:
        for weight, before in zip(weights, start, strict=True):
            weight.copy_(before + math.log(scale))
        errors.append(_shares(model, model, rollouts).left)
    best = [START_SCALES[index] for index in torch.stack(errors).argmin(dim=0).tolist()]
    for weight, before, scale in zip(weights, start, best, strict=True):
        weight.copy_(before + math.log(scale))
    return best


def _run_base(policy: PolicyHandle, batch: RolloutBatch, bounded: BoundedPass) -> tuple[Tensor, Tensor]:
    """One forward pass of the base over [prompts | thoughts]; left and lost errors [L]."""
    columns = batch.prompts.ids.shape[1] + batch.longest
    cache = DynamicCache()
    errors = LayerErrors(bounded, cache)
    with torch.no_grad(), thought_attention(policy.tuner.model.config):
        policy.backbone(
            input_ids=batch.inputs(0, columns),
            attention_mask=batch.prompts.leading_columns_mask(columns, len(batch.rollouts)),
            position_ids=batch.prompts.positions(0, columns),
            use_cache=True,
            thought_memory=errors,
            **cache_keyword(policy.backbone, cache),
        )
    return torch.stack(errors.left), torch.stack(errors.lost)


class TransferTrainer(MemoryRate, Trainer):
    """`transformers.Trainer` whose loss is the share of the lost attention output that is not given back.

    Args:
        transfer_config: the settings.
        kwargs: arguments of `Trainer`.
    """

    def __init__(self, *, transfer_config: TransferConfig, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.memory_learning_rate = transfer_config.memory_learning_rate
        self.remove_callback(PrinterCallback)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Mean over layers of (error with the memory / error of the window alone), of one batch."""
        self.state.num_input_tokens_seen += num_tokens(inputs["rollouts"], self.accelerator)
        shares = _shares(model, self.accelerator.unwrap_model(model), inputs["rollouts"])
        return (1.0 - shares.given_back).mean()


def transfer_attention(
    model: PeftModel,
    samples: Sequence[Rollout],
    config: TransferConfig,
    *,
    callbacks: Sequence[TrainerCallback] = (),
) -> DistillResult:
    """Teach a memory in attention space to give back the attention output that the window loses, layer by layer.

    The loss is the share of the lost output that is still missing: 1 for a memory that adds nothing, 0 for the full
    cache. The weights of the memory are scaled first, see `scale_weights`. An eviction policy that chooses does so once
    per text, see `choose_once`. What the factors of the linears could do is
    left to `distill`; they are not trained here.

    Args:
        model: a PEFT model with a `ThoughtConfig` adapter that has a memory in attention space; trained in place.
        samples: texts, as `distill` takes them.
        config: the settings.
        callbacks: further trainer callbacks (progress, early stopping).

    Returns:
        The log history. The adapter stays in `model`; checkpoints are in `config.output_dir`.

    Raises:
        ValueError: for an adapter without such a memory, if no text is ever evicted, mixed precision was asked for, or
            `resume` finds no whole checkpoint.
    """
    arguments = training_arguments(config)
    checkpoint = last_checkpoint(config)
    rows = texts_that_evict(model, samples)
    finished = history_at_end(checkpoint, config.num_steps)
    if checkpoint is not None and finished is not None:
        load_weights(model, checkpoint)
        return DistillResult(history=finished)
    rows = choose_once(model, rows)
    if checkpoint is None:
        scale_weights(model, rows[: config.batch_size])
    model.train()
    with train_only(model, lambda name: MEMORIES in name):
        trainer = TransferTrainer(
            transfer_config=config,
            model=model,
            args=arguments,
            train_dataset=RolloutRows(rows),
            data_collator=longest_first,
            callbacks=list(callbacks),
        )
        with own_report(config.report_to):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    model.eval()
    return DistillResult.of(trainer)


def check_transferable(thought: ThoughtConfig) -> None:
    """Refuse an adapter without a memory that attention reads.

    Raises:
        ValueError: for such an adapter.
    """
    if not thought.has_attention_memory or not thought.absorb:
        raise ValueError(
            f"memory={thought.memory!r}, absorb={thought.absorb} has no memory that attention reads, which is what "
            "attention transfer trains; use memory='attention', or teach this adapter with distill"
        )


def texts_that_evict(model: PeftModel, samples: Sequence[Rollout]) -> list[Rollout]:
    """The texts that are longer than the window of the adapter, with its evictions.

    Raises:
        ValueError: if there is none, or if the adapter has no memory in attention space.
    """
    thought = find_tuner(model).thought_config
    check_transferable(thought)
    check_rollouts(samples, open_policy(model), may_be_empty=True)
    sampled = [sample for sample in samples if sample.token_ids]
    bounded = under_window(sampled, thought) if sampled else []
    evicting = [row for row in bounded if row.evictions]
    if not evicting:
        longest = max((len(sample.token_ids) for sample in sampled), default=0)
        raise ValueError(
            f"none of the {len(samples)} texts is ever evicted: the longest has {longest} tokens under "
            f"window={thought.window}; give longer texts, or set a smaller window"
        )
    return evicting
