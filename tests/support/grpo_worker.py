"""One process of a data-parallel GRPO run that saves every step; prints one line of JSON.

Arguments: folder of the run, what happens to the last rank while it samples its second step ("nothing" or one of
`TROUBLES`), time limit of a collective in seconds. A run whose folder has a checkpoint goes on from there. `RANK`,
`WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT` come from the test.
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from support.grpo import base_with_eos, make_trainer
from support.models import adapt
from thoughtcache.scale.exchange import LostProcess

STEPS = 3
TROUBLES = {"die": lambda: os._exit(0), "hang": lambda: time.sleep(600)}


def main() -> None:
    """Train, and report how far it came."""
    folder, happens, limit = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(1)
    # transformers hands `ddp_timeout` on where there are GPUs only.
    dist.init_process_group("gloo", timeout=timedelta(seconds=limit))
    model = adapt(base_with_eos(dtype=torch.float32), evict_fraction=0.4)
    trainer = make_trainer(model, folder, max_steps=STEPS, save_strategy="steps", save_steps=1, ddp_backend="gloo")
    if happens in TROUBLES and dist.get_rank() == dist.get_world_size() - 1:

        def trouble(*_: object) -> None:
            if trainer.state.global_step == 1 and not torch.is_grad_enabled():
                TROUBLES[happens]()

        model.get_input_embeddings().register_forward_hook(trouble)
    found, start = {}, time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    except LostProcess as error:
        found = {"error": str(error), "seconds": time.monotonic() - start}
    adapter = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    found |= {"rank": trainer.args.process_index, "step": trainer.state.global_step, "adapter": adapter.tolist()}
    print(json.dumps(found), flush=True)
    os._exit(3 if "error" in found else 0)


if __name__ == "__main__":
    main()
