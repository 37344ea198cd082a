"""Where trainers report their logs: transformers' own integrations, by the name of `report_to`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.integrations import integration_utils

NONE = "none"
AVAILABLE: dict[str, Callable[[], bool]] = {
    "tensorboard": integration_utils.is_tensorboard_available,
    "trackio": integration_utils.is_trackio_available,
    "wandb": integration_utils.is_wandb_available,
    "mlflow": integration_utils.is_mlflow_available,
}
"""Whether transformers finds the package of a report, which has the same name at the package index."""
REPORTS = (NONE, *AVAILABLE)


def check_report(name: str) -> None:
    """Refuse a report whose package is missing, before anything is computed.

    Args:
        name: one of `REPORTS`.

    Raises:
        ValueError: if it is missing; the message says what to install.
    """
    if name != NONE and not AVAILABLE[name]():
        raise ValueError(
            f"report_to={name} needs the package {name}, which is not installed; pip install {name}, or use "
            f"report_to={NONE}"
        )


def reporting(name: str, output_dir: str | Path) -> dict[str, Any]:
    """The fields of `TrainingArguments` for a report.

    Args:
        name: one of `REPORTS`.
        output_dir: folder of the trainer; the run is named after it and the folder around it.
    """
    if name == NONE:
        return {"report_to": []}
    return {"report_to": [name], "run_name": "-".join(Path(output_dir).resolve().parts[-2:])}
