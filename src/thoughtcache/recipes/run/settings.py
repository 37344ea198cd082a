"""The settings that a run was asked for, in a form that can be written down and compared when it goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from thoughtcache.config import ThoughtConfig

EXACT_OPTIONS = (
    "recompute", "checkpoint_layers", "chunk_tokens", "kv_log", "reuse_rollout", "pack_weights", "save_every",
    "profile_memory", "report_to", "log_completions", "teacher_batch_size", "distill_micro_batch_size",
)  # fmt: skip
"""Options that change memory, time or what is left behind, and nothing that is computed beyond rounding."""
FREE_OPTIONS = (*EXACT_OPTIONS, "chosen", "baseline")
"""What may be another one when a run goes on: these, what the planner chose, and a baseline, a run of its own."""
WHOLE = ("teacher_cache", "eviction_options")
"""Nested settings that are one value of a run."""
TRANSIENT_OPTIONS = ("resume", "overwrite", "force", "dry_run")
"""Options of one call rather than of the run."""
_NO_SETTINGS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision",
    "runtime_config", "task_type",
}  # fmt: skip
_SAMPLED_BYTES, _NUM_SAMPLES = 2**16, 16

Difference = tuple[str, Any, Any]


def adapter_settings(config: ThoughtConfig) -> dict[str, Any]:
    """Every setting of an adapter as JSON data: ours, and those inherited from LoRA that are not at their default."""
    settings = {}
    for field in dataclasses.fields(config):
        if field.name in _NO_SETTINGS:
            continue
        value = _plain(getattr(config, field.name))
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if field.name in ThoughtConfig.__annotations__ or value != _plain(default):
            settings[field.name] = value
    return settings


def default_settings(config: type) -> dict[str, Any]:
    """Every default of a dataclass: what a run had that was begun before there was the setting."""
    fields = [field for field in dataclasses.fields(config) if field.default is not MISSING]
    return {field.name: _plain(field.default) for field in fields}


def model_identities(config: PretrainedConfig, model: str, adapter_weights: Path | None) -> dict[str, str]:
    """Digests of what paths do not say: the base model, and the adapter that a run starts from.

    Args:
        config: configuration of the base model.
        model: its folder or hub id.
        adapter_weights: file of the adapter's weights; None for a new adapter.
    """
    found = {"base_digest": base_identity(config, model)}
    if adapter_weights is not None:
        found["adapter_digest"] = file_identity(adapter_weights)
    return found


def base_identity(config: PretrainedConfig, model: str) -> str:
    """A short digest of a base model: its commit on the hub, or its configuration and a sample of its weights.

    The first and last bytes of each weight file and some between are read, so that it takes no time at any size.
    """
    commit = getattr(config, "_commit_hash", None)
    folder = Path(model).expanduser()
    if commit is not None and not folder.is_dir():
        return str(commit)
    digest = hashlib.blake2b(digest_size=16)
    ignored = ("_name_or_path", "transformers_version")
    described = {name: value for name, value in config.to_dict().items() if name not in ignored}
    digest.update(json.dumps(described, sort_keys=True, default=str).encode())
    for file in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for index in range(_NUM_SAMPLES + 1):
                weights.seek(max(0, size - _SAMPLED_BYTES) * index // _NUM_SAMPLES)
                digest.update(weights.read(_SAMPLED_BYTES))
    return digest.hexdigest()


def file_identity(file: Path) -> str:
    """A digest of a whole file."""
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


def data_identity(rows: Iterable[object]) -> str:
    """A digest of the questions and answers, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(json.dumps(row, default=str).encode() + b"\n")
    return digest.hexdigest()


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    free: Collection[str] = (),
    growing: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
) -> list[Difference]:
    """(name, value before, value now) of every setting that is another one; nested settings under their own name.

    Settings of `WHOLE` are compared in one piece: names inside them are those of other settings of a run.

    Args:
        before: settings that were written down.
        now: settings of this call; what it does not have is not compared.
        free: settings that may be another one.
        growing: counts that may be larger now.
        defaults: what a setting was where `before` does not have it, because it was written before there was one.
    """
    defaults = defaults or {}
    found: list[Difference] = []
    for name, value in sorted(now.items()):
        old = before.get(name, defaults.get(name))
        if name in free or value == old:
            continue
        if name not in WHOLE and isinstance(value, dict) and isinstance(old, dict):
            missing = dict.fromkeys(old.keys() - value.keys())
            inner = defaults.get(name)
            found += differences(
                old,
                {**missing, **value},
                free=free,
                growing=growing,
                defaults=inner if isinstance(inner, dict) else None,
            )
        elif not (name in growing and isinstance(old, int) and value > old):
            found.append((name, old, value))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
