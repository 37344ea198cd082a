"""Model configurations by name, file or folder: what a plan needs of a model is its configuration, never its weights.

Common models are bundled (`models/*.json`, the fields of their `config.json` that set sizes), so that planning works
without a network. Anything else is a `config.json`, a folder that has one, or the id of a model that is in the local
cache or on the hub.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from thoughtcache.adapter.support import check_model

_SEPARATOR = "--"


def bundled_models() -> list[str]:
    """Hub ids of the bundled configurations, sorted."""
    folder = resources.files("thoughtcache.planning") / "models"
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".json").replace(_SEPARATOR, "/", 1) for name in names if name.endswith(".json"))


def load_config(model: str) -> PretrainedConfig:
    """The configuration of a model that the adapter supports.

    Args:
        model: hub id (bundled ones need no network; their last part, such as "Qwen2.5-3B", is enough), a folder with
            a config.json, or such a file.

    Raises:
        ValueError: if nothing is found, the file is not a model configuration, or the model is not supported.
    """
    bundled = {name.rsplit("/", 1)[-1].lower(): name for name in bundled_models()}
    path = Path(model).expanduser()
    if path.exists():
        config = _from_file(path / "config.json" if path.is_dir() else path)
    elif name := bundled.get(model.rsplit("/", 1)[-1].lower() if model in bundled.values() else model.lower()):
        config = _from_values(_read_bundled(name), name)
    else:
        config = _from_hub(model)
    check_model(config)
    return config


def _read_bundled(name: str) -> dict[str, Any]:
    file = resources.files("thoughtcache.planning") / "models" / f"{name.replace('/', _SEPARATOR)}.json"
    values: dict[str, Any] = json.loads(file.read_text())
    return values


def _from_file(file: Path) -> PretrainedConfig:
    if not file.is_file():
        raise ValueError(f"{file} does not exist; pass a folder with a config.json, the file itself, or a model id")
    try:
        values = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not JSON ({error}); pass the config.json of a transformers model") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ValueError(f"{file} has no model_type; pass the config.json of a transformers model")
    return _from_values(values, str(file))


def _from_values(values: dict[str, Any], where: str) -> PretrainedConfig:
    check_model(values)  # before transformers looks for a model type that it may not know
    fields = {name: value for name, value in values.items() if name not in ("model_type", "transformers_version")}
    try:
        config: PretrainedConfig = AutoConfig.for_model(values["model_type"], **fields)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where} cannot be read as a {values['model_type']} configuration: {error}") from error
    return config


def _from_hub(model: str) -> PretrainedConfig:
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model {model!r} is neither a folder, a config.json, nor found on the hub; pass one of these, or a "
            f"bundled name: {', '.join(bundled_models())}"
        ) from error
    return config
