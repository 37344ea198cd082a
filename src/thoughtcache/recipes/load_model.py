"""A base model and its tokenizer from a folder or the hub, with errors of one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from thoughtcache.adapter.support import DTYPES, check_model
from thoughtcache.checks import one_of


def load_tokenizer(model: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """The configuration and the tokenizer of a supported base model; its weights are not read.

    Raises:
        ValueError: if the folder or hub id cannot be read, or holds a model that the adapter does not support.
    """
    path = Path(model).expanduser()
    if not path.is_dir() and (path.is_absolute() or model.startswith((".", "~")) or len(path.parts) > 2):
        raise ValueError(f"the model folder {model!r} does not exist; pass an existing folder, or a model of the hub")
    with _readable(model):
        config = AutoConfig.from_pretrained(model)
    tokenizer = read_tokenizer(model)
    check_model(config)
    return config, tokenizer


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, of a model or of an adapter, with a token to pad with if it has an end.

    Raises:
        ValueError: if it cannot be read.
    """
    with _readable(folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def _readable(model: str) -> Iterator[None]:
    """Say which model it was, in one sentence, where transformers says why in several."""
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise ValueError(
            f"the model {model!r} cannot be loaded ({reason}); pass the folder of a transformers model, or a hub id"
        ) from error


def load_base(model: str, dtype: str, load_in_4bit: bool = False) -> Any:
    """The base model, on the GPU if there is one.

    Raises:
        ValueError: if the model cannot be read, the dtype is unknown, or bitsandbytes is asked for and missing.
    """
    one_of("dtype", dtype, DTYPES)
    options: dict[str, Any] = {"dtype": getattr(torch, dtype)}
    if load_in_4bit:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ValueError("--load-in-4bit needs bitsandbytes; pip install 'thoughtcache[quantized]'") from error
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True, bnb_4bit_compute_dtype=options["dtype"]
        )
    with _readable(model):
        base: Any = AutoModelForCausalLM.from_pretrained(model, **options)
    if torch.cuda.is_available() and not load_in_4bit:
        base = base.to("cuda")
    return base
