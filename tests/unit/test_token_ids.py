"""What is no token ids is refused by every entry point in the same words; what is, is taken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
FROM_TEXT = 'tokenizer(texts)["input_ids"] makes them, without return_tensors and padding'
ONE_LIST = "pass one list of token ids per prompt"
IS_ONE = f"{ONE_LIST}: [prompt_ids] if this is one prompt"
INTEGERS = "pass Python integers, of a tensor or an array its .tolist()"
ONE_ROW = "pass a list of token ids, of a tensor or an array its .tolist()"
UNPADDED = "without padding: [row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask)]"
TOKENIZER = "the model has tokens 0 to 28; take the tokenizer of this model"
PROMPTS = {
    "one text": f"the prompts are the text 'What is 2 + 2?'; {ONE_LIST}: {FROM_TEXT}",
    "texts": f"prompt 0 is the text 'What is 2 + 2?'; pass its token ids: {FROM_TEXT}",
    "bytes": r"the prompts are the text b'\x03\x04'; ",
    "encoding": "'attention_mask'... (dict); pass what stands in its [\"input_ids\"], unpadded",
    "tensor": f"the prompts are one Tensor of shape (2, 3); {ONE_LIST}, {UNPADDED}",
    "array": f"the prompts are one ndarray of shape (2, 3); {ONE_LIST}, {UNPADDED}",
    "list of tensors": f"prompt 0 is one Tensor of shape (2,); {ONE_ROW}",
    "list of arrays": f"prompt 0 is one ndarray of shape (2,); {ONE_ROW}",
    "flat list": f"prompt 0 is the single number 3 (int); {IS_ONE}",
    "flat tensor": f"prompt 0 is the single number tensor(3) (Tensor); {IS_ONE}",
    "flat array": f"prompt 0 is the single number np.int64(3) (int64); {IS_ONE}",
    "numbers of numpy": f"prompt 0 holds np.int64(3) (int64) at place 0; {INTEGERS}",
    "floats": f"prompt 0 holds 3.0 (float) at place 0; {INTEGERS}",
    "truth values": f"prompt 0 holds True (bool) at place 0; {INTEGERS}",
    "too deep": f"prompt 0 holds [3, 4] (list) at place 0; {INTEGERS}",
    "generator": f"(generator); {ONE_LIST}, all of them in a list",
    "none": f"the prompts are None (NoneType); {ONE_LIST}, all of them in a list",
    "a prompt that is none": f"prompt 1 is None (NoneType); {ONE_ROW}",
    "negative": f"prompt 1 holds token -100 at place 1, {TOKENIZER}",
    "beyond the vocabulary": f"prompt 0 holds token 29 at place 1, {TOKENIZER}",
    "empty": "prompt 1 is empty; every prompt needs at least one token",
    "nothing": "no prompts were given",
}
RECORDS = "pass the list that thoughtcache.rollout returned"
ROLLOUTS = {
    "a single one": "a single rollout was given; pass a list: [rollout]",
    "prompts": f"the rollouts are [[3, 4]] (list); {RECORDS}",
    "none": f"the rollouts are None (NoneType); {RECORDS}",
    "text": f"the rollouts are 'ab'; {RECORDS}",
    "tensor": f"the rollouts are one Tensor of shape (1, 2); {RECORDS}",
    "of another model": "rollout 0 holds token 77 at place 1, the model has tokens 0 to 28; replay it with the model",
    "with a prompt of another model": "the prompt of rollout 1 holds token -1 at place 0, the model has tokens 0 to 28",
}
STOPS = {
    "one number": "stop_ids is the single number 5 (int); pass a list: [5]",
    "tensor": f"stop_ids is one Tensor of shape (1,); {ONE_ROW}",
    "beyond the vocabulary": f"stop_ids holds token 29 at place 1, {TOKENIZER}",
    "text": "stop_ids is the text 'ab'; pass its token ids",
}
SEEDS = {
    name: f"seed must be an integer, or a list of one per prompt, got {value}"
    for name, value in {"float": 1.5, "text": "'7'", "none": None, "tensor": "tensor(3)", "floats": 1.0}.items()
}
EXPECTED = {
    **dict.fromkeys(("rollout", "distill", "processes", "ray"), PROMPTS),
    "replay": ROLLOUTS,
    "naive": ROLLOUTS,
    "samples": {name: says for name, says in ROLLOUTS.items() if name != "none"},
    "stop_ids": STOPS,
    "seed": SEEDS,
}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """A process of its own: here the annotations are checked at run time, which a user does not have."""
    path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
    run = subprocess.run(
        [sys.executable, str(TESTS / "support" / "user_worker.py")],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("entry", EXPECTED)
def test_refused_with_the_value_and_the_remedy(entry: str, found: dict[str, Any]) -> None:
    expected = EXPECTED[entry]
    assert found[entry].keys() == expected.keys()
    for name, (kind, text) in found[entry].items():
        assert kind == "ValueError", f"{name}: {kind}: {text}"
        assert expected[name] in text, name


def test_taken_as_they_are(found: dict[str, Any]) -> None:
    assert found["good"] == {
        "a tuple of ranges": ["none", ""],
        "no stop tokens": ["none", ""],
        "a seed of numpy": ["<class 'int'>", "5"],
    }
