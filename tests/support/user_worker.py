"""Calls every entry point with what is no token ids, as a user does: without checks of types at run time.

Prints one line of JSON: entry point -> name of the input -> type and text of the error.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import thoughtcache as tc
from support.fake_ray import FakeRay
from support.models import tiny_model
from thoughtcache.scale import ray_rollouts
from thoughtcache.train.distill_config import DistillConfig

PROMPTS: dict[str, Any] = {
    "one text": "What is 2 + 2?",
    "texts": ["What is 2 + 2?", "And 3?"],
    "bytes": b"\x03\x04",
    "encoding": {"input_ids": [[3, 4]], "attention_mask": [[1, 1]]},
    "tensor": torch.tensor([[3, 4, 5], [0, 0, 6]]),
    "array": np.array([[3, 4, 5], [0, 0, 6]]),
    "list of tensors": [torch.tensor([3, 4]), torch.tensor([5])],
    "list of arrays": [np.array([3, 4]), np.array([5])],
    "flat list": [3, 4, 5],
    "flat tensor": list(torch.tensor([3, 4, 5])),
    "flat array": list(np.array([3, 4, 5])),
    "numbers of numpy": [list(np.array([3, 4]))],
    "floats": [[3.0, 4.0]],
    "truth values": [[True, False]],
    "too deep": [[[3, 4], [5]]],
    "generator": (ids for ids in [[3, 4]]),
    "none": None,
    "a prompt that is none": [[3, 4], None],
    "negative": [[3, 4], [3, -100]],
    "beyond the vocabulary": [[3, 29]],
    "empty": [[3], []],
    "nothing": [],
}
STOPS: dict[str, Any] = {"one number": 5, "tensor": torch.tensor([5]), "beyond the vocabulary": [5, 29], "text": "ab"}
SEEDS: dict[str, Any] = {"float": 1.5, "text": "7", "none": None, "tensor": torch.tensor(3), "floats": [1.0]}


def error_of(call: Callable[[], Any]) -> list[str]:
    """Its type and its text."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - which one it is, is what is looked at
        return [type(error).__name__, str(error)]
    return ["none", ""]


def main() -> None:
    """All of them."""
    torch.set_num_threads(1)
    model = tiny_model()
    good = tc.rollout(model, [[3]], max_new_tokens=2)[0]
    rollouts: dict[str, Any] = {
        "a single one": good, "prompts": [[3, 4]], "none": None, "text": "ab", "tensor": torch.tensor([[3, 4]]),
        "of another model": [tc.Rollout(**{**fields(good), "token_ids": [3, 77]})],
        "with a prompt of another model": [good, tc.Rollout(**{**fields(good), "prompt_ids": [-1]})],
    }  # fmt: skip
    ray_rollouts._import_ray = FakeRay
    actors = tc.RayRollouts({}, loader="support.ray_model:plain_model")
    with tempfile.TemporaryDirectory() as folder:
        config = DistillConfig(max_new_tokens=2, num_steps=1, output_dir=folder)
        entries: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
            "rollout": (PROMPTS, lambda ids: tc.rollout(model, ids, max_new_tokens=2)),
            "distill": (PROMPTS, lambda ids: tc.distill(model, ids, config)),
            "processes": (PROMPTS, lambda ids: tc.rollout_across_processes(model, ids, max_new_tokens=2)),
            "ray": (PROMPTS, lambda ids: actors.rollout(model, ids, max_new_tokens=2)),
            "replay": (rollouts, lambda records: tc.replay(model, records)),
            "naive": (rollouts, lambda records: tc.naive_logprobs(model, records)),
            "samples": (rollouts, lambda records: tc.distill(model, [], config, samples=records)),
            "stop_ids": (STOPS, lambda stops: tc.rollout(model, [[3]], max_new_tokens=2, stop_ids=stops)),
            "seed": (SEEDS, lambda seed: tc.rollout(model, [[3]], max_new_tokens=2, seed=seed)),
        }
        found = {
            entry: {name: error_of(lambda value=value, call=call: call(value)) for name, value in inputs.items()}
            for entry, (inputs, call) in entries.items()
            if entry != "samples"
        }
        # None stands for samples that are still to be drawn.
        inputs, call = entries["samples"]
        found["samples"] = {
            name: error_of(lambda value=value: call(value)) for name, value in inputs.items() if value is not None
        }
    same = tc.rollout(model, [[3], [4]], max_new_tokens=2, seed=np.int64(5))
    found["good"] = {
        "a tuple of ranges": error_of(lambda: tc.rollout(model, (range(3, 5), (5,)), max_new_tokens=2)),
        "no stop tokens": error_of(lambda: tc.rollout(model, [[3]], max_new_tokens=2, stop_ids=[])),
        "a seed of numpy": [str(type(same[0].settings.seed)), str(same[0].settings.seed)],
    }
    print(json.dumps(found))


def fields(rollout: tc.Rollout) -> dict[str, Any]:
    """Of a record, by name."""
    return {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}


if __name__ == "__main__":
    main()
