"""One rank of the data-parallel test: gradients of its share of a batch, compared with the joined batch on rank 0.

Run by `torchrun`; prints one line of JSON per rank.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import thoughtcache as tc
from support.compare import gradient_error, gradients
from support.models import tiny_model, use_norms_without_fp32
from thoughtcache.state.attention.weights import MEMORIES
from thoughtcache.train.arguments import training_arguments
from thoughtcache.train.distill import DistillTrainer, RolloutRows, distill_loss
from thoughtcache.train.distill_config import DistillConfig
from thoughtcache.train.trainable import train_only
from thoughtcache.train.transfer.teach import attention_shares, texts_that_evict

# Rank 0 replays rows with evictions, rank 1 rows that end before the first one: their gates and projections of
# evicted tokens take no part there, and the processes must not wait for each other for ever.
PROMPTS = [[3, 1, 4, 1], [6, 5], [9], [2, 7, 1]]
LENGTHS = (11, 11, 3, 2)
TRANSFER_LENGTHS = (14, 9, 5, 8)
"""Every text evicts, and the ranks do so unequally often."""


# name -> (adapter, options of the replay, whether the base is trained as well)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "exact": ({}, {}, False),
    "detached": ({}, {"gradient": "detached"}, False),
    "blocks": ({}, {"gradient": 2}, False),
    "rolling, chunks": (
        {"eviction": "random", "positions": "rolling"}, {"chunk_tokens": 2, "kv_log": "host"}, False,
    ),
    "full fine-tuning, checkpoints of layers": ({"state_rule": "delta"}, {"checkpoint_layers": True}, True),
    "one graph": ({}, {"recompute": False}, False),
    "attention memory": ({"memory": "attention", "memory_features": 6, "memory_write": "delta"}, {}, False),
}  # fmt: skip


def negative_mean(model: torch.nn.Module, rollouts: list[tc.Rollout], options: dict[str, Any]) -> torch.Tensor:
    """Minus the sum of the log-probabilities over the number of tokens of the *whole* batch."""
    return -tc.replay(model, rollouts, **options).logprobs.sum() / sum(LENGTHS)


def build(adapter: dict[str, Any], train_base: bool) -> tuple[torch.nn.Module, list[tc.Rollout]]:
    """The same model and rollouts on every rank."""
    rule = {} if "memory" in adapter else {"state_rule": "gated"}
    model = tiny_model(**{**rule, "window": 3, **adapter})
    use_norms_without_fp32(model)
    rollouts = [
        tc.rollout(model, [prompt], max_new_tokens=length, seed=row, ignore_eos=True)[0]
        for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]
    if train_base:
        model.requires_grad_(True)
    return model, rollouts


def errors_of(case: tuple[dict[str, Any], dict[str, Any], bool], rank: int, world: int) -> tuple[float, float, float]:
    """Relative errors of this rank's gradient: synchronised; accumulated under `no_sync` first; left alone."""
    adapter, options, train_base = case
    model, rollouts = build(adapter, train_base)
    mine = rollouts[:2] if rank == 0 else rollouts[2:]
    wrapped = DistributedDataParallel(model)

    def accumulated() -> torch.Tensor:
        with wrapped.no_sync():
            (world * negative_mean(wrapped, mine[:1], options)).backward()
        return world * negative_mean(wrapped, mine[1:], options)

    # DDP averages over ranks, the loss is a sum over them.
    at_once = gradients(wrapped, lambda: world * negative_mean(wrapped, mine, options))
    in_parts = gradients(wrapped, accumulated)
    local = gradients(model, lambda: negative_mean(model, mine, options))
    whole = gradients(model, lambda: negative_mean(model, rollouts, options))
    at_once, in_parts = ({n.removeprefix("module."): g for n, g in found.items()} for found in (at_once, in_parts))
    return gradient_error(at_once, whole), gradient_error(in_parts, whole), gradient_error(local, whole)


def transfer_errors(rank: int, world: int) -> tuple[float, float, float]:
    """The same of attention transfer, whose loss is a ratio of sums: DDP gives the mean of the ranks' gradients."""
    model = tiny_model(memory="attention", memory_features=6, memory_write="delta", window=3)
    use_norms_without_fp32(model)
    with model.disable_adapter():
        texts = [
            tc.rollout(model, [prompt], max_new_tokens=length, seed=row, ignore_eos=True, window=None)[0]
            for row, (prompt, length) in enumerate(zip(PROMPTS, TRANSFER_LENGTHS, strict=True))
        ]
    rows = texts_that_evict(model, texts)
    mine = rows[2 * rank : 2 * rank + 2]

    def left(wrapped: torch.nn.Module, some: list[tc.Rollout]) -> torch.Tensor:
        return (1 - attention_shares(wrapped, model, some).given_back).mean()

    def mean_gradient(parts: list[list[tc.Rollout]]) -> dict[str, torch.Tensor]:
        found = [gradients(model, lambda part=part: left(model, part)) for part in parts]
        return {name: sum(one[name] for one in found) / len(parts) for name in found[0]}

    with train_only(model, lambda name: MEMORIES in name):
        # First of all, as the trainer does: leaving `disable_adapter` lets the whole adapter be trained again.
        wrapped = DistributedDataParallel(model)

        def accumulated() -> torch.Tensor:
            with wrapped.no_sync():
                (left(wrapped, mine[:1]) / 2).backward()
            return left(wrapped, mine[1:]) / 2

        at_once = gradients(wrapped, lambda: left(wrapped, mine))
        in_parts = gradients(wrapped, accumulated)
        local, of_ranks = mean_gradient([mine]), mean_gradient([rows[:2], rows[2:]])
        of_texts = mean_gradient([[row] for row in rows])
    at_once, in_parts = ({n.removeprefix("module."): g for n, g in found.items()} for found in (at_once, in_parts))
    assert len(rows) == 2 * world
    return gradient_error(at_once, of_ranks), gradient_error(in_parts, of_texts), gradient_error(local, of_ranks)


def distillation_errors(rank: int, world: int) -> tuple[float, float, float]:
    """The same of distillation's loss: a step in one piece, in micro-batches of one text, and left alone.

    The mean of a rank is over its own tokens: DDP gives the mean of the ranks' gradients.
    """
    model, rollouts = build({"memory": "attention", "memory_features": 6}, train_base=False)
    mine, rows = rollouts[2 * rank : 2 * rank + 2], [rollouts[:2], rollouts[2:]]
    settings = DistillConfig(output_dir=tempfile.mkdtemp())

    def trainer(size: int) -> DistillTrainer:
        return DistillTrainer(
            distill_config=replace(settings, micro_batch_size=size), evaluator=None, model=model,
            args=training_arguments(settings), train_dataset=RolloutRows(rollouts),
        )  # fmt: skip

    whole, parts = trainer(2), trainer(1)
    wrapped = DistributedDataParallel(model)
    at_once = gradients(wrapped, lambda: whole.compute_loss(wrapped, {"rollouts": mine}))
    in_parts = gradients(wrapped, lambda: parts.compute_loss(wrapped, {"rollouts": mine}))
    of_each = [gradients(model, lambda some=some: distill_loss(model, model, some, settings)) for some in rows]
    of_ranks = {name: sum(one[name] for one in of_each) / world for name in of_each[0]}
    at_once, in_parts = ({n.removeprefix("module."): g for n, g in found.items()} for found in (at_once, in_parts))
    return (
        gradient_error(at_once, of_ranks),
        gradient_error(in_parts, of_ranks),
        gradient_error(of_each[rank], of_ranks),
    )


def main() -> None:
    """Compare both sides in every case."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    _, rollouts = build({}, train_base=False)
    report = {"rank": rank, "world": world, "evictions": len(rollouts[2 * rank].evictions)}
    errors = {name: errors_of(case, rank, world) for name, case in CASES.items()}
    errors["attention transfer"] = transfer_errors(rank, world)
    errors["distillation"] = distillation_errors(rank, world)
    print(json.dumps({**report, "errors": errors}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
