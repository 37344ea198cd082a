"""Where trainers report their logs: transformers' own integrations, by the name of `report_to`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def own_report(name: str) -> Iterator[None]:
    """Around a training: ends the run of wandb that began in it, as the other reports do by themselves.

    transformers begins a run of wandb where there is none and ends none, so that the next training would go on in it
    under its name. A run that was open before is the caller's and stays open; where training fails, wandb itself says
    that the run did.

    Args:
        name: one of `REPORTS`.
    """
    was_open = _open_run() is not None
    yield
    if name == "wandb" and not was_open and _open_run() is not None:
        sys.modules["wandb"].finish()


def _open_run() -> Any:
    return getattr(sys.modules.get("wandb"), "run", None)
