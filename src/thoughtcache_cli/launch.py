"""One command, one process: launchers that start several would do everything several times, into the same files."""

from __future__ import annotations

from collections.abc import Mapping

WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def several_processes(environment: Mapping[str, str]) -> str | None:
    """An error message if a launcher (torchrun, accelerate, mpirun) started this command several times, else None."""
    for name in WORLD_SIZES:
        size = environment.get(name, "")
        if size.isdigit() and int(size) > 1:
            return (
                f"{size} processes were started ({name}={size}), and the commands run in one; start thoughtcache "
                "without torchrun, accelerate or mpirun (or unset that variable). To train on several GPUs, call "
                "tc.ThoughtGRPOTrainer from a script of your own under torchrun: docs/scale.md"
            )
    return None


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this is the process that speaks for all of them."""
    return all(environment.get(name, "0") == "0" for name in RANKS)
