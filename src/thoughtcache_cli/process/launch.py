"""One command, one process, but for those that share their work: others would do everything several times."""

from __future__ import annotations

from collections.abc import Mapping

WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
SHARED = ("eval", "scale")
"""Commands whose work the processes of torchrun share."""
TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK")


def several_processes(environment: Mapping[str, str], command: str) -> str | None:
    """An error message if a launcher (torchrun, accelerate, mpirun) started a command several times, else None."""
    if command in SHARED and all(name in environment for name in TORCHRUN):
        return None
    found = _launched(environment)
    if found is None:
        return None
    name, size = found
    return (
        f"{size} processes were started ({name}={size}), and this command runs in one (thoughtcache eval and scale "
        "share their work under torchrun); start thoughtcache without torchrun, accelerate or mpirun (or unset that "
        "variable). To train on several GPUs, call tc.ThoughtGRPOTrainer from a script of your own under torchrun: "
        "docs/scale.md"
    )


def is_first(environment: Mapping[str, str]) -> bool:
    """Whether this is the process that speaks for all of them, or the only one."""
    return _launched(environment) is None or all(environment.get(name, "0") == "0" for name in RANKS)


def _launched(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The variable of a launcher that says that there are several processes, and how many; None for a single one."""
    for name in WORLD_SIZES:
        size = environment.get(name, "")
        if size.isdigit() and int(size) > 1:
            return name, size
    return None
