"""A saved adapter on its base model, with an error of one sentence where the two do not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from thoughtcache.cache.eviction import OptionValue
from thoughtcache.config import ThoughtConfig
from thoughtcache.recipes.load_model import load_base, load_tokenizer, read_tokenizer

WEIGHTS = "adapter_model.safetensors"


def read_adapter(folder: str) -> tuple[ThoughtConfig, dict[str, torch.Tensor]]:
    """Settings and weights of a saved adapter.

    Raises:
        ValueError: if the folder holds no adapter, a damaged one, or one of another kind.
    """
    if not (Path(folder) / "adapter_config.json").is_file():
        raise ValueError(f"{folder} holds no adapter (no adapter_config.json); give the folder that training saved")
    try:
        config = PeftConfig.from_pretrained(folder)
        saved = load_peft_weights(folder, device="cpu")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(
            f"the adapter in {folder} is damaged ({' '.join(str(error).split())}); copy it again, or train it again"
        ) from error
    if not isinstance(config, ThoughtConfig):
        raise ValueError(f"{folder} holds a {config.peft_type} adapter; give one that `thoughtcache train` saved")
    return config, saved


def settings_to_start_from(folder: str, changes: Mapping[str, Any]) -> ThoughtConfig:
    """Settings of a saved adapter that is trained on.

    Args:
        folder: see `read_adapter`, as for what is raised.
        changes: settings of the cache that are others from now on (window, evict_fraction, positions, eviction,
            eviction_options, eviction_budgets).
    """
    config, _ = read_adapter(folder)
    return dataclasses.replace(with_changes(config, changes), inference_mode=False)


def with_changes(config: ThoughtConfig, changes: Mapping[str, Any]) -> ThoughtConfig:
    """The settings with changes; another eviction policy starts with its defaults, the same one keeps its options.

    Raises:
        ValueError: for a policy, or options of one, where nothing leaves.
    """
    changes = dict(changes)
    policy = {name: changes[name] for name in ("eviction", "eviction_options") if changes.get(name) is not None}
    if policy and changes.get("window", config.window) is None:
        name, value = next(iter(policy.items()))
        raise ValueError(f"{name}={value!r} changes nothing with window=None, where nothing is evicted; leave it out")
    own = config.eviction_options if policy.get("eviction", config.eviction) == config.eviction else {}
    if policy:
        changes["eviction_options"] = {**own, **policy.get("eviction_options", {})}
    return dataclasses.replace(config, **changes)


def put_adapter(
    base: Any, config: ThoughtConfig, saved: dict[str, torch.Tensor], *, folder: str, model: str
) -> PeftModel:
    """The base with the adapter that `read_adapter` read.

    Args:
        base: the base model.
        config: the adapter's settings.
        saved: its weights.
        folder: name of the adapter in errors.
        model: name of the base in errors.

    Raises:
        ValueError: if the adapter was trained on another base model.
    """
    config.base_model_name_or_path = base.name_or_path  # a moved folder is fine; whether it fits is checked below
    start, config.encoder_start = (
        config.encoder_start,
        "random",
    )  # its weights come below, and the base may be quantised
    try:
        adapted: Any = peft.get_peft_model(base, config)
    except ValueError as error:
        raise ValueError(
            f"the adapter in {folder} does not fit {model} ({error}); use the base model it was trained on"
        ) from error
    finally:
        config.encoder_start = start
    expected = {name: tensor.shape for name, tensor in get_peft_model_state_dict(adapted).items()}
    found = {name: tensor.shape for name, tensor in saved.items()}
    different = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise ValueError(
            f"the adapter in {folder} does not fit {model}: {len(different)} tensors differ, first {name} "
            f"(model {_shape(expected.get(name))}, adapter {_shape(found.get(name))}); "
            "use the base model it was trained on"
        )
    set_peft_model_state_dict(adapted, saved)
    return adapted  # type: ignore[no-any-return]


def _shape(shape: torch.Size | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape))


def adapted_model(
    model: str,
    thought: ThoughtConfig,
    *,
    adapter: str | None,
    dtype: str,
    load_in_4bit: bool = False,
    seed: int,
) -> PeftModel:
    """A base model with a new adapter, or with a saved one.

    Args:
        model: folder or hub id of the base model.
        thought: settings of the adapter; those of the saved one, if there is one.
        adapter: folder of a saved adapter.
        dtype: dtype of the base model.
        load_in_4bit: quantise the base with bitsandbytes.
        seed: decides the start of a new adapter.

    Raises:
        ValueError: if the model or the adapter cannot be used.
    """
    saved = None if adapter is None else read_adapter(adapter)[1]
    base = load_base(model, dtype, load_in_4bit)
    torch.manual_seed(seed)
    if adapter is None or saved is None:
        return peft.get_peft_model(base, thought)
    return put_adapter(base, thought, saved, folder=adapter, model=model)


def load_adapted(
    model: str,
    adapter: str,
    dtype: str,
    *,
    eviction: str | None = None,
    eviction_options: Mapping[str, OptionValue] | None = None,
    cache: Mapping[str, Any] | None = None,
    base: Any = None,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A base model with a saved adapter that fits it, and the tokenizer. The adapter's files are looked at first.

    Args:
        model: folder or hub id of the base model.
        adapter: folder of the adapter; a tokenizer that is saved with it is taken.
        dtype: dtype of the base model.
        eviction: another eviction policy than the adapter's; None for that one.
        eviction_options: settings of that policy.
        cache: other settings of the cache than the adapter's: window, evict_fraction, positions, eviction_budgets.
        base: the base model, where it is loaded already.

    Returns:
        The model, in eval mode, and its tokenizer.

    Raises:
        ValueError: if the model, the adapter, the eviction policy or the cache cannot be used.
    """
    config, saved = read_adapter(adapter)
    changes = {"eviction": eviction, "eviction_options": eviction_options, **(cache or {})}
    config = with_changes(config, {name: value for name, value in changes.items() if value is not None})
    _, tokenizer = load_tokenizer(model)
    if (Path(adapter) / "tokenizer_config.json").is_file():
        tokenizer = read_tokenizer(adapter)
    base = load_base(model, dtype) if base is None else base
    return put_adapter(base, config, saved, folder=adapter, model=model).eval(), tokenizer
