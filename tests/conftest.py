"""Set-up of every test: shapes and types checked at run time, no network, one thread, one seed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jaxtyping
import numpy as np
import pytest

# Before the first import of the package, or its modules stay unchecked.
jaxtyping.install_import_hook("thoughtcache", "beartype.beartype")

import torch  # noqa: E402 - after the hook, like everything else

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fp32_stays_fp32() -> Iterator[None]:
    """transformers switches TF32 on for the whole process when a configuration asks for `torch_compile` or `tf32`."""
    before = torch.backends.fp32_precision
    yield
    torch.backends.fp32_precision = before


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    """Each test starts from the same random numbers, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
