"""One rank of the data-parallel test: gradients of its share of a batch, compared with the joined batch on rank 0.

Run by `torchrun`; prints one line of JSON per rank.
"""

from __future__ import annotations

import json

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import thoughtcache as tc
from support.compare import gradient_error, gradients
from support.models import tiny_model

# Rank 0 replays rows with evictions, rank 1 rows that end before the first one: their gates and projections of
# evicted tokens take no part there, and the processes must not wait for each other for ever.
PROMPTS = [[3, 1, 4, 1], [6, 5], [9], [2, 7, 1]]
LENGTHS = (11, 11, 3, 2)


def negative_mean(model: torch.nn.Module, rollouts: list[tc.Rollout], gradient: str | int) -> torch.Tensor:
    """Minus the sum of the log-probabilities over the number of tokens of the *whole* batch."""
    return -tc.replay(model, rollouts, gradient=gradient).logprobs.sum() / sum(LENGTHS)


def main() -> None:
    """Compare both sides in every gradient mode."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = tiny_model(state_rule="gated", window=3)
    rollouts = [
        tc.rollout(model, [prompt], max_new_tokens=length, seed=row, ignore_eos=True)[0]
        for row, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True))
    ]
    mine = rollouts[:2] if rank == 0 else rollouts[2:]
    errors, local_errors = {}, {}
    for mode in ("exact", "detached", 2):
        wrapped = DistributedDataParallel(model)
        # DDP averages over ranks, the loss is a sum over them.
        found = gradients(wrapped, lambda: world * negative_mean(wrapped, mine, mode))  # noqa: B023  called at once
        whole = gradients(model, lambda: negative_mean(model, rollouts, mode))  # noqa: B023
        local = gradients(model, lambda: negative_mean(model, mine, mode))  # noqa: B023
        errors[str(mode)] = gradient_error({name.removeprefix("module."): g for name, g in found.items()}, whole)
        local_errors[str(mode)] = gradient_error(local, whole)
    report = {"rank": rank, "world": world, "evictions": len(mine[0].evictions)}
    print(json.dumps({**report, "errors": errors, "local_errors": local_errors}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
