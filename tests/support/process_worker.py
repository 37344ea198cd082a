"""One process of the data-parallel rollout tests; leaves `<rank>.json`.

Arguments: where to, what happens ("work", or one of `TROUBLES` to the last rank), number of prompts, time limit in
seconds.
`RANK`, `WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` come from torchrun or from the test.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import thoughtcache as tc
from support.models import tiny_model
from support.rollouts import PROMPTS
from thoughtcache.scale.exchange import LostProcess

STOP = [5, 11]
OPTIONS: dict[str, Any] = {"max_new_tokens": 17, "seed": 3, "stop_ids": STOP, "window": "prompt", "record_kv": "host"}
MORE_PROMPTS = [*PROMPTS, PROMPTS[0], [4, 4], PROMPTS[0]]


def _die(*_: Any) -> None:
    os._exit(0)


def _hang(*_: Any) -> None:
    time.sleep(15)
    os._exit(0)


def _fail(*_: Any) -> None:
    raise RuntimeError("out of memory, for example")


TROUBLES = {"die": _die, "hang": _hang, "fail": _fail}


def trouble_at(model: torch.nn.Module, forward_pass: int, happens: Any) -> None:
    """Let something happen in the middle of sampling."""
    count = iter(range(10**6))
    model.get_input_embeddings().register_forward_hook(lambda *_: happens() if next(count) == forward_pass else None)


def report(rollouts: list[tc.Rollout]) -> dict[str, Any]:
    """What the test compares, exactly: Python writes floats so that they can be read back."""
    return {
        "tokens": [r.token_ids for r in rollouts],
        "logprobs": [r.logprobs.tolist() for r in rollouts],
        "prompts": [r.prompt_ids for r in rollouts],
        "windows": [r.settings.window for r in rollouts],
        "columns": [0 if r.keys_values is None else r.keys_values.shape[3] for r in rollouts],
    }


def main() -> None:
    """Sample together, report what came of it."""
    folder, happens, count, limit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    model = tiny_model()
    prompts = MORE_PROMPTS[:count]
    if rank == world - 1:
        if happens in TROUBLES:
            trouble_at(model, 5, TROUBLES[happens])
        if happens == "differ":
            prompts = prompts[::-1]
    found: dict[str, Any] = {"rank": rank, "world": world}
    start = time.monotonic()
    try:
        found |= report(tc.rollout_across_processes(model, prompts, timeout_seconds=limit, **OPTIONS))
        found["asked"] = len(
            tc.rollout_across_processes(model, prompts, timeout_seconds=limit, to_rank=world - 1, **OPTIONS)
        )
    except (LostProcess, ValueError) as error:
        found |= {"error": str(error), "kind": type(error).__name__, "seconds": time.monotonic() - start}
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if "error" in found:
        os._exit(3)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
